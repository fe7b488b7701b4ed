"""open() and process(): right pictures for every size, into the right memory."""

import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import topcoat.runtime as tr
from topcoat.runtime.backends import find_backend
from topcoat.runtime.frames import Frame


def padded(frame: Frame, height: int, width: int) -> Frame:
    more = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
    return np.pad(frame, more, mode="edge")


def assert_within_a_step(came: Frame, wanted: Frame) -> None:
    # Means of sixteen bytes fall on .5 exactly; engines add them up in different orders.
    assert came.shape == wanted.shape
    worst = int(np.abs(came.astype(int) - wanted).max())
    assert worst <= 1, f"differs by up to {worst} steps"


def test_a_frame_that_fits_gives_what_numpy_says(
    blocks: Path, backend: str, make_bundles: ModuleType, photograph: Frame
) -> None:
    frame = np.ascontiguousarray(photograph[:64, :88])
    with tr.open(blocks, backend=backend, precision="fp32", threads=1) as model:
        styled = model.process(frame)
    assert_within_a_step(styled, make_bundles.blocks(frame[None])[0])
    assert styled.flags.c_contiguous
    assert styled.dtype == np.uint8


@pytest.mark.parametrize("size", [(70, 90), (1, 1), (3, 200), (65, 64), (8, 8), (7, 9)])
def test_a_frame_that_does_not_fit_is_padded_with_its_edge_and_cropped(
    blocks: Path, backend: str, make_bundles: ModuleType, photograph: Frame, size: tuple[int, int]
) -> None:
    height, width = size
    frame = np.resize(photograph, (height, width, 3))
    fitted = padded(frame, max(8, -(-height // 4) * 4), max(8, -(-width // 4) * 4))
    with tr.open(blocks, backend=backend, precision="fp32", threads=1) as model:
        styled = model.process(frame)
    assert_within_a_step(styled, make_bundles.blocks(fitted[None])[0][:height, :width])


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (64, 64)])
def test_a_network_with_a_scale_gives_a_larger_picture(
    double: Path, backend: str, make_bundles: ModuleType, photograph: Frame, size: tuple[int, int]
) -> None:
    frame = np.ascontiguousarray(photograph[: size[0], : size[1]])
    with tr.open(double, backend=backend, precision="fp32", threads=1) as model:
        np.testing.assert_array_equal(model.process(frame), make_bundles.double(frame[None])[0])


def test_a_batch_is_its_frames_one_by_one(blocks: Path, backend: str, photograph: Frame) -> None:
    frames = np.stack([photograph, photograph[::-1], 255 - photograph])
    with tr.open(blocks, backend=backend, precision="fp32", threads=1) as model:
        together = model.process(frames)
        assert together.shape == frames.shape
        for frame, styled in zip(frames, together, strict=True):
            assert_within_a_step(model.process(np.ascontiguousarray(frame)), styled)


@pytest.mark.parametrize("size", [(64, 88), (70, 90)])
def test_the_result_goes_into_the_callers_buffer(
    blocks: Path, backend: str, photograph: Frame, size: tuple[int, int]
) -> None:
    frame = np.ascontiguousarray(photograph[: size[0], : size[1]])
    with tr.open(blocks, backend=backend, threads=1) as model:
        wanted = model.process(frame)
        buffer = np.full_like(frame, 7)
        assert model.process(frame, out=buffer) is buffer
        np.testing.assert_array_equal(buffer, wanted)
        batch = np.empty((1, *frame.shape), np.uint8)
        assert model.process(frame[None], out=batch) is batch
        np.testing.assert_array_equal(batch[0], wanted)


def test_results_do_not_share_memory(blocks: Path, backend: str, photograph: Frame) -> None:
    with tr.open(blocks, backend=backend, threads=1) as model:
        first = model.process(photograph)
        kept = first.copy()
        second = model.process(255 - photograph)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


def test_a_frame_may_be_read_only_and_is_left_alone(
    blocks: Path, backend: str, photograph: Frame
) -> None:
    frame = photograph[:64, :88].copy()
    before = frame.copy()
    with tr.open(blocks, backend=backend, threads=1) as model:
        wanted = model.process(frame)
        frame.flags.writeable = False
        np.testing.assert_array_equal(model.process(frame), wanted)
    np.testing.assert_array_equal(frame, before)


def test_sizes_may_change_from_frame_to_frame(
    blocks: Path, backend: str, photograph: Frame
) -> None:
    sizes = [(64, 64), (33, 9), (64, 64), (34, 10), (70, 90), (8, 12), (16, 20), (24, 28), (64, 64)]
    with tr.open(blocks, backend=backend, threads=1) as model:
        seen: dict[tuple[int, int], Frame] = {}
        for height, width in sizes:
            frame = np.ascontiguousarray(photograph[:height, :width])
            styled = model.process(frame)
            np.testing.assert_array_equal(styled, seen.setdefault((height, width), styled))


def test_a_frame_whose_content_changed_in_place_is_run_anew(
    double: Path, backend: str, photograph: Frame
) -> None:
    frame, out = photograph.copy(), np.empty((140, 180, 3), np.uint8)
    with tr.open(double, backend=backend, threads=1) as model:
        model.process(frame, out=out)
        frame[...] = 255 - frame
        model.process(frame, out=out)
        np.testing.assert_array_equal(out[::2, ::2], 255 - frame)


def test_frames_from_many_threads_come_out_right(blocks: Path, photograph: Frame) -> None:
    frames = [np.ascontiguousarray(photograph[: 20 + i, : 40 + i]) for i in range(6)]
    with tr.open(blocks, backend="onnxruntime-cpu", threads=1) as model:
        wanted = [model.process(frame) for frame in frames]
        wrong: list[int] = []

        def work(which: int) -> None:
            for _ in range(20):
                if not np.array_equal(model.process(frames[which]), wanted[which]):
                    wrong.append(which)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(frames))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_a_bad_frame_leaves_the_buffer_and_the_model_as_they_were(
    blocks: Path, photograph: Frame
) -> None:
    buffer = np.full(photograph.shape, 9, np.uint8)
    with tr.open(blocks, backend="onnxruntime-cpu") as model:
        with pytest.raises(tr.FrameError):
            model.process(photograph.astype(np.float32), out=buffer)
        with pytest.raises(tr.FrameError):
            model.process(photograph, out=buffer[:-1])
        assert (buffer == 9).all()
        model.process(photograph, out=buffer)
        assert not (buffer == 9).all()


