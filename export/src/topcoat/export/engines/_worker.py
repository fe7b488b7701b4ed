"""Build one TensorRT engine, in a process of its own; run by ``builder.py``, never imported.

Its own process, because a builder that crashes must not take the export with it, because what it
allocates is given back, and because TensorRT for RTX orders its work by the addresses of what it
allocates: with address space randomisation switched off, one thread at a time, and nothing else in
the process, the same model gives the same bytes. For that reason only the standard library and
TensorRT are imported here.

It works in its current folder: ``job.json`` and ``model.onnx`` in, ``engine`` and ``report.json``
out. Lines on standard output are progress. The exit code is 0 also when TensorRT refuses the model:
``report.json`` then holds ``errors``.
"""

import ctypes
import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_NO_RANDOMISATION = 0x0040000  # ADDR_NO_RANDOMIZE of <sys/personality.h>
_QUERY = 0xFFFFFFFF


def main() -> None:
    """Do the job that lies in the current folder."""
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    fixed = False
    if job["reproducible"]:
        fixed = _fix_addresses()
        # Two threads that allocate at once do so in another order every time.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    report = _build(job)
    report["fixed_addresses"] = fixed
    Path("report.json").write_text(json.dumps(report), encoding="utf-8")


def _fix_addresses() -> bool:
    """Start this program again without address space randomisation; False where that is refused."""
    personality = ctypes.CDLL(None).personality
    personality.argtypes = (ctypes.c_ulong,)
    current = personality(_QUERY)
    if current >= 0 and current & _NO_RANDOMISATION:
        return True
    # Some containers forbid the call; some allow it without effect, hence the look afterwards.
    if current < 0 or personality(current | _NO_RANDOMISATION) < 0:
        return False
    if personality(_QUERY) & _NO_RANDOMISATION:
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv])
    return False


def _build(job: dict[str, Any]) -> dict[str, Any]:
    if (
        job["path"] not in sys.path
    ):  # where it is installed, if this isolated process looks elsewhere
        sys.path.append(job["path"])
    trt: Any = importlib.import_module(job["library"])

    class Collector(trt.ILogger):  # type: ignore[misc]  # the module is only known at run time
        """Keep what TensorRT says: an error without its log line is a riddle."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    logger = Collector()
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # the binding raises TypeError where the library gives nothing back
        return {"errors": logger.errors or [f"no builder could be made: {error}"], "stage": "start"}
    # Version 11 is always strongly typed and ignores the flag; 10 needs it.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path("model.onnx").read_bytes()):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        return {
            "errors": [_parser_error(error) for error in found] or logger.errors,
            "stage": "parse",
        }
    report = {"network": _inspected(network)}

    config = _configured(trt, builder, job)
    if job["targets"] is not None:
        config.num_compute_capabilities = len(job["targets"])
        for index, target in enumerate(job["targets"]):
            capability = getattr(trt.ComputeCapability, target.upper())
            if not config.set_compute_capability(capability, index):
                return {"errors": [f"the target {target} was refused"], "stage": "configure"}
    name = network.get_input(0).name
    for sizes in job["profiles"]:
        profile = builder.create_optimization_profile()
        profile.set_shape(name, *((1, *size, 3) for size in sizes))
        if config.add_optimization_profile(profile) < 0:
            return {"errors": logger.errors or ["a profile was refused"], "stage": "configure"}
    timing = None
    if job["timing_cache"]:
        cache = Path("timing.cache")
        timing = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        if not config.set_timing_cache(timing, ignore_mismatch=False):
            logger.warnings.append("the timing cache is of another GPU or version; it starts anew")
            timing = config.create_timing_cache(b"")
            config.set_timing_cache(timing, ignore_mismatch=False)
    if job["progress"]:
        config.progress_monitor = _monitor(trt)

    built = builder.build_serialized_network(network, config)
    if built is None:
        return {"errors": logger.errors or ["no engine came out"], "stage": "build", **report}
    Path("engine").write_bytes(bytes(built))
    if timing is not None and (kept := config.get_timing_cache()) is not None:
        Path("timing.cache").write_bytes(bytes(kept.serialize()))
    return {**report, "errors": [], "warnings": logger.warnings}


def _configured(trt: Any, builder: Any, job: dict[str, Any]) -> Any:  # noqa: ANN401
    """What holds for every engine: an IBuilderConfig."""
    config = builder.create_builder_config()
    # On by default, it would cut the operands of fp32 convolutions to 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if job["library"] == "tensorrt_rtx":
        # The runtime hands over scratch memory: an engine that allocates its own while it runs
        # cannot be captured into a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"])
    return config


def _parser_error(error: Any) -> str:  # noqa: ANN401 - a ParserError
    node = error.node_name() or f"node {error.node()}"
    return f"{node} ({error.node_operator() or 'graph'}): {' '.join(error.desc().split())}"


def _inspected(network: Any) -> dict[str, Any]:  # noqa: ANN401 - an INetworkDefinition
    """What was parsed: ports, and how many layers of which kind compute in which type."""
    layers: Counter[tuple[str, str]] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            layers[layer.type.name.lower(), layer.get_output_type(0).name.lower()] += 1

    def port(tensor: Any) -> dict[str, Any]:  # noqa: ANN401 - an ITensor
        return {
            "name": tensor.name,
            "dtype": tensor.dtype.name.lower(),
            "shape": [int(side) for side in tensor.shape],
        }

    return {
        "inputs": [port(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [port(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": [
            {"kind": kind, "dtype": dtype, "count": count}
            for (kind, dtype), count in sorted(layers.items())
        ],
    }


def _monitor(trt: Any) -> Any:  # noqa: ANN401 - the module, an IProgressMonitor
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tell of every phase and step on standard output."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            print(f"{phase}: {step + 1} of {self.steps.get(phase, '?')}", flush=True)
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


if __name__ == "__main__":
    main()
