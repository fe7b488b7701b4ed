"""One builder for both TensorRT libraries: an ONNX model in, an engine and its description out.

The precision lies in the model: networks are strongly typed, and no flag of the builder lowers a
precision. What TensorRT parsed is held against what was asked for, so that an engine which would
silently compute in another type is refused here.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from topcoat.export._errors import EngineBuildError, EngineLibraryError
from topcoat.export.engines._request import KINDS, LIBRARIES, EngineRequest, engine_key
from topcoat.runtime import EngineInfo
from topcoat.runtime.backends import _cuda
from topcoat.runtime.backends.tensorrt import TensorRt
from topcoat.runtime.bundle import this_platform

_WORKER = Path(__file__).with_name("_worker.py")

_DTYPES = {"fp32": "float", "fp16": "half", "bf16": "bf16"}
"""Precision -> TensorRT's name of the type in which a convolution must come out."""

_LEAST_RTX = (1, 7)
"""The first version of TensorRT for RTX whose engines the runtime runs."""

_CONVOLUTIONS = ("convolution", "deconvolution")

_ENVIRONMENT = (
    *("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "CUDA_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),  # the builder must take the GPU that was probed
)
"""What a builder may see of the environment; anything else could only change the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine, and what the manifest says of it."""

    data: bytes
    info: EngineInfo
    kind: str
    precision: str
    model_sha256: str
    """Of the ONNX model that it was built from."""
    keep_fp32: tuple[str, ...] = ()
    """The layers of that model that are float32 in a half-precision one."""
    layers: Sequence[Mapping[str, Any]]
    """What TensorRT parsed: ``kind``, ``dtype`` and ``count`` of its layers."""
    reproducible: bool
    """Whether building it again gives the same bytes; only TensorRT for RTX can promise that."""
    seconds: float
    warnings: Sequence[str] = ()
    reused: bool = False
    """Whether it was taken from an earlier bundle, because its key is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A TensorRT library that is installed, and what it builds for here."""

    engine: str
    version: str
    device: str | None
    """Generation of the GPU that takes part in the build; None for RTX, which needs none."""
    driver: str | None
    """Major version of that GPU's driver."""
    platform: str | None = None
    """The system that its engines are for, e.g. ``linux-x86_64``; None: any, as RTX's are."""
    path: str = ""
    """The folder that it is imported from."""

    def targets(self, request: EngineRequest) -> tuple[str, ...]:
        """Which GPUs an engine of this request is for."""
        if self.device is not None:
            return (self.device,)
        return request.targets or ()


def find_library(engine: str) -> Library:
    """Find out whether engines of this kind can be built here.

    Args:
        engine: ``rtx`` or ``tensorrt``.

    Raises:
        EngineLibraryError: the library is not installed or cannot be loaded, or it needs a GPU and
            there is none; the text says what to do.
    """
    module = LIBRARIES[engine]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EngineLibraryError(
            f"--engine {engine} needs {module.replace('_', '-')}, which is not installed; "
            f"pip install 'topcoat-export[{engine}]'"
        )
    try:
        version = str(importlib.import_module(module).__version__)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # The bindings alone install on machines that cannot fetch the libraries, and raise this.
        lines = str(error).splitlines() or [type(error).__name__]
        raise EngineLibraryError(
            f"--engine {engine}: {module} is installed but cannot be loaded ({lines[0]}); "
            f"install it whole: pip install --force-reinstall 'topcoat-export[{engine}]'"
        ) from None
    package = spec.submodule_search_locations is not None
    path = str(Path(spec.origin).parents[1 if package else 0])
    if engine == "rtx":
        if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_RTX:
            raise EngineLibraryError(
                f"--engine rtx: {module} {version} is installed, wanted at least "
                f"{'.'.join(map(str, _LEAST_RTX))}; pip install --upgrade 'topcoat-export[rtx]'"
            )
        return Library(engine=engine, version=version, device=None, driver=None, path=path)
    found = _cuda.probe()
    if (missing := TensorRt("tensorrt").missing()) is not None or isinstance(found, str):
        raise EngineLibraryError(
            f"--engine tensorrt builds on the GPU that is to run the engine: {missing or found}; "
            "build there, or with --engine rtx, which needs no GPU"
        )
    return Library(
        engine=engine,
        version=version,
        device=found.sm,
        driver=found.driver_family,
        platform=this_platform(),
        path=path,
    )


def key_of(request: EngineRequest, model_sha256: str, library: Library) -> str:
    """The key of the engine that this library would build of this model."""
    return engine_key(
        request,
        model_sha256,
        library.version,
        library.targets(request),
        library.driver,
        library.platform,
    )


