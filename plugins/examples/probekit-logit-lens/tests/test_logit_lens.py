"""The lens against plain transformers, on tiny models with random weights."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import probekit_logit_lens
import pytest
import torch
import transformers
from probekit_logit_lens import MODEL, LogitLens, LogitLensOptions
from probekit_logit_lens import lens as module

import probekit
from probekit.testing import check_analysis

VOCABULARY = 64
IDS = [25, 30, 31, 27, 12, 7, 30]


def make(name: str = "GPT2LMHeadModel", **settings: Any) -> Any:
    """A model of that class in fp64, with weights large enough that its predictions differ, in eval mode."""
    model_class = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(vocab_size=VOCABULARY, **settings)).double().eval()
    for parameter in model.parameters():
        parameter.data *= 5
    return model


def tiny_gpt2(**settings: Any) -> Any:
    small = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    return make("GPT2LMHeadModel", **(small | settings))


def tiny_gemma2(**settings: Any) -> Any:
    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "final_logit_softcapping": 2.0,
    }  # fmt: skip
    return make("Gemma2ForCausalLM", **(small | settings))


def tiny_opt() -> Any:
    """A model with a projection between its last block and its head."""
    small = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return make("OPTForCausalLM", word_embed_proj_dim=8, max_position_embeddings=32, **small)


def prompt_of(ids: list[int]) -> probekit.Prompt:
    return probekit.Prompt("", torch.tensor([ids]), [f"<{index}>" for index in ids])


def look(model: Any, *prompts: list[int], **options: Any) -> probekit.Result:
    """The lens's result, as read back from what is saved would be: its tensors as numpy arrays."""
    analysis = LogitLens(LogitLensOptions(**options))
    return analysis.run(probekit.Subject(model), [prompt_of(ids) for ids in prompts])


