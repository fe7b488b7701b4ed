"""``topcoat run|info|explain`` as a person uses them, on pictures and folders."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from tests.runtime.fake_tensorrt import Rig, make_engine_bundle
from topcoat.runtime.backends.onnxruntime import OnnxRuntimeCpu
from topcoat.runtime.cli.bench_latency import main as bench_latency
from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]
ENGINE = ["--backend", "onnxruntime-cpu", "--threads", "1"]


@pytest.fixture
def image() -> ModuleType:
    """PIL.Image."""
    module: ModuleType = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return module


@pytest.fixture
def photo(tmp_path: Path, image: ModuleType, photograph: Frame) -> Path:
    path = tmp_path / "photo.png"
    image.fromarray(photograph).save(path)
    return path


def pixels(path: Path) -> Frame:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with one line and code 2; return the line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("topcoat: ")
    return lines[0]


def test_a_picture_in_gives_the_picture_that_process_gives(
    photo: Path, double: Path, tmp_path: Path, photograph: Frame
) -> None:
    out = tmp_path / "new" / "folder" / "styled.png"
    assert main(["run", str(photo), str(out), "--model", str(double), *ENGINE]) == 0
    with tr.open(double, backend="onnxruntime-cpu", threads=1) as model:
        np.testing.assert_array_equal(pixels(out), model.process(photograph))
    assert leftovers(tmp_path) == []


def test_a_folder_as_out_takes_the_name_of_the_picture(
    photo: Path, double: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert main(["run", str(photo), str(tmp_path / "out"), "--model", str(double), *ENGINE]) == 0
    assert (tmp_path / "out" / "photo.png").exists()


def test_the_summary_can_be_read_by_a_program(
    photo: Path, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "o.png")
    assert main(["run", str(photo), out, "--model", str(double), "--json", *ENGINE]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "output": out,
        "width": 180,
        "height": 140,
        "tiles": 1,
        "backend": "onnxruntime-cpu",
        "compute": "fp32",
        "verified": True,
        "histogram_matched": False,
        "fallbacks": [],
    }


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_every_picture_format_can_be_written(
    photo: Path, double: Path, tmp_path: Path, suffix: str, photograph: Frame
) -> None:
    out = tmp_path / f"styled{suffix}"
    assert main(["run", str(photo), str(out), "--model", str(double), "--quiet", *ENGINE]) == 0
    came = pixels(out)[::2, ::2].astype(int)
    assert np.abs(came - (255 - photograph)).mean() < 6


def test_exif_orientation_is_applied(image: ModuleType, double: Path, tmp_path: Path) -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:10] = 200
    turned = image.fromarray(np.rot90(upright))  # as a camera held on its side stores it
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "camera.jpg", exif=exif, quality=95)
    out = tmp_path / "o.png"
    assert (
        main(["run", str(tmp_path / "camera.jpg"), str(out), "--model", str(double), *ENGINE]) == 0
    )
    came = pixels(out)
    assert came.shape == (40, 80, 3)
    assert came[:15].mean() < 70
    assert came[-15:].mean() > 240


def test_alpha_is_kept_at_the_results_size(
    image: ModuleType, double: Path, tmp_path: Path, photograph: Frame
) -> None:
    alpha = np.full(photograph.shape[:2], 255, np.uint8)
    alpha[:, :30] = 0
    image.fromarray(np.dstack([photograph, alpha])).save(tmp_path / "a.png")
    out = tmp_path / "o.png"
    assert main(["run", str(tmp_path / "a.png"), str(out), "--model", str(double), *ENGINE]) == 0
    came = pixels(out)
    assert came.shape == (140, 180, 4)
    np.testing.assert_array_equal(came[::2, 60::2, :3], 255 - photograph[:, 30:])
    assert (came[:, :50, 3] == 0).all()
    assert (came[:, 70:, 3] == 255).all()


def test_alpha_that_the_output_cannot_hold_is_not_dropped_in_silence(
    image: ModuleType,
    double: Path,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image.fromarray(np.dstack([photograph, photograph[..., 0]])).save(tmp_path / "a.png")
    text = fails(capsys, "run", tmp_path / "a.png", tmp_path / "o.jpg", "--model", double, *ENGINE)
    assert "partly transparent" in text
    assert not (tmp_path / "o.jpg").exists()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16", "RGBA"])
def test_other_kinds_of_pictures_are_understood(
    image: ModuleType, double: Path, tmp_path: Path, photograph: Frame, mode: str
) -> None:
    if mode == "I;16":
        picture = image.fromarray(photograph[..., 0].astype(np.uint16) * 257)
    else:
        picture = image.fromarray(photograph).convert(mode)
    path = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    picture.save(path)
    wanted = (
        np.repeat(photograph[..., :1], 3, axis=-1)
        if mode == "I;16"
        else np.asarray(picture.convert("RGB"))
    )
    out = tmp_path / "o.png"
    assert main(["run", str(path), str(out), "--model", str(double), *ENGINE]) == 0
    np.testing.assert_array_equal(pixels(out)[::2, ::2, :3], 255 - wanted)


def test_a_colour_profile_goes_with_the_picture(
    image: ModuleType, double: Path, tmp_path: Path, photograph: Frame
) -> None:
    image.fromarray(photograph).save(tmp_path / "p.png", icc_profile=b"profile of a wide screen")
    out = tmp_path / "o.png"
    assert main(["run", str(tmp_path / "p.png"), str(out), "--model", str(double), *ENGINE]) == 0
    with image.open(out) as picture:
        assert picture.info["icc_profile"] == b"profile of a wide screen"


def test_a_folder_keeps_its_tree_and_names_what_it_skips(
    image: ModuleType,
    double: Path,
    tmp_path: Path,
    photograph: Frame,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    (source / "holiday" / "day 2").mkdir(parents=True)
    picture = image.fromarray(photograph)
    picture.save(source / "a.png")
    picture.save(source / "holiday" / "day 2" / "b.JPG")
    (source / "notes.txt").write_text("not a picture")
    (source / "empty.png").touch()
    (source / "text.jpg").write_text("hello")
    image.new("RGB", (600, 4)).save(source / "wide.png")
    data = (source / "a.png").read_bytes()
    (source / "cut.png").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    assert main(["run", str(source), str(out), "--model", str(double), *ENGINE]) == 0
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert written == ["a.png", str(Path("holiday", "day 2", "b.JPG"))]
    errors = capsys.readouterr().err
    assert "2 of 6 pictures" in errors
    assert "skipped 4:" in errors
    for part in (
        "empty.png is empty",
        "text.jpg is not a picture",
        "cut.png is damaged or cut",
        "wide.png: frame is 600x4 pixels, this network takes at most 512",
    ):
        assert part in errors
    assert leftovers(tmp_path) == []
    # A second run must not replace the first one's work by accident.
    assert "pass --force" in fails(capsys, "run", source, out, "--model", double, *ENGINE)
    assert main(["run", str(source), str(out), "--model", str(double), "--force", *ENGINE]) == 0


def test_a_folder_without_one_good_picture_is_an_error(
    image: ModuleType, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    run = ["run", str(source), str(tmp_path / "out"), "--model", str(double), *ENGINE]
    assert "holds no picture" in fails(capsys, *run)
    (source / "a.png").write_text("no")
    assert main(run) == 2
    assert "none of its 1 pictures could be used" in capsys.readouterr().err


@pytest.mark.parametrize("target", [".", "out", ".."])
def test_a_folder_is_not_written_into_itself(
    image: ModuleType,
    double: Path,
    tmp_path: Path,
    target: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_text("x")
    text = fails(capsys, "run", source, source / target, "--model", double, *ENGINE)
    assert "same folder or one lies in the other" in text


def test_the_input_is_never_written_to(
    photo: Path, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = photo.read_bytes()
    run = ["run", photo, photo, "--model", double, "--force", *ENGINE]
    assert "is the input itself" in fails(capsys, *run)
    (tmp_path / "link.png").symlink_to(photo)
    assert "is the input itself" in fails(
        capsys, "run", photo, tmp_path / "link.png", "--model", double, "--force", *ENGINE
    )
    assert photo.read_bytes() == before


def test_an_existing_output_is_replaced_only_with_force(
    photo: Path, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.png"
    out.write_bytes(b"precious")
    run = ["run", str(photo), str(out), "--model", str(double), *ENGINE]
    assert "exists; pass --force" in fails(capsys, *run)
    assert out.read_bytes() == b"precious"
    assert main([*run, "--force"]) == 0
    assert pixels(out).shape == (140, 180, 3)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nope.png", None, "does not exist"),
        ("empty.png", b"", "is empty (0 bytes)"),
        ("text.png", b"hello", "is not a picture that Pillow knows"),
        ("noending", b"x", "ends in 'nothing', wanted a picture"),
        ("a.xyz", b"x", "ends in '.xyz', wanted a picture"),
    ],
)
def test_an_input_that_is_no_picture_gives_one_line(
    image: ModuleType,
    double: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    says: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out" / "o.png"
    assert says in fails(capsys, "run", tmp_path / name, out, "--model", double, *ENGINE)
    assert not out.parent.exists()


def test_a_picture_larger_than_the_network_takes_gives_one_line(
    image: ModuleType, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image.new("RGB", (600, 10)).save(tmp_path / "wide.png")
    run = ["run", tmp_path / "wide.png", tmp_path / "o.png", "--model", double, *ENGINE]
    assert "at most 512 on each side" in fails(capsys, *run)


def test_an_output_of_unknown_sort_gives_one_line(
    photo: Path, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fails(capsys, "run", photo, tmp_path / "o.mp4", "--model", double, *ENGINE)
    assert "ends in '.mp4', wanted one of .png" in text


def test_a_broken_bundle_leaves_no_output(
    photo: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "model.fp32.onnx").write_bytes(b"\0" * 953)
    out = tmp_path / "out" / "o.png"
    assert "damaged or was changed" in fails(capsys, "run", photo, out, "--model", bundle, *ENGINE)
    assert not out.parent.exists()


def test_a_full_disk_leaves_no_half_picture(
    photo: Path,
    double: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    image: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image.Image, "save", save)
    out = tmp_path / "o.png"
    text = fails(capsys, "run", photo, out, "--model", double, *ENGINE)
    assert "No space left on device" in text
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_interrupting_leaves_no_half_picture_and_exits_130(
    photo: Path,
    double: Path,
    tmp_path: Path,
    image: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(image.Image, "save", save)
    out = tmp_path / "o.png"
    assert main(["run", str(photo), str(out), "--model", str(double), *ENGINE]) == 130
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_without_pillow_the_error_names_the_extra(
    double: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    (tmp_path / "a.png").write_bytes(b"x")
    text = fails(capsys, "run", tmp_path / "a.png", tmp_path / "o.png", "--model", double)
    assert "pip install 'topcoat-runtime[images]'" in text
    text = fails(capsys, "run", tmp_path, tmp_path.parent / "o", "--model", double)
    assert "pip install 'topcoat-runtime[images]'" in text


def test_an_unverified_engine_is_used_only_with_a_loud_warning(
    photo: Path,
    edit_manifest: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = edit_manifest(lambda m: [v.update(parity=[]) for v in m["variants"]])
    run = ["run", str(photo), str(tmp_path / "o.png"), "--model", str(bundle), *ENGINE]
    assert "holds no parity check for it" in fails(capsys, *run)
    assert main([*run, "--allow-unverified"]) == 0
    assert "topcoat: warning: blocks runs on onnxruntime-cpu fp32 without a passed parity" in (
        capsys.readouterr().err
    )


def test_an_engine_that_waits_for_its_verification_is_named(
    photo: Path,
    blocks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "built").mkdir()
    bundle = make_engine_bundle(blocks, tmp_path / "built", verified_on=None)
    backends = (Rig().backend, OnnxRuntimeCpu())
    said = (
        ": warning: blocks: not used, for it was never compared with the network on this machine's"
        f" sm89: tensorrt-rtx fp32 [tensorrt-rtx.fp32.engine]; run `topcoat verify {bundle}` here"
    )
    monkeypatch.setattr("topcoat.runtime.model.all_backends", lambda: backends)
    run = ["run", str(photo), str(tmp_path / "o.png"), "--model", str(bundle), "--threads", "1"]
    assert main(run) == 0
    assert f"topcoat{said}" in capsys.readouterr().err

    def stop(*_: object, **__: object) -> None:
        raise tr.BackendError("measured enough")

    monkeypatch.setattr("topcoat.runtime.backends.all_backends", lambda: backends)
    monkeypatch.setattr("topcoat.runtime.report._measure.measure", stop)
    assert bench_latency([str(bundle), "--threads", "1"]) == 2
    assert f"bench-latency{said}" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- info, explain


def test_info_says_what_the_bundle_is(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(blocks)]) == 0
    text = capsys.readouterr().out
    for part in (
        "blocks: style, output 1x the input's size",
        "padded to multiples of 4",
        "model.fp32.onnx",
        "onnxruntime-cpu  fp32  passed",
        "3 of 3 have the hash",
    ):
        assert part in text


def test_info_as_json_is_the_manifest(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(blocks), "--json"]) == 0
    came = json.loads(capsys.readouterr().out)
    wanted = json.loads((blocks / "manifest.json").read_text())
    assert came["variants"] == wanted["variants"]
    assert came["size"] == {**wanted["size"], "halo": None}
    assert came["hashes_match"] is True


def test_info_finds_a_changed_byte(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (bundle / "card.md").read_bytes()
    (bundle / "card.md").write_bytes(data[:-1] + b"!")
    assert "damaged or was changed" in fails(capsys, "info", bundle)


def test_explain_says_which_engine_and_why(
    blocks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(blocks), "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "->" in text
    assert "only used when asked for with precision fp16" in text
    assert main(["explain", str(blocks), "--json", *ENGINE]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"]["backend"] == "onnxruntime-cpu"


def test_explain_shows_the_reasons_when_nothing_can_run(
    edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = edit_manifest(lambda m: [v.update(parity=[]) for v in m["variants"]])
    assert main(["explain", str(bundle)]) == 2
    captured = capsys.readouterr()
    assert "nothing can run it here" in captured.out
    assert "onnxruntime-cpu fp32" in captured.out
    assert captured.err.startswith("topcoat: backend auto cannot run blocks")


def test_an_input_whose_name_no_file_system_takes_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "x" * 5000 + ".png", "out.png", "--model", "poster-light"]) == 2
    said = capsys.readouterr().err
    assert "cannot be opened (File name too long)" in said
    assert said.count("\n") == 1
    assert len(said) < 200
