"""``bench-latency``: its figures are ones that occurred, its page asks nobody for anything."""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from topcoat.runtime.cli.bench_latency import main
from topcoat.runtime.report._measure import COLD_PARTS, Cell, Report, Settings, default_sizes
from topcoat.runtime.report._terminal import render

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]
QUICK = ["--sizes", "32x24,40x40", "--seconds", "0.05", "--rounds", "2", "--threads", "1"]
ORT = ["--backend", "onnxruntime-cpu"]


def cold(first: float) -> dict[str, float]:
    return dict(zip(COLD_PARTS, (20.0, 90.0, 40.0, 10.0, first), strict=True))


def make_report(bundle: Path) -> Report:
    """A report with known latencies; one cell could not be measured."""
    manifest = tr.read_manifest(bundle)
    cells = []
    for width, height in ((640, 360), (1280, 720)):
        for backend, compute, base in (
            ("openvino-cpu", "bf16", 8.0),
            ("onnxruntime-cpu", "fp32", 300.0),
        ):
            cell = Cell(
                backend=backend, compute=compute, variant="m.onnx", width=width, height=height
            )
            cell.latencies_ms = [[base + i / 100 for i in range(50)], [base * 2] * 50]
            cell.cold_ms = [cold(base), cold(base + 2), cold(base + 50)]
            cell.peak_memory_mb = 123.4
            cells.append(cell)
    cells[-1].error = "out of <memory> & patience"
    return Report(
        manifest=manifest,
        settings=Settings(bundle=bundle, sizes=((640, 360),), engines=(), threads=2),
        machine={"processor": "A <fast> CPU", "logical processors": "2"},
        versions={"python": "3.11.7"},
        cells=tuple(cells),
        left_out=("openvino-cpu fp16: not asked",),
        began="2026-01-01 00:00:00 +0000",
    )


