"""Questions answered by a trained model: one call from text to answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from itrd_nlp.models.loading import load_checkpoint, load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel, exported_settings, is_exported
from itrd_nlp.tasks.question_answering.spans import Answer, Windows, find_answers
from itrd_nlp.tasks.question_answering.windows import SquadCollator, make_features, window_lengths
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import window_limit
from itrd_nlp.utils.tokenizers import check_fit

MAX_LENGTH = 384  # tokens of a window in the published SQuAD recipes
DEFAULTS: dict[str, Any] = {"n_best": 20, "max_answer_length": 30, "null_threshold": None}
CHUNK = 512  # questions tokenised, sorted by length and answered at once


def answer(
    model: str | Path | PreTrainedModel,
    question: str,
    context: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int | None = None,
    doc_stride: int | None = None,
    n_best: int | None = None,
    max_answer_length: int | None = None,
    allow_no_answer: bool = False,
    null_threshold: float | None = None,
) -> Answer:
    """Answers one question from one context of any length; see `answer_many`."""
    return answer_many(
        model,
        [question],
        [context],
        tokenizer,
        max_length=max_length,
        doc_stride=doc_stride,
        n_best=n_best,
        max_answer_length=max_answer_length,
        allow_no_answer=allow_no_answer,
        null_threshold=null_threshold,
        progress=False,
    )[0]


def answer_many(
    model: str | Path | PreTrainedModel,
    questions: Sequence[str],
    contexts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int | None = None,
    doc_stride: int | None = None,
    n_best: int | None = None,
    max_answer_length: int | None = None,
    allow_no_answer: bool = False,
    null_threshold: float | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Answer]:
    """Answers each question from its context.

    Args:
        model: folder, Hub id or model with a question-answering head; a model keeps its device and mode.
        questions: n questions.
        contexts: n contexts.
        tokenizer: the model's; None: loaded from where the model came from.
        max_length: tokens of a window of the context together with the question; None: 384, or what the model takes.
        doc_stride: tokens by which windows overlap; None: a third of max_length.
        n_best: start and end candidates per window, and answers that share the probability; None: 20.
        max_answer_length: in tokens; None: 30.
        allow_no_answer: return an empty answer where the model finds "no answer" likelier (SQuAD v2.0).
        null_threshold: the same, where "no answer" leads by more than so many logits.
        batch_size: windows per forward pass.
        progress: show a progress bar.

    None is otherwise what an exported model was exported with.

    Returns:
        n answers, with offsets into the contexts.

    Raises:
        UserError: an empty question or context, lists of different length, or a model that cannot answer.
    """
    _check_texts(questions, contexts)
    if not isinstance(model, PreTrainedModel):
        model = load_model(model)
    tokenizer = load_tokenizer(model.name_or_path) if tokenizer is None else tokenizer
    if isinstance(model, OnnxModel):
        settings = exported_settings(model.path)
        max_length = settings.get("max_length") if max_length is None else max_length
        doc_stride = settings.get("doc_stride") if doc_stride is None else doc_stride
    else:
        settings = {}
    longest = window_limit(model)
    max_length, doc_stride = window_lengths(tokenizer, max_length, doc_stride, min(MAX_LENGTH, longest))
    if max_length > longest:
        raise UserError(f"max_length {max_length} exceeds the model's {longest} positions: pass max_length={longest}")
    check_fit(model, tokenizer, str(model.name_or_path or "the model"))

    if allow_no_answer and null_threshold is None:
        null_threshold = settings.get("null_threshold") or 0.0
    asked = {"n_best": n_best, "max_answer_length": max_answer_length, "null_threshold": null_threshold}
    choice = DEFAULTS | settings | {name: value for name, value in asked.items() if value is not None}
    choice = {name: choice[name] for name in asked}
    answers: list[Answer] = []
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(questions), desc="Answering", unit="question", disable=not progress) as bar:
            for begin in range(0, len(questions), CHUNK):
                texts, passages = questions[begin : begin + CHUNK], contexts[begin : begin + CHUNK]
                features = _windows(texts, passages, tokenizer, max_length, doc_stride)
                start, end = _logits(model, tokenizer, features, batch_size)
                answers += find_answers(start, end, Windows.from_features(features), passages, **choice)
                bar.update(len(texts))
    finally:
        model.train(training)
    return answers


def _windows(
    texts: Sequence[str], passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int
) -> Any:
    """The features of questions without answers."""
    examples: dict[str, Sequence[Any]] = {"question": texts, "context": passages}
    examples["answers"] = [{"text": [], "answer_start": []}] * len(texts)
    return make_features(examples, range(len(texts)), tokenizer, max_length, doc_stride, evaluation=True)


def load_model(source: str | Path) -> PreTrainedModel:
    """The question-answering model of a folder or Hub id, in eval mode.

    Raises:
        UserError: nothing there, or a model without a trained question-answering head.
    """
    if is_exported(source):
        exported = OnnxModel(source)
        if "start_logits" not in exported.outputs:
            raise UserError(f"'{source}' has the outputs {exported.outputs}: expected a question-answering model")
        return exported
    model, new = load_checkpoint(source, AutoModelForQuestionAnswering)
    if new:
        missing = ", ".join(sorted(new))
        raise UserError(f"model '{source}' has no question-answering head (missing {missing}): train it on SQuAD first")
    return model


def _check_texts(questions: Sequence[str], contexts: Sequence[str]) -> None:
    if isinstance(questions, str) or isinstance(contexts, str) or len(questions) != len(contexts):
        raise UserError("questions and contexts must be two lists of the same length: one context for each question")
    for kind, texts in (("question", questions), ("context", contexts)):
        for place, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"{kind} {place + 1} of {len(texts)} is empty: expected text")


def forwards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Mapping[str, Sequence[Any]],
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Mapping[str, Tensor], Any]]:
    """Run a model on tokenised texts, those of like length together, the longest first.

    Args:
        features: columns of n texts, ``length`` among them.

    Yields:
        The places of a batch's texts, the batch on the model's device, and the model's outputs.
    """
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in accepted and name in features]
    order = np.argsort(-np.array(features["length"]), kind="stable")
    for rows in (order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)):
        batch = collate([{name: features[name][row] for name in names} for row in rows])
        batch = {name: values.to(model.device) for name, values in batch.items()}
        yield rows, batch, model(**batch)


@torch.no_grad()
def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, features: Mapping[str, Sequence[Any]], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits of all windows, each (windows, longest), in fp32; batches hold windows of like length."""
    lengths = np.array(features["length"])
    logits = np.zeros((2, len(lengths), lengths.max()), dtype=np.float32)
    for rows, _, output in forwards(model, tokenizer, features, SquadCollator(tokenizer), batch_size):
        width = lengths[rows].max()
        logits[0, rows, :width] = output.start_logits[:, :width].float().cpu().numpy()
        logits[1, rows, :width] = output.end_logits[:, :width].float().cpu().numpy()
    return logits[0], logits[1]
