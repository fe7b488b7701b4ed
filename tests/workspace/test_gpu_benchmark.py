"""The benchmark of engines on a GPU, as far as it goes without one: count, measure, report."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.fake_cuda import LAUNCH_FAILED, FakeCuda
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from topcoat.export.sources import open_source
from topcoat.runtime import BackendError, DeviceLostError, read_manifest, verify_files
from topcoat.runtime import open as open_bundle
from topcoat.runtime.backends._cuda import Device, probe
from topcoat.runtime.backends.tensorrt import TensorRt

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
DATA = ROOT / "tests" / "runtime" / "data"
Import = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def modules() -> Iterator[Import]:
    """Import a module of the benchmark; they find each other as where it runs."""
    if not (FOLDER / "gpu.py").exists():
        pytest.skip("the benchmarks are not part of this checkout")
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in [name for name in sys.modules if name == "gpu" or name.startswith("gpu_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def floors(modules: Import) -> ModuleType:
    return modules("gpu_floors")


Node = tuple[str, Sequence[str], str, dict[str, Any]]


def model_of(
    nodes: Sequence[Node],
    weights: Mapping[str, tuple[int, ...]],
    *,
    frame: Sequence[str | int | None] = (1, "height", "width", 4),
    dtype: int = TensorProto.FLOAT16,
) -> bytes:
    """A graph from ``frame`` to the last node's output, with weights of ones."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    stored = [
        numpy_helper.from_array(np.ones(shape, kind if name[0] != "_" else np.float32), name)
        for name, shape in weights.items()
    ]
    made = [helper.make_node(op, list(ins), [out], name=out, **how) for op, ins, out, how in nodes]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("frame", dtype, frame)],
        [helper.make_tensor_value_info(nodes[-1][2], dtype, None)],
        stored,
    )
    opset = [helper.make_opsetid("", 20)]
    model: bytes = helper.make_model(graph, opset_imports=opset).SerializeToString()
    return model


def planes(*, then: Sequence[Node]) -> list[Node]:
    """Nodes behind the transpose from (N, H, W, C), which is what frames are."""
    return [("Transpose", ["frame"], "planes", {"perm": [0, 3, 1, 2]}), *then]


PAD = {"pads": [1, 1, 1, 1]}


