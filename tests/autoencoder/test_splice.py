"""What is left of the predictions with a reconstruction spliced in: held against a plain forward with a hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

import probekit
from probekit.analysis.context import Forgetful
from probekit_plugins.autoencoder import splice
from probekit_plugins.autoencoder.modules import Plain
from probekit_plugins.autoencoder.splice import spliced
from tests.analyses.recovering import VOCABULARY, gpt2
from tests.forward.tiny import named

SITE = "block.0"
WIDTH = 32
Edit = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def documents(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def likely(subject: probekit.Subject, *lengths: int) -> list[list[int]]:
    """Texts in which the model's own likeliest token comes next, so that an ablation costs something."""
    texts = []
    for number, length in enumerate(lengths):
        ids = [number + 1]
        while len(ids) < length:
            ids.append(int(subject.capture(torch.tensor([ids]), ["logits"])["logits"][0, -1].argmax()))
        texts.append(ids)
    return texts


def of(
    subject: probekit.Subject,
    texts: Sequence[Sequence[int]],
    skip_first: int = 1,
    mean: torch.Tensor | None = None,
    site: str = SITE,
    **autoencoders: Edit,
) -> splice.Spliced:
    mean = torch.zeros(WIDTH) if mean is None else mean
    return spliced(subject, site, autoencoders, texts, skip_first, mean, probekit.Context())


