"""Text under codes by penalised sampling: `p_i ∝ exp(x_i / (T · I(i ∈ g)))`, g being what was generated before.

The paper divides the logits of tokens in g by θ, which makes a token with a negative logit likelier. The corrected form
multiplies those by θ, as transformers does. What stands before, code and prompt, is not in g.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from probekit_plugins.penalties import LiteralPenalty
from probekit_plugins.writing import PLAIN, SAMPLING

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.control_codes import ControlCodesOptions, PenaltyForm
    from probekit_plugins.control_codes.prefixes import Prefix

# (form, code, number of the prompt) → `[samples, new tokens]`.
Generated = dict[tuple[str, str, int], torch.Tensor]


def penalty(form: PenaltyForm, theta: float, before: int) -> list[Any]:
    """The logits processors of a form; the first `before` tokens of a row were not generated."""
    if form == "unpenalised":
        return []
    if form == "literal":
        return [LiteralPenalty(theta, before)]
    return [RepetitionPenaltyLogitsProcessor(float(theta), prompt_ignore_length=before)]


def settings(options: ControlCodesOptions, new_tokens: int) -> dict[str, Any]:
    """What sampling is for transformers. The token that would end a text is never generated, so that all texts have the
    same length.
    """
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    if options.temperature == 0:
        return {**PLAIN, **length, "do_sample": False}
    drawn = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return {**PLAIN, **length, **SAMPLING, **drawn}


def generate(
    subject: Subject,
    prefixes: Sequence[Prefix],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    options: ControlCodesOptions,
    context: Context,
    model: str,
    batches: Batches,
) -> Generated:
    """Every prompt continued behind every prefix in every form. Seeds are the same for every `model`."""
    samples = options.samples if options.temperature else 1
    found: Generated = {}
    cases = list(product(range(len(prompts)), prefixes, options.penalty_form))
    with context.progress(f"generation {model}", len(cases)) as progress:
        for number, prefix, form in cases:
            ids = torch.tensor([[*prefix.ids, *prompts[number]]])
            where = f"{form}/{prefix.name}/prompt {number}"
            chosen = settings(options, new_tokens)

            def write(
                rows: slice, ids: torch.Tensor = ids, where: str = where, form: PenaltyForm = form, chosen: Any = chosen
            ) -> torch.Tensor:
                label = f"{where}/rows {rows.start} to {rows.stop}"
                seed = int(torch.randint(2**62, (1,), generator=context.generator(label)))
                processors = penalty(form, options.penalty, ids.shape[1])

                def compute() -> dict[str, torch.Tensor]:
                    row = ids.expand(rows.stop - rows.start, -1)
                    return {"ids": subject.generate(row, seed, processors, **chosen)[:, ids.shape[1] :]}

                return context.stage(f"generated/{model}/{label}", compute)["ids"]

            found[form, prefix.name, number] = batches.joined(samples, write, f"generated/{model}/{where}")
            progress.step()
    return found
