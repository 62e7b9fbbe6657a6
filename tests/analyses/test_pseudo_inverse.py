"""The pseudo-inverse analysis: margins over the vocabulary, decoders side by side, and the lens."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import probekit
from probekit_plugins.pseudo_inverse import PseudoInverse, PseudoInverseOptions

IDS = [5, 17, 2, 40, 5]


@pytest.fixture
def subject() -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=2)
    return probekit.Subject(GPT2LMHeadModel(config).eval())


def looked_at(subject: probekit.Subject, **options: object) -> probekit.Result:
    ids = subject.check_ids(IDS)
    prompt = probekit.Prompt("", ids, subject.tokens(ids))
    return PseudoInverse(PseudoInverseOptions(**options)).run(subject, [prompt])  # type: ignore[arg-type]


def test_margins_of_every_token_are_those_of_the_hat_matrix(subject: probekit.Subject) -> None:
    result = looked_at(subject)
    W = subject.embedding_matrix.double()
    h = W @ torch.linalg.pinv(W)
    others = h.clone().fill_diagonal_(-torch.inf).amax(1)
    assert torch.allclose(result.tensors["margins/pseudo-inverse"].double(), h.diagonal() - others, atol=1e-5)
    assert result.metrics["pseudo-inverse/round_trip_rate"] == 1.0
    assert result.metrics["embedding_rank"] == 24


def test_a_token_that_does_not_round_trip_is_named_with_its_rival(subject: probekit.Subject) -> None:
    """Token 7 is a third of token 9: the nearest row is its own, but a scalar product prefers the longer one."""
    with torch.no_grad():
        subject.anatomy.embedding.weight[7] = subject.anatomy.embedding.weight[9] / 3  # type: ignore[index, union-attr]
    result = looked_at(probekit.Subject(subject.model))
    weakest = next(row for row in result.tables["weakest"] if row["decoder"] == "pseudo-inverse")
    assert (weakest["id"], weakest["rival id"]) == (7, 9)
    assert float(weakest["margin"] or 0) < 0
    assert result.metrics["pseudo-inverse/round_trip_rate"] == pytest.approx(59 / 60)
    assert result.metrics["nearest/round_trip_rate"] == 1.0
    apart = {row["decoders"]: row["tokens apart"] for row in result.tables["disagreement"]}
    assert apart["pseudo-inverse / nearest"] == 1


def test_a_singular_embedding_is_said(subject: probekit.Subject) -> None:
    with torch.no_grad():
        subject.anatomy.embedding.weight[:, 3] = 0  # type: ignore[index, union-attr]
    result = looked_at(probekit.Subject(subject.model))
    assert result.metrics["embedding_rank"] == 23
    assert any("rank 23 of 24" in note for note in result.notes)


def test_the_lens_is_the_decoders_on_the_captured_activations(subject: probekit.Subject) -> None:
    result = looked_at(subject, top_k=3)
    ids = subject.check_ids(IDS)
    activation = subject.capture(ids, ["block.1"])["block.1"]
    model = subject.model
    with torch.no_grad():
        logits = model.lm_head(model.transformer.ln_f(activation))
    expected = {
        "unembedding": logits.topk(3).indices[0],
        "nearest": torch.cdist(activation, subject.embedding_matrix[None]).topk(3, largest=False).indices[0],
        "pseudo-inverse": (activation.double() @ torch.linalg.pinv(subject.embedding_matrix.double()))
        .topk(3)
        .indices[0],
    }
    for decoder, wanted in expected.items():
        found = [
            sequence.ids
            for sequence in result.sequences["lens"]
            if sequence.labels["site"] == "block.1" and sequence.labels["decoder"] == decoder
        ]
        assert torch.equal(torch.tensor(found).T, wanted)


def test_the_embedding_decodes_to_the_prompt(subject: probekit.Subject) -> None:
    result = looked_at(subject)
    rows = [row for row in result.tables["lens"] if row["site"] == "embedding" and row["decoder"] != "unembedding"]
    assert [row["own token"] for row in rows] == [1.0, 1.0, 1.0]


def test_the_last_block_under_the_unembedding_is_the_models_next_token(subject: probekit.Subject) -> None:
    result = looked_at(subject, sites="block.-1", decoders=["unembedding"], margins=False)
    with torch.no_grad():
        expected = subject.model(input_ids=subject.check_ids(IDS)).logits.argmax(-1)[0]
    assert result.sequences["lens"][0].ids == expected.tolist()
    assert "margins/unembedding" not in result.tensors


def test_sites_of_another_width_are_left_out_and_said() -> None:
    """OPT-350m's way: embeddings narrower than the blocks, so that only the embedding can be decoded by it."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=60, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32
    )
    result = looked_at(probekit.Subject(OPTForCausalLM(config).eval()))
    assert {row["site"] for row in result.tables["lens"]} == {"embedding"}
    assert any("block.0, block.1" in note for note in result.notes)


def test_the_page_is_drawn_from_what_was_saved(
    subject: probekit.Subject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("result")
    for name, content in looked_at(subject).encode().items():
        (folder / name).write_bytes(content)
    saved = probekit.Result.read(folder)
    assert isinstance(saved.tensors["margins/nearest"], numpy.ndarray)
    page = probekit.Page("pseudo-inverse")
    PseudoInverse(PseudoInverseOptions()).report(saved, page)
    text = json.dumps(page.to_json(), allow_nan=False)
    for figure in ("The whole vocabulary", "The lens over prompt 1", "Margins of the cosine decoder"):
        assert figure in text


def test_nan_in_the_embedding_names_the_weight(subject: probekit.Subject) -> None:
    with torch.no_grad():
        subject.anatomy.embedding.weight[50, 0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(probekit.AnalysisError, match=r"transformer\.wte\.weight"):
        looked_at(probekit.Subject(subject.model))
