"""`probekit study`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from probekit.cli.display import display, keeping_output_clean
from probekit.errors import UsageError, one_line
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES
from probekit.runs.command import option_value
from probekit.runs.studies import Study, study
from probekit.runs.studies.engines import Local, OnRay
from probekit.runs.studies.engines.needs import parse_memory
from probekit.runs.studies.work import Engine


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"The shard is '{text}'; expected I/N with I from 1 to N, such as 2/8.")
    return int(index), int(count)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"'{text}' sets no parameter; expected NAME=VALUE, such as model=gpt2.")
    return name, option_value(value)


def _engine(name: str, **asked: Any) -> Engine:
    given = {option: value for option, value in asked.items() if value is not None}
    if name == "ray":
        memory = given.pop("memory", None)
        return OnRay(**given, memory=None if memory is None else parse_memory(memory))
    if given:
        first = next(iter(given))
        flag = f"--{first}" if first in ("address", "workers") else f"--{first}-per-worker"
        raise UsageError(f"{flag} is said of workers, and here is this process alone; add --engine ray.")
    return Local()


@click.command("study")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of the study; repeatable.")
@click.option("--shard", default="1/1", metavar="I/N", help="Run only the I-th of N shares of the cells.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the study.  [default: probekit-studies/NAME]"
)
@click.option("--retry-failed", is_flag=True, help="Try cells again that failed.")
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=SECONDS_BETWEEN_SAVES,
    show_default=True,
    metavar="SECONDS",
    help="How often the state of a long loop is saved.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where cells are run: in this process, or by the workers of a Ray cluster, which probekit[ray] installs.",
)
@click.option("--address", help="Ray: the cluster's address, such as 'auto'.  [default: one on this machine]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ray: how many workers at most.  [default: what there is room for]",
)
@click.option(
    "--cpus-per-worker",
    "cpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="Ray: cores and threads of each worker.  [default: as many threads as this process has]",
)
@click.option(
    "--gpus-per-worker",
    "gpus",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Ray: GPUs of each worker; 0.5 if two share one.  [default: 1 if a model asks for CUDA]",
)
@click.option(
    "--memory-per-worker",
    "memory",
    metavar="SIZE",
    help="Ray: memory of each worker, such as 12GiB, by which workers are spread.  [default: not counted]",
)
@click.option("--trust-remote-code", is_flag=True, help="Let models that the file says it of run code of their own.")
@click.option("--allow-pickle", is_flag=True, help="Let models that the file says it of read pickled weights.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    parameters: tuple[str, ...],
    shard: str,
    output: Path | None,
    retry_failed: bool,
    save_every: float,
    engine: str,
    address: str | None,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    memory: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Carry out the study FILE: run what is missing, judge what is there, and write one report.

    Call it again to go on after an interrupt, or to bring the shares of several machines together: finished cells are
    not repeated. Exit code 1 if a cell failed or an expectation is not met.
    """
    changed = dict(map(_parameter, parameters))
    chosen = _engine(engine, address=address, workers=workers, cpus=cpus, gpus=gpus, memory=memory)
    with keeping_output_clean(as_json), display() as listener:
        outcome = study(
            file,
            output,
            parameters=changed,
            shard=_shard(shard),
            retry_failed=retry_failed,
            listener=listener,
            seconds_between_saves=save_every,
            engine=chosen,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    _show(outcome, as_json)
    if not outcome.passed:
        ctx.exit(1)


def _show(outcome: Study, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome.document(), indent=1, allow_nan=False))
        return
    for judgement in outcome.judgements:
        mark = {True: "met", False: "NOT MET", None: "-"}[judgement.met]
        click.echo(one_line(f"{judgement.label}: {judgement.verdict} [{mark}]  {judgement.because}"))
    cells = outcome.document()["cells"]
    click.echo(f"Cells: {cells['done']} done, {cells['failed']} failed, {cells['missing']} missing")
    for key, sentence in outcome.failures.items():
        click.echo(f"  {one_line(outcome.label(key))}: {one_line(sentence)}", err=True)
    click.echo(f"Report: {outcome.report_path}")