def expected(model: Any, ids: list[int], norm: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `[blocks, positions, V]` of the lens, and `[positions, V]` of the model, by transformers alone.

    `hidden_states` are what goes into each block, and at last the normed output of the last one.
    """
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
        states = [*output.hidden_states[1:-1]]
        lens = [model.lm_head(model.transformer.ln_f(state) if norm else state)[0] for state in states]
        lens.append(model.lm_head(output.hidden_states[-1])[0])
    return torch.stack(lens).log_softmax(-1), output.logits[0].log_softmax(-1)


def test_every_figure_is_what_transformers_gives() -> None:
    model = tiny_gpt2()
    lens, final = expected(model, IDS)
    result = look(model, IDS, top_k=3)
    found = {name.removesuffix("/0"): values for name, values in result.tensors.items()}
    assert {values.dtype for name, values in found.items() if name not in ("next_rank", "blocks")} == {torch.float64}

    both = torch.cat([lens, final[None]])
    for place, log_p in enumerate(both):
        for position in range(len(IDS)):
            p, p_final = log_p[position].exp(), final[position].exp()
            kl = sum(float(q * math.log2(q / r)) for q, r in zip(p_final, p, strict=True))
            entropy = -sum(float(q * math.log2(q)) for q in p)
            assert float(found["kl"][place, position]) == pytest.approx(kl, abs=1e-9)
            assert float(found["entropy"][place, position]) == pytest.approx(entropy, abs=1e-9)
            chosen = int(p_final.argmax())
            assert float(found["final_probability"][place, position]) == pytest.approx(float(p[chosen]), abs=1e-12)
            ranked = p.argsort(descending=True).tolist()
            for rank in range(3):
                assert float(found["probability"][place, position, rank]) == pytest.approx(float(p[ranked[rank]]))
            sequences = [s for s in result.sequences["lens"] if s.labels["site"] == [*_blocks(3), MODEL][place]]
            assert [sequence.ids[position] for sequence in sequences] == ranked[:3]
            if position + 1 < len(IDS):
                following = IDS[position + 1]
                assert float(found["next_probability"][place, position]) == pytest.approx(float(p[following]))
                assert int(found["next_rank"][place, position]) == 1 + ranked.index(following)
    assert found["next_rank"].shape == (4, len(IDS) - 1)


def _blocks(count: int) -> list[str]:
    return [f"block.{index}" for index in range(count)]


def test_the_table_is_the_agreement_and_the_medians_over_all_prompts() -> None:
    model = tiny_gpt2()
    prompts = [IDS, [3, 4, 5], [9]]
    rows = look(model, *prompts).tables["sites"]
    assert [row["site"] for row in rows] == [*_blocks(3), MODEL]
    pairs = [expected(model, ids) for ids in prompts]
    for place, row in enumerate(rows[:-1]):
        kl = torch.cat([(final.exp() * (final - lens[place])).sum(-1) for lens, final in pairs]) / math.log(2)
        agrees = torch.cat([lens[place].argmax(-1) == final.argmax(-1) for lens, final in pairs])
        assert row["kl_median"] == pytest.approx(float(torch.quantile(kl, 0.5)), abs=1e-9)
        assert row["kl_high"] == pytest.approx(float(torch.quantile(kl, 0.75)), abs=1e-9)
        assert row["agreement"] == pytest.approx(float(agrees.double().mean()))
    assert rows[-1]["agreement"] == 1.0
    assert rows[-1]["kl_median"] == 0.0


def test_without_the_norm_the_head_reads_the_activation_as_it_is() -> None:
    model = tiny_gpt2()
    lens, _ = expected(model, IDS, norm=False)
    result = look(model, IDS, norm=False, sites="block.0,block.1,norm")
    best = {s.labels["site"]: s.ids for s in result.sequences["lens"] if s.labels["rank"] == 0}
    assert best["block.0"] == lens[0].argmax(-1).tolist()
    assert best["block.1"] == lens[1].argmax(-1).tolist()
    assert best["norm"] == best[MODEL], "the norm's own output is not normed again"
    assert float(look(model, IDS, sites="norm").tensors["kl/0"].max()) == pytest.approx(0.0, abs=1e-9)


def test_positions_are_read_in_parts_with_the_same_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt2()
    whole = look(model, IDS)
    largest = 0
    unembed = probekit.Subject.unembed

    def watched(self: probekit.Subject, activation: torch.Tensor, norm: bool = True) -> torch.Tensor:
        nonlocal largest
        scores = unembed(self, activation, norm)
        largest = max(largest, scores.numel())
        return scores

    monkeypatch.setattr(module, "SCORES", 2 * VOCABULARY)
    monkeypatch.setattr(probekit.Subject, "unembed", watched)
    parts = look(model, IDS)
    assert largest == 2 * VOCABULARY
    assert parts.sequences == whole.sequences
    for name, values in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], values)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_gpt2().train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    look(model, IDS)
    assert model.training
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_finding_names_the_site_from_which_on_the_lens_agrees() -> None:
    model = tiny_gpt2(n_layer=4)
    for block in model.transformer.h[2:]:  # blocks that add nothing: the prediction is there after block 1
        block.attn.c_proj.weight.data.zero_()
        block.mlp.c_proj.weight.data.zero_()
    result = look(model, IDS)
    agreement: dict[Any, Any] = {row["site"]: row["agreement"] for row in result.tables["sites"]}
    assert agreement["block.1"] == 1.0
    first = "block.0" if agreement["block.0"] >= 0.5 else "block.1"
    assert result.finding.startswith(f"From {first} on, the lens's first token is the model's own at ")
    only = look(model, IDS, sites="block.1,transformer.h.0.mlp").finding
    assert only.startswith("From block.1 on, the lens's first token is the model's own at 100% of positions or more; ")
    assert only.endswith("the median KL divergence from the model's own distribution is 0 bits there.")
    untrained = look(tiny_gpt2(), IDS, sites="block.0,block.-1")
    least = untrained.tables["sites"][0]["agreement"]
    assert isinstance(least, float)
    assert least < 0.5
    assert untrained.finding.startswith("Before the last block, the lens's first token is the model's own at ")
    assert f"at {least:.0%} of positions at most: at block.0, with" in untrained.finding
    assert "by construction (100% of positions at block.3)" in look(model, IDS, sites="block.-1").finding


def test_a_model_that_caps_its_logits_gets_a_note_with_the_figure() -> None:
    assert "last block" not in " ".join(look(tiny_gpt2(), IDS).notes[1:])
    assert look(tiny_gpt2(), IDS).metrics["last_block_difference"] == pytest.approx(0.0, abs=1e-9)
    model = tiny_gemma2()
    result = look(model, IDS)
    difference = result.metrics["last_block_difference"]
    with torch.no_grad():
        output = model(torch.tensor([IDS]), output_hidden_states=True)
        apart = (model.lm_head(output.hidden_states[-1]) - output.logits).abs().max()
    assert difference == pytest.approx(float(apart))
    assert any(f"{difference:.3g}" in note and "caps" in note for note in result.notes)
    rows: dict[Any, Any] = {row["site"]: row for row in result.tables["sites"]}
    assert rows["block.2"]["agreement"] == 1.0, "a cap keeps the order"
    assert rows["block.2"]["kl_median"] > 0


def test_what_the_head_cannot_read_is_left_out_and_said() -> None:
    result = look(tiny_gpt2(), IDS, sites="block.0,transformer.h.1.mlp.c_fc,transformer.h.1.mlp")
    assert [row["site"] for row in result.tables["sites"]] == ["block.0", "transformer.h.1.mlp", MODEL]
    assert any("c_fc" in note and "16 wide" in note for note in result.notes)


@pytest.mark.parametrize(
    ("model", "options", "error", "sentence"),
    [
        ("gpt2", {"sites": "transformer.h.1.mlp.c_fc"}, probekit.AnalysisError, "none of the sites has that: .*c_fc"),
        ("gpt2", {"sites": "logits"}, probekit.AnalysisError, "none of the sites has that: logits"),
        ("gpt2", {"top_k": VOCABULARY + 1}, probekit.UsageError, "expected 1 to 64"),
        ("headless", {}, probekit.AnalysisError, "model's own head, and GPT2Model has none"),
        ("projected", {}, probekit.AnalysisError, "OPTForCausalLM has more between them"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    model: str, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    models: dict[str, Callable[[], Any]] = {
        "gpt2": tiny_gpt2, "headless": lambda: tiny_gpt2().transformer, "projected": tiny_opt
    }  # fmt: skip
    with pytest.raises(error, match=sentence) as refused:
        look(models[model](), IDS, **options)
    assert "\n" not in str(refused.value)


def test_weights_that_are_broken_end_it_with_a_sentence() -> None:
    model = tiny_gpt2()
    model.transformer.h[1].mlp.c_proj.bias.data[0] = math.nan
    with pytest.raises(probekit.AnalysisError, match="NaN"):
        look(model, IDS)


@pytest.mark.parametrize(
    ("prompts", "options"), [([IDS, [4]], {"sites": "embedding,blocks,transformer.h.0.mlp"}), ([[4]], {"norm": False})]
)
def test_all_figures_follow_from_what_is_saved(
    prompts: list[list[int]], options: dict[str, Any], tmp_path: Path
) -> None:
    result = look(tiny_gpt2(), *prompts, **options)
    for name, content in result.encode().items():
        (tmp_path / name).write_bytes(content)
    measured = replace(probekit.Result.read(tmp_path), finding="", metrics={}, tables={})
    again = LogitLens(LogitLensOptions(**options)).recompute(measured)
    assert (again.finding, again.metrics, again.tables) == (result.finding, result.metrics, result.tables)


def test_a_run_draws_a_page_from_what_it_saved(tmp_path: Path) -> None:
    tiny_gpt2(n_positions=128).save_pretrained(tmp_path / "model")
    plugins = probekit.Plugins(points=[])
    assert plugins.register(probekit_logit_lens).status == "loaded"
    run = probekit.run(
        str(tmp_path / "model"), "logit-lens", input_ids=[IDS, [4], list(range(64)) * 2],
        options={"sites": "embedding,blocks"}, output=tmp_path / "run", manager=plugins,
    )  # fmt: skip
    assert run.status == "done", run.failures
    assert "of 128 positions" in run.report_path.read_text(encoding="utf-8")

    page = probekit.Page("logit-lens")
    LogitLens(LogitLensOptions()).report(probekit.read_run(tmp_path / "run").result, page)
    tokens = [block for block in page.blocks if block["type"] == "tokens"]
    assert [len(block["rows"]) for block in tokens] == [1 + 1 + 3 + 1 + 1] * 3
    assert [len(block["rows"][0]["tokens"]) for block in tokens] == [len(IDS), 1, 64]
    cell = tokens[0]["rows"][2]["tokens"][0]
    assert cell["title"].startswith("block.0, after '<25>'\n'<")
    assert "what follows, '<30>': " in cell["title"]
    model_row, last_block = tokens[0]["rows"][-2], tokens[0]["rows"][-3]
    assert [token["text"] for token in model_row["tokens"]] == [token["text"] for token in last_block["tokens"]]
    assert {token["mark"] for token in last_block["tokens"]} == {"right"}


@pytest.mark.parametrize("options", [{}, {"norm": False, "sites": "embedding,block.1", "top_k": 1}])
def test_it_keeps_the_promises_of_an_analysis(options: dict[str, Any]) -> None:
    check_analysis(LogitLens, **options)


def test_importing_the_plugin_imports_no_torch_nor_does_drawing_its_page() -> None:
    code = "import probekit_logit_lens.page, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
