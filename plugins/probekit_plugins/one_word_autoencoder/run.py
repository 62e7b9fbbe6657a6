"""A whole run: each number of vectors and each repulsion trained with each seed, and measured on held-out texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probekit import AnalysisError, Result, TokenSequence, UsageError
from probekit_plugins import copies, lora
from probekit_plugins.batches import Batches
from probekit_plugins.corpus import Corpus, corpus, end, start
from probekit_plugins.exact_inverter.tolerance import check_causal
from probekit_plugins.one_word_autoencoder.figures import UNTRAINED, first_kept, kept
from probekit_plugins.one_word_autoencoder.measure import Measured, expected, measured, memory, surprisal
from probekit_plugins.one_word_autoencoder.model import OneWord
from probekit_plugins.one_word_autoencoder.objective import loss
from probekit_plugins.one_word_autoencoder.summary import notes
from probekit_plugins.one_word_autoencoder.tables import LENGTHS, LOSSES, MEMORY, SURPRISAL, WANTED, fill
from probekit_plugins.one_word_autoencoder.wording import Wording, wording
from probekit_plugins.order import Order
from probekit_plugins.texts import beginning
from probekit_plugins.trainer import train

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions, Repulsion
    from probekit_plugins.trainer import Step

# Texts whose vectors' cosines the report draws.
DRAWN = 16


@dataclass(frozen=True)
class Setting:
    """What is trained: so many vectors, with this repulsion."""

    vectors: int
    repulsion: Repulsion

    @property
    def name(self) -> str:
        """Such as `1 vector` or `4 vectors, info-nce`."""
        count = f"{self.vectors} vector" + ("" if self.vectors == 1 else "s")
        return count if self.repulsion == "none" else f"{count}, {self.repulsion}"


@dataclass(frozen=True)
class _Bench:
    """What all trainings of a run share."""

    subject: Subject
    texts: Corpus
    site: str
    words: dict[int, Wording]
    options: OneWordAutoencoderOptions
    context: Context
    batches: Batches
    result: Result


def run(subject: Subject, prompts: Sequence[Prompt], options: OneWordAutoencoderOptions, context: Context) -> Result:
    """Train and measure. Raises UsageError for what cannot be done, before anything is trained."""
    site = _checked(subject, options)
    words = {count: wording(subject, options.prompts, count) for count in options.vectors}
    beside = max(each.longest + count for count, each in words.items()) - len(beginning(subject)) + 1
    texts = corpus(subject, prompts, options, context, beside)
    _check_padding(subject, texts, site)
    _check_segments(subject, texts, words, options)
    _check_order(subject, texts, site)
    batches = Batches(context, options)
    nats = surprisal(subject, texts.held_out, end(subject), context, batches)
    subject.check_finite(nats, "The surprisal of the texts")
    result = Result(tensors={WANTED: expected(texts.held_out, end(subject)).int(), LENGTHS: texts.held_out.lengths})
    result.tensors[SURPRISAL] = nats
    bench = _Bench(subject, texts, site, words, options, context, batches, result)
    for setting in _settings(options):
        for seed in range(options.seeds):
            _add(bench, setting, seed)
    about: dict[str, Any] = {"texts": len(texts.training), "source": texts.source}
    result.sequences["about"] = [TokenSequence([], [], {**about, "site": site, "width": subject.width})]
    fill(result, options)
    result.notes += [*batches.notes(), *notes(subject, texts, options)]
    return result


def _settings(options: OneWordAutoencoderOptions) -> Iterator[Setting]:
    for vectors in options.vectors:
        for kind in options.repulsion:
            yield Setting(vectors, kind)


def _checked(subject: Subject, options: OneWordAutoencoderOptions) -> str:
    """The site whose state is encoded. Raises UsageError if there is none, or if this model cannot be trained so."""
    what = "A one-word autoencoder"
    if options.training == "lora":
        lora.check(subject, f"{what} with LoRA")
    else:
        copies.check(subject, what)
    blocks = len(subject.anatomy.blocks)
    sites = subject.expand_sites(options.site or ("block.-2" if blocks > 1 else "block.0"))
    if len(sites) != 1:
        raise UsageError(f"A text is encoded at one site, but '{options.site}' are {len(sites)}; name one of them.")
    if subject.anatomy.sequence is not None:
        raise UsageError(f"{what} needs a model that reads texts of any length; this one reads one length only.")
    if any(subject.reads_ids(site) for site in (sites[0], "logits")):
        raise UsageError(
            "Blocks of this model read the token ids again, so that a vector cannot stand in the place of a token."
        )
    axes = subject.axes(sites[0])
    if len(axes) != 3 or axes[:2] != ("batch", "sequence"):
        raise UsageError(f"The site '{sites[0]}' has the axes {axes}; expected [batch, sequence, width].")
    return sites[0]


def _check_padding(subject: Subject, texts: Corpus, site: str) -> None:
    """Raise UsageError if texts have several lengths and the model takes no padding."""
    lengths = torch.cat([texts.training.lengths, texts.held_out.lengths])
    if bool((lengths != lengths[0]).any()) and not subject.takes_padding([site, "logits"]):
        raise UsageError(
            "This model takes no padding, so all texts must have as many tokens; give such texts, or let them be "
            "drawn: -o shortest=null."
        )


def _check_segments(
    subject: Subject, texts: Corpus, words: dict[int, Wording], options: OneWordAutoencoderOptions
) -> None:
    """Raise UsageError if the context has no room for a segment between the vectors before it and those behind it."""
    longest = max(texts.training.ids.shape[1], texts.held_out.ids.shape[1])
    if options.segment is None or longest <= options.segment or subject.context is None:
        return
    size = min(options.segment, longest - options.segment)  # of those behind the first
    for count, each in words.items():
        beside = sum(map(len, each.again)) + 2 * count
        if beside + size > subject.context:
            raise UsageError(
                f"Around a segment of {size} tokens stand {beside} others, the vectors before it and behind it among "
                f"them, but the model's context is {subject.context}; encode shorter segments (-o segment=…) or into "
                "fewer vectors (-o vectors=…)."
            )


def _check_order(subject: Subject, texts: Corpus, site: str) -> None:
    """Raise UsageError if the model sees what comes after a token, so that it would decode a text from the text, or
    if a position at the site has not seen the one before it.
    """
    row = torch.tensor(start(subject) + texts.held_out.rows()[0])
    found = subject.capture(row[None], ["logits", site])
    try:
        check_causal(subject, "logits", row, found["logits"][0])
    except AnalysisError:
        raise UsageError(
            f"{type(subject.model).__name__} also reads what comes after a token, so it would decode a text from the "
            "text itself; give a causal model."
        ) from None
    other = row.clone()
    other[-2] = (row[-2] + 1) % subject.vocabulary
    if torch.equal(subject.capture(other[None], [site])[site][:, -1], found[site][:, -1]):
        raise UsageError(
            f"At '{site}' a position has not seen the tokens before it, so no text can be encoded there; name a block "
            "(-o site=block.-1)."
        )


def _add(bench: _Bench, setting: Setting, seed: int) -> None:
    """Train this setting with this seed, and add its figures."""
    options, context, subject, held = bench.options, bench.context, bench.subject, bench.texts.held_out
    name = f"{setting.name}, seed {seed}"
    drawn = int(torch.randint(2**62, (1,), generator=context.generator(f"weights/{name}")))
    model = OneWord(subject, bench.words[setting.vectors], bench.site, setting.vectors, options, drawn)
    last, first = end(subject), start(subject)
    rest = (last, options, context, bench.batches)
    bench.result.tensors |= first_kept(measured(model, held, *rest, name + UNTRAINED), name + UNTRAINED)
    training = bench.texts.training
    order = Order(len(training), drawn)

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = training[order.batch(number, options.batch)]
        return chosen.ids.to(subject.device), chosen.mask.to(subject.device)

    def objective(texts: tuple[torch.Tensor, torch.Tensor], step: Step) -> torch.Tensor:
        return loss(model, *texts, setting.repulsion, first, last, options, step.number)

    ended = train(model, objective, batch, options, context, name)
    found = measured(model, held, *rest, name)
    result = bench.result
    result.tensors |= kept(found, name) | {f"{LOSSES}/{name}": ended.losses.cpu()}
    result.seconds[f"training {name}"] = ended.seconds
    about: dict[str, Any] = {"setting": setting.name, "vectors": setting.vectors, "repulsion": setting.repulsion}
    about |= {"seed": seed, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    result.sequences.setdefault("trainings", []).append(TokenSequence([], [], about))
    if options.segment is not None and held.ids.shape[1] > options.segment:
        given = (first, options, context, bench.batches, name)
        result.tensors[f"{MEMORY}/{name}"] = memory(model, subject, held, *given)
    if seed == 0:
        _show(bench, setting, found)


def _show(bench: _Bench, setting: Setting, found: Measured) -> None:
    """Some texts beside what came back of them, and the cosines of their vectors, of the first seed."""
    held, subject, result = bench.texts.held_out, bench.subject, bench.result
    count = min(bench.options.shown, len(held))
    for number in range(count):
        row = number * len(held) // count
        wanted = found.wanted[row][found.wanted[row] >= 0].tolist()
        # What was decoded up to its own end, or up to the length of the text where nothing ends one.
        decoded, last = found.decoded[row].tolist(), end(subject)
        decoded = decoded[: decoded.index(last) + 1] if last in decoded else decoded[: max(len(wanted), 1)]
        labels: dict[str, Any] = {"setting": setting.name, "text": row}
        for group, ids in (("texts", wanted), ("reconstructions", decoded)):
            result.sequences.setdefault(group, []).append(TokenSequence(ids, subject.tokens(ids), dict(labels)))
    unit = torch.nn.functional.normalize(found.vectors[:DRAWN].double(), dim=-1)
    result.tensors[f"cosines/{setting.name}"] = (unit @ unit.T).float()
