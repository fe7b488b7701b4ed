"""A video file through a model: every frame once, in order, its sound untouched. Needs PyAV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from topcoat.runtime._errors import MediaError
from topcoat.runtime._files import written_whole
from topcoat.runtime.frames import Frame

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv")
_ENCODERS = {
    ".mp4": "libx264",
    ".m4v": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
}

# AVColorSpace (what a file says) and the name of swscale's table for it.
_MATRICES = {1: "ITU709", 5: "ITU601", 6: "ITU601", 9: "BT2020"}
_LIMITED_RANGE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReport:
    """What was done with a video."""

    frames: int
    width: int
    height: int
    """Of the written frames."""
    audio_streams: int


def require_av() -> None:
    """Raise an error that names the extra if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MediaError(
            "videos need PyAV, which is not installed; pip install 'topcoat-runtime[video]'"
        ) from error


def check_video_target(path: Path) -> None:
    """Raise if a video cannot be written to a file of this name.

    Raises:
        MediaError: the ending is unknown.
    """
    if path.suffix.lower() not in _ENCODERS:
        raise MediaError(
            f"{path} ends in {path.suffix or 'nothing'!r}, wanted one of {' '.join(_ENCODERS)}"
        )


def process_video(
    source: Path,
    target: Path,
    process: Callable[[Frame], Frame],
    *,
    scale: int = 1,
    crf: int = 18,
    started: Callable[[int | None], None] = lambda total: None,
    advanced: Callable[[], None] = lambda: None,
) -> VideoReport:
    """Run every frame of a video through ``process`` and write the result, whole or not at all.

    Time stamps are kept, so a variable frame rate stays one. Sound is copied, not encoded again.
    Frames are turned upright. H.264 and VP9 in yuv420p want even sizes: an odd one gains one row or
    column that repeats the last.

    Args:
        source: the input file.
        target: the output file; its ending chooses the container and encoder.
        process: (H, W, 3) uint8 RGB to (H * scale, W * scale, 3); the result is used before the
            next call.
        scale: by how much ``process`` enlarges; the encoder is asked whether it takes that size
            before the first frame is run.
        crf: the encoder's quality, 0..51; lower is better and larger.
        started: called once with the number of frames, or None where the file does not say.
        advanced: called after every frame.

    Raises:
        MediaError: the input cannot be read or has no video, or the output cannot be written.
    """
    require_av()
    import av

    check_video_target(target)
    if not source.exists():
        raise MediaError(f"{source} does not exist; give a picture, a folder or a video")
    if source.stat().st_size == 0:
        raise MediaError(f"{source} is empty (0 bytes); give a video file")
    try:
        container = av.open(str(source))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{source} is not a video that FFmpeg knows ({_text(error)}); give mp4, mkv or webm"
        ) from error
    with container:
        if not container.streams.video:
            raise MediaError(f"{source} holds no video stream; give a video file")
        with written_whole(target) as partial:
            try:
                return _transcode(container, partial, process, scale, crf, started, advanced)
            except av.FFmpegError as error:
                raise MediaError(
                    f"{source} could not be turned into {target} ({_text(error)}); the input may be"
                    f" damaged, or {target.suffix} cannot hold its sound: try an OUT in .mkv"
                ) from error


