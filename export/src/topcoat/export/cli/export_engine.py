"""``export-engine``: a checkpoint in, a bundle of engines out, each compared with the network."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topcoat.export.bundle_writer import Exported
    from topcoat.export.engines import EngineRequest
    from topcoat.export.precision import Audit, PrecisionPlan
    from topcoat.export.sources import Source

PROG = "export-engine"

_EPILOG = """\
examples:
  export-engine candy.pt
      write candy.topcoat: a float32 model for CPUs, compared with the network on photographs and
      on frames that are hard for engines
  export-engine candy.pt --fp16
      add a half-precision model for GPUs; compared as well
  export-engine sharp-x4.pt
      a super-resolution network; besides, it is proved how far its pixels look, for tiles
  export-engine mosaic.pt
      a texture; besides, it is proved that what it makes of noise repeats without a seam
  export-engine candy.pt --precision auto --audit
      measure which precision the network bears, layer by layer; half precision if it does
  export-engine sharp-x4.pt --precision int8 --calibration photos/
      add an 8-bit model for processors, if the pictures stay the same
  export-engine RealESRGAN_x4plus.pth        export-engine style.onnx --range 255
      a model from elsewhere; docs/models.md says which
  export-engine candy.pt --fp16 --engine rtx
      add a TensorRT engine for the GPUs that games run on (RTX 30 to 50), built without a GPU;
      on the machine that has one, `topcoat verify candy.topcoat` compares it
  export-engine candy.pt --fp16 --engine rtx --target sm89 --profile 1920x1080
      the same for RTX 40 alone and for one frame size, which is faster than a range of sizes
  export-engine candy.pt --fp16 --engine tensorrt --profile 256x256:1920x1080:3840x2160
      an engine for the NVIDIA GPU of this machine, data-centre GPUs too; smallest, best, largest
  export-engine candy.pt -o shipped/candy-v2.topcoat --photos my_photos/ --force
      another place; compare on your photographs too; replace the bundle that is there

what is compared:
  PyTorch in float32 against every engine that the runtime may choose, in 8-bit steps: on
  photographs and hard frames, or, for a texture, on noise of several seeds and sizes. An engine
  that misses its gates is not used; if ONNX Runtime misses them, no bundle is written, only
  NAME.parity.json, and the exit code is 1. An engine for a GPU that this machine lacks is built,
  not run; the runtime uses it once `topcoat verify` has passed where it is to run.

a bundle that is there already:
  of the same checkpoint: what you ask for is added, what it holds stays, and an engine that would
  come out the same is not built again. Of another one: --force replaces it.

