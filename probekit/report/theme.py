"""Vega's configuration in the colours of the stylesheet: for the page, whose script fills in the reader's theme, and
for figures on paper, which have the light one.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from probekit.report.charts.series import CATEGORIES, LEVELS

STYLESHEET = Path(__file__).parent / "templates" / "page.css"
PAPER_FONT = "Liberation Sans, Arial, sans-serif"

_TEXT = {"labelColor": "$muted", "titleColor": "$ink", "labelFontSize": 12, "titleFontSize": 12}

# "$name" is a variable of the stylesheet, "$font" its font; "$categories", "$levels" and "$steps" are lists of colours.
VEGA_CONFIG: dict[str, Any] = {
    "font": "$font",
    "background": "transparent",
    "padding": 4,
    "view": {"stroke": None},
    "mark": {"color": "$category-0", "aria": False},
    "line": {"strokeWidth": 2, "strokeCap": "butt", "strokeJoin": "round"},
    "text": {"color": "$ink"},
    "rule": {"color": "$muted"},
    "axis": {
        **_TEXT,
        "aria": False,
        "titleFontWeight": 600,
        "titlePadding": 10,
        "labelPadding": 6,
        "labelLimit": 140,
        "titleLimit": 480,
        "gridColor": "$rule",
        "domainColor": "$edge",
        "tickColor": "$edge",
    },
    "axisY": {"domain": False, "ticks": False},
    "legend": {**_TEXT, "aria": False, "titleFontWeight": 600, "symbolLimit": 60, "labelLimit": 240, "titleLimit": 240},
    "title": {
        "color": "$ink",
        "subtitleColor": "$muted",
        "anchor": "start",
        "fontWeight": 600,
        "limit": 640,
    },
    "header": _TEXT,
    "range": {"category": "$categories", "heatmap": "$levels", "ramp": "$levels", "ordinal": "$steps"},
}


def paper_config(colours: list[str]) -> dict[str, Any]:
    """The configuration for paper; `colours` are the names of a chart's own categories, if it has a key."""
    light = _light()
    lists = {
        "$categories": [light[name] for name in colours or [f"category-{index}" for index in range(CATEGORIES)]],
        "$levels": [light[f"level-{level}"] for level in range(LEVELS)],
        "$steps": [light[f"level-{level}"] for level in range(3, LEVELS)],
    }
    config: dict[str, Any] = _filled(VEGA_CONFIG, {"$font": PAPER_FONT, **lists})
    return config | {"background": "#ffffff"}


def _filled(part: Any, known: dict[str, Any]) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, known) for key, value in part.items()}
    if isinstance(part, str) and part.startswith("$"):
        return known[part] if part in known else _light()[part[1:]]
    return part


@cache
def _light() -> dict[str, str]:
    """The variables of the stylesheet's light theme, which is its first rule."""
    style = STYLESHEET.read_text(encoding="utf-8")
    rule = style[style.index("{") : style.index("}")]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rule))
