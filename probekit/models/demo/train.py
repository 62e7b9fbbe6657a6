"""Train the embedded model on public-domain text, and write its card.

    python -m probekit.models.demo.train TEXT [TEXT …] --output FOLDER

A byte-level BPE (2048 tokens) and a GPT-2 (6 blocks × 192, tied embeddings, 256 positions, 3.1 M
parameters) are trained on plain-text files. The last 4 % of each file is held out. The folder that is written is an
ordinary transformers checkpoint, so the embedded model is loaded by the same code as any other.

Cost: each step sees `batch × 256` tokens, so 2400 steps of 32 windows are 19.7 M tokens, about nine passes over
7 MB of text; on two CPU cores with bf16 autocast that is about an hour.

What was interrupted or killed goes on with the same command, and ends with the same bytes on the same machine.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from probekit.files import written_whole

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_FRACTION = 0.04
# Beside the tokenizer while the training goes on: everything that the rest of it follows from.
STATE = "training.safetensors"
PROMPT = "The old man looked at the sea and"


def read_text(path: Path) -> str:
    """One book as paragraphs without hard line breaks, without a distributor's header, quotes straightened."""
    text = path.read_text(encoding="utf-8-sig")
    start = re.search(r"\*\*\* ?START OF .*?\*\*\*", text)
    end = re.search(r"\*\*\* ?END OF ", text)
    text = text[start.end() if start else 0 : end.start() if end else len(text)]
    for fancy, plain in {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-"}.items():
        text = text.replace(fancy, plain)
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text)]
    # A play keeps its lines: a speaker's name stands on a line of its own, ended by a colon.
    unwrapped = [part if re.match(r"[^\n]{1,40}:\n", part) else re.sub(r"\s+", " ", part) for part in paragraphs]
    return "\n\n".join(part for part in unwrapped if part)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's: every string has an encoding and round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


@dataclass
class Corpus:
    """Token streams; windows of `length + 1` tokens start anywhere in them."""

    train: torch.Tensor
    held_out: torch.Tensor
    characters_held_out: int

    @classmethod
    def build(cls, texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Corpus:
        streams: dict[str, list[int]] = {"train": [], "held_out": []}
        characters = 0
        for text in texts:
            cut = int(len(text) * (1 - HELD_OUT_FRACTION))
            characters += len(text) - cut
            for name, part in (("train", text[:cut]), ("held_out", text[cut:])):
                streams[name] += [*tokenizer.encode(part, verbose=False), tokenizer.eos_token_id]
        return cls(torch.tensor(streams["train"]), torch.tensor(streams["held_out"]), characters)

    def batch(self, size: int, length: int, generator: torch.Generator) -> torch.Tensor:
        starts = torch.randint(len(self.train) - length, (size,), generator=generator)
        return torch.stack([self.train[start : start + length] for start in starts.tolist()])


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, corpus: Corpus, length: int) -> float:
    """Mean next-token negative log-likelihood (nats a token) over all held-out windows, in fp32."""
    windows = corpus.held_out[: len(corpus.held_out) // length * length].view(-1, length)
    model.eval()
    losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in windows.split(32)]
    model.train()
    return sum(losses) / len(windows)


