"""The documentation: Markdown by MyST, the furo theme.

Formulas are written in plain Unicode, so that no page asks a server for a script that draws them.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "probekit"
author = "The probekit authors"
copyright = "2026, The probekit authors"
version = release = installed_version("probekit")

extensions = ["myst_parser", "command_reference", "hook_reference", "options_table", "public_api"]
exclude_patterns = ["_build", "_ext", "analyses/walk-figures.md"]
nitpicky = True
myst_heading_anchors = 3
# Pages and docstrings hold no HTML: a `<name>` in a docstring is text.
myst_disable_syntax = ["html_block", "html_inline"]

html_theme = "furo"
html_title = f"probekit {release}"
html_show_sourcelink = False
