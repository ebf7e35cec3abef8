"""Pictures of the demo and of the HTML report for the documentation, at the width of a desktop and of a phone.

    python scripts/screenshots.py --student runs/t6/student --teacher runs/t6/teacher
    python scripts/screenshots.py --student ... --teacher ... --output /tmp/looks --dark   # to look at the dark ones

Needs playwright, and chromium on the path: pip install 'itrd_nlp[dev]'.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from itrd_nlp.cli.demo import Loaded, default_examples, reserve, start
from itrd_nlp.experiments.plots import figures, html
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.training.record import Record

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}


def shoot(browser: Browser, address: str, name: str, options: argparse.Namespace) -> None:
    """One picture a window: ``name-desktop.png``, ``name-phone.png``."""
    for window, (width, height) in WINDOWS.items():
        scheme = "dark" if options.dark else "light"
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        page.goto(address)
        if name == "demo":
            page.locator("#student-context .highlighted").first.wait_for()
            if window == "phone":
                page.locator("#student").scroll_into_view_if_needed()
        path = options.output / f"{name}-{window}.png"
        shown = {"x": 0, "y": 0, "width": width, "height": 1400}  # down to a report's first plot
        page.screenshot(path=path, **({"full_page": True, "clip": shown} if name == "report" else {}))
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
                path, optimize=True
            )  # a third of the size
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    models = [Loaded.read("teacher", options.teacher), Loaded.read("student", options.student)]
    records = [Record.read(path) for path in sorted((ROOT / "scripts" / "results" / "comparison").glob("*.json"))]
    report = options.output / "report.html"
    report.write_text(html([comparison_table(records)], figures(records)), encoding="utf-8")
    with reserve(0) as reserved:
        port = reserved.getsockname()[1]
    demo = start(models, default_examples(models[-1].tokenizer), port)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        shoot(browser, demo.local_url, "demo", options)
        shoot(browser, report.as_uri(), "report", options)
        browser.close()
    demo.close(verbose=False)
    report.unlink()


if __name__ == "__main__":
    main()
