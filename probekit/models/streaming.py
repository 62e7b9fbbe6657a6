"""Streaming: weights that stay on the CPU, or mapped from disk, and come to another device for each forward.

accelerate's own offload keeps bitsandbytes layers in fp32, or loses their scales before the backward pass. Here a
quantised layer stays quantised: its packed weights are copied for a forward and again for the backward pass, so that
one layer's weights are on the device at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import send_to_device
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import nn

from probekit.models.devices import HOME, as_device, computing_device, device_of


def spread(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    """Place a model that is on the CPU, or mapped from disk, as a device map says: what it leaves there is streamed.

    All of it computes on the map's devices; what is on the CPU or disk, on the first of these that is neither. Where
    there is none, the CPU computes and nothing has to be moved.
    """
    away = [device for device in device_map.values() if device not in HOME]
    if away:
        moved: dict[int, nn.Parameter] = {}
        for path, module in model.named_modules():
            resident = device_of(path, device_map) not in HOME
            computes_on = computing_device(path, device_map)
            if resident:
                _move(module, computes_on, moved)
            _attach(module, path in device_map, resident, computes_on)
        skipped = getattr(model, "_skip_keys_device_placement", None)
        outer = AlignDevicesHook(execution_device=as_device(away[0]), io_same_device=True, skip_keys=skipped)
        add_hook_to_module(model, outer, append=True)
    model.hf_device_map = dict(device_map)  # type: ignore[assignment]


def _attach(module: nn.Module, named: bool, resident: bool, device: torch.device) -> None:
    """Give a module its buffers on the device, and the hook that brings its inputs there, and its weights where they
    are not.
    """
    own = [tensor for tensor in module._parameters.values() if tensor is not None]
    for name, buffer in module._buffers.items():
        if buffer is not None:  # small, and read by what is around as well
            module._buffers[name] = buffer.to(device)
    if own and not resident:
        kind = Quantised if isinstance(module, Linear8bitLt | Linear4bit) else Streamed
        add_hook_to_module(module, kind(module, device))
    elif own or named:
        add_hook_to_module(module, AlignDevicesHook(execution_device=device))


def _move(module: nn.Module, device: torch.device, moved: dict[int, nn.Parameter]) -> None:
    """Move a module's own weights, one that it shares with another only once."""
    if isinstance(module, Linear8bitLt):
        _settle(module)
        module.state.CB = None  # one copy of the weight on the device, not two
        module.to(device)  # type: ignore[no-untyped-call]
        module.state.CB = module.weight.data
        return
    if isinstance(module, Linear4bit):
        module.to(device)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in moved:
                moved[id(parameter)] = nn.Parameter(parameter.to(device), requires_grad=parameter.requires_grad)
            module._parameters[name] = moved[id(parameter)]


def _settle(layer: Linear8bitLt) -> None:
    """Bring a layer's scales from its weight to itself, as its first forward would."""
    if layer.weight.CB is not None:  # type: ignore[attr-defined]
        layer.init_8bit_state()  # type: ignore[no-untyped-call]


