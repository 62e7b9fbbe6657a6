"""Whole runs of the text autoencoder: what is trained and measured, resumed, refused, and read by other encoders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import probekit
from probekit.testing import tiny_subject
from probekit_plugins.corpus import Texts
from probekit_plugins.text_vae import TextVae, TextVaeOptions
from probekit_plugins.text_vae.encoders import pooled
from probekit_plugins.text_vae.made import Maker
from probekit_plugins.text_vae.reading import Reader, without
from probekit_plugins.text_vae.recipe import recipes
from probekit_plugins.trainer import Step

SLOTS = (
    ("the", "a", "one", "some", "every", "my", "your", "his"),
    ("red", "big", "small", "old", "young", "happy", "sad", "green"),
    ("dog", "cat", "man", "woman", "bird", "child", "horse", "robot"),
    ("sees", "eats", "likes", "hates", "finds", "takes", "wants", "holds"),
    ("apples", "books", "cars", "doors", "eggs", "fish", "games", "hats"),
)
SMALL: dict[str, Any] = {"steps": 6, "batch": 4, "measured": 6, "importance_samples": 2, "latent": 4}


def sentences(count: int, slots: int = 5) -> list[str]:
    """Sentences of a grammar with eight words at each of five places: 10.4 nats each."""
    drawn = random.Random(0)
    return [" ".join(drawn.choice(words) for words in SLOTS[:slots]) for _ in range(count)]


def word_tokenizer(marked: bool = False) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<e>", "<u>", *sorted(word for words in SLOTS for word in words)]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if marked:
        tokenizer.post_processor = processors.TemplateProcessing("<u> $A <e>", None, [("<u>", 1), ("<e>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", unk_token="<u>", pad_token="<e>")


def words_subject(width: int = 64, blocks: int = 2) -> probekit.Subject:
    """A GPT-2 of random weights whose tokens are the grammar's words."""
    config = GPT2Config(
        n_layer=blocks, n_embd=width, n_head=4, n_positions=16, vocab_size=42, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    return probekit.Subject(model.eval().requires_grad_(False), word_tokenizer(), settled=True)


def file_of(folder: Path, texts: list[str], name: str = "texts.txt") -> str:
    path = folder / name
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)


def result_of(subject: probekit.Subject, seed: int = 0, **options: Any) -> probekit.Result:
    return TextVae(TextVaeOptions(**{**SMALL, **options}), probekit.Context(seed)).run(subject, [])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return file_of(tmp_path_factory.mktemp("texts"), sentences(200))


# --- what must be reached, and what must fail -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_two_blocks_carry_a_sentence_of_ten_nats_in_sixteen_numbers_and_a_collapsed_one_carries_none(
    seed: int, tmp_path: Path
) -> None:
    found = result_of(
        words_subject(),
        seed,
        texts=file_of(tmp_path, sentences(20_000)),
        steps=800,
        batch=64,
        latent=16,
        measured=512,
        held_out=0.04,
        schedule="constant",
        pooling="max",
        importance_samples=8,
        beside=["collapsed"],
    )
    vae, control = found.tables["settings"]
    assert float(vae["delta_rec"]) > 23
    assert vae["active"] == 16
    assert float(vae["kl"]) > 9
    assert float(vae["mi"]) > 5.5
    assert float(vae["exact"]) >= 0.53
    assert float(control["delta_rec"]) < 0.02
    assert control["active"] == 0
    assert control["exact"] == 0


