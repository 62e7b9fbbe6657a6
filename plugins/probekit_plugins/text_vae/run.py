"""A whole run: every autoencoder and what stands beside it trained with each seed, and measured on held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result, TokenSequence
from probekit_plugins.corpus import corpus
from probekit_plugins.order import Order
from probekit_plugins.text_vae import figures
from probekit_plugins.text_vae.checks import check
from probekit_plugins.text_vae.examples import keep_examples
from probekit_plugins.text_vae.made import BESIDE, Maker
from probekit_plugins.text_vae.recipe import Recipe, recipes
from probekit_plugins.text_vae.summary import notes
from probekit_plugins.text_vae.tables import PHASE_1, TEXTS, fill, of, padded
from probekit_plugins.text_vae.vae import Language, Vae
from probekit_plugins.trainer import train

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.text_vae import TextVaeOptions
    from probekit_plugins.text_vae.reading import Batch, Reading
    from probekit_plugins.trainer import Step, Training

Row = dict[str, Any]
Loss = Callable[["Batch", "Step"], torch.Tensor]


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
    result = Result(tensors={TEXTS: padded(reading.held_out.decoder.rows())})
    bench = _Bench(maker, reading, options, context, result)
    for recipe in chosen:
        for seed in range(options.seeds):
            bench.autoencoder(recipe, seed)
    for name in ("no-z", "lstm"):
        if name in options.beside:
            for seed in range(options.seeds):
                bench.language(name, seed)
    about: dict[str, Any] = {"texts": len(reading.training), "words": reading.words}
    result.sequences["about"] = [TokenSequence([], [], {**about, "ends": len(maker.decoder_reader.end)})]
    fill(result, options)
    result.notes += notes(result, found.source, options)
    return result


class _Bench:
    """Trains and measures one after the other; each becomes a row of the table `trained`."""

    def __init__(
        self, maker: Maker, reading: Reading, options: TextVaeOptions, context: Context, result: Result
    ) -> None:
        self._maker, self._reading, self._options = maker, reading, options
        self._context, self._result = context, result
        self._phase1: dict[int, dict[str, torch.Tensor]] = {}

    def autoencoder(self, recipe: Recipe, seed: int) -> None:
        """One autoencoder, from this seed."""
        key = f"{recipe.name}/{seed}"
        vae = self._maker.vae(recipe, self._seed(f"autoencoder/{seed}"))
        first = min(round(recipe.pretraining * self._options.steps), self._options.steps - 1)  # phase 2 has one
        if first:
            self._pretrained(vae, seed, first)
        labels: Row = {"name": recipe.name, "kind": recipe.kind, "seed": seed}
        labels |= {"free_bits": recipe.free_bits, "latent": recipe.latent}
        self._trained(vae, vae.loss, labels, self._options.steps - first, first)
        self._keep(recipe.name, seed, self._context.stage(f"held out/{key}", lambda: self._measured(vae, key)))
        if seed == 0:
            keep_examples(vae, recipe.name, self._reading, self._maker, self._options, self._context, self._result)

    def language(self, name: str, seed: int) -> None:
        """A language model without z."""
        key = f"{name}/{seed}"
        made = self._maker.lstm if name == "lstm" else self._maker.language
        model = made(self._seed(key))
        self._trained(model, model.loss, {"name": name, "kind": "beside", "seed": seed}, self._options.steps, 0)
        held = self._reading.held_out
        self._keep(name, seed, self._context.stage(f"held out/{key}", lambda: {"nll": figures.nll(model, held)}))

    def _keep(self, name: str, seed: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self._result.tensors |= {of(what, name, seed): tensor for what, tensor in tensors.items()}

    def _measured(self, vae: Vae, key: str) -> dict[str, torch.Tensor]:
        held, options = self._reading.held_out, self._options
        found = figures.latents(vae, held)

        def generator(purpose: str) -> torch.Generator:
            return self._context.generator(f"{purpose}/{key}")

        label = f"measuring {key}"
        with self._context.progress(label, options.importance_samples) as progress:
            weights = figures.importance(
                vae, held, found, options.importance_samples, generator("importance"), progress.step
            )
        return {
            "importance": weights,
            "nll_given_z": figures.use(vae, held, found, generator("use")).nll,
            "preference": figures.interpolation(vae, held, found, options.interpolation_steps).preference,
            # In single precision, as the encoder gives them.
            "mean": found.mean.float(),
            "log_variance": found.log_variance.float(),
            "information": figures.information(found, generator("mutual information")),
            "written": padded(figures.again(vae, held, found)),
        }

    def _seed(self, key: str) -> int:
        return int(torch.randint(2**62, (1,), generator=self._context.generator(f"weights/{key}")))

    def _pretrained(self, vae: Vae, seed: int, steps: int) -> None:
        """Phase 1: trained once from each seed, for all recipes that begin with it."""
        decoder = vae.own_decoder() if vae.recipe.reset_decoder else {}
        name = PHASE_1
        if seed not in self._phase1:
            training = self._train(vae, vae.pretraining_loss, f"{name}/{seed}", steps)
            self._phase1[seed] = {key: each.detach().clone() for key, each in vae.named_parameters()}
            self._keep_training({"name": name, "seed": seed}, training, 0)
        with torch.no_grad():
            for key, each in vae.named_parameters():
                each.copy_(self._phase1[seed][key])
        vae.reset_decoder(decoder)

    def _trained(self, module: Language, loss: Loss, labels: Row, steps: int, before: int) -> None:
        """Train it after so many steps of phase 1."""
        training = self._train(module, loss, f"{labels['name']}/{labels['seed']}", steps)
        module.requires_grad_(False)
        labels["parameters"] = sum(each.numel() for each in module.parameters())
        self._keep_training(labels, training, before)

    def _train(self, module: Language, loss: Loss, key: str, steps: int) -> Training:
        texts, options = self._reading.training, self._options
        size, share = min(options.batch, len(texts)), steps / options.steps
        order = Order(len(texts), self._seed(f"order/{key}"))
        seconds = None if options.seconds is None else options.seconds * share
        own = options.model_copy(update={"steps": steps, "seconds": seconds})
        return train(module, loss, lambda number: texts[order.batch(number, size)], own, self._context, key)

    def _keep_training(self, labels: Row, training: Training, before: int) -> None:
        """What is told of a training, and its losses."""
        name, seed = labels["name"], labels["seed"]
        self._result.sequences.setdefault("trainings", []).append(TokenSequence([], [], {**labels, "before": before}))
        self._keep(name, seed, {"losses": training.losses.cpu()})
        self._result.seconds[f"training {name}, seed {seed}"] = training.seconds
