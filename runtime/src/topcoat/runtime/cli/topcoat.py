"""The ``topcoat`` command: run a bundle on pictures, folders and videos, and look into it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topcoat.runtime._errors import BackendError, BundleError, FrameError, MediaError
from topcoat.runtime.cli import _shared, verify

if TYPE_CHECKING:
    from topcoat.runtime._explanation import Candidate
    from topcoat.runtime.bundle import Manifest
    from topcoat.runtime.frames import Frame
    from topcoat.runtime.model import Model

_DESCRIPTION = "Run a Topcoat bundle on pictures and videos, make textures, say what is in one."
_EPILOG = """\
examples:
  topcoat models                                              the models that come with it
  topcoat run photo.jpg styled.jpg --model starry-night       one picture, through one of them
  topcoat run photo.jpg styled.jpg --model candy.topcoat      ... or through a bundle of yours
  topcoat run photos/ styled/ --model candy.topcoat           every picture below a folder
  topcoat run clip.mp4 styled.mp4 --model candy.topcoat       a video, its sound kept
  topcoat run small.png large.png --model x4.topcoat          a picture four times as large
  topcoat texture mosaic.topcoat wall.png --size 1024x512     a texture that repeats without seam
  topcoat info candy.topcoat                                  what the bundle is; checks its hashes
  topcoat explain candy.topcoat                               which engine runs it here, and why
  topcoat verify candy.topcoat                                prove what this machine can run

exit codes: 0 done, 2 something you can fix (one line says what), 1 our mistake, 130 interrupted;
of verify 1: an engine differs from its network
"""
_RUN_DESCRIPTION = """\
Run every frame of IN through the bundle and write OUT.

IN is a picture (png, jpg, webp, bmp, tif), a folder of pictures at any depth, or a video (mp4, mov,
mkv, webm, ...). OUT is of the same sort; folders that are missing are made. Nothing that exists is
replaced without --force, and IN is never written to.

Pictures: EXIF orientation is applied, transparency kept, grey becomes RGB, other metadata except an
RGB colour profile is dropped. Folders: the tree is kept; files that are not readable pictures are
skipped, counted and named at the end. Videos: sound is copied, time stamps are kept, and an odd
width or height gains one pixel, because yuv420p needs even ones.

Large frames: a super-resolution network is run in tiles where the whole frame would take more than
half of the memory that is available (--tile auto). Tiles overlap by what the network looks at, so
that the result has no seams. Style networks look at the whole frame and are never cut.
"""


_RUN_EPILOG = """\
examples:
  topcoat run photo.jpg styled.jpg --model candy.topcoat --threads 2
  topcoat run photo.jpg larger.png --model x4.topcoat --match-histogram   with the photo's colours
  topcoat run scan.png larger.png --model x4.topcoat --tile 256           little at a time
"""


_TEXTURE_DESCRIPTION = """\
Make a texture out of noise with a bundle of the task "texture", and write it to OUT.

The texture continues itself on every side: laid beside and below itself it shows no seam, at any
size that the bundle makes. The seed says which noise, and so which of endlessly many textures; the
same seed, size and engine give the same one. Another size is another texture, not a larger part of
the same.

