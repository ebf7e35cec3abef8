"""Tables come from records, and a stale section is refused."""

import pytest

from itrd_nlp.errors import UserError
from itrd_nlp.record import Record
from itrd_nlp.report import section, table, update

BEGIN, END = "<!-- itrd report: begin -->", "<!-- itrd report: end -->"


def record():
    latency = {str(batch): {"median": 10.0 * batch, "spread": 0.5, "n": 10} for batch in (1, 32)}
    return Record(
        "toy/x",
        {"losses": {"itrd": {}, "kd": {}}},
        seed=1,
        metrics={
            "teacher": {"exact_match": 90.123, "f1": 95.0, "total": 7},
            "baseline": {"exact_match": 50.0, "f1": 60.0, "total": 7},
            "student": {"exact_match": 70.0, "f1": 80.0, "total": 7},
        },
        metric_names=["exact_match", "f1"],
        parameters={"teacher": 2000, "baseline": 1000, "student": 1000, "projectors": 10},
        size_mib={"teacher": 2.0, "baseline": 1.0, "student": 1.0},
        latency_ms={"teacher": latency, "student": latency},
        seconds={"baseline": 3.4, "student": 5.6},
        data={"training questions": 5},
        versions={"torch": "2", "transformers": "5"},
        device="cpu: x, 2 threads",
        latency_length=128,
        commit="a" * 40,
        dirty=True,
    )


def test_a_table_has_the_three_rows():
    lines = table(record()).splitlines()
    assert lines[0].startswith("|  | EM | F1 | parameters | MiB |")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| teacher | 90.12 | 95.00 | 2,000 | 2.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | given |",
        "| student without distillation | 50.00 | 60.00 | 1,000 | 1.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | 3 |",
        "| student with itrd + kd | 70.00 | 80.00 | 1,000 | 1.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | 6 |",
    ]


def test_a_section_says_where_it_comes_from():
    text = section([record(), record()])
    assert text.count("| teacher |") == 2
    assert "`toy/x`, seed 1 (5 training questions; cpu: x, 2 threads" in text and "aaaaaaaaaa with changes" in text


def test_a_marked_section_is_written_and_checked(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n{BEGIN}\nold\n{END}\ntail\n")
    with pytest.raises(UserError, match="stale"):
        update(path, [record()], check=True)
    update(path, [record()])
    update(path, [record()], check=True)
    text = path.read_text()
    assert text.startswith("# Title\n") and text.endswith("\ntail\n") and "old" not in text and table(record()) in text


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN}\n", f"{END}\n"])
def test_a_file_without_markers_is_refused(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(UserError, match="no report section"):
        update(path, [record()])
    with pytest.raises(UserError, match="no such file"):
        update(tmp_path / "other.md", [record()])
