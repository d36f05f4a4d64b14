"""Debian's chromium, headless and without a network, as a person would open a page in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".tools" / "node_modules" / "axe-core" / "axe.min.js"


# What a mouse can do something with, by its number among all elements; and what has the focus.
_REACHABLE = """() => { const all = Array.from(document.querySelectorAll("*"));
  const found = document.querySelectorAll("a[href], button, input, select, textarea, [tabindex]");
  return Array.from(found).filter(e => e.checkVisibility()).map(e => all.indexOf(e)); }"""
_START_AT_THE_TOP = """() => { const body = document.body; body.tabIndex = -1;
  body.focus(); body.removeAttribute("tabindex"); }"""
_FOCUSED = """() => { const e = document.activeElement, style = getComputedStyle(e);
  return [Array.from(document.querySelectorAll("*")).indexOf(e), e === document.body,
    style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; }"""


@dataclass
class Opened:
    """A page that is open, and all that it complained about or asked for since."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def start_at_the_top(self) -> None:
        """Take the focus away, so that the next Tab leads to the first element."""
        self.page.evaluate(_START_AT_THE_TOP)

    def walk(self, key: str = "Tab") -> tuple[list[int], list[int]]:
        """Press a key until the focus has been everywhere; return where, and where it should."""
        expected, reached = self.page.evaluate(_REACHABLE), list[int]()
        self.start_at_the_top()
        for _ in range(len(expected) + 2):
            self.page.keyboard.press(key)
            number, is_outside, is_seen = self.page.evaluate(_FOCUSED)
            if is_outside or number in reached:
                break
            assert is_seen, "where the focus is cannot be seen"
            reached.append(number)
        return reached, expected if key == "Tab" else expected[::-1]

    def serious_findings(self) -> list[str]:
        """Return what axe-core finds serious or worse."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run().then(result => result.violations)")
        return [
            f"{each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]


def require_browser() -> str:
    """Return chromium's path; without it a test skips by name, but never in CI."""
    chromium = which("chromium")
    if chromium and AXE.exists():
        return chromium
    what = "no chromium or no axe-core: .ci/install-tools shows how they come"
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@contextmanager
def opened(path: str, *, width: int = 1280, bypass_csp: bool = False) -> Iterator[Opened]:
    """Open a file of this disk."""
    from playwright.sync_api import sync_playwright

    chromium = require_browser()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, bypass_csp=bypass_csp
        )
        shown = Opened(context.new_page())
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(Path(path).as_uri())
        try:
            yield shown
        finally:
            browser.close()
