"""A survey of every architecture of transformers' causal-LM mapping: `python -m tests.forward.survey [NAME …]`.

Each is made tiny and checked in a forked child of its own, with a limit of time and of address space, so that one that
hangs or eats memory costs itself alone. One JSON line per architecture: `ok`, or a short cause, for each check.
`--markdown docs/architectures.md` writes the table of that page anew.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import json
import os
import resource
import select
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

import probekit
from probekit.activations import LiveActivations
from probekit.forward import Trace
from tests.between import write_between
from tests.forward.tiny import FIRST_PLAIN_ID, make, tiny

SECONDS = 30
BYTES = 6 << 30
CHECKS = (
    "built",
    "subject",
    "capture",
    "prompts",
    "padding",
    "batches",
    "continuation",
    "edit",
    "layer map",
    "gradients",
    "early stop",
    "clean",
    "decode",
    "unembed",
)
# What blocks return where it is not [batch, sequence, width]: how to get there, written down by hand.
IN_ORDER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "deepseek_v4": lambda returned: returned.flatten(2),
    "hy_v4": lambda returned: returned.flatten(2),
    "gemma3n": lambda returned: returned.permute(1, 2, 0, 3).flatten(2),
    "gemma3n_text": lambda returned: returned.permute(1, 2, 0, 3).flatten(2),
    "xlnet": lambda returned: returned.transpose(0, 1),
    "prophetnet": lambda returned: torch.cat(returned.chunk(3, dim=1), dim=-1),
    "cpmant": lambda returned: returned[:, 32:],
    "reformer": lambda returned: returned[:, : IDS.shape[1]],
}
IDS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])
assert int(IDS.min()) >= FIRST_PLAIN_ID

# What the table of a page stands between.
MARKERS = ("<!-- the survey's table -->", "<!-- the end of the survey's table -->")

Record = dict[str, Any]
Note = Callable[[str, Any], None]


# --- one architecture ------------------------------------------------------------------------------------------------


class Checks:
    """The checks of one model against hooks and forwards of the survey's own."""

    def __init__(self, name: str, model: nn.Module, subject: probekit.Subject, note: Note) -> None:
        self.own = slice(32, None) if name == "cpmant" else slice(None)  # the positions of the prompt
        self.in_order = IN_ORDER.get(name, lambda returned: returned)
        self.model = model
        self.subject = subject
        self.note = note
        self.blocks = subject.anatomy.blocks
        self.width = 1
        self.ids = IDS if subject.conditioned_on_ids else None

    def run(self, hooks_before: list[Any], logits_before: torch.Tensor | None) -> None:
        trace = Trace(self.model)
        checks: dict[str, Callable[[], str]] = {
            "capture": self.capture,
            "prompts": self.prompts,
            "padding": self.padding,
            "batches": self.batches,
            "continuation": self.continuation,
            "edit": self.edit,
            "layer map": self.layer_map,
            "gradients": self.gradients,
            "early stop": lambda: self.early_stop(logits_before),
            "decode": self.decode,
            "unembed": self.unembed,
            "clean": lambda: (
                "; ".join(trace.put_back()[0]) or ("ok" if hooks(self.model) == hooks_before else "hooks are left")
            ),
        }
        for name, check in checks.items():
            self.note(name, outcome(check))

    def capture(self) -> str:
        sites = {"block.0": self.blocks[0], "block.-1": self.blocks[-1]}
        with reading(sites) as seen:
            plain_logits(self.model)
        captured = self.subject.capture(IDS, list(sites))
        self.note("shape", list(seen["block.-1"][0].shape))
        self.note("axes", [in_widths(self.subject.axes(site), self.subject.width) for site in sites])
        self.width = seen["block.0"][0].shape[-1]
        self.note("calls", [len(seen[site]) for site in sites])
        # Where a block runs several times in a forward, the activation is the first.
        return joined(f"{site}: {difference(captured[site], self.in_order(seen[site][0]))}" for site in sites)

    def prompts(self) -> str:
        """Each prompt of a batch has the activation that it has alone."""
        together = self.subject.capture(IDS, ["block.-1"])["block.-1"]
        apart = torch.cat([self.subject.capture(ids[None], ["block.-1"])["block.-1"] for ids in IDS])
        return difference(together, apart, tolerance=1e-3)

    def batches(self) -> str:
        """Prompts of three lengths, in as many batches as the model takes them, have what each has alone."""
        lengths = (3, 5, 2) if self.subject.anatomy.sequence is None else (self.subject.anatomy.sequence,) * 3
        prompts = [IDS.flatten()[start : start + length].tolist() for start, length in enumerate(lengths)]
        batches = LiveActivations(self.subject, lambda: prompts, 3).batches(["block.-1"])
        rows = [(batch.rows("block.-1"), batch.row_prompts) for batch in batches]
        activations, numbers = (torch.cat(parts) for parts in zip(*rows, strict=True))
        found = torch.cat([activations[numbers == number] for number in range(3)])
        alone = [self.subject.capture(torch.tensor([ids]), ["block.-1"])["block.-1"][0] for ids in prompts]
        return difference(found, torch.cat(alone), tolerance=1e-3)

    def padding(self) -> str:
        """A prompt padded on either side has the activation that it has alone, or is refused."""
        shorter = IDS[1:, :3]
        ids, mask = self.subject.batch([IDS[0], shorter])
        alone = self.subject.capture(shorter, ["block.-1"])["block.-1"]
        outcomes = []
        for side, shift in (("right", 0), ("left", IDS.shape[1] - shorter.shape[1])):
            shifted = [torch.stack([rows[0], rows[1].roll(shift)]) for rows in (ids, mask)]
            try:
                captured = self.subject.capture(shifted[0], ["block.-1"], shifted[1])["block.-1"]
            except probekit.UsageError as error:
                self.note(f"padding on the {side}", str(error))
                continue
            own = captured[1:, shift : shift + shorter.shape[1]]
            self.note(f"padding on the {side}", "ok")
            outcomes.append(f"{side}: {difference(own, alone, tolerance=1e-2)}")
        return joined(outcomes)

    def continuation(self) -> str:
        """Tokens behind a prefix have the activations that they have in the whole sequence, call after call."""
        fixed = self.subject.anatomy.sequence is not None
        # Longer than the windows of tiny models.
        prefix = IDS[:1, :-1] if fixed else torch.cat([IDS[:1], IDS[:1] + 1], 1)
        outcomes = []
        for site in ("block.0", "block.-1", "logits"):
            continuation = self.subject.continuation(prefix, site)
            for new in (1, 1) if fixed else (1, 3, 1):
                tokens = IDS[:, -new:]
                whole = torch.cat([prefix.expand(len(tokens), -1), tokens], 1)
                expected = self.subject.capture(whole, [site])[site][:, prefix.shape[1] :]
                outcomes.append(f"{site}, {new} new: {difference(continuation(tokens), expected, tolerance=1e-3)}")
            self.note(f"cached {site}", continuation.cached)
        return joined(outcomes)

    def edit(self) -> str:
        before = plain_logits(self.model)
        # A scale alone is lost where the next block begins with a norm that nothing goes around, as in minimax.
        for factor in (torch.tensor(0.5), torch.linspace(0.5, 1.0, self.width)):
            repeated = factor if factor.dim() == 0 else factor.repeat(self.streams())
            with self.subject.edit("block.0", partial(torch.mul, repeated)):
                edited = plain_logits(self.model)
            with scaling(self.blocks[0], factor, self.own):
                expected = plain_logits(self.model)
            if (outcome := difference(edited, expected)) != "ok":
                return f"against a hook that writes in place: {outcome}"
            if not torch.allclose(before, edited, rtol=1e-4, atol=1e-6):
                return "ok"
        return "the logits do not change"

    def streams(self) -> int:
        """How many streams of the module's own width an activation joins."""
        return int(self.subject.capture(IDS, ["block.0"])["block.0"].shape[-1]) // self.width

    def layer_map(self) -> str:
        expected = self.subject.capture(IDS, ["block.-1"])["block.-1"]
        with torch.no_grad():
            mapped = self.subject.layer_map("block.-1", self.ids)(self.subject.embed(IDS))
        return difference(mapped, expected)

    def gradients(self) -> str:
        embeddings = self.subject.embed(IDS).requires_grad_()
        activation = self.subject.layer_map("block.-1", self.ids)(embeddings)
        if activation.shape[1] == IDS.shape[1]:  # blt's middle stack works on patches
            activation = activation[:, -1]
        direction = torch.randn(activation.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((activation * direction).sum(), embeddings)
        if not bool(torch.isfinite(gradient).all()):
            return "not finite"
        reached = int((gradient.abs().amax(-1) > 0).all(0).sum())
        self.note("positions", reached)
        return "ok" if reached else "all zero"

    def early_stop(self, logits_before: torch.Tensor | None) -> str:
        if self.blocks[0] is self.blocks[-1]:
            return "only one block"
        with reading({"last": self.blocks[-1]}) as seen:
            self.subject.capture(IDS, ["block.0"])
        if seen["last"]:
            return "the last block ran"
        if logits_before is None:
            return "no logits to compare"
        return difference(plain_logits(self.model), logits_before)

    def decode(self) -> str:
        decoded = self.subject.decode(self.subject.embed(IDS))
        if decoded.shape != (*IDS.shape, 5) or decoded.is_floating_point():
            return f"{decoded.dtype} {tuple(decoded.shape)}"
        self.note("round trip", float((decoded[..., 0] == IDS).float().mean()))
        return "ok"

    def unembed(self) -> str:
        """The head's best token for the last block's activation is the model's own, or the head refuses it."""
        with reading({"last": self.blocks[-1]}) as seen:
            own = plain_logits(self.model)
        last = self.in_order(seen["last"][-1])  # the last time that it ran: a first time is not what the head reads
        try:
            logits = self.subject.unembed(last)[:, -IDS.shape[1] :]
        except probekit.ProbekitError as error:
            self.note("head", str(error))
            return "ok"
        self.note("head", "ok")
        agree = float((logits.argmax(-1) == own.argmax(-1)).float().mean()) if logits.shape == own.shape else 0.0
        return "ok" if agree == 1 else f"the best token agrees at {agree:.0%} of the positions"


def examine(name: str, note: Note) -> None:
    """Run every check on one architecture, telling `note` each result as soon as it is known."""
    config_class = CONFIG_MAPPING[name]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    note("class", model_class.__name__)
    made: list[Any] = []

    def built() -> str:
        made.append(make(model_class, tiny(config_class)))
        return "ok"

    def subject() -> str:
        made.append(probekit.Subject(made[0]))
        return "ok"

    note("built", outcome(built))
    if not made:
        return
    model: nn.Module = made[0]
    note("parameters", sum(parameter.numel() for parameter in model.parameters()))
    hooks_before = hooks(model)
    logits_before: torch.Tensor | None = None
    try:
        logits_before = plain_logits(model)
        note("forward", "ok" if bool(torch.isfinite(logits_before).all()) else "logits are not finite")
    except Exception as error:
        note("forward", cause(error))
    note("subject", outcome(subject))
    if len(made) < 2:
        note("clean", "ok" if hooks(model) == hooks_before else "hooks are left")
        return
    anatomy = made[1].anatomy
    note("blocks", anatomy.blocks_path)
    note("count", len(anatomy.blocks))
    note("embedding", anatomy.embedding_path)
    note("norm", anatomy.norm_path)
    note("unembedding", anatomy.unembedding_path)
    note("conditioned on ids", made[1].conditioned_on_ids)
    Checks(name, model, made[1], note).run(hooks_before, logits_before)


def outcome(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return cause(error)


def cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of a validation error only says that it is one.
    first = lines[1] if lines and lines[0].endswith(":") and len(lines) > 1 else (lines or [""])[0]
    return f"{type(error).__name__}: {first}"


def difference(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> str:
    """`ok` where two tensors are close, else what is not."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if torch.allclose(actual.float(), expected.float(), rtol=tolerance, atol=tolerance / 10, equal_nan=True):
        return "ok" if bool(torch.isfinite(actual).all()) else "not finite"
    return f"differs by {float((actual - expected).abs().max()):.2g}"


def joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if not part.endswith(": ok")) or "ok"


def plain_logits(model: nn.Module) -> torch.Tensor:
    """The scores of a forward on token ids alone."""
    parameters = inspect.signature(type(model).forward).parameters
    takes_cache = "use_cache" in parameters or any(part.kind is part.VAR_KEYWORD for part in parameters.values())
    with torch.no_grad():
        output = model(input_ids=rows(model), **({"use_cache": False} if takes_cache else {}))
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits.clone()


def rows(model: nn.Module) -> torch.Tensor:
    """The prompts as the model reads them: one with codebooks reads a row of ids for each."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return IDS.repeat_interleave(len(embedding) if isinstance(embedding, nn.ModuleList) else 1, 0)


@contextlib.contextmanager
def reading(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What each of these modules returns while open, call by call, read by hooks of the survey's own."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name].append((output if isinstance(output, torch.Tensor) else output[0]).detach().clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def scaling(module: nn.Module, factor: torch.Tensor, own: slice) -> Iterator[None]:
    """The activation of a module multiplied in place while open, whatever it is returned in."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        (output if isinstance(output, torch.Tensor) else output[0])[:, own].mul_(factor)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def in_widths(axes: Sequence[str | int], width: int) -> str:
    """The axes as `[batch, sequence, 4 × width]`, with the width of the embeddings."""
    names = [str(axis) if isinstance(axis, str) or axis % width else f"{axis // width} × width" for axis in axes]
    return f"[{', '.join(names)}]".replace("1 × width", "width")


def hooks(model: nn.Module) -> list[Any]:
    """Every hook of every module, by its dictionary and key."""
    return [
        (path, kind, key, id(hook))
        for path, module in model.named_modules()
        for kind, found in vars(module).items()
        if kind.endswith("_hooks") and isinstance(found, dict)
        for key, hook in found.items()
    ]


# --- all of them -----------------------------------------------------------------------------------------------------


def survey(names: Iterable[str]) -> Iterator[Record]:
    """The record of each architecture, as soon as it is done."""
    _warm_up()
    for name in names:
        yield _in_child(name)


def _warm_up() -> None:
    """One forward in the parent: what transformers and torch import only when they run, no child imports again."""
    torch.set_num_threads(1)  # the threads of a pool would not live on in a forked child
    examine("gemma3_text", lambda key, value: None)
    gc.collect()
    gc.freeze()  # no child looks through what is here, which would copy its pages, for what it may free


def _in_child(name: str) -> Record:
    reading_end, writing_end = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading_end)
        with os.fdopen(writing_end, "w") as pipe:
            _child(name, pipe)
        os._exit(0)
    os.close(writing_end)
    record: Record = {"name": name}
    with os.fdopen(reading_end, "rb") as pipe:
        record |= _read(pipe.fileno(), started + SECONDS)
    late = time.monotonic() - started >= SECONDS
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    ended = record.pop("survey", None)
    if late or status:
        ended = f"took more than {SECONDS} s" if late else f"ended with status {status}"
    if ended:  # the first check without a result is the one it ended in
        record[next((check for check in CHECKS if check not in record), "clean")] = ended
    return {**record, "seconds": round(time.monotonic() - started, 2)}


def _child(name: str, pipe: IO[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")

    def note(key: str, value: Any) -> None:
        pipe.write(json.dumps({key: value}) + "\n")
        pipe.flush()

    with contextlib.redirect_stdout(None):  # a model's own printing is no record
        try:
            examine(name, note)
        except Exception as error:
            note("survey", cause(error))  # the survey's own failure


def _read(descriptor: int, deadline: float) -> Record:
    """The notes of a child, up to its end or the deadline."""
    received = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        received += chunk
    record: Record = {}
    for line in received.decode().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that was cut
            record |= json.loads(line)
    return record


def table(records: list[Record]) -> str:
    """The records as a Markdown table, with how many passed each check above it."""
    passed = Counter(check for record in records for check in CHECKS if record.get(check) == "ok")
    counts = Counter(passed[check] for check in CHECKS)
    lines = [f"transformers {transformers.__version__}, {len(records)} architectures:", ""]
    for count in sorted(counts, reverse=True):
        lines.append(f"- {count} pass: {', '.join(check for check in CHECKS if passed[check] == count)}")
    lines += ["", "| architecture | blocks | a block returns | padding | head | remarks |", "|" + " --- |" * 6]
    for record in records:
        padding = [side for side in ("right", "left") if record.get(f"padding on the {side}") == "ok"]
        cells = [
            record["name"],
            f"`{record['blocks']}`" if "blocks" in record else "–",
            ", then ".join(dict.fromkeys(record.get("axes", ["–"]))),
            " and ".join(padding) or "–",
            "yes" if record.get("head") == "ok" else "–",
            "; ".join(_remarks(record)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _remarks(record: Record) -> Iterator[str]:
    if record.get("conditioned on ids"):
        yield "blocks read the token ids again"
    if max(record.get("calls", [1])) > 1:
        yield f"blocks run {' to '.join(map(str, sorted(set(record['calls']))))} times"
    for check in CHECKS:
        if record.get(check, "ok") != "ok":
            yield f"**{check}**: {record[check]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Check probekit on every architecture of transformers.")
    parser.add_argument("names", nargs="*", help="names in the causal-LM mapping; all of them by default")
    parser.add_argument("--markdown", type=Path, help="the page whose table to write anew")
    options = parser.parse_args()
    records = []
    for record in survey(options.names or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        print(json.dumps(record), flush=True)
        records.append(record)
    if options.markdown:
        write_between(options.markdown, MARKERS, table(records))


if __name__ == "__main__":
    main()
