"""Walkers know nothing of each other: of what stands beside them in a batch, of padding, of interrupts."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit.runs import execute, resolve, resume
from probekit_plugins.clamped_walk import ClampedWalkOptions
from probekit_plugins.clamped_walk.strides import Clamped
from probekit_plugins.null_space_walk import NullSpaceWalkOptions
from probekit_plugins.null_space_walk.strides import NullSpace, RandomDirection
from probekit_plugins.orthogonal_walk import OrthogonalWalkOptions
from probekit_plugins.orthogonal_walk.strides import Orthogonal, Random
from probekit_plugins.walks.walkers import Walkers

IDS, LONGER, SHORTER = [5, 17, 2, 40], [9, 33, 1, 50, 28, 7, 7], [12]
WIDTH = 24
OPTIONS: dict[str, dict[str, Any]] = {
    "orthogonal-walk": {},
    "clamped-walk": {"inner": [3]},
    "null-space-walk": {"iterations": 6, "correction_iterations": 5, "directions": 2, "relinearise": 2},
}
# Ways to walk that differ in how the rows of a batch are computed.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "orthogonal": ("orthogonal-walk", {}),
    "orthogonal, each position": ("orthogonal-walk", {"broadcast": False}),
    "orthogonal, last row": ("orthogonal-walk", {"direction": "svd-last"}),
    "orthogonal, random rows": ("orthogonal-walk", {"direction": "svd-random", "broadcast": False}),
    "clamped": ("clamped-walk", OPTIONS["clamped-walk"]),
    "null space": ("null-space-walk", OPTIONS["null-space-walk"]),
    # More than the one token has entries, fewer than the others.
    "null space, more iterations": ("null-space-walk", {"iterations": WIDTH + 6, "correction_iterations": WIDTH + 4}),
}


def gpt2(dtype: torch.dtype = torch.float64) -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60,
        n_positions=16,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return probekit.Subject(GPT2LMHeadModel(config).to(dtype).eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def walked(name: str, subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    kind = probekit.Plugins().analysis(name)
    ids = [subject.check_ids(given) for given in prompts or (IDS,)]
    given = [probekit.Prompt("", each, subject.tokens(each)) for each in ids]
    settings = {"steps": 2, "walkers": 2, "noise_draws": 1, **options}
    result: probekit.Result = kind(kind.options_model(**settings), probekit.Context(seed, name)).run(subject, given)
    return result


def tracks_of(result: probekit.Result) -> list[str]:
    return [str(track) for track in dict.fromkeys(row["track"] for row in result.tables["walkers"])]


# --- each walker for itself ------------------------------------------------------------------------------------------

FIGURES = ("embeddings", "input_l1", "output_l2", "noise_l1", "product")


def assert_same_paths(
    subject: probekit.Subject, one: probekit.Result, other: probekit.Result, prompt: int, walkers: int
) -> None:
    """What the first walkers of a prompt did, to a millionth of how far they went."""
    start = subject.embed(torch.tensor([(IDS, LONGER, SHORTER)[prompt]]))
    for track, name in product(tracks_of(one), FIGURES):
        prefix = f"{prompt}/block.1/{track}"
        found, expected = one.tensors[f"{prefix}/{name}"], other.tensors[f"{prefix}/{name}"]
        if name == "embeddings":
            found, expected = found[:walkers] - start, expected[:walkers] - start
        else:
            found, expected = found[:, :walkers], expected[:, :walkers]
        tolerance = max(1e-6 * float(expected.abs().max()), 1e-12)
        assert float((found - expected).abs().max()) <= tolerance, f"{track}: {name}"


@pytest.mark.parametrize("beside", [[LONGER], [SHORTER], [LONGER, SHORTER]], ids=["longer", "shorter", "both"])
@pytest.mark.parametrize("way", WAYS)
def test_a_walk_does_not_depend_on_the_prompts_beside_it(
    way: str, beside: list[list[int]], subject: probekit.Subject
) -> None:
    name, options = WAYS[way]
    alone = walked(name, subject, IDS, **options)
    assert_same_paths(subject, walked(name, subject, IDS, *beside, **options), alone, 0, 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_walk_does_not_depend_on_the_walkers_beside_it(way: str, subject: probekit.Subject) -> None:
    name, options = WAYS[way]
    alone = walked(name, subject, IDS, walkers=1, **options)
    assert_same_paths(subject, walked(name, subject, IDS, walkers=4, **options), alone, 0, 1)


@pytest.mark.parametrize("way", WAYS)
def test_batches_of_any_size_give_the_same(way: str, subject: probekit.Subject) -> None:
    name, options = WAYS[way]
    whole = walked(name, subject, IDS, LONGER, SHORTER, **options)
    split = walked(name, subject, IDS, LONGER, SHORTER, rows_at_once=1, **options)
    for prompt in range(3):
        assert_same_paths(subject, split, whole, prompt, 2)


@pytest.mark.parametrize(
    "kind", ["orthogonal", "each position", "rows", "random", "clamped", "null space", "direction"]
)
def test_padding_never_moves(kind: str, subject: probekit.Subject) -> None:
    ids = [subject.check_ids(given) for given in (SHORTER, LONGER)]
    prompts = [probekit.Prompt("", each, subject.tokens(each)) for each in ids]
    walkers = Walkers(subject, prompts, "block.1", 2, probekit.Context())
    null = NullSpaceWalkOptions(iterations=4, correction_iterations=4)
    stride = {
        "orthogonal": lambda: Orthogonal(walkers, OrthogonalWalkOptions()),
        "each position": lambda: Orthogonal(walkers, OrthogonalWalkOptions(broadcast=False)),
        "rows": lambda: Orthogonal(walkers, OrthogonalWalkOptions(broadcast=False, direction="svd-first")),
        "random": lambda: Random(walkers, OrthogonalWalkOptions()),
        "clamped": lambda: Clamped(walkers, ClampedWalkOptions(), 0.1, 3),
        "null space": lambda: NullSpace(walkers, null),
        "direction": lambda: RandomDirection(walkers, null),
    }[kind]()
    for step in range(2):
        moved = stride(walkers.embeddings, step)
        assert bool((moved[:2, len(SHORTER) :] == 0).all())
        assert bool((moved[:2, : len(SHORTER)] != 0).any(-1).all())
        assert bool((moved[2:] != 0).any(-1).all())
    noise = walkers.noise(walkers.generators("noise"))
    assert bool((noise[:2, len(SHORTER) :] == 0).all())
    assert bool((walkers.displacement(torch.randn(walkers.target.shape))[:2, len(SHORTER) :] == 0).all())
    torch.testing.assert_close(walkers.loss(walkers.embeddings), torch.zeros(4).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_gives_the_same_bits_and_another_other_walks(name: str, subject: probekit.Subject) -> None:
    first, again, other = (walked(name, subject, IDS, SHORTER, seed=seed, **OPTIONS[name]) for seed in (7, 7, 8))
    assert first.encode() == again.encode()
    for track in tracks_of(first):
        paths = [result.tensors[f"0/block.1/{track}/embeddings"] for result in (first, other)]
        assert not torch.allclose(paths[0], paths[1], atol=1e-6)
        assert not torch.allclose(paths[0][0], paths[0][1], atol=1e-6), "nor do two walkers go the same way"


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_that_are_conditioned_on_ids_keep_their_own(
    name: str, subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks read the token ids again, part of a batch is given the ids of its own rows, and a note says so."""
    plain = walked(name, subject, IDS, SHORTER, rows_at_once=3, **OPTIONS[name])
    monkeypatch.setattr(subject, "reads_ids", lambda site: True)
    monkeypatch.setattr(subject, "_reading", {"block.1": True})
    given: list[list[list[int]]] = []
    layer_map = subject.layer_map

    def watched(site: str, input_ids: torch.Tensor | None = None, **rest: Any) -> Any:
        assert input_ids is not None
        given.append(input_ids.tolist())
        return layer_map(site, input_ids=input_ids, **rest)

    monkeypatch.setattr(subject, "layer_map", watched)
    conditioned = walked(name, subject, IDS, SHORTER, rows_at_once=3, **OPTIONS[name])
    for key, tensor in plain.tensors.items():
        assert torch.equal(conditioned.tensors[key], tensor), key
    rows = [[row[: len(ids)] for row, ids in zip(batch, (IDS, IDS, SHORTER), strict=True)] for batch in given[2:3]]
    assert rows == [[IDS, IDS, SHORTER]], "the first part of the batch"
    assert [note.startswith("Conditioned on ids") for note in conditioned.notes] == [True]
    assert plain.notes == []


