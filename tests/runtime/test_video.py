"""``topcoat run`` on videos: every frame once, sound untouched, nothing half-written."""

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from topcoat.runtime.cli.topcoat import main
from topcoat.runtime.frames import Frame

ENGINE = ["--backend", "onnxruntime-cpu", "--threads", "1"]
COLOURS = ((200, 60, 30), (30, 120, 220))


@pytest.fixture
def av() -> ModuleType:
    module: ModuleType = pytest.importorskip("av", reason="PyAV is not installed")
    return module


def write_video(
    path: Path,
    size: tuple[int, int] = (64, 48),
    frames: int = 8,
    *,
    sound: bool = True,
    pts: list[int] | None = None,
) -> Path:
    """Write a video of two flat colours and, for sound, a sine."""
    import av

    width, height = size
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=24)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.options = {"crf": "2"}
        audio: Any = output.add_stream("aac", rate=44100) if sound else None
        if sound:
            audio.layout = "mono"
        for number in range(frames):
            rgb = np.empty((height, width, 3), np.uint8)
            rgb[:, : width // 2], rgb[:, width // 2 :] = COLOURS
            rgb[-8:] = number * 8
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound:
            wave = np.sin(np.arange(44100 * frames // 24) * 0.06).astype(np.float32) * 0.3
            for start in range(0, len(wave), 1024):
                piece: Any = av.AudioFrame.from_ndarray(
                    wave[None, start : start + 1024], format="fltp", layout="mono"
                )
                piece.rate, piece.pts, piece.time_base = 44100, start, Fraction(1, 44100)
                output.mux(audio.encode(piece))
            output.mux(audio.encode(None))
    return path


def read_video(path: Path) -> tuple[list[Frame], list[float], list[bytes]]:
    """Return frames, their times in seconds, and the packets of the sound."""
    import av

    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        frames: list[Any] = [f.reformat(format="rgb24", src_colorspace="ITU601") for f in decoded]
        times = [float(frame.time or 0) for frame in decoded]
    with av.open(str(path)) as container:
        sound = (
            [bytes(packet) for packet in container.demux(audio=0)]
            if (container.streams.audio)
            else []
        )
    return [frame.to_ndarray() for frame in frames], times, [s for s in sound if s]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name]


def test_every_frame_is_run_and_the_sound_is_the_same_bytes(
    av: ModuleType, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    out = tmp_path / "out" / "styled.mp4"
    assert main(["run", str(clip), str(out), "--model", str(double), "--json", *ENGINE]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["frames"], summary["width"], summary["height"]) == (8, 128, 96)
    _, times, sound = read_video(clip)
    frames, styled_times, styled_sound = read_video(out)
    assert len(frames) == 8
    np.testing.assert_allclose(styled_times, times, atol=1e-3)
    assert styled_sound == sound
    assert len(sound) > 5
    # Colours survive decoding, the network (a negative) and encoding.
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(frame[20, 20], 255 - np.array(COLOURS[0]), atol=6)
        np.testing.assert_allclose(frame[20, -20], 255 - np.array(COLOURS[1]), atol=6)
        np.testing.assert_allclose(frame[-5, 60], 255 - number * 8, atol=8)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("size", [(65, 48), (64, 47), (33, 49)])
def test_an_odd_size_gains_one_pixel(
    av: ModuleType, blocks: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    clip = write_video(tmp_path / "clip.mkv", size, 2, sound=False)
    out = tmp_path / "styled.mp4"
    assert main(["run", str(clip), str(out), "--model", str(blocks), "--quiet", *ENGINE]) == 0
    frames, _, _ = read_video(out)
    assert frames[0].shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)


def test_an_uneven_frame_rate_stays_uneven(av: ModuleType, blocks: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=6, sound=False, pts=[0, 1, 5, 6, 9, 20])
    out = tmp_path / "styled.mp4"
    assert main(["run", str(clip), str(out), "--model", str(blocks), "--quiet", *ENGINE]) == 0
    np.testing.assert_allclose(read_video(out)[1], np.array([0, 1, 5, 6, 9, 20]) / 24, atol=1e-3)


def test_a_video_that_a_phone_took_on_its_side_comes_out_upright(
    av: ModuleType, blocks: Path, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=2, sound=False)
    data = bytearray(clip.read_bytes())
    # The track header's matrix: identity becomes "turn a quarter clockwise to show it".
    one, zero, minus, unit = b"\0\1\0\0", b"\0" * 4, b"\xff\xff\0\0", b"\x40\0\0\0"
    at = data.index(one + zero * 3 + one + zero * 3 + unit, data.index(b"tkhd"))
    data[at : at + 36] = zero + one + zero + minus + zero * 4 + unit
    clip.write_bytes(data)
    out = tmp_path / "styled.mp4"
    assert main(["run", str(clip), str(out), "--model", str(blocks), "--quiet", *ENGINE]) == 0
    frame = read_video(out)[0][0]
    assert frame.shape == (64, 48, 3)
    # What was on the left is at the top.
    np.testing.assert_allclose(frame[5, 24], COLOURS[0], atol=8)
    np.testing.assert_allclose(frame[-5, 24], COLOURS[1], atol=8)


def test_webm_can_be_written(av: ModuleType, blocks: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=2, sound=False)
    out = tmp_path / "styled.webm"
    assert main(["run", str(clip), str(out), "--model", str(blocks), "--quiet", *ENGINE]) == 0
    assert len(read_video(out)[0]) == 2


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_sound_that_the_output_cannot_hold_is_not_dropped_in_silence(
    av: ModuleType, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=2)
    out = tmp_path / "styled.webm"
    text = fails(capsys, "run", clip, out, "--model", blocks, *ENGINE)
    assert "cannot hold the input's sound" in text
    assert not out.exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty (0 bytes)"), (b"hello" * 99, "is not a video that FFmpeg knows")],
)
def test_a_file_that_is_no_video_gives_one_line(
    av: ModuleType,
    blocks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    says: str,
) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    run = ["run", tmp_path / "clip.mp4", tmp_path / "o.mp4", "--model", blocks, *ENGINE]
    assert says in fails(capsys, *run)


def test_a_sound_file_gives_one_line(
    av: ModuleType, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as output:
        audio = output.add_stream("aac", rate=44100)
        audio.layout = "mono"
        piece = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        piece.rate, piece.pts = 44100, 0
        output.mux(audio.encode(piece))
        output.mux(audio.encode(None))
    run = ["run", tmp_path / "clip.mp4", tmp_path / "o.mp4", "--model", blocks, *ENGINE]
    assert "holds no video stream" in fails(capsys, *run)


def test_a_video_larger_than_the_network_takes_leaves_nothing(
    av: ModuleType, double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", (520, 16), 1, sound=False)
    text = fails(capsys, "run", clip, tmp_path / "o.mp4", "--model", double, *ENGINE)
    assert "at most 512 on each side" in text
    assert not (tmp_path / "o.mp4").exists()
    assert leftovers(tmp_path) == []


def test_interrupting_leaves_no_half_video_and_exits_130(
    av: ModuleType, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from topcoat.runtime import Model

    clip = write_video(tmp_path / "clip.mp4", frames=6)
    real, count = Model.process, 0

    def process(self: Model, frame: Frame, out: Frame | None = None) -> Frame:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(self, frame, out)

    monkeypatch.setattr(Model, "process", process)
    out = tmp_path / "o.mp4"
    assert main(["run", str(clip), str(out), "--model", str(blocks), *ENGINE]) == 130
    assert count == 4
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_an_existing_video_is_replaced_only_with_force(
    av: ModuleType, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=2, sound=False)
    out = tmp_path / "o.mp4"
    out.write_bytes(b"precious")
    run = ["run", str(clip), str(out), "--model", str(blocks), *ENGINE]
    assert "exists; pass --force" in fails(capsys, *run)
    assert out.read_bytes() == b"precious"
    assert "is the input itself" in fails(capsys, *run[:2], clip, *run[3:], "--force")
    assert main([*run, "--force"]) == 0
    assert len(read_video(out)[0]) == 2


def test_without_pyav_the_error_names_the_extra(
    blocks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    text = fails(capsys, "run", tmp_path / "clip.mp4", tmp_path / "o.mp4", "--model", blocks)
    assert "pip install 'topcoat-runtime[video]'" in text
