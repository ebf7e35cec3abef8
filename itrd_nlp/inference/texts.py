"""Predictions of a saved model on texts: classes, scores, tags or embeddings, read as its evaluation reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils.logging import tqdm

from itrd_nlp.distillation.pooling import sentence_pooling
from itrd_nlp.inference.batches import run_tokens
from itrd_nlp.inference.results import classification, embedding, multilabel
from itrd_nlp.inference.saved_models import default_length, load_saved, saved_task
from itrd_nlp.models.classes import classes_of, distinct, task_of, temperature_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel, exported_settings
from itrd_nlp.models.sentence_pooling import read_pooling
from itrd_nlp.tasks.metrics import relevance
from itrd_nlp.tasks.reranking.task import check_queries, tokenise_ranked
from itrd_nlp.tasks.rows import load_rows
from itrd_nlp.tasks.tag_schemes import OUTSIDE, entities, scheme_of
from itrd_nlp.tasks.text_tasks import TEXT_TASKS
from itrd_nlp.tasks.token_classification import tokenise_words, words_of
from itrd_nlp.tasks.tokenising import check_texts, text_length, tokenise
from itrd_nlp.utils.batches import IGNORED
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import window_limit
from itrd_nlp.utils.tokenizers import check_fit, check_tokenizer, for_words
from itrd_nlp.utils.unicode import is_text

logger = logging.getLogger(__name__)

CLASSIFIERS = ("classification", "multilabel", "regression", "reranking")
CHUNK = 10_000  # texts that are tokenised at once


def classify(source: str | Path, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """Classify one text or pair of texts.

    Args:
        source: folder or Hub id of a model with a head for sequence classification, exported or not.
        text, text_pair: what it reads; of a reranker, a query and a document.

    Returns:
        The result of :meth:`TextModel.predict` for a classification, multilabel or regression model, or a reranker.

    Raises:
        UserError: no such model, a model for another task, or an empty text.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"a model of type {type(source).__name__}: expected a folder or a Hub id")
    task = saved_task(str(source))  # None where there is no model, or one of a kind that TextModel refuses
    if task not in (None, *CLASSIFIERS):
        raise UserError(f"{source} is a model for {task}: expected a classifier of texts")
    return TextModel(str(source)).predict_one(text, text_pair)


