"""Analyses that only consume activations: all of a run share one pass over the prompts, live or from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit.analysis.base import Analysis, OptionsT
from probekit.analysis.options import site_expressions
from probekit.analysis.prompt import Prompt
from probekit.analysis.result import Result
from probekit.errors import AnalysisError

if TYPE_CHECKING:
    from probekit.activations import ActivationBatch
    from probekit.subject import Subject


class ActivationAnalysis(Analysis[OptionsT]):
    """An analysis of activations alone: `update` gets them batch by batch, `finish` makes the result of them.

    It keeps what it needs of them, sums rather than activations, so that there may be any number of prompts. It does
    not see the other analyses of the run, which get the same batches of the same forward passes, and runs on a
    recording (`--activations`) as on a live model. What takes the model as well can be done in `finish`, where
    `self.context.subject` is it, or None on a recording. Keep torch out of the module's top level: import it where it
    is used.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "run" in vars(cls):
            raise TypeError(f"{cls.__name__} implements run(), which nobody calls; implement update() and finish()")

    def sites(self) -> str | Sequence[str]:
        """The sites that are captured for it: those of its options of the type `Sites`, or every block."""
        return ",".join(site_expressions(self.options)) or "blocks"

    def update(self, batch: ActivationBatch) -> None:
        """Take in the activations of some prompts, its own copy of them. Called once for each batch."""
        raise NotImplementedError(f"{type(self).__name__} does not implement update()")

    def finish(self) -> Result:
        """The result, after the last batch."""
        raise NotImplementedError(f"{type(self).__name__} does not implement finish()")

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        """A pass over the prompts for a fresh analysis of these options alone."""
        from probekit.activations import LiveActivations

        source = LiveActivations(subject, lambda: [prompt.input_ids[0].tolist() for prompt in prompts], len(prompts))
        # What is called twice does not count twice.
        fresh = type(self)(self.options, self.context.with_subject(subject))
        sites = source.expand_sites(site_expression(fresh))
        with self.context.progress("prompts", len(prompts)) as progress:
            for batch in source.batches(sites):
                fresh.update(batch.only(sites))
                progress.step(len(batch.prompts))
        return fresh.finish()


def site_expression(analysis: ActivationAnalysis[Any]) -> str:
    """What the analysis's `sites()` says, as one expression. Raises AnalysisError if it says none."""
    sites: object = analysis.sites()
    parts = [sites] if isinstance(sites, str) else sites
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise AnalysisError(f"Its sites() returned {sites!r}; expected a site expression such as 'block.3', or a list.")
    return ",".join(parts)
