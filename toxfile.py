"""One virtual environment for several tox environments.

Type checks, documentation, reports and tests each need probekit with torch: hundreds of megabytes, minutes to install.
tox can give environments a common `env_dir`, but it writes the environment's name into that folder and makes the
folder anew whenever the name differs. The `shared` runner leaves the name out, so that the environments that
name this runner, one `env_dir` and the same dependencies install them once. They must not run at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class _NamelessInfo(Info):
    """What tox remembers of an environment's folder, without the name of the environment that made it."""

    @contextmanager
    def compare(self, value: Any, section: str, sub_section: str | None = None) -> Iterator[tuple[bool, Any | None]]:
        if section == ToxEnv.__name__:
            value = {key: entry for key, entry in value.items() if key != "name"}
        with super().compare(value, section, sub_section) as outcome:
            yield outcome


class SharedVirtualEnv(VirtualEnvRunner):
    """A virtual environment that tox environments with the same `env_dir` use in turn."""

    @staticmethod
    def id() -> str:
        return "shared"

    @property
    def cache(self) -> Info:
        return _NamelessInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(SharedVirtualEnv)
