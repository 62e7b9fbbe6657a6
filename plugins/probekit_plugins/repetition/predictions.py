"""What the model predicts along given ids: rep/l, wrep/l, unlikelihood and negative log-likelihood, one forward each.

Welleck et al., 1908.04319, section 3: rep/l is the share of positions whose most likely next token stands among the l
tokens before, wrep/l the share where it moreover is not the true next token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from probekit import Context, UsageError
from probekit_plugins.arrays import array
from probekit_plugins.batches import Batches
from probekit_plugins.head import predicted_tokens

if TYPE_CHECKING:
    from probekit import Subject

# Log-probabilities `[rows, positions, V]` that are held at once: 256 MiB in fp32.
MOST_VALUES = 2**26
# 1 − p of a repeated token is taken to be at least this, as the authors' code does: its logarithm stays finite.
LEAST_REST = 1e-5

Sums = dict[str, torch.Tensor]


def names(windows: Sequence[int]) -> list[str]:
    """The figures that `measure` sums, in order."""
    return [f"{kind}_{window}" for window in windows for kind in ("rep", "wrep", "text_rep")] + ["unlikelihood", "nll"]


def columns_of(windows: Sequence[int]) -> list[str]:
    """The columns of a table that they fill, each beside random tokens'."""
    return [column for name in names(windows) for column in (name, f"{name}_random")]


def measure(
    subject: Subject,
    ids: torch.Tensor,
    start: int,
    windows: Sequence[int],
    batches: Batches | None = None,
    where: str = "predictions",
) -> Sums:
    """Sums over the positions from `start` on of each row, and their `count`: `[rows, T]` → `[rows]` each.

    `text_rep` is rep/l of the text itself: the share of true next tokens that stand among the l before. What comes
    before `start` is context: windows and the previous tokens reach into it. Raises AnalysisError for logits that are
    not finite, UsageError for a token that has none.
    """
    scored = predicted_tokens(subject)
    if len(outside := ids[ids >= scored]):
        raise UsageError(
            f"The token {int(outside[0])} has no logit: this model's head scores the first {scored:,} of the "
            f"{subject.vocabulary:,} tokens that it embeds. Leave it out of the prompts."
        )
    start = max(start, 1)
    length = ids.shape[1]
    rows = max(1, MOST_VALUES // (length * max(subject.vocabulary, length)))

    def of(chosen: slice) -> Sums:
        logits = subject.capture(ids[chosen], ["logits"])["logits"][:, start - 1 : -1]
        subject.check_finite(logits, "The logits")
        return _sums(logits.float(), ids[chosen].to(logits.device), start, windows)

    parts = (batches or Batches(Context())).parts(len(ids), of, where, rows)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _sums(logits: torch.Tensor, ids: torch.Tensor, start: int, windows: Sequence[int]) -> Sums:
    """`logits` `[rows, T − start, V]` predict `ids[:, start:]`."""
    targets, predicted = ids[:, start:], logits.argmax(-1)
    place = torch.arange(ids.shape[1], device=ids.device)
    ago = place[start:, None] - place  # how far before each target every token stands
    found: Sums = {}
    for window in windows:
        near = (ago >= 1) & (ago <= window)
        repeats = ((predicted[..., None] == ids[:, None]) & near).any(-1)
        found[f"rep_{window}"] = repeats.sum(1)
        found[f"wrep_{window}"] = (repeats & (predicted != targets)).sum(1)
        found[f"text_rep_{window}"] = ((targets[..., None] == ids[:, None]) & near).any(-1).sum(1)
    likelihood = logits.log_softmax(-1)
    found["unlikelihood"] = unlikelihood(likelihood, ids, start).sum(1)
    found["nll"] = -likelihood.gather(-1, targets[..., None])[..., 0].sum(1)
    found["count"] = torch.full_like(found["nll"], targets.shape[1])
    return {name: values.double().cpu() for name, values in found.items()}


def unlikelihood(log_probabilities: torch.Tensor, ids: torch.Tensor, start: int) -> torch.Tensor:
    """`−Σ_{c ∈ C_t} log(1 − p(c | x_{<t}))` for each target from `start` on, `C_t` the tokens before t but not x_t.

    Each token counts once, however often it stood before. `[rows, T − start, V]` and `[rows, T]` → `[rows, T − start]`.
    Welleck et al., equation 4; differentiable.
    """
    length = ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril(-1)
    first = ~((ids[:, :, None] == ids[:, None]) & earlier).any(-1)  # no equal token stands before it
    candidates = earlier[start:] & first[:, None] & (ids[:, None] != ids[:, start:, None])
    values = log_probabilities.gather(-1, ids[:, None].expand(-1, length - start, -1))
    rest = (1 - values.exp()).clamp(min=LEAST_REST)
    return -(rest.log() * candidates).sum(-1)


def stacked(parts: Sequence[Sums], windows: Sequence[int]) -> torch.Tensor:
    """All rows of several batches as they are saved, `[rows, figures]`: `names(windows)`, and the count."""
    return torch.cat([torch.stack([part[name] for name in _columns(windows)], 1) for part in parts])


def unstacked(saved: Any, windows: Sequence[int]) -> Mapping[str, Any]:
    """The same by name, as numpy arrays `[rows]`."""
    return dict(zip(_columns(windows), array(saved).T, strict=True))


def _columns(windows: Sequence[int]) -> list[str]:
    return [*dict.fromkeys(names(windows)), "count"]


def means(parts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Figures per predicted token over all rows of several batches; None where nothing was predicted."""
    if not parts:
        return {}
    count = sum(float(part["count"].sum()) for part in parts)
    figures = sorted(parts[0].keys() - {"count"}, key=lambda name: (name.rstrip("0123456789"), len(name), name))
    return {name: sum(float(part[name].sum()) for part in parts) / count if count else None for name in figures}


def of_row(sums: Mapping[str, Any], row: int) -> dict[str, float | None]:
    """The same figures of one row."""
    return means([{name: values[row : row + 1] for name, values in sums.items()}])
