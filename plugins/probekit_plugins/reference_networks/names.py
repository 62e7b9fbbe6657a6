"""The names of the reference networks: `fc-invertible,tokens=6,embedding=gpt2` and the like. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from probekit import ModelError, ModelSpec, UsageError

KINDS = ("fc-invertible", "fc-narrow", "fc-token")
KEYS = ("tokens", "embedding", "width", "vocabulary")
TOKENS = 5
EMBEDDING = "demo"


@dataclass(frozen=True)
class Wanted:
    """What a name asks for. `tokens` is None for any number; `width` is None where the embedding is a model's own."""

    kind: str
    tokens: int | None
    embedding: str
    width: int | None
    vocabulary: int | None


def is_ours(name: str) -> bool:
    """Whether a model name is for us: it begins with `fc-`, and is no folder and no `owner/name` of the hub."""
    kind = name.partition(",")[0]
    return kind.startswith("fc-") and "/" not in kind and not Path(name).is_dir()


def parse_name(spec: ModelSpec) -> Wanted:
    """What the name of a spec asks for.

    Raises ModelError if there is no such network, UsageError for a wrong part of the name, or for an option of the
    spec that these networks do not have.
    """
    kind, *parts = (part.strip() for part in spec.name.split(","))
    if kind not in KINDS:
        raise ModelError(
            f"There is no reference network '{kind}'; there are: {', '.join(KINDS)}.{_nearest(kind, KINDS)}"
        )
    given: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"'{part}' in '{spec.name}' is no option; expected KEY=VALUE, for example tokens=6.")
        if key not in KEYS:
            raise UsageError(
                f"A reference network has no option '{key}'; its options are: {', '.join(KEYS)}.{_nearest(key, KEYS)}"
            )
        if key in given:
            raise UsageError(f"'{spec.name}' gives {key} twice; give it once.")
        given[key] = value
    numbers = {key: _number(key, given[key]) for key in ("tokens", "width", "vocabulary") if key in given}
    if kind == "fc-token" and "tokens" in given:
        raise UsageError(
            f"fc-token works on each token by itself and takes any number of them; leave out tokens={given['tokens']}."
        )
    if "width" in given and "embedding" in given:
        raise UsageError(
            f"'{spec.name}' gives both a width, of a random embedding, and the embedding of a model; give one of them."
        )
    if "vocabulary" in given and "width" not in given:
        raise UsageError(
            f"'{spec.name}' gives the vocabulary of a random embedding without its width; add width=…, or leave out "
            f"vocabulary={given['vocabulary']}."
        )
    embedding = given.get("embedding", EMBEDDING)
    if is_ours(embedding):
        raise UsageError(
            f"'{spec.name}' asks for the embedding of a reference network; name the language model that it is of."
        )
    _check_spec(spec, random_embedding="width" in given)
    return Wanted(
        kind=kind,
        tokens=None if kind == "fc-token" else numbers.get("tokens", TOKENS),
        embedding=embedding,
        width=numbers.get("width"),
        vocabulary=numbers.get("vocabulary"),
    )


def _check_spec(spec: ModelSpec, random_embedding: bool) -> None:
    """Refuse what would otherwise be passed over in silence."""
    for field in ("quantization", "device_map", "depth", "blocks"):
        if getattr(spec, field) is not None:
            flag = "--" + field.replace("_", "-")
            raise UsageError(
                f"The reference network '{spec.name}' takes no {flag}: it has two blocks, in one precision and on one "
                "device; leave it out."
            )
    if spec.revision is not None and random_embedding:
        raise UsageError(f"'{spec.name}' has a random embedding, which has no revision; leave out --revision.")


def _number(key: str, text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,11}", text):
        raise UsageError(f"'{key}={text}' is no size of a network; expected a whole number, 1 or more.")
    return int(text)


def _nearest(word: str, known: tuple[str, ...]) -> str:
    match = get_close_matches(word, known, n=1)
    return f" Did you mean '{match[0]}'?" if match else ""
