"""The training loop that every trainer shares: devices, precision, checkpoints, resume, guard.

What a trainer brings is a network, a function from a batch to a dictionary of losses, and a
function that draws a preview; see :class:`Task`.
"""

import contextlib
import copy
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from topcoat.train._allocator import PageFaults
from topcoat.train._errors import CheckpointError, DivergenceError, OutputError, RecipeError
from topcoat.train.checkpoint import Checkpoint, save_checkpoint
from topcoat.train.data import Feed, Sample
from topcoat.train.networks import FrameNetwork
from topcoat.train.recipes import TrainingRecipe

MAX_ROLLBACKS = 3
_SNAPSHOT_EVERY = 50
_WARM_UP = 20


@dataclass(kw_only=True)
class Task:
    """What differs between the methods."""

    kind: str
    """``style``, ``super-resolution`` or ``texture``; goes into the checkpoint."""
    network: FrameNetwork
    loss: Callable[[FrameNetwork | nn.Module, Tensor], dict[str, Tensor]]
    """(network, (B, C, H, W) float in [0, 1], as sampled) -> scalars, ``total`` among them."""
    modules: list[nn.Module]
    """What ``loss`` holds besides the network; moved to the device with it."""
    preview: Callable[[FrameNetwork], Image.Image] | None
    style: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint says of the style picture."""
    state: dict[str, Any]
    """More that resuming needs: ``content`` (folder), ``content_fingerprint``, targets, …"""


@dataclass(kw_only=True)
class RunSettings:
    """How a run is carried out; none of it is meant to change what comes out.

    (``compile`` may change the last bits.)
    """

    output: Path
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    preview_every: int = 250
    """Steps between preview strips; 0 for none."""
    log_every: int = 25
    """Steps between entries of the loss history."""
    workers: int | None = None
    """Processes that decode pictures; None: as many as the training does not wait for."""
    compile: bool | None = None
    """None: only where it pays, which is on a GPU and for more than 1000 steps."""
    cuda_graphs: bool = False
    """What is compiled for an NVIDIA GPU is recorded once and replayed, which spares the processor
    the launches; the GPU holds its memory for good."""
    tensorboard: Path | None = None
    keep_state: bool = True
    """Whether the last checkpoint can be resumed; without, it is a third of the size."""
    quiet: bool = False
    opening: str = ""
    """A remark to print when everything that was given has proved usable and the run begins."""


@dataclass
class Outcome:
    """What a run left behind."""

    checkpoint: Path
    step: int
    finished: bool
    """False if it was interrupted; the checkpoint can be resumed."""
    images_per_second: float
    """Median over this part of the run, all processes together; 0 if it ended before a step."""
    seconds: float
    broken: list[str] = field(default_factory=list)
    """Pictures that could not be used, with reasons."""
    losses: dict[str, float] = field(default_factory=dict)
    rollbacks: int = 0
    waited: float = 0.0
    """Share of the time that went by waiting for pictures, from 0 to 1."""
    workers: int = 0
    """Processes that decoded pictures at the end."""


def bf16_pays(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    checks = (
        getattr(torch.cpu, name, lambda: False)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(bool(check()) for check in checks)


def resolve_precision(asked: str, device: torch.device) -> str:
    """``auto`` -> ``bf16`` or ``fp32``; anything else as asked."""
    if asked != "auto":
        return asked
    return "bf16" if bf16_pays(device) else "fp32"


def train(
    task: Task,
    dataset: Dataset[Sample],
    settings: RunSettings,
    recipe: TrainingRecipe,
    *,
    resume: Checkpoint | None = None,
) -> Outcome:
    """Train a network until the recipe's ``steps`` are done, those before a resume included.

    Bit-exact on a CPU: stopped at any checkpoint and resumed, it arrives at the same weights.

    Args:
        task: network, losses, preview.
        dataset: the photographs, or noise frames; asked for samples by number.
        settings: where to write and how often.
        recipe: steps, batch, learning rate, schedule, precision, seed; stored whole.
        resume: continue from here.

    Raises:
        RecipeError: the batch cannot be split over the processes.
        DivergenceError: NaN or infinity came back after every roll-back.
        OutputError: the last checkpoint could not be written.
    """
    # Without cpu=True Accelerate does not join torchrun's processes on a machine without a GPU.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    rank, processes = accelerator.process_index, accelerator.num_processes
    steps, batch = recipe.steps, recipe.batch
    if batch % processes:
        raise RecipeError(
            f"batch {batch} cannot be split over {processes} processes; "
            f"pass --batch {math.ceil(batch / processes) * processes}"
        )
    device = accelerator.device
    precision = resolve_precision(recipe.precision, device)
    torch.manual_seed(recipe.seed + rank)

    network = task.network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for module in task.modules:
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(
        network.parameters(), recipe.learning_rate, fused=True if on_gpu else None
    )
    resolved = {**recipe.to_dict(), "precision": precision}
    run = _Run(task, settings, recipe, resolved, network, optimizer, accelerator)
    if resume is not None:
        run.restore(resume)
    run.snapshot()

    prepared: nn.Module = accelerator.prepare(network)
    use_compile = settings.compile
    if use_compile is None:
        use_compile = on_gpu and steps - run.step > 1000
    stepped, loss = prepared, task.loss
    if use_compile and on_gpu:
        # With the losses: most of the time goes into the loss network.
        mode = "reduce-overhead" if settings.cuda_graphs else None
        loss = torch.compile(task.loss, mode=mode)
    elif use_compile:
        stepped = torch.compile(prepared)  # type: ignore[assignment]

    if not settings.quiet and accelerator.is_main_process:
        if settings.opening:
            print(settings.opening, file=sys.stderr)
        threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        print(
            f"training on {device.type} x {processes}{threads}, {precision}, "
            f"{'compiled' if use_compile else 'eager'}, from step {run.step} to {steps}",
            file=sys.stderr,
        )
    started = time.perf_counter()
    durations: list[float] = []
    interrupt = Interrupt()
    bar = tqdm(
        total=steps,
        initial=run.step,
        unit="step",
        disable=None if accelerator.is_main_process and not settings.quiet else True,
        dynamic_ncols=True,
    )
    losses: dict[str, float] = {}
    broken: dict[str, None] = {}
    faults = _watch(accelerator, settings)
    with (
        interrupt,
        bar,
        _arithmetic(device),
        _tensorboard(settings, accelerator) as scalars,
    ):
        source = Feed(
            dataset,
            range(run.step, steps),
            batch,
            workers=settings.workers,
            rank=rank,
            processes=processes,
        )
        tick = time.perf_counter()
        for pixels, messages in source:
            for message in messages:
                if message not in broken:
                    broken[message] = None
                    tqdm.write(f"skipped {message}", file=sys.stderr)
            lr = recipe.learning_rate * run.lr_factor
            lr *= _schedule(recipe.schedule, run.step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            if on_gpu:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # Bytes are what is copied; on the device they become floats.
            frames = pixels.to(device, non_blocking=True).float().div_(255)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                parts = loss(stepped, frames)
            accelerator.backward(parts["total"])
            # One transfer from the device: each waits until it has computed all that was asked.
            measured = [part.detach().float() for part in parts.values()]
            values = accelerator.reduce(
                torch.stack([*measured, run.largest_gradient()]), "mean"
            ).tolist()
            now = dict(zip(parts, values[:-1], strict=True))
            if not all(map(math.isfinite, values)):
                try:
                    run.roll_back(now, lr)
                except DivergenceError:
                    if accelerator.is_main_process:
                        run.save(with_state=True)
                    raise
                run.step += 1
                bar.update()
                tick = time.perf_counter()
                continue
            losses = now
            optimizer.step()
            run.step += 1
            durations.append(time.perf_counter() - tick)  # the wait for the batch included
            if faults is not None and (remark := faults.after_step()):
                tqdm.write(f"note: {remark}", file=sys.stderr)
            bar.update()
            bar.set_postfix(
                {name: f"{value:.4g}" for name, value in losses.items()}
                | {"images/s": f"{batch / durations[-1]:.1f}"}
            )
            if run.step % settings.log_every == 0 or run.step == steps:
                spent = run.seconds_before + time.perf_counter() - started
                run.history.append(
                    {"step": run.step, **losses, "learning_rate": lr, "seconds": round(spent, 1)}
                )
                if scalars is not None:
                    for name, value in {**losses, "learning_rate": lr}.items():
                        scalars(name, value, run.step)
                if bar.disable and not settings.quiet and accelerator.is_main_process:
                    _log_line(run.step, steps, losses, batch / durations[-1], durations)
            if run.step % _SNAPSHOT_EVERY == 0:
                run.snapshot()
            if accelerator.is_main_process:
                if settings.preview_every and run.step % settings.preview_every == 0:
                    run.preview()
                if run.step % settings.checkpoint_every == 0 and run.step < steps:
                    run.save_or_warn()
            if interrupt.agreed(accelerator):
                break
            tick = time.perf_counter()
        finished = run.step >= steps
        if finished and not durations:
            raise DivergenceError(
                f"training diverged: none of its {run.rollbacks} steps gave finite losses and "
                f"gradients, so there is nothing to save; look at the photographs, or start again "
                f"with --learning-rate {recipe.learning_rate / 10:.2g} or --precision fp32"
            )
        interrupt.closing = True  # a second Ctrl-C must not tear the file that the first asked for
        if accelerator.is_main_process:
            if finished and settings.preview_every and run.step % settings.preview_every:
                run.preview()
            run.save(with_state=settings.keep_state or not finished)
        accelerator.wait_for_everyone()
    messages = list(broken)
    if processes > 1:
        messages = list(dict.fromkeys(gather_object(messages)))
    typical = sorted(durations)[len(durations) // 2] if durations else float("inf")
    return Outcome(
        checkpoint=settings.output,
        step=run.step,
        finished=finished,
        images_per_second=batch / typical,
        seconds=time.perf_counter() - started,
        broken=messages,
        losses=losses,
        rollbacks=run.rollbacks,
        waited=source.share_waited,
        workers=source.workers,
    )


def _watch(accelerator: Accelerator, settings: RunSettings) -> PageFaults | None:
    """Watch page faults where they may cost, in the one process that would remark on them."""
    if settings.quiet or not accelerator.is_main_process or accelerator.device.type != "cpu":
        return None
    return PageFaults()


@contextlib.contextmanager
def _arithmetic(device: torch.device) -> Iterator[None]:
    """Let an NVIDIA GPU choose its fastest convolutions.

    Products in float32 stay as exact as they are: besides Gram matrices they make the kernels of
    real-time networks, which must sum to zero and in TensorFloat-32 would do so to three digits.
    """
    if device.type != "cuda":
        yield
        return
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _schedule(kind: str, step: int, steps: int) -> float:
    """Share of the highest learning rate at a step."""
    if kind == "constant":
        return 1.0
    if kind == "ulyanov2016":  # arXiv:1603.03417; the authors' code has 0.8 every 300
        return 1.0 if step < 1000 else float(0.7 ** (1 + (step - 1000) // 200))
    if kind == "ulyanov2017":  # the authors' later code
        return float(0.8 ** (step // 2000))
    warm = min(1.0, (step + 1) / min(_WARM_UP, steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _log_line(
    step: int, steps: int, losses: dict[str, float], rate: float, durations: list[float]
) -> None:
    """Progress where there is no terminal to draw a bar on."""
    recent = durations[-50:]
    seconds = (steps - step) * sum(recent) / len(recent)
    left = f"{seconds / 60:.0f} min" if seconds > 120 else f"{seconds:.0f} s"
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    print(
        f"step {step}/{steps}: {parts}; {rate:.1f} images/s, {left} left",
        file=sys.stderr,
        flush=True,
    )


def _summary_writer(folder: Path) -> Any:  # noqa: ANN401 - the package has no types
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise OutputError(
            "--tensorboard needs the package tensorboard; pip install 'topcoat-train[tensorboard]'"
        ) from None
    try:
        return SummaryWriter(os.fspath(folder))
    except OSError as error:
        raise OutputError(
            f"cannot write scalars to {folder}: {error.strerror}; give a folder"
        ) from None


class _Run:
    """The state that a checkpoint holds, and the moves between states."""

    def __init__(
        self,
        task: Task,
        settings: RunSettings,
        recipe: TrainingRecipe,
        resolved: dict[str, Any],
        network: FrameNetwork,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.settings, self.network = task, settings, network
        self.recipe, self.resolved = recipe, resolved
        self.optimizer, self.accelerator = optimizer, accelerator
        self.step = 0
        self.lr_factor = 1.0
        self.rollbacks = 0
        self.seconds_before = 0.0
        self.history: list[dict[str, float]] = []
        self._good: dict[str, Any] = {}

    def restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if state is None:
            raise CheckpointError(
                "this checkpoint was made to ship and holds no optimiser state, so it cannot be "
                "resumed; resume one that was written without --drop-state"
            )
        try:
            self.network.load_state_dict(checkpoint.weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = checkpoint.step, list(checkpoint.history)
            self.lr_factor, self.rollbacks = float(state["lr_factor"]), int(state["rollbacks"])
            torch.set_rng_state(state["rng"])
            threads = int(state["threads"])
            self.seconds_before = float(self.history[-1]["seconds"]) if self.history else 0.0
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's state is damaged ({type(error).__name__}); "
                "resume an earlier copy, or start again without --resume"
            ) from None
        if self.accelerator.device.type == "cpu" and threads != torch.get_num_threads():
            print(
                f"note: this run began with {threads} threads and goes on with "
                f"{torch.get_num_threads()}: the last bits will differ (--threads {threads} "
                "makes them equal)",
                file=sys.stderr,
            )

    def largest_gradient(self) -> Tensor:
        """The largest norm of a parameter's gradient, a scalar: finite only if all of them are."""
        norms = torch._foreach_norm(
            [p.grad for p in self.network.parameters() if p.grad is not None]
        )
        return torch.stack(list(norms)).max().float()

    def snapshot(self) -> None:
        """Remember this state as good, in memory."""
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            return
        self._good = {
            "network": copy.deepcopy(self.network.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "step": self.step,
        }

    def roll_back(self, losses: dict[str, float], lr: float) -> None:
        """Return to the last good weights with half the learning rate.

        The step count runs on: the pictures that led here are not shown again.
        """
        self.rollbacks += 1
        bad = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
        what = f"{bad} of step {self.step + 1}" if bad else f"a gradient of step {self.step + 1}"
        if self.rollbacks > MAX_ROLLBACKS:
            self.network.load_state_dict(self._good["network"])
            self.step = self._good["step"]
            raise DivergenceError(
                f"training diverged: {what} is not finite after {MAX_ROLLBACKS} roll-backs, each "
                f"with half the learning rate (last {lr:.3g}); {self.settings.output} holds the "
                f"last good weights, of step {self.step}. Start again with --learning-rate "
                f"{lr / 4:.2g}, lower loss weights, or --precision fp32"
            )
        self.lr_factor /= 2
        self.network.load_state_dict(self._good["network"])
        # A copy: the optimiser goes on to write into the tensors that it is given.
        self.optimizer.load_state_dict(copy.deepcopy(self._good["optimizer"]))
        tqdm.write(
            f"{what} is not finite: back to the last good weights with half the learning rate "
            f"(roll-back {self.rollbacks} of at most {MAX_ROLLBACKS})",
            file=sys.stderr,
        )

    def checkpoint(self, *, with_state: bool) -> Checkpoint:
        weights = {
            name: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for name, value in self.network.state_dict().items()
        }
        state = None
        if with_state:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "lr_factor": self.lr_factor,
                "rollbacks": self.rollbacks,
                "rng": torch.get_rng_state(),
                "threads": torch.get_num_threads(),
                **self.task.state,
            }
        return Checkpoint(
            task=self.task.kind,
            network={"name": self.recipe.network, "settings": self.recipe.network_settings()},
            weights=weights,
            recipe=self.resolved,
            step=self.step,
            history=self.history,
            style=self.task.style,
            versions={
                "topcoat-train": version("topcoat-train"),
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            state=state,
        )

    def save(self, *, with_state: bool) -> None:
        save_checkpoint(self.checkpoint(with_state=with_state), self.settings.output)

    def save_or_warn(self) -> None:
        """A failed save on the way is not the end: the next may work, and the last one must."""
        try:
            self.save(with_state=True)
        except OutputError as error:
            tqdm.write(f"warning: {error}; training goes on", file=sys.stderr)

    def preview(self) -> None:
        """Draw the preview strip of this step."""
        if self.task.preview is None:
            return
        folder = self.settings.output.with_suffix(".preview")
        self.network.eval()
        try:
            with torch.no_grad():
                strip = self.task.preview(self.network)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"step_{self.step:06d}.jpg"
            temporary = path.with_suffix(".part")
            strip.save(temporary, "JPEG", quality=92)
            temporary.replace(path)
        except OSError as error:
            tqdm.write(f"warning: no preview written: {error.strerror}", file=sys.stderr)
        finally:
            self.network.train()


class Interrupt:
    """Turn Ctrl-C and SIGTERM into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.seen = False
        self.closing = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.seen and not self.closing and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once, with the last checkpoint
        self.seen = True

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was interrupted: all must leave the loop at the same step."""
        if accelerator.num_processes == 1:
            return self.seen
        flag = torch.tensor(int(self.seen), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item())


@contextlib.contextmanager
def _tensorboard(
    settings: RunSettings, accelerator: Accelerator
) -> Iterator[Callable[[str, float, int], None] | None]:
    if settings.tensorboard is None or not accelerator.is_main_process:
        yield None
        return
    writer = _summary_writer(settings.tensorboard)
    try:
        yield lambda name, value, step: writer.add_scalar(f"train/{name}", value, step)
    finally:
        writer.close()