afterwards:
  topcoat run photo.jpg styled.jpg --model candy.topcoat
  topcoat run small.png large.png --model sharp-x4.topcoat
  topcoat texture mosaic.topcoat wall.png --size 512x512 --seed 1
  bench-latency candy.topcoat
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    top = argparse.ArgumentParser(
        prog=PROG,
        description="Turn a checkpoint of train-style, train-sr or train-texture, or a model from "
        "elsewhere, into a bundle that topcoat.runtime runs, and prove that its engines equal the "
        "network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "checkpoint",
        type=Path,
        metavar="MODEL",
        help="what train-style, train-sr or train-texture wrote; or a model from elsewhere: a "
        "style of pytorch/examples, what spandrel knows, an ONNX file",
    )
    precision = top.add_argument_group("precision")
    either = precision.add_mutually_exclusive_group()
    either.add_argument(
        "--fp16",
        action="store_true",
        help="add a half-precision model for GPUs, as it is: half the size, not faster on CPUs",
    )
    either.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16", "int8"),
        help="measure first what the network bears, and say so: auto (fp16, else bf16), fp16 or "
        "bf16, with the few layers that need it left in fp32; int8, by calibration. fp32 is always "
        "there",
    )
    precision.add_argument(
        "--audit",
        action="store_true",
        help="print what was measured of every layer, and keep it in the bundle as precision.json",
    )
    precision.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="int8: photographs on which its scales are found (default: the bundled ones)",
    )
    foreign = top.add_argument_group("ONNX files from elsewhere")
    foreign.add_argument(
        "--range",
        type=int,
        choices=(1, 255),
        help="what white is at the model's input (default: as running it shows)",
    )
    foreign.add_argument(
        "--channel-order", choices=("rgb", "bgr"), help="of its colours (default: rgb)"
    )
    engines = top.add_argument_group("engines for NVIDIA GPUs")
    engines.add_argument(
        "--engine",
        action="append",
        choices=("rtx", "tensorrt"),
        help="build an engine: rtx (TensorRT for RTX; no GPU needed, several generations at once) "
        "or tensorrt (on the GPU that is to run it); may be given twice",
    )
    engines.add_argument(
        "--target",
        metavar="SM[,SM]",
        help="rtx: GPU generations, of sm75 (RTX 20, alone), sm80, sm86 (RTX 30), sm89 (RTX 40), "
        "sm120 (RTX 50), sm121 (GB10) (default: sm80,sm86,sm89,sm120)",
    )
    engines.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="SIZES",
        help="frame sizes of an engine: WxH, or MIN:OPT:MAX; may be given several times (default: "
        "the network's smallest to a 4K result, best for 1080p)",
    )
    engines.add_argument(
        "--workspace",
        type=int,
        metavar="MiB",
        help="most device memory for the scratch space of a layer (default: no limit)",
    )
    engines.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="tensorrt: keep kernel timings there, so that the next build is quicker",
    )
    top.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the bundle's folder (default: NAME.topcoat beside the checkpoint)",
    )
    top.add_argument(
        "--name", help="what the bundle is called (default: from DIR, else from MODEL)"
    )
    top.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="compare on these photographs too (at most 16, reduced to 1024 pixels; not for a "
        "texture)",
    )
    top.add_argument(
        "--force",
        action="store_true",
        help="make everything anew and replace the bundle that is at DIR; only ever a bundle",
    )
    top.add_argument(
        "--json", action="store_true", help="print the outcome as JSON; progress goes to stderr"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    # Everything heavy (torch takes seconds) comes after the arguments were understood.
    import topcoat.export._errors as ours
    import topcoat.runtime
    import topcoat.train

    try:
        exported = _export(args)
        if args.json:
            print(json.dumps(outcome(exported), indent=1, ensure_ascii=False, allow_nan=False))
            sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone()
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", 130)
    except (ours.GraphError, topcoat.runtime.TopcoatError) as error:
        return _say(str(error), 1)
    except (ours.TopcoatError, topcoat.train.TopcoatError) as error:
        return _say(str(error), 2)
    if not exported:
        return _say(failure_line(exported), 1)
    return 0


def _export(args: argparse.Namespace) -> "Exported":
    from topcoat.export.bundle_writer import checked_name, export_bundle
    from topcoat.export.sources import open_source

    out = sys.stderr if args.json else sys.stdout
    started = time.perf_counter()

    def progress(what: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {what}", file=out, flush=True)

    source = open_source(args.checkpoint, value_range=args.range, channel_order=args.channel_order)
    default = args.output.absolute().name if args.output is not None else args.checkpoint.stem
    name = checked_name(args.name if args.name is not None else default.removesuffix(".topcoat"))
    output = args.output
    if output is None:
        output = args.checkpoint.absolute().parent / f"{name}.topcoat"
    engines = _engines(args)  # before minutes of measuring
    plan, audit = _planned(args, source, progress)
    precision = "int8" if plan.int8 else plan.precisions[-1]
    exported = export_bundle(
        source,
        output,
        name=name,
        plan=plan,
        audit=audit,
        calibration=args.calibration,
        engines=[replace(engine, precision=precision) for engine in engines],
        timing_cache=args.timing_cache,
        photos=args.photos,
        force=args.force,
        progress=progress,
    )
    progress("done")
    print(report_text(exported), file=out)
    return exported


def _planned(
    args: argparse.Namespace, source: "Source", progress: Callable[[str], None]
) -> "tuple[PrecisionPlan, Audit | None]":
    """Decide which models to make: measured where a precision was asked for, else as they are."""
    from topcoat.export.precision import PrecisionError, PrecisionPlan, audit, plan_precisions

    if args.calibration is not None and args.precision != "int8":
        raise PrecisionError(
            "--calibration is for int8, which was not asked for; add --precision int8"
        )
    as_it_is = PrecisionPlan(precisions=("fp32", "fp16") if args.fp16 else ("fp32",))
    asked = args.precision
    if not (args.audit or asked in ("auto", "fp16", "bf16")):
        return PrecisionPlan(
            precisions=("fp32",), int8=asked == "int8"
        ) if asked else as_it_is, None
    if not source.in_torch:
        raise PrecisionError(
            "layers are measured in PyTorch, and an ONNX file has none; leave out --precision and "
            "--audit, or give the weights that the file was made from"
        )
    found = audit(source.network, each_layer=args.audit, progress=progress)
    if args.audit:
        progress("every layer:")
        print(found, file=sys.stderr if args.json else sys.stdout, flush=True)
    if asked is None:
        return as_it_is, found
    plan = plan_precisions(asked, found)
    for reason in plan.reasons:
        progress(reason)
    if "bf16" in plan.precisions and args.engine is None:
        progress("bf16 is for engines: OpenVINO makes its own of the fp32 model; see --engine")
    return plan, found


def _engines(args: argparse.Namespace) -> "list[EngineRequest]":
    from topcoat.export._errors import EngineRequestError
    from topcoat.export.engines import EngineRequest, parse_profile

    if args.engine is None:
        for option in ("target", "profile", "workspace", "timing_cache"):
            if getattr(args, option) not in (None, []):
                raise EngineRequestError(
                    f"--{option.replace('_', '-')} is for an engine, and none was asked for; add "
                    "--engine rtx or --engine tensorrt"
                )
        return []
    if args.target is not None and "rtx" not in args.engine:
        raise EngineRequestError(
            "--target is for --engine rtx; a tensorrt engine is built for the GPU of this machine"
        )
    if args.timing_cache is not None and "tensorrt" not in args.engine:
        raise EngineRequestError(
            "--timing-cache is for --engine tensorrt; TensorRT for RTX times nothing when it builds"
        )
    targets = None
    if args.target is not None:
        targets = tuple(target.strip() for target in args.target.lower().split(","))
    return [
        EngineRequest(
            engine=engine,
            profiles=tuple(parse_profile(text) for text in args.profile),
            targets=targets if engine == "rtx" else None,
            workspace=None if args.workspace is None else args.workspace << 20,
        )
        for engine in dict.fromkeys(args.engine)
    ]


def report_text(exported: "Exported") -> str:
    """The parity table, notes on engines that will not be used, and what to run next."""
    from topcoat.export.card import task_words
    from topcoat.runtime.parity import parity_table, reasons_not_run

    rows = () if exported.report is None else exported.report.rows
    measured = [row for row in rows if row.status != "not run"]
    lines = ["", *parity_table(measured), ""] if rows else []
    for row in rows:
        if row.status == "failed" and not row.engine.required:
            missed = "; ".join(row.failures)
            lines.append(f"will not be used: {row.engine}: {missed}")
    lines += [f"not run here, so not used yet: {reason}" for reason in reasons_not_run(rows)]
    if exported.bundle is not None:
        place = _short(exported.bundle)
        if exported.task == "texture":
            command = f"topcoat texture {place} texture.png"
        else:
            files = "photo.jpg styled.jpg" if exported.scale == 1 else "small.png large.png"
            command = f"topcoat run {files} --model {place}"
        unproved = any(row.status == "not run" for row in rows)
        verify = [f"  topcoat verify {place}   on the machine that is to run what this one cannot"]
        lines += [
            f"bundle: {place} ({task_words(exported.task, exported.scale)})",
            "next:",
            *(verify if unproved and exported.engines else []),
            f"  {command}",
            f"  bench-latency {place}",
            *(verify if unproved and not exported.engines else []),
        ]
    return "\n".join(lines)


def failure_line(exported: "Exported") -> str:
    """One line for an export that parity stopped."""
    assert exported.report is not None  # a bundle that stayed as it is cannot have failed
    missed = "; ".join(
        f"{row.engine}: {', '.join(row.failures) or row.reason}"
        for row in exported.report.rows
        if row.engine.required and not row
    )
    return (
        f"{exported.name} differs from its network ({missed}); nothing was written but "
        f"{_short(exported.report_file)}: see docs/export.md, section 'When parity fails'"
    )


def outcome(exported: "Exported") -> dict[str, Any]:
    """What ``--json`` prints: parity.json without the single frames, and where things are."""
    report = {} if exported.report is None else exported.report.to_json()
    for row in report.get("rows", ()):
        del row["frames"]
    return {
        "name": exported.name,
        "task": exported.task,
        "scale": exported.scale,
        "bundle": None if exported.bundle is None else str(exported.bundle),
        "report": str(exported.report_file),
        "changed": exported.report is not None,
        "engines": [
            {
                "kind": engine.kind,
                "precision": engine.precision,
                "targets": list(engine.info.targets),
                "profiles": [str(profile) for profile in engine.info.profiles],
                "version": engine.info.version,
                "key": engine.info.key,
                "bytes": len(engine.data),
                "reused": engine.reused,
                "reproducible": engine.reproducible,
            }
            for engine in exported.engines
        ],
        **report,
    }


def _short(path: Path) -> str:
    """The path as a person in this folder would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def reader_gone() -> int:
    """Leave quietly when nobody reads our output any more, as ``| head`` does."""
    # Python flushes standard output once more at the end, and would complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _say(line: str, code: int) -> int:
    print(f"{PROG}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
