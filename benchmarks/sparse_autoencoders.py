"""Sparse autoencoders trained by probekit and by SAELens' own trainer, on the same activations in the same order.

Both train SAELens' modules: equal steps, batches, features, k and λ. SAELens is measured as it comes (η = 3e-4, held, a
dead-latent window of 1000 steps), and with probekit's learning rate, schedule and window. Sides take turns, a seed a
round. `FVE = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²` is that of documents that are held out, encoded as the saved files encode.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import probekit
from benchmarks.measure import Side, alternate
from benchmarks.outcome import Figure, Outcome, Series, Settings
from benchmarks.texts import STORIES, cut, data, drawn, missing
from probekit_plugins.autoencoder.sparse import KINDS, Sparse
from probekit_plugins.autoencoder.sparse_format import WEIGHT_FILE, read_sparse, sae_lens
from probekit_plugins.trainer import train
from probekit_plugins.training_options import TrainingOptions

MODELS = ("demo", "stories260k")
SITE = "block.-2"
# Each variant with its k or λ.
VARIANTS = {"topk": 8, "batchtopk": 8, "l1": 1}
DOCUMENTS, TOKENS, HELD_OUT = 600, 64, 0.1
FEATURES = 256
STEPS, BATCH, ROUNDS = 600, 256, 3
# SAELens estimates its scale from so many batches, by default from 1000.
BATCHES_FOR_SCALE = 10
OURS, THEIRS, EQUAL = "probekit", "SAELens, defaults", "SAELens, our η and window"
# No worse: the difference of FVE that is taken for none.
GOAL = -0.005


@dataclass
class Task:
    """Activations of one model at one site, and what each training on them came to: variant and side to figures."""

    known: torch.Tensor
    held: torch.Tensor
    steps: int
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = field(default_factory=dict)

    def batch(self, number: int, seed: int) -> torch.Tensor:
        """The `number`-th batch, the same for every side."""
        generator = torch.Generator().manual_seed((seed << 32) + number)
        return self.known[torch.randint(len(self.known), (BATCH,), generator=generator)]

    def note(self, variant: str, side: str, encode: Callable[[torch.Tensor], torch.Tensor], decode: Any) -> None:
        """FVE, features that are active, and the share of those that never are."""
        with torch.no_grad():
            codes = encode(self.held)
            left = (self.held - decode(codes)).double().square().sum()
        fve = 1 - left / (self.held - self.held.mean(0)).double().square().sum()
        active = codes > 0
        figures = (float(fve), float(active.sum(1).double().mean()), float((~active.any(0)).double().mean()))
        self.found.setdefault((variant, side), []).append(figures)

    def ours(self, variant: str) -> Callable[[], None]:
        """A step that trains one of ours, each time with the next seed."""
        seeds = iter(range(1000))

        def step() -> None:
            seed = next(seeds)
            options = TrainingOptions(steps=self.steps, batch=BATCH)
            module = Sparse(variant, self.held.shape[1], FEATURES, VARIANTS[variant], options, seed)
            module.prepare(self.known[:, None])
            context = probekit.Context(seed)
            train(module, module.loss, lambda n: self.batch(n, seed)[:, None], options, context, variant)
            inference = module.inference()
            self.note(variant, OURS, inference.encode, inference.decode)

        return step

    def theirs(self, variant: str, side: str) -> Callable[[], None]:
        """A step that trains one by SAELens' trainer, each time with the next seed, saves it and reads it."""
        seeds = iter(range(1000))

        def step() -> None:
            seed = next(seeds)
            own = {"k": VARIANTS[variant]} if variant != "l1" else {"l1_coefficient": VARIANTS[variant]}
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
                torch.manual_seed(seed)
                sae = self._trained(variant, side, own, seed)
            with tempfile.TemporaryDirectory() as folder:
                sae.save_inference_model(folder)
                assert (Path(folder) / WEIGHT_FILE).is_file()
                saved = read_sparse(Path(folder))
            self.note(variant, side, saved.encode, saved.decode)

        return step

    def _trained(self, variant: str, side: str, own: dict[str, int], seed: int) -> Any:
        package = sae_lens("The benchmark")
        kind = f"{KINDS[variant]}TrainingSAE"
        options = TrainingOptions(steps=self.steps, batch=BATCH)
        warmup = int(options.warmup * self.steps)
        default: dict[str, Any] = {"lr_end": 3e-4}  # its own lr, which it does not take for the end by itself
        equal: dict[str, Any] = {
            "lr": options.learning_rate,
            "lr_end": options.learning_rate,
            "lr_warm_up_steps": warmup,
            "lr_decay_steps": self.steps - warmup,
            "dead_feature_window": max(20, self.steps // 10),
        }
        if variant == "l1":
            own = {**own, "l1_warm_up_steps": self.steps // 10}
        config = package.config.SAETrainerConfig(
            total_training_samples=self.steps * BATCH,
            train_batch_size_samples=BATCH,
            n_batches_for_norm_estimate=BATCHES_FOR_SCALE,
            **(equal if side == EQUAL else default),
        )
        normalised = {"normalize_activations": "expected_average_only_in"}
        made = getattr(package, f"{kind}Config")(d_in=self.held.shape[1], d_sae=FEATURES, **normalised, **own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return package.SAETrainer(config, getattr(package, kind)(made), self._batches(seed)).fit()

    def _batches(self, seed: int) -> Iterator[torch.Tensor]:
        number = 0
        while True:
            yield self.batch(number, seed)
            number += 1


def activations(subject: probekit.Subject, documents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of pieces of a text, or of random tokens where it is not there; the last documents are held out."""
    path = data(STORIES)
    prompts = drawn(subject, documents, TOKENS) if path is None else cut(subject, path, documents, TOKENS)
    prompts = prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))]
    rows = [subject.capture(part, [SITE])[SITE][:, 1:].float() for part in prompts.split(32)]
    found = torch.cat(rows)
    held = max(1, round(HELD_OUT * len(found)))
    return found[:-held].flatten(0, 1), found[-held:].flatten(0, 1)


def measure(outcome: Outcome, name: str, task: Task, rounds: int) -> None:
    """Every variant by every side, and what it came to."""
    for variant, size in VARIANTS.items():
        letter = "λ" if variant == "l1" else "k"
        sides = [Side(OURS, "probekit", task.ours(variant))]
        sides += [Side(side, "peer", task.theirs(variant, side)) for side in (THEIRS, EQUAL)]
        timings = alternate(sides, rounds, 0)
        label = f"{name}, {variant} {letter} = {size}"
        outcome.time(f"{label}: {task.steps} steps", sides, timings)
        ours = task.found[variant, OURS]
        for side in (THEIRS, EQUAL):
            gains = [mine[0] - other[0] for mine, other in zip(ours, task.found[variant, side], strict=True)]
            # At another L0 one FVE says nothing of the other: there is no goal for L1.
            goal = None if variant == "l1" else GOAL
            what = f"{label}: FVE of {OURS} − {side}"
            outcome.figures.append(Figure(what, median(gains), min(gains), max(gains), "", goal, "higher"))
        outcome.figure(f"{label}: time of {OURS} / {EQUAL}", timings.ratio(OURS, EQUAL))
        rows = []
        for side in (OURS, THEIRS, EQUAL):
            fve, active, dead = zip(*task.found[variant, side], strict=True)
            rows.append((side, size, (mean(fve), min(fve), max(fve), mean(active), 100 * mean(dead))))
        outcome.series.append(Series(label, letter, ("FVE", "least", "most", "L0", "dead, %"), rows))


def run(settings: Settings) -> Outcome:
    """On the embedded model, and on one of the test data."""
    outcome = Outcome(f"Sparse autoencoders: {FEATURES} features, {BATCH} activations a step")
    if importlib.util.find_spec("sae_lens") is None:
        outcome.notes.append("Left out: SAELens is not installed; install probekit[sae].")
        return outcome
    sae_lens("The benchmark")  # imported before anything is timed
    for name in MODELS:
        path = name if name == "demo" else data(f"models/{name}")
        if path is None:
            outcome.notes.append(missing(f"models/{name}"))
            continue
        known, held = activations(probekit.load(path), DOCUMENTS // 6 if settings.quick else DOCUMENTS)
        task = Task(known, held, 40 if settings.quick else STEPS)
        measure(outcome, name, task, ROUNDS)
    return outcome
