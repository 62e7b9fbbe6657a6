"""Copies that may be trained: they compute what the subject does, and nothing that is done to them is done to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit.testing import tiny_subject
from probekit_plugins import copies
from probekit_plugins.copies import WithoutDropout, check, copied
from probekit_plugins.trainer import Step, train
from probekit_plugins.training_options import TrainingOptions

IDS = torch.arange(1, 13).view(2, 6)
P = torch.linspace(-1, 1, 24).view(4, 6)
Untouched = Callable[[nn.Module], AbstractContextManager[None]]


def logits(subject: probekit.Subject) -> torch.Tensor:
    return subject.capture(IDS, ["logits"])["logits"]


def tuned(copy: probekit.Subject, steps: int = 2) -> None:
    """Some steps on its own parameters, as a training makes them."""
    optimizer = torch.optim.AdamW(copy.model.parameters(), 0.01)
    for _ in range(steps):
        found = copy.layer_map("logits")(copy.anatomy.embedding(IDS))
        optimizer.zero_grad()
        nn.functional.cross_entropy(found[:, :-1].transpose(1, 2), IDS[:, 1:]).backward()
        optimizer.step()


@pytest.mark.parametrize("training", [False, True], ids=["at rest", "in training"])
def test_a_copy_computes_what_the_subject_does_and_its_training_leaves_the_subject_untouched(
    training: bool, assert_untouched: Untouched
) -> None:
    subject = tiny_subject(training=training)
    before = logits(subject)
    with assert_untouched(subject.model):
        copy = copied(subject)
        assert torch.equal(logits(copy), before)
        assert not any(module.training for module in copy.model.modules())
        assert all(each.requires_grad and each.grad is None for each in copy.model.parameters())
        tuned(copy)
        assert not torch.equal(logits(copy), before)
    own = {each.data_ptr() for each in subject.model.parameters()}
    assert not own & {each.data_ptr() for each in copy.model.parameters()}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_copy_is_in_fp32_at_least_with_the_same_weights(kind: torch.dtype) -> None:
    model = tiny_subject().model.to(kind)
    subject = probekit.Subject(model, settled=True)
    copy = copied(subject)
    expected = torch.float64 if kind == torch.float64 else torch.float32
    assert {each.dtype for each in copy.model.parameters()} == {expected}
    assert {each.dtype for each in subject.model.parameters()} == {kind}
    for one, other in zip(model.parameters(), copy.model.parameters(), strict=True):
        assert torch.equal(one.to(expected), other)
    assert logits(copy).dtype == expected
    assert torch.allclose(logits(copy).double(), logits(subject).double(), atol=0.02)
    tuned(copy)
    assert bool(logits(copy).isfinite().all())


def test_also_where_only_some_weights_are_narrow() -> None:
    """The first parameter is none of them."""
    model = copy.deepcopy(tiny_subject().model)
    subject = probekit.Subject(model, settled=True)
    model.get_submodule("transformer.h.1").to(torch.float16)
    model.get_submodule("transformer.h.1").register_forward_pre_hook(
        lambda block, inputs: (inputs[0].to(next(block.parameters()).dtype), *inputs[1:])
    )
    model.get_submodule("transformer.h.1").register_forward_hook(lambda _block, _inputs, output: output.float())
    assert {each.dtype for each in copied(subject).model.parameters()} == {torch.float32}


def test_tied_weights_stay_tied_and_others_apart() -> None:
    for tied in (True, False):
        config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=tied)
        for kind in (torch.float32, torch.bfloat16):
            copy = copied(probekit.Subject(GPT2LMHeadModel(config).eval().to(kind)))
            tuned(copy)
            table, head = copy.model.get_parameter("transformer.wte.weight"), copy.anatomy.unembedding
            assert head is not None
            assert (head.weight is table) == tied
            assert torch.equal(head.weight, table) == tied


@pytest.mark.parametrize("site", ["block.0", "block.-2", "norm", "logits"])
def test_gradients_reach_every_parameter_up_to_the_site_and_none_behind_it(site: str) -> None:
    copy = copied(tiny_subject())
    value = copy.layer_map(site)(copy.anatomy.embedding(IDS))
    # An uneven sum: that of a normalised activation is the same whatever stands before.
    (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    reached = {name for name, each in copy.model.named_parameters() if each.grad is not None and bool(each.grad.any())}
    parts = ["transformer.wte", "transformer.wpe", "transformer.h.0.", "transformer.h.1.", "transformer.h.2."]
    used = {"block.0": parts[:3], "block.-2": parts[:4]}.get(site, [*parts, "transformer.ln_f"])
    assert reached == {name for name, _ in copy.model.named_parameters() if any(name.startswith(part) for part in used)}


def test_what_others_put_on_the_model_acts_on_the_copy_and_stays_on_the_model(assert_untouched: Untouched) -> None:
    subject = tiny_subject()
    block = subject.model.get_submodule("transformer.h.0")
    block.register_forward_hook(lambda _block, _inputs, output: output * 2)
    with assert_untouched(subject.model):
        copy = copied(subject)
        assert torch.equal(logits(copy), logits(subject))
        seen: list[int] = []
        copy.model.get_submodule("transformer.h.0").register_forward_hook(lambda *_: seen.append(1))
        logits(subject)
        assert not seen
    late = copied(subject)
    block.register_forward_hook(lambda _block, _inputs, output: output * 3)
    assert not torch.equal(logits(late), logits(subject)), "what comes later is not on the copy"


def test_a_hook_that_cannot_be_copied_is_a_sentence() -> None:
    class Recorder:
        """Keeps activations, with their graph."""

        def __init__(self) -> None:
            self.kept: list[torch.Tensor] = []

        def __call__(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self.kept.append(output)

    subject = tiny_subject()
    handle = subject.model.get_submodule("transformer.h.0").register_forward_hook(Recorder())
    subject.layer_map("block.0")(subject.embed(IDS).requires_grad_(True))
    with pytest.raises(probekit.UsageError, match=r"No copy of this GPT2LMHeadModel can be made: .* Take off hooks"):
        copied(subject)
    handle.remove()
    copied(subject)


def test_a_copy_of_a_copy_and_a_declared_anatomy() -> None:
    model = tiny_subject().model
    subject = probekit.Subject(model, anatomy={"blocks": "transformer.h", "norm": None, "sequence": 6}, settled=True)
    copy = copied(copied(subject))
    assert copy.anatomy.norm is None
    assert copy.anatomy.sequence == 6
    assert copy.sites() == subject.sites()


def test_models_that_cannot_be_trained_are_refused_with_a_sentence() -> None:
    what = "Making it sing"
    check(tiny_subject(), what)
    subject = tiny_subject()
    subject.model.is_loaded_in_4bit = True  # type: ignore[assignment]
    with pytest.raises(probekit.UsageError, match=f"{what} changes weights, so it needs an unquantised model"):
        check(subject, what)
    subject = tiny_subject()
    block = subject.model.get_submodule("transformer.h.1.ln_1")
    block.weight = nn.Parameter(torch.empty(32, device="meta"))  # two devices, as where a part is on disk
    with pytest.raises(probekit.UsageError, match=f"{what} needs the whole model on one device"):
        check(subject, what)
    subject.model.to_empty(device="meta")
    with pytest.raises(probekit.UsageError, match="whole model on one device"):
        check(subject, what)
    headless = tiny_subject().model.get_submodule("transformer")
    with pytest.raises(probekit.UsageError, match=f"{what} needs a model that predicts tokens"):
        check(probekit.Subject(headless), what)


class Tuned(nn.Module):
    """A copy that is trained through its layer map."""

    def __init__(self) -> None:
        super().__init__()
        self._copy = [copied(tiny_subject())]
        self.model = self._copy[0].model
        self.modes: list[bool] = []

    def loss(self, ids: torch.Tensor, step: Step) -> torch.Tensor:
        [copy] = self._copy
        self.modes.append(any(module.training for module in self.model.modules()))
        found = copy.layer_map("logits")(copy.anatomy.embedding(ids))
        return nn.functional.cross_entropy(found[:, :-1].transpose(1, 2), ids[:, 1:])


class Still(WithoutDropout, Tuned):
    """As it is to be."""


def training(module: Tuned, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)  # what dropout would draw from
    options = TrainingOptions(steps=6, learning_rate=5e-3)
    return train(module, module.loss, lambda _: IDS, options, probekit.Context(), "a").losses


def test_a_copy_in_a_module_that_a_trainer_trains_has_no_dropout_and_gets_gradients() -> None:
    first, again = Still(), Still()
    losses = training(first)
    assert not any(first.modes)
    assert torch.equal(losses, training(again, seed=1))
    assert losses[-1] < losses[0]
    before, after = (dict(each.named_parameters()) for each in (copied(tiny_subject()).model, first.model))
    assert [name for name, each in before.items() if torch.equal(each, after[name])] == []
    assert all(each.grad is None for each in first.parameters()), "no gradients are kept"


def test_without_that_base_it_would_not_be_trained_so() -> None:
    module = Tuned().train()
    assert module.model.training
    module = Still().train()
    assert not any(part.training for part in module.modules())
    assert module.eval() is module


def test_what_was_trained_is_in_eval_mode_also_where_it_is_read_back() -> None:
    class Kept:
        """Where a run keeps states."""

        def __init__(self) -> None:
            self.kept: dict[tuple[str, str], dict[str, torch.Tensor]] = {}

        def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
            return self.kept.get((kind, label))

        def write(self, kind: str, label: str, state: dict[str, torch.Tensor]) -> None:
            self.kept[kind, label] = {name: tensor.detach().clone() for name, tensor in state.items()}

        def due(self) -> bool:
            return False

        def stop_asked(self) -> bool:
            return False

    store, outputs = Kept(), []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
        options = TrainingOptions(steps=2)
        train(module, lambda x, _: module(x).square().mean(), lambda _: P, options, probekit.Context(store=store), "a")  # noqa: B023
        assert not module[1].training
        outputs.append(module(P))
    assert torch.equal(*outputs)


def test_a_model_that_refuses_gradients_in_eval_mode_is_a_sentence() -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(_context: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_context: object, _gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            raise NotImplementedError("only in training mode")

    module = Still()
    options = TrainingOptions(steps=2)
    with pytest.raises(probekit.AnalysisError, match=r"Still cannot be trained without dropout: .*only in training"):
        train(
            module,
            lambda ids, step: Refusing.apply(module.loss(ids, step)),
            lambda _: IDS,
            options,
            probekit.Context(),
            "a",
        )


def test_a_wrapped_copy_keeps_what_is_frozen() -> None:
    copy = copied(tiny_subject())
    copy.model.get_parameter("transformer.wpe.weight").requires_grad_(False)
    again = copies.wrapped(copy.model, copy)
    assert again.model is copy.model
    assert [name for name, each in again.model.named_parameters() if not each.requires_grad] == [
        "transformer.wpe.weight"
    ]
