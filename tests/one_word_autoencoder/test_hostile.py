"""What is odd: lengths, contexts, sites and models; and the figures against transformers' own, one text at a time."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertLMHeadModel

import probekit
from probekit.testing import fingerprint
from probekit_plugins import lora
from probekit_plugins.batches import Batches
from probekit_plugins.corpus import Texts, start
from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
from probekit_plugins.one_word_autoencoder.figures import exact, figures, kept, memories
from probekit_plugins.one_word_autoencoder.measure import Measured, measured, memory
from probekit_plugins.one_word_autoencoder.model import OneWord
from probekit_plugins.one_word_autoencoder.wording import wording
from tests.forward.tiny import named
from tests.one_word_autoencoder.small import gpt2, llama, run

LITTLE: dict[str, Any] = {
    "texts": "random",
    "length": 5,
    "shortest": 2,
    "pieces": 30,
    "steps": 2,
    "batch": 4,
    "seeds": 1,
}
TEXTS = Texts.of([[3], [4, 5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 15, 16, 17, 18]])
END = 2


def double(name: str, folder: Callable[..., Path]) -> probekit.Subject:
    """In fp64, with a head whose likelihoods are not all alike."""
    if name == "words":
        subject = probekit.load(str(folder(n_positions=160)))
        subject.model.double()
        return subject
    subject = {"gpt2": gpt2, "llama": llama}[name]()
    subject.model.double()
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(3)
    return subject


@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "words"])
def test_every_figure_is_transformers_own_for_each_text_alone(
    name: str, training: str, tiny_gpt2: Callable[..., Path]
) -> None:
    """E, the greedy text from E alone, and both likelihoods, by plain forwards without any mask or hook."""
    subject = double(name, tiny_gpt2)
    options = OneWordAutoencoderOptions(training=training, batch=2, prompts="source" if name == "words" else "none")
    words = wording(subject, options.prompts, 2)
    model = OneWord(subject, words, "block.-2", 2, options, 5)
    with torch.no_grad():
        for each in model.copy.values():  # adapters begin as nothing
            each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(1), dtype=each.dtype), alpha=0.1)
    context = probekit.Context()
    found = measured(model, TEXTS, END, options, context, Batches(context), "x")
    encoder: Any = model.encoder.model
    decoder: Any = model.decoder.model
    assert (decoder is subject.model) == (training == "lora")

    def vectors(row: list[int]) -> torch.Tensor:
        table = encoder.get_input_embeddings()
        before, behind = (torch.tensor([part], dtype=torch.long) for part in words.encode)
        whole = torch.cat([table(before), table(torch.tensor([row])), table(behind), model.slots[None]], 1)
        block = probekit.Subject(encoder).anatomy.blocks[1]
        states: list[torch.Tensor] = []
        handle = block.register_forward_hook(
            lambda _module, _given, out: states.append(out if isinstance(out, torch.Tensor) else out[0])
        )
        encoder(inputs_embeds=whole)
        handle.remove()
        made: torch.Tensor = model._scale * model.linear(model.norm(states[0][:, -2:]))
        return made

    def logits(given: torch.Tensor, row: list[int]) -> torch.Tensor:
        table = decoder.get_input_embeddings()
        before, behind = (table(torch.tensor([part], dtype=torch.long)) for part in words.decode)
        ids = table(torch.tensor([row], dtype=torch.long))
        out: torch.Tensor = decoder(inputs_embeds=torch.cat([before, given, behind, ids], 1)).logits[0]
        return out[before.shape[1] + 2 + behind.shape[1] - 1 :]

    with torch.no_grad():
        own = [vectors(row) for row in TEXTS.rows()]
        for number, row in enumerate(TEXTS.rows()):
            torch.testing.assert_close(found.vectors[number], own[number].flatten(), rtol=1e-9, atol=1e-9)
            greedy: list[int] = []
            while len(greedy) < 6 and END not in greedy:
                greedy.append(int(logits(own[number], greedy)[-1].argmax()))
            assert found.decoded[number].tolist() == greedy + [END] * (6 - len(greedy))
            for given, nll in ((own[number], found.nll), (own[number - 1], found.nll_shuffled)):
                expected = cross_entropy(logits(given, row), torch.tensor([*row, END]), reduction="sum")
                assert float(nll[number]) == pytest.approx(float(expected), rel=1e-9)
            assert bool(exact(found.decoded, found.wanted)[number]) == (greedy == [*row, END])
    assert len(set(map(tuple, found.decoded.tolist()))) > 1 or name == "words"


def test_exact_takes_the_first_token_and_the_end_and_nothing_behind_it() -> None:
    wanted = torch.tensor([[5, 6, END, -1]]).expand(4, -1)
    decoded = torch.tensor([[5, 6, END, 9], [4, 6, END, 0], [5, 6, 7, END], [5, END, END, END]])
    assert exact(decoded, wanted).tolist() == [True, False, False, False]
    nothing = torch.zeros(4)
    found = figures(kept(Measured(decoded, wanted, nothing, nothing, torch.eye(4)), "x"), "x", wanted, 0.5)
    assert (found["exact"], found["exact_shuffled"], found["token_accuracy"]) == (0.25, 0.25, 9 / 12)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_the_memory_of_another_text_is_never_its_own(batch: int) -> None:
    """However texts fall into batches, and where one alone goes on."""
    subject = gpt2()
    subject.model.double()
    texts = Texts.of([*TEXTS.rows(), [19, 20, 21, 22, 23, 24, 25]])
    options = OneWordAutoencoderOptions(segment=2, batch=batch)
    model = OneWord(subject, wording(subject, "none", 1), "block.-2", 1, options, 5)
    context = probekit.Context()
    given = (start(subject), options, context, Batches(context), "x")
    found = memories(memory(model, subject, texts, *given))
    with torch.no_grad():
        states = []
        for row in texts.rows():
            ids, before = torch.tensor([row]), None
            for first in range(0, len(row), 2):
                before = model.encode(ids[:, first : first + 2], torch.ones_like(ids[:, first : first + 2]), before)
                states.append((tuple(row), first // 2, before))
        for number in range(1, 4):
            goes_on = [row for row in texts.rows() if len(row) > 2 * number]
            at = {row: state for row, segment, state in states if segment == number - 1}
            sums, tokens = torch.zeros(2, dtype=torch.float64), 0
            for place, row in enumerate(goes_on):
                part = torch.tensor([row[2 * number : 2 * number + 2]])
                other = at[tuple(goes_on[place - 1])]
                if len(goes_on) == 1:  # the next one, the first, which has ended and keeps its vector
                    other = next(state for text, _, state in states if text == (3,))
                for way, vectors in enumerate((at[tuple(row)], other)):
                    logits = model.continued(vectors, part, torch.ones_like(part))
                    sums[way] += cross_entropy(logits[0], part[0], reduction="sum")
                tokens += part.shape[1]
            own, another = found[number - 1]["memory"], found[number - 1]["another text's memory"]
            assert [own, another] == pytest.approx((sums / tokens).tolist())
            assert own != another


def test_nothing_of_a_copy_is_trained_or_set_to_training_beside_its_parameters() -> None:
    for training in ("full", "lora"):
        subject = gpt2()
        options = OneWordAutoencoderOptions(training=training)
        model = OneWord(subject, wording(subject, "none", 1), "block.-2", 1, options, 5)
        model.train()
        assert not any(module.training for module in model.encoder.model.modules())
        assert not any(name.startswith("_embedded") for name in model.state_dict())


def test_a_context_without_room_for_vectors_on_both_sides_of_a_segment_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("probekit_plugins.one_word_autoencoder.run.train", None)
    long = {"length": 22, "shortest": 22, "segment": 11}
    with pytest.raises(probekit.UsageError, match="Around a segment of 11 tokens stand 44 others"):
        run(gpt2(), **LITTLE | long | {"vectors": 22})
    monkeypatch.undo()
    assert run(gpt2(), **LITTLE | long | {"vectors": 18}).tables["memory"]


def bert() -> probekit.Subject:
    config = BertConfig(vocab_size=38, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return probekit.Subject(BertLMHeadModel(config).eval())


@pytest.mark.parametrize(
    ("subject", "options", "sentence"),
    [
        (bert, {}, "would decode a text from the text itself"),
        (gpt2, {"site": "embedding"}, "has not seen the tokens before it"),
        (lambda: probekit.Subject(named("mamba")), {"training": "lora"}, "peft puts no adapters into"),
        (lambda: probekit.Subject(named("gemma3n")), {}, "read the token ids again"),
        (lambda: probekit.Subject(named("xlnet")), {}, "has the axes"),
    ],
    ids=["non-causal", "site", "mamba", "ids", "axes"],
)
def test_models_and_sites_that_say_nothing_are_refused_in_one_sentence(
    subject: Callable[[], probekit.Subject],
    options: dict[str, Any],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("probekit_plugins.one_word_autoencoder.run.train", None)
    with pytest.raises(probekit.UsageError, match=sentence) as raised:
        run(subject(), **LITTLE | options)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_linear_layers_of_a_class_of_the_models_own_have_adapters_that_work() -> None:
    """Falcon's."""
    subject = probekit.Subject(named("falcon"))
    copy = lora.adapted(subject, 2, 4.0, 1)
    ids = torch.tensor([[5, 6, 7]])
    before = copy.capture(ids, ["logits"])["logits"]
    assert torch.equal(before, subject.capture(ids, ["logits"])["logits"])
    for name, parameter in lora.trained(copy).items():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.add_(1)
            assert not torch.equal(copy.capture(ids, ["logits"])["logits"], before), name
            with torch.no_grad():
                parameter.sub_(1)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "batch": 200, "measured": 2, "repulsion": "info-nce,coding-rate"},
        {"length": 1, "shortest": 1, "segment": 1},
        {"segment": 1, "truncate": 1, "decoded": "last", "vectors": 3},
        {"segment": 50, "losses": "alternated", "repulsion": "coding-rate", "seconds": 1e-9},
    ],
    ids=["few", "one token", "one by one", "no time"],
)
@pytest.mark.parametrize("training", ["full", "lora"])
def test_the_least_of_everything_is_a_result_and_leaves_the_subject_as_it_was(
    options: dict[str, Any], training: str
) -> None:
    subject = gpt2(end=0)
    before = fingerprint(subject.model)
    result = run(subject, **LITTLE | options, training=training)
    result.encode()  # finite figures only
    assert fingerprint(subject.model) == before
    assert all(int(str(row["steps"])) >= 1 for row in result.tables["trained"])
    if "measured" in options:
        assert result.metrics["texts_held_out"] == 2


