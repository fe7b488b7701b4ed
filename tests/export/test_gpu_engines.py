"""Engines on a real NVIDIA GPU: built, compared with their networks, verified and run."""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.export.conftest import sr_checkpoint
from topcoat.export import Exported, export_bundle
from topcoat.export._errors import EngineLibraryError
from topcoat.export.engines import (
    RTX_TARGETS,
    EngineRequest,
    build_engine,
    find_library,
    parse_profile,
)
from topcoat.export.engines._request import KINDS, EngineName
from topcoat.export.precision import PrecisionPlan
from topcoat.runtime.backends._cuda import Device, probe
from topcoat.runtime.parity import ParityRow
from topcoat.train import load_checkpoint

pytestmark = pytest.mark.gpu

STATIC, DYNAMIC = parse_profile("512x384"), parse_profile("16x16:512x384:1280x1280")


@dataclass(frozen=True)
class Built:
    """Bundles with four engines each: fp32 and fp16, for one size and for a range."""

    engine: EngineName
    device: Device
    exported: Mapping[str, Exported]

    @property
    def backend(self) -> str:
        return KINDS[self.engine]

    def bundle(self, network: str) -> Path:
        bundle = self.exported[network].bundle
        assert bundle is not None
        return bundle

    def rows(self, network: str) -> list[ParityRow]:
        report = self.exported[network].report
        assert report is not None
        return [row for row in report.rows if row.engine.backend == self.backend]


@pytest.fixture(scope="module", params=["rtx", "tensorrt"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    device = probe()
    if isinstance(device, str):
        pytest.skip(device)
    engine: EngineName = request.param
    try:
        find_library(engine)
    except EngineLibraryError as error:
        pytest.skip(str(error))
    targets = (device.sm,) if engine == "rtx" and device.sm in RTX_TARGETS else None
    requests = [
        EngineRequest(engine=engine, precision=precision, profiles=(profile,), targets=targets)
        for precision in ("fp32", "fp16")
        for profile in (STATIC, DYNAMIC)
    ]
    # A trained network, and one whose channels come in eights as in any that is used: gates are
    # for those, and narrower ones have no kernels in half precision.
    trained = load_checkpoint(Path(__file__).parent / "data" / "starry-night.pt")
    checkpoints = {"style": trained, "enlarging": sr_checkpoint("residual-sr", 2, width=16)}
    folder = tmp_path_factory.mktemp(engine)
    exported = {
        name: export_bundle(
            checkpoint,
            folder / f"{name}.topcoat",
            plan=PrecisionPlan(precisions=("fp32", "fp16")),
            engines=requests,
        )
        for name, checkpoint in checkpoints.items()
    }
    found = Built(engine, device, exported)
    refused = [row.reason for row in found.rows("style") if "it was not built for" in row.reason]
    if refused:
        pytest.skip(refused[0])
    return found


@pytest.mark.parametrize("network", ["style", "enlarging"])
def test_every_engine_equals_its_network_on_this_gpu(built: Built, network: str) -> None:
    rows = built.rows(network)
    assert len(rows) == 4
    for row in rows:
        assert row.status == "passed", f"{row.engine}: {row.reason or row.failures}"
        assert row.device == built.device.sm


@pytest.mark.parametrize("network", ["style", "enlarging"])
def test_half_precision_stays_within_four_steps_and_50_db_on_photographs(
    built: Built, network: str
) -> None:
    for row in built.rows(network):
        if row.engine.compute == "fp16":
            found = row.groups["photographs"]
            assert found.max_steps <= 4, row.engine
            assert found.psnr_db >= 50, row.engine


def test_a_bundle_of_another_machine_is_verified_here_and_then_used(
    built: Built, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(built.bundle("style"), tmp_path / "style.topcoat"))
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    for variant in content["variants"]:
        if variant["kind"] == built.backend:
            variant["parity"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(tr.BackendError, match="topcoat verify"):
        tr.open(bundle, backend=built.backend)
    verification = tr.verify(bundle)
    assert verification
    measured = [row for row in verification.measured if row.engine.backend == built.backend]
    assert [row.status for row in measured] == ["passed"] * 4
    with tr.open(bundle, backend=built.backend) as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert chosen.verified
    assert all(row.engine.backend != built.backend for row in tr.verify(bundle).measured)


def test_the_engine_of_one_size_takes_it_and_the_range_takes_the_others(built: Built) -> None:
    bundle = built.bundle("style")
    rng = np.random.default_rng(0)
    with (
        tr.open(bundle, backend=built.backend, precision="fp16") as model,
        tr.open(bundle, backend="onnxruntime-cpu", precision="fp32") as right,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", tr.FallbackWarning)  # which is what happens here
        for height, width in ((384, 512), (64, 48), (1280, 720), (384, 512)):
            coarse = rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
            frame = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
            for _ in range(3):
                steps = np.abs(model.process(frame).astype(int) - right.process(frame))
                assert steps.max() <= 4, (height, width)
        assert {fallback.size for fallback in model.explain().fallbacks} == {"48x64", "720x1280"}


def test_an_engine_is_the_same_when_this_machine_builds_it_again(built: Built) -> None:
    if built.engine != "rtx":
        pytest.skip("full TensorRT times its kernels, which never come out alike")
    bundle = built.bundle("style")
    manifest = tr.read_manifest(bundle)
    variant = next(v for v in manifest.variants if v.kind == built.backend)
    assert variant.engine is not None
    model = (bundle / f"model.{variant.precision}.onnx").read_bytes()
    request = EngineRequest(
        engine="rtx",
        precision=variant.precision,
        profiles=variant.engine.profiles,
        targets=variant.engine.targets,
    )
    again = build_engine(model, request)
    if not again.reproducible:
        pytest.skip("address space randomisation cannot be switched off here")
    assert again.data == (bundle / variant.file).read_bytes()
