"""Every bundled analysis, and what else is long enough to be killed, as small commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tests.kill.harness import RUN, STILL, Case, again

PROMPTS = ["The sky is blue.", "Once upon a time"]
INVERTER = {"steps": 12, "restarts": 3, "sites": "blocks", "record_every": 4, "share_pass": "no"}
WALK = {"steps": 4, "walkers": 2, "noise_draws": 1, "sites": "block.1"}
AUTOENCODER = {"widths": [3], "steps": 20, "seeds": 2, "pieces": 10, "length": 8, "invert": 1}

# By name: the analyses of one run, each with its options.
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "inverter, adam": {"gradient-inverter": INVERTER, "pseudo-inverse": {}},
    "inverter, lbfgs": {"gradient-inverter": {**INVERTER, "steps": 5, "optimizer": "lbfgs"}},
    "inverter, descent with dropout": {"gradient-inverter": {**INVERTER, "optimizer": "descent", "dropout": True}},
    "inverter, strong": {"gradient-inverter": {"settings": "strong", "steps": 4, "restarts": 2, "rescore": 4}},
    "inverter, shared pass": {"gradient-inverter": {**INVERTER, "share_pass": "yes"}},
    "inverter, rows of a batch": {"gradient-inverter": {**INVERTER, "rows_at_once": 2, "rescore": 3}},
    "pseudo-inverse": {"pseudo-inverse": {"sites": "embedding,blocks,logits"}},
    "exact inverter": {"exact-inverter": {"sites": "block.1", "proposals": 8, "gradient_steps": 4, "rivals": 4}},
    "leakage audit": {"leakage-audit": {"sites": "block.1", "precisions": ["none"], "noise": [0.0, 2.0]}},
    "orthogonal walk": {"orthogonal-walk": {**WALK, "gradient_check": True}},
    "clamped walk": {"clamped-walk": {**WALK, "inner": 2}},
    "null-space walk": {"null-space-walk": {**WALK, "iterations": 4, "correction_iterations": 3}},
    "spectrum, dense": {"jacobian-spectrum": {"sites": "block.0,block.1", "method": "dense"}},
    "spectrum, matrix-free": {
        "jacobian-spectrum": {"sites": "block.0,block.1", "method": "matrix-free", "iterations": 4, "probes": 3}
    },
    "repetition": {
        "repetition": {
            **{"strategies": ["temperature", "contrastive"], "new_tokens": 4, "samples": 2, "text_length": 8},
            **{"random_draws": 2, "unlikelihood_steps": 4, "unlikelihood_batch": 2, "unlikelihood_pieces": 4},
        }
    },
    "frozen head": {"frozen-head": {"steps": 6, "batch": 2, "length": 12, "initialisations": 1, "pieces": 10}},
    "statistics and similarity": {"activation-statistics": {}, "layer-similarity": {}},
    "autoencoder": {"autoencoder": {**AUTOENCODER, "variants": ["plain", "contrastive"]}},
    "control codes": {
        "control-codes": {"only": ["Horror", "Legal"], "new_tokens": 3, "temperature": 1.0, "samples": 2}
    },
    "text VAE": {"text-vae": {"steps": 8, "batch": 4, "pieces": 20, "length": 6, "latent": 3, "importance_samples": 2}},
    "one-word autoencoder": {
        "one-word-autoencoder": {
            **{"steps": 8, "batch": 4, "pieces": 20, "length": 6, "segment": 3, "seeds": 1},
            "repulsion": ["info-nce"],
        }
    },
    "three analyses": {
        "jacobian-spectrum": {"sites": "block.0"},
        "gradient-inverter": INVERTER,
        "layer-similarity": {},
    },
}
# Those whose pages show times.
TIMED = {"exact inverter", "leakage audit", "autoencoder", "text VAE", "one-word autoencoder"}
TEXTS = [f"{first} {second} {third}" for first in ("red", "green") for second in ("sea", "sky") for third in "abcdefgh"]


def words(analyses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`--plugin` and `-o` of some analyses."""
    found = []
    for name, options in analyses.items():
        found += ["--plugin", name]
        for key, value in options.items():
            text = json.dumps(value) if isinstance(value, list) else str(value).lower()
            found += ["-o", f"{name}.{key}={text}"]
    return found


