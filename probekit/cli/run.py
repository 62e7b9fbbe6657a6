"""`probekit run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from probekit.cli.display import display, keeping_output_clean
from probekit.cli.model_options import model_options, spec_values
from probekit.errors import AnalysisError, UsageError, one_line
from probekit.models.spec import GRANTS
from probekit.plugins import Plugins
from probekit.runs import Run, execute, resolve, resume
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES
from probekit.runs.command import option_value
from probekit.runs.comparison import TrainedAndRandom, check_trained, run_trained_and_random
from probekit.runs.config import Resolved, grants_of, read_config
from probekit.runs.profiling import OPTIONS, phase, profile_sentence, profiling
from probekit.runs.prompts import read_prompts


@click.command("run")
@click.option("--model", help="A folder, a name on the hub, or 'demo', the embedded model.  [default: demo]")
@click.option(
    "--plugin", "plugins", multiple=True, help="An analysis to run; repeatable.  [default: gradient-inverter]"
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the analysis (with several: ANALYSIS.KEY=VALUE); see `probekit plugins show NAME`.",
)
@click.option("--prompt", "prompts", multiple=True, help="A prompt; repeatable.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    help="Prompts from a file: text, one a line, or JSONL.",
)
@click.option("--input-ids", multiple=True, metavar="1,2,3", help="A prompt as token ids; repeatable.")
@click.option(
    "--special-tokens/--no-special-tokens",
    default=None,
    help="Let the tokenizer add its special tokens.  [default: yes]",
)
@click.option(
    "--activations",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A recording in place of the model and the prompts, for analyses of activations; see `probekit record`.",
)
@click.option("--seed", type=click.INT, help="Seed of everything random.  [default: 0]")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Run directory to make.  [default: a new one in probekit-runs/]"
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A TOML file such as the config.toml of a run; options given here override it.",
)
@click.option(
    "--block-plugin", "block_plugins", multiple=True, metavar="NAME", help="An entry point not to load; repeatable."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
@click.option(
    "--compare-random", is_flag=True, help="Run with trained and with random weights, and compare the two on one page."
)
@click.option(
    "--resume", "resumed", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that did not end."
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=SECONDS_BETWEEN_SAVES,
    show_default=True,
    metavar="SECONDS",
    help="How often the state of a long loop is saved.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long an analysis may take; one that takes longer fails, and the others go on.  [default: any time]",
)
@click.option(
    "--profile", is_flag=True, help="Also tell where time and memory went: a page of the report, and profile.json."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and end.")
@model_options
def command(
    as_json: bool,
    profile: bool,
    dry_run: bool,
    compare_random: bool,
    output: Path | None,
    config: Path | None,
    resumed: Path | None,
    save_every: float,
    time_limit: float | None,
    **given: Any,
) -> None:
    """Run analyses on a model and write a report.

    Without options it inverts the first block of the embedded model on the prompt "The sky is blue.".
    """
    if profile and (compare_random or dry_run):
        beside = "--compare-random makes two" if compare_random else "--dry-run makes none"
        raise UsageError(f"--profile tells of one run, and {beside}; leave one of the two out.")
    click.get_current_context().with_resource(profiling(profile, whole_process=True))
    outcome: Run | TrainedAndRandom
    values = _given(given)
    if resumed is not None:
        granted = _taken_grants(values)
        others = {"output": output, "config": config, "dry_run": dry_run, "compare_random": compare_random}
        _refuse_beside_resume({**values, **others, "block_plugins": None})
        with keeping_output_clean(as_json), display() as listener:
            outcome = resume(resumed, _plugins_named(values), listener, save_every, time_limit, **granted)
        _end(outcome, as_json)
        return
    layers = [(str(config), read_config(config))] if config else []
    layers.append(("command line", values))
    blocked = {name for _, values in layers for name in values.get("block_plugins", [])}
    with keeping_output_clean(as_json), phase(OPTIONS):
        plugins = Plugins(block=blocked)
        resolved = resolve(layers, plugins, grants_of(values))
    if compare_random:
        check_trained(resolved)
    if dry_run:
        _show_resolved(resolved, as_json)
        return
    with keeping_output_clean(as_json), display() as listener:
        carry_out = run_trained_and_random if compare_random else execute
        outcome = carry_out(resolved, plugins, output, listener, sys.argv[1:], save_every, time_limit)
    _end(outcome, as_json)


def _plugins_named(values: dict[str, Any]) -> Plugins | None:
    return Plugins(values["block_plugins"]) if "block_plugins" in values else None


def _taken_grants(values: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run may be granted again, taken out of the values."""
    model = values.pop("model", {})
    granted = {name: model.pop(name) for name in GRANTS if name in model}
    if model:
        values["model"] = model
    return granted