def build_engine(
    model: bytes,
    request: EngineRequest,
    library: Library | None = None,
    *,
    keep_fp32: Sequence[str] = (),
    timing_cache: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> BuiltEngine:
    """Build an engine from an ONNX model of the frame contract.

    Args:
        model: serialised; strongly typed in the request's precision.
        request: settled, see :meth:`EngineRequest.settled`.
        library: from :func:`find_library`; looked for if None.
        keep_fp32: the layers of a half-precision model that are float32.
        timing_cache: a file in which ``tensorrt`` keeps how fast its kernels were on this GPU; the
            next build of a similar network is quicker. Made if it is not there. Not for RTX, which
            times nothing at build.
        progress: is told what the builder does.

    Returns:
        The engine. TensorRT for RTX gives the same bytes for the same model and request wherever
        ``reproducible`` is true: on Linux, where address space randomisation may be switched off.

    Raises:
        EngineLibraryError: the library cannot be used here.
        EngineBuildError: TensorRT refuses the model, with every reason that it gives; or it would
            compute in another precision than the request's.
    """
    library = find_library(request.engine) if library is None else library
    if not request.profiles:
        raise ValueError("the request has no profiles; use EngineRequest.settled(network)")
    job = {
        "library": LIBRARIES[request.engine],
        "path": library.path,
        "profiles": [[p.min, p.opt, p.max] for p in request.profiles],
        "targets": None if request.engine == "tensorrt" else library.targets(request),
        "workspace": request.workspace,
        "timing_cache": timing_cache is not None and request.engine == "tensorrt",
        "progress": request.engine == "tensorrt",
        # The other library times kernels, which never come out alike, and wants every core.
        "reproducible": request.engine == "rtx" and sys.platform.startswith("linux"),
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="topcoat-engine-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "model.onnx").write_bytes(model)
        kept = None if timing_cache is None or not job["timing_cache"] else Path(timing_cache)
        if kept is not None and kept.exists():
            (folder / "timing.cache").write_bytes(kept.read_bytes())
        report = _run_worker(folder, request, progress)
        if report["errors"]:
            raise EngineBuildError(_refusal(request, report))
        _check_types(request, report["network"], len(keep_fp32))
        data = (folder / "engine").read_bytes()
        if kept is not None:
            _keep(folder / "timing.cache", kept)
    model_sha256 = sha256(model).hexdigest()
    return BuiltEngine(
        data=data,
        info=EngineInfo(
            library=LIBRARIES[request.engine],
            version=library.version,
            targets=library.targets(request),
            driver=library.driver,
            platform=library.platform,
            profiles=request.profiles,
            key=key_of(request, model_sha256, library),
        ),
        kind=KINDS[request.engine],
        precision=request.precision,
        model_sha256=model_sha256,
        keep_fp32=tuple(keep_fp32),
        layers=report["network"]["layers"],
        reproducible=report["fixed_addresses"],
        seconds=time.perf_counter() - started,
        warnings=report["warnings"],
    )


def _run_worker(
    folder: Path, request: EngineRequest, progress: Callable[[str], None]
) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with (
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            told = time.monotonic()
            for line in process.stdout:
                if time.monotonic() - told > 2:  # a long build counts thousands of steps
                    told = time.monotonic()
                    progress(line.strip())
            code = process.wait()
        except BaseException:  # Ctrl-C must not leave a builder behind
            process.kill()
            raise
    report = folder / "report.json"
    if code or not report.exists():
        said = (folder / "stderr").read_text(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise EngineBuildError(
            f"the {request.engine} builder {how} ({said[-1] if said else 'without a word'}); "
            "try a smaller profile or another version of the library"
        )
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return content


def _refusal(request: EngineRequest, report: Mapping[str, Any]) -> str:
    errors = [" ".join(str(error).split()) for error in report["errors"]]
    count = f"{len(errors)} error{'s' * (len(errors) > 1)}"
    does = {
        "start": "start",
        "parse": "parse the model",
        "configure": "take the settings",
        "build": "build it",
    }
    return (
        f"{LIBRARIES[request.engine]} cannot {does.get(report.get('stage', ''), 'build it')} in "
        f"{request.precision}, {count}: {'; '.join(errors)}; leave out --engine, or export with "
        "other settings"
    )


def _check_types(request: EngineRequest, network: Mapping[str, Any], islands: int) -> None:
    """Refuse what is not the frame contract, or not the precision that was asked for.

    Args:
        request: what was asked for.
        network: what TensorRT parsed.
        islands: how many layers of a half-precision model may compute in float32.
    """
    wrong = [
        f"{role} {port['name']} is {port['dtype']}"
        for role in ("inputs", "outputs")
        for port in network[role]
        if port["dtype"] != "uint8"
    ]
    if len(network["inputs"]) != 1 or len(network["outputs"]) != 1:
        wrong.append(f"{len(network['inputs'])} inputs, {len(network['outputs'])} outputs")
    wanted = _DTYPES.get(request.precision)
    if wanted is not None:
        others = [
            layer
            for layer in network["layers"]
            if layer["kind"] in _CONVOLUTIONS and layer["dtype"] != wanted
        ]
        kept = sum(layer["count"] for layer in others if layer["dtype"] == "float")
        if kept != sum(layer["count"] for layer in others) or kept > islands:
            found = ", ".join(sorted({str(layer["dtype"]) for layer in others}))
            wrong.append(f"convolutions compute in {found}, not in {wanted}")
    if request.precision == "int8" and not any(
        layer["kind"] == "dequantize" for layer in network["layers"]
    ):
        wrong.append("nothing in it is quantised")
    if wrong:
        raise EngineBuildError(
            f"TensorRT read another model than was asked for ({'; '.join(wrong)}); "
            "export the model again"
        )


def _keep(made: Path, place: Path) -> None:
    """Put the timing cache where the next build looks for it, whole or not at all."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(made.read_bytes())
        temporary.replace(place)
    except OSError as error:
        raise EngineBuildError(
            f"the timing cache {place} cannot be written ({error.strerror}); give another place "
            "with --timing-cache"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
