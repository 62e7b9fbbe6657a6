"""Random sequences of operations leave no trace, whatever ends them: `python -m tests.forward.test_sequences gpt2 7`.

Captures, layer maps, edits within edits, generation and decoding, on models that have hooks of others and are in
training or not, ended by wrong shapes, unknown sites, errors and interrupts in the midst of a forward pass. After each
operation no hook of ours is left and every other one is there, and modes, flags, attributes and the random state are as
they were; after each sequence the hooks of others fire, and the logits are the same, bit for bit.
"""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as all_modules
from torch.utils.hooks import RemovableHandle
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from probekit.errors import ModelError, UsageError
from tests.forward.survey import IDS
from tests.forward.tiny import make, tiny

ARCHITECTURES = [
    "gpt2",
    "llama",
    "gemma3n_text",
    "mamba",
    "rwkv",
    "mixtral",
    "opt",
    "bloom",
    "falcon_h1",
    "deepseek_v4",
]
# Seeds of the sequences that are always run, and of all.
SEQUENCES = [range(25), pytest.param(range(25, 100), marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", SEQUENCES, ids=["first", "others"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_sequence_of_operations_leaves_a_trace(name: str, seeds: range) -> None:
    drawn: set[str] = set()
    endings: set[type[BaseException]] = set()
    for seed in seeds:
        sequence = Sequence(name, seed)
        sequence.run()
        drawn |= sequence.drawn
        endings |= sequence.endings
    # They have come to everything.
    assert drawn == set(OPERATIONS)
    assert endings == {BrokenError, Interrupted, UsageError}


class BrokenError(RuntimeError):
    """What a part of a model, or the function of an edit, raises here."""


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises, here in the midst of a forward pass."""


# --- what is there before --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A model, as it was before any sequence."""

    model: Any
    subjects: dict[bool, probekit.Subject]  # by whether it takes the model for settled
    modules: dict[str, nn.Module]  # those that run in a plain forward
    differentiable: list[str]  # those of them that hooks of backward passes can be on
    named: dict[str, nn.Module]  # what the named sites are
    inside: list[str]  # modules within a block, as sites
    logits: torch.Tensor


@cache
def bench(name: str) -> Bench:
    config_class = CONFIG_MAPPING[name]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    model = make(model_class, tiny(config_class))
    model.get_input_embeddings().requires_grad_(True)
    ran: dict[nn.Module, bool] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        reached = any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
        ran[module] = reached and isinstance(output, torch.Tensor) and output.requires_grad

    handles = [module.register_forward_hook(note) for module in model.modules()]
    model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    modules = {path: module for path, module in model.named_modules() if path and module in ran}
    candidates = [path for path, module in modules.items() if ran[module]]
    differentiable = [path for path in random.Random(name).sample(candidates, 16) if _backward_hook_works(model, path)]
    assert len(differentiable) >= 8
    model.requires_grad_(False)
    subjects = {settled: probekit.Subject(model, settled=settled) for settled in (False, True)}
    anatomy = subjects[True].anatomy
    depth = anatomy.blocks_path.count(".") + 2
    inside = [path for path in modules if path.startswith(anatomy.blocks_path) and path.count(".") == depth]
    assert len(inside) >= 6
    named = {f"block.{index}": block for index, block in [*enumerate(anatomy.blocks), (-1, anatomy.blocks[-1])]}
    named |= {"embedding": anatomy.embedding, "logits": model, **({"norm": anatomy.norm} if anatomy.norm else {})}
    assert named.keys() == {*subjects[True].sites(), "block.-1"}
    return Bench(model, subjects, modules, differentiable, named, inside, plain_logits(model))


def _backward_hook_works(model: Any, path: str) -> bool:
    """Not where a model writes into what a part of it returned, nor where no gradient comes to it."""
    hook = Foreign("backward", path, model.get_submodule(path))
    try:
        model(input_ids=IDS, use_cache=False).logits.sum().backward()
    except RuntimeError:
        return False
    finally:
        hook.handle.remove()
        model.zero_grad()
    return hook.calls > 0


def plain_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


# How somebody else's hook is put on, and where torch keeps it.
HOOKS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "forward": ("register_forward_hook", "_forward_hooks", {}),
    "forward, first of all": ("register_forward_hook", "_forward_hooks", {"prepend": True}),
    "forward, with keywords": ("register_forward_hook", "_forward_hooks", {"with_kwargs": True}),
    "forward, always": ("register_forward_hook", "_forward_hooks", {"always_call": True}),
    "before": ("register_forward_pre_hook", "_forward_pre_hooks", {}),
    "before, with keywords": ("register_forward_pre_hook", "_forward_pre_hooks", {"with_kwargs": True}),
    "backward": ("register_full_backward_hook", "_backward_hooks", {}),
}


class Foreign:
    """A hook of somebody else: it counts its calls, and raises if told to."""

    def __init__(self, kind: str, path: str, module: nn.Module) -> None:
        self.kind, self.path, self.module = kind, path, module
        self.calls = self.raised = 0
        self.error: type[BaseException] | None = None
        register, self.kept_in, self.how = HOOKS[kind]
        self.handle: RemovableHandle = getattr(module, register)(self, **self.how)

    def __call__(self, *_arguments: Any) -> None:
        self.calls += 1
        if self.error is not None:
            self.raised += 1
            raise self.error


EDITS = ("scales", "writes in place", "narrows", "returns nothing", "raises", "interrupts")
EDIT_ERRORS: dict[str, type[BaseException]] = {
    "narrows": UsageError,
    "returns nothing": UsageError,
    "raises": BrokenError,
    "interrupts": Interrupted,
}


class Edit:
    """The function of an edit, harmless or not."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.raised = 0
        self.error = EDIT_ERRORS.get(kind)

    def __call__(self, activation: torch.Tensor) -> Any:
        self.raised += self.error is not None
        if self.error in (BrokenError, Interrupted):
            raise self.error
        if self.kind == "narrows":
            return activation[..., 0]
        if self.kind == "returns nothing":
            return None
        return activation.mul_(1.01) if self.kind == "writes in place" else activation * 0.99


def trace(model: nn.Module) -> dict[str, Any]:
    """Everything that an operation could leave behind, in a form that compares with `==`."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "modules": [id(module) for module in modules],
        "attributes": [list(vars(module)) for module in modules],
        "hooks": [
            (index, kind, [(key, id(hook)) for key, hook in found.items()])
            for index, holder in enumerate([*modules, all_modules])
            for kind, found in vars(holder).items()
            if isinstance(found, dict) and found and "_hooks" in kind
        ],
        "modes": [module.training for module in modules],
        "flags": [parameter.requires_grad for parameter in parameters],
        "gradients": [parameter.grad is not None for parameter in parameters],
        "weights": [(id(parameter), parameter.data_ptr()) for parameter in parameters],
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random state": hash(torch.get_rng_state().numpy().tobytes()),
    }


