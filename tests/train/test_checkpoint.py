import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from topcoat.train import Checkpoint, CheckpointError, OutputError, load_checkpoint, save_checkpoint
from topcoat.train.checkpoint import FORMAT, check_writable
from topcoat.train.networks import build_network

SETTINGS = {"width": 4, "blocks": 1}


def make_checkpoint(step: int = 5) -> Checkpoint:
    torch.manual_seed(step)
    return Checkpoint(
        task="style",
        network={"name": "johnson", "settings": SETTINGS},
        weights=build_network("johnson", SETTINGS).state_dict(),
        recipe={"name": "modern"},
        step=step,
        style={"name": "mosaic"},
        versions={"torch": "2"},
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert (loaded.task, loaded.step, loaded.style) == ("style", 5, {"name": "mosaic"})
    network = loaded.build_network()
    assert not network.training
    assert network(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def _content(**changes: object) -> dict[str, object]:
    checkpoint = make_checkpoint()
    names = (
        "task",
        "network",
        "weights",
        "recipe",
        "step",
        "history",
        "style",
        "versions",
        "state",
    )
    content = {name: getattr(checkpoint, name) for name in names}
    return {"format": FORMAT, "format_version": 1, **content, **changes}


def _write_bad(path: Path, kind: str) -> None:
    if kind == "random":
        path.write_bytes(bytes(range(256)) * 40)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "code-in-zip":
        torch.save({"format": FORMAT, "weights": Evil()}, path)
    elif kind == "other-project":
        torch.save(build_network("johnson", SETTINGS).state_dict(), path)
    elif kind == "half":
        save_checkpoint(make_checkpoint(), path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "newer":
        torch.save(_content(format_version=99), path)
    elif kind == "no-weights":
        torch.save(_content(weights=None), path)
    elif kind == "unknown-network":
        torch.save(_content(network={"name": "transformer", "settings": {}}), path)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("random", "not a checkpoint"),
        ("empty", "not a checkpoint"),
        ("code", "would run code when loaded; nothing was run"),
        ("code-in-zip", "would run code when loaded; nothing was run"),
        ("other-project", "another project's weights"),
        ("half", "cut short"),
        ("newer", "checkpoint format 99, this version reads 1; update topcoat-train"),
        ("no-weights", "'weights' is missing"),
        ("unknown-network", "'transformer', which this version does not have"),
        ("missing", "no checkpoint at"),
    ],
)
def test_a_bad_checkpoint_gets_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_bad(tmp_path / "bad.pt", kind)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.topcoat").mkdir()
    with pytest.raises(CheckpointError, match="already exported"):
        load_checkpoint(tmp_path / "x.topcoat")


def test_weights_that_do_not_fit_are_refused() -> None:
    checkpoint = make_checkpoint()
    checkpoint.network = {"name": "johnson", "settings": {"width": 8, "blocks": 1}}
    with pytest.raises(CheckpointError, match="do not fit its network 'johnson'"):
        checkpoint.build_network()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(make_checkpoint(step=1), path)
    code = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
import torch
from topcoat.train import OutputError, load_checkpoint, save_checkpoint
checkpoint = load_checkpoint({str(path)!r})
checkpoint.step = 2
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint(checkpoint, {str(path)!r})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "the earlier checkpoint there is kept" in done.stdout
    assert load_checkpoint(path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_settings_of_the_wrong_type_are_refused() -> None:
    checkpoint = make_checkpoint()
    checkpoint.network = {"name": "johnson", "settings": {"width": "wide"}}
    with pytest.raises(CheckpointError, match="network settings cannot be used"):
        checkpoint.build_network()


def test_what_a_killed_write_left_behind_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".a.pt.x1y2.part").write_bytes(b"half")
    (tmp_path / ".b.pt.x1y2.part").write_bytes(b"another run's")
    check_writable(tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == [".b.pt.x1y2.part"]


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(make_checkpoint(), tmp_path / "file" / "a.pt")
    with pytest.raises(OutputError, match="give another place with --output"):
        check_writable(tmp_path / "file" / "a.pt")
