"""What happens when the chosen engine fails on a frame: who takes over, how loudly, how long."""

import dataclasses
import gc
import json
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import topcoat.runtime as tr
from topcoat.runtime import _fallback
from topcoat.runtime._choice import choose
from topcoat.runtime.backends import Backend, Compute, Session, find_backend
from topcoat.runtime.bundle import Variant, read_model
from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame

DATA = Path(__file__).parent / "data"
Trouble = Callable[[Frame], tr.BackendError | None]
"""What a session raises for a frame that it is given, or None."""


@dataclass
class ScriptedSession:
    """Runs the model on ONNX Runtime, but for the frames on which the script says it fails."""

    inner: Session
    trouble: Trouble
    profiles: tuple[tr.Profile, ...] = ()
    given: list[tuple[int, ...]] = field(default_factory=list)
    closed: bool = False

    def run(self, source: Frame, result: Frame) -> None:
        assert not self.closed
        self.given.append(source.shape)
        if self.profiles and not any(p.holds(*source.shape[1:3]) for p in self.profiles):
            raise tr.FrameOutsideProfileError(f"the engine was built for {self.profiles[0]}")
        if (problem := self.trouble(source)) is not None:
            raise problem
        self.inner.run(source, result)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


@dataclass
class ScriptedBackend:
    """A backend for the bundle's fp32 file, or for the files that it names."""

    name: str
    trouble: Trouble = lambda frame: None
    files: tuple[str, ...] = ("model.fp32.onnx",)
    refuses: tr.TopcoatError | None = None
    sessions: list[ScriptedSession] = field(default_factory=list)

    def missing(self) -> str | None:
        return None

    def computes(self, variant: Variant) -> tuple[Compute, ...]:
        return (Compute(compute=variant.precision),) if variant.file in self.files else ()

    def version(self) -> str:
        return "0"

    def start(self) -> None: ...

    def load(
        self, variant: Variant, model: bytes, *, compute: str, threads: int
    ) -> ScriptedSession:
        if self.refuses is not None:
            raise self.refuses
        inner = find_backend("onnxruntime-cpu").load(
            variant, model, compute=compute, threads=threads
        )
        profiles = () if variant.engine is None else variant.engine.profiles
        self.sessions.append(ScriptedSession(inner, self.trouble, profiles))
        return self.sessions[-1]

    @property
    def given(self) -> list[tuple[int, ...]]:
        """What its sessions were given after the race."""
        return [s for session in self.sessions for s in session.given if s[1:3] != (256, 256)]


def fails(kind: type[tr.BackendError], text: str, *, above: int = 0) -> Trouble:
    """Fail on everything larger than so many pixels, all frames of a batch together."""

    def trouble(frame: Frame) -> tr.BackendError | None:
        pixels = frame.shape[0] * frame.shape[1] * frame.shape[2]
        probe = frame.shape[1:3] == (256, 256)
        return kind(text) if pixels > above and not probe else None

    return trouble


def short_of_memory(above: int) -> Trouble:
    return fails(tr.DeviceMemoryError, "gpu is out of memory", above=above)


def built_for(variant: Variant, *sizes: tuple[int, int]) -> Variant:
    """Make a model's entry one of an engine that was built for exactly these sizes."""
    profiles = tuple(tr.Profile(min=size, opt=size, max=size) for size in sizes)
    engine = tr.EngineInfo(
        library="tensorrt_rtx",
        version="1",
        targets=("sm89",),
        driver=None,
        profiles=profiles,
        key="0" * 64,
    )
    return dataclasses.replace(variant, engine=engine)