class Streamed(AlignDevicesHook):  # type: ignore[misc]  # accelerate has no types
    """Copies a module's weights to the device before its forward, and drops the copies after it."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__(execution_device=device, offload=True)
        self.weights_map = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.lend(module)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.take_back(module)
        return output

    def detach_hook(self, module: nn.Module) -> nn.Module:
        return module

    def lend(self, module: nn.Module) -> None:
        """Put copies on the device in the place of the weights."""
        for name, weight in self.weights_map.items():
            module._parameters[name] = self.copy_of(name, weight)

    def take_back(self, module: nn.Module) -> None:
        """Put the weights themselves back."""
        module._parameters.update(self.weights_map)

    def copy_of(self, _name: str, weight: nn.Parameter) -> nn.Parameter:
        """A copy of a weight on the device."""
        return nn.Parameter(weight.detach().to(self.execution_device, copy=True), requires_grad=weight.requires_grad)


class Quantised(Streamed):
    """The same for a layer of bitsandbytes, with its scales. Its backward pass fetches the weights again.

    The layer is linear in its input (int8's rounding of the input is passed straight through), so that its derivative
    needs no activation: only the weights, at the time of the backward pass.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__(module, device)
        self._input: torch.Tensor | None = None
        if isinstance(module, Linear8bitLt):
            _settle(module)
        self._state = vars(module).get("state")

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._input = None
        args, kwargs = super().pre_forward(module, *args, **kwargs)
        [given] = (*args, *kwargs.values())
        if given.requires_grad and torch.is_grad_enabled():
            self._input = given
            given = given.detach()
        return (given,), {}

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.take_back(module)
        given, self._input = self._input, None
        if given is None or not isinstance(output, torch.Tensor):
            return output
        return _Streaming.apply(given, output, Derivative(module, self, given))  # type: ignore[no-untyped-call]

    def lend(self, module: nn.Module) -> None:
        super().lend(module)
        if self._state is not None:
            state = copy.copy(self._state)
            state.CB, state.SCB = module.weight.data, state.SCB.to(self.execution_device)
            module.state = state

    def take_back(self, module: nn.Module) -> None:
        super().take_back(module)
        if self._state is not None:
            module.state = self._state

    def copy_of(self, name: str, weight: nn.Parameter) -> nn.Parameter:
        if isinstance(weight, Int8Params):
            return Int8Params(weight.data.to(self.execution_device, copy=True), requires_grad=False)
        if not isinstance(weight, Params4bit):
            return super().copy_of(name, weight)
        scales = copy.deepcopy(weight.quant_state)
        scales.to(self.execution_device)
        kept = ("blocksize", "compress_statistics", "quant_type", "quant_storage", "bnb_quantized")
        data = weight.data.to(self.execution_device, copy=True)
        return Params4bit(data, requires_grad=False, quant_state=scales, **{name: vars(weight)[name] for name in kept})


class Derivative:
    """The derivative of a streamed layer, `v ↦ v Wᵀ`, and its transpose, `g ↦ g W`: bitsandbytes' own."""

    def __init__(self, module: nn.Module, hook: Quantised, given: torch.Tensor) -> None:
        self._module, self._hook = module, hook
        self._given = (given.shape, given.dtype, given.device)

    def times(self, vectors: torch.Tensor, transposed: bool) -> torch.Tensor:
        """`v Wᵀ`, or `g W`, with the weights lent for as long as it takes."""
        shape, dtype, device = self._given
        with self._lent(), torch.enable_grad():
            given = torch.ones(shape, dtype=dtype, device=device, requires_grad=True)
            output = self._module._old_forward(given)  # type: ignore[operator]
            if transposed:
                return torch.autograd.grad(output, given, vectors)[0]
            cotangent = torch.zeros_like(output, requires_grad=True)
            (pulled,) = torch.autograd.grad(output, given, cotangent, create_graph=True)
            return torch.autograd.grad(pulled, cotangent, vectors)[0]

    @contextmanager
    def _lent(self) -> Iterator[None]:
        self._hook.lend(self._module)
        try:
            yield
        finally:
            self._hook.take_back(self._module)


class _Streaming(torch.autograd.Function):
    """Joins an output that was computed without a graph to its input."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, output: torch.Tensor, derivative: Derivative) -> torch.Tensor:
        ctx.derivative = derivative
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _Product.apply(gradient, ctx.derivative, True), None, None  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """A product with the derivative, linear in its vectors, so that its own derivative is the transposed product."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, derivative: Derivative, transposed: bool) -> torch.Tensor:
        ctx.derivative, ctx.transposed = derivative, transposed
        return derivative.times(vectors, transposed)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        product = _Product.apply(gradient, ctx.derivative, not ctx.transposed)  # type: ignore[no-untyped-call]
        return product, None, None
