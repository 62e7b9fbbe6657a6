"""Studies: a file that names runs and what they should show, carried out as resumable cells and judged by its rules."""

from probekit.runs.studies.carry_out import Study, study

__all__ = ["Study", "study"]