# --- a sequence ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """Something to do: what it is, whether it has to end in a UsageError, and what it may change in the trace."""

    what: str
    call: Callable[[], object]
    fails: bool = False
    changes: frozenset[str] = frozenset()


# How often each is drawn, in relation to the others.
OPERATIONS = {
    "capture": 4,
    "capture_nowhere": 1,
    "layer_map": 4,
    "kept_layer_map": 3,
    "layer_map_of_another_shape": 1,
    "layer_map_with_dropout": 2,
    "edits": 4,
    "broken_part": 4,
    "generate": 1,
    "decode": 1,
    "unembed": 1,
    "wrap": 1,
    "foreign_hook": 2,
    "foreign_mode": 1,
}
# What is done inside others: not what somebody else does, and what has no operations inside.
QUIET = tuple(name for name in OPERATIONS if not name.startswith("foreign"))
PLAIN = ("capture", "layer_map", "kept_layer_map", "layer_map_of_another_shape", "layer_map_with_dropout")

# What those operations may change that have others inside: there may be dropout, and a hook of somebody else.
INSIDE = frozenset({"random state", "hooks"})


class Sequence:
    """Operations drawn by a seed, on a model with hooks of others."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.random = random.Random(f"{name} {seed}")
        self.bench = bench(name)
        self.model = self.bench.model
        self.settled = self.random.random() < 0.4
        self.subject = self.bench.subjects[self.settled]
        self.conditioned = self.subject.conditioned_on_ids
        self.foreign: list[Foreign] = []
        self.kept: dict[str, probekit.LayerMap] = {}
        self.faults: list[Foreign | Edit] = []  # what raises if the model comes to it
        self.log: list[str] = []
        self.drawn: set[str] = set()
        self.endings: set[type[BaseException]] = set()

    def run(self) -> None:
        """Raises AssertionError, with the operations so far, if anything is left."""
        try:
            self._prepare()
            for _ in range(self.random.randint(3, 8)):
                self._step()
                self._check_hooks()
            self._check_model()
        except (Exception, Interrupted) as error:
            operations = "".join(f"\n  {line}" for line in self.log)
            raise AssertionError(
                f"{type(error).__name__}: {error}\nin the sequence {self.seed} of {self.name}:{operations}"
            ) from error
        finally:
            for hook in self.foreign:
                hook.handle.remove()
            self.model.eval().requires_grad_(False)

    def _prepare(self) -> None:
        """Modes and flags of all sorts, unless the model is settled, and hooks of others."""
        if not self.settled and self.random.random() < 0.8:
            self.model.train()
            for module in self._some(list(self.model.modules())):
                module.training = False
            for parameter in self._some(list(self.model.parameters())):
                parameter.requires_grad = True
        # None at all for a start in some, since a layer map replays its calls only then.
        for _ in range(self.random.choice([0, 0, 2, 3, 4, 5])):
            self._foreign(self.random.choice(list(HOOKS)))
        modes = {module.training for module in self.model.modules()}
        self.log.append(f"{'settled' if self.settled else 'wrapped'}, modes {modes}, hooks {self._hooks()}")

    def _check_hooks(self) -> None:
        """Those of others are there, in their order, and nothing else."""
        expected: dict[tuple[nn.Module, str], list[Foreign]] = {}
        for hook in self.foreign:
            own = expected.setdefault((hook.module, hook.kept_in), [])
            own.insert(0 if "prepend" in hook.how else len(own), hook)
        for module in self.model.modules():
            for kept_in in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                found = list(getattr(module, kept_in).values())
                wanted = expected.get((module, kept_in), [])
                same = len(found) == len(wanted) and all(map(operator.is_, found, wanted))
                assert same, f"hooks of a {type(module).__name__}: {found}, not {wanted}"

    def _check_model(self) -> None:
        """It gives the same logits, and the hooks of others fire."""
        for hook in self.foreign:
            hook.calls = 0
        self.model.eval().requires_grad_(False)
        assert torch.equal(plain_logits(self.model), self.bench.logits), "the logits are others"
        if any(hook.kind == "backward" for hook in self.foreign):
            self.model.requires_grad_(True)
            self.model(input_ids=IDS, use_cache=False).logits.sum().backward()
            self.model.zero_grad()
        assert [hook.path for hook in self.foreign if not hook.calls] == [], "hooks do not fire"

    # --- one operation after another ---

    def _step(self, names: tuple[str, ...] = tuple(OPERATIONS)) -> None:
        name = self.random.choices(names, [OPERATIONS[each] for each in names])[0]
        operation: Operation = getattr(self, f"_{name}")()
        self.drawn.add(name)
        self.log.append(operation.what)
        before = trace(self.model)
        self._attempt(operation)
        after = trace(self.model)
        for what, was in before.items():
            assert what in operation.changes or after[what] == was, f"{what}: {after[what]}, not {was}"

    def _attempt(self, operation: Operation) -> None:
        """Do it: whatever raises on the way, and nothing else, ends it."""
        error: BaseException | None = None
        try:
            operation.call()
        except (BrokenError, Interrupted, UsageError, ModelError) as raised:
            error = raised
        fired = [fault for fault in self.faults if fault.raised]
        assert sum(fault.raised for fault in fired) <= 1, "the forward pass went on after an error"
        for fault in fired:
            fault.raised = 0
        wanted = fired[0].error if fired else UsageError if operation.fails else None
        if isinstance(error, ModelError) and error.__cause__ is not None:  # from a pass that looks for the anatomy
            error = error.__cause__
        assert type(error) is (wanted or type(None)), f"{error!r} where {wanted} was expected"
        if wanted:
            self.endings.add(wanted)
            self.log.append(f"    → {wanted.__name__}")

    # --- the operations ---

    def _capture(self) -> Operation:
        sites = [self._site() for _ in range(self.random.randint(1, 4))]
        mode, ids = self._mode(), self._ids()

        def call() -> None:
            with mode[1]():
                captured = self.subject.capture(ids, sites)
            assert list(captured) == list(dict.fromkeys(sites))

        return Operation(f"capture {sites}{mode[0]}", call)

    def _capture_nowhere(self) -> Operation:
        site = self.random.choice(["block.99", "nowhere", f"{self.subject.anatomy.blocks_path}", ""])
        sites = self._shuffled(["block.0", site])
        return Operation(f"capture {sites}", lambda: self.subject.capture(IDS, sites), fails=True)

    def _layer_map(self) -> Operation:
        site, mode, ids = self._site(), self._mode(), self._ids()
        steps = self.random.randint(1, 4)

        def call() -> None:
            with mode[1]():
                layer_map = self._map(site)
                for _ in range(steps):
                    embeddings = self.subject.embed(ids)
                    if mode[0]:
                        assert not layer_map(embeddings).requires_grad
                    else:
                        self._descend(layer_map, embeddings)

        return Operation(f"{steps} × layer map of {site}{mode[0]}", call)

    def _kept_layer_map(self) -> Operation:
        """One that was made before, maybe under other hooks: the same function as a new one."""
        site = self.random.choice(["block.0", "block.1", "logits"])
        ids = self._ids()

        def call() -> None:
            layer_map = self.kept.setdefault(site, self._map(site))
            kept = self._descend(layer_map, self.subject.embed(ids))
            assert torch.equal(kept, self._descend(self._map(site), self.subject.embed(ids)))

        return Operation(f"kept layer map of {site}", call)

    def _layer_map_of_another_shape(self) -> Operation:
        wrong = self.random.choice(["flat", "narrow", *(["without ids"] if self.conditioned else [])])

        def call() -> None:
            embeddings = self.subject.embed(IDS)
            if wrong == "without ids":
                self.subject.layer_map("block.0")
            self._map("block.0")(embeddings[0] if wrong == "flat" else embeddings[..., :-1])

        return Operation(f"layer map, {wrong}", call, fails=True)

    def _layer_map_with_dropout(self) -> Operation:
        site = self._site()

        def call() -> None:
            layer_map = self._map(site, dropout=True)
            for _ in range(2):
                self._descend(layer_map, self.subject.embed(IDS))

        return Operation(f"layer map of {site} with dropout", call, changes=frozenset({"random state"}))

    def _edits(self) -> Operation:
        """Edits within edits, with other operations inside: held open through their errors, or ended by them."""
        sites = self.random.choices([self._site(), self._site()], k=self.random.randint(1, 3))
        kinds = [self.random.choice(EDITS[:2] if self.random.random() < 0.5 else EDITS) for _ in sites]
        functions = [Edit(kind) for kind in kinds]
        held = self.random.random() < 0.5
        meanwhile = held and self.random.random() < 0.5
        how = "left by errors" if not held else "held open, with a hook after them" if meanwhile else "held open"
        what = f"edits {list(zip(sites, kinds, strict=True))}, {how}:"

        def contexts() -> Iterator[AbstractContextManager[None]]:
            for site, function in zip(sites, functions, strict=True):
                yield self.subject.edit(site, function)

        def hold() -> None:
            opened: list[AbstractContextManager[None]] = []

            def open_all() -> None:
                for context in contexts():
                    context.__enter__()
                    opened.append(context)

            with self._expecting(*functions):
                try:
                    self._attempt(Operation("", open_all))
                    if meanwhile:
                        self._foreign("forward", self.random.choice(sites))
                    for _ in range(self.random.randint(1, 2)):
                        self._step(QUIET)
                finally:
                    for context in self._shuffled(opened):  # in any order
                        context.__exit__(None, None, None)

        if held:
            return Operation(what, hold, changes=INSIDE)

        def leave() -> None:
            with ExitStack() as stack:
                for context in contexts():
                    stack.enter_context(context)
                for inner in operations:
                    inner.call()

        def call() -> None:
            with self._expecting(*functions):
                self._attempt(Operation("", leave, fails=operations[-1].fails))

        name = self.random.choice(PLAIN)
        operations = [self._capture(), getattr(self, f"_{name}")()]
        return Operation(
            f"{what} {'; '.join(inner.what for inner in operations)}", call, changes=frozenset({"random state"})
        )

    def _broken_part(self) -> Operation:
        """A hook of others raises in the midst of whatever comes next: for a while only, as they do."""
        error = self.random.choice([BrokenError, Interrupted])
        kind = self.random.choice(["forward", "forward, with keywords", "before", "before, with keywords"])
        path = self.random.choice(list(self.bench.modules))
        quiet = [hook for hook in self.foreign if hook.kind in (kind, "forward, first of all") and not hook.error]
        known = self.random.choice(quiet) if quiet and self.random.random() < 0.5 else None

        def call() -> None:
            hook = known or Foreign(kind, path, self.bench.modules[path])
            hook.error = error
            try:
                with self._expecting(hook):
                    self._step(QUIET)
            finally:
                hook.error = None
                if not known:
                    hook.handle.remove()

        what = f"{error.__name__} from a hook of {known.path if known else path} ({known.kind if known else kind}):"
        return Operation(what, call, changes=INSIDE)

    def _generate(self) -> Operation:
        sampled = self.random.random() < 0.5

        def call() -> None:
            self.subject.generate(IDS[:, :3], max_new_tokens=2, do_sample=sampled)

        return Operation("generate, sampled" if sampled else "generate", call)

    def _decode(self) -> Operation:
        return Operation("decode", lambda: self.subject.decode(self.subject.embed(IDS), top_k=2))

    def _unembed(self) -> Operation:
        def call() -> None:
            if self.subject.head_width is not None:  # else it only raises
                self.subject.unembed(torch.zeros(1, 2, self.subject.head_width))

        return Operation("unembed", call)

    def _wrap(self) -> Operation:
        return Operation("wrap", lambda: probekit.Subject(self.model, settled=self.settled))

    def _foreign_hook(self) -> Operation:
        """Somebody else puts a hook on, or takes one off."""
        kind = self.random.choice(list(HOOKS))
        if self.foreign and self.random.random() < 0.4:
            gone = self.foreign.pop(self.random.randrange(len(self.foreign)))
            what, call = f"a hook of {gone.path} is taken off ({gone.kind})", gone.handle.remove
        else:
            what, call = f"another hook ({kind})", lambda: self._foreign(kind)
        return Operation(what, call, changes=frozenset({"hooks"}))

    def _foreign_mode(self) -> Operation:
        """Somebody else trains the model, or stops it; a part of it, unless it counts as settled."""
        part = self.model if self.settled else self.random.choice(list(self.model.modules()))
        training = self.random.random() < 0.5
        return Operation(
            f"{type(part).__name__}.train({training})", lambda: part.train(training), changes=frozenset({"modes"})
        )

    # --- what is drawn ---

    def _site(self) -> str:
        return self.random.choice(list(self.bench.named) if self.random.random() < 0.7 else self.bench.inside)

    def _ids(self) -> torch.Tensor:
        return IDS if self.conditioned or self.random.random() < 0.7 else IDS[:1, :4]

    def _mode(self) -> tuple[str, Callable[[], AbstractContextManager[Any]]]:
        modes = [("", nullcontext), (" without gradients", torch.no_grad), (" in inference", torch.inference_mode)]
        return self.random.choices(modes, [3, 1, 1])[0]

    def _some(self, things: list[Any]) -> list[Any]:
        return [thing for thing in things if self.random.random() < 0.5]

    def _shuffled(self, things: list[Any]) -> list[Any]:
        return self.random.sample(things, len(things))

    def _foreign(self, kind: str, site: str = "") -> None:
        """A hook of somebody else, on that site or on any module, those of sites above all."""
        bench = self.bench
        sites = bench.differentiable if kind == "backward" else self.random.choice([bench.named, bench.modules])
        path = site or self.random.choice(list(sites))
        self.foreign.append(Foreign(kind, path, bench.named.get(path) or bench.modules[path]))

    def _hooks(self) -> list[str]:
        return [f"{hook.path} ({hook.kind})" for hook in self.foreign]

    # --- what operations do ---

    def _map(self, site: str, dropout: bool = False) -> probekit.LayerMap:
        return self.subject.layer_map(site, IDS if self.conditioned else None, dropout=dropout)

    def _descend(self, layer_map: probekit.LayerMap, embeddings: torch.Tensor) -> torch.Tensor:
        activation = layer_map(embeddings.clone().requires_grad_())
        if activation.requires_grad:
            activation.square().sum().backward()
        return activation.detach()

    @contextmanager
    def _expecting(self, *faults: Foreign | Edit) -> Iterator[None]:
        self.faults += [fault for fault in faults if fault.error]
        try:
            yield
        finally:
            self.faults = [fault for fault in self.faults if fault not in faults]


if __name__ == "__main__":
    Sequence(sys.argv[1], int(sys.argv[2])).run()
