"""Models whose blocks carry their activations in an order of their own: read, replaced and differentiated as
`[batch, sequence, width]`.

The reference for models made by hand is the same computation on streams `[batch, sequence, streams, width]`, without
modules; for those of transformers it is hooks of the test's own, with each order written down by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from probekit.errors import ModelError, UsageError
from tests.forward.tiny import make, tiny

WIDTH = 6
WORDS = 11
IDS = torch.tensor([[1, 2, 3, 4, 5], [10, 2, 2, 7, 6]])
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Order:
    """How a model keeps states `[batch, positions, streams, width]`, and how it gets them back."""

    names: tuple[str | int, ...]
    keep: Callable[[torch.Tensor], torch.Tensor]
    get: Callable[[torch.Tensor], torch.Tensor]
    streams: int = 1
    prefix: int = 0  # positions of the model's own, in front of the prompt's


ORDERS = {
    "as usual": Order(("batch", "sequence", WIDTH), lambda x: x[:, :, 0], lambda x: x[:, :, None]),
    "streams behind": Order(("batch", "sequence", 4, WIDTH), lambda x: x, lambda x: x, 4),
    "streams in front": Order(
        (4, "batch", "sequence", WIDTH),
        lambda x: torch.einsum("bskh->kbsh", x),
        lambda x: torch.einsum("kbsh->bskh", x),
        4,
    ),
    "sequence in front": Order(
        ("sequence", "batch", WIDTH), lambda x: x[:, :, 0].transpose(0, 1), lambda x: x.transpose(0, 1)[:, :, None]
    ),
    "sequences one after another": Order(
        ("batch", "3 × sequence", WIDTH),
        lambda x: torch.cat([x[:, :, stream] for stream in range(3)], 1),
        lambda x: torch.stack(x.chunk(3, 1), 2),
        3,
    ),
    "rows of a prompt": Order(
        ("2 × batch", "sequence", WIDTH),
        lambda x: torch.stack([prompt[:, stream] for prompt in x for stream in range(2)]),
        lambda x: torch.stack([torch.stack([*rows], 1) for rows in x.split(2)]),
        2,
    ),
    "positions in front": Order(
        ("batch", "3 + sequence", WIDTH), lambda x: x[:, :, 0], lambda x: x[:, :, None], prefix=3
    ),
    "positions and sequence in front": Order(
        ("3 + sequence", "batch", WIDTH),
        lambda x: x[:, :, 0].transpose(0, 1),
        lambda x: x.transpose(0, 1)[:, :, None],
        prefix=3,
    ),
}
every_order = pytest.mark.parametrize("name", ORDERS)


class Block(nn.Module):
    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.order.keep(self.compute(self.order.get(states))),)

    def compute(self, states: torch.Tensor) -> torch.Tensor:
        """Causal over positions, and another in each stream."""
        streams = torch.arange(1.0, states.shape[2] + 1, dtype=states.dtype)[:, None]
        return states + torch.tanh(self.linear(states.cumsum(1) * streams).flip(2))


class Carrying(nn.Module):
    """A causal language model whose two blocks carry their states in that order."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=2, vocab_size=WORDS, pad_token_id=None)
        self.order = order
        self.words = nn.Embedding(WORDS + order.prefix, WIDTH)
        self.layers = nn.ModuleList(Block(order) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.order.keep(self.spread(self.words(self.with_prefix(input_ids))))
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.scores(self.order.get(states)))

    def with_prefix(self, input_ids: torch.Tensor) -> torch.Tensor:
        prefix = WORDS + torch.arange(self.order.prefix)
        return torch.cat([prefix.expand(len(input_ids), -1), input_ids], 1)

    def spread(self, embeddings: torch.Tensor) -> torch.Tensor:
        scales = torch.arange(1.0, self.order.streams + 1, dtype=embeddings.dtype)[:, None]
        return embeddings[:, :, None] * scales

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        return self.head(states[:, self.order.prefix :].mean(2))

    def by_hand(self, embeddings: torch.Tensor, change: Change | None = None) -> dict[str, torch.Tensor]:
        """States `[batch, positions, streams, width]` after each block, and the logits, from a prompt's embeddings.

        With `change`, what is the prompt's own after block 0 is `change` of it.
        """
        own = slice(self.order.prefix, None)
        prefix = self.words(WORDS + torch.arange(self.order.prefix)).expand(len(embeddings), -1, -1)
        first = self.layers[0].compute(self.spread(torch.cat([prefix, embeddings], 1)))
        if change is not None:
            changed = change(first[:, own].flatten(2)).unflatten(2, first.shape[2:])
            first = torch.cat([first[:, : self.order.prefix], changed], 1)
        last = self.layers[1].compute(first)
        return {"block.0": first, "block.1": last, "logits": self.scores(last)}