OUT is a picture (png, jpg, webp, bmp, tif). jpg and webp blur what meets at the edges: keep a
texture as png or tif. What exists is replaced with --force only.
"""

_TEXTURE_EPILOG = """\
examples:
  topcoat texture mosaic.topcoat wall.png
  topcoat texture mosaic.topcoat wall.png --size 1024x512 --seed 7
  topcoat texture mosaic.topcoat look.png --size 256x256 --repeat 3x3   768x768, to look for seams
  topcoat info mosaic.topcoat                                           which sizes it makes
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``topcoat``."""
    parser = argparse.ArgumentParser(
        prog="topcoat",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a picture, a folder or a video through a bundle",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("input", metavar="IN", type=Path, help="picture, folder or video")
    run.add_argument("output", metavar="OUT", type=Path, help="where the result goes")
    run.add_argument(
        "--model", dest="bundle", required=True, metavar="B", type=Path, help=_shared.BUNDLE_HELP
    )
    run.add_argument("--force", action="store_true", help="replace files that exist")
    run.add_argument(
        "--crf", type=int, default=18, help="video quality, 0 (best) to 51 (default: 18)"
    )
    run.add_argument(
        "--tile",
        type=_shared.tile,
        default="auto",
        metavar="{auto,off,N}",
        help="run large frames in tiles: auto where memory is short, off never, N at most N pixels"
        " wide and high, context included (default: auto)",
    )
    run.add_argument(
        "--match-histogram",
        action="store_true",
        help="give red, green and blue of every result the histograms of its input",
    )
    run.add_argument("--quiet", action="store_true", help="no progress, no summary")
    run.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    _shared.add_model_options(run)

    texture = commands.add_parser(
        "texture",
        help="make a texture that repeats without a seam",
        description=_TEXTURE_DESCRIPTION,
        epilog=_TEXTURE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    texture.add_argument("bundle", metavar="B", type=Path, help="texture bundle NAME.topcoat")
    texture.add_argument("output", metavar="OUT", type=Path, help="the picture to write")
    texture.add_argument(
        "--size",
        type=_shared.size,
        metavar="WxH",
        help="of the texture, in pixels; multiples of what `topcoat info` says (default: about"
        " 512x512)",
    )
    texture.add_argument(
        "--seed",
        type=_shared.whole,
        default=0,
        metavar="N",
        help="another number gives another texture of the same kind (default: 0)",
    )
    texture.add_argument(
        "--repeat",
        type=_shared.size,
        default=(1, 1),
        metavar="CxR",
        help="write the texture so many times beside and below itself, to look for seams"
        " (default: 1x1)",
    )
    texture.add_argument("--force", action="store_true", help="replace a file that exists")
    texture.add_argument("--quiet", action="store_true", help="no summary")
    texture.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    _shared.add_model_options(texture)

    info = commands.add_parser(
        "info",
        help="say what a bundle is, and compare its hashes",
        description="Say what a bundle is: task, sizes, model files, parity. Compares every hash.",
        epilog="example:\n  topcoat info candy.topcoat --json | jq .size\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("bundle", metavar="B", type=Path, help=_shared.BUNDLE_HELP)
    info.add_argument("--json", action="store_true", help="print JSON on stdout")

    explain = commands.add_parser(
        "explain",
        help="say which engine would run a bundle here, and why not the others",
        description="Say which engine and precision would run a bundle here, and why.",
        epilog="example:\n  topcoat explain candy.topcoat --backend onnxruntime-cpu\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("bundle", metavar="B", type=Path, help=_shared.BUNDLE_HELP)
    explain.add_argument("--json", action="store_true", help="print JSON on stdout")
    _shared.add_model_options(explain)

    verify.add_parser(commands)

    models = commands.add_parser(
        "models",
        help="list the models that come with the package",
        description="List the built-in models: name, task, size on disk, and what each is.\n"
        "Their names may stand wherever a bundle is asked for.",
        epilog="example:\n  topcoat run photo.jpg painted.jpg --model starry-night\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models.add_argument("--json", action="store_true", help="print JSON on stdout")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``topcoat --help``."""
    arguments = build_parser().parse_args(argv)
    actions = {
        "run": _run,
        "texture": _texture,
        "info": _info,
        "explain": _explain,
        "verify": verify.run,
        "models": _models,
    }
    action = actions[arguments.command]
    return _shared.run("topcoat", lambda: action(arguments))


# -------------------------------------------------------------------------------------------- run


def _run(arguments: argparse.Namespace) -> int:
    source: Path = arguments.input
    try:
        there = source.exists()
    except OSError as error:  # a name that no file system takes
        raise MediaError(
            f"{str(source)[:60]}… cannot be opened ({error.strerror}); give a picture, a folder or "
            "a video"
        ) from None
    if not there:
        raise MediaError(f"{source} does not exist; give a picture, a folder or a video")
    if not 0 <= arguments.crf <= 51:
        raise MediaError(f"--crf is {arguments.crf}, wanted 0 to 51")
    if source.is_dir():
        summary = _run_folder(arguments)
    elif _is_video(source):
        summary = _run_video(arguments)
    else:
        summary = _run_picture(arguments)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    return 0


