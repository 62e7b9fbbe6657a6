"""The resolved configuration of a run, and where each of its values came from. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from probekit.analysis import ActivationAnalysis, Options, parse_options
from probekit.errors import UsageError, nearest, quoted
from probekit.models.spec import GRANTS, ModelSpec, parse_spec
from probekit.plugins import Plugins
from probekit.runs.toml import read_toml

DEFAULT_PLUGIN = "gradient-inverter"
DEFAULT_PROMPT = "The sky is blue."
MOST_LEVELS = 20  # of tables and lists in each other


def check_prompt(prompt: str) -> str:
    """The prompt. Raises UsageError if it is empty, or no valid Unicode."""
    if not prompt:
        raise UsageError("A prompt is empty; give one with at least one token.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"The prompt {prompt!a} is not valid Unicode: half of a surrogate pair stands alone."
        ) from None
    return prompt


def _by_name(model: Any) -> Any:
    return {"name": model} if isinstance(model, str) else model


class RunConfig(BaseModel):
    """Everything that decides what a run finds. `config.toml` in a run directory is one of these, and repeats the
    run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[ModelSpec, BeforeValidator(_by_name)] = ModelSpec()
    plugins: list[str] = Field([DEFAULT_PLUGIN], min_length=1)
    options: dict[str, dict[str, Any]] = {}
    prompts: list[Annotated[str, AfterValidator(check_prompt)]] = []
    input_ids: list[list[int]] = []
    special_tokens: bool = True
    seed: int = Field(0, ge=0, lt=2**63)
    block_plugins: list[str] = []
    activations: str | None = None

    def to_toml(self) -> str:
        """TOML without the fields that are None, which TOML cannot say."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["options"] = {
            name: {key: value for key, value in chosen.items() if value is not None}
            for name, chosen in values["options"].items()
        }
        return tomli_w.dumps(values)


@dataclass
class Resolved:
    """A configuration with the parsed options of each analysis and the source of each value that is not a default."""

    config: RunConfig
    analyses: dict[str, type[Any]]
    options: dict[str, Options]
    sources: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The configuration with every option's value, and where each value came from, for `run.json` and
        `--dry-run`.
        """
        values = self.config.model_dump(mode="json")
        values["options"] = {name: options.model_dump(mode="json") for name, options in self.options.items()}
        return {"configuration": values, "sources": self.sources}


def said(**grants: bool) -> frozenset[str]:
    """The names of those that are true: `said(trust_remote_code=True, allow_pickle=False)`."""
    return frozenset(name for name, value in grants.items() if value)


def grants_of(values: Mapping[str, Any]) -> frozenset[str]:
    """What values grant that the caller has said himself, and no file."""
    model = _by_name(values.get("model", {}))
    return frozenset(GRANTS).intersection(model) if isinstance(model, Mapping) else frozenset()


