"""The exact inverter against the prefix scan, SIPIT and the source page's descent, and how its cost grows.

A turn is one prompt of 20 tokens, the same for every side of a round, another one in the next round. What a user gets
is the search and the proof; the proof holds every token against rivals, which no baseline does. The search alone ends
where a baseline ends: every activation matches. What is learnt once for a model, a site and a length is timed once,
and is added to what a user gets as if for one prompt, and for a hundred. The page's descent takes minutes and is not
in the rounds: it is given a limit, and where it does not get there within it the ratio is a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from benchmarks.inversion_baselines import Recovered, page_descent, prefix_scan, sipit
from benchmarks.inverters import learnt, targets_of
from benchmarks.measure import Side, Timings, alternate, by_round
from benchmarks.models import gpt2
from benchmarks.outcome import Figure, Outcome, Series, Settings
from benchmarks.texts import STORIES, cut, data, drawn, missing
from probekit_plugins.exact_inverter.recovery import Recovery
from probekit_plugins.exact_inverter.targets import Target

TOKENS = 20
TRAINED = ("demo", "stories260k", "tinystories-656k")
ROUNDS = 6
GOAL_SIPIT, GOAL_PAGE = 10.0, 100.0
OURS, SEARCH = "search and proof", "search alone"
SIPIT, SCAN, PAGE = "SIPIT", "prefix scan", "page's descent"
# The page's learning rate, and the one with which its descent is fastest to get there on GPT-2: with so many steps.
PAGES = {"η = 0.2, as on the page": (0.2, (500, 1000, 2000, 5000, 10_000)), "η = 0.002": (0.002, (2000, 2000, 2000))}
# Seconds that the descent is given: on a trained model, where it has not been seen to get there, and on GPT-2.
PAGE_SECONDS = {"trained": 10.0, "gpt2": 150.0}
# Fewer, since SIPIT takes long there.
ROUNDS_GPT2 = 3
# What cost is measured along.
LENGTHS = (10, 20, 50, 100, 200)
VOCABULARIES = (512, 2048, 8192, 32768, 50257)
PROMPTS = 4
COST = ("search, ms a token", "proof, ms a token", "candidates a token", "s to learn", "exact, %")


def trained(name: str) -> probekit.Subject | None:
    """A trained model, or None if it is not among the test data."""
    if name == "demo":
        return probekit.load("demo")
    path = data(f"models/{name}")
    return None if path is None else probekit.load(path)


def untrained(blocks: int, width: int, vocabulary: int) -> probekit.Subject:
    """A GPT-2 of that shape with random weights."""
    config = GPT2Config(n_layer=blocks, n_embd=width, n_head=4, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return probekit.Subject(GPT2LMHeadModel(config))


def prompts_for(subject: probekit.Subject, count: int, tokens: int) -> torch.Tensor:
    """Pieces of a text for a model that has a tokenizer, where the text is there, and random tokens for others."""
    path = data(STORIES)
    if subject.tokenizer is None or path is None:
        return drawn(subject, count, tokens)
    return cut(subject, path, count, tokens)


@dataclass
class Task:
    """The prompts of one model at one site, for sides that take one at each turn; and whatever was not exact."""

    subject: probekit.Subject
    site: str
    prompts: torch.Tensor
    wrong: dict[str, int] = field(default_factory=dict)
    search: list[float] = field(default_factory=list)  # seconds, turn by turn

    def __post_init__(self) -> None:
        self.targets = targets_of(self.subject, self.site, self.prompts)
        self.inverter = learnt(self.subject, self.site, self.targets, probekit.Context())
        self.learning = self.inverter.seconds

    def in_turns(self, name: str, recover: Callable[[Target, torch.Tensor], bool | None]) -> Callable[[], None]:
        """A step that recovers the next prompt each time; what was not exact is counted."""
        turn = 0

        def step() -> None:
            nonlocal turn
            place = turn % len(self.targets)
            turn += 1
            if not recover(self.targets[place], self.prompts[place]):
                self.wrong[name] = self.wrong.get(name, 0) + 1

        return step

    def ours(self, target: Target, _prompt: torch.Tensor) -> bool:
        """The search and the proof."""
        found, seconds = self.recovered(target)
        self.search.append(seconds)
        return found.ids == target.truth and all(verdict.status == "verified" for verdict in found.verdicts)

    def recovered(self, target: Target) -> tuple[Recovery, float]:
        """What was recovered of one prompt, and the seconds of all but the proof."""
        start = time.perf_counter()
        [found] = self.inverter.recover([target])
        return found, time.perf_counter() - start - found.seconds_of_proof

    def sipit(self, target: Target, prompt: torch.Tensor) -> bool | None:
        return sipit(self.subject, self.site, target.activations, prompt=prompt).exact

    def scan(self, target: Target, prompt: torch.Tensor) -> bool | None:
        return prefix_scan(self.subject, self.site, target.activations, prompt=prompt).exact

    def page(self, rate: float, schedules: Sequence[int], seconds: float) -> Recovered:
        """The page's descent on the first prompt, once."""
        return page_descent(
            self.subject,
            self.site,
            self.targets[0].activations,
            generator=torch.Generator().manual_seed(0),
            prompt=self.prompts[0],
            schedules=schedules,
            learning_rate=rate,
            seconds=seconds,
        )


