"""What `run.json` has to say: its shape, checked before a run is read, drawn, gone on with or verified."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from probekit.errors import UsageError
from probekit.runs.directory import NAME, RunDirectory

Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Entry(_Table):
    """What became of an analysis."""

    status: Literal["waiting", "done", "failed", "interrupted"]
    error: str = ""


class _Model(_Table):
    name: str
    weights: str
    quantization: str | None = None


class _Facts(_Table):
    """What is known of the model that was loaded."""

    source: str = ""
    architecture: str = ""
    dtype: str = ""
    device: str | dict[str, str] = ""
    parameters: int = 0
    quantization: dict[str, int] = {}
    quantised_share: float = 0.0


class _Prompt(_Table):
    text: str
    tokens: list[str] = []


class _Recording(_Table):
    path: str
    tokens: int


class _Configuration(_Table):
    model: _Model
    plugins: list[Name] = Field(min_length=1)
    options: dict[Name, dict[str, Any]]
    special_tokens: bool
    seed: int


class Manifest(_Table):
    """The shape of `run.json`; it may hold more."""

    number: Literal[1, 2] = Field(alias="schema")
    status: Literal["running", "done", "failed", "interrupted"]
    command: str
    argv: list[str] = []
    configuration: _Configuration
    versions: dict[str, str]
    analyses: dict[Name, _Entry]
    joint: dict[str, _Entry] = {}
    model: _Facts = _Facts()
    prompts: list[_Prompt] = []
    recording: _Recording | None = None
    broken_plugins: dict[str, str] = {}
    prompt_count: int = Field(1, ge=1)


def read_manifest(directory: RunDirectory) -> dict[str, Any]:
    """The `run.json` of a run. Raises UsageError if it is missing, of another version, or not of this shape."""
    manifest: dict[str, Any] = directory.read_json("run.json")
    try:
        Manifest.model_validate(manifest)
    except (ValidationError, RecursionError) as error:
        place = directory.path / "run.json"
        if isinstance(error, RecursionError):
            raise UsageError(f"The file '{place}' is damaged: it is nested too deeply.") from None
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(
            f"The file '{place}' is damaged: at '{where}', {first['msg'][:1].lower()}{first['msg'][1:]}."
        ) from None
    return manifest
