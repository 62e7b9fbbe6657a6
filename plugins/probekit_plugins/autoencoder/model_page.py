"""What the model makes of the reconstruction, and how much of a prompt comes back from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.autoencoder.page_figures import (
    Row,
    alike,
    by_size,
    charted,
    named,
    number,
    over_seeds,
    points,
    reference,
    rounded,
    settings_table,
    settings_with,
    sites_of,
    spread,
)

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.autoencoder import AutoencoderOptions

SIZE = "numbers kept (width, or L0)"
# Prompts that are shown token by token, and those that are open.
PROMPTS, OPEN = 8, 2
MARKS = {"right": "the prompt's own token", "wrong": "another token"}
TOLD = {"wrong": "another token, or one that is not told from others"}
# Figures of who knows the autoencoder, and what the page calls that.
AWARE, KNOWN = "tokens_survived_aware", "autoencoder known"
KNOWING = (
    "\n\nThat attacker does not know the autoencoder. Another one does, as anybody must who decodes the code: each "
    "candidate's activation is passed through it too, and what gives the same x̂ is taken. Then a token survives only "
    "if nothing else that was tried gives the same x̂; where two tokens do, it is lost, even if the right one was tried "
    "first. This asks whether the code still tells this prompt from others. It is given x̂ in full precision, so that "
    "two numbers may be enough: it does not say that what survives would bear noise."
)


def draw_model(result: Result, page: Page) -> None:
    """Loss recovered and KL with x̂ in the place of x."""
    rows = settings_with(result, "loss_recovered", "loss_recovered_mean", "kl_spliced")
    if not rows:
        return
    page.heading("What the model makes of it")
    page.prose(
        "Variance is not meaning: a model may read directions in which activations vary little. So the model goes on "
        "with x̂ in the place of x (x̂ is spliced in), on held-out documents, and its predictions of the next token are "
        "compared with its own. The cross-entropy says how many nats the right next token costs.\n\n"
        "Loss recovered is (CE ablated − CE spliced) / (CE ablated − CE clean): 1 if nothing is lost, 0 if x̂ is worth "
        "no more than nothing. There are two ways to put nothing there: zeros, which is the custom, or the mean "
        "activation. Either may be something that the model never saw, and break it; the more it breaks, the more "
        "anything recovers. So the ablation that costs less is the harder comparison, and the one that is drawn. "
        "KL(clean ‖ spliced) says how far the two distributions of the next token are apart, whichever token is right: "
        "0 nats if they are the same."
    )
    page.table(
        ["site", "as it is (clean)", "ablated by the mean", "ablated by zero"],
        [
            [site, *(_shared(result, site, f"ce_{name}") for name in ("clean", "mean", "zero"))]
            for site in sites_of(rows)
        ],
        caption="What the next token costs in nats: cross-entropy of the model as it is, and without the activation",
    )
    settings_table(
        page,
        rows,
        {
            "recovered against zero": [spread(row, "loss_recovered") for row in rows],
            "recovered against mean": [spread(row, "loss_recovered_mean") for row in rows],
            "KL(clean ‖ spliced), nats": [spread(row, "kl_spliced") for row in rows],
            "same likeliest token": [spread(row, "top1_agreement") for row in rows],
        },
        caption="What of the model's predictions is left with x̂ spliced in",
    )
    for at, of_site in charted(rows):
        against, figure = _harder(result, str(of_site[0]["site"]))
        _by_size(page, of_site, figure, "loss recovered", f"Loss recovered against {against}{at}")
        _by_size(page, of_site, "kl_spliced", "KL, nats a token", f"KL(clean ‖ spliced){at}")


def _harder(result: Result, site: str) -> tuple[str, str]:
    """The ablation that costs less, and the figure of what is recovered of it."""
    zero, mean = (_shared(result, site, f"ce_{name}") for name in ("zero", "mean"))
    if zero is not None and mean is not None and mean < zero:
        return "the mean activation", "loss_recovered_mean"
    return "zero", "loss_recovered"


def _by_size(page: Page, rows: Sequence[Row], figure: str, unit: str, what: str) -> None:
    found = points(rows, figure)
    if len({point["size"] for point in found}) > 1:
        page.chart(by_size(found, SIZE, unit), caption=f"{what}, by size" + over_seeds(rows))


def draw_survival(result: Result, page: Page, options: AutoencoderOptions) -> None:
    """How many tokens come back from x̂, beside what comes back from x, and which."""
    rows = settings_with(result, "tokens_survived", "prompts_survived", AWARE)
    baseline: dict[str, Row] = {str(row["site"]): row for row in result.tables.get("survival_baseline", [])}
    if not rows and not baseline:
        return
    page.heading("What survives of the prompt")
    kept = options.skip_first
    known = any(row.get(AWARE) is not None for row in rows)
    page.prose(
        "Could somebody who gets the compressed activation read the prompt from it? Here the exact inverter tries: "
        "from the left, it takes the token whose activation is the nearest to x̂, given the tokens that it found "
        "before. A wrong token makes those after it harder. The exact activation x, which is not compressed at all, is "
        "the reference: what does not come back from it is not lost in the code."
        + (
            f" The first {'position keeps its' if kept == 1 else f'{kept} positions keep their'} own activation and "
            f"{'does' if kept == 1 else 'do'} not count."
            if kept
            else ""
        )
        + (KNOWING if known else "")
    )
    several = len(sites_of([*rows, *baseline.values()])) > 1
    names = [f"exact activation at {site}" if several else "exact activation" for site in baseline]
    titles = {"tokens_survived": "tokens survived", "prompts_survived": "whole prompts"}
    if known:
        titles |= {AWARE: f"tokens, {KNOWN}", "prompts_survived_aware": f"whole prompts, {KNOWN}"}
    columns = [
        alike([*(rounded(row.get(each)) for row in baseline.values()), *(spread(row, each) for row in rows)])
        for each in titles
    ]
    page.table(
        ["setting", *titles.values()],
        list(zip([*names, *(named(row, several) for row in rows)], *columns, strict=True)),
        caption="The share of the tokens that come back, in their places, and of the prompts that do so whole"
        + _counted(baseline, several),
        in_summary=True,
    )
    for at, of_site in charted(rows):
        whole = number(baseline.get(str(of_site[0]["site"]), {}).get("tokens_survived"))
        _survival_by_size(page, of_site, "tokens_survived", whole, f"What survives{at}")
        _survival_by_size(page, of_site, AWARE, whole, f"With the {KNOWN}, what survives{at}")
    _token_by_token(result, page, kept)


def _survival_by_size(page: Page, rows: Sequence[Row], figure: str, whole: float | None, what: str) -> None:
    found = points(rows, figure)
    sizes = sorted({float(point["size"]) for point in found})
    if len(sizes) > 1 and len({point[end] for point in found for end in ("figure", "least", "greatest")}) > 1:
        line = [] if whole is None else reference("exact activation", [(sizes[0], whole), (sizes[-1], whole)])
        page.chart(
            by_size(found + line, SIZE, "share of tokens that survive"), caption=f"{what}, by size" + over_seeds(rows)
        )


def _counted(baseline: Mapping[str, Row], several: bool) -> str:
    counts = [
        f"{row['prompts']} prompts, {row['tokens']} tokens" + (f" at {site}" if several else "")
        for site, row in baseline.items()
        if row.get("prompts") is not None and row.get("tokens") is not None
    ]
    return f" ({'; '.join(counts)})" if counts else ""


def _token_by_token(result: Result, page: Page, kept: int) -> None:
    found = result.sequences.get("survivors", [])
    prompts = [each for each in found if each.labels.get("name") == "prompt"]
    several = len({each.labels.get("site") for each in prompts}) > 1
    settings: list[Row] = [row for row in result.tables.get("trained", []) if row.get("seed") in (0, None)]
    for index, prompt in enumerate(prompts[:PROMPTS]):
        of_prompt = [
            each for each in found if all(each.labels.get(key) == prompt.labels.get(key) for key in ("site", "prompt"))
        ]
        own = {str(each.labels["name"]): each for each in of_prompt if "told" not in each.labels}
        known = {str(each.labels["name"]): each for each in of_prompt if "told" in each.labels}
        shown = [("exact activation", own["exact"])] if "exact" in own else []
        for row in settings:
            name = str(row["name"])
            if row["site"] == prompt.labels.get("site"):
                short = name.removesuffix("-seed0")
                shown += [(short, own[name])] if name in own else []
                shown += [(f"{short}, known", known[name])] if name in known else []
        what = f"Prompt {int(prompt.labels.get('prompt') or 0) + 1}" + (
            f" at {prompt.labels.get('site')}" if several else ""
        )
        page.tokens(
            [
                TokenRow("prompt", [Token(text) for text in prompt.tokens]),
                *(_compared(name, each, prompt, kept) for name, each in shown),
            ],
            caption=f"{what}, and what comes back from each code (the first seed's)",
            marks=MARKS | TOLD if known else MARKS,
            align=True,
            collapsed=index >= OPEN,
        )
    if len(prompts) > PROMPTS:
        page.note(f"{PROMPTS} of {len(prompts)} prompts are shown token by token; the figures are of all.")


def _compared(name: str, found: TokenSequence, prompt: TokenSequence, kept: int) -> TokenRow:
    tokens, right, count = [], 0, 0
    told = str(found.labels.get("told", ""))
    for place, (text, index, wanted) in enumerate(zip(found.tokens, found.ids, prompt.ids, strict=False)):
        if place < kept:
            tokens.append(Token(text, title="keeps its own activation"))
            continue
        alone = told[place : place + 1] != "0"
        back = index == wanted and alone
        right, count = right + back, count + 1
        title = f"token {index}, wanted {wanted}" + ("" if alone else "; not told from others")
        tokens.append(Token(text, mark="right" if back else "wrong", title=title))
    return TokenRow(name, tokens, note=f"{right} of {count}")


def _shared(result: Result, site: str, name: str) -> float | None:
    """A figure that is the same for every training of a site."""
    values: list[Any] = [row.get(name) for row in result.tables.get("trained", []) if row["site"] == site]
    return next((number(value) for value in values if value is not None), None)
