"""Leakage audit: what would leak if a layer's activations did?

The exact inverter under conditions: from each layer, at each precision that activations may be stored in, with noise
added, how many tokens of a prompt come back, and at what cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

import probekit
from probekit_plugins.exact_inverter import Rounding, SearchOptions
from probekit_plugins.listed import listed

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


class LeakageAuditOptions(SearchOptions):
    """Options of the leakage audit. Every combination of site, autoencoder, precision and noise is tried."""

    sites: probekit.Sites = Field("every-block", description="Sites whose activations might leak.")
    precisions: Annotated[list[Rounding], BeforeValidator(listed)] = Field(
        ["none", "int8"], min_length=1, description="What the activations are rounded to where they are stored."
    )
    noise: Annotated[list[Annotated[float, Field(ge=0)]], BeforeValidator(listed)] = Field(
        [0.0, 1.0, 2.0, 4.0],
        min_length=1,
        description="σ of the normal noise that is added before that, relative to the root mean square of each "
        "position's activation.",
    )
    through: Annotated[list[str], BeforeValidator(listed)] = Field(
        [],
        description="Folders of saved autoencoders: what each makes of the activations, before noise and rounding, at "
        "the site that it is of; the activations themselves ('none') are always among the conditions.",
    )


class LeakageAudit(probekit.Analysis[LeakageAuditOptions]):
    """Says how many tokens of a prompt come back from leaked activations, by layer, precision and noise, and from what
    autoencoders make of them.

    Each position's token is the one of the candidates whose activation is the nearest to the leaked one, given the
    tokens found before it; verified are those that no rival is as likely as.
    """

    name = "leakage-audit"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.leakage_audit.audit import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.leakage_audit.page import draw

        draw(result, page)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.leakage_audit.figures import figured

        return figured(result)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[LeakageAuditOptions]]]:
    return [LeakageAudit]
