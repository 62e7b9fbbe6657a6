"""What the inverter's page shows of the source page's own settings beside these: a table and two charts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from probekit_plugins.thinning import thinned

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# Sites whose accuracy is drawn over steps, at most.
SITES = 4
# So many sites at most have their names written side by side.
UPRIGHT = 8
# Prefix of the metrics → what it is called.
KINDS = {"page/": "the page's settings", "": "these settings", "rescored_": "these, re-scored"}
# Figure → its column.
FIGURES = {
    "token_accuracy_selected": "selected restart",
    "token_accuracy_mean": "mean of all",
    "token_accuracy_min": "worst",
    "token_accuracy_max": "best",
    "exact_rate": "whole prompt",
}


def draw_comparison(result: Result, page: Page, sites: Sequence[str], options: GradientInverterOptions) -> None:
    """Both on the same targets, where the run compared them."""
    if not options.compare_page:
        return
    page.heading("Beside the source page's own settings")
    page.prose(
        'The method is that of the page "Sentence Representation with Language Models". Here the same activations are '
        f"inverted at its own settings too, in as many steps ({options.steps}) and restarts ({options.restarts}): "
        "gradient descent of the L1 distance from normal noise (mean 0.5, σ = 0.05), at a learning rate that falls "
        "linearly from 0.2, decoded by the pseudo-inverse."
    )
    rows = [
        [site, name, *(result.metrics.get(f"{site}/{kind}{figure}") for figure in FIGURES)]
        for site in sites
        for kind, name in KINDS.items()
        if f"{site}/{kind}token_accuracy_mean" in result.metrics
    ]
    page.table(
        ["site", "settings", *FIGURES.values()],
        rows,
        caption="Token accuracy at both settings: the share of the prompt's tokens that came back (1 is all)",
        in_summary=True,
    )
    if len(sites) > 1:
        _by_site(result, page, sites)
    for index in thinned(len(sites), SITES):
        _over_steps(result, page, sites[index])


def _by_site(result: Result, page: Page, sites: Sequence[str]) -> None:
    values = [
        {
            "site": site,
            "settings": name,
            "token accuracy": result.metrics[f"{site}/{kind}token_accuracy_mean"],
            "least": result.metrics[f"{site}/{kind}token_accuracy_min"],
            "most": result.metrics[f"{site}/{kind}token_accuracy_max"],
        }
        for site in sites
        for kind, name in KINDS.items()
        if result.metrics.get(f"{site}/{kind}token_accuracy_mean") is not None
    ]
    shown = [name for name in KINDS.values() if any(value["settings"] == name for value in values)]
    x = {
        "field": "site",
        "type": "nominal",
        "sort": list(sites),
        "axis": {"labelAngle": 0 if len(sites) <= UPRIGHT else -90},
    }
    offset = {"field": "settings", "type": "nominal", "sort": shown}
    y = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "token accuracy"}
    page.chart(
        {
            "data": {"values": values},
            "encoding": {"x": x, "xOffset": offset},
            "layer": [
                {
                    "mark": "bar",
                    "encoding": {
                        "y": {"field": "token accuracy", **y},
                        "color": {"field": "settings", "type": "nominal", "sort": shown, "title": None},
                    },
                },
                {"mark": "rule", "encoding": {"y": {"field": "least", **y}, "y2": {"field": "most"}}},
            ],
        },
        caption="Token accuracy by site: mean over restarts and prompts; a thin line from the worst to the best",
    )


def _over_steps(result: Result, page: Page, site: str) -> None:
    """Token accuracy over steps, as decoded at each: the mean over prompts and restarts, from the least to the most."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for kind in ("page/", ""):
        points: dict[int, list[float]] = {}
        for sequence in result.sequences["prompt"]:
            prefix = f"{sequence.labels['prompt']}/{site}"
            found: Any = result.tensors.get(f"{prefix}/{kind}recorded_accuracy")
            if sequence.labels["site"] != site or found is None:
                continue
            steps = result.tensors[f"{prefix}/recorded_steps"].tolist()
            for step, of_restarts in zip(steps, found.tolist(), strict=True):
                points.setdefault(step, []).extend(of_restarts)
        if points:
            series[KINDS[kind]] = [(step, mean(each), min(each), max(each)) for step, each in points.items()]
    page.band(
        series,
        x="step",
        y="token accuracy",
        caption=f"Token accuracy over steps at {site}: mean over restarts and prompts, from the worst to the best",
    )