def against(
    outcome: Outcome, label: str, task: Task, peers: Sequence[str], rounds: int, warmup: int, goals: dict[str, float]
) -> Timings:
    """Ours and these baselines by turns: their times, and each as a ratio to ours, with and without what is learnt."""
    recover = {OURS: task.ours, SIPIT: task.sipit, SCAN: task.scan}
    sides = [
        Side(name, "probekit" if name == OURS else "peer", task.in_turns(name, recover[name]))
        for name in (OURS, *peers)
    ]
    timings = alternate(sides, rounds, warmup)
    timings.seconds[SEARCH] = task.search[-rounds:]
    outcome.time(label, [*sides, Side(SEARCH, "probekit", lambda: None)], timings)
    outcome.figures.append(Figure(f"{label}: to learn, once", task.learning, unit="s"))
    for peer in peers:
        outcome.figure(f"{label}: {peer} / {OURS}", timings.ratio(peer, OURS), goals.get(peer), better="higher")
        outcome.figure(f"{label}: {peer} / {SEARCH}", timings.ratio(peer, SEARCH), better="higher")
        for count in (1, 100):
            whole = [seconds + task.learning / count for seconds in timings.seconds[OURS]]
            ratio = by_round(timings.seconds[peer], whole)
            outcome.figure(f"{label}: {peer} / {OURS}, learnt for {_prompts(count)}", ratio, better="higher")
    for name, count in task.wrong.items():
        outcome.notes.append(f"{label}: {name} was not exact in {count} of {warmup + rounds} turns.")
    return timings


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def against_page(outcome: Outcome, label: str, task: Task, ours: Timings, limit: float, goal: float | None) -> None:
    """The page's descent, once with each learning rate: its time, or the limit, over the medians of ours."""
    for what, (rate, schedules) in PAGES.items():
        found = task.page(rate, schedules, limit)
        bound = "" if found.exact else "at least, "

        def figure(
            side: str, seconds: Sequence[float], found: Recovered = found, what: str = f"{bound}{PAGE}, {what}"
        ) -> None:
            ratio = by_round([found.seconds] * len(seconds), seconds)
            # A lower bound below the goal says nothing about it.
            told = side == OURS and goal is not None and (found.exact or ratio.median >= goal)
            outcome.figure(f"{label}: {what} / {side}", ratio, goal if told else None, better="higher")

        figure(OURS, ours.seconds[OURS])
        figure(SEARCH, ours.seconds[SEARCH])
        for count in (1, 100):
            whole = [seconds + task.learning / count for seconds in ours.seconds[OURS]]
            figure(f"{OURS}, learnt for {_prompts(count)}", whole)
        if found.exact:
            how = f"got there in {found.seconds:.1f} s ({found.steps} steps)."
        else:
            right = mean(float(one == other) for one, other in zip(found.ids, task.prompts[0].tolist(), strict=True))
            how = (
                f"did not get there within {found.seconds:.0f} s ({found.steps} steps, {right:.0%} of the tokens right "
                "in the end): the ratio is a lower bound."
            )
        outcome.notes.append(f"{label}: {PAGE}, {what}, once, {how}")


