"""The layer map `O_l`: the function from input embeddings to the activation at one site.

Differentiable, stopped at the site, batched. The embeddings replace what the embedding module returns, which works
where `inputs_embeds` is missing, scaled, or joined by something else; the model adds its own positions after it.

What a model does before its first block (masks, positions) takes about a tenth of the time of one block, and depends
on the shape alone. So from the third step of a descent on, the blocks are called without it (`Route`): only where that
is known to give the same bits, and only while nothing that is left out has hooks or has changed. With dropout on, every
call is a forward pass of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError, UsageError
from probekit.forward.capture import Reached
from probekit.forward.replay import Route, hooks_of, traced
from probekit.forward.rest import dropping_out, forward, resting, stand_in_ids
from probekit.forward.sites import Site, read
from probekit.models.anatomy import Anatomy

# A layer map replays its calls for this many shapes at most.
SHAPES = 8


class LayerMap:
    """`O_l(e)`: call it with embeddings `[batch, sequence, d]`, get the activation at the site.

    `input_ids` and `attention_mask`, `[batch or 1, sequence]`, are what the model sees beside the embeddings. Gradients
    flow to the embeddings and to nothing else; nothing past the site is computed; no hook outlives a call.

    With `dropout` a call computes as in training: it draws masks of its own from torch's default generator, and its
    gradients go through those.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        site: Site,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        settled: bool = False,
        dropout: bool = False,
    ) -> None:
        self.site = site.name
        self._model = model
        self._embedding = anatomy.embedding
        self._module = site.module
        self._input_ids = input_ids
        self._attention_mask = attention_mask
        self._settled = settled
        self._dropout = dropout
        self._device = next(anatomy.embedding.parameters()).device
        # The blocks that a call may be replayed by; none where every call has to draw masks or ends inside a block.
        replays = not dropout and any(block is site.module for block in anatomy.blocks)
        self._blocks = anatomy.blocks if replays else []
        # By shape, dtype and device of the embeddings; None where replaying is not the same.
        self._called: set[Any] = set()
        self._routes: dict[Any, Route | None] = {}

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The activation at the site. Raises UsageError for embeddings of another shape than the model's."""
        if embeddings.dim() != 3:
            raise UsageError(f"Embeddings have the shape {tuple(embeddings.shape)}; expected [batch, sequence, width].")
        dropping = dropping_out(self._model) if self._dropout else nullcontext()
        with resting(self._model, self._settled), dropping:
            # Inside torch.func models make other masks.
            if not self._blocks or torch._C._functorch.is_functorch_wrapped_tensor(embeddings):
                return self._hooked(embeddings)
            kind = (embeddings.shape, embeddings.dtype, embeddings.device)
            if kind in self._routes:
                route = self._routes[kind]
                return route(embeddings) if route is not None and route.is_open() else self._hooked(embeddings)
            if kind in self._called and embeddings.requires_grad and torch.is_grad_enabled():
                activation, self._routes[kind] = self._recorded(embeddings)
                return activation
            if len(self._called) < SHAPES:
                self._called.add(kind)
            return self._hooked(embeddings)

    def _hooked(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The model's own forward: one hook puts the embeddings in, another takes the activation out and stops."""
        activation: torch.Tensor | None = None
        substituted = False

        def substitute(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            nonlocal substituted
            if substituted:  # a model that embeds something else with the same matrix, such as token types
                return None
            substituted = True
            if output.shape != embeddings.shape:
                raise UsageError(
                    f"Embeddings have the shape {tuple(embeddings.shape)}; the model's own have {tuple(output.shape)}."
                )
            # A clone: some models scale or write into their embeddings in place.
            return embeddings.to(output.device, output.dtype).clone()

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal activation
            activation = read(output, self.site)
            raise Reached

        first = self._embedding.register_forward_hook(substitute)
        second = self._module.register_forward_hook(stop)
        try:
            forward(self._model, self._ids(embeddings), self._mask(embeddings))
        except Reached:
            pass
        finally:
            first.remove()
            second.remove()
        if activation is None:
            raise ModelError(f"The site '{self.site}' never ran in a forward pass of this model; choose another site.")
        if not substituted:
            raise ModelError(f"The site '{self.site}' runs before the token embedding, so it is no function of it.")
        return activation

    def _recorded(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, Route | None]:
        """The hooked call, and its route if replaying that gives the same bits: two forward passes more."""
        if any(any(hooks_of(module)) for module in self._model.modules()):
            return self._hooked(embeddings), None  # the hooks of others should not see passes that nobody asked for
        with traced(self._model, self._blocks) as trace:
            activation = self._hooked(embeddings)
        with torch.no_grad():
            with traced(self._model, self._blocks) as zeros:
                self._hooked(torch.zeros_like(embeddings))
            if not (trace.is_chain() and trace.has_arguments_of(zeros) and trace.adds(embeddings, zeros.hidden[0])):
                return activation, None
            given = [tensor for tensor in (self._input_ids, self._attention_mask) if tensor is not None]
            route = Route(self._model, trace, zeros.hidden[0], given)
            same = torch.equal(route(embeddings), activation) and route.is_open()
        return activation, route if same else None

    def _ids(self, embeddings: torch.Tensor) -> torch.Tensor:
        batch, sequence = embeddings.shape[:2]
        if self._input_ids is None:
            return stand_in_ids(self._model, batch, sequence, self._device)
        return self._input_ids.to(self._device).expand(batch, -1)

    def _mask(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        return None if self._attention_mask is None else self._attention_mask.expand(embeddings.shape[0], -1)
