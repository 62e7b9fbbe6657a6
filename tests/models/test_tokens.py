"""Each token's own text: leading spaces, parts of characters, SentencePiece's mark, and ids that no token has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probekit.models.tokens import decode_text, encode_text, token_strings


@pytest.fixture(scope="module")
def byte_level(tiny_gpt2: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_gpt2())


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A tokenizer in SentencePiece's manner, with byte fallback, as Llama's is."""
    pieces = ["<unk>", "<s>", "▁", "▁the", "sky", "▁sky", "<0x0A>", "<0xE2>", "<0x20>", "a"]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize(
    "text", ["The sky is blue.", "  two  spaces ", "naïve ☃ 🙂 日本", "line\nand\ttab", "<|endoftext|>", "▁"]
)
def test_byte_level_tokens_join_to_the_text_where_they_are_whole_characters(byte_level: Any, text: str) -> None:
    ids = encode_text(byte_level, text, special_tokens=True)
    strings = token_strings(byte_level, ids)
    assert decode_text(byte_level, ids) == text
    assert len(strings) == len(ids)
    assert "\ufffd" not in "".join(strings)
    if text.isascii():
        assert "".join(strings) == text


def test_byte_level_tokens_keep_their_leading_space(byte_level: Any) -> None:
    assert token_strings(byte_level, encode_text(byte_level, "The sky the", True))[-1].startswith(" ")


def test_a_part_of_a_character_shows_its_raw_piece(byte_level: Any) -> None:
    ids = encode_text(byte_level, "☃", True)
    assert len(ids) == 3
    assert token_strings(byte_level, ids) == byte_level.convert_ids_to_tokens(ids)


def test_sentencepiece_tokens_show_a_space_for_its_mark(sentencepiece: Any) -> None:
    assert token_strings(sentencepiece, [2, 3, 4, 5, 1]) == [" ", " the", "sky", " sky", "<s>"]


def test_sentencepiece_bytes_show_what_they_are(sentencepiece: Any) -> None:
    # A newline is a character; a part of one, and the space that decoding strips, show their raw piece.
    assert token_strings(sentencepiece, [6, 7, 8]) == ["\n", "<0xE2>", "<0x20>"]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_an_id_that_no_token_has_shows_its_number(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = request.getfixturevalue(kind)
    assert token_strings(tokenizer, [len(tokenizer), 99999]) == [f"<{len(tokenizer)}>", "<99999>"]


def test_a_token_past_a_gap_in_the_ids_shows_its_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "late": 9, "[UNK]": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken("added")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert len(wrapped) < 9
    assert token_strings(wrapped, [9, 1, 3]) == ["late", "b", "<3>"]


def test_a_tokenizer_that_raises_for_an_id_that_it_lacks() -> None:
    class Strict:
        def convert_ids_to_tokens(self, index: int) -> str:
            return ["a", "b"][index]

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(self.convert_ids_to_tokens, ids))

    assert token_strings(Strict(), [0, 1, 2]) == ["a", "b", "<2>"]


def test_without_a_tokenizer_every_id_shows_its_number() -> None:
    assert token_strings(None, [7, 9, 7]) == ["<7>", "<9>", "<7>"]
    assert decode_text(None, [7, 9]) == "<7><9>"


def test_no_tokens_are_no_strings(byte_level: Any) -> None:
    assert token_strings(byte_level, []) == []
    assert decode_text(byte_level, []) == ""


@pytest.mark.data
def test_gpt2s_own_tokenizer(data_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_folder / "tokenizers" / "gpt2")
    ids = encode_text(tokenizer, "The sky is blue.", True)
    assert token_strings(tokenizer, ids) == ["The", " sky", " is", " blue", "."]
    assert token_strings(tokenizer, [50256, 50257]) == ["<|endoftext|>", "<50257>"]


@pytest.mark.data
def test_a_llama_tokenizer(data_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_folder / "models" / "stories260k")
    text = "Once upon a time, there was a little girl named Lily."
    strings = token_strings(tokenizer, encode_text(tokenizer, text, special_tokens=False))
    assert "".join(strings).strip() == text
