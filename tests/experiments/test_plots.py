"""Figures are made of what records hold, and of nothing else; what a page of them escapes, and how it shows."""

import builtins
import re
import shutil
import statistics

import pytest

from browser import WINDOWS, overflow, violations
from experiments.test_report import comparable, write
from itrd_nlp.cli.main import main
from itrd_nlp.experiments.plots import axes_of, differences, figures, html, quality, sweeps
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tables import Table


def test_a_report_page_needs_no_other_file(tmp_path):
    paths = write(tmp_path, comparable())
    assert main(["report", *paths, "--comparison", "--format", "html", "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 3 and page.count("<svg") == sum(
        len(some) for some in figures(comparable()).values()
    )
    assert "http://www.w3.org" in page and "src=" not in page and "<link" not in page
    for words in ("KD", "ITRD", "undistilled", "teacher", "Quality against latency", "Loss terms over epochs"):
        assert words in page
    assert main(["report", *paths, "--comparison", "--format", "html", "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page


def test_a_sweep_has_a_figure_for_each_axis_that_varies():
    records = []
    for alpha in (1.01, 2):
        for beta in (1, 3):
            (record, *_) = comparable()
            record.label = (
                f"ITRD, losses.itrd.alpha={alpha}, losses.itrd.beta_mi={beta}, learning_rate=1e-4, pooling=cls"
            )
            records.append(record)
    titles = list(figures(records))
    assert "F1 over losses.itrd.alpha" in titles and "F1 over losses.itrd.beta_mi" in titles
    assert not any("pooling" in title for title in titles)


def test_records_that_stand_alone_have_figures_of_their_own(tmp_path):
    paths = write(tmp_path, comparable()[:2])
    assert main(["report", *paths, "--format", "html", "--output", str(tmp_path / "page.html")]) == 0
    assert "ITRD, seed 0: Quality against size".lower() in (tmp_path / "page.html").read_text().lower()
    shutil.copy(paths[0], tmp_path / "other.json")
    assert main(["report", paths[0], str(tmp_path / "other.json"), "--output", str(tmp_path / "twice.html")]) == 0
    assert (tmp_path / "twice.html").read_text().count("<svg") == 2 * _drawings(paths[0], tmp_path)


def _drawings(path, folder):
    assert main(["report", path, "--output", str(folder / "once.html")]) == 0
    return (folder / "once.html").read_text().count("<svg")


def test_swept_rates_and_words_are_drawn():
    records = []
    for rate in ("1e-4", "0.0003"):
        for pooling in ("mean", "cls"):
            (record, *_) = comparable()
            record.label = f"ITRD, learning_rate={rate}, pooling={pooling}"
            records.append(record)
    assert {"F1 over learning_rate", "F1 over pooling"} <= set(figures(records))
    records[0].label = 'ITRD, layer_map=[[0,0],[2,1]], student={from: teacher, layers: "first:3"}'
    assert "F1 over pooling" in figures(records)


def test_a_baseline_that_several_records_hold_is_one_point_for_each_seed():
    (figure,) = quality(comparable(), "size")  # 40 and 41, in the records of two methods
    bars = {}
    for text, container in zip(figure.axes[0].texts, figure.axes[0].containers, strict=True):
        segments = container[2][0].get_segments() if container.has_yerr else []
        bars[text.get_text()] = float(segments[0][1][1] - segments[0][0][1]) if segments else 0.0
    assert bars["undistilled"] == pytest.approx(2 * statistics.stdev([40, 41])) and bars["teacher"] == 0


def test_what_was_not_measured_has_no_figure():
    records = comparable()
    for record in records:
        record.latency_ms, record.terms = {}, {}
    assert list(figures(records)) == ["Quality against size"]


@pytest.mark.parametrize("against", [None, "KD"])
def test_the_differences_are_those_of_the_table(against):
    records = comparable()
    (axis,) = differences(records, against).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == {None: ["KD", "ITRD"], "KD": ["undistilled", "ITRD"]}[against]  # the best on top
    rows = {row[0]: row[3] for row in comparison_table(records, against).rows}
    for label, drawn in zip(labels, axis.containers, strict=True):
        if not drawn[2]:  # all examples differ alike
            assert "[" not in rows[label]
            continue
        ((low, _), (high, _)), (middle,) = drawn[2][0].get_segments()[0], drawn[0].get_xdata()
        told = [float(number) for number in re.findall(r"[-+][\d.]+", rows[label])]
        assert [middle, low, high] == pytest.approx(told, abs=0.006)


def test_the_names_of_variants_are_what_differs_and_short():
    records = comparable()
    for record in records:
        record.label = "KD" if record.label == "KD" else f"KD, student={{from: teacher, {'layers: 1, ' * 20}}}"
    (axis,) = differences(records, "KD").axes
    (name,) = [text.get_text() for text in axis.get_yticklabels() if text.get_text() != "undistilled"]
    assert name.startswith("student={from: teacher, layers") and name.endswith(" ...") and len(name) <= 50
    with pytest.raises(UserError, match="expected one of"):
        differences(records, "CRD")


def test_without_matplotlib_it_says_so(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'itrd_nlp\[plots\]'"):
        figures(comparable())


def test_a_swept_number_is_drawn_in_its_order():
    records = []
    for alpha in (1, 10, 2):
        (record, *_) = comparable()
        record.label = f"ITRD, losses.itrd.alpha={alpha}"
        records.append(record)
    ((_, _, figure),) = sweeps(records)
    (line, *_) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1, 2, 10]


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


def test_values_that_are_mappings_make_no_axis():
    labels = {
        "itrd + kd, losses={itrd: {}, kd: {}}": {},
        "KD (T=4)": {},
        "KD, losses.kd.weight=2": {"losses.kd.weight": 2},
    }
    for label, axes in labels.items():
        assert axes_of(Record("a", {}, 0, label)) == axes
