"""Descents at several sites in one: a step goes through the blocks once, with the rows of every site.

Each row descends by its own loss, as it does where its site stands alone, from the same start. What it comes to differs
by rounding, since the batch is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from probekit import UsageError, out_of_memory
from probekit_plugins.gradient_inverter.fitting import rows_of_a_descent
from probekit_plugins.gradient_inverter.inversion import Descent, Inversion

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# Up to so many tokens at each site, reading the weights takes longer than computing with them. Measured on GPT-2 124 M,
# 12 sites: a shared step is 3 times as fast with 5 tokens, 1.4 times with 40, and no faster from about 128 on.
MOST_TOKENS = 64


def may_share(
    subject: Subject, sites: Sequence[str], prompts: Sequence[Prompt], options: GradientInverterOptions
) -> bool:
    """Whether these sites share a pass: where the options say so, or where it pays.

    Raises UsageError where the options ask for it and it cannot be.
    """
    if options.share_pass == "no":
        return False
    blocks = [f"block.{number}" for number in range(len(subject.anatomy.blocks))]
    reasons = {
        "there are several sites": len(sites) > 1,
        "each site is the output of a block": all(site in blocks for site in sites),
        "there is no head": options.head == "none",
        "there is no autoencoder": options.through is None,
        "there is no dropout": not options.dropout,
        "the blocks are not compiled": not subject.compiles,
        # A line search evaluates all rows until the last is done, so that one site would wait for another.
        "the optimizer is not lbfgs": options.optimizer != "lbfgs",
        "the model is not int8, whose rows influence each other": not getattr(
            subject.model, "is_loaded_in_8bit", False
        ),
    }
    missing = [reason for reason, holds in reasons.items() if not holds]
    if options.share_pass == "yes":
        if missing:
            raise UsageError(f"Sites share a pass only where {missing[0]}; leave out -o share_pass=yes.")
        return True
    tokens = options.restarts * len(prompts) * max(len(prompt.tokens) for prompt in prompts)
    if missing or tokens > MOST_TOKENS or subject.device.type != "cpu":
        return False
    return not any(map(subject.reads_ids, sites)) and subject.layer_map(sites[0]).replays


class Together:
    """Inversions of several sites, with the same prompts and options: their rows stand one site after another."""

    def __init__(self, inversions: Sequence[Inversion]) -> None:
        self._inversions = list(inversions)
        self._sites = [inversion.site for inversion in inversions]
        self.name = ", ".join(self._sites) if len(self._sites) < 4 else f"{self._sites[0]} … {self._sites[-1]}"

    def starts(self, chosen: slice) -> torch.Tensor:
        """The starts of the same rows of each site."""
        return torch.cat([inversion.starts(chosen) for inversion in self._inversions])

    def objective(self, chosen: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        """The loss of each row, at its own site."""
        maps = self._inversions[0].maps_with(self._sites, chosen)
        objectives = [inversion.objective(chosen) for inversion in self._inversions]

        def of(embeddings: torch.Tensor) -> torch.Tensor:
            activations = maps(dict(zip(self._sites, embeddings.chunk(len(self._sites)), strict=True)))
            found = [
                objective.distances(activations[site]).to(embeddings.device)
                for site, objective in zip(self._sites, objectives, strict=True)
            ]
            return torch.cat(found)

        return of

    def descend(
        self, subject: Subject, options: GradientInverterOptions, context: Context, batches: Batches, label: str = ""
    ) -> dict[str, Descent]:
        """The descent of each site; the same rows of all in one batch, in as few batches as memory allows.

        Nothing if not even one row of each fits: then they have to go one after another.
        """
        first = self._inversions[0]
        count, tokens = first.size
        where = f"{label}together/{', '.join(self._sites)}"

        def rows_that_fit(count: int) -> int:
            of_all = tokens * len(self._sites)
            deepest = max(self._sites, key=subject.sites().index)
            return rows_of_a_descent(subject, deepest, of_all, count, options, first.space, self._one_row)

        def part(chosen: slice) -> Descent:
            key = f"{where}/rows {chosen.start} to {chosen.stop}"
            return Descent(**context.stage(key, lambda: vars(first.descend_rows(chosen, key, self))))

        does_not_fit = f"{where}/does not fit"
        if batches.is_known(does_not_fit):
            return {}
        tried = batches.attempt()  # what one row of each site needs says nothing about one site
        try:
            most = tried.estimated(count, rows_that_fit, where)
            parts = [self._by_site(descent) for descent in tried.parts(count, part, where, most)]
        except Exception as error:
            if not out_of_memory(error):
                raise
            context.log(f"One row of each of {self.name} does not fit into memory; going on with a site at a time.")
            parts = []
        if not parts:  # only here: until the exception is gone, its traceback holds the tensors of what failed
            context.stage(does_not_fit, dict)
            return {}
        batches.adopt(tried)
        return {site: Descent.joined([each[site] for each in parts]).on(subject.device) for site in self._sites}

    def _one_row(self) -> list[torch.Tensor]:
        return [inversion.one_row() for inversion in self._inversions]

    def _by_site(self, descent: Descent) -> dict[str, Descent]:
        losses = descent.losses.chunk(len(self._sites), 1)
        recorded = descent.recorded.chunk(len(self._sites), 1)
        parts = zip(self._sites, losses, recorded, strict=True)
        return {site: Descent(loss, descent.recorded_steps, each) for site, loss, each in parts}
