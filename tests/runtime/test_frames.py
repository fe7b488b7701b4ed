"""What a frame is, and how any size is made to fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topcoat.runtime import FrameError, SizeRule
from topcoat.runtime.frames import PadBuffers, check_frame, check_out, fit_size

GOOD = np.zeros((6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("frame", "came", "advice"),
    [
        ([[1, 2, 3]], "frame is a builtins.list", "numpy.asarray(frame)"),
        (None, "NoneType", "numpy.asarray(frame)"),
        (GOOD.astype(np.float32), "dtype float32", "(frame * 255).round()"),
        (GOOD.astype(np.uint16), "dtype uint16", "(frame >> 8)"),
        (GOOD.astype(bool), "dtype bool", "* 255"),
        (GOOD.astype(np.int8), "dtype int8", ".astype(numpy.uint8)"),
        (GOOD[..., 0], "shape (6, 8)", "numpy.repeat(frame[..., None], 3, axis=-1)"),
        (GOOD[None, None], "shape (1, 1, 6, 8, 3)", "reshape"),
        (np.zeros((6, 8, 4), np.uint8), "4 channels where 3", "frame[..., :3]"),
        (np.zeros((6, 8, 1), np.uint8), "1 channels where 3", "numpy.repeat(frame, 3"),
        (np.zeros((3, 6, 8), np.uint8), "8 channels where 3", "numpy.moveaxis(frame, -3, -1)"),
        (np.zeros((6, 8, 5), np.uint8), "5 channels where 3", "RGB frame"),
        (GOOD[:, ::2], "not C-contiguous", "numpy.ascontiguousarray(frame)"),
        (GOOD.transpose(1, 0, 2), "not C-contiguous", "numpy.ascontiguousarray(frame)"),
        (GOOD[..., ::-1], "not C-contiguous", "numpy.ascontiguousarray(frame)"),
        (np.zeros((0, 8, 3), np.uint8), "holds no pixel", "real frame"),
        (np.zeros((6, 0, 3), np.uint8), "holds no pixel", "real frame"),
        (np.zeros((0, 6, 8, 3), np.uint8), "holds no pixel", "real frame"),
    ],
)
def test_a_wrong_frame_says_what_came_and_what_to_do(frame: object, came: str, advice: str) -> None:
    with pytest.raises(FrameError) as caught:
        check_frame(frame)
    text = str(caught.value)
    assert "\n" not in text
    assert came in text
    assert advice in text


def test_the_advice_for_a_wrong_frame_works() -> None:
    grey = GOOD[..., 0]
    check_frame(np.repeat(grey[..., None], 3, axis=-1))
    check_frame(np.ascontiguousarray(np.zeros((6, 8, 4), np.uint8)[..., :3]))
    check_frame(np.ascontiguousarray(np.moveaxis(np.zeros((3, 6, 8), np.uint8), -3, -1)))
    check_frame((GOOD.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8))


def test_a_good_frame_becomes_a_batch_of_the_same_memory() -> None:
    batch = check_frame(GOOD)
    assert batch.shape == (1, 6, 8, 3)
    assert np.shares_memory(batch, GOOD)
    assert check_frame(batch) is batch


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ([1], "out is a list"),
        (np.zeros((6, 8, 3), np.float32), "out has dtype float32"),
        (np.zeros((8, 6, 3), np.uint8), "out has shape (8, 6, 3)"),
        (np.zeros((1, 6, 8, 3), np.uint8), "out has shape (1, 6, 8, 3)"),
        (np.zeros((6, 16, 3), np.uint8)[:, ::2], "out is not C-contiguous"),
        (np.broadcast_to(np.uint8(0), (6, 8, 3)), "out is not C-contiguous"),
        (GOOD, "out overlaps the frame"),
    ],
)
def test_a_wrong_buffer_says_how_to_make_one(out: object, says: str) -> None:
    with pytest.raises(FrameError) as caught:
        check_out(out, (6, 8, 3), GOOD)
    assert says in str(caught.value)
    assert "numpy.empty((6, 8, 3), numpy.uint8)" in str(caught.value)


def test_a_read_only_buffer_is_refused() -> None:
    out = np.zeros((6, 8, 3), np.uint8)
    out.flags.writeable = False
    with pytest.raises(FrameError, match="out is read-only"):
        check_out(out, (6, 8, 3), GOOD)


@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    multiple=st.integers(1, 32),
    least=st.integers(1, 4),
)
def test_the_fitted_size_is_the_smallest_that_the_rule_allows(
    height: int, width: int, multiple: int, least: int
) -> None:
    rule = SizeRule(multiple=multiple, min=multiple * least, max=None, pad="edge")
    for side, fitted in zip((height, width), fit_size(height, width, rule), strict=True):
        assert fitted % multiple == 0
        assert fitted >= max(side, rule.min)
        assert fitted - multiple < max(side, rule.min)


def test_a_frame_beyond_the_largest_size_says_so() -> None:
    rule = SizeRule(multiple=4, min=4, max=64, pad="edge")
    assert fit_size(64, 61, rule) == (64, 64)
    with pytest.raises(FrameError, match="65x10 pixels, this network takes at most 64"):
        fit_size(10, 65, rule)


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    scale=st.integers(1, 3),
)
def test_padding_repeats_the_edge_and_is_undone_exactly(
    batch: int, height: int, width: int, more: tuple[int, int], scale: int
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    pad = PadBuffers.allocate(batch, (height + more[0], width + more[1]), 3, scale)
    pad.fill(frames)
    wanted = np.pad(frames, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    np.testing.assert_array_equal(pad.source, wanted)
    pad.result[...] = wanted.repeat(scale, axis=1).repeat(scale, axis=2)
    out = np.empty((batch, height * scale, width * scale, 3), np.uint8)
    pad.crop_into(out)
    np.testing.assert_array_equal(out, frames.repeat(scale, axis=1).repeat(scale, axis=2))
