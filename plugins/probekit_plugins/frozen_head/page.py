"""The page of the frozen head: held-out loss by step, and how much each layer changes early and late."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Page, Result

Row = dict[str, Any]

ARMS = {"trained": "trained head", "frozen": "frozen head"}
PHASES = {"early": "early (first quarter)", "late": "late (last quarter)"}
FIGURES = {
    "relative_change": "relative change",
    "gradient_norm": "gradient norm",
    "relative_gradient": "gradient / weights",
}


def draw(result: Result, page: Page) -> None:
    page.prose(
        "Fresh models of the subject's architecture are trained from random weights, each initialisation twice: with "
        "its head, and with the head left as it was drawn. Both arms begin with the same weights and see the same "
        "batches. If the head holds back what lies before it, the arm with the frozen head should learn better; and if "
        "only a few output layers still move late in training, the last block should then change more than the first."
    )
    _draw_training(page, result.tables["training"])
    _draw_pairs(page, result.tables["pairs"])
    page.heading("Layer by layer")
    page.prose(
        "The relative change is ‖W_end − W_start‖ / ‖W_start‖ over the phase, the gradient norm the mean of ‖∇‖ over "
        "its steps. AdamW divides each gradient by its own size, so a small gradient does not mean a small change. The "
        "learning rate rises at the beginning of the early phase."
    )
    _draw_layers(page, result.tables["layers"])
    _draw_points(page, result.tables["training"])


def _draw_training(page: Page, rows: Sequence[Row]) -> None:
    steps = list(dict.fromkeys(row["step"] for row in rows))
    page.band(
        {
            title: [
                _spread(step, [row["held_out_loss"] for row in rows if row["arm"] == arm and row["step"] == step])
                for step in steps
            ]
            for arm, title in ARMS.items()
        },
        y="held-out loss",
        caption="Held-out loss in nats per token: the median over initialisations, from the least to the greatest",
    )


def _draw_pairs(page: Page, rows: Sequence[Row]) -> None:
    page.table(
        [
            "initialisation",
            "loss before",
            "trained head",
            "frozen head",
            "frozen − trained",
            "change, early",
            "change, late",
            "gradient, early",
            "gradient, late",
        ],
        [
            [
                row["initialisation"] + 1,
                *(
                    f"{row[name]:.4f}"
                    for name in ("held_out_loss_before", "held_out_loss_trained", "held_out_loss_frozen")
                ),
                f"{row['difference']:+.4f}",
                *(
                    _figure(row[f"{phase}_{what}_last_over_first"])
                    for what in ("change", "gradient")
                    for phase in PHASES
                ),
            ]
            for row in rows
        ],
        caption="Held-out loss before and after training; and, with a trained head, the last block's change and "
        "gradient over the first's",
    )


def _draw_layers(page: Page, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    last = len(names) - 1
    where = f"0 is the embedding, 1 to {last - 1} the blocks, {last} the head"
    for figure in ("relative_change", "gradient_norm"):
        for arm, title in ARMS.items():
            series = {
                shown: [
                    _spread(layer, values)
                    for layer in range(len(names))
                    if (values := _values(rows, arm, phase, layer, figure))
                ]
                for phase, shown in PHASES.items()
            }
            page.band(
                series,
                x="layer",
                y=FIGURES[figure],
                caption=f"{FIGURES[figure].capitalize()} by layer, {title} ({where})",
            )
    page.table(
        ["layer", *(f"{short}, {arm}, {phase}" for short in FIGURES.values() for arm in ARMS for phase in PHASES)],
        [
            [
                name,
                *(
                    _figure(median(values) if (values := _values(rows, arm, phase, layer, figure)) else None)
                    for figure in FIGURES
                    for arm in ARMS
                    for phase in PHASES
                ),
            ]
            for layer, name in enumerate(names)
        ],
        caption="By layer: medians over initialisations",
        collapsed=True,
    )


def _draw_points(page: Page, rows: Sequence[Row]) -> None:
    page.table(
        ["initialisation", "arm", "step", "loss", "held-out loss"],
        [
            [row["initialisation"] + 1, row["arm"], row["step"], f"{row['loss']:.4f}", f"{row['held_out_loss']:.4f}"]
            for row in rows
        ],
        caption="Every point; the loss is the mean over the steps since the point before",
        collapsed=True,
    )


def _values(rows: Sequence[Row], arm: str, phase: str, layer: int, figure: str) -> list[float]:
    return [
        row[figure]
        for row in rows
        if (row["arm"], row["phase"], row["layer"]) == (arm, phase, layer) and row[figure] is not None
    ]


def _spread(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
    return x, median(values), min(values), max(values)


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
