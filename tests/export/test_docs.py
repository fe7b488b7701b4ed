"""What docs/export.md says and shows."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.conftest import ExportedBundle
from topcoat.export import GATES
from topcoat.export.cli.export_engine import parser

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


def blocks(language: str) -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(exported: ExportedBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the document's reader has it: a checkpoint, and the bundle made of it."""
    path = tmp_path_factory.mktemp("docs")
    shutil.copy(exported.checkpoint_file, path / "candy.pt")
    shutil.copytree(exported.bundle, path / "candy.topcoat")
    return path


@pytest.mark.parametrize("number", range(3))
def test_the_python_of_the_document_runs(number: int, folder: Path) -> None:
    found = blocks("python")
    assert len(found) == 3
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", found[number]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_document_are_ones() -> None:
    for command in "".join(blocks("sh")).splitlines():
        program, *arguments = command.split()
        assert program == "export-engine"
        parser().parse_args(arguments)


def test_the_table_of_gates_is_that_of_the_code() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    for compute, groups in GATES.items():
        (line,) = (line for line in lines if line.startswith(f"| {compute} |"))
        wanted = [compute]
        for gate in groups.values():
            parts = []
            if gate.max_steps is not None:
                parts.append(f"≤ {gate.max_steps} step{'s' * (gate.max_steps > 1)}")
            if gate.psnr_db is not None:
                parts.append(f"≥ {gate.psnr_db:g} dB")
            if gate.worst_psnr_db is not None:
                parts.append(f"each ≥ {gate.worst_psnr_db:g} dB")
            if gate.within_4_steps is not None:
                parts.append(f"≥ {gate.within_4_steps * 100:g} % within 4 steps")
            if gate.tone_steps is not None:
                parts.append(f"tone ≤ {gate.tone_steps:g}")
            if gate.flat_steps is not None:
                parts.append(f"uneven ≤ {gate.flat_steps}")
            wanted.append(", ".join(parts))
        assert [cell.strip() for cell in line.strip("|").split("|")] == wanted
