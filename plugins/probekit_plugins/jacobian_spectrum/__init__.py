"""Jacobian spectrum: how strongly, and how unevenly, does a layer pass on small changes of its input?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


def _listed(value: object) -> object:
    return [value] if isinstance(value, int | float) else value


class JacobianSpectrumOptions(probekit.Options):
    """Options of the Jacobian spectrum."""

    sites: probekit.Sites = Field("blocks", description="Sites whose Jacobian is measured, each on its own.")
    method: Literal["auto", "dense", "matrix-free"] = Field(
        "auto", description="All singular values of J itself, or estimates from products with it; auto: by its size."
    )
    dense_entries: int = Field(
        2048, ge=1, description="The largest n = sequence × width for which auto takes the dense method."
    )
    epsilons: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(_listed)] = Field(
        [0.1, 0.01, 0.001], min_length=1, description="ε of the ε-null-space dimension #{σ_i ≤ ε σ_1}."
    )
    iterations: int = Field(
        200, ge=2, description="Matrix-free: products with J and with Jᵀ for each probe; more find smaller values."
    )
    probes: int = Field(8, ge=2, description="Matrix-free: random vectors that the estimates are averaged over.")
    tolerance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Matrix-free: relative error up to which an extreme singular value counts as found.",
    )


class JacobianSpectrum(probekit.Analysis[JacobianSpectrumOptions]):
    """Measures the singular values of a layer's Jacobian: condition number, ε-null-space dimension and gain.

    `J = ∂O_l/∂e` at the prompt, of n = sequence × width columns: `σ_1 / σ_min`, `#{σ_i ≤ ε σ_1}`, `‖J‖_F / √n`.
    """

    name = "jacobian-spectrum"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.jacobian_spectrum.spectrum import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.jacobian_spectrum.figures import figured

        return figured(result, self.options)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.jacobian_spectrum.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[JacobianSpectrumOptions]]]:
    return [JacobianSpectrum]
