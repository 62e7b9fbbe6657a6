"""A whole run: every autoencoder and what stands beside it trained with each seed, and measured on held-out texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result
from probekit_plugins.corpus import corpus
from probekit_plugins.order import Order
from probekit_plugins.text_vae import figures
from probekit_plugins.text_vae.checks import check
from probekit_plugins.text_vae.examples import keep_examples
from probekit_plugins.text_vae.made import BESIDE, Maker
from probekit_plugins.text_vae.recipe import Recipe, recipes
from probekit_plugins.text_vae.summary import summarise
from probekit_plugins.text_vae.vae import Language, Vae
from probekit_plugins.trainer import train

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.text_vae import TextVaeOptions
    from probekit_plugins.text_vae.reading import Batch, Reading
    from probekit_plugins.trainer import Step, Training

Row = dict[str, Any]
# Columns of the table `trained` that are measured, in their order.
FIGURES = (
    "ppl",
    "ppl_word",
    "reconstruction",
    "kl",
    "negative_elbo",
    "mi",
    "active",
    "delta_rec",
    "delta_rec_error",
    "delta_prior",
    "exact",
    "gap",
    "monotone",
)
# Nats whose exponential is still a number.
GREATEST = 700.0
Loss = Callable[["Batch", "Step"], torch.Tensor]
TABLES = (
    "settings",
    "trained",
    "dimensions",
    "reconstructions",
    "samples",
    "interpolations",
    "analogies",
    "losses",
)


def run(subject: Subject, prompts: Sequence[Prompt], options: TextVaeOptions, context: Context) -> Result:
    """Train, measure and compare.

    Raises UsageError before anything is trained if the model cannot be copied, takes no memory, or if there are too few
    texts; AnalysisError if a loss is not finite.
    """
    maker = Maker.of(subject, options)
    chosen = list(recipes(options))
    check(maker.vae(chosen[0], 0))  # what cannot be made is said before texts are written
    found = corpus(subject, prompts, options, context, BESIDE)
    reading = maker.reading(found)
    result = Result(tables={name: [] for name in TABLES})
    bench = _Bench(maker, reading, options, context, result)
    for recipe in chosen:
        for seed in range(options.seeds):
            bench.autoencoder(recipe, seed)
    for name in ("no-z", "lstm"):
        if name in options.beside:
            for seed in range(options.seeds):
                bench.language(name, seed)
    summarise(result, found, reading, options)
    return result


class _Bench:
    """Trains and measures one after the other; each becomes a row of the table `trained`."""

    def __init__(
        self, maker: Maker, reading: Reading, options: TextVaeOptions, context: Context, result: Result
    ) -> None:
        self._maker, self._reading, self._options = maker, reading, options
        self._context, self._result = context, result
        self._phase1: dict[int, dict[str, torch.Tensor]] = {}
        self._tokens = reading.held_out.decoder.tokens + len(maker.decoder_reader.end) * len(reading.held_out)

    def autoencoder(self, recipe: Recipe, seed: int) -> None:
        """One autoencoder, from this seed."""
        key = f"{recipe.name}/{seed}"
        vae = self._maker.vae(recipe, self._seed(f"autoencoder/{seed}"))
        first = min(round(recipe.pretraining * self._options.steps), self._options.steps - 1)  # phase 2 has one
        if first:
            self._pretrained(vae, seed, first)
        row: Row = {"name": recipe.name, "kind": recipe.kind, "seed": seed}
        row |= {"free_bits": recipe.free_bits, "latent": recipe.latent}
        self._trained(vae, vae.loss, row, self._options.steps - first, first)
        measured = self._context.stage(f"measured/{key}", lambda: self._measured(vae, key))
        row |= {name: float(measured[name]) for name in FIGURES}  # those read back are in another order
        row["active"] = int(row["active"])
        row["mi_ceiling"] = math.log(len(self._reading.held_out))
        for dimension, (divergence, variance) in enumerate(
            zip(measured["divergence"].tolist(), measured["variance"].tolist(), strict=True)
        ):
            self._result.tables["dimensions"].append(
                {"name": recipe.name, "seed": seed, "dimension": dimension, "kl": divergence, "variance": variance}
            )
        if seed == 0:
            keep_examples(vae, recipe.name, self._reading, self._maker, self._options, self._context, self._result)

    def language(self, name: str, seed: int) -> None:
        """A language model without z."""
        key = f"{name}/{seed}"
        made = self._maker.lstm if name == "lstm" else self._maker.language
        model = made(self._seed(key))
        row: Row = {"name": name, "kind": "beside", "seed": seed}
        self._trained(model, model.loss, row, self._options.steps, 0)
        held = self._reading.held_out
        total = self._context.stage(f"measured/{key}", lambda: {"nll": figures.nll(model, held).sum()})
        row |= self._perplexities(float(total["nll"]))

    def _measured(self, vae: Vae, key: str) -> dict[str, torch.Tensor]:
        held, options = self._reading.held_out, self._options
        found = figures.latents(vae, held)

        def generator(purpose: str) -> torch.Generator:
            return self._context.generator(f"{purpose}/{key}")

        label = f"measuring {key}"
        with self._context.progress(label, options.importance_samples) as progress:
            likelihood = figures.log_likelihood(
                vae, held, found, options.importance_samples, generator("importance"), progress.step
            )
        used = figures.use(vae, held, found, generator("use"))
        between = figures.interpolation(vae, held, found, options.interpolation_steps)
        divergence = float(found.divergence.sum(1).mean())
        values: dict[str, Any] = {
            **self._perplexities(-float(likelihood.sum())),
            "reconstruction": float(used.own.mean()),
            "kl": divergence,
            "negative_elbo": float(used.own.mean()) + divergence,
            "mi": figures.mutual_information(found, generator("mutual information")),
            "active": int((found.variance >= figures.ACTIVE).sum()),
            "delta_rec": used.delta,
            "delta_rec_error": used.error,
            "delta_prior": float((used.prior - used.own).mean()),
            "exact": figures.exact(vae, held, found)[0],
            "gap": between.gap,
            "monotone": between.monotone,
        }
        tensors = {name: torch.tensor(value, dtype=torch.double) for name, value in values.items()}
        return tensors | {"divergence": found.divergence.mean(0), "variance": found.variance}

    def _perplexities(self, nats: float) -> dict[str, float]:
        """Of all held-out texts: `exp(nats / tokens)`, what ends a text among them, and by word."""
        return {
            "ppl": math.exp(min(nats / self._tokens, GREATEST)),
            "ppl_word": math.exp(min(nats / self._reading.words, GREATEST)),
        }

    def _seed(self, key: str) -> int:
        return int(torch.randint(2**62, (1,), generator=self._context.generator(f"weights/{key}")))

    def _pretrained(self, vae: Vae, seed: int, steps: int) -> None:
        """Phase 1: trained once from each seed, for all recipes that begin with it."""
        decoder = vae.own_decoder() if vae.recipe.reset_decoder else {}
        name = "phase 1"
        if seed not in self._phase1:
            training = self._train(vae, vae.pretraining_loss, f"{name}/{seed}", steps)
            self._phase1[seed] = {key: each.detach().clone() for key, each in vae.named_parameters()}
            self._keep_losses(name, seed, training, 0)
        with torch.no_grad():
            for key, each in vae.named_parameters():
                each.copy_(self._phase1[seed][key])
        vae.reset_decoder(decoder)

    def _trained(self, module: Language, loss: Loss, row: Row, steps: int, before: int) -> None:
        """Train it after so many steps of phase 1, and begin its row."""
        training = self._train(module, loss, f"{row['name']}/{row['seed']}", steps)
        module.requires_grad_(False)
        row |= {
            "parameters": sum(each.numel() for each in module.parameters()),
            "steps": before + training.steps,
            "loss": float(training.losses[-max(1, training.steps // 20) :].double().mean()),
        }
        self._keep_losses(str(row["name"]), int(row["seed"]), training, before)
        self._result.tables["trained"].append(row)

    def _train(self, module: Language, loss: Loss, key: str, steps: int) -> Training:
        texts, options = self._reading.training, self._options
        size, share = min(options.batch, len(texts)), steps / options.steps
        order = Order(len(texts), self._seed(f"order/{key}"))
        seconds = None if options.seconds is None else options.seconds * share
        own = options.model_copy(update={"steps": steps, "seconds": seconds})
        return train(module, loss, lambda number: texts[order.batch(number, size)], own, self._context, key)

    def _keep_losses(self, name: str, seed: int, training: Training, before: int) -> None:
        self._result.seconds[f"training {name}, seed {seed}"] = training.seconds
        self._result.tables["losses"] += [
            {"name": name, "seed": seed, "step": before + step, "loss": loss} for step, loss in training.curve()
        ]
