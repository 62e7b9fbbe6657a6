"""Tiny models of random weights, made in memory in a moment: no file is read, no network is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit.analysis import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from probekit.subject import Subject

TEXTS = ("The sky is blue.", "Once upon a time, there was a little girl.")

HOSTILE_TOKENS = (
    "</script><script>hostile()</script>",
    '"><img src=x onerror="hostile()">',
    "<!--<script>",
    "' onfocus='hostile()",
    "&lt;b&gt;]]>",
    "\u202egnp.exe",
    "\u2066isolated\u2069",
    "NUL\x00NUL",
    "\ud800",
    "\U0001f9d1\u200d\U0001f680",
    "zero\u200bwidth\ufeff",
    "`rm -r`",
    "{{ 7 * 7 }}{% raw %}",
    "${x}%s{0}",
    "two\r\nlines",
    "\u2028",
    "",
    " ",
    "long" * 2500,  # the last, and of one id only: a page of thousands of them would say nothing more
)
"""What the tokenizer of `tiny_subject(hostile=True)` says for tokens: the text of token `i` is the i-th of these, and
ids beyond them repeat all but the last.
"""


def tiny_subject(
    *,
    hostile: bool = False,
    training: bool = False,
    seed: int = 0,
    blocks: int = 3,
    width: int = 32,
    context: int = 64,
) -> Subject:
    """A GPT-2 of random weights, drawn from `seed`, with a byte-level tokenizer of 300 tokens.

    As `probekit.load` leaves a model: in eval mode, its parameters frozen. With `training` it is a model in the middle
    of somebody's training instead: in train mode but for one block, one parameter frozen, gradients there. With
    `hostile` its tokenizer says `HOSTILE_TOKENS` for tokens.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from probekit.subject import Subject

    tokenizer = _tokenizer(hostile)
    config = GPT2Config(
        n_layer=blocks,
        n_embd=width,
        n_head=2,
        n_positions=context,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        if training:
            model.train()
            model.transformer.h[-1].eval()
            model.transformer.wpe.weight.requires_grad_(False)
            logits = model(input_ids=torch.arange(1, 6)[None]).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, torch.arange(2, 6)).backward()
    facts = {"source": "memory", "architecture": "GPT2LMHeadModel", "dtype": "float32", "device": "cpu"}
    if not training:
        model.eval().requires_grad_(False)
    return Subject(model, tokenizer, facts=facts, settled=not training)


def prompts(subject: Subject, *texts: str) -> list[Prompt]:
    """Texts as an analysis gets them, as `probekit run` makes them. Without texts: two of unequal length, or for a
    hostile subject one prompt of every hostile token.
    """
    if not texts and getattr(subject.tokenizer, "is_hostile", False):
        hostile = subject.check_ids(range(len(HOSTILE_TOKENS)))
        return [Prompt(subject.text(hostile), hostile, subject.tokens(hostile))]
    encoded = [(text, subject.encode(text)) for text in texts or TEXTS]
    return [Prompt(text, ids, subject.tokens(ids)) for text, ids in encoded]


def _tokenizer(hostile: bool) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    class Hostile(PreTrainedTokenizerFast):
        """Encodes as the plain one does, and decodes to hostile texts."""

        is_hostile = True

        def __call__(self, text: Any, *arguments: Any, **keywords: Any) -> Any:
            whole = text.encode(errors="replace").decode() if isinstance(text, str) else text  # a surrogate of its own
            return super().__call__(whole, *arguments, **keywords)

        def convert_ids_to_tokens(self, ids: Any, *_: Any, **__: Any) -> Any:
            return _hostile(ids) if isinstance(ids, int) else [_hostile(index) for index in _flat(ids)]

        def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
            return "".join(map(_hostile, _flat(token_ids)))

        def batch_decode(self, sequences: Any, *_: Any, **__: Any) -> list[str]:
            return [self.decode(sequence) for sequence in sequences]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "What does a layer of the model still know about its input?"], trainer)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    kind: Any = Hostile if hostile else PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = kind(tokenizer_object=tokenizer, **special)
    return wrapped


def _hostile(index: int) -> str:
    return HOSTILE_TOKENS[index if index < len(HOSTILE_TOKENS) else index % (len(HOSTILE_TOKENS) - 1)]


def _flat(ids: Any) -> Sequence[int]:
    flat = ids.tolist() if hasattr(ids, "tolist") else ids
    return [flat] if isinstance(flat, int) else list(flat)
