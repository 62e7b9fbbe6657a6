"""The trainings: their losses, a card for each, where they are saved, and what can be done with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.page_figures import LINES, Row, number, sites_of, some

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.autoencoder import AutoencoderOptions

# Where a run keeps an analysis's files, beside its report.
FOLDER = "analyses/autoencoder/files"
Point = tuple[int, float | None, float | None, float | None]


def draw_trainings(result: Result, page: Page, options: AutoencoderOptions) -> None:
    """Loss curves, cards and files of every training."""
    rows = result.tables.get("trained", [])
    if not rows:
        return
    page.heading("The trainings")
    _losses(result, page, rows)
    several = len(sites_of(rows)) > 1
    page.table(
        ["training", "seed", "parameters", "steps", "examples", "final loss", "FVE", "seconds"],
        [
            [
                f"{row['site']}/{_setting(row)}" if several else _setting(row),
                *(row.get(name) for name in ("seed", "parameters", "steps", "examples", "loss", "fve")),
                result.seconds.get(f"training {row['site']}/{row['name']}"),
            ]
            for row in rows
        ],
        caption="Every training",
        interactive=True,
        collapsed=len(rows) > 40,
        targets=[_target(result, row) for row in rows],
        remark="A link leads to its cfg.json, which says what it is; its weights are beside it. The final loss is the "
        "mean over the last twentieth of the steps, on examples to train on; examples are counted each time that they "
        "were seen. A training's random weights and order of examples follow from its seed.",
    )
    _files(result, page, rows)


def _setting(row: Row) -> str:
    return str(row["name"]).removesuffix(f"-seed{row.get('seed')}")


def _losses(result: Result, page: Page, rows: Sequence[Row]) -> None:
    """A chart for each variant, whose losses are in units of their own; a line for each setting, over its seeds."""
    of: dict[tuple[str, str], dict[int, list[float]]] = {}
    for each in result.tables.get("losses", []):
        value = number(each.get("loss"))
        if value is not None:
            losses = of.setdefault((str(each["site"]), str(each["name"])), {})
            losses.setdefault(int(str(each["step"])), []).append(value)
    several = len(sites_of(rows)) > 1
    by_variant: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        steps = of.get((str(row["site"]), str(row["name"])))
        if steps:
            name = f"{_setting(row)} at {row['site']}" if several else _setting(row)
            together = by_variant.setdefault(str(row["variant"]), {}).setdefault(name, {})
            for step, values in steps.items():
                together.setdefault(step, []).extend(values)
    for variant, settings in by_variant.items():
        names = list(settings)
        chosen = some(names, LINES)
        series: dict[str, list[Point]] = {
            name: [(step, median(found), min(found), max(found)) for step, found in sorted(settings[name].items())]
            for name in chosen
        }
        seeds = max(len(found) for name in chosen for found in settings[name].values())
        page.band(
            series,
            x="step",
            y="loss",
            caption=f"The loss of {variant} over the steps"
            + (f": median over {seeds} seeds, least to greatest" if seeds > 1 else "")
            + (f"; {len(chosen)} of {len(names)} settings" if len(chosen) < len(names) else ""),
            log_y=_falls_far(series),
        )


def _falls_far(series: Mapping[str, Sequence[Point]]) -> bool:
    """Whether losses are all above 0 and of sizes so unlike that a linear axis would show the greatest alone."""
    losses = [middle or 0.0 for line in series.values() for _, middle, _, _ in line]
    return min(losses) > 0 and max(losses) > 15 * min(losses)


def _target(result: Result, row: Row) -> str | None:
    """The path of its cfg.json beside the report; None where there is none, or none that a link may hold."""
    path = f"{row['site']}/{row['name']}/cfg.json"
    linked = re.fullmatch(r"[\w.@+-][\w.@+ /-]*", path)
    return f"{FOLDER}/{path}" if path in result.files and linked and ".." not in path.split("/") else None


def _files(result: Result, page: Page, rows: Sequence[Row]) -> None:
    usable = [
        row for row in rows if row.get("fve") is not None and f"{row['site']}/{row['name']}/cfg.json" in result.files
    ]
    if not usable:
        return
    best = max(usable, key=lambda row: number(row["fve"]) or 0.0)
    folder = f"{FOLDER}/{best['site']}/{best['name']}"
    folder = f"'{folder}'" if " " in folder else folder
    page.prose(
        f"Each training is saved in a folder of its own, {FOLDER}/SITE/TRAINING beside this report: a cfg.json and "
        "weights in safetensors. Sparse ones are in the format of SAELens, which other programs read. To see whether "
        "prompts can be recovered from what one of them makes of the activations, run in the folder of this report, "
        "with the same model:\n\n"
        f"probekit run --model … --plugin gradient-inverter -o sites={best['site']} -o through={folder}\n\n"
        "To measure one of them again, on other text or beside others:\n\n"
        f"probekit run --model … --plugin autoencoder -o sites={best['site']} -o text=FILE -o saved={folder}"
    )
