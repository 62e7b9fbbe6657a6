"""`probekit plugins check`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from probekit.cli.display import keeping_output_clean
from probekit.errors import UsageError, nearest
from probekit.plugins import PluginRecord, Plugins

if TYPE_CHECKING:
    from probekit.testing import Check


@click.command("check")
@click.argument("name")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the analysis (with several: ANALYSIS.KEY=VALUE), where its defaults do not fit a tiny model.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
@click.pass_context
def check(ctx: click.Context, name: str, options: tuple[str, ...], as_json: bool) -> None:
    """Check that the analysis NAME, or every analysis of the plugin NAME, does what an analysis must do.

    On tiny models of random weights: that it repeats itself, leaves no trace on the model and the process, draws
    hostile tokens safely, and more. Exit code 1 if a check failed.
    """
    with keeping_output_clean(as_json):
        plugins = Plugins(block=ctx.obj or ())
        record = _record(plugins, name)
        analyses = [analysis for analysis in record.analyses if analysis.name == name] or record.analyses
        values = _values(options, [analysis.name for analysis in analyses], plugins)
        found = {}
        for title, made in _checks(record, analyses, values):
            found[title] = _shown(title, made, as_json)
    every = [one for made in found.values() for one in made]
    failed = sum(bool(one.problems) for one in every)
    if as_json:
        click.echo(json.dumps(_document(record, found), indent=1, allow_nan=False))
    else:
        count = f"{len(every)} {'check' if len(every) == 1 else 'checks'}"
        click.echo(f"{count}, {failed} failed." if failed else f"{count}, all ok.")
    if failed:
        ctx.exit(1)


def _record(plugins: Plugins, name: str) -> PluginRecord:
    """The plugin that provides the analysis of that name, or else has that name itself.

    Raises PluginError if it did not load, UsageError if it is blocked or unknown.
    """
    for record in plugins.records:
        if any(analysis.name == name for analysis in record.analyses):
            return record
    named = [record for record in plugins.records if record.name == name]
    for record in named:
        if record.status == "loaded":
            return record
    near = nearest(name, {record.name for record in plugins.records} - plugins.analyses().keys())
    if near and not named:
        raise UsageError(f"There is no analysis and no plugin '{name}'.{near}")
    plugins.analysis(name)  # raises, and says why
    raise UsageError(f"There is no analysis and no plugin '{name}'.")


def _values(options: tuple[str, ...], names: list[str], plugins: Plugins) -> Mapping[str, Mapping[str, Any]]:
    """The values given for each analysis. Raises UsageError as `probekit run` does."""
    if not options:
        return {}
    if not names:
        raise UsageError("This plugin provides no analysis, so it has no options; leave out -o.")
    from probekit.cli.run import pair_of
    from probekit.runs import resolve

    pairs = dict(map(pair_of, options))
    return resolve([("command line", {"plugins": names, "options": pairs})], plugins).config.options


def _checks(
    record: PluginRecord, analyses: Sequence[type[Any]], values: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Iterable[Check]]]:
    """The checks of each analysis under its name, or that of a plugin which provides none."""
    from probekit.testing import check_import, checks

    for analysis in analyses:
        yield analysis.name, checks(analysis, values.get(analysis.name, {}), module=record.module)
    if not analyses:
        yield record.name, (check_import(record.module) for _ in range(1))


def _shown(title: str, checks: Iterable[Check], silent: bool) -> list[Check]:
    """The checks, each shown as soon as it has ended."""
    if not silent:
        click.echo(click.style(title, bold=True))
    made = []
    for one in checks:
        made.append(one)
        if silent:
            continue
        mark = click.style("FAILED", fg="red") if one.problems else click.style("ok", fg="green")
        click.echo(f"  {one.name}: {mark}  {one.promise}")
        for problem in one.problems:
            click.echo(f"      {problem}")
    return made


def _document(record: PluginRecord, found: Mapping[str, list[Check]]) -> dict[str, Any]:
    """The checks of the plugin's analyses by their names, or its own, as JSON."""
    documents = {
        title: {
            "passed": not any(one.problems for one in made),
            "checks": [
                {"name": one.name, "promise": one.promise, "ok": not one.problems, "error": one.error} for one in made
            ],
        }
        for title, made in found.items()
    }
    passed = all(entry["passed"] for entry in documents.values())
    own = {} if record.analyses else {"checks": documents[record.name]["checks"]}
    return {"plugin": record.name, "passed": passed, "analyses": documents if record.analyses else {}, **own}
