"""A download that begins within seconds or not at all, and leaves a whole file or none."""

import hashlib
import queue
import threading
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from topcoat.train._files import written_whole

ANSWER_S = 10.0
"""Until the first byte of an answer."""
_STALL_S = 30.0
"""Between two parts of a download that has begun."""
_PART = 1 << 20


class DownloadError(Exception):
    """A file could not be downloaded; the message is the reason, a few words."""


def download(url: str, path: Path, sha256: str, announce: Callable[[], None]) -> None:
    """Download a file.

    Args:
        url: its address, http or https; proxies are those of the environment.
        path: where it goes; its folder is made.
        sha256: the start of its SHA-256, hexadecimal.
        announce: called once the server has answered, before the file itself comes.

    Raises:
        DownloadError: no answer within ``ANSWER_S``, or a refusal; it broke off, is another file
            or cannot be written. Nothing is left behind.
    """
    digest = hashlib.sha256()
    try:
        with _answer(url) as answer:
            announce()
            total, got = answer.length, 0
            with (
                written_whole(path) as file,
                tqdm(total=total, unit="B", unit_scale=True, dynamic_ncols=True) as bar,
            ):
                while part := answer.read(_PART):
                    file.write(part)
                    digest.update(part)
                    got += len(part)
                    bar.update(len(part))
                if total is not None and got < total:
                    raise DownloadError(f"it broke off after {got} of {total} bytes")
                if not digest.hexdigest().startswith(sha256):
                    raise DownloadError("what came has another SHA-256 than was published")
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(_reason(error)) from None


def _answer(url: str) -> HTTPResponse:
    """Connect and wait for the head of the answer.

    In a thread: a socket's own limit counts for each address of a server anew, and not while its
    name is looked up, so that a network that swallows packets would hold everything for minutes.
    """
    came: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            request = Request(url, headers={"User-Agent": "topcoat-train"})
            answer = urlopen(request, timeout=_STALL_S)
        except Exception as error:  # for the one who waits
            came.put(error)
        else:
            if given_up.is_set():
                answer.close()
            came.put(answer)

    threading.Thread(target=ask, name="download", daemon=True).start()
    try:
        answer = came.get(timeout=ANSWER_S)
    except queue.Empty:
        given_up.set()
        raise DownloadError(f"no answer within {ANSWER_S:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return str(error)
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "the server fell silent"
    strerror = cause.strerror if isinstance(cause, OSError) else None
    return str(strerror or cause or type(error).__name__).splitlines()[0]