def test_sizes_say_the_result_s_where_it_is_another(blocks: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from topcoat.runtime.report._html import render as render_html

    report = make_report(blocks)
    report = dataclasses.replace(report, manifest=dataclasses.replace(report.manifest, scale=4))
    for cell in report.cells:
        cell.scale = 4
    assert "640x360 to 2560x1440   openvino-cpu bf16 " in render(report)
    page = render_html(report)
    assert "640x360<br><small>to 2560x1440</small>" in page
    assert "sizes are frame and result" in page
    assert "1280x720 to 5120x2880: every frame" in page
    figures = report.cells[0].to_json()
    assert (figures["width"], figures["output_width"], figures["output_height"]) == (
        640,
        2560,
        1440,
    )
    assert report.to_json()["scale"] == 4


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("blocks", ((640, 360), (1280, 720), (1920, 1080))),
        ("local2", ((320, 180), (640, 360), (960, 540))),
        ("local4", ((160, 90), (320, 180), (480, 270))),
        ("local8", ((80, 45), (160, 90), (240, 135))),
        ("double", ((320, 180),)),  # takes at most 512
    ],
)
def test_the_default_sizes_are_those_of_results_that_are_shown(
    blocks: Path, name: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    assert default_sizes(tr.read_manifest(blocks.with_name(f"{name}.topcoat"))) == sizes


def test_percentiles_are_latencies_that_occurred(blocks: Path) -> None:
    cell = make_report(blocks).cells[0]
    assert cell.percentile(50) == 8.49
    assert cell.percentile(51) == 16.0
    assert cell.percentile(99) == cell.percentile(100) == 16.0
    few = Cell(backend="b", compute="fp32", variant="m", width=1, height=1)
    few.latencies_ms = [[3.0, 1.0], [2.0]]
    assert [few.percentile(p) for p in (50, 95, 99, 100)] == [2.0, 3.0, 3.0, 3.0]
    np.testing.assert_array_equal(few.steady(), [3.0, 1.0, 2.0])


def test_a_frame_exactly_on_the_budget_is_within_it() -> None:
    cell = Cell(backend="b", compute="fp32", variant="m", width=1, height=1)
    cell.latencies_ms = [[10.0, 1000 / 60, 17.0, 30.0]]
    assert cell.share_within(1000 / 60) == 0.5


def test_cold_figures_are_medians_over_the_rounds(blocks: Path) -> None:
    came = make_report(blocks).cells[0].cold()
    assert came["first_frame"] == 10.0
    assert came["total"] == 170.0


def test_the_table_names_what_was_not_measured(blocks: Path) -> None:
    text = render(make_report(blocks))
    assert re.search(r"640x360 +openvino-cpu bf16 +8.49 +16.00 +16.00 +16.00 +100 +100 %", text)
    assert "1280x720  onnxruntime-cpu fp32  not measured: out of <memory> & patience" in text
    assert "not measured: openvino-cpu fp16: not asked" in text


def test_the_command_measures_and_writes_json(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "latency.json"
    assert main([str(blocks), *QUICK, *ORT, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "cold start, ms" in text
    report = json.loads(out.read_text())
    assert report["format"] == "topcoat-latency"
    assert report["settings"]["rounds"] == 2
    assert report["versions"]["onnxruntime-cpu"]
    cells = report["cells"]
    assert [(c["width"], c["height"]) for c in cells] == [(32, 24), (40, 40)]
    assert [(c["output_width"], c["output_height"]) for c in cells] == [(32, 24), (40, 40)]
    for cell in cells:
        assert len(cell["latencies_ms"]) == len(cell["cold_ms"]) == 2
        assert cell["ran"] == {
            "backend": "onnxruntime-cpu",
            "compute": "fp32",
            "variant": "model.fp32.onnx",
        }
        latencies = sorted(itertools.chain(*cell["latencies_ms"]))
        assert cell["frames"] == len(latencies) >= 6
        assert 0 < cell["p50_ms"] <= cell["p95_ms"] <= cell["p99_ms"] <= cell["max_ms"]
        assert cell["max_ms"] == latencies[-1]
        assert all(cell["cold_median_ms"][part] > 0 for part in (*COLD_PARTS, "total"))
        if sys.platform == "linux":
            # More than numpy alone, less than this machine has: a number with the right unit.
            assert 20 < cell["peak_memory_mb"] < 4000
    assert [path.name for path in out.parent.iterdir()] == ["latency.json"]


def test_two_files_of_one_backend_are_measured_apart_and_named(
    edit_manifest: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        first, second = manifest["variants"]
        second["precision"] = "fp32"  # a second file that the backend runs at fp32
        second["parity"] = first["parity"]

    bundle, out = edit_manifest(change), tmp_path / "latency.json"
    assert main([str(bundle), *QUICK, *ORT, "--rounds", "1", "--json", str(out)]) == 0
    cells = json.loads(out.read_text())["cells"]
    files = ["model.fp32.onnx", "model.fp16.onnx"] * 2
    assert [cell["variant"] for cell in cells] == files
    assert [cell["ran"]["variant"] for cell in cells] == files
    assert "onnxruntime-cpu fp32 [model.fp16.onnx]" in capsys.readouterr().out


class Page(HTMLParser):
    """Collects what could make a browser ask for something, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}:
                (self.links if (value or "").startswith("#") else self.requests).append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_is_self_contained_and_escapes_what_it_is_given(blocks: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from topcoat.runtime.report._html import render as render_html

    page = render_html(make_report(blocks))
    parsed = Page()
    parsed.feed(page)
    assert parsed.requests == []
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(parsed.tags)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert parsed.tags.count("svg") == 4  # overview, two sizes, cold start
    assert len(parsed.ids) == len(set(parsed.ids)), "two plots share ids"
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parsed.ids)
    assert "A &lt;fast&gt; CPU" in page
    assert "out of &lt;memory&gt; &amp; patience" in page
    for part in ("8.49", "60 Hz", "peak memory", "openvino-cpu fp16: not asked", "3.11.7"):
        assert part in page


def test_the_same_report_gives_the_same_page(blocks: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from topcoat.runtime.report._html import render as render_html

    assert render_html(make_report(blocks)) == render_html(make_report(blocks))


def test_the_command_writes_the_page(
    double: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "latency.html"
    assert main([str(double), *QUICK, *ORT, "--html", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["latency.html"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("bench-latency: ")
    return lines[0]


def test_without_matplotlib_the_page_is_refused_before_anything_is_measured(
    blocks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    text = fails(capsys, blocks, "--html", tmp_path / "o.html")
    assert "pip install 'topcoat-runtime[report]'" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sizes", "4000x2000"], "at most 512 on each side"),
        (["--sizes", "8x8", "--precision", "fp16"], "as asked"),
        (["--json", "."], "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    double: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert says in fails(capsys, double, *options)


@pytest.mark.parametrize(
    "options", [["--sizes", "big"], ["--seconds", "-1"], ["--seconds", "nan"], ["--rounds", "0"]]
)
def test_mistyped_options_exit_with_2(
    double: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(double), *options])
    assert stop.value.code == 2


def test_an_engine_that_fails_is_named_and_nothing_is_written(
    edit_manifest: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = edit_manifest(lambda m: m["variants"][0]["output"].update(name="painted"))
    out = tmp_path / "latency.json"
    text = fails(capsys, bundle, *QUICK, *ORT, "--json", out)
    assert "_errors" not in text
    assert "manifest.json says 'painted' of uint8" in text
    assert not out.exists()


def test_an_unverified_engine_is_measured_on_demand_and_marked(
    edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = edit_manifest(lambda m: [v.update(parity=[]) for v in m["variants"]])
    assert "holds no parity check for it" in fails(capsys, bundle, *QUICK, *ORT)
    assert main([str(bundle), *QUICK, *ORT, "--allow-unverified"]) == 0
    captured = capsys.readouterr()
    assert "onnxruntime-cpu fp32 (not verified)" in captured.out
    assert "bench-latency: warning: onnxruntime-cpu fp32 has no passed parity" in captured.err


def test_a_long_measurement_keeps_the_page_light_and_its_extremes(blocks: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from topcoat.runtime.report import _plots
    from topcoat.runtime.report._html import render as render_html

    values = np.random.default_rng(0).random(50_000) + 1
    values[[7, 31_234]] = 0.25, 80.0
    at, shown = _plots._thinned(np.cumsum(values), values)
    assert len(shown) <= _plots._POINTS
    assert (shown.min(), shown.max()) == (0.25, 80.0)
    assert (np.diff(at) > 0).all()
    report = make_report(blocks)
    for cell in report.cells:
        cell.latencies_ms = [values.tolist()]
    assert len(render_html(report)) < 2_000_000
