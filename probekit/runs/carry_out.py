"""One analysis of a run: computed, saved, and drawn from what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit.analysis import Context, Options, Result
from probekit.errors import AnalysisError, ProbekitError, out_of_memory
from probekit.report import Page
from probekit.runs.directory import RunDirectory

if TYPE_CHECKING:
    from probekit.analysis import Analysis, Prompt
    from probekit.subject import Subject


def carry_out(
    analysis: type[Analysis[Any]],
    options: Options,
    subject: Subject,
    prompts: Sequence[Prompt],
    directory: RunDirectory,
    context: Context,
) -> Result:
    """Run one analysis, save its result, and draw its page from what was saved."""
    import torch

    folder = f"analyses/{analysis.name}"
    instance = analysis(options, context)
    # A plugin may draw from the global generator: seeded for it, and the caller's given back.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(context.seed)
        result = instance.run(subject, prompts)
    if not isinstance(result, Result):
        raise AnalysisError(f"The analysis returned a {type(result).__name__}; expected a probekit.Result.")
    directory.write_json(f"{folder}/options.json", options.model_dump(mode="json"))
    for file, content in result.encode().items():
        directory.write(f"{folder}/{file}", content)
    directory.write_seconds(analysis.name, result.seconds)
    saved = directory.result(analysis.name)
    page = Page(analysis.name)
    if saved.finding:
        page.finding(saved.finding)
    instance.report(saved, page)
    for note in saved.notes:
        page.note(note)
    directory.write_json(f"{folder}/page.json", page.to_json())
    directory.write(f"{folder}/DONE", b"")
    return saved


OUT_OF_MEMORY = (
    "Out of memory. Fewer restarts (-o restarts=…), a shorter prompt, an earlier site, or a smaller precision "
    "(--dtype bfloat16, --quantization int8) needs less."
)


def explain(error: BaseException) -> str:
    """One sentence for what ended an analysis."""
    if isinstance(error, ProbekitError):
        return str(error)
    if out_of_memory(error):
        return OUT_OF_MEMORY
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
