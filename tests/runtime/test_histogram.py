"""Histogram matching: a result with the colours of its frame."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import topcoat.runtime as tr
from topcoat.runtime import _histogram
from topcoat.runtime._histogram import match_histogram
from topcoat.runtime.frames import Frame

DATA = Path(__file__).parent / "data"


def noisy(shape: tuple[int, ...], mean: float, spread: float, seed: int = 0) -> Frame:
    values = np.random.default_rng(seed).normal(mean, spread, shape)
    return values.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("picture", "reference"),
    [
        (noisy((40, 50, 3), 90, 40), noisy((10, 13, 3), 150, 20, 1)),
        (noisy((40, 50, 3), 150, 20), noisy((10, 13, 3), 90, 60, 1)),
        (noisy((7, 3, 3), 128, 90), noisy((300, 2, 3), 0, 3, 1)),
        (np.full((4, 4, 3), 9, np.uint8), noisy((8, 8, 3), 128, 50)),
        (noisy((8, 8, 3), 128, 50), np.full((4, 4, 3), 200, np.uint8)),
        (np.zeros((2, 2, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)),
    ],
)
def test_it_agrees_with_scikit_image(picture: Frame, reference: Frame) -> None:
    exposure = pytest.importorskip("skimage.exposure", reason="scikit-image is not installed")
    wanted = exposure.match_histograms(picture, reference, channel_axis=-1)
    matched = picture.copy()
    match_histogram(matched, reference)
    assert np.abs(matched.astype(int) - wanted).max() <= 1


@given(seed=st.integers(0, 9), gain=st.floats(0.3, 1.0), shift=st.integers(0, 60))
def test_a_change_of_brightness_and_contrast_is_undone(seed: int, gain: float, shift: int) -> None:
    # Where no two values fell together, a picture comes back from any rising curve.
    original = noisy((30, 40, 3), 127, 30, seed) // 8 * 8
    curve = (np.arange(256) * gain + shift).clip(0, 255).astype(np.uint8)
    if len(np.unique(curve[np.unique(original)])) < len(np.unique(original)):
        return
    changed = curve[original]
    match_histogram(changed, original)
    np.testing.assert_array_equal(changed, original)


def test_a_picture_that_matches_already_stays_as_it_is() -> None:
    picture = noisy((33, 44, 3), 120, 40)
    matched = picture.copy()
    match_histogram(matched, picture)
    np.testing.assert_array_equal(matched, picture)


def test_channels_are_matched_each_for_itself() -> None:
    reference = np.dstack([noisy((50, 50), mean, 10) for mean in (40, 120, 220)])
    matched = noisy((80, 80, 3), 128, 30)
    match_histogram(matched, reference)
    np.testing.assert_allclose(matched.mean(axis=(0, 1)), reference.mean(axis=(0, 1)), atol=1)
    np.testing.assert_allclose(matched.std(axis=(0, 1)), reference.std(axis=(0, 1)), atol=1)


def test_stripes_give_the_same_as_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for stripe in (7, 50 * 3, 1 << 20):
        monkeypatch.setattr(_histogram, "_STRIPE", stripe)
        pictures.append(noisy((61, 50, 3), 90, 40))
        match_histogram(pictures[-1], noisy((9, 8, 3), 150, 20, 1))
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


@pytest.mark.parametrize("name", ["local2", "local4", "blocks"])
def test_a_model_matches_each_result_to_its_own_frame(name: str) -> None:
    frames = np.stack([noisy((24, 32, 3), mean, 25) for mean in (60, 190)])
    bundle, engine = DATA / f"{name}.topcoat", "onnxruntime-cpu"
    with tr.open(bundle, engine, threads=1) as model:
        wanted = model.process(frames)
    for result, frame in zip(wanted, frames, strict=True):
        match_histogram(result, frame)
    with tr.open(bundle, engine, threads=1, match_histogram=True) as model:
        out = np.empty_like(wanted)
        assert model.process(frames, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        np.testing.assert_array_equal(model.process(np.ascontiguousarray(frames[1])), wanted[1])


def test_tiles_are_matched_together() -> None:
    frame = noisy((40, 60, 3), 60, 25)
    frame[:, 30:] += 120  # each tile for itself would even that out
    results = []
    for tile in (None, 24):
        with tr.open(
            DATA / "local4.topcoat",
            "onnxruntime-cpu",
            precision="fp32",
            threads=1,
            tile=tile,
            match_histogram=True,
        ) as model:
            results.append(model.process(frame).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
