"""What a plugin provides: an analysis with typed options that turns a subject and prompts into a result, and a result
into a page.

Importing this imports neither torch nor transformers, so that plugins can be listed in a moment.
"""

from probekit.analysis.activation import ActivationAnalysis, site_expression
from probekit.analysis.base import Analysis
from probekit.analysis.context import Context, Listener, Loop, Progress
from probekit.analysis.joint import JointReport
from probekit.analysis.options import Options, Sites, parse_options, site_expressions
from probekit.analysis.prompt import Prompt
from probekit.analysis.result import Result, TokenSequence

__all__ = [
    "ActivationAnalysis",
    "Analysis",
    "Context",
    "JointReport",
    "Listener",
    "Loop",
    "Options",
    "Progress",
    "Prompt",
    "Result",
    "Sites",
    "TokenSequence",
    "parse_options",
    "site_expression",
    "site_expressions",
]
