"""In which form a student is deployed."""

from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from itrd_nlp.experiments.scoring import Scores
from itrd_nlp.experiments.shrink import deployment
from itrd_nlp.experiments.shrink.deployment import Bench, Cost, deploy, share_kept
from itrd_nlp.experiments.shrink.search import Goal
from itrd_nlp.training.record import Record


@pytest.mark.parametrize(
    "limits,mib,f1,speedup",
    [
        ({}, 12.0, 62.0, 5.0),
        ({"max_mib": 13.0}, 12.0, 62.0, 5.0),
        ({"max_mib": 10.0}, 8.5, 61.5, 7.0),
        ({"min_speedup": 6.0}, 8.5, 61.5, 7.0),  # nodes in fp32 take longer
    ],
)
def test_nodes_stay_in_fp32_only_within_the_limits(tmp_path, monkeypatch, limits, mib, f1, speedup):
    asked, size = [], {}

    def export(source, output, task, score, **options):
        asked.append(options)
        size["mib"] = 12.0 if options else 8.5  # the one without a limit of the drop is in int8 throughout
        score(SimpleNamespace(name_or_path=str(output / "model_quantized.onnx")))
        return {"quantisation": {"kept": "int8", "fp32_nodes": ["MatMul"]} if options else None, "parameters": 10}

    monkeypatch.setattr(deployment, "export", export)
    monkeypatch.setattr(deployment, "deployed_mib", lambda folder, form: size["mib"])
    monkeypatch.setattr(deployment.Bench, "cost", lambda *args: Cost(10, 12.0, 2.8, 5.0))
    scores = {12.0: Scores({"f1": 62.0}, {}, None), 8.5: Scores({"f1": 61.5}, {}, None)}
    monkeypatch.setattr(deployment, "evaluate_in_fp32", lambda *args: scores[size["mib"]])
    bench = Bench(None, None, None, threads=1)
    values = deploy(bench, tmp_path, tmp_path, Cost(10, 8.5, 2.0, 7.0), Goal(**limits), 67.5)
    assert asked[0] == {"max_drop": deployment.MAX_DROP, "enough": 67.5}
    assert (values["mib"], values["metrics"], values["speedup"]) == (mib, {"f1": f1}, speedup)
    assert values["form"] == "int8"


def test_what_is_kept_is_a_share_of_the_teacher_s_score_with_its_interval():
    rights = {"teacher": [100.0] * 90 + [0.0] * 10, "student": [100.0] * 81 + [0.0] * 19}
    record = Record("r", {}, 0, metric_names=["accuracy"], digests={"validation data": "same"})
    record.metrics = {role: {"accuracy": float(np.mean(values))} for role, values in rights.items()}
    record.examples = {role: {"accuracy": values} for role, values in rights.items()}
    shares = share_kept(record)
    assert shares["score"] == 81 and shares["kept"] == pytest.approx(0.9)
    error = np.std(np.subtract(*rights.values()), ddof=1) / 10  # of the mean over 100 examples
    assert shares["kept_low"] == pytest.approx(1 + (-9 - 1.99 * error) / 90, abs=2e-3)
    better = Scores({"accuracy": 90.0}, {"accuracy": rights["teacher"]}, None)
    assert share_kept(record, student=better)["kept"] == 1


def test_the_speedup_is_the_teacher_s_time_over_the_student_s(tmp_path, monkeypatch):
    times = {"teacher": 6.0, "student": 2.0}
    monkeypatch.setattr(deployment, "forward_ms", lambda models, *given: {n: {"median": times[n]} for n in models})
    monkeypatch.setattr(deployment, "OnnxModel", lambda path: None)
    monkeypatch.setattr(deployment, "deployed_mib", lambda folder, form: 7.5)
    cost = Bench(None, None, tiny.bert(), threads=1).cost(tmp_path, "int8", 100)
    assert (cost.parameters, cost.mib, cost.ms, cost.speedup) == (100, 7.5, 2.0, 3.0)