def test_with_free_bits_z_is_used_and_the_control_collapses_to_the_better_perplexity(tmp_path: Path) -> None:
    options = {"steps": 120, "batch": 32, "measured": 60, "learning_rate": 4e-3, "pooling": "max", "latent": 8}
    found = result_of(words_subject(32, 1), texts=file_of(tmp_path, sentences(2000, 2)), schedule="constant", **options)
    vae, control, language = found.tables["settings"]
    assert float(vae["delta_rec"]) > 2
    assert float(vae["gap"]) > 4
    assert float(vae["mi"]) > 1
    assert abs(float(control["delta_rec"])) < 0.1
    assert control["active"] == 0
    assert float(control["ppl"]) < float(vae["ppl"]) + 0.5
    assert float(control["ppl"]) == pytest.approx(float(language["ppl"]), rel=0.1)
    assert "does not use z, as it must be" in " ".join(found.notes)
    assert "to know z" in found.finding or "knowing z" in found.finding


# --- what is trained --------------------------------------------------------------------------------------------------


def recipe(**options: Any) -> Any:
    return next(recipes(TextVaeOptions(**options)))


def test_beta_is_zero_then_rises_then_is_flat_in_each_cycle() -> None:
    found = recipe(beta=2.0, beta_zero=0.25, beta_rise=0.5)
    assert [found.beta_at(share) for share in (0, 0.24, 0.25, 0.5, 0.75, 0.99)] == [0, 0, 0, 1, 2, 2]
    cyclic = recipe(beta=1.0, beta_zero=0.5, beta_rise=0.0, cycles=2)
    assert [cyclic.beta_at(share) for share in (0, 0.3, 0.5, 0.8)] == [0, 1, 0, 1]
    assert recipe(beta_rise=0.0).beta_at(0.0) == 1


def test_presets_fill_what_is_unset_and_nothing_else() -> None:
    assert (recipe().injection, recipe().free_bits, recipe().deletion) == ("both", 0.5, 0.0)
    found = recipe(preset="t5", deletion=0.1)
    assert (found.injection, found.pooling, found.free_bits, found.deletion) == ("memory", "max", 3.0, 0.1)
    names = [each.name for each in recipes(TextVaeOptions(free_bits=[0, 1], beside=["autoencoder", "collapsed"]))]
    assert names == ["λ=0", "λ=1", "autoencoder", "collapsed"]


def test_free_bits_cost_the_same_whatever_is_below_them_and_without_them_the_loss_is_the_elbo(texts: str) -> None:
    subject = words_subject(16, 1)
    options = TextVaeOptions(**{**SMALL, "texts": texts, "free_bits": [0, 2]})
    maker = Maker.of(subject, options)
    from probekit_plugins.corpus import corpus
    from probekit_plugins.text_vae import figures

    reading = maker.reading(corpus(subject, [], options, probekit.Context(0), 3))
    plain, freed = (maker.vae(each, 0) for each in list(recipes(options))[:2])
    batch = reading.training[torch.arange(4)]
    with torch.no_grad():
        found = figures.latents(plain, batch)
        elbo, costs = (vae.loss(batch, Step(0, 0.9, torch.Generator().manual_seed(1))) for vae in (plain, freed))
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
        z = found.mean + (found.log_variance / 2).exp() * noise
        reconstruction = figures.nll(plain, batch, z).mean()
    assert float(elbo) == pytest.approx(float(reconstruction + found.divergence.sum(1).mean()), rel=1e-5)
    assert float(costs) == pytest.approx(float(reconstruction) + 4 * 2, rel=1e-5)  # an untrained KL is below λ


def test_a_decoder_that_overfits_without_z_is_said_to_and_one_that_does_not_is_not() -> None:
    from probekit_plugins.text_vae.summary import notes

    control: dict[str, Any] = {
        "name": "collapsed",
        "ppl": 20.3,
        "delta_rec": 0.03,
        "delta_rec_error": 0.06,
        "active": 0,
    }
    for ppl, said in ((24.4, True), (20.2, False)):
        found = probekit.Result(tables={"settings": [control, {"name": "no-z", "ppl": ppl}]})
        assert any("overfits" in note for note in notes(found, "the prompts", TextVaeOptions())) is said