def _transcode(
    container: Any,  # noqa: ANN401 - PyAV objects, of a package not required
    partial: Path,
    process: Callable[[Frame], Frame],
    scale: int,
    crf: int,
    started: Callable[[int | None], None],
    advanced: Callable[[], None],
) -> VideoReport:
    import av

    video = container.streams.video[0]
    video.thread_type = "AUTO"
    started(_frame_count(container, video))
    rate = video.average_rate or video.guessed_rate or Fraction(25)
    options = {"movflags": "+faststart"} if partial.suffix in {".mp4", ".m4v", ".mov"} else {}
    with av.open(str(partial), "w", options=options) as output:
        encoder: Any = output.add_stream(_ENCODERS[partial.suffix.lower()], rate=rate)
        encoder.pix_fmt = "yuv420p"
        encoder.options = {"crf": str(crf)}
        if partial.suffix.lower() == ".webm":
            encoder.options |= {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"}
        copies = {}
        for stream in container.streams.audio:
            # A stream whose codec FFmpeg does not know has no parameters to copy.
            if stream.codec_context is not None:
                copies[stream.index] = _copy_stream(output, stream)
        frames = 0
        early: list[Any] = []
        size = (0, 0)
        matrix = ""
        last_pts = -1
        for packet in container.demux(
            video, *[s for s in container.streams.audio if s.index in copies]
        ):
            if packet.stream.index in copies:
                if packet.dts is not None:  # the empty packet that ends a stream
                    packet.stream = copies[packet.stream.index]
                    # Writing anything opens the encoder, whose size the first frame decides.
                    if frames:
                        output.mux(packet)
                    else:
                        early.append(packet)
                continue
            for frame in packet.decode():
                if not frames:
                    matrix = _set_colours(encoder, frame)
                    if frame.time_base is not None:
                        encoder.codec_context.time_base = frame.time_base
                rgb = frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()
                rgb = _upright(rgb, frame)
                wanted = (_up(rgb.shape[1] * scale), _up(rgb.shape[0] * scale))
                if not frames:
                    size = wanted
                    _open_encoder(encoder, size)
                elif size != wanted:
                    raise MediaError(
                        f"the video changes size after {frames} frames, from {size[0]}x{size[1]} to"
                        f" {wanted[0]}x{wanted[1]} in the result; split it there"
                    )
                styled = _even(process(rgb))
                assert (styled.shape[1], styled.shape[0]) == size
                result = av.VideoFrame.from_ndarray(styled, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=matrix
                )
                # Encoders refuse time stamps that repeat or go back; broken files have them.
                pts = frame.pts if frame.pts is not None and frame.pts > last_pts else last_pts + 1
                result.pts, result.time_base, last_pts = pts, frame.time_base, pts
                for encoded in encoder.encode(result):
                    output.mux(encoded)
                frames += 1
                while early:
                    output.mux(early.pop(0))
                advanced()
        if not frames:
            raise MediaError("the video holds no frame that can be decoded; get the file again")
        for encoded in encoder.encode(None):
            output.mux(encoded)
    return VideoReport(frames=frames, width=size[0], height=size[1], audio_streams=len(copies))


def _open_encoder(encoder: Any, size: tuple[int, int]) -> None:  # noqa: ANN401 - a PyAV object
    """Start the encoder for frames of this (width, height).

    Raises:
        MediaError: it refuses, which for a valid pixel format and quality is due to the size.
    """
    import av

    encoder.width, encoder.height = size
    try:
        encoder.codec_context.open()
    except (av.FFmpegError, ValueError) as error:
        name = encoder.codec_context.name
        # libx264's limit, VP9 goes on to 65536.
        advice = "give an OUT that ends in .webm, or" if name == "libx264" else "give"
        raise MediaError(
            f"the encoder {name} refuses frames of {size[0]}x{size[1]} pixels ({_text(error)});"
            f" {advice} a smaller video"
        ) from error


def _copy_stream(output: Any, stream: Any) -> Any:  # noqa: ANN401 - PyAV objects
    try:
        if hasattr(output, "add_stream_from_template"):  # PyAV 14 and later
            return output.add_stream_from_template(stream)
        return output.add_stream(template=stream)
    except ValueError as error:
        raise MediaError(
            f"OUT cannot hold the input's sound ({_text(error)}); give an OUT that ends in .mkv"
        ) from error


def _frame_count(container: Any, video: Any) -> int | None:  # noqa: ANN401 - PyAV objects
    if video.frames:
        return int(video.frames)
    rate = video.average_rate
    if video.duration and video.time_base and rate:
        return int(video.duration * video.time_base * rate)
    if container.duration and rate:
        return int(container.duration / 1_000_000 * rate)
    return None


def _set_colours(encoder: Any, frame: Any) -> str:  # noqa: ANN401 - PyAV objects
    """Tag the output with the input's colours; return the name of the YUV matrix for both ends."""
    space = int(frame.colorspace)
    if space not in _MATRICES:
        space = 1 if frame.height >= 720 else 6  # what players assume of files that do not say
    context = encoder.codec_context
    context.colorspace = space
    context.color_range = _LIMITED_RANGE
    for name in ("color_primaries", "color_trc"):
        value = getattr(frame, name, None)  # frames know them since PyAV 15
        if value is not None:
            setattr(context, name, int(value))
    return _MATRICES[space]


def _upright(rgb: Frame, frame: Any) -> Frame:  # noqa: ANN401 - a PyAV object
    """Turn the frame as its display matrix says: the tag itself is not carried over."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns) if turns else rgb)


def _even(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return frame


def _up(side: int) -> int:
    return side + side % 2


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())
