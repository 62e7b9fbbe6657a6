"""Codes as a TOML file says them: what stands before a text. No torch.

    [codes.Reviews]
    description = "Amazon reviews"
    template = "Reviews Rating: {rating} {text}"
    fields = { rating = "5.0" }
    texts = "reviews.txt"

A template ends with `{text}`, and every other field in it has a default; `ids = [5]` in place of a template is a code
for models without a tokenizer. `texts` is a path from the TOML file's folder.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit import UsageError

if TYPE_CHECKING:
    from probekit_plugins.control_codes import ControlCodesOptions

# What is not called a code: the figures without one stand beside those of codes.
NONE = "none"
TEXT = "text"
KEYS = ("template", "fields", "ids", "description", "texts")
MOST_BYTES, MOST_CODES = 1 << 17, 256
# Names that a sentence lists.
LISTED = 20


@dataclass(frozen=True)
class Code:
    """A code: the text that stands before a text, or its token ids, and the file of texts that are known to be its."""

    name: str
    prefix: str | None
    ids: tuple[int, ...] = ()
    description: str = ""
    texts: Path | None = None


def codes(options: ControlCodesOptions) -> list[Code]:
    """The codes that the options say, in the order of the file, or of `only`.

    Raises UsageError with one sentence for a file that cannot be read or is no file of codes, and for a code, a field
    or a name that does not fit.
    """
    tables, what, folder = _tables(options.codes)
    for name in [*options.only, *options.texts]:
        if name not in tables:
            raise UsageError(
                f"There is no code {_shown(name)} in {what}; there are: {_listed(tables)}.{_near(name, tables)}"
            )
    known: set[str] = set()
    found = [
        _code(name, tables[name], options.fields, f"The code '{name}' of {what}", folder, known) for name in tables
    ]
    if unknown := next((name for name in options.fields if name not in known), None):
        listed = _listed(sorted(known)) or "none"
        raise UsageError(f"No template has the field {_shown(unknown)}; the fields of {what} are: {listed}.")
    by_name = {code.name: code for code in found}
    chosen = [by_name[name] for name in options.only or tables]
    if lost := next((name for name in options.texts if name not in options.only and options.only), None):
        raise UsageError(f"There are texts for the code '{lost}', which is not among those that are used (`only`).")
    given = {name: Path(path) for name, path in options.texts.items()}
    return [
        Code(code.name, code.prefix, code.ids, code.description, given.get(code.name, code.texts)) for code in chosen
    ]


def _tables(name: str | None) -> tuple[dict[str, Any], str, Path]:
    """The table of each code, what the file is called in a sentence, and its folder."""
    path = Path(name) if name is not None else None
    what = f"the codes file '{path}'" if path is not None else "the codes that come with probekit"
    try:
        if path is None:
            content = (files("probekit_plugins.control_codes") / "codes.toml").read_bytes()
        else:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{_upper(what)} is larger than {MOST_BYTES >> 10} KiB, which is no file of codes.")
        document = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{_upper(what)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{_upper(what)} is not UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{_upper(what)} is no TOML: {' '.join(str(error).split())}.") from None
    except (RecursionError, ValueError) as error:  # lists in lists, or a number of more digits than Python reads
        raise UsageError(f"{_upper(what)} cannot be read as TOML: {' '.join(str(error).split())[:100]}.") from None
    tables = document.get("codes")
    if other := next((key for key in document if key != "codes"), None):
        raise UsageError(f"{_upper(what)} has {_shown(other)} at its top; expected only tables [codes.NAME].")
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{_upper(what)} has no codes; expected a table [codes.NAME] with a `template` for each.")
    if len(tables) > MOST_CODES:
        raise UsageError(f"{_upper(what)} has {len(tables)} codes; expected at most {MOST_CODES}.")
    for name in tables:
        if name == NONE or not name.strip() or len(name) > 80 or not name.isprintable():
            raise UsageError(f"A code cannot be called {_shown(name)}; give it a short name, other than '{NONE}'.")
    return tables, what, path.parent if path is not None else Path()


def _code(name: str, table: Any, fields: Mapping[str, str], what: str, folder: Path, known: set[str]) -> Code:
    """One code; the fields of its template are added to `known`."""
    if not isinstance(table, dict):
        raise UsageError(f"{what} is {_shown(table)}; expected a table with a `template`.")
    if key := next((key for key in table if key not in KEYS), None):
        raise UsageError(f"{what} has {_shown(key)}; expected only {', '.join(KEYS)}.{_near(key, KEYS)}")
    for key in ("description", "texts"):
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{what}: `{key}` is {_shown(table[key])}; expected text.")
    texts = folder / table["texts"] if table.get("texts") else None
    about = table.get("description", "")
    if "ids" in table:
        ids = table["ids"]
        if "template" in table or "fields" in table:
            raise UsageError(f"{what} has both `ids` and a template; give one of them.")
        if (
            not isinstance(ids, list)
            or not ids
            or not all(type(index) is int and 0 <= index < 1 << 31 for index in ids)
        ):
            raise UsageError(f"{what}: `ids` is {_shown(ids)}; expected a list of token ids such as [5].")
        return Code(name, None, tuple(ids), about, texts)
    template, defaults = table.get("template"), table.get("fields", {})
    if not isinstance(template, str):
        missing = "no `template`" if template is None else f"`template` = {_shown(template)}"
        raise UsageError(f"{what} has {missing}; expected a text that ends with {{text}}.")
    if not isinstance(defaults, dict) or not all(map(_is_field, defaults.values())):
        raise UsageError(f"{what}: `fields` is {_shown(defaults)}; expected a table with a text for each field.")
    wanted = _fields(template, what)
    if spare := next((field for field in defaults if field not in wanted), None):
        raise UsageError(f"{what} has a default for {_shown(spare)}, which is no field of its template.")
    known.update(wanted)
    values = {field: str(value) for field, value in defaults.items()} | dict(fields)
    if empty := next((field for field in wanted if field not in values), None):
        raise UsageError(
            f'{what}: the field {{{empty}}} has no value; give it a default (fields = {{ {empty} = "…" }}).'
        )
    prefix = template.removesuffix(f"{{{TEXT}}}").format(**values)
    if not _is_unicode(prefix):  # a field of the command line, in another encoding
        raise UsageError(f"{what}: a field is not UTF-8.")
    return Code(name, prefix, (), about, texts)


def _is_field(value: object) -> bool:
    return type(value) in (str, float) or (type(value) is int and abs(value) < 1 << 63)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fields(template: str, what: str) -> list[str]:
    """The names of the template's fields but `{text}`, with which it has to end."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"{what}: the template has a brace that is not closed or not opened ({error}).") from None
    names = [name for _, name, _, _ in parts if name is not None]
    odd = next((name for _, name, spec, conversion in parts if name is not None and (spec or conversion)), None)
    odd = next((name for name in names if not name.isidentifier()), odd)
    if odd is not None:
        raise UsageError(f"{what}: {{{odd[:40]}}} is no field; expected a plain name in braces, such as {{rating}}.")
    if TEXT not in names:
        raise UsageError(f"{what}: the template has no {{text}}; it ends with that, where the text stands.")
    if names.count(TEXT) > 1 or not template.endswith(f"{{{TEXT}}}") or parts[-1][1] != TEXT:
        raise UsageError(f"{what}: the template goes on after {{text}}; it ends with that, and the code stands before.")
    if template == f"{{{TEXT}}}":
        raise UsageError(f"{what}: nothing stands before {{text}}; figures without a code are there anyway.")
    return names[:-1]


def _upper(what: str) -> str:
    return what[:1].upper() + what[1:]


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # tables in tables, or a number of more digits than Python writes
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "…"


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:LISTED]) + (", …" if len(names) > LISTED else "")


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    match = get_close_matches(name, list(known), 1)
    return f" Did you mean '{match[0]}'?" if match else ""
