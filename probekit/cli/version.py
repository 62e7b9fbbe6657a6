"""`probekit --version`: probekit's, and what plugins of others are installed, from metadata alone."""

from __future__ import annotations

import os
from importlib.metadata import entry_points, version
from typing import Any

import click

from probekit.hookspecs import PROJECT
from probekit.plugins import BLOCK_VARIABLE


def print_version(ctx: click.Context, _: click.Parameter, asked: Any) -> None:
    """Print the versions and end, if asked to. Imports no plugin."""
    if not asked or ctx.resilient_parsing:
        return
    click.echo(f"probekit {version('probekit')}")
    blocked = {part.strip() for part in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    found: dict[str, list[str]] = {}
    for point in sorted(entry_points(group=PROJECT), key=lambda point: point.name):
        try:
            name, number = (point.dist.name, point.dist.version) if point.dist else ("", "")
        except Exception:  # damaged metadata
            name, number = "", ""
        if name != "probekit":
            title = f"{name or 'unknown distribution'} {number or ''}".strip()
            found.setdefault(title, []).append(point.name + (" (blocked)" if point.name in blocked else ""))
    for title, names in sorted(found.items()):
        click.echo(f"{title}: {', '.join(dict.fromkeys(names))}")
    ctx.exit()
