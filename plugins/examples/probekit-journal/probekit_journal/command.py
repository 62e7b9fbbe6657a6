"""`probekit journal`: the runs of the journal, newest last."""

from __future__ import annotations

import json

import click

from probekit_journal.entries import STATUSES, Entry, read_journal
from probekit_journal.lines import journal_path


@click.command("journal")
@click.option("--model", metavar="TEXT", help="Only runs on models with this in their name.")
@click.option("--analysis", metavar="NAME", help="Only runs of this analysis, alone or among others.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs that ended, or did not end, in this way.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N of these.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def journal(model: str | None, analysis: str | None, status: str | None, last: int | None, as_json: bool) -> None:
    """List the runs in the journal, newest last: when, how they ended, how long they took, and what they found.

    An `abandoned` run could not have its model or its prompts; an `unfinished` one was killed, so that it has no end.
    """
    path = journal_path()
    entries, damaged = read_journal(path)
    chosen = [
        entry
        for entry in entries
        if (model is None or model.casefold() in entry.line.model.casefold())
        and (analysis is None or analysis in entry.line.analyses)
        and (status is None or status == entry.status)
    ]
    if last is not None:
        chosen = chosen[-last:]
    if as_json:
        runs = [entry.document() for entry in chosen]
        click.echo(json.dumps({"journal": str(path), "damaged_lines": damaged, "runs": runs}, indent=1))
    else:
        for entry in chosen:
            click.echo("\n".join(_described(entry)) + "\n")
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        click.echo(f"{lines} of '{path}' could not be read and {'is' if damaged == 1 else 'are'} left out.", err=True)
    if not chosen:
        click.echo(f"No run of the {len(entries)} in '{path}' is like that." if entries else "No run yet.", err=True)


def _described(entry: Entry) -> list[str]:
    """The lines that a reader gets."""
    line = entry.line
    took = "" if line.seconds is None else f"  {line.seconds:g} s"
    resumed = "  (resumed)" if entry.resumed else ""
    began = entry.began.astimezone()
    rows = [f"{began:%Y-%m-%d %H:%M:%S}  {entry.status}{took}  {line.model}  {', '.join(line.analyses)}{resumed}"]
    rows.append(f"    {line.directory}" + (f" ({entry.remark})" if entry.remark else ""))
    rows += [f"    {name}: {finding}" for name, finding in line.findings.items() if finding]
    rows += [
        f"    {sentence}" if entry.status == "abandoned" else f"    {name} failed: {sentence}"
        for name, sentence in line.failures.items()
    ]
    return [_plain(row) for row in rows]


def _plain(text: str) -> str:
    """One line without what a terminal would act on: findings quote tokens, and a token may be an escape."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
