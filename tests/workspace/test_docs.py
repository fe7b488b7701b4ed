"""What the documents show is what happens."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from topcoat.train.cli.optimize_image import main as optimize_image
from topcoat.train.cli.train_sr import main as train_sr
from topcoat.train.cli.train_style import main as train_style
from topcoat.train.cli.train_texture import main as train_texture
from topcoat.train.recipes import (
    OPTIMIZE_RECIPES,
    SR_RECIPES,
    STYLE_RECIPES,
    TEXTURE_RECIPES,
    Recipe,
)

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"(?:\]\(|src=\")([^)\"#]+)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []


def test_the_training_document_s_code_runs(tmp_path: Path) -> None:
    blocks = _blocks(ROOT / "docs" / "training.md", "python")
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


Main = Callable[[list[str]], int]
COMMANDS: list[tuple[Main, Mapping[str, Recipe], set[str]]]
COMMANDS = [
    (train_style, STYLE_RECIPES, {"form", "norm", "steps"}),
    (train_sr, SR_RECIPES, {"network", "loss", "blur", "steps"}),
    (train_texture, TEXTURE_RECIPES, {"scales", "norm", "steps", "loss_network"}),
    (optimize_image, OPTIMIZE_RECIPES, {"start", "steps", "loss_network"}),
]
NAMES = ["train-style", "train-sr", "train-texture", "optimize-image"]


@pytest.mark.parametrize(("main", "recipes", "differing"), COMMANDS, ids=NAMES)
def test_every_recipe_field_is_an_option_with_a_reason(
    main: Main,
    recipes: Mapping[str, Recipe],
    differing: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    modern = recipes["modern"]
    for entry in dataclasses.fields(modern):
        if entry.name not in ("name", *modern.without):
            assert "--" + entry.name.replace("_", "-") in text
            assert " ".join(entry.metadata["reason"].split()[:4]) in text


@pytest.mark.parametrize(("main", "recipes", "differing"), COMMANDS, ids=NAMES)
def test_the_recipe_table_marks_what_differs(
    main: Main,
    recipes: Mapping[str, Recipe],
    differing: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--list-recipes"]) == 0
    table = capsys.readouterr().out
    for name, values in recipes.items():
        assert name in table
        steps = values.to_dict()["steps"]
        assert (",".join(map(str, steps)) if isinstance(steps, list) else str(steps)) in table
    marked = {line[2:].split()[0] for line in table.splitlines() if line.startswith("* ")}
    assert differing <= marked
    assert "seed" not in marked


def test_ci_runs_the_readme_s_own_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", readme, re.DOTALL)
    assert command is not None
    assert "pytest" in command.group(1)
    extraction = re.search(r"^test_command=\$\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert extraction is not None
    extracted = subprocess.run(
        ["bash", "-c", extraction.group(1)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert extracted.strip() == command.group(1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_is_left_in_a_document(path: Path) -> None:
    assert re.findall(r"\b[A-Z]+_(?:TIME|TABLE|FIGURE)\b|TODO|FIXME", path.read_text()) == []