class TestCounting:
    def test_a_convolution_costs_its_taps_at_every_output(self, floors: ModuleType) -> None:
        nodes = planes(then=[("Conv", ["planes", "w"], "made", PAD)])
        work = floors.work_of(model_of(nodes, {"w": (16, 4, 3, 3)}), 10, 20)
        assert work.macs == {"fp16": 10 * 20 * 16 * 4 * 9}
        pixel = 10 * 20 * 2
        weights = 16 * 4 * 9 * 2
        assert work.weight_bytes == weights
        assert work.fused_bytes == weights + pixel * 4 + pixel * 16
        # The transpose by itself would read and write the frame once more.
        assert work.unfused_bytes == work.fused_bytes + 2 * pixel * 4

    @pytest.mark.parametrize(
        ("operator", "weight", "how", "macs"),
        [
            ("Conv", (16, 4, 3, 3), {**PAD, "strides": [2, 2]}, 5 * 10 * 16 * 4 * 9),
            ("Conv", (4, 1, 3, 3), {**PAD, "group": 4}, 10 * 20 * 4 * 9),
            ("Conv", (8, 2, 1, 1), {"group": 2}, 10 * 20 * 8 * 2),
            # Every input meets every weight once, whatever the stride.
            ("ConvTranspose", (4, 8, 2, 2), {"strides": [2, 2]}, 10 * 20 * 4 * 8 * 4),
        ],
        ids=["strided", "depthwise", "grouped", "transposed"],
    )
    def test_strides_and_groups_count(
        self,
        floors: ModuleType,
        operator: str,
        weight: tuple[int, ...],
        how: dict[str, Any],
        macs: int,
    ) -> None:
        model = model_of(planes(then=[(operator, ["planes", "w"], "made", how)]), {"w": weight})
        assert floors.work_of(model, 10, 20).total_macs == macs

    def test_a_matrix_product_costs_its_depth_at_every_output(self, floors: ModuleType) -> None:
        work = floors.work_of(
            model_of([("MatMul", ["frame", "w"], "made", {})], {"w": (4, 6)}), 5, 7
        )
        assert work.total_macs == 5 * 7 * 6 * 4

    def test_what_stands_between_two_convolutions_is_free_when_fused(
        self, floors: ModuleType
    ) -> None:
        norm = {"epsilon": 1e-5}
        nodes = planes(
            then=[
                ("Conv", ["planes", "a"], "first", PAD),
                ("InstanceNormalization", ["first", "s", "b"], "normed", norm),
                ("Relu", ["normed"], "relu", {}),
                ("Conv", ["relu", "c"], "second", PAD),
            ]
        )
        weights = {"a": (8, 4, 3, 3), "s": (8,), "b": (8,), "c": (4, 8, 3, 3)}
        work = floors.work_of(model_of(nodes, weights), 10, 20)
        pixel = 10 * 20 * 2
        stored = 2 * (8 * 4 * 9 * 2 + 16)
        # frame in, 8 channels out and in again, 4 channels out
        assert work.fused_bytes == stored + pixel * (4 + 8 + 8 + 4)
        transpose, norm_and_relu = 2 * 4, 2 * 2 * 8
        assert work.unfused_bytes == work.fused_bytes + pixel * (transpose + norm_and_relu)

    def test_an_enlarged_tensor_is_read_at_its_small_size(self, floors: ModuleType) -> None:
        nodes = planes(
            then=[
                ("Conv", ["planes", "a"], "first", PAD),
                ("Resize", ["first", "", "_scales"], "large", {"mode": "nearest"}),
                ("Conv", ["large", "c"], "second", PAD),
            ]
        )
        weights = {"a": (8, 4, 3, 3), "c": (4, 8, 3, 3)}
        model = onnx.load_from_string(model_of(nodes, weights))
        scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "_scales")
        model.graph.initializer.append(scales)
        work = floors.work_of(model.SerializeToString(), 10, 20)
        pixel = 10 * 20 * 2
        assert work.macs == {"fp16": (1 + 4) * 10 * 20 * 8 * 4 * 9}
        small, large = 4 + 8 + 8, 4 * 4
        assert work.fused_bytes == 16 + 2 * 8 * 4 * 9 * 2 + pixel * (small + large)

    def test_a_residual_sum_reads_what_it_adds_and_is_written_once(
        self, floors: ModuleType
    ) -> None:
        nodes = planes(
            then=[
                ("Conv", ["planes", "a"], "first", PAD),
                ("Conv", ["first", "c"], "second", PAD),
                ("Add", ["first", "second"], "sum", {}),
                ("Conv", ["sum", "d"], "third", PAD),
            ]
        )
        weights = {"a": (8, 4, 3, 3), "c": (8, 8, 3, 3), "d": (4, 8, 3, 3)}
        work = floors.work_of(model_of(nodes, weights), 10, 20)
        stored = sum(int(np.prod(shape)) for shape in weights.values()) * 2
        # 4 in, 8 out | 8 in (the convolution's input is also what is added), 8 out | 8 in, 4 out
        assert work.fused_bytes == stored + 10 * 20 * 2 * (4 + 8 + 8 + 8 + 8 + 4)

    def test_a_frame_of_bytes_is_read_as_bytes(self, floors: ModuleType) -> None:
        nodes: list[Node] = [
            ("Cast", ["frame"], "cast", {"to": TensorProto.FLOAT}),
            ("Transpose", ["cast"], "planes", {"perm": [0, 3, 1, 2]}),
            ("Conv", ["planes", "_w"], "made", {}),
            ("Cast", ["made"], "bytes", {"to": TensorProto.UINT8}),
        ]
        model = model_of(
            nodes, {"_w": (5, 3, 1, 1)}, frame=(1, "h", "w", 3), dtype=TensorProto.UINT8
        )
        work = floors.work_of(model, 4, 6)
        assert work.macs == {"fp32": 4 * 6 * 15}
        assert work.fused_bytes == 15 * 4 + 4 * 6 * (3 + 5)

    def test_half_precision_halves_the_bytes_of_a_network_and_not_its_sums(
        self, floors: ModuleType
    ) -> None:
        models = [
            (DATA / "blocks.topcoat" / f"model.{p}.onnx").read_bytes() for p in ("fp32", "fp16")
        ]
        fp32, fp16 = (floors.work_of(model, 64, 96) for model in models)
        assert fp32.total_macs == fp16.total_macs
        assert fp16.fused_bytes <= fp32.fused_bytes

    def test_a_size_that_the_network_does_not_take_is_refused(self, floors: ModuleType) -> None:
        nodes = planes(
            then=[
                ("Conv", ["planes", "w"], "made", {**PAD, "strides": [2, 2]}),
                ("DepthToSpace", ["made"], "large", {"blocksize": 2}),
                ("Add", ["planes", "large"], "sum", {}),
            ]
        )
        model = model_of(nodes, {"w": (16, 4, 3, 3)})
        assert floors.work_of(model, 6, 8).total_macs
        with pytest.raises(floors.FloorError, match=r"does not take frames of 7x5"):
            floors.work_of(model, 5, 7)

    def test_what_is_no_model_is_refused(self, floors: ModuleType) -> None:
        with pytest.raises(floors.FloorError, match="not ONNX"):
            floors.work_of(b"no model", 8, 8)


