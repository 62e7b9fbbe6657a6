"""Draw a run's report from its directory alone: no model, no torch, no plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from probekit.errors import UsageError
from probekit.report import Document, Page, render_html, render_markdown
from probekit.runs.directory import RunDirectory
from probekit.runs.joint import JOINT_FILE
from probekit.runs.manifest import read_manifest
from probekit.runs.profiling import profile_page

# Of more prompts than a reader looks at, the first.
MOST_SHOWN = 10
FIRST_SHOWN = 3


def render(directory: RunDirectory, manifest: dict[str, Any] | None = None) -> None:
    """Write `report.html` and `summary.md` as `drawn` gives them.

    Raises UsageError if the directory is damaged or of another version.
    """
    for name, content in drawn(directory, manifest).items():
        directory.write(name, content)


def drawn(directory: RunDirectory, manifest: dict[str, Any] | None = None) -> dict[str, bytes]:
    """`report.html` and `summary.md` from `run.json`, or the manifest that will be it, and the analyses' pages; the
    report also from the run's profile, if it has one.

    Raises UsageError if the directory is damaged or of another version.
    """
    manifest = manifest or read_manifest(directory)
    try:
        document = _document(directory, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The file '{directory.path / 'run.json'}' is damaged: {type(error).__name__} {error}."
        ) from None
    profile = profile_page(directory)
    shown = document if profile is None else replace(document, pages=[*document.pages, (profile.title, profile)])
    return {
        "report.html": render_html(shown).encode(errors="replace"),
        "summary.md": render_markdown(document).encode(errors="replace"),
    }


def read_pages(directory: RunDirectory, manifest: Mapping[str, Any]) -> list[tuple[str, Page]]:
    """The pages of a run with their names: what its analyses have in common, and then each of them that is done.

    Raises UsageError if a file of theirs is missing or damaged.
    """
    try:
        joint = any(entry["status"] == "done" for entry in manifest.get("joint", {}).values())
        joint_pages = directory.read_json(JOINT_FILE)["pages"] if joint else []
        pages = [(page.title, page) for page in map(Page.from_json, joint_pages)]
        done = [name for name, entry in manifest.get("analyses", {}).items() if entry["status"] == "done"]
        pages += [(name, Page.from_json(directory.read_json(f"analyses/{name}/page.json"))) for name in done]
    except ValueError as error:
        raise UsageError(f"A page of the run '{directory.path}' cannot be drawn: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The file '{directory.path / 'run.json'}' is damaged: {type(error).__name__} {error}."
        ) from None
    return pages


def _document(directory: RunDirectory, manifest: dict[str, Any]) -> Document:
    configuration, model = manifest["configuration"], manifest.get("model", {})
    analyses = manifest.get("analyses", {})
    joint = manifest.get("joint", {})
    pages = read_pages(directory, manifest)
    failures = [
        (name, entry.get("error", f"The analysis is {entry['status']}."))
        for name, entry in [*analyses.items(), *joint.items()]
        if entry["status"] != "done"
    ]
    spec = configuration["model"]
    weights = "untrained" if spec["weights"] == "random" else "trained"
    if model.get("source") == "plugin":
        weights = "made by a plugin"
    facts = [
        (
            "Model",
            f"{_named(spec['name'], model)} ({model.get('architecture', '?')}, {weights}, "
            f"{model.get('parameters', 0):,} parameters)",
        ),
        _prompts(manifest),
        *_sites(configuration["options"]),
        ("Precision", ", ".join([model.get("dtype", "?"), *_quantised(model)])),
        ("Device", _devices(model.get("device", "?"))),
        ("Special tokens", "those that the tokenizer adds" if configuration["special_tokens"] else "not added"),
        ("Seed", str(configuration["seed"])),
        ("Status", manifest["status"]),
    ]
    if recording := manifest.get("recording"):
        facts.insert(1, ("Recording", f"{recording['path']} ({recording['tokens']:,} tokens)"))
    if broken := manifest.get("broken_plugins"):
        facts.append(("Plugins that did not load", "; ".join(f"{name}: it {error}" for name, error in broken.items())))
    provenance = [(f"model: {key}", _plain(value)) for key, value in model.items()]
    for name, options in configuration["options"].items():
        whose = "option" if len(configuration["options"]) == 1 else name
        provenance += [(f"{whose}: {key}", _plain(value)) for key, value in options.items()]
    provenance += [(f"version of {package}", number) for package, number in manifest["versions"].items()]
    return Document(
        title=f"{' + '.join(configuration['plugins'])} on {spec['name']}",
        question="What does a layer still know about its input, and which other inputs does it take for the same?",
        facts=facts,
        pages=pages,
        failures=failures,
        command=manifest["command"],
        provenance=provenance,
    )


def _named(name: str, model: Mapping[str, Any]) -> str:
    return f"{name}, probekit's embedded model" if model.get("source") == "demo" else name


def _prompts(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """The prompt, or the first of several, each in quotation marks."""
    prompts = [prompt["text"] for prompt in manifest.get("prompts", [])]
    count = manifest.get("prompt_count", len(prompts))
    if count == 1:
        return "Prompt", " ".join(prompts)
    shown = [f"“{prompt}”" for prompt in (prompts if count <= MOST_SHOWN else prompts[:FIRST_SHOWN])]
    return f"{count:,} prompts", ", ".join(shown) + (f" and {count - FIRST_SHOWN:,} more" if count > MOST_SHOWN else "")


def _sites(options: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where the analyses look, by analysis where that is not the same."""
    asked = {
        name: sites if isinstance(sites, str) else ",".join(map(str, sites))
        for name, given in options.items()
        if (sites := given.get("sites"))
    }
    if not asked:
        return
    sites = set(asked.values())
    value = sites.pop() if len(sites) == 1 else "; ".join(f"{name}: {each}" for name, each in asked.items())
    yield "Sites", value + (" (blocks are counted from 0)" if "block." in value else "")


def _quantised(model: Mapping[str, Any]) -> Iterator[str]:
    """`int8 in 192 of 193 linear layers, 94 % of the weights`."""
    layers: Mapping[str, int] = model.get("quantization", {})
    total = sum(layers.values())
    for kind, count in layers.items():
        if kind != "unquantised":
            yield f"{kind} in {count} of {total} linear layers ({model.get('quantised_share', 0):.0%} of the weights)"


def _devices(device: str | Mapping[str, str]) -> str:
    """The device, or those of a device map, which is whole in the provenance."""
    return device if isinstance(device, str) else " and ".join(dict.fromkeys(device.values()))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key or 'all'}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return str(value).lower()  # as it is given with -o
    return "unset" if value is None else str(value)
