"""Tables come from records, and a stale section is refused."""

import csv
import dataclasses
import io
import json
import math
import statistics

import numpy as np
import pytest

from itrd_nlp.cli.main import main
from itrd_nlp.experiments.compare import compare, plan_runs
from itrd_nlp.experiments.fairness import check_same
from itrd_nlp.experiments.intervals import paired_interval
from itrd_nlp.experiments.report import comparison_table, section, update
from itrd_nlp.training.record import Record, decimals, run_table
from itrd_nlp.utils.errors import UserError

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
        digests={"validation data": "same"},
        versions={"torch": "2", "transformers": "5"},
        device="cpu: x, 2 threads",
        latency_length=128,
        latency_threads=4,
        commit="a" * 40,
        dirty=True,
    )


def test_a_table_has_the_three_rows():
    lines = run_table(record()).markdown().splitlines()[2:]
    assert lines[0].startswith("|  | EM | F1 | parameters | MiB |")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| teacher | 90.12 | 95.00 | 2,000 | 2.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | given |",
        "| student without distillation | 50.00 | 60.00 | 1,000 | 1.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | 3 |",
        "| student with itrd + kd | 70.00 | 80.00 | 1,000 | 1.0 | 10.0 ± 0.5 | 320.0 ± 0.5 | 6 |",
    ]


def test_errors_show_digits_that_percentages_do_not_need():
    metrics = {"teacher": {"mse": 0.0061234, "r2": 91.234}, "student": {"mse": 0.0138, "r2": 80.5}}
    names = ["r2", "mse"]
    one = dataclasses.replace(record(), arguments={"task": "regression"}, metrics=metrics, metric_names=names)
    assert [row[1:3] for row in run_table(one).rows] == [["91.23", "0.00612"], ["80.50", "0.01380"]]
    assert decimals("mse", [12.3456]) == 2 and decimals("mse", [0.0]) == 2 and decimals("f1", [0.001]) == 2
    assert decimals("mse", [math.nan, math.inf, 0.5]) == 3 and decimals("mse", [math.nan]) == 2


def test_a_section_says_where_it_comes_from():
    text = section([run_table(record())] * 2)
    assert text.count("| teacher |") == 2 and "; latency in fp32 on the CPU, 4 threads, 128 tokens, median" in text
    assert "`toy/x`, seed 1 (5 training questions; cpu: x, 2 threads" in text and "aaaaaaaaaa with changes" in text