def own(model: Carrying, states: torch.Tensor) -> torch.Tensor:
    """The activation of a prompt in the states of all positions."""
    return states[:, model.order.prefix :].flatten(2) if states.dim() == 4 else states


@contextmanager
def watched(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a module gets first while open, each time that it runs."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


@every_order
def test_the_axes_of_a_block_are_named_in_its_own_order(name: str) -> None:
    subject = probekit.Subject(Carrying(ORDERS[name]))
    assert subject.axes("block.0") == subject.axes("block.-1") == ORDERS[name].names
    assert subject.axes("logits") == ("batch", "sequence", WORDS)
    assert subject.axes("layers.0.linear")[0] == "batch"  # a module path, whatever the model's own order


@every_order
@pytest.mark.parametrize("batch", [1, 2, 5], ids=["one prompt", "two prompts", "as many prompts as tokens"])
def test_what_is_captured_is_the_prompts_own_part_of_the_states(name: str, batch: int) -> None:
    model = Carrying(ORDERS[name])
    subject = probekit.Subject(model)
    ids = (IDS[:1] + torch.arange(batch)[:, None]) % WORDS
    with torch.no_grad():
        expected = model.by_hand(model.words(ids))
    captured = subject.capture(ids, list(expected))
    for site, states in expected.items():
        assert torch.equal(captured[site], own(model, states)), site


@every_order
def test_as_many_tokens_as_the_width_are_no_obstacle(name: str) -> None:
    model = Carrying(ORDERS[name])
    ids = torch.arange(WIDTH)[None]
    with torch.no_grad():
        expected = own(model, model.by_hand(model.words(ids))["block.1"])
    assert torch.equal(probekit.Subject(model).capture(ids, ["block.1"])["block.1"], expected)


@every_order
def test_an_edit_changes_the_prompts_own_positions_and_reaches_the_next_block_in_the_models_order(name: str) -> None:
    model = Carrying(ORDERS[name])
    subject = probekit.Subject(model)
    given: list[torch.Size] = []

    def change(activation: torch.Tensor) -> torch.Tensor:
        given.append(activation.shape)
        numbers = torch.arange(float(activation.numel())).reshape(activation.shape)
        return activation.flip(-1) + numbers / 100

    with torch.no_grad():
        expected = model.by_hand(model.words(IDS), change)
        unedited = model.by_hand(model.words(IDS))
    subject.axes("logits")  # measured before the edit, which would be called for that too
    with watched(model.layers[1]) as seen, subject.edit("block.0", change):
        logits = subject.capture(IDS, ["logits"])["logits"]
    assert given == [(*IDS.shape, WIDTH * model.order.streams)] * 2  # by hand, and in the one forward
    assert torch.equal(seen[0], model.order.keep(expected["block.0"]))
    torch.testing.assert_close(logits, expected["logits"])
    # What stands in front is the model's own, and is left alone.
    prefix = slice(0, model.order.prefix)
    assert torch.equal(model.order.get(seen[0])[:, prefix], unedited["block.0"][:, prefix])
    assert not torch.allclose(logits, unedited["logits"])
    assert torch.equal(subject.capture(IDS, ["logits"])["logits"], unedited["logits"])


@every_order
@pytest.mark.parametrize("site", ["block.0", "block.1", "logits"])
def test_values_and_gradients_of_a_layer_map_are_those_of_the_computation_by_hand(name: str, site: str) -> None:
    model = Carrying(ORDERS[name]).double()
    subject = probekit.Subject(model)
    generator = torch.Generator().manual_seed(1)
    layer_map = subject.layer_map(site)
    for _ in range(4):  # later calls may be computed in another way than the first
        at = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=generator)
        ours, theirs = at.clone().requires_grad_(), at.clone().requires_grad_()
        activation = layer_map(ours)
        expected = own(model, model.by_hand(theirs)[site])
        assert torch.equal(activation, expected)
        direction = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
        (gradient,) = torch.autograd.grad((activation * direction).sum(), ours)
        (reference,) = torch.autograd.grad((expected * direction).sum(), theirs)
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)
        assert gradient.abs().amax(-1).min() > 0


