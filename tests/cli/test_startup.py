"""What does not need a model does not wait for one: torch and transformers stay unloaded, and it takes a moment."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = "('torch', 'transformers', 'accelerate', 'bitsandbytes')"

# Runs the command line as the installed script does, then says on standard error what was imported.
REPORT_IMPORTS = f"""
import sys
from probekit.cli import main
try:
    main()
finally:
    print('imported:', *sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)
    print('plugins:', *sorted(name for name in sys.modules if name.startswith('probekit_plugins')), file=sys.stderr)
"""

QUICK = [
    ["--help"],
    ["--version"],
    ["run", "--help"],
    ["models", "show", "--help"],
    ["plugins"],
    ["plugins", "list", "--json"],
    ["plugins", "show", "gradient-inverter"],
    ["plugins", "show", "pseudo-inverse"],
    ["run", "--dry-run"],
    ["run", "--dry-run", "--json", "--plugin", "pseudo-inverse", "--plugin", "gradient-inverter", "--dtype", "float64"],
]


def lines(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if line.startswith(("imported:", "plugins:")))


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_neither_torch_nor_transformers_is_imported(probekit_process: Any, arguments: list[str]) -> None:
    ended = probekit_process(*arguments, code=REPORT_IMPORTS)
    assert ended.code == 0, ended.err
    assert lines(ended.err)["imported"] == ""


def test_the_check_itself_sees_torch_where_a_command_needs_it(probekit_process: Any) -> None:
    ended = probekit_process("models", "show", "no/such/folder", code=REPORT_IMPORTS)
    assert "torch" in lines(ended.err)["imported"].split()


def test_help_loads_no_plugin(probekit_process: Any) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        assert lines(probekit_process(*arguments, code=REPORT_IMPORTS).err)["plugins"] == ""


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "list", "--json"]], ids=" ".join)
def test_help_and_a_listing_take_less_than_half_a_second(arguments: list[str], tmp_path: Path) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "probekit", *arguments],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")}
            | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_listing_says_what_each_bundled_analysis_does_and_where_it_comes_from(probekit_cli: Any) -> None:
    out = probekit_cli("plugins").out
    for name, summary in (("gradient-inverter", "Recovers the prompt"), ("pseudo-inverse", "Decodes embeddings")):
        [entry] = [part for part in out.split("\n\n") if name in part] or [out]
        assert f"{name}  [probekit 0.2.0]\n    {summary}" in entry


def test_without_arguments_the_help_is_shown(probekit_cli: Any) -> None:
    ended = probekit_cli()
    assert ended.code == 2
    for command in ("run", "report", "plugins", "models"):
        assert f"\n  {command} " in ended.out + ended.err
