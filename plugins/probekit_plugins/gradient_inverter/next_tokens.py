"""What a model makes of an inversion: its next token after embeddings, tokens and texts, beside the prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import UsageError, load
from probekit_plugins.gradient_inverter.objective import Map, site_map
from probekit_plugins.texts import around, encoded

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# In place of the next token of a text that the model cannot read.
NONE = -1


@dataclass
class Asked:
    """The model that is asked for next tokens: the inverted one, or another with the same vocabulary.

    `reads_embeddings` says whether it embeds tokens as the inverted one does, so that embeddings found for the one
    mean the same to the other.
    """

    subject: Subject
    reads_embeddings: bool = True


def asked(subject: Subject, prompts: Sequence[Prompt], options: GradientInverterOptions) -> Asked | None:
    """Who is asked for next tokens, if anybody is.

    Raises UsageError with one sentence if the model named in the options does not go with the inverted one, and what
    loading it raises.
    """
    name = options.next_token_model
    if not options.next_token:
        return None
    if name is None:
        return Asked(subject) if subject.has_logits else None
    other = load(name, device=str(subject.device))
    if not other.has_logits:
        raise UsageError(f"The model '{name}' has no head, so it has no next token; ask another one for it.")
    for what, size, wanted in (
        ("a vocabulary of", other.vocabulary, subject.vocabulary),
        ("embeddings of width", other.width, subject.width),
    ):
        if size != wanted:
            raise UsageError(
                f"The model '{name}' has {what} {size}, the inverted one {what} {wanted}, so it cannot be asked for "
                "the next token; name one that agrees (-o next_token_model=…)."
            )
    if None not in (subject.tokenizer, other.tokenizer) and _tokens_of(subject) != _tokens_of(other):
        raise UsageError(
            f"The model '{name}' has other tokens than the inverted one, so it cannot be asked for the next token; "
            "name one with the same tokenizer (-o next_token_model=…)."
        )
    for prompt in prompts:
        try:
            other.check_ids(prompt.input_ids[0].tolist(), repr(prompt.text))
        except UsageError as error:
            raise UsageError(f"The model '{name}' cannot be asked for the next token. {error}") from None
    # Rounded to the same precision or not, these are the same embeddings.
    same = torch.allclose(other.embedding_matrix, subject.embedding_matrix.to(other.embedding_matrix), 1e-2, 1e-6)
    return Asked(other, same)


def notes_on_asked(whole: Asked | None, options: GradientInverterOptions) -> list[str]:
    """What a reader has to know of the model that was asked."""
    if whole is None or options.next_token_model is None:
        return []
    sentence = f"Next tokens are those of '{options.next_token_model}', not of the inverted model."
    if not whole.reads_embeddings:
        sentence += " It embeds tokens otherwise, so it was asked about tokens and texts only, not about embeddings."
    return [sentence]


def _tokens_of(subject: Subject) -> dict[str, int]:
    tokens: dict[str, int] = subject.tokenizer.get_vocab()  # type: ignore[union-attr]
    return tokens


class NextTokens:
    """The whole model's next tokens. `wanted`, `[1]`, is the prompt's own."""

    def __init__(self, asked: Asked, subject: Subject, prompt: Prompt, batches: Batches) -> None:
        self._asked, self._model, self._subject, self._prompt = asked, asked.subject, subject, prompt
        self._batches = batches
        self.wanted = self.of_tokens(prompt.input_ids)

    def of_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[R, T]` → the next token of each row."""

        def of(rows: slice) -> torch.Tensor:
            return self._model.capture(input_ids[rows], ["logits"])["logits"][:, -1].argmax(-1)

        return self._batches.joined(len(input_ids), of, "the next token of tokens")

    def of_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """`[R, T, d]` → the next token of each row; None where the model embeds tokens otherwise."""
        if not self._asked.reads_embeddings:
            return None
        ids = self._prompt.input_ids if self._model.reads_ids("logits") else None
        return _choice(self._model.layer_map("logits", input_ids=ids), embeddings, self._batches)

    def of_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[R, T]` → the next token of each row's text, tokenised again; NONE where the model cannot read that.

        Rows that come to the same tokens are computed once, and every one by itself: their lengths differ.
        """
        known: dict[tuple[int, ...], int] = {}
        found = []
        for row in input_ids.tolist():
            ids = self._tokenised_again(row)
            if tuple(ids) not in known:
                known[tuple(ids)] = self._of_ids(ids)
            found.append(known[tuple(ids)])
        return torch.tensor(found)

    def _of_ids(self, ids: list[int]) -> int:
        try:
            checked = self._model.check_ids(ids)
        except UsageError:  # no tokens, too many, or another number than the model reads
            return NONE
        return int(self.of_tokens(checked))

    def _tokenised_again(self, ids: list[int]) -> list[int]:
        """The tokens of the text of these; with the special tokens around them that the prompt has around its own."""
        if self._subject.tokenizer is None:
            return []
        before, after = around(self._subject)
        special = _is_within(self._prompt.input_ids[0].tolist(), before, after)
        if special and _is_within(ids, before, after):
            ids = ids[len(before) : len(ids) - len(after)]  # the tokenizer puts them around the text by itself
        text = self._subject.text(ids)
        return encoded(self._subject, text, special) if text else []


class TruncatedNextTokens:
    """The same of the model that is cut after the site and followed by its head, without dropout."""

    def __init__(
        self,
        subject: Subject,
        prompt: Prompt,
        site: str,
        options: GradientInverterOptions,
        target_embeddings: torch.Tensor,
        batches: Batches,
    ) -> None:
        """`target_embeddings` are the prompt's, `[T, d]`."""
        resting = options.model_copy(update={"dropout": False})
        self._map: Map = site_map(subject, site, resting, prompt.input_ids)
        self._batches = batches
        self.wanted = self.of_embeddings(target_embeddings[None])

    def of_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`[R, T, d]` → the next token of each row."""
        return _choice(self._map, embeddings, self._batches)


def _choice(layer_map: Map, embeddings: torch.Tensor, batches: Batches) -> torch.Tensor:
    """The highest of the last position's logits for each row, `[R, T, d]` → `[R]`."""

    def of(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return layer_map(embeddings[rows])[:, -1].argmax(-1)

    return batches.joined(len(embeddings), of, "the next token of embeddings")


def _is_within(ids: list[int], before: list[int], after: list[int]) -> bool:
    """Whether ids begin and end with these."""
    return (
        len(ids) >= len(before) + len(after) and ids[: len(before)] == before and ids[len(ids) - len(after) :] == after
    )
