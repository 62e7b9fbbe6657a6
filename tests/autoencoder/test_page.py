"""The page of the autoencoders: what it shows of a result that was made up, whole and with parts missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from probekit import Page, Result, TokenSequence
from probekit.report import Document, render_html
from probekit.testing import HOSTILE_TOKENS
from probekit_plugins.autoencoder import AutoencoderOptions
from probekit_plugins.autoencoder.page import draw
from tests.autoencoder.made_up import SIZES, everything

OPTIONS = AutoencoderOptions(variants=list(SIZES), seeds=2, steps=100, labels="token")  # type: ignore[arg-type]
SECTIONS = [
    "What is kept",
    "What the model makes of it",
    "What survives of the prompt",
    "Variational codes: dimensions in use",
    "Where activations lie in a code",
    "Contrastive codes: what is told apart",
    "Sparse codes: features and how often they are active",
    "Features of topk-k2",
    "Features of topk-k6",
    "Features of l1-0.3",
    "Features of l1-3",
    "The trainings",
]
CHART_DATA = re.compile(r'<script[^>]*type="application/json"[^>]*>.*?</script>', re.DOTALL)
SURVIVAL = "The share of the tokens that come back"


def drawn(result: Result, options: AutoencoderOptions = OPTIONS) -> Page:
    """The page, which has to be plain data and has to become HTML."""
    page = Page("autoencoder")
    draw(result, page, options)
    again = Page.from_json(json.loads(json.dumps(page.to_json(), allow_nan=False)))
    assert again.blocks == page.blocks
    return page


def headings(page: Page) -> list[str]:
    return [block["text"] for block in page.blocks if block["type"] == "heading"]


def captioned(page: Page, caption: str, kind: str | None = None) -> list[dict[str, Any]]:
    """The blocks whose caption begins so."""
    return [
        block for block in page.blocks if block.get("caption", "").startswith(caption) and kind in (None, block["type"])
    ]


def table(page: Page, caption: str) -> list[dict[str, Any]]:
    """The rows of the one table with that caption, by its columns."""
    [block] = captioned(page, caption, "table")
    return [dict(zip(block["columns"], row, strict=True)) for row in block["rows"]]


def words(page: Page, kind: str = "note") -> str:
    return "\n".join(block["text"] for block in page.blocks if block["type"] == kind)


def without(result: Result, *figures: str) -> Result:
    """The result as if these figures had not been asked for."""
    for name in ("trained", "settings"):
        for row in result.tables[name]:
            for key in [key for key in row if key.removesuffix("_least").removesuffix("_greatest") in figures]:
                del row[key]
    return result


def of_variants(result: Result, *variants: str) -> Result:
    """The result as if only these variants had been trained."""
    for name, rows in result.tables.items():
        result.tables[name] = [
            row for row in rows if str(row.get("variant") or str(row.get("name", "")).split("-")[0]) in (*variants, "")
        ]
    return result


# --- with everything --------------------------------------------------------------------------------------------------


def test_a_reader_meets_the_parts_from_the_question_to_the_files() -> None:
    page = drawn(everything())
    assert headings(page) == SECTIONS
    assert page.blocks[0]["type"] == "prose"
    said = words(page, "prose")
    assert "5432 examples of 54 of them to train on, and 543 of the other 6" in said
    assert "of 16 numbers each" in said


def test_what_is_kept_has_each_figure_with_its_spread_beside_pca_and_the_control() -> None:
    rows = {row["setting"]: row for row in table(drawn(everything()), "What each setting keeps")}
    assert list(rows) == [
        "plain-4",
        "plain-8",
        "variational-4",
        "variational-8",
        "topk-k2",
        "topk-k6",
        "l1-0.3",
        "l1-3",
    ]
    assert rows["plain-4"] == {
        "setting": "plain-4",
        "numbers kept": 4,
        "FVE": "0.545 (0.540–0.550)",
        "PCA's FVE": 0.3,
        "control, at most": -0.44,
        "loss recovered": "0.915 (0.910–0.920)",
        "tokens survived": "0.665 (0.660–0.670)",
    }
    assert rows["topk-k6"]["numbers kept"] == 12
    [block] = captioned(drawn(everything()), "What each setting keeps")
    assert block["in_summary"]
    assert len(block["columns"]) <= 8


def test_a_figure_that_all_seeds_share_stands_alone_with_the_digits_of_the_others() -> None:
    result = everything()
    result.tables["settings"][0] |= {"fve": 0.5, "fve_least": 0.5, "fve_greatest": 0.5}
    rows = table(drawn(result), "What each setting keeps")
    assert [row["FVE"] for row in rows[:2]] == ["0.500", "0.585 (0.580–0.590)"]


def test_with_one_seed_there_is_no_spread() -> None:
    page = drawn(everything(seeds=1), OPTIONS.model_copy(update={"seeds": 1}))
    row = table(page, "What each setting keeps")[0]
    assert (row["FVE"], row["loss recovered"]) == (0.54, 0.91)
    assert "median" not in "".join(block.get("caption", "") for block in page.blocks)


def test_dense_codes_are_drawn_by_width_and_sparse_ones_by_active_features_each_beside_pca() -> None:
    page = drawn(everything())
    [dense] = captioned(page, "What a dense code keeps", "band")
    series = {each["name"]: each["points"] for each in dense["series"]}
    assert series["plain"] == [[4, 0.545, 0.54, 0.55], [8, 0.585, 0.58, 0.59]]
    assert [8, 0.5, 0.5, 0.5] in series["PCA"]
    assert max(point[0] for point in series["PCA"]) == 10
    [frontier] = captioned(page, "The frontier", "chart")
    points = frontier["spec"]["data"]["values"]
    assert {point["line"] for point in points} == {"topk", "l1", "PCA"}
    [point] = [point for point in points if point["setting"] == "topk-k2"]
    assert [point[name] for name in ("size, least", "size", "size, greatest")] == pytest.approx([4, 4.005, 4.01])
    assert [point[name] for name in ("least", "figure", "greatest")] == pytest.approx([0.52, 0.525, 0.53])
    for layer in frontier["spec"]["layer"]:
        assert layer["encoding"]["x"]["scale"]["type"] == "log"
    assert [12, 0.75] in [[point["size"], point["figure"]] for point in points if point["line"] == "PCA"]


def test_both_ablations_stand_beside_what_the_splice_recovers() -> None:
    page = drawn(everything())
    [baseline] = table(page, "What the next token costs")
    assert list(baseline.values()) == ["block.1", 2, 4, 7]
    rows = {row["setting"]: row for row in table(page, "What of the model's predictions is left")}
    assert list(rows["l1-3"].values())[1:] == [
        "0.915 (0.910–0.920)",
        "0.815 (0.810–0.820)",
        "0.355 (0.350–0.360)",
        "0.715 (0.710–0.720)",
    ]
    # The mean activation costs the model less than zeros, so it is the harder comparison.
    [chart] = captioned(page, "Loss recovered against the mean", "chart")
    assert {point["line"] for point in chart["spec"]["data"]["values"]} == {"plain", "variational", "topk", "l1"}


def test_the_ablation_that_costs_less_is_drawn() -> None:
    result = everything()
    for row in result.tables["trained"]:
        row |= {"ce_zero": 3.0} if "ce_zero" in row else {}
    page = drawn(result)
    [chart] = captioned(page, "Loss recovered against zero", "chart")
    assert {point["figure"] for point in chart["spec"]["data"]["values"]} == {0.915}
    assert not captioned(page, "Loss recovered against the mean")


def test_what_survives_is_beside_the_exact_activation_and_marked_token_by_token() -> None:
    page = drawn(everything())
    rows = table(page, SURVIVAL)
    assert rows[0] == {"setting": "exact activation", "tokens survived": "0.960", "whole prompts": "0.500"}
    assert rows[1]["tokens survived"] == "0.665 (0.660–0.670)"
    assert "(2 prompts, 22 tokens)" in captioned(page, SURVIVAL)[0]["caption"]
    [chart] = captioned(page, "What survives", "chart")
    exact = [point for point in chart["spec"]["data"]["values"] if point["line"] == "exact activation"]
    assert {point["figure"] for point in exact} == {0.96}
    first, second = captioned(page, "Prompt ", "tokens")
    assert [row["label"] for row in first["rows"]][:3] == ["prompt", "exact activation", "plain-4"]
    # The first position keeps its own activation: that it is right says nothing.
    assert [token.get("mark") for token in first["rows"][2]["tokens"]] == [None, "right", "wrong", "right"]
    assert first["rows"][2]["note"] == "2 of 3"
    assert {token.get("mark") for token in second["rows"][1]["tokens"]} == {None, "right"}


def test_variational_dimensions_are_sorted_and_those_that_say_nothing_are_told_apart() -> None:
    page = drawn(everything())
    row = table(page, "Variational codes")[1]
    assert (row["width"], row["active units"], row["KL, nats an activation"]) == (8, "3 (3–3.01)", 12.5)
    [bars] = captioned(page, "What each dimension of variational-8", "chart")
    values = bars["spec"]["data"]["values"]
    assert [value["KL"] for value in values] == sorted((value["KL"] for value in values), reverse=True)
    assert [value["is"] for value in values] == ["active"] * 7 + ["not active"]
    [aggregate] = captioned(page, "The aggregate posterior of variational-8", "chart")
    rules = [layer["encoding"]["y"]["datum"] for layer in aggregate["spec"]["layer"] if layer["mark"]["type"] == "rule"]
    assert rules == [0, 1]


def test_contrastive_retrieval_stands_beside_untrained_weights_and_chance() -> None:
    page = drawn(everything())
    row = table(page, "How well one view finds the other")[0]
    assert row["top-1"] == "0.805 (0.800–0.810)"
    assert row["untrained"] == "0.605 (0.600–0.610)"
    assert (row["chance, 1/N"], row["among N"], row["uniformity"]) == (0.02, 50, "−3.195 (−3.200 to −3.190)")
    [chart] = captioned(page, "Retrieval", "band")
    assert [each["name"] for each in chart["series"]] == ["trained", "untrained", "chance"]
    assert "No better" not in words(page)
    assert "no better" not in words(page)


def test_features_are_shown_by_their_contexts_the_strongest_first_and_those_drawn_are_marked() -> None:
    page = drawn(everything())
    rows = table(page, "The 1 strongest features of topk-k2")
    assert [(row["feature"], row["shown because"]) for row in rows] == [(11, "strong"), (37, "drawn at random")]
    strong, random = captioned(page, "Feature ", "tokens")
    assert strong["caption"] == "Feature 11: active at 1.23 % of the tokens, at most 8"
    assert random["caption"].startswith("Feature 37 (drawn at random)")
    assert [row["label"] for row in strong["rows"]] == ["document 3", "document 4"]
    # Relative to the feature's greatest activation, and no colour where it is not active.
    assert [token.get("value") for token in strong["rows"][1]["tokens"]] == [None, 0.25, 0.875]
    assert strong["rows"][1]["tokens"][2]["title"] == "activation 7"
    others = captioned(page, "Contexts of these features", "tokens")
    assert len(others) == 3
    assert all(block["collapsed"] for block in others)


def test_every_training_has_a_card_that_leads_to_its_files() -> None:
    result = everything()
    page = drawn(result)
    [cards] = captioned(page, "Every training", "table")
    assert cards["interactive"]
    assert len(cards["rows"]) == len(result.tables["trained"]) == 20
    assert cards["rows"][1] == ["plain-4", 1, 1234, 100, 6400, 0.25, 0.55, 3.5]
    assert cards["targets"][1] == "analyses/autoencoder/files/block.1/plain-4-seed1/cfg.json"
    assert "-o through=analyses/autoencoder/files/block.1/plain-8-seed1" in words(page, "prose")
    [curve] = captioned(page, "The loss of plain", "band")
    assert curve["series"][0]["points"][1] == pytest.approx([10, 0.6, 0.1, 1.1])


def test_hostile_tokens_stand_nowhere_as_they_are() -> None:
    for hostile in HOSTILE_TOKENS:
        html = render_html(Document("a", "b", pages=[("autoencoder", drawn(everything(hostile=hostile)))]))
        outside = CHART_DATA.sub("", html)
        assert not [part for part in ("<script>hostile", "<img src=x", "<!--<script>", "\x00") if part in html]
        assert not [part for part in ("\u202egnp", "\u2066isolated", "' onfocus='") if part in outside]


def test_a_token_of_hundreds_of_characters_does_not_widen_a_table_or_a_key() -> None:
    page = drawn(everything(hostile="long" * 300))
    rows = table(page, "The 1 strongest features of topk-k2")
    assert rows[0]["most active at"] == f"“{('long' * 6)[:23]}…”"
    [scatter] = captioned(page, "Codes of 2 held-out activations, plain-8", "chart")
    assert len(scatter["spec"]["data"]["values"][0]["label"]) == 24


# --- cautions ---------------------------------------------------------------------------------------------------------


def test_a_control_that_does_not_fail_is_called_so() -> None:
    result = everything()
    assert "control is above 0" not in words(drawn(result))
    result.tables["settings"][0]["fve_shuffled_greatest"] = 0.2
    assert "The control is above 0 for plain-4:" in words(drawn(result))


def test_a_setting_below_pca_is_called_so() -> None:
    result = everything()
    assert "Below PCA" not in words(drawn(result))
    result.tables["settings"][3]["pca"] = 0.9
    assert "Below PCA of the same size: variational-8." in words(drawn(result))


def test_retrieval_that_training_did_not_help_is_called_so_with_its_likely_reason() -> None:
    result = everything()
    for row in result.tables["settings"]:
        if row["setting"] == "contrastive-8":
            row["retrieval_untrained"] = 0.95
    assert "no better than untrained for contrastive-8. Examples of one label" in words(drawn(result))
    unlabelled = drawn(result, OPTIONS.model_copy(update={"labels": None}))
    assert "contrastive-8. Training has moved codes" in words(unlabelled)


# --- with parts missing -----------------------------------------------------------------------------------------------

SPLICE = ("loss_recovered", "loss_recovered_mean", "kl_spliced", "top1_agreement", "ce_clean", "ce_zero", "ce_mean")
SURVIVED = ("tokens_survived", "prompts_survived")


def _without_splice(result: Result) -> None:
    without(result, *SPLICE)


def _without_survival(result: Result) -> None:
    without(result, *SURVIVED)
    del result.tables["survival_baseline"], result.sequences["survivors"]


def _without_features(result: Result) -> None:
    del result.tables["features"], result.tables["density"], result.sequences["contexts"]


def _without_scatter(result: Result) -> None:
    without(result, "agreement")
    del result.tables["scatter"]


def _only_contrastive(result: Result) -> None:
    of_variants(result, "contrastive")
    result.tables["survival_baseline"], result.tables["pca"] = [], []


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (_without_splice, SECTIONS[1:2]),
        (_without_survival, SECTIONS[2:3]),
        (_without_scatter, SECTIONS[4:5]),
        (_without_features, SECTIONS[7:11]),
        (_only_contrastive, [*SECTIONS[:4], *SECTIONS[6:11]]),
        (lambda result: of_variants(result, "plain", "topk", "l1"), [SECTIONS[3], SECTIONS[5]]),
        (lambda result: of_variants(result, "plain"), [SECTIONS[3], *SECTIONS[5:11]]),
    ],
)
def test_a_part_without_figures_has_no_heading(change: Callable[[Result], object], gone: list[str]) -> None:
    result = everything()
    change(result)
    assert headings(drawn(result)) == [heading for heading in SECTIONS if heading not in gone]


def test_figures_that_are_none_are_absent_and_the_others_stay() -> None:
    result = everything()
    for row in [*result.tables["settings"], *result.tables["trained"]]:
        if row["variant"] != "plain":
            for key, value in row.items():
                row[key] = None if isinstance(value, float) and key != "size" else value
    for row in result.tables["pca"]:
        row["fve"] = None
    for row in result.tables["survival_baseline"]:
        row["tokens_survived"] = None
    page = drawn(result)
    rows = {row["setting"]: row for row in table(page, "What each setting keeps")}
    assert rows["plain-4"]["FVE"] == "0.545 (0.540–0.550)"
    assert rows["topk-k2"]["FVE"] is None
    assert [each["name"] for each in captioned(page, "What a dense code keeps")[0]["series"]] == ["plain"]


def test_a_result_with_nothing_in_it_is_a_page() -> None:
    page = drawn(Result(tables={"trained": [], "settings": [], "pca": [], "losses": []}))
    assert headings(page) == []
    assert "Nothing was trained." in words(page, "prose")


def test_one_setting_is_a_page_without_charts_that_would_have_one_point() -> None:
    result = everything()
    for name, rows in result.tables.items():
        kept = ("plain-4", "plain-4-seed0", "plain-4-seed1")
        result.tables[name] = [row for row in rows if str(row.get("setting", row.get("name", kept[0]))) in kept]
    page = drawn(result)
    assert headings(page) == [*SECTIONS[:3], SECTIONS[4], SECTIONS[11]]
    assert not captioned(page, "Loss recovered against")
    assert not captioned(page, "What survives", "chart")


def test_an_autoencoder_that_was_saved_before_is_a_row_beside_the_others() -> None:
    result = everything()
    saved = {"site": "block.1", "name": "mine", "variant": "saved", "size": None, "seed": None, "code": 8}
    result.tables["trained"].append(saved | {"fve": 0.777})
    over = {"setting": "mine", "seeds": 1, "fve": 0.777, "fve_least": 0.777, "fve_greatest": 0.777}
    result.tables["settings"].append(saved | over)
    page = drawn(result)
    assert table(page, "What each setting keeps")[-1]["FVE"] == "0.777"
    [dense] = captioned(page, "What a dense code keeps", "band")
    assert [8, 0.777, 0.777, 0.777] in next(each["points"] for each in dense["series"] if each["name"] == "mine")
    [cards] = captioned(page, "Every training", "table")
    assert cards["targets"][-1] is None
    assert cards["rows"][-1][0] == "mine"


def test_trainings_that_ended_by_seconds_need_not_have_the_same_steps() -> None:
    result = everything()
    result.tables["losses"] = [
        row for row in result.tables["losses"] if row["step"] != 100 or str(row["name"]).endswith("seed0")
    ]
    [curve] = captioned(drawn(result), "The loss of plain", "band")
    assert curve["series"][0]["points"][-1] == [100, 0.01, 0.01, 0.01]


# --- several sites ----------------------------------------------------------------------------------------------------


def test_several_sites_are_named_and_compared_and_at_most_three_have_charts_of_their_own() -> None:
    sites = tuple(f"block.{index}" for index in range(6))
    page = drawn(everything(sites))
    rows = table(page, "What each setting keeps")
    assert len(rows) == 48
    assert rows[-1]["setting"] == "l1-3 at block.5"
    assert 1 < len(captioned(page, "What a dense code keeps at block.", "band")) <= 3
    [by_site] = captioned(page, "Which layers compress", "band")
    assert [point[0] for point in by_site["series"][0]["points"]] == list(sites)
    assert max(len(block["columns"]) for block in page.blocks if block["type"] == "table") <= 8
    assert max(len(block["series"]) for block in page.blocks if block["type"] == "band") <= 8
    assert table(page, SURVIVAL)[0]["setting"] == "exact activation at block.0"
    assert captioned(page, "Prompt 1 at block.0", "tokens")


def test_a_site_that_no_link_can_hold_has_cards_without_links() -> None:
    page = drawn(everything(("block.1, halves",)))
    [cards] = captioned(page, "Every training", "table")
    assert set(cards["targets"]) == {None}


def test_survivors_of_another_length_than_their_prompt_do_not_end_the_page() -> None:
    result = everything()
    labels = {"site": "block.1", "name": "plain-4-seed0", "prompt": 0}
    result.sequences["survivors"] = [each for each in result.sequences["survivors"] if each.labels != labels] + [
        TokenSequence([5, 6], ["a", "b"], labels)
    ]
    first = captioned(drawn(result), "Prompt 1", "tokens")[0]
    assert next(row["note"] for row in first["rows"] if row["label"] == "plain-4") == "1 of 1"