@every_order
def test_an_edit_of_the_embedding_gets_the_prompts_own_embeddings(name: str) -> None:
    model = Carrying(ORDERS[name])
    subject = probekit.Subject(model)
    others = torch.randn(2, 5, WIDTH)
    with subject.edit("embedding", lambda activation: others + 0 * activation):
        edited = subject.capture(IDS, ["embedding", "block.1"])
    with torch.no_grad():
        assert torch.equal(edited["block.1"], own(model, model.by_hand(others)["block.1"]))
        assert torch.equal(edited["block.1"], subject.layer_map("block.1")(others))
    assert torch.equal(edited["embedding"], others)
    assert torch.equal(subject.capture(IDS, ["embedding"])["embedding"], subject.embed(IDS))


@every_order
def test_embeddings_of_another_width_are_refused_in_a_sentence(name: str) -> None:
    subject = probekit.Subject(Carrying(ORDERS[name]))
    with pytest.raises(UsageError, match=rf"\(2, 5, 5\); the model's own have \(2, 5, {WIDTH}\)\."):
        subject.layer_map("block.0")(torch.zeros(2, 5, 5))


# --- models whose blocks show no batch or no sequence ----------------------------------------------------------------


FLAT = Order(("batch × sequence", WIDTH), lambda x: x[:, :, 0].flatten(0, 1), lambda x: x[None, :, None])


class Flat(Carrying):
    """Its blocks get all positions of all prompts in one axis, and mix none of them."""

    def __init__(self) -> None:
        super().__init__(FLAT)
        for block in self.layers:
            block.compute = lambda states, block=block: states + torch.tanh(block.linear(states))

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids).flatten(0, 1)
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.head(states).unflatten(0, input_ids.shape))


def test_where_batch_and_sequence_are_one_axis_the_activation_is_what_the_block_returns() -> None:
    model = Flat()
    subject = probekit.Subject(model)
    assert subject.axes("block.0") == ("batch × sequence", WIDTH)
    with torch.no_grad():
        first = model.layers[0].compute(model.words(IDS).flatten(0, 1))
        last = model.layers[1].compute(first)
    captured = subject.capture(IDS, ["block.0", "block.1", "logits"])
    assert captured["block.0"].shape == (10, WIDTH)
    torch.testing.assert_close(captured["block.0"], first)
    torch.testing.assert_close(captured["block.1"], last)
    assert captured["logits"].shape == (*IDS.shape, WORDS)
    with watched(model.layers[1]) as seen, subject.edit("block.0", torch.neg):
        subject.capture(IDS, ["logits"])
    assert torch.equal(seen[0], -captured["block.0"])
    embeddings = subject.embed(IDS).requires_grad_()
    (gradient,) = torch.autograd.grad(subject.layer_map("block.1")(embeddings)[7].sum(), embeddings)
    reached = gradient.abs().amax(-1) > 0
    assert reached.nonzero().tolist() == [[1, 2]]  # row 7 is the third token of the second prompt


class OneLength(Carrying):
    """Takes three tokens, no more and no fewer."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        assert input_ids.shape[1] == 3
        return super().forward(input_ids)


@pytest.mark.parametrize("name", ["as usual", "streams behind", "streams in front", "sequence in front"])
def test_a_model_of_one_length_is_read_in_its_own_order(name: str) -> None:
    model = OneLength(ORDERS[name])
    subject = probekit.Subject(model, anatomy={"sequence": 3})
    assert subject.axes("block.0") == ORDERS[name].names
    ids = IDS[:, :3]
    with torch.no_grad():
        expected = own(model, model.by_hand(model.words(ids))["block.1"])
        assert torch.equal(subject.capture(ids, ["block.1"])["block.1"], expected)
        assert torch.equal(subject.layer_map("block.1")(subject.embed(ids)), expected)


class FilledUp(Carrying):
    """Fills longer prompts up to the next multiple of four positions, as reformer, and cuts its logits back."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        length = input_ids.shape[1]
        states = self.words(input_ids)
        if length > 4:
            states = nn.functional.pad(states, (0, 0, 0, -length % 4), value=9.0)
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.head(states[:, :length]))


def test_positions_that_a_model_fills_up_are_not_the_prompts() -> None:
    model = FilledUp()
    subject = probekit.Subject(model)
    generator = torch.Generator().manual_seed(1)
    for length in (2, 4, 5, 7, 8):
        ids = torch.arange(length)[None]
        with torch.no_grad():
            expected = model.by_hand(model.words(ids))
        captured = subject.capture(ids, list(expected))
        layer_map = subject.layer_map("block.1")
        for _ in range(4):
            ours = torch.randn(1, length, WIDTH, generator=generator).requires_grad_()
            theirs = ours.detach().clone().requires_grad_()
            activation, by_hand = layer_map(ours), own(model, model.by_hand(theirs)["block.1"])
            torch.testing.assert_close(activation, by_hand)
            torch.testing.assert_close(
                torch.autograd.grad(activation.square().sum(), ours),
                torch.autograd.grad(by_hand.square().sum(), theirs),
            )
        for site, states in expected.items():
            torch.testing.assert_close(captured[site], own(model, states))


