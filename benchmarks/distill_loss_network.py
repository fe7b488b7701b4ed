"""Make the embedded loss network: a narrow VGG16 that sees what VGG16 sees at the compared layers.

    python benchmarks/distill_loss_network.py --content DIR [--styles DIR] [--loss-weights FILE]
    python benchmarks/distill_loss_network.py --content DIR --steps 0      least squares alone
    python benchmarks/distill_loss_network.py --content DIR --resume distill.pt    go on
    python benchmarks/distill_loss_network.py --evaluate --content DIR     errors of the shipped one

The student has VGG16's layout and its full number of channels where features are compared; the
layers between are narrow. It is made in two stages.

Selection. Layer by layer, the channels that the others can be predicted from best are kept (QR with
column pivoting on activations), and the kernels are solved for by least squares so that, from what
the student has computed so far, they give what VGG16's give. No training, one minute, and already
closer than an hour of training from random weights.

Distillation. Every step shows the student photographs, plain and recoloured, noisy and saturated,
style pictures, and what generators make that are being trained against this very student while it
learns: generators leave the manifold of photographs and find what a student gets wrong, so it has
to see their pictures all along. Two are real-time networks, and one is no network at all but pixels
that are optimised directly, the hardest adversary. Each begins again with another style now and
then. The loss is the error of the features as a share of their energy plus the same for their Gram
matrices, picture by picture.

A run that goes on from its checkpoint is not the run that would not have stopped: the student and
its optimiser are as they were, but the generators begin anew, and it is shown other pictures. Two
runs that go on from the same checkpoint are the same.

Written, both at the end: embedded.safetensors (float16) and embedded.json (hashes, errors on
held-out pictures).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from scipy.linalg import qr
from torch import Tensor, nn
from tqdm import tqdm

from topcoat.train import OutputError
from topcoat.train._allocator import keep_freed_memory
from topcoat.train._files import written_whole
from topcoat.train.checkpoint import check_writable
from topcoat.train.losses import (
    LossNetwork,
    PerceptualLoss,
    find_loss_weights,
    gram_matrix,
    load_loss_network,
    style_target,
)
from topcoat.train.losses.features import layer_index
from topcoat.train.networks import build_network
from topcoat.train.recipes import STYLE_RECIPES
from topcoat.train.styles import STYLES, draw_style

TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
WIDTHS = {1: (16, 64), 2: (64, 128), 3: (128, 128, 256), 4: (40, 40, 512)}
"""Channels of the convolutions of each block; the last is VGG16's own number. By the
errors of the selection alone: 16 channels at full size suffice, and most is gained by wide layers
between relu2_2 and relu3_3. Powers of two fill vector registers and tiles.
Block 4 is for a teacher that reaches relu4_3; it makes the file 2.0 MB instead of 1.4."""
SIDE = 96
"""Pixels of the square training pictures."""
_PHOTOS, _OUTPUTS = 3, 1
"""Pictures a step: photographs and styles, and what every one of the three generators makes."""
FOLDER = Path(__file__).parents[1] / "train/src/topcoat/train/losses"


def main(argv: Sequence[str] | None = None) -> int:
    keep_freed_memory()
    arguments = _parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.evaluate:
        try:
            for place in outputs(arguments.output):
                check_writable(place)
            if arguments.steps:
                check_writable(arguments.checkpoint, "--checkpoint")
        except OutputError as error:
            print(f"distill_loss_network: {error}", file=sys.stderr)
            return 2
    torch.manual_seed(arguments.seed)
    weights = find_loss_weights("vgg16", arguments.loss_weights).path
    teacher = _teacher(weights)
    pictures = Pictures(arguments.content, arguments.styles, arguments.seed)
    if arguments.evaluate:
        shipped = outputs(FOLDER)[0].read_bytes()
        show(errors(load_student(shipped, teacher), teacher, pictures))
        return 0
    if arguments.resume:
        state = torch.load(arguments.resume, weights_only=True)
        student = _narrow(teacher, state["widths"])
        student.load_state_dict(state["student"])
    else:
        state = None
        student = select(teacher, pictures, _widths(arguments.widths, teacher))
        print("after the selection", file=sys.stderr)
        show(errors(student, teacher, pictures))
    if arguments.steps:
        distill(student, teacher, pictures, arguments, state)
    save(student, teacher, weights, pictures, arguments)
    return 0


# --- the student -----------------------------------------------------------------------------


def _teacher(weights: Path) -> LossNetwork:
    """VGG16 with as many of the compared layers as the file reaches."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    last = max(int(name.split(".")[1]) for name in state if name.startswith("features."))
    reached = [tap for tap in TAPS if layer_index("vgg16", tap) - 1 <= last]
    return load_loss_network("vgg16", reached, weights).to(memory_format=torch.channels_last)


