"""Evaluation of a question-answering model: ours, against padding to 384 and scoring spans in nested loops.

    python scripts/bench/evaluation.py --model FOLDER --validation_file validation.json

All sides read and tokenise the file, run the model in batches of 8 and end with EM and F1, which must agree. The
nested loops are those of the example script of transformers: for each question, for each of its windows, the 20 best
starts with the 20 best ends; written anew here.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import arguments, finish, ratio, show, summary
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.export.latency import take_turns
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.metric import SquadMetric
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.utils.environment import computes_bf16

LENGTH, STRIDE, BEST, LONGEST = 384, 128, 20, 30


@contextlib.contextmanager
def fresh_task(options: Any) -> Iterator[SquadTask]:
    """The questions, tokenised anew."""
    _, questions, _ = load_squad(None, None, str(options.validation_file))
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        yield SquadTask(tokenizer, None, questions, max_length=LENGTH, doc_stride=STRIDE)


def ours(options: Any, model: Any, seconds: list[float], **changes: Any) -> dict[str, float]:
    with fresh_task(options) as task:
        trainer = ITRDTrainer(
            model=model,
            args=ITRDArguments(tempfile.gettempdir(), disable_tqdm=True, **changes),
            data_collator=task.collator,
            processing_class=task.tokenizer,
        )
        predicted = trainer.predict(task.eval_dataset).predictions
        started = time.perf_counter()
        scores = task.compute_metrics(EvalPrediction(predicted, None))
        seconds.append(time.perf_counter() - started)
        return scores


def reference(options: Any, model: Any, seconds: list[float]) -> dict[str, float]:
    with fresh_task(options) as task:
        kept = task.tokenizer.model_input_names
        pad = {"padding": "max_length", "max_length": LENGTH}
        windows = task.eval_dataset
        padded = windows.select_columns(kept).map(lambda rows: task.tokenizer.pad(rows, **pad), batched=True)
        arguments = TrainingArguments(tempfile.gettempdir(), disable_tqdm=True)
        trainer = Trainer(model=model, args=arguments, data_collator=default_data_collator)
        start_logits, end_logits = trainer.predict(padded).predictions
        started = time.perf_counter()
        answers = nested_loops(task.validation, windows, start_logits, end_logits)
        rows = [{"id": key, "prediction_text": text} for key, text in answers.items()]
        references = task.validation.select_columns(["id", "answers"]).to_list()
        scores = SquadMetric("squad", keep_in_memory=True).compute(predictions=rows, references=references)
        seconds.append(time.perf_counter() - started)
        return scores


def nested_loops(questions: Any, windows: Any, start_logits: np.ndarray, end_logits: np.ndarray) -> dict[str, str]:
    """The answer to each question id, found candidate by candidate."""
    of_question: dict[int, list[int]] = {}
    for place, question in enumerate(windows["example_index"]):
        of_question.setdefault(question, []).append(place)
    answers = {}
    for number, question in enumerate(questions):
        best, text = -np.inf, ""
        for place in of_question[number]:
            window = windows[place]
            begins, ends = window["char_starts"], window["char_ends"]
            for first in np.argsort(start_logits[place])[::-1][:BEST].tolist():
                for last in np.argsort(end_logits[place])[::-1][:BEST].tolist():
                    if max(first, last) >= len(begins) or begins[first] < 0 or begins[last] < 0:
                        continue
                    if last < first or last - first >= LONGEST:
                        continue
                    score = float(start_logits[place][first]) + float(end_logits[place][last])
                    if score > best:
                        best, text = score, question["context"][begins[first] : ends[last]]
        answers[question["id"]] = text
    return answers


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--validation_file", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    model = AutoModelForQuestionAnswering.from_pretrained(options.model)
    calls: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "reference": reference}
    if computes_bf16():
        calls["ours_fp32"] = functools.partial(ours, bf16=False)
    after: dict[str, list[float]] = {name: [] for name in calls}
    scores: dict[str, dict[str, float]] = {}

    def side(name: str) -> Callable[[], None]:
        return lambda: scores.update({name: calls[name](options, model, after[name])})

    sides = {name: side(name) for name in calls}
    times = take_turns(sides, options.repeats, warmup=0)
    for key in ("exact_match", "f1"):
        same_precision = scores.get("ours_fp32", scores["ours"])
        if abs(same_precision[key] - scores["reference"][key]) > 0.1:
            raise SystemExit(f"{key} differs: {scores}")
    rows = [
        [name, summary(times[name])["median"], summary(times[name])["spread"], summary(after[name])["median"]]
        + [round(scores[name]["exact_match"], 2), round(scores[name]["f1"], 2)]
        for name in sides
    ]
    show(["", "seconds", "±", "of it after the model", "EM", "F1"], rows)
    over = ratio(times["reference"], times["ours"])
    after_over = ratio(after["reference"], after["ours"])
    details = {
        "over": {name: ratio(times["reference"], times[name]) for name in sides},
        "after_the_model": {**{name: summary(after[name]) for name in sides}, "over": after_over},
        "seconds": {name: summary(times[name]) for name in sides},
        "scores": scores,
    }
    finish("evaluation", {"reference_over_ours": over["median"]}, details, options)


if __name__ == "__main__":
    main()
