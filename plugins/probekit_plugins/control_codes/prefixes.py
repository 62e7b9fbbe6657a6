"""Codes as token ids, and which of them have room before a text in the model's context.

A code's own tokens and a text's are cut by the tokenizer separately and then joined, so that a text has the same tokens
under every code, and without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probekit import UsageError
from probekit_plugins.control_codes.codes import NONE, Code
from probekit_plugins.corpus import end, start
from probekit_plugins.head import predicted_tokens
from probekit_plugins.texts import around, beginning, encoded
from probekit_plugins.writing import can_generate

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.control_codes import ControlCodesOptions

# Tokens that are generated if the context has room for them; and for how many it has to have room at least.
USUAL_NEW, FEWEST_NEW = 48, 8


@dataclass(frozen=True)
class Prefix:
    """What stands before a text: all token ids, and how many of them, the last ones, are the code's own."""

    code: Code | None
    ids: list[int]
    own: int

    @property
    def name(self) -> str:
        """The code's name."""
        return NONE if self.code is None else self.code.name


def without_code(subject: Subject) -> Prefix:
    """What stands before a text that has no code: what begins one. Its first token needs something before it."""
    return Prefix(None, start(subject), 0)


def prefixes(subject: Subject, codes: Sequence[Code]) -> list[Prefix]:
    """Each code behind what begins a text, or what ends the one before, if the model has either.

    Raises UsageError with one sentence if a code cannot be told in tokens of the model, or two are the same.
    """
    last = end(subject)
    first = beginning(subject) or ([] if last is None else [last])
    found: list[Prefix] = []
    for code in codes:
        own = list(code.ids) if code.prefix is None else _encoded(subject, code, code.prefix)
        if not own:
            raise UsageError(f"The code '{code.name}' has no tokens in this model's tokenizer; give another template.")
        if (outside := max(own)) >= subject.vocabulary:
            raise UsageError(
                f"The code '{code.name}' has the token {outside}, but this model's tokens are 0 to "
                f"{subject.vocabulary - 1}."
            )
        if same := next((other for other in found if other.ids[len(first) :] == own), None):
            raise UsageError(f"The codes '{same.name}' and '{code.name}' are the same tokens; leave one of them out.")
        found.append(Prefix(code, first + own, len(own)))
    return found


def _encoded(subject: Subject, code: Code, text: str) -> list[int]:
    if subject.tokenizer is None:
        raise UsageError(
            f"This model has no tokenizer, so the template of the code '{code.name}' cannot be read; give a file "
            "(-o codes=FILE) in which each code has token ids, such as ids = [5], in place of a template."
        )
    # A tokenizer that puts the space between words itself would put a second one.
    if text.endswith(" ") and encoded(subject, "a a", False) == 2 * encoded(subject, "a", False):
        text = text[:-1]
    return encoded(subject, text, False)


def prompt_ids(subject: Subject, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts' own tokens, without what the tokenizer puts before and after a text.

    Raises UsageError if one has a token that the model does not predict, and so no likelihood.
    """
    (first, last), predicted = around(subject), predicted_tokens(subject)
    found = []
    for number, prompt in enumerate(prompts, 1):
        ids: list[int] = prompt.input_ids[0].tolist()
        own = ids[len(first) :] if first and ids[: len(first)] == first and len(ids) > len(first) else ids
        if last and own[-len(last) :] == last and len(own) > len(last):
            own = own[: -len(last)]
        if (outside := max(own)) >= predicted:
            raise UsageError(f"Prompt {number} has the token {outside}, which this model embeds but never predicts.")
        found.append(own)
    return found


def fitting(
    subject: Subject, every: Sequence[Prefix], prompts: Sequence[list[int]], options: ControlCodesOptions
) -> tuple[list[Prefix], list[Prefix], int]:
    """The codes that the context has room for, with the longest prompt and what is generated; those that it has none
    for; and how many tokens are generated.

    Raises UsageError if one that is asked for by name, or that has texts, does not fit, or none does.
    """
    longest = max(map(len, prompts), default=0)
    wanted = options.new_tokens or FEWEST_NEW
    if not options.penalty_form or not can_generate(subject):
        wanted = 0
    if subject.context is None:
        return list(every), [], options.new_tokens or USUAL_NEW
    room = {prefix.name: subject.context - len(prefix.ids) - longest for prefix in every}
    fit = [prefix for prefix in every if room[prefix.name] >= wanted]
    left = [prefix for prefix in every if room[prefix.name] < wanted]
    needed = [prefix for prefix in left if options.only or (prefix.code and prefix.code.texts)]
    if needed or not fit:
        worst = max(needed or left, key=lambda prefix: len(prefix.ids))
        raise UsageError(
            f"The model's context is {subject.context}, which has no room for the code '{worst.name}' "
            f"({len(worst.ids)} tokens), the longest prompt ({longest}) and {wanted} tokens that are generated; "
            "shorten the prompt, generate less (-o new_tokens=…), or leave the code out (-o only=…)."
        )
    return fit, left, options.new_tokens or min(USUAL_NEW, *(room[prefix.name] for prefix in fit))
