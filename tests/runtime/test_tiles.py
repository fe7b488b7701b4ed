"""Tiles: which windows a frame is cut into, and that their result has no seam."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import topcoat.runtime as tr
from topcoat.runtime import _tiles
from topcoat.runtime.frames import Frame, fit_size

DATA = Path(__file__).parent / "data"
Edit = Callable[[Callable[[dict[str, Any]], object]], Path]


def rule_of(
    multiple: int = 1, halo: int | None = 2, least: int = 1, most: int | None = None
) -> tr.SizeRule:
    return tr.SizeRule(multiple=multiple, min=least * multiple, max=most, pad="edge", halo=halo)


def picture(height: int, width: int, seed: int = 0) -> Frame:
    """Noise on waves: every pixel matters, so a wrong one shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 80 * np.sin(x[..., None] / 9 + np.arange(3)) + 30 * np.cos(y[..., None] / 5)
    noise = np.random.default_rng(seed).normal(0, 20, waves.shape)
    frame: Frame = (waves + noise).clip(0, 255).astype(np.uint8)
    return frame


# ---------------------------------------------------------------------------------------- geometry


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    multiple=st.integers(1, 9),
    halo=st.integers(0, 20),
    least=st.integers(1, 4),
    more=st.integers(0, 60),
)
@example(height=9, width=1, multiple=4, halo=0, least=1, more=0)
def test_windows_cover_every_pixel_once_with_all_its_context(
    height: int, width: int, multiple: int, halo: int, least: int, more: int
) -> None:
    rule = rule_of(multiple, halo, least)
    tile = _tiles.fitting_tile(_tiles.smallest_tile(rule) + more, rule)
    plan = _tiles.plan(height, width, tile, rule)
    fitted = fit_size(height, width, rule)
    # What must be equal is what an untiled run does: it sees the fitted frame.
    for side, spans, length, whole in (
        (plan.height, plan.rows, height, fitted[0]),
        (plan.width, plan.columns, width, fitted[1]),
    ):
        assert side % multiple == 0
        assert rule.min <= side <= tile
        assert spans[0].keep_from == 0
        assert spans[-1].keep_to == length
        assert spans[0].start == 0
        assert spans[-1].start + side == whole
        for before, after in itertools.pairwise(spans):
            assert before.keep_to == after.keep_from
            assert after.start > before.start
        for number, span in enumerate(spans):
            assert span.start % multiple == 0
            assert span.keep_from < span.keep_to
            if number:
                assert span.keep_from - span.start >= halo
            if number < len(spans) - 1:
                assert span.start + side - span.keep_to >= halo
    assert plan.count == len(list(plan.windows())) == len(plan.rows) * len(plan.columns)


@given(length=st.integers(1, 400), multiple=st.integers(1, 8), halo=st.integers(0, 9))
def test_no_fewer_and_no_smaller_windows_would_do(length: int, multiple: int, halo: int) -> None:
    rule = rule_of(multiple, halo)
    tile = _tiles.fitting_tile(_tiles.smallest_tile(rule) + 30, rule)
    plan = _tiles.plan(length, 1, tile, rule)
    count, context = len(plan.rows), -(-2 * halo // multiple) * multiple
    whole = fit_size(length, 1, rule)[0]

    def reach(windows: int, side: int) -> int:
        return side + (windows - 1) * (side - context)

    assert reach(count, plan.height) >= whole
    if count > 1:
        assert reach(count - 1, tile) < whole
        assert reach(count, plan.height - multiple) < whole


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    pixels=st.integers(1, 4_000_000),
    multiple=st.integers(1, 8),
)
def test_windows_for_a_share_of_the_memory_stay_within_it(
    height: int, width: int, pixels: int, multiple: int
) -> None:
    rule = rule_of(multiple, 5)
    tile = _tiles.tile_within(height, width, pixels, rule)
    plan = _tiles.plan(height, width, tile, rule)
    least = _tiles.smallest_tile(rule)
    if tile > least:
        # Padding to the multiple may add a little to a side that the frame itself limits.
        assert min(plan.height, height) * min(plan.width, width) <= pixels
    assert plan.height <= max(tile, least)


# -------------------------------------------------------------------------------------- no seams


@pytest.mark.parametrize("name", ["local2", "local4", "local8"])
@pytest.mark.parametrize("size", [(70, 91), (64, 64), (33, 150), (5, 47), (2, 3), (41, 24)])
@pytest.mark.parametrize("tile", [16, 23, 40])
def test_tiles_give_what_the_whole_frame_gives(
    make_bundles: ModuleType, name: str, size: tuple[int, int], tile: int
) -> None:
    bundle, engine = DATA / f"{name}.topcoat", "onnxruntime-cpu"
    frame, scale = picture(*size), make_bundles.LOCAL[name][0]
    fits = fit_size(*size, tr.read_manifest(bundle).size)
    more = [(0, fit - side) for fit, side in zip(fits, size, strict=True)]
    fitted = np.pad(frame, (*more, (0, 0)), mode="edge")
    wanted = make_bundles.local(name, fitted[None])[0, : size[0] * scale, : size[1] * scale]
    with tr.open(bundle, backend=engine, precision="fp32", threads=1, tile=tile) as model:
        tiled = model.process(frame)
        assert (model.tiles(*size) > 1) == (max(fitted.shape) > tile)
    with tr.open(bundle, backend=engine, precision="fp32", threads=1) as model:
        whole = model.process(frame)
        assert model.tiles(*size) == 1
    for other in (whole, wanted):
        assert np.abs(tiled.astype(int) - other).max() <= 1


