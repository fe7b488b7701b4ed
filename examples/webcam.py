"""Style a camera, live: into a window, and into a virtual camera that video calls can choose.

    python examples/webcam.py
    python examples/webcam.py --output both --model candy.topcoat
    python examples/webcam.py --input clip.mp4

The camera is read with PyAV. A virtual camera needs pyvirtualcam and its driver: v4l2loopback on
Linux, OBS on Windows and macOS. A video file stands in for a camera, at its own pace, again and
again with --loop.
"""

import argparse
import errno
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scene import options

import topcoat.runtime as tr

CAMERAS = {
    "linux": ("v4l2", "/dev/video0"),
    "darwin": ("avfoundation", "0"),
    "win32": ("dshow", ""),
}
"""How FFmpeg calls cameras on each system, and the first one."""


def main(argv: list[str] | None = None) -> int:
    parser = options.parser(__doc__)
    add = parser.add_argument
    add("--input", metavar="CAMERA|FILE",
        help="/dev/video0 on Linux, a number on macOS, a name on Windows, or a video file"
        " (default: the first camera)")  # fmt: skip
    add("--output", choices=("window", "virtual", "both"), default="window", help="default: window")
    add("--model", type=Path, metavar="BUNDLE", help="a style (default: a built-in one)")
    add("--size", type=options.size, default=(640, 480), metavar="WxH", help="default: 640x480")
    add("--fps", type=options.positive, default=30, metavar="N",
        help="asked of the camera (default: 30)")  # fmt: skip
    add("--strength", type=options.share, default=1.0, help="of the style, 0 to 1 (default: 1)")
    add("--stabilise", type=options.share, default=0.5,
        help="against flicker, 0 to 1 (default: 0.5)")  # fmt: skip
    add("--mirror", action="store_true", help="show the picture as a mirror would")
    add("--loop", action="store_true", help="begin a video file again when it ends")
    add("--frames", type=options.positive, metavar="N", help="quit after so many")
    add("--still", type=Path, metavar="PNG", help="write the last frame")
    args = parser.parse_args(argv)
    return options.run("webcam", lambda: show(args))


def show(args: argparse.Namespace) -> None:
    from scene import media

    if args.still is not None:
        media.check_target(args.still, (".png",))
    width, height = args.size
    bundle = args.model or options.bundles()[0]
    with ExitStack() as stack:
        pass_ = stack.enter_context(tr.Pass.open(bundle, mode="live", budget_ms=1000 / args.fps))
        options.check_scale(bundle, pass_.scale)
        pictures = camera(args)
        frame = next(pictures, None)  # before a window opens: there may be no camera
        if frame is None:
            raise options.ExampleError(
                f"{args.input} holds no frame that can be decoded; give another file"
            )
        pass_.set(strength=args.strength, stabilise=args.stabilise)
        preparation = pass_.prepare((height, width))  # meanwhile frames pass through
        if args.frames:
            preparation.wait()
        sinks: list[Window | VirtualCamera] = []
        if args.output in ("window", "both"):
            sinks.append(stack.enter_context(Window(args.size)))
        if args.output in ("virtual", "both"):
            sinks.append(stack.enter_context(VirtualCamera(args.size, args.fps)))
        styled = np.empty((height, width, 3), np.uint8)
        shown = 0
        while frame is not None and shown != args.frames:
            pass_.present(frame, out=styled)
            shown += 1
            going = [sink.show(styled) for sink in sinks]
            frame = next(pictures, None) if all(going) else None
        print(pass_.stats())
    if args.still is not None and shown:
        media.write_png(args.still, styled)


# ------------------------------------------------------------------------------------------ source