# --- runs that survive -----------------------------------------------------------------------------------------------

RUN = Path("run")  # relative, so that no two runs differ in their paths


class At:
    """A listener that interrupts at the n-th sign of progress."""

    def __init__(self, moment: int) -> None:
        self.moment, self.seen = moment, 0

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.seen += 1
        if self.seen == self.moment:
            signal.raise_signal(signal.SIGINT)

    def message(self, text: str) -> None:
        pass


def begin(model: Path, listener: At | None = None) -> None:
    plugins = probekit.Plugins()
    sizes = {"steps": 5, "walkers": 2, "record_every": 2, "noise_draws": 1, "rows_at_once": 3}
    values = {
        "model": {"name": str(model)},
        "plugins": list(OPTIONS),
        "prompts": ["The sky is blue.", "Once"],
        "options": {name: {**sizes, **options} for name, options in OPTIONS.items()},
    }
    execute(resolve([("test", values)], plugins), plugins, RUN, listener, (), 1000.0)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


@pytest.fixture(scope="module")
def whole(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run of all walks writes: 3 × 2 tracks × 2 batches × 5 steps."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)
        counted = At(0)
        begin(tiny_gpt2(), counted)
    assert counted.seen == 60
    return contents(folder / RUN)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(8, id="orthogonal, second batch"),
        pytest.param(21, id="clamped, once its rate is chosen"),
        pytest.param(41, id="null space, between linearisations"),
        pytest.param(48, id="null space, second batch"),
        pytest.param(60, id="the last step"),
    ],
)
def test_an_interrupted_walk_is_resumed_to_the_byte(
    moment: int,
    whole: dict[str, bytes],
    tiny_gpt2: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)
    with pytest.raises(KeyboardInterrupt):
        begin(tiny_gpt2(), At(moment))
    states = json.loads((RUN / "run.json").read_text())["analyses"]
    assert [entry["status"] for entry in states.values()].count("done") == (moment - 1) // 20
    again = At(0)
    assert resume(RUN, probekit.Plugins(), again).status == "done"
    assert again.seen == 60 - moment, "what was done is not done again"
    found = contents(RUN)
    assert sorted(found) == sorted(whole)
    assert [name for name in found if found[name] != whole[name]] == []
