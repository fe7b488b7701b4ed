"""The benchmark of engines on a GPU, as far as it goes without one: count, measure, report."""

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from topcoat.runtime.backends._cuda import probe

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
    frame: tuple[object, ...] = (1, "height", "width", 4),
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
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opset))


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

    def test_floors_are_printed_for_a_bundle(self, modules: Import) -> None:
        done = run_gpu("--floors", DATA / "local4.topcoat", "--tflops", 10, "--bandwidth", 100)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line.split()[1] for line in lines] == ["720p", "1080p", "1440p", "4K"]
        assert "480x270 in" in lines[1]
