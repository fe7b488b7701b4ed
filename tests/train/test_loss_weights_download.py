"""Downloading VGG's weights: from a server on this machine, which behaves and misbehaves."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from topcoat.train._errors import MissingLossWeightsError
from topcoat.train.losses import _download as downloads
from topcoat.train.losses import _loss_weights as files
from topcoat.train.losses import find_loss_weights

CONTENT = bytes(range(256)) * 300
NAME = f"vgg16-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)
Serve = Callable[..., str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server that sends what it is given to whoever asks, and the address it has."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    ends: list[Callable[[], None]] = []

    def start(*parts: bytes, hold: bool = False) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        over = threading.Event()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)
                if hold:
                    over.wait(20)

        thread = threading.Thread(target=answer)
        thread.start()

        def end() -> None:
            over.set()
            thread.join()
            listener.close()

        ends.append(end)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for end in ends:
        end()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TOPCOAT_VGG16_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(files.HUB_FILE, "vgg16", NAME)
    return tmp_path / "hub" / "checkpoints"


def test_weights_are_downloaded_once_into_torch_s_cache(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "_HUB", serve(OK, CONTENT))
    found = find_loss_weights("vgg16")
    assert (found.path, found.origin) == (cache / NAME, "download")
    assert found.path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [cache / NAME]
    announced = capsys.readouterr().err.splitlines()[0]
    assert announced.startswith(f"downloading the vgg16 weights, 528 MiB, to {cache / NAME}")
    assert find_loss_weights("vgg16").origin == "hub cache"  # nobody answers a second time
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((OK, CONTENT[:999]), "it broke off after 999 of 76800 bytes"),
        ((OK, CONTENT[:-1] + b"x"), "what came has another SHA-256 than was published"),
        ((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",), "HTTP Error 404: Not Found"),
        ((b"garbage\r\n\r\n",), "garbage"),
        ((), "Remote end closed connection without response"),
    ],
)
def test_what_is_not_the_file_leaves_nothing_behind(
    serve: Serve,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[bytes, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(files, "_HUB", serve(*answer))
    with pytest.raises(MissingLossWeightsError) as caught:
        find_loss_weights("vgg16")
    assert caught.value.reason == reason
    assert f"the download failed ({reason}); get {NAME} elsewhere" in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert downloads.ANSWER_S == 10
    monkeypatch.setattr(downloads, "ANSWER_S", 0.2)
    monkeypatch.setattr(files, "_HUB", serve(hold=True))
    with pytest.raises(MissingLossWeightsError) as caught:
        find_loss_weights("vgg16")
    assert caught.value.reason == "no answer within 0.2 s"
    assert capsys.readouterr().err == ""  # what does not begin is not announced
    assert not cache.exists()


def test_a_server_that_falls_silent_is_given_up(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_STALL_S", 0.2)
    monkeypatch.setattr(files, "_HUB", serve(OK, CONTENT[:999], hold=True))
    with pytest.raises(MissingLossWeightsError) as caught:
        find_loss_weights("vgg16")
    assert caught.value.reason == "the server fell silent"
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_bytes(b"a file where a folder should be")
    monkeypatch.setattr(files, "_HUB", serve(OK, CONTENT))
    with pytest.raises(MissingLossWeightsError) as caught:
        find_loss_weights("vgg16")
    assert caught.value.reason in ("Not a directory", "File exists")
