"""Comparing runs: what is said to differ, which curves share a chart, and what cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.report import Page
from probekit.runs.comparison.differences import difference, metrics_of
from probekit.runs.comparison.document import draw
from probekit.runs.comparison.sides import read_sides
from probekit.runs.directory import RunDirectory

SaveRun = Callable[..., Path]


def save_run(
    path: Path,
    *,
    pages: Mapping[str, Page] | None = None,
    metrics: Mapping[str, Any] | None = None,
    status: str = "done",
    failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    tokens: list[str] | None = None,
    **configuration: Any,
) -> Path:
    """A run directory as a run leaves it, without having run: one analysis 'probe', unless pages say otherwise."""
    pages = {"probe": Page("probe")} if pages is None else pages
    failures = failures or {}
    model = {"name": "demo", "weights": "pretrained", "weights_seed": 0, "dtype": "auto", "quantization": None}
    names = [*pages, *failures]
    manifest = {
        "schema": 1,
        "status": status,
        "command": f"probekit run --output {path.name}",
        "configuration": {
            "model": model | configuration.pop("model", {}),
            "plugins": names,
            "options": {name: dict(options or {"steps": 50}) for name in names},
            "prompts": ["The sky is blue."],
            "input_ids": [],
            "special_tokens": True,
            "seed": 0,
            "block_plugins": [],
            **configuration,
        },
        "sources": {},
        "versions": {"probekit": "0.1.0"} | dict(versions or {}),
        "model": {"dtype": "float32", "parameters": 12} | dict(facts or {}),
        "prompts": [{"text": "The sky is blue.", "tokens": tokens or ["The", " sky"]}],
        "analyses": {name: {"status": "done"} for name in pages}
        | {name: {"status": "failed", "error": text} for name, text in failures.items()},
    }
    path.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(path)
    directory.write_json("run.json", manifest)
    for name, page in pages.items():
        result = {
            "schema": 1,
            "finding": "",
            "metrics": dict(metrics or {}),
            "tables": {},
            "sequences": {},
            "notes": [],
        }
        directory.write_json(f"analyses/{name}/result.json", result)
        directory.write_json(f"analyses/{name}/page.json", page.to_json())
    return path


def lines_page(series: Mapping[str, Any], heading: str = "block.0", **settings: Any) -> dict[str, Page]:
    page = Page("probe")
    page.heading(heading)
    page.lines(series, **{"x": "step", "y": "loss", "caption": "Loss"} | settings)
    return {"probe": page}


def drawn(*paths: Path, page: str = "probe") -> list[dict[str, Any]]:
    """The blocks of one page of the comparison."""
    sides = read_sides(list(paths))
    shared = [name for name in sides[0].pages if all(name in side.pages for side in sides)]
    return next(own.blocks for name, own in draw(sides, shared, "probekit compare").pages if name == page)


def of_type(blocks: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [block for block in blocks if block["type"] in kinds]


def chart(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    [found] = of_type(blocks, "lines", "band")
    return found


# --- settings --------------------------------------------------------------------------------------------------------


def test_only_the_settings_that_differ_are_shown_each_with_the_value_of_every_run(tmp_path: Path) -> None:
    first = save_run(tmp_path / "first", options={"steps": 50, "loss": "l1"}, seed=3)
    second = save_run(tmp_path / "second", options={"steps": 80, "loss": "l1"}, seed=3)
    [runs, settings] = of_type(drawn(first, second, page="What is compared"), "table")
    assert settings["columns"] == ["setting", "steps 50", "steps 80"]
    assert settings["rows"] == [["probe.steps", "50", "80"]], "named as `-o` takes it"
    assert [row[runs["columns"].index("folder")] for row in runs["rows"]] == [str(first), str(second)]


def test_runs_with_the_same_settings_are_said_to_have_them(tmp_path: Path) -> None:
    blocks = drawn(save_run(tmp_path / "first"), save_run(tmp_path / "second"), page="What is compared")
    assert "with the same options and configuration" in of_type(blocks, "finding")[0]["text"]
    assert len(of_type(blocks, "table")) == 1


def test_facts_of_the_models_and_versions_that_differ_are_shown_apart_from_settings(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", facts={"weights_sha256": "abc"}, versions={"torch": "2.6"})
    second = save_run(tmp_path / "b", facts={"parameters": 13}, versions={"torch": "2.7"})
    document = probekit.compare([first, second], tmp_path / "page.html").document()
    assert document["differences"] == {
        "configuration": {},
        "model": {"parameters": {"a": 12, "b": 13}, "weights_sha256": {"a": "abc"}},
        "versions": {"torch": {"a": "2.6", "b": "2.7"}},
    }


def test_prompts_that_are_other_tokens_are_pointed_out(tmp_path: Path) -> None:
    first, second = save_run(tmp_path / "a"), save_run(tmp_path / "b", tokens=["Th", "e sky"])
    assert of_type(drawn(first, second, page="What is compared"), "note")


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}, {"model": {"weights": "random"}}], ["trained weights", "random weights"]),
        (
            [{}, {"model": {"weights": "random", "weights_seed": 4}}],
            ["trained weights", "random weights, weights seed 4"],
        ),
        ([{"model": {"dtype": "float32"}}, {"model": {"dtype": "bfloat16"}}], ["float32", "bfloat16"]),
        ([{"model": {"name": "some/where/gpt2"}}, {}], ["gpt2", "demo"]),
        ([{"seed": 1}, {"seed": 2}, {"seed": 30}], ["seed 1", "seed 2", "seed 30"]),
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], ["run 0", "run 1", "run 2"]),
        ([{"options": {"inner": [1]}}, {"options": {"inner": [5, 10]}}], ["inner 1", "inner 5, 10"]),
        ([{}, {}], ["run 0", "run 1"]),
        ([{"prompts": ["x" * 99]}, {}], ["run 0", "run 1"]),
        ([{"seed": 1, "special_tokens": False, "prompts": ["x"]}, {}], ["run 0", "run 1"]),
    ],
    ids=[
        "weights",
        "weights and their seed",
        "precision",
        "model",
        "seeds",
        "twice the same",
        "lists",
        "same",
        "long",
        "many",
    ],
)
def test_a_run_is_called_what_tells_it_apart_where_that_is_short_else_by_its_folder(
    tmp_path: Path, settings: list[dict[str, Any]], labels: list[str]
) -> None:
    paths = [save_run(tmp_path / f"run {number}", **each) for number, each in enumerate(settings)]
    assert [side.label for side in read_sides(paths)] == labels


def test_folders_of_one_name_are_told_apart_by_the_folders_that_they_are_in(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / folder / "run") for folder in ("one", "two")]
    assert [side.label for side in read_sides(paths)] == ["one/run", "two/run"]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_stand_side_by_side_with_differences_to_the_first_run(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", metrics={"loss": 4.0, "rate": 1.0, "text": "x", "only": 2}, seed=1)
    second = save_run(tmp_path / "b", metrics={"loss": 1.0, "rate": 1.0, "text": "y"}, seed=2)
    blocks = drawn(first, second)
    [changed, partly, same] = of_type(blocks, "table")
    assert changed["columns"] == ["metric", "seed 1", "seed 2", "Δ seed 2", "Δ seed 2, %"]
    assert changed["rows"] == [
        ["loss", 4.0, 1.0, -3.0, -75.0],
        ["text", "x", "y", None, None],
    ]
    assert (partly["columns"], partly["rows"]) == (["metric", "seed 1", "seed 2"], [["only", 2, "missing"]])
    assert same["rows"] == [["rate", 1.0]]
    assert same["collapsed"]


def test_a_metric_that_the_first_run_lacks_has_values_and_no_difference(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", metrics={})
    others = [save_run(tmp_path / name, metrics={"m": value}) for name, value in (("b", 1.0), ("c", 2.0))]
    [table] = of_type(drawn(first, *others), "table")
    assert table["rows"] == [["m", "missing", 1.0, 2.0]]


def test_many_metrics_are_folded_below_what_the_page_shows_and_few_stand_above_it(tmp_path: Path) -> None:
    def order(count: int) -> list[tuple[str, bool]]:
        paths = [
            save_run(
                tmp_path / f"{name} {count}",
                metrics={f"figure {'i' * n}": n * factor for n in range(1, count + 1)},
                pages=lines_page({"loss": [(0, 1.0)]}),
            )
            for factor, name in enumerate("ab", 1)
        ]
        return [(block["type"], block.get("collapsed", False)) for block in of_type(drawn(*paths), "table", "lines")]

    assert order(12) == [("table", False), ("lines", False)]
    assert order(13) == [("lines", False), ("table", True)]


@pytest.mark.parametrize(
    ("reference", "value", "absolute", "relative"),
    [
        (4.0, 1.0, -3.0, -0.75),
        (-4.0, -1.0, 3.0, 0.75),
        (2, 3, 1, 0.5),
        (4.0, 0.0, -4.0, -1.0),
        (0.0, 4.0, 4.0, None),
        (-1.0, 1.0, 2.0, None),
        (1.0, 5e-324, -1.0, -1.0),
        (5e-324, 1.0, 1.0, None),
    ],
)
def test_a_difference_is_relative_only_to_what_it_can_be_a_share_of(
    reference: float, value: float, absolute: float, relative: float | None
) -> None:
    found = difference(reference, value)
    assert found is not None
    assert (found.absolute, found.relative) == (absolute, relative)


@pytest.mark.parametrize(
    ("reference", "value"), [(True, False), ("a", "b"), (None, 1.0), (1.0, None), (1e308, -1e308), (10**400, 1.0)]
)
def test_what_is_no_number_or_beyond_one_has_no_difference(reference: Any, value: Any) -> None:
    assert difference(reference, value) is None
    [metric] = metrics_of([{"m": reference}, {"m": value}])
    assert metric.differences == {}


def test_metrics_by_block_become_curves_over_blocks_where_they_differ(tmp_path: Path) -> None:
    def metrics(scale: float) -> dict[str, float]:
        return {
            f"block.{block}/{name}": block * by for block in range(12) for name, by in (("rate", scale), ("same", 1))
        }

    first = save_run(tmp_path / "a", metrics=metrics(1.0), seed=1)
    second = save_run(tmp_path / "b", metrics=metrics(2.0), seed=2)
    curves = chart(drawn(first, second))
    assert (curves["x"], curves["y"]) == ("block", "rate")
    assert [series["name"] for series in curves["series"]] == ["seed 1", "seed 2"]
    assert curves["series"][1]["points"] == [[block, 2.0 * block] for block in range(12)]


# --- curves ----------------------------------------------------------------------------------------------------------


def test_one_curve_a_run_is_one_chart_with_a_line_for_each_run(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", pages=lines_page({"loss": [(0, 3.0), (1, 2.0)]}), seed=1)
    second = save_run(tmp_path / "b", pages=lines_page({"loss": [(0, 5.0), (1, 1.0)]}), seed=2)
    both = chart(drawn(first, second))
    assert (both["type"], both["caption"]) == ("lines", "Loss")
    assert both["series"] == [
        {"name": "seed 1", "points": [[0, 3.0], [1, 2.0]]},
        {"name": "seed 2", "points": [[0, 5.0], [1, 1.0]]},
    ]


def test_restarts_are_their_median_in_a_band_from_the_least_to_the_greatest(tmp_path: Path) -> None:
    restarts = {f"restart {index}": [(0, value), (1, 2 * value)] for index, value in enumerate([1.0, 8.0, 3.0])}
    first = save_run(tmp_path / "a", pages=lines_page(restarts, log_y=True), seed=1)
    second = save_run(tmp_path / "b", pages=lines_page({"restart 0": [(0, 5.0), (1, 6.0)]}, log_y=True), seed=2)
    both = chart(drawn(first, second))
    assert (both["type"], both["log_y"]) == ("band", True)
    assert both["caption"] == "Loss (median and range of 1 to 3 restarts)"
    assert both["series"] == [
        {"name": "seed 1", "points": [[0, 3.0, 1.0, 8.0], [1, 6.0, 2.0, 16.0]]},
        {"name": "seed 2", "points": [[0, 5.0, 5.0, 5.0], [1, 6.0, 6.0, 6.0]]},
    ]


def test_restarts_that_are_all_alike_are_a_line_that_says_so(tmp_path: Path) -> None:
    restarts = {f"restart {index}": [(0, 0.5), (1, 1.0)] for index in range(8)}
    both = chart(drawn(*(save_run(tmp_path / name, pages=lines_page(restarts)) for name in "ab")))
    assert (both["type"], both["caption"]) == ("lines", "Loss (8 restarts, all alike)")


def test_restarts_of_different_length_or_with_gaps_are_joined_where_they_have_figures(tmp_path: Path) -> None:
    restarts = {"restart 0": [(0, 1.0), (1, None), (2, None)], "restart 1": [(0, 3.0), (2, None), (1, 4.0)]}
    paths = [save_run(tmp_path / name, pages=lines_page(restarts)) for name in "ab"]
    for series in chart(drawn(*paths))["series"]:
        assert series["points"] == [[0, 2.0, 1.0, 3.0], [1, 4.0, 4.0, 4.0], [2, None, None, None]]


def test_series_of_several_names_get_a_chart_for_each_name_and_their_restarts_stay_together(tmp_path: Path) -> None:
    series = {f"{name}, restart {index}": [(0, index)] for name in ("cosine", "nearest") for index in range(2)}
    paths = [save_run(tmp_path / name, pages=lines_page(series), seed=ord(name)) for name in "ab"]
    charts = of_type(drawn(*paths), "band")
    assert [each["caption"] for each in charts] == [
        "Loss: cosine (median and range of 2 restarts)",
        "Loss: nearest (median and range of 2 restarts)",
    ]
    for each in charts:
        assert [named["name"] for named in each["series"]] == ["seed 97", "seed 98"]


def test_a_name_stands_before_what_a_caption_says_in_brackets(tmp_path: Path) -> None:
    page = lines_page({name: [(0, 1.0)] for name in ("near", "far")}, caption="Loss (of one walker)")
    charts = of_type(drawn(*(save_run(tmp_path / name, pages=page) for name in "ab")), "lines")
    assert [each["caption"] for each in charts] == ["Loss: near (of one walker)", "Loss: far (of one walker)"]


def own_series(tmp_path: Path, *runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    paths = [
        save_run(tmp_path / f"{number}", pages=lines_page(series), options={"inner": [number]})
        for number, series in enumerate(runs)
    ]
    return of_type(drawn(*paths), "lines", "band")


def test_curves_that_one_run_alone_has_share_a_chart_with_what_is_the_same_in_every_run(tmp_path: Path) -> None:
    """As walks of two options do, beside their control: what differs is in the picture."""
    control = {"control": [(0, 1.0), (1, 1.0)]}
    [chart] = own_series(tmp_path, {"inner 0": [(0, 2.0)], **control}, {"inner of ten": [(0, 3.0)], **control})
    assert chart["series"] == [
        {"name": "inner 0", "points": [[0, 2.0]]},
        {"name": "inner 1: inner of ten", "points": [[0, 3.0]]},
        {"name": "control, in every run", "points": [[0, 1.0], [1, 1.0]]},
    ]


def test_curves_of_one_name_that_differ_keep_a_chart_of_their_own(tmp_path: Path) -> None:
    own, shared = own_series(
        tmp_path, {"a": [(0, 2.0)], "control": [(0, 1.0)]}, {"b": [(0, 3.0)], "control": [(0, 4.0)]}
    )
    assert [series["name"] for series in own["series"]] == ["inner 0: a", "inner 1: b"]
    assert (shared["caption"], [series["points"] for series in shared["series"]]) == (
        "Loss: control",
        [[[0, 1.0]], [[0, 4.0]]],
    )


def test_curves_that_one_run_has_beyond_the_others_are_left_to_its_own_report(tmp_path: Path) -> None:
    charts = own_series(tmp_path, {"a": [(0, 2.0)], "b": [(0, 1.0)]}, {"a": [(0, 2.0)]})
    assert [each["caption"] for each in charts] == ["Loss: a"]


def test_a_repetition_that_is_named_first_leaves_no_comma(tmp_path: Path) -> None:
    pages = [lines_page({f"restart {n}, selected": [(0, 1.0)], "all": [(0, n)]}) for n in range(2)]
    charts = of_type(drawn(*(save_run(tmp_path / f"{n}", pages=page, seed=n) for n, page in enumerate(pages))), "lines")
    assert [each["caption"] for each in charts] == ["Loss: selected", "Loss: all"]


def test_layers_are_not_taken_for_repetitions(tmp_path: Path) -> None:
    layers = {f"layer {index}": [(0, index), (1, index)] for index in range(12)}
    blocks = drawn(*(save_run(tmp_path / name, pages=lines_page(layers)) for name in "ab"))
    charts = of_type(blocks, "lines", "band")
    assert [each["caption"] for each in charts] == [f"Loss: layer {index}" for index in range(8)]
    [note] = of_type(blocks, "note")
    assert "12 series in common, of which the first 8 are drawn" in note["text"]


def test_a_band_of_a_page_is_overlaid_with_anothers(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate("ab"):
        page = Page("probe")
        page.band({"loss": [(0, 2.0 + number, 1.0, 4.0)]}, x="step", y="loss", caption="Loss")
        paths.append(save_run(tmp_path / name, pages={"probe": page}, seed=number))
    both = chart(drawn(*paths))
    assert both["type"] == "band"
    assert [series["points"] for series in both["series"]] == [[[0, 2.0, 1.0, 4.0]], [[0, 3.0, 1.0, 4.0]]]


def test_a_run_has_the_same_place_in_every_chart_even_where_it_lacks_the_curve(tmp_path: Path) -> None:
    pages = []
    for captions in (["Loss"], ["Loss", "Rank"], ["Loss", "Rank"]):
        page = Page("probe")
        for caption in captions:
            page.lines({"value": [(0, 1.0), (1, 2.0)]}, caption=caption)
        pages.append(page)
    paths = [save_run(tmp_path / f"{n}", pages={"probe": page}, seed=n) for n, page in enumerate(pages)]
    loss, rank = of_type(drawn(*paths), "lines")
    assert [series["name"] for series in loss["series"]] == ["seed 0", "seed 1", "seed 2"]
    assert [series["name"] for series in rank["series"]] == ["seed 0: has no such curve", "seed 1", "seed 2"]


def test_only_curves_of_the_same_heading_caption_and_axes_share_a_chart(tmp_path: Path) -> None:
    first = lines_page({"loss": [(0, 1.0)]})["probe"]
    second = lines_page({"loss": [(0, 2.0)]}, heading="block.1")["probe"]
    second.heading("block.0")
    second.lines({"loss": [(0, 3.0)]}, x="step", y="loss / m", caption="Loss")
    blocks = drawn(save_run(tmp_path / "a", pages={"probe": first}), save_run(tmp_path / "b", pages={"probe": second}))
    assert of_type(blocks, "lines", "band", "heading") == []
    [note] = of_type(blocks, "note")
    assert "block.0 – Loss; block.1 – Loss" in note["text"]


# --- the rest of a page ----------------------------------------------------------------------------------------------


def test_findings_stand_side_by_side_and_a_note_says_whose_it_is_unless_it_is_everyones(tmp_path: Path) -> None:
    pages = []
    for number in range(2):
        page = Page("probe")
        page.finding(f"Found {number}.")
        page.prose(f"Its own paragraph {number}.\n\nWhat the figures mean.")
        page.note("Everyone's.")
        page.note(f"Note {number}.")
        pages.append(page)
    paths = [save_run(tmp_path / f"{n}", pages={"probe": page}, seed=n) for n, page in enumerate(pages)]
    blocks = drawn(*paths)
    assert [block["text"] for block in of_type(blocks, "finding")] == ["seed 0: Found 0.", "seed 1: Found 1."]
    assert [block["text"] for block in of_type(blocks, "prose")] == ["What the figures mean."]
    assert [block["text"] for block in of_type(blocks, "note")] == ["Everyone's.", "seed 0: Note 0.", "seed 1: Note 1."]


def test_heatmaps_stand_one_under_the_other_on_one_scale(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate("ab"):
        page = Page("probe")
        page.heatmap([[number, number + 1.5, None]], x_labels="xyz", y_labels=["block.0"], caption="Where")
        paths.append(save_run(tmp_path / name, pages={"probe": page}, seed=number))
    heatmaps = of_type(drawn(*paths), "heatmap")
    assert [block["caption"] for block in heatmaps] == ["seed 0: Where", "seed 1: Where"]
    assert [block["domain"] for block in heatmaps] == [[0, 2.5], [0, 2.5]]


def test_tokens_of_one_caption_are_shown_for_each_run_whichever_restart_it_chose(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate("ab"):
        page = Page("probe")
        page.tokens(
            [probekit.TokenRow("step 0", [probekit.Token("x")])], caption=f"Tokens over steps, restart {number}"
        )
        paths.append(save_run(tmp_path / name, pages={"probe": page}, seed=number))
    captions = [block["caption"] for block in of_type(drawn(*paths), "tokens")]
    assert captions == ["seed 0: Tokens over steps, restart 0", "seed 1: Tokens over steps, restart 1"]


def trajectory_page(steps: list[int], words: str, prompt: str = "a b") -> dict[str, Page]:
    page = Page("probe")
    page.trajectory(
        {"walk": [probekit.TokenRow(f"step {n}", [probekit.Token(word) for word in words]) for n in steps]},
        reference=probekit.TokenRow("prompt", [probekit.Token(word) for word in prompt.split()]),
        caption="Tokens along the walk",
        marks={"right": "the prompt's own token"},
    )
    return {"probe": page}


def test_tokens_over_the_same_steps_stand_below_one_slider(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", pages=trajectory_page([0, 5], "xy"), seed=1)
    second = save_run(tmp_path / "b", pages=trajectory_page([0, 5], "xz"), seed=2)
    [both] = of_type(drawn(first, second), "trajectory")
    assert both["caption"] == "Tokens along the walk"
    assert [entry["name"] for entry in both["series"]] == ["seed 1: walk", "seed 2: walk"]
    shown = [
        "".join(both["vocabulary"][index]["text"] for index in entry["rows"][-1]["tokens"]) for entry in both["series"]
    ]
    assert shown == ["xy", "xz"]
    assert both["reference"]["label"] == "prompt"
    assert both["marks"] == {"right": "the prompt's own token"}


def test_tokens_that_are_the_same_in_every_run_are_one_row(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / name, pages=trajectory_page([0, 5], "xy"), seed=ord(name)) for name in "ab"]
    [both] = of_type(drawn(*paths), "trajectory")
    assert [entry["name"] for entry in both["series"]] == ["walk, in every run"]


@pytest.mark.parametrize("other", [{"steps": [0, 6]}, {"steps": [0]}, {"prompt": "a c"}], ids=["step", "end", "prompt"])
def test_tokens_over_other_steps_or_of_another_prompt_have_a_slider_each(tmp_path: Path, other: dict[str, Any]) -> None:
    common: dict[str, Any] = {"steps": [0, 5], "words": "xy"}
    first = save_run(tmp_path / "a", pages=trajectory_page(**common), seed=1)
    second = save_run(tmp_path / "b", pages=trajectory_page(**common | other), seed=2)
    captions = [block["caption"] for block in of_type(drawn(first, second), "trajectory")]
    assert captions == ["seed 1: Tokens along the walk", "seed 2: Tokens along the walk"]


# --- which runs, and where to ----------------------------------------------------------------------------------------


def test_runs_of_different_analyses_are_compared_in_those_that_they_share(tmp_path: Path) -> None:
    first = save_run(tmp_path / "a", pages={"probe": Page("probe"), "lens": Page("lens")})
    second = save_run(tmp_path / "b", pages={"probe": Page("probe")}, failures={"lens": "It broke."}, status="failed")
    comparison = probekit.compare([first, second], tmp_path / "page.html")
    assert comparison.analyses == ["probe"]
    html = comparison.path.read_text(encoding="utf-8")
    assert "lens is left out: only a finished it." in html
    assert "It broke." in html


def test_runs_that_share_no_analysis_are_refused_with_what_each_has(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / name, pages={name: Page(name)}) for name in ("probe", "lens")]
    with pytest.raises(probekit.UsageError, match=r"^The runs share no analysis .* has probe; .* has lens\.$"):
        probekit.compare(paths, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def spoil(path: Path, how: str) -> None:
    manifest = json.loads((path / "run.json").read_text())
    page, result = path / "analyses/probe/page.json", path / "analyses/probe/result.json"
    match how:
        case "running" | "interrupted":
            (path / "run.json").write_text(json.dumps(manifest | {"status": how}))
        case "no run.json":
            (path / "run.json").unlink()
        case "cut off":
            (path / "run.json").write_text(json.dumps(manifest)[:100])
        case "no configuration":
            (path / "run.json").write_text(json.dumps({key: manifest[key] for key in ("schema", "status", "analyses")}))
        case "another schema":
            (path / "run.json").write_text(json.dumps(manifest | {"schema": 99}))
        case "analyses are a list":
            (path / "run.json").write_text(json.dumps(manifest | {"analyses": ["probe"]}))
        case "no page":
            page.unlink()
        case "unknown block":
            page.write_text(json.dumps({"schema": 1, "title": "", "blocks": [{"type": "dance"}]}))
        case "no result":
            result.unlink()
        case "metric is a list":
            result.write_text(json.dumps({"schema": 1, "metrics": {"m": [1]}}))
        case "metric is NaN":
            result.write_text('{"schema": 1, "metrics": {"m": NaN}}')
        case "result of another schema":
            result.write_text(json.dumps({"schema": 99}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("running", "is not finished (its status is 'running')"),
        ("interrupted", "is not finished (its status is 'interrupted')"),
        ("no run.json", "is no run directory"),
        ("cut off", "is damaged"),
        ("no configuration", "is damaged"),
        ("another schema", "has the schema 99, and this probekit reads 1 and 2"),
        ("analyses are a list", "is damaged"),
        ("no page", "has no analyses/probe/page.json"),
        ("unknown block", "is damaged"),
        ("no result", "has no analyses/probe/result.json"),
        ("metric is a list", "is damaged"),
        ("metric is NaN", "is damaged"),
        ("result of another schema", "has another schema than 1"),
    ],
)
def test_a_run_that_is_unfinished_or_damaged_is_named_in_one_sentence(tmp_path: Path, how: str, said: str) -> None:
    good, bad = save_run(tmp_path / "good"), save_run(tmp_path / "bad")
    spoil(bad, how)
    with pytest.raises(probekit.UsageError) as raised:
        probekit.compare([good, bad], tmp_path / "page.html")
    assert said in str(raised.value)
    assert str(bad) in str(raised.value)
    assert str(good) not in str(raised.value)
    assert not (tmp_path / "page.html").exists()


def test_every_run_that_cannot_be_compared_is_named_at_once(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / name) for name in ("one", "two", "three")]
    spoil(paths[0], "running")
    spoil(paths[2], "no run.json")
    with pytest.raises(probekit.UsageError) as raised:
        probekit.compare(paths, tmp_path / "page.html")
    assert str(raised.value).count(str(tmp_path)) == 2


def test_fewer_than_two_runs_or_one_twice_are_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    for runs, said in (([], "none was given"), ([run], "alone was given"), ([run, run / ".." / "run"], "named twice")):
        with pytest.raises(probekit.UsageError, match=said):
            probekit.compare(runs, tmp_path / "page.html")


def test_nothing_is_overwritten_and_without_an_output_a_new_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [save_run(Path(name)) for name in ("a", "b")]
    assert [str(probekit.compare(runs).path) for _ in range(2)] == ["comparison.html", "comparison-2.html"]
    before = Path("comparison.html").read_bytes()
    for output, said in ((Path("comparison.html"), "exists; name another"), (Path("a"), "is a folder")):
        with pytest.raises(probekit.UsageError, match=said):
            probekit.compare(runs, output)
    assert Path("comparison.html").read_bytes() == before
    assert probekit.compare(runs, "deep/er/page.html").path.is_file()


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    runs = [save_run(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(probekit.UsageError, match="cannot be written"):
        probekit.compare(runs, runs[0] / "run.json" / "page.html")


def test_text_out_of_a_run_stays_text_and_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    page = lines_page({evil: [(0, 1.0), (1, 2.0)]}, heading=evil, caption=evil)["probe"]
    page.finding(evil)
    runs = [
        save_run(tmp_path / name, pages={"probe": page}, metrics={evil: n}, prompts=[evil * n], options={evil: n})
        for n, name in enumerate("ab", 1)
    ]
    first = probekit.compare(runs, tmp_path / "first.html").path.read_text(encoding="utf-8")
    assert evil not in first
    assert probekit.compare(runs, tmp_path / "second.html").path.read_text(encoding="utf-8") == first
    markup = re.sub(r"<script>.*?</script>", "", first, flags=re.DOTALL)
    assert re.findall(r'\b(?:src|href)="(?!#)[^"]*"', markup) == []
