"""What a plugin author tests with: a tiny model, a hostile one, and the promises of an analysis, checked.

    from probekit.testing import check_analysis, tiny_subject

    def test_it_keeps_the_promises_of_an_analysis():
        check_analysis(MyNorms)

    def test_its_figures():
        subject = tiny_subject()
        ...

`pytest_plugins = ["probekit.testing.fixtures"]` in a `conftest.py` gives the same as fixtures. Everything works offline
and writes nothing outside a temporary folder. Importing this imports neither torch, transformers nor pytest.
"""

from probekit.testing.checks import check_analysis, check_import, checks
from probekit.testing.outcome import Check
from probekit.testing.tiny import HOSTILE_TOKENS, prompts, tiny_subject
from probekit.testing.untouched import fingerprint

__all__ = [
    "HOSTILE_TOKENS",
    "Check",
    "check_analysis",
    "check_import",
    "checks",
    "fingerprint",
    "prompts",
    "tiny_subject",
]
