"""Pseudo-inverse decoder: which token does an embedding, or an activation, decode to?

`a = argmax_i [e (WᵀW)⁻¹ Wᵀ]_i`, beside the nearest, cosine and unembedding decoders; how safely every token of the
vocabulary decodes to itself; and the decoders as a lens over the blocks. Source: Sentence Representation with
Language Models, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probekit
from probekit import Result, Token, TokenRow, TokenSequence

if TYPE_CHECKING:
    import torch

    from probekit import Page, Prompt, Subject

DecoderName = Literal["pseudo-inverse", "nearest", "cosine", "unembedding"]
BINS = 40
WEAKEST = 20


class PseudoInverseOptions(probekit.Options):
    """Options of the pseudo-inverse decoder."""

    decoders: list[DecoderName] = Field(
        ["pseudo-inverse", "nearest", "cosine", "unembedding"], min_length=1, description="Decoders to compare."
    )
    sites: probekit.Sites = Field(
        "embedding,blocks", description="Sites that the lens decodes; others than d wide are left out."
    )
    top_k: int = Field(5, ge=1, description="Candidates to keep for each position.")
    margins: bool = Field(True, description="Measure the margin of every token of the vocabulary (V² scores).")


class PseudoInverse(probekit.Analysis[PseudoInverseOptions]):
    """Decodes embeddings and activations to tokens, and measures how safely each token decodes to itself.

    The margin of token i is `h_ii − max_{j≠i} h_ij`, where `h_ij` is a decoder's score of token j for the embedding
    of token i; `h = W(WᵀW)⁻¹Wᵀ` for the pseudo-inverse. Token i round-trips if its margin is positive.
    """

    name = "pseudo-inverse"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        result = Result()
        if self.options.top_k > subject.vocabulary:
            raise probekit.UsageError(
                f"top_k is {self.options.top_k}, but the vocabulary has {subject.vocabulary} tokens."
            )
        decoders = self._usable_decoders(subject, result)
        if self.options.margins:
            self._measure_margins(subject, decoders, result)
        self._look(subject, prompts, decoders, result)
        result.finding = self._finding(result, decoders)
        return result

    def _usable_decoders(self, subject: Subject, result: Result) -> list[str]:
        chosen: list[str] = list(dict.fromkeys(self.options.decoders))
        if "unembedding" in chosen and subject.head_width != subject.width:
            chosen.remove("unembedding")
            result.notes.append("The unembedding decoder is left out: the head does not read the embedding's width.")
        if not chosen:
            raise probekit.AnalysisError("No decoder is left: this model's head does not read the embedding's width.")
        rank = (
            getattr(subject.decoder("pseudo-inverse"), "rank", subject.width)
            if "pseudo-inverse" in chosen
            else subject.width
        )
        if "pseudo-inverse" in chosen:
            result.metrics["embedding_rank"] = rank
        if rank < subject.width:
            result.notes.append(
                f"The embedding matrix has rank {rank} of {subject.width}: its Gram matrix is singular, and the "
                "pseudo-inverse was taken from an eigendecomposition over the directions that are there."
            )
        return chosen

    def _measure_margins(self, subject: Subject, decoders: Sequence[str], result: Result) -> None:
        import torch

        winners: dict[str, torch.Tensor] = {}
        for name in decoders:
            with self.context.progress(f"margins, {name}", subject.vocabulary) as progress:
                done = 0

                def advance(rows: int) -> None:
                    nonlocal done
                    progress.step(rows - done)
                    done = rows

                margins, rivals = subject.margins(name, advance)
            subject.check_finite(margins, f"The margin of the {name} decoder")
            own = torch.arange(len(margins), device=margins.device)
            winners[name] = torch.where(margins > 0, own, rivals).cpu()
            result.tensors |= {f"margins/{name}": margins, f"rivals/{name}": rivals}
            result.metrics |= {
                f"{name}/round_trip_rate": float((margins > 0).float().mean()),
                f"{name}/ties": int((margins == 0).sum()),
                f"{name}/margin_median": float(margins.median()),
                f"{name}/margin_min": float(margins.min()),
            }
            weakest = margins.topk(min(WEAKEST, len(margins)), largest=False).indices.tolist()
            for index, text, rival_text in zip(
                weakest, subject.tokens(weakest), subject.tokens([int(rivals[index]) for index in weakest]), strict=True
            ):
                result.tables.setdefault("weakest", []).append(
                    {
                        "decoder": name,
                        "token": text,
                        "id": index,
                        "margin": float(margins[index]),
                        "strongest rival": rival_text,
                        "rival id": int(rivals[index]),
                    }
                )
        for first, second in combinations(decoders, 2):
            apart = (winners[first] != winners[second]).nonzero().flatten().tolist()
            result.tables.setdefault("disagreement", []).append(
                {
                    "decoders": f"{first} / {second}",
                    "tokens apart": len(apart),
                    "share": len(apart) / subject.vocabulary,
                    "examples": " ".join(repr(text) for text in subject.tokens(apart[:6])),
                }
            )

    def _look(self, subject: Subject, prompts: Sequence[Prompt], decoders: Sequence[str], result: Result) -> None:
        """The lens: what each decoder makes of each site, beside the token that stands there and the one that
        follows.
        """
        sites = subject.expand_sites(self.options.sites)
        kept: list[str] = []
        for number, prompt in enumerate(prompts):
            ids = prompt.input_ids[0].cpu()
            result.sequences.setdefault("prompt", []).append(
                TokenSequence(ids.tolist(), prompt.tokens, {"prompt": number})
            )
            activations = subject.capture(prompt.input_ids, sites)
            kept = [
                site for site in sites if activations[site].dim() == 3 and activations[site].shape[-1] == subject.width
            ]
            for site in kept:
                subject.check_finite(activations[site], f"The activation at {site}")
                for name in decoders:
                    found = subject.decode(activations[site], top_k=self.options.top_k, decoder=name)[0].cpu()
                    for rank in range(found.shape[-1]):
                        row = found[:, rank].tolist()
                        result.sequences.setdefault("lens", []).append(
                            TokenSequence(
                                row,
                                subject.tokens(row),
                                {"prompt": number, "site": site, "decoder": name, "rank": rank},
                            )
                        )
                    result.tables.setdefault("lens", []).append(
                        {
                            "prompt": number,
                            "site": site,
                            "decoder": name,
                            "own token": float((found[:, 0] == ids).float().mean()),
                            "own token in top k": float((found == ids[:, None]).any(-1).float().mean()),
                            "next token": float((found[:-1, 0] == ids[1:]).float().mean()) if len(ids) > 1 else None,
                        }
                    )
        left_out = [site for site in sites if site not in kept]
        if left_out:
            result.notes.append(
                f"Left out of the lens, because they are not {subject.width} wide as the embedding is: "
                f"{', '.join(left_out)}."
            )

    def _finding(self, result: Result, decoders: Sequence[str]) -> str:
        lens = result.tables.get("lens", [])
        parts = []
        if self.options.margins:
            rates = ", ".join(f"{name} {result.metrics[f'{name}/round_trip_rate']:.2%}" for name in decoders)
            parts.append(f"Tokens of the vocabulary that decode to themselves: {rates}.")
        if lens:
            last = str(lens[-1]["site"])
            rows = [row for row in lens if row["site"] == last]
            shares = ", ".join(
                f"{name} {mean(float(row['own token'] or 0) for row in rows if row['decoder'] == name):.0%}"
                for name in decoders
            )
            parts.append(f"At {last} the prompt's own tokens are still the first choice for: {shares}.")
        return " ".join(parts)

    def report(self, result: Result, page: Page) -> None:
        decoders = list(
            dict.fromkeys(str(row["decoder"]) for row in result.tables.get("lens", result.tables.get("weakest", [])))
        )
        if "weakest" in result.tables:
            self._report_margins(result, page, decoders)
        for sequence in result.sequences["prompt"]:
            self._report_lens(result, page, sequence, decoders)

    def _report_margins(self, result: Result, page: Page, decoders: Sequence[str]) -> None:
        page.heading("The whole vocabulary")
        page.prose(
            "Each token's own embedding is decoded. The margin is its score less that of the strongest other token: "
            "positive if the token decodes to itself. Scores of different decoders have different units, so margins "
            "compare within one decoder."
        )
        page.table(
            ["decoder", "decode to themselves", "ties", "median margin", "least margin"],
            [
                [
                    name,
                    *(
                        result.metrics[f"{name}/{figure}"]
                        for figure in ("round_trip_rate", "ties", "margin_median", "margin_min")
                    ),
                ]
                for name in decoders
            ],
            caption="Round trips through the vocabulary",
        )
        for name in decoders:
            page.chart(
                _histogram(result.tensors[f"margins/{name}"]),
                caption=f"Margins of the {name} decoder over the vocabulary",
            )
        columns = list(result.tables["weakest"][0])
        page.table(
            columns,
            [[row[column] for column in columns] for row in result.tables["weakest"]],
            caption=f"The {WEAKEST} least margins of each decoder",
            collapsed=True,
        )
        if "disagreement" in result.tables:
            columns = list(result.tables["disagreement"][0])
            page.table(
                columns,
                [[row[column] for column in columns] for row in result.tables["disagreement"]],
                caption="Where decoders disagree on a token's own embedding",
            )

    def _report_lens(self, result: Result, page: Page, prompt: TokenSequence, decoders: Sequence[str]) -> None:
        number = prompt.labels["prompt"]
        rows = [row for row in result.tables.get("lens", []) if row["prompt"] == number]
        if not rows:
            return
        sites = list(dict.fromkeys(str(row["site"]) for row in rows))
        page.heading(f"The lens over prompt {int(number or 0) + 1}")
        for figure, meaning in (("own token", "token that stands there"), ("next token", "next token")):
            if any(row[figure] is not None for row in rows):
                by_place = {(row["site"], row["decoder"]): row[figure] for row in rows}
                page.heatmap(
                    [[_number(by_place[site, name]) for name in decoders] for site in sites],
                    x_labels=list(decoders),
                    y_labels=sites,
                    x="decoder",
                    y="site",
                    value="share of positions",
                    caption=f"Where the first choice is the {meaning}",
                    domain=(0.0, 1.0),
                )
        for name in decoders:
            found = [
                sequence
                for sequence in result.sequences["lens"]
                if sequence.labels["prompt"] == number and sequence.labels["decoder"] == name
            ]
            page.tokens(
                [
                    TokenRow("prompt", [Token(text) for text in prompt.tokens]),
                    *(TokenRow(site, _lens_row(found, site, prompt)) for site in sites),
                ],
                caption=f"First choice of the {name} decoder by site",
                legend="marked where it is the token that stands there; the other candidates are in the hover text",
            )


def _lens_row(found: Sequence[TokenSequence], site: str, prompt: TokenSequence) -> list[Token]:
    ranked = sorted((s for s in found if s.labels["site"] == site), key=lambda s: int(s.labels["rank"] or 0))
    return [
        Token(
            ranked[0].tokens[position],
            mark="right" if ranked[0].ids[position] == prompt.ids[position] else None,
            title="  ".join(f"{rank + 1}. {sequence.tokens[position]!r}" for rank, sequence in enumerate(ranked)),
        )
        for position in range(len(prompt.ids))
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _histogram(margins: object) -> dict[str, object]:
    import numpy

    counts, edges = numpy.histogram(numpy.asarray(margins), bins=BINS)
    values = [
        {"from": float(low), "to": float(high), "tokens": int(count)}
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "bar", "tooltip": True},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": "margin", "bin": {"binned": True}},
            "x2": {"field": "to"},
            "y": {"field": "tokens", "type": "quantitative", "title": "tokens"},
        },
        "height": 140,
    }


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[PseudoInverseOptions]]]:
    return [PseudoInverse]
