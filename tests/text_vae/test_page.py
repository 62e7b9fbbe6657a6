"""The page of text autoencoders: what it shows of a result that was made up, whole and with parts missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from probekit import Page, Result
from probekit.report import Document, render_html, render_markdown
from probekit.testing import HOSTILE_TOKENS
from probekit_plugins.text_vae.page import draw

Row = dict[str, Any]
FIGURES = ("ppl", "kl", "mi", "active", "negative_elbo", "delta_rec", "exact", "reconstruction", "delta_prior")
# Figures of the first seed, in the order of FIGURES; a second seed has all of them a tenth greater.
AUTOENCODERS = {
    "λ=0.1": (10.0, 4.0, 3.0, 8, 50.0, 5.0, 0.25, 46.0, 6.0),
    "λ=0.5": (12.0, 9.0, 5.0, 16, 52.0, 20.0, 0.5, 43.0, 25.0),
    "autoencoder": (90.0, 70.0, 6.0, 16, 100.0, 30.0, 0.75, 30.0, 60.0),
    "collapsed": (9.0, 0.01, 0.0, 0, 49.0, 0.001, 0.0, 49.0, 0.002),
}
LANGUAGE = {"no-z": 9.5, "lstm": 20.0}
SECTIONS = [
    "Does perplexity rise with what z says?",
    "Is z used?",
    "What each dimension costs",
    "Texts written again",
    "Samples from the prior",
    "From one text to another",
    "Analogies",
    "The trainings",
]
CHART_DATA = re.compile(r'<script[^>]*type="application/json"[^>]*>.*?</script>', re.DOTALL)


def made(names: tuple[str, ...] = (*AUTOENCODERS, *LANGUAGE), seeds: int = 2, text: str = "a dog runs home") -> Result:
    """What a run leaves of these settings; every text in it is `text`, or is written from it."""
    tables: dict[str, list[Row]] = {name: [] for name in ("settings", "trained", "dimensions", "losses")}
    tables |= {name: [] for name in ("reconstructions", "samples", "interpolations", "analogies")}
    for name in names:
        rows = [_training(name, seed) for seed in range(seeds)]
        tables["trained"] += rows
        setting: Row = {"name": name, "seeds": seeds}
        for figure in (*FIGURES, "gap", "monotone", "mi_ceiling"):
            values = [row[figure] for row in rows if figure in row]
            setting[figure] = median(values) if values else None
            if figure in FIGURES[:7]:
                setting |= {
                    f"{figure}_least": min(values, default=None),
                    f"{figure}_greatest": max(values, default=None),
                }
        tables["settings"].append(setting)
        for seed in range(seeds):
            tables["losses"] += [
                {"name": name, "seed": seed, "step": step, "loss": 100.0 / step} for step in range(1, 5 - seed)
            ]
            if name in AUTOENCODERS:
                tables["dimensions"] += [
                    {"name": name, "seed": seed, "dimension": place, "kl": (0.5, 3.0, 1.0)[place], "variance": 0.1}
                    for place in range(3)
                ]
        if name in AUTOENCODERS:
            tables["reconstructions"] += [
                {"name": name, "text": text, "written": text, "exact": True},
                {"name": name, "text": text, "written": f"a {text} not", "exact": False},
            ]
            tables["samples"].append({"name": name, "greedy": text, "sampled": ""})
            tables["interpolations"] += [
                {"name": name, "pair": pair, "from": text, "to": f"{text}!", "t": t, "written": f"{text} {t}"}
                for pair in range(2)
                for t in (0.0, 0.5, 1.0)
            ]
            tables["analogies"].append({"name": name, "a": text, "b": "B", "c": "C", "written": f"{text} D"})
    return Result(metrics={"texts": 900, "texts_held_out": 100, "tokens_held_out": 1234}, tables=tables)


def _training(name: str, seed: int) -> Row:
    row: Row = {"name": name, "seed": seed, "parameters": 1000, "steps": 4, "loss": 25.0}
    if name in LANGUAGE:
        return row | {"ppl": LANGUAGE[name], "ppl_word": 99.0}
    figures = dict(zip(FIGURES, AUTOENCODERS[name], strict=True))
    greater = 1 + seed / 10
    return row | {
        **{figure: value * greater for figure, value in figures.items()},
        **{"latent": 16, "mi_ceiling": 4.605, "gap": -0.001, "monotone": 0.75},
    }


def _figure(row: Row, name: str) -> float:
    return float(row[name])


def drawn(result: Result) -> Page:
    """The page, which has to be plain data and has to become HTML and the short text."""
    page = Page("text-vae")
    draw(result, page)
    again = Page.from_json(json.loads(json.dumps(page.to_json(), allow_nan=False)))
    assert again.blocks == page.blocks
    document = Document("a", "b", pages=[("text-vae", page)])
    assert render_html(document)
    assert render_markdown(document)
    return page


def headings(page: Page) -> list[str]:
    return [block["text"] for block in page.blocks if block["type"] == "heading"]


def captioned(page: Page, caption: str, kind: str | None = None) -> list[dict[str, Any]]:
    """The blocks whose caption begins so."""
    return [
        block for block in page.blocks if block.get("caption", "").startswith(caption) and kind in (None, block["type"])
    ]


def table(page: Page, caption: str) -> list[Row]:
    """The rows of the one table with that caption, by its columns."""
    [block] = captioned(page, caption, "table")
    return [dict(zip(block["columns"], row, strict=True)) for row in block["rows"]]


def words(page: Page, kind: str) -> str:
    return "\n".join(block["text"] for block in page.blocks if block["type"] == kind)


# --- with everything --------------------------------------------------------------------------------------------------


def test_a_reader_meets_the_parts_from_the_figures_to_the_trainings() -> None:
    page = drawn(made())
    assert headings(page) == SECTIONS
    assert page.blocks[0]["type"] == "prose"
    assert "trained on 900 texts; figures are of 100 others, of 1234 tokens" in words(page, "prose")


def test_each_setting_has_its_figures_with_their_spread_and_mi_beside_its_ceiling() -> None:
    rows = {row["setting"]: row for row in table(drawn(made()), "Each setting")}
    assert list(rows) == [
        "λ = 0.1",
        "λ = 0.5",
        "autoencoder without KL",
        "control: β = 1, λ = 0",
        "decoder without z",
        "LSTM language model",
    ]
    assert rows["λ = 0.1"] == {
        "setting": "λ = 0.1",
        "PPL": "10.5 (10.0–11.0)",
        "KL": "4.2 (4.0–4.4)",
        "MI (ln N = 4.61)": "3.15 (3.00–3.30)",
        "AU of 16": "8.4 (8–8.8)",
        "−ELBO": "52.5 (50.0–55.0)",
        "ΔRec": "5.25 (5.00–5.50)",
        "exact": "0.26 (0.25–0.28)",
    }
    assert rows["LSTM language model"]["PPL"] == "20.0"
    assert {rows["LSTM language model"][name] for name in ("KL", "ΔRec", "exact")} == {None}


def test_a_reader_is_told_what_proves_that_z_is_used_and_that_the_elbo_is_a_sum() -> None:
    said = words(drawn(made()), "prose")
    assert "none of PPL, KL, MI, AU and −ELBO proves that z is used" in said
    assert "reconstruction plus KL" in said


def test_perplexity_is_drawn_against_mi_for_each_training_with_what_stands_beside_as_lines() -> None:
    [chart] = captioned(drawn(made()), "PPL against MI", "chart")
    points = chart["spec"]["data"]["values"]
    assert [(point["setting"], point["seed"]) for point in points[:3]] == [
        ("λ = 0.1", 0),
        ("λ = 0.1", 1),
        ("λ = 0.5", 0),
    ]
    assert len(points) == 8
    rules = [layer["encoding"] for layer in chart["spec"]["layer"] if layer["mark"]["type"] == "rule"]
    assert [rule["y"]["datum"] for rule in rules if "y" in rule] == [9.5, 20]
    assert [rule["x"]["datum"] for rule in rules if "x" in rule] == [4.605]


def test_whether_perplexity_rises_is_said_of_the_λ_alone_and_follows_the_figures() -> None:
    said = words(drawn(made()), "prose")
    assert "It rises here from the λ with the least MI to that with the most: λ = 0.1 has MI 3.15 nats" in said
    assert "Over all 4 trainings with a λ the rank correlation of PPL and MI is 1.00" in said
    falling = made()
    for row in [*falling.tables["settings"], *falling.tables["trained"]]:
        row["ppl"] = 100 - _figure(row, "ppl")
    said = words(drawn(falling), "prose")
    assert "It does not rise here" in said
    assert "is −1.00" in said


def test_δrec_is_drawn_for_each_training_beside_the_controls_greatest() -> None:
    [chart] = captioned(drawn(made()), "ΔRec of each training", "chart")
    assert [point["ΔRec"] for point in chart["spec"]["data"]["values"][:2]] == [5.0, 5.5]
    rules = [layer["encoding"]["x"]["datum"] for layer in chart["spec"]["layer"] if layer["mark"]["type"] == "rule"]
    assert rules == [0, pytest.approx(0.0011)]


def test_a_δrec_no_greater_than_the_controls_is_called_so() -> None:
    assert "not shown" not in words(drawn(made()), "note")
    result = made()
    result.tables["settings"][3]["delta_rec_greatest"] = 5.3
    assert "no greater than the control's or 0.1 nats with λ = 0.1: that" in words(drawn(result), "note")


def test_dimensions_are_sorted_by_kl_in_each_seed() -> None:
    result = made()
    result.tables["dimensions"][3]["kl"] = 4.0  # of the second seed, another dimension is the greatest
    [band] = captioned(drawn(result), "KL by dimension", "band")
    series = {each["name"]: each["points"] for each in band["series"]}
    assert series["λ = 0.1"] == [[1, 3.5, 3, 4], [2, 2, 1, 3], [3, 0.75, 0.5, 1]]
    assert len(series) == 4


def test_an_autoencoder_with_much_more_kl_has_a_chart_of_its_own() -> None:
    result = made()
    for row in result.tables["dimensions"]:
        row["kl"] = _figure(row, "kl") * (100 if row["name"] == "autoencoder" else 1)
    first, second = captioned(drawn(result), "KL by dimension", "band")
    assert [each["name"] for each in first["series"]] == ["λ = 0.1", "λ = 0.5", "control: β = 1, λ = 0"]
    assert [each["name"] for each in second["series"]] == ["autoencoder without KL"]


def test_words_that_come_back_are_marked_and_a_text_that_comes_back_exactly_is_called_so() -> None:
    first, second = captioned(drawn(made()), "Text ", "tokens")
    assert [row["label"] for row in first["rows"]] == ["the text", "λ = 0.1", "λ = 0.5", "autoencoder", "control"]
    assert [token.get("mark") for token in first["rows"][1]["tokens"]] == ["right"] * 4
    assert first["rows"][1]["note"] == "exact"
    assert [token.get("mark") for token in second["rows"][1]["tokens"]] == ["wrong", *["right"] * 4, "wrong"]
    assert second["rows"][1]["note"] == "4 of 4 words"


def test_interpolations_go_from_one_text_to_the_other_with_gap_and_share_in_words() -> None:
    [block] = captioned(drawn(made()), "Interpolations: λ = 0.1", "table")
    assert block["caption"].endswith("the end-point gap is 0.00 nats, and 75% of them are monotone")
    assert [row[0] for row in block["rows"]] == ["first text", "t = 0", "t = 0.5", "t = 1", "second text"]
    assert [row[1] for row in block["rows"]][::2] == ["a dog runs home", "a dog runs home 0.5", "a dog runs home!"]


def test_samples_and_analogies_stand_beside_what_they_come_from() -> None:
    page = drawn(made())
    assert table(page, "Written from z")[0] == {
        "setting": "λ = 0.1",
        "greedy": "a dog runs home",
        "sampled": "(nothing)",
    }
    rows = captioned(page, "Analogy 1", "table")[0]["rows"]
    assert rows[:4] == [["A", "a dog runs home"], ["B", "B"], ["C", "C"], ["D, λ = 0.1", "a dog runs home D"]]


def test_every_training_has_a_row_and_its_losses_a_line_though_seeds_ended_at_unlike_steps() -> None:
    page = drawn(made())
    assert len(table(page, "Every training")) == 12
    [band] = captioned(page, "The loss over the steps", "band")
    assert [each["name"] for each in band["series"]][-1] == "LSTM language model"
    assert [point[0] for point in band["series"][0]["points"]] == [1, 2, 3, 4]


# --- with parts missing -----------------------------------------------------------------------------------------------


def test_without_examples_there_are_no_headings_of_them() -> None:
    result = made()
    for name in ("reconstructions", "samples", "interpolations", "analogies"):
        result.tables[name] = []
    assert headings(drawn(result)) == [*SECTIONS[:3], SECTIONS[-1]]


def test_with_one_seed_there_is_no_spread_and_figures_are_numbers() -> None:
    page = drawn(made(seeds=1))
    row = table(page, "Each setting")[0]
    assert (row["PPL"], row["ΔRec"], row["AU of 16"]) == (10, 5, 8)
    assert "seeds" not in "".join(block.get("caption", "") for block in page.blocks)


def test_without_a_control_chance_is_called_unknown_and_one_λ_does_not_tell_whether_perplexity_rises() -> None:
    page = drawn(made(("λ=0.5", "no-z", "lstm")))
    said = words(page, "prose")
    assert "The control that must fail was not trained" in said
    assert "There is one λ" in said
    [chart] = captioned(page, "ΔRec of each training", "chart")
    assert "broken line" not in chart["caption"]


def _without_figures(result: Result) -> None:
    for row in [*result.tables["settings"], *result.tables["trained"], *result.tables["dimensions"]]:
        for key in [key for key, value in row.items() if isinstance(value, float)]:
            row[key] = None


def _of_one_dimension(result: Result) -> None:
    result.tables["dimensions"] = [row for row in result.tables["dimensions"] if row["dimension"] == 0]


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (_without_figures, SECTIONS[:3]),
        (_of_one_dimension, SECTIONS[2:3]),
        (lambda result: result.tables.update(losses=[]), []),
        (lambda result: result.tables.clear(), SECTIONS),
        (lambda result: result.metrics.clear(), []),
    ],
)
def test_a_part_without_figures_has_no_heading(change: Callable[[Result], object], gone: list[str]) -> None:
    result = made()
    change(result)
    assert headings(drawn(result)) == [heading for heading in SECTIONS if heading not in gone]


def test_language_models_alone_are_a_page() -> None:
    page = drawn(made(("no-z", "lstm")))
    assert headings(page) == SECTIONS[-1:]
    assert captioned(page, "Each setting")[0]["columns"] == ["setting", "PPL"]


def test_more_settings_than_a_chart_can_tell_apart_are_some_of_them() -> None:
    result = made(("λ=0.1",))
    for name, rows in result.tables.items():
        result.tables[name] = [row | {"name": f"λ={number}"} for number in range(12) for row in rows]
    page = drawn(result)
    assert max(len(block["series"]) for block in page.blocks if block["type"] == "band") == 8
    assert "; 8 of 12 settings" in captioned(page, "KL by dimension")[0]["caption"]
    assert len(table(page, "Each setting")) == 12


# --- hostile texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", HOSTILE_TOKENS, ids=range(len(HOSTILE_TOKENS)))
def test_hostile_texts_stand_nowhere_as_they_are(hostile: str) -> None:
    page = drawn(made(text=hostile))
    html = render_html(Document("a", "b", pages=[("text-vae", page)]))
    outside = CHART_DATA.sub("", html)
    assert not [part for part in ("<script>hostile", "<img src=x", "<!--<script>", "\x00", "\ud800") if part in html]
    assert not [part for part in ("\u202egnp", "\u2066isolated", "' onfocus='") if part in outside]
    assert headings(page) == SECTIONS


def test_a_very_long_text_is_cut() -> None:
    page = drawn(made(text="long" * 5000))
    assert "long" * 100 not in json.dumps(page.to_json())
    assert len(table(page, "Written from z")[0]["greedy"]) == 240
