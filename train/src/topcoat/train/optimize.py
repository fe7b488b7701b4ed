"""Optimising one picture from files to a file: sizes, styles, regions, previews, resume.

The minimisation itself is in :mod:`topcoat.train.optimization`.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from topcoat.train._errors import (
    CheckpointError,
    DivergenceError,
    OutputError,
    RecipeError,
)
from topcoat.train._files import written_whole
from topcoat.train._memory import available_memory, memory_for
from topcoat.train._optimize_sources import Scene, Sources, StyleInput, known_file, read_style
from topcoat.train._optimize_state import State, check_same, save_state, state_path
from topcoat.train.loop import Interrupt
from topcoat.train.losses import (
    LossNetwork,
    PerceptualLoss,
    perceptual_network,
)
from topcoat.train.optimization import Minimiser, Objective, iterations
from topcoat.train.recipes import OptimizeRecipe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of the pictures that can be written."""
_KEPT_PER_PIXEL = {"max": 2100, "average": 1900}
"""Bytes that L-BFGS through VGG up to relu3_3 takes per pixel, besides its history, with every
activation kept (docs/optimisation.md); deeper layers add a tenth."""


@dataclass(kw_only=True)
class OptimizeSettings:
    """How an optimisation is carried out; none of it is meant to change what comes out.

    (``memory`` may change the last bits.)
    """

    output: Path
    checkpoint_every: int = 50
    """Iterations between states that can be resumed; 0 for none but at Ctrl-C."""
    preview_every: int = 50
    """Iterations between pictures in OUTPUT.preview/; 0 for none."""
    memory: Literal["auto", "fast", "low"] = "auto"
    """``low``: activations are computed again instead of kept; ``auto``: where they do not fit."""
    quiet: bool = False
    prefix: str = ""
    """Of the progress bar, when there are several pictures."""


@dataclass(kw_only=True)
class OptimizeRun:
    """What the user asks for."""

    content: Path | None
    """The photograph; None for a reconstruction of style alone."""
    styles: Sequence[StyleInput]
    recipe: OptimizeRecipe
    settings: OptimizeSettings
    loss_weights: Path | None = None
    resume: "State | None" = None
    network: LossNetwork | None = None
    """Already loaded, for many pictures; None: found as usual."""


@dataclass(kw_only=True)
class OptimizeOutcome:
    """What an optimisation left behind."""

    output: Path
    size: tuple[int, int]
    """Width and height in pixels."""
    finished: bool
    """False if it was interrupted: ``state`` can be resumed."""
    steps: int
    """Iterations done, over all sizes."""
    losses: dict[str, float]
    """At the end: ``total`` (weighted) and its parts (unweighted)."""
    history: list[dict[str, float]]
    """``size`` (longer side), ``step`` at that size, losses; step 0 is where that size started."""
    seconds: float
    stalled: bool = False
    """The last size stopped early: no step decreases the objective any more."""
    state: Path | None = None


