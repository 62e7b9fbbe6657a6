"""What the three walks have in common: the same figures in the same form, in every precision, and sentences for what
is wrong.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit

IDS, LONGER, SHORTER = [5, 17, 2, 40], [9, 33, 1, 50, 28, 7, 7], [12, 3]
WIDTH = 24
OPTIONS: dict[str, dict[str, Any]] = {
    "orthogonal-walk": {},
    "clamped-walk": {"inner": [3]},
    "null-space-walk": {"iterations": 6, "correction_iterations": 5, "directions": 2},
}
# As OPTIONS, with steps so long that tokens change.
FAR: dict[str, dict[str, Any]] = {
    "orthogonal-walk": {"step_size": 0.5},
    "clamped-walk": {**OPTIONS["clamped-walk"], "noise": 0.3},
    "null-space-walk": {**OPTIONS["null-space-walk"], "step_size": 0.5},
}
TINY = 1e-5
# As OPTIONS, with steps so short that the numbers of a model in half precision do not show them.
NEAR: dict[str, dict[str, Any]] = {
    "orthogonal-walk": {"step_size": TINY},
    "clamped-walk": {**OPTIONS["clamped-walk"], "noise": TINY},
    "null-space-walk": {**OPTIONS["null-space-walk"], "step_size": TINY},
}


def gpt2(dtype: torch.dtype = torch.float64) -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60,
        n_positions=16,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return probekit.Subject(GPT2LMHeadModel(config).to(dtype).eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def walked(name: str, subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    kind = probekit.Plugins().analysis(name)
    ids = [subject.check_ids(given) for given in prompts or (IDS,)]
    given = [probekit.Prompt("", each, subject.tokens(each)) for each in ids]
    settings = {"steps": 3, "walkers": 2, **options}
    result: probekit.Result = kind(kind.options_model(**settings), probekit.Context(seed, name)).run(subject, given)
    return result


def tracks_of(result: probekit.Result) -> list[str]:
    return [str(track) for track in dict.fromkeys(row["track"] for row in result.tables["walkers"])]


def activation(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """The last block's, `[T, d]` → `[T, d]`: GPT-2's own modules one after another, without hooks."""
    transformer: Any = subject.model.transformer
    hidden = embeddings[None] + transformer.wpe(torch.arange(len(embeddings)))
    for block in transformer.h:
        found = block(hidden, use_cache=False)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden[0]


# --- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_figures_at_the_end_are_those_of_the_embeddings_at_the_end(name: str, subject: probekit.Subject) -> None:
    """d_i, d_o, r, noise of the same distance, and its r, from e* and e_N alone; L1 and L2."""
    result = walked(name, subject, IDS, LONGER, noise_draws=3, **OPTIONS[name])
    for prompt, ids in enumerate((IDS, LONGER)):
        start = subject.embed(torch.tensor([ids]))[0]
        rows = [row for row in result.tables["walkers"] if row["prompt"] == prompt]
        with torch.no_grad():
            target = activation(subject, start)
            for row, (track, walker) in zip(rows, product(tracks_of(result), range(2)), strict=True):
                assert (row["track"], row["walker"]) == (track, walker)
                end = result.tensors[f"{prompt}/block.1/{track}/embeddings"][walker]
                output = activation(subject, end) - target
                for order in (1, 2):
                    d_i, d_o = (float(part.norm(p=order)) for part in (end - start, output))
                    noisy = []
                    for draw in range(3):
                        label = f"block.1/{prompt}/{walker}/noise {draw}"
                        generator = probekit.Context(0, name).generator(label)
                        z = torch.randn(len(ids), WIDTH, generator=generator, dtype=torch.float64)
                        apart = activation(subject, start + z * d_i / z.norm(p=order)) - target
                        noisy.append(float(apart.norm(p=order)))
                    found = result.tensors[f"{prompt}/block.1/{track}/noise_l{order}"][-1, walker]
                    torch.testing.assert_close(found, torch.tensor(noisy, dtype=torch.float64), rtol=1e-9, atol=0)
                    if order == 2:
                        assert row["input_share"] == pytest.approx(d_i / float(start.norm()), rel=1e-9)
                        assert row["output_share"] == pytest.approx(d_o / float(target.norm()), rel=1e-9)
                    expected = {"input": d_i, "output": d_o, "r": d_i / d_o, "r_over_noise": sorted(noisy)[1] / d_o}
                    for figure, value in expected.items():
                        assert row[f"{figure}_l{order}"] == pytest.approx(value, rel=1e-9), (figure, order)


@pytest.mark.parametrize("name", OPTIONS)
def test_orthogonality_is_that_of_the_worst_position(name: str, subject: probekit.Subject) -> None:
    """`max_i |g_i·u_i| / (‖g_i‖‖u_i‖)` and `max_i |g_i·u_i| / ‖u_i‖` of one step, with g by autograd."""
    result = walked(name, subject, IDS, SHORTER, steps=1, **OPTIONS[name])
    for prompt, ids in enumerate((IDS, SHORTER)):
        leaf = subject.embed(torch.tensor([ids]))[0].requires_grad_()
        (g,) = torch.autograd.grad(activation(subject, leaf).sum(), leaf)
        for track in tracks_of(result):
            prefix = f"{prompt}/block.1/{track}"
            for walker, end in enumerate(result.tensors[f"{prefix}/embeddings"]):
                u = end - leaf.detach()
                per_step = (g * u).sum(-1).abs() / u.norm(dim=-1)
                angle = float((per_step / g.norm(dim=-1)).max())
                found = {
                    key: float(result.tensors[f"{prefix}/{key}"][0, walker]) for key in ("orthogonality", "product")
                }
                assert found["orthogonality"] == pytest.approx(angle, rel=1e-9, abs=1e-14)
                assert found["product"] == pytest.approx(float(per_step.max()), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_along_the_walk_are_those_that_the_decoder_says(name: str, subject: probekit.Subject) -> None:
    """Nearest rows of the embedding matrix, at every recorded step and best first; and how many have changed."""
    result = walked(name, subject, top_k=4, record_every=2, **FAR[name])
    for track in tracks_of(result):
        prefix = f"0/block.1/{track}"
        end = result.tensors[f"{prefix}/embeddings"]
        nearest = torch.cdist(end, subject.embedding_matrix[None]).argsort(-1)[..., :4]
        assert torch.equal(result.tensors[f"{prefix}/ids"][-1], nearest)
        assert result.tensors[f"{prefix}/ids"][0, :, :, 0].tolist() == [IDS, IDS], "the walk begins at the prompt"
        assert result.tensors[f"{prefix}/steps"].tolist() == [0, 2, 3]
        for walker in range(2):
            changed = int((nearest[walker, :, 0] != torch.tensor(IDS)).sum())
            [row] = [r for r in result.tables["walkers"] if (r["track"], r["walker"]) == (track, walker)]
            assert (row["changed"], row["changed_share"]) == (changed, changed / len(IDS))
        ends = {
            (sequence.labels["walker"], sequence.labels["rank"]): sequence.ids
            for sequence in result.sequences["walk"]
            if sequence.labels["track"] == track and sequence.labels["step"] == 3
        }
        assert ends == {(w, rank): nearest[w, :, rank].tolist() for w in range(2) for rank in range(4)}
    assert any(int(row["changed"] or 0) > 0 for row in result.tables["walkers"]), "and some token did change"


def test_the_walks_results_have_one_form(subject: probekit.Subject) -> None:
    """So that they can stand side by side: names of tensors, columns, labels and metrics differ in the track alone."""
    forms = []
    for name, options in OPTIONS.items():
        result = walked(name, subject, IDS, SHORTER, **options)
        tracks = tracks_of(result)
        assert [row["control"] for row in result.tables["walkers"]] == [False] * 4 + [True] * 4
        forms.append(
            {
                "tensors": [
                    (key.replace(f"/{tracks[index]}/", "/track/"), tuple(tensor.shape), tensor.dtype)
                    for index in range(2)
                    for key, tensor in result.tensors.items()
                    if f"/{tracks[index]}/" in key
                ],
                "tables": {key: [list(row) for row in rows] for key, rows in result.tables.items()},
                "sequences": {
                    key: [
                        {label: value for label, value in sequence.labels.items() if label not in ("track", "text")}
                        for sequence in group
                    ]
                    for key, group in result.sequences.items()
                },
                "metrics": [
                    key.replace(f"/{tracks[0]}/", "/track/").replace(f"/{tracks[1]}/", "/control/")
                    for key in result.metrics
                    if "/" in key
                ],
            }
        )
    assert forms[0] == forms[1] == forms[2]


# --- the page --------------------------------------------------------------------------------------------------------


def page_of(name: str, result: probekit.Result, **options: Any) -> probekit.Page:
    kind = probekit.Plugins().analysis(name)
    page = probekit.Page(name)
    kind(kind.options_model(steps=3, walkers=2, **options), probekit.Context(0, name)).report(result, page)
    return page


def of_type(page: probekit.Page, kind: str) -> list[dict[str, Any]]:
    return [block for block in page.blocks if block["type"] == kind]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_finding_says_how_far_how_much_less_than_noise_and_whether_tokens_change(
    name: str, subject: probekit.Subject
) -> None:
    result = walked(name, subject, IDS, SHORTER, **NEAR[name])
    key = f"block.1/{tracks_of(result)[0]}"
    share, over = result.metrics[f"{key}/input_share_median"], result.metrics[f"{key}/r_over_noise_l2_median"]
    assert result.finding == (
        f"At block.1, 3 steps take the embeddings {100 * float(share or 0):.3g}% of their norm away from the prompt's; "
        f"Gaussian noise of that length moves the activation {float(over or 0):.3g} times as far as the walk does. "
        "No token changes."
    )
    far = walked(name, subject, IDS, SHORTER, **FAR[name])
    changed = far.metrics[f"{key}/changed_share_median"]
    assert far.finding.endswith(f" times as far as the walk does. {float(changed or 0):.0%} of the tokens change.")


def test_the_finding_of_many_walks_is_the_least_and_the_greatest_figure(subject: probekit.Subject) -> None:
    result = walked("clamped-walk", subject, sites="block.0,block.1", inner=[1, 2, 3, 4], noise=TINY)
    figures = {
        f"{site}, inner {inner}": float(result.metrics[f"{site}/inner {inner}/r_over_noise_l2_median"] or 0)
        for site, inner in product(("block.0", "block.1"), (1, 2, 3, 4))
    }
    low, high = (of(figures, key=lambda where: figures[where]) for of in (min, max))
    assert f"between {figures[low]:.3g} times ({low}) and {figures[high]:.3g} times ({high})" in result.finding


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_of_all_tracks_are_below_one_slider_folded_where_none_changes(
    name: str, subject: probekit.Subject
) -> None:
    for settings, stays in ((NEAR, True), (FAR, False)):
        result = walked(name, subject, **settings[name])
        page = page_of(name, result, **settings[name])
        [trajectory] = of_type(page, "trajectory")
        assert [series["name"] for series in trajectory["series"]] == tracks_of(result)
        assert trajectory["collapsed"] is stays
        [candidates] = of_type(page, "tokens")
        ends = [each for each in result.sequences["walk"] if (each.labels["walker"], each.labels["step"]) == (0, 3)]
        for row, sequence in zip(candidates["rows"], ends, strict=True):
            marks = [token.get("mark") for token in row["tokens"]]
            own = [index == wanted for index, wanted in zip(sequence.ids, IDS, strict=True)]
            assert marks == ["right" if right else None for right in own], "a second candidate is not wrong"
        said = any("still decodes to the prompt's own" in block["text"] for block in of_type(page, "prose"))
        drawn = any(block["y"] == "tokens changed" for block in of_type(page, "band"))
        assert (said, drawn) == (stays, not stays)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_page_explains_its_symbols_and_its_control_before_the_first_figure(
    name: str, subject: probekit.Subject
) -> None:
    result = walked(name, subject, **OPTIONS[name])
    for control in (True, False):
        text = page_of(name, result, **OPTIONS[name], control=control).blocks[0]["text"]
        for symbol in ("e*", "O(e)", "t = O(e*)", "e_n", "d_i =", "d_o =", "r₁", "r₂", "2 walkers"):
            assert symbol in text
        assert (f"'{tracks_of(result)[-1]}' is the control" in text) is control


# --- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_half_precision_model_is_walked_in_fp32(name: str, dtype: torch.dtype) -> None:
    """Steps below the precision of the model's own numbers add up."""
    subject = gpt2(dtype)
    result = walked(name, subject, steps=5, **NEAR[name])
    result.encode()
    for track in tracks_of(result):
        assert result.tensors[f"0/block.1/{track}/embeddings"].dtype == torch.float32
    if name != "clamped-walk":
        distance = result.tensors["0/block.1/random/input_l2"][-1]
        torch.testing.assert_close(distance, torch.full((2,), 10 * TINY, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> probekit.Subject:
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return probekit.load(str(folder), quantization="int8")


@pytest.mark.parametrize("name", OPTIONS)
def test_an_int8_model_is_walked_and_the_report_says_what_its_rows_share(name: str, int8: probekit.Subject) -> None:
    result = walked(name, int8, IDS, SHORTER, **OPTIONS[name])
    result.encode()
    assert [note.startswith("int8: rows of one batch influence each other") for note in result.notes] == [True]
    assert all(float(row["output_l2"] or 0) > 0 for row in result.tables["walkers"])


# --- what is wrong is said in a sentence -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("orthogonal-walk", {"step_size": 1e30}),
        ("orthogonal-walk", {"step_size": 1e30, "direction": "svd-last"}),
        ("clamped-walk", {"learning_rate": 1e30, "inner": 3}),
        ("clamped-walk", {"noise": 1e30}),
        ("null-space-walk", {"step_size": 1e30, **OPTIONS["null-space-walk"]}),
        ("null-space-walk", {"step_size": 1e30, **OPTIONS["null-space-walk"], "corrections": 0}),
    ],
)
def test_a_walk_that_diverges_ends_in_a_sentence(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(probekit.AnalysisError) as raised:
        walked(name, gpt2(torch.float32), steps=4, **options).encode()
    assert str(raised.value).endswith("left the finite numbers; make its steps smaller.")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit_the_model_are_named(name: str, subject: probekit.Subject) -> None:
    with pytest.raises(probekit.UsageError, match=r"^top_k is 61, but the vocabulary has 60 tokens\.$"):
        walked(name, subject, top_k=61)
    with pytest.raises(probekit.UsageError, match=r"There is no site 'block\.9'"):
        walked(name, subject, sites="block.0,block.9")


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_that_are_not_finite_are_named(name: str) -> None:
    broken = gpt2()
    with torch.no_grad():
        broken.model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(probekit.AnalysisError, match=r"block\.1 is NaN .* transformer\.h\.1\.mlp\.c_fc\.weight holds"):
        walked(name, broken)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_decoder_that_the_model_does_not_have_is_said_before_the_first_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = probekit.load("fc-token,width=12", plugins=probekit.Plugins())
    stepped: list[str] = []
    monkeypatch.setattr(probekit.Context, "loop", lambda self, label, *_: stepped.append(label))
    with pytest.raises(probekit.ModelError, match="has no unembedding"):
        walked(name, network, decoder="unembedding", **OPTIONS[name])
    assert stepped == []