def _is_video(path: Path) -> bool:
    """Decide by the ending, which also decides what an unreadable file is called in the error."""
    from topcoat.runtime._pictures import PICTURE_SUFFIXES
    from topcoat.runtime._videos import VIDEO_SUFFIXES

    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix in PICTURE_SUFFIXES:
        return False
    raise MediaError(
        f"{path} ends in {suffix or 'nothing'!r}, wanted a picture ({' '.join(PICTURE_SUFFIXES)}),"
        f" a video ({' '.join(VIDEO_SUFFIXES)}) or a folder of pictures"
    )


def _run_picture(arguments: argparse.Namespace) -> dict[str, Any]:
    from topcoat.runtime import _files, _pictures
    from topcoat.runtime._progress import Progress

    source: Path = arguments.input
    picture = _pictures.read_picture(source)
    target = arguments.output
    goal = target / source.name if target.is_dir() else target
    _pictures.check_picture_target(goal, picture)
    with _open_to_run(arguments) as model:
        height, width = picture.frame.shape[:2]
        scale = model.manifest.scale
        _pictures.check_picture_size(goal, height * scale, width * scale)
        # Only now: a bundle that cannot be opened must not leave an empty folder behind.
        target = _files.prepare_output(source, target, force=arguments.force)
        tiles = model.tiles(height, width)
        progress = Progress(tiles, "tiles", quiet=arguments.quiet or arguments.json or tiles == 1)

        def advanced(done: int, total: int) -> None:
            # Not counted on: they begin anew, and are others, where another engine takes over.
            progress.count, progress.total = done - 1, total
            progress.step()

        try:
            styled = _style(model, picture, on_tile=advanced)
        finally:
            progress.clear()
        engine = model.explain().candidate_for(height, width)
        tiles = model.tiles(height, width)
        _pictures.write_picture(target, styled)
        height, width = styled.frame.shape[:2]
        if not (arguments.quiet or arguments.json):
            cut = f"  {tiles} tiles" if tiles > 1 else ""
            print(f"{target}  {width}x{height}{cut}  {_engine(model, engine)}", file=sys.stderr)
        return {
            "output": str(target),
            "width": width,
            "height": height,
            "tiles": tiles,
            **_engine_json(model, engine),
        }


def _open_to_run(arguments: argparse.Namespace) -> Model:
    from topcoat.runtime._textures import check_is_no_texture
    from topcoat.runtime.bundle import read_manifest

    # Before engines race: they would run a texture on a photograph without complaint.
    check_is_no_texture(read_manifest(arguments.bundle), "`topcoat run` takes pictures and videos")
    return _shared.open_model(
        arguments,
        tile=None if arguments.tile == "off" else arguments.tile,
        match_histogram=arguments.match_histogram,
    )


def _style(
    model: Model,
    picture: Any,  # noqa: ANN401 - a _pictures.Picture, imported late
    on_tile: Callable[[int, int], None] | None = None,
) -> Any:  # noqa: ANN401
    import dataclasses

    from topcoat.runtime import _pictures

    alpha = picture.alpha
    given = picture.frame if alpha is None else _pictures.fill_transparent(picture.frame, alpha)
    frame = model.process(given, on_tile=on_tile)
    if alpha is not None:
        alpha = _pictures.resize_alpha(alpha, *frame.shape[:2])
    return dataclasses.replace(picture, frame=frame, alpha=alpha)


