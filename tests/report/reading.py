"""A report as a person reads it, in headless Chromium."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LISTEN = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective + event.blockedURI));
"""
CHARTS = """[...document.querySelectorAll("[data-chart]")].map((box) => {
  const drawing = box.querySelector("svg, canvas");
  const { width, height } = drawing ? drawing.getBoundingClientRect() : { width: 0, height: 0 };
  return [box.dataset.drawn, width, height];
})"""


def executable() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("PROBEKIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium while the block is open. Skips the test without one, and fails it where CI has none."""
    path = executable()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        reason = "needs playwright and a chromium on PATH (or PROBEKIT_CHROMIUM)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Reader:
    """A report opened from disk, with everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.failures: list[tuple[str, str]] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.failures.append((request.url, str(request.failure))))
        self.page.add_init_script(LISTEN)
        self.page.goto(path.as_uri())
        if context.get("java_script_enabled", True):
            self.wait_for_charts()

    def wait_for(self, condition: str) -> None:
        """Wait until a condition holds; playwright's own wait_for_function evals, which the page forbids."""
        deadline = time.monotonic() + 30
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(50)

    def wait_for_charts(self, theme: str = "") -> None:
        drawn = f"box.dataset.drawn === '{theme}'" if theme else "box.dataset.drawn"
        boxes = "[...document.querySelectorAll('[data-chart]')]"
        self.wait_for(f"{boxes}.every((box) => {drawn})")
        # In the dark, copies for paper follow.
        self.wait_for(f"!{boxes}.length || document.documentElement.dataset.charts === 'drawn'")
