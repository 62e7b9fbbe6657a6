"""The model spec: everything that decides which model is loaded, and how. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from probekit.errors import UsageError, nearest, quoted

# What no file may say for whoever reads it: only a command line or an argument of Python grants it.
GRANTS = ("trust_remote_code", "allow_pickle")


def _numbered(value: Any) -> Any:
    """Devices known by their number, as accelerate wants it, where JSON, TOML or a command line could only say text."""

    def number(part: Any) -> Any:
        return int(part) if isinstance(part, str) and part.isdecimal() else part

    return {number(key): number(part) for key, part in value.items()} if isinstance(value, dict) else value


class ModelSpec(BaseModel):
    """What to load: name or path, revision, dtype, quantisation, placement, pretrained or random weights, depth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("demo", min_length=1, description="A folder, a name on the hub, or 'demo', the embedded model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; 'auto' keeps the checkpoint's."
    )
    quantization: Literal["int8", "nf4", "fp4"] | None = Field(None, description="Quantise with bitsandbytes.")
    device: str | None = Field(None, description="Put the whole model there: 'cpu', 'cuda', 'cuda:1', …")
    device_map: Annotated[str | dict[str, int | str] | None, BeforeValidator(_numbered)] = Field(
        None, description="Shard over devices with accelerate: 'auto', 'balanced', 'sequential', or a map."
    )
    max_memory: Annotated[dict[int | str, int | str] | None, BeforeValidator(_numbered)] = Field(
        None, description="Memory of each device that weights and batches may take together."
    )
    weights: Literal["pretrained", "random"] = Field("pretrained", description="Trained weights, or untrained ones.")
    weights_seed: int = Field(0, ge=0, lt=2**63, description="Seed of random weights.")
    depth: int | None = Field(
        None,
        ge=1,
        description="Keep only the first blocks, by cutting the config; random weights are then drawn as for a model "
        "of that depth, which in GPT-2 makes them larger than the first blocks of the whole.",
    )
    blocks: str | None = Field(None, description="Module path of the decoder blocks, where structure is ambiguous.")
    compile: bool = Field(
        False, description="Compile the blocks with torch.compile for steps that are repeated: equal but for rounding."
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")
    # Left out where it is not said: the keys and files of runs that do not need it are what they were without it.
    allow_pickle: bool = Field(
        False,
        description="Read weights that are pickled (pytorch_model.bin), which can run code.",
        exclude_if=lambda allowed: not allowed,
    )


def parse_spec(**values: Any) -> ModelSpec:
    """A model spec from plain values. Raises UsageError with one sentence for an unknown field or a bad value."""
    try:
        return ModelSpec(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = list(ModelSpec.model_fields)
            raise UsageError(
                f"A model has no option '{field}'; its options are: {', '.join(known)}.{nearest(field, known)}"
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        sentence = f"The model's '{field}' is {quoted(first['input'])}; expected {expected[:1].lower() + expected[1:]}."
        raise UsageError(sentence) from None