class TestFloors:
    def test_the_larger_of_both_floors_counts(self, floors: ModuleType) -> None:
        work = floors.Work(
            macs={"fp16": 10**12, "fp32": 10**10},
            fused_bytes=10**9,
            unfused_bytes=3 * 10**9,
            weight_bytes=0,
        )
        peaks = floors.Peaks(flops={"fp16": 1e15, "fp32": 1e13}, bandwidth=4e12, source="a test")
        floor = floors.floor_of(work, peaks)
        assert floor.arithmetic_ms == pytest.approx(2 + 2)
        assert floor.memory_ms == pytest.approx(0.25)
        assert floor.unfused_memory_ms == pytest.approx(0.75)
        assert (floor.larger_ms, floor.bound) == (floor.arithmetic_ms, "arithmetic")
        slow = floors.Peaks(flops=peaks.flops, bandwidth=1e10, source="a test")
        assert floors.floor_of(work, slow).bound == "memory"

    def test_a_precision_without_a_peak_is_refused(self, floors: ModuleType) -> None:
        work = floors.Work(macs={"int8": 1}, fused_bytes=1, unfused_bytes=1, weight_bytes=0)
        with pytest.raises(floors.FloorError, match="no peak is known for int8"):
            floors.floor_of(work, floors.known_peaks("NVIDIA H200"))

    @pytest.mark.parametrize(
        "name", ["NVIDIA H200", "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"]
    )
    def test_drivers_names_are_found_in_the_table(self, floors: ModuleType, name: str) -> None:
        assert floors.known_peaks(name).source.split(" of the ")[1] in name.replace("-", " ")

    @pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "Fake RTX", "RTX 40"])
    def test_another_card_is_not_taken_for_one_that_is_known(
        self, floors: ModuleType, name: str
    ) -> None:
        with pytest.raises(floors.FloorError, match="--tflops"):
            floors.known_peaks(name)

    def test_peaks_and_work_come_back_from_json(self, floors: ModuleType) -> None:
        peaks = floors.known_peaks("L4")
        again = floors.Peaks.from_json(json.loads(json.dumps(peaks.to_json())))
        assert again.flops == pytest.approx(peaks.flops)
        assert again.bandwidth == pytest.approx(peaks.bandwidth)
        work = floors.work_of((DATA / "local4.topcoat" / "model.fp32.onnx").read_bytes(), 32, 32)
        assert floors.Work.from_json(work.to_json()).to_json() == work.to_json()


def run_gpu(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


class TestCommandLine:
    def test_help_loads_nothing_heavy(self, modules: Import) -> None:
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['gpu.py', '--help']; sys.path.insert(0, {str(FOLDER)!r})\n"
            "try:\n"
            f"    runpy.run_path({str(FOLDER / 'gpu.py')!r}, run_name='__main__')\n"
            "except SystemExit as end:\n"
            "    heavy = {'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
            "    print(end.code, sorted(heavy))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.endswith("0 []\n")
        assert "--prepare" in out.stdout

    @pytest.mark.skipif(not isinstance(probe(), str), reason="this machine has a GPU")
    def test_without_a_gpu_it_says_so_in_one_line(self, modules: Import, tmp_path: Path) -> None:
        done = run_gpu("--json", tmp_path / "gpu.json")
        assert done.returncode == 2
        assert done.stderr.startswith("gpu: ")
        assert len(done.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--sizes", "8K"], "--sizes names 8K; choose from"),
            (["--minutes", "0"], "--minutes is 0; give a number above 0"),
            (["--pack", "/nowhere"], "--pack /nowhere is not a folder"),
            (["--floors", "/nowhere", "--gpu", "L4"], "--floors /nowhere does not exist"),
            (["--floors", "/nowhere"], "--floors needs --gpu NAME, or --tflops"),
            (["--floors", str(DATA / "blocks.topcoat"), "--gpu", "abacus"], "'abacus' are not in"),
            (["--prepare", "/nowhere", "--checkpoint", "/nothing.pt"], "--checkpoint /nothing.pt"),
        ],
    )
    def test_what_cannot_be_done_is_said_in_one_line(
        self,
        modules: Import,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        said: str,
    ) -> None:
        monkeypatch.setattr(sys, "path", [*sys.path])
        assert modules("gpu").main(arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.startswith("gpu: ")
        assert err.count("\n") == 1

    def test_floors_are_printed_for_a_bundle(self, modules: Import) -> None:
        done = run_gpu("--floors", DATA / "local4.topcoat", "--tflops", 10, "--bandwidth", 100)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line.split()[1] for line in lines] == ["720p", "1080p", "1440p", "4K"]
        assert "480x270 in" in lines[1]