# --- the embedding ---------------------------------------------------------------------------------------------------


class Pair(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> Any:
        return super().forward(ids), ids


class Paired(Carrying):
    """Its embedding returns a tuple."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])
        self.words = Pair(WORDS, WIDTH)

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)[0]
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.head(states))


def test_an_embedding_that_returns_no_tensor_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError) as raised:
        probekit.Subject(Paired())
    assert str(raised.value) == (
        "The token embedding 'words' of Paired returns a tuple; expected a tensor. Declare another with the hook "
        "probekit_anatomy."
    )


class Idle(Carrying):
    """Reads the weight of its embedding, which never runs itself."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words.weight[input_ids]
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.head(states))


class WithoutBlocks(Carrying):
    """Never runs its blocks."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.words(input_ids)))


@pytest.mark.parametrize("kind", [Idle, WithoutBlocks])
def test_an_embedding_or_blocks_that_never_run_are_refused_in_a_sentence(kind: type[Carrying]) -> None:
    model = kind()
    with pytest.raises(ModelError) as raised:
        probekit.Subject(model)
    assert str(raised.value) == (
        f"The token embedding 'words' or the blocks 'layers' never run in a forward pass of {kind.__name__}, or return "
        "no tensor; declare where they are with the hook probekit_anatomy."
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Noisy(Carrying):
    """Draws random numbers in eval mode, as reformer does for its hashes."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])
        self.layers[0].compute = lambda states: states + torch.randn_like(states)


def test_a_model_that_draws_random_numbers_in_eval_mode_is_told_from_one_that_cannot_be_substituted() -> None:
    with pytest.raises(ModelError, match=r"^Noisy gives another activation each time that it reads the same tokens"):
        probekit.Subject(Noisy())


class Elsewhere(Carrying):
    """Runs its embedding, multiplies that by zero, and reads the weight itself."""

    def __init__(self) -> None:
        super().__init__(ORDERS["as usual"])

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids) * 0 + self.words.weight[input_ids]
        for block in self.layers:
            (states,) = block(states)
        return CausalLMOutput(logits=self.head(states))


def test_a_model_that_leaves_what_its_embedding_returns_aside_computes_from_the_ids() -> None:
    subject = probekit.Subject(Elsewhere())
    assert subject.conditioned_on_ids
    others = subject.layer_map("block.1", IDS)(torch.randn(2, 5, WIDTH))
    torch.testing.assert_close(others, subject.capture(IDS, ["block.1"])["block.1"])


# --- models of transformers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The axes of the blocks of one architecture, how many streams an activation has, and where the prompt's own is."""

    names: tuple[str | int, ...]
    streams: int
    own: Callable[[torch.Tensor], torch.Tensor]
    put: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # what is returned, with another activation in its place
    embedding: tuple[str | int, ...] = ("batch", "sequence", 32)


AS_USUAL = Known(("batch", "sequence", 32), 1, lambda x: x, lambda x, a: a)
ARCHITECTURES = {
    "gemma3n_text": Known(
        (4, "batch", "sequence", 32),
        4,
        lambda x: torch.cat([*x], -1),
        lambda x, a: torch.stack(a.chunk(4, -1)),
    ),
    "deepseek_v4": Known(
        ("batch", "sequence", 4, 32),
        4,
        lambda x: torch.cat([x[:, :, stream] for stream in range(4)], -1),
        lambda x, a: torch.stack(a.chunk(4, -1), 2),
    ),
    "xlnet": Known(
        ("sequence", "batch", 32),
        1,
        lambda x: torch.einsum("sbh->bsh", x),
        lambda x, a: torch.einsum("bsh->sbh", a),
        ("sequence", "batch", 32),
    ),
    "prophetnet": Known(
        ("batch", "3 × sequence", 32),
        3,
        lambda x: torch.cat([x[:, stream * 5 : stream * 5 + 5] for stream in range(3)], -1),
        lambda x, a: torch.cat(a.chunk(3, -1), 1),
    ),
    "cpmant": Known(
        ("batch", "32 + sequence", 32),
        1,
        lambda x: x[:, 32:],
        lambda x, a: torch.cat([x[:, :32], a], 1),
        ("batch", "32 + sequence", 32),
    ),
    "qwen4_exp": Known(("batch", "sequence", 128), 4, lambda x: x, lambda x, a: a),
    "musicgen": AS_USUAL,
    "blt": AS_USUAL,
    "hrm_text": AS_USUAL,
}
TOKENS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def subject_of(name: str) -> probekit.Subject:
    config_class = CONFIG_MAPPING[name]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return probekit.Subject(make(model_class, tiny(config_class)))


