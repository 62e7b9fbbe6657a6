"""A profile in its run: `profile.json`, with a part for each process that worked on the run, beside `timings.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import site_expressions
from probekit.errors import UsageError
from probekit.report import Page
from probekit.runs.directory import RunDirectory
from probekit.runs.profiling.current import current
from probekit.runs.profiling.page import draw
from probekit.runs.profiling.sentences import of_time

if TYPE_CHECKING:
    from probekit.analysis import Options
    from probekit.runs.loaded import Loaded
    from probekit.runs.repair import Repair

PROFILE_FILE = "profile.json"
SCHEMA = 1


def keep_profile(directory: RunDirectory) -> bool:
    """Write down what is known up to now; False where no profile is taken.

    What processes before had found of the same run stays in front of it.
    """
    profile = current()
    if profile is None:
        return False
    if profile.earlier is None:
        profile.earlier = []
        with suppress(UsageError):  # none, or a damaged one: no reason for a run to fail
            profile.earlier = _parts(directory)
    directory.write_json(PROFILE_FILE, {"schema": SCHEMA, "parts": [*profile.earlier, profile.document()]})
    return True


def weigh(loaded: Loaded, options: Mapping[str, Options]) -> None:
    """While a profile is taken, note what the weights take and what a gradient keeps, at the last site of the run."""
    profile = current()
    if profile is None or loaded.subject is None or not loaded.prompts:
        return
    with suppress(Exception):  # nothing is said of what cannot be measured
        expressions = [expression for each in options.values() for expression in site_expressions(each)]
        sites = loaded.subject.expand_sites(expressions[-1] if expressions else "blocks")
        prompt = max(loaded.prompts, key=lambda each: each.input_ids.shape[1])
        profile.weigh(loaded.subject, sites[-1], prompt.input_ids)


def profile_model(repair: Repair) -> None:
    """While a profile is taken, name the operators of the steps by the modules of the model that there is then."""
    profile = current()
    if profile is not None:
        profile.names_modules_of(lambda: getattr(repair.loaded.subject, "model", None))


def profile_page(directory: RunDirectory) -> Page | None:
    """The page of a run's profile, or None where there is none. Raises UsageError if it is damaged."""
    if not (directory.path / PROFILE_FILE).is_file():
        return None
    with _damage(directory.path / PROFILE_FILE):
        return draw(_parts(directory), _processes(directory))


@contextmanager
def _damage(place: Path) -> Iterator[None]:
    """Raises UsageError where what is read of a profile is no profile's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise UsageError(f"The file '{place}' is damaged: {type(error).__name__} {error}; it may be removed.") from None


def check_profile(directory: RunDirectory) -> None:
    """Leave out what an earlier process kept if it cannot be drawn: no reason for a run to fail."""
    try:
        profile_page(directory)
    except UsageError:
        (directory.path / PROFILE_FILE).unlink(missing_ok=True)


def profile_sentence(path: Path) -> str | None:
    """What took most of a run's time, or None where no profile was taken. Raises UsageError if it is damaged."""
    if not (path / PROFILE_FILE).is_file():
        return None
    with _damage(path / PROFILE_FILE):
        return of_time(_parts(RunDirectory(path)))


def _processes(directory: RunDirectory) -> int:
    """How many processes worked on a run, as far as its times say."""
    resumed = None
    with suppress(UsageError):  # its times may be gone
        resumed = directory.read_json("timings.json").get("resumed")
    return 1 + (len(resumed) if isinstance(resumed, list) else 0)


def _parts(directory: RunDirectory) -> list[dict[str, Any]]:
    document = directory.read_json(PROFILE_FILE)
    parts = document.get("parts")
    if document.get("schema") != SCHEMA or not isinstance(parts, list) or not parts:
        raise UsageError(
            f"The file '{directory.path / PROFILE_FILE}' is no profile of this version; it may be removed."
        )
    return parts
