"""`probekit report RUN --figures DIR`: the charts of a run as files for a paper."""

from __future__ import annotations

import base64
import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from probekit import Page
from probekit.report import Document, draw_figures, render_html

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with charts, and its saved pages."""
    from probekit import run

    output = tmp_path_factory.mktemp("run") / "run"
    run(model=str(tiny_gpt2()), plugins="activation-statistics", prompts="The sky is blue.", output=output)
    return output


def charts(run: Path) -> list[dict[str, Any]]:
    blocks = json.loads((run / "analyses/activation-statistics/page.json").read_text())["blocks"]
    return [block for block in blocks if block["type"] in ("lines", "band", "heatmap", "chart")]


def test_every_chart_is_written_in_each_format_with_its_caption(run: Path, tmp_path: Path, probekit_cli: Any) -> None:
    ended = probekit_cli("report", run, "--figures", tmp_path / "figures")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"Figures: {tmp_path / 'figures'}")
    names = sorted(path.stem for path in (tmp_path / "figures").glob("*.svg"))
    assert len(names) == len(charts(run)) > 1
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        *(f"{name}.{ending}" for name in names for ending in ("svg", "png", "csv")),
        "captions.md",
    }
    captions = (tmp_path / "figures" / "captions.md").read_text()
    for name, block in zip(names, charts(run), strict=True):
        texts = [element.text for element in ET.parse(tmp_path / f"figures/{name}.svg").iter(f"{SVG}text")]
        assert block["x"] in texts
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert f"## {name}\n\n{block['caption']}" in captions
    heatmap = next(index for index, block in enumerate(charts(run)) if block["type"] == "heatmap")
    with (tmp_path / f"figures/{names[heatmap]}.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    written = [float(row[2]) for row in rows]
    assert written == [value for values in charts(run)[heatmap]["values"] for value in values if value is not None]


def test_one_format_may_be_asked_for(run: Path, tmp_path: Path, probekit_cli: Any) -> None:
    assert probekit_cli("report", run, "--figures", tmp_path / "f", "--format", "csv").code == 0
    assert {path.suffix for path in (tmp_path / "f").iterdir()} == {".csv", ".md"}
    ended = probekit_cli("report", run, "--format", "svg")
    assert (ended.code, "give --figures DIR with it" in ended.sentence) == (2, True)


def test_no_file_is_overwritten(run: Path, tmp_path: Path, probekit_cli: Any) -> None:
    assert probekit_cli("report", run, "--figures", tmp_path, "--format", "csv").code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ended = probekit_cli("report", run, "--figures", tmp_path)
    assert (ended.code, "exists; name another folder" in ended.sentence) == (2, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "is no run directory"),
        (lambda run: (run / "analyses/activation-statistics/page.json").write_text("{"), "is damaged"),
        (
            lambda run: (run / "analyses/activation-statistics/page.json").write_text(
                json.dumps({"schema": 1, "title": "t", "blocks": []})
            ),
            "no chart with a finite figure",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    run: Path, tmp_path: Path, probekit_cli: Any, damage: Callable[[Path], None], message: str
) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    ended = probekit_cli("report", tmp_path / "run", "--figures", tmp_path / "figures")
    assert (ended.code, message in ended.sentence) == (2, True)
    assert not (tmp_path / "figures").exists()


def test_a_study_has_figures_too(tiny_gpt2: Callable[..., Path], tmp_path: Path, probekit_cli: Any) -> None:
    (tmp_path / "small.toml").write_text(
        f"""
        title = "Small"
        parameters.model = {json.dumps(str(tiny_gpt2()))}
        runs.decoders = {{ model = "$model", plugins = "pseudo-inverse", seeds = 2 }}
        charts = [{{ caption = "Rank", figure = {{ run = "decoders", metric = "embedding_rank" }}, x = "seed" }}]
        """
    )
    assert probekit_cli("study", tmp_path / "small.toml", "--output", tmp_path / "study").code == 0
    ended = probekit_cli("report", tmp_path / "study", "--figures", tmp_path / "figures")
    assert ended.code == 0
    assert [path.name for path in (tmp_path / "figures").glob("*.svg")] == ["claims-01-rank-median-and-range.svg"]


def test_a_figure_has_all_points_its_legend_and_no_invisible_marks() -> None:
    page = Page("t")
    page.lines({name: [(step, step % 7) for step in range(9000)] for name in ("a", "b")}, caption="Long")
    [figure] = draw_figures([("one", page)], ["svg", "csv"])
    drawing = ET.fromstring(figure.files[".svg"])
    texts = [element.text for element in drawing.iter(f"{SVG}text")]
    assert {"a", "b", "step", "loss"} <= set(texts)
    assert max(path.get("d", "").count("L") for path in drawing.iter(f"{SVG}path")) == 8999
    assert len(list(drawing.iter(f"{SVG}path"))) < 60
    assert figure.files[".csv"].count(b"\n") == 18_001


def test_a_picture_is_written_as_it_is_and_as_pixels() -> None:
    picture = Figure(figsize=(2, 1))
    picture.add_subplot().plot([1, 2], [3, 4])
    page = Page("t")
    page.show(picture, caption="Mine")
    [figure] = draw_figures([("one", page)])
    assert sorted(figure.files) == [".csv", ".png", ".svg"]
    assert ET.fromstring(figure.files[".svg"]).tag == f"{SVG}svg"
    assert figure.files[".png"].startswith(b"\x89PNG\r\n")
    assert figure.files[".csv"].decode().splitlines()[1].endswith("1,3")


def test_a_chart_that_cannot_be_drawn_is_named() -> None:
    page = Page("t")
    page.chart({"mark": "no-such-mark", "data": {"values": [{"a": 1}]}, "encoding": {"x": {"field": "a"}}}, "Odd")
    with pytest.raises(RuntimeError, match="The figure 'one-01-odd' cannot be drawn as SVG: "):
        list(draw_figures([("one", page)]))


def test_nothing_is_loaded_for_a_figure() -> None:
    """A page that was tampered with cannot make the drawing ask for an address."""
    page = Page("t")
    page.blocks.append(
        {
            "type": "chart",
            "caption": "c",
            "description": "",
            "spec": {"mark": "point", "data": {"url": "http://127.0.0.1:9/x.json"}, "encoding": {}},
        }
    )
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        list(draw_figures([("one", page)]))


def test_a_picture_that_cannot_be_drawn_is_named_in_one_line() -> None:
    page = Page("t")
    svg = base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>').decode()
    block = {"mime": "image/svg+xml", "data": svg, "size": [1, 1], "alternative": "", "tables": [], "remark": ""}
    page.blocks.append({"type": "image", "caption": "None", **block})
    with pytest.raises(RuntimeError, match=r"^The figure 'one-01-none' cannot be drawn as PNG: [^\n]*\.$"):
        list(draw_figures([("one", page)]))


def study_of(folder: Path, pages: list[Page]) -> Path:
    folder.mkdir()
    (folder / "page.json").write_text(json.dumps({"pages": [page.to_json() for page in pages]}))
    return folder


def test_pages_whose_names_are_alike_in_files_keep_their_own_figures(tmp_path: Path, probekit_cli: Any) -> None:
    pages = []
    for number, title in enumerate(["\u0441\u043b\u043e\u0439", "\u5c42", "a.b", "a-b"]):
        page = Page(title)
        page.lines({"a": [(0, number)]}, caption="Loss")
        pages.append(page)
    study = study_of(tmp_path / "study", pages)
    assert probekit_cli("report", study, "--figures", tmp_path / "f", "--format", "csv").code == 0
    names = ["page-01-loss", "page-2-01-loss", "a-b-01-loss", "a-b-2-01-loss"]
    written = [(tmp_path / f"f/{name}.csv").read_text().splitlines()[1] for name in names]
    assert written == ["a,0,0", "a,0,1", "a,0,2", "a,0,3"]
    html = render_html(Document("t", "q", pages=[(page.title, page) for page in pages]))
    assert all(f'data-name="{name}"' in html for name in names), "the report's own buttons give the same names"


def test_a_caption_is_no_markup_in_the_captions(tmp_path: Path, probekit_cli: Any) -> None:
    page = Page("t")
    page.lines({"a": [(0, 1)]}, caption="# Loss\n## b\n<img src=x> ![i](http://example.org/x.png)")
    study = study_of(tmp_path / "study", [page])
    assert probekit_cli("report", study, "--figures", tmp_path / "f", "--format", "csv").code == 0
    text = (tmp_path / "f/captions.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")][2:] == []
    assert "<img" not in text.replace("\\<", "")
    assert "![" not in text


def test_a_folder_that_cannot_be_is_one_sentence(run: Path, tmp_path: Path, probekit_cli: Any) -> None:
    ended = probekit_cli("report", run, "--figures", tmp_path / ("x" * 300), "--format", "csv")
    assert (ended.code, "The figures cannot be written to" in ended.sentence) == (2, True)
