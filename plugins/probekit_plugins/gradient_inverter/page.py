"""The inverter's page: recovered tokens by restart, tokens over steps, losses, accuracy, candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.gradient_inverter.comparison_page import SITES, draw_comparison
from probekit_plugins.gradient_inverter.details import draw_details
from probekit_plugins.gradient_inverter.method import method
from probekit_plugins.thinning import thinned

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# What the marks of tokens mean.
MARKS = {"right": "the prompt's own token", "wrong": "another token"}


def draw(result: Result, page: Page, options: GradientInverterOptions) -> None:
    prompts = result.sequences["prompt"]
    sites = list(dict.fromkeys(str(sequence.labels["site"]) for sequence in prompts))
    page.prose(method(result, sites, options))
    _overview(result, page, sites, options)
    draw_comparison(result, page, sites, options)
    many = len(prompts) > 1
    if many:  # else the one inversion has both by restart
        _over_steps(result, page, sites, options)
    for sequence in prompts:
        _one_inversion(result, page, sequence, many)


def _overview(result: Result, page: Page, sites: Sequence[str], options: GradientInverterOptions) -> None:
    figures = {
        "selected restart": "token_accuracy_selected",
        "mean of all": "token_accuracy_mean",
        "worst": "token_accuracy_min",
        "best": "token_accuracy_max",
        f"in the top {options.top_k}": "top_k_accuracy_mean",
        "whole prompt": "exact_rate",
        "re-scored": "rescored_token_accuracy_mean",
        "re-scored, whole": "rescored_exact_rate",
        "loss / m": "loss_ratio_median",
    }
    figures = {name: figure for name, figure in figures.items() if f"{sites[0]}/{figure}" in result.metrics}
    page.table(
        ["site", *figures],
        [[site, *(result.metrics[f"{site}/{figure}"] for figure in figures.values())] for site in sites],
        caption="Token accuracy: the share of the prompt's tokens that came back, in their places (1 is all)",
        in_summary=not options.compare_page,  # else the table of both settings is
        targets=[_first_heading(result, site) for site in sites] if len(sites) > 1 else None,
        remark="Whole prompt: the share of restarts that recover all of it. Loss / m: the median.",
    )
    if len(sites) > 1:
        _where(result, page, sites)


def _where(result: Result, page: Page, sites: Sequence[str]) -> None:
    """Which tokens of each prompt come back from which site; in words where that is all of them, or none."""
    prompts = {int(s.labels["prompt"] or 0): s.tokens for s in result.sequences["prompt"]}
    shares = {number: [result.tensors[f"{number}/{site}/right"].tolist() for site in sites] for number in prompts}
    found = {number: {share for row in rows for share in row} for number, rows in shares.items()}
    for share, what in ((1.0, "Every restart recovers every token"), (0.0, "No restart recovers any token")):
        alike = [number for number in prompts if found[number] == {share}]
        if alike:
            which = "all prompts" if len(alike) == len(prompts) else f"prompt {', '.join(str(n + 1) for n in alike)}"
            page.prose(f"{what} of {'the prompt' if len(prompts) == 1 else which}, at each of the {len(sites)} sites.")
    for number, tokens in prompts.items():
        if found[number] not in ({0.0}, {1.0}):
            page.heatmap(
                shares[number],
                x_labels=tokens,
                y_labels=sites,
                x="token of the prompt",
                y="site",
                value="share of restarts that recover it",
                caption=f"Which tokens of prompt {number + 1} come back, by site",
                domain=(0.0, 1.0),
            )


def _heading(result: Result, prompt: TokenSequence) -> str:
    """The site of an inversion, and the prompt where there are several."""
    several = len({sequence.labels["prompt"] for sequence in result.sequences["prompt"]}) > 1
    return f"{prompt.labels['site']}" + (f", prompt {int(prompt.labels['prompt'] or 0) + 1}" if several else "")


def _first_heading(result: Result, site: str) -> str:
    """A link to the first inversion of a site."""
    return "#" + _heading(result, next(s for s in result.sequences["prompt"] if s.labels["site"] == site))


def _over_steps(result: Result, page: Page, sites: Sequence[str], options: GradientInverterOptions) -> None:
    """Loss and accuracy over steps by site, over the restarts of all prompts."""
    losses: dict[str, list[tuple[float, float, float, float]]] = {}
    accuracy: dict[str, list[tuple[float, float, float, float]]] = {}
    chosen = [sites[index] for index in thinned(len(sites), SITES)]
    for site in chosen:
        numbers = [
            sequence.labels["prompt"] for sequence in result.sequences["prompt"] if sequence.labels["site"] == site
        ]
        ratios = [_ratios(result, f"{number}/{site}", _m(result, number, site)) for number in numbers]
        losses[site] = [
            _spread(step, [value for ratio in ratios for value in ratio[step]]) for step in thinned(len(ratios[0]))
        ]
        recorded = [result.tensors[f"{number}/{site}/recorded_accuracy"].tolist() for number in numbers]
        steps = result.tensors[f"{numbers[0]}/{site}/recorded_steps"].tolist()
        accuracy[site] = [
            _spread(step, [value for of_prompt in recorded for value in of_prompt[index]])
            for index, step in enumerate(steps)
        ]
    over = "median over prompts and restarts, from the least to the greatest"
    if len(chosen) < len(sites):
        over += f"; {len(chosen)} of {len(sites)} sites"
    if not options.compare_page:  # else that is shown beside the page's settings
        page.band(
            accuracy, x="step", y="token accuracy", caption=f"When the tokens come back: accuracy over steps ({over})"
        )
    page.band(
        losses,
        x="step",
        y="loss / m",
        caption=f"How near the descent comes: loss over steps ({over}); 1 is the noisy prompt's",
        log_y=_is_positive(losses),
    )


def _one_inversion(result: Result, page: Page, prompt: TokenSequence, many: bool) -> None:
    number, site = prompt.labels["prompt"], str(prompt.labels["site"])
    prefix = f"{number}/{site}"
    rows = [row for row in result.tables["restarts"] if row["prompt"] == number and row["site"] == site]
    selected = next(row for row in rows if row["selected"])
    page.heading(_heading(result, prompt))
    found = list(_of(result, "recovered", prompt))
    own = TokenRow("prompt", [Token(text) for text in prompt.tokens])
    page.tokens(
        [
            own,
            *(
                TokenRow(
                    f"restart {row['restart']}",
                    _marked(
                        next(s for s in found if s.labels["restart"] == row["restart"] and s.labels["rank"] == 0),
                        prompt,
                    ),
                    note=_note(row),
                )
                for row in rows
            ),
            *(
                TokenRow(
                    f"restart {row['restart']}, re-scored", _marked(sequence, prompt), note=_note(row, "rescored_")
                )
                for row, sequence in zip(rows, _of(result, "rescored", prompt), strict=False)
            ),
        ],
        caption=f"What each restart recovers; restart {selected['restart']} is the selected one",
        marks=MARKS,
    )
    page.trajectory(
        {
            f"restart {selected['restart']}": [
                TokenRow(f"step {sequence.labels['step']}", _marked(sequence, prompt))
                for sequence in _of(result, "trajectory", prompt)
            ]
        },
        reference=own,
        caption="How the selected restart came there: tokens over steps",
        marks=MARKS,
        collapsed=many,
    )
    if not many:
        _descent(result, page, prefix, selected)
    page.tokens(
        [
            TokenRow(
                f"top {int(sequence.labels['rank'] or 0) + 1}",
                # Of the candidates of a position at most one can be right: the others are no failures.
                [
                    replace(token, mark="right" if token.mark == "right" else None)
                    for token in _marked(sequence, prompt)
                ],
            )
            for sequence in found
            if sequence.labels["restart"] == selected["restart"]
        ],
        caption=f"The best candidates at each position, restart {selected['restart']}",
        marks={"right": MARKS["right"]},
        collapsed=many,
    )
    draw_details(result, page, prompt, rows)


def _descent(result: Result, page: Page, prefix: str, selected: Mapping[str, Any]) -> None:
    """Accuracy and loss over steps: the selected restart's, and all of them as a band."""
    accuracy = result.tensors[f"{prefix}/recorded_accuracy"].tolist()
    recorded = result.tensors[f"{prefix}/recorded_steps"].tolist()
    page.band(
        _with_all(dict(zip(recorded, accuracy, strict=True)), selected),
        x="step",
        y="token accuracy",
        caption="When the tokens come back: accuracy over steps" + _all_restarts(accuracy[0]),
    )
    ratios = _ratios(result, prefix, float(selected["shifted_loss"] or 0))
    lines = _with_all({step: ratios[step] for step in thinned(len(ratios))}, selected)
    if selected["loss_ratio"] is not None:
        lines["m, the noisy prompt's loss"] = [(step, 1.0, 1.0, 1.0) for step in (0, len(ratios) - 1)]
    page.band(
        lines,
        x="step",
        y="loss / m",
        caption="How near the descent comes: loss over steps" + _all_restarts(ratios[0]),
        log_y=_is_positive(lines),
    )


