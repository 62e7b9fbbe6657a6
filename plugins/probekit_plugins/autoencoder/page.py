"""The page of the autoencoders: what was compressed, what is kept, what it is worth to the model and to an attacker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.contrastive_page import draw_contrastive
from probekit_plugins.autoencoder.feature_page import draw_sparse
from probekit_plugins.autoencoder.kept_page import draw_kept
from probekit_plugins.autoencoder.latent_page import draw_labels, draw_variational
from probekit_plugins.autoencoder.model_page import draw_model, draw_survival
from probekit_plugins.autoencoder.page_figures import number, sites_of
from probekit_plugins.autoencoder.training_page import draw_trainings

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.autoencoder import AutoencoderOptions

# What each variant is asked for, in words and as a loss; `views` of the contrastive one are explained with its figures.
ASKED = {
    "plain": ("few numbers, and nothing else but that x̂ is near x", "‖x − x̂‖²"),
    "variational": (
        "few numbers that stand some noise, and together look like N(0, I)",
        "‖x − x̂‖² / 2σ² + β KL(N(μ, v) ‖ N(0, I))",
    ),
    "contrastive": ("few numbers that tell each example from all others; no x̂", "InfoNCE at temperature τ"),
    "l1": ("many features, each of which costs as much as it is active", "‖x − x̂‖² + λ Σ f_i ‖W_i‖"),
    "topk": ("many features, of which the k strongest of each token are active", "‖x − x̂‖²"),
    "batchtopk": ("many features, k of which are active on average over a batch", "‖x − x̂‖²"),
    "jumprelu": ("many features, each of which costs the same whenever it is active", "‖x − x̂‖² + λ ‖f‖₀"),
}


def draw(result: Result, page: Page, options: AutoencoderOptions) -> None:
    """Every part that the result has figures for, from the question to the files."""
    _method(result, page, options)
    draw_kept(result, page)
    draw_model(result, page)
    draw_survival(result, page, options)
    draw_variational(result, page)
    draw_labels(result, page, options)
    draw_contrastive(result, page, options)
    draw_sparse(result, page)
    draw_trainings(result, page, options)


def _method(result: Result, page: Page, options: AutoencoderOptions) -> None:
    rows = result.tables.get("settings", [])
    sites = sites_of(rows)
    blocks = " (block.N is the output of decoder block N, counted from 0)"
    widths = [number(row["width"]) or 0 for row in result.tables.get("pca", []) if sites and row["site"] == sites[0]]
    page.prose(
        "How little can a layer be told in? An autoencoder is two small networks. The encoder turns an activation x, "
        "the numbers that the model has at a site for one token, into a code; the decoder makes an activation x̂ of the "
        "code again. A code is made to hold less than x: few numbers, or many of which few are not zero. What does not "
        "come back is not in the code; what does come back, the layer can be told in so little."
    )
    about = [_data(result, site) for site in sites]
    apart = "; " if any("," in site for site in sites) else ", "
    page.prose(
        f"Compressed were the activations at {apart.join(sites)}"
        + (blocks if any(site.startswith("block.") for site in sites) else "")
        + (f", of {max(widths):.0f} numbers each" if len(sites) == 1 and widths else "")
        + ". "
        + (about[0] if len(set(about)) == 1 else "")
        + _training(options)
        if sites
        else "Nothing was trained."
    )
    if len(set(about)) > 1:
        counts = ("documents", "documents_held_out", "examples", "examples_held_out")
        page.table(
            ["site", "documents", "of these held out", "examples to train on", "held out"],
            [[site, *(result.metrics.get(f"{site}/{name}") for name in counts)] for site in sites],
            caption="What was trained on, and what figures are measured on",
        )
    trained = [variant for variant in ASKED if any(row["variant"] == variant for row in rows)]
    if trained:
        page.table(
            ["variant", "what its code is", "what is minimised"],
            [[variant, *ASKED[variant]] for variant in trained],
            caption="What was trained: all of these at each of their sizes"
            + (" (saved ones, trained elsewhere, are measured beside them)" if _has_saved(result) else ""),
        )


def _data(result: Result, site: str) -> str:
    """What was trained on, and what figures are measured on."""
    documents, held_out, examples, held = (
        number(result.metrics.get(f"{site}/{name}"))
        for name in ("documents", "documents_held_out", "examples", "examples_held_out")
    )
    if documents is None or held_out is None or examples is None or held is None:
        return ""
    return (
        f"There were {documents:.0f} documents: {examples:.0f} examples of {documents - held_out:.0f} of them to train "
        f"on, and {held:.0f} of the other {held_out:.0f}, which no training saw, to measure by. "
    )


def _training(options: AutoencoderOptions) -> str:
    seeds = (
        "once"
        if options.seeds == 1
        else f"{options.seeds} times, from other random weights and in another order (seeds)"
    )
    steps = f"{options.steps} steps" + (f", {options.seconds:g} seconds at most" if options.seconds else "")
    return (
        f"Each setting was trained {seeds}, in {steps}, on {options.batch} examples a step, with AdamW at a learning "
        f"rate of {options.learning_rate:g}. "
        + (
            "Figures are medians over the seeds, with the least and the greatest in brackets where these differ. "
            if options.seeds > 1
            else ""
        )
        + f"Dense encoders and decoders {'have two layers' if options.layers == 2 else 'are linear'}."
    )


def _has_saved(result: Result) -> bool:
    return any(row["variant"] == "saved" for row in result.tables.get("trained", []))
