"""The model spec: everything that decides which model is loaded, and how. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
    device_map: str | dict[str, int | str] | None = Field(
        None, description="Shard over devices with accelerate: 'auto', 'balanced', 'sequential', or a map."
    )
    max_memory: dict[int | str, int | str] | None = Field(None, description="Memory to use of each device.")
    weights: Literal["pretrained", "random"] = Field("pretrained", description="Trained weights, or untrained ones.")
    weights_seed: int = Field(0, ge=0, lt=2**63, description="Seed of random weights.")
    depth: int | None = Field(None, ge=1, description="Keep only the first blocks, by cutting the config.")
    blocks: str | None = Field(None, description="Module path of the decoder blocks, where structure is ambiguous.")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")