def test_phase_1_is_trained_once_for_all_lambdas_and_phase_2_goes_on_from_it(texts: str) -> None:
    found = result_of(words_subject(16, 1), texts=texts, free_bits=[0.1, 1.0], beside=[], seeds=2)
    names = {(row["name"], row["seed"]) for row in found.tables["losses"]}
    assert names == {(name, seed) for name in ("phase 1", "λ=0.1", "λ=1") for seed in (0, 1)}
    assert [row["step"] for row in found.tables["losses"] if (row["name"], row["seed"]) == ("λ=1", 0)] == [4, 5, 6]
    assert all(row["steps"] == 6 for row in found.tables["trained"])


def test_a_decoder_that_is_reset_has_its_first_weights_and_the_encoder_keeps_what_it_learnt(texts: str) -> None:
    maker = Maker.of(words_subject(16, 1), TextVaeOptions(**SMALL, texts=texts))
    vae = maker.vae(recipe(latent=4), 0)
    first, encoder = vae.own_decoder(), [each.clone() for each in vae.encoder.parameters()]
    with torch.no_grad():
        for each in vae.parameters():
            each.add_(1)
    vae.reset_decoder(first)
    assert all(torch.equal(vae.decoder.get_parameter(name), each) for name, each in first.items())
    assert all(torch.equal(now, then + 1) for now, then in zip(vae.encoder.parameters(), encoder, strict=True))


def test_a_t5_keeps_what_encoder_and_decoder_share_when_its_decoder_is_reset(texts: str) -> None:
    options = TextVaeOptions(**SMALL, texts=texts, preset="t5", seq2seq="t5:layers=1,width=16,heads=2")
    vae = Maker.of(words_subject(16, 1), options).vae(next(recipes(options)), 0)
    assert not any("shared" in name or "encoder.block" in name for name in vae.own_decoder())
    assert any("decoder.block" in name for name in vae.own_decoder())


def test_nothing_is_dropped_out_in_training(texts: str) -> None:
    vae = Maker.of(words_subject(16, 1), TextVaeOptions(**SMALL, texts=texts)).vae(recipe(latent=4), 0).train()
    assert not any(module.training for module in vae.decoder.modules())
    assert not any(module.training for module in vae.encoder.modules())


def test_deleted_tokens_leave_the_others_in_order_and_one_of_each_text() -> None:
    whole = Texts.of([[row * 10 + place + 1 for place in range(1 + row % 9)] for row in range(400)])
    found = without(whole, 0.4, torch.Generator().manual_seed(0))
    for before, after in zip(whole.rows(), found.rows(), strict=True):
        assert after
        assert sorted(set(before) & set(after)) == after
    assert found.tokens / whole.tokens == pytest.approx(0.62, abs=0.04)  # a text of one token keeps it
    assert without(whole, 0.99, torch.Generator().manual_seed(0)).tokens >= 400
    assert without(whole, 0.0, torch.Generator()).rows() == whole.rows()


# --- who reads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["last", "first", "mean", "max"])
def test_pooling_leaves_padding_out(how: Any) -> None:
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alone = pooled(states[:1, :3], torch.ones(1, 3, dtype=torch.long), how)
    assert torch.allclose(pooled(states, mask, how)[:1], alone)