@pytest.mark.parametrize("training", ["full", "lora"])
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bytes(
    training: str, tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of forwards: while encoding, decoding, training and comparing memories, of the first and the second
    seed; and a second time after it went on.
    """
    options = LITTLE | {"steps": 4, "seeds": 2, "segment": 2, "training": training, "repulsion": "coding-rate"}
    calls, stop = 0, -1

    def counted(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def of(*given: Any, **named: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                signal.raise_signal(signal.SIGINT)
            return original(*given, **named)

        return of

    def begin(name: str) -> probekit.Run:
        plugins = ["one-word-autoencoder"]
        return probekit.run(model=str(tiny_gpt2()), plugins=plugins, options=options, output=tmp_path / name)

    monkeypatch.setattr(OneWord, "encode", counted(OneWord.encode))
    monkeypatch.setattr(OneWord, "_logits", counted(OneWord._logits))
    whole, total = begin("whole"), calls
    draws = random.Random(training)
    for half in range(2):
        first = draws.randrange(max(1, half * total // 2), (half + 1) * total // 2)
        calls, stop = 0, first
        with pytest.raises(KeyboardInterrupt):
            begin(f"broken {half}")
        calls, stop = 0, draws.randrange(1, (total - first) // 2 + 2)
        try:
            resumed = probekit.resume(tmp_path / f"broken {half}")  # it may be over before
        except KeyboardInterrupt:
            stop = -1
            resumed = probekit.resume(tmp_path / f"broken {half}")
        assert resumed.status == "done"
        for name in ("result.json", "tensors.safetensors"):
            found, expected = (each.path / "analyses" / "one-word-autoencoder" / name for each in (resumed, whole))
            assert found.read_bytes() == expected.read_bytes(), (half, name)