def open_scripted(
    *backends: Backend,
    bundle: str = "blocks",
    manifest: tr.Manifest | None = None,
    backend: str | None = None,
    fallback: bool | None = None,
    tile: int | str | None = None,
) -> tr.Model:
    """Open a bundle on these backends; if none is named, on the first, the others after it.

    That is what "auto" gives where the first wins the race, without the race.
    """
    if backend is None:
        backend, fallback = backends[0].name, True
    manifest = tr.read_manifest(DATA / f"{bundle}.topcoat") if manifest is None else manifest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tr.UnverifiedWarning)
        explanation, engines = choose(
            manifest,
            backends,
            backend=backend,
            precision=None,
            threads=1,
            allow_unverified=True,
            fallback=fallback,
        )
    return tr.Model(manifest, explanation, engines, tile=tile)  # type: ignore[arg-type]


def slow(inner: Trouble = lambda frame: None) -> Trouble:
    """Lose the race, and then do as the script says."""
    import time

    def trouble(frame: Frame) -> tr.BackendError | None:
        if frame.shape[1:3] == (256, 256):
            time.sleep(0.05)
        return inner(frame)

    return trouble


def reference(bundle: str, frame: Frame) -> Frame:
    with tr.open(
        DATA / f"{bundle}.topcoat", backend="onnxruntime-cpu", precision="fp32", threads=1
    ) as model:
        return model.process(frame)


