"""A walk as it is carried out: `e_{n+1} = e_n + u_n` for every walker at once, measured at some of the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import torch

from probekit import AnalysisError, rows_that_fit
from probekit_plugins.walks.walkers import Walkers, norms

if TYPE_CHECKING:
    from probekit import Context
    from probekit_plugins.batches import Batches
    from probekit_plugins.walks.options import WalkOptions


class Stride(Protocol):
    """How a walk chooses its steps, for a batch of walkers."""

    def __call__(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        """`u_n`, `[B, T, d]`, zero at padding, for the embeddings `e_n`."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What the next steps depend on beside the embeddings and the step's number."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state again."""
        ...


class Memoryless:
    """The part of a stride without a state of its own."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        pass


@dataclass(frozen=True)
class Track:
    """One way to walk: its name, and how a stride is made for some walkers.

    For the estimate of its memory: `graph` computes, for some walkers, what a step keeps for its gradients, and
    `vectors` is how many tensors of the embeddings' size it holds beside that, in single precision.
    """

    name: str
    stride: Callable[[Walkers], Stride]
    graph: Callable[[Walkers], object] = lambda walkers: walkers.loss(walkers.embeddings.clone().requires_grad_())
    vectors: int = 8


@dataclass
class Journey:
    """What is known of B walkers at S recorded steps, `e_0 = e*` the first; `d` is the embeddings' width."""

    steps: torch.Tensor  # [S]
    embeddings: torch.Tensor  # [B, T, d], at the end
    ids: torch.Tensor  # [S, B, T, k], decoded, best first
    input_l1: torch.Tensor  # [S, B], d_i = ‖e_n − e*‖
    input_l2: torch.Tensor
    output_l1: torch.Tensor  # [S, B], d_o = ‖O(e_n) − t‖
    output_l2: torch.Tensor
    noise_l1: torch.Tensor  # [S, B, D], d_o of Gaussian displacements with the same d_i
    noise_l2: torch.Tensor
    orthogonality: torch.Tensor  # [S − 1, B], greatest |g·u| / (‖g‖‖u‖) over positions
    product: torch.Tensor  # [S − 1, B], greatest |g·u| / ‖u‖ over positions

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, torch.Tensor]]) -> Journey:
        """Several batches as one."""
        along = {"steps": None, "embeddings": 0}
        found = {}
        for field in fields(cls):
            dimension = along.get(field.name, 1)
            tensors = [part[field.name] for part in parts]
            found[field.name] = tensors[0] if dimension is None else torch.cat(tensors, dimension)
        return cls(**found)


def journey(walkers: Walkers, track: Track, options: WalkOptions, context: Context, batches: Batches) -> Journey:
    """Walk one track with all walkers, in as few batches as memory allows; a finished batch outlives the process."""

    def part(chosen: slice) -> dict[str, torch.Tensor]:
        key = f"{walkers.site}/{track.name}/rows {chosen.start} to {chosen.stop}"
        return context.stage(key, lambda: vars(_walk(walkers.part(chosen), track, options, context, key)))

    def fitting(count: int) -> int:
        one = walkers.part(slice(0, 1))
        size = one.embeddings.nbytes
        # Embeddings and strides of the recorded steps, which are there three times while a state is saved.
        recorded = 2 * 3 * len(options.recorded_steps)
        beside = size * (track.vectors + recorded + 2 * options.noise_draws)
        tokens = walkers.embeddings.shape[1]
        return rows_that_fit(
            walkers.subject, walkers.site, tokens, count, lambda: track.graph(one), beside, after=2 * size
        )

    where = f"{walkers.site}/{track.name}"
    most = batches.estimated(len(walkers), fitting, where)
    return Journey.joined(batches.parts(len(walkers), part, where, most))


