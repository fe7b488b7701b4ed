"""--budget: how it is read, what is picked from a table, what is answered when nothing is."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from topcoat.train import budget as budgets
from topcoat.train import load_checkpoint
from topcoat.train.budget import Budget, BudgetError, BudgetTable, describe, pick
from topcoat.train.cli.train_style import main
from topcoat.train.networks import build_network
from topcoat.train.recipes import STYLE_RECIPES

Refused = Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]

REALTIME = [name for name, recipe in STYLE_RECIPES.items() if recipe.network == "realtime"]


def _row(network: str, size: tuple[int, int], ms: float, **more: object) -> dict[str, Any]:
    row = {"network": network, "width": size[0], "height": size[1], "threads": 2, "p50_ms": ms}
    return {**row, "engine": "openvino-cpu", "precision": "fp32", **more}


def _content() -> dict[str, Any]:
    settings = {name: STYLE_RECIPES[name].network_settings() for name in REALTIME}
    objectives = {"realtime-small": 3.0, "realtime": 2.5, "realtime-large": 2.0}
    fast, full = (1280, 720), (1920, 1080)
    return {
        "format": budgets.TABLE_FORMAT,
        "version": budgets.TABLE_VERSION,
        "machine": {"processor": "A Processor", "logical": 2},
        "networks": [
            {
                "name": name,
                "recipe": name,
                "settings": settings[name],
                "objective": {"total": total},
            }
            for name, total in objectives.items()
        ],
        "latency": [
            _row("realtime-small", fast, 10.0),
            _row("realtime-small", fast, 12.0, engine="onnxruntime-cpu"),
            _row("realtime-small", full, 24.0),
            _row("realtime", fast, 20.0),
            _row("realtime", fast, 7.0, precision="bf16"),
            _row("realtime", full, 50.0),
            _row("realtime", full, 15.5, precision="bf16"),
            _row("realtime-large", fast, 41.0),
            _row("realtime-large", full, 90.0),
        ],
    }


@pytest.fixture
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(json.dumps(_content()))
    return path


@pytest.fixture
def table(table_file: Path) -> BudgetTable:
    return BudgetTable.load(table_file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1080p 16ms", (1920, 1080, 16.0)),
        ("720p 50fps", (1280, 720, 20.0)),
        ("1280x720 20 ms", (1280, 720, 20.0)),
        (" 4K, 33.3 MS ", (3840, 2160, 33.3)),
        ("720p@60fps", (1280, 720, 1000 / 60)),
        ("800 x 600 8ms", (800, 600, 8.0)),
    ],
)
def test_a_budget_is_read_as_people_write_it(text: str, expected: tuple[int, int, float]) -> None:
    found = Budget.parse(text)
    assert (found.width, found.height, found.milliseconds) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'such as "1080p 16ms"'),
        ("fast", 'such as "1080p 16ms"'),
        ("1080p", 'such as "1080p 16ms"'),
        ("16ms", 'such as "1080p 16ms"'),
        ("1080p 16", 'such as "1080p 16ms"'),
        ("1080p16ms", 'such as "1080p 16ms"'),
        ("1080p -16ms", 'such as "1080p 16ms"'),
        ("1080p 16s", 'such as "1080p 16ms"'),
        ("1079p 16ms", "names the frame size 1079p, known are 360p"),
        ("1080p 0ms", "out of range"),
        ("0x0 16ms", "out of range"),
        ("99999x720 16ms", "out of range"),
        ("9" * 5000 + "x720 16ms", "9…' is no budget"),
        ("720p " + "9" * 5000 + "ms", "9…' is no budget"),
        ("9" * 5000 + "p 16ms", "9…' is no budget"),
    ],
)
def test_what_is_no_budget_is_answered_with_an_example(text: str, complaint: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "bf16", "network", "precision", "milliseconds"),
    [
        ("720p 60fps", False, "realtime-small", "fp32", 10.0),
        ("720p 60fps", True, "realtime", "bf16", 7.0),
        ("720p 20ms", False, "realtime", "fp32", 20.0),
        ("720p 100ms", False, "realtime-large", "fp32", 41.0),
        ("1080p 16ms", True, "realtime", "bf16", 15.5),
        ("1080p 30ms", False, "realtime-small", "fp32", 24.0),
    ],
)
def test_the_best_network_that_fits_is_picked_in_a_precision_that_the_processor_has(
    table: BudgetTable, text: str, bf16: bool, network: str, precision: str, milliseconds: float
) -> None:
    chosen = pick(Budget.parse(text), table, bf16=bf16)
    assert chosen.network.name == network
    assert chosen.timing.precision == precision
    assert chosen.milliseconds == milliseconds
    assert chosen.measured
    assert chosen.left_out == ([] if bf16 else ["bf16"])


def test_a_size_that_was_not_measured_is_judged_in_proportion_to_the_nearest_one(
    table: BudgetTable,
) -> None:
    # 1600x900 lies 1.56 times above 720p and 1.44 times below 1080p.
    chosen = pick(Budget.parse("900p 60fps"), table, bf16=False)
    assert chosen.network.name == "realtime-small"
    assert chosen.milliseconds == pytest.approx(24.0 * 1600 * 900 / (1920 * 1080))
    assert not chosen.measured
    line = describe(chosen, Budget.parse("900p 60fps"), table, "A Processor")
    assert "in proportion to 1920x1080" in line


def test_the_line_says_what_was_picked_by_which_figure_and_on_whose_machine(
    table: BudgetTable,
) -> None:
    budget = Budget.parse("1080p 30ms")
    chosen = pick(budget, table, bf16=False)
    elsewhere = describe(chosen, budget, table, "Another Processor")
    assert elsewhere == (
        "budget 1920x1080 in 30 ms: realtime-small, 24 ms (median; openvino-cpu, fp32, 2 threads), "
        "measured on A Processor with 2 logical processors; bf16 left out, this processor does not "
        "compute in it; this is Another Processor: measure here with "
        "benchmarks/realtime_networks.py --json FILE and pass --budget-table FILE"
    )
    assert "measure here" not in describe(chosen, budget, table, "A Processor")


def test_a_budget_that_nothing_meets_names_what_comes_nearest(table: BudgetTable) -> None:
    with pytest.raises(BudgetError) as caught:
        pick(Budget.parse("1080p 16ms"), table, bf16=False)
    assert (
        "no network does 1920x1080 in 16 ms; nearest is realtime-small, 24 ms (median; "
        "openvino-cpu, fp32, 2 threads) on A Processor" in str(caught.value)
    )


def test_on_a_processor_without_bf16_a_table_of_bf16_alone_picks_nothing(table_file: Path) -> None:
    content = _content()
    content["latency"] = [row for row in content["latency"] if row["precision"] == "bf16"]
    table_file.write_text(json.dumps(content))
    with pytest.raises(BudgetError, match="figures in bf16 alone, which this processor does not"):
        pick(Budget.parse("720p 16ms"), BudgetTable.load(table_file), bf16=False)
    assert pick(Budget.parse("720p 16ms"), BudgetTable.load(table_file), bf16=True).measured


def test_networks_that_were_never_trained_are_not_picked_from(table_file: Path) -> None:
    content = _content()
    content["networks"][1]["objective"] = None
    table_file.write_text(json.dumps(content))
    with pytest.raises(BudgetError, match="how good realtime is, for it was made with --latency-o"):
        pick(Budget.parse("720p 16ms"), BudgetTable.load(table_file), bf16=False)


def _damage(change: Callable[[dict[str, Any]], object]) -> str:
    content = _content()
    change(content)
    return json.dumps(content)


def _set(name: str, value: object) -> str:
    return _damage(lambda content: content["networks"][0]["settings"].update({name: value}))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "is not JSON; make one with benchmarks/realtime_networks.py"),
        ("[]", "is not a table of real-time networks"),
        ("{}", "is not a table of real-time networks"),
        (_damage(lambda c: c.update(version=99)), "has table version 99, this version reads 1"),
        (_damage(lambda c: c.pop("latency")), "is damaged (KeyError: 'latency')"),
        (_damage(lambda c: c.update(latency=[])), "is damaged"),
        (_damage(lambda c: c.update(networks=3)), "is damaged"),
        (_damage(lambda c: c["latency"][0].update(p50_ms=-1)), "-1 is no positive number"),
        (_damage(lambda c: c["latency"][0].update(p50_ms=float("nan"))), "no positive number"),
        (_damage(lambda c: c["latency"][0].update(network="x")), "latencies are not of its netw"),
        (_set("width", "24"), "table.json: width of realtime-small must be a whole number above"),
        (_set("width", 24.5), "must be a whole number above 0, got 24.5; make one with"),
        (_set("blocks", None), "blocks of realtime-small must be a whole number above 0, got None"),
        (_set("blocks", True), "must be a whole number above 0, got True"),
        (_set("dilation", 0), "dilation of realtime-small must be a whole number above 0, got 0"),
        (_set("norm", "layer"), "table.json: norm must be one of instance, batch, got 'layer'"),
        (_set("norm", ["batch"]), "norm must be one of instance, batch"),
        (_set("steps", 3), "does not have the network setting 'steps': update topcoat-train"),
        (
            _damage(lambda c: c["networks"][0].update(recipe="johnson2016")),
            "table.json: 'johnson2016' is no real-time recipe, known are realtime,",
        ),
    ],
)
def test_a_table_that_is_none_or_damaged_is_refused_in_one_line(
    table_file: Path, text: str, complaint: str
) -> None:
    table_file.write_text(text)
    with pytest.raises(BudgetError) as caught:
        BudgetTable.load(table_file)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_table_measures_the_networks_that_the_recipes_make() -> None:
    table = BudgetTable.load()
    assert {network.name for network in table.networks} == set(REALTIME)
    for network in table.networks:
        assert network.settings == STYLE_RECIPES[network.recipe].network_settings()
        assert network.objective is not None
        assert {
            (row.width, row.height) for row in table.timings if row.network == network.name
        } >= {
            (1280, 720),
            (1920, 1080),
        }
    largest = pick(Budget.parse("720p 10000ms"), table, bf16=True)
    assert largest.network.objective == min(n.objective or 0 for n in table.networks)


def test_the_command_trains_the_network_that_the_budget_picks(
    table_file: Path,
    tmp_path: Path,
    photographs: Path,
    loss_weights: Path,
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOPCOAT_KEEP_MALLOC", "1")
    monkeypatch.setattr("topcoat.train.loop.bf16_pays", lambda _: False)
    content = _content()
    content["networks"][0]["settings"]["blocks"] = 1  # measured otherwise than the recipe has it
    table_file.write_text(json.dumps(content))
    output = tmp_path / "poster.pt"
    without_size = [*tiny]
    for option in ("--width", "--blocks"):
        if option in without_size:
            at = without_size.index(option)
            del without_size[at : at + 2]
    command = ["--style", "poster", "--content", str(photographs), "--output", str(output)]
    command += ["--loss-weights", str(loss_weights), "--budget", "720p 60fps"]
    command += ["--budget-table", str(table_file), *without_size, "--steps", "1", "--quiet"]
    assert main(command) == 0
    assert "budget 1280x720 in 16.67 ms: realtime-small, 10 ms" in capsys.readouterr().err
    checkpoint = load_checkpoint(output)
    assert checkpoint.recipe["name"] == "realtime-small"
    expected = {**STYLE_RECIPES["realtime-small"].network_settings(), "blocks": 1}
    assert checkpoint.network == {"name": "realtime", "settings": expected}
    assert len(list(build_network("realtime", expected).named_modules())) > 5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--budget", "soon"), "'soon' is no budget; give a frame size and a time, such as"),
        (("--budget", "1080p 1ms", "--budget-table", "TABLE"), "nearest is realtime-small, 24 ms"),
        (("--budget", "1080p 30ms", "--budget-table", "gone.json"), "no budget table at gone.json"),
        (("--budget", "1080p 30ms", "--budget-table", "."), "cannot read ."),
        (("--budget", "1080p 30ms", "--recipe", "modern"), "leave out --recipe, or --budget"),
        (("--budget", "1080p 30ms", "--width", "8"), "leave out --width, or --budget"),
        (("--budget", "1080p 30ms", "--resume", "x.pt"), "leave out --resume, or --budget"),
        (("--budget-table", "TABLE"), "has a meaning with --budget alone"),
    ],
)
def test_a_budget_that_cannot_be_used_is_answered_in_one_line(
    refused: Refused,
    table_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.setattr("topcoat.train.loop.bf16_pays", lambda _: False)
    command = [str(table_file) if part == "TABLE" else part for part in arguments]
    assert complaint in refused(main, command)


def test_a_malformed_budget_is_answered_without_loading_torch() -> None:
    code = (
        "import sys; from topcoat.train.cli.train_style import main;"
        "code = main(['--budget', '1080p']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["2", "False"]
