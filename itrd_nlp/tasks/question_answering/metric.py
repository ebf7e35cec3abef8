"""Exact match and F1 of SQuAD v1.1 and v2.0 as a metric of `evaluate`.

Loads by path, without a network: `evaluate.load("itrd_nlp/tasks/question_answering/metric.py")`.
"""

from typing import Any

import datasets
import evaluate

from itrd_nlp.tasks.question_answering.scores import squad_scores

DESCRIPTION = "Exact match and F1 of SQuAD v1.1 and v2.0, in percent, equal to the official evaluation scripts."
CITATION = "Rajpurkar et al. 2016 (arXiv:1606.05250), Rajpurkar et al. 2018 (arXiv:1806.03822)"
INPUTS = """
Args:
    predictions: list of {"id", "prediction_text"}, in configuration "squad_v2" also with "no_answer_probability".
    references: list of {"id", "answers": {"text": [...], "answer_start": [...]}}; no texts: the question has no answer.
"""
CONFIGURATIONS = ("default", "squad", "squad_v2")


class SquadMetric(evaluate.Metric):
    """`squad_scores` as a metric of `evaluate`.

    The configuration "squad_v2" takes predictions with a no_answer_probability and adds the best_* scores. Questions
    without an answer need no configuration.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(f"unknown configuration {self.config_name!r}: expected one of {', '.join(CONFIGURATIONS)}")
        text = datasets.Value("string")
        prediction = {"id": text, "prediction_text": text}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = datasets.Value("float64")
        answers = {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int32"))}
        reference = {"id": text, "answers": answers}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )

    def _compute(self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
        graded = self.config_name == "squad_v2"
        return squad_scores(
            {row["id"]: row["prediction_text"] for row in predictions},
            {row["id"]: row["answers"]["text"] for row in references},
            {row["id"]: row["no_answer_probability"] for row in predictions} if graded else None,
        )
