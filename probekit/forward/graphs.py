"""A step that is repeated: captured in a CUDA graph once, and replayed from then on.

Launching a kernel takes the processor some microseconds, and a step of one row has hundreds of kernels that take the
device less than that. A graph launches them together, without Python. It computes on the same memory each time, so a
step has to read and write tensors that stay where they are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import nn

from probekit.errors import out_of_memory
from probekit.forward.hooks import HookWatch
from probekit.models.offload import Offloaded

Step = Callable[[], torch.Tensor]
"""Moves the tensors of a state in place, and returns a tensor."""

# So many steps are taken as they are, before one is captured: a layer map records its route in the second, libraries
# choose their kernels in the first.
EAGER_STEPS = 3


class Graph(Protocol):
    """What records a step, and does it again."""

    def capture(self, step: Step) -> torch.Tensor:
        """Record a step without taking it; the tensor that it returned, which each replay fills."""
        ...

    def replay(self) -> None:
        """Take the recorded step."""
        ...


class CudaGraph:
    """A CUDA graph, captured on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, step: Step) -> torch.Tensor:
        stream = stream_of(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):  # torch leaves its own current if it fails
            try:
                with torch.cuda.graph(self._graph, stream=stream):
                    return step()
            except BaseException:
                self._recover(stream)
                raise

    def replay(self) -> None:
        self._graph.replay()

    @staticmethod
    def _recover(stream: torch.cuda.Stream) -> None:
        """A capture that fails leaves the device's generator as if it were still captured, so that the next draw
        raises; one that succeeds gives it back.
        """
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
                pass


@functools.cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which steps are tried and captured. torch's own is one for all devices."""
    return torch.cuda.Stream(device)


@contextmanager
def synchronising_refused(device: torch.device) -> Iterator[None]:
    """What waits for the device, as reading a figure does, raises RuntimeError while this is open: no graph has it.

    Computed on the stream of captures: what belongs to a stream, such as a library's workspace, is made.
    """
    before = torch.cuda.get_sync_debug_mode()
    stream = stream_of(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream(device).wait_stream(stream)


def can_be_captured(model: nn.Module) -> bool:
    """Whether steps through a model may be captured at all: whether all of its weights are on one CUDA device."""
    devices = {weight.device for weight in (*model.parameters(), *model.buffers())}
    return len(devices) == 1 and next(iter(devices)).type == "cuda" and not Offloaded(model)


class Graphed:
    """A step, captured in a graph where that gives the same bits, and taken as it is otherwise.

    Called in place of the step. After the first calls, one is made twice from the same state: as it is, while nothing
    may wait for the device, and by the graph. Only if both lead to the same state is the graph used from then on. So
    it is not where a step reads a figure or makes a choice by it, and where an operator differs from call to call.

    A step may have no effect but on its state, and what it reads, weights among it, has to stay where it is. Hooks put
    on the model while it is replayed are seen: steps are then taken as they are. So they are while there are hooks at
    all, whose effects a graph would not have.
    """

    def __init__(self, model: nn.Module, step: Step, state: Callable[[], Iterable[torch.Tensor]]) -> None:
        self._step, self._state = step, state
        self._calls = 0
        self._graph: Graph | None = None
        self._output = torch.empty(0)
        self._refused = False
        self._hooks = HookWatch(model)

    def __call__(self) -> torch.Tensor:
        """Take the step, and return what it returns: a tensor of the caller's own."""
        self._calls += 1
        if self._refused or self._calls <= EAGER_STEPS or self._hooks.finds():
            return self._step()
        if self._graph is None:
            return self._captured()
        self._graph.replay()
        return self._output.clone()

    @property
    def replays(self) -> bool:
        """Whether a graph takes the steps."""
        return self._graph is not None

    def _captured(self) -> torch.Tensor:
        """One step, twice if it can be captured; what is left is what the step as it is has made."""
        state = list(self._state())
        device = state[0].device
        before = [tensor.detach().clone() for tensor in state]
        try:
            with synchronising_refused(device):
                output = self._step().detach().clone()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self._refused = True
            put(state, before)
            return self._step()
        after = [tensor.detach().clone() for tensor in state]
        put(state, before)
        graph = new_graph(device)
        try:
            captured = graph.capture(self._step)
            put(state, before)  # if something was computed and not captured: what a replay does is seen then
            graph.replay()
        except RuntimeError:  # among them: no memory for a graph of its own, where the step alone has enough
            put(state, after)
            self._refused = True
            return output
        same = zip((*state, captured), (*after, output), strict=True)
        if not all(torch.equal(mine.detach(), others) for mine, others in same):
            put(state, after)
            self._refused = True
            return output
        self._graph, self._output = graph, captured
        return output


def new_graph(device: torch.device) -> Graph:
    """An empty graph for a device."""
    return CudaGraph(device)


def put(state: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
    """Write values into the tensors of a state."""
    with torch.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
