"""What an analysis found, as data: saved before anything is drawn, and drawn from what was saved.

On disk a result is `result.json` (metrics, tables, token sequences, finding, notes), `tensors.safetensors`, and a
folder `files` for what other programs read. No pickle, no NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from probekit.errors import AnalysisError, UsageError, nearest
from probekit.foreign import checked_file, from_json

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
RESULT_FILE = "result.json"
TENSOR_FILE = "tensors.safetensors"
FOLDER_OF_FILES = "files"

Scalar = str | int | float | bool | None


@dataclass
class TokenSequence:
    """Tokens that an analysis produced or consumed, with what they belong to (`{"site": "block.3", "restart": 2,
    "rank": 0}`).
    """

    ids: list[int]
    tokens: list[str]
    labels: dict[str, Scalar] = field(default_factory=dict)


@dataclass
class Result:
    """Metrics (one figure each), tables (rows of columns), tensors, and named lists of token sequences.

    `finding` is one sentence with the figures, `notes` are caveats that a reader must see. Tensors are torch tensors
    where the analysis computed them, and numpy arrays (bf16 as fp32) where the result was read back.

    `files` are whole files in formats of others, such as trained weights: their content by a relative path such as
    "plain-8/weights.safetensors". A run keeps them below `analyses/<name>/files`, and gives back where they are.

    `seconds` are times that the analysis measured, by name. They are not among the files of the result, which two runs
    have byte for byte the same: a run keeps them in its `timings.json`, and gives them back with the result.
    """

    finding: str = ""
    metrics: dict[str, Scalar] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Scalar]]] = field(default_factory=dict)
    sequences: dict[str, list[TokenSequence]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, bytes | Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: the finding, and what else there is, without values."""
        from probekit.analysis.notebook import described

        return described(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the finding, notes and metrics, the first rows of each table, the tensors' shapes."""
        from probekit.analysis.notebook import drawn, framed

        return framed(drawn(self), "Result", height=480)

    def to_pandas(self, table: str | None = None) -> pandas.DataFrame:
        """One of the tables as a pandas.DataFrame, with its columns in their order; the only one by default.

        What a row does not have is missing: NaN among floats, pandas.NA among whole numbers and truth values, which so
        stay what they are. Raises UsageError if there is no such table, if there are several and none is named, or if
        pandas is not installed.
        """
        known = ", ".join(self.tables) or "none"
        if table is None:
            if not self.tables:
                raise UsageError("The result has no tables; its figures are in `metrics` and `tensors`.")
            if len(self.tables) > 1:
                raise UsageError(f"The result has {len(self.tables)} tables ({known}); name the one that you want.")
            table = next(iter(self.tables))
        if table not in self.tables:
            raise UsageError(f"There is no table '{table}'; the tables are: {known}.{nearest(table, self.tables)}")
        from probekit.analysis.frames import frame

        return frame(self.tables[table])

    def encode(self) -> dict[str, bytes]:
        """The files of this result, by name.

        Raises AnalysisError, naming the figure, if a metric, a table, a tensor or a time is NaN or infinity, and naming
        the file if its path leads out of the result's folder.
        """
        for name, seconds in self.seconds.items():
            _check(seconds, f"The time '{name}'")
        for name, value in self.metrics.items():
            _check(value, f"The metric '{name}'")
        for name, rows in self.tables.items():
            for row in rows:
                for column, value in row.items():
                    _check(value, f"The table '{name}', column '{column}',")
        arrays = {name: _array(name, tensor) for name, tensor in self.tensors.items()}
        document = {
            "schema": SCHEMA,
            "finding": self.finding,
            "metrics": self.metrics,
            "tables": self.tables,
            "sequences": {name: [asdict(sequence) for sequence in group] for name, group in self.sequences.items()},
            "notes": self.notes,
        }
        own = {f"{FOLDER_OF_FILES}/{_inside(name)}": content for name, content in self.files.items()}
        from safetensors.numpy import save

        text = json.dumps(document, indent=1, allow_nan=False) + "\n"  # ASCII: lone surrogates survive as escapes
        files = {name: content if isinstance(content, bytes) else content.read_bytes() for name, content in own.items()}
        return {RESULT_FILE: text.encode(), TENSOR_FILE: save(arrays), **files}

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read a saved result, without its times. Raises UsageError with a sentence if the folder holds none, or one of
        another schema.
        """
        try:
            document = from_json(checked_file(folder / RESULT_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"There is no {RESULT_FILE} in '{folder}'; expected an analysis of a finished run."
            ) from None
        except OSError as error:
            raise UsageError(f"The file '{folder / RESULT_FILE}' cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"The file '{folder / RESULT_FILE}' is damaged: {error}.") from None
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise UsageError(
                f"The result in '{folder}' is not of schema {SCHEMA}; another version of probekit wrote it."
            )
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = RESULT_FILE
        try:
            _check_shape(document)
            result = cls(
                finding=document["finding"],
                metrics=document["metrics"],
                tables=document["tables"],
                sequences={
                    name: [TokenSequence(**sequence) for sequence in group]
                    for name, group in document["sequences"].items()
                },
                notes=document["notes"],
            )
            file = TENSOR_FILE
            result.tensors = load_file(checked_file(folder / file))
            found = sorted((folder / FOLDER_OF_FILES).rglob("*"))
            result.files = {
                path.relative_to(folder / FOLDER_OF_FILES).as_posix(): path for path in found if path.is_file()
            }
        except (KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise UsageError(f"The file '{folder / file}' is damaged: {type(error).__name__} {error}.") from None
        return result


def _check_shape(document: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError, naming the part, for a document that is not that of a result."""
    rows = [row for table in _table(document["tables"], "the tables").values() for row in _list(table, "a table")]
    groups = _table(document["sequences"], "the sequences").values()
    sequences = [_table(one, "a sequence") for group in groups for one in _list(group, "sequences")]
    labels = [_table(sequence.get("labels", {}), "labels") for sequence in sequences]
    for figures in (_table(document["metrics"], "the metrics"), *labels, *(_table(row, "a row") for row in rows)):
        for name, value in figures.items():
            if not isinstance(value, Scalar):
                raise TypeError(f"'{name}' is a {type(value).__name__}, where one figure was expected")
    for sequence in sequences:
        ids, tokens = _list(sequence["ids"], "ids"), _list(sequence["tokens"], "tokens")
        if not all(type(index) is int and abs(index) < 2**63 for index in ids) or len(tokens) != len(ids):
            raise TypeError("the ids of a sequence are not whole numbers, one for each token")
        if not all(isinstance(token, str) for token in tokens):
            raise TypeError("the tokens of a sequence are not texts")
    texts = [document["finding"], *_list(document["notes"], "the notes")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("the finding and the notes are not texts")


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a table for {what}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list for {what}")
    return value


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    # Another way to write a path would put two files into one place.
    plain = path.parts and path.as_posix() == name and not {"\\", "\0"} & set(name)
    if not plain or path.is_absolute() or any(part.startswith(".") for part in path.parts):
        raise AnalysisError(
            f"The file {name!r} of a result has no path below its folder; expected one such as 'a/b.txt'."
        )
    return path.as_posix()


def _check(value: Scalar, what: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise AnalysisError(f"{what} is {value}; a result holds finite figures only, so the computation broke down.")


def _array(name: str, tensor: Any) -> Any:
    import numpy

    if hasattr(tensor, "detach"):  # a torch tensor, without importing torch
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        tensor = tensor.numpy()
    array = numpy.ascontiguousarray(tensor)
    if array.dtype.kind == "f" and not numpy.isfinite(array).all():
        raise AnalysisError(f"The tensor '{name}' holds NaN or infinity, so the computation broke down.")
    return array
