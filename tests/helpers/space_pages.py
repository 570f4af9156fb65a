"""Pages of the Space in a browser: how tests open them, give scans, and read what they say."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from chromium import browsing, visiting

SIZES = [(1280, 800), (1920, 1080), (390, 844)]
DRAWN = "body[data-state='result'] #planes[data-volumes]"


def browsing_with_webgl() -> AbstractContextManager[Any]:
    """A browser that draws volumes without a GPU."""
    return browsing(
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"
    )


def visit(
    browser: Any, address: str, size: tuple[int, int] = SIZES[0]
) -> AbstractContextManager[Any]:
    """A page in a browser session of its own."""
    return visiting(browser, address, "#scan", size)


def upload(page: Any, scan: Path) -> None:
    page.set_input_files("#scan input[type=file]", str(scan))


def see(page: Any, name: str) -> None:
    """Wait until the result of a file is drawn; what the page says instead fails the test."""
    refused = page.locator("#message:not([hidden])")
    page.locator(f"#summary >> text={name}").or_(refused).wait_for()
    assert not refused.count(), refused.inner_text()
    page.wait_for_selector(DRAWN)


def open_example(page: Any, title: str = "Small tumour") -> None:
    page.click(f"#examples >> text={title}")
    page.wait_for_selector("#result .example")
    page.wait_for_selector(DRAWN)


def download(page: Any, kind: str, folder: Path) -> Path:
    """The file behind one of the page's buttons."""
    with page.expect_download() as started:
        page.click(f"#save-{kind}")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def read_error(page: Any) -> str:
    """What the page says is wrong."""
    return page.wait_for_selector("#message:not([hidden])").inner_text()


def violations(page: Any) -> set[tuple[str, str]]:
    """Rule of axe and element, for what is moderate or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return {
        (rule["id"], node["html"][:200])
        for rule in axe.Axe().run(page).response["violations"]
        for node in rule["nodes"]
        if rule["impact"] != "minor"
    }