def camera(args: argparse.Namespace) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield frames, (H, W, 3) uint8 RGB of ``args.size``, at the pace at which they come.

    Raises:
        ExampleError: there is no such camera or file, or it is closed to us.
    """
    import av

    system = "linux" if sys.platform.startswith("linux") else sys.platform
    kind, first = CAMERAS.get(system, ("", ""))
    name = args.input or first
    is_file = Path(name).is_file()
    width, height = args.size
    if not is_file and not name:
        raise options.ExampleError(
            "cameras have names here; give one with --input, as ffmpeg -list_devices true -f dshow"
            " -i dummy lists them, or a video file"
        )
    if not is_file and args.input and Path(name).suffix and not name.startswith("/dev/"):
        raise options.ExampleError(f"there is no file {name}; give a video file or a camera")
    options_ = {"video_size": f"{width}x{height}", "framerate": str(args.fps)}
    source = f"video={name}" if kind == "dshow" and not is_file else name
    while True:
        try:
            container: Any = (
                av.open(source) if is_file else av.open(source, format=kind, options=options_)
            )
        except (OSError, ValueError) as error:  # PyAV's errors are also one of these
            raise options.ExampleError(why_not(name, is_file, error)) from error
        with container:
            if not container.streams.video:
                raise options.ExampleError(f"{name} holds no video; give another file")
            yield from paced(container, args, is_file)
        if not (is_file and args.loop):
            return


def paced(container: Any, args: argparse.Namespace, is_file: bool) -> Iterator[Any]:  # noqa: ANN401
    """Yield a container's frames; those of a file when their time has come."""
    width, height = args.size
    begin = time.perf_counter()
    for number, picture in enumerate(container.decode(video=0)):
        if is_file:
            due = begin + (number / args.fps if picture.time is None else picture.time)
            time.sleep(max(0.0, due - time.perf_counter()))
        frame = picture.to_ndarray(format="rgb24", width=width, height=height)
        yield np.ascontiguousarray(frame[:, ::-1]) if args.mirror else frame


def why_not(name: str, is_file: bool, error: Exception) -> str:
    """Return one line about an input that cannot be opened."""
    code, text = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if is_file:
        return f"{name} is not a video that FFmpeg knows ({text}); give mp4, mkv or webm"
    if isinstance(error, PermissionError) or code in (errno.EACCES, errno.EPERM):
        return (
            f"the camera {name} may not be used; on Linux add yourself to the group video,"
            " elsewhere allow this program the camera in the system's settings"
        )
    if code == errno.EBUSY:
        return f"the camera {name} is in use; close the other program"
    if isinstance(error, FileNotFoundError) or code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no camera {name}; plug one in, or give --input a camera or a video file"
    return f"the camera {name} cannot be read ({text}); try another --size, --fps or --input"


# ------------------------------------------------------------------------------------------- sinks


class Window:
    """A window; ESC or closing it ends the show."""

    def __init__(self, size: tuple[int, int]) -> None:
        import pygame

        self._pygame = pygame
        pygame.display.init()
        try:
            self._window = pygame.display.set_mode(size)
        except pygame.error as error:
            raise options.ExampleError(
                f"no window can be opened ({error}); use --output virtual"
            ) from error
        pygame.display.set_caption("Topcoat: ESC quits")
        self._size = size

    def show(self, picture: npt.NDArray[np.uint8]) -> bool:
        """Show (H, W, 3) uint8 RGB; return whether to go on."""
        pygame = self._pygame
        self._window.blit(pygame.image.frombuffer(picture, self._size, "RGB"), (0, 0))
        pygame.display.flip()
        return not any(
            event.type == pygame.QUIT
            or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE)
            for event in pygame.event.get()
        )

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_: object) -> None:
        self._pygame.quit()


class VirtualCamera:
    """A camera that other programs can choose."""

    def __init__(self, size: tuple[int, int], fps: int) -> None:
        try:
            import pyvirtualcam
        except ModuleNotFoundError as error:
            raise options.ExampleError(
                "pyvirtualcam is missing; pip install pyvirtualcam, or use --output window"
            ) from error
        try:
            self._camera = pyvirtualcam.Camera(width=size[0], height=size[1], fps=fps)
        except RuntimeError as error:
            raise options.ExampleError(
                f"there is no virtual camera ({error}); install v4l2loopback on Linux, OBS"
                " elsewhere"
            ) from error
        print(f"the virtual camera is {self._camera.device}")

    def show(self, picture: npt.NDArray[np.uint8]) -> bool:
        """Send (H, W, 3) uint8 RGB; return whether to go on."""
        self._camera.send(picture)
        return True

    def __enter__(self) -> "VirtualCamera":
        return self

    def __exit__(self, *_: object) -> None:
        self._camera.close()


if __name__ == "__main__":
    sys.exit(main())
