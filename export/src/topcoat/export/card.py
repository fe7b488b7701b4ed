"""The bundle's card: one page that says what it is, where it comes from and what was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from topcoat.export.parity import ParityReport, ParityRow, Summary
from topcoat.train import Checkpoint


def card_markdown(manifest: Mapping[str, Any], report: ParityReport, checkpoint: Checkpoint) -> str:
    """Write the card.

    Args:
        manifest: of the bundle, with its variants.
        report: every comparison.
        checkpoint: where the network comes from.
    """
    name, size, scale = manifest["name"], manifest["size"], manifest["scale"]
    network = manifest["checkpoint"]["network"]
    settings = ", ".join(f"{key} {value}" for key, value in network["settings"].items())
    parameters = sum(tensor.numel() for tensor in checkpoint.weights.values())
    facts = [
        ("Task", f"{manifest['task']}, scale {scale}"),
        (
            "Network",
            f"{network['name']} ({settings or 'default settings'}), {parameters:,} weights",
        ),
        ("Recipe", f"{manifest['checkpoint']['recipe']}, {checkpoint.step} steps"),
        ("Style", _style(checkpoint.style)),
        ("Losses at the end", _losses(checkpoint.history)),
        ("Frames", "uint8, (H, W, 3) or (N, H, W, 3), RGB; the output is alike"),
        (
            "Sizes",
            f"any; inside, padded to a multiple of {size['multiple']}, at least {size['min']}, by "
            "repeating the last row and column, and cropped again",
        ),
        ("Made by", ", ".join(f"{tool} {v}" for tool, v in manifest["made_by"].items())),
    ]
    models = [
        f"| `{v['file']}` | {v['precision']} | {v['bytes'] / 1e6:.2f} MB | `{v['sha256'][:12]}…` |"
        for v in manifest["variants"]
    ]
    return "\n".join(
        [
            f"# {name}",
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
            "The same frames through PyTorch (fp32) and through each engine: the largest",
            "difference of any value in 8-bit steps, and the PSNR of each group of frames. Every",
            "number is in `parity.json`.",
            "",
            *parity_table(report.rows),
            "",
            "## Use",
            "",
            "```sh",
            f"topcoat run photo.jpg styled.jpg --model {name}.topcoat",
            f"bench-latency {name}.topcoat",
            "```",
            "",
            "```python",
            "import topcoat.runtime",
            "",
            f'model = topcoat.runtime.open("{name}.topcoat")',
            "styled = model.process(frame)",
            "```",
            "",
            "`golden_in.png` and `golden_out.png` are a frame and PyTorch's answer to it: an",
            "engine that is wired up well gives the second for the first, within its row above.",
            "",
        ]
    )


def parity_table(rows: Sequence[ParityRow]) -> list[str]:
    """Lines of a Markdown table that is readable in a terminal too."""
    groups = ("photographs", "sizes", "tiny", "synthetic")
    head = ["Engine", "Result", "Photographs", "Odd sizes", "Tiny", "Synthetic"]
    body = [
        [
            f"{row.engine.backend} {row.engine.compute}",
            row.status,
            *(_numbers(row.groups.get(group)) for group in groups),
        ]
        for row in rows
    ]
    cells = [head, *body]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _numbers(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    if not math.isfinite(summary.psnr_db):
        return "equal"
    return f"max {summary.max_steps}, {summary.psnr_db:.1f} dB"


def _style(style: Mapping[str, Any]) -> str:
    name = style.get("name") or "not recorded"
    sha256 = style.get("sha256")
    return f"{name} (SHA-256 `{str(sha256)[:12]}…`)" if sha256 else str(name)


def _losses(history: Sequence[Mapping[str, float]]) -> str:
    if not history:
        return "not recorded"
    return ", ".join(f"{part} {value:.4g}" for part, value in history[-1].items() if part != "step")
