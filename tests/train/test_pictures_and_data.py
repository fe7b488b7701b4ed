import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from topcoat.train import ContentError, PictureError
from topcoat.train.data import Photographs, batches, find_pictures, fingerprint, require_usable
from topcoat.train.pictures import open_rgb, resize_longer_side, to_array
from topcoat.train.style_pictures import load_style
from topcoat.train.styles import STYLES, draw_style


def _png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of one value and any size, small in bytes however large in pixels.

    ``colour`` is 0 for grey, 2 for RGB.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\x80" * (width * depth // 8 * (3 if colour == 2 else 1))
    rows = (b"\0" + row) * height
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


_RGB = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))

BAD_PICTURES = {
    "empty.png": (b"", "is empty"),
    "text.jpg": (b"these are not the pixels you are looking for", "is not a picture"),
    "truncated.png": (_encoded(_RGB, "PNG")[:3000], "cannot be decoded"),
    "truncated.jpg": (_encoded(_RGB, "JPEG")[:1500], "cannot be decoded"),
    "sixteen_bit.png": (
        _encoded(Image.fromarray(np.full((80, 80), 40_000, np.uint16)), "PNG"),
        "more than 8 bits",
    ),
    "sixteen_bit_rgb.png": (_png(80, 80, depth=16, colour=2), "more than 8 bits"),
    "dot.png": (_png(1, 1), "is 1x1; wanted: at least 64 pixels"),
    "thread.png": (_png(30_000, 1), "is 30000x1; wanted"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_style_picture_gets_one_line_that_says_why(tmp_path: Path, name: str) -> None:
    content, complaint = BAD_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=complaint) as caught:
        load_style(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_style_is_answered_with_the_built_in_ones() -> None:
    with pytest.raises(
        PictureError, match="no built-in style of that name; give a file, or one of mosaic"
    ):
        load_style("mosiac")
    with pytest.raises(PictureError, match=r"no picture at gone\.jpg"):
        load_style("gone.jpg")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    _RGB.save(tmp_path / "turned.jpg", exif=exif)
    assert open_rgb(tmp_path / "turned.jpg").size == (90, 120)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_8_bit_kind_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    _RGB.convert(mode).save(name)
    image = open_rgb(name)
    assert (image.mode, image.size) == ("RGB", (120, 90))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (70, 70), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_rgb(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)


def test_the_longer_side_gets_the_size_asked_for() -> None:
    assert resize_longer_side(_RGB, 60).size == (60, 45)


def test_built_in_styles_are_drawn_the_same_every_time_and_look_different() -> None:
    assert len(STYLES) >= 4
    drawn = {name: to_array(draw_style(name)) for name in STYLES}
    np.testing.assert_array_equal(drawn["mosaic"], to_array(draw_style("mosaic")))
    assert all(pixels.shape == (512, 512, 3) for pixels in drawn.values())
    histograms = {
        name: np.histogramdd(pixels.reshape(-1, 3), 6, [(0, 255)] * 3)[0].ravel() / 512**2
        for name, pixels in drawn.items()
    }
    for first in drawn:
        for second in drawn:
            if first < second:
                overlap = np.minimum(histograms[first], histograms[second]).sum()
                assert overlap < 0.6, (first, second)


def test_pictures_are_found_in_the_whole_tree_and_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.JPG", "deep/b.webp", "deep/er/c.png", "deep/notes.txt", "deep/.hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    names = [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)]
    assert names == ["a.JPG", "deep/b.webp", "deep/er/c.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="no jpg, png or webp"):
        find_pictures(tmp_path)
    with pytest.raises(ContentError, match="is not there"):
        find_pictures(tmp_path / "gone")


def test_a_sample_depends_on_nothing_but_the_seed_and_its_number(photographs: Path) -> None:
    pictures = find_pictures(photographs)
    first, again = (Photographs(pictures, 48, "crop", 7) for _ in range(2))
    wanted = [first[index].pixels for index in (3, 14, 5)]
    for index, pixels in zip((5, 3, 14), (wanted[2], wanted[0], wanted[1]), strict=True):
        assert torch.equal(again[index].pixels, pixels)
    other = Photographs(pictures, 48, "crop", 8)
    assert not torch.equal(other[3].pixels, wanted[0])


def test_an_epoch_shows_every_picture_once(photographs: Path) -> None:
    dataset = Photographs(find_pictures(photographs), 32, "squash", 0)
    pixels = {
        dataset[index].pixels.numpy().tobytes() for index in range(len(dataset), 2 * len(dataset))
    }
    assert len(pixels) == len(dataset)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same_with_and_without_workers_and_over_processes(
    photographs: Path, workers: int
) -> None:
    dataset = Photographs(find_pictures(photographs), 32, "crop", 0)
    whole = [pixels for pixels, _ in batches(dataset, range(2, 4), 4, workers=0)]
    parts = [
        [
            pixels
            for pixels, _ in batches(dataset, range(2, 4), 4, workers=workers, rank=r, processes=2)
        ]
        for r in (0, 1)
    ]
    assert whole[0].shape == (4, 3, 32, 32)
    assert whole[0].is_contiguous(memory_format=torch.channels_last)
    for step in (0, 1):
        assert torch.equal(whole[step], torch.cat([parts[0][step], parts[1][step]]))


def test_broken_pictures_are_replaced_and_named(tmp_path: Path, photographs: Path) -> None:
    for path in find_pictures(photographs)[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no")
    dataset = Photographs(find_pictures(tmp_path), 32, "crop", 0)
    messages = [m for _, found in batches(dataset, range(3), 2, workers=0) for m in found]
    assert messages
    assert all("broken.jpg is not a picture" in message for message in messages)


def test_pictures_too_thin_to_crop_are_replaced_and_named(
    tmp_path: Path, photographs: Path
) -> None:
    good = find_pictures(photographs)[0]
    (tmp_path / good.name).write_bytes(good.read_bytes())
    (tmp_path / "thread.png").write_bytes(_png(30_000, 1))
    (tmp_path / "dot.png").write_bytes(_png(1, 1))
    dataset = Photographs(find_pictures(tmp_path), 64, "crop", 0)
    messages = {m for _, found in batches(dataset, range(3), 2, workers=0) for m in found}
    assert any("thread.png is 30000x1; wanted" in message for message in messages)
    assert any("dot.png is 1x1; wanted" in message for message in messages)
    with pytest.raises(ContentError, match="1 usable of 3"):
        require_usable(find_pictures(tmp_path), 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_vanish_end_in_one_clear_error(
    tmp_path: Path, photographs: Path, workers: int
) -> None:
    for path in find_pictures(photographs)[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = Photographs(find_pictures(tmp_path), 32, "crop", 0)
    for path in find_pictures(tmp_path):
        path.unlink()
    with pytest.raises(ContentError, match="no picture can be used any more; the last: no picture"):
        list(batches(dataset, range(2), 2, workers=workers))


def test_a_link_that_leads_nowhere_is_no_picture(tmp_path: Path, photographs: Path) -> None:
    good = find_pictures(photographs)[0]
    (tmp_path / good.name).write_bytes(good.read_bytes())
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [path.name for path in find_pictures(tmp_path)] == [good.name]


def test_fewer_usable_pictures_than_a_batch_says_so(tmp_path: Path, photographs: Path) -> None:
    good = find_pictures(photographs)[0]
    (tmp_path / good.name).write_bytes(good.read_bytes())
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ContentError, match=r"1 usable of 3 pictures, a batch needs 2 .*is empty.*--batch 1"
    ):
        require_usable(find_pictures(tmp_path), 2)


def test_the_fingerprint_notices_another_picture(tmp_path: Path, photographs: Path) -> None:
    pictures = find_pictures(photographs)
    assert fingerprint(pictures) == fingerprint(pictures)
    assert fingerprint(pictures) != fingerprint(pictures[1:])
