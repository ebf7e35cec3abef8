"""The task of sentence embeddings, distilled without labels and scored on pairs of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModel, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.distillation.pooling import SENTENCE_POOLING
from itrd_nlp.models.sentence_pooling import read_length, read_pooling, sentence_files
from itrd_nlp.tasks.labels import Labels, Splits, read_scores
from itrd_nlp.tasks.metrics import check_finite, spearman
from itrd_nlp.tasks.rows import SCORES, Rows
from itrd_nlp.tasks.rows_task import RowsTask
from itrd_nlp.tasks.teacher_files import EMBEDDING
from itrd_nlp.tasks.text_classification import range_of
from itrd_nlp.tasks.tokenising import MAX_LENGTH
from itrd_nlp.utils.errors import UserError


class EmbeddingTask(RowsTask):
    """Embeddings, the mean of a text's tokens or the first: Spearman's correlation of cosines with similarities.

    Training needs texts alone: the two of a pair are two texts, and labels are not read. The student is an encoder that
    ``AutoModel`` loads, in a folder that ``SentenceTransformer`` loads too.

    Args:
        tokenizer, options: see :class:`RowsTask`.
        train: texts, or None.
        validation: pairs of texts with scores, higher for more alike, or None.
        encoder: folder or Hub id of a sentence encoder, the teacher where there is one, whose pooling the student takes
            over, and where it cuts a text unless ``max_length`` says; where it says neither, the mean and 256 tokens.

    Raises:
        UserError: as :class:`RowsTask`; validation without pairs, or a score that is not a number.
    """

    name = "embedding"
    columns = SCORES
    model_class = AutoModel
    metric_names = ("spearman",)
    output_columns = (EMBEDDING,)
    output_name = EMBEDDING
    token_options = {"special": False}  # special tokens are part of the mean

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train: Rows | None,
        validation: Rows | None,
        *,
        encoder: Any = None,
        **options: Any,
    ):
        if validation is not None and len(validation.texts) < 2:
            raise UserError(
                f"'{validation.source}' has single texts: expected pairs, as sentence1, sentence2 and score"
            )
        self.pooling = (read_pooling(encoder) if isinstance(encoder, str) else None) or "mean"
        self.default_length = (read_length(encoder) if isinstance(encoder, str) else None) or MAX_LENGTH
        self.saved_fields = {} if self.pooling == "mean" else {SENTENCE_POOLING: self.pooling}
        super().__init__(tokenizer, None if train is None else train._replace(labels=None), validation, **options)

    def check_alike(self, train: Rows | None, validation: Rows | None) -> None:
        """Single texts to learn from, and pairs to score, go together."""

    def read_labels(self, splits: Splits, head_classes: Sequence[str]) -> Labels:
        """The score of each pair to validate with; no classes."""
        return Labels([], read_scores(splits), [[], []])

    def summarize_labels(self, rows: Rows, values: list[Any] | None) -> str:
        """Texts to learn from, or pairs and the range of their scores."""
        if values is None:
            return f"{len(rows.texts) * len(rows.texts[0]):,} texts"
        return f"pairs with {range_of(values)}"

    def to_dataset(self, rows: Rows) -> Dataset:
        """One column, text: the first texts of all pairs, then the second ones; with the pairs' scores to evaluate."""
        texts = [text for column in rows.texts for text in column]
        return super().to_dataset(rows._replace(texts=[texts], labels=rows.labels and rows.labels * 2))

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """``spearman`` in percent, 0 of constant cosines, and ``total``; the cosine and the score of each pair.

        Args:
            prediction: (2n, d) embeddings of the texts of `eval_dataset`.
        """
        assert self.eval_dataset is not None and self.validation is not None
        x = self.in_file_order(check_finite(prediction.predictions)).astype(np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        a, b = np.split(x / np.where(norms > 0, norms, 1), 2)
        pairs = np.stack([(a * b).sum(1), self.validation["labels"][: len(a)]], axis=1)
        return {"spearman": float(spearman(pairs)), "total": len(pairs)}, {"spearman": pairs.tolist()}

    def cross_score(self, queries: Any, documents: Any) -> float:
        """Spearman's correlation, in percent, of the scores with the cosines of first texts and second texts.

        Args:
            queries, documents: (2n, d) embeddings of all texts, in the file's order, by two models of one width, of
                which the first texts of `queries` and the second ones of `documents` are compared.
        """
        assert self.eval_dataset is not None
        half = len(self.order) // 2
        mixed = np.concatenate([queries[:half], documents[half:]])
        return self.score(EvalPrediction(mixed[self.order], np.empty(0)))[0]["spearman"]

    def files(self, model: PreTrainedModel) -> dict[str, Any]:
        """What makes the folder one of sentence-transformers."""
        return sentence_files(self.pooling, model.config.hidden_size, self.max_length)

    def scoring(self) -> list[Any]:
        """As of other rows, and how embeddings are made."""
        return [*super().scoring(), *self.saved_fields.values()]

    @property
    def eval_examples(self) -> int:
        """Pairs: ``validation`` holds a row for each of their texts."""
        return super().eval_examples // 2

    def summary(self) -> dict[str, int]:
        """Texts that are trained on, and pairs that are scored."""
        return {"training texts": len(self.train or ()), "validation pairs": self.eval_examples}
