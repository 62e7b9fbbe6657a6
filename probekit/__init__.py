"""probekit: what does layer k still know about its input, and which other inputs does it take for the same?

The public API, and nothing else. Importing it imports neither torch nor transformers: names are loaded when they are
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit.activations import ActivationBatch, ActivationDataset, Recording
    from probekit.analysis import (
        ActivationAnalysis,
        Analysis,
        Context,
        JointReport,
        Listener,
        Loop,
        Options,
        Progress,
        Prompt,
        Result,
        Sites,
        TokenSequence,
    )
    from probekit.description.fitting import rows_that_fit
    from probekit.errors import (
        AnalysisError,
        BusyError,
        ModelError,
        PluginError,
        ProbekitError,
        StorageError,
        UsageError,
        out_of_memory,
    )
    from probekit.forward import Continuation, LayerMap, LayerMaps
    from probekit.hookspecs import hookimpl
    from probekit.models.anatomy import Anatomy
    from probekit.models.spec import ModelSpec
    from probekit.models.trust import reading_model
    from probekit.plugins import Plugins
    from probekit.report import Page, Token, TokenRow
    from probekit.runs import Run, RunConfig, read_run, record, resume, run
    from probekit.runs.comparison import Comparison, compare
    from probekit.runs.verify import Verified, verify
    from probekit.subject import DECODERS, Subject, load

__version__ = "0.2.0"

_HOME = {
    "ActivationAnalysis": "analysis",
    "ActivationBatch": "activations",
    "ActivationDataset": "activations",
    "Analysis": "analysis",
    "AnalysisError": "errors",
    "Anatomy": "models.anatomy",
    "BusyError": "errors",
    "Comparison": "runs.comparison",
    "Context": "analysis",
    "Continuation": "forward",
    "DECODERS": "subject",
    "JointReport": "analysis",
    "LayerMap": "forward",
    "LayerMaps": "forward",
    "Listener": "analysis",
    "Loop": "analysis",
    "ModelError": "errors",
    "ModelSpec": "models.spec",
    "Options": "analysis",
    "Page": "report",
    "PluginError": "errors",
    "Plugins": "plugins",
    "ProbekitError": "errors",
    "Progress": "analysis",
    "Prompt": "analysis",
    "Recording": "activations",
    "Result": "analysis",
    "Run": "runs",
    "RunConfig": "runs",
    "Sites": "analysis",
    "StorageError": "errors",
    "Subject": "subject",
    "Token": "report",
    "TokenRow": "report",
    "TokenSequence": "analysis",
    "UsageError": "errors",
    "Verified": "runs.verify",
    "compare": "runs.comparison",
    "hookimpl": "hookspecs",
    "load": "subject",
    "out_of_memory": "errors",
    "read_run": "runs",
    "reading_model": "models.trust",
    "record": "runs",
    "resume": "runs",
    "rows_that_fit": "description.fitting",
    "run": "runs",
    "verify": "runs.verify",
}

__all__ = [
    "DECODERS",
    "ActivationAnalysis",
    "ActivationBatch",
    "ActivationDataset",
    "Analysis",
    "AnalysisError",
    "Anatomy",
    "BusyError",
    "Comparison",
    "Context",
    "Continuation",
    "JointReport",
    "LayerMap",
    "LayerMaps",
    "Listener",
    "Loop",
    "ModelError",
    "ModelSpec",
    "Options",
    "Page",
    "PluginError",
    "Plugins",
    "ProbekitError",
    "Progress",
    "Prompt",
    "Recording",
    "Result",
    "Run",
    "RunConfig",
    "Sites",
    "StorageError",
    "Subject",
    "Token",
    "TokenRow",
    "TokenSequence",
    "UsageError",
    "Verified",
    "compare",
    "hookimpl",
    "load",
    "out_of_memory",
    "read_run",
    "reading_model",
    "record",
    "resume",
    "rows_that_fit",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probekit' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"probekit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
