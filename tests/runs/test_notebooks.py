"""What a notebook shows of a run, a result, a comparison and a study, and their tables as data frames."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import probekit
from probekit.analysis.notebook import MOST_ROWS
from probekit.runs.comparison import TrainedAndRandom
from probekit.runs.studies import Study
from tests.report.conftest import HOSTILE
from tests.report.reading import CHARTS, Reader, chromium

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "<!doctype html><meta charset='utf-8'><title>A notebook</title><h1>A notebook</h1>"


class Frames(HTMLParser):
    """The attributes of each frame of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "iframe":
            self.found.append(dict(attrs))


@pytest.fixture(scope="module")
def run(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    return probekit.run(
        str(tiny_gpt2()),
        ["gradient-inverter", "pseudo-inverse"],
        options={"gradient-inverter": {"steps": 5, "restarts": 2}},
        output=tmp_path_factory.mktemp("shown") / "run",
    )


@pytest.fixture
def hostile() -> probekit.Result:
    text = " ".join(HOSTILE)
    return probekit.Result(
        finding=f"A finding {text}",
        metrics={text: 0.5, "absent": None, "not saved yet": torch.ones(2)},  # type: ignore[dict-item]
        tables={text: [{"token": token, text: number} for number, token in enumerate(HOSTILE)], "empty": []},
        sequences={text: [probekit.TokenSequence(list(range(len(HOSTILE))), HOSTILE, {"site": text})]},
        tensors={"jacobian": torch.zeros(1000, 64), text: numpy.zeros((3, 4, 5))},
        notes=[text],
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., tuple[Reader, list[Any]]]]:
    """`opened(html, …)`: a page such as a notebook makes of these outputs, and its frames with their charts drawn."""
    readers = []

    def open_page(*outputs: str) -> tuple[Reader, list[Any]]:
        path = tmp_path / "notebook.html"
        path.write_text(NOTEBOOK + "".join(outputs), encoding="utf-8")
        reader = Reader(browser, path, viewport={"width": 1000, "height": 900})
        readers.append(reader)
        frames = reader.page.frames[1:]
        for frame in frames:
            for _ in range(600):
                if frame.evaluate("[...document.querySelectorAll('[data-chart]')].every((box) => box.dataset.drawn)"):
                    break
                reader.page.wait_for_timeout(50)
        return reader, frames

    yield open_page
    for reader in readers:
        reader.context.close()


@pytest.mark.chromium
def test_a_run_shows_its_report_with_its_charts_and_reaches_nothing_outside(run: probekit.Run, opened: Any) -> None:
    reader, [frame] = opened(run._repr_html_())
    charts = frame.evaluate(CHARTS)
    assert charts
    assert all(drawn and width > 200 and height > 40 for drawn, width, height in charts)
    assert frame.locator("h1").inner_text().replace("\n", " ").startswith("gradient-inverter + pseudo-inverse on")
    assert frame.evaluate("violations") == []
    assert frame.evaluate("origin") == "null"
    reach = "(() => { try { return parent.document.title } catch (error) { return error.name } })()"
    assert frame.evaluate(reach) == "SecurityError"
    assert reader.complaints == []
    assert len(reader.requests) == 1


@pytest.mark.chromium
def test_links_within_a_report_stay_in_its_frame(run: probekit.Run, opened: Any) -> None:
    reader, [frame] = opened(run._repr_html_())
    assert frame.evaluate("scrollY") == 0
    frame.locator("nav a", has_text="Provenance").click()
    for _ in range(100):
        if frame.evaluate("scrollY") > 0:
            break
        reader.page.wait_for_timeout(50)
    assert frame.evaluate("scrollY") > 0
    assert frame.evaluate("location.href") == "about:srcdoc#provenance"
    assert reader.complaints == []