def optimize_image(run: OptimizeRun) -> OptimizeOutcome:
    """Optimise one picture, from the start or from a saved state.

    Raises:
        PictureError: a picture or mask cannot be used.
        RecipeError: what is asked for does not go together.
        LossWeightsError: the loss network's weights are missing or end too early.
        CheckpointError: the state to resume does not belong to these pictures.
        DivergenceError: losses became NaN or infinite; the last good picture was written.
        OutputError: the result cannot be written.
    """
    recipe, settings = run.recipe, run.settings
    sources = Sources(run.content, run.styles, recipe)
    network, inputs = run.network, {**sources.inputs, "loss_weights": None}
    if network is None:
        network, weights = perceptual_network(recipe, run.loss_weights)
        inputs["loss_weights"] = known_file(weights)
    # Without the check a build of torch for GPUs names one on machines that have none.
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    network = network.to(device)
    history: list[dict[str, float]] = []
    first, resumed = 0, None
    before = 0.0
    if run.resume is not None:
        check_same(run.resume, inputs)
        first, resumed, before = run.resume.level, run.resume.minimiser, run.resume.seconds
        history = list(run.resume.history)
    began = time.perf_counter() - before
    frame: Tensor | None = None
    interrupt = Interrupt()
    sizes, total = recipe.sizes(), sum(recipe.steps)
    bar = tqdm(
        total=total,
        initial=sum(recipe.steps[:first]) + int((resumed or {}).get("done", 0)),
        unit="it",
        desc=settings.prefix or None,
        disable=True if settings.quiet else None,
        dynamic_ncols=True,
    )
    stalled = False
    with bar, interrupt:
        for level in range(first, len(sizes)):
            scene = sources.at(sizes[level], network, device)
            start = scene.start if frame is None else _enlarged(frame, scene.start)
            network.checkpointing = _recompute(settings.memory, recipe, start, network)
            objective = PerceptualLoss(network, scene.targets, recipe, seed=recipe.seed).to(device)
            with memory_for(
                f"to optimise {start.shape[3]}x{start.shape[2]} pixels",
                "use --memory low, a smaller --history, --optimizer adam or a smaller --size",
            ):
                kept = None if scene.content is None else objective.content_target(scene.content)
                minimiser = Minimiser(_objective(objective, kept, scene), start, recipe)
                if resumed is not None:
                    _restore(minimiser, resumed)
                    resumed = None
                else:
                    history.append({"size": sizes[level], "step": 0, **minimiser.start_losses()})
                done = sum(recipe.steps[:level])

                def save(level: int = level, minimiser: Minimiser = minimiser) -> Path:
                    seconds = time.perf_counter() - began
                    return save_state(
                        settings.output,
                        recipe,
                        inputs,
                        level,
                        minimiser.state(),
                        history,
                        seconds,
                    )

                try:
                    for iterate in iterations(minimiser, recipe.steps[level]):
                        history.append(
                            {"size": sizes[level], "step": iterate.number, **iterate.losses}
                        )
                        bar.update()
                        bar.set_postfix(
                            {"size": sizes[level]}
                            | {name: f"{value:.4g}" for name, value in iterate.losses.items()}
                        )
                        _log_line(bar, settings, done + iterate.number, total, iterate.losses)
                        _due_preview(settings, done + iterate.number, sources, scene, iterate.frame)
                        if interrupt.seen:
                            interrupt.closing = True
                            state = save()
                            return _outcome(
                                run, iterate.frame, history, began, minimiser, state=state
                            )
                        if (
                            settings.checkpoint_every
                            and (done + iterate.number) % settings.checkpoint_every == 0
                            and done + iterate.number < total
                        ):
                            save()
                except DivergenceError as error:
                    raise _diverged(error, run, minimiser, sources, scene, sizes[level]) from None
            frame, stalled = minimiser.frame, minimiser.stalled
            bar.update(recipe.steps[level] - minimiser.done)  # stalled: nothing is left to do
    interrupt.closing = True
    assert frame is not None
    write_picture(sources.finished(frame, scene), settings.output)
    state_path(settings.output).unlink(missing_ok=True)
    return _outcome(run, frame, history, began, minimiser, stalled=stalled)


def _diverged(
    error: DivergenceError,
    run: OptimizeRun,
    minimiser: Minimiser,
    sources: Sources,
    scene: Scene,
    size: int,
) -> DivergenceError:
    """Save the last good picture, if anything was done, and say what can be."""
    what = f"iteration {minimiser.done + 1} at {size} pixels: {error}"
    if minimiser.done == 0 and size == run.recipe.sizes()[0]:
        return DivergenceError(f"{what}, so nothing was done; lower the weights")
    write_picture(sources.finished(minimiser.frame, scene), run.settings.output)
    rate = "--learning-rate, or use --optimizer lbfgs"
    other = rate if run.recipe.optimizer == "adam" else "--strength"
    return DivergenceError(
        f"{what}; {run.settings.output} holds the last good picture. Lower the weights or {other}"
    )


def _objective(objective: PerceptualLoss, content: Tensor | None, scene: Scene) -> Objective:
    if scene.colours is None:
        return lambda frame: objective(frame, content=content)

    def of_lightness(frame: Tensor) -> dict[str, Tensor]:
        # Of the picture without colour, which is what will be kept: else errors would be hidden in
        # the colours. From a grey start every step is grey, since the gradients are alike.
        without = frame.mean(1, keepdim=True).expand_as(frame).contiguous()
        parts: dict[str, Tensor] = objective(without, content=content)
        return parts

    return of_lightness


def _outcome(
    run: OptimizeRun,
    frame: Tensor,
    history: list[dict[str, float]],
    began: float,
    minimiser: Minimiser,
    *,
    state: Path | None = None,
    stalled: bool = False,
) -> OptimizeOutcome:
    last = history[-1]
    return OptimizeOutcome(
        output=run.settings.output,
        size=(frame.shape[3], frame.shape[2]),
        finished=state is None,
        steps=sum(1 for entry in history if entry["step"]),
        losses={name: value for name, value in last.items() if name not in ("size", "step")},
        history=history,
        seconds=time.perf_counter() - began,
        stalled=stalled,
        state=state,
    )