def _run_folder(arguments: argparse.Namespace) -> dict[str, Any]:
    from topcoat.runtime import _files, _pictures
    from topcoat.runtime._progress import Progress

    source: Path = arguments.input
    target: Path = arguments.output
    _pictures.require_pillow()
    if target.exists() and not target.is_dir():
        raise MediaError(f"{target} is a file; IN is a folder, so give a folder as OUT")
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise MediaError(
            f"{target} and {source} are the same folder or one lies in the other; give an OUT apart"
            " from IN"
        )
    pictures = list(_pictures.find_pictures(source))
    if not pictures:
        raise MediaError(
            f"{source} holds no picture ({' '.join(_pictures.PICTURE_SUFFIXES)}); give another IN"
        )
    existing = [p for p in pictures if (target / p.relative_to(source)).exists()]
    if existing and not arguments.force:
        raise MediaError(
            f"{target / existing[0].relative_to(source)} and {len(existing) - 1} more of"
            f" {len(pictures)} exist; pass --force to replace them, or give another OUT"
        )
    skipped: list[dict[str, str]] = []
    tiles = 0
    with _open_to_run(arguments) as model:
        scale = model.manifest.scale
        progress = Progress(len(pictures), "pictures", quiet=arguments.quiet or arguments.json)
        try:
            for path in pictures:
                goal = target / path.relative_to(source)
                try:
                    picture = _pictures.read_picture(path)
                    # A JPEG is never transparent, but a file may be another format than its name.
                    _pictures.check_picture_target(goal, picture)
                    height, width = picture.frame.shape[:2]
                    _pictures.check_picture_size(goal, height * scale, width * scale)
                    styled = _style(model, picture)
                    tiles += model.tiles(height, width)
                except FrameError as error:  # larger than the network or the memory takes
                    skipped.append({"file": str(path), "reason": f"{path}: {error}"})
                except MediaError as error:
                    skipped.append({"file": str(path), "reason": str(error)})
                else:
                    # Not inside the try: a full disk ends the run, it does not skip a picture.
                    _files.make_folder(goal.parent)
                    _pictures.write_picture(goal, styled)
                progress.step()
        finally:
            progress.clear()
        done = len(pictures) - len(skipped)
        if not (arguments.quiet or arguments.json):
            print(
                f"{target}  {done} of {len(pictures)} pictures  {progress.rate:.2f} pictures/s"
                f"  {_engine(model)}",
                file=sys.stderr,
            )
        if skipped and not arguments.json:
            print(f"topcoat: skipped {len(skipped)}:", file=sys.stderr)
            for entry in skipped:
                print(f"  {entry['reason']}", file=sys.stderr)
        if not done:
            raise MediaError(f"{source}: none of its {len(pictures)} pictures could be used")
        return {
            "output": str(target),
            "pictures": done,
            "skipped": skipped,
            "tiles": tiles,
            "seconds": round(progress.seconds, 3),
            **_engine_json(model),
        }


def _run_video(arguments: argparse.Namespace) -> dict[str, Any]:
    from topcoat.runtime import _files, _videos
    from topcoat.runtime._progress import Progress

    source: Path = arguments.input
    target: Path = arguments.output
    _videos.require_av()
    _videos.check_video_target(target / source.name if target.is_dir() else target)
    with _open_to_run(arguments) as model:
        target = _files.prepare_output(source, target, force=arguments.force)
        progress = Progress(None, "frames", quiet=arguments.quiet or arguments.json)
        buffer: list[Frame] = []
        tiles = 1
        engine: Candidate | None = None

        def started(total: int | None) -> None:
            progress.total = total

        def process(frame: Frame) -> Frame:
            # One output buffer for the whole video; it is encoded before the next frame comes.
            nonlocal tiles, engine
            styled = model.process(frame, out=buffer[0] if buffer else None)
            height, width = frame.shape[:2]
            tiles = model.tiles(height, width)
            engine = model.explain().candidate_for(height, width)
            buffer[:] = [styled]
            return styled

        try:
            report = _videos.process_video(
                source,
                target,
                process,
                scale=model.manifest.scale,
                crf=arguments.crf,
                started=started,
                advanced=progress.step,
            )
        finally:
            progress.clear()
        if not (arguments.quiet or arguments.json):
            streams = report.audio_streams
            sound = f"{streams} sound stream{'' if streams == 1 else 's'} copied"
            print(
                f"{target}  {report.frames} frames {report.width}x{report.height}  {sound}"
                f"  {progress.rate:.2f} frames/s  {_engine(model, engine)}",
                file=sys.stderr,
            )
        return {
            "output": str(target),
            "frames": report.frames,
            "width": report.width,
            "height": report.height,
            "audio_streams": report.audio_streams,
            "tiles_per_frame": tiles,
            "seconds": round(progress.seconds, 3),
            **_engine_json(model, engine),
        }


