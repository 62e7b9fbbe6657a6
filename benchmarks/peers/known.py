"""Which sides there are, and those that are installed."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import NamedTuple

import torch
from transformers.utils import logging

from benchmarks.peers.peer import Absent, Model, NotPossibleError, Peer


class Known(NamedTuple):
    """Where a side is, and what it takes: a package that may not be installed."""

    name: str
    module: str
    maker: str
    package: str | None = None
    installed_as: str | None = None


PEERS = (
    Known("by hand", "by_hand", "ByHand"),
    Known("probekit", "with_probekit", "WithProbekit"),
    Known("bare hooks", "bare_hooks", "BareHooks"),
    Known("transformers", "plain_transformers", "PlainTransformers"),
    Known("nnsight", "with_nnsight", "WithNnsight", "nnsight", "nnsight"),
    Known("TransformerLens", "with_transformer_lens", "Bridge", "transformer_lens", "transformer-lens"),
    Known("HookedTransformer", "with_transformer_lens", "Hooked", "transformer_lens", "transformer-lens"),
    Known("pyvene", "with_pyvene", "WithPyvene", "pyvene", "pyvene"),
)


def sides(model: Model, input_ids: torch.Tensor, names: Sequence[str] | None = None) -> list[Peer | Absent]:
    """Every side, or those that are named, set up on a model and a prompt `[1, sequence]`.

    A peer that is not installed, does not know the model, or raises is Absent, with the reason.
    """
    found: list[Peer | Absent] = []
    for known in PEERS:
        if names is None or known.name in names:
            found.append(_side(known, model, input_ids))
    return found


def _side(known: Known, model: Model, input_ids: torch.Tensor) -> Peer | Absent:
    if known.package is not None and find_spec(known.package) is None:
        return Absent(known.name, not_installed(known.installed_as))
    if known.package is None:
        return made(known, model, input_ids)
    try:
        with quiet():
            return made(known, model, input_ids)
    except NotPossibleError as reason:
        return Absent(known.name, f"not possible: {reason}")
    except Exception as error:  # a peer that breaks must not end the others
        return Absent(known.name, f"failed: {said(error)}", failed=True)


def made(known: Known, model: Model, input_ids: torch.Tensor) -> Peer:
    """The side, its package imported only now."""
    maker: Callable[[Model, torch.Tensor], Peer] = getattr(
        import_module(f"benchmarks.peers.{known.module}"), known.maker
    )
    return maker(model, input_ids)


def not_installed(package: str | None) -> str:
    """The reason why a peer is left out that is not there."""
    return f"not installed; `pip install {package}` adds it"


def said(error: BaseException) -> str:
    """An exception in one line."""
    line = next(iter(str(error).splitlines()), "")
    return textwrap.shorten(f"{type(error).__name__}: {line}" if line else type(error).__name__, 200, placeholder=" …")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what a peer prints and warns of while it is set up, and without the progress of loading."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