def _enlarged(frame: Tensor, like: Tensor) -> Tensor:
    """Warm start: the last size's result at the next size."""
    size = (like.shape[2], like.shape[3])
    return F.interpolate(frame, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def _recompute(asked: str, recipe: OptimizeRecipe, start: Tensor, network: LossNetwork) -> bool:
    """Whether activations are computed again in the backward pass instead of kept."""
    if asked != "auto":
        return asked == "low"
    pixels = start.shape[2] * start.shape[3]
    history = 2 * recipe.history if recipe.optimizer == "lbfgs" else 3
    needed = pixels * (_KEPT_PER_PIXEL[recipe.loss_pooling] + history * 3 * 4)
    if start.device.type == "cuda":
        available: int | None = torch.cuda.mem_get_info(start.device)[0]
    else:
        available = available_memory()
        needed += network.prepared_bytes()
    return available is not None and needed > 0.6 * available


def _log_line(
    bar: "tqdm[Any]",
    settings: OptimizeSettings,
    step: int,
    total: int,
    losses: dict[str, float],
) -> None:
    """Progress where there is no terminal to draw a bar on."""
    if settings.quiet or not bar.disable or step % 25:
        return
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    print(f"{settings.prefix}iteration {step}/{total}: {parts}", file=sys.stderr, flush=True)


def _due_preview(
    settings: OptimizeSettings, step: int, sources: Sources, scene: Scene, frame: Tensor
) -> None:
    if not settings.preview_every or step % settings.preview_every:
        return
    folder = settings.output.with_suffix(".preview")
    try:
        write_picture(sources.finished(frame, scene), folder / f"step_{step:06d}.jpg")
    except OutputError as error:
        tqdm.write(f"warning: no preview written: {error}", file=sys.stderr)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture of the kind that its name asks for, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": 95}
    try:
        with written_whole(path) as file:
            picture.save(file, kind, **options)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; give another place with --output"
        ) from None


def resumed_run(
    state: State,
    settings: OptimizeSettings,
    loss_weights: Path | None = None,
    steps: tuple[int, ...] | None = None,
) -> OptimizeRun:
    """The run that a state belongs to, with its pictures read again.

    Args:
        state: from :func:`load_state`.
        settings: its output may be another one.
        loss_weights: where the loss network's weights are now; None: found as usual.
        steps: iterations at each size, those done included; None: as they were.

    Raises:
        CheckpointError: its recipe is of another version, or it was damaged.
        PictureError: a picture is no longer there.
        RecipeError: ``steps`` is for another number of sizes.
    """
    try:
        recipe = OptimizeRecipe.from_dict(state.recipe)
        inputs = state.inputs
        if inputs["start"]:  # what was a path from the folder of then
            recipe = dataclasses.replace(recipe, start=inputs["start"]["path"])
        if not 0 <= state.level < len(recipe.steps):
            raise KeyError("level")
        styles = [
            read_style(
                style["source"],
                float(style["weight"]),
                *(Path(style[n]["path"]) if style[n] else None for n in ("where", "part")),
            )
            for style in inputs["styles"]
        ]
        content = Path(inputs["content"]["path"]) if inputs["content"] else None
    except (KeyError, TypeError, RecipeError) as error:
        raise CheckpointError(f"{state.path} cannot be used ({error}); start again") from None
    if steps is not None:
        if len(steps) != len(recipe.steps):
            raise RecipeError(
                f"--steps has {len(steps)} numbers, {state.path} works at {len(recipe.steps)} "
                f"sizes; give one for each, it had {','.join(map(str, recipe.steps))}"
            )
        recipe = dataclasses.replace(recipe, steps=steps)
    return OptimizeRun(
        content=content,
        styles=styles,
        recipe=recipe,
        settings=settings,
        loss_weights=loss_weights,
        resume=state,
    )


def _restore(minimiser: Minimiser, state: dict[str, Any]) -> None:
    try:
        minimiser.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise CheckpointError("the state to resume is damaged; start again") from None


def check_output(output: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Find out before minutes of work whether the result can be written.

    Args:
        output: the picture to write.
        force: whether one that is there may be replaced.
        inputs: files that are read, which never may.

    Raises:
        OutputError: not a picture's name, a folder, an input, there already, or not writable.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{output} must end in {', '.join(SUFFIXES)}; give --output a picture")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the picture's file name with --output")
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise OutputError(f"{output} is one of the pictures to read; choose another --output")
    if output.exists() and not force:
        raise OutputError(f"{output} exists; replace it with --force, or choose another --output")
    if state_path(output).exists() and not force:
        raise OutputError(
            f"{state_path(output)} is a half-done optimisation of {output}; go on with --resume "
            f"{state_path(output)}, or start again with --force"
        )
    with contextlib.suppress(FileNotFoundError):
        parent = next(p for p in (output.parent, *output.resolve().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(f"cannot write to {parent}; give another place with --output")
