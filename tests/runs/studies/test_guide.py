"""The scripts of docs/clusters.md: they can be read by who is to read them, and say what probekit takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from probekit.cli.study import command

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "clusters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash reads the scripts")
@pytest.mark.parametrize("script", blocks("sh"), ids=lambda script: script.splitlines()[0][:40])
def test_the_scripts_are_bash(script: str) -> None:
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


def test_the_manifests_are_yaml_with_the_disk_mounted_everywhere() -> None:
    manifests = [yaml.safe_load(text) for text in blocks("yaml")]
    assert [manifest["kind"] for manifest in manifests] == ["Job", "RayJob"]
    cluster = manifests[1]["spec"]["rayClusterSpec"]
    templates = [manifests[0]["spec"]["template"], cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    for template in templates:
        [volume] = template["spec"]["volumes"]
        for container in template["spec"]["containers"]:
            assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]


def test_every_flag_that_the_scripts_name_is_one_of_the_command() -> None:
    known = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    text = GUIDE.replace("\\\n", " ").replace("\n    --", " --")
    calls = re.findall(r"probekit study (.*?)(?:[\"`]?$)", text, re.MULTILINE)
    assert len(calls) >= 5
    named = {word for call in calls for word in shlex.split(call.replace('"', "")) if word.startswith("--")}
    assert {"--shard", "--engine", "--address", "--workers"} <= named <= known
    table = set(re.findall(r"^\| `(--[a-z-]+)` \|", GUIDE, re.MULTILINE))
    assert {"--address", "--workers", "--cpus-per-worker", "--gpus-per-worker", "--memory-per-worker"} == table
