"""Engines, which carry out the cells of a study: `Local` in this process, `OnRay` on the workers of a Ray cluster."""

from probekit.runs.studies.engines.local import Local
from probekit.runs.studies.engines.on_ray import OnRay

__all__ = ["Local", "OnRay"]
