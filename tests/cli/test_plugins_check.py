"""`probekit plugins check`: every check with its outcome, for an installed plugin, and an exit code that says it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.testing.sources import GOOD, broken

NAMES = [
    "loads",
    "options",
    "no torch at import",
    "same seed, same result",
    "global state",
    "hostile tokens",
    "no trace on the model",
]


def outcomes(text: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w[^:]*): (ok|FAILED)  ", text, re.MULTILINE))


def test_a_good_plugin_passes_every_check(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("fine", GOOD)
    ended = probekit_cli("plugins", "check", "good")
    assert (ended.code, ended.err) == (0, "")
    assert outcomes(ended.out) == dict.fromkeys(NAMES, "ok")
    assert ended.out.splitlines()[0] == "good"
    assert ended.out.splitlines()[-1] == "7 checks, all ok."


def test_what_fails_is_said_and_is_the_exit_code(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("loud", broken("AFTER", "print('so far')").replace("# DRAWN", "1 / 0"))
    ended = probekit_cli("plugins", "check", "loud")  # by the entry point's name
    assert (ended.code, ended.err) == (1, "")
    failed = {"global state": "FAILED", "hostile tokens": "FAILED"}
    assert outcomes(ended.out) == dict.fromkeys(NAMES, "ok") | failed
    assert "\n      run() prints 'so far' on standard output; use self.context.log().\n" in ended.out
    assert "\n      report() raised ZeroDivisionError (plugin_loud.py, line " in ended.out
    assert ended.out.splitlines()[-1] == "7 checks, 2 failed."


def test_as_json_it_is_one_document(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("loud", "print('at import')\n" + broken("AFTER", "print('so far')"))
    ended = probekit_cli("plugins", "check", "good", "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["plugin"], document["passed"]) == (1, "loud", False)
    [made] = [entry["checks"] for entry in document["analyses"].values()]
    assert list(document["analyses"]) == ["good"]
    assert [(check["name"], check["ok"]) for check in made if not check["ok"]] == [
        ("no torch at import", False),
        ("global state", False),
    ]
    assert [check["name"] for check in made] == NAMES
    assert all(check["promise"] and bool(check["error"]) != check["ok"] for check in made)


def test_the_entry_points_module_is_the_one_that_is_imported(probekit_cli: Any, install_plugin: Any) -> None:
    folder = install_plugin("whole", "import transformers\nfrom plugin_part import *\nfrom plugin_part import Good")
    (folder / "plugin_part.py").write_text(GOOD)
    ended = probekit_cli("plugins", "check", "whole")
    assert ended.code == 1
    assert "Importing plugin_whole imports transformers" in ended.out


def test_every_analysis_of_a_plugin_is_checked(probekit_cli: Any, install_plugin: Any) -> None:
    second = '\n\nclass Second(Good):\n    """Another."""\n\n    name = "second"\n'
    source = GOOD.replace("\n\n@probekit.hookimpl", second + "\n\n@probekit.hookimpl").replace(
        "[Good]", "[Good, Second]"
    )
    install_plugin("both", source)
    given = ("-o", "good.sites=block.0", "-o", "second.sites=norm")
    ended = probekit_cli("plugins", "check", "both", *given)
    assert "14 checks, " in ended.out
    assert ended.out.count("\n  options: ") == 2
    assert probekit_cli("plugins", "check", "second", "-o", "sites=norm").out.splitlines()[0] == "second"
    ambiguous = probekit_cli("plugins", "check", "both", "-o", "sites=norm")
    assert (ambiguous.code, "say whose option 'sites' is" in ambiguous.sentence) == (2, True)


def test_options_are_those_that_are_given(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin(
        "choosy", broken("BEFORE", "if self.options.sites == 'blocks': raise probekit.UsageError('Too many.')")
    )
    refused = probekit_cli("plugins", "check", "good")
    assert refused.code == 1
    assert "run() refused the tiny model: Too many. Give options that fit it (-o KEY=VALUE" in refused.out
    assert probekit_cli("plugins", "check", "good", "-o", "sites=norm").code in (0, 1)
    wrong = probekit_cli("plugins", "check", "good", "-o", "sights=norm")
    assert (wrong.code, "Did you mean 'sites'?" in wrong.sentence) == (2, True)
    assert probekit_cli("plugins", "check", "good", "-o", "sites").code == 2


def test_a_plugin_without_an_analysis_has_its_import_checked(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("hooks-only", "import probekit\n@probekit.hookimpl\ndef probekit_anatomy(model): return None")
    ended = probekit_cli("plugins", "check", "hooks-only")
    assert (ended.code, outcomes(ended.out)) == (0, {"no torch at import": "ok"})
    assert ended.out.splitlines()[-1] == "1 check, all ok."
    document = json.loads(probekit_cli("plugins", "check", "hooks-only", "--json").out)
    assert (document["analyses"], document["passed"], len(document["checks"])) == ({}, True, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gooood"], 2, "There is no plugin 'gooood'; there are: "),
        (["fine", "--json"], 3, "The plugin 'fine' did not load: it did not import: ModuleNotFoundError"),
        (["pseudo-invers"], 2, "Did you mean 'pseudo-inverse'?"),
        (["reference-networks", "-o", "a=1"], 2, "provides no analysis, so it has no options"),
        (["reference-network"], 2, "Did you mean 'reference-networks'?"),
    ],
)
def test_what_cannot_be_checked(
    probekit_cli: Any, install_plugin: Any, arguments: list[str], code: int, message: str
) -> None:
    install_plugin("fine", "import no_such_module_anywhere")
    ended = probekit_cli("plugins", "check", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.sentence


def test_a_blocked_plugin_is_not_checked(probekit_cli: Any) -> None:
    ended = probekit_cli("plugins", "--block-plugin", "pseudo-inverse", "check", "pseudo-inverse")
    assert (ended.code, "is blocked" in ended.sentence) == (2, True)


def test_an_interrupt_ends_it(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin(
        "slow", broken("BEFORE", "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)")
    )
    ended = probekit_cli("plugins", "check", "slow")
    assert (ended.code, ended.err.strip()) == (130, "Interrupted.")
