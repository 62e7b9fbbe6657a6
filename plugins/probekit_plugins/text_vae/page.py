"""The page of text autoencoders: their figures, whether z is used, what its dimensions say, what is written from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.page_figures import number
from probekit_plugins.text_vae.example_page import draw_examples
from probekit_plugins.text_vae.page_figures import LABELS, Row, column, decimals, label, settings, several_seeds
from probekit_plugins.text_vae.training_page import draw_trainings
from probekit_plugins.text_vae.use_page import draw_dimensions, draw_perplexity, draw_use

if TYPE_CHECKING:
    from probekit import Page, Result


def draw(result: Result, page: Page) -> None:
    """Every part that the result has figures for."""
    rows = settings(result)
    _method(result, page)
    if rows:
        _figures(result, page, rows)
        draw_perplexity(result, page)
        draw_use(result, page)
        draw_dimensions(result, page)
    draw_examples(result, page)
    draw_trainings(result, page)


def _method(result: Result, page: Page) -> None:
    page.prose(
        "A text autoencoder says a whole text in one vector z and writes it again. The encoder gives q(z | x), a "
        "normal distribution of z for each text; the decoder is a language model p(x | z) that sees z beside the "
        "tokens before. As a language model it can do without z: then q(z | x) is the same for all texts, and z says "
        "nothing (it collapsed). Free bits λ are nats of each dimension that cost nothing, lest it collapse."
    )
    texts, held, tokens = (number(result.metrics.get(name)) for name in ("texts", "texts_held_out", "tokens_held_out"))
    if texts is not None and held is not None and tokens is not None:
        page.prose(
            f"Each setting was trained on {texts:.0f} texts; figures are of {held:.0f} others, of {tokens:.0f} tokens."
        )


def _figures(result: Result, page: Page, rows: list[Row]) -> None:
    ceiling = next((found for row in rows if (found := number(row.get("mi_ceiling"))) is not None), None)
    latent = next((row["latent"] for row in result.tables.get("trained", []) if row.get("latent")), None)
    columns = {
        "PPL": column(rows, "ppl", decimals(rows, "ppl")),
        "ΔRec": column(rows, "delta_rec", ".2f"),
        "KL": column(rows, "kl", decimals(rows, "kl")),
        "MI" if ceiling is None else f"MI (ln N = {ceiling:.2f})": column(rows, "mi", ".2f"),
        "AU" if latent is None else f"AU of {latent}": column(rows, "active", ".3g"),
        "−ELBO": column(rows, "negative_elbo", decimals(rows, "negative_elbo")),
        "exact": column(rows, "exact", ".2f"),
    }
    shown = {title: values for title, values in columns.items() if any(value is not None for value in values)}
    page.table(
        ["setting", *shown],
        [[label(row["name"]), *(values[index] for values in shown.values())] for index, row in enumerate(rows)],
        caption="Each setting on held-out texts"
        + (": median over seeds (least–greatest)" if several_seeds(rows) else ""),
        in_summary=True,
        remark="KL, MI, −ELBO and ΔRec in nats a text, PPL by token; exact is the share of texts that greedy decoding "
        "of the mean of q(z | x) gives again, token for token."
        + (
            " A language model has no z, and so nothing but a PPL."
            if any(row["name"] in LABELS for row in rows)
            else ""
        ),
    )
    page.prose(
        "How to read it: none of PPL, KL, MI, AU and −ELBO proves that z is used. An autoencoder that has collapsed is "
        "a language model, and has the better PPL and −ELBO; KL, MI and AU say what the encoder puts into z, not "
        "whether the decoder reads it. What proves it is ΔRec = NLL(x | z of another text) − NLL(x | z), nothing where "
        "the decoder does not care whose z it is given, and the end-point gap of interpolations below.\n\n"
        "−ELBO = −E log p(x | z) + KL: reconstruction plus KL, a bound from above on −log p(x); PPL is nearer to it, "
        "by importance-weighted samples of z. Of the KL, MI is what tells one text from another; the rest, KL − MI, is "
        "how far the z of all texts together are from N(0, I), and that costs without saying anything. MI cannot "
        "exceed ln N for N texts: a figure near that says no more than that they are told apart."
    )