def _m(result: Result, number: object, site: str) -> float:
    """The median loss of a prompt's own embeddings with noise added."""
    rows = result.tables["restarts"]
    return float(next(row["shifted_loss"] or 0 for row in rows if row["prompt"] == number and row["site"] == site))


def _ratios(result: Result, prefix: str, m: float) -> list[list[float]]:
    """The losses as parts of m, by step and restart; as they are where m is 0."""
    ratios: list[list[float]] = (result.tensors[f"{prefix}/losses"] / (m or 1.0)).tolist()
    return ratios


def _spread(step: float, values: Sequence[float]) -> tuple[float, float, float, float]:
    return step, median(values), min(values), max(values)


def _with_all(
    by_step: Mapping[int, Sequence[float]], selected: Mapping[str, Any]
) -> dict[str, list[tuple[float, float, float, float]]]:
    """The selected restart's line and, where there are several, a band over all: step → a value for each restart."""
    one = int(selected["restart"])
    lines = {f"restart {one}, selected": [(step, *[values[one]] * 3) for step, values in by_step.items()]}
    count = len(next(iter(by_step.values())))
    if count > 1:
        lines[f"all {count} restarts"] = [_spread(step, values) for step, values in by_step.items()]
    return lines  # type: ignore[return-value]


def _all_restarts(values: Sequence[float]) -> str:
    return "" if len(values) == 1 else " (all restarts: median, from the least to the greatest)"