def _walk(walkers: Walkers, track: Track, options: WalkOptions, context: Context, key: str) -> Journey:
    stride = track.stride(walkers)
    embeddings = walkers.embeddings.clone()
    measured = set(options.recorded_steps)
    recorded: list[torch.Tensor] = []
    strides: list[torch.Tensor] = []

    def state() -> dict[str, torch.Tensor]:
        kept = {"embeddings": embeddings, "recorded": torch.stack(recorded), "strides": torch.stack(strides)}
        return {**kept, **{f"stride/{name}": tensor for name, tensor in stride.state().items()}}

    with context.loop(f"{walkers.site} {track.name}", options.steps, key) as loop:
        if loop.start:
            saved = {name: tensor.to(embeddings.device) for name, tensor in loop.state.items()}
            embeddings = saved["embeddings"]
            recorded += saved["recorded"].unbind()
            strides += saved["strides"].unbind()
            stride.restore({name[7:]: tensor for name, tensor in saved.items() if name.startswith("stride/")})
        for step in range(loop.start, options.steps):
            try:
                moved = stride(embeddings, step)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # documented, and not in torch's annotations
                raise _diverged(walkers, track) from None
            if step in measured:
                recorded.append(embeddings)
                strides.append(moved)
            embeddings = embeddings + moved
            loop.end_step(state)
    recorded.append(embeddings)
    if not bool(torch.isfinite(torch.stack(recorded)).all()):
        raise _diverged(walkers, track)
    return _measured(walkers, recorded, strides, options)


def _diverged(walkers: Walkers, track: Track) -> AnalysisError:
    return AnalysisError(f"The walk '{track.name}' at {walkers.site} left the finite numbers; make its steps smaller.")


def _measured(
    walkers: Walkers, recorded: Sequence[torch.Tensor], strides: Sequence[torch.Tensor], options: WalkOptions
) -> Journey:
    """The figures of every recorded step, the same for all walks."""
    start, layer_map = walkers.embeddings, walkers.layer_map
    directions = [walkers.noise(walkers.generators(f"noise {draw}")) for draw in range(options.noise_draws)]
    lengths = {order: [norms(direction, order) for direction in directions] for order in (1, 2)}
    columns: dict[str, list[torch.Tensor]] = {field.name: [] for field in fields(Journey)}
    for embeddings in recorded:
        apart = (embeddings - start) * walkers.mask
        with torch.no_grad():
            moved = walkers.displacement(layer_map(embeddings))
            for order in (1, 2):
                distance = norms(apart, order)
                noisy = []
                for direction, length in zip(directions, lengths[order], strict=True):
                    scaled = direction * (distance / length).to(direction)[:, None, None]
                    noisy.append(norms(walkers.displacement(layer_map(start + scaled)), order))
                columns[f"input_l{order}"].append(distance)
                columns[f"output_l{order}"].append(norms(moved, order))
                columns[f"noise_l{order}"].append(torch.stack(noisy, 1))
        columns["ids"].append(walkers.subject.decode(embeddings, options.top_k, options.decoder))
    for embeddings, moved in zip(recorded, strides, strict=False):
        relative, product = orthogonality(walkers.summed_gradient(embeddings), moved)
        columns["orthogonality"].append(relative)
        columns["product"].append(product)
    stacked = {name: torch.stack(values) for name, values in columns.items() if values}
    return Journey(steps=torch.tensor(options.recorded_steps), embeddings=recorded[-1], **stacked)


def orthogonality(gradient: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each step is from orthogonal to `g = ∇ΣO`: `max_i |g_i·u_i| / (‖g_i‖‖u_i‖)` and `max_i |g_i·u_i| /
    ‖u_i‖` over positions i, `[B, T, d]` → two of `[B]`. A position without a gradient or a step counts as 0.
    """
    g, u = gradient.double(), moved.double()
    product = (g * u).sum(-1).abs()
    per_step = _ratio(product, u.norm(dim=-1))
    return _ratio(per_step, g.norm(dim=-1)).amax(1), per_step.amax(1)


def _ratio(value: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor > 0, value / torch.where(divisor > 0, divisor, 1), 0)
