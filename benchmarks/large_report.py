"""The report of a large run: 200 tokens, 48 layers, 1000 steps, with the blocks that inverters and walks use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from probekit.report import Document, Page, Token, TokenRow

TOKENS, LAYERS, STEPS = 200, 48, 1000


class Steps(Sequence[TokenRow]):
    """The rows of one layer over all steps, each made when it is asked for: 9.6 million tokens would not fit."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return STEPS + 1

    def __getitem__(self, step: int) -> TokenRow:  # type: ignore[override]
        found = [_is_found(self.layer, step, place) for place in range(TOKENS)]
        tokens = [
            Token(f" word{place}", mark="right")
            if is_found
            else Token(f" other{(step * 7919 + place * 104729 + self.layer * 31) % 5003}", mark="wrong")
            for place, is_found in enumerate(found)
        ]
        return TokenRow(f"step {step}", tokens, note=f"{sum(found)} of {TOKENS}")


def large_document() -> Document:
    """Trajectories, a loss of each layer by step, accuracy by layer and position, and a table with a row for each."""
    page = Page("Inversion of every layer")
    page.finding(f"Of {TOKENS} tokens, all come back from block.0 and a quarter from block.{LAYERS - 1}.")
    layers = [f"block.{layer}" for layer in range(LAYERS)]
    page.trajectory(
        {name: Steps(layer) for layer, name in enumerate(layers)},
        reference=TokenRow("prompt", [Token(f" word{place}") for place in range(TOKENS)]),
        caption="Tokens over steps",
        marks={"right": "the prompt's own token", "wrong": "another token"},
    )
    page.lines({name: list(_losses(layer)) for layer, name in enumerate(layers)}, caption="Loss over steps", log_y=True)
    page.band(
        {
            name: [(step, loss, loss * 0.9, loss * 1.1) for step, loss in _losses(layer)]
            for layer, name in enumerate(layers)
        },
        caption="Loss over restarts",
    )
    page.heatmap(
        [
            [0.25 + 0.75 * _is_found(layer, STEPS, place) / (1 + place % 7) for place in range(TOKENS)]
            for layer in range(LAYERS)
        ],
        x_labels=[f" word{place}" for place in range(TOKENS)],
        y_labels=layers,
        value="share of restarts that recover it",
        caption="What survives, by layer and position",
    )
    page.table(
        ["layer", "position", "token", "accuracy"],
        [[name, place, f"word{place}", place / 7] for name in layers for place in range(0, TOKENS, 8)],
        caption="Accuracy by layer and position",
        collapsed=True,
        interactive=True,
    )
    return Document("gradient-inverter on gpt2-xl", "What does each layer know?", pages=[("gradient-inverter", page)])


def _is_found(layer: int, step: int, place: int) -> bool:
    return (place * 37 + layer * 11) % TOKENS < TOKENS * step / STEPS * (1 - 0.75 * layer / LAYERS)


def _losses(layer: int) -> Iterator[tuple[int, float]]:
    return ((step, (layer + 1) / (1 + step / 17)) for step in range(STEPS + 1))