def test_use_after_close_says_so(blocks: Path, photograph: Frame) -> None:
    model = tr.open(blocks, backend="onnxruntime-cpu")
    model.close()
    model.close()
    with pytest.raises(tr.ModelClosedError, match="blocks was closed; open the bundle again"):
        model.process(photograph)
    assert model.explain().chosen is not None
    assert "(closed)" in repr(model)


def test_the_backends_agree_with_each_other(blocks: Path, photograph: Frame) -> None:
    if (missing := find_backend("openvino-cpu").missing()) is not None:
        pytest.skip(missing)
    results = []
    for name in ("onnxruntime-cpu", "openvino-cpu"):
        with tr.open(blocks, backend=name, precision="fp32", threads=1) as model:
            results.append(model.process(photograph))
    assert_within_a_step(*results)


def test_fp16_runs_when_it_is_asked_for(
    blocks: Path, backend: str, make_bundles: ModuleType, photograph: Frame
) -> None:
    frame = np.ascontiguousarray(photograph[:64, :88])
    with tr.open(blocks, backend=backend, precision="fp16", threads=1) as model:
        chosen = model.explain().chosen
        assert chosen is not None
        assert (chosen.variant, chosen.compute) == ("model.fp16.onnx", "fp16")
        assert_within_a_step(model.process(frame), make_bundles.blocks(frame[None])[0])


def test_a_frame_that_fits_is_not_copied(blocks: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.addresses: list[tuple[int, int]] = []

        def run(self, source: Frame, result: Frame) -> None:
            self.addresses.append((source.ctypes.data, result.ctypes.data))

        def close(self) -> None: ...

    with tr.open(blocks, backend="onnxruntime-cpu") as opened:
        explanation = opened.explain()
    session = Recorder()
    model = tr.Model(tr.read_manifest(blocks), explanation, session)
    frame, out = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    model.process(frame, out=out)
    assert session.addresses == [(frame.ctypes.data, out.ctypes.data)]
    odd = np.zeros((63, 61, 3), np.uint8)
    model.process(odd)
    model.process(odd + 1)
    assert session.addresses[1] == session.addresses[2], "the padding buffers were not reused"


@pytest.mark.parametrize("threads", [0, -1])
def test_a_wrong_number_of_threads_is_refused(blocks: Path, threads: int) -> None:
    with pytest.raises(tr.BackendError, match="wanted at least 1"):
        tr.open(blocks, threads=threads)
