"""A whole run: every setting trained with each seed, measured on documents that it was not trained on, and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probekit import AnalysisError, Result, TokenSequence
from probekit_plugins.autoencoder import figures, saved
from probekit_plugins.autoencoder.bench import Bench, Row, Trained
from probekit_plugins.autoencoder.beyond import beyond
from probekit_plugins.autoencoder.measure import describe, retrieval_of
from probekit_plugins.autoencoder.modules import Autoencoder, Contrastive
from probekit_plugins.autoencoder.rows import fill, rows
from probekit_plugins.autoencoder.settings import Setting, check, made, settings
from probekit_plugins.autoencoder.summary import notes
from probekit_plugins.trainer import train

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.autoencoder import AutoencoderOptions
    from probekit_plugins.autoencoder.data import Data
    from probekit_plugins.trainer import Step

# What an autoencoder is not called: rows and lines beside its own are.
RESERVED = ("none", "prompt", "exact")


def run(data: Data, options: AutoencoderOptions, context: Context) -> Result:
    """Train, measure and save. Raises AnalysisError if there is nothing to train on, and as `train` does."""
    result = Result()
    collected = data.end()
    benches = [
        Bench(place, examples, options, context, result, data.source, data.saved) for place, examples in collected
    ]
    for at in benches:
        _check(at)
    for at in benches:
        _fill(at)
    fill(result, options)
    result.notes += notes([(place.name, examples) for place, examples in collected], data, options)
    return result


def _check(at: Bench) -> None:
    """Raise for what cannot be done there, before anything is trained."""
    _ = at.labels
    _saved(at)
    for setting in settings(at.place.variants, _width(at), at.options):
        check(setting, _width(at), at.options)


def _width(at: Bench) -> int:
    return at.examples.training.shape[-1]


def _saved(at: Bench) -> list[saved.Saved]:
    """The autoencoders that were trained before and are of this place, or of none that their file names."""
    if at.place.views != "token":
        return []
    own = [found for found in at.saved if found.site in ("", at.name)]
    for found in own:
        if found.width != _width(at):
            raise AnalysisError(
                f"The autoencoder '{found.name}' takes activations of width {found.width}, but those at {at.name} have "
                f"{_width(at)}; name the site that it belongs to."
            )
    return own


def _fill(at: Bench) -> None:
    """Everything that is trained on the examples of one place."""
    width = _width(at)
    place: Row = {"site": at.name, "width": width, **at.data}
    at.result.sequences.setdefault("places", []).append(TokenSequence([], [], place))
    chosen = list(settings(at.place.variants, width, at.options))
    found = [_trained(at, setting, seed, width) for setting in chosen for seed in range(at.options.seeds)]
    if at.place.views == "token":
        taken = {*RESERVED, *(setting.name for setting in chosen)}
        for each in _saved(at):
            found.append(_read(at, each, taken | {trained.name for trained in found}))
        held = at.held[:, 0]
        at.keep(
            None,
            spread=figures.squared_errors(held, held.double().mean(0)),
            principal=figures.Principal(at.examples.training[:, 0]).energies(held),
        )
        beyond(at, found)
    about = [TokenSequence([], [], each.about) for each in found]
    at.result.sequences.setdefault("trainings", []).extend(about)
    for trained, row in zip(found, rows(at.result, place, at.options), strict=True):
        _save(at, trained, row)


def _trained(at: Bench, setting: Setting, seed: int, width: int) -> Trained:
    name = f"{setting.name}-seed{seed}"
    key = f"{at.name}/{name}"
    drawn = int(torch.randint(2**62, (1,), generator=at.context.generator(f"weights/{key}")))
    examples, options = at.examples, at.options
    module, arguments = made(setting, width, examples.training.shape[1], options, drawn)
    module.to(at.device)
    assert isinstance(module, Autoencoder | Contrastive)
    module.prepare(examples.training)
    if isinstance(module, Contrastive):
        at.keep(name, nearest_untrained=retrieval_of(at, module, drawn).nearest)
    size = min(options.batch, len(examples.training))
    training = train(
        module, _loss(at, module), lambda number: examples.batch(number, size, drawn), options, at.context, key
    )
    module.requires_grad_(False)
    write: Callable[[Mapping[str, Any]], dict[str, bytes]] = partial(saved.files, setting.variant, arguments, module)
    used = module
    if setting.sparse:  # as it is read back: folded once, and not each time that it is called
        used, write = module.inference(), module.files  # type: ignore[operator, assignment]
    about: Row = {"site": at.name, "name": name, "variant": setting.variant, "size": setting.size, "seed": seed}
    about |= {"parameters": sum(each.numel() for each in module.parameters()), "batch": size}
    trained = Trained(name, setting, seed, used, about, write)
    at.keep(name, losses=training.losses.cpu())
    at.result.seconds[f"training {key}"] = training.seconds
    describe(at, trained)
    return trained


def _loss(at: Bench, module: Autoencoder | Contrastive) -> Callable[[torch.Tensor, Step], torch.Tensor]:
    training, device = at.examples.training, at.device
    if at.labels is None or not isinstance(module, Contrastive):
        return lambda rows, step: module.loss(training[rows].to(device), step)
    labels = at.labels.of(at.examples.about)
    return lambda rows, step: module.loss(training[rows].to(device), step, labels[rows].to(device))


def _save(at: Bench, trained: Trained, row: Row) -> None:
    if trained.write is None:
        return
    keep = {key: value for key, value in row.items() if isinstance(value, int | float)}
    subject = at.context.subject
    facts = {**({} if subject is None else {"name": _name(subject)}), **at.context.facts}
    about = saved.described(at.name, facts, at.options.skip_first, keep, at.data)
    for file, content in trained.write(about).items():
        at.result.files[f"{at.name}/{trained.name}/{file}"] = content


def _name(subject: Subject) -> str:
    """What the model is called: its name on the hub, or its folder's."""
    name = str(getattr(subject.model, "name_or_path", ""))
    return Path(name).name if Path(name).exists() else name


def _read(at: Bench, found: saved.Saved, taken: Set[str]) -> Trained:
    module = found.autoencoder.to(at.device)
    name, number = found.name, 1
    while name in taken:
        number += 1
        name = f"{found.name} ({number})"
    about: Row = {"site": at.name, "name": name, "variant": "saved", "size": None, "seed": None}
    trained = Trained(name, None, 0, module, about)
    describe(at, trained)
    return trained
