"""The page's other half: decoded sequences by analysis, site and rank, and several runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from probekit_plugins.repetition.charts import bars, rounded

if TYPE_CHECKING:
    from probekit import Page, Result

Row = dict[str, Any]

# More bars or lines than this cannot be told apart.
MOST_BARS = 40
MOST_LINES = 6


def draw_decoded(result: Result, page: Page) -> None:
    """Decoded sequences of every run: first choices openly, the other ranks folded."""
    rows = result.tables.get("decoded", [])
    if not rows:
        return
    page.heading("Decoded representations")
    page.prose(
        "Sequences that other analyses decoded, by analysis, site and rank, over prompts and restarts or walkers, at "
        "the end of a descent or a walk. Token accuracy is the median share of tokens that are the prompt's."
    )
    first = [row for row in rows if row["rank"] in (None, 0)]
    for analysis in dict.fromkeys(row["analysis"] for row in first):
        _draw_bars(page, analysis, [row for row in first if row["analysis"] == analysis])
    _draw_groups(page, first, "First choices: medians over sequences", collapsed=len(first) > MOST_BARS)
    further = [row for row in rows if row["rank"] not in (None, 0)]
    if further:
        _draw_groups(page, further, "Other ranks: medians over sequences", collapsed=True)
    _draw_quality(page, result.tables.get("quality", []))
    _draw_steps(page, result.tables.get("decoded_steps", []))


def _draw_bars(page: Page, analysis: Any, rows: Sequence[Row]) -> None:
    values = [
        {
            "group": name,
            "seq-rep-1": row["seq_rep_1_median"],
            "low": row["seq_rep_1_min"],
            "high": row["seq_rep_1_max"],
            "random": row["seq_rep_1_random"],
        }
        for name, row in zip(_names(rows), rows[:MOST_BARS], strict=False)
    ]
    page.chart(
        bars(values, "group", "seq-rep-1"),
        caption=f"{analysis}: seq-rep-1 of first choices, the median over sequences, from the least to the greatest"
        + (f" (the first {MOST_BARS} groups)" if len(rows) > MOST_BARS else ""),
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """What each group of an analysis is, the run only where there are several."""
    several = len({row["run"] for row in rows}) > 1
    parts = ("site", "name", "variant", *(("run",) if several else ()))
    return [" · ".join(str(row[part]) for part in parts if row[part] is not None) for row in rows]


def _draw_groups(page: Page, rows: Sequence[Row], caption: str, collapsed: bool) -> None:
    labels = {"run": "run", "analysis": "analysis", "name": "sequences", "site": "site", "variant": "variant"}
    labels |= {"rank": "rank", "sequences": "number", "length": "tokens", "token_accuracy": "token accuracy"}
    figures = {
        "seq-rep-1": "seq_rep_1_median",
        "random tokens": "seq_rep_1_random",
        "seq-rep-2": "seq_rep_2_median",
        "seq-rep-4": "seq_rep_4_median",
        "longest repeat": "longest_repeat_median",
        "random": "longest_repeat_random",
        "diversity": "diversity_median",
        "distinct-1": "distinct_1",
        "self-BLEU": "self_bleu",
    }
    shown = [label for label in labels if any(row[label] is not None for row in rows)]
    if all(row["run"] == "this run" for row in rows):
        shown.remove("run")
    kept = {name: key for name, key in figures.items() if any(row[key] is not None for row in rows)}
    page.table(
        [*(labels[label] for label in shown), *kept],
        [[*(row[label] for label in shown), *(rounded(row[key]) for key in kept.values())] for row in rows],
        caption=caption,
        collapsed=collapsed,
    )


def _draw_quality(page: Page, rows: Iterable[Row]) -> None:
    known = list(rows)
    labels = [name for name in ("run", "analysis", "variant") if len({row[name] for row in known}) > 1]
    if not known:
        return
    page.table(
        [
            *labels,
            "first choices",
            "number",
            "seq-rep-1",
            "random tokens",
            "the prompts",
            "above random",
            "above the prompt",
        ],
        [
            [
                *(row[name] for name in labels),
                "poor: fewer than half right" if row["quality"] == "poor" else "good: half right or more",
                row["sequences"],
                *(rounded(row[f"seq_rep_1_{name}"]) for name in ("mean", "random", "prompt")),
                *(rounded(row[name]) for name in ("above_random", "above_prompt")),
            ]
            for row in known
        ],
        caption="Do poor representations repeat tokens? Mean seq-rep-1, and the share of sequences above random tokens "
        "and above their own prompt",
    )


def _draw_steps(page: Page, rows: Sequence[Row]) -> None:
    for analysis in dict.fromkeys(row["analysis"] for row in rows):
        of_it = [row for row in rows if row["analysis"] == analysis and row["rank"] in (None, 0)]
        series: dict[str, list[tuple[float, ...]]] = {}
        expected: dict[str, list[tuple[float, ...]]] = {}
        for name, row in zip(_names(of_it), of_it, strict=True):
            point = (row["step"], row["seq_rep_1_median"], row["seq_rep_1_min"], row["seq_rep_1_max"])
            series.setdefault(name, []).append(point)
            by_chance = row["seq_rep_1_random"]
            expected.setdefault(name, []).append((row["step"], by_chance, by_chance, by_chance))
        shown = dict(list(series.items())[:MOST_LINES])
        if shown:
            left_out = len(series) - len(shown)
            longest = max(shown, key=lambda name: len(shown[name]))
            page.band(
                {**shown, "random tokens": expected[longest]},
                x="step",
                y="seq-rep-1",
                caption=f"{analysis}: seq-rep-1 over steps"
                + (f" ({left_out} further groups are in the saved tables)" if left_out else ""),
            )


def draw_runs(result: Result, page: Page) -> None:
    """Several runs side by side: generated text by strategy, decoded sequences by site."""
    generated = [row for row in result.tables.get("generated", []) if row["stage"] == "before"]
    decoded = [row for row in result.tables.get("decoded", []) if row["rank"] in (None, 0)]
    both = generated + decoded
    if all(row["run"] == "this run" for row in both):
        return
    page.heading("Runs side by side")
    runs = {row["run"]: row for row in both}
    page.table(
        ["run", "model", "parameters", "weights", "precision", "depth"],
        [
            [row[name] for name in ("run", "model", "parameters", "weights", "precision", "depth")]
            for row in runs.values()
        ],
        caption="The runs",
    )
    for figure, title in (("seq_rep_4_mean", "seq-rep-4"), ("diversity_mean", "diversity")):
        _draw_grid(page, generated, "strategy", figure, title, f"Generated text: mean {title} by run and strategy")
    kinds = dict.fromkeys((row["analysis"], row["name"], row["variant"]) for row in decoded)
    for analysis, name, variant in kinds:
        chosen = [row for row in decoded if (row["analysis"], row["name"], row["variant"]) == (analysis, name, variant)]
        chosen = [row for row in chosen if row["site"] is not None]
        what = " · ".join(str(part) for part in (analysis, name, variant) if part)
        if len({row["run"] for row in chosen}) > 1:
            _draw_grid(
                page, chosen, "site", "seq_rep_1_median", "seq-rep-1", f"{what}: median seq-rep-1 by run and site"
            )
    if generated:
        figures = {"seq-rep-1": "seq_rep_1_mean", "seq-rep-4": "seq_rep_4_mean", "random tokens": "seq_rep_4_random"}
        figures |= {"diversity": "diversity_mean", "longest repeat": "longest_repeat_mean", "self-BLEU": "self_bleu"}
        figures |= {
            key.replace("_", "/"): key
            for row in generated
            for key in row
            if key.startswith(("rep_", "wrep_")) and not key.endswith("_random")
        }
        labels = ("run", "model", "weights", "precision", "depth", "strategy", "sequences", "length")
        page.table(
            [*labels[:-2], "texts", "tokens", *figures],
            [
                [*(row[name] for name in labels), *(rounded(row.get(key)) for key in figures.values())]
                for row in generated
            ],
            caption="Generated text by run and strategy: means over texts",
        )


def _draw_grid(page: Page, rows: Sequence[Row], across: str, figure: str, value: str, caption: str) -> None:
    columns = list(dict.fromkeys(str(row[across]) for row in rows))
    runs = list(dict.fromkeys(str(row["run"]) for row in rows))
    found = {(str(row["run"]), str(row[across])): row[figure] for row in rows}
    if len(runs) > 1 and any(entry is not None for entry in found.values()):
        page.heatmap(
            [[found.get((run, column)) for column in columns] for run in runs],
            x_labels=columns,
            y_labels=runs,
            x=across,
            y="run",
            value=value,
            caption=caption,
            domain=(0.0, 1.0),
        )
