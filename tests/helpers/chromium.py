"""Pages in a real browser; tests that import this are skipped where there is none."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
IN_CHROMIUM = [  # marks of a module
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]
SIZES = [(1280, 900), (390, 844)]
PATIENCE = 120_000  # milliseconds; two loaded cores are slow


@contextmanager
def browsing(*flags: str) -> Iterator[Any]:
    """A browser, with further flags."""
    usual = ["--no-sandbox", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*usual, *flags])
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Any, address: str, shown: str, size: Sequence[int] = SIZES[0]
) -> Iterator[Any]:
    """A page in a browser session of its own, once what `shown` selects is there."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    context.set_default_timeout(PATIENCE)
    try:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(shown)
        page.wait_for_selector("text=Loading...", state="detached")  # Gradio's own, a moment longer
        yield page
    finally:
        context.close()
