"""What optimising one picture costs in time and memory; the parts of objective_parity.py.

Whatever memory is measured of runs in a process of its own, because a peak lasts as long as the
process does; processes that are compared take turns, so that a busy machine slows both.

    python benchmarks/objective_parity.py --memory --seconds --texture x.pt …
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WARM_UP = 2
PAPER = {
    256: ((3.17, 9.52, 15.86), 0.015),
    512: ((10.97, 32.91, 54.85), 0.05),
    1024: ((42.89, 128.66, 214.44), 0.21),
}
"""Johnson, Alahi, Fei-Fei 2016, Table 1: seconds for 100, 300 and 500 iterations, and for one
forward pass, on a Titan X."""
ITERATIONS = (100, 300, 500)


def peak_mib(field: str = "VmHWM") -> float:
    """The most memory that this process has held, in MiB; with ``VmRSS`` what it holds now.

    Where the system says only the former, that.
    """
    try:
        # Where there is one: getrusage also counts what the parent held when it started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024**2 if sys.platform == "darwin" else 1024)


# --- seconds: the paper's Table 1


def seconds(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of an iteration and of a forward pass at every size."""
    import torch
    from objective_parity import optimise_recipe, square, start_frame, style_objective

    from topcoat.train import load_checkpoint
    from topcoat.train.data import find_pictures
    from topcoat.train.frames import tensor_array
    from topcoat.train.optimization import Minimiser

    checkpoint = load_checkpoint(args.network)
    objective, _ = style_objective(checkpoint, args.style, args.loss_weights)
    network = checkpoint.build_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = find_pictures(args.held_out)[0]
    found: dict[str, Any] = {"timed": args.timed, "sizes": {}}
    with tempfile.TemporaryDirectory() as folder:
        engines, found["engines"] = _engines(args, Path(folder))
        for size in args.sizes:
            photograph = square(path, size)
            content = objective.content_target(photograph)
            recipe = optimise_recipe(objective.recipe, size, args.timed, "noise")
            minimiser = Minimiser(
                lambda frame, content=content: objective(frame, content=content),  # type: ignore[misc]
                start_frame("noise", photograph, 0),
                recipe,
            )
            last = photograph.contiguous(memory_format=torch.channels_last)
            pixels = tensor_array(photograph)

            def forward(last: torch.Tensor = last) -> object:
                with torch.inference_mode():
                    return network(last)

            # The engines' threads wait awake for their next frame: not beside PyTorch's.
            took = _take_turns({"iteration": minimiser.step, "PyTorch": forward}, args.timed)
            passes: dict[str, Callable[[], object]] = {
                name: lambda m=model, p=pixels: m.process(p)  # type: ignore[misc]
                for name, model in engines.items()
            }
            took |= _take_turns(passes, args.timed)
            found["sizes"][str(size)] = {
                "iteration": took.pop("iteration"),
                "evaluations_per_iteration": round(minimiser.evaluations / minimiser.done, 2),
                "forward": took,
            }
        for model in engines.values():
            model.close()
    return found