def test_a_text_is_read_between_what_begins_and_ends_it() -> None:
    reader = Reader.by(word_tokenizer(marked=True), 42)
    assert (reader.start, reader.end) == ([1], [0])
    framed = reader.framed(Texts.of([[5, 6], [7]]))
    assert framed.rows() == [[1, 5, 6, 0], [1, 7, 0]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=42,
        max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    word_tokenizer(marked=True).save_pretrained(folder)
    return folder


def test_any_automodel_is_an_encoder_with_its_own_tokenizer(bert: Path, texts: str) -> None:
    found = result_of(words_subject(16, 1), texts=texts, encoder=str(bert), beside=[])
    assert found.metrics["delta_rec"] is not None
    maker = Maker.of(words_subject(16, 1), TextVaeOptions(**SMALL, encoder=str(bert)))
    vae = maker.vae(recipe(latent=4), 0)
    assert (vae.encoder.pooling, vae.encoder_reader.start, vae.encoder_reader.end) == ("first", [1], [0])
    assert maker.lengths[0] == 10  # its 12 positions but for two marks


def test_a_t5_from_a_folder_reads_by_its_own_tokenizer(tmp_path: Path, texts: str) -> None:
    config = T5Config(
        d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=1, vocab_size=42, decoder_start_token_id=1, eos_token_id=0
    )  # type: ignore[call-arg]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    word_tokenizer(marked=True).save_pretrained(tmp_path)
    found = result_of(tiny_subject(), texts=texts, seq2seq=str(tmp_path), preset="t5", beside=["no-z", "lstm"])
    assert [row["name"] for row in found.tables["settings"]] == ["λ=3", "no-z", "lstm"]
    assert {word for row in found.tables["samples"] for word in str(row["sampled"]).split()} <= {
        "<u>", *(word for words in SLOTS for word in words)
    }  # fmt: skip


def test_random_tokens_without_a_tokenizer_or_an_end() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=12, vocab_size=9, bos_token_id=None)
        config.eos_token_id = None
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    found = result_of(probekit.Subject(model, settled=True), texts="random", length=3, pieces=60, examples=1)
    assert found.tables["reconstructions"][0]["text"].count("<") == 3  # type: ignore[union-attr]


# --- runs -------------------------------------------------------------------------------------------------------------


def run(output: Path, texts: str, **options: Any) -> probekit.Run:
    given = {**SMALL, "texts": texts, "beside": ["no-z", "lstm", "autoencoder", "collapsed"], **options}
    model = {"name": "demo", "depth": 1}
    return probekit.run(model, plugins=["text-vae"], prompts=["a man"], options=given, output=output)


def bytes_of(run: probekit.Run) -> dict[str, bytes]:
    folder = run.path / "analyses" / "text-vae"
    return {name: (folder / name).read_bytes() for name in ("result.json", "tensors.safetensors")}


def test_the_same_seed_gives_the_same_bytes_and_a_killed_run_goes_on_to_them(
    tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", texts)
    assert whole.results["text-vae"].tables["settings"]
    stopped = 0

    def stop(*_: Any, **__: Any) -> None:
        nonlocal stopped
        stopped += 1
        raise KeyboardInterrupt

    from probekit_plugins.text_vae import figures

    with monkeypatch.context() as patched:
        patched.setattr(figures, "interpolation", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", texts)
    assert stopped == 1
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] != "done"
    again = probekit.resume(tmp_path / "cut")
    assert bytes_of(again) == bytes_of(whole)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"texts": "nowhere.txt"}, r"'nowhere.txt' cannot be read"),
        ({"site": "block.9"}, r"block.9"),
        ({"pooling": "first"}, "first position of a causal model"),
        ({"encoder": "nowhere"}, "encoder 'nowhere' cannot be loaded"),
        ({"seq2seq": "nowhere"}, "T5 'nowhere' cannot be loaded"),
        ({"seq2seq": "t5:width=7"}, "width 7 cannot have 4 heads"),
        ({"length": 4000}, "context"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence_before_anything_is_trained(
    options: dict[str, Any], sentence: str, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit_plugins.text_vae import run as module

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(probekit.UsageError, match=sentence) as caught:
        result_of(tiny_subject(), **{"texts": texts, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"seq2seq": "t5:", "encoder": "x"}, {"free_bits": [0.5, 0.5]}, {"free_bits": []}, {"beside": ["lstm", "lstm"]}],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"seq2seq|free_bits|beside"):
        TextVaeOptions(**options)


def test_a_tiny_learning_rate_too_high_is_said(texts: str) -> None:
    with pytest.raises(probekit.AnalysisError, match="lower the learning rate"):
        result_of(words_subject(16, 1), texts=texts, steps=60, learning_rate=1e30, beside=[])
