"""Make the models that come with the runtime, and the gallery: one table, one command.

    python benchmarks/builtin_models.py --content photos/ --styles paintings/
    python benchmarks/builtin_models.py --checkpoints runs/ --only starry-night poster-realtime
    python benchmarks/builtin_models.py --gallery

Each model is trained (a run that was interrupted goes on), exported, compared with its network on
every backend that is here, and written into the runtime's package with a card. Then the gallery
is drawn from the bundles as they lie there, on photographs of scikit-image that no model was
trained on, and the table of docs/gallery/README.md is written from what the bundles say of
themselves. A finished checkpoint is not trained again: whoever has them needs neither photographs
nor paintings. The paintings are in the public domain; their files are not part of this repository.

A bundle takes little room here and holds nobody's photograph: its golden pair is small, and of a
picture that the project draws itself, and there is no white space in parity.json.
"""

import argparse
import json
import math
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from topcoat.export import Exported
    from topcoat.export.onnx_from_checkpoint import Precision
    from topcoat.train import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "runtime" / "src" / "topcoat" / "runtime" / "models"
GALLERY = ROOT / "docs" / "gallery"
LIMIT = 15_000_000
"""Bytes that all models may take together."""

GOLDEN_SIZE = (80, 60)
"""Width and height of a golden frame: multiples of 4, which every network here takes."""
GOLDEN_STYLE = "poster"
"""The drawn style that it is cut from: flat areas and edges of all directions."""

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
SIDE = 320
"""Shorter side of the gallery's photographs, in pixels."""
DETAIL = (160, 120)
"""Width and height of what the gallery shows of a photograph before it is enlarged."""
GAP = 6
BEGIN, END = "<!-- built-in models: begin -->", "<!-- built-in models: end -->"