def run_case(name: str, model: Path) -> Case:
    """One of `RUNS`."""
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    start = ["run", "--model", str(model), *words(RUNS[name]), *prompts, "--output", RUN, "--save-every", "0.01"]
    return Case(name, start, code=STILL if name in TIMED else "")


def fine_tuning(model: Path) -> Case:
    """Control codes that a copy of the model is fine-tuned under."""

    def texts(folder: Path) -> None:
        for name in ("Horror", "Legal"):
            (folder / f"{name}.txt").write_text("\n".join(f"{name}: {text}" for text in TEXTS), encoding="utf-8")

    known = 'texts={Horror = "Horror.txt", Legal = "Legal.txt"}'
    options = ["steps=6", "batch=4", "seeds=1", "only=Horror,Legal", "new_tokens=2", known]
    start = ["run", "--model", str(model), "--plugin", "control-codes", "--output", RUN, "--save-every", "0.01"]
    start += ["--prompt", PROMPTS[0], *(word for option in options for word in ("-o", option))]
    return Case("control codes, fine-tuned", start, prepare=texts)


def recording(model: Path) -> Case:
    """A recording of several shards."""

    def prompts(folder: Path) -> None:
        (folder / "prompts.txt").write_text("\n".join(TEXTS * 4), encoding="utf-8")

    start = ["record", "--model", str(model), "--prompts", "prompts.txt", "--sites", "blocks", "--output", "recording"]
    return Case("recording", [*start, "--shard-size", "16KiB", "--batch-tokens", "64"], again, prompts)


def study(model: Path) -> Case:
    """A study of four cells."""
    run = {
        "model": str(model),
        "plugins": "gradient-inverter",
        "prompts": PROMPTS,
        "options": {"steps": 6, "restarts": 2, "sites": "$site"},
        "sweep": {"site": ["block.0", "block.1"]},
        "seeds": 2,
    }
    least = {"run": "inverter", "table": "restarts", "column": "token_accuracy"}
    expectation = {
        "id": "in-range",
        "claim": "Accuracy is a share",
        "figures": {"found": least},
        "verdicts": {"holds": "least(found) >= 0"},
        "expect": "holds",
        "because": "{count(found)} restarts.",
    }
    cells = {"title": "Small", "runs": {"inverter": run}, "expectations": [expectation]}

    def write(folder: Path) -> None:
        (folder / "small.toml").write_text(tomli_w.dumps(cells), encoding="utf-8")

    start = ["study", "small.toml", "--output", "study", "--save-every", "0.01"]
    return Case("study", start, again, write)


def demo(_: Path) -> Case:
    """The training of the embedded model."""

    def text(folder: Path) -> None:
        (folder / "tale.txt").write_text("\n\n".join(TEXTS * 8), encoding="utf-8")

    sizes = ["--vocabulary", "270", "--layers", "1", "--width", "32", "--positions", "16", "--batch", "2"]
    start = ["tale.txt", "--output", "demo", "--steps", "40", "--report-every", "3", *sizes]
    return Case("training of the embedded model", start, again, text, program="probekit.models.demo.train")


OTHERS: dict[str, Callable[[Path], Case]] = {
    "control codes, fine-tuned": fine_tuning,
    "recording": recording,
    "study": study,
    "training of the embedded model": demo,
}
NAMES = [*RUNS, *OTHERS]


def case(name: str, model: Path, counted: bool = False) -> Case:
    """The case of that name, with this model. `counted`: every step is saved, so that how often something is written
    does not depend on the clock.
    """
    found = run_case(name, model) if name in RUNS else OTHERS[name](model)
    if counted:
        found.arguments = ["0" if word == "0.01" else word for word in found.arguments]
    return found
