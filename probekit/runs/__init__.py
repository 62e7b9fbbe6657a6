"""Runs: a resolved configuration, carried out, in a directory that holds everything it found."""

from probekit.runs.config import RunConfig, resolve
from probekit.runs.directory import RunDirectory
from probekit.runs.execute import execute, resume, run
from probekit.runs.outcome import Run, read_run
from probekit.runs.recording import record
from probekit.runs.render import render

__all__ = ["Run", "RunConfig", "RunDirectory", "execute", "read_run", "record", "render", "resolve", "resume", "run"]