def _widths(given: Sequence[int] | None, teacher: LossNetwork) -> list[int]:
    depth = sum(isinstance(module, nn.Conv2d) for module in teacher.features)
    widths = list(given or [width for block in WIDTHS.values() for width in block])[:depth]
    for width, conv in zip(widths, _convs(teacher).values(), strict=True):
        if not 1 <= width <= conv.out_channels:
            raise SystemExit(f"widths must be 1 to {conv.out_channels} channels, got {width}")
    return widths


def _convs(network: LossNetwork) -> dict[int, nn.Conv2d]:
    return {i: m for i, m in enumerate(network.features) if isinstance(m, nn.Conv2d)}


def _narrow(teacher: LossNetwork, widths: Sequence[int]) -> LossNetwork:
    """A network of the teacher's layout and taps with other widths, its weights not set."""
    student = LossNetwork("vgg16", teacher.taps.values(), widths=widths)
    return student.to(memory_format=torch.channels_last)


def load_student(content: bytes, teacher: LossNetwork) -> LossNetwork:
    """The student in the bytes of a file that :func:`save` wrote."""
    state = {name: value.float() for name, value in load_tensors(content).items()}
    widths = [state[f"features.{index}.weight"].shape[0] for index in _convs(teacher)]
    student = _narrow(teacher, widths)
    student.load_state_dict(state)
    return student


def select(teacher: LossNetwork, pictures: Pictures, widths: Sequence[int]) -> LossNetwork:
    """Keep the channels that tell most about the others; solve for kernels by least squares.

    Source: He, Zhang, Sun 2017 (arXiv:1707.06168), here with pivoted QR to choose channels and the
    student's own activations as inputs, so that each layer makes up for the errors before it.
    """
    student = _narrow(teacher, widths)
    rng = np.random.default_rng(0)
    frames = [(p - teacher.mean) / teacher.std for p in pictures.mixed(96)]
    mine, theirs = frames, frames
    for index, module in enumerate(tqdm(teacher.features, desc="selection", unit="layer")):
        if not isinstance(module, nn.Conv2d):
            mine, theirs = ([module(x) for x in xs] for xs in (mine, theirs))
            continue
        conv = student.features[index]
        assert isinstance(conv, nn.Conv2d)
        wanted = [module(x) for x in theirs]
        kept = np.arange(module.out_channels)
        if conv.out_channels < module.out_channels:
            seen = np.concatenate([_sample(F.relu(y).flatten(2)[0], 300, rng)[0] for y in wanted])
            kept = np.sort(qr(seen, mode="r", pivoting=True)[-1][: conv.out_channels])
        size = 9 * conv.in_channels + 1
        products, sums = np.zeros((size, size)), np.zeros((size, len(kept)))
        for x, y in zip(mine, wanted, strict=True):
            columns, at = _sample(F.unfold(x, 3, padding=1)[0], 600, rng)
            columns = np.concatenate([columns, np.ones((len(at), 1))], 1)
            products += columns.T @ columns
            sums += columns.T @ y.flatten(2)[0].T[torch.from_numpy(at)][:, kept].double().numpy()
        products[np.diag_indices(size)] += 1e-6 * np.trace(products) / size
        solved = torch.from_numpy(np.linalg.solve(products, sums)).float()
        assert conv.bias is not None
        conv.weight.copy_(solved[:-1].T.reshape(conv.weight.shape))
        conv.bias.copy_(solved[-1])
        mine, theirs = [conv(x) for x in mine], wanted
    return student