def by_hand(
    subject: probekit.Subject, texts: Sequence[Sequence[int]], skip_first: int, edit: Edit | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `[n, V]` of the tokens to be predicted, and these tokens: a document at a time, in float64."""
    found: list[torch.Tensor] = []
    tokens: list[int] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        own = output if isinstance(output, torch.Tensor) else output[0]
        new = own.clone()
        new[:, skip_first:] = edit(own[:, skip_first:]) if edit else own[:, skip_first:]
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    for ids in texts:
        handle = subject.anatomy.blocks[0].register_forward_hook(hook)
        with torch.no_grad():
            logits = subject.model(torch.tensor([ids])).logits[0]
        handle.remove()
        found.append(logits[skip_first:-1].double().log_softmax(-1))
        tokens += ids[skip_first + 1 :]
    return torch.cat(found), torch.tensor(tokens)


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + 0.1


def test_every_figure_is_that_of_a_plain_forward_with_a_hook(subject: probekit.Subject) -> None:
    texts = likely(subject, 9, 12, 5, 9)
    mean = torch.linspace(-1, 1, WIDTH)
    found = of(subject, texts, 2, mean, halved=halved).rows["halved"]
    clean, tokens = by_hand(subject, texts, 2, None)
    changed, _ = by_hand(subject, texts, 2, halved)
    zero, _ = by_hand(subject, texts, 2, torch.zeros_like)
    average, _ = by_hand(subject, texts, 2, lambda x: mean.expand_as(x))
    entropy = {
        "ce_clean": float(functional.nll_loss(clean, tokens)),
        "ce_spliced": float(functional.nll_loss(changed, tokens)),
        "ce_zero": float(functional.nll_loss(zero, tokens)),
        "ce_mean": float(functional.nll_loss(average, tokens)),
    }
    assert entropy["ce_zero"] - entropy["ce_clean"] > 0.1
    expected = {
        **entropy,
        "tokens": len(tokens),
        "loss_recovered_zero": (entropy["ce_zero"] - entropy["ce_spliced"])
        / (entropy["ce_zero"] - entropy["ce_clean"]),
        "loss_recovered_mean": (entropy["ce_mean"] - entropy["ce_spliced"])
        / (entropy["ce_mean"] - entropy["ce_clean"]),
        "kl": float(functional.kl_div(changed, clean, log_target=True, reduction="batchmean")),
        "agreement": float((changed.argmax(-1) == clean.argmax(-1)).double().mean()),
    }
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(tokens) == sum(len(text) - 3 for text in texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_activations_themselves_recover_everything_and_zero_nothing(dtype: torch.dtype) -> None:
    subject = gpt2(dtype)
    texts = likely(subject, 9, 12, 5)
    rows = of(subject, texts, mean=torch.ones(WIDTH), itself=lambda x: x, nothing=torch.zeros_like).rows
    exact = dtype != torch.float64  # reconstructions are in fp32
    assert rows["itself"]["loss_recovered_zero"] == (1 if exact else pytest.approx(1, abs=1e-5))
    assert rows["itself"]["loss_recovered_mean"] == (1 if exact else pytest.approx(1, abs=1e-5))
    assert rows["itself"]["kl"] == (0 if exact else pytest.approx(0, abs=1e-10))
    assert rows["itself"]["agreement"] == 1
    assert rows["nothing"]["loss_recovered_zero"] == 0
    assert float(rows["nothing"]["kl"] or 0) > 0.01


def test_the_mean_recovers_nothing_of_its_own_ablation(subject: probekit.Subject) -> None:
    mean = torch.linspace(-1, 1, WIDTH)
    row = of(subject, likely(subject, 9, 12), mean=mean, mean_of_all=lambda x: mean.expand_as(x)).rows["mean_of_all"]
    assert row["loss_recovered_mean"] == 0
    assert row["loss_recovered_zero"] != 0


def test_a_reconstruction_sees_what_counts_alone_in_fp32() -> None:
    """Neither padding nor the positions that are left out."""
    subject = gpt2(torch.bfloat16)
    texts = documents(5, 9, 6)
    seen: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    of(subject, texts, 3, look=look)
    rows = torch.cat(seen)
    assert rows.dtype == torch.float32
    own = [subject.capture(torch.tensor([ids]), [SITE])[SITE][0, 3:].float() for ids in texts]
    assert len(rows) == sum(map(len, own))
    torch.testing.assert_close(rows.sum(0), torch.cat(own).sum(0), rtol=0.02, atol=0.05)


def test_a_document_has_the_same_figures_alone_and_beside_longer_ones(subject: probekit.Subject) -> None:
    texts = likely(subject, 5, 14)
    rows = [of(subject, chosen, halved=halved).rows["halved"] for chosen in (texts, texts[:1], texts[1:])]
    both, short, long = ({name: float(value or 0) for name, value in row.items()} for row in rows)
    assert both["tokens"] == short["tokens"] + long["tokens"] == 3 + 12
    for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl", "agreement"):
        weighed = (3 * short[name] + 12 * long[name]) / 15
        assert both[name] == pytest.approx(weighed, rel=1e-5)


def test_what_is_left_out_keeps_its_own_activation(subject: probekit.Subject) -> None:
    """Else the tokens after it would be predicted from what it is replaced by."""
    texts = likely(subject, 12, 12)
    none, some = (of(subject, texts, skip, x=torch.zeros_like).rows["x"] for skip in (0, 10))
    assert some["tokens"] == 2
    changed, _ = by_hand(subject, texts, 10, torch.zeros_like)
    clean, _ = by_hand(subject, texts, 10, None)
    kl = float(functional.kl_div(changed, clean, log_target=True, reduction="batchmean"))
    assert some["kl"] == pytest.approx(kl, rel=1e-4)
    assert none["tokens"] == 22


def test_an_ablation_that_costs_nothing_gives_no_ratio(subject: probekit.Subject, monkeypatch: Any) -> None:
    """Random text is as unlikely without the block, and may even be likelier."""
    monkeypatch.setattr(splice, "LEAST_GAP", 100.0)
    row = of(subject, likely(subject, 9), halved=halved).rows["halved"]
    assert row["loss_recovered_zero"] is row["loss_recovered_mean"] is None
    assert row["kl"] is not None


def test_clean_and_ablated_passes_are_made_once_for_all(subject: probekit.Subject) -> None:
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    texts = documents(9, 9)
    handle = subject.model.register_forward_pre_hook(count)
    try:
        of(subject, texts, a=halved)
        one, passes = passes, 0
        of(subject, texts, a=halved, b=halved, c=halved)
    finally:
        handle.remove()
    assert passes - one == 2


def test_in_parts_it_is_the_same_and_holds_the_logits_of_one(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = likely(subject, 9, 12, 5, 9)
    whole = of(subject, texts, halved=halved).rows["halved"]
    monkeypatch.setattr(splice, "MOST_VALUES", 12 * VOCABULARY)
    sizes = []
    capture = subject.capture

    def note(ids: torch.Tensor, sites: Sequence[str], mask: Any = None) -> dict[str, torch.Tensor]:
        sizes.append(ids.numel())
        return capture(ids, sites, mask)

    monkeypatch.setattr(subject, "capture", note)
    parts = of(subject, texts, halved=halved).rows["halved"]
    assert parts == pytest.approx(whole, rel=1e-5)
    assert max(sizes) <= 12 + 4  # the look at the model takes two short prompts


def test_where_memory_runs_out_fewer_documents_pass_at_once(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = likely(subject, 9, 12, 5, 9)
    whole = of(subject, texts, halved=halved).rows["halved"]
    capture = subject.capture

    def little(ids: torch.Tensor, sites: Sequence[str], mask: Any = None) -> dict[str, torch.Tensor]:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return capture(ids, sites, mask)

    monkeypatch.setattr(subject, "capture", little)
    assert of(subject, texts, halved=halved).rows["halved"] == pytest.approx(whole, rel=1e-5)


def test_a_run_that_is_resumed_reads_its_batches_back(subject: probekit.Subject) -> None:
    class Kept(Forgetful):
        states: ClassVar[dict[tuple[str, str], dict[str, torch.Tensor]]] = {}

        def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
            return self.states.get((kind, label))

        def write(self, kind: str, label: str, state: dict[str, torch.Tensor]) -> None:
            self.states[kind, label] = state

    store = Kept()
    calls = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return halved(x)

    texts = documents(9, 5)
    arguments = (texts, 1, torch.zeros(WIDTH))
    first = spliced(subject, SITE, {"x": noted}, *arguments, probekit.Context(store=store))
    assert calls
    calls.clear()
    again = spliced(subject, SITE, {"x": noted}, *arguments, probekit.Context(store=store))
    assert (again, calls) == (first, [])
    assert spliced(subject, SITE, {"y": noted}, *arguments, probekit.Context(store=store)).rows["y"] == first.rows["x"]
    assert calls


def test_a_model_that_takes_no_padding_gets_documents_of_one_length(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = likely(subject, 9, 12, 5, 9)
    padded = of(subject, texts, halved=halved).rows["halved"]
    monkeypatch.setattr(subject, "takes_padding", lambda sites: False)
    capture = subject.capture

    def unpadded(ids: torch.Tensor, sites: Sequence[str], mask: Any = None) -> dict[str, torch.Tensor]:
        assert mask is None
        return capture(ids, sites)

    monkeypatch.setattr(subject, "capture", unpadded)
    assert of(subject, texts, halved=halved).rows["halved"] == pytest.approx(padded, rel=1e-5)


def test_an_autoencoder_recovers_more_than_nothing_and_less_than_all() -> None:
    """Through a bottleneck that keeps the directions in which the activations vary most."""
    subject = probekit.load("demo")
    texts = [
        subject.encode(text)[0].tolist() for text in ("The sky is blue today.", "Once upon a time there was a cat.")
    ]
    own = torch.cat([subject.capture(torch.tensor([ids]), ["block.3"])["block.3"][0, 1:] for ids in texts])
    mean = own.mean(0)
    directions = torch.linalg.svd(own - mean, full_matrices=False).Vh

    def through(count: int) -> Edit:
        kept = directions[:count]
        return lambda x: mean + (x - mean) @ kept.T @ kept

    found = spliced(subject, "block.3", {"2": through(2), "12": through(12)}, texts, 1, mean, probekit.Context()).rows
    few, many = (float(found[name]["loss_recovered_mean"] or 0) for name in ("2", "12"))
    assert 0 < few < many < 1
    assert 0 < float(found["12"]["kl"] or 0) < float(found["2"]["kl"] or 0)


def test_a_module_is_taken_and_the_model_left_as_it_was(subject: probekit.Subject) -> None:
    ids = torch.tensor([documents(9)[0]])
    before = subject.model(ids).logits
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in subject.model.modules()]
    module = Plain(WIDTH, 4, 1, 8)
    assert of(subject, documents(9, 5), x=module.reconstruct).rows["x"]["kl"] is not None
    assert torch.equal(subject.model(ids).logits, before)
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in subject.model.modules()]


def test_a_reconstruction_that_fails_leaves_no_hook(subject: probekit.Subject) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        of(subject, documents(9), x=fails)
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_logits_that_are_not_finite_end_it_with_a_sentence(subject: probekit.Subject) -> None:
    with pytest.raises(probekit.AnalysisError, match=r"The logits with the reconstruction at block\.0 is NaN"):
        of(subject, documents(9), x=lambda x: x * torch.nan)


# --- where there is nothing to say -----------------------------------------------------------------------------------


def test_documents_without_a_token_to_predict(subject: probekit.Subject) -> None:
    found = of(subject, documents(1, 3), 3, x=halved)
    assert not found.rows
    assert "no held-out document has a token to predict" in str(found.reason)


def test_a_token_without_a_logit_is_not_predicted(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "predicted_tokens", lambda subject: 50)
    assert of(subject, [[1, 2, 55, 3]], 0, x=halved).rows["x"]["tokens"] == 2


def test_a_model_without_logits(subject: probekit.Subject) -> None:
    headless = probekit.Subject(gpt2().model.transformer)  # type: ignore[arg-type]
    assert "this model has no logits" in str(of(headless, documents(5), x=halved).reason)


@pytest.mark.parametrize("site", ["transformer.wpe", "logits", "transformer.h.0.attn.c_attn"])
def test_a_site_of_another_shape(subject: probekit.Subject, site: str) -> None:
    found = of(subject, documents(5, 7), site=site, x=halved)
    assert not found.rows
    assert site in str(found.reason)


def test_a_model_that_reads_what_comes_later(subject: probekit.Subject) -> None:
    assert "depend on tokens that come later" in str(
        of(probekit.Subject(named("cpmant")), documents(5), x=halved).reason
    )


def test_a_module_that_does_not_run(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the logits: one that nothing is read from."""
    monkeypatch.setattr(subject, "edit", lambda site, function: nullcontext())
    assert "block.0 does not run before the logits" in str(of(subject, documents(5), x=halved).reason)