def _engines(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Engines that have the network loaded, and a word on each."""
    bundle = args.bundle
    if bundle is None:
        bundle = folder / "network.topcoat"
        command = [sys.executable, "-m", "topcoat.export.cli.export_engine", str(args.network)]
        done = subprocess.run(
            [*command, "-o", str(bundle)], capture_output=True, text=True, check=False
        )
        if done.returncode or not bundle.is_dir():
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            return {}, {"none": f"the network was not exported: {lines[-1]}"}
    import topcoat.runtime as tr
    from topcoat.train.pictures import file_sha256

    if tr.read_manifest(bundle).checkpoint.get("sha256") != file_sha256(args.network):
        return {}, {"none": f"{bundle} was not exported from {args.network}"}
    models, words = {}, {}
    for backend in ("onnxruntime-cpu", "openvino-cpu"):
        try:
            models[backend] = tr.open(bundle, backend=backend, precision="fp32")
            words[backend] = "fp32, uint8 in and out"
        except tr.TopcoatError as error:
            words[backend] = str(error)
    return models, words


def _take_turns(turns: dict[str, Callable[[], object]], timed: int) -> dict[str, float]:
    """Median seconds of each, measured one after the other, round by round."""
    took: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(WARM_UP + timed):
        for name, act in turns.items():
            tick = time.perf_counter()
            act()
            took[name].append(time.perf_counter() - tick)
    return {name: float(f"{statistics.median(s[WARM_UP:]):.4g}") for name, s in took.items()}


def seconds_table(found: dict[str, Any]) -> str:
    """As Markdown, the paper's figures beside ours."""
    engines = list(next(iter(found["sizes"].values()))["forward"])
    head = ["size", *(f"{n} it., s" for n in ITERATIONS)]
    head += [f"{name}, s" for name in engines]
    head += ["300 it. / fastest pass", "the paper: 100, 300, 500 it., pass, ratio at 300"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for size, row in found["sizes"].items():
        cells = [f"{size}²", *(f"{row['iteration'] * n:.1f}" for n in ITERATIONS)]
        cells += [f"{row['forward'][name]:.3g}" for name in engines]
        cells.append(f"{300 * row['iteration'] / min(row['forward'].values()):.0f}×")
        paper = PAPER.get(int(size))
        cells.append(
            ""
            if paper is None
            else f"{', '.join(map(str, paper[0]))}, {paper[1]}, {paper[0][1] / paper[1]:.0f}×"
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nNo engine: {found['engines']['none']}."] if "none" in found["engines"] else []
    lines.append(
        f"\nIterations: the median of {found['timed']} times their number, not run in full."
    )
    return "\n".join(lines)


# --- memory: ours against a plain loop


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Time and peak of an iteration: ours and the plain loop's in turn, then a large frame."""
    given = _given(args, args.memory_size, args.timed)
    taken: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for _ in range(args.rounds):
        for name, results in taken.items():
            results.append(_child(name, given))
    found: dict[str, Any] = {"size": args.memory_size, "timed": args.timed, "rounds": args.rounds}
    for name, results in taken.items():
        found[name] = _merged(results)
    found["time_ratio"] = round(
        found["ours"]["seconds_per_iteration"] / found["plain"]["seconds_per_iteration"], 3
    )
    if args.low_size:
        # History fills after ten steps; its last pairs are a tenth of the peak.
        low = _child("low", _given(args, args.low_size, 11))
        found["low"] = {"size": args.low_size, **_merged([low])}
    return found


def _given(args: argparse.Namespace, size: int, timed: int) -> list[str]:
    given = ["--network", str(args.network), "--style", str(args.style)]
    given += ["--held-out", str(args.held_out), "--size", str(size), "--timed", str(timed)]
    for name in ("loss_weights", "threads", "texture"):
        if getattr(args, name) is not None:
            given += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return given


def _child(name: str, given: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"objective_parity: {name} failed: {(done.stderr.strip() or '?').splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    took = [second for result in results for second in result["seconds"]]
    return {
        "seconds_per_iteration": float(f"{statistics.median(took):.4g}"),
        "spread": [float(f"{value:.4g}") for value in (min(took), max(took))],
        "peak_mib": round(statistics.median(r["peak_mib"] for r in results)),
        "before_mib": round(statistics.median(r["before_mib"] for r in results)),
        **{key: results[0][key] for key in ("start", "end", "evaluations")},
    }


def memory_table(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| | size | s per iteration | peak, MiB | of it before the first iteration |",
        "|---|---|---|---|---|",
    ]
    names = {"plain": "plain loop", "ours": "topcoat", "low": "topcoat, --memory low"}
    for key, name in names.items():
        if key in found:
            row = found[key]
            lines.append(
                f"| {name} | {row.get('size', found['size'])}² | "
                f"{row['seconds_per_iteration']:.3g} | {row['peak_mib']} | {row['before_mib']} |"
            )
    lines.append(f"\nTime of topcoat over the plain loop's: {found['time_ratio']:.2f}")
    return "\n".join(lines)


def _ours(args: argparse.Namespace, *, low: bool) -> dict[str, Any]:
    from topcoat.train._allocator import keep_freed_memory

    if not low:  # as optimize-image does
        keep_freed_memory()
    import torch
    from objective_parity import optimise_recipe, square, start_frame, style_objective

    from topcoat.train import load_checkpoint
    from topcoat.train.data import find_pictures
    from topcoat.train.optimization import Minimiser

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    objective, loss_network = style_objective(
        load_checkpoint(args.network), args.style, args.loss_weights
    )
    loss_network.checkpointing = low
    photograph = square(find_pictures(args.held_out)[0], args.size)
    before = peak_mib("VmRSS")
    content = objective.content_target(photograph)
    recipe = optimise_recipe(objective.recipe, args.size, args.timed, "noise")
    minimiser = Minimiser(
        lambda frame: objective(frame, content=content),
        start_frame("noise", photograph, 0),
        recipe,
    )
    start = minimiser.start_losses()["total"]
    took = []
    for _ in range((0 if low else WARM_UP) + args.timed):
        tick, evaluated = time.perf_counter(), minimiser.evaluations
        losses = minimiser.step()
        # A step that had to be shortened costs more than one pass; the plain loop never checks.
        took.append((time.perf_counter() - tick, minimiser.evaluations - evaluated))
    return {
        "seconds": [second for second, _ in took[0 if low else WARM_UP :]],
        "peak_mib": peak_mib(),
        "before_mib": before,
        "start": start,
        "end": losses["total"],
        "evaluations": sum(count for _, count in took),
    }


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    """What one would write in an afternoon: torch's L-BFGS on torch's modules and autograd."""
    import torch
    import torch.nn.functional as F
    from objective_parity import square, start_frame
    from torch import nn

    from topcoat.train import load_checkpoint
    from topcoat.train.data import find_pictures
    from topcoat.train.frames import frame_tensor
    from topcoat.train.losses import load_loss_network
    from topcoat.train.losses.features import find_loss_weights, layer_index
    from topcoat.train.pictures import resize_longer_side
    from topcoat.train.recipes import StyleRecipe
    from topcoat.train.style_pictures import load_style

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    recipe = StyleRecipe.from_dict(load_checkpoint(args.network).recipe)
    if recipe.loss_scale != "relative" or recipe.resolved_gram_form() != "relative":
        sys.exit("the plain loop knows relative losses only; take a checkpoint of recipe modern")
    if recipe.uses_histogram() or recipe.tv_form != "mean" or recipe.loss_pooling != "max":
        sys.exit("the plain loop knows no histograms; take a checkpoint of recipe modern")
    found = find_loss_weights(recipe.loss_network, args.loss_weights)
    loaded = load_loss_network(
        recipe.loss_network, recipe.layers(), found.path, recipe.loss_convention()
    )
    # Copied into plain modules: nothing of ours is called from here on.
    modules: list[nn.Module] = []
    for module in loaded.features:
        if isinstance(module, nn.Conv2d):
            conv = nn.Conv2d(module.in_channels, module.out_channels, 3, padding=1)
            conv.load_state_dict(module.state_dict())
            modules.append(conv)
        else:
            modules.append(
                nn.ReLU(inplace=True) if isinstance(module, nn.ReLU) else nn.MaxPool2d(2)
            )
    vgg = nn.Sequential(*modules).requires_grad_(False)
    mean, std = loaded.mean.clone(), loaded.std.clone()
    del loaded
    taps = {layer_index(recipe.loss_network, layer): layer for layer in recipe.layers()}
    weights = recipe.layer_weights()

    def features(frame: torch.Tensor) -> dict[str, torch.Tensor]:
        x, out = (frame - mean) / std, {}
        for index, module in enumerate(vgg):
            x = module(x)
            if index in taps:
                out[taps[index]] = x
        return out

    def gram(x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        flat = x.view(b, c, h * w)
        return torch.bmm(flat, flat.transpose(1, 2)) / (c * h * w)

    picture = load_style(args.style).image
    with torch.no_grad():
        scaled = frame_tensor(resize_longer_side(picture, recipe.style_size))
        style = {k: gram(v) for k, v in features(scaled).items() if k in weights}
    photograph = square(find_pictures(args.held_out)[0], args.size)
    before = peak_mib("VmRSS")
    with torch.no_grad():
        content = features(photograph)[recipe.content_layer]
        energy = content.square().sum()
    frame = start_frame("noise", photograph, 0).requires_grad_()
    optimizer = torch.optim.LBFGS([frame], max_iter=1)
    values: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = features(frame)
        loss = (found[recipe.content_layer] - content).square().sum() / energy
        loss = recipe.content_weight * loss
        for layer, target in style.items():
            wrong = (gram(found[layer]) - target).square().sum() / target.square().sum()
            loss = loss + recipe.style_weight * recipe.strength * weights[layer] * wrong
        across = F.mse_loss(frame[..., 1:], frame[..., :-1], reduction="sum")
        down = F.mse_loss(frame[:, :, 1:], frame[:, :, :-1], reduction="sum")
        count = 2 * frame[..., 1:].numel()
        loss = loss + recipe.tv_weight * (across + down) / count
        loss.backward()
        values.append(float(loss))
        return loss

    took = []
    for _ in range(WARM_UP + args.timed):
        tick = time.perf_counter()
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            frame.clamp_(0, 1)
        took.append(time.perf_counter() - tick)
    return {
        "seconds": took[WARM_UP:],
        "peak_mib": peak_mib(),
        "before_mib": before,
        "start": values[0],
        "end": values[-1],
        "evaluations": len(values),
    }


# --- textures: the generator against optimising


def texture(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of a 256x256 texture, sampled and optimised."""
    given = _given(args, 256, args.timed)
    given += ["--iterations", str(args.iterations)]
    found: dict[str, Any] = {"checkpoint": args.texture.name}
    found["generator"] = _child("generator", given)
    given += ["--level", str(found["generator"]["objective"])]
    found["optimised"] = _child("optimised", given)
    return found


def texture_table(found: dict[str, Any]) -> str:
    """As Markdown."""
    made, optimised = found["generator"], found["optimised"]
    reached = optimised["reached"]
    lines = [
        "| 256² texture | objective | seconds | peak, MiB | of it before the first |",
        "|---|---|---|---|---|",
        f"| generator | {made['objective']:.3g} | {made['seconds']:.3g} | {made['peak_mib']:.0f} | "
        f"{made['before_mib']:.0f} |",
        f"| L-BFGS, {optimised['iterations']} iterations | {optimised['objective']:.3g} | "
        f"{optimised['seconds']:.3g} | {optimised['peak_mib']:.0f} | "
        f"{optimised['before_mib']:.0f} |",
        "| the paper's generator |  | 0.02 | 170 |  |",
        "| the paper's optimisation |  | 10 | 1100 |  |",
        "",
        f"L-BFGS comes down to the generator after {reached['iterations']} iterations, "
        f"{reached['seconds']:.3g} s."
        if reached
        else "L-BFGS did not come down to the generator.",
    ]
    return "\n".join(lines)


def _texture_parts(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    from topcoat.train._allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from topcoat.train import CheckpointError, load_checkpoint
    from topcoat.train.recipes import TextureRecipe
    from topcoat.train.runs import check_task

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(args.texture)
    check_task(checkpoint, "texture")
    if checkpoint.state is None:
        raise CheckpointError("the texture's statistics are not in it; give one with its state")
    return checkpoint, TextureRecipe.from_dict(checkpoint.recipe), torch


def _texture_objective(checkpoint: Any, recipe: Any, weights: Path | None) -> Any:  # noqa: ANN401
    from topcoat.train.losses import PerceptualLoss, perceptual_network
    from topcoat.train.runs import resumed_target

    network, _ = perceptual_network(recipe, weights)
    target = resumed_target(checkpoint, recipe)
    assert target is not None
    return PerceptualLoss(network, [target], recipe, seed=0)


def _generator(args: argparse.Namespace) -> dict[str, Any]:
    from topcoat.train.frames import array_tensor
    from topcoat.train.noise import noise_frame

    checkpoint, recipe, torch = _texture_parts(args)
    network = checkpoint.build_network()
    before = peak_mib("VmRSS")
    took, samples = [], []
    with torch.inference_mode():
        for seed in range(WARM_UP + args.timed):
            noise = array_tensor(noise_frame(args.size, args.size, seed))
            tick = time.perf_counter()
            samples.append(network(noise))
            took.append(time.perf_counter() - tick)
        peak = peak_mib()  # before the loss network is there
        objective = _texture_objective(checkpoint, recipe, args.loss_weights)
        totals = [float(objective(sample.clamp(0, 1))["total"]) for sample in samples[:8]]
    return {
        "objective": sum(totals) / len(totals),
        "seconds": statistics.median(took[WARM_UP:]),
        "peak_mib": peak,
        "before_mib": before,
    }


def _optimised(args: argparse.Namespace) -> dict[str, Any]:
    from objective_parity import optimise_recipe

    from topcoat.train.optimization import Minimiser

    checkpoint, recipe, torch = _texture_parts(args)
    objective = _texture_objective(checkpoint, recipe, args.loss_weights)
    before = peak_mib("VmRSS")
    start = torch.rand(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    minimiser = Minimiser(
        objective, start, optimise_recipe(recipe, args.size, args.iterations, "noise")
    )
    began, reached = time.perf_counter(), None
    losses = minimiser.start_losses()
    while minimiser.done < args.iterations and not minimiser.stalled:
        losses = minimiser.step()
        if reached is None and losses["total"] <= args.level:
            reached = {"iterations": minimiser.done, "seconds": time.perf_counter() - began}
    return {
        "objective": losses["total"],
        "iterations": minimiser.done,
        "seconds": time.perf_counter() - began,
        "reached": reached,
        "peak_mib": peak_mib(),
        "before_mib": before,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="See objective_parity.py.")
    parser.add_argument("--child", required=True)
    for name in ("network", "style", "held-out", "loss-weights", "texture"):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("size", "timed", "threads", "iterations"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--level", type=float)
    args = parser.parse_args()
    children: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "plain": _plain,
        "ours": lambda a: _ours(a, low=False),
        "low": lambda a: _ours(a, low=True),
        "generator": _generator,
        "optimised": _optimised,
    }
    from topcoat.train import TopcoatError

    try:
        print(json.dumps(children[args.child](args)))
    except TopcoatError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
