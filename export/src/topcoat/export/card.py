"""The bundle's card: one page that says what it is, where it comes from and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from topcoat.export.sources import Source
from topcoat.export.sources.onnx_file import KIND as ONNX
from topcoat.runtime.parity import ParityReport, parity_table, reasons_not_run


def card_markdown(manifest: Mapping[str, Any], report: ParityReport, source: Source) -> str:
    """Write the card.

    Args:
        manifest: of the bundle, with its variants.
        report: every comparison.
        source: where the network comes from.
    """
    name, size, scale = manifest["name"], manifest["size"], manifest["scale"]
    texture = manifest["task"] == "texture"
    network = manifest["checkpoint"]["network"]
    elsewhere = source.kind is not None
    settings = ", ".join(f"{key} {_words(value)}" for key, value in network["settings"].items())
    if not settings and not elsewhere:
        settings = "default settings"
    settings = f" ({settings})" if settings else ""
    trained = (
        [("Texture" if texture else "Style", _style(source.style)), *_compared(source.recipe)]
        if scale == 1
        else [
            ("Trained on", _degradation(source.recipe, scale)),
            ("Trained for", _objective(source.recipe)),
        ]
    )
    frames = "uint8, (H, W, 3) or (N, H, W, 3), RGB"
    if texture:
        frames += ": noise, uniform over 0 to 255; the output is a texture of the same size"
    else:
        larger = f"{scale} times as high and as wide" if scale > 1 else "alike"
        frames += f"; the output is {larger}"
    facts = [
        ("Task", task_words(manifest["task"], scale)),
        (
            "Network",
            f"{network['name']}{settings}, {source.parameters:,} weights",
        ),
        *(
            [("Recipe", f"{source.recipe.get('name')}, {source.step} steps")]
            if source.step is not None
            else []
        ),
        *(("Origin", note) for note in source.notes),
        *([] if elsewhere else [*trained, ("Losses at the end", _losses(source.history))]),
        ("Frames", frames),
        ("Sizes", _sizes(size, texture)),
        ("Memory", _memory(manifest["memory_per_pixel"], size["halo"])),
        ("Made by", ", ".join(f"{tool} {v}" for tool, v in manifest["made_by"].items())),
    ]
    # Who answers for the network, where there is no PyTorch in it.
    reference = (
        "ONNX Runtime (fp32, the file as it came)" if source.kind == ONNX else "PyTorch (fp32)"
    )
    models = [
        f"| `{v['file']}` | {v['precision']} | {v['bytes'] / 1e6:.2f} MB | `{v['sha256'][:12]}…` |"
        for v in manifest["variants"]
    ]
    if texture:
        side = max(size["min"], 512 // size["multiple"] * size["multiple"])
        command = f"topcoat texture {name}.topcoat texture.png --size {side}x{side} --seed 1"
        call = f"texture = model.sample({side}, {side}, seed=1)"
    elif scale == 1:
        command = f"topcoat run photo.jpg styled.jpg --model {name}.topcoat"
        call = "styled = model.process(frame)"
    else:
        command = f"topcoat run small.png large.png --model {name}.topcoat"
        call = "large = model.process(frame)"
    return "\n".join(
        [
            f"# {name}",
            "",
            *(_TEXTURE_PICTURES if texture else _pictures(scale, elsewhere)),
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts),
            "",
            "| File | Precision | Size | SHA-256 |",
            "|---|---|---|---|",
            *models,
            "",
            "## Parity",
            "",
            f"The same frames through {reference} and through each engine: the largest",
            "difference of any value in 8-bit steps, and the PSNR of each group of frames. Every",
            "number is in `parity.json`.",
            "",
            *parity_table([row for row in report.rows if row.status != "not run"]),
            "",
            *(f"- not run at export: {reason}" for reason in reasons_not_run(report.rows)),
            "",
            "## Use",
            "",
            "```sh",
            command,
            f"bench-latency {name}.topcoat",
            "```",
            "",
            "```python",
            "import topcoat.runtime",
            "",
            f'model = topcoat.runtime.open("{name}.topcoat")',
            call,
            "```",
            "",
            f"`golden_in.png` and `golden_out.png` are {'noise' if texture else 'a frame'} and"
            f" {reference.split(' (')[0]}'s answer to it: an",
            "engine that is wired up well gives the second for the first, within its row above.",
            "",
        ]
    )


_TEXTURE_PICTURES = [
    "![the texture, three times beside and below itself](tiled.png)",
    "",
    "One texture of seed 0, three times beside and below itself: it continues itself on every",
    "side. Another seed gives another texture of the same kind.",
]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def task_words(task: str, scale: int) -> str:
    """Say what a network does, as a person would.

    >>> task_words("super-resolution", 4)
    'x4 super-resolution'
    """
    return task if scale == 1 else f"x{scale} {task}"


def degradation_blur(recipe: Mapping[str, Any]) -> float | None:
    """σ of the Gaussian before the training pictures were shrunk; None if it is not recorded."""
    blur = recipe.get("blur")
    if not isinstance(blur, int | float) or isinstance(blur, bool) or not 0 <= blur <= 16:
        return None
    return float(blur)


def _pictures(scale: int, elsewhere: bool) -> list[str]:
    if scale == 1:
        return [
            "| ![a photograph](golden_in.png) | ![the network's answer](golden_out.png) |",
            "|---|---|",
            "| a photograph | what the network makes of it |",
        ]
    training = "" if elsewhere else ", as in training"
    return [
        "![bicubic enlargement, the network's, and the original](comparison.png)",
        "",
        f"Part of a photograph that was shrunk {scale} times{training}: enlarged with",
        "bicubic, by this network, and the original.",
    ]


def _sizes(size: Mapping[str, Any], texture: bool) -> str:
    if texture:
        return f"multiples of {size['multiple']}, at least {size['min']}; others are refused"
    if size["multiple"] == size["min"] == 1:
        return "any"
    return (
        f"any; inside, padded to a multiple of {size['multiple']}, at least {size['min']}, by "
        "repeating the last row and column, and cropped again"
    )


def _memory(per_pixel: int, halo: int | None) -> str:
    whole = f"about {per_pixel / 1000:.3g} kB per input pixel, estimated for fp32"
    if halo is None:
        return f"{whole}; an output pixel depends on the whole frame, so that is what a frame takes"
    return (
        f"{whole}; an output pixel depends on input pixels at most {halo} away, so a large frame "
        "can be computed in tiles that overlap by that, without a seam"
    )


def _degradation(recipe: Mapping[str, Any], scale: int) -> str:
    blur = degradation_blur(recipe)
    if blur is None:
        return "not recorded"
    before = f"after a Gaussian blur of σ {blur:g} px" if blur else "not blurred before"
    return f"photographs shrunk {scale} times with antialiased bicubic, {before}, in 8 bits"


def _objective(recipe: Mapping[str, Any]) -> str:
    loss = recipe.get("loss")
    pixel = f"pixel loss ({recipe.get('pixel_form', 'form not recorded')})"
    feature = (
        f"feature loss at {recipe.get('feature_layer', 'a layer not recorded')} of "
        f"{recipe.get('loss_network', 'a network not recorded')}"
    )
    words = {
        "pixel": f"{pixel}: closest to the original, soft",
        "feature": f"{feature}: sharp, detail invented where the input has none",
        "mix": f"{pixel} and {feature}",
    }
    return words.get(str(loss), "not recorded")


def _compared(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whose features the network was held to; nothing if it learnt from targets alone."""
    network = recipe.get("loss_network")
    if network is None or recipe.get("supervision") == "targets":
        return []
    meant = {"embedded": "embedded, a small student of VGG16"}
    return [("Loss network", meant.get(str(network), str(network)))]


def _style(style: Mapping[str, Any]) -> str:
    name = style.get("name") or "not recorded"
    sha256 = style.get("sha256")
    return f"{name} (SHA-256 `{str(sha256)[:12]}…`)" if sha256 else str(name)


def _losses(history: Sequence[Mapping[str, float]]) -> str:
    if not history:
        return "not recorded"
    besides = ("step", "learning_rate", "seconds")
    return ", ".join(
        f"{part} {value:.4g}" for part, value in history[-1].items() if part not in besides
    )
