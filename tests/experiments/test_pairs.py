"""Tables of pairs of networks beside what was published."""

import dataclasses

import pytest

from itrd_nlp.cli.main import main
from itrd_nlp.experiments.pairs import pairs_table, relative
from itrd_nlp.experiments.recipes import read_reported
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import write_json

LABELS = {"kd": "KD", "reviewkd": "ReviewKD", "itrd": "ITRD"}


def record(pair, method, seed, score, epochs=()):
    rows = [{"accuracy": x, "epoch": i} for i, x in enumerate(epochs, 1)]
    return Record(
        f"cifar100/{pair}-{method}",
        {"losses": {}},
        seed,
        LABELS[method],
        metrics={"teacher": {"accuracy": 75.0}, "baseline": {"accuracy": 70.0}, "student": {"accuracy": score}},
        metric_names=["accuracy"],
        seconds={"baseline": 1.0, "student": 1.0},
        evaluations={"student": rows} if rows else {},
        versions={"torch": "2", "transformers": "5"},
    )


def records():
    pairs = ("wrn_40_2-wrn_16_2", "vgg13-vgg8")
    scores = {"kd": 72.0, "reviewkd": 73.0, "itrd": 73.5}
    return [record(p, m, seed, x + seed) for p in pairs for m, x in scores.items() for seed in (0, 1)]


def test_rows_are_methods_beside_what_was_reported():
    table = pairs_table(records())
    assert table.columns == ["", "wrn_40_2-wrn_16_2", "vgg13-vgg8", "ITRD over it, %"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["ITRD"] == ["74.00 ± 0.71", "74.00 ± 0.71", ""]
    assert rows["ITRD, reported"][:2] == ["76.12", "74.93"]
    assert rows["ReviewKD"] == ["73.50 ± 0.71", "73.50 ± 0.71", "+50.0 (2 pairs)"]
    assert rows["undistilled"][0] == "70.00 ± 0.00" and rows["teacher, reported"][0] == "75.61"
    assert rows["WCoRD + KD, reported"][2] == "+24.4 (13 pairs)" and rows["undistilled, reported"][2] == ""


def test_the_papers_own_improvement_comes_out():
    pairs, reported, _ = read_reported("cifar100")
    assert len(pairs) == 13 and {len(row) for row in reported.values()} == {13, 11, 7, 1}
    assert relative(reported, "ITRD", "WCoRD + KD", "KD") == "+24.4 (13 pairs)"  # "24.4 %"
    assert relative(reported, "ITRD", "ReviewKD", "KD") == "+6.8 (11 pairs)"  # "6.8 %"


def test_the_binary_table_has_rows_of_its_own():
    pairs, reported, (over, base) = read_reported("cifar10-binary")
    assert relative(reported, over, "ReCU + CRD", base) == ""  # CRD is below KD
    assert relative(reported, over, "ReCU + ITRD (L_corr)", base) == "+11.1 (2 pairs)"


def test_a_row_that_ties_with_kd_has_no_improvement():
    assert relative({"KD": {"a": 70.0}, "CRD": {"a": 70.0}, "ITRD": {"a": 73.0}}, "ITRD", "CRD", "KD") == ""


def test_the_best_epoch_stands_beside_the_last():
    (row,) = [r for r in pairs_table([record("vgg13-vgg8", "kd", 0, 70.0, (71.5, 70.0))]).rows if r[0] == "KD"]
    assert row[1] == "70.00 (best 71.50)"


def test_the_caption_names_one_seed_or_several():
    assert pairs_table(records()).caption.startswith("Last epoch, mean ± standard deviation over seeds 0, 1 (")
    assert pairs_table([record("vgg13-vgg8", "kd", 3, 70.0)]).caption.startswith("Last epoch, seed 3 (")


def test_wrong_records_are_one_line(tmp_path, capsys):
    for changed, words in [
        (
            {"recipe": "squad/t6-kd"},
            "'squad' have no published table of pairs: expected those of cifar10-binary, cifar100",
        ),
        ({"recipe": "cifar100/mine"}, "expected recipes of the pairs wrn_40_2-wrn_16_2"),
    ]:
        with pytest.raises(UserError, match=words):
            pairs_table([dataclasses.replace(records()[0], **changed)])
    with pytest.raises(UserError, match="expected one folder's recipes"):
        pairs_table([records()[0], dataclasses.replace(records()[0], recipe="cifar10-binary/resnet18-recu")])
    shown = {"parameters": {"student": 1, "baseline": 1}, "size_mib": {"student": 1.0, "baseline": 1.0}}
    shown["versions"] = {"torch": "2.6", "transformers": "5.23"}
    write_json(tmp_path / "record.json", dataclasses.asdict(dataclasses.replace(records()[0], **shown)))
    assert main(["report", str(tmp_path / "record.json"), "--pairs", "--format", "csv"]) == 0
    assert "KD,72.00" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "record.json"), "--pairs", "--comparison"]) == 2
    assert "--pairs makes a table of its own" in capsys.readouterr().err