def _refuse_beside_resume(given: dict[str, object]) -> None:
    """A resumed run is what it was begun as: nothing else may be asked for beside it."""
    beside = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if beside:
        raise UsageError(f"--resume goes on with a run as it was begun; leave out {', '.join(beside)}.")


def _end(outcome: Any, as_json: bool) -> None:
    """Print what a run came to. Raises AnalysisError if an analysis failed."""
    if as_json:
        click.echo(json.dumps(outcome.document(), indent=1, allow_nan=False))
    else:
        _show_outcome(outcome)
    if outcome.failures:
        sentences = "; ".join(f"{name}: {sentence}" for name, sentence in outcome.failures.items())
        raise AnalysisError(sentences)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The values given on the command line, in the shape of a RunConfig."""
    model = spec_values(options.pop("model"), options)
    values: dict[str, Any] = {"model": model} if model else {}
    for name in ("seed", "special_tokens"):
        if options[name] is not None:
            values[name] = options[name]
    for name in ("plugins", "block_plugins"):
        if options[name]:
            values[name] = list(options[name])
    prompts = list(options["prompts"])
    input_ids = [ids_of(text) for text in options["input_ids"]]
    if options["prompts_file"] is not None:
        read = read_prompts(options["prompts_file"])
        prompts += read["prompts"]
        input_ids += read["input_ids"]
    if options["activations"] is not None:
        values["activations"] = str(options["activations"])
    if prompts:
        values["prompts"] = prompts
    if input_ids:
        values["input_ids"] = input_ids
    if options["options"]:
        values["options"] = dict(pair_of(text) for text in options["options"])
    return values


def pair_of(text: str) -> tuple[str, Any]:
    """An option as `KEY=VALUE`. Raises UsageError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"'-o {text}' is no option; expected KEY=VALUE, for example -o steps=50.")
    return key.strip(), option_value(value)


def ids_of(text: str) -> list[int]:
    """Token ids as `1,2,3`. Raises UsageError for anything else."""
    try:
        return [int(part) for part in text.strip().strip("[]").replace(",", " ").split()]
    except ValueError:
        raise UsageError(
            f"'--input-ids {text}' is no list of token ids; expected whole numbers, for example 464,6766."
        ) from None


def _show_resolved(resolved: Resolved, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(resolved.document(), indent=1, allow_nan=False))
        return
    document = resolved.document()
    for key, value in _flat(document["configuration"]):
        click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {document['sources'].get(key, 'default')}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and prefix.count(".") < 2 and key not in ("device_map", "max_memory"):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value))
    return flat


def _show_outcome(outcome: Run | TrainedAndRandom) -> None:
    if isinstance(outcome, TrainedAndRandom):
        for weights, run in outcome.runs.items():
            click.echo(f"With {weights} weights:")
            _show_outcome(run)
        if outcome.comparison:
            click.echo(f"Comparison: {outcome.comparison.path}")
        return
    for name, result in outcome.results.items():
        click.echo(f"{name}: {one_line(result.finding)}" if result.finding else f"{name}: done")
        for note in result.notes:
            click.echo(f"  note: {one_line(note)}")
    if sentence := profile_sentence(outcome.path):
        click.echo(f"Profile: {sentence}")
    click.echo(f"Report: {outcome.report_path}")