def text_of(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    assert all(issubclass(warning.category, tr.FallbackWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.fixture
def frame(photograph: Frame) -> Frame:
    return np.ascontiguousarray(photograph[:64, :88])


def test_an_error_on_one_size_moves_that_size_to_the_next_engine(
    frame: Frame, caplog: pytest.LogCaptureFixture
) -> None:
    first = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed", above=50 * 50))
    second = ScriptedBackend("cpu", slow())
    small = np.ascontiguousarray(frame[:40, :40])
    with open_scripted(first, second, backend="auto") as model:
        with pytest.warns(tr.FallbackWarning) as caught:
            styled = model.process(frame)
        np.testing.assert_array_equal(styled, reference("blocks", frame))
        # From here on in silence (warnings are errors in these tests), and without a new attempt.
        model.process(frame)
        model.process(small)
        explanation = model.explain()
    assert text_of(list(caught)) == [
        "blocks: frames of 88x64 run on cpu fp32 [model.fp32.onnx] instead of"
        " gpu fp32 [model.fp32.onnx]: kernel failed; NOT VERIFIED against the network"
    ]
    assert caught[0].filename == __file__, "the warning names another line than the caller's"
    assert first.given == [(1, 64, 88, 3), (1, 40, 40, 3)]
    assert second.given == [(1, 64, 88, 3), (1, 64, 88, 3)]
    assert [r.getMessage() for r in caplog.records if r.name == "topcoat.runtime"] == text_of(
        list(caught)
    )
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "gpu"
    (fallback,) = explanation.fallbacks
    assert (fallback.height, fallback.width, fallback.batch, fallback.tiles) == (64, 88, 1, 1)
    assert (fallback.failed.backend, fallback.used.backend) == ("gpu", "cpu")
    assert fallback.reason == "kernel failed"


def test_explain_shows_what_runs_now_also_after_close(frame: Frame) -> None:
    first = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with (
        open_scripted(first, ScriptedBackend("cpu")) as model,
        pytest.warns(tr.FallbackWarning),
    ):
        model.process(frame)
    explanation = model.explain()
    assert "  !! frames of 88x64 run on cpu fp32" in str(explanation)
    parsed = json.loads(json.dumps(explanation.to_json()))
    assert parsed["fallbacks"][0]["used"] == {
        "backend": "cpu",
        "compute": "fp32",
        "variant": "model.fp32.onnx",
    }
    ran, other = explanation.candidate_for(64, 88), explanation.candidate_for(64, 64)
    assert ran is not None
    assert other is not None
    assert (ran.backend, other.backend) == ("cpu", "gpu")


def test_an_engine_that_is_not_needed_is_not_loaded(frame: Frame) -> None:
    first = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed", above=50 * 50))
    second = ScriptedBackend("cpu", slow())
    with open_scripted(first, second, backend="auto") as model:
        assert [session.closed for session in second.sessions] == [True], "it was left loaded"
        model.process(np.ascontiguousarray(frame[:40, :40]))
        assert len(second.sessions) == 1
        with pytest.warns(tr.FallbackWarning):
            model.process(frame)
        assert [session.closed for session in second.sessions] == [True, False]
    assert all(session.closed for session in first.sessions + second.sessions)


def test_a_size_outside_the_profile_goes_to_the_next_engine(frame: Frame) -> None:
    manifest = tr.read_manifest(DATA / "blocks.topcoat")
    variant = built_for(manifest.variants[0], (40, 40))
    engine = ScriptedBackend("rtx")
    model = open_scripted(
        engine,
        ScriptedBackend("cpu", slow(), files=("model.fp16.onnx",)),
        manifest=dataclasses.replace(manifest, variants=(variant, manifest.variants[1])),
        backend="auto",
    )
    with model:
        explanation = model.explain()
        assert explanation.chosen is not None
        assert explanation.chosen.backend == "rtx"
        assert explanation.chosen.probe_size == (40, 40)
        with pytest.warns(tr.FallbackWarning, match="instead of rtx .*was built for 40x40"):
            model.process(frame)
        model.process(np.ascontiguousarray(frame[:40, :40]))
    assert engine.given[-1] == (1, 40, 40, 3)


def test_an_engine_built_for_other_sizes_is_passed_over_unloaded(frame: Frame) -> None:
    manifest = tr.read_manifest(DATA / "blocks.topcoat")
    variants = (manifest.variants[0], built_for(manifest.variants[1], (40, 40)))
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    rtx = ScriptedBackend("rtx", files=("model.fp16.onnx",))
    cpu = ScriptedBackend("cpu")
    with open_scripted(
        gpu, rtx, cpu, manifest=dataclasses.replace(manifest, variants=variants)
    ) as model:
        loaded = len(rtx.sessions)
        with pytest.warns(tr.FallbackWarning, match="rtx .*was built for frames of 40x40"):
            model.process(frame)
        assert len(rtx.sessions) == loaded


def test_too_little_device_memory_makes_tiles_smaller_until_they_fit(photograph: Frame) -> None:
    whole = reference("local4", photograph)
    gpu = ScriptedBackend("gpu", short_of_memory(above=30 * 30))
    with open_scripted(gpu, ScriptedBackend("cpu"), bundle="local4") as model:
        counted: list[tuple[int, int]] = []
        with pytest.warns(tr.FallbackWarning) as caught:
            enlarged = model.process(photograph, on_tile=lambda *count: counted.append(count))
        assert int(np.abs(enlarged.astype(int) - whole).max()) <= 1
        tiles = model.tiles(70, 90)
        assert tiles > 1
        assert counted == [(i + 1, tiles) for i in range(tiles)]
        before = len(gpu.given)
        np.testing.assert_array_equal(model.process(photograph), enlarged)
        assert len(gpu.given) - before == tiles, "the size was found out anew"
        fallbacks = model.explain().fallbacks
    assert len(caught) == 2, "half of 90 a side does not fit, a quarter does"
    assert len(fallbacks) == 1
    assert "frames of 90x70 run in" in text_of(list(caught))[-1]
    assert "gpu is out of memory" in text_of(list(caught))[-1]
    assert fallbacks[-1].tiles == tiles
    assert fallbacks[-1].used == fallbacks[-1].failed


def test_too_little_memory_for_a_batch_runs_its_frames_one_by_one(frame: Frame) -> None:
    frames = np.stack([frame, 255 - frame, frame[::-1]])
    gpu = ScriptedBackend("gpu", short_of_memory(above=64 * 88))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model:
        with pytest.warns(tr.FallbackWarning, match="3 of 88x64 run one by one on gpu"):
            styled = model.process(frames)
        np.testing.assert_array_equal(styled, reference("blocks", frames))
        model.process(frames)
    assert gpu.given == [(3, 64, 88, 3)] + [(1, 64, 88, 3)] * 6


def test_where_tiles_are_impossible_too_little_memory_moves_to_the_next_engine(
    frame: Frame,
) -> None:
    gpu = ScriptedBackend("gpu", short_of_memory(above=40 * 40))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model:  # looks at the whole frame
        with pytest.warns(tr.FallbackWarning, match=r"on cpu .* instead of gpu .*out of memory"):
            styled = model.process(frame)
        np.testing.assert_array_equal(styled, reference("blocks", frame))
        assert model.tiles(64, 88) == 1


def test_the_next_engine_runs_whole_what_was_too_much_even_in_the_smallest_tiles(
    photograph: Frame,
) -> None:
    gpu, cpu = ScriptedBackend("gpu", short_of_memory(above=0)), ScriptedBackend("cpu")
    with open_scripted(gpu, cpu, bundle="local4") as model:
        with pytest.warns(tr.FallbackWarning):
            enlarged = model.process(photograph)
        np.testing.assert_array_equal(enlarged, reference("local4", photograph))
        assert model.tiles(70, 90) == 1
        attempts = len(gpu.given)
        model.process(photograph)
        assert len(gpu.given) == attempts
    assert len(cpu.given) == 2


def test_a_lost_device_is_out_for_good(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.DeviceLostError, "the driver was reset"))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model:
        with pytest.warns(tr.FallbackWarning, match="the driver was reset"):
            model.process(frame)
        model.process(np.ascontiguousarray(frame[:40, :40]))  # another size: no new attempt
        explanation = model.explain()
    assert gpu.given == [(1, 64, 88, 3)]
    assert gpu.sessions[0].closed
    assert explanation.chosen is not None
    assert explanation.chosen.backend == "cpu"
    assert explanation.chosen in explanation.candidates
    lost = explanation.candidates[0]
    assert not lost.usable
    assert lost.reason == "out: the driver was reset"


def test_what_ran_a_size_may_be_lost_on_another_and_that_is_told_too(frame: Frame) -> None:
    lost = False

    def loses_its_device(given: Frame) -> tr.BackendError | None:
        nonlocal lost
        lost = lost or given.shape[1] == 40
        return tr.DeviceLostError("the driver was reset") if lost else None

    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    npu = ScriptedBackend("npu", loses_its_device)
    cpu = ScriptedBackend("cpu")
    with open_scripted(gpu, npu, cpu) as model:
        with pytest.warns(tr.FallbackWarning, match="on npu"):
            model.process(frame)
        with pytest.warns(tr.FallbackWarning) as elsewhere:
            model.process(np.ascontiguousarray(frame[:40, :40]))
        with pytest.warns(tr.FallbackWarning) as caught:
            model.process(frame)
        now = model.explain().candidate_for(64, 88)
        assert len(model.explain().fallbacks) == 2
    assert ["run on npu" in text for text in text_of(list(elsewhere))] == [True, False]
    assert text_of(list(caught)) == [
        "blocks: frames of 88x64 run on cpu fp32 [model.fp32.onnx] instead of gpu fp32"
        " [model.fp32.onnx]: kernel failed; npu fp32 [model.fp32.onnx]: the driver was reset;"
        " NOT VERIFIED against the network"
    ]
    assert now is not None
    assert now.backend == "cpu"


def test_when_every_engine_fails_the_error_names_each_and_the_next_frame_tries_again(
    frame: Frame,
) -> None:
    broken = True

    def trouble(name: str) -> Trouble:
        def tell(given: Frame) -> tr.BackendError | None:
            probe = given.shape[1:3] == (256, 256)
            return tr.BackendError(f"{name} is broken") if broken and not probe else None

        return tell

    engines = (ScriptedBackend("gpu", trouble("gpu")), ScriptedBackend("cpu", trouble("cpu")))
    with open_scripted(*engines) as model:
        with (
            pytest.warns(tr.FallbackWarning),
            pytest.raises(tr.BackendError) as caught,
        ):
            model.process(frame)
        assert "no engine is left for frames of 88x64" in str(caught.value)
        assert "gpu is broken" in str(caught.value)
        assert "cpu is broken" in str(caught.value)
        assert model.explain().fallbacks == ()
        broken = False
        np.testing.assert_array_equal(model.process(frame), reference("blocks", frame))


def test_the_error_of_the_only_engine_is_raised_as_it_is(frame: Frame) -> None:
    with (
        open_scripted(ScriptedBackend("gpu", short_of_memory(above=0))) as model,
        pytest.raises(tr.DeviceMemoryError, match=r"^gpu is out of memory$"),
    ):
        model.process(frame)


def test_an_engine_that_cannot_be_loaded_is_passed_over_with_its_reason(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    damaged, cpu = ScriptedBackend("npu"), ScriptedBackend("cpu")
    with open_scripted(gpu, damaged, cpu) as model:
        damaged.refuses = tr.BundleIntegrityError("model.fp32.onnx was changed")
        with pytest.warns(tr.FallbackWarning, match=r"on cpu .*npu .*model.fp32.onnx was changed"):
            model.process(frame)
        npu = model.explain().candidates[1]
    assert (npu.usable, npu.reason) == (False, "out: model.fp32.onnx was changed")


@pytest.mark.parametrize(
    "kind", [tr.BackendError, tr.DeviceMemoryError, tr.DeviceLostError, tr.FrameOutsideProfileError]
)
def test_a_named_backend_raises_its_error_and_nothing_else_is_loaded(
    frame: Frame, kind: type[tr.BackendError]
) -> None:
    gpu, cpu = ScriptedBackend("gpu", fails(kind, "it failed")), ScriptedBackend("cpu")
    with open_scripted(gpu, cpu, backend="gpu") as model:
        for _ in range(2):
            with pytest.raises(kind, match=r"^it failed$"):
                model.process(frame)
        assert model.explain().fallbacks == ()
    assert cpu.sessions == []


def test_a_named_backend_takes_its_other_file_for_sizes_that_the_first_was_not_built_for(
    frame: Frame,
) -> None:
    manifest = tr.read_manifest(DATA / "blocks.topcoat")
    variants = (
        built_for(manifest.variants[0], (40, 40)),
        built_for(manifest.variants[1], (64, 88)),
    )
    rtx = ScriptedBackend("rtx", files=("model.fp32.onnx", "model.fp16.onnx"))
    cpu = ScriptedBackend("cpu")
    with open_scripted(
        rtx, cpu, manifest=dataclasses.replace(manifest, variants=variants), backend="rtx"
    ) as model:
        with pytest.warns(tr.FallbackWarning, match=r"on rtx fp16 .* instead of rtx fp32"):
            model.process(frame)
        with pytest.raises(tr.FrameOutsideProfileError, match="no engine is left for frames of 8x"):
            model.process(np.ascontiguousarray(frame[:12, :8]))
    assert cpu.sessions == []


def test_a_named_backend_may_be_given_successors(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    cpu = ScriptedBackend("cpu")
    with open_scripted(cpu, gpu, backend="gpu", fallback=True) as model:
        assert model.explain().candidates[0].reason.startswith("usable, only if gpu fails")
        with pytest.warns(tr.FallbackWarning, match="on cpu"):
            model.process(frame)


def test_successors_do_not_replace_a_named_backend_that_is_missing(blocks: Path) -> None:
    name = "onnxruntime-cuda"
    if (missing := find_backend(name).missing()) is None:
        pytest.skip("this machine has a GPU and everything that it needs")
    with pytest.raises(tr.BackendUnavailableError) as caught:
        tr.open(blocks, backend=name, fallback=True)
    assert missing in str(caught.value)


def test_without_fallback_the_fastest_engine_raises_its_error(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with (
        open_scripted(gpu, ScriptedBackend("cpu", slow()), fallback=False, backend="auto") as model,
        pytest.raises(tr.BackendError, match=r"^kernel failed$"),
    ):
        model.process(frame)


def test_without_fallback_only_a_tile_lets_tiles_become_smaller(photograph: Frame) -> None:
    whole = reference("local4", photograph)

    def open_gpu(tile: int | str | None) -> tr.Model:
        gpu = ScriptedBackend("gpu", short_of_memory(above=40 * 40))
        return open_scripted(gpu, bundle="local4", backend="gpu", tile=tile)

    with open_gpu(None) as model, pytest.raises(tr.DeviceMemoryError):
        model.process(photograph)
    for tile in ("auto", 64):
        with open_gpu(tile) as model:
            with pytest.warns(tr.FallbackWarning, match=r"run in \d+ tiles on gpu"):
                enlarged = model.process(photograph)
            assert int(np.abs(enlarged.astype(int) - whole).max()) <= 1


def test_a_warning_made_into_an_exception_leaves_the_model_usable(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model:
        with pytest.raises(tr.FallbackWarning):  # the tests' filter does that
            model.process(frame)
        np.testing.assert_array_equal(model.process(frame), reference("blocks", frame))


def test_a_failure_that_is_remembered_does_not_keep_the_callers_pictures(frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model:
        picture = np.array(frame)
        gone = weakref.ref(picture)
        with pytest.warns(tr.FallbackWarning):
            model.process(picture)
        del picture
        gc.collect()
        assert gone() is None
        assert model.explain().fallbacks, "nothing was remembered"


def test_many_threads_fall_back_once(frame: Frame, caplog: pytest.LogCaptureFixture) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    wanted, wrong = reference("blocks", frame), []
    with open_scripted(gpu, ScriptedBackend("cpu")) as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", tr.FallbackWarning)

        def work() -> None:
            for _ in range(10):
                if not np.array_equal(model.process(frame), wanted):
                    wrong.append(threading.current_thread().name)
                model.explain()

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []
    assert len(gpu.given) == 1
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_what_is_remembered_about_sizes_does_not_grow_for_ever(
    monkeypatch: pytest.MonkeyPatch, frame: Frame
) -> None:
    monkeypatch.setattr(_fallback, "SIZES_KEPT", 3)
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with open_scripted(gpu, ScriptedBackend("cpu")) as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", tr.FallbackWarning)
        for height in range(8, 48, 4):
            part = np.ascontiguousarray(frame[:height])
            np.testing.assert_array_equal(model.process(part), reference("blocks", part))
        assert [f.height for f in model.explain().fallbacks] == [36, 40, 44]


def test_an_engine_is_judged_in_the_race_at_the_size_that_it_was_built_for() -> None:
    import time

    manifest = tr.read_manifest(DATA / "blocks.topcoat")
    variants = (built_for(manifest.variants[0], (512, 512)), manifest.variants[1])

    def takes(microseconds_per_kilopixel: float) -> Trouble:
        def trouble(frame: Frame) -> None:
            kilopixels = frame.shape[1] * frame.shape[2] / 1000
            time.sleep(kilopixels * microseconds_per_kilopixel * 1e-6)

        return trouble

    # Twice as fast per pixel, but its frame has four times the pixels.
    static = ScriptedBackend("rtx", takes(100))
    free = ScriptedBackend("gpu", takes(250), files=("model.fp16.onnx",))
    with open_scripted(
        free, static, manifest=dataclasses.replace(manifest, variants=variants), backend="auto"
    ) as model:
        explanation = model.explain()
    chosen, other = explanation.candidates[1], explanation.candidates[0]
    assert explanation.chosen == chosen
    assert chosen.probe_ms is not None
    assert other.probe_ms is not None
    assert chosen.probe_ms > other.probe_ms
    assert (chosen.probe_size, other.probe_size) == ((512, 512), (256, 256))
    assert "on a 512x512 frame" in chosen.reason
    assert "ns per pixel" in chosen.reason
    assert "ns per pixel" in other.reason


def test_a_bundle_file_that_was_changed_meanwhile_is_not_run(bundle: Path, frame: Frame) -> None:
    gpu = ScriptedBackend("gpu", fails(tr.BackendError, "kernel failed"))
    with open_scripted(gpu, ScriptedBackend("cpu"), manifest=tr.read_manifest(bundle)) as model:
        data = bytearray((bundle / "model.fp32.onnx").read_bytes())
        data[-1] ^= 1
        (bundle / "model.fp32.onnx").write_bytes(data)
        with pytest.raises(tr.BackendError, match=r"kernel failed.*damaged or"):
            model.process(frame)


def test_one_model_file_can_be_asked_for(blocks: Path, frame: Frame) -> None:
    with tr.open(
        blocks, backend="onnxruntime-cpu", variant="model.fp16.onnx", precision="fp16"
    ) as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert chosen.variant == "model.fp16.onnx"
    with pytest.raises(tr.BackendError, match=r"holds no model file 'x\.onnx', wanted one of"):
        tr.open(blocks, variant="x.onnx")


@pytest.fixture
def picture(tmp_path: Path, photograph: Frame) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(photograph).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def scripted_machine(monkeypatch: pytest.MonkeyPatch, *backends: Backend) -> None:
    monkeypatch.setattr("topcoat.runtime.model.all_backends", lambda: backends)


def test_the_command_line_says_each_fallback_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Path
) -> None:
    gpu = ScriptedBackend("onnxruntime-cuda", short_of_memory(above=60 * 60))
    scripted_machine(monkeypatch, gpu, ScriptedBackend("onnxruntime-cpu"))
    out = picture.with_name("out.png")
    bundle = str(DATA / "local4.topcoat")
    arguments = ["run", str(picture), str(out), "--model", bundle, "--allow-unverified"]
    arguments += ["--backend", "onnxruntime-cuda", "--fallback"]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "out of memory" in line]
    assert len(told) == 1
    assert told[0].startswith("topcoat: warning: local4: frames of 90x70 run in")
    assert lines[-1].endswith("onnxruntime-cuda fp32")
    assert "tiles" in lines[-1]

    assert main([*arguments, "--force", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["tiles"] == summary["fallbacks"][0]["tiles"] > 1
    assert summary["backend"] == "onnxruntime-cuda"


def test_the_command_line_names_the_engine_that_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Path
) -> None:
    gpu = ScriptedBackend("onnxruntime-cuda", fails(tr.BackendError, "kernel failed"))
    scripted_machine(monkeypatch, gpu, ScriptedBackend("onnxruntime-cpu"))
    out = picture.with_name("out.png")
    arguments = ["run", str(picture), str(out), "--model", str(DATA / "blocks.topcoat")]
    arguments += ["--allow-unverified", "--backend", "onnxruntime-cuda"]
    assert main([*arguments, "--fallback", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["backend"] == "onnxruntime-cpu"
    assert summary["fallbacks"][0]["failed"]["backend"] == "onnxruntime-cuda"
    assert main([*arguments, "--force", "--no-fallback"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "topcoat: kernel failed"


def test_the_command_line_leaves_the_programs_log_as_it_was(
    capsys: pytest.CaptureFixture[str], blocks: Path
) -> None:
    before = list(logging.getLogger("topcoat.runtime").handlers)
    assert main(["explain", str(blocks), "--backend", "onnxruntime-cpu"]) == 0
    capsys.readouterr()
    assert logging.getLogger("topcoat.runtime").handlers == before


def test_a_scripted_session_is_the_real_thing_where_it_does_not_fail(frame: Frame) -> None:
    manifest = tr.read_manifest(DATA / "blocks.topcoat")
    backend = ScriptedBackend("gpu")
    session = backend.load(
        manifest.variants[0], read_model(manifest, manifest.variants[0]), compute="fp32", threads=1
    )
    result = np.empty((1, *frame.shape), np.uint8)
    session.run(frame[None], result)
    np.testing.assert_array_equal(result[0], reference("blocks", frame))
