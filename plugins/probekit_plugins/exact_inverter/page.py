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
# What the marks of tokens mean; a token that is right, or may be, but is not verified, has none.
MARKS = {"right": "verified", "wrong": "not the prompt's token"}
Row = dict[str, Any]


def draw(result: Result, page: Page, options: ExactInverterOptions) -> None:
    rows: list[Row] = result.tables["prompts"]
    places: list[Row] = result.tables["positions"]
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    blocks = " (block.N is the output of decoder block N, counted from 0)"
    page.prose(
        "Given are the prompt's activations a at a site of the model"
        f"{blocks if any(site.startswith('block.') for site in sites) else ''}. In a causal model the activation at a "
        "position is a function of the tokens up to there. So, from the left, the right token is the one that gives "
        "the activation. Tokens are proposed by a regression on the model's own outputs, then by a gradient, then all "
        "that are left.\n\n"
        "A token is verified if the model, run again on what was found, gives the activation back within ε, and no "
        "other token that was tried (no rival) does. That takes no knowledge of the prompt; verified wrongly says how "
        "often it was mistaken. ε is how far the model is from itself in batches of other shapes, plus what rounding "
        "and noise add. The margin is how far the nearest rival's activation is from the given one: many times ε is "
        "sure. Both are relative to the activation's norm."
    )
    _overview(result, page, sites)
    if len(sites) > 2:
        _by_site(result, page, sites)
    _failures(page, rows)
    numbers = list(dict.fromkeys(int(row["prompt"]) for row in rows))
    for number in numbers[:PROMPTS]:
        _one_prompt(result, page, number, sites, many=len(numbers) > 1)
    if len(numbers) > PROMPTS:
        page.note(f"{PROMPTS} of {len(numbers)} prompts are shown token by token; the table below has all of them.")
    if len(numbers) > 1:
        page.heading("All prompts")
    _margins(page, places, sites)
    _all_prompts(result, page, rows)


def _overview(result: Result, page: Page, sites: Sequence[str]) -> None:
    """What came back at which cost, and how sure that is."""

    def table(columns: dict[str, str], caption: str, times: bool, remark: str = "") -> None:
        shown = {
            title: name for title, name in columns.items() if any(figure(site, name) is not None for site in sites)
        }
        if shown:
            page.table(
                ["site", *shown, *(["ms a token", "learning, s"] if times else [])],
                [
                    [site, *(figure(site, name) for name in shown.values()), *(_times(result, site) if times else [])]
                    for site in sites
                ],
                caption=caption,
                in_summary=True,
                remark=remark,
            )

    def figure(site: str, name: str) -> Any:
        return result.metrics[f"{site}/{name}"]

    table(
        {
            "whole prompts": "exact_rate",
            "tokens right": "token_accuracy",
            "verified": "verified_share",
            "verified wrongly": "false_positives",
            "candidates a token": "candidates_per_token",
            "most": "candidates_most",
        },
        "What came back, as shares (1 is all), and what it cost",
        times=True,
        remark="Verified wrongly is a count of tokens. Learning a site is done once, for any number of prompts.",
    )
    table(
        {
            "ε of the arithmetic": "arithmetic_error",
            "least margin": "margin_least",
            "survives noise of σ": "noise_survived_least",
        },
        "How sure it is: the margin beside ε, and the noise that it would survive",
        times=False,
        remark="Noise: σ relative to the activation's root mean square, at which the nearest rival would be taken in "
        "one case of a thousand.",
    )


def _times(result: Result, site: str) -> list[float | None]:
    """Milliseconds of search for each token, and seconds that were spent once for the site."""
    tokens = [int(row["tokens"] or 0) for row in result.tables["prompts"] if row["site"] == site]
    spent = [result.seconds.get(f"{site}/{number}/search") for number in range(len(tokens))]
    known = [seconds for seconds in spent if seconds is not None]
    return [1000 * sum(known) / sum(tokens) if known else None, result.seconds.get(f"{site}/learning")]


def _by_site(result: Result, page: Page, sites: Sequence[str]) -> None:
    def line(name: str) -> list[tuple[str, float]]:
        figures = [(site, result.metrics[f"{site}/{name}"]) for site in sites]
        return [(site, float(figure)) for site, figure in figures if figure is not None]

    def chart(series: dict[str, list[tuple[str, float]]], y: str, caption: str, log_y: bool) -> None:
        # A flat line says less than the table.
        if len({value for points in series.values() for _, value in points}) > 1:
            page.lines({title: points for title, points in series.items() if points}, "site", y, caption, log_y=log_y)

    shares = {"whole prompts": "exact_rate", "tokens right": "token_accuracy", "verified": "verified_share"}
    chart({title: line(name) for title, name in shares.items()}, "share", "What comes back, by site", False)
    tried = {"mean": line("candidates_per_token"), "most": line("candidates_most")}
    chart(tried, "candidates a token", "Candidates tried, by site", True)
    times = [(site, _times(result, site)[0]) for site in sites]
    spent = [(site, milliseconds) for site, milliseconds in times if milliseconds is not None]
    chart({"ms a token": spent}, "ms a token", "Time of the search, by site", False)
    margins = {"least": line("margin_least"), "median": line("margin_median")}
    chart(margins, "margin", "How sure it is, by site: the margin, how far the nearest rival is", False)


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
            caption="How sure it is, by position: the higher the margin stands above ε, the surer"
            + (" (medians over prompts)" if len({row["prompt"] for row in places}) > 1 else ""),
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
    unmarked = any(token.mark is None for row in shown[prompt is not None :] for token in row.tokens)
    page.tokens(
        shown,
        caption="Recovered tokens by site",
        legend=("no colour: found, not verified; " if unmarked else "")
        + "hover over a token, or focus it, for its distance and its nearest rival",
        marks=MARKS,
    )
    if len(sites) > 1:
        page.heatmap(
            [[row["rival_distance"] for row in places if row["site"] == site] for site in sites],
            x_labels=[str(row["text"]) for row in places if row["site"] == sites[-1]],
            y_labels=sites,
            x="token",
            y="site",
            value="margin",
            caption="Margin of each token: how far its nearest rival is",
        )
    page.table(
        [
            "site",
            "position",
            "token",
            "status",
            "distance",
            "ε",
            "nearest rival",
            "margin",
            "candidates tried",
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
        caption="Every position: how far the token's activation is, and its nearest rival's",
        collapsed=True,
        remark="Distances are ‖O(x) − a‖ / ‖a‖, of the activation O(x) that a token gives from the given one, a. Ties: "
        "other tokens within ε.",
    )


def _token(row: Row) -> Token:
    told = [f"token {row['recovered']}, {row['status']}"]
    if row["distance"] is not None:
        told.append(f"{row['distance']:.2g} of the norm away, ε {row['bound']:.2g}")
    if row["rival_distance"] is not None:
        told.append(f"nearest rival {row['rival_text']!r} at {row['rival_distance']:.2g}")
    if row["right"] is False:
        told.append("not the prompt's token")
    verified = "right" if row["status"] == "verified" else None
    mark = "wrong" if row["right"] is False else verified
    return Token(str(row["text"]), mark=mark, title="; ".join(told))  # type: ignore[arg-type]


def _all_prompts(result: Result, page: Page, rows: Sequence[Row]) -> None:
    columns = {
        "tokens": "tokens",
        "exact": "whole",
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
        caption="Every prompt: what came back, and what it cost",
        collapsed=True,
    )