def _engine(model: Model, engine: Candidate | None = None) -> str:
    """Name the engine that ran for people; without one, that which was chosen."""
    chosen = engine or model.explain().chosen
    assert chosen is not None
    matched = ", histogram matched" if model.match_histogram else ""
    return f"{chosen.backend} {chosen.compute}{matched}"


def _engine_json(model: Model, engine: Candidate | None = None) -> dict[str, Any]:
    explanation = model.explain()
    chosen = engine or explanation.chosen
    assert chosen is not None
    return {
        "backend": chosen.backend,
        "compute": chosen.compute,
        "verified": chosen.verified,
        "histogram_matched": model.match_histogram,
        "fallbacks": explanation.to_json()["fallbacks"],
    }


# ---------------------------------------------------------------------------------------- texture


def _texture(arguments: argparse.Namespace) -> int:
    import numpy as np

    from topcoat.runtime import _files, _pictures, _textures
    from topcoat.runtime.bundle import read_manifest

    target: Path = arguments.output
    columns, rows = arguments.repeat
    _pictures.require_pillow()
    if not target.is_dir():
        _pictures.check_picture_target(target)
    manifest = read_manifest(arguments.bundle)
    _textures.check_is_texture(manifest)
    if arguments.size is None:
        side = _textures.SIDE
        height, width = _textures.nearest_texture_size(side, side, manifest.size)
    else:
        width, height = arguments.size
        _textures.check_texture_size(height, width, manifest.size)
    _pictures.check_picture_size(target, rows * height, columns * width)
    with _shared.open_model(arguments) as model:
        target = _files.prepare_output(None, target, force=arguments.force)
        frame = np.tile(model.sample(height, width, arguments.seed), (rows, columns, 1))
        engine = model.explain().candidate_for(height, width)
        _pictures.write_picture(target, _pictures.Picture(frame=frame))
        summary = {
            "output": str(target),
            "width": columns * width,
            "height": rows * height,
            "texture_width": width,
            "texture_height": height,
            "columns": columns,
            "rows": rows,
            "seed": arguments.seed,
            **_engine_json(model, engine),
        }
        if arguments.json:
            print(json.dumps(summary, indent=2))
        elif not arguments.quiet:
            times = f", {columns}x{rows} times" if columns * rows > 1 else ""
            print(
                f"{target}  texture {width}x{height}{times}  seed {arguments.seed}"
                f"  {_engine(model, engine)}",
                file=sys.stderr,
            )
    return 0


# --------------------------------------------------------------------------------- info, explain


def _info(arguments: argparse.Namespace) -> int:
    from topcoat.runtime.bundle import TEXTURE, verify_files

    manifest = verify_files(arguments.bundle)
    if arguments.json:
        print(json.dumps(_manifest_json(manifest), indent=2))
        return 0
    size = manifest.size
    if manifest.task == TEXTURE:
        print(f"{manifest.name}: texture, made from noise; repeats without a seam")
        limits = f"multiples of {size.multiple}, {size.min} or more"
    else:
        print(f"{manifest.name}: {manifest.task}, output {manifest.scale}x the input's size")
        limits = f"any, padded to multiples of {size.multiple}" if size.multiple > 1 else "any"
        limits += f", engine takes {size.min} or more" if size.min > 1 else ""
    limits += f", at most {size.max}" if size.max is not None else ""
    limits += "; others are refused" if manifest.task == TEXTURE else ""
    if manifest.description:
        print(f"  about         {manifest.description}")
    total = len(manifest.variants) + len(manifest.files)
    print(f"  frame sizes   {limits}")
    print(f"  tiles         {_tile_figures(manifest)}")
    if manifest.memory_per_pixel is not None:
        megabytes = manifest.memory_per_pixel * 1280 * 720 / 1e6
        print(
            f"  memory        about {manifest.memory_per_pixel} bytes per input pixel:"
            f" {megabytes:.0f} MB for 1280x720"
        )
    made_by = ", ".join(f"{name} {version}" for name, version in manifest.made_by.items())
    print(f"  made by       {made_by or 'not said'}")
    recipe = manifest.checkpoint.get("recipe", "not said")
    step = manifest.checkpoint.get("step")
    print(f"  trained       recipe {recipe}" + (f", {step} steps" if step is not None else ""))
    for variant in manifest.variants:
        print(f"  {variant.file:<18} {variant.precision}, {variant.bytes / 1e6:.2f} MB")
        if (built := variant.engine) is not None:
            sizes = " and ".join(str(profile) for profile in built.profiles)
            print(
                f"    built by {built.library} {built.version} for {', '.join(built.targets)};"
                f" frames of {sizes}"
            )
            if not variant.parity:
                print("    not compared with the network yet: `topcoat verify` does, where it runs")
        for row in variant.parity:
            measured = row.photographs or row.noise
            figures = ", ".join(_figure(key, value) for key, value in measured.items())
            verdict = "passed" if row.passed else "FAILED"
            device = f" on {row.device}" if row.device else ""
            print(f"    {row.backend:<16} {row.compute + device:<5} {verdict}  {figures}")
    print(f"  files         {total} of {total} have the hash that manifest.json says")
    return 0


