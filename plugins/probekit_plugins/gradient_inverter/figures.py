"""From what was measured to figures: a row for each restart, rank and shift, metrics and the finding. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from statistics import median as middle
from typing import TYPE_CHECKING, Any

from probekit_plugins.arrays import array
from probekit_plugins.gradient_inverter.ranks import Frequencies, rank_rows
from probekit_plugins.gradient_inverter.settings import learning_rate, start_sigma
from probekit_plugins.gradient_inverter.summary import summarise

if TYPE_CHECKING:
    from probekit import Result, TokenSequence
    from probekit_plugins.gradient_inverter import GradientInverterOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Verdicts = list[bool | None]
# The texts of restarts, by the name of their sequences, prompt and site.
Texts = Mapping[tuple[Scalar, ...], list[Scalar]]

# What is asked for its next token: the model, and the one that is cut after the site and followed by its head.
ASKED = {"": ("embeddings", "tokens", "text"), "truncated_": ("embeddings", "tokens")}


def figured(result: Result, options: GradientInverterOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and its token sequences."""
    found = replace(result, metrics={}, tables={"restarts": [], "shifts": [], "ranks": []})
    prompts = result.sequences["prompt"]
    occurrences = result.tensors.get("occurrences")
    frequencies = None if occurrences is None else Frequencies(array(occurrences))
    sites = list(dict.fromkeys(str(prompt.labels["site"]) for prompt in prompts))
    texts = _texts(result)
    for site in sites:
        here = [Inverted(result, prompt, texts, options) for prompt in prompts if prompt.labels["site"] == site]
        for each in here:
            found.tables["restarts"] += each.restarts()
            found.tables["shifts"] += each.shifts()
            found.tables["ranks"] += each.ranks(frequencies)
            if each.page_is_there:
                found.tables.setdefault("page_restarts", []).extend(each.restarts("page"))
        if frequencies:
            baselines = frequencies.baselines([each.truth for each in here])
            found.metrics |= {f"{site}/{name}": value for name, value in baselines.items()}
        spread = result.tensors["spread"].item()
        found.metrics |= {"learning_rate": learning_rate(spread, options), "start_sigma": start_sigma(spread, options)}
        if options.dropout:
            ratios = [value for each in here if (value := each.noise_ratio()) is not None]
            found.metrics[f"{site}/dropout_noise_ratio"] = middle(ratios) if ratios else None
    summarise(found, sites, options)
    return found


def _texts(result: Result) -> Texts:
    found: dict[tuple[Scalar, ...], list[Scalar]] = {}
    for name, group in result.sequences.items():
        for labels in (sequence.labels for sequence in group):
            if "text" in labels:
                found.setdefault((name, labels["prompt"], labels["site"]), []).append(labels["text"])
    return found


