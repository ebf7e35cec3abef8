"""What the tests of pages ask a browser."""

from typing import Any

import pytest

WINDOWS = [(width, height, scheme) for width, height in ((1280, 800), (390, 844)) for scheme in ("light", "dark")]


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def violations(page: Any) -> list[str]:
    """The rules of accessibility that the page breaks, by axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in axe.Axe().run(page).response["violations"]]
