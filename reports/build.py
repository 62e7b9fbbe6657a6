"""`python reports/build.py`: the reports that CI publishes, into `reports/output`, several at a time."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path("reports/output")  # reports name what they were made of

# By folder, the longest first.
REPORTS = {
    "texts": """
        run --model demo --depth 2 --plugin text-vae --plugin one-word-autoencoder --plugin control-codes
            -o text-vae.steps=120 -o text-vae.pieces=600 -o text-vae.length=8 -o text-vae.latent=8
            -o text-vae.importance_samples=8 -o text-vae.measured=100 -o one-word-autoencoder.steps=150
            -o one-word-autoencoder.pieces=3000 -o one-word-autoencoder.length=3 -o one-word-autoencoder.seeds=1
            -o control-codes.only=Books,Horror,Legal,Questions -o control-codes.new_tokens=24 --prompt "The knife"
    """,
    "autoencoder": """
        run --model demo --plugin autoencoder -o sites=block.3 -o variants=plain,topk -o widths=12,48 -o active=8
            -o steps=200 -o seeds=2 -o pieces=192 -o invert=2
    """,
    "smoke": "study reports/studies/smoke.toml",
    "walks": """
        run --model demo --plugin clamped-walk --plugin null-space-walk --plugin orthogonal-walk --plugin repetition
            -o clamped-walk.steps=20 -o "clamped-walk.inner=[1, 5, 10]" -o null-space-walk.steps=20
            -o null-space-walk.relinearise=2 -o repetition.samples=2
    """,
    "recovery": "run --model demo --plugin exact-inverter -o sites=block.0,block.-1",
    "audit": "run --model demo --plugin leakage-audit -o sites=block.-1 -o precisions=none",
    "spectrum": "run --model demo --plugin jacobian-spectrum --compare-random",
    "recording": "record --model demo --prompts README.md --store bfloat16",
    "demo": "run --model demo",
}
# Those that read others.
AFTER = {
    "activations": "run --activations reports/output/recording --plugin activation-statistics --plugin layer-similarity"
}


def build(folder: str, command: str) -> tuple[str, int, str]:
    """One report, in a process of its own on one thread; its folder, exit status and what it printed."""
    began = time.monotonic()
    arguments = [sys.executable, "-m", "probekit", *shlex.split(command), "--output", str(OUTPUT / folder)]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment = {**os.environ, **threads}
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = f"$ probekit {shlex.join(arguments[3:])}\n{done.stdout}({time.monotonic() - began:.0f} s)\n"
    return folder, done.returncode, printed


def verified() -> list[str]:
    """What is wrong with what was built: whether it is whole, and every figure that of the saved tensors."""
    import probekit

    places = sorted(path.parent for name in ("run.json", "recording.json") for path in (ROOT / OUTPUT).rglob(name))
    problems = []
    for place in places:
        found = probekit.verify(place, recompute=True)
        figures = sum(each.equal for each in found.recomputed.values())
        print(f"{place.relative_to(ROOT)}: {found.files} files, {figures} figures computed again, {found.digest}")
        problems += [f"{place.relative_to(ROOT)}: {problem}" for problem in found.problems]
    return problems


def main() -> int:
    """Build all of them, verify them, then write the page that leads to each. The exit status is that of the first that
    fails.
    """
    shutil.rmtree(ROOT / OUTPUT, ignore_errors=True)
    failed: dict[str, int] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for reports in (REPORTS, AFTER):
            for folder, status, printed in pool.map(build, reports, reports.values()):
                print(printed, flush=True)
                if status:
                    failed[folder] = status
    index = ["runs", str(OUTPUT), "--output", str(OUTPUT / "index.html"), "--summary", str(OUTPUT / "summary.md")]
    status = subprocess.run([sys.executable, "-m", "probekit", *index], cwd=ROOT).returncode
    problems = verified()
    for folder, each in failed.items():
        print(f"The report '{folder}' failed with status {each}.", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    return next(iter(failed.values()), status or int(bool(problems)))


if __name__ == "__main__":
    sys.exit(main())
