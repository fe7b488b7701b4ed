"""The frames that engines are compared on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from topcoat.export import PhotographError, probe_frames
from topcoat.export.probes import (
    LONGEST_SIDE,
    MOST_PHOTOGRAPHS,
    bundled_photographs,
    read_photograph,
    user_photographs,
)
from topcoat.runtime.parity import synthetic_frames


def test_real_photographs_come_with_scikit_image_and_some_have_odd_sides() -> None:
    found = bundled_photographs()
    assert "astronaut" in [probe.name for probe in found]
    assert any(side % 4 for probe in found for side in probe.frame.shape[:2])
    for probe in found:
        assert probe.frame.dtype == np.uint8
        assert probe.frame.std() > 20  # a picture, not a placeholder


@pytest.mark.parametrize(("least", "scale"), [(1, 1), (8, 1), (44, 1), (1, 2), (1, 4), (4, 8)])
def test_every_question_is_asked(least: int, scale: int) -> None:
    frames = probe_frames(least, scale=scale)
    groups = {"photographs", "sizes", "tiny", "synthetic", *(["flat"] if scale > 1 else [])}
    assert {probe.group for probe in frames} == groups
    shapes = [probe.frame.shape for probe in frames]
    assert (least, least, 3) in shapes
    assert (1, 1, 3) in shapes
    assert any(len(shape) == 4 and shape[0] > 1 for shape in shapes)
    assert any(height % 2 and width % 2 for *_, height, width, _ in shapes)
    assert all(probe.frame.flags.c_contiguous and probe.frame.size for probe in frames)
    names = [(probe.group, probe.name) for probe in frames]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_network_that_enlarges_gets_photographs_that_were_shrunk(scale: int) -> None:
    whole = {probe.name: probe.frame for probe in bundled_photographs()}
    small = [probe for probe in probe_frames(1, scale=scale) if probe.group == "photographs"]
    assert len(small) == len(whole)
    for probe in small:
        large = whole[probe.name]
        for side, before in zip(probe.frame.shape[:2], large.shape[:2], strict=True):
            assert abs(side * scale - before) <= scale / 2
        np.testing.assert_allclose(probe.frame.mean(), large.mean(), atol=1)


def test_a_network_that_enlarges_gives_back_less_than_twice_as_many_pixels() -> None:
    def pixels(scale: int) -> int:
        return scale**2 * sum(probe.frame.size for probe in probe_frames(1, scale=scale))

    assert all(pixels(scale) < 2 * pixels(1) for scale in (2, 4, 8))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_every_flat_frame_has_a_colour_of_its_own_among_them_many_greys(scale: int) -> None:
    many, large = (probe.frame for probe in probe_frames(1, scale=scale) if probe.group == "flat")
    for batch in (many, large):
        np.testing.assert_array_equal(batch, np.broadcast_to(batch[:, :1, :1], batch.shape))
    colours = {tuple(colour) for colour in many[:, 0, 0].tolist()}
    assert len(colours) == len(many)
    greys = sorted(red for red, *others in colours if [red, red] == others)
    assert (greys[0], greys[-1], max(np.diff(greys))) == (0, 255, 3)
    assert len(colours) - len(greys) > 20
    # As much to compute at every scale; and the larger ones are four times as large.
    assert many.shape[1] * scale == 24
    assert large.shape[1] == 4 * many.shape[1]


def test_a_users_photograph_is_reduced_to_what_is_enlarged_to_the_limit(tmp_path: Path) -> None:
    Image.new("RGB", (900, 30), "red").save(tmp_path / "wide.png")
    wide = [probe for probe in probe_frames(1, tmp_path, scale=8) if probe.name == "wide.png"]
    assert [probe.frame.shape[1] for probe in wide] == [LONGEST_SIDE // 8]


def test_synthetic_frames_are_what_their_names_say() -> None:
    frames = synthetic_frames(6, 9)
    assert frames["black"].max() == 0
    assert frames["white"].min() == 255
    assert set(np.unique(frames["checker"])) == {0, 255}
    assert (frames["checker"][:, 1:] != frames["checker"][:, :-1]).all()
    assert (np.diff(frames["gradient"][0, :, 0].astype(int)) > 0).all()
    np.testing.assert_array_equal(frames["noise"], synthetic_frames(6, 9)["noise"])


def test_a_users_photographs_are_upright_rgb_and_not_enormous(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    (tmp_path / "inner").mkdir()
    Image.new("L", (3000, 20), 77).save(tmp_path / "inner" / "wide.jpg", exif=exif)
    (probe,) = user_photographs(tmp_path)
    assert probe.name == "inner/wide.jpg"
    assert probe.frame.shape[0] == LONGEST_SIDE
    assert probe.frame.shape[2] == 3


def test_a_broken_photograph_is_skipped_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    said: list[str] = []
    assert [probe.name for probe in user_photographs(tmp_path, said.append)] == ["good.png"]
    assert len(said) == 1
    assert "broken.jpg" in said[0]


def test_a_large_folder_is_sampled_evenly(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    names = [probe.name for probe in user_photographs(tmp_path)]
    assert len(names) == MOST_PHOTOGRAPHS
    assert (names[0], names[-1]) == ("00.png", "39.png")


@pytest.mark.parametrize("make", ["missing", "empty", "only broken", "a file"])
def test_no_usable_photograph_is_an_error(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "photos"
    if make == "a file":
        folder.write_text("no folder")
    elif make != "missing":
        folder.mkdir()
    if make == "only broken":
        (folder / "a.png").write_bytes(b"")
    with pytest.raises(PhotographError, match="photos"):
        user_photographs(folder)


def test_a_picture_that_cannot_be_read_is_one_line_that_names_it(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(PhotographError, match=r"text\.png") as caught:
        read_photograph(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(PhotographError, match="no picture at"):
        read_photograph(tmp_path / "none.png")