def _sample(
    features: Tensor, count: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``count`` of the columns of (C, N), as rows, and which ones."""
    at = rng.integers(0, features.shape[1], count)
    return features[:, torch.from_numpy(at)].T.double().numpy(), at


# --- what it is shown ------------------------------------------------------------------------


class Pictures:
    """Photographs and styles, the last 40 photographs held out."""

    def __init__(self, content: Path, styles: Path | None, seed: int) -> None:
        files = sorted(p for p in content.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        random.Random(seed).shuffle(files)
        if len(files) < 80:
            raise SystemExit(f"{content} holds {len(files)} pictures; at least 80 are wanted")
        self.files, self.held = files[:-40], files[-40:]
        self.rng = random.Random(seed)
        drawn = [draw_style(name) for name in STYLES]
        painted = sorted(styles.glob("*.jpg")) if styles else []
        self.styles = drawn + [_shrunk(Image.open(p).convert("RGB"), 512) for p in painted]
        self.described = {
            "photographs": len(self.files),
            "styles": [*STYLES, *(path.stem for path in painted)],
        }

    def photo(self, path: Path | None = None) -> Image.Image:
        """A photograph, one of those to learn from at some size unless one is named."""
        picture = Image.open(path or self.rng.choice(self.files)).convert("RGB")
        if min(picture.size) < SIDE:
            picture = picture.resize([max(SIDE, side) for side in picture.size])
        if path is None and self.rng.random() < 0.5:  # what training sees at other sizes
            side = max(SIDE / min(picture.size), self.rng.uniform(0.5, 1))
            picture = picture.resize([math.ceil(n * side) for n in picture.size])
        return picture

    def crop(self, picture: Image.Image, rng: random.Random | None = None) -> Tensor:
        """(1, 3, SIDE, SIDE) in [0, 1]: a random square, mirrored or not."""
        rng = rng or self.rng
        left, top = (rng.randrange(side - SIDE + 1) for side in picture.size)
        pixels = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255

    def style(self) -> Tensor:
        """(1, 3, H, W): a whole style picture at some size."""
        picture = _shrunk(self.rng.choice(self.styles), self.rng.randrange(192, 385))
        pixels = np.asarray(picture).copy()
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    def mixed(self, count: int) -> list[Tensor]:
        """Photographs, every second one altered, and a style picture now and then."""
        frames = []
        for number in range(count):
            if number % 6 == 5:
                frames.append(altered(self.crop(self.rng.choice(self.styles)), self.rng, 0.3))
            else:
                frames.append(altered(self.crop(self.photo()), self.rng, 0.5))
        return frames


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = [max(SIDE, round(n * scale)) for n in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def altered(frame: Tensor, rng: random.Random, share: float = 1.0) -> Tensor:
    """(1, 3, H, W) in [0, 1], changed with probability ``share`` as generators change pictures."""
    if rng.random() >= share:
        return frame
    kind = rng.randrange(6)
    if kind == 0:  # grain
        return (frame + torch.randn_like(frame) * rng.uniform(0.02, 0.3)).clamp(0, 1)
    if kind == 1:  # saturated, or grey
        grey = frame.mean(1, keepdim=True)
        return (grey + (frame - grey) * rng.choice([0.0, 0.5, 2.0, 4.0])).clamp(0, 1)
    if kind == 2:  # contrast and brightness, clipped or not: outputs are not bounded
        return (frame - 0.5) * rng.uniform(0.3, 2.5) + rng.uniform(0.2, 0.8)
    if kind == 3:  # other colours
        return frame[:, rng.sample(range(3), 3)] * torch.rand(1, 3, 1, 1).add(0.5)
    if kind == 4:  # flat areas with hard edges
        levels = rng.choice([2, 3, 5])
        return (frame * levels).round() / levels
    mask = torch.rand(1, 1, SIDE // 16, SIDE // 16).round()  # patches of plain noise
    mask = F.interpolate(mask, size=frame.shape[2:])
    return frame * mask + torch.rand(1, 3, 1, 1).expand_as(frame).add(
        torch.randn_like(frame) * rng.uniform(0, 0.3)
    ) * (1 - mask)


class Player:
    """A generator in training against the student; what it makes is what the student must see."""

    def __init__(self, kind: str, lives: int) -> None:
        self.kind, self.lives, self.age = kind, lives, lives

    def begin(self, student: LossNetwork, pictures: Pictures) -> None:
        """Start again: another style, another strength, fresh weights."""
        recipe = STYLE_RECIPES["realtime"]
        taps = tuple(student.taps.values())
        rng = pictures.rng
        recipe = replaced(
            recipe,
            style_layers=taps,
            strength=2 ** rng.uniform(-2, 2),
            tv_weight=rng.choice([0, 25]),
        )
        self.objective = PerceptualLoss(
            student, [style_target(student, pictures.style(), recipe)], recipe
        )
        self.age = 0
        if self.kind == "pixels":
            self.photo = torch.cat([pictures.crop(pictures.photo()) for _ in range(_OUTPUTS)])
            self.pixels = nn.Parameter(self.photo.clone())
            self.learnt: list[nn.Parameter] = [self.pixels]
            rate = 0.02
        else:
            width, blocks = rng.choice([(16, 2), (32, 3)])
            self.network = build_network("realtime", {"width": width, "blocks": blocks})
            self.network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            self.learnt = list(self.network.parameters())
            rate = 5e-3
        self.adam = torch.optim.Adam(self.learnt, rate)

    def make(self, student: LossNetwork, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """Pictures with gradients, and the photographs that they come from."""
        if self.age >= self.lives:
            self.begin(student, pictures)
        self.age += 1
        if self.kind == "pixels":
            return self.pixels, self.photo
        photo = torch.cat([pictures.crop(pictures.photo()) for _ in range(_OUTPUTS)])
        return self.network(photo), photo


# --- distillation ----------------------------------------------------------------------------


def distance(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{tap: (B,)}: error of features plus error of Gram matrices, as shares of the energy."""
    found = {}
    for tap, wanted in theirs.items():
        feature = (mine[tap] - wanted).square().mean((1, 2, 3)) / wanted.square().mean((1, 2, 3))
        grams = gram_matrix(mine[tap]), gram_matrix(wanted)
        gram = (grams[0] - grams[1]).square().sum((1, 2)) / grams[1].square().sum((1, 2))
        found[tap] = feature + gram
    return found


def distill(
    student: LossNetwork,
    teacher: LossNetwork,
    pictures: Pictures,
    arguments: argparse.Namespace,
    state: dict[str, Any] | None,
) -> None:
    """Train the student, and generators against it, in turns of one step."""
    kernels = [conv.weight for conv in _convs(student).values()]
    biases = [conv.bias for conv in _convs(student).values() if conv.bias is not None]
    learnt = [*kernels, *biases]
    for parameter in learnt:
        parameter.requires_grad_(True)
    # Activations go to 255 and beyond, so what a bias must move by is as large.
    adam = torch.optim.Adam(
        [{"params": kernels, "scale": 1.0}, {"params": biases, "scale": 30.0}], betas=(0.9, 0.99)
    )
    first = 0
    if state is not None:
        adam.load_state_dict(state["adam"])
        first = int(state["step"])
        pictures.rng.seed(arguments.seed + first)
        torch.set_rng_state(state["generator"])
    players = [Player("network", 250), Player("network", 400), Player("pixels", 80)]
    seen = {"photographs": 0.0, "generators": 0.0}
    bar = tqdm(range(first, arguments.steps), initial=first, total=arguments.steps, unit="step")
    for step in bar:
        warm = min(1.0, (step + 1) / 50)
        rate = (
            arguments.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        )
        for group in adam.param_groups:
            group["lr"] = rate * group["scale"]
        photos = torch.cat(pictures.mixed(_PHOTOS))
        made = [player.make(student, pictures) for player in players]
        outputs = torch.cat([output for output, _ in made])
        batch = torch.cat([photos, outputs])
        features = student(batch)
        with torch.no_grad():
            wanted = teacher(batch)
        apart = torch.stack(list(distance(features, wanted).values())).mean(0)
        gradients = torch.autograd.grad(apart.mean(), learnt, retain_graph=True)
        for number, (player, (output, photo)) in enumerate(zip(players, made, strict=True)):
            rows = slice(_PHOTOS + _OUTPUTS * number, _PHOTOS + _OUTPUTS * (number + 1))
            total = _objective(player, {tap: f[rows] for tap, f in features.items()}, output, photo)
            player.adam.zero_grad()
            for parameter, gradient in zip(
                player.learnt,
                torch.autograd.grad(total, player.learnt, retain_graph=True),
                strict=True,
            ):
                parameter.grad = gradient
            player.adam.step()
            if player.kind == "pixels":
                player.pixels.data.clamp_(-0.1, 1.1)
        for parameter, gradient in zip(learnt, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        for name, part in (("photographs", apart[:_PHOTOS]), ("generators", apart[_PHOTOS:])):
            now = float(part.detach().mean())
            seen[name] = now if step == first else 0.95 * seen[name] + 0.05 * now
        bar.set_postfix({name: f"{value:.4f}" for name, value in seen.items()})
        if (step + 1) % arguments.checkpoint_every == 0:
            _checkpoint(student, adam, step + 1, arguments.checkpoint)
            tqdm.write(f"step {step + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in seen.items()))
    student.requires_grad_(False)


def _objective(
    player: Player, features: Mapping[str, Tensor], output: Tensor, photo: Tensor
) -> Tensor:
    """The player's loss, on features of its output that are already computed."""
    objective = player.objective
    with torch.no_grad():
        content = objective.content_target(photo)

    class Known(nn.Module):
        def statistics(
            self, _: Tensor, wanted: Sequence[str], grams: Sequence[str]
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return (
                {tap: features[tap] for tap in wanted},
                {tap: gram_matrix(features[tap]) for tap in grams},
            )

    network, objective.network = objective.network, Known()  # type: ignore[assignment]
    try:
        return objective(output, content=content)["total"]
    finally:
        objective.network = network


def _checkpoint(student: LossNetwork, adam: torch.optim.Adam, step: int, path: Path) -> None:
    widths = [conv.out_channels for conv in _convs(student).values()]
    state = {
        "student": student.state_dict(),
        "widths": widths,
        "adam": adam.state_dict(),
        "step": step,
        "generator": torch.get_rng_state(),
    }
    with written_whole(path) as file:
        torch.save(state, file)


# --- how good it is --------------------------------------------------------------------------


def errors(
    student: LossNetwork, teacher: LossNetwork, pictures: Pictures
) -> dict[str, dict[str, dict[str, float]]]:
    """{kind of picture: {tap: {"features", "gram"}}}: shares of the energy, held-out pictures."""
    rng = random.Random(1)
    torch.manual_seed(1)
    photos = [pictures.crop(pictures.photo(path), rng) for path in pictures.held]
    kinds = {
        "photographs": photos,
        "altered": [altered(photo, rng) for photo in photos],
        "noise": [torch.rand(1, 3, SIDE, SIDE) for _ in range(4)],
        "styles": [pictures.crop(style, rng) for style in pictures.styles for _ in range(2)],
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, frames in kinds.items():
        sums: dict[str, list[tuple[float, float]]] = {tap: [] for tap in teacher.taps.values()}
        for frame in frames:
            with torch.no_grad():
                mine, theirs = student(frame), teacher(frame)
            for tap, wanted in theirs.items():
                grams = gram_matrix(mine[tap]), gram_matrix(wanted)
                sums[tap].append(
                    (
                        float((mine[tap] - wanted).square().mean() / wanted.square().mean()),
                        float((grams[0] - grams[1]).square().sum() / grams[1].square().sum()),
                    )
                )
        found[kind] = {
            tap: dict(zip(("features", "gram"), np.mean(pairs, 0).round(5).tolist(), strict=True))
            for tap, pairs in sums.items()
        }
    return found


def show(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for kind, taps in found.items():
        cells = (f"{t} {e['features']:.4f} / {e['gram']:.4f}" for t, e in taps.items())
        print(f"{kind:<12} features / gram: {'   '.join(cells)}")


def outputs(folder: Path) -> tuple[Path, Path]:
    """The files of the student in a folder: weights, and what is to be known of them."""
    return folder / "embedded.safetensors", folder / "embedded.json"


def save(
    student: LossNetwork,
    teacher: LossNetwork,
    weights: Path,
    pictures: Pictures,
    arguments: argparse.Namespace,
) -> None:
    """Write the student in float16 and what is to be known of it, both at once or neither."""
    path, described_file = outputs(arguments.output)
    half = {name: value.half().contiguous() for name, value in student.state_dict().items()}
    content = save_tensors(half, metadata={"format": "topcoat loss network 1"})
    student = load_student(content, teacher)  # what is measured is what is shipped
    found = errors(student, teacher, pictures)
    show(found)
    described = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(value.numel() for value in half.values()),
        "widths": [conv.out_channels for conv in _convs(student).values()],
        "layers": list(teacher.taps.values()),
        "teacher": {
            "network": "vgg16",
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
        "steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "data": pictures.described,
        "errors": found,
    }
    # Both lie there whole before the first takes its place.
    with written_whole(path) as file, written_whole(described_file) as beside:
        file.write(content)
        file.flush()
        beside.write((json.dumps(described, indent=1) + "\n").encode())
    print(f"{path}: {len(content) / 1e6:.2f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--content", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--styles", type=Path, help="folder of paintings, beside the drawn styles")
    parser.add_argument("--loss-weights", type=Path, help="the teacher's weights")
    parser.add_argument("--widths", type=int, nargs="+", help="channels of every convolution")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("distill.pt"),
        metavar="FILE",
        help="what --resume goes on from (default: distill.pt)",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on from such a file, with new generators"
    )
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="folder to write into")
    return parser


if __name__ == "__main__":
    sys.exit(main())
