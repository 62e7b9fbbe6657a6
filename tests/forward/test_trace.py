"""What somebody leaves on a model: each thing is named, and put back; what cannot be put back is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as everywhere
from torch.nn.utils import parametrizations, parametrize, weight_norm

import probekit
from probekit.forward import Trace, trace

Change = Callable[[Any], object]


def replaced_parameter(model: Any) -> None:
    model.transformer.h[1].ln_1.weight = nn.Parameter(torch.ones(32))


def moved(model: Any) -> None:
    model.transformer.ln_f.weight.data = torch.zeros(32)


def with_gradient(model: Any) -> None:
    model.transformer.wpe.weight.grad = torch.zeros(32, 32)


def replaced_forward(model: Any) -> None:
    model.lm_head.forward = lambda hidden: hidden


def everywhere_hooked(_model: Any) -> None:
    everywhere.register_module_forward_hook(lambda *_: None)


def transposed(model: Any) -> None:
    weight = model.transformer.h[0].attn.c_proj.weight  # square
    weight.data = weight.data.t()


def resized(model: Any) -> None:
    with torch.no_grad():
        model.transformer.ln_f.weight.resize_(4)


def in_another_precision(model: Any) -> None:
    model.transformer.ln_f.weight.data = model.transformer.ln_f.weight.data.view(torch.int32)


def hooked_after_accumulation(model: Any) -> None:
    weight = model.transformer.wpe.weight
    weight.requires_grad_().register_post_accumulate_grad_hook(lambda _: None)
    weight.requires_grad_(False)


def of_another_class(model: Any) -> None:
    class Silent(type(model.lm_head)):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 0 * super().forward(hidden)

    model.lm_head.__class__ = Silent


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


# What is done to a model, and how it is named.
MENDED: dict[str, tuple[Change, str]] = {
    "forward hook": (
        lambda model: model.transformer.h[0].register_forward_hook(lambda *_: None),
        "forward hooks of 'transformer.h.0'",
    ),
    "forward hook that is always called": (
        lambda model: model.register_forward_hook(lambda *_: None, always_call=True),
        "forward hooks of the model itself",
    ),
    "hook before the forward": (
        lambda model: model.transformer.h[2].register_forward_pre_hook(lambda *_: None),
        "forward pre hooks of 'transformer.h.2'",
    ),
    "backward hook": (
        lambda model: model.transformer.h[0].mlp.register_full_backward_hook(lambda *_: None),
        "backward hooks of 'transformer.h.0.mlp'",
    ),
    "hook on a state dict": (
        lambda model: model.register_state_dict_post_hook(lambda *_: None),
        "state dict hooks of the model itself",
    ),
    "hook of every module": (everywhere_hooked, "hooks of every module (forward_hooks)"),
    "replaced module": (
        lambda model: model.transformer.h.__setitem__(1, nn.Identity()),
        "other modules in 'transformer.h'",
    ),
    "added module": (lambda model: model.add_module("more", nn.Identity()), "other modules in the model itself"),
    "replaced parameter": (replaced_parameter, "other parameters in 'transformer.h.1.ln_1'"),
    "replaced forward": (replaced_forward, "another forward of 'lm_head'"),
    "other storage": (moved, "other storage of 'transformer.ln_f.weight'"),
    "training": (lambda model: model.train(), "the training mode of the model itself and"),
    "required gradients": (lambda model: model.requires_grad_(True), "requires_grad of 'transformer.wte.weight' and"),
    "gradient": (with_gradient, "gradients of 'transformer.wpe.weight'"),
    "hook on a gradient": (
        lambda model: model.transformer.wpe.weight.requires_grad_().register_hook(lambda gradient: gradient),
        "hooks on gradients of 'transformer.wpe.weight'",
    ),
    "transposed storage": (transposed, "other storage of 'transformer.h.0.attn.c_proj.weight'"),
    "smaller weight": (resized, "other storage of 'transformer.ln_f.weight'"),
    "storage of another type": (in_another_precision, "other storage of 'transformer.ln_f.weight'"),
    "hook after gradients": (hooked_after_accumulation, "hooks on gradients of 'transformer.wpe.weight'"),
    "another class": (of_another_class, "another class of 'lm_head'"),
    "added buffer": (
        lambda model: model.lm_head.register_buffer("more", torch.zeros(2)),
        "other buffers in 'lm_head'",
    ),
    "old weight norm": (
        lambda model: _quietly(weight_norm, model.transformer.h[1].mlp.c_fc),
        "other parameters in 'transformer.h.1.mlp.c_fc'",
    ),
    "weight norm": (
        lambda model: parametrizations.weight_norm(model.transformer.h[1].mlp.c_fc),
        "another class of 'transformer.h.1.mlp.c_fc'",
    ),
    "parametrised weight": (
        lambda model: parametrize.register_parametrization(model.lm_head, "weight", Halved()),
        "another class of 'lm_head'",
    ),
}


def _quietly(do: Callable[..., object], *arguments: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still used
        do(*arguments)


def filled(model: Any) -> None:
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.add_(1e-3)


def through_data(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.weight.data[3, 4] += 1


def through_numpy(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.bias.detach().numpy()[7] = 5


def swapped_rows(model: Any) -> None:
    weight = model.transformer.wpe.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def columns_turned(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.weight.data[:, [1, 3]] *= -1


def rolled(model: Any) -> None:
    weight = model.transformer.wpe.weight.data
    weight.copy_(weight.roll(2, 1))


WRITTEN: dict[str, tuple[Change, str]] = {
    "in place": (filled, "transformer.h.1.mlp.c_fc.weight"),
    "one figure, through data": (through_data, "transformer.h.1.mlp.c_fc.weight"),
    "one figure, through numpy": (through_numpy, "transformer.h.1.mlp.c_fc.bias"),
    "rows swapped": (swapped_rows, "transformer.wpe.weight"),
    "columns turned": (columns_turned, "transformer.h.1.mlp.c_fc.weight"),
    "columns rolled": (rolled, "transformer.wpe.weight"),
}


@pytest.fixture
def model(tiny_gpt2: Callable[..., Path]) -> nn.Module:
    return probekit.load(str(tiny_gpt2())).model


@pytest.mark.parametrize("change", MENDED)
def test_what_is_left_on_a_model_is_named_and_put_back(
    change: str, model: nn.Module, assert_untouched: Callable[[nn.Module], Any]
) -> None:
    do, named = MENDED[change]
    with assert_untouched(model):
        before = Trace(model)
        do(model)
        found, whole = before.put_back()
        assert whole
        assert any(sentence.startswith(named) for sentence in found), found
        assert before.put_back() == ([], True)


@pytest.mark.parametrize("change", WRITTEN)
def test_what_is_written_into_a_weight_is_noticed(change: str, model: nn.Module) -> None:
    do, name = WRITTEN[change]
    before = Trace(model)
    do(model)
    assert before.put_back() == ([f"other figures in '{name}'"], False)


def test_of_large_models_a_few_figures_of_each_weight_are_compared(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "READ_WHOLE", 0)
    before = Trace(model)
    filled(model)
    assert before.put_back() == (["other figures in 'transformer.h.1.mlp.c_fc.weight'"], False)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_in_every_precision_one_changed_figure_is_noticed(dtype: str, tiny_gpt2: Callable[..., Path]) -> None:
    model = probekit.load(str(tiny_gpt2()), dtype=dtype).model
    before = Trace(model)
    assert before.put_back() == ([], True)
    through_data(model)
    assert before.put_back()[1] is False


def test_every_weight_of_a_float64_model_turned_is_noticed(tiny_gpt2: Callable[..., Path]) -> None:
    model = probekit.load(str(tiny_gpt2()), dtype="float64").model
    before = Trace(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.neg_()
    assert before.put_back() == ([f"other figures in 'transformer.wte.weight' and {len(before.sums) - 1} more"], False)


@pytest.mark.parametrize("change", [columns_turned, rolled, swapped_rows, filled])
def test_the_few_figures_of_large_models_meet_all_columns(
    change: Change, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "READ_WHOLE", 0)
    before = Trace(model)
    assert before.put_back() == ([], True)
    change(model)
    assert before.put_back()[1] is False


def test_the_sums_of_a_reloaded_model_are_the_same(tiny_gpt2: Callable[..., Path]) -> None:
    checkpoint = str(tiny_gpt2())
    before, model = Trace(probekit.load(checkpoint).model), probekit.load(checkpoint).model
    assert Trace(model).sums == before.sums
    through_numpy(model)
    assert Trace(model).sums != before.sums


@pytest.mark.parametrize("piece", [16, 2**24])
def test_tensors_are_read_whole_whatever_their_strides(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "PIECE", piece)
    part = nn.Linear(6, 5)
    part.weight.data = part.weight.data.t()
    part.register_buffer("every_other", torch.arange(12.0).view(3, 4)[:, ::2])
    part.register_buffer("scalar", torch.tensor(True))
    part.register_buffer("empty", torch.zeros(3, 0))
    for tensor in (part.weight.data, part.every_other):
        for place in (0, -1):
            before = Trace(part)
            assert before.put_back() == ([], True)
            tensor[place, place] += 1
            assert before.put_back()[1] is False
    before = Trace(part)
    part.scalar.logical_not_()  # type: ignore[operator]
    assert before.put_back() == (["other figures in 'scalar'"], False)


def test_a_weight_that_was_made_larger_is_put_back() -> None:
    part = nn.Linear(3, 2).requires_grad_(False)
    before = Trace(part)
    part.weight.resize_(1024, 1024)  # which moves it
    assert before.put_back() == (["other storage of 'weight'"], True)
    assert part.weight.shape == (2, 3)
    assert before.put_back() == ([], True)


@pytest.mark.parametrize("left", [0, 8])
def test_a_weight_whose_memory_is_freed_is_noticed_and_not_read(left: int) -> None:
    part = nn.Linear(300, 200)
    before = Trace(part)
    part.weight.untyped_storage().resize_(left)
    assert before.put_back() == (["other figures in 'weight'"], False)


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaling, self.seen = 0.5, {"calls": 0}
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("passing", torch.tensor([1.0, float("nan")]), persistent=False)


def test_persistent_buffers_are_compared() -> None:
    part = nn.Sequential(WithBuffers())
    before = Trace(part)
    kept = part[0].kept
    part[0].kept = kept.clone()
    assert before.put_back() == (["other buffers in '0'"], True)
    assert part[0].kept is kept
    part[0]._non_persistent_buffers_set.add("kept")
    assert before.put_back() == (["other buffers in '0'"], True)
    part[0].kept.data = torch.arange(3.0)
    assert before.put_back() == (["other storage of '0.kept'"], True)
    part[0].kept.neg_()
    assert before.put_back() == (["other figures in '0.kept'"], False)


def test_what_models_change_themselves_is_put_back_without_a_word() -> None:
    with torch.inference_mode():  # as buffers of some models are
        part = WithBuffers()
        part.early = torch.zeros(2)
    before, attributes = Trace(part), dict(vars(part))
    passing = part.passing
    with torch.inference_mode():
        passing[:] = 7
    part.passing = torch.zeros(5)
    part.register_buffer("late", torch.zeros(2), persistent=False)
    part.scaling, part.max_seq_len_cached, part.early = 0.25, 77, torch.ones(2)
    del part.seen
    vars(part)["kept"] = torch.zeros(3)  # hides the buffer
    assert before.put_back() == ([], True)
    assert list(vars(part)) == list(attributes)
    assert all(vars(part)[name] is value for name, value in attributes.items())
    assert part.passing is passing
    assert passing[0] == 1
    assert passing[1].isnan()
    assert part.kept.tolist() == [0, 1, 2]
    assert set(part._buffers) == {"kept", "passing"}


def test_a_buffer_that_reached_autograd_is_put_back() -> None:
    part = WithBuffers()
    before = Trace(part)
    part.kept.mul_(torch.ones(3, requires_grad=True))
    assert before.put_back() == (["requires_grad of 'kept'"], True)
    assert part.kept.is_leaf


def test_a_compiled_model_is_not_compiled_afterwards(
    model: nn.Module, assert_untouched: Callable[[nn.Module], Any]
) -> None:
    with assert_untouched(model):
        before = Trace(model)
        model.compile(backend="eager")
        assert before.put_back() == ([], True)
        assert model._compiled_call_impl is None


def test_settings_are_put_back_without_a_word(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    model: Any = subject.model
    model.config.text_config = type(model.config)(n_head=2)
    model.config.architectures = ["GPT2LMHeadModel"]
    was = {key: model.config.to_dict()[key] for key in ("architectures", "text_config")}
    before = Trace(model)
    model.config.output_hidden_states = True
    model.config.more = 3
    model.config.architectures.append("Other")
    model.config.text_config.n_head = 4
    model.generation_config.do_sample = True
    assert before.put_back() == ([], True)
    assert {key: model.config.to_dict()[key] for key in was} == was
    assert not hasattr(model.config, "more")
    assert not model.config.output_hidden_states
    assert not model.generation_config.do_sample
    subject.capture(torch.tensor([[1, 2, 3]]), ["logits"])
    assert before.put_back() == ([], True)  # no hooks of transformers' own


def test_of_sparse_and_uninitialised_tensors_only_which_they_are_is_compared() -> None:
    part = nn.Module()
    part.sparse = nn.Parameter(torch.eye(3).to_sparse())
    part.later = nn.UninitializedParameter()
    part.register_buffer("rows", torch.eye(3).to_sparse())
    part.register_buffer("passing", torch.eye(3).to_sparse(), persistent=False)
    before, sparse, later = Trace(part), part.sparse, part.later
    assert before.put_back() == ([], True)
    part.sparse, part.later = nn.Parameter(torch.eye(3)), nn.UninitializedParameter()
    assert before.put_back() == (["other parameters in the model itself"], True)
    assert part.sparse is sparse
    assert part.later is later


@pytest.mark.parametrize(("quantization", "name"), [("int8", "SCB"), ("nf4", "absmax")])
@pytest.mark.parametrize("computes", [False, True])
def test_what_is_written_into_the_figures_of_a_quantisation_is_noticed(
    quantization: str, name: str, computes: bool, tiny_gpt2: Callable[..., Path]
) -> None:
    subject = probekit.load(str(tiny_gpt2(n_embd=64)), quantization=quantization)
    before = Trace(subject.model)
    if computes:
        subject.capture(torch.tensor([[1, 2, 3]]), ["logits"])
    assert before.put_back() == ([], True)
    layer = subject.model.transformer.h[0].attn.c_attn
    holders = [layer.weight, layer.state] if quantization == "int8" else [layer.weight.quant_state]
    (figures,) = [vars(holder)[name] for holder in holders if vars(holder).get(name) is not None]
    figures.mul_(2)
    assert before.put_back() == ([f"other figures in 'transformer.h.0.attn.c_attn.{name}'"], False)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_model_that_computes_is_not_taken_for_changed(
    quantization: str, tiny_gpt2: Callable[..., Path]
) -> None:
    subject = probekit.load(str(tiny_gpt2(n_embd=64)), quantization=quantization)
    before = Trace(subject.model)
    ids = torch.tensor([[1, 2, 3]])
    embeddings = subject.embed(ids).requires_grad_()
    subject.layer_map("block.-1")(embeddings).sum().backward()
    subject.capture(ids, ["logits"])
    assert before.put_back() == ([], True)


def test_a_model_on_disk_that_computes_is_not_taken_for_changed(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()), device_map={"": "disk"})
    before = Trace(subject.model)
    subject.capture(torch.tensor([[1, 2, 3]]), ["logits"])
    assert before.put_back() == ([], True)