@dataclass
class Training:
    steps: int
    batch: int
    learning_rate: float
    seed: int
    history: list[tuple[int, float]] = field(default_factory=list)

    def rate_at(self, step: int) -> float:
        """Linear warm-up over 3 % of the steps, then a cosine down to a tenth."""
        warmup = max(1, self.steps * 3 // 100)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def run(self, model: GPT2LMHeadModel, corpus: Corpus, length: int, output: Path, report_every: int = 100) -> None:
        """Train in place; the state is saved at every report, and taken up again by the same training.

        Raises a ClickException if another training's state is there.
        """
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        plain = [p for p in model.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
            lr=self.learning_rate,
            betas=(0.9, 0.95),
        )
        generator = torch.Generator().manual_seed(self.seed)
        saved = _Saved(output / STATE, self, model, optimizer, generator, corpus)
        start = saved.restore()
        began = time.monotonic()
        model.train()
        for step in range(start, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate_at(step)
            tokens = corpus.batch(self.batch, length, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % report_every == 0 or step + 1 == self.steps:
                self.history.append((step + 1, held_out_loss(model, corpus, length)))
                saved.save(step + 1)
                click.echo(
                    f"step {step + 1}/{self.steps}: training loss {loss.item():.3f}, "
                    f"held-out {self.history[-1][1]:.3f}, {time.monotonic() - began:.0f} s"
                )


class _Saved:
    """The state of a training on disk, whole or not at all: weights, moments, random numbers, losses and steps."""

    def __init__(
        self,
        path: Path,
        training: Training,
        model: GPT2LMHeadModel,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        corpus: Corpus,
    ) -> None:
        self._path, self._training, self._model = path, training, model
        self._optimizer, self._generator = optimizer, generator
        settings = (training.steps, training.batch, training.learning_rate, training.seed, str(model.config))
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(corpus.train.numpy().tobytes())
        self._digest = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)

    def save(self, steps: int) -> None:
        """Write down what the rest follows from, after so many steps."""
        state = {f"model/{name}": tensor.detach() for name, tensor in self._model.named_parameters()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer/{number}/{name}": tensor for name, tensor in moments.items()}
        state |= {"generator": self._generator.get_state(), "random": torch.get_rng_state(), "of": self._digest}
        state |= {"history": torch.tensor(self._training.history, dtype=torch.float64), "steps": torch.tensor(steps)}
        with written_whole(self._path) as place:
            place.write_bytes(save(state))

    def restore(self) -> int:
        """Take up what was saved: how many steps are done. What a killed process has half written is removed."""
        for half in self._path.parent.glob(f".{STATE}.*.tmp"):
            half.unlink()
        if not self._path.is_file():
            return 0
        state = load_file(self._path)
        if not torch.equal(state["of"], self._digest):
            raise click.ClickException(
                f"'{self._path}' is the state of another training; choose another folder, or remove it."
            )
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(state[f"model/{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer/"):
                _, number, moment = name.split("/")
                moments.setdefault(int(number), {})[moment] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        self._training.history = [(int(step), loss) for step, loss in state["history"].tolist()]
        return int(state["steps"])


def continuation(model: Any, tokenizer: PreTrainedTokenizerFast, sample: bool) -> str:
    torch.manual_seed(0)
    model.eval()
    length = model.config.n_positions
    tokens = tokenizer(PROMPT, return_tensors="pt", truncation=True, max_length=length // 2)
    how = {"do_sample": True, "temperature": 0.8, "top_k": 40} if sample else {"do_sample": False}
    output = model.generate(**tokens, max_new_tokens=min(60, length // 2), pad_token_id=tokenizer.eos_token_id, **how)
    return str(tokenizer.decode(output[0]))


CARD = """# The embedded model

A GPT-2 of {parameters:,} parameters ({layers} blocks × {width}, {heads} heads, {positions} positions, vocabulary
{vocabulary}, tied embeddings) with its own byte-level BPE, trained from scratch by `probekit/models/demo/train.py` so
that probekit can be tried, tested and demonstrated offline. It knows nothing of the world; it writes in the manner of
old novels and plays.

| | |
| --- | --- |
| data | public-domain text: {data} |
| tokens | {tokens:,} for training, {held_out:,} held out (the last 4 % of each text) |
| training | {steps} steps × {batch} windows × {positions} tokens, AdamW, peak rate {rate}, cosine schedule |
| | dropout 0.1 (none in attention), bf16 autocast, seed {seed} |
| held-out loss | {loss:.3f} nats a token, {bits:.3f} bits a character |
| loss by step | {history} |

Greedy: *{greedy}*

Sampled (temperature 0.8, top 40, seed 0): *{sampled}*
"""


@click.command(help=__doc__)
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=2400, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--vocabulary", default=2048, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--width", default=192, show_default=True)
@click.option("--positions", default=256, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--report-every", default=100, show_default=True, help="Steps from one held-out loss to the next.")
def main(
    texts: tuple[Path, ...],
    output: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    vocabulary: int,
    layers: int,
    width: int,
    positions: int,
    seed: int,
    report_every: int,
) -> None:
    torch.manual_seed(seed)
    books = [read_text(path) for path in texts]
    tokenizer = train_tokenizer(books, vocabulary)
    tokenizer.model_max_length = positions
    corpus = Corpus.build(books, tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_pdrop=0.0,  # with attention dropout a CPU step takes twice as long
    )
    model = GPT2LMHeadModel(config)
    training = Training(steps, batch, learning_rate, seed)
    tokenizer.save_pretrained(output)
    training.run(model, corpus, positions, output, report_every)
    model.save_pretrained(output)
    loss = training.history[-1][1]
    card = CARD.format(
        parameters=model.num_parameters(),
        layers=layers,
        width=width,
        heads=config.n_head,
        positions=positions,
        vocabulary=len(tokenizer),
        data=", ".join(path.stem.replace("_", " ").replace("-", " ") for path in texts),
        tokens=len(corpus.train),
        held_out=len(corpus.held_out),
        steps=steps,
        batch=batch,
        rate=learning_rate,
        seed=seed,
        loss=loss,
        bits=loss * len(corpus.held_out) / corpus.characters_held_out / math.log(2),
        history=", ".join(f"{step}: {value:.2f}" for step, value in training.history if step % 500 == 0),
        greedy=continuation(model, tokenizer, sample=False).replace("\n", " / "),
        sampled=continuation(model, tokenizer, sample=True).replace("\n", " / "),
    )
    (output / "README.md").write_text(card, encoding="utf-8")
    (output / STATE).unlink()  # last: until here the same command goes on


if __name__ == "__main__":
    main()
