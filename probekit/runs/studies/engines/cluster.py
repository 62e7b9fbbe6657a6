"""Ray, connected: a cluster of this machine alone that is started and shut down here, or one at an address.

Ray's own voice is kept away, and it reports nothing to anybody.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from probekit.errors import UsageError

SECONDS_TO_ANSWER = 10.0
# Bytes, about Ray's smallest: nothing goes through it but the names of cells.
OBJECT_STORE = 80 * 2**20
VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "PYTHONBREAKPOINT")


def import_ray() -> Any:
    """Ray. Raises UsageError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"`--engine ray` needs Ray, which cannot be imported ({error}); install probekit[ray], here and on every "
            "machine of the cluster, or leave it out to use this process."
        ) from None


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, while open: the cluster that this process is connected to already, else that at the address, else one that
    is started here with so many cores and ends with the block.

    Raises UsageError if there is no cluster at the address, or none can be started.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    with ExitStack() as after:
        after.enter_context(_quiet(ray))
        after.enter_context(_own_handler())
        settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
        after.enter_context(_environment(own=address is None))
        if address is None:
            settings |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            settings |= {"object_store_memory": OBJECT_STORE, "_temp_dir": after.enter_context(_short_folder())}
        else:
            _reach(address)
            settings["address"] = address
        after.callback(ray.shutdown)  # also what an interrupt leaves half started
        try:
            ray.init(**settings)
        except Exception as error:
            what = f"There is no Ray cluster at '{address}' that can be used" if address else "Ray does not start here"
            raise UsageError(f"{what}: {first_sentence(error)}") from None
        yield ray


def _reach(address: str) -> None:
    """Raise UsageError if nobody answers at an address: Ray would try for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
        if host is not None and port is not None:
            socket.create_connection((host, port), SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"There is no Ray cluster at '{address}' that can be used: {words}.") from None


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Neither Ray's log nor what it prints of workers that die: what happens is said by those who use it."""
    log = logging.getLogger("ray")
    level = log.level
    inner: Any = import_module("ray._private.worker")
    printed = getattr(inner, "_worker_logs_enabled", True)
    log.setLevel(logging.ERROR)
    inner._worker_logs_enabled = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        inner._worker_logs_enabled = printed


@contextmanager
def _own_handler() -> Iterator[None]:
    """The handler of SIGTERM, which Ray takes, is given back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@cache
def _password() -> str:
    """What Ray asks of who wants to use the cluster, else any user of this machine could; without it Ray would write
    one into the home folder. One for the process, since Ray remembers the first.
    """
    return secrets.token_hex(32)


@contextmanager
def _environment(own: bool) -> Iterator[None]:
    """Ray's settings, with those of a cluster that is started here, while open; Ray itself writes some."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if own:
        os.environ.setdefault("RAY_AUTH_TOKEN", _password())
    try:
        yield
    finally:
        for name, was in before.items():
            if was is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = was


@contextmanager
def _short_folder() -> Iterator[str]:
    """A temporary folder of a short name: paths of sockets have about a hundred characters at most."""
    place = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="probekit-ray-", dir=place, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def token_file(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and content of a file in a folder, while open: who can read it has the same folder."""
    name, content = f".workers.{os.getpid()}.tmp", secrets.token_hex(16)
    (folder / name).write_text(content, encoding="utf-8")
    try:
        yield name, content
    finally:
        with suppress(OSError):
            (folder / name).unlink()


def first_sentence(error: Exception) -> str:
    """Of the many sentences in which Ray says what is wrong the first, or what it quotes last: `ImportError: …`."""
    text = str(error).strip() or type(error).__name__
    quoted = re.fullmatch(r"\w+(Error|Exception): .*", text.splitlines()[-1].strip())
    chosen = quoted[0] if quoted else " ".join(text.split()).partition(". ")[0]
    return chosen.rstrip(".")[:300] + "."
