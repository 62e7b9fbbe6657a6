"""The page of the activation statistics: sizes, positions, outliers, and how many dimensions are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.activation_statistics import ActivationStatisticsOptions

Row = dict[str, Any]
# So many dimensions have a row where outlier features are listed by dimension.
MOST_DIMENSIONS = 20


def draw(result: Result, page: Page, options: ActivationStatisticsOptions) -> None:
    rows: list[Row] = result.tables["sites"]
    page.prose(
        "Before anything is computed on activations, it is worth knowing how large they are and which of them stand "
        "out. A distance, a cosine, a variance or a quantisation scale is decided by the largest figures: where a few "
        "of them are a thousand times the others, it says little about the others."
    )
    _sizes(page, rows)
    _positions(result, page, rows)
    _largest(result, page, rows)
    _features(result, page, rows, options)
    _dimensions(page, rows, options)


def _sizes(page: Page, rows: Sequence[Row]) -> None:
    page.heading("How large")
    columns = {
        "site": "site",
        "width": "width",
        "norm_median": "median norm",
        "norm_5_percent": "5th percentile",
        "norm_95_percent": "95th percentile",
        "norm_max": "largest norm",
        "magnitude_median": "median |a|",
        "magnitude_max": "largest |a|",
        "magnitude_max_over_median": "largest / median",
    }
    page.table(
        list(columns.values()),
        [[row[name] for name in columns] for row in rows],
        caption="By site: the L2 norm of a token's activation, with its spread over tokens, and the magnitude |a| of "
        "its single figures (medians and percentiles to within 0.4 %)",
        in_summary=True,
    )
    if len(rows) > 1:
        page.lines(
            {
                "largest |a|": _by_site(rows, "magnitude_max"),
                "median norm": _by_site(rows, "norm_median"),
                "median |a|": _by_site(rows, "magnitude_median"),
            },
            x="site",
            y="size",
            caption="Sizes by site",
            log_y=True,
        )


def _positions(result: Result, page: Page, rows: Sequence[Row]) -> None:
    norms, counts = result.tensors["norm_by_position"], result.tensors["tokens_by_position"]
    page.heading("By position")
    page.prose(
        "Many trained models park attention on the first token, an attention sink, and give it an activation of a "
        "length and direction of its own, whatever the token is. If the first column stands out below, leave "
        "position 0 out of means, distances and training data, or treat it apart. Values are relative to each site's "
        "median norm, so that deep sites, which are larger, compare with early ones."
    )
    page.heatmap(
        [
            [float(norm) / (row["norm_median"] or 1.0) for norm in of_site]
            for of_site, row in zip(norms, rows, strict=True)
        ],
        x_labels=list(range(len(counts))),
        y_labels=[row["site"] for row in rows],
        x="position",
        y="site",
        value="mean norm / median norm",
        caption=f"Mean norm by position, relative to the site's median norm ({int(counts[-1])} to {int(counts[0])} "
        "prompts a position)",
    )
    page.table(
        ["site", *(str(position) for position in range(len(counts)))],
        [[row["site"], *map(float, of_site)] for of_site, row in zip(norms, rows, strict=True)],
        caption="Mean norm by position, as it is",
        collapsed=True,
    )


def _largest(result: Result, page: Page, rows: Sequence[Row]) -> None:
    found: list[Row] = result.tables["largest"]
    if not found:
        return
    page.heading("The largest figures")
    massive = [row for row in rows if row["massive"]]
    page.prose(
        "Massive activations are single figures above 100 and about 1000 times the median or more. They sit in the "
        "same few dimensions whatever the input, mostly at the first token or at delimiters, and work as constant "
        "biases: setting them to zero can break a model, and rounding that is scaled by them loses the rest. "
        + (f"Here {'there are some at ' + ', '.join(row['site'] for row in massive) if massive else 'there are none'}.")
    )
    page.table(
        ["site", "largest", "times the median |a|", "dimension", "token", "position", "prompt", "massive figures"],
        [
            [*_figure(each), next(row["massive"] for row in rows if row["site"] == each["site"])]
            for each in found
            if each["rank"] == 0
        ],
        caption="The largest figure of each site, and how many are massive; positions count from 0, prompts from 1",
        in_summary=True,
    )
    page.table(
        ["site", "figure", "times the median |a|", "dimension", "token", "position", "prompt"],
        _joined(found),
        caption="The largest figures of each site; equal ones of one token at one position are one row",
        collapsed=True,
    )


def _figure(each: Row) -> list[object]:
    place = [each[name] for name in ("site", "value", "over_median", "dimension", "token", "position")]
    return [*place, each["prompt"] + 1]


def _joined(found: Sequence[Row]) -> list[list[object]]:
    """A row for each figure, but one for those that are the same but for the prompt, as those of a first `<s>` are."""
    together: dict[tuple[object, ...], list[Row]] = {}
    for each in found:
        same = (each["site"], f"{each['value']:.5g}", each["dimension"], each["token_id"], each["position"])
        together.setdefault(same, []).append(each)
    return [
        [*_figure(first)[:-1], f"{first['prompt'] + 1}" + (f" and {len(others)} more" if others else "")]
        for first, *others in together.values()
    ]


def _features(result: Result, page: Page, rows: Sequence[Row], options: ActivationStatisticsOptions) -> None:
    page.heading("Outlier features")
    page.prose(
        f"A dimension is an outlier feature if its magnitude is at least {options.outlier_magnitude:g} in at least "
        f"{100 * options.outlier_share:g} % of the tokens. LLM.int8() keeps those that many layers share in 16 bit. "
        "The threshold was found for the inputs of linear layers, after a norm; a residual stream grows with depth, "
        "and passes it in many dimensions without being uneven. Where most dimensions of a site count, raise it "
        "(-o outlier_magnitude=…), or measure at the norms."
    )
    if len(rows) > 1:
        page.lines(
            {"outlier features": [(row["site"], row["outlier_features"] / row["width"]) for row in rows]},
            x="site",
            y="share of dimensions",
            caption="Outlier features by site",
        )
    by_dimension: dict[int, list[Row]] = {}
    for row in result.tables["outlier_features"]:
        by_dimension.setdefault(int(row["dimension"] or 0), []).append(row)
    order = sorted(by_dimension, key=lambda each: (-len(by_dimension[each]), -max(_shares(by_dimension[each])), each))
    if order:
        page.table(
            ["dimension", "outlier at", "share of tokens", "largest |a|"],
            [
                [
                    each,
                    f"{len(by_dimension[each])} of {len(rows)} sites",
                    f"{max(_shares(by_dimension[each])):.1%}",
                    max(row["largest"] for row in by_dimension[each]),
                ]
                for each in order[:MOST_DIMENSIONS]
            ],
            caption="Outlier features, those of the most sites first; the share of tokens is that of the site where it "
            "is the greatest",
        )


def _shares(rows: Sequence[Row]) -> list[float]:
    return [row["share_of_tokens"] for row in rows]


def _dimensions(page: Page, rows: Sequence[Row], options: ActivationStatisticsOptions) -> None:
    page.heading("How many dimensions are used")
    skipped = ""
    if options.skip_first:
        many = "Position 0 does" if options.skip_first == 1 else f"Positions 0 to {options.skip_first - 1} do"
        skipped = f" {many} not count here: outliers there would decide alone."
    page.prose(
        "The effective dimension (participation ratio) is the number of equally strong directions that would spread "
        "as the tokens do: 1 if all lie on a line, the width if they fill the space evenly. The mean cosine of two "
        "tokens is near 0 where activations point everywhere, and near 1 where they fill a narrow cone: there a plain "
        f"cosine says little, and subtracting the mean helps.{skipped}"
    )
    page.table(
        ["site", "width", "effective dimension", "share of the width", "mean cosine of two tokens"],
        [
            [
                row["site"],
                row["width"],
                row["effective_dimension"],
                None if row["effective_dimension"] is None else row["effective_dimension"] / row["width"],
                row["mean_cosine"],
            ]
            for row in rows
        ],
        caption="Dimensions and directions by site",
        in_summary=True,
    )
    if len(rows) > 1:
        for name, title in (
            ("effective_dimension", "effective dimension"),
            ("mean_cosine", "mean cosine of two tokens"),
        ):
            if any(row[name] is not None for row in rows):
                page.lines({title: _by_site(rows, name)}, x="site", y=title, caption=f"The {title} by site")


def _by_site(rows: Sequence[Row], name: str) -> list[tuple[str, float | None]]:
    return [(row["site"], row[name]) for row in rows]
