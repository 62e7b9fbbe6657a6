"""Progress: plain lines where nobody watches, a live bar on a terminal, and neither on standard output."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def everything_shown(terminal: int) -> str:
    """What comes out of a pseudo-terminal until its other side has closed; one read may get only the first of it."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return shown.decode()


def test_progress_goes_to_standard_error_as_plain_lines(
    probekit_cli: Any, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    ended = probekit_cli(
        "run",
        "--model",
        tiny_gpt2(),
        "-o",
        "steps=7",
        "-o",
        "restarts=2",
        "-o",
        "sites=blocks",
        "--output",
        tmp_path / "run",
    )
    assert ended.code == 0
    lines = ended.err.splitlines()
    sites = "block.0, block.1, block.2"
    last = [line for line in lines if line.startswith(f"{sites}: ")][-1]
    assert re.fullmatch(rf"{re.escape(sites)}: 7/7, loss \d[\d.e+]*", last)
    assert "\r" not in ended.err
    assert "\x1b" not in ended.err
    assert "7/7" not in ended.out


def test_a_long_loop_says_how_far_it_is_and_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit.cli import display

    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    lines = display.PlainLines()
    for done in range(101):
        clock[0] = done * 1.0
        lines.progress("block.0", done, 100, {"loss": 100.0 - done})
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 100 / display.SECONDS_BETWEEN_LINES
    assert shown[0] == "block.0: 5/100, loss 95, 95 s left"
    assert shown[-1] == "block.0: 100/100, loss 0"


def test_a_plain_line_copes_with_a_loop_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from probekit.cli.display import PlainLines

    PlainLines().progress("margins", 0, 0, {})
    assert capsys.readouterr().err == "margins: 0/0\n"


def test_on_a_terminal_a_live_bar_shows_step_loss_and_time_and_json_stays_clean(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "probekit", "run", "--model", str(tiny_gpt2()), "-o", "steps=400", "-o", "restarts=2",
         "--output", str(tmp_path / "run"), "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = everything_shown(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["status"] == "done"
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    frames = [(int(step), float(loss)) for step, loss in re.findall(r"block\.0 \S+ +(\d+)/400 loss ([\d.e+]+)", text)]
    assert len(frames) > 2, text
    assert frames[-1][0] == 400
    assert frames == sorted(frames, key=lambda frame: frame[0])
    assert frames[-1][1] < frames[0][1]
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "\x1b[?25h" in shown, "the cursor is shown again"


def test_a_bar_shows_labels_and_messages_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from probekit.cli.display import display

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "stderr", terminal)
        with display() as listener:
            listener.progress("[bold]x[/bold] \\[y]", 1, 2, {})
            listener.progress("[bold]x[/bold] \\[y]", 2, 2, {})
            listener.message("a [red]message[/red] :smile:")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", everything_shown(ours))
    assert "[bold]x[/bold] \\[y]" in text
    assert "a [red]message[/red] :smile:" in text
