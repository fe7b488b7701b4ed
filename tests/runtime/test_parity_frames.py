"""The frames that engines are compared on, the matrix of engines, and any reference."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import topcoat.runtime as tr
from tests.runtime.golden import png
from topcoat.runtime.backends import all_backends
from topcoat.runtime.bundle import ENGINE_KINDS, Profile
from topcoat.runtime.frames import Frame
from topcoat.runtime.parity import (
    OFFERS,
    ParityError,
    ProbeFrame,
    engine_here,
    engines_for,
    measure_parity,
    noise_probes,
    picture_probes,
    size_probes,
    synthetic_probes,
)
from topcoat.runtime.parity._png import frame_from_png
from topcoat.runtime.parity._probes import cut_frame, profile_probes


def random_frame(height: int, width: int) -> Frame:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ----------------------------------------------------------------------------------------- pictures


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_png_is_read_as_it_was_written(height: int, width: int, filters: list[int]) -> None:
    frame = random_frame(height, width)
    np.testing.assert_array_equal(frame_from_png(png(frame, filters)), frame)


def test_a_png_is_read_as_pillow_reads_and_writes_it(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    y, x = np.mgrid[0:60, 0:90]
    frame = np.stack([x * 2, y * 3, (x * y) % 256], axis=-1).astype(np.uint8)
    image.fromarray(frame).save(tmp_path / "p.png", optimize=True)
    np.testing.assert_array_equal(frame_from_png((tmp_path / "p.png").read_bytes()), frame)
    (tmp_path / "own.png").write_bytes(png(frame, range(5)))
    with image.open(tmp_path / "own.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), frame)


GOOD = png(random_frame(4, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PNG"),
        (GOOD[:-1], "cut off"),
        (GOOD[:30], "cut off"),
        (GOOD[:20] + b"\xff" + GOOD[21:], "damaged"),
        (GOOD[:-12], "cut off"),
    ],
)
def test_a_png_that_is_damaged_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_from_png(data)


def test_every_single_damaged_byte_of_a_png_is_noticed() -> None:
    wanted = frame_from_png(GOOD)
    for place in range(8, len(GOOD)):
        data = bytearray(GOOD)
        data[place] ^= 0x10
        try:
            came = frame_from_png(bytes(data))
        except ValueError:
            continue
        np.testing.assert_array_equal(came, wanted)


def test_pngs_of_other_kinds_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.new("RGBA", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="not RGB of 8 bits"):
        frame_from_png((tmp_path / "p.png").read_bytes())


# ------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize(("height", "width"), [(3, 4), (10, 7), (1, 40), (5, 6)])
def test_a_small_picture_is_continued_by_its_mirror_image(height: int, width: int) -> None:
    whole = random_frame(5, 6)
    piece = cut_frame(whole, height, width)
    assert piece.shape == (height, width, 3)
    assert piece.flags.c_contiguous
    values = {tuple(pixel) for pixel in whole.reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in piece.reshape(-1, 3).tolist()} <= values
    if (height, width) == (10, 7):
        np.testing.assert_array_equal(piece[2:7, :6], whole)
        np.testing.assert_array_equal(piece[1], piece[2])


@pytest.mark.parametrize(("least", "scale"), [(1, 1), (8, 1), (44, 1), (1, 4), (4, 8)])
def test_odd_sizes_and_batches_come_out_of_any_picture(least: int, scale: int) -> None:
    picture = ProbeFrame(name="p", group="photographs", frame=random_frame(24, 32))
    frames = size_probes([picture, *picture_probes("p", picture.frame)], least, scale)
    assert {probe.group for probe in frames} == {"sizes", "tiny"}
    (batch, *_) = (probe.frame for probe in frames if probe.frame.ndim == 4 and len(probe.frame))
    assert not np.array_equal(batch[0], batch[-1]) or len(batch) == 1
    assert (least, least, 3) in {probe.frame.shape for probe in frames}


def test_an_engine_is_compared_at_the_sizes_that_it_was_built_for() -> None:
    profile = Profile(min=(32, 32), opt=(64, 96), max=(4000, 4000))
    pictures = [
        ProbeFrame(name=name, group="photographs", frame=random_frame(24, 32)) for name in "ab"
    ]
    found = profile_probes([profile], pictures, lambda height, width: height * width < 10**6)
    shapes = [(probe.group, probe.frame.shape[:2]) for probe in found]
    assert shapes.count(("photographs", (64, 96))) == 2
    assert shapes.count(("photographs", (32, 32))) == 1
    kinds = {probe.name.split()[0] for probe in found if probe.group == "synthetic"}
    assert kinds == {"black", "white", "noise", "gradient"}
    assert not [size for _, size in shapes if size == (4000, 4000)]
    noise = profile_probes([profile], [], lambda height, width: height * width < 10**6)
    assert [(probe.group, probe.frame.shape[:2]) for probe in noise] == [
        ("noise", (64, 96)),
        ("noise", (32, 32)),
    ]


def test_no_frame_comes_twice() -> None:
    for frames in (noise_probes(16, 32), synthetic_probes(8, 1)):
        names = [(probe.group, probe.name) for probe in frames]
        assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------------------- matrix


def test_every_backend_has_its_place_in_the_matrix() -> None:
    onnx = {backend.name for backend in all_backends()} - set(ENGINE_KINDS)
    assert onnx <= set(OFFERS)


def test_everything_that_can_run_here_has_a_row(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks)
    rows = engines_for(manifest.variants)
    listed = {(row.file, row.backend, row.compute) for row in rows}
    assert len(listed) == len(rows)
    for backend in all_backends():
        if backend.missing() is None:
            for variant in manifest.variants:
                for offer in backend.computes(variant):
                    assert (variant.file, backend.name, offer.compute) in listed
    assert [row.backend for row in rows if row.required] == ["onnxruntime-cpu"] * 2
    # Each file's required row comes first: the others may need it as their reference.
    assert next(row.required for row in rows if row.file == "model.fp16.onnx")


def test_what_this_machine_lacks_has_a_row_with_the_reason(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks)
    variants = {variant.file: variant for variant in manifest.variants}
    absent = {backend.name for backend in all_backends() if backend.missing() is not None}
    for row in engines_for(manifest.variants):
        offer = engine_here(row, variants[row.file])
        if row.backend in absent:
            assert isinstance(offer, str)
            assert len(offer) > 10


class Doubling:
    """The network of double.topcoat: the negative, every pixel four times."""

    name = "numpy"
    scale = 2
    size_multiple = 1
    size_min = 1

    def __init__(self, brighter: float = 0.0) -> None:
        self._brighter = brighter

    def answer(self, frame: Frame) -> NDArray[np.float32]:
        batch = frame if frame.ndim == 4 else frame[None]
        exact = (255 - batch).astype(np.float32) + np.float32(self._brighter)
        found: NDArray[np.float32] = exact.clip(0, 255).repeat(2, axis=1).repeat(2, axis=2)
        return found


@pytest.mark.parametrize(("brighter", "passes"), [(0.0, True), (0.3, True), (2.0, False)])
def test_anything_that_answers_frames_can_be_the_reference(
    double: Path, brighter: float, passes: bool
) -> None:
    engines = [
        engine
        for engine in engines_for(tr.read_manifest(double).variants)
        if engine.backend == "onnxruntime-cpu"
    ]
    probe = ProbeFrame(name="p", group="photographs", frame=random_frame(20, 30))
    greys = np.array([90, 45], np.uint8).reshape(2, 1, 1, 1)
    flat = ProbeFrame(name="flat", group="flat", frame=np.tile(greys, (1, 4, 4, 3)))
    report = measure_parity(double, Doubling(brighter), [probe, flat], engines)
    assert bool(report) is passes
    (row,) = report.rows
    assert row.reference == "numpy"
    # 0.3 of a step is too near to a rounding edge to hold an engine to it.
    assert list(report.flat_judged) == ([] if brighter == 0.3 else ["#5a5a5a", "#2d2d2d"])
    assert report.to_json()["flat_judged"] == list(report.flat_judged)


def test_comparing_nothing_is_an_error(double: Path) -> None:
    engines = engines_for(tr.read_manifest(double).variants)
    with pytest.raises(ParityError, match="no engines"):
        measure_parity(double, Doubling(), [], [])
    with pytest.raises(ParityError, match="no photographs"):
        measure_parity(double, Doubling(), synthetic_probes(1, 2), engines)


def test_make_bundles_and_the_reference_agree(double: Path, make_bundles: ModuleType) -> None:
    frame = random_frame(3, 5)
    np.testing.assert_array_equal(Doubling().answer(frame), make_bundles.double(frame[None]))
