"""The task of extractive question answering on SQuAD v1.1 and v2.0: features, head, collator and metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, EvalPrediction, PreTrainedTokenizerBase

from itrd_nlp.distillation.paired import PairedCollator
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.question_answering import paired_windows
from itrd_nlp.tasks.question_answering.paired_windows import make_paired_features
from itrd_nlp.tasks.question_answering.scores import question_scores, squad_scores
from itrd_nlp.tasks.question_answering.spans import Answer, Windows, check_counts, find_answers
from itrd_nlp.tasks.question_answering.windows import (
    VERSION,
    WINDOW_COLUMNS,
    SquadCollator,
    check_threshold,
    make_features,
    window_lengths,
)
from itrd_nlp.tasks.tokenising import cached_features
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import data_digest

LONGEST = 512  # tokens of a student's training window, where its tokenizer cuts the teacher's text into more


class SquadTask(Task):
    """Data, head and metric of extractive question answering.

    Args:
        tokenizer: fast, padding on the right.
        train: questions as `load_squad` returns them, or None.
        validation: the same, with one id per question.
        max_length: tokens of a window: question, context and special tokens; None: 384, or what the tokenizer takes.
        doc_stride: tokens by which neighbouring windows of a context overlap; None: a third of max_length.
        n_best: start and end candidates per window, and answers that share the probability.
        max_answer_length: in tokens.
        null_threshold: used where questions without an answer exist: by how many logits "no answer" must win.
        num_proc: processes that tokenise; None: this one.
        teacher_tokenizer: fast; training windows are tokenised by it too. None: teacher and student share one.
        skipped: how many questions were left out of `train`, by the reason.

    Attributes:
        train: as given.
        validation: as given.
        collator: pads a batch of features to its longest window.
        has_unanswerable: some question to validate with has no answer (SQuAD v2.0).

    Raises:
        UserError: a tokenizer that cannot serve, or lengths that do not fit each other.
    """

    model_class = AutoModelForQuestionAnswering
    metric_names = ("exact_match", "f1")
    further_metrics = ("best_exact_match", "best_f1")  # of questions that may have no answer
    class_names: list[str] = []
    labelled = True
    config_fields: Mapping[str, Any] = {}

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset | None,
        validation: Dataset | None,
        *,
        max_length: int | None = None,
        doc_stride: int | None = None,
        n_best: int = 20,
        max_answer_length: int = 30,
        null_threshold: float = 0.0,
        num_proc: int | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        self.max_length, self.doc_stride = window_lengths(tokenizer, max_length, doc_stride)
        self.tokenizer, self.num_proc = tokenizer, num_proc
        self.train, self.validation = train, validation
        self.n_best, self.max_answer_length, self.null_threshold = n_best, max_answer_length, null_threshold
        check_threshold(null_threshold)
        check_counts(n_best, max_answer_length)
        self.skipped = dict(skipped or {})
        self.collator: Any = SquadCollator(tokenizer)
        self.teacher_tokenizer = teacher_tokenizer
        if teacher_tokenizer is not None:
            self.teacher_lengths = window_lengths(teacher_tokenizer, max_length, doc_stride)
            self.collator = PairedCollator(self.collator, teacher_tokenizer)
        scored = train if validation is None else validation  # which `itrd evaluate` sees too
        self.has_unanswerable = scored is not None and _has_unanswerable(scored)

    @cached_property
    def train_dataset(self) -> Dataset | None:
        """Windows of the training questions, with labels."""
        if self.train is None or self.teacher_tokenizer is None:
            return None if self.train is None else self._features(self.train, "training")
        max_length, doc_stride = self.teacher_lengths
        limit = min(self.tokenizer.model_max_length, max(LONGEST, self.max_length))
        options = {"max_length": max_length, "doc_stride": doc_stride, "limit": limit}
        tokenizers, what = (self.tokenizer, self.teacher_tokenizer), "Tokenising training questions twice"
        return cached_features(
            self.train, make_paired_features, tokenizers, options, self.num_proc, what, paired_windows.VERSION, True
        )

    @cached_property
    def eval_dataset(self) -> Dataset | None:
        """Windows of the validation questions, longest first: batches of them need little padding."""
        if self.validation is None:
            return None
        windows = self._features(self.validation, "validation")
        return windows.select(np.argsort(windows["length"], kind="stable")[::-1]).flatten_indices()

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The scores of SQuAD, and exact_match and f1 of each validation question in percent."""
        start_logits, end_logits = prediction.predictions[:2]
        threshold = self.null_threshold if self.has_unanswerable else math.inf
        spans = self.answers(start_logits, end_logits, math.inf)
        texts = {key: "" if span.no_answer_score > threshold else span.text for key, span in spans.items()}
        references = {row["id"]: row["answers"]["text"] for row in self._validation.select_columns(["id", "answers"])}
        scores = squad_scores(texts, references)
        if self.has_unanswerable:
            best = {key: span.text for key, span in spans.items()}
            graded = squad_scores(best, references, {key: span.no_answer_score for key, span in spans.items()})
            scores |= {key: value for key, value in graded.items() if key.startswith("best_")}
        each = question_scores(texts, references)
        return scores, {name: [round(100 * x, 2) for x in values.values()] for name, values in each.items()}

    def scoring(self) -> list[Any]:
        """What decides the scores of given logits."""
        choice = [self.n_best, self.max_answer_length, self.null_threshold, self.has_unanswerable]
        return [data_digest(self._validation), *choice]

    def summary(self) -> dict[str, int]:
        """Questions and windows of both splits, and what was skipped."""
        counts = {"training questions": len(self.train or ()), "training windows": len(self.train_dataset or ())}
        counts |= {"validation questions": len(self._validation), "validation windows": len(self.eval_dataset or ())}
        return counts | {f"skipped {reason}": count for reason, count in self.skipped.items()}

    def describe(self) -> list[str]:
        """How many questions each split has, how many of them have no answer, and what was skipped."""
        lines = []
        for split, data in (("training", self.train), ("validation", self.validation)):
            if data is None:
                continue
            line = f"{split}: {len(data):,} questions"
            if empty := sum(not answers["text"] for answers in data["answers"]):
                line += f", {empty:,} without an answer"
            if lost := sum(-1 in answers["answer_start"] for answers in data["answers"]):
                line += f", {lost:,} with an answer that is not in the context"
            if split == "training":
                line += "".join(f"; {count:,} {reason} skipped" for reason, count in self.skipped.items())
            lines.append(line)
        return lines

    def answers(
        self, start_logits: np.ndarray, end_logits: np.ndarray, threshold: float | None = None
    ) -> dict[str, Answer]:
        """Answer the validation questions.

        Args:
            start_logits: (windows, width) in the order of `eval_dataset`; anything beyond a window's length is ignored.
            end_logits: (windows, width).
            threshold: by how much "no answer" must lead; None: it is never given.

        Returns:
            The answer to each question id.
        """
        validation = self._validation
        answers = find_answers(
            start_logits,
            end_logits,
            self._windows,
            validation["context"][:],
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
            null_threshold=threshold,
        )
        return dict(zip(validation["id"][:], answers, strict=True))

    @property
    def _validation(self) -> Dataset:
        if self.validation is None:
            raise UserError("this task has no validation questions: give it a validation dataset to evaluate")
        return self.validation

    @cached_property
    def _windows(self) -> Windows:
        assert self.eval_dataset is not None
        return Windows.from_features(self.eval_dataset.select_columns(list(WINDOW_COLUMNS)).with_format("numpy")[:])

    def _features(self, data: Dataset, kind: str) -> Dataset:
        """Windows of ``data``, from the cache of `datasets` where they were tokenised before."""
        options = {"max_length": self.max_length, "doc_stride": self.doc_stride, "evaluation": kind == "validation"}
        what = f"Tokenising {kind} questions"
        return cached_features(data, make_features, (self.tokenizer,), options, self.num_proc, what, VERSION, True)


def _has_unanswerable(data: Dataset) -> bool:
    texts = pyarrow.compute.struct_field(data.with_format("arrow")["answers"][:], "text")
    return pyarrow.compute.min(pyarrow.compute.list_value_length(texts)).as_py() == 0
