"""Tables and figures of all trainings: by step, by layer and phase, and the two arms of each initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit_plugins.arrays import array
from probekit_plugins.frozen_head.schedule import ARMS, PHASES, names, phases, points

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.frozen_head import FrozenHeadOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
# By initialisation and arm, the tensors that `Arm.train` gives, as numpy arrays.
Trainings = Mapping[tuple[int, str], Mapping[str, Any]]
PIECES = ("training_pieces", "held_out_pieces")

# Of the trained arm, by phase: the last block's figure over the first's.
RATIOS = tuple(f"{phase}_{what}_last_over_first" for what in ("change", "gradient") for phase in PHASES)


def figured(measured: Result, options: FrozenHeadOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy."""
    tensors = {name: array(tensor) for name, tensor in measured.tensors.items()}
    found: Trainings = {
        (number, arm): {
            name: tensors[f"{number}/{arm}/{name}"]
            for name in ("losses", "held_out", "gradients", "weights", "changes")
        }
        for number in range(options.initialisations)
        for arm in ARMS
    }
    pairs = pair_rows(found)
    figures = {**metrics(pairs), **{name: int(tensors[name].item()) for name in PIECES}}
    return replace(
        measured,
        tables={"pairs": pairs, "training": training_rows(found), "layers": layer_rows(found)},
        metrics=figures,
        finding=finding(pairs, figures, options.steps),
    )


def training_rows(found: Trainings) -> list[Row]:
    """By point of the training: the held-out loss, and the mean loss of the steps since the point before.

    At step 0 that is the loss of the first batch, before anything was trained.
    """
    rows: list[Row] = []
    for (number, arm), state in found.items():
        losses, before = state["losses"], 0
        for step, held_out in zip(points(len(losses)), state["held_out"].tolist(), strict=True):
            loss = float(losses[before:step].mean()) if step else float(losses[0])
            rows.append(
                {"initialisation": number, "arm": arm, "step": step, "loss": loss, "held_out_loss": float(held_out)}
            )
            before = step
    return rows


def layer_rows(found: Trainings) -> list[Row]:
    """By layer and phase: mean `‖∇‖` and `‖∇‖ / ‖W‖` over the phase's steps, and `‖W_end − W_start‖ / ‖W_start‖`.

    A frozen head has no gradient, and changes by 0.
    """
    rows: list[Row] = []
    for (number, arm), state in found.items():
        gradients, weights = state["gradients"], state["weights"]
        layers = names(gradients.shape[1] - 2)
        for phase, (first, end) in enumerate(phases(len(gradients))):
            norms, sizes = gradients[first:end], weights[first:end]
            for layer, name in enumerate(layers):
                has_gradient = not (arm == "frozen" and name == "head")
                # A layer that begins at 0, if a class has one, has no relative figures.
                relative = has_gradient and bool((sizes[:, layer] > 0).all())
                change = state["changes"][phase, layer]
                rows.append(
                    {
                        "initialisation": number,
                        "arm": arm,
                        "layer": layer,
                        "name": name,
                        "phase": PHASES[phase],
                        "gradient_norm": float(norms[:, layer].mean()) if has_gradient else None,
                        "relative_gradient": float((norms / sizes)[:, layer].mean()) if relative else None,
                        "relative_change": float(change) if sizes[0, layer] > 0 else None,
                    }
                )
    return rows


def pair_rows(found: Trainings) -> list[Row]:
    """The two arms of each initialisation: their held-out losses after all steps, and the ratios of the trained one."""
    rows: list[Row] = []
    layers = layer_rows(found)
    for number in dict.fromkeys(number for number, _ in found):
        trained, frozen = (float(found[number, arm]["held_out"][-1]) for arm in ARMS)
        own = [row for row in layers if row["initialisation"] == number and row["arm"] == "trained"]
        rows.append(
            {
                "initialisation": number,
                "held_out_loss_before": float(found[number, "trained"]["held_out"][0]),
                "held_out_loss_trained": trained,
                "held_out_loss_frozen": frozen,
                "difference": frozen - trained,
                **{
                    f"{phase}_{what}_last_over_first": _last_over_first(own, phase, column)
                    for what, column in (("change", "relative_change"), ("gradient", "gradient_norm"))
                    for phase in PHASES
                },
            }
        )
    return rows


def metrics(pairs: Sequence[Row]) -> dict[str, Scalar]:
    """Medians over initialisations, and in how many of them the frozen head ends with the lower held-out loss."""
    return {
        "held_out_loss_before_median": _median(pairs, "held_out_loss_before"),
        "held_out_loss_trained_median": _median(pairs, "held_out_loss_trained"),
        "held_out_loss_frozen_median": _median(pairs, "held_out_loss_frozen"),
        "loss_difference_median": _median(pairs, "difference"),
        "frozen_lower": sum(float(row["difference"] or 0) < 0 for row in pairs),
        "initialisations": len(pairs),
        **{ratio: _median(pairs, ratio) for ratio in RATIOS},
    }


def finding(pairs: Sequence[Row], figures: Mapping[str, Scalar], steps: int) -> str:
    """The two claims, with their figures."""
    differences = [float(row["difference"] or 0) for row in pairs]
    spread = f" ({min(differences):+.3f} to {max(differences):+.3f})" if len(pairs) > 1 else ""
    medians = f"medians of {len(pairs)} initialisations" if len(pairs) > 1 else "one initialisation"
    text = (
        f"After {steps} steps the held-out loss is {figures['held_out_loss_frozen_median']:.3f} with a frozen head and "
        f"{figures['held_out_loss_trained_median']:.3f} with a trained one ({medians}); frozen minus trained is "
        f"{figures['loss_difference_median']:+.3f}{spread}, and the frozen head is ahead in {figures['frozen_lower']} "
        f"of {len(pairs)}."
    )
    shown = {ratio: f"{figures[ratio]:.2f}" for ratio in RATIOS if figures[ratio] is not None}
    if len(shown) == len(RATIOS):
        text += (
            " With a trained head, the last block changes relative to its weights "
            f"{shown['late_change_last_over_first']} times as much as the first in the last quarter of the steps "
            f"({shown['early_change_last_over_first']} in the first quarter), and its gradient is "
            f"{shown['late_gradient_last_over_first']} times as large ({shown['early_gradient_last_over_first']})."
        )
    return text


def _last_over_first(rows: Sequence[Row], phase: str, column: str) -> float | None:
    """The last block's figure over the first's; None with one block, or where the first block's is 0."""
    blocks = [row[column] for row in rows if row["phase"] == phase and str(row["name"]).startswith("block.")]
    first, last = blocks[0], blocks[-1]
    return float(last) / float(first) if len(blocks) > 1 and first and last is not None else None


def _median(rows: Sequence[Row], column: str) -> float | None:
    values = [float(value) for row in rows if (value := row[column]) is not None]
    return median(values) if values else None