def _tile_figures(manifest: Manifest) -> str:
    """Say for people whether a bundle can be run in tiles."""
    from topcoat.runtime import _tiles
    from topcoat.runtime.bundle import TEXTURE

    if manifest.task == TEXTURE:
        return "no: the edges of a texture meet; repeat a smaller one instead"
    if manifest.size.halo is None:
        return "no: the network looks at the whole frame, or the bundle does not say how far"
    if not _tiles.can_tile(manifest.size):
        return f"no: context {manifest.size.halo} px is too much for the largest frame size"
    least = _tiles.smallest_tile(manifest.size)
    return f"can be tiled: context {manifest.size.halo} px, tiles of {least} px or more"


def _figure(key: str, value: float) -> str:
    """Say one number of a parity row for people."""
    known = {
        "max_steps": f"off by at most {value:g} of 255",
        "psnr_db": f"{value:.1f} dB",
        "changed": f"{value:.2%} of values differ",
        "within_4_steps": f"{value:.2%} within 4",
    }
    return known.get(key, f"{key} {value:g}")


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    import dataclasses

    from topcoat.runtime.bundle import ParityRow, Variant

    def plain(value: Any) -> Any:  # noqa: ANN401 - any field of a manifest
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            if isinstance(value, ParityRow | Variant):  # as in the file: without what is not said
                unsaid = {key for key, found in fields.items() if found in ({}, None)} - {"opset"}
                fields = {key: found for key, found in fields.items() if key not in unsaid}
            return fields
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if hasattr(value, "items"):
            return {key: plain(item) for key, item in value.items()}
        return str(value) if isinstance(value, Path) else value

    result: dict[str, Any] = plain(manifest)
    return {**result, "hashes_match": True}


def _explain(arguments: argparse.Namespace) -> int:
    failure: BackendError | None = None
    try:
        with _shared.open_model(arguments) as model:
            explanation = model.explain()
    except BackendError as error:
        if error.explanation is None:
            raise
        failure, explanation = error, error.explanation
    print(json.dumps(explanation.to_json(), indent=2) if arguments.json else explanation)
    if failure is not None:
        raise failure
    return 0


# ----------------------------------------------------------------------------------------- models


def _models(arguments: argparse.Namespace) -> int:
    from topcoat.runtime._builtin import MODELS, builtin_models
    from topcoat.runtime.bundle import read_manifest

    rows = []
    for name, folder in builtin_models().items():
        manifest = read_manifest(folder)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        about = manifest.description or ""
        rows.append((name, manifest.task, manifest.scale, size, about, folder))
    if arguments.json:
        keys = ("name", "task", "scale", "bytes", "description", "folder")
        listing = [dict(zip(keys, (*row[:-1], str(row[-1])), strict=True)) for row in rows]
        print(json.dumps(listing, indent=2, ensure_ascii=False))
        return 0
    if not rows:
        raise BundleError(f"{MODELS} holds no model; install topcoat-runtime again")
    wide = max(len(row[0]) for row in rows)
    for name, task, scale, size, about, _ in rows:
        what = task if scale == 1 else f"{task} x{scale}"
        print(f"{name:<{wide}}  {what:<19}  {size / 1e6:5.2f} MB  {about}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
