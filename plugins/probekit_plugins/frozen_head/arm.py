"""One arm: a fresh model, trained by AdamW with its head or around it, and measured on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit import AnalysisError
from probekit_plugins.batches import Batches
from probekit_plugins.frozen_head.fresh import fresh
from probekit_plugins.frozen_head.layers import Layers, Snapshot
from probekit_plugins.frozen_head.schedule import PHASES, phases, points
from probekit_plugins.training import backward, restore, state_of

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.frozen_head import FrozenHeadOptions
    from probekit_plugins.frozen_head.corpus import Corpus

State = dict[str, torch.Tensor]


class Arm:
    """A training from the random start of this number. Both arms begin with the same weights and see the same batches.

    `‖W‖`, gradients and changes are those of `Layers`; the loss is the mean cross-entropy of the next token, in nats.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: Corpus,
        arm: str,
        number: int,
        options: FrozenHeadOptions,
        context: Context,
        batches: Batches | None = None,
    ) -> None:
        self._corpus, self._options, self._context = corpus, options, context
        self._batches = batches or Batches(context, options)
        self._where, self._key = f"initialisation {number + 1}, {arm} head", f"{number}/{arm}"
        seed = int(torch.randint(2**62, (1,), generator=context.generator(f"initialisation {number}")))
        self.model = fresh(subject, seed)
        self._layers = Layers(self.model, subject.anatomy)
        self.model.requires_grad_(True)
        head = self.model.get_submodule(str(subject.anatomy.unembedding_path)).requires_grad_(arm == "trained")
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(options.head_scale)
        shape = (options.steps, options.batch)
        self.batches = torch.randint(len(corpus.training), shape, generator=context.generator(f"batches {number}"))
        steps, layers = options.steps, len(subject.anatomy.blocks) + 2
        self._found: State = {
            "losses": torch.zeros(steps, dtype=torch.float64),
            "held_out": torch.zeros(len(points(steps)), dtype=torch.float64),
            "gradients": torch.zeros(steps, layers, dtype=torch.float64),
            "weights": torch.zeros(steps, layers, dtype=torch.float64),
            "changes": torch.zeros(len(PHASES), layers, dtype=torch.float64),
        }
        self._starts: dict[int, Snapshot] = {}

    def train(self) -> State:
        """All steps. `losses` `[steps]`, `held_out` `[points]`, `gradients` and `weights` `[steps, layers]` before each
        step, `changes` `[phases, layers]`.

        Without dropout. Raises AnalysisError if a loss is not finite.
        """
        parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        optimizer = torch.optim.AdamW(parameters.values(), self._options.learning_rate)
        state = state_of(parameters, optimizer, self._state)
        total, found = self._options.steps, self._found
        with self._context.loop(self._where, total, self._key) as loop:
            if loop.start:
                self._restore(loop.state)
                restore(loop.state, parameters, optimizer)
            else:
                found["held_out"][0] = self.held_out_loss(0)
            for step in range(loop.start, total):
                for phase, (first, _) in enumerate(phases(total)):
                    if step == first:
                        self._starts[phase] = self._layers.snapshot()
                for group in optimizer.param_groups:
                    group["lr"] = self._options.learning_rate * min(1.0, (step + 1) / max(1, self._warmup))
                self._step(step, optimizer)
                for phase, (_, end) in enumerate(phases(total)):
                    if step + 1 == end:
                        found["changes"][phase] = self._layers.relative_changes(self._starts.pop(phase))
                if step + 1 in points(total):
                    found["held_out"][points(total).index(step + 1)] = self.held_out_loss(step + 1)
                loop.end_step(state, loss=found["losses"][step])
        return found

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean of `−log p(x_t | x_{<t})` over all tokens of `[rows, T]` but each row's first."""
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def held_out_loss(self, step: int) -> float:
        """The loss on the held-out pieces; all have the same length, so it is the mean over pieces as well."""
        pieces = self._corpus.held_out

        def of(rows: slice) -> float:
            with torch.no_grad():
                total: float = float(self.loss(pieces[rows])) * (rows.stop - rows.start)
                return total

        total: float = sum(self._batches.parts(len(pieces), of, f"{self._key}/held out", self._options.batch))
        return self._finite(total / len(pieces), "held-out loss", step)

    @property
    def _warmup(self) -> int:
        return round(self._options.warmup * self._options.steps)

    def _step(self, step: int, optimizer: torch.optim.AdamW) -> None:
        ids = self._corpus.training[self.batches[step]]

        def of(rows: slice) -> float:
            if rows.start == 0:  # also where it is tried again
                optimizer.zero_grad(set_to_none=True)
            loss = self.loss(ids[rows]) * ((rows.stop - rows.start) / len(ids))
            backward(loss, self.model)
            return float(loss.detach())

        loss = sum(self._batches.parts(len(ids), of, f"{self._key}/training"))
        self._found["losses"][step] = self._finite(loss, "loss", step)
        self._found["gradients"][step] = self._layers.gradient_norms()
        self._found["weights"][step] = self._layers.weight_norms()
        optimizer.step()

    def _finite(self, value: float, what: str, step: int) -> float:
        if value == value and abs(value) != float("inf"):
            return value
        raise AnalysisError(
            f"The {what} of the training ({self._where}) is not finite after {step} steps; lower the learning rate "
            f"(-o learning_rate={self._options.learning_rate / 10:.2g})."
        )

    def _state(self) -> State:
        state = dict(self._found)
        for phase, start in self._starts.items():
            for layer, tensors in enumerate(start):
                state |= {f"start/{phase}/{layer}/{index}": tensor for index, tensor in enumerate(tensors)}
        return state

    def _restore(self, state: State) -> None:
        for name, tensor in self._found.items():
            tensor.copy_(state[name])
        now = self._layers.snapshot()
        for phase in range(len(PHASES)):
            if f"start/{phase}/0/0" in state:
                self._starts[phase] = [
                    [state[f"start/{phase}/{layer}/{index}"].to(tensor.device) for index, tensor in enumerate(tensors)]
                    for layer, tensors in enumerate(now)
                ]
