"""The profile that is being taken, where one is: what a run passes through marks its phases, and need not know more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from probekit.runs.profiling.profile import Profile

_CURRENT: ContextVar[Profile | None] = ContextVar("profile", default=None)


def current() -> Profile | None:
    """The profile that is being taken, or None."""
    return _CURRENT.get()


@contextmanager
def profiling(wanted: bool = True, whole_process: bool = False) -> Iterator[Profile | None]:
    """Take a profile while open, if it is wanted and none is being taken yet; it begins with the process if that is
    asked for.
    """
    if not wanted or current() is not None:
        yield current()
        return
    with Profile(whole_process).taken() as profile:
        token = _CURRENT.set(profile)
        try:
            yield profile
        finally:
            _CURRENT.reset(token)


def phase(name: str) -> AbstractContextManager[None]:
    """What passes while this is open counts to a phase of that name, less what passes in a phase inside it."""
    profile = current()
    return nullcontext() if profile is None else profile.phases.within(name)
