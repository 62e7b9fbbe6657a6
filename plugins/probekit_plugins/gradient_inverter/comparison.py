"""The same targets at the source page's own settings: what these settings gain, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from probekit import AnalysisError
from probekit_plugins.gradient_inverter.inversion import Descent, Inversion
from probekit_plugins.gradient_inverter.objective import Map
from probekit_plugins.gradient_inverter.scoring import Scalar, add_sequences
from probekit_plugins.gradient_inverter.settings import PAGE
from probekit_plugins.gradient_inverter.together import Together, may_share

if TYPE_CHECKING:
    import torch

    from probekit import Context, Prompt, Result, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.gradient_inverter import GradientInverterOptions


class Comparison:
    """Inverts every site again with the options that a run with `settings = "page"` has: the same steps, restarts,
    prompts and random numbers, so that the figures are those of such a run, bit for bit.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        sites: Sequence[str],
        allowed: torch.Tensor | None,
        options: GradientInverterOptions,
        context: Context,
        batches: Batches,
        through: Map | None = None,
    ) -> None:
        self._through = through
        self._subject, self._prompts, self._allowed, self._sites = subject, prompts, allowed, sites
        self._descents: dict[str, Descent] | None = None
        self._options = options.model_copy(update={**PAGE, "settings": "page"})
        self._context, self._batches = context, batches

    def _inverted(self, site: str) -> Inversion:
        return Inversion(
            self._subject,
            self._prompts,
            site,
            self._allowed,
            self._options,
            self._context,
            self._batches,
            label="page/",
            through=self._through,
        )

    def _shared(self) -> dict[str, Descent]:
        """The descents of the sites that share a pass, as those of a run with these settings do."""
        if self._descents is None:
            self._descents = {}
            if may_share(self._subject, self._sites, self._prompts, self._options):
                together = Together([self._inverted(site) for site in self._sites])
                with suppress(AnalysisError):  # of one site, which is not known yet: each by itself, to say which
                    self._descents = together.descend(
                        self._subject, self._options, self._context, self._batches, "page/"
                    )
        return self._descents

    def add(self, result: Result, site: str) -> None:
        """Tensors `PROMPT/SITE/page/…` and token sequences; a note where the descent fails."""
        try:
            inversion = self._inverted(site)
            found = inversion.figures(self._shared().pop(site, None))
        except AnalysisError as error:
            result.notes.append(f"The page's own settings found nothing at {site}. {error}")
            return
        for number, (figures, prompt) in enumerate(zip(found, self._prompts, strict=True)):
            truth = prompt.input_ids[0].to(figures.top_k_ids.device)
            kept = figures.measured(truth)
            result.tensors |= {f"{number}/{site}/page/{name}": tensor for name, tensor in kept.items()}
            best = figures.top_k_ids[..., :1]
            labels: dict[str, Scalar] = {"prompt": number, "site": site}
            add_sequences(result, "page_recovered", self._subject, best, labels, with_ranks=False)