class Inverted:
    """What was measured of one prompt at one site, and the rows that follow from it."""

    def __init__(self, result: Result, prompt: TokenSequence, texts: Texts, options: GradientInverterOptions) -> None:
        self._result, self._texts, self._options = result, texts, options
        self._number, self._site = prompt.labels["prompt"], prompt.labels["site"]
        self._labels: Row = {"prompt": self._number, "site": self._site}
        self.truth = array(prompt.ids)

    def _has(self, name: str) -> bool:
        return f"{self._number}/{self._site}/{name}" in self._result.tensors

    def _tensor(self, name: str) -> Any:
        return array(self._result.tensors[f"{self._number}/{self._site}/{name}"])

    @property
    def page_is_there(self) -> bool:
        """Whether the source page's own settings were compared here, and found something."""
        return self._has("page/losses")

    def restarts(self, settings: str = "") -> list[Row]:
        """The row of each restart; of the descent at the page's own settings, where these are asked for."""
        within = f"{settings}/" if settings else ""
        losses, discrete = self._tensor(f"{within}losses"), self._tensor(f"{within}discrete_losses")
        top_k_ids = self._tensor(f"{within}top_k_ids")
        apart = self._tensor(f"{within}embeddings").astype(float) - array(
            self._result.tensors[f"{self._number}/prompt_embeddings"]
        )
        m = median(self._tensor(f"{within}shifted_losses")[0])
        right = top_k_ids[..., 0] == self.truth
        in_top_k = (top_k_ids == self.truth[:, None]).any(-1)
        recorded_right = (self._tensor(f"{within}recorded_ids") == self.truth).all(-1)
        rescored = None if settings or not self._has("rescored_ids") else self._rescored(m)
        chosen = selected(discrete if rescored is None else self._tensor("rescored_losses"))
        verdicts = {} if settings else self._verdicts(len(right))
        texts = self._texts[f"{settings}_recovered" if settings else "recovered", self._number, self._site]
        return [
            {
                **self._labels,
                "restart": restart,
                "selected": restart == chosen,
                "loss": losses[-1, restart].item(),
                "shifted_loss": m,
                "loss_ratio": ratio(losses[-1, restart].item(), m),
                "token_accuracy": right[restart].mean().item(),
                "top_k_accuracy": in_top_k[restart].mean().item(),
                "exact": bool(right[restart].all()),
                "steps_to_closer": first_step(losses[:, restart] < m, range(len(losses))),
                "steps_to_exact": first_step(recorded_right[:, restart], self._tensor("recorded_steps").tolist()),
                "discrete_loss": discrete[restart].item(),
                "discrete_loss_ratio": ratio(discrete[restart].item(), m),
                **({} if rescored is None else rescored[restart]),
                "distance_l1": abs(apart[restart]).sum().item(),
                "distance_l2": ((apart[restart] ** 2).sum() ** 0.5).item(),
                "one_hot_distance_l1": float(2 * (~right[restart]).sum().item()),
                **{name: of_restarts[restart] for name, of_restarts in verdicts.items()},
                "text": texts[restart],
            }
            for restart in range(len(right))
        ]

    def _rescored(self, m: float) -> list[Row]:
        """What each restart's row says of its re-scored tokens."""
        texts = self._texts["rescored", self._number, self._site]
        found = zip(self._tensor("rescored_ids"), self._tensor("rescored_losses"), texts, strict=True)
        return [
            {
                "rescored_token_accuracy": (ids == self.truth).mean().item(),
                "rescored_exact": bool((ids == self.truth).all()),
                "rescored_discrete_loss": loss.item(),
                "rescored_discrete_loss_ratio": ratio(loss.item(), m),
                "rescored_text": text,
            }
            for ids, loss, text in found
        ]

    def _verdicts(self, restarts: int) -> dict[str, Verdicts]:
        """Whether each restart's outcome keeps the next token, in every form that it has."""
        unknown: Verdicts = [None] * restarts
        return {
            f"{who}next_token_of_{form}": self._kept(who, form) or unknown
            for who, forms in ASKED.items()
            for form in forms
        }

    def _kept(self, who: str, form: str) -> Verdicts:
        """Whether next tokens are the prompt's; None where there is none, nothing where nobody was asked."""
        name = f"{who}next_token_of_{form}"
        if not self._has(name):
            return []
        wanted = self._tensor(f"{who}next_token").item()
        return [None if found < 0 else found == wanted for found in self._tensor(name).flatten().tolist()]

    def shifts(self) -> list[Row]:
        """The row of each σ of the shifted inputs."""
        rows: list[Row] = []
        last = self._tensor("losses")[-1]
        every = self._tensor("shifted_losses")
        kept = {who: self._kept(who, "shifted") for who in ASKED}
        for index, (sigma, losses) in enumerate(zip(dict.fromkeys(self._options.shift_sigma), every, strict=True)):
            here = slice(index * len(losses), (index + 1) * len(losses))
            rows.append(
                {
                    **self._labels,
                    "sigma": sigma,
                    "m_median": median(losses),
                    "m_min": losses.min().item(),
                    "m_max": losses.max().item(),
                    "closer_restarts": (last < median(losses)).mean().item(),
                    **{f"{who}next_token_kept": _share(verdicts[here]) for who, verdicts in kept.items()},
                }
            )
        return rows

    def ranks(self, frequencies: Frequencies | None) -> list[Row]:
        """The row of each restart and rank of candidates."""
        rows = rank_rows(
            self._tensor("top_k_ids"), self.truth, self._tensor("cosine"), self._tensor("percentile"), frequencies
        )
        return [{**self._labels, **row} for row in rows]

    def noise_ratio(self) -> float | None:
        """`‖O(e*) − t‖ / m` by dropout alone, the median over draws; None where m is 0."""
        return ratio(median(self._tensor("dropout_losses")), median(self._tensor("shifted_losses")[0]))


def selected(losses: Any) -> int:
    """The restart whose tokens, re-scored if they were, have the least discrete loss: chosen without the prompt."""
    return int(array(losses).argmin())


def median(losses: Any) -> float:
    """The median of losses; of an even number, the lesser of the two in the middle: a loss that there was."""
    ordered = sorted(losses.flatten().tolist())
    return float(ordered[(len(ordered) - 1) // 2])


def _share(verdicts: Verdicts) -> float | None:
    """The share that holds of those that are known, or None."""
    known = [float(verdict) for verdict in verdicts if verdict is not None]
    return mean(known) if known else None


def first_step(held: Any, steps: Sequence[int]) -> int | None:
    """The first of these steps at which something held, or None."""
    return next((step for step, holds in zip(steps, held.tolist(), strict=True) if holds), None)


def ratio(value: float, reference: float) -> float | None:
    """`value / reference`, or None where the reference is 0."""
    return value / reference if reference else None