class MakerError(ValueError):
    """Something that whoever runs this can put right; its text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Painting:
    """A painting whose painter has been dead for so long that it belongs to everybody."""

    title: str
    painter: str
    died: int
    year: str
    file: str
    """Stem of the picture in the folder of ``--styles``."""

    def __str__(self) -> str:
        return f"{self.title}, {self.painter}, {self.year}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """How one model is made."""

    about: str
    """What it is, in one line, for lists."""
    options: str
    """Of the training command; the first word is the command."""
    source: Painting | str | None = None
    """What a style was taken from: a painting, or the name of a style that the project draws."""
    teacher: str | None = None
    """The model whose pictures this one learns to make; with ``--supervision both`` in the options
    it is held to the style, too."""
    precisions: "tuple[Precision, ...]" = ("fp32",)


STARRY_NIGHT = Painting(
    title="The Starry Night",
    painter="Vincent van Gogh",
    died=1890,
    year="1889",
    file="starry_night",
)
GREAT_WAVE = Painting(
    title="The Great Wave off Kanagawa",
    painter="Katsushika Hokusai",
    died=1849,
    year="about 1831",
    file="wave",
)
STARRY_NIGHT_ABOUT = "swirling strokes in blue and gold, after Van Gogh's The Starry Night"
GREAT_WAVE_ABOUT = "a woodblock print in blue and cream, after Hokusai's Great Wave off Kanagawa"
MOSAIC_ABOUT = "glazed tiles with dark grout, rust to turquoise"
POSTER_ABOUT = "a screen print in six flat inks"
FULL = "train-style --recipe modern --width 16 --batch 2"
REALTIME = "train-style --recipe realtime"
EMBEDDED = "--loss-network embedded"

MODELS: dict[str, BuiltIn] = {
    "starry-night": BuiltIn(
        about=STARRY_NIGHT_ABOUT,
        options=f"{FULL} --crop 224 --steps 1200 --loss-network vgg16",
        source=STARRY_NIGHT,
    ),
    "great-wave": BuiltIn(
        about=GREAT_WAVE_ABOUT,
        options=f"{FULL} --crop 224 --steps 1200 {EMBEDDED}",
        source=GREAT_WAVE,
    ),
    "mosaic": BuiltIn(
        about=MOSAIC_ABOUT,
        options=f"{FULL} --crop 192 --steps 700 {EMBEDDED}",
        source="mosaic",
    ),
    "poster": BuiltIn(
        about=POSTER_ABOUT,
        # At full strength everything becomes a few blobs of ink.
        options=f"{FULL} --crop 192 --steps 450 --strength 0.2 {EMBEDDED}",
        source="poster",
    ),
    "starry-night-realtime": BuiltIn(
        about=f"{STARRY_NIGHT_ABOUT}; real time",
        options=f"{REALTIME} --dilation 1 --steps 800 --loss-network vgg16",
        source=STARRY_NIGHT,
    ),
    "great-wave-realtime": BuiltIn(
        about=f"{GREAT_WAVE_ABOUT}; real time",
        options=f"{REALTIME} --crop 192 --steps 700 {EMBEDDED} --supervision both "
        "--target-weight 10",
        source=GREAT_WAVE,
        teacher="great-wave",
    ),
    "mosaic-realtime": BuiltIn(
        about=f"{MOSAIC_ABOUT}; real time",
        options=f"{REALTIME} --crop 192 --steps 900 {EMBEDDED}",
        source="mosaic",
    ),
    "poster-realtime": BuiltIn(
        about=f"{POSTER_ABOUT}; real time",
        options=f"{REALTIME} --dilation 1 --steps 1000 --loss-network vgg16",
        source="poster",
    ),
    "poster-light": BuiltIn(
        about=f"{POSTER_ABOUT}; real time, with a third of the weights",
        options=f"{REALTIME}-small --dilation 1 --steps 500 --loss-network vgg16",
        source="poster",
    ),
    "sharpen-x2": BuiltIn(
        about="enlarges twice, sharper than bicubic, true to the pixels",
        options="train-sr --scale 2 --recipe modern --loss pixel --steps 480",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    add(
        "--checkpoints",
        type=Path,
        default=ROOT / "runs" / "builtin-models",
        metavar="DIR",
        help="where NAME.pt lie, and are written (default: runs/builtin-models)",
    )
    add("--content", type=Path, metavar="DIR", help="photographs, to train what is not finished")
    add("--styles", type=Path, metavar="DIR", help="pictures of the paintings, to train on")
    add("--threads", type=int, metavar="N", help="CPU threads of a training (default: all cores)")
    add("--gallery", action="store_true", help="draw the gallery of what is there, and stop")
    add("--package", type=Path, default=PACKAGE, metavar="DIR", help="write the bundles elsewhere")
    add("--pictures", type=Path, default=GALLERY, metavar="DIR", help="and the gallery")
    arguments = parser.parse_args(argv)
    names = arguments.only or list(MODELS)

    import topcoat.export
    import topcoat.runtime
    import topcoat.train

    ours = (topcoat.train.TopcoatError, topcoat.export.TopcoatError, topcoat.runtime.TopcoatError)
    try:
        if not arguments.gallery:
            for name in names:
                made = make(name, arguments)
                if not made:
                    print(
                        f"builtin_models: {name}: an engine differs from the network:\n"
                        f"{made.report}",
                        file=sys.stderr,
                    )
                    return 1
        draw_gallery(arguments.package, arguments.pictures, names if arguments.only else None)
        total = folder_size(arguments.package)
        print(f"{arguments.package}: {total / 1e6:.2f} MB of {LIMIT / 1e6:g} that are allowed")
        if total > LIMIT:
            raise MakerError("the models are too large together; narrow one, or drop a precision")
    except (MakerError, *ours) as error:
        print(f"builtin_models: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbuiltin_models: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


# -------------------------------------------------------------------------------------------- train


def make(name: str, arguments: argparse.Namespace) -> "Exported":
    """Train what is not trained, export it, and put it into the package if it is proved."""
    import topcoat.export
    from topcoat.train import load_checkpoint

    entry = MODELS[name]
    file = arguments.checkpoints / f"{name}.pt"
    if not finished(file):
        train(name, file, arguments)
    checkpoint = load_checkpoint(file)
    check(file, checkpoint, entry)
    command = command_of(checkpoint, entry)
    print(f"{name}: {command}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / f"{name}.topcoat"
        exported = topcoat.export.export_bundle(
            topcoat.export.source_from_checkpoint(checkpoint),
            bundle,
            plan=topcoat.export.PrecisionPlan(precisions=entry.precisions),
            progress=lambda what: print(f"  {what}", flush=True),
        )
        if not exported:
            return exported
        make_small(checkpoint, bundle)
        describe(bundle, entry, command, checkpoint)
        place = arguments.package / bundle.name
        if place.exists() and not (place / "manifest.json").is_file():
            raise MakerError(f"{place} is no bundle and is left alone; move it away")
        arguments.package.mkdir(parents=True, exist_ok=True)
        install(bundle, place)
    print(f"{place}: {folder_size(place) / 1e3:.0f} kB", flush=True)
    return exported


def install(bundle: Path, place: Path) -> None:
    """Put a bundle's folder where another may be: copied beside it first, then renamed.

    Raises:
        OSError: it cannot be; what was there is there.
    """
    with tempfile.TemporaryDirectory(prefix=f".{place.stem}.", dir=place.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        shutil.copytree(bundle, new)
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise


def finished(file: Path) -> bool:
    """Whether a checkpoint is there and has all the steps of its own recipe."""
    from topcoat.train import load_checkpoint

    if not file.exists():
        return False
    checkpoint = load_checkpoint(file)
    return checkpoint.step >= int(checkpoint.recipe["steps"])


def train(name: str, file: Path, arguments: argparse.Namespace) -> None:
    """Train a model with its own command, from the start or from where it was interrupted.

    Raises:
        MakerError: it cannot be trained with what was given, or was interrupted.
    """
    from topcoat.train.cli import train_sr, train_style

    mains = {"train-style": train_style.main, "train-sr": train_sr.main}
    entry = MODELS[name]
    program, *options = shlex.split(entry.options)
    if arguments.content is None:
        state = "is not finished" if file.exists() else "is not there"
        raise MakerError(
            f"{file} {state}; give photographs to train on with --content, another folder with "
            "--checkpoints, or leave it out with --only"
        )
    if file.exists():
        options = ["--resume", str(file)]
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        options += ["-o", str(file), "--content", str(arguments.content)]
        if entry.teacher is not None:
            teacher = arguments.checkpoints / f"{entry.teacher}.pt"
            if not finished(teacher):
                raise MakerError(
                    f"{name} learns from {entry.teacher}, and {teacher} is not finished; make that "
                    "one first"
                )
            options += ["--teacher", str(teacher)]
        if entry.source is not None and (entry.teacher is None or "--supervision" in options):
            options += ["--style", str(style_of(entry, arguments.styles))]
    if arguments.threads is not None:
        options += ["--threads", str(arguments.threads)]
    print(f"{name}: {shlex.join([program, *options])}", flush=True)
    code = mains[program](options)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise MakerError(f"{program} ended with {code}; the line above says why")


def style_of(entry: BuiltIn, styles: Path | None) -> Path | str:
    """Return the style picture to train on: a file, or the name of a drawn one.

    Raises:
        MakerError: it is a painting, and no picture of it was given.
    """
    if isinstance(entry.source, str):
        return entry.source
    assert entry.source is not None
    if styles is None:
        raise MakerError(
            f"a picture of {entry.source} is needed; give the folder that has it with --styles"
        )
    found = sorted(
        path
        for path in styles.glob(f"{entry.source.file}.*")
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
    )
    if not found:
        raise MakerError(
            f"{styles} holds no {entry.source.file}.jpg, a picture of {entry.source}; put one there"
        )
    return found[0]


def check(file: Path, checkpoint: "Checkpoint", entry: BuiltIn) -> None:
    """Refuse a checkpoint that is not the model that the table says.

    Raises:
        MakerError: it is for another task, after another picture, or of an unknown teacher.
    """
    wanted = entry.source.file if isinstance(entry.source, Painting) else entry.source
    task = "super-resolution" if wanted is None else "style"
    found = checkpoint.style.get("name") if task == "style" else None
    if (checkpoint.task, found) != (task, wanted):
        raise MakerError(
            f"{file} is for {checkpoint.task} {checkpoint.style.get('name') or ''}".rstrip()
            + f", wanted {task} {wanted or ''}".rstrip()
            + "; give the right one, or change the table"
        )
    if checkpoint.recipe.get("supervision", "style") != "style" and entry.teacher is None:
        raise MakerError(f"{file} was taught by a network that the table does not name; add it")


def command_of(checkpoint: "Checkpoint", entry: BuiltIn) -> str:
    """Return the command line that trains such a network, from what the checkpoint says of itself.

    What was given with ``--precision`` and where files lie is left out.
    """
    from topcoat.train.recipes import (
        SR_RECIPES,
        STYLE_RECIPES,
        StyleRecipe,
        SuperResolutionRecipe,
        difference,
    )

    words: list[str]
    changed: Mapping[str, tuple[Any, Any]]
    if checkpoint.task == "style":
        own = StyleRecipe.from_dict(checkpoint.recipe)
        changed = difference(STYLE_RECIPES[own.name], own)
        drawn = isinstance(entry.source, str)
        style = str(checkpoint.style.get("name") or "style") + ("" if drawn else ".jpg")
        words = ["train-style", "--recipe", own.name]
        if own.supervision != "style":
            words += ["--teacher", f"{entry.teacher}.pt"]
        if own.supervision != "targets":
            words += ["--style", style]
    else:
        enlarging = SuperResolutionRecipe.from_dict(checkpoint.recipe)
        changed = difference(SR_RECIPES[enlarging.name], enlarging)
        words = ["train-sr", "--recipe", enlarging.name]
    words += ["--content", "photos/"]
    for field, (_, value) in changed.items():
        if field == "precision":
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
        words += ["--" + field.replace("_", "-"), text]
    return shlex.join(words)


# ------------------------------------------------------------------------------------------- export


def make_small(checkpoint: "Checkpoint", bundle: Path) -> None:
    """Draw a golden pair, a picture and PyTorch's answer to it, and tighten the report."""
    import numpy as np
    from PIL import Image

    from topcoat.export.manifest import identity
    from topcoat.export.parity import reference_frame
    from topcoat.train.styles import draw_style

    width, height = GOLDEN_SIZE
    drawn = draw_style(GOLDEN_STYLE)
    box = (0, 0, drawn.width, drawn.width * height // width)
    frame = np.asarray(drawn.resize(GOLDEN_SIZE, Image.Resampling.LANCZOS, box=box))
    network = checkpoint.build_network().eval()
    pictures = {"golden_in.png": frame, "golden_out.png": reference_frame(network, frame)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(bundle / name, optimize=True)
    (bundle / "comparison.png").unlink(missing_ok=True)  # the gallery shows it
    report = bundle / "parity.json"
    content = json.loads(report.read_text(encoding="utf-8"))
    tight = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    report.write_text(tight + "\n", encoding="utf-8")
    manifest = read_json(bundle / "manifest.json")
    manifest["files"].pop("comparison.png", None)
    manifest["files"] |= {name: identity(bundle / name) for name in (*pictures, report.name)}
    write_json(bundle / "manifest.json", manifest)


def describe(bundle: Path, entry: BuiltIn, command: str, checkpoint: "Checkpoint") -> None:
    """Say in the manifest and on the card what the model is, and whose picture it was made after.

    Raises:
        MakerError: the card is not as the export writes it.
    """
    import topcoat.runtime
    from topcoat.export.manifest import identity

    manifest = read_json(bundle / "manifest.json")
    name = manifest["name"]
    card = (bundle / "card.md").read_text(encoding="utf-8")
    begin, table = "| | |\n|---|---|\n", f"{name}.topcoat"
    if card.count(begin) != 1 or table not in card:
        raise MakerError(f"the card of {name} is not laid out as expected; look at card.py")
    rows = [("Licence", "Apache-2.0, as the package that it comes with")]
    if isinstance(entry.source, Painting):
        work = entry.source
        rows.insert(
            0,
            (
                "After",
                f"{work}; the painter died in {work.died}, the painting is in the public domain",
            ),
        )
    elif entry.source is not None:
        rows.insert(0, ("After", f"the style `{entry.source}`, which this project draws itself"))
    rows.append(("Trained with", f"`{command}`"))
    facts = "".join(f"| {key} | {value} |\n" for key, value in rows)
    pair = (
        "| ![a drawn picture](golden_in.png) | ![the network's answer](golden_out.png) |\n"
        "|---|---|\n"
        "| a drawn picture | what the network makes of it |\n"
    )
    _, rest = card.split(begin)
    head = f"# {name}\n\n{entry.about[0].upper()}{entry.about[1:]}.\n\n{pair}\n{begin}{facts}"
    (bundle / "card.md").write_text(head + rest.replace(table, name), encoding="utf-8")

    seconds = next((e["seconds"] for e in reversed(checkpoint.history) if "seconds" in e), None)
    manifest["checkpoint"] |= {
        "command": command,
        "losses": {k: round(v, 4) for k, v in recent_losses(checkpoint).items()},
        "seconds": None if seconds is None else round(seconds),
    }
    manifest["files"]["card.md"] = identity(bundle / "card.md")
    ordered = {"description": entry.about}
    ordered = {key: manifest[key] for key in ("format", "format_version", "name")} | ordered
    ordered |= {key: value for key, value in manifest.items() if key not in ordered}
    write_json(bundle / "manifest.json", ordered)
    topcoat.runtime.verify_files(bundle)


def recent_losses(checkpoint: "Checkpoint") -> dict[str, float]:
    """Average the last twenty logged steps, because single ones scatter; unweighted parts."""
    recent = checkpoint.history[-20:]
    parts = [k for k in recent[-1] if k not in {"step", "learning_rate", "seconds", "total"}]
    found = {part: sum(entry[part] for entry in recent) / len(recent) for part in parts}
    return {part: value for part, value in found.items() if math.isfinite(value)}


# ------------------------------------------------------------------------------------------ gallery


def draw_gallery(package: Path, pictures: Path, names: Sequence[str] | None) -> None:
    """Draw a sheet for each style and for each network that enlarges, and write the table.

    Args:
        package: folder of the bundles.
        pictures: folder of the gallery.
        names: models whose sheets are drawn; None: all that are there.

    Raises:
        MakerError: there is no model, or no place in the gallery's README for the table.
    """
    there = [name for name in MODELS if (package / f"{name}.topcoat").is_dir()]
    if not there:
        raise MakerError(f"{package} holds no model yet; make one first")
    manifests = {name: read_json(package / f"{name}.topcoat" / "manifest.json") for name in there}
    pictures.mkdir(parents=True, exist_ok=True)
    wanted = {style_name(name) for name in (there if names is None else names)}
    for style in dict.fromkeys(map(style_name, there)):
        if style not in wanted:
            continue
        forms = [name for name in there if style_name(name) == style]
        if manifests[forms[0]]["scale"] == 1:
            page = style_sheet([package / f"{name}.topcoat" for name in forms])
        else:
            page = enlargement_sheet(package / f"{forms[0]}.topcoat")
        page.save(pictures / f"{style}.jpg", quality=86, optimize=True)
        print(f"{pictures / style}.jpg: {page.width}x{page.height}", flush=True)
    readme = pictures / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise MakerError(f"{readme} lacks the lines {BEGIN} and {END}; put them around the table")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    section = "\n".join(["", *table_lines(package, manifests), ""])
    readme.write_text(f"{before}{BEGIN}{section}{END}{after}", encoding="utf-8")


def style_name(model: str) -> str:
    """Return the style that a model is a form of.

    >>> style_name("starry-night-realtime")
    'starry-night'
    """
    return model.removesuffix("-realtime").removesuffix("-light")


def photographs() -> "list[Image.Image]":
    """Return the gallery's photographs, at the size at which they are repainted."""
    from topcoat.train.pictures import open_rgb, resize_shorter_side, sample_photographs

    found = {path.stem: path for path in sample_photographs()}
    resized = [resize_shorter_side(open_rgb(found[name]), SIDE) for name in PHOTOGRAPHS]
    return [picture.crop((0, 0, picture.width // 4 * 4, SIDE)) for picture in resized]


def style_sheet(bundles: "Sequence[Path]") -> "Image.Image":
    """Photographs above, below them what each form of the style makes of them."""
    originals = photographs()
    rows = [originals] + [repainted(bundle, originals) for bundle in bundles]
    return sheet(rows)


def enlargement_sheet(bundle: Path) -> "Image.Image":
    """Parts of photographs: enlarged bicubically, by the network, and as they were."""
    import numpy as np
    from PIL import Image

    from topcoat.train.degradation import degrade, imresize
    from topcoat.train.frames import array_tensor, tensor_array

    scale = read_json(bundle / "manifest.json")["scale"]
    boxes = {"astronaut": (150, 20), "chelsea": (90, 60), "coffee": (180, 60)}
    from topcoat.train.pictures import open_rgb, sample_photographs

    found = {path.stem: path for path in sample_photographs()}
    small, rows = [], [[], [], []]  # type: ignore[var-annotated]
    for name, (left, top) in boxes.items():
        width, height = (side * scale for side in DETAIL)
        original = open_rgb(found[name]).crop((left, top, left + width, top + height))
        reduced = degrade(array_tensor(np.asarray(original)), scale, 0.0)
        small.append(Image.fromarray(tensor_array(reduced)))
        rows[0].append(Image.fromarray(tensor_array(imresize(reduced, enlarge=scale))))
        rows[2].append(original)
    rows[1] = repainted(bundle, small)
    return sheet(rows)


def repainted(bundle: Path, pictures: "Sequence[Image.Image]") -> "list[Image.Image]":
    """Run pictures through a bundle as it lies there."""
    import numpy as np
    from PIL import Image

    import topcoat.runtime

    with topcoat.runtime.open(bundle, backend="onnxruntime-cpu", precision="fp32") as model:
        frames: list[NDArray[np.uint8]] = [
            model.process(np.ascontiguousarray(np.asarray(picture))) for picture in pictures
        ]
    return [Image.fromarray(frame) for frame in frames]


def sheet(rows: "Sequence[Sequence[Image.Image]]") -> "Image.Image":
    """Lay pictures out in rows; those of a column are equally large."""
    from PIL import Image

    widths = [picture.width for picture in rows[0]]
    height = rows[0][0].height
    size = (sum(widths) + GAP * (len(widths) - 1), len(rows) * (height + GAP) - GAP)
    page = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        left = 0
        for picture, width in zip(row, widths, strict=True):
            page.paste(picture, (left, number * (height + GAP)))
            left += width + GAP
    return page


def table_lines(package: Path, manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write the table and the sheets of the gallery's README."""
    lines = [
        "| model | task | what it is | weights' size | on disk |",
        "|---|---|---|---|---|",
    ]
    for name, manifest in manifests.items():
        model = sum(variant["bytes"] for variant in manifest["variants"])
        scale = manifest["scale"]
        task = manifest["task"] if scale == 1 else f"{manifest['task']} ×{scale}"
        lines.append(
            f"| `{name}` | {task} | {manifest['description']} | {model / 1e6:.2f} MB |"
            f" {folder_size(package / f'{name}.topcoat') / 1e6:.2f} MB |"
        )
    total = sum(folder_size(package / f"{name}.topcoat") for name in manifests)
    lines += ["", f"Together {total / 1e6:.1f} MB.", ""]
    for style in dict.fromkeys(map(style_name, manifests)):
        forms = [name for name in manifests if style_name(name) == style]
        entry = MODELS[forms[0]]
        title = str(entry.source) if isinstance(entry.source, Painting) else f"`{style}`"
        known = " and ".join(f"`{name}`" for name in forms)
        if manifests[forms[0]]["scale"] == 1:
            caption = f"From above: photographs; {'; '.join(f'`{name}`' for name in forms)}."
        else:
            caption = f"From above: enlarged bicubically; by `{forms[0]}`; the original."
        lines += [f"### {style}", ""]
        if isinstance(entry.source, Painting):
            lines += [f"After {title}. {caption}", ""]
        else:
            lines += [caption, ""]
        lines += [f"![Photographs and what {known} make of them]({style}.jpg)", "", "```sh"]
        for name in forms:
            lines.append(f"topcoat run photo.jpg out.png --model {name}")
        lines += ["```", ""]
        trained = [trained_line(name, manifests[name]) for name in forms]
        lines += [line for line in trained if line] + [""]
    return lines


def trained_line(name: str, manifest: Mapping[str, Any]) -> str:
    """Say how a model was trained, from its manifest; empty if that does not say."""
    origin = manifest["checkpoint"]
    if "command" not in origin:
        return ""
    parts = ", ".join(f"{part} {value:.3g}" for part, value in origin["losses"].items())
    seconds = origin.get("seconds")
    took = f", {seconds / 60:.0f} minutes" if seconds else ""
    return f"- `{name}`: `{origin['command']}` (step {origin['step']}{took}; {parts})"


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest as the export does."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