def _is_positive(lines: Mapping[str, Sequence[Sequence[float]]]) -> bool:
    return all(figure > 0 for points in lines.values() for _, *figures in points for figure in figures)


def _of(result: Result, name: str, prompt: TokenSequence) -> Iterator[TokenSequence]:
    """The sequences of that name that belong to the same prompt and site."""
    for sequence in result.sequences.get(name, []):
        if all(sequence.labels[key] == prompt.labels[key] for key in ("prompt", "site")):
            yield sequence


def _marked(sequence: TokenSequence, prompt: TokenSequence) -> list[Token]:
    return [
        Token(text, mark="right" if index == wanted else "wrong", title=f"token {index}, wanted {wanted}")
        for text, index, wanted in zip(sequence.tokens, sequence.ids, prompt.ids, strict=True)
    ]


def _note(row: Mapping[str, Any], kind: str = "") -> str:
    ratio = "" if kind or row["loss_ratio"] is None else f", loss / m {row['loss_ratio']:.3g}"
    # Re-scored tokens, where there are any, are what the selected restart is chosen by.
    last = kind or row.get("rescored_discrete_loss") is None
    return f"{row[f'{kind}token_accuracy']:.0%} right{ratio}, discrete loss {row[f'{kind}discrete_loss']:.3g}" + (
        ", selected" if row["selected"] and last else ""
    )
