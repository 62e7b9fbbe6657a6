"""Typed options: a pydantic model for each analysis, validated before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from probekit.errors import PluginError, UsageError, described, nearest, quoted


class Options(BaseModel):
    """Base class of an analysis's options. Give every field a default and `Field(description=…)`: they are its
    documentation.

    An unknown key is an error; values are frozen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _join(value: object) -> object:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return value


class _NamesSites:
    """Marks the fields whose values are site expressions."""


Sites = Annotated[str, BeforeValidator(_join), _NamesSites()]
"""Sites as an option: 'block.3', 'blocks', 'block.0:6:2', 'embedding,norm,logits', or a list of these; resolved by
`subject.expand_sites` when the anatomy is known."""


def site_expressions(options: Options) -> list[str]:
    """The values of the options that name sites, so that they can be checked as soon as the anatomy is known."""
    fields = type(options).model_fields.items()
    named = [name for name, field in fields if any(isinstance(mark, _NamesSites) for mark in field.metadata)]
    return [value for name in named if isinstance(value := getattr(options, name), str)]


def parse_options(model: type[Options], values: Mapping[str, Any], analysis: str) -> Options:
    """The options of an analysis from plain values.

    Raises UsageError with one sentence for an unknown key (naming the nearest known one) or a value of the wrong type,
    and PluginError where the plugin's own checks raise anything else.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_sentence(error, model, analysis)) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the plugin's own code, which may even call sys.exit()
        raise PluginError(f"The options of '{analysis}' cannot be read: {described(error)}") from error


def _sentence(error: ValidationError, model: type[BaseModel], analysis: str) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-")))
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields)
        return f"{analysis} has no option '{key}'; its options are: {', '.join(known) or 'none'}.{nearest(key, known)}"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = expected[:1].lower() + expected[1:]
    if not key:
        return f"The options of {analysis} do not go together: {expected}."
    return f"The option '{key}' of {analysis} is {quoted(first['input'])}; expected {expected}."
