"""The figures of an autoencoder on held-out examples, as rows of the result. They need no model."""

from __future__ import annotations

import torch

from probekit import TokenSequence
from probekit_plugins.autoencoder import figures
from probekit_plugins.autoencoder.bench import Bench, Row, Trained
from probekit_plugins.autoencoder.features import histogram, shown
from probekit_plugins.autoencoder.labels import agreement, frequent
from probekit_plugins.autoencoder.modules import Autoencoder, Contrastive, Variational

# Points of a scatter of codes.
SCATTERED = 400


def describe(at: Bench, trained: Trained) -> None:
    """The figures on held-out examples that need no model."""
    module, row, x = trained.module, trained.row, at.held
    if isinstance(module, Contrastive):
        found = retrieval_of(at, module, trained.seed)
        row |= {"retrieval": found.top1, "among": found.among}
        row |= {"alignment": found.alignment, "uniformity": found.uniformity}
        _score(at, trained, figures.in_parts(module.encode, x[:, 0], at.device))
        return
    assert isinstance(module, Autoencoder)
    codes = figures.in_parts(module.encode, x[:, 0], at.device)
    decoded = figures.in_parts(module.decode, codes, at.device)
    order = torch.randperm(len(codes), generator=at.context.generator(f"shuffled/{at.name}/{trained.name}"))
    shuffled = figures.in_parts(module.decode, codes[order], at.device)
    row |= {
        "fve": figures.fraction_of_variance(x[:, 0], decoded),
        # The failing control: codes of other tokens.
        "fve_shuffled": figures.fraction_of_variance(x[:, 0], shuffled),
        "error": figures.root_mean_square(x[:, 0], decoded),
    }
    sparse = trained.setting.sparse if trained.setting is not None else bool((codes == 0).double().mean() > 0.1)
    if sparse:
        _sparse(at, trained, codes)
    else:
        row["code"] = codes.shape[1]
        _score(at, trained, codes)
    if isinstance(module, Variational):
        _variational(at, trained, module)


def retrieval_of(at: Bench, module: Contrastive, seed: int) -> figures.Retrieval:
    held = at.held.to(at.device)
    one, other = figures.two_views(module, held, seed)
    return figures.retrieval(one.cpu(), other.cpu())


def _score(at: Bench, trained: Trained, codes: torch.Tensor) -> None:
    """Clusters of codes against labels, and a scatter of the first seed's."""
    about = torch.cat([document.about for document in at.examples.held_out])
    chosen = torch.arange(min(len(codes), SCATTERED))
    texts = [""] * len(chosen)
    if at.labels is not None:
        labels = at.labels.of(about)
        often = frequent(labels)
        if len(often):
            trained.row["agreement"] = agreement(codes[often], labels[often], trained.seed)
            chosen = often[:: max(1, len(often) // SCATTERED)][:SCATTERED]
            texts = [at.labels.text(label, at.examples) for label in labels[chosen].tolist()]
    if trained.seed == 0 and min(codes.shape) > 1:  # one example, or one dimension, is no plane
        centred = codes.double() - codes.double().mean(0)
        first_two = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        points = centred[chosen] @ first_two.T
        at.result.tables.setdefault("scatter", []).extend(
            {"site": at.name, "name": trained.name, "x": x, "y": y, "label": text}
            for (x, y), text in zip(points.tolist(), texts, strict=True)
        )


def _sparse(at: Bench, trained: Trained, codes: torch.Tensor) -> None:
    module = trained.module
    assert isinstance(module, Autoencoder)
    found = figures.sparsity(module.encode, at.examples.training[:, 0], at.device)
    trained.row.update(
        {
            "code": codes.shape[1],
            "l0": float((codes != 0).double().sum(1).mean()),
            "dead": found.dead,
        }
    )
    if trained.seed:
        return
    where = {"site": at.name, "name": trained.name}
    tables = at.result.tables
    tables.setdefault("density", []).extend(
        where | {"from": low, "to": high, "features": count} for low, high, count in histogram(found.density)
    )
    generator = at.context.generator(f"features/{at.name}/{trained.name}")
    for feature in shown(module.encode, at.examples.held_out, found.density, at.device, generator):
        about = where | {"feature": feature.number}
        tables.setdefault("features", []).append(
            about | {"density": feature.density, "greatest": feature.greatest, "drawn": feature.drawn}
        )
        for rank, seen in enumerate(feature.contexts):
            key = f"contexts/{at.name}/{trained.name}/{feature.number}/{rank}"
            at.result.tensors[key] = torch.tensor(seen.values)
            labels: Row = about | {"rank": rank, "peak": seen.peak, "document": seen.document}
            sequence = TokenSequence(seen.ids, at.examples.token_texts(seen.ids), labels)
            at.result.sequences.setdefault("contexts", []).append(sequence)


def _variational(at: Bench, trained: Trained, module: Variational) -> None:
    found = figures.posterior(module, at.held[:, 0], at.device)
    trained.row.update(
        {
            "kl": float(found.divergence.sum()),
            "active_units": found.active,
            "aggregate_kl": float(found.aggregate.sum()),
        }
    )
    if trained.seed == 0:
        columns = zip(
            found.divergence.tolist(),
            found.variance_of_means.tolist(),
            found.mean.tolist(),
            found.variance.tolist(),
            strict=True,
        )
        at.result.tables.setdefault("dimensions", []).extend(
            {
                "site": at.name,
                "name": trained.name,
                "dimension": dimension,
                "kl": divergence,
                "variance_of_means": spread,
                "mean": mean,
                "variance": variance,
            }
            for dimension, (divergence, spread, mean, variance) in enumerate(columns)
        )
