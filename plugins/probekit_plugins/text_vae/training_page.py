"""The trainings: their losses, and each with its own figures."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.page_figures import LINES, number, some
from probekit_plugins.text_vae.page_figures import by_name, having, label, short

if TYPE_CHECKING:
    from probekit import Page, Result

FIGURES = {
    "PPL": "ppl",
    "by word": "ppl_word",
    "KL": "kl",
    "MI": "mi",
    "AU": "active",
    "ΔRec": "delta_rec",
    "exact": "exact",
}


def draw_trainings(result: Result, page: Page) -> None:
    """Loss curves, and a row for every training."""
    rows = result.tables.get("trained", [])
    if not rows:
        return
    page.heading("The trainings")
    _losses(result, page)
    shown = {title: name for title, name in FIGURES.items() if any(row.get(name) is not None for row in rows)}
    page.table(
        ["training", "seed", "weights", "steps", "last loss", *shown, "seconds"],
        [
            [
                short(row["name"]),
                *(_rounded(row.get(name)) for name in ("seed", "parameters", "steps", "loss", *shown.values())),
                _rounded(result.seconds.get(f"training {row['name']}, seed {row['seed']}")),
            ]
            for row in rows
        ],
        caption="Every training",
        interactive=len(rows) > 10,
        collapsed=len(rows) > 40,
        remark="Weights are how many were trained; PPL is by token, and by word. "
        "The last loss is the mean over the last twentieth of the steps, on texts to train on.",
    )


def _rounded(value: object) -> object:
    """A figure with as many digits as a wide table has room for."""
    if not isinstance(value, float):
        return value
    return round(value) if abs(value) >= 1000 else round(value, 1 if abs(value) >= 100 else 2)


def _losses(result: Result, page: Page) -> None:
    curves: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, rows in by_name(having(result.tables.get("losses", []), "loss")).items():
        steps: dict[int, list[float]] = {}
        for row in rows:
            steps.setdefault(int(row["step"]), []).append(float(number(row["loss"]) or 0.0))
        curves[label(name)] = [(step, median(each), min(each), max(each)) for step, each in sorted(steps.items())]
    if not curves:
        return
    names = some(list(curves), LINES)
    seeds = len({row["seed"] for row in result.tables["losses"]})
    page.band(
        {name: curves[name] for name in names},
        x="step",
        y="loss, nats a text",
        caption="The loss over the steps"
        + (f": median over {seeds} seeds, least to greatest" if seeds > 1 else "")
        + (f"; {len(names)} of {len(curves)} settings" if len(names) < len(curves) else ""),
    )
    page.prose(
        "The loss of an autoencoder is reconstruction + β Σ max(λ, KL of a dimension), so that it rises as β does, and "
        "is not to be compared over λ; that of a language model is its NLL."
    )