class TextModel:
    """A saved model of texts, with its tokenizer.

    Args:
        source: folder or Hub id of a model that classifies, scores or tags texts, or of an encoder; exported or not.
        max_length: tokens of a text, or of both texts of a pair; None: 256, of a reranker 512, of a sentence encoder
            what its folder says, or what the model and its tokenizer take if that is less, as in evaluation; of an
            exported model what it was exported with.
        reranks: read a classifier with one output, or with two classes, as a reranker, whatever its config says.

    Attributes:
        task: the name of the task that its head is for.
        temperature: by which logits are divided before they become probabilities: ``calibration_temperature`` of its
            config, which `itrd distill` and `itrd export --calibrate` write; None without.

    Raises:
        UserError: no such model, a head of another kind, or a tokenizer or length that does not fit.
    """

    def __init__(self, source: str, max_length: int | None = None, reranks: bool = False):
        self.model = load_saved(source)
        task = task_of(self.model.config)
        if reranks:
            check_reranker(self.model.config, task, source)
            task = "reranking"
        if task not in TEXT_TASKS:
            kind = (self.model.config.architectures or ["model without a head"])[0]
            raise UserError(f"{source} is a {kind}: expected a model for {', '.join(TEXT_TASKS)}")
        if task == "regression" and self.model.config.num_labels != 1:
            raise UserError(f"{source} scores a text {self.model.config.num_labels} times: expected one output")
        self.task: str = task
        self.tokenizer = load_tokenizer(source)
        check_tokenizer(self.tokenizer)
        check_fit(self.model, self.tokenizer, source)
        if task == "tagging":
            self.tokenizer = for_words(self.tokenizer)
        if task == "embedding":
            read_pooling(source)  # refuses another than the model's
        if max_length is None and isinstance(self.model, OnnxModel):
            max_length = exported_settings(source).get("max_length")
        default = default_length(source, task)
        self.max_length = text_length(self.tokenizer, max_length, window_limit(self.model), default)
        self.temperature = temperature_of(self.model.config)
        names = [] if task == "embedding" else classes_of(self.model.config)
        self.names = names if task == "tagging" else distinct(names)  # keys of results

    def predict_one(self, text: str, text_pair: str | None = None) -> dict[str, Any]:
        """:meth:`predict` of one text or pair; raises :class:`UserError` for what is not text, or an empty one."""
        for each in [text] if text_pair is None else [text, text_pair]:
            if not is_text(each) or not each.strip():
                raise UserError(f"the text is {each!r:.40}: expected text")
        columns: list[list[Any]] = [[text.split() if self.task == "tagging" else text]]
        return self.predict(columns if text_pair is None else [*columns, [text_pair]], progress=False)[0]

    def predict(self, texts: Sequence[Sequence[Any]], progress: bool = True) -> list[dict[str, Any]]:
        """Predict n texts or pairs of texts.

        Args:
            texts: one list of n texts, or two for pairs; for tagging, lists of words.
            progress: show a progress bar.

        Returns:
            n results with the keys of the model's task:

            * classification: ``label``, and ``scores``, the probability of each class
            * multilabel: ``labels``, those with a probability above a half, and ``scores``
            * regression: ``score``
            * reranking, of pairs of a query and a document: ``score``, the higher the more relevant; where the config
              has a temperature also ``probability``, that the document is relevant
            * tagging: ``words``; ``tags``, None for a word beyond ``max_length``; and ``entities`` with their type,
              words [start, end) and text
            * embedding: ``embedding``, the mean of all tokens' vectors or the first one, of length 1; of pairs also
              ``embedding_pair`` and their cosine as ``similarity``

        Raises:
            UserError: something else than one list or two of equal length, what is not text, pairs to tag, single texts
                to rerank, or a query that leaves no room for a document.
        """
        if self.task == "tagging" and isinstance(texts, list | tuple) and len(texts) == 2:
            raise UserError("pairs of texts: this model tags the words of single ones; leave the second text out")
        texts = _checked_columns(texts, of_words=self.task == "tagging")
        if self.task == "reranking" and len(texts) < 2:
            raise UserError(
                "a text alone: this model scores a query with a document; expected --query and --documents, or the "
                "document as the second text"
            )
        if self.task == "reranking":
            check_queries(texts[0], self.tokenizer, self.max_length, "the input")
        total, results = len(texts[0]), []
        if not total:
            return []
        if total <= CHUNK:
            return self._predict(texts, "text" if progress else "")
        with tqdm(total=total, desc="Predicting", unit="text", disable=not progress) as bar:
            for start in range(0, total, CHUNK):  # the tokens of millions of texts would not fit into memory
                results += self._predict([each[start : start + CHUNK] for each in texts], "")
                bar.update(min(CHUNK, total - start))
        return results

    def _predict(self, texts: Sequence[list[Any]], unit: str) -> list[dict[str, Any]]:
        if self.task == "tagging":
            return self._tag(texts[0], unit)
        if self.task == "embedding":
            vectors = [self._outputs(self._tokenise([column]), unit) for column in texts]
            return [embedding(*pair) for pair in zip(*vectors, strict=True)]
        return [self._result(logits) for logits in self._outputs(self._tokenise(texts), unit)]

    def predict_file(
        self, file: str, text_column: str | None = None, text_pair_column: str | None = None
    ) -> list[dict[str, Any]]:
        """:meth:`predict` of the rows of a file, as ``--validation_file`` takes it; labels are not read.

        Raises:
            UserError: a file that cannot be read, or a row without text.
        """
        names: dict[str, Any] = {"text": text_column, "text_pair": text_pair_column}
        columns = TEXT_TASKS[self.task].columns._replace(labels=(), select=None, **names)  # pairs as they stand
        _, rows = load_rows(None, None, None, file, columns)
        assert rows is not None  # a file was named
        if self.task == "tagging":
            return self.predict([words_of(rows)])
        for texts in rows.texts:
            check_texts(texts, file)
        return self.predict(rows.texts)

    def _result(self, logits: Tensor) -> dict[str, Any]:
        """The result for a text from its logits; probabilities are of those over the temperature."""
        if self.task == "regression":
            return {"score": logits.item()}
        if self.task == "reranking":
            result = {"score": relevance(logits).item()}
            if self.temperature is not None and len(logits) == 1:  # of two classes, it is that of their softmax
                result["probability"] = (logits[-1].double() / self.temperature).sigmoid().item()
            return result
        logits = logits / (self.temperature or 1.0)
        if self.task == "classification":
            return classification(logits, self.names)
        return multilabel(logits, self.names)

    def _tokenise(self, texts: Sequence[list[str]]) -> Mapping[str, Any]:
        columns = dict(zip(("text", "text_pair"), texts, strict=False))
        if self.task == "reranking":
            return tokenise_ranked(columns, self.tokenizer, self.max_length, special=False)
        return tokenise(columns, self.tokenizer, self.max_length, special=False)

    def _tag(self, sentences: list[list[str]], unit: str) -> list[dict[str, Any]]:
        # in the place of its tag, the index of each word: it comes back at the word's first token
        rows = {"text": sentences, "labels": [range(len(words)) for words in sentences]}
        features = tokenise_words(rows, self.tokenizer, self.max_length)
        scheme = scheme_of(self.names, "the model")
        results = []
        for words, likeliest, indices in zip(sentences, self._outputs(features, unit), features["labels"], strict=True):
            tags: list[str | None] = [None] * len(words)
            for index, best in zip(indices, likeliest.tolist(), strict=True):
                if index != IGNORED:
                    tags[index] = self.names[best]
            spans = entities([OUTSIDE if tag is None else scheme.tags[tag] for tag in tags])
            texts = [
                {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                for kind, start, end in sorted(spans, key=lambda span: span[1:])
            ]
            results.append({"words": words, "tags": tags, "entities": texts})
        return results

    def _outputs(self, features: Mapping[str, Any], unit: str) -> list[Tensor]:
        """For each text its logits, (classes), its embedding, (d), or the likeliest tag of each token, (tokens)."""
        lengths = features["length"]
        outputs: list[Any] = [None] * len(lengths)
        for indices, batch, output in run_tokens(self.model, self.tokenizer, features, unit=unit):
            if self.task == "embedding":
                values = sentence_pooling(self.model.config)([output["last_hidden_state"]], batch)[0].float()
            elif self.task == "tagging":
                values = output["logits"].argmax(2)
            else:
                values = output["logits"].float()
            for index, value in zip(indices, values.cpu(), strict=True):
                outputs[index] = value[: lengths[index]] if self.task == "tagging" else value
        return outputs


def check_reranker(config: Any, task: str | None, source: str) -> None:
    """Refuse a model that has neither one score nor two classes; say that the second of two is the score."""
    single = task in ("reranking", "regression", "multilabel", "classification") and config.num_labels == 1
    if task == "classification" and config.num_labels == 2:
        name = classes_of(config)[1]
        logger.info(f"[rerank] {source}: two classes, read as one score: the log-odds of the second, {name}")
    elif not single:
        kind = (config.architectures or ["model without a head"])[0]
        raise UserError(
            f"{source} is a {kind} for {task or 'no known task'}: expected a cross-encoder, a classifier of texts with "
            "one output or two classes"
        )


def _checked_columns(columns: Sequence[Any], of_words: bool) -> list[list[Any]]:
    """One column of texts, or two of equal length, as lists; raises :class:`UserError` for anything else."""
    expected = "expected [texts] or [texts, second texts], lists of equal length"
    is_list = isinstance(columns, list | tuple) and len(columns) in (1, 2)
    if not is_list or any(isinstance(each, str) or not isinstance(each, Iterable) for each in columns):
        raise UserError(f"texts to predict {columns!r:.60}: {expected}")
    lists = [list(each) for each in columns]
    if len({len(each) for each in lists}) > 1:
        raise UserError(f"columns of {' and '.join(str(len(each)) for each in lists)} texts: {expected}")
    for name, texts in zip(("text", "second text"), lists, strict=False):
        for number, text in enumerate(texts):
            are_words = isinstance(text, Iterable) and not isinstance(text, str) and all(map(is_text, text))
            if not (are_words if of_words else is_text(text)):
                kind = "a list of words" if of_words else "text"
                raise UserError(f"{name} {number} is {text!r:.40}: expected {kind}")
    return lists
