"""What is odd: numbers, names, texts, models and tokenizers that a file of codes or a run may be given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertLMHeadModel

import probekit
from probekit.testing import prompts, tiny_subject
from probekit_plugins.control_codes import ControlCodes, ControlCodesOptions
from probekit_plugins.control_codes.codes import codes
from probekit_plugins.control_codes.generation import penalty
from tests.control_codes import languages

TWO = "[codes.A]\nids = [32]\n[codes.B]\nids = [33]"
WITH_TEXTS = '[codes.A]\ntemplate = "c0 {text}"\ntexts = "a.txt"\n[codes.B]\ntemplate = "c1 {text}"\ntexts = "b.txt"'


def run(
    folder: Path,
    subject: probekit.Subject,
    text: str = TWO,
    given_: list[probekit.Prompt] | None = None,
    **options: Any,
) -> tuple[probekit.Result, probekit.Page]:
    (folder / "c.toml").write_text(text)
    (folder / "b.txt").write_text("\n".join(languages.texts(1, 30)))
    if not (folder / "a.txt").exists():
        (folder / "a.txt").write_text("\n".join(languages.texts(0, 30)))
    analysis = ControlCodes(ControlCodesOptions(codes=str(folder / "c.toml"), **options))
    result = analysis.run(subject, given_ or [languages.prompt(subject)])
    result.encode()
    page = probekit.Page("test")
    analysis.report(result, page)
    return result, page


HUGE = "0x" + "F" * 5000
DEEP = "b." * (2 * sys.getrecursionlimit()) + "b = 1"


@pytest.mark.parametrize(
    "text",
    [
        f'[codes.A]\ntemplate = "a {{b}} {{text}}"\nfields = {{ b = {HUGE} }}',
        f"[codes.A]\nids = [{HUGE}]",
        f"[codes.A]\nids = [-1, {HUGE}]",
        f"[codes.A]\ntemplate = {HUGE}",
        f'[codes.A]\ntemplate = "a {{b}} {{text}}"\nfields.{DEEP}',
        f"[codes.A]\nids.{DEEP}",
        '[codes."a\\nb"]\ntemplate = "a {text}"',
        '[codes."a\\u0000"]\ntemplate = "a {text}"',
        '[codes."\\u202eb"]\ntemplate = "a {text}"',
        '[codes.A]\n"x\\ny" = 3',
        '"x\\ny" = 3',
    ],
    ids=["field", "id", "ids", "template", "fields", "tables", "lines", "zero", "right to left", "key", "top"],
)
def test_numbers_tables_and_names_that_are_odd_are_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(probekit.UsageError) as raised:
        codes(ControlCodesOptions(codes=str(tmp_path / "c.toml")))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


def test_a_name_that_is_not_there_lists_some_of_many(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("\n".join(f'[codes.{"c" * 70}{n}]\ntemplate="{n}{{text}}"' for n in range(256)))
    with pytest.raises(probekit.UsageError, match="…") as raised:
        codes(ControlCodesOptions(codes=str(tmp_path / "c.toml"), only=["zz"]))
    assert len(str(raised.value)) < 2000


def test_a_field_may_be_a_number_on_the_command_line_too_but_no_broken_character() -> None:
    options = ControlCodesOptions(only=["Reviews"], fields={"rating": 1.0})  # type: ignore[dict-item]
    assert [code.prefix for code in codes(options)] == ["Reviews Rating: 1.0 "]
    with pytest.raises(probekit.UsageError, match="a field is not UTF-8"):
        codes(ControlCodesOptions(fields={"rating": "\udcff"}))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-40}, {"penalty": 1e-40}, {"penalty": 0}, {"top_k": 5}, {"top_p": 0.9}],
    ids=lambda options: str(options),
)
def test_options_that_overflow_or_do_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1e-06|equal to 0.000001|need a `temperature`"):
        ControlCodesOptions(**options)


def test_the_smallest_and_largest_penalties_and_temperatures_still_draw(tmp_path: Path) -> None:
    for options in ({"temperature": 1e-6, "penalty": 1e-6}, {"temperature": 1e6, "penalty": 1e6}):
        result, _ = run(tmp_path, languages.subject(blocks=1, width=16), new_tokens=4, **options)
        assert all(len(each.ids) == 4 for each in result.sequences["generated"])


@given(st.integers(0, 2**31), st.floats(0.5, 5))
def test_penalties_are_divisions_and_products_of_the_generated_tokens_alone(seed: int, theta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 11, generator=generator) * 5
    ids = torch.randint(11, (2, 7), generator=generator)
    for form in ("literal", "corrected", "unpenalised"):
        found = logits.clone()
        for processor in penalty(form, theta, 3):  # type: ignore[arg-type]
            found = processor(ids, found)
        expected = logits.clone()
        for row in range(2):
            for token in set(ids[row, 3:].tolist()):
                x = float(logits[row, token])
                times = {"literal": x / theta, "corrected": x * theta if x < 0 else x / theta, "unpenalised": x}
                expected[row, token] = times[form]
        assert torch.allclose(found, expected, rtol=1e-6)
        [one] = penalty(form, 1.0, 3) or [None]  # type: ignore[arg-type]
        assert one is None or torch.equal(one(ids, logits.clone()), logits)


def test_too_short_texts_have_no_share_of_4grams(tmp_path: Path) -> None:
    result, _ = run(tmp_path, languages.subject(blocks=1, width=16), new_tokens=2)
    assert all(row["4grams_again"] is None for row in result.tables["repetition"])
    assert all(row["tokens_again"] is not None for row in result.tables["repetition"])
    assert "corrected/4grams_again" not in result.metrics


def test_the_page_speaks_of_a_penalty_only_where_there_is_one(tmp_path: Path) -> None:
    for forms, there in (("unpenalised", False), ("literal", True)):
        _, page = run(tmp_path, languages.subject(blocks=1, width=16), new_tokens=2, penalty_form=forms)
        prose = " ".join(block["text"] for block in page.blocks if block["type"] == "prose")
        assert ("a penalty of θ" in prose) == there


def test_prompts_that_are_tied_are_attributed_to_no_code(tmp_path: Path) -> None:
    subject = languages.subject(blocks=1, width=16)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.zero_()
    both = [languages.prompt(subject), languages.prompt(subject, "w4 w5")]
    result, _ = run(tmp_path, subject, given_=both, penalty_form=[])
    assert result.finding == "Of 2 codes several make each of the 2 prompts equally likely."


def test_as_many_texts_are_measured_as_are_asked_for(tmp_path: Path) -> None:
    result, _ = run(tmp_path, languages.subject(blocks=1, width=16), WITH_TEXTS, penalty_form=[], measured=29)
    assert result.metrics["texts"] == 2 * 29


def test_texts_that_stand_under_two_codes_are_counted_in_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(languages.texts(0, 20) + languages.texts(1, 30)[:10]))
    result, _ = run(tmp_path, languages.subject(blocks=1, width=16), WITH_TEXTS, penalty_form=[])
    [note] = [note for note in result.notes if "same under several codes" in note]
    same = set(languages.texts(0, 20) + languages.texts(1, 30)[:10]) & set(languages.texts(1, 30))
    assert note.startswith(f"{2 * len(same)} of the ")


def test_what_the_tokenizer_puts_after_a_text_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    subject = languages.subject(blocks=1, width=16)
    assert subject.tokenizer is not None
    ends = TemplateProcessing(single="w30 $A w31", special_tokens=[("w30", 30), ("w31", 31)])
    subject.tokenizer._tokenizer.post_processor = ends
    assert subject.encode("w1 w2").tolist() == [[30, 1, 2, 31]]
    result, _ = run(tmp_path, subject, new_tokens=2)
    assert [each.ids for each in result.sequences["prompt"]] == [[1, 2, 3]]


def test_a_model_that_reads_what_comes_after_is_refused(tmp_path: Path) -> None:
    tokenizer = languages.subject().tokenizer
    config = BertConfig(vocab_size=38, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    for is_decoder in (False, True):
        config.is_decoder = is_decoder
        torch.manual_seed(0)
        model = BertLMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)
        subject = probekit.Subject(model, tokenizer)
        if is_decoder:
            run(tmp_path, subject, new_tokens=2)
            continue
        with pytest.raises(probekit.UsageError, match="also reads what comes after"):
            run(tmp_path, subject, new_tokens=2)


def test_a_model_whose_generation_settings_contradict_is_saved_and_wrote_what_it_writes(tmp_path: Path) -> None:
    """The text is the fine-tuned model's, as the folder loads, not that of the model that was given."""
    subject = languages.subject(blocks=1, width=16)
    settings = subject.model.generation_config
    settings.temperature, settings.do_sample = 0.3, False  # type: ignore[union-attr]
    options: dict[str, Any] = {"new_tokens": 6, "penalty_form": "unpenalised"}
    tuned, _ = run(tmp_path, subject, WITH_TEXTS, steps=30, learning_rate=0.02, seeds=2, save=True, **options)
    assert settings.temperature == 0.3  # type: ignore[union-attr]
    for name, content in tuned.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    loaded = probekit.load(str(tmp_path / "fine-tuned"))
    again, _ = run(tmp_path, loaded, WITH_TEXTS, **options)
    before, _ = run(tmp_path, subject, WITH_TEXTS, **options)
    texts = [[each.ids for each in result.sequences["generated"]] for result in (tuned, again, before)]
    assert texts[0] == texts[1] != texts[2]


def test_a_code_of_markup_is_a_name_like_another(tmp_path: Path) -> None:
    text = '[codes."<script>alert(1)</script>"]\ntemplate = "<b>{text}"\n[codes."Ужас 😱/.."]\ntemplate = "x {text}"'
    subject = tiny_subject()
    result, _ = run(tmp_path, subject, text, prompts(subject), new_tokens=2)
    assert {"<script>alert(1)</script>", "Ужас 😱/.."} <= {row["code"] for row in result.tables["likelihood"]}
