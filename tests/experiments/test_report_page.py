"""A report in HTML: what it escapes, and how a browser shows it."""

import pytest

from browser import WINDOWS, overflow, violations
from experiments.test_report import comparable
from itrd_nlp.experiments.plots import figures, html
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.utils.tables import Table


def test_a_name_is_text_and_a_recipe_is_code():
    page = html(
        [Table("`toy/<b>`, seed 1:", ["", "F1 & EM"], [["<script>x</script>", "1.0"]])], {"a < b": ["<svg></svg>"]}
    )
    assert "<code>toy/&lt;b&gt;</code>, seed 1:" in page and "<script" not in page
    assert "<th scope=row>&lt;script&gt;x&lt;/script&gt;</th><td>1.0</td>" in page
    assert "<th scope=col>F1 &amp; EM</th>" in page and "<figcaption>a &lt; b</figcaption>" in page


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "scheme"), WINDOWS)
def test_it_fits_every_window_and_is_accessible(chromium, width, height, scheme):
    records = comparable()
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_content(html([comparison_table(records)], figures(records)))
    assert overflow(page) <= 0
    assert page.locator("svg").first.bounding_box()["width"] <= width
    ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    assert violations(page) == []
    context.close()
