"""What the documents show is run, as it stands."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from topcoat.runtime.cli import bench_latency, topcoat
from topcoat.runtime.frames import Frame

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are not part of this copy")


def blocks_of(document: str, language: str) -> list[str]:
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, blocks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with candy.topcoat, x4.topcoat and mosaic.topcoat, as the documents assume it."""
    shutil.copytree(blocks, tmp_path / "candy.topcoat")
    shutil.copytree(blocks.with_name("local4.topcoat"), tmp_path / "x4.topcoat")
    shutil.copytree(blocks.with_name("woven.topcoat"), tmp_path / "mosaic.topcoat")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_programs_of_the_runtime_document_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = blocks_of("runtime.md", "python")
    assert len(snippets) >= 5
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/runtime.md", "exec"), names)
    assert "numpy.ascontiguousarray(frame)" in capsys.readouterr().out


def test_the_programs_of_the_embedding_document_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("candy.topcoat", "other.topcoat")
    names: dict[str, Any] = {}
    snippets = blocks_of("embedding.md", "python")
    assert len(snippets) >= 6
    for snippet in snippets:
        exec(compile(snippet, "docs/embedding.md", "exec"), names)
    said = capsys.readouterr().out
    for part in ("FRESH 1 ", "copies per frame", "p99"):
        assert part in said


def test_the_window_of_the_embedding_document_is_the_example() -> None:
    (shown,) = blocks_of("embedding.md", "py")[:1]
    example = (DOCS.parent / "examples" / "minimal_window.py").read_text(encoding="utf-8")
    assert example.endswith(shown)
    assert len([line for line in shown.splitlines() if line.strip()]) <= 25


def test_the_commands_of_the_runtime_document_run(
    workplace: Path, photograph: Frame, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    image.fromarray(photograph).save("photo.png")
    Path("photos").mkdir()
    image.fromarray(photograph).save("photos/a.jpg")
    write_clip(Path("clip.mp4"), photograph)
    programs: dict[str, Callable[[list[str]], int]] = {
        "topcoat": topcoat.main,
        "bench-latency": bench_latency.main,
    }
    ran = 0
    for block in blocks_of("runtime.md", "console"):
        for line in block.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert programs[program](arguments) == 0, line
            ran += 1
    assert ran >= 6
    for name in (
        "styled.png",
        "larger.png",
        "wall.png",
        "look.png",
        "styled/a.jpg",
        "styled.mp4",
        "latency.json",
        "latency.html",
    ):
        assert Path(name).stat().st_size > 0


def write_clip(path: Path, picture: Frame) -> None:
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))


def test_the_manifest_in_the_bundle_document_is_one(bundle: Path) -> None:
    import hashlib
    import json

    import topcoat.runtime as tr

    shown, engine = blocks_of("bundle.md", "json")
    manifest = json.loads(shown)
    # The document abbreviates hashes; everything else is read as it stands.
    model = (bundle / "model.fp32.onnx").read_bytes()
    card = (bundle / "card.md").read_bytes()
    manifest["variants"][0] |= {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    manifest["files"]["card.md"] = {"sha256": hashlib.sha256(card).hexdigest(), "bytes": len(card)}
    (bundle / "engine").write_bytes(b"an engine")
    built = json.loads(f"{{{engine}}}")
    built["engine"]["key"] = hashlib.sha256(b"key").hexdigest()
    manifest["variants"] += [
        {
            **manifest["variants"][0],
            **{"file": "engine", "kind": "tensorrt-rtx", "precision": "fp16", "opset": None},
            **{"sha256": hashlib.sha256(b"an engine").hexdigest(), "bytes": 9, "parity": []},
            **built,
        }
    ]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    read = tr.verify_files(bundle)
    assert read.name == "candy"
    assert read.variants[1].engine is not None
    assert str(read.variants[1].engine.profiles[0]) == "8x8:1920x1080:3840x2160"


def test_every_backend_and_error_is_documented() -> None:
    import topcoat.runtime as tr
    from topcoat.runtime.backends import all_backends

    text = (DOCS / "runtime.md").read_text(encoding="utf-8")
    names = [backend.name for backend in all_backends()]
    names += [name for name in tr.__all__ if name.endswith(("Error", "Warning"))]
    assert [name for name in names if f"`{name}`" not in text and f"`tr.{name}`" not in text] == []
