"""What a text autoencoder must not be fooled by: models that look ahead, encoders that are none, runs that are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.cache_utils import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from probekit.testing import fingerprint
from probekit_plugins.copies import copied
from probekit_plugins.text_vae import TextVaeOptions
from probekit_plugins.text_vae.checks import check
from probekit_plugins.text_vae.decoders import Decoder
from probekit_plugins.text_vae.figures import Latents, information
from probekit_plugins.text_vae.made import Maker
from probekit_plugins.text_vae.recipe import recipes
from probekit_plugins.text_vae.vae import Vae
from tests.forward.tiny import make, tiny
from tests.text_vae.test_run import SLOTS, bytes_of, file_of, result_of, run, sentences, word_tokenizer, words_subject

SHAPE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 42,
    "max_position_embeddings": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return file_of(tmp_path_factory.mktemp("texts"), sentences(60))


def architecture(name: str) -> probekit.Subject:
    config_class = CONFIG_MAPPING[name]
    torch.manual_seed(0)
    return probekit.Subject(make(MODEL_FOR_CAUSAL_LM_MAPPING[config_class], tiny(config_class)))


def made(subject: probekit.Subject, injection: Any) -> Vae:
    options = TextVaeOptions(injection=injection, latent=4)
    return Maker.of(subject, options).vae(next(recipes(options)), 0)


# --- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "cpmant", "prophetnet"])
def test_a_decoder_that_sees_what_it_is_to_predict_is_refused(name: str) -> None:
    with pytest.raises(probekit.UsageError, match="sees the tokens that stand behind"):
        check(made(architecture(name), "embedding"))


@pytest.mark.parametrize("name", ["reformer", "xlnet"])
def test_one_that_cannot_learn_from_z_is_refused(name: str) -> None:
    with pytest.raises(probekit.UsageError, match="cannot be trained to write from z"):
        check(made(architecture(name), "embedding"))


def test_a_memory_behind_a_first_block_that_keeps_none_would_be_masked_wrongly() -> None:
    with pytest.raises(probekit.UsageError, match="keeps no keys and values"):
        made(architecture("recurrent_gemma"), "memory")


@pytest.mark.parametrize("name", ["gemma3n_text", "mixtral", "bloom", "opt", "deepseek_v3"])
def test_a_token_before_the_text_is_a_memory_like_any_and_every_position_sees_its_z(name: str) -> None:
    subject = architecture(name)
    check(made(subject, "memory"))
    copy = copied(subject)
    decoder = Decoder(copy.model, copy.anatomy.embedding, 4, "memory")
    generator = torch.Generator().manual_seed(0)
    ids, z = torch.randint(25, 90, (2, 7), generator=generator), torch.randn(2, 4, generator=generator)
    cache = DynamicCache()
    with torch.no_grad():
        whole = decoder._call(ids, None)
        decoder._call(ids[:, :1], cache)
        assert torch.allclose(decoder._call(ids[:, 1:], cache), whole[:, 1:], rtol=1e-3, atol=1e-4)
        window = 4  # of tiny models: beyond it no token sees the memory but through others
        assert bool(((decoder(ids, z) - decoder(ids, -z)).abs().amax(-1)[:, :window] > 0).all())


# --- encoders ---------------------------------------------------------------------------------------------------------


def saved(folder: Path, model: Any, tokenizer: bool = True, marked: bool = True) -> str:
    model.save_pretrained(folder)
    if tokenizer:
        word_tokenizer(marked).save_pretrained(folder)
    return str(folder)


def damaged(folder: Path) -> str:
    name = saved(folder, BertModel(BertConfig(**SHAPE)))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    return name


def halved(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    name = saved(folder, BertModel(BertConfig(**SHAPE)))
    path = folder / "model.safetensors"
    save_file({key: each for key, each in load_file(path).items() if "attention" not in key}, path, {"format": "pt"})
    return name


def bart() -> BartForConditionalGeneration:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    return BartForConditionalGeneration(BartConfig(d_model=16, vocab_size=42, **sizes, **heads))


def t5(vocabulary: int = 42) -> T5ForConditionalGeneration:
    config = T5Config(d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=1, vocab_size=vocabulary)
    config.decoder_start_token_id = 1
    return T5ForConditionalGeneration(config)


def vit() -> ViTModel:
    shape = {key: SHAPE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return ViTModel(ViTConfig(**shape, intermediate_size=32, image_size=8, patch_size=4))


@pytest.mark.parametrize(
    ("option", "folder_of", "sentence"),
    [
        ("encoder", lambda at: saved(at, BertModel(BertConfig(**SHAPE)), tokenizer=False), "comes with no tokenizer"),
        ("encoder", lambda at: saved(at, BertModel(BertConfig(**{**SHAPE, "vocab_size": 20}))), "not belong together"),
        ("encoder", lambda at: saved(at, vit()), "reads no texts"),
        ("encoder", damaged, "cannot be loaded"),
        ("encoder", halved, "lacks weights of a BertModel"),
        ("seq2seq", lambda at: saved(at, bart()), "lacks weights of a T5ForConditionalGeneration"),
        ("seq2seq", lambda at: saved(at, BertModel(BertConfig(**SHAPE))), "cannot be loaded|lacks weights"),
        ("seq2seq", lambda at: saved(at, t5(20)), "not belong together"),
        ("seq2seq", lambda at: saved(at, t5(), tokenizer=False), "comes with no tokenizer"),
    ],
    ids=["no tokenizer", "another's tokenizer", "images", "damaged", "halved", "BART", "BERT", "T5 of another", "bare"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_encoder_of_texts_is_said_before_anything_is_trained(
    option: str, folder_of: Any, sentence: str, tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit_plugins.text_vae import run as module

    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(probekit.UsageError, match=sentence) as caught:
        result_of(words_subject(16, 1), texts=texts, **{option: folder_of(tmp_path / "model")})
    assert "\n" not in str(caught.value)


def test_a_causal_encoder_is_read_at_its_last_position_and_at_its_first_not_at_all(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=42)
    name = saved(tmp_path, GPT2LMHeadModel(config), marked=False)
    subject, options = words_subject(16, 1), TextVaeOptions(latent=4, encoder=name)
    assert Maker.of(subject, options).vae(next(recipes(options)), 0).encoder.pooling == "last"
    with pytest.raises(probekit.UsageError, match="first position of a causal model"):
        Maker.of(subject, options.model_copy(update={"pooling": "first"}))


def test_an_encoder_whose_positions_begin_behind_its_padding_takes_so_many_tokens_less(tmp_path: Path) -> None:
    name = saved(tmp_path, RobertaModel(RobertaConfig(**{**SHAPE, "pad_token_id": 1})))
    doubled = [f"{text} {text} the" for text in sentences(30)]
    folder = tmp_path / "texts"
    folder.mkdir()
    found = result_of(words_subject(16, 1), texts=file_of(folder, doubled), encoder=name, beside=[], steps=2)
    assert found.metrics["delta_rec"] is not None


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_phase_2_has_a_step_whatever_is_left_by_phase_1(steps: int, texts: str) -> None:
    found = result_of(words_subject(16, 1), texts=texts, steps=steps, pretraining=0.9, beside=[])
    (row,) = found.tables["trained"]
    assert row["steps"] == steps
    assert float(row["loss"]) > 0
    assert [each["step"] for each in found.tables["losses"] if each["name"] == "λ=0.5"] == [steps]


def test_codes_beyond_all_numbers_have_a_perplexity_that_is_one(tmp_path: Path) -> None:
    words = file_of(tmp_path, [word for words in SLOTS for word in words])
    options = {"latent": 10_000, "measured": 4, "free_bits": 0, "beside": ["autoencoder"], "learning_rate": 0.05}
    found = result_of(words_subject(16, 1), texts=words, **options)
    assert all(0 < float(row["ppl"]) < float("inf") for row in found.tables["trained"])
    assert len(found.finding) < 300


def test_mutual_information_of_many_dimensions_is_the_same_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    found = Latents(torch.randn(30, 5, generator=generator).double(), torch.zeros(30, 5, dtype=torch.double))
    whole = information(found, torch.Generator().manual_seed(1))
    monkeypatch.setattr("probekit_plugins.text_vae.figures.ENTRIES", 600)
    assert torch.allclose(information(found, torch.Generator().manual_seed(1)), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"free_bits": 1e39}, {"free_bits": [0.5, float("inf")]}, {"beta": 1e39}])
def test_weights_beyond_single_precision_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"free_bits|beta"):
        TextVaeOptions(**options)


# --- runs that are cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("vae.Vae.pretraining_loss", 2),
        ("vae.Vae.loss", 3),
        ("figures.nll", 7),
        ("figures.written", 3),
        ("examples._texts", 2),
    ],
)
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes_and_leaves_the_model_alone(
    where: str, call: int, tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"beside": ["autoencoder"], "steps": 4, "deletion": 0.3, "examples": 1}
    whole = run(tmp_path / "whole", texts, **options)
    path = f"probekit_plugins.text_vae.{where}"
    from pkgutil import resolve_name

    first, calls = resolve_name(path.replace(".Vae.", ":Vae.") if "Vae" in path else path), 0

    def stopping(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return first(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(path, stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", texts, **options)
    again = probekit.resume(tmp_path / "cut")
    assert bytes_of(again) == bytes_of(whole)


def test_the_model_is_as_it_was_after_a_run_and_after_one_that_fails(texts: str) -> None:
    subject = words_subject(16, 1)
    before = fingerprint(subject.model)
    result_of(subject, texts=texts, beside=["no-z"])
    assert fingerprint(subject.model) == before
    with pytest.raises(probekit.AnalysisError):
        result_of(subject, texts=texts, steps=60, learning_rate=1e30, beside=[])
    assert fingerprint(subject.model) == before