@pytest.mark.chromium
def test_a_frame_can_be_made_higher(run: probekit.Run, opened: Any) -> None:
    reader, _ = opened(run._repr_html_())
    box = reader.page.locator("iframe").locator("..")
    box.scroll_into_view_if_needed()
    before = box.bounding_box()
    x, y = before["x"] + before["width"] - 6, before["y"] + before["height"] - 6
    reader.page.mouse.move(x, y)
    reader.page.mouse.down()
    for distance in (20, 60, 100):
        reader.page.mouse.move(x, y + distance)
    reader.page.mouse.up()
    assert box.bounding_box()["height"] == pytest.approx(before["height"] + 100, abs=2)
    assert reader.page.locator("iframe").bounding_box()["height"] > before["height"]


@pytest.mark.chromium
def test_a_result_shows_what_it_holds_and_hostile_text_does_nothing(hostile: probekit.Result, opened: Any) -> None:
    reader, [frame] = opened(hostile._repr_html_())
    assert frame.evaluate("window.ranHostile ?? null") is None
    assert reader.page.evaluate("window.ranHostile ?? null") is None
    assert reader.complaints == []
    text = frame.locator("body").inner_text()
    for shown in (
        "A finding </script>",
        "⟨U+202E⟩gnp.exe",
        "⟨U+D800⟩",
        "[1000, 64]",
        "float32",
        "[3, 4, 5]",
        "float64",
    ):
        assert shown in text, shown
    assert f"the first {MOST_ROWS} of {len(HOSTILE)} rows" in text
    assert frame.locator(".token").count() == len(HOSTILE)


def test_nothing_in_a_frame_ends_its_attribute(run: probekit.Run, hostile: probekit.Result) -> None:
    [frame] = Frames(run._repr_html_()).found
    assert frame["sandbox"] == "allow-scripts allow-downloads"
    report = run.report_path.read_text(encoding="utf-8")
    assert (frame["srcdoc"] or "").replace('<base href="about:srcdoc">', "") == report
    [frame] = Frames(hostile._repr_html_()).found
    assert frame["sandbox"] == "allow-scripts allow-downloads"
    assert set(frame) == {"title", "sandbox", "srcdoc", "style"}


def test_where_there_is_no_report_a_sentence_says_so_and_what_to_do(tmp_path: Path) -> None:
    gone = probekit.Run(tmp_path / "<b>gone</b>", "interrupted")
    html = gone._repr_html_()
    assert "cannot be read (No such file or directory)" in html
    assert "probekit report" in html
    assert "<b>" not in html
    assert Frames(html).found == []
    broken = tmp_path / "comparison.html"
    broken.write_bytes(b"\xff\xfe")
    html = probekit.Comparison(broken, [], [])._repr_html_()
    assert "cannot be read (UnicodeDecodeError" in html
    assert Frames(html).found == []
    surrogate = probekit.Run(tmp_path / "\udcff")._repr_html_()
    assert surrogate.encode()


def test_a_comparison_and_a_study_show_their_pages(run: probekit.Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.path, tmp_path / "other"))
    comparison = probekit.compare([run.path, other], tmp_path / "comparison.html")
    [frame] = Frames(comparison._repr_html_()).found
    assert "<title>Comparison: " in (frame["srcdoc"] or "")
    assert repr(comparison) == (
        f"Comparison({str(tmp_path / 'comparison.html')!r}, run | other: gradient-inverter, pseudo-inverse)"
    )
    both = TrainedAndRandom(run, run, comparison)
    assert both._repr_html_() == comparison._repr_html_()
    assert len(Frames(TrainedAndRandom(run, run, None)._repr_html_()).found) == 2

    outcome = Study(tmp_path, [])
    (tmp_path / "alone.html").write_text("<html><head><title>A study</title>", encoding="utf-8")
    [frame] = Frames(outcome._repr_html_()).found
    assert "A study" in (frame["srcdoc"] or "")
    assert repr(outcome) == f"Study({str(tmp_path)!r}, cells: 0 done, 0 failed, 0 missing; passed)"


def test_a_run_and_a_result_are_one_short_line(run: probekit.Run, hostile: probekit.Result) -> None:
    assert repr(run) == f"Run({str(run.path)!r}, done: gradient-inverter, pseudo-inverse)"
    failed = probekit.Run(Path("a"), "failed", failures={"b": "It broke."})
    assert repr(failed) == "Run('a', failed: no results; failed: b)"
    found = probekit.Result("One.", {"a": 1}, {"t": [{"x": 1}]}, tensors={"j": torch.zeros(1000, 64)})
    assert repr(found) == "Result('One.'; metrics: 1; rows of t: 1; tensor j: [1000, 64] float32)"
    assert repr(probekit.Result()) == "Result()"
    assert len(repr(run.results["gradient-inverter"])) < 1000
    assert "tensor([" not in repr(hostile)


