"""Every precision on every placement: `python -m tests.models.matrix --markdown docs/placement.md` writes the table.

Each cell loads a small GPT-2 and a small Llama from a folder of fp32 weights. Where all weights are on the device that
computes, activations and gradients are compared, bit for bit, with those of transformers alone; elsewhere, and for the
walk, with those of the same precision wholly on that device.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import probekit
from probekit_plugins.clamped_walk import ClampedWalk, ClampedWalkOptions
from tests.between import write_between
from tests.models.test_loading import FAMILIES, IDS

MARKERS = ("<!-- the matrix begins -->", "<!-- the matrix ends -->")
NAMES = ("Wide GPT2", "Wide Llama")
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}
PLACEMENTS = ("cpu", "cpu + disk", "cuda", "cuda + cpu")
CHECKS = ("capture", "gradient", "clamped walk", "exactness after")
NOT_RUN = "not run: no CUDA device here"
# How many layers bitsandbytes converts: all linear ones of the four blocks.
CONVERTED = {"Wide GPT2": 4 * 4, "Wide Llama": 4 * 7}

# The sites that transformers' own hidden states show, and the logits.
SITES = ("block.0", "block.2", "logits")

Cell = dict[str, str]


def save(folder: Path) -> dict[str, Path]:
    """The folders of the models, by name."""
    made = {}
    for name in NAMES:
        class_name, sizes = FAMILIES[name]
        kind: Any = getattr(transformers, class_name)
        made[name] = folder / name.replace(" ", "-")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(kind.config_class(**sizes)).save_pretrained(made[name])
    return made


def placed(name: str, placement: str) -> dict[str, Any]:
    """The options of `load` for a placement: the first two blocks on the device that computes, the others away."""
    computes, _, away = placement.partition(" + ")
    if not away:
        return {"device": computes}
    first = 0 if computes == "cuda" else computes
    stem = "transformer.h" if name == "Wide GPT2" else "model.layers"
    parts = "transformer.wte transformer.wpe transformer.ln_f lm_head"
    if name != "Wide GPT2":
        parts = "model.embed_tokens model.norm model.rotary_emb lm_head"
    blocks = {f"{stem}.{index}": first if index < 2 else away for index in range(4)}
    return {"device_map": {**dict.fromkeys(parts.split(), first), **blocks}}


def cells(folder: Path) -> Iterator[tuple[str, str, Cell]]:
    """Every cell: precision, placement, and what each check says of both models."""
    folders = save(folder)
    for precision, options in PRECISIONS.items():
        for placement in PLACEMENTS:
            if "cuda" in placement and not torch.cuda.is_available():
                yield precision, placement, dict.fromkeys(CHECKS, NOT_RUN)
                continue
            found = [_checked(name, str(path), precision, placement, options) for name, path in folders.items()]
            yield precision, placement, {key: _both(each[key] for each in found) for key in found[0]}


def _both(values: Any) -> str:
    return ", ".join(dict.fromkeys(values))


def _checked(name: str, folder: str, precision: str, placement: str, options: dict[str, Any]) -> Cell:
    computes, _, away = placement.partition(" + ")
    resident = probekit.load(folder, device=computes, **options)
    subject = probekit.load(folder, **placed(name, placement), **options)
    cell: Cell = {}
    if "quantization" in options:
        layers = subject.facts["quantization"]
        cell["quantised layers"] = f"{layers[precision]} of {CONVERTED[name]}"
    device = subject.facts["device"]
    cell["devices"] = " and ".join(dict.fromkeys(device.values())) if isinstance(device, dict) else device
    before = _logits(subject)
    embeddings = resident.embed(IDS).float() + 0.01
    expected = _measured(resident, embeddings) if away else _alone(folder, computes, options, embeddings)
    found = _measured(subject, embeddings)
    for check, one, other in zip(CHECKS, expected, found, strict=False):
        cell[check] = _compared(one, other)
    cell["clamped walk"] = _compared(_walked(resident), _walked(subject))
    cell[CHECKS[-1]] = _compared(before, _logits(subject))
    return cell


def _logits(subject: probekit.Subject) -> list[torch.Tensor]:
    return [subject.capture(IDS, ["logits"])["logits"]]


def _measured(subject: probekit.Subject, embeddings: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Activations of three sites, and the gradients through them, each three times: the third is a replayed one."""
    captured, gradients = [], []
    for site in SITES:
        layer_map = subject.layer_map(site)
        for _ in range(3):
            leaf = embeddings.clone().requires_grad_()
            activation = layer_map(leaf)
            gradients += torch.autograd.grad(activation.float().square().sum(), leaf)
        captured.append(activation.detach())
    return captured, gradients


def _alone(
    folder: str, device: str, options: dict[str, Any], embeddings: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same by transformers alone: its own arguments, hidden states and `inputs_embeds`."""
    kind = options.get("quantization")
    arguments: dict[str, Any] = {"dtype": getattr(torch, options.get("dtype", "float32"))}
    if kind == "int8":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif kind is not None:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.float32
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, **arguments)
    model.requires_grad_(False)
    captured, gradients = [], []
    for place in (1, 3, None):
        for _ in range(3):
            leaf = embeddings.clone().requires_grad_()
            output = model(inputs_embeds=leaf.to(model.dtype), output_hidden_states=True, use_cache=False)
            activation = output.logits if place is None else output.hidden_states[place]
            gradients += torch.autograd.grad(activation.float().square().sum(), leaf)
        captured.append(activation.detach())
    return captured, gradients


def _walked(subject: probekit.Subject) -> list[torch.Tensor]:
    walk = ClampedWalk(
        ClampedWalkOptions(sites="block.-1", steps=3, walkers=2, inner=[3], noise_draws=1), probekit.Context()
    )
    result = walk.run(subject, [probekit.Prompt("", IDS.to(subject.device), subject.tokens(IDS))])
    return [result.tensors[name] for name in sorted(result.tensors)]


def _compared(one: list[torch.Tensor], other: list[torch.Tensor]) -> str:
    pairs = [(mine.cpu(), theirs.cpu()) for mine, theirs in zip(one, other, strict=True)]
    if all(torch.equal(*pair) for pair in pairs):
        return "equal"
    apart = max(float((a.double() - b.double()).norm() / a.double().norm().clamp(min=1e-30)) for a, b in pairs)
    return f"apart by {apart:.0e}"


def table(found: list[tuple[str, str, Cell]]) -> str:
    """The cells as a Markdown table."""
    columns = ("devices", "quantised layers", *CHECKS)
    lines = ["| precision | placement | " + " | ".join(columns) + " |", "|" + " --- |" * (2 + len(columns))]
    for precision, placement, cell in found:
        lines.append(f"| {precision} | {placement} | " + " | ".join(cell.get(key, "–") for key in columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Check every precision on every placement.")
    parser.add_argument("--markdown", type=Path, help="the page whose table to write anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written = table(list(cells(Path(folder))))
    print(written)
    if options.markdown:
        write_between(options.markdown, MARKERS, written)


if __name__ == "__main__":
    main()
