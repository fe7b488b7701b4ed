"""The progress line of long jobs."""

import io

import pytest

from topcoat.runtime._progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_says_how_far_how_fast_and_how_long_still() -> None:
    stream = Terminal()
    progress = Progress(4, "frames", stream=stream)
    progress._began -= 2.0
    progress.step()
    assert stream.getvalue().startswith("\r[######..................] 1/4 frames  0.5 frames/s")
    assert progress.line().endswith("0:06 left")
    progress.clear()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_job_of_unknown_length_says_how_far_and_how_fast() -> None:
    progress = Progress(None, "frames", stream=Terminal())
    progress._began -= 10.0
    progress.count = 20
    assert progress.line() == "20 frames  2.0 frames/s"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_it_is_silent_off_a_terminal_or_when_told(stream: io.StringIO) -> None:
    progress = Progress(2, "frames", stream=stream, quiet=stream.isatty())
    progress.step()
    progress.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.7, "1:00"), (3600, "1:00:00"), (5025.4, "1:23:45")]
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text
