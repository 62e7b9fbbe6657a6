"""What is measured of an autoencoder on held-out examples, as tensors of the result. It needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import TokenSequence
from probekit_plugins.autoencoder import figures
from probekit_plugins.autoencoder.features import shown
from probekit_plugins.autoencoder.labels import clusters, frequent
from probekit_plugins.autoencoder.modules import Autoencoder, Contrastive, Variational
from probekit_plugins.autoencoder.rows import SCATTERED, thinned

if TYPE_CHECKING:
    from probekit_plugins.autoencoder.bench import Bench, Row, Trained


def describe(at: Bench, trained: Trained) -> None:
    """What is measured on held-out examples and needs no model."""
    module, x = trained.module, at.held
    if isinstance(module, Contrastive):
        found = retrieval_of(at, module, trained.seed)
        at.keep(trained.name, nearest=found.nearest, distances=found.distances, potentials=found.potentials)
        _score(at, trained, figures.in_parts(module.encode, x[:, 0], at.device))
        return
    assert isinstance(module, Autoencoder)
    codes = figures.in_parts(module.encode, x[:, 0], at.device)
    decoded = figures.in_parts(module.decode, codes, at.device)
    order = torch.randperm(len(codes), generator=at.context.generator(f"shuffled/{at.name}/{trained.name}"))
    shuffled = figures.in_parts(module.decode, codes[order], at.device)
    at.keep(
        trained.name,
        squared_errors=figures.squared_errors(x[:, 0], decoded),
        squared_errors_shuffled=figures.squared_errors(x[:, 0], shuffled),
    )
    trained.about["code"] = codes.shape[1]
    sparse = trained.setting.sparse if trained.setting is not None else bool((codes == 0).double().mean() > 0.1)
    if sparse:
        _sparse(at, trained, codes)
    else:
        _score(at, trained, codes)
    if isinstance(module, Variational):
        posterior = figures.posterior(module, x[:, 0], at.device)
        parts = (posterior.divergence, posterior.variance_of_means, posterior.mean, posterior.variance)
        at.keep(trained.name, posterior=torch.stack(parts))


def retrieval_of(at: Bench, module: Contrastive, seed: int) -> figures.Retrieval:
    held = at.held.to(at.device)
    one, other = figures.two_views(module, held, seed)
    return figures.retrieval(one.cpu(), other.cpu())


def _score(at: Bench, trained: Trained, codes: torch.Tensor) -> None:
    """Clusters of codes beside labels, and a scatter of the first seed's."""
    chosen = torch.arange(min(len(codes), SCATTERED))
    if at.labels is not None:
        labels = at.labels.of(torch.cat([document.about for document in at.examples.held_out]))
        often = frequent(labels)
        if len(often):
            at.keep(None, labels=labels[often])
            found = clusters(codes[often], labels[often], trained.seed)
            if found is not None:
                at.keep(trained.name, clusters=found.int())
            chosen = thinned(often)
            at.keep_labels(labels[chosen])
    if trained.seed == 0 and min(codes.shape) > 1:  # one example, or one dimension, is no plane
        centred = codes.double() - codes.double().mean(0)
        first_two = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        at.keep(trained.name, scatter=centred[chosen] @ first_two.T)


def _sparse(at: Bench, trained: Trained, codes: torch.Tensor) -> None:
    module = trained.module
    assert isinstance(module, Autoencoder)
    counts = figures.times_active(module.encode, at.examples.training[:, 0], at.device)
    at.keep(trained.name, active=(codes != 0).sum(1).int(), times_active=counts.int())
    if trained.seed:
        return
    generator = at.context.generator(f"features/{at.name}/{trained.name}")
    found = shown(module.encode, at.examples.held_out, at.device, generator)
    at.keep(trained.name, energy=found.energy)
    for number, contexts in found.contexts.items():
        for rank, seen in enumerate(contexts):
            at.keep(f"{trained.name}/{number}/{rank}", contexts=torch.tensor(seen.values))
            labels: Row = {"site": at.name, "name": trained.name, "feature": number, "rank": rank}
            labels |= {"peak": seen.peak, "document": seen.document}
            sequence = TokenSequence(seen.ids, at.examples.token_texts(seen.ids), labels)
            at.result.sequences.setdefault("contexts", []).append(sequence)
