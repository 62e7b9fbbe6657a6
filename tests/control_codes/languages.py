"""Bigram languages: sparse random transitions between words, so that how well texts can be told apart is known."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import probekit

WORDS, NEXT, LENGTH = 32, 6, 24


def transitions(language: int, words: int = WORDS) -> torch.Tensor:
    """`p(next | word)`, `[words, words]`: each word is followed by six others, unevenly."""
    generator = torch.Generator().manual_seed(1000 + language)
    weights = torch.rand(words, words, generator=generator) ** 2
    chosen = torch.rand(words, words, generator=generator).argsort(1)[:, :NEXT]
    kept = torch.zeros(words, words).scatter(1, chosen, 1.0) * (weights + 0.05)
    return kept / kept.sum(1, keepdim=True)


def entropy(language: int) -> float:
    """Nats per word in the long run, the least NLL that a model can have."""
    p = transitions(language).double()
    stationary = torch.full((WORDS,), 1 / WORDS, dtype=torch.float64)
    for _ in range(200):
        stationary = stationary @ p
    return float((stationary[:, None] * torch.special.entr(p)).sum())


def texts(language: int, count: int, seed: int = 0) -> list[str]:
    """Texts of 24 words, `w0` to `w31`; the first word is drawn evenly."""
    generator = torch.Generator().manual_seed(seed * 100 + language)
    p = transitions(language)
    words = torch.randint(WORDS, (count, 1), generator=generator)
    while words.shape[1] < LENGTH:
        words = torch.cat([words, torch.multinomial(p[words[:, -1]], 1, generator=generator)], 1)
    return [" ".join(f"w{word}" for word in row) for row in words.tolist()]


def subject(seed: int = 0, blocks: int = 2, width: int = 64) -> probekit.Subject:
    """A GPT-2 of random weights that reads these words, and a word `c0` to `c4` for each code."""
    vocabulary = {f"w{word}": word for word in range(WORDS)} | {f"c{code}": WORDS + code for code in range(5)}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<unk>": len(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    config = GPT2Config(
        n_layer=blocks,
        n_embd=width,
        n_head=4,
        n_positions=40,
        vocab_size=len(wrapped),
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    return probekit.Subject(model.eval().requires_grad_(False), wrapped, settled=True)


def codes_file(folder: Path, languages: int = 3, count: int = 1000, seed: int = 0) -> Path:
    """A file of codes `L0`, `L1`, …, each with its texts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for language in range(languages):
        (folder / f"L{language}.txt").write_text("\n".join(texts(language, count, seed)))
        template, file = (json.dumps(text) for text in (f"c{language} {{text}}", f"L{language}.txt"))
        lines.append(f"[codes.L{language}]\ntemplate = {template}\ntexts = {file}\n")
    path = folder / "codes.toml"
    path.write_text("\n".join(lines))
    return path


def prompt(subject: probekit.Subject, text: str = "w1 w2 w3") -> probekit.Prompt:
    ids = subject.encode(text)
    return probekit.Prompt(text, ids, subject.tokens(ids))
