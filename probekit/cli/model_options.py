"""The options that say which model to load, shared by the commands that load one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from probekit.models.spec import ModelSpec

Command = TypeVar("Command", bound=Callable[..., Any])


class MapType(click.ParamType[Any]):
    """A JSON object, pairs such as `0=10GiB,cpu=30GiB`, or (where words are allowed) a word."""

    name = "map"

    def __init__(self, words: bool) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError as error:
                self.fail(f"{value!r} is not JSON: {error}.", param, ctx)
        if "=" in value:
            pairs = (part.partition("=") for part in value.split(","))
            return {key.strip(): amount.strip() for key, _, amount in pairs}
        if self._words:
            return value
        self.fail(f"{value!r} is no map; expected pairs such as 0=10GiB,cpu=30GiB, or JSON.", param, ctx)


def _choices(field: str) -> click.Choice[str]:
    annotation = ModelSpec.model_fields[field].annotation
    literals = [part for part in get_args(annotation) if isinstance(part, str)]
    for part in get_args(annotation):
        literals += [word for word in get_args(part) if isinstance(word, str)]
    return click.Choice(literals)


_KINDS: dict[str, Any] = {
    "dtype": _choices("dtype"),
    "quantization": _choices("quantization"),
    "weights": _choices("weights"),
    "weights_seed": click.INT,
    "depth": click.INT,
    "device_map": MapType(words=True),
    "max_memory": MapType(words=False),
}


def model_options(command: Command) -> Command:
    """One option for each field of the model spec but its name; None means that it was not given."""
    for name, field in reversed(ModelSpec.model_fields.items()):
        if name == "name":
            continue
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            command = click.option(flag, is_flag=True, default=None, help=field.description)(command)
        else:
            command = click.option(flag, type=_KINDS.get(name, click.STRING), help=field.description)(command)
    return command


def spec_values(name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model spec that were given on the command line, taken out of `options`."""
    given = {field: options.pop(field) for field in ModelSpec.model_fields if field in options}
    values = {field: value for field, value in given.items() if value is not None}
    return values if name is None else {"name": name, **values}
