"""A description as text: aligned, for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

COLUMNS = 100

# A row's cells; one that begins with `>` is aligned to the right.
Row = Sequence[str]

_SAID_BY = {"config": "", "weights": ", by its file of weights", "nothing": ", for want of a dtype in its config"}


def as_text(facts: Mapping[str, Any]) -> str:
    """The whole description, section by section."""
    sections: list[tuple[str, list[Row]]] = [
        (facts["model"], _identity(facts)),
        ("Anatomy", _anatomy(facts["anatomy"])),
        ("Sites", _sites(facts["sites"])),
        ("Parameters", _parameters(facts["parameters"])),
        ("Memory of the weights", _memory(facts)),
    ]
    if facts["placement"] is not None:
        sections.append((_placement_title(facts), _placement(facts["placement"])))
    sections.append(
        ("Supported", [_support(name, answer) for name, answer in facts["supports"].items() if name != "edit"])
    )
    if facts["loaded"] is None:
        sections.append(("Only the weights can tell (--load loads them and checks)", _unknown()))
    else:
        made = "Checked on the model that a plugin's loader made"
        title = made if facts["source"] == "plugin" else "Loaded, and checked on the weights"
        sections.append((title, _loaded(facts["loaded"])))
    return "\n\n".join("\n".join([title, *_aligned(rows)]) for title, rows in sections)


def _aligned(rows: Sequence[Row]) -> Iterable[str]:
    """Rows with columns as wide as their widest cell; what is too long for the line goes on below its last cell.

    A row of one cell is a sentence, and takes the whole line.
    """
    cells = [row for row in rows if len(row) > 1]
    widths = [max(len(cell.removeprefix(">")) for cell in column) for column in zip_longest(*cells, fillvalue="")]
    for row in rows:
        padded = [
            cell[1:].rjust(width) if cell.startswith(">") else cell.ljust(width)
            for cell, width in zip(row, widths, strict=False)
        ]
        lead = "".join(f"  {cell}" for cell in padded[:-1]) + "  "
        if row[-1].startswith(">"):
            yield lead + padded[-1]
        else:
            yield from textwrap.wrap(
                row[-1], COLUMNS, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
            ) or [lead.rstrip()]


def _identity(facts: Mapping[str, Any]) -> list[Row]:
    source = {
        "demo": "the embedded model",
        "folder": "a folder",
        "hub": "the hub",
        "plugin": "a plugin's loader, which has made the model",
    }[facts["source"]]
    if facts.get("has_weights") is False:
        source += " without weights (--weights random runs an untrained model of this config)"
    if facts.get("revision"):
        source += f", revision {facts['revision']}"
    kind = facts["model_type"]
    tokenizer = facts["tokenizer"]
    context = facts["context"]
    rows: list[Row] = [
        ("source", source),
        ("architecture", facts["architecture"] + (f" ({kind})" if kind else "")),
        ("dtype", _dtype(facts)),
        ("context", "not limited by its config" if context is None else f"{context:,} tokens"),
        ("vocabulary", f"{facts['vocabulary']:,}" + ("" if facts["width"] is None else f" × {facts['width']:,}")),
        ("tokenizer", tokenizer["why"] or f"{tokenizer['class']}, {tokenizer['tokens']:,} tokens"),
    ]
    taken = facts["anatomy"]["sequence"]
    return rows if taken is None else [*rows, ("prompts", f"of exactly {taken} {'token' if taken == 1 else 'tokens'}")]


def _dtype(facts: Mapping[str, Any]) -> str:
    own, loaded = facts["checkpoint_dtype"], facts["dtype"]
    if own is None:
        return str(loaded)
    said = f"{own}{_SAID_BY[facts['checkpoint_dtype_said_by']]}"
    if method := facts["checkpoint_quantization"]:
        said += f", quantised as {method} in its checkpoint"
    return said if own == loaded else f"{loaded}, as asked for; the checkpoint is {said}"


def _anatomy(parts: Mapping[str, Any]) -> list[Row]:
    def row(name: str, note: str = "") -> Row:
        part = parts[name]
        if name in parts["unknown"]:
            return (name, "known once the model is loaded")
        return (name, "none") if part is None else (name, part["path"], part["class"] + note)

    blocks = parts["blocks"]
    tied = ", tied to the embedding" if parts["tied"] else ""
    kinds = f"{blocks['count']} × {' or '.join(blocks['classes'])}"
    return [row("embedding"), ("blocks", blocks["path"], kinds), row("norm"), row("unembedding", tied)]


def _sites(sites: Mapping[str, Sequence[Any] | None]) -> list[Row]:
    """One line for each run of sites of the same axes."""
    rows: list[Row] = []
    for (_, axes), run in groupby(sites, key=lambda name: (name.startswith("block."), sites[name])):
        names = list(run)
        if names[0].startswith("block.") or len(names) == 1:
            rows.append((names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}", _axes(axes)))
        else:
            rows += [(name, _axes(axes)) for name in names]
    return rows


def _axes(axes: Sequence[Any] | None) -> str:
    return "known once the model is loaded" if axes is None else f"[{', '.join(map(str, axes))}]"


def _parameters(counts: Mapping[str, Any]) -> list[Row]:
    blocks, total = counts["blocks"], counts["total"]

    def row(name: str, count: int, note: str = "") -> Row:
        share = f">{100 * count / total:.1f} %" if total else ">"
        return (name, f">{count:,}", share, note)

    least, most = min(blocks), max(blocks)
    each = f"{most:,} in each" if least == most else f"{least:,} to {most:,} in each"
    rows = [row("total", total), row("embedding", counts["embedding"]), row("blocks", sum(blocks), each)]
    if counts["norm"]:
        rows.append(row("norm", counts["norm"]))
    if counts["unembedding"]:
        rows.append(row("unembedding", counts["unembedding"]))
    return [*rows, row("the rest", counts["rest"])] if counts["rest"] else rows


def _memory(facts: Mapping[str, Any]) -> list[Row]:
    memory = {name: dict(sizes) for name, sizes in facts["memory"].items()}
    if memory["bfloat16"] == memory["float16"]:
        memory = {("bfloat16, float16" if name == "bfloat16" else name): sizes for name, sizes in memory.items()}
        del memory["float16"]
    converts = facts["supports"]["quantization"]["supported"]
    memory = {name: sizes for name, sizes in memory.items() if converts or name not in ("int8", "nf4")}
    reaches = list(facts["memory"]["float32"])
    rows: list[Row] = [("", *(">whole model" if reach == "whole" else f">up to {reach}" for reach in reaches))]
    for name, sizes in memory.items():
        note = f"the other layers in {facts['dtype']}" if name in ("int8", "nf4") else ""
        rows.append((name, *(f">{_size(sizes[reach])}" for reach in reaches), note))
    return rows


def _size(count: float) -> str:
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    digits = 0 if unit == "bytes" or count >= 100 else 1 if count >= 10 else 2
    return f"{count:,.{digits}f} {unit}"


def _placement_title(facts: Mapping[str, Any]) -> str:
    given = facts["placement"]["device_map"]
    return f"On this machine, with --device-map {given if isinstance(given, str) else 'as given'}"


def _placement(found: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for device, entry in found["devices"].items():
        free = "" if not entry["free"] else f"of {_size(entry['free'])} free"
        rows.append((device, f">{_size(entry['weights'])}", free, _modules(entry["modules"])))
    if not found["fits"]:
        rows.append(("The model does not fit: what is on the disk is read again in every forward pass.",))
    return rows


def _modules(paths: Sequence[str]) -> str:
    """Module paths, with neighbours in a list as one: `transformer.h.0 … 23`."""
    parts: list[str] = []
    for (parent, numbered), run in groupby(
        paths, key=lambda path: (path.rpartition(".")[0], path.rpartition(".")[2].isdigit())
    ):
        names = [path.rpartition(".")[2] for path in run]
        full = [f"{parent}.{name}" if parent else name for name in names]
        parts += [f"{full[0]} … {names[-1]}"] if numbered and len(full) > 1 else full
    return "the whole model" if list(paths) == [""] else ", ".join(parts)


_NAMES = {
    "capture": "capture, edit",
    "quantization": "int8, nf4",
    "unembedding": "decoding by the head",
    "gradients": "gradients to embeddings",
}


# Where a site can be captured it can be edited.
def _support(name: str, answer: Mapping[str, Any]) -> Row:
    said = {True: "yes", False: "no", None: "?"}[answer["supported"]]
    return (_NAMES.get(name, name), said, answer["why"])


def _unknown() -> list[Row]:
    return [
        ("substitution", "whether given embeddings in the place of a prompt's own give what the plain forward gives"),
        ("token ids", "whether blocks read them again, so that a layer map needs them too"),
    ]


def _loaded(loaded: Mapping[str, Any]) -> list[Row]:
    device = loaded["device"]
    where = device if isinstance(device, str) else ", ".join(f"{path or 'all'}: {on}" for path, on in device.items())
    again = "read again by blocks: a layer map needs them" if loaded["conditioned_on_ids"] else "not read again"
    rows: list[Row] = [("dtype", loaded["dtype"]), ("device", where)]
    for kind, count in loaded.get("quantization", {}).items():
        rows.append((kind, f"{count} linear layers"))
    if "weights_sha256" in loaded:
        rows.append(("weights", f"SHA-256 {loaded['weights_sha256']}"))
    if "weights_seed" in loaded:
        rows.append(("weights", f"random, seed {loaded['weights_seed']}"))
    return [*rows, ("substitution", "gives what the plain forward gives"), ("token ids", again)]
