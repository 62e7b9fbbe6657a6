"""Every architecture that transformers calls a causal language model, tiny: `python -m tests.forward.survey`.

What does not work yet is named here with its cause, so that a new failure and a mended one both show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.between import between
from tests.forward.survey import CHECKS, MARKERS, table

ROOT = Path(__file__).parents[2]
KNOWN = {
    "gemma4_assistant": "transformers 5.23 builds it of no config",
    "gemma4_unified_assistant": "transformers 5.23 builds it of no config",
}


def test_every_causal_language_model_works_or_is_known_not_to() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.forward.survey"], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    failing = {
        row["name"]: {check: row.get(check) for check in CHECKS if row.get(check) != "ok"}
        for row in found
        if any(row.get(check) != "ok" for check in CHECKS)
    }
    assert len(found) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if transformers.__version__.startswith("5.23."):  # another release has other architectures
        assert {name: why for name, why in failing.items() if name not in KNOWN} == {}
        assert set(KNOWN) - set(failing) == set()
        written = between(ROOT / "docs" / "architectures.md", MARKERS)
        assert written.strip() == table(found).strip(), "write it anew: --markdown docs/architectures.md"
    # Nothing that fails leaves a hook behind.
    assert {name for name, why in failing.items() if "clean" in why and "built" not in why} == set()
