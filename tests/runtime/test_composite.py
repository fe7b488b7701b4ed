"""Strength, mask and blend: exact at the ends, within one step of the formula between them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.runtime.allocations import peak_growth
from topcoat.runtime._errors import FrameError, PassError
from topcoat.runtime.frames import Frame
from topcoat.runtime.render_pass._composite import BLENDS, Blend, Compositor

HEIGHT, WIDTH = 37, 241  # 8917 pixels: one whole block and a piece of one


def pictures(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> tuple[Frame, Frame]:
    rng = np.random.default_rng(seed)
    frame, styled = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    styled[:2] = frame[:2]
    frame[2:4], styled[2:4] = 0, 255
    frame[4:6], styled[4:6] = 255, 0
    return frame, styled


def a_mask(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    mask = np.random.default_rng(7).integers(0, 256, (height, width), dtype=np.uint8)
    mask[:, :5], mask[:, 5:9] = 0, 255
    return mask


def luma_difference(frame: Frame, styled: Frame) -> NDArray[np.float64]:
    difference = styled.astype(np.float64) - frame
    return np.asarray(difference @ np.array([0.299, 0.587, 0.114]), np.float64)


def blended(frame: Frame, styled: Frame, blend: Blend) -> NDArray[np.float64]:
    """The definition, unrounded."""
    if blend == "normal":
        return styled.astype(np.float64)
    difference = luma_difference(frame, styled)[..., None]
    picture = frame + difference if blend == "luminance" else styled - difference
    return picture.clip(0, 255)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [0.004, 0.1, 0.25, 0.5, 1 / 3, 0.9, 0.999, 1.0])
def test_every_value_lies_within_a_step_of_the_formula(
    blend: Blend, masked: bool, strength: float
) -> None:
    frame, styled = pictures()
    mask = a_mask() if masked else None
    out = np.empty_like(frame)
    Compositor(HEIGHT, WIDTH).compose(frame, styled, out, strength=strength, mask=mask, blend=blend)
    share = strength * (1.0 if mask is None else mask[..., None] / 255)
    exact = frame + (blended(frame, styled, blend) - frame) * share
    error = np.abs(out - exact)
    # Rounding: half a step; weights in 256ths: half; luma: half, and 0.82 for weights in 128ths.
    assert error.max() <= (1.0 if blend == "normal" else 2.33)
    assert error.mean() <= 0.5


def test_half_way_is_rounded_up() -> None:
    frame, styled = pictures()
    out = np.empty_like(frame)
    Compositor(HEIGHT, WIDTH).compose(frame, styled, out, strength=0.5)
    np.testing.assert_array_equal(out, (frame.astype(int) + styled + 1) // 2)


@pytest.mark.parametrize("blend", BLENDS)
def test_strength_0_is_the_frame_bit_for_bit(blend: Blend) -> None:
    frame, styled = pictures()
    for mask in (None, a_mask()):
        out = np.full_like(frame, 77)
        Compositor(HEIGHT, WIDTH).compose(frame, styled, out, strength=0.0, mask=mask, blend=blend)
        np.testing.assert_array_equal(out, frame)


def test_strength_1_is_the_styled_picture_bit_for_bit() -> None:
    frame, styled = pictures()
    compositor = Compositor(HEIGHT, WIDTH)
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for mask in (None, whole):
        out = np.zeros_like(frame)
        compositor.compose(frame, styled, out, strength=1.0, mask=mask)
        np.testing.assert_array_equal(out, styled)


@pytest.mark.parametrize("blend", ["luminance", "colour"])
def test_strength_1_is_the_blended_picture_whether_or_not_a_mask_says_so(blend: Blend) -> None:
    frame, styled = pictures()
    compositor = Compositor(HEIGHT, WIDTH)
    plain, masked = np.empty_like(frame), np.empty_like(frame)
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    compositor.compose(frame, styled, plain, strength=1.0, blend=blend)
    compositor.compose(frame, styled, masked, strength=1.0, mask=whole, blend=blend)
    np.testing.assert_array_equal(plain, masked)
    assert not np.array_equal(plain, styled)


@given(
    seed=st.integers(0, 1000),
    strength=st.floats(0, 1),
    blend=st.sampled_from(BLENDS),
    masked=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_picture_that_equals_its_frame_stays_as_it_is(
    seed: int, strength: float, blend: Blend, masked: bool
) -> None:
    frame, _ = pictures(9, 13, seed)
    out = np.empty_like(frame)
    mask = a_mask(9, 13) if masked else None
    Compositor(9, 13).compose(frame, frame.copy(), out, strength=strength, mask=mask, blend=blend)
    np.testing.assert_array_equal(out, frame)


@pytest.mark.parametrize("blend", BLENDS)
def test_a_mask_of_0_keeps_the_frame_bit_for_bit(blend: Blend) -> None:
    frame, styled = pictures()
    mask = a_mask()
    out = np.empty_like(frame)
    Compositor(HEIGHT, WIDTH).compose(frame, styled, out, strength=0.8, mask=mask, blend=blend)
    np.testing.assert_array_equal(out[mask == 0], frame[mask == 0])
    assert (out[mask == 255] != frame[mask == 255]).any()


def test_luminance_keeps_the_frames_colours_and_colour_its_luma() -> None:
    rng = np.random.default_rng(3)
    frame = rng.integers(90, 160, (20, 30, 3), dtype=np.uint8)  # nothing clips
    styled = rng.integers(90, 160, (20, 30, 3), dtype=np.uint8)
    compositor = Compositor(20, 30)
    strokes, paint = np.empty_like(frame), np.empty_like(frame)
    compositor.compose(frame, styled, strokes, strength=1.0, blend="luminance")
    compositor.compose(frame, styled, paint, strength=1.0, blend="colour")
    added = strokes.astype(int) - frame
    assert (added == added[..., :1]).all()  # the same on all channels: no chroma changes
    assert np.abs(luma_difference(strokes, styled)).max() <= 1
    taken = styled.astype(int) - paint
    assert (taken == taken[..., :1]).all()
    assert np.abs(luma_difference(frame, paint)).max() <= 1


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("target", ["styled", "frame"])
def test_the_result_may_lie_where_the_styled_picture_or_the_frame_lay(
    blend: Blend, target: str
) -> None:
    frame, styled = pictures()
    mask = a_mask()
    compositor = Compositor(HEIGHT, WIDTH)
    apart = np.empty_like(frame)
    for strength in (0.0, 0.6, 1.0):
        compositor.compose(frame, styled, apart, strength=strength, mask=mask, blend=blend)
        given_frame, given_styled = frame.copy(), styled.copy()
        out = given_styled if target == "styled" else given_frame
        compositor.compose(
            given_frame, given_styled, out, strength=strength, mask=mask, blend=blend
        )
        np.testing.assert_array_equal(out, apart)


def test_more_strength_never_moves_a_value_back() -> None:
    frame, styled = pictures()
    compositor = Compositor(HEIGHT, WIDTH)
    before = frame.astype(int)
    towards = np.sign(styled.astype(int) - frame)
    for strength in np.linspace(0, 1, 33):
        out = np.empty_like(frame)
        compositor.compose(frame, styled, out, strength=float(strength))
        assert ((out - before) * towards >= 0).all()
        before = out.astype(int)


def test_compositing_allocates_nothing_per_frame() -> None:
    frame, styled = pictures(90, 160)
    out = np.empty_like(frame)
    mask = a_mask(90, 160)
    compositor = Compositor(90, 160)

    def every_way() -> None:
        for blend in BLENDS:
            for masked in (None, mask):
                for strength in (0.0, 0.5, 1.0):
                    compositor.compose(
                        frame, styled, out, strength=strength, mask=masked, blend=blend
                    )

    assert peak_growth(every_way) < 16 * 1024


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"strength": 1.5}, "strength is 1.5, wanted 0"),
        ({"strength": float("nan")}, "strength is nan, wanted 0"),
        ({"blend": "screen"}, "blend is 'screen', wanted one of normal, luminance, colour"),
        ({"frame": np.zeros((4, 5, 3), np.float32)}, r"frame is float32 of shape \(4, 5, 3\)"),
        ({"styled": np.zeros((4, 6, 3), np.uint8)}, r"styled is uint8 of shape \(4, 6, 3\)"),
        ({"mask": np.zeros((4, 5, 1), np.uint8)}, r"mask is .*wanted .* of shape \(4, 5\)"),
        ({"mask": [1, 2]}, "mask is a list"),
        ({"frame": np.zeros((4, 10, 3), np.uint8)[:, ::2]}, "frame is .*not C-contiguous"),
    ],
)
def test_what_cannot_be_composited_is_refused_and_leaves_the_result_alone(
    changed: dict[str, Any], says: str
) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    out = np.full_like(picture, 9)
    arguments: dict[str, Any] = {"frame": picture, "styled": picture + 1, "out": out}
    arguments |= {"strength": 0.5} | changed
    with pytest.raises((FrameError, PassError), match=says) as caught:
        Compositor(4, 5).compose(**arguments)
    assert "\n" not in str(caught.value)
    assert (out == 9).all()
