"""`probekit plugins new`."""

from __future__ import annotations

import builtins
import importlib.util
import json
import keyword
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

import click

from probekit.cli.display import keeping_output_clean
from probekit.errors import UsageError
from probekit.plugins import Plugins

TEMPLATES = Path(__file__).parent / "template"
LONGEST = 30  # so that no line of the generated code is too long
# What a distribution has beside its package, or what its .gitignore leaves out.
OWN = ("build", "conftest", "dist", "license", "tests")
# What building and testing it takes, whether it is installed here or not.
NEEDED = ("hatchling", "iniconfig", "pytest")


@dataclass(frozen=True)
class _Kind:
    """What the two kinds of analyses are about, in the words of the generated README."""

    summary: str
    change: str


KINDS = {
    "model": _Kind(
        "How strongly each token of a prompt moves the activation at its last position.",
        "`run`: what is measured. It has the whole model: `subject.capture`, `subject.layer_map`, `subject.edit`.",
    ),
    "activations": _Kind(
        "Mean L2 norm of the activations at each site, by position in the prompt.",
        "`update` and `finish`: what is measured. All such analyses of a run share one pass over the prompts.",
    ),
}


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    default="model",
    show_default=True,
    help="'model' has the model to itself; 'activations' only reads activations, in a pass shared with others.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: one called NAME in the current folder]",
)
@click.option("--author", help="Who wrote it; the plugin is then under the MIT licence.")
@click.pass_obj
def new(block: tuple[str, ...], name: str, kind: str, output: Path | None, author: str | None) -> None:
    """Begin a plugin: write a complete distribution called NAME, with one analysis of that name and its tests.

    What is written works as it is: install it, run it, test it, then change it into your own.
    """
    with keeping_output_clean(True):
        plugins = Plugins(block=block or ())
    names = _Names.of(name, plugins)
    folder = output or Path(names.name)
    files = _files(names, kind, author)
    _write(folder, files)
    place = shlex.quote(str(folder) if folder.is_absolute() else f"./{folder.as_posix()}")
    click.echo(
        f"The plugin {names.name} is in {folder}, its analysis in {folder / names.package / '__init__.py'}. Next:\n"
    )
    click.echo(f"    python -m pip install -e {place} pytest")
    click.echo(f"    probekit run --model demo --plugin {names.name}")
    click.echo(f"    python -m pytest {place}")


@dataclass(frozen=True)
class _Names:
    """The distribution's and the analysis's name, the package's, and the class's."""

    name: str
    package: str
    analysis: str

    @classmethod
    def of(cls, given: str, plugins: Plugins) -> _Names:
        """Names from one. Raises UsageError for one that is none, or that is taken."""
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", given):
            raise UsageError(
                f"{given!r} is no name of a plugin; expected letters, digits and hyphens, such as my-norms."
            )
        name = re.sub(r"[-_.]+", "-", given).lower()  # as PEP 503 does, so that the index and the folder agree
        if len(name) > LONGEST:
            raise UsageError(f"The name '{name}' has {len(name)} characters; choose one of at most {LONGEST}.")
        package = name.replace("-", "_")
        if not package.isidentifier() or keyword.iskeyword(package):
            raise UsageError(
                f"'{name}' cannot be a Python package ('{package}'); choose another name, such as my-norms."
            )
        if name in plugins.analyses() or any(record.name == name for record in plugins.records):
            raise UsageError(f"There is a plugin '{name}' already, as `probekit plugins` shows; choose another name.")
        if package in OWN:
            raise UsageError(
                f"A plugin's folder has a place of its own for '{package}'; choose another name, such as my-{name}."
            )
        if package in (*NEEDED, *sys.stdlib_module_names) or importlib.util.find_spec(package):
            raise UsageError(f"There is a Python package '{package}' already; choose another name, such as my-{name}.")
        analysis = "".join(part.capitalize() for part in name.split("-"))
        if keyword.iskeyword(analysis) or hasattr(builtins, analysis) or analysis in _words():
            analysis += "Analysis"
        return cls(name, package, analysis)


def _words() -> set[str]:
    """What the templates themselves call by name, and a class must not be called."""
    return {word for path in TEMPLATES.glob("*.py.template") for word in re.findall(r"\w+", path.read_text("utf-8"))}


def _files(names: _Names, kind: str, author: str | None) -> dict[str, str]:
    """The files of the distribution, by their paths in it."""
    if author is not None:
        author = " ".join(author.split())
        if not author or not author.isprintable():
            raise UsageError(f"The author is {author!r}; expected a name, such as --author 'Ada Lovelace'.")
    owner = f'license = "MIT"\nlicense-files = ["LICENSE"]\nauthors = [{{ name = {json.dumps(author)} }}]\n'
    values = {
        "name": names.name,
        "package": names.package,
        "analysis": names.analysis,
        "options": f"{names.analysis}Options",
        "summary": KINDS[kind].summary,
        "change": KINDS[kind].change,
        "author": author or "",
        "year": str(time.localtime().tm_year),
        "owner": owner if author else "",
        "license": "MIT; see `LICENSE`."
        if author
        else "No licence is given: add a `LICENSE` before you pass it on, since without one nobody may use it.",
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "tests.yml",
        f"{names.package}/__init__.py": f"{kind}.py",
        "tests/conftest.py": "conftest.py",
        f"tests/test_{names.package}.py": f"test_{kind}.py",
        **({"LICENSE": "LICENSE"} if author else {}),
    }
    made = {
        path: Template((TEMPLATES / f"{source}.template").read_text(encoding="utf-8")).substitute(values)
        for path, source in sources.items()
    }
    return {**made, f"{names.package}/py.typed": ""}


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write the files into a new or empty folder. Raises UsageError if it is neither, or cannot be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"'{folder}' exists and is not an empty folder; choose another with --output, or remove it."
            )
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(f"The folder '{folder}' cannot be written: {error.strerror}.") from None
