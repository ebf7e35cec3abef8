"""Answers of a trained model to questions about texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from itrd_nlp.inference.batches import run_tokens
from itrd_nlp.models.loading import load_checkpoint, load_tokenizer
from itrd_nlp.models.onnx_model import OnnxModel, exported_settings, is_exported
from itrd_nlp.tasks.question_answering.spans import Answer, Windows, find_answers
from itrd_nlp.tasks.question_answering.windows import check_threshold, make_features, window_lengths
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import answers_questions, eval_mode, inference_device, window_limit
from itrd_nlp.utils.tokenizers import check_fit
from itrd_nlp.utils.unicode import check_filled

MAX_LENGTH = 384  # tokens of a window in the published SQuAD recipes
DEFAULTS: dict[str, Any] = {"n_best": 20, "max_answer_length": 30, "null_threshold": None}
CHUNK = 512  # questions whose windows are in memory at the same time


def answer(
    model: str | Path | PreTrainedModel,
    question: str,
    context: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Answer:
    """Answer one question from a context of any length; options and errors are those of :func:`answer_many`."""
    check_filled("question", [question])
    check_filled("context", [context])
    return answer_many(model, [question], [context], tokenizer, progress=False, **options)[0]


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
    """Answer each question from its context; a blank context gives the answer "", as in evaluation.

    The defaults of an exported model are the values that it was exported with.

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

    Returns:
        n answers, with offsets into the contexts.

    Raises:
        UserError: what is not text, lists of different length, or a model that cannot answer.
    """
    _check_texts(questions, contexts)
    model = _answering_model(model)
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise UserError(f"tokenizer {tokenizer!r:.60}: expected one of transformers, or None for the model's own")
    tokenizer = load_tokenizer(model.name_or_path) if tokenizer is None else tokenizer
    options = {
        "max_length": max_length,
        "doc_stride": doc_stride,
        "n_best": n_best,
        "max_answer_length": max_answer_length,
        "null_threshold": null_threshold,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    settings = DEFAULTS | (exported_settings(model.path, chosen) if isinstance(model, OnnxModel) else {}) | chosen
    if allow_no_answer and settings["null_threshold"] is None:
        settings["null_threshold"] = 0.0
    check_threshold(settings["null_threshold"] or 0.0)
    lengths = _window_lengths(model, tokenizer, settings.pop("max_length", None), settings.pop("doc_stride", None))
    answers: list[Answer] = []
    bar = tqdm(total=len(questions), desc="Answering", unit="question", disable=not progress)
    with eval_mode(model), bar:
        for begin in range(0, len(questions), CHUNK):
            chunk, passages = questions[begin : begin + CHUNK], contexts[begin : begin + CHUNK]
            examples: dict[str, Sequence[Any]] = {"question": chunk, "context": passages}
            examples["answers"] = [{"text": [], "answer_start": []}] * len(chunk)
            features = make_features(examples, range(len(chunk)), tokenizer, *lengths, evaluation=True)
            start, end = _logits(model, tokenizer, features, batch_size)
            answers += find_answers(start, end, Windows.from_features(features), passages, **settings)
            bar.update(len(chunk))
    return answers


def load_model(source: str | Path) -> PreTrainedModel:
    """Load the question-answering model of a folder or Hub id, in eval mode, on the GPU where there is one.

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
        raise UserError(
            f"model '{source}' has no question-answering head (missing {missing}, or architectures in its config.json "
            "that name it): train it on SQuAD first"
        )
    return model.to(inference_device())


def _answering_model(model: Any) -> PreTrainedModel:
    """The model of a folder or Hub id, or a given one; :class:`UserError` for one that cannot answer."""
    if isinstance(model, str | Path):
        return load_model(model)
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"a model of type {type(model).__name__}: expected a folder, a Hub id or a PreTrainedModel")
    if not ("start_logits" in model.outputs if isinstance(model, OnnxModel) else answers_questions(model)):
        raise UserError(f"{type(model).__name__} cannot answer: expected a model with a head for question answering")
    return model


def _check_texts(questions: Sequence[str], contexts: Sequence[str]) -> None:
    if isinstance(questions, str) or isinstance(contexts, str) or len(questions) != len(contexts):
        raise UserError("questions and contexts must be two lists of the same length: one context for each question")
    check_filled("question", questions, may_be_blank=True)
    check_filled("context", contexts, may_be_blank=True)


def _window_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None, doc_stride: int | None
) -> tuple[int, int]:
    """``max_length`` and ``doc_stride`` with defaults filled in, checked against the tokenizer and the model."""
    longest = window_limit(model)
    max_length, doc_stride = window_lengths(tokenizer, max_length, doc_stride, min(MAX_LENGTH, longest))
    if max_length > longest:
        raise UserError(f"max_length {max_length} exceeds the model's {longest} positions: pass max_length={longest}")
    check_fit(model, tokenizer, str(model.name_or_path or "the model"))
    return max_length, doc_stride


def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, features: Mapping[str, Sequence[Any]], batch_size: int
) -> np.ndarray:
    """Start and end logits of n windows in fp32, (2, n, longest)."""
    lengths = np.array(features["length"])
    logits = np.zeros((2, len(lengths), lengths.max()), dtype=np.float32)
    for indices, _, output in run_tokens(model, tokenizer, features, batch_size):
        width = lengths[indices].max()
        logits[0, indices, :width] = output.start_logits[:, :width].float().cpu().numpy()
        logits[1, indices, :width] = output.end_logits[:, :width].float().cpu().numpy()
    return logits
