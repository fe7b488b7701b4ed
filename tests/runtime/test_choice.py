"""How the backend is chosen, with scripted backends: merit, race, reasons, no silent fallback."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import topcoat.runtime as tr
from topcoat.runtime._choice import choose, list_candidates
from topcoat.runtime.backends import Backend, Compute, Session, default_threads, find_backend
from topcoat.runtime.bundle import Variant
from topcoat.runtime.frames import Frame

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]


@dataclass
class FakeSession:
    seconds: float = 0.0
    fails: bool = False
    runs: int = 0
    closed: bool = False

    def run(self, source: Frame, result: Frame) -> None:
        self.runs += 1
        if self.fails:
            raise tr.BackendError("the device is gone")
        time.sleep(self.seconds)
        result[...] = 1

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeBackend:
    """A backend that does what the test says."""

    name: str = "onnxruntime-cpu"
    absent: str | None = None
    offers: tuple[Compute, ...] = (Compute(compute="fp32"),)
    seconds: dict[str, float] = field(default_factory=dict)
    refuses: bool = False
    fails: bool = False
    sessions: list[FakeSession] = field(default_factory=list)

    def missing(self) -> str | None:
        return self.absent

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        return self.offers if variant.precision == "fp32" else ()

    def version(self) -> str:
        return "0"

    def start(self) -> None: ...

    def load(self, variant: Variant, model: bytes, *, compute: str, threads: int) -> Session:
        if self.refuses:
            raise tr.BackendError(f"{self.name} refuses the model")
        session = FakeSession(seconds=self.seconds.get(compute, 0.0), fails=self.fails)
        self.sessions.append(session)
        return session


def run_choice(
    bundle: Path,
    *backends: Backend,
    backend: str = "auto",
    precision: str | None = None,
    allow_unverified: bool = False,
    variant: str | None = None,
    fallback: bool | None = None,
) -> tuple[tr.Explanation, Session]:
    explanation, engines = choose(
        tr.read_manifest(bundle),
        backends,
        backend=backend,
        precision=precision,
        threads=1,
        allow_unverified=allow_unverified,
        variant=variant,
        fallback=fallback,
    )
    session = engines.loaded((1, 64, 64))
    assert session is not None
    return explanation, session


def openvino(**values: object) -> FakeBackend:
    offers = (Compute(compute="bf16"), Compute(compute="fp32"))
    settings: dict[str, Any] = {"name": "openvino-cpu", "offers": offers}
    return FakeBackend(**(settings | values))


def test_the_fastest_of_several_usable_ones_wins(blocks: Path) -> None:
    first = openvino(seconds={"bf16": 0.03, "fp32": 0.02})
    second = FakeBackend(seconds={"fp32": 0.001})
    explanation, session = run_choice(blocks, first, second)
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "onnxruntime-cpu"
    assert explanation.chosen in explanation.candidates
    assert session is second.sessions[0]
    assert all(candidate.probe_ms for candidate in explanation.candidates)
    assert "chosen: fastest" in explanation.chosen.reason
    assert "usable, slower" in explanation.candidates[0].reason
    assert [s.closed for s in first.sessions] == [True, True]
    assert not second.sessions[0].closed


def test_a_named_backend_is_taken_without_a_race(blocks: Path) -> None:
    first, second = openvino(seconds={"bf16": 0.01}), FakeBackend()
    explanation, _ = run_choice(blocks, first, second, backend="openvino-cpu")
    assert explanation.chosen is not None
    assert (explanation.chosen.backend, explanation.chosen.compute) == ("openvino-cpu", "bf16")
    assert len(first.sessions) == 1
    assert first.sessions[0].runs == 0
    assert second.sessions == []
    assert "not asked for" in explanation.candidates[-1].reason
    assert all(candidate.probe_ms is None for candidate in explanation.candidates)


def test_the_only_usable_one_is_taken_without_a_race(blocks: Path) -> None:
    only = FakeBackend()
    explanation, _ = run_choice(blocks, openvino(absent="openvino is not installed"), only)
    assert only.sessions[0].runs == 0
    assert explanation.candidates[0].reason == "openvino is not installed"
    assert not explanation.candidates[0].usable


def test_a_named_backend_that_is_not_installed_is_an_error_not_a_fallback(blocks: Path) -> None:
    absent = openvino(absent="openvino is not installed; pip install 'topcoat-runtime[openvino]'")
    with pytest.raises(tr.BackendUnavailableError) as caught:
        run_choice(blocks, absent, FakeBackend(), backend="openvino-cpu")
    assert "pip install 'topcoat-runtime[openvino]'" in str(caught.value)
    assert caught.value.explanation is not None
    assert caught.value.explanation.chosen is None


def test_a_named_backend_that_refuses_the_model_is_an_error_not_a_fallback(blocks: Path) -> None:
    with pytest.raises(tr.BackendError, match="openvino-cpu refuses the model"):
        run_choice(blocks, openvino(refuses=True), FakeBackend(), backend="openvino-cpu")


@pytest.mark.parametrize("trouble", [{"refuses": True}, {"fails": True}])
def test_one_that_fails_in_the_race_is_out_with_its_reason(
    blocks: Path, trouble: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    explanation, _ = run_choice(blocks, openvino(**trouble), FakeBackend())
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "onnxruntime-cpu"
    assert "failed in the race" in explanation.candidates[0].reason
    assert not explanation.candidates[0].usable
    assert "failed in the race" in caplog.text


def test_when_all_fail_in_the_race_the_error_names_each(blocks: Path) -> None:
    with pytest.raises(tr.BackendError) as caught:
        run_choice(blocks, openvino(refuses=True), FakeBackend(fails=True))
    assert "openvino-cpu refuses the model" in str(caught.value)
    assert "the device is gone" in str(caught.value)


def test_a_precision_that_the_processor_lacks_says_so(blocks: Path) -> None:
    offers = (Compute(compute="bf16", obstacle="no bf16 arithmetic"), Compute(compute="fp32"))
    explanation, _ = run_choice(blocks, openvino(offers=offers))
    assert explanation.candidates[0].reason == "no bf16 arithmetic"
    assert explanation.chosen == explanation.candidates[1]
    with pytest.raises(tr.BackendError, match="no bf16 arithmetic"):
        run_choice(blocks, openvino(offers=offers), precision="bf16")


def test_a_precision_that_was_asked_for_is_the_only_one_considered(blocks: Path) -> None:
    explanation, _ = run_choice(blocks, openvino(), FakeBackend(), precision="bf16")
    assert explanation.chosen is not None
    assert explanation.chosen.compute == "bf16"
    assert [c.usable for c in explanation.candidates] == [True, False, False]


def test_a_precision_that_nothing_offers_says_what_there_is(blocks: Path) -> None:
    with pytest.raises(tr.BackendError, match="it can be computed at bf16, fp32 here; leave out"):
        run_choice(blocks, openvino(), precision="fp16")


def drop_rows(backend: str) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        variant = manifest["variants"][0]
        variant["parity"] = [row for row in variant["parity"] if row["backend"] != backend]

    return change


def fail_rows(manifest: dict[str, Any]) -> None:
    for row in manifest["variants"][0]["parity"]:
        row["passed"] = False


def test_a_backend_without_a_parity_row_is_not_used(edit_manifest: Edit) -> None:
    bundle = edit_manifest(drop_rows("openvino-cpu"))
    explanation, _ = run_choice(bundle, openvino(), FakeBackend())
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "onnxruntime-cpu"
    assert "holds no parity check for it" in explanation.candidates[0].reason


def gpu(**values: object) -> FakeBackend:
    offers = (Compute(compute="fp32", device="sm89"),)
    return FakeBackend(**({"name": "onnxruntime-cuda", "offers": offers} | values))  # type: ignore[arg-type]


def test_a_gpu_that_only_lacks_its_parity_check_is_told_how_to_get_it(
    blocks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_choice(blocks, gpu(), FakeBackend())
    list_candidates(tr.read_manifest(blocks), (gpu(), FakeBackend()))
    first, second = [record.getMessage() for record in caplog.records]
    assert first == second
    assert "on this machine's sm89: onnxruntime-cuda fp32 [model.fp32.onnx]; run" in first
    assert f"`topcoat verify {tr.read_manifest(blocks).folder}`" in first


def _failed(manifest: dict[str, Any]) -> None:
    row = {"backend": "onnxruntime-cuda", "compute": "fp32", "passed": False, "photographs": {}}
    manifest["variants"][0]["parity"].append(row)


@pytest.mark.parametrize(
    ("backend", "how", "change"),
    [
        (gpu(absent="no driver"), {}, None),
        (gpu(offers=(Compute(compute="fp32", device="sm89", obstacle="too old"),)), {}, None),
        (gpu(offers=(Compute(compute="fp32", device="x", on_request="young"),)), {}, None),
        (gpu(offers=(Compute(compute="bf16"),)), {}, None),
        (gpu(), {}, _failed),
        (gpu(), {"backend": "onnxruntime-cpu"}, None),
        (gpu(), {"allow_unverified": True}, None),
    ],
    ids=["absent", "obstacle", "on request", "processor", "failed", "named", "allowed"],
)
@pytest.mark.filterwarnings("ignore::topcoat.runtime.UnverifiedWarning")
def test_nothing_is_said_where_a_parity_check_would_not_help(
    backend: FakeBackend,
    how: dict[str, Any],
    change: Callable[[dict[str, Any]], object] | None,
    edit_manifest: Edit,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_choice(edit_manifest(change or (lambda _: None)), backend, FakeBackend(), **how)
    assert caplog.records == []


def test_a_backend_whose_parity_failed_is_not_used(edit_manifest: Edit) -> None:
    with pytest.raises(tr.BackendError, match="its parity check failed"):
        run_choice(edit_manifest(fail_rows), FakeBackend())


def test_an_unverified_backend_runs_on_demand_and_warns(edit_manifest: Edit) -> None:
    bundle = edit_manifest(fail_rows)
    with pytest.warns(tr.UnverifiedWarning, match="without a passed parity check"):
        explanation, _ = run_choice(bundle, FakeBackend(), allow_unverified=True)
    assert explanation.chosen is not None
    assert not explanation.chosen.verified
    assert "NOT VERIFIED" in str(explanation)


def test_a_real_session_of_an_unverified_bundle_warns_too(edit_manifest: Edit) -> None:
    with pytest.warns(tr.UnverifiedWarning):
        tr.open(edit_manifest(fail_rows), "onnxruntime-cpu", allow_unverified=True).close()


def test_a_model_kind_that_nothing_knows_is_not_run(edit_manifest: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for variant in manifest["variants"]:
            variant["kind"] = "another-engine"

    with pytest.raises(tr.BackendError, match="holds no model that it can run"):
        tr.open(edit_manifest(change), backend="onnxruntime-cpu")


def test_the_explanation_reads_well_and_goes_into_json(blocks: Path) -> None:
    explanation, _ = run_choice(blocks, openvino(absent="not there"), FakeBackend())
    text = str(explanation)
    assert text.splitlines()[0] == ("blocks (asked for: backend auto, precision any; 1 CPU thread)")
    assert "-> onnxruntime-cpu fp32" in text
    assert "-- openvino-cpu" in text
    parsed = json.loads(json.dumps(explanation.to_json()))
    assert parsed["chosen"]["backend"] == "onnxruntime-cpu"
    assert set(parsed["candidates"][0]) >= {
        "backend",
        "compute",
        "variant",
        "usable",
        "reason",
        "probe_ms",
    }


@pytest.mark.parametrize("name", ["cuda", "", "AUTO"])
def test_an_unknown_backend_lists_the_known_ones(blocks: Path, name: str) -> None:
    with pytest.raises(tr.BackendError, match=r"auto or one of .*openvino-cpu, onnxruntime-cpu"):
        tr.open(blocks, backend=name)


def test_an_unknown_precision_lists_the_known_ones(blocks: Path) -> None:
    with pytest.raises(tr.BackendError, match="wanted one of fp32, fp16, bf16, int8"):
        tr.open(blocks, precision="int3")


def test_backends_are_found_by_name() -> None:
    assert find_backend("onnxruntime-cpu").name == "onnxruntime-cpu"


def test_the_default_is_at_least_one_thread_and_no_more_than_there_are() -> None:
    import os

    assert 1 <= default_threads() <= (os.cpu_count() or 1)