def test_a_marked_section_is_written_and_checked(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n{BEGIN}\nold\n{END}\ntail\n")
    table = run_table(record()).markdown()
    with pytest.raises(UserError, match="stale"):
        update(path, table, check=True)
    update(path, table)
    update(path, table, check=True)
    text = path.read_text()
    assert text.startswith("# Title\n") and text.endswith("\ntail\n") and "old" not in text and table in text
    path.write_bytes(text.replace("\n", "\r\n").encode())  # as Windows has it
    update(path, table, check=True)
    update(path, f"{table}\nnew")
    assert path.read_bytes().decode().replace("\r\n", "") == text.replace(table, f"{table}\nnew").replace("\n", "")


@pytest.mark.parametrize("text", ["nothing", f"{BEGIN}\n", f"{END}\n"])
def test_a_file_without_markers_is_refused(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(UserError, match="no report section"):
        update(path, "new")
    with pytest.raises(UserError, match="no such file"):
        update(tmp_path / "other.md", "new")


def comparable():
    """Two methods at two seeds, ten questions each."""
    records = []
    for seed in (0, 1):
        for label, points in (("KD", 5), ("ITRD", 10)):
            rows = {"teacher": 90, "baseline": 40 + seed, "student": 40 + seed + points + seed}
            examples = {role: {"f1": [value - 10.0, value + 10.0] * 5} for role, value in rows.items()}
            made = record()
            made.recipe, made.label, made.seed, made.examples = label.lower(), label, seed, examples
            made.metrics = {role: {"exact_match": value - 5.0, "f1": float(value)} for role, value in rows.items()}
            made.step_seconds, made.peak_mib = {"student": 0.5, "baseline": 0.25}, {"student": 100.0, "baseline": 80.0}
            made.terms = {"student": [{"loss": 1.0, "kd": 1.0 / n, "epoch": n / 3} for n in (1, 2, 3)]}
            records.append(made)
    return records


def write(folder, records):
    paths = [folder / f"{record.label}-{record.seed}.json" for record in records]
    for path, made in zip(paths, records, strict=True):
        path.write_text(json.dumps(dataclasses.asdict(made)))
    return [str(path) for path in paths]


def test_a_comparison_has_a_row_for_each_method():
    table = comparison_table(comparable())
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["teacher", "undistilled", "ITRD", "KD"]
    assert table.columns[:4] == ["", "EM", "F1", "difference to undistilled"]
    assert rows["teacher"][:5] == ["teacher", "85.00", "90.00", "", "100"]
    spread = statistics.stdev([50, 52])
    assert rows["ITRD"][1:3] == [f"46.00 ± {spread:.2f}", f"51.00 ± {spread:.2f}"]
    assert rows["ITRD"][3].startswith("+10.50 [+4.1") and rows["undistilled"][3] == ""
    assert rows["ITRD"][4:] == ["56.7", "1,000", "10", "100", "0.500"] and rows["undistilled"][6:] == [
        "0",
        "80",
        "0.250",
    ]
    assert "seeds 0, 1" in table.caption
    assert "several undistilled" not in table.caption
    against = {row[0]: row[3] for row in comparison_table(comparable(), "KD").rows}
    assert against["KD"] == "" and against["ITRD"].startswith("+5.00") and against["undistilled"].startswith("-5.50")


def test_without_the_undistilled_student_the_best_method_is_the_bar():
    records = comparable()
    for made in records:
        del made.metrics["baseline"]
    rows = {row[0]: row[3] for row in comparison_table(records).rows}
    assert comparison_table(records).columns[3] == "difference to ITRD"
    assert rows["ITRD"] == "" and rows["KD"].startswith("-5.00")


def test_a_student_that_had_no_labels_is_no_undistilled_one():
    records = comparable()
    for made in records:
        made.seconds.pop("baseline")
        if made.label == "KD":
            del made.metrics["baseline"]
    table = comparison_table(records)
    assert [row[0] for row in table.rows] == ["teacher", "untrained", "ITRD", "KD"]
    assert table.columns[3] == "difference to untrained" and "several undistilled" not in table.caption


def unlike():
    """Two methods whose students, and teachers, are not the same."""
    records = comparable()
    for made in records:
        small = made.label == "KD"
        made.digests |= {"student": "small" if small else "large", "teacher": "a" if small else "b"}
        if small:
            made.metrics["teacher"] = {"exact_match": 45.0, "f1": 50.0}
            made.metrics["baseline"] = {"exact_match": 25.0, "f1": 30.0}
            made.examples["baseline"] = {"f1": [20.0, 40.0] * 5}
    return records


def test_students_that_do_not_start_alike_are_compared_each_with_its_own_baseline():
    table = comparison_table(unlike())
    rows = {row[0]: row for row in table.rows}
    labels = ["teacher of KD", "teacher of ITRD", "undistilled, as KD", "undistilled, as ITRD", "ITRD", "KD"]
    assert list(rows) == labels and table.columns[3] == "difference to undistilled"
    assert rows["teacher of KD"][2] == "50.00" and rows["undistilled, as KD"][2:5] == ["30.00 ± 0.00", "", "60.0"]
    assert rows["KD"][3].startswith("+16.00") and rows["ITRD"][3].startswith("+10.50")
    assert rows["KD"][4] == "92.0" and rows["ITRD"][4] == "56.7"
    assert "several undistilled" not in table.caption
    against = {row[0]: row[3] for row in comparison_table(unlike(), "ITRD").rows}
    assert against["ITRD"] == "" and against["KD"].startswith("-5.00") and against["undistilled, as KD"]


def test_a_student_without_a_baseline_of_its_own_has_no_difference():
    records = unlike()
    for made in records:
        if made.label == "KD":
            del made.metrics["baseline"]
    rows = {row[0]: row[3] for row in comparison_table(records).rows}
    assert rows["KD"] == "" and rows["ITRD"].startswith("+10.50")


def test_records_that_do_not_go_together_are_refused():
    records = comparable()
    with pytest.raises(UserError, match=r"'ITRD' has the seeds \[0\]"):
        comparison_table(records[:3])
    with pytest.raises(UserError, match="'KD' has the seeds"):
        comparison_table([*records, records[0]])
    with pytest.raises(UserError, match="--against 'CRD': expected one of"):
        comparison_table(records, "CRD")
    check_same(records)
    records[0].digests["student's config"] = "a"
    check_same(records)  # others may be of an earlier version
    records[1].digests["student's config"] = "b"  # such as other dropout
    with pytest.raises(UserError, match="were not made with the same student's config"):
        check_same(records)
    for made in records:
        made.digests.pop("student's config", None)
        made.arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "f1"}
    check_same(records)
    records[-1].arguments["metric_for_best_model"] = "loss"
    with pytest.raises(UserError, match="were not made with the same metric_for_best_model"):
        check_same(records)


def test_the_interval_covers_what_seeds_and_questions_vary():
    draw = np.random.default_rng(0)
    questions = draw.normal(2.0, 10.0, size=(1, 400))
    low, high = paired_interval(questions.repeat(3, 0))
    error = questions.std() / 20
    assert low == pytest.approx(questions.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(questions.mean() + 1.96 * error, abs=0.3 * error)
    low, high = paired_interval(np.array([[0.0] * 50, [4.0] * 50]))
    assert (low, high) == pytest.approx((2 - 12.71 * 2, 2 + 12.71 * 2))  # two seeds that differ say little


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        seeds, questions = draw.normal(0, 1.0, (3, 1)), draw.normal(0, 10.0, (1, 200))
        low, high = paired_interval(seeds + questions + draw.normal(0, 20.0, (3, 200)))
        hits.append(low <= 0 <= high)
    assert 0.93 < np.mean(hits) < 0.995


def test_the_command_line_writes_every_format(tmp_path, capsys):
    paths = write(tmp_path, comparable())
    assert main(["report", *paths, "--comparison", "--format", "csv", "--against", "KD"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [row[0] for row in rows] == ["", "teacher", "undistilled", "ITRD", "KD"]
    readme = tmp_path / "README.md"
    readme.write_text("<!-- methods: begin -->\n<!-- methods: end -->\n")
    words = ["report", *paths, "--comparison", "--write", str(readme), "--marker", "methods"]
    assert main([*words, "--check"]) == 2 and "stale" in capsys.readouterr().err
    assert main(words) == 0 and main([*words, "--check"]) == 0 and "| ITRD |" in readme.read_text()
    assert main([*words, "--format", "csv"]) == 2
    assert main(["report", *paths, "--against", "KD"]) == 2 and "add that" in capsys.readouterr().err
    assert main(["report", *paths, "--marker", "x"]) == 2 and "--marker expects --write" in capsys.readouterr().err
    file = str(tmp_path / "report.csv")
    assert main(["report", *paths, "--output", file, "--format", "md"]) == 2
    assert "expected the same; leave one out" in capsys.readouterr().err
    assert main(["report", *paths, "--comparison", "--output", file]) == 0
    assert [row[0] for row in csv.reader((tmp_path / "report.csv").open())] == [
        "",
        "teacher",
        "undistilled",
        "ITRD",
        "KD",
    ]
    assert main(["report", *paths, "--output", str(tmp_path / "none" / "x.md")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_paths_may_be_texts_and_nothing_is_no_table(tmp_path):
    (first, *_) = write(tmp_path, comparable())
    assert Record.read(str(first)).label
    with pytest.raises(UserError, match="no records to compare"):
        comparison_table([])
    with pytest.raises(UserError, match="no runs to compare"):
        compare([])
    (run,) = plan_runs(["toy/t1-itrd"], [1], ["--max_steps", 3], str(tmp_path))
    assert run.training_args.max_steps == 3 and run.record.parent.parent.parent == tmp_path


def test_wildcards_that_no_shell_expands_are(tmp_path, monkeypatch, capsys):
    write(tmp_path, comparable())
    monkeypatch.chdir(tmp_path)
    outputs = []
    for words in (
        ["*D-?.json"],
        [str(tmp_path / "*D-?.json")],
        sorted(path.name for path in tmp_path.glob("*D-?.json")),
    ):
        assert main(["report", *words, "--comparison"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2] and "ITRD" in outputs[0]
    assert main(["report", "*D-?.json", "--format", "html"]) == 0
    assert "ITRD" in capsys.readouterr().out
    assert main(["report", "none-*.json"]) == 2 and "no such file" in capsys.readouterr().err


def test_records_of_other_teachers_are_not_compared(tmp_path, capsys):
    records = comparable()
    for made in records:
        made.digests = {"teacher": "x", "student": str(made.seed)}
    assert main(["report", *write(tmp_path, records), "--comparison"]) == 0
    records[1].digests = {"teacher": "y", "student": "0"}
    words = ["report", *write(tmp_path, records), "--comparison"]
    assert main(words) == 2 and "not made with the same teacher" in capsys.readouterr().err
    assert main([*words, "--unfair"]) == 0


def test_unlike_records_are_compared_without_an_interval_and_other_metrics_not_at_all():
    records = comparable()
    shorter = [record for record in records if record.label == records[0].label]
    for record in shorter:
        record.examples = {role: {name: x[:-1] for name, x in each.items()} for role, each in record.examples.items()}
    (row,) = [row for row in comparison_table(records).rows if row[0] == records[0].label]
    assert "[" not in "".join(row)
    records[-1].metric_names = ["accuracy"]
    with pytest.raises(UserError, match="expected one task in a table"):
        comparison_table(records)