MILLISECONDS = 3.0
"""What the fake GPU takes to compute a frame."""


class TestMeasuring:
    """On the fake driver and library of the runtime's tests, which compute the real pictures."""

    @pytest.fixture
    def rig(self) -> Rig:
        return Rig(cuda=FakeCuda(), milliseconds=MILLISECONDS)

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        return make_engine_bundle(DATA / "blocks.topcoat", tmp_path)

    def measure(
        self, modules: Import, rig: Rig, bundle: Path, size: tuple[int, int]
    ) -> dict[str, Any]:
        manifest = read_manifest(bundle)
        variant = next(v for v in manifest.variants if v.kind == rig.backend.name)
        device = rig.driver.probe()
        assert not isinstance(device, str)
        cache = bundle.parent / "cache"
        cache.mkdir()
        found: dict[str, Any] = modules("gpu_measure").measure_engine(
            rig.backend.name,
            manifest,
            variant,
            size,
            driver=rig.driver,
            device=device,
            cache=cache,
            seconds=0.0,
            make=lambda settings: TensorRt(
                rig.backend.name,
                settings=settings,
                driver=lambda: rig.driver,
                installation=rig.installation,
            ),
        )
        return found

    def test_an_engine_is_measured_by_the_device_s_clock_and_the_host_s(
        self, modules: Import, rig: Rig, bundle: Path
    ) -> None:
        row = self.measure(modules, rig, bundle, (16, 24))
        size = 16 * 24 * 3
        for how in ("graph", "no_graph"):
            found = row[how]
            stages = found["stages_ms"]
            assert stages["compute"]["p50"] == pytest.approx(MILLISECONDS)
            # The fake driver's copies take a millisecond per million bytes.
            assert stages["upload"]["p50"] == pytest.approx(size / 1e6, rel=0.01)
            assert stages["download"]["p50"] == pytest.approx(size / 1e6, rel=0.01)
            # Frames that stay on the GPU are not copied: the device's time is the engine's.
            assert found["device_ms"] == pytest.approx(MILLISECONDS)
            assert found["host_frames_ms"]["frames"] >= 30
            assert 0 < found["host_frames_ms"]["p50"] <= found["host_frames_ms"]["p99"]
            assert found["submit_us"]["p50"] > 0
            assert found["device_bytes"] >= 2 * size
        assert row["first_frame_ms"] > 0
        json.dumps(row, allow_nan=False)

    def test_graphs_are_used_in_one_half_and_not_in_the_other(
        self, modules: Import, rig: Rig, bundle: Path
    ) -> None:
        self.measure(modules, rig, bundle, (16, 24))
        assert rig.cuda.calls["cuGraphLaunch"] > 100
        # Every frame of the other half, and the first ones of a graph, went kernel by kernel.
        assert len(rig.trt.executions) > 100
        # ... and what was compiled was kept for it.
        assert rig.trt.compiled == [(1, 16, 24, 3)]

    def test_measuring_leaves_nothing_on_the_device(
        self, modules: Import, rig: Rig, bundle: Path
    ) -> None:
        self.measure(modules, rig, bundle, (16, 24))
        assert rig.cuda.live() == {}
        rig.check()

    def test_a_failing_engine_leaves_nothing_either(
        self, modules: Import, rig: Rig, bundle: Path
    ) -> None:
        rig.cuda.fail("cuEventElapsedTime", LAUNCH_FAILED, after=40)
        with pytest.raises(DeviceLostError):
            self.measure(modules, rig, bundle, (16, 24))

    def test_frames_outside_the_profile_are_an_error(
        self, modules: Import, rig: Rig, bundle: Path
    ) -> None:
        with pytest.raises(BackendError, match="was built for frames"):
            self.measure(modules, rig, bundle, (1024, 1024))
        assert rig.cuda.live() == {}