def cost(subject: probekit.Subject, site: str, prompts: torch.Tensor) -> list[float]:
    """What the columns of `COST` say, over these prompts, each alone."""
    task = Task(subject, site, prompts)
    pairs = [task.recovered(target) for target in task.targets]
    found = [recovery for recovery, _ in pairs]
    tokens = prompts.numel()
    return [
        1e3 * sum(seconds for _, seconds in pairs) / tokens,
        1e3 * sum(each.seconds_of_proof for each in found) / tokens,
        sum(sum(each.tried) for each in found) / tokens,
        task.learning,
        100 * mean(float(each.ids == target.truth) for each, target in zip(found, task.targets, strict=True)),
    ]


def growth() -> list[Series]:
    """How cost grows with the length of a prompt, with the depth of the site, and with the vocabulary."""
    lengths: list[tuple[str, int, list[float]]] = []
    for name in TRAINED[:2]:
        subject = trained(name)
        for length in LENGTHS if subject else ():
            assert subject is not None
            lengths.append((name, length, cost(subject, "block.-1", prompts_for(subject, PROMPTS, length))))
    depths: list[tuple[str, int, list[float]]] = []
    for name, subject in {
        "demo": probekit.load("demo"),
        "untrained, d = 128, V = 2048": untrained(12, 128, 2048),
    }.items():
        for block, site in enumerate(subject.expand_sites("every-block")):
            depths.append((name, block, cost(subject, site, prompts_for(subject, PROMPTS, TOKENS))))
    vocabularies: list[tuple[str, int, list[float]]] = []
    for vocabulary in VOCABULARIES:
        subject = untrained(4, 256, vocabulary)
        found = cost(subject, "block.-1", prompts_for(subject, PROMPTS, TOKENS))
        vocabularies.append(("untrained, 4 blocks, d = 256", vocabulary, found))
    return [
        Series("by length, last block", "tokens", COST, lengths),
        Series("by depth, 20 tokens", "block", COST, depths),
        Series("by vocabulary, 20 tokens, last block", "tokens of the vocabulary", COST, vocabularies),
    ]


def run(settings: Settings) -> Outcome:
    """The trained models, GPT-2 at one block, and how cost grows; quickly, one trained model and a small GPT-2."""
    outcome = Outcome("The exact inverter")
    quick = settings.quick
    rounds, warmup = settings.rounds(ROUNDS), 0 if quick else 1
    for name in TRAINED[:1] if quick else TRAINED:
        subject = trained(name)
        if subject is None:
            outcome.notes.append(missing(f"models/{name}"))
            continue
        prompts = prompts_for(subject, rounds + warmup, TOKENS)
        last = "block.-1", {SIPIT: GOAL_SIPIT}
        for site, goals in (last,) if quick else (last, ("block.0", {})):
            task, label = Task(subject, site, prompts), f"{name}, {site}"
            timings = against(outcome, label, task, (SIPIT,) if quick else (SIPIT, SCAN), rounds, warmup, goals)
            if site == "block.-1" and not quick:
                against_page(outcome, label, task, timings, PAGE_SECONDS["trained"], None)
    model = untrained(1, 64, 512) if quick else gpt2()
    label = "a small untrained model, block.0" if quick else "untrained GPT-2, block.0"
    task = Task(model, "block.0", prompts_for(model, ROUNDS_GPT2, TOKENS))
    timings = against(outcome, label, task, (SIPIT,), settings.rounds(ROUNDS_GPT2), warmup, {})
    against_page(outcome, label, task, timings, 1.0 if quick else PAGE_SECONDS["gpt2"], GOAL_PAGE)
    if quick:
        found = cost(model, "block.0", prompts_for(model, 1, TOKENS))
        outcome.series.append(Series("by length, one block", "tokens", COST, [("untrained, d = 64", TOKENS, found)]))
    else:
        outcome.series += growth()
    return outcome