def resolve(
    layers: Sequence[tuple[str, Mapping[str, Any]]], plugins: Plugins, granted: Collection[str] = ()
) -> Resolved:
    """One configuration from layers of values, later ones over earlier ones; each layer has a name, such as 'command
    line'.

    A layer has the shape of `RunConfig`; its `options` may be flat (`{"steps": 50}`) where there is one analysis,
    dotted (`{"clamped-walk.steps": 50}`), or nested by analysis. Of `GRANTS` a layer may say what is `granted` only:
    the caller knows which values are his own and which a file's. Raises UsageError or PluginError with one sentence.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer, values in layers:
        check_shape(values)
        for key, value in values.items():
            if key == "model":
                given = dict(_by_name(value))
                merged.setdefault("model", {}).update(given)
                sources.update({f"model.{part}": layer for part in given})
            elif key != "options":
                merged[key] = value
                sources[key] = layer
    if {"prompts", "input_ids"} & set(
        layers[-1][1] if layers else ()
    ):  # prompts asked for replace a file's prompts of either kind
        for key in {"prompts", "input_ids"} - set(layers[-1][1]):
            merged.pop(key, None)
            sources.pop(key, None)
    recorded = merged.get("activations")
    if recorded is not None:
        merged["activations"] = recorded = str(Path(recorded).absolute())  # config.toml is read from other folders too
        merged.update(_recorded_values(recorded, merged, sources))
    elif not merged.get("prompts") and not merged.get("input_ids"):
        merged["prompts"] = [DEFAULT_PROMPT]
    names = list(dict.fromkeys(merged.get("plugins", [DEFAULT_PLUGIN])))
    merged["plugins"] = names
    found = {name: plugins.analysis(name) for name in names}
    if recorded is not None:
        _check_consumers(found, plugins)
    # Those that read the others' results come after them.
    analyses = dict(sorted(found.items(), key=lambda item: bool(item[1].consumes)))
    merged["options"] = {}
    for layer, values in layers:
        for name, chosen in _by_analysis(values.get("options", {}), names, plugins).items():
            merged["options"].setdefault(name, {}).update(chosen)
            sources.update({f"options.{name}.{key}": layer for key in chosen})
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_sentence(error)) from None
    _check_writable(config)
    _check_granted(config.model, sources, granted)
    options = {
        name: parse_options(analysis.options_model, config.options.get(name, {}), name)
        for name, analysis in analyses.items()
    }
    return Resolved(config, analyses, options, sources)


def _check_granted(model: ModelSpec, sources: Mapping[str, str], granted: Collection[str]) -> None:
    """Raise UsageError if a file says of a model what only who reads it may say."""
    dangers = {
        "trust_remote_code": "it would run code that comes with",
        "allow_pickle": "it would read pickle, which can run code, of",
    }
    for name in GRANTS:
        if getattr(model, name) and name not in granted:
            raise UsageError(
                f"{sources.get(f'model.{name}', 'The configuration')} asks for {name}, which no file can grant: "
                f"{dangers[name]} '{model.name}'; if you trust who made it, say --{name.replace('_', '-')} yourself."
            )


def _check_writable(config: RunConfig) -> None:
    """Raise UsageError unless `config.toml` can hold all of it: a whole number of TOML has 64 bits, a text is Unicode,
    and nothing is nested without end.
    """
    parts: list[tuple[list[str], Any]] = [([], config.model_dump(exclude={"prompts"}))]
    while parts:
        path, value = parts.pop()
        key = ".".join(path)
        if len(path) > MOST_LEVELS:
            raise UsageError(f"The value of '{key}' lies {MOST_LEVELS} tables and lists deep in others; name it flat.")
        if isinstance(value, Mapping):
            parts += [([*path, str(name)], part) for name, part in value.items()]
        elif isinstance(value, list | tuple):
            parts += [([*path, str(number)], part) for number, part in enumerate(value)]
        # Of an id, a model says that it is outside its vocabulary; it only has to be one that can be written.
        bits = 10_000 if path[:1] == ["input_ids"] else 63
        if isinstance(value, int) and not -(2**bits) <= value < 2**bits:
            raise UsageError(f"The value of '{key}' is {quoted(value)}; expected a number of at most 64 bits.")
        if not all(_is_unicode(text) for text in (key, value) if isinstance(text, str)):
            raise UsageError(f"The value of '{key}' is not valid Unicode: half of a surrogate pair stands alone.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _recorded_values(path: str, merged: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """What a recording says of a configuration: its model, and whether there are special tokens.

    Raises UsageError if something else is asked for beside it, or prompts are.
    """
    from probekit.activations import Recording

    for key in ("prompts", "input_ids"):
        if merged.get(key):
            raise UsageError(
                f"The prompts of '{path}' are those that were recorded; leave out {key.replace('_', '-')} "
                f"({sources[key]}), or --activations."
            )
    origin = Recording(path).manifest["origin"]
    # What was granted to make it is not asked for again: no model is loaded.
    model, asked = (
        {key: value for key, value in values.items() if key not in GRANTS}
        for values in (origin.get("model", {"name": "a recorded model"}), merged.get("model", {}))
    )
    if parse_spec(**{**model, **asked}) != parse_spec(**model):
        raise UsageError(f"'{path}' is a recording of '{model['name']}'; leave out what says which model, or how.")
    special = bool(origin.get("special_tokens", True))
    if sources.get("special_tokens") == "command line" and merged["special_tokens"] != special:
        raise UsageError(
            f"'{path}' was recorded {'with' if special else 'without'} special tokens; leave them out here."
        )
    return {"model": dict(model), "special_tokens": special}


def _check_consumers(found: Mapping[str, type[Any]], plugins: Plugins) -> None:
    """Raise UsageError unless all of these consume activations alone."""
    able = [name for name, analysis in plugins.analyses().items() if issubclass(analysis, ActivationAnalysis)]
    for name, analysis in found.items():
        if not issubclass(analysis, ActivationAnalysis):
            raise UsageError(
                f"'{name}' needs the model itself, which a recording does not have; leave out --activations, or choose "
                f"an analysis of activations: {', '.join(able) or 'none is there'}."
            )


def read_config(path: Path) -> dict[str, Any]:
    """The values of a TOML configuration file. Raises UsageError if it cannot be read, or is no RunConfig's."""
    values = read_toml(path, "The configuration")
    check_shape(values)
    return values


def check_shape(values: Mapping[str, Any]) -> None:
    """Raise UsageError with one sentence unless each value but the options is one that RunConfig takes."""
    try:
        RunConfig.model_validate({key: value for key, value in values.items() if key != "options"})
    except ValidationError as error:
        raise UsageError(_sentence(error)) from None


def _by_analysis(options: Any, names: list[str], plugins: Plugins) -> dict[str, dict[str, Any]]:
    if not isinstance(options, Mapping):
        raise UsageError(f"The options are {quoted(options)}; expected a table of options, or of analyses with theirs.")
    sorted_out: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        if key in names and isinstance(value, Mapping):
            sorted_out.setdefault(key, {}).update(value)
            continue
        analysis, dot, option = key.partition(".")
        if dot and analysis in names:
            sorted_out.setdefault(analysis, {})[option] = value
        elif dot or (key in plugins.analyses() and isinstance(value, Mapping)):
            raise UsageError(
                f"The option '{key}' is for '{analysis}', which is no analysis of this run ({', '.join(names)})."
                f"{nearest(analysis, names)}"
            )
        elif len(names) == 1:
            sorted_out.setdefault(names[0], {})[key] = value
        else:
            raise UsageError(
                f"The run has several analyses, so say whose option '{key}' is: "
                f"{' or '.join(f'{name}.{key}' for name in names)}."
            )
    return sorted_out


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        known = list(ModelSpec.model_fields if parts[0] == "model" else RunConfig.model_fields)
        near = nearest(parts[-1], known)
        return f"The configuration has an unknown key '{key}'; the keys are: {', '.join(known)}.{near}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"The value of '{key}' is {quoted(first['input'])}; expected {expected[:1].lower() + expected[1:]}."
