"""Reading a recording: as batches, as a live model gives them, or row by row as a torch dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from probekit.activations.batch import ActivationBatch
from probekit.activations.format import (
    BATCHES,
    DTYPES,
    INDEX,
    INDEX_BYTES,
    INPUT_IDS,
    MANIFEST,
    POSITIONS,
    PROMPTS,
    SCHEMA,
    VOCABULARY,
    shard_header,
    shard_name,
)
from probekit.errors import UsageError
from probekit.foreign import checked_file, from_json
from probekit.forward import expand_expression

if TYPE_CHECKING:
    from probekit.activations.dataset import ActivationDataset


class Recording:
    """Activations that `probekit record` wrote: of which model, at which sites, for which tokens.

    `manifest` is what `recording.json` says, `shards` the lines of the index.
    """

    def __init__(self, path: str | Path, *, unfinished: bool = False) -> None:
        """Open a recording; nothing but its index is read.

        Raises UsageError if there is none at this path, if it is damaged or of another version, or, unless `unfinished`
        ones are asked for, if it has not been recorded to its end.
        """
        self.path = Path(path)
        self.manifest: dict[str, Any] = self._read_manifest()
        self.shards: list[dict[str, Any]] = self._read_index()
        if not unfinished and not self.complete:
            raise UsageError(
                f"The recording '{self.path}' has {self._tokens_there} of {self.tokens} tokens; go on with it by the "
                "`probekit record` command that began it."
            )

    # --- what it is of -----------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the model, the hash of its weights or its revision among it."""
        facts: dict[str, Any] = self.manifest["model"]
        return facts

    @property
    def sites(self) -> list[str]:
        """The recorded sites."""
        return list(self.manifest["sites"])

    @property
    def prompt_count(self) -> int:
        """How many prompts there are."""
        return int(self.manifest["prompts"]["count"])

    @property
    def tokens(self) -> int:
        """How many tokens there are, and so rows of activations at each site."""
        return int(self.manifest["prompts"]["tokens"])

    @property
    def bytes(self) -> int:
        """How large its shards are together."""
        return sum((self.path / line["shard"]).stat().st_size for line in self.shards)

    @property
    def digest(self) -> str:
        """One hash of all that was recorded: SHA-256 over those of the shards, as the index has them."""
        return hashlib.sha256("".join(line["sha256"] for line in self.shards).encode()).hexdigest()

    @property
    def complete(self) -> bool:
        """Whether it has been recorded to its end."""
        return self._tokens_there == self.tokens

    @property
    def _tokens_there(self) -> int:
        return sum(line["tokens"] for line in self.shards)

    def shape(self, site: str) -> torch.Size:
        """The shape of one token's activation at a site: `[width]` as a rule. Raises UsageError if it is not there."""
        return torch.Size(self.manifest["sites"][self._checked(site)]["shape"])

    def dtype(self, site: str) -> torch.dtype:
        """The dtype in which a site was recorded. Raises UsageError if it is not there."""
        return DTYPES[self.manifest["sites"][self._checked(site)]["dtype"]]

    def expand_sites(self, grammar: str) -> list[str]:
        """The recorded sites that an expression stands for; `blocks` are those blocks that were recorded.

        Raises UsageError, listing what was recorded, if a part of it names none.
        """
        blocks = [int(site.removeprefix("block.")) for site in self.sites if re.fullmatch(r"block\.[0-9]{1,18}", site)]
        return expand_expression(grammar, blocks, int(self.manifest["blocks"]), self._checked)

    def _checked(self, site: str) -> str:
        match = re.fullmatch(r"block\.(-[0-9]{1,18})", site)
        name = f"block.{int(match[1]) + int(self.manifest['blocks'])}" if match else site
        if name not in self.manifest["sites"]:
            raise UsageError(
                f"The site '{site}' is not in the recording '{self.path}'; it has: {', '.join(self.sites)}."
            )
        return name

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token on its own, as the model's tokenizer says it."""
        texts = self._vocabulary
        return [texts[index] if 0 <= index < len(texts) else f"<{index}>" for index in ids]

    @cached_property
    def _vocabulary(self) -> list[str]:
        texts = self._read_json(VOCABULARY)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"The file '{self.path / VOCABULARY}' is damaged: expected a list of texts.")
        return texts

    # --- the activations ---------------------------------------------------------------------------------------------

    def batches(self, sites: Sequence[str]) -> Iterator[ActivationBatch]:
        """All prompts once, in the batches in which they were recorded. One batch is held at a time.

        Raises UsageError for a site that was not recorded, or a shard that is missing or damaged.
        """
        names = [self._checked(site) for site in sites]
        missing = torch.ones(self.prompt_count, dtype=torch.bool)
        for number, line in enumerate(self.shards):
            shard = self.shard(number, [INPUT_IDS, PROMPTS, POSITIONS, BATCHES, *names])
            starts = shard[BATCHES].tolist()
            for start, end in pairwise(starts):
                rows = slice(start, end)
                batch = self._batch({name: tensor[rows] for name, tensor in shard.items()}, names, missing)
                if batch is None:
                    raise UsageError(
                        f"The shard '{self.path / line['shard']}' is damaged: its index is not that of prompts in "
                        "batches, each prompt once."
                    )
                yield batch
        if bool(missing.any()):
            raise UsageError(
                f"The recording '{self.path}' is damaged: {int(missing.sum())} of its {len(missing)} prompts are not "
                "in its shards."
            )

    def _batch(
        self, rows: Mapping[str, torch.Tensor], sites: Sequence[str], missing: torch.Tensor
    ) -> ActivationBatch | None:
        """Rows as a batch, padded on the right as it was captured, and its prompts no longer missing; None if the rows
        are not those of prompts that were, or would make a larger batch than was recorded.
        """
        prompts, lengths = torch.unique_consecutive(rows[PROMPTS], return_counts=True)
        longest = int(lengths.max())
        known = int(prompts.min()) >= 0 and int(prompts.max()) < len(missing) and len(prompts.unique()) == len(prompts)
        small = len(prompts) == 1 or len(prompts) * longest <= self.manifest["storage"]["batch_tokens"]
        if not known or not small or not bool(missing[prompts].all()):
            return None
        mask = torch.arange(longest) < lengths[:, None]
        if not torch.equal(mask.nonzero()[:, 1], rows[POSITIONS]):
            return None
        missing[prompts] = False
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = rows[INPUT_IDS]
        activations = {}
        for site in sites:
            padded = rows[site].new_zeros(*mask.shape, *rows[site].shape[1:])
            padded[mask] = rows[site]
            activations[site] = padded
        return ActivationBatch(activations, ids, mask, prompts, self.token_texts)

    def shard(self, number: int, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Tensors of one shard, mapped into memory: sites `[rows, width]`, and `index/…` as the format says.

        Raises UsageError if the file is missing or damaged, or is not what the manifest and the index say.
        """
        path = checked_file(self.path / shard_name(number))
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() != shard_header(self.manifest, number):
                    raise UsageError(f"The shard '{path}' is not that of this recording; put its own back.")
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise UsageError(f"The shard '{path}' is damaged or missing: {error}.") from None
        rows = self.shards[number]["tokens"]
        for name, tensor in tensors.items():
            if name in self.manifest["sites"]:
                kept = self.manifest["sites"][name]
                fits = list(tensor.shape) == [rows, *kept["shape"]] and tensor.dtype == DTYPES.get(kept["dtype"])
            elif name == BATCHES:
                fits = tensor.dim() == 1 and tensor.dtype == torch.long and _rising(tensor.tolist(), rows)
            else:
                fits = list(tensor.shape) == [rows] and tensor.dtype == torch.long
            if not fits:
                raise UsageError(
                    f"The shard '{path}' is damaged: its '{name}' is {list(tensor.shape)} of {tensor.dtype}, which is "
                    "not what the recording's manifest and index say."
                )
        return tensors

    def first_prompts(self, count: int) -> list[list[str]]:
        """The texts of the tokens of the first prompts, in the order in which they were given."""
        found: dict[int, list[str]] = {}
        wanted = min(count, self.prompt_count)
        for batch in self.batches([]):
            numbers = batch.prompts.tolist()
            found.update(
                (number, tokens) for number, tokens in zip(numbers, batch.tokens(), strict=True) if number < wanted
            )
            if len(found) == wanted:
                break
        return [found[number] for number in sorted(found)]

    def dataset(self, sites: str | Sequence[str] | None = None) -> ActivationDataset:
        """The rows as a torch dataset: `dataset[i]` is one token, `dataset[[4, 2]]` and `dataset[2:9]` several.

        With the names of sites, or an expression for them; all by default. Raises UsageError for one that is not there.
        """
        from probekit.activations.dataset import ActivationDataset

        names = self.sites if sites is None else self.expand_sites(sites if isinstance(sites, str) else ",".join(sites))
        return ActivationDataset(self, names)

    def verify(self) -> None:
        """Read every shard and compare its hash with the index. Raises UsageError, naming the first that differs."""
        for line in self.shards:
            path = checked_file(self.path / line["shard"])
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"The shard '{path}' cannot be read: {error.strerror}.") from None
            if digest != line["sha256"]:
                raise UsageError(f"The shard '{path}' is not what was recorded: its hash is not the index's.")

    # --- files -------------------------------------------------------------------------------------------------------

    def _read_json(self, name: str) -> Any:
        try:
            return from_json(checked_file(self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"'{self.path}' is no recording: it has no {name}.") from None
        except OSError as error:
            raise UsageError(f"The recording '{self.path}' cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"The file '{self.path / name}' is damaged: {error}.") from None

    def _read_manifest(self) -> dict[str, Any]:
        manifest = self._read_json(MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise UsageError(
                f"The recording '{self.path}' has another schema than {SCHEMA}; another version of probekit wrote it."
            )
        try:
            sites, prompts = list(manifest["sites"].values()), manifest["prompts"]
            numbers = [manifest["blocks"], prompts["count"], prompts["tokens"], manifest["storage"]["batch_tokens"]]
            numbers += [size for site in sites for size in site["shape"]]
            sound = all(type(number) is int and number > 0 for number in numbers)
            sound = sound and prompts["count"] <= prompts["tokens"] and len(sites) > 0
            sound = sound and all(site["dtype"] in DTYPES and type(site["shape"]) is list for site in sites)
            origin = manifest["origin"]
            tables = [manifest["model"], origin, origin.get("model", {})]
            sound = sound and all(isinstance(table, dict) for table in tables)
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise UsageError(f"The file '{self.path / MANIFEST}' is damaged: it does not say what was recorded.")
        return manifest

    def _read_index(self) -> list[dict[str, Any]]:
        """The lines of the shards that are there, up to the first that is not.

        Raises UsageError for a shard that is smaller than its rows: whatever the index says, there is as much on disk.
        """
        try:
            text = checked_file(self.path / INDEX).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The file '{self.path / INDEX}' is damaged: {error}.") from None
        row = sum(DTYPES[site["dtype"]].itemsize * prod(site["shape"]) for site in self.manifest["sites"].values())
        lines: list[dict[str, Any]] = []
        *whole, _torn = text.split("\n")  # what a killed process left of its last line is no line
        for number, line in enumerate(whole):
            try:
                entry = json.loads(line)
                counts = [entry["prompts"], entry["tokens"]]
                sound = entry["shard"] == shard_name(number) and isinstance(entry["sha256"], str)
                sound = sound and all(type(count) is int and count > 0 for count in counts)
            except (ValueError, RecursionError, KeyError, TypeError):
                sound = False
            if not sound:
                raise UsageError(f"Line {number + 1} of '{self.path / INDEX}' is damaged: it is no shard's.")
            path = self.path / shard_name(number)
            if not path.is_file():
                break
            if path.stat().st_size < entry["tokens"] * (row + INDEX_BYTES):
                raise UsageError(
                    f"The shard '{path}' is damaged: it is smaller than the {entry['tokens']} rows that it should "
                    "have; remove it, and go on by the `probekit record` command that began the recording."
                )
            lines.append(entry)
        return lines


def _rising(starts: list[int], end: int) -> bool:
    """Whether these are the beginnings of batches, from 0 to the end."""
    ordered = all(first < second for first, second in pairwise(starts))
    return len(starts) > 1 and starts[0] == 0 and starts[-1] == end and ordered
