"""The page of the exact inverter: what came back from which layer, by how wide a margin, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.exact_inverter import ExactInverterOptions

# Prompts that are shown token by token; all of them are in the table.
PROMPTS = 8
Row = dict[str, Any]


def draw(result: Result, page: Page, options: ExactInverterOptions) -> None:
    rows: list[Row] = result.tables["prompts"]
    places: list[Row] = result.tables["positions"]
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    page.prose(
        "In a causal model the activation at a position is a function of the tokens up to there. So, given the tokens "
        "before it, the right token is the one whose activation is the given one. Tokens are proposed by a regression "
        "on the model's own outputs, then by a gradient, then all that are left; a token is verified only if the "
        "model, run again on what was found, gives the activation back within ε, and no rival does.\n\n"
        "ε is how far the model is from itself in batches of other shapes, plus what rounding and noise add. The "
        "margin is how far the nearest rival's activation is from the given one. Both are relative to the activation's "
        "norm."
    )
    _overview(result, page, sites)
    if len(sites) > 1:
        _by_site(result, page, sites)
    _margins(page, places, sites)
    _failures(page, rows)
    numbers = list(dict.fromkeys(int(row["prompt"]) for row in rows))
    for number in numbers[:PROMPTS]:
        _one_prompt(result, page, number, sites, many=len(numbers) > 1)
    if len(numbers) > PROMPTS:
        page.note(f"{PROMPTS} of {len(numbers)} prompts are shown token by token; the table below has all of them.")
    _all_prompts(result, page, rows)


def _overview(result: Result, page: Page, sites: Sequence[str]) -> None:
    def figure(site: str, name: str) -> Any:
        return result.metrics[f"{site}/{name}"]

    columns = {
        "exact": "exact_rate",
        "tokens right": "token_accuracy",
        "verified": "verified_share",
        "verified wrongly": "false_positives",
        "candidates a token": "candidates_per_token",
        "most": "candidates_most",
        "ε of the arithmetic": "arithmetic_error",
        "least margin": "margin_least",
        "survives noise of σ": "noise_survived_least",
    }
    shown = {title: name for title, name in columns.items() if any(figure(site, name) is not None for site in sites)}
    page.table(
        ["site", *shown, "ms a token", "s to learn"],
        [[site, *(figure(site, name) for name in shown.values()), *_times(result, site)] for site in sites],
        caption="Recovery by site. Noise: σ relative to the activation's root mean square, at which the nearest rival "
        "would be taken in one case of a thousand",
        in_summary=True,
    )


def _times(result: Result, site: str) -> list[float | None]:
    """Milliseconds of search for each token, and seconds that were spent once for the site."""
    tokens = [int(row["tokens"] or 0) for row in result.tables["prompts"] if row["site"] == site]
    spent = [result.seconds.get(f"{site}/{number}/search") for number in range(len(tokens))]
    known = [seconds for seconds in spent if seconds is not None]
    return [1000 * sum(known) / sum(tokens) if known else None, result.seconds.get(f"{site}/learning")]


def _by_site(result: Result, page: Page, sites: Sequence[str]) -> None:
    def line(name: str) -> list[tuple[int, float]]:
        figures = [(place, result.metrics[f"{site}/{name}"]) for place, site in enumerate(sites)]
        return [(place, float(figure)) for place, figure in figures if figure is not None]

    axis = f"site, from {sites[0]} (0) to {sites[-1]} ({len(sites) - 1})"

    def chart(series: dict[str, list[tuple[int, float]]], y: str, caption: str, log_y: bool) -> None:
        if (
            len({value for points in series.values() for _, value in points}) > 1
        ):  # a flat line says less than the table
            page.lines({title: points for title, points in series.items() if points}, axis, y, caption, log_y=log_y)

    shares = {"exact": "exact_rate", "tokens right": "token_accuracy", "verified": "verified_share"}
    chart({title: line(name) for title, name in shares.items()}, "share", "What comes back, by site", False)
    tried = {"mean": line("candidates_per_token"), "most": line("candidates_most")}
    chart(tried, "candidates a token", "Candidates tried, by site", True)
    times = [(place, _times(result, site)[0]) for place, site in enumerate(sites)]
    spent = [(place, milliseconds) for place, milliseconds in times if milliseconds is not None]
    chart({"ms a token": spent}, "ms a token", "Time of the search, by site", False)
    margins = {"least": line("margin_least"), "median": line("margin_median")}
    chart(margins, "margin", "Margin by site: how far the nearest rival is, relative to the activation's norm", False)


def _margins(page: Page, places: Sequence[Row], sites: Sequence[str]) -> None:
    """How far the second-best token was, by position, beside how far the right one may be."""
    series: dict[str, list[tuple[int, float]]] = {}
    for site in sites if len(sites) <= 4 else [sites[0], sites[len(sites) // 2], sites[-1]]:
        for title, name, pick in (("margin", "rival_distance", median), ("ε", "bound", median)):
            found: dict[int, list[float]] = {}
            for row in places:
                if row["site"] == site and row[name] is not None:
                    found.setdefault(int(row["position"]), []).append(float(row[name]))
            if found:
                series[f"{title}, {site}"] = [(place, float(pick(values))) for place, values in sorted(found.items())]
    if series:
        page.lines(
            series,
            x="position",
            y="relative to the activation's norm",
            caption="Margin by position: how far the nearest rival is (median over prompts), and ε below it",
            log_y=True,
        )


def _failures(page: Page, rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row["reasons"]]
    if failed:
        page.table(
            ["site", "prompt", "why"],
            [[row["site"], int(row["prompt"]) + 1, row["reasons"]] for row in failed],
            caption="Where it failed, and why",
        )


def _one_prompt(result: Result, page: Page, number: int, sites: Sequence[str], many: bool) -> None:
    if many:
        page.heading(f"Prompt {number + 1}")
    shown = []
    prompt = next((each for each in result.sequences.get("prompt", []) if each.labels["prompt"] == number), None)
    if prompt is not None:
        shown.append(TokenRow("prompt", [Token(text) for text in prompt.tokens]))
    places: list[Row] = [row for row in result.tables["positions"] if row["prompt"] == number]
    for site in sites:
        of_site = [row for row in places if row["site"] == site]
        verified = sum(row["status"] == "verified" for row in of_site)
        note = f"{verified} of {len(of_site)} verified"
        shown.append(TokenRow(site, [_token(row) for row in of_site], note=note))
    page.tokens(
        shown,
        caption="Recovered tokens by site",
        legend="marked right if verified, wrong if not; hover or focus a token for its distance and its rival",
    )
    if len(sites) > 1:
        page.heatmap(
            [[row["rival_distance"] for row in places if row["site"] == site] for site in sites],
            x_labels=[str(row["text"]) for row in places if row["site"] == sites[-1]],
            y_labels=sites,
            x="token",
            y="site",
            value="margin",
            caption="How far the nearest rival is",
        )
    page.table(
        [
            "site",
            "position",
            "token",
            "status",
            "‖O(x) − a‖ / ‖a‖",
            "ε",
            "nearest rival",
            "its distance",
            "tried",
            "ties",
        ],
        [
            [
                row["site"],
                row["position"],
                row["text"],
                row["status"],
                row["distance"],
                row["bound"],
                row["rival_text"],
                row["rival_distance"],
                row["tried"],
                row["ties"],
            ]
            for row in places
        ],
        caption="Every position: the distance of what was found, ε, and the nearest rival",
        collapsed=True,
    )


def _token(row: Row) -> Token:
    told = [f"token {row['recovered']}, {row['status']}"]
    if row["distance"] is not None:
        told.append(f"{row['distance']:.2g} of the norm away, ε {row['bound']:.2g}")
    if row["rival_distance"] is not None:
        told.append(f"nearest rival {row['rival_text']!r} at {row['rival_distance']:.2g}")
    if row["right"] is False:
        told.append("not the prompt's token")
    mark = "right" if row["status"] == "verified" and row["right"] is not False else "wrong"
    return Token(str(row["text"]), mark=mark, title="; ".join(told))  # type: ignore[arg-type]


def _all_prompts(result: Result, page: Page, rows: Sequence[Row]) -> None:
    columns = {
        "tokens": "tokens",
        "exact": "exact",
        "token_accuracy": "tokens right",
        "verified": "verified",
        "tied": "tied",
        "candidates_per_token": "candidates a token",
        "computed": "positions computed",
    }
    shown = [column for column in columns if any(row[column] is not None for row in rows)]

    def seconds(row: Row, part: str) -> float | None:
        return result.seconds.get(f"{row['site']}/{row['prompt']}/{part}")

    page.table(
        ["site", "prompt", *(columns[column] for column in shown), "search, s", "proof, s"],
        [
            [
                row["site"],
                int(row["prompt"]) + 1,
                *(row[column] for column in shown),
                seconds(row, "search"),
                seconds(row, "proof"),
            ]
            for row in rows
        ],
        caption="All prompts",
        collapsed=True,
    )
