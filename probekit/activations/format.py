"""What a recording is on disk, for the code that writes one and the code that reads one back.

`recording.json` says what was asked for and of which model, `vocabulary.json` has the text of every token, each
`shard-….safetensors` has rows of activations with their index, and `index.jsonl` has a line for each finished shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

SCHEMA = 1
MANIFEST = "recording.json"
VOCABULARY = "vocabulary.json"
INDEX = "index.jsonl"

# The tensors of a shard beside those of its sites, whose names have no slash.
INPUT_IDS = "index/input_ids"
PROMPTS = "index/prompts"
POSITIONS = "index/positions"
INDEX_BYTES = 3 * 8  # of a row, in the three above
BATCHES = "index/batches"  # where each batch begins, and the number of rows at the end

# bool, float8 and the like are not here: no activation is of them.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
}


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def shard_header(manifest: Mapping[str, Any], number: int) -> dict[str, str]:
    """The metadata of a shard: which one it is, and of which recording. One entry: safetensors writes several in an
    order of its own each time.
    """
    known = {key: manifest[key] for key in ("schema", "model", "sites", "prompts")}
    return {"probekit": json.dumps({**known, "shard": number}, sort_keys=True)}