def rows(name: str) -> torch.Tensor:
    """The prompts as the model reads them: musicgen has a row for each of its two codebooks."""
    return TOKENS.repeat_interleave(2, 0) if name == "musicgen" else TOKENS


def plain(name: str) -> torch.Tensor:
    """The logits of a plain forward."""
    with torch.no_grad():
        logits: torch.Tensor = subject_of(name).model(input_ids=rows(name), use_cache=False)[0]
    return logits


@contextmanager
def returning(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """What a module returns first is `change` of it while open; yields what it was, time by time."""
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        first = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(first.clone())
        changed = change(first.clone())
        return changed if isinstance(output, torch.Tensor) else type(output)((changed, *output[1:]))

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@every_architecture
def test_the_axes_of_an_architecture_are_named(name: str) -> None:
    subject, known = subject_of(name), ARCHITECTURES[name]
    assert subject.axes("block.0") == known.names
    assert subject.axes("block.-1") == known.names
    if name != "musicgen":  # which has a table for each codebook
        assert subject.axes("embedding") == known.embedding
    assert subject.axes("logits") == ("2 × batch" if name == "musicgen" else "batch", "sequence", 96)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        (name, site)
        for name in ARCHITECTURES
        for site in ("block.0", "block.1", "block.-1")
        if (name, site) != ("blt", "block.1")  # works on patches, not on the prompt's positions
    ],
)
def test_an_architectures_activation_is_what_its_block_returned_in_order(name: str, site: str) -> None:
    subject, known = subject_of(name), ARCHITECTURES[name]
    block = subject.anatomy.blocks[int(site.removeprefix("block."))]
    with returning(block, lambda states: states) as seen:
        plain(name)
    captured = subject.capture(TOKENS, [site])[site]
    assert captured.shape == (2, 5, known.streams * 32)
    assert torch.equal(captured, known.own(seen[0]))


@every_architecture
def test_an_edit_of_an_architecture_is_that_of_a_hook_by_hand(name: str) -> None:
    subject, known = subject_of(name), ARCHITECTURES[name]
    factors = torch.linspace(0.5, 1.5, known.streams * 32)

    def change(activation: torch.Tensor) -> torch.Tensor:
        assert activation.shape == (2, 5, known.streams * 32)
        return activation * factors + torch.arange(5.0)[:, None] / 10

    block = subject.anatomy.blocks[0]
    before = plain(name)
    with returning(block, lambda states: known.put(states, change(known.own(states)))):
        expected = plain(name)
    with subject.edit("block.0", change):
        edited = plain(name)
    assert torch.equal(edited, expected)
    assert not torch.allclose(edited, before)
    assert torch.equal(plain(name), before)


def test_each_prompt_of_two_codebooks_has_its_rows_of_logits_side_by_side() -> None:
    subject = subject_of("musicgen")
    expected = plain("musicgen")
    captured = subject.capture(TOKENS, ["logits"])["logits"]
    assert expected.shape == (4, 5, 96)
    assert torch.equal(
        captured, torch.stack([torch.cat([expected[0], expected[1]], -1), torch.cat([*expected[2:]], -1)])
    )
    with torch.no_grad():
        torch.testing.assert_close(subject.layer_map("logits")(subject.embed(TOKENS)), captured)


def test_embeddings_of_two_codebooks_are_added_up() -> None:
    subject = subject_of("musicgen")
    tables = [table.weight for table in subject.anatomy.tables]
    assert len(tables) == 2
    torch.testing.assert_close(subject.embed(TOKENS), tables[0][TOKENS] + tables[1][TOKENS])
    assert not subject.has_logits


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9])
def test_reformers_own_padding_is_not_the_prompts(length: int) -> None:
    subject = subject_of("reformer")
    ids = torch.arange(25, 25 + length)[None]
    for site in ("embedding", "block.0", "block.-1", "logits"):
        captured = subject.capture(ids, [site])[site]
        assert captured.shape == (1, length, 96 if site == "logits" else 32)
        with torch.no_grad():
            torch.testing.assert_close(subject.layer_map(site)(subject.embed(ids)), captured)
