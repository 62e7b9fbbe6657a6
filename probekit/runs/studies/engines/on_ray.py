"""`--engine ray`: the cells of a study on the workers of a Ray cluster, this machine's own or one at an address."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit.errors import UsageError
from probekit.models.spec import ModelSpec
from probekit.runs.studies.engines.cluster import connected, import_ray, token_file
from probekit.runs.studies.engines.crew import Crew
from probekit.runs.studies.engines.needs import Needs, gpus_of
from probekit.runs.studies.engines.worker import Settings
from probekit.runs.studies.work import Work

# What of the caller's environment decides where models are found; without what opens doors.
ENVIRONMENT = ("HF_", "TRANSFORMERS_", "PROBEKIT_")


@dataclass(frozen=True)
class OnRay:
    """Workers that keep the model of their last cell. What is None is found by itself.

    `address` is that of a cluster (`auto`, `host:6379`, `ray://host:10001`); without one, a cluster of this machine
    alone is there as long as the study. `cpus` is also the number of threads of a worker, by default as many as torch
    uses in this process, on which the last bits of a result depend.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    memory: int | None = None

    def carry_out(self, work: Work) -> None:
        """Raises UsageError if there is no cluster, if it has no room for a worker, or if a worker finds another folder
        or other packages; ProbekitError if workers die before they begin; KeyboardInterrupt after an interrupt.
        """
        if self.gpus is not None and not (0 <= self.gpus <= 1 or (self.gpus > 1 and self.gpus.is_integer())):
            raise UsageError(
                f"A worker cannot have {self.gpus:g} GPUs; expected a whole number, or a share of one such as 0.5."
            )
        import_ray()
        models = [cell.resolved.config.model for cell in work.cells if work.waits(cell)]
        if not models:
            return
        cpus = self.cpus or _threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        here = min(self.workers or max(1, cores // cpus), len(models))
        with connected(self.address, cpus * here) as ray, token_file(work.folder) as token:
            needs, size = self._sized(ray.cluster_resources(), cpus, here, models)
            size = min(size, len(models))
            work.listener.message(f"{size} {'worker' if size == 1 else 'workers'}, each with {needs}.")
            if self.address is None and size * cpus > cores:
                fewer = max(1, cores // size)
                work.listener.message(
                    f"They compute with {size * cpus} threads on {cores} cores; --cpus-per-worker {fewer} may be "
                    f"faster, and gives the bits that OMP_NUM_THREADS={fewer} gives in this process."
                )
            Crew(ray, work, self._settings(work, token, cpus), needs, size).carry_out()
        for _ in (work.folder / "cells").iterdir():  # a network's disk shows what others wrote to who reads the folder
            pass

    def _sized(self, there: dict[str, Any], cpus: int, here: int, models: list[ModelSpec]) -> tuple[Needs, int]:
        """What each worker needs, and how many there can be."""
        gpus = gpus_of(models, there.get("GPU", 0.0)) if self.gpus is None else self.gpus
        needs = Needs(cpus, gpus, self.memory or 0)
        room = needs.fitting(there)
        if self.address is not None:
            return needs, self.workers or max(1, room)  # a cluster may grow when somebody waits
        size = here if self.workers else max(1, min(room, here))
        if room < size:
            has = Needs(int(there.get("CPU", 0.0)), there.get("GPU", 0.0), int(there.get("memory", 0.0)))
            who = "a worker that needs" if size == 1 else f"{size} workers that each need"
            raise UsageError(f"This machine has no room for {who} {needs}; it has {has}.")
        return needs, size

    @staticmethod
    def _settings(work: Work, token: tuple[str, str], cpus: int) -> Settings:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(ENVIRONMENT) and not name.endswith("TOKEN")
        }
        blocked = [record.name for record in work.plugins.records if record.status == "blocked"]
        return Settings(work.folder, Path.cwd(), environment, blocked, cpus, work.seconds_between_saves, token)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
