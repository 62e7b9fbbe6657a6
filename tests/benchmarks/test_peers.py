"""The sides that are compared: those that are installed agree on tiny models, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from benchmarks.comparison import ROUNDING, Prepared, compare
from benchmarks.layer_map_step import descending, prompt
from benchmarks.outcome import Outcome
from benchmarks.peers import PEERS, Absent, Model, Peer, known, sides
from benchmarks.shapes import SHAPES
from probekit.testing import fingerprint

INSTALLED = [each.name for each in PEERS if each.package is None or find_spec(each.package) is not None]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.name)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with request.param.model(quick=True) as made:
        yield made


@pytest.fixture(scope="module")
def peers(model: Model) -> list[Peer | Absent]:
    return sides(model, prompt(model))


def there(peers: list[Peer | Absent]) -> list[Peer]:
    return [peer for peer in peers if not isinstance(peer, Absent)]


def test_every_side_that_is_installed_is_made(peers: list[Peer | Absent]) -> None:
    assert len(peers) == len(PEERS)
    assert [peer.title for peer in peers if isinstance(peer, Absent)] == [
        each.name for each in PEERS if each.name not in INSTALLED
    ]
    assert [peer.role for peer in peers[:3]] == ["floor", "probekit", "peer"]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_sides_agree_on_the_layer_map_and_its_gradient(model: Model, peers: list[Peer | Absent], blocks: int) -> None:
    before = fingerprint(model.module)
    prepare = descending(model, prompt(model), blocks, restarts=2)
    floor, *others = [(peer.title, prepare(peer).result) for peer in there(peers)]
    assert floor[1][0].shape == (2, 5, 48)
    assert floor[1][1].abs().min() > 0  # a gradient at every entry
    for title, result in others:
        for mine, theirs in zip(result, floor[1], strict=True):
            assert (mine - theirs).abs().max() <= ROUNDING * theirs.abs().max(), title
    assert fingerprint(model.module) == before


@pytest.mark.parametrize("blocks", [[0], [2], [0, 1, 2]], ids=str)
def test_sides_agree_on_what_is_captured(model: Model, peers: list[Peer | Absent], blocks: list[int]) -> None:
    before = fingerprint(model.module)
    whole = model.module(input_ids=prompt(model), use_cache=False)
    floor, *others = [(peer.title, list(peer.capture(blocks)())) for peer in there(peers)]
    for title, found in others:
        assert len(found) == len(blocks)
        for mine, theirs in zip(found, floor[1], strict=True):
            assert not mine.requires_grad, title
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5, msg=title)
    assert torch.equal(model.module(input_ids=prompt(model), use_cache=False).logits, whole.logits)
    assert fingerprint(model.module) == before


def test_a_peer_that_is_not_installed_is_left_out_with_its_reason(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "find_spec", lambda package: None)
    found = sides(model, prompt(model))
    absent = {peer.title: peer.reason for peer in found if isinstance(peer, Absent)}
    assert absent.keys() == {"nnsight", "TransformerLens", "HookedTransformer", "pyvene"}
    assert absent["pyvene"] == "not installed; `pip install pyvene` adds it"
    outcome = Outcome("")
    compare(outcome, "a step", found, descending(model, prompt(model), 1), rounds=1, warmup=0)
    [table] = outcome.comparisons
    assert {row.side: row.left_out for row in table.rows if row.left_out} == absent
    assert outcome.failures == []


def test_a_peer_that_breaks_while_it_is_made_is_left_out_and_is_a_failure(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = known.Known("broken", "no_such_module", "Maker", "json", "json")
    monkeypatch.setattr(known, "PEERS", (*PEERS[:2], broken))
    found = sides(model, prompt(model))
    assert isinstance(found[2], Absent)
    assert found[2].reason.startswith("failed: ModuleNotFoundError: No module named")
    outcome = Outcome("")

    def prepare(peer: Peer) -> Prepared:
        return Prepared(lambda: None, [torch.zeros(1)])

    compare(outcome, "nothing", found, prepare, rounds=1, warmup=0)
    [failure] = outcome.failures
    assert failure.startswith("nothing: broken: failed: ModuleNotFoundError")