def test_the_guide_to_notebooks_works_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebooks.md").read_text("utf-8"), re.DOTALL)
    [begin, tables, several] = snippets
    found: dict[str, Any] = {}
    exec(begin, found)
    exec(tables, found)
    run = found["run"]
    for name in ("one", "two"):
        shutil.copytree(run.path, tmp_path / "probekit-runs" / name)
    exec(several, found)
    metrics = found["metrics"]
    assert len(metrics.loc["probekit-runs/two"]) == len(run.result.metrics) == len(metrics) / 2
    assert list(metrics.columns) == ["analysis", "metric", "value"]


# --- tables as data frames -------------------------------------------------------------------------------------------


def test_a_table_is_a_frame_with_its_columns_in_order_and_what_is_missing_missing() -> None:
    pandas = pytest.importorskip("pandas")
    rows: list[dict[str, Any]] = [
        {"token": " the", "id": 464, "rank": None, "loss": 0.5, "right": True, "whole": 2, "mixed": 1},
        {"token": None, "id": 262, "rank": 3, "loss": None, "right": None, "whole": 0.5, "mixed": "x", "late": 2**70},
    ]
    frame = probekit.Result(tables={"ranks": rows}).to_pandas()
    assert list(frame.columns) == ["token", "id", "rank", "loss", "right", "whole", "mixed", "late"]
    kinds = {column: str(dtype) for column, dtype in frame.dtypes.items()}
    assert {name: kinds[name] for name in ("id", "rank", "loss", "right", "whole", "mixed")} == {
        "id": "int64",
        "rank": "Int64",
        "loss": "float64",
        "right": "boolean",
        "whole": "float64",
        "mixed": "object",
    }
    assert [[value if pandas.notna(value) else None for value in row] for row in frame.itertuples(index=False)] == [
        [row.get(column) for column in frame.columns] for row in rows
    ]
    assert probekit.Result(tables={"none": []}).to_pandas().empty


def test_which_table_is_meant_must_be_clear() -> None:
    result = probekit.Result(tables={"ranks": [], "margins": []})
    with pytest.raises(probekit.UsageError, match=r"has 2 tables \(ranks, margins\); name the one"):
        result.to_pandas()
    with pytest.raises(probekit.UsageError, match=r"no table 'rank'; .*ranks, margins\. Did you mean 'ranks'"):
        result.to_pandas("rank")
    with pytest.raises(probekit.UsageError, match="has no tables"):
        probekit.Result().to_pandas()


def test_the_metrics_of_a_run_are_one_frame(run: probekit.Run) -> None:
    pytest.importorskip("pandas")
    frame = run.to_pandas()
    assert list(frame.columns) == ["analysis", "metric", "value"]
    found = {(row.analysis, row.metric): row.value for row in frame.itertuples()}
    expected = {(name, key): value for name, result in run.results.items() for key, value in result.metrics.items()}
    assert set(found) == set(expected)
    assert all(found[key] == value for key, value in expected.items() if value is not None)
    assert list(probekit.Run(Path("a")).to_pandas().columns) == ["analysis", "metric", "value"]


def test_without_pandas_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(probekit.UsageError, match="pip install pandas"):
        probekit.Result(tables={"ranks": [{"a": 1}]}).to_pandas()


def test_showing_a_run_imports_neither_torch_nor_pandas(probekit_process: Any, run: probekit.Run) -> None:
    code = (
        "import sys, probekit; html = probekit.read_run(sys.argv[1])._repr_html_(); assert '<iframe' in html; "
        "print(*{name.split('.')[0] for name in sys.modules} & {'torch', 'pandas', 'matplotlib', 'IPython'})"
    )
    ended = probekit_process(run.path, code=code)
    assert (ended.code, ended.out) == (0, "\n"), ended.err
