"""The task of reranking: one score for a query and a document, and metrics over the documents of each query."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.losses.base import GROUP
from itrd_nlp.models.classes import RAW_SCORES, known_classes, saved_config
from itrd_nlp.tasks.calibration import calibrate
from itrd_nlp.tasks.labels import Labels, Splits, read_scores
from itrd_nlp.tasks.metrics import logits_of, relevance
from itrd_nlp.tasks.reranking.metrics import need_sklearn, queries_without_relevant, ranking_scores
from itrd_nlp.tasks.reranking.rows import DOCUMENT_COLUMNS, check_not_blank
from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.teacher_files import SCORE, columns_of
from itrd_nlp.tasks.text_classification import range_of
from itrd_nlp.tasks.tokenising import check_texts, tokenise
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import INDEPENDENT


def tokenise_ranked(
    rows: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    special: bool,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Tokenise n queries, each with a document, which is cut to what the query leaves of ``max_length``."""
    tokens = tokenise(rows, tokenizer, max_length, special, teacher_tokenizer, "only_second")
    return {**tokens, GROUP: rows[GROUP]} if GROUP in rows else tokens


class RerankingTask(RowsTask):
    """A cross-encoder's score of a document for a query: ``map``, ``mrr@10`` and ``ndcg@10``.

    Labels of 0 and 1 are learned by binary cross-entropy of the one output, other numbers by its squared error. A query
    with its documents is a group, by which batches are made and metrics are computed. A document is relevant if its
    label is above 0.

    Args:
        tokenizer, options: see :class:`RowsTask`; ``train_count`` and ``eval_count`` count queries.
        train: queries and documents, see :func:`itrd_nlp.tasks.rows.load_rows`; or None.
        validation: the same, with labels.

    Raises:
        UserError: as :class:`RowsTask`; a blank query or document, a query that leaves no room for a document, a label
            that is not a number, or a negative one for validation.
    """

    name = "reranking"
    columns = DOCUMENT_COLUMNS
    examples = "documents"
    model_class = AutoModelForSequenceClassification
    metric_names = ("map", "mrr@10", "ndcg@10")
    output_columns = (SCORE,)
    tokenise = staticmethod(tokenise_ranked)
    saved_fields = RAW_SCORES
    one_score = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train: Rows | None, validation: Rows | None, **options: Any):
        if validation is not None:
            need_sklearn()
        super().__init__(tokenizer, train, validation, **options)
        teacher = options.get("teacher")
        if len(classes := known_classes(teacher, self.model_class)) == 2:
            self.descriptions.append(
                f"{teacher}: two classes, read as one score: the log-odds of the second, {classes[1]}"
            )
        if self.validation is not None:
            labels, groups = [np.ravel(self.validation[name][:]) for name in ("labels", GROUP)]
            self.has_probabilities = {*labels.tolist()} <= {0.0, 1.0} and not self._learned_grades(train, teacher)
            if without := queries_without_relevant(labels, groups):
                self.descriptions.append(
                    f"validation queries without a relevant document, left out of the scores: {without:,}"
                )
            if without == len(np.unique(groups)):
                raise UserError(
                    f"'{validation.source if validation else ''}' has no relevant document, with a label above 0: "
                    "expected one of some query; see --label_column"
                )

    def _learned_grades(self, train: Rows | None, teacher: Any) -> bool:
        """Whether the model that is scored learned other numbers than 0 and 1, so that no sigmoid belongs to its score:
        from training rows, or without them the saved model that takes the teacher's place."""
        config = saved_config(teacher) if train is None and isinstance(teacher, str) else None
        return "regression" in (self.problem_type, getattr(config, "problem_type", None))

    def checked(self, rows: Rows) -> Rows:
        """The rows; raises :class:`UserError` for a blank query or document, or a query that fills ``max_length``."""
        for what, texts in zip(("query", "document"), rows.texts, strict=True):
            check_texts(texts, rows.source)
            for i, text in enumerate(texts):
                check_not_blank(text, i, rows.source, what)
        for tokenizer in filter(None, (self.tokenizer, self.teacher_tokenizer)):
            check_queries(rows.texts[0], tokenizer, self.max_length, rows.source)
        return rows

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The relevance of each document; sets by which loss it is learned.

        Scores that a file holds have a scale of their own: no sigmoid belongs to what learned from them alone.
        """
        scores = read_scores(splits)
        for i, score in enumerate(scores[1] or ()):
            if score is not None and score < 0:
                assert splits[1] is not None, "scores come with their rows"
                raise UserError(
                    f"row {i} of '{splits[1].source}' has the relevance {score:g}: expected 0 or more to score by"
                )
        learned = [score for score in scores[0] or scores[1] or () if score is not None]
        from_file = (scores[0] is None or self.teacher_alone) and bool(columns_of(splits[0], self.reads))
        is_binary = {*learned} <= {0.0, 1.0} and not from_file
        self.problem_type = INDEPENDENT if is_binary else "regression"
        return Labels(["score"], scores, [[], []])

    def scored(self, rows: Rows, values: list[Any] | None, indices: list[int]) -> list[int]:
        """Each document once for its query, with its highest label: a second one would count in every metric."""
        best: dict[tuple[str, str], int] = {}
        for i in indices:
            pair = rows.texts[0][i], rows.texts[1][i]
            if values is None or pair not in best or values[i] > values[best[pair]]:
                best[pair] = i
        return sorted(best.values())

    def first(self, rows: Rows, indices: list[int], count: int | None) -> list[int]:
        """The rows of the first ``count`` queries."""
        queries = {*list(dict.fromkeys(rows.texts[0][i] for i in indices))[:count]}
        return [i for i in indices if rows.texts[0][i] in queries]

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """The number of queries, and the range of the labels."""
        queries = f"{len({*rows.texts[0]}):,} queries"
        if values is None:
            return f"{queries}, no labels"
        relevant = sum(value is not None and value > 0 for value in values)
        kind = "" if {*values} <= {0.0, 1.0, None} else f", {range_of(values)}"
        return f"{queries}, {relevant:,} relevant documents{kind}"

    def to_dataset(self, rows: Rows) -> Dataset:
        """Adds the group of each row; labels have the shape of the one output."""
        labels = None if rows.labels is None else [[float(label)] for label in rows.labels]
        numbers = {query: i for i, query in enumerate(dict.fromkeys(rows.texts[0]))}
        data = super().to_dataset(rows._replace(labels=labels))
        return data.add_column(GROUP, [numbers[query] for query in rows.texts[0]])

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The metrics of `metric_names`, ``total`` queries, and how many were ``left_out`` as none of their documents
        is relevant; NDCG@10 of each query in percent."""
        assert self.eval_dataset is not None
        groups = np.asarray(self.eval_dataset[GROUP][:])
        labels = np.reshape(prediction.label_ids, -1).astype(float)
        each = ranking_scores(relevance(logits_of(prediction.predictions).astype(float)), labels, groups)
        last = each[self.metric_names[-1]]
        means = {name: float(np.mean(each[name])) for name in self.metric_names}
        counts = {"total": len(last), "left_out": len(np.unique(groups)) - len(last)}
        return {**means, **counts}, {self.metric_names[-1]: last}

    def calibration(self, prediction: EvalPrediction) -> dict[str, Any] | None:
        """Of the sigmoid of the score, where labels are 0 and 1; the documents of a query stay together."""
        if not self.has_probabilities or self.eval_dataset is None:
            return None
        labels = np.reshape(prediction.label_ids, -1)
        return calibrate(relevance(logits_of(prediction.predictions)), labels, np.asarray(self.eval_dataset[GROUP][:]))

    def processor(self, model: PreTrainedModel) -> PreTrainedTokenizerBase:
        """The tokenizer, which says where other libraries cut a document too."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self.max_length
        return tokenizer

    def summary(self) -> dict[str, int]:
        """How many queries and documents are trained and evaluated on."""
        counts: dict[str, int] = {}
        for split, data in (("training", self.train), ("validation", self.validation)):
            if data is not None:
                counts |= {f"{split} queries": len({*data[GROUP][:]}), f"{split} documents": len(data)}
        return counts


def check_queries(queries: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, source: str) -> None:
    """Raise :class:`UserError` for a query that leaves no token for its document: queries are never cut."""
    unique = list(dict.fromkeys(queries))
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    tokens = tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"] if unique else []
    for query, ids in zip(unique, tokens, strict=True):
        if len(ids) >= room:
            raise UserError(
                f"'{source}' has a query of {len(ids)} tokens, {query!r:.40}: expected fewer than {room}, as a "
                f"max_length of {max_length} must hold some of the document too; raise --max_length"
            )
