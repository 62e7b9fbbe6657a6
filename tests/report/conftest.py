"""A document with every block and with text that tries to get out of its place."""

import math

import pytest

from probekit.report import Document, Page, Token, TokenRow

HOSTILE = [
    "</script><script>window.ranHostile = true</script>",
    '"><img src=x onerror="window.ranHostile = true">',
    "<!--<script>",
    "]]>",
    "\u202egnp.exe",
    "\x00",
    "\ud800",
    "{{ 7*7 }}",
    "{% raw %}",
    "&lt;b&gt;",
    "' onfocus='window.ranHostile = true",
    "\u2028\u2029",
    "javascript:window.ranHostile=true",
    "",
    " ",
    "\n",
    "\u200d",
]


def hostile_page() -> Page:
    text = " ".join(HOSTILE)
    page = Page(f"Everything {text}")
    page.finding(f"24 of 26 tokens came back {text}")
    page.heading(text)
    page.prose(f"First paragraph.\n\nSecond {text}")
    page.note(text)
    marks = ("right", "wrong", None)
    rows = [
        TokenRow(
            f"step {step} {text}",
            [
                Token(token, marks[(index + step) % 3], (index % 11) / 10, f"position {index} {text}")
                for index, token in enumerate(HOSTILE)
            ],
            note=text,
        )
        for step in range(3)
    ]
    page.tokens(rows, caption=text, legend=text)
    page.tokens(rows[:1], collapsed=True)
    page.trajectory(
        {text: rows, "ends early": rows[:2]},
        reference=TokenRow(text, [Token(token) for token in HOSTILE]),
        caption=text,
        legend=text,
        marks={"right": f"kept {text}", "wrong": f"left {text}"},
    )
    page.table(["name", text], [[text, 0.5], ["nan", math.nan], [None, True]], caption=text)
    page.table(
        ["run", text, "loss"],
        [[text, "b", 0.5], ["plain", "a", 12.0], ["<i>", "c", -1.5]],
        interactive=True,
        targets=["a/report.html", None, "b/report.html"],
    )
    page.table([f"column {index}" for index in range(40)], [list(range(40))], collapsed=True, caption="Wide")
    curve = [(step, 10 / (step + 1)) for step in range(50)]
    page.lines({text: curve, "second": curve[:20]}, x=text, y=text, caption=text, log_y=True, description=text)
    page.lines({f"block {index}": [(step, index + step) for step in range(9)] for index in range(12)})
    page.band({text: [(step, high, high / 2, high * 2) for step, high in curve]}, caption=text)
    grid = [
        [math.nan if (row, column) == (1, 2) else row * column for column in range(len(HOSTILE))] for row in range(4)
    ]
    page.heatmap(grid, HOSTILE, ["the", "the", text, "4"], x=text, y=text, value=text, caption=text)
    records = [{"a": text, "b": 2}, {"a": "plain", "b": math.inf}]
    encoding = {"x": {"field": "b", "type": "quantitative"}, "y": {"field": "a", "type": "nominal", "title": text}}
    page.chart({"mark": "bar", "title": text, "data": {"values": records}, "encoding": encoding}, caption=text)
    return page


def hostile_document() -> Document:
    text = " ".join(HOSTILE)
    return Document(
        title=f"A walk {text}",
        question=f"What does block 3 know? {text}",
        facts=[("Model", text), (text, "demo")],
        pages=[(f"clamped-walk {text}", hostile_page()), ("second", Page("Second"))],
        failures=[("jacobian", text)],
        command=f"probekit run --model demo --prompt '{text}'",
        provenance=[("Seed", "0"), (text, text)],
    )


@pytest.fixture
def page() -> Page:
    return hostile_page()


@pytest.fixture
def document() -> Document:
    return hostile_document()
