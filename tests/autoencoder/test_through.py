"""The inverters and the audit on what a saved autoencoder makes of activations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import probekit
from probekit_plugins.autoencoder import saved
from probekit_plugins.autoencoder.modules import Plain
from probekit_plugins.autoencoder.through import Through, reconstruction, replaced, several
from probekit_plugins.exact_inverter import ExactInverter, ExactInverterOptions
from probekit_plugins.exact_inverter.targets import blurred
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.leakage_audit import LeakageAudit, LeakageAuditOptions
from tests.analyses.recovering import OTHER, PROMPT, SITE, few_samples, gpt2, prompt_of

WIDTH = 32
FEW: dict[str, Any] = {"steps": 4, "restarts": 2, "next_token": False}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def module(kept: int, shift: float = 0.0, width: int = WIDTH) -> Plain:
    """One that keeps the first entries of an activation, and adds to them all."""
    made = Plain(width, width, 1, width)
    with torch.no_grad():
        for path in (made.encoder.linear, made.decoder.linear):
            path.weight.copy_(torch.eye(width))
            path.bias.zero_()
        made.encoder.linear.weight[kept:] = 0
        made.decoder.linear.bias.add_(shift)
    return made


def folder(
    at: Path,
    name: str = "plain",
    kept: int = WIDTH,
    site: str = SITE,
    skip_first: int = 1,
    error: float | None = 0.0,
    shift: float = 0.0,
    width: int = WIDTH,
    facts: dict[str, Any] | None = None,
) -> str:
    """A saved autoencoder."""
    about = saved.described(site, facts or {}, skip_first, {} if error is None else {"error": error})
    arguments = {"width": width, "code": width, "depth": 1, "hidden": width}
    path = at / name
    path.mkdir(parents=True)
    for file, content in saved.files("plain", arguments, module(kept, shift, width), about).items():
        (path / file).write_bytes(content)
    return str(path)


def run(
    analysis: type[probekit.Analysis[Any]], subject: probekit.Subject, *prompts: Sequence[int], **options: Any
) -> probekit.Result:
    chosen = analysis.options_model(**{"sites": SITE, **options})
    found = analysis(chosen, probekit.Context()).run(subject, [prompt_of(subject, ids) for ids in prompts or (PROMPT,)])
    found.encode()
    return found


def drawn(analysis: type[probekit.Analysis[Any]], result: probekit.Result, **options: Any) -> list[dict[str, Any]]:
    page = probekit.Page(analysis.name)
    analysis(analysis.options_model(**{"sites": SITE, **options}), probekit.Context()).report(result, page)
    json.dumps(page.to_json(), allow_nan=False)
    return page.blocks


def activations(subject: probekit.Subject, ids: Sequence[int]) -> torch.Tensor:
    return subject.capture(torch.tensor([list(ids)]), [SITE])[SITE][0]


# --- the autoencoder in the way --------------------------------------------------------------------------------------


def test_what_counts_is_replaced_and_nothing_else() -> None:
    x = torch.randn(2, 3, 4)
    counted = torch.tensor([[False, True, True], [False, False, True]])
    found = replaced(x, lambda rows: rows * 0 + 7, counted)
    assert torch.equal(found[counted], torch.full((3, 4), 7.0))
    assert torch.equal(found[~counted], x[~counted])


def test_it_is_reconstructed_in_fp32_and_given_back_in_its_own_type() -> None:
    made = module(WIDTH)
    for dtype in (torch.bfloat16, torch.float64):
        x = torch.randn(3, WIDTH).to(dtype)
        assert torch.equal(reconstruction(made)(x), x.float().to(dtype))


def test_it_keeps_the_first_positions_of_each_prompt(subject: probekit.Subject, tmp_path: Path) -> None:
    through = Through(subject, folder(tmp_path, kept=4, skip_first=2))
    x = torch.randn(2, 5, WIDTH)
    found = through(x)
    assert torch.equal(found[:, :2], x[:, :2])
    torch.testing.assert_close(found[:, 2:], torch.cat([x[:, 2:, :4], torch.zeros(2, 3, WIDTH - 4)], -1))


def test_folders_of_one_name_are_told_apart(subject: probekit.Subject, tmp_path: Path) -> None:
    paths = [folder(tmp_path / "a", "plain"), folder(tmp_path / "b", "plain"), folder(tmp_path, "none")]
    assert list(several(subject, paths, "none")) == ["plain", "plain (2)", "none (2)"]


def test_the_error_is_measured_where_its_file_does_not_say_it(subject: probekit.Subject, tmp_path: Path) -> None:
    ids = torch.tensor([PROMPT, OTHER])
    said = Through(subject, folder(tmp_path, "said", error=0.25))
    assert said.error(subject, SITE, lambda: [ids]) == 0.25
    silent = Through(subject, folder(tmp_path, "silent", kept=8, error=None))
    own = subject.capture(ids, [SITE])[SITE][:, 1:]
    expected = float((own[..., 8:].square().sum() / own.numel()).sqrt())
    assert silent.error(subject, SITE, lambda: [ids]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("analysis", "several"), [(ExactInverter, False), (GradientInverter, False), (LeakageAudit, True)], ids=str
)
def test_an_autoencoder_that_does_not_fit_is_refused(
    subject: probekit.Subject, tmp_path: Path, analysis: type[probekit.Analysis[Any]], several: bool
) -> None:
    def given(path: str) -> Any:
        return [path] if several else path

    few = FEW if analysis is GradientInverter else {}
    other = folder(tmp_path, "other", site="block.0")
    with pytest.raises(probekit.UsageError, match=r"is of block\.0, .* block\.1; give -o sites=block\.0"):
        run(analysis, subject, through=given(other), **few)
    wide = folder(tmp_path, "wide", width=48)
    with pytest.raises(probekit.UsageError, match="'wide' takes activations of width 48, but these have 32"):
        run(analysis, subject, through=given(wide), **few)
    with pytest.raises(probekit.UsageError, match="There is no autoencoder in"):
        run(analysis, subject, through=given(str(tmp_path / "missing")), **few)


@pytest.mark.parametrize("weights", ["same", "other"])
def test_other_weights_than_the_models_are_noted(tmp_path: Path, weights: str) -> None:
    subject = gpt2()
    subject.facts["weights_sha256"] = "same"
    path = folder(tmp_path, facts={"weights_sha256": weights})
    notes = " ".join(run(ExactInverter, subject, through=path).notes)
    assert ("of other weights than this model's" in notes) == (weights == "other")


# --- the exact inverter ----------------------------------------------------------------------------------------------


def test_through_one_that_changes_nothing_all_comes_back(subject: probekit.Subject, tmp_path: Path) -> None:
    result = run(ExactInverter, subject, PROMPT, OTHER[:5], through=folder(tmp_path))
    assert result.metrics[f"{SITE}/exact_rate"] == 1
    assert result.metrics[f"{SITE}/verified_share"] == 1
    assert any("'plain' makes of them, 0 of their norm away" in note for note in result.notes)


def test_what_is_left_out_does_not_come_back(subject: probekit.Subject, tmp_path: Path) -> None:
    """The first token, which does not pass through the autoencoder, does."""
    result = run(ExactInverter, subject, PROMPT, OTHER, through=folder(tmp_path, kept=0, error=1.0))
    assert float(result.metrics[f"{SITE}/token_accuracy"] or 0) < 0.5
    first = [row["right"] for row in result.tables["positions"] if row["position"] == 0]
    assert first == [True, True]
    assert result.metrics[f"{SITE}/false_positives"] == 0
    away = " 1 of their norm away (‖x̂ − x‖ / ‖x‖). The first position keeps its own activation."
    assert any(away in note for note in result.notes)
    assert any("taken to be known, and for normal noise" in note for note in result.notes)
    assert drawn(ExactInverter, result)


def test_an_error_that_is_known_lets_tokens_match(subject: probekit.Subject, tmp_path: Path) -> None:
    """Shifted by 0.05 everywhere: without that knowledge no token gives the activation."""
    known = run(ExactInverter, subject, through=folder(tmp_path, "known", shift=0.05, error=0.05))
    assert known.metrics[f"{SITE}/exact_rate"] == 1
    assert {row["status"] for row in known.tables["positions"]} <= {"verified", "matching", "tied"}
    unknown = run(ExactInverter, subject, through=folder(tmp_path, "unknown", shift=0.05, error=0.0))
    assert unknown.metrics[f"{SITE}/verified_share"] != 1


def test_noise_and_rounding_come_after_it(subject: probekit.Subject, tmp_path: Path, monkeypatch: Any) -> None:
    seen = []

    def note(target: Any, *arguments: Any) -> Any:
        seen.append((target, blurred(target, *arguments)))
        return seen[-1][1]

    monkeypatch.setattr("probekit_plugins.exact_inverter.inversion.blurred", note)
    run(ExactInverter, subject, through=folder(tmp_path, kept=8, error=0.3), noise=0.1, rounding="int8")
    [(before, after)] = seen
    assert not before.activations[1:, 8:].any()
    assert after.activations[1:, 8:].any()
    rms = before.activations.square().mean(-1).sqrt()
    torch.testing.assert_close(after.sigma[1:], (0.3**2 + (0.1 * rms[1:]) ** 2).sqrt())
    torch.testing.assert_close(after.sigma[0], 0.1 * rms[0])


def test_a_files_activations_are_as_they_are(subject: probekit.Subject, tmp_path: Path) -> None:
    file = tmp_path / "given.safetensors"
    save_file({"activations": activations(subject, PROMPT)}, file)
    with pytest.raises(probekit.UsageError, match="through is for the prompts' activations"):
        run(ExactInverter, subject, activations=str(file), through=folder(tmp_path))


# --- the gradient inverter -------------------------------------------------------------------------------------------


def test_the_target_of_the_descent_is_the_reconstruction(subject: probekit.Subject, tmp_path: Path) -> None:
    """Started at the answer: the loss there is the distance that the autoencoder makes."""
    path = folder(tmp_path, kept=8)
    answer = {"noise_share": 0.0, "target_share": 1.0, **FEW}
    result = run(GradientInverter, subject, PROMPT, OTHER[:5], through=path, **answer)
    for number, ids in enumerate((PROMPT, OTHER[:5])):
        own = activations(subject, ids)
        expected = float(own[1:, 8:].abs().sum())
        torch.testing.assert_close(
            result.tensors[f"{number}/{SITE}/losses"][0], torch.full((2,), expected), rtol=1e-4, atol=1e-4
        )
    without = run(GradientInverter, subject, PROMPT, OTHER[:5], **answer)
    assert float(without.tensors[f"0/{SITE}/losses"][0].max()) < 1e-3
    own = torch.cat([activations(subject, ids)[1:] for ids in (PROMPT, OTHER[:5])])
    away = f"{float(own[:, 8:].norm() / own.norm()):.2g} of their norm away"
    [note] = [note for note in result.notes if "autoencoder" in note]
    assert away in note
    assert "own tokens do not give a loss of 0" in note
    assert not [note for note in without.notes if "autoencoder" in note]
    assert drawn(GradientInverter, result, **answer)


def test_through_one_that_changes_nothing_the_descent_is_the_same(subject: probekit.Subject, tmp_path: Path) -> None:
    path = folder(tmp_path)
    through, without = (run(GradientInverter, subject, **FEW, **more) for more in ({"through": path}, {}))
    torch.testing.assert_close(
        through.tensors[f"0/{SITE}/losses"], without.tensors[f"0/{SITE}/losses"], rtol=1e-4, atol=1e-4
    )


def test_the_head_follows_the_autoencoder(subject: probekit.Subject, tmp_path: Path) -> None:
    path = folder(tmp_path, kept=8)
    answer = {"noise_share": 0.0, "target_share": 1.0, "head": "model", **FEW}
    result = run(GradientInverter, subject, through=path, **answer)
    own = activations(subject, PROMPT)
    changed = own.clone()
    changed[1:, 8:] = 0
    expected = float((subject.unembed(own) - subject.unembed(changed)).abs().sum())
    assert float(result.tensors[f"0/{SITE}/losses"][0, 0]) == pytest.approx(expected, rel=1e-3)


def test_the_source_pages_settings_get_the_same_targets(subject: probekit.Subject, tmp_path: Path) -> None:
    path = folder(tmp_path, kept=0)
    through, without = (
        run(GradientInverter, subject, compare_page=True, **FEW, **more) for more in ({"through": path}, {})
    )
    losses = [found.tensors[f"0/{SITE}/page/losses"][0] for found in (through, without)]
    assert not torch.allclose(losses[0], losses[1], rtol=1e-2)


def test_dropout_is_refused_beside_it() -> None:
    with pytest.raises(ValueError, match="without dropout"):
        GradientInverterOptions(through="somewhere", dropout=True)


# --- the audit -------------------------------------------------------------------------------------------------------


def test_an_autoencoder_is_a_condition_beside_the_others(subject: probekit.Subject, tmp_path: Path) -> None:
    paths = [folder(tmp_path, "same"), folder(tmp_path, "nothing", kept=0, error=1.0)]
    options: dict[str, Any] = {"sites": "every-block", "precisions": ["none", "int8"], "noise": [0.0, 0.5]}
    result = run(LeakageAudit, subject, PROMPT, OTHER, through=paths, **options)
    rows = result.tables["conditions"]
    wanted = [
        (site, name, precision, noise)
        for site, names in (("block.0", ["none"]), (SITE, ["none", "same", "nothing"]))
        for name in names
        for precision in ("none", "int8")
        for noise in (0.0, 0.5)
    ]
    assert [(row["site"], row["through"], row["precision"], row["noise"]) for row in rows] == wanted
    shares = {key: row["token_accuracy"] for key, row in zip(wanted, rows, strict=True)}
    assert shares[SITE, "same", "none", 0.0] == shares[SITE, "none", "none", 0.0] == 1
    assert float(shares[SITE, "nothing", "none", 0.0] or 0) < 0.5
    assert result.metrics[f"{SITE}/through same/int8/noise 0.5/token_accuracy"] == shares[SITE, "same", "int8", 0.5]
    assert result.metrics[f"{SITE}/int8/noise 0.5/token_accuracy"] == shares[SITE, "none", "int8", 0.5]
    assert len(result.metrics) == 4 * len(wanted)
    assert {sequence.labels["through"] for sequence in result.sequences["recovered"]} == {"none", "same", "nothing"}
    assert "100% of the tokens come back from block.1" in result.finding
    assert "100% through same, " in result.finding
    assert len([note for note in result.notes if "makes of them" in note]) == 2


def test_the_page_names_the_autoencoder_of_each_line_and_row(subject: probekit.Subject, tmp_path: Path) -> None:
    options: dict[str, Any] = {"precisions": ["none", "int8"], "noise": [0.0, 0.5], "through": [folder(tmp_path)]}
    result = run(LeakageAudit, subject, **options)
    blocks = drawn(LeakageAudit, result, **options)
    [chart] = [block for block in blocks if block["type"] == "lines"]
    assert [line["name"] for line in chart["series"]] == [
        "block.1, as it is",
        "block.1, int8",
        "block.1, through plain",
        "block.1, through plain, int8",
    ]
    [table] = [block for block in blocks if block["type"] == "table"]
    assert table["columns"][1] == "through"
    assert [row[1] for row in table["rows"]] == ["none"] * 4 + ["plain"] * 4
    assert all(isinstance(row[-1], float) for row in table["rows"])


def test_it_is_what_the_exact_inverter_gives_through_it(subject: probekit.Subject, tmp_path: Path) -> None:
    path = folder(tmp_path, kept=20, error=0.3)
    audit = run(LeakageAudit, subject, PROMPT, OTHER, through=[path], precisions=["int8"], noise=[0.2])
    alone = run(ExactInverter, subject, PROMPT, OTHER, through=path, rounding="int8", noise=0.2)
    ids = [s.ids for s in audit.sequences["recovered"] if s.labels["through"] == "plain"]
    assert ids == [s.ids for s in alone.sequences["recovered"]]


def test_several_folders_may_be_given_with_commas() -> None:
    assert LeakageAuditOptions(through="a, b/c").through == ["a", "b/c"]  # type: ignore[arg-type]
    assert LeakageAuditOptions().through == []
    assert ExactInverterOptions().through is None
