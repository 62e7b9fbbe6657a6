"""The layer map `O_l`: the function from input embeddings to the activation at one site.

Differentiable, stopped at the site, batched. The embeddings replace what the embedding module returns, which works
where `inputs_embeds` is missing, scaled, or joined by something else; the model adds its own positions after it.

What a model does before its first block (masks, positions) takes about a tenth of the time of one block, and depends
on the shape alone. So from the third step of a descent on, the blocks are called without it (`Route`): only where that
is known to give the same bits, and only while nothing that is left out has hooks or has changed. With dropout on, every
call is a forward pass of its own.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError, UsageError, out_of_memory
from probekit.forward.gradients import GradientsOn, noting_off
from probekit.forward.hooks import has_hooks
from probekit.forward.layout import Layout
from probekit.forward.replay import Route, traced
from probekit.forward.rest import dropping_out, forward, resting, stand_in_ids
from probekit.forward.sites import Site
from probekit.models.anatomy import Anatomy
from probekit.models.devices import execution_device
from probekit.models.offload import Offloaded
from probekit.models.passes import Reached

# A layer map replays its calls for this many shapes at most.
SHAPES = 8


class LayerMap:
    """`O_l(e)`: call it with embeddings `[batch, sequence, d]`, get the activation at the site.

    `input_ids` and `attention_mask`, `[batch or 1, sequence]`, are what the model sees beside the embeddings. Gradients
    flow to the embeddings and to nothing else; nothing past the site is computed; no hook outlives a call.

    With `dropout` a call computes as in training: it draws masks of its own from torch's default generator, and its
    gradients go through those. With `compiled` the blocks of replayed calls are compiled by torch.compile: the same but
    for rounding, and first derivatives only.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        layout: Layout,
        site: Site,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        settled: bool = False,
        dropout: bool = False,
        positions: bool = False,
        compiled: bool = False,
    ) -> None:
        self.site = site.name
        self._model = model
        self._anatomy = anatomy
        self._layout = layout
        self._site = site
        self._input_ids = input_ids
        self._attention_mask = attention_mask
        self._settled = settled
        self._dropout = dropout
        self._positions = positions
        self._compiles = compiled
        self._device = execution_device(anatomy.embedding)
        self._offloaded = Offloaded(model)
        # The blocks that a call may be replayed by; none where every call has to draw masks or ends inside a block.
        # Weights that come and go would be taken for others each time.
        replays = not (dropout or self._offloaded) and layout.ordinary
        self._blocks = anatomy.blocks if replays and any(block is site.module for block in anatomy.blocks) else []
        # Whether the model itself switches gradients off on the way; seen in the first call that wants them.
        self._switches_off: bool | None = None
        # By shape, dtype and device of the embeddings; None where replaying is not the same.
        self._called: set[Any] = set()
        self._routes: dict[Any, Route | None] = {}

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The activation at the site. Raises UsageError for embeddings of another shape than the model's."""
        if embeddings.dim() != 3:
            raise UsageError(f"Embeddings have the shape {tuple(embeddings.shape)}; expected [batch, sequence, width].")
        dropping = dropping_out(self._model) if self._dropout else nullcontext()
        with resting(self._model, self._settled), dropping:
            inside_func = torch._C._functorch.is_functorch_wrapped_tensor(embeddings)
            if self._offloaded:
                if inside_func:
                    raise ModelError(
                        "torch.func does not go through weights that are offloaded; use torch.autograd, or a model "
                        "that is in memory."
                    )
                with self._offloaded.passing(embeddings.requires_grad and torch.is_grad_enabled()):
                    return self._differentiable(embeddings)
            if not self._blocks or inside_func:  # where models make other masks
                return self._differentiable(embeddings)
            kind = (embeddings.shape, embeddings.dtype, embeddings.device)
            if kind in self._routes:
                route = self._routes[kind]
                return route(embeddings) if route is not None and route.is_open() else self._differentiable(embeddings)
            # Compiled blocks from the first step on, so that a descent that is resumed takes the same way.
            if (kind in self._called or self._compiles) and embeddings.requires_grad and torch.is_grad_enabled():
                activation, route = self._recorded(embeddings)
                self._routes[kind] = route
                return route(embeddings) if self._compiles and route is not None else activation
            if len(self._called) < SHAPES:
                self._called.add(kind)
            return self._differentiable(embeddings)

    @property
    def replays(self) -> bool:
        """Whether calls may be replayed at all: at a block, without dropout, where weights stay in memory."""
        return bool(self._blocks)

    def route(self, embeddings: torch.Tensor) -> Route | None:
        """How a call with gradients is replayed for embeddings of this shape; None where it is not."""
        if not self._blocks or torch._C._functorch.is_functorch_wrapped_tensor(embeddings):
            return None
        kind = (embeddings.shape, embeddings.dtype, embeddings.device)
        if kind not in self._routes:
            with torch.enable_grad():
                _, self._routes[kind] = self._recorded(embeddings.detach().requires_grad_())
        route = self._routes[kind]
        return route if route is not None and route.is_open() else None

    def _differentiable(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The hooked call, with gradients also through what the model computes without them."""
        if not (embeddings.requires_grad and torch.is_grad_enabled()):
            return self._hooked(embeddings)
        unknown = self._switches_off is None
        if not self._switches_off:
            with noting_off(self._anatomy.blocks if unknown else ()) as entered:
                activation = self._hooked(embeddings)
            self._switches_off = bool(entered)
        if self._switches_off:
            with GradientsOn():
                activation = self._hooked(embeddings)
            if unknown:
                self._try_backward(activation, embeddings)
        if not activation.requires_grad:
            raise ModelError(
                f"No gradient goes from the embeddings to the activation at '{self.site}': it does not depend on them, "
                "or the model or an open edit detaches it. Choose another site, or read values under torch.no_grad()."
            )
        return activation

    def _try_backward(self, activation: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Raise ModelError if a backward pass of the model's own, as reformer's past its blocks, does not work."""
        try:
            torch.autograd.grad(activation.sum(), embeddings, retain_graph=True, allow_unused=True)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise ModelError(
                f"{type(self._model).__name__} computes gradients of its own and refuses them in eval mode at "
                f"'{self.site}' ({(str(error).splitlines() or [''])[0]}); choose the site of a block."
            ) from error

    def _hooked(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The model's own forward: one hook puts the embeddings in, another takes the activation out and stops."""
        activation: torch.Tensor | None = None
        seen: set[nn.Module] = set()
        first = self._anatomy.tables[0]

        def substitute(table: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            if table in seen:  # a model that embeds something else with the same matrix, such as token types
                return None
            seen.add(table)
            # A clone: some models scale or write into their embeddings in place. Further tables are added to the first.
            return self._layout.put(output, embeddings).clone() if table is first else torch.zeros_like(output)

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal activation
            activation = self._site.read(output, embeddings.shape[1])
            raise Reached

        with ExitStack() as hooks, suppress(Reached):
            for table in self._anatomy.tables:
                hooks.callback(table.register_forward_hook(substitute).remove)
            hooks.callback(self._site.module.register_forward_hook(stop).remove)
            ids = self._anatomy.rows(self._ids(embeddings))
            forward(self._model, ids, self._mask(embeddings), self._positions)
        if activation is None:
            raise ModelError(f"The site '{self.site}' never ran in a forward pass of this model; choose another site.")
        if first not in seen:
            raise ModelError(f"The site '{self.site}' runs before the token embedding, so it is no function of it.")
        return activation

    def _recorded(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, Route | None]:
        """The hooked call, and its route if replaying that gives the same bits: two forward passes more."""
        if has_hooks(self._model):
            return self._differentiable(
                embeddings
            ), None  # the hooks of others should not see passes that nobody asked for
        with traced(self._model, self._blocks) as trace:
            activation = self._differentiable(embeddings)
        with torch.no_grad():
            with traced(self._model, self._blocks) as zeros:
                self._hooked(torch.zeros_like(embeddings))
            if not (trace.is_chain() and trace.has_arguments_of(zeros) and trace.adds(embeddings, zeros.hidden[0])):
                return activation, None
            given = [tensor for tensor in (self._input_ids, self._attention_mask) if tensor is not None]
            route = Route(self._model, trace, zeros.hidden[0], given)
            same = torch.equal(route(embeddings), activation) and route.is_open()
        if same and self._compiles:
            route.compile(embeddings)
        return activation, route if same else None

    def _ids(self, embeddings: torch.Tensor) -> torch.Tensor:
        batch, sequence = embeddings.shape[:2]
        if self._input_ids is None:
            return stand_in_ids(self._model, batch, sequence, self._device, self._mask(embeddings))
        if self._input_ids.shape[1] != sequence:
            raise UsageError(
                f"Embeddings have the shape {tuple(embeddings.shape)}, but the token ids beside them are "
                f"{self._input_ids.shape[1]}; give as many."
            )
        return self._input_ids.to(self._device).expand(batch, -1)

    def _mask(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        return None if self._attention_mask is None else self._attention_mask.expand(embeddings.shape[0], -1)