@pytest.fixture(scope="module")
def prepared(modules: Import, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder as ``--prepare`` makes it, of one tiny network; and what was said meanwhile."""
    bundles = modules("gpu_bundles")
    from topcoat.export import bundle_writer
    from topcoat.runtime.parity import synthetic_probes

    probes = synthetic_probes(8, 8)
    few = [*probes[:1], *(replace(p, group="photographs") for p in probes[:1])]
    tiny = bundles.Subject(
        name="tiny",
        network="srcnn",
        settings={"scale": 8, "width": 4},
        task="super-resolution",
    )
    folder = tmp_path_factory.mktemp("prepared")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "SUBJECTS", (tiny,))
        # Two probes stand for the thirty that an export compares, which is tested where it is.
        patch.setattr(bundle_writer, "probe_frames", lambda *_, **__: few)
        made = bundles.prepare(folder, None, said.append, names=["tiny"])
    assert made == [folder / "tiny.topcoat"]
    return folder, said


class TestPreparing:
    def test_the_folder_holds_bundles_that_the_runtime_opens(
        self, modules: Import, prepared: tuple[Path, list[str]]
    ) -> None:
        folder, _ = prepared
        (bundle,) = modules("gpu_bundles").bundles_in(folder)
        manifest = verify_files(bundle)
        assert manifest.scale == 8
        assert {v.precision for v in manifest.variants if v.kind == "onnx"} == {"fp32", "fp16"}

    def test_engines_are_built_for_any_size_in_both_precisions_and_for_1080p(
        self, modules: Import, prepared: tuple[Path, list[str]]
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        folder, _ = prepared
        manifest = read_manifest(folder / "tiny.topcoat")
        built = [(v.precision, str(v.engine.profiles[0])) for v in manifest.variants if v.engine]
        dynamic = "1x1:240x135:480x270"
        assert sorted(built) == [("fp16", dynamic), ("fp16", "240x135"), ("fp32", dynamic)]
        builds = modules("gpu_bundles").builds_of(folder)
        assert sorted((entry["precision"], entry["profile"]) for entry in builds) == sorted(built)
        assert all(entry["seconds"] > 0 and entry["bytes"] > 0 for entry in builds)
        assert modules("gpu_bundles").builds_of(folder / "nothing") == []

    def test_a_generation_that_has_its_engines_gets_none_again_and_another_one_its_own(
        self, modules: Import, prepared: tuple[Path, list[str]], tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        bundles = modules("gpu_bundles")
        copy = Path(shutil.copytree(prepared[0] / "tiny.topcoat", tmp_path / "tiny.topcoat"))
        assert list(bundles.add_engines(copy, "rtx", gpu("sm89"), print)) == []
        made = list(bundles.add_engines(copy, "rtx", gpu("sm121"), print))
        assert [entry["targets"] for entry in made] == [["sm121"]] * 3
        added = [v for v in verify_files(copy).variants if v.engine][-3:]
        assert {v.engine.targets for v in added if v.engine} == {("sm121",)}
        # TensorRT for RTX builds for no sm90; the engines for earlier ones are there to be tried.
        assert list(bundles.add_engines(copy, "rtx", gpu("sm90"), print)) == []

    def test_the_work_is_what_torch_counts(
        self, modules: Import, prepared: tuple[Path, list[str]]
    ) -> None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        bundle = prepared[0] / "tiny.topcoat"
        work = modules("gpu_bundles").work_for(bundle, None)["fp32"]["720p"]
        network = modules("gpu_torch").network_of(read_manifest(bundle).checkpoint)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.rand(1, 3, 90, 160))
        assert 2 * work.total_macs == counter.get_total_flops()

    def test_torch_does_the_work_that_the_engines_do(
        self, modules: Import, prepared: tuple[Path, list[str]]
    ) -> None:
        import torch

        bundle = prepared[0] / "tiny.topcoat"
        source = open_source(prepared[0] / "tiny.pt")
        frame = modules("gpu_measure").frame_of(24, 32)
        with torch.no_grad(), open_bundle(bundle, "onnxruntime-cpu", "fp32", threads=1) as model:
            framed = modules("gpu_torch").framed(source.network, torch.float32)
            made = framed(torch.from_numpy(frame[None])).numpy()[0]
            steps = np.abs(made.astype(int) - model.process(frame))
        assert steps.max() <= 1
        # What is timed is a network of the same kind, whatever its weights.
        timed = modules("gpu_torch").network_of(read_manifest(bundle).checkpoint)
        assert [p.shape for p in timed.parameters()] == [
            p.shape for p in source.network.parameters()
        ]

    def test_a_machine_without_onnx_reads_the_work_that_was_counted_before(
        self,
        modules: Import,
        prepared: tuple[Path, list[str]],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        bundles = modules("gpu_bundles")
        bundle = prepared[0] / "tiny.topcoat"
        counted = bundles.work_for(bundle, None)
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name)
        )
        read = bundles.work_for(bundle, prepared[0])
        assert set(counted) == set(read) == {"fp32", "fp16"}
        for precision, sizes in counted.items():
            for size, work in sizes.items():
                assert read[precision][size].to_json() == work.to_json()
        with pytest.raises(modules("gpu_floors").FloorError, match="without onnx"):
            bundles.work_for(bundle, tmp_path)
        with pytest.raises(bundles.PrepareError, match="exporting needs onnx"):
            bundles.prepare(tmp_path, None, print)

    def test_a_folder_without_bundles_says_how_to_make_some(
        self, modules: Import, tmp_path: Path
    ) -> None:
        bundles = modules("gpu_bundles")
        with pytest.raises(bundles.PrepareError, match="--prepare"):
            bundles.bundles_in(tmp_path)

    def test_a_network_that_was_not_prepared_is_named(self, modules: Import) -> None:
        bundles = modules("gpu_bundles")
        with pytest.raises(bundles.PrepareError, match="holds no bundle of nothing, only blocks"):
            bundles.bundles_in(DATA, ["nothing", "blocks"])
        assert [path.stem for path in bundles.bundles_in(DATA, ["blocks"])] == ["blocks"]

    @pytest.mark.parametrize(
        ("bundle", "wanted"),
        [("blocks", (1080, 1920)), ("double", (540, 960)), ("local8", (135, 240))],
    )
    def test_frames_go_in_at_the_size_whose_result_is_asked_for(
        self, modules: Import, bundle: str, wanted: tuple[int, int]
    ) -> None:
        manifest = read_manifest(DATA / f"{bundle}.topcoat")
        assert modules("gpu_bundles").input_size(manifest, "1080p") == wanted


def gpu(sm: str) -> Device:
    return Device(ordinal=0, name="A GPU", sm=sm, memory=1 << 33, cuda=(13, 0), driver="580.1")


class TestReporting:
    def row(self, **changes: object) -> dict[str, Any]:
        def p(value: float) -> dict[str, float]:
            return {"p50": value, "p95": value, "p99": value, "frames": 30}

        stages = ("host_in", "upload", "compute", "download", "host_out", "wall", "overhead")
        half = {
            "stages_ms": {stage: p(0.5) for stage in stages},
            "host_frames_ms": p(4.0),
            "host_frames_overhead_us": 20.0,
            "pinned_frames_ms": p(3.5),
            "device_frames_ms": p(1.53),
            "device_frames_overhead_us": 30.0,
            "device_ms": 1.5,
            "device_bytes": 1 << 28,
        }
        return {
            "bundle": "johnson-32",
            "backend": "tensorrt-rtx",
            "precision": "fp16",
            "size": "1080p",
            "profile": "8x8:1920x1080:3840x2160",
            "first_frame_ms": 800.0,
            "first_frame_again_ms": 9.0,
            "graph": half,
            "no_graph": {**half, "device_ms": 1.6},
            **changes,
        }

    def result(self, *rows: dict[str, Any], **changes: object) -> dict[str, Any]:
        floor = {"larger_ms": 1.0, "bound": "arithmetic"}
        return {
            "machine": {"gpu": {"name": "A GPU", "sm": "sm89", "driver": "580.1", "cuda": "13.0"}},
            "settings": {"sizes": {"1080p": [1080, 1920], "4K": [2160, 3840]}},
            "peaks": {"tflops": {"fp16": 100.0}, "gigabytes_per_second": 1000.0, "source": "test"},
            "floors": {"johnson-32": {"fp16": {"1080p": floor}}},
            "engines": [],
            "parity": [],
            "measurements": list(rows),
            "failures": [],
            **changes,
        }

    def parity(self, status: str) -> dict[str, Any]:
        engine = {"backend": "tensorrt-rtx", "compute": "fp16", "file": "x.engine"}
        return {"bundle": "johnson-32", **engine, "status": status}

    def test_promises_are_held_against_the_best_engine_of_the_network_that_they_are_about(
        self, modules: Import
    ) -> None:
        slow = self.row(graph={**self.row()["graph"], "device_ms": 2.5})
        other = self.row(bundle="sr-x2", graph={**self.row()["graph"], "device_ms": 0.1})
        result = self.result(slow, self.row(), other, parity=[self.parity("passed")])
        found = modules("gpu_report").verdicts(result)
        assert found["floor"]["ratio"] == pytest.approx(1.5)
        assert found["floor"]["kept"]
        assert found["overhead"]["kept"]
        assert found["parity"]["kept"]
        assert not modules("gpu_report").verdicts(self.result(slow))["floor"]["kept"]

    def test_a_promise_that_was_not_kept_says_so_in_the_table(self, modules: Import) -> None:
        report = modules("gpu_report")
        half = {**self.row()["graph"], "device_ms": 2.5, "device_frames_overhead_us": 51.0}
        result = self.result(self.row(graph=half), parity=[self.parity("failed")])
        result["verdicts"] = report.verdicts(result)
        text = report.table(result)
        assert "2.50 times its arithmetic floor (promise: 2, NOT KEPT)" in text
        assert "worst 51 us (promise: 50, NOT KEPT)" in text
        assert "failed: johnson-32 x.engine" in text

    def test_the_overhead_promise_is_for_the_worst_engine_and_size(self, modules: Import) -> None:
        half = {**self.row()["graph"], "device_frames_overhead_us": 51.0}
        rows = [self.row(), self.row(), self.row(size="4K", graph=half)]
        assert not modules("gpu_report").verdicts(self.result(*rows))["overhead"]["kept"]

    def test_what_was_not_measured_is_no_kept_promise(self, modules: Import) -> None:
        report = modules("gpu_report")
        result = self.result(self.row(failed="it was not built for this GPU"))
        assert set(report.verdicts(result).values()) == {None}
        result["verdicts"] = report.verdicts(result)
        text = report.table(result)
        assert "kept" not in text.lower()
        assert "- tensorrt-rtx fp16 of johnson-32: it was not built for this GPU" in text

    def test_the_table_has_a_row_per_engine_and_a_column_per_size(self, modules: Import) -> None:
        rows = [
            self.row(),
            self.row(profile="1920x1080"),
            {
                **{"bundle": "johnson-32", "backend": "onnxruntime-cuda", "precision": "fp16"},
                **{"size": "4K", "host_frames_ms": {"p50": 30.0}},
                "bare": {"device_frames_ms": {"p50": 21.0}},
                "bare_nhwc": {"device_frames_ms": {"p50": 20.0}},
                "bare_graph": {"failed": "no"},
            },
        ]
        lines = modules("gpu_report").table(self.result(*rows)).splitlines()
        assert "| engine | 1080p | 4K |" in lines
        assert "| tensorrt-rtx fp16 | 1.50 / 4.00 | – |" in lines
        assert "| tensorrt-rtx fp16, one size | 1.50 / 4.00 | – |" in lines
        assert "| onnxruntime-cuda fp16 | – | 20.00 / 30.00 |" in lines
        assert "| floor fp16 | 1.00 (arithmetic) | – |" in lines


class TestParts:
    @pytest.fixture
    def run(self, modules: Import, tmp_path: Path) -> Any:  # noqa: ANN401 - a class of the benchmark
        args = argparse.Namespace(
            pack=[],
            json=tmp_path / "gpu.json",
            quick=False,
            bundles=None,
            checkpoint=None,
            networks="",
        )
        deadline = time.monotonic() + 600
        return modules("gpu_run").Run(args, tmp_path, ["1080p"], 0.1, deadline)

    def saved(self, tmp_path: Path) -> Any:  # noqa: ANN401 - JSON
        return json.loads((tmp_path / "gpu.json").read_text())

    def test_a_part_that_fails_is_recorded_with_its_reason_and_the_run_goes_on(
        self,
        run: Any,  # noqa: ANN401
        tmp_path: Path,
    ) -> None:
        job = {"bundle": str(DATA / "blocks.topcoat"), "backend": "tensorrt", "sizes": ["1080p"]}
        run._part("run tensorrt blocks", job, limit=60)
        run._part("nothing of this name", {}, limit=60)
        first, second = self.saved(tmp_path)["failures"]
        assert first["part"] == "run tensorrt blocks"
        assert re.match(r"(tensorrt: |blocks holds no engine)", first["reason"])
        assert second["reason"] == "broke off: KeyError: 'nothing'"

    def test_what_a_stopped_part_has_started_is_stopped_with_it(
        self, modules: Import, tmp_path: Path
    ) -> None:
        mark = tmp_path / "mark"
        inner = f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')"
        outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
        with (tmp_path / "said").open("wb") as said, pytest.raises(subprocess.TimeoutExpired):
            modules("gpu_run")._run([sys.executable, "-c", outer], said, os.environ, 0.5)
        time.sleep(1.5)
        assert not mark.exists()

    def test_a_part_that_takes_too_long_is_stopped(self, run: Any, tmp_path: Path) -> None:  # noqa: ANN401
        job = {"folder": str(tmp_path / "made"), "checkpoint": None, "names": None}
        run._part("prepare", job, limit=0.4)
        (failure,) = self.saved(tmp_path)["failures"]
        assert failure == {"part": "prepare", "reason": "was stopped after 0.4 s"}

    def test_an_earlier_run_s_other_networks_stay_and_this_run_s_are_replaced(
        self,
        run: Any,  # noqa: ANN401
    ) -> None:
        rows = [{"bundle": name, "n": number} for number, name in enumerate(("kept", "again"))]
        run._earlier = {
            **{"measurements": rows, "parity": rows, "engines": rows},
            "failures": [
                {"part": f"run tensorrt {name}", "reason": "earlier"} for name in ("kept", "again")
            ],
            "floors": {"kept": {"fp16": {}}, "again": {"fp16": {}}},
        }
        run._keep(set())
        assert run.result["measurements"] == rows
        run.result["failures"].append({"part": "peaks", "reason": "now"})
        run._keep({"again"})
        for kind in ("measurements", "parity", "engines"):
            assert run.result[kind] == [rows[0]]
        parts = [entry["part"] for entry in run.result["failures"]]
        assert parts == ["run tensorrt kept", "peaks"]
        assert list(run.result["floors"]) == ["kept"]

    def test_results_of_another_gpu_are_not_mixed(self, modules: Import, tmp_path: Path) -> None:
        path = tmp_path / "gpu.json"
        path.write_text(json.dumps({"machine": {"gpu": {"name": "A GPU", "driver": "580.1"}}}))
        assert modules("gpu_run").earlier_run(path, gpu("sm89"))
        error = modules("gpu_bundles").PrepareError
        with pytest.raises(error, match=r"was measured on a A GPU with driver 580\.1, here is"):
            modules("gpu_run").earlier_run(path, replace(gpu("sm89"), driver="590.2"))
        with pytest.raises(error, match="is not the result of an earlier run"):
            modules("gpu_run").earlier_run(tmp_path / "nothing.json", gpu("sm89"))

    def test_no_part_begins_when_the_time_is_over(self, run: Any, tmp_path: Path) -> None:  # noqa: ANN401
        run._deadline = time.monotonic()
        run._part("peaks", {}, limit=60)
        assert "--minutes" in self.saved(tmp_path)["failures"][0]["reason"]

    def test_what_a_part_wrote_before_it_ended_is_kept(self, run: Any, tmp_path: Path) -> None:  # noqa: ANN401
        out = tmp_path / "part.jsonl"
        rows = [json.dumps(["measurements", {"n": n}]) for n in (1, 2)]
        out.write_text(
            "\n".join(
                [*rows, '["measurements", {"n'],
            )
        )
        run._take(out)
        run._take(tmp_path / "never_written.jsonl")
        assert run.result["measurements"] == [{"n": 1}, {"n": 2}]

    def test_the_part_that_runs_engines_writes_a_row_for_every_size_and_file(
        self, modules: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = Rig(cuda=FakeCuda(), milliseconds=MILLISECONDS)
        bundle = make_engine_bundle(DATA / "double.topcoat", tmp_path)
        for place in ("topcoat.runtime.backends.tensorrt", "topcoat.runtime.backends._cuda"):
            monkeypatch.setattr(f"{place}.installed_driver", lambda: rig.driver)
        monkeypatch.setattr(
            "topcoat.runtime.backends.tensorrt._Installed", lambda _: rig.installation
        )
        sizes = {"small": (32, 48), "odd": (33, 48), "large": (2048, 2048)}
        monkeypatch.setattr(modules("gpu_bundles"), "SIZES", sizes)
        out = tmp_path / "part.jsonl"
        job = {"bundle": str(bundle), "backend": "tensorrt-rtx", "sizes": list(sizes)}
        more = {"out": str(out), "seconds": 0.0, "work": str(tmp_path)}
        assert modules("gpu_parts").run_part("run", {**job, **more}) == 0
        ((kind, row),) = [json.loads(line) for line in out.read_text().splitlines()]
        assert kind == "measurements"
        # 33 is not twice anything, and the engine takes no frame whose result is 2048 high.
        assert (row["size"], row["input"], row["output"]) == ("small", [16, 24], [32, 48])
        assert row["graph"]["device_ms"] == pytest.approx(MILLISECONDS)
        rig.check()

    def test_values_that_json_cannot_say_are_left_empty(
        self, modules: Import, tmp_path: Path
    ) -> None:
        parts = modules("gpu_parts")
        assert parts._finite({"a": [float("inf"), 1.0], "b": {"c": float("nan")}}) == {
            "a": [None, 1.0],
            "b": {"c": None},
        }
