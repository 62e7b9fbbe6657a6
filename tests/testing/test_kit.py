"""What a plugin author tests with: cheap to import, offline, and always the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit.testing import HOSTILE_TOKENS, fingerprint, prompts, tiny_subject


def test_importing_the_kit_imports_neither_torch_nor_transformers_nor_pytest(probekit_process: Any) -> None:
    code = (
        "import sys, probekit.testing; "
        "print(*{name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'pytest', 'probekit_plugins'})"
    )
    ended = probekit_process(code=code)
    assert (ended.code, ended.out, ended.err) == (0, "\n", "")


def test_a_tiny_subject_is_its_seeds_own_and_as_load_leaves_a_model() -> None:
    state = torch.get_rng_state()
    weights = [fingerprint(tiny_subject(seed=seed).model)["weights"] for seed in (0, 0, 1)]
    assert (weights[0] == weights[1], weights[0] == weights[2]) == (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    subject = tiny_subject()
    assert not any(module.training for module in subject.model.modules())
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    assert (len(subject.anatomy.blocks), subject.width, subject.context, subject.vocabulary) == (3, 32, 64, 300)
    assert len(tiny_subject(blocks=2, width=16, context=8).anatomy.blocks) == 2


def test_a_subject_in_training_has_flags_and_gradients_of_every_kind() -> None:
    model = tiny_subject(training=True).model
    assert {module.training for module in model.modules()} == {True, False}
    assert {parameter.requires_grad for parameter in model.parameters()} == {True, False}
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_a_tiny_subject_asks_for_nothing_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    before = dict(os.environ)
    subject = tiny_subject(hostile=True)
    assert subject.capture(prompts(subject)[0].input_ids, ["block.0"])["block.0"].shape[-1] == 32
    assert (list(tmp_path.iterdir()), dict(os.environ)) == ([], before)


def test_prompts_are_those_of_a_run() -> None:
    subject = tiny_subject()
    [prompt] = prompts(subject, "The sky is blue.")
    assert prompt.text == "".join(prompt.tokens) == "The sky is blue."
    assert torch.equal(prompt.input_ids, subject.encode("The sky is blue."))
    first, second = prompts(subject)
    assert first.input_ids.shape != second.input_ids.shape
    assert second.input_ids.shape[1] <= 64


def test_every_hostile_token_is_in_the_hostile_prompt() -> None:
    subject = tiny_subject(hostile=True)
    [prompt] = prompts(subject)
    shown = [token if token else tuple(prompt.tokens) for token in HOSTILE_TOKENS]
    assert [token for token in HOSTILE_TOKENS if token and token not in prompt.tokens] == []
    assert len(shown) == len(prompt.tokens) == prompt.input_ids.shape[1]
    assert prompt.text == "".join(HOSTILE_TOKENS)
    assert len(HOSTILE_TOKENS[-1]) == 10_000
    whole = subject.tokens(range(subject.vocabulary))
    assert whole.count(HOSTILE_TOKENS[-1]) == 1
    # What it says it also takes, as a text that is encoded again.
    assert subject.encode(prompt.text[:40] + "\ud800").shape[1] > 1


def test_the_hostile_subject_computes_what_the_plain_one_does() -> None:
    plain, hostile = tiny_subject(), tiny_subject(hostile=True)
    ids = plain.encode("The sky is blue.")
    assert torch.equal(hostile.encode("The sky is blue."), ids)
    assert torch.equal(hostile.capture(ids, ["logits"])["logits"], plain.capture(ids, ["logits"])["logits"])


def test_a_buffer_that_no_checkpoint_holds_is_part_of_the_fingerprint() -> None:
    subject = tiny_subject()
    subject.model.register_buffer("seen", torch.zeros(1), persistent=False)
    before = fingerprint(subject.model)
    assert fingerprint(subject.model) == before
    subject.model.get_buffer("seen").add_(1)
    after = fingerprint(subject.model)
    assert [what for what in before if before[what] != after[what]] == ["buffers"]


def test_the_fixtures_are_found_by_a_plugins_tests(probekit_process: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text('pytest_plugins = ["probekit.testing.fixtures"]\n')
    (folder / "test_fixtures.py").write_text(
        "def test_it(tiny_subject, hostile_subject, check_analysis):\n"
        "    assert tiny_subject.vocabulary == hostile_subject.vocabulary\n"
        "    from probekit_plugins.pseudo_inverse import PseudoInverse\n"
        "    check_analysis(PseudoInverse)\n"
    )
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]]))"
    ended = probekit_process(folder, code=code, environment={"PYTEST_ADDOPTS": ""})
    assert ended.code == 0, ended.out
    assert "1 passed" in ended.out
    assert probekit.testing is not None