def test_tiles_have_no_seam_on_any_backend(backend: str) -> None:
    frame = picture(61, 83)
    results = []
    for tile in (None, 24):
        with tr.open(
            DATA / "local4.topcoat", backend=backend, precision="fp32", threads=1, tile=tile
        ) as model:
            results.append(model.process(frame).astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1


def test_a_halo_that_is_too_small_would_be_noticed(tmp_path: Path) -> None:
    # The tests above would be worth nothing if their networks did not look that far.
    bundle = Path(shutil.copytree(DATA / "local2.topcoat", tmp_path / "b.topcoat"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["size"]["halo"] = 3
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    frame = picture(61, 83)
    results = []
    for tile in (None, 16):
        with tr.open(bundle, backend="onnxruntime-cpu", threads=1, tile=tile) as model:
            results.append(model.process(frame).astype(int))
    assert np.abs(results[0] - results[1]).max() > 10


def test_a_batch_in_tiles_is_its_frames_one_by_one() -> None:
    frames = np.stack([picture(50, 61, seed) for seed in range(3)])
    seen: list[tuple[int, int]] = []
    with tr.open(DATA / "local4.topcoat", "onnxruntime-cpu", threads=1, tile=20) as model:
        out = np.empty((3, 200, 244, 3), np.uint8)
        together = model.process(frames, out=out, on_tile=lambda *step: seen.append(step))
        assert together is out
        per_frame = model.tiles(50, 61)
        assert per_frame > 1
        for frame, larger in zip(frames, together, strict=True):
            np.testing.assert_array_equal(model.process(np.ascontiguousarray(frame)), larger)
    assert seen == [(i + 1, 3 * per_frame) for i in range(3 * per_frame)]


class Recorder:
    """A session that copies its input, enlarged, and remembers what it was given."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.shapes: list[tuple[int, ...]] = []
        self.addresses: set[tuple[int, int]] = set()

    def run(self, source: Frame, result: Frame) -> None:
        self.shapes.append(source.shape)
        self.addresses.add((source.ctypes.data, result.ctypes.data))
        result[...] = source.repeat(self.scale, axis=1).repeat(self.scale, axis=2)

    def close(self) -> None: ...


def recorded(**options: Any) -> tuple[tr.Model, Recorder]:  # noqa: ANN401 - of tr.Model
    manifest = tr.read_manifest(DATA / "local4.topcoat")
    for key in ("size", "memory_per_pixel"):
        if key in options:
            manifest = dataclasses.replace(manifest, **{key: options.pop(key)})
    session = Recorder(manifest.scale)
    chosen = tr.Candidate(
        backend="recorder", compute="fp32", variant="m.onnx", usable=True, reason="chosen"
    )
    explanation = tr.Explanation(
        bundle="b",
        asked_backend="auto",
        asked_precision=None,
        threads=1,
        chosen=chosen,
        candidates=(chosen,),
    )
    return tr.Model(manifest, explanation, session, **options), session


def test_all_tiles_of_a_size_have_one_shape_and_one_pair_of_buffers() -> None:
    model, session = recorded(tile=32)
    frame = picture(101, 77)
    for _ in range(2):
        larger = model.process(frame)
        np.testing.assert_array_equal(larger, frame.repeat(4, axis=0).repeat(4, axis=1))
    assert len(session.shapes) == 2 * model.tiles(101, 77)
    assert len(set(session.shapes)) == 1
    assert max(session.shapes[0][1:3]) <= 32
    assert len(session.addresses) == 1


def test_a_frame_no_larger_than_the_tile_is_not_copied() -> None:
    model, session = recorded(tile=64)
    frame, out = picture(64, 40), np.empty((256, 160, 3), np.uint8)
    model.process(frame, out=out)
    assert session.addresses == {(frame.ctypes.data, out.ctypes.data)}


# ----------------------------------------------------------------------------------------- "auto"


def test_auto_cuts_only_what_takes_more_than_half_of_the_memory() -> None:
    # 100 bytes per pixel, a million available: half of it holds 5000 pixels.
    model, session = recorded(tile="auto", memory_per_pixel=100, available=lambda: 1_000_000)
    model.process(picture(50, 100))
    assert session.shapes == [(1, 50, 100, 3)]
    model.process(picture(51, 100))
    assert len(session.shapes) == 1 + model.tiles(51, 100) > 2
    assert all(np.prod(shape[:3]) <= 5000 for shape in session.shapes)


def test_auto_counts_a_whole_batch_and_then_runs_its_frames_one_by_one() -> None:
    model, session = recorded(tile="auto", memory_per_pixel=100, available=lambda: 1_000_000)
    frames = np.stack([picture(50, 60, seed) for seed in range(2)])
    np.testing.assert_array_equal(model.process(frames)[:, ::4, ::4], frames)
    assert session.shapes == [(1, 50, 60, 3)] * 2
    assert (model.tiles(50, 60, batch=2), model.tiles(50, 60)) == (1, 1)


def test_auto_decides_once_per_size() -> None:
    amounts = iter([1_000_000, 100])
    model, _ = recorded(tile="auto", memory_per_pixel=100, available=lambda: next(amounts))
    assert [model.tiles(50, 100) for _ in range(3)] == [1, 1, 1]
    assert model.tiles(50, 99) > 1  # with the 100 bytes that are left: the smallest tiles there are


@pytest.mark.parametrize(
    "unsaid",
    [
        {"memory_per_pixel": None, "available": lambda: 1},
        {"memory_per_pixel": 10**6, "available": lambda: None},
        {"memory_per_pixel": 10**6, "available": lambda: 1, "size": rule_of(halo=None)},
    ],
)
def test_auto_does_not_cut_where_it_knows_too_little(unsaid: dict[str, Any]) -> None:
    model, session = recorded(tile="auto", **unsaid)
    model.process(picture(50, 100))
    assert session.shapes == [(1, 50, 100, 3)]


def test_a_frame_larger_than_the_network_takes_runs_in_tiles() -> None:
    frame = picture(12, 310)
    with tr.open(DATA / "local8.topcoat", "onnxruntime-cpu", threads=1) as model:
        with pytest.raises(tr.FrameError, match="at most 300 on each side"):
            model.process(frame)
        left = model.process(np.ascontiguousarray(frame[:, :200]))
    for tile in ("auto", 1000):
        with tr.open(DATA / "local8.topcoat", "onnxruntime-cpu", threads=1, tile=tile) as model:
            larger = model.process(frame)
            assert model.tiles(12, 310) == 2
        assert larger.shape == (96, 2480, 3)
        assert np.abs(larger[:, : 190 * 8].astype(int) - left[:, : 190 * 8]).max() <= 1


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("tile", "says"),
    [
        (0, "tile is 0, wanted the largest side"),
        (-5, "tile is -5, wanted the largest side"),
        (2.5, "tile is 2.5, wanted"),
        (True, "tile is True, wanted"),
        ("big", "tile is 'big', wanted the largest side of a tile in pixels, 'auto' or None"),
        (10, "5 pixels of context on each side; the smallest that works is 12"),
    ],
)
def test_a_wrong_tile_says_what_is_wanted(tile: Any, says: str) -> None:  # noqa: ANN401
    with pytest.raises(tr.TileError) as caught:
        tr.open(DATA / "local2.topcoat", "onnxruntime-cpu", tile=tile)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_smallest_tile_that_works_works() -> None:
    tile: Any = np.int64(12)
    with tr.open(DATA / "local2.topcoat", "onnxruntime-cpu", threads=1, tile=tile) as model:
        assert model.process(picture(31, 30)).shape == (62, 60, 3)
        assert model.tiles(31, 30) == 11 * 10


def test_a_network_that_looks_at_the_whole_frame_is_not_cut(blocks: Path) -> None:
    with pytest.raises(tr.TileError, match="looks at the whole frame") as caught:
        tr.open(blocks, tile=256)
    assert "leave out the tile" in str(caught.value)
    with tr.open(blocks, "onnxruntime-cpu", tile="auto", threads=1) as model:
        assert model.tiles(5000, 5000) == 1


def test_a_network_that_takes_less_than_its_context_is_not_cut() -> None:
    tight = rule_of(multiple=4, halo=9, least=1, most=20)
    with pytest.raises(tr.TileError, match="would need 24 pixels on each side"):
        recorded(tile=100, size=tight)
    model, _ = recorded(tile="auto", size=tight)
    with pytest.raises(tr.FrameError, match="at most 20 on each side"):
        model.tiles(21, 4)


def test_what_a_callback_raises_ends_the_call_and_not_the_model() -> None:
    def stop(done: int, total: int) -> None:
        assert total > 2
        if done == 2:
            raise KeyboardInterrupt

    frame = picture(50, 61)
    with tr.open(DATA / "local4.topcoat", "onnxruntime-cpu", threads=1, tile=20) as model:
        with pytest.raises(KeyboardInterrupt):
            model.process(frame, on_tile=stop)
        assert model.process(frame).shape == (200, 244, 3)
