"""What a saved model of texts says: classes, scores, tags or embeddings, read as its evaluation reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.inference.answering import forwards
from itrd_nlp.inference.saved_models import load_saved, saved_task, task_of
from itrd_nlp.models.classes import classes_of
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel, exported_settings
from itrd_nlp.tasks.embedding import check_pooling
from itrd_nlp.tasks.rows import CLASSES, SCORES, WORDS, Columns, load_rows
from itrd_nlp.tasks.rows_task import MAX_LENGTH, check_texts, tokenise
from itrd_nlp.tasks.tag_schemes import OUTSIDE, entities, scheme_of
from itrd_nlp.tasks.token_classification import IGNORED, check_words, checked_words, tokenise_words
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import window_limit
from itrd_nlp.utils.tokenizers import check_fit, check_tokenizer

COLUMNS = {"tagging": WORDS, "embedding": SCORES}  # of a file; those of classes for the others
BATCH = 32  # texts of a forward


def classify(source: str, text: str, text_pair: str | None = None) -> dict[str, Any]:
    """What a trained classifier says of one text or pair of texts; see :meth:`TextModel.predict`.

    Args:
        source: folder or Hub id of a model with a head for sequence classification, exported or not.

    Returns:
        ``label`` and the probability of each class in ``scores``; ``labels`` where there may be several; of regression
        the ``score`` alone.

    Raises:
        UserError: no such model, or an empty text.
    """
    task = saved_task(source)  # None where there is no model, or one of a kind that TextModel refuses
    if task not in (None, "classification", "multilabel", "regression"):
        raise UserError(f"{source} is a model for {task}: expected a classifier of texts")
    return TextModel(source).predict_one(text, text_pair)


class TextModel:
    """A saved model of texts, with its tokenizer.

    Args:
        source: folder or Hub id of a model that classifies, scores or tags texts, or of an encoder; exported or not.
        max_length: tokens of a text, or of both texts of a pair; None: 256, or what the model takes, as in evaluation;
            of an exported model what it was exported with.

    Attributes:
        task: the name of the task that its head is for.

    Raises:
        UserError: no such model, a head of another kind, or a tokenizer or length that does not fit.
    """

    def __init__(self, source: str, max_length: int | None = None):
        self.model = load_saved(source)
        self.task = task_of(self.model.config)
        if self.task not in SAID:
            kind = (self.model.config.architectures or ["model without a head"])[0]
            raise UserError(f"{source} is a {kind}: expected a model for {', '.join(SAID)}")
        self.tokenizer = load_tokenizer(source)
        check_tokenizer(self.tokenizer)
        check_fit(self.model, self.tokenizer, source)
        if self.task == "tagging":
            check_words(self.tokenizer)
        if self.task == "embedding":
            check_pooling(source)
        if max_length is None and isinstance(self.model, OnnxModel):
            max_length = exported_settings(source).get("max_length")
        self.max_length = text_length(self.model, self.tokenizer, max_length)
        self.names = [] if self.task == "embedding" else classes_of(self.model.config)

    def predict_one(self, text: str, text_pair: str | None = None) -> dict[str, Any]:
        """:meth:`predict` of one text or pair; raises :class:`UserError` for an empty text."""
        if not text.strip():
            raise UserError("the text is empty: expected text")
        columns: list[list[Any]] = [[text.split() if self.task == "tagging" else text]]
        return self.predict(columns if text_pair is None else [*columns, [text_pair]], progress=False)[0]

    def predict(self, texts: Sequence[list[Any]], progress: bool = True) -> list[dict[str, Any]]:
        """What the model says of n texts or pairs of texts.

        Args:
            texts: one list of n texts, or two for pairs; to tag, lists of words.
            progress: show a progress bar.

        Returns:
            n times, by the task of its head: classification ``label`` and the probability of each class as ``scores``;
            multilabel ``labels``, those of a probability above a half, and ``scores``; regression ``score``; tagging
            ``words``, the tag of each as ``tags``, None of one that was not read, as beyond ``max_length``, and
            ``entities`` with their type, words [start, end) and text;
            embedding ``embedding``, the mean of all tokens' vectors, of length 1, and of pairs also
            ``embedding_pair`` and their cosine as ``similarity``.

        Raises:
            UserError: pairs to tag.
        """
        if self.task == "tagging" and len(texts) > 1:
            raise UserError("pairs of texts: this model tags the words of single ones; leave the second text out")
        if self.task == "embedding":
            vectors = [self._outputs(self._features([some]), progress) for some in texts]
            return [_embedded(*each) for each in zip(*vectors, strict=True)]
        if self.task == "tagging":
            return self._tagged(texts[0], progress)
        say = SAID[self.task or ""]
        return [say(logits, self.names) for logits in self._outputs(self._features(texts), progress)]

    def predict_file(self, file: str, text_column: str | None = None, pair_column: str | None = None) -> list[Any]:
        """:meth:`predict` of the rows of a file, as ``--validation_file`` takes it; labels are not read.

        Raises:
            UserError: a file that cannot be read, or a row without text.
        """
        columns = COLUMNS.get(self.task or "", CLASSES)
        columns = Columns(columns.layouts, (), text_column, pair_column)
        _, rows = load_rows(None, None, None, file, columns)
        assert rows is not None  # a file was named
        if self.task == "tagging":
            return self.predict([checked_words(rows)])
        for texts in rows.texts:
            check_texts(texts, file)
        return self.predict(rows.texts)

    def _features(self, texts: Sequence[list[str]]) -> Mapping[str, Any]:
        columns = dict(zip(("text", "text_pair"), texts, strict=False))
        return tokenise(columns, self.tokenizer, self.max_length, special=False)

    def _tagged(self, sentences: list[list[str]], progress: bool) -> list[dict[str, Any]]:
        # in the place of its tag, the number of each word: it comes back at the word's first token
        rows = {"text": sentences, "labels": [range(len(words)) for words in sentences]}
        features = tokenise_words(rows, self.tokenizer, self.max_length)
        meaning = scheme_of(self.names, "the model").tags  # of a tag, as evaluation reads it
        made = []
        for words, logits, numbers in zip(
            sentences, self._outputs(features, progress), features["labels"], strict=True
        ):
            tags: list[str | None] = [None] * len(words)
            for word, best in zip(numbers, logits.argmax(1), strict=True):
                if word != IGNORED:
                    tags[word] = self.names[best]
            found = [
                {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                for kind, start, end in sorted(
                    entities([OUTSIDE if tag is None else meaning[tag] for tag in tags]), key=lambda entity: entity[1:]
                )
            ]
            made.append({"words": words, "tags": tags, "entities": found})
        return made

    @torch.no_grad()
    def _outputs(self, features: Mapping[str, Any], progress: bool) -> list[np.ndarray]:
        """Logits of each text, (classes) or (tokens, classes), or its mean vector (d), in fp32."""
        collate = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8)
        lengths = features["length"]
        made: list[Any] = [None] * len(lengths)
        with tqdm(total=len(lengths), desc="Predicting", unit="text", disable=not progress) as bar:
            for rows, batch, output in forwards(self.model, self.tokenizer, features, collate, BATCH):
                if self.task == "embedding":
                    (values,) = Pooling("mean")([output["last_hidden_state"]], batch)
                else:
                    values = output["logits"]
                for row, value in zip(rows, values.float().cpu().numpy(), strict=True):
                    made[row] = value[: lengths[row]] if value.ndim == 2 else value
                bar.update(len(rows))
        return made


def text_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None = None) -> int:
    """Tokens beyond which a text is cut: as asked, else as in evaluation; raises :class:`UserError` for no fit."""
    most = min(tokenizer.model_max_length, window_limit(model))
    if asked is None:
        return min(MAX_LENGTH, most)
    if not tokenizer.num_special_tokens_to_add(pair=True) < asked <= most:
        raise UserError(
            f"max_length {asked}: expected more than the special tokens of a text, and at most the {most} tokens that "
            "the model takes"
        )
    return asked


def classified(logits: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """``label`` and ``scores``, of the logits (classes) of one text or image."""
    odds = np.exp(logits.astype(np.float64) - logits.max())
    scores = dict(zip(names, (odds / odds.sum()).tolist(), strict=True))
    return {"label": names[int(logits.argmax())], "scores": scores}


def _several(logits: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    chances = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))  # the logistic function, without overflow
    labels = [name for name, logit in zip(names, logits, strict=True) if logit > 0]
    return {"labels": labels, "scores": dict(zip(names, chances.tolist(), strict=True))}


def _scored(logits: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    return {"score": float(logits[0])}


def _embedded(vector: np.ndarray, second: np.ndarray | None = None) -> dict[str, Any]:
    unit = vector / np.linalg.norm(vector)
    if second is None:
        return {"embedding": unit.tolist()}
    other = second / np.linalg.norm(second)
    return {"embedding": unit.tolist(), "embedding_pair": other.tolist(), "similarity": float(unit @ other)}


# task -> from logits and classes to what is said; tags and embeddings have functions of their own
SAID: dict[str, Callable[..., dict[str, Any]]] = {
    "classification": classified,
    "multilabel": _several,
    "regression": _scored,
    "tagging": classified,
    "embedding": _embedded,
}
