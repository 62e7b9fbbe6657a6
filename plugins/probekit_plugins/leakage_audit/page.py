"""The audit's page: one chart, one sentence, and the figures behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit_plugins.leakage_audit.conditions import NONE, Row, parts, passes, taken

if TYPE_CHECKING:
    from probekit import Page, Result

# A chart has at most this many lines.
LINES = 8


def draw(result: Result, page: Page) -> None:
    rows: list[Row] = result.tables["conditions"]
    several = len({row["noise"] for row in rows}) > 1
    sites = list(dict.fromkeys(row["site"] for row in rows))
    ways = list(dict.fromkeys(taken(row) for row in rows))
    coded = any(passes(row) != NONE for row in rows)
    page.prose(
        "Somebody has a layer's activations and the model that they come from. The exact inverter gives the prompt "
        "back from them, token for token. Here it is asked how far that goes when the activations are rounded where "
        "they are stored, or noise is added before they leave. Noise is normal, of standard deviation σ relative to "
        "the root mean square of each position's activation; rounding comes after it."
        + (
            " Through an autoencoder means: what it makes of the activations, before all that; the attacker knows how "
            "far that is off on average."
            if coded
            else ""
        )
    )
    if several:
        told = [site for site in sites if not coded or any(passes(row) != NONE for row in rows if row["site"] == site)]
        shown = _spread(told, max(1, LINES // len(ways)))
        lines = {
            site if len(ways) == 1 else f"{site}, {way}": [
                (row["noise"], row["token_accuracy"])
                for row in sorted(rows, key=lambda row: row["noise"])
                if row["site"] == site and taken(row) == way
            ]
            for site in shown
            for way in ways
        }
        page.lines(
            {name: points for name, points in lines.items() if points},
            x="σ of the noise, relative to the activation",
            y="share of tokens that come back",
            caption="What leaks, by noise",
        )
    else:
        page.lines(
            {way: [(row["site"], row["token_accuracy"]) for row in rows if taken(row) == way] for way in ways},
            x="site",
            y="share of tokens that come back",
            caption="What leaks, by layer",
        )
    page.table(
        [
            "site",
            *(["through"] if coded else []),
            "rounded to",
            "noise σ",
            "tokens right",
            "whole prompts",
            "verified",
            "verified wrongly",
            "candidates a token",
            "ms a token",
        ],
        [
            [
                row["site"],
                *([passes(row)] if coded else []),
                _named(row["precision"]),
                row["noise"],
                row["token_accuracy"],
                row["exact_rate"],
                row["verified_share"],
                row["false_positives"],
                row["candidates_per_token"],
                _milliseconds(result, row),
            ]
            for row in rows
        ],
        caption="Every condition",
        in_summary=True,
    )


def _named(precision: str) -> str:
    return "as it is" if precision == "none" else precision


def _milliseconds(result: Result, row: Row) -> float | None:
    seconds = result.seconds.get(", ".join(parts(row)))
    return None if seconds is None else 1000 * seconds


def _spread(sites: list[str], most: int) -> list[str]:
    """At most so many sites, evenly spread, the first and the last among them."""
    if len(sites) <= most:
        return sites
    if most == 1:
        return sites[-1:]
    return [sites[round(place * (len(sites) - 1) / (most - 1))] for place in range(most)]
