from probekit.report import Document, Page, render_markdown


def test_a_summary_holds_question_findings_failures_and_command() -> None:
    page = Page("Walk")
    page.finding("24 of 26 tokens came back.")
    document = Document(
        "A walk", "What is left?", [("Model", "demo")], [("walk", page)], [("rank", "No memory.")], "probekit run"
    )
    assert render_markdown(document) == (
        "# A walk\n\nWhat is left?\n\n- Model: demo\n\n## walk\n\n24 of 26 tokens came back.\n\n"
        "## Failed\n\n- **rank**: No memory.\n\n## Make it again\n\n```sh\nprobekit run\n```\n"
    )


def test_markup_in_findings_stays_text() -> None:
    page = Page("t")
    page.finding("# <script>alert(1)</script> *a* [b](c) snake_case `x`\n- item")
    summary = render_markdown(Document("t", "q", pages=[("n", page)]))
    assert r"\# \<script\>alert(1)\</script\> \*a\* \[b\](c) snake_case \`x\` - item" in summary


def test_a_figure_at_the_start_is_not_a_list() -> None:
    page = Page("t")
    page.finding("24. of 26")
    page.finding("0.92 of all")
    summary = render_markdown(Document("t", "q", pages=[("n", page)]))
    assert "\n24\\. of 26\n" in summary


def test_a_command_with_backticks_cannot_leave_its_fence(document: Document) -> None:
    summary = render_markdown(Document("t", "q", command="echo ```` x"))
    assert "`````sh\necho ```` x\n`````" in summary
    render_markdown(document).encode("utf-8")


def test_a_table_of_the_summary_is_in_it_with_its_markup_escaped() -> None:
    page = Page("Figures")
    page.table(["name", "value"], [["left out", 1]])
    page.table(["na|me", "value"], [["a|b *c*", 0.12345], ["none", None]], caption="Kept", in_summary=True)
    text = render_markdown(Document(title="t", question="q", pages=[("Figures", Page.from_json(page.to_json()))]))
    assert "left out" not in text
    assert "| na\\|me | value |\n| --- | --- |\n| a\\|b \\*c\\* | 0.1235 |\n| none | – |" in text
