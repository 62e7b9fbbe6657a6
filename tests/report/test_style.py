"""Contrast of the stylesheet's colours, computed as WCAG 2 defines it."""

import re

import pytest

from probekit.report import html

STYLE = html._TEMPLATES.joinpath("page.css").read_text(encoding="utf-8")


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|var\([^)]*\));", block))


LIGHT = colours(STYLE.split("@media")[0])
DARK = LIGHT | colours(STYLE.split("prefers-color-scheme: dark) {")[1].split("/* ---- page")[0])
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@THEMES
@pytest.mark.parametrize(
    ("text", "background"),
    [
        *((text, ground) for text in ("ink", "muted", "accent") for ground in ("page", "surface", "sunken")),
        ("ink", "warm-wash"),
        ("warm", "warm-wash"),
        ("ink", "bad-wash"),
        ("bad", "bad-wash"),
        ("right", "right-wash"),
        ("wrong", "wrong-wash"),
        ("tip-ink", "tip"),
    ],
)
def test_text_is_readable(theme: dict[str, str], text: str, background: str) -> None:
    assert contrast(theme[text], theme[background]) >= 4.5


@THEMES
@pytest.mark.parametrize("level", range(16))
def test_text_is_readable_on_every_level_of_the_scale(theme: dict[str, str], level: int) -> None:
    text = theme[theme[f"on-level-{level}"].removeprefix("var(--").removesuffix(")")]
    assert contrast(text, theme[f"level-{level}"]) >= 4.5


@THEMES
def test_levels_run_one_way_in_lightness(theme: dict[str, str]) -> None:
    steps = [luminance(theme[f"level-{level}"]) for level in range(16)]
    assert steps in (sorted(steps), sorted(steps, reverse=True))


@THEMES
@pytest.mark.parametrize("index", range(8))
def test_lines_stand_out_from_the_page(theme: dict[str, str], index: int) -> None:
    assert contrast(theme[f"category-{index}"], theme["page"]) >= 3
