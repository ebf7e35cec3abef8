"""From SQuAD files to an evaluated student: ours, TextBrewer's loop and Trainer's fine-tuning, these padded to 384.

    python scripts/bench/end_to_end.py --teacher FOLDER --train_file train.json --validation_file validation.json

The teacher is a fine-tuned question-answering model. All sides start from the same layers of it and train for as many
epochs, at the same batch size, learning rate and schedule; the time of each runs from reading the files to EM and F1,
and holds the pass that asks the teacher. TextBrewer and Trainer's defaults compute in fp32; ours in bf16 where the
hardware has it, and then once more in fp32. Without TextBrewer installed its row is left out (see textbrewer_side.py).
"""

import functools
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import arguments, finish, show, summary
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    default_data_collator,
    get_linear_schedule_with_warmup,
)

from itrd_nlp import ITRDArguments, ITRDTrainer, student_from_teacher
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.utils.environment import computes_bf16

LENGTH, STRIDE, BATCH, RATE, WARMUP = 384, 128, 16, 1e-4, 0.1


def load_task(options: Any, folder: Path) -> SquadTask:
    """Questions from the files, tokenised afresh."""
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    train, validation, _ = load_squad(None, str(options.train_file), str(options.validation_file))
    kept = min(options.questions, len(train))
    train = train.select(np.linspace(0, len(train) - 1, kept).astype(int))
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    return SquadTask(tokenizer, train, validation, max_length=LENGTH, doc_stride=STRIDE)


def models(options: Any) -> tuple[Any, Any]:
    """The teacher and a student of every second (or nth) of its layers, without attention dropout."""
    teacher = AutoModelForQuestionAnswering.from_pretrained(options.teacher)
    layers = f"even:{options.layers}"
    return teacher, student_from_teacher(teacher, layers, attention_probs_dropout_prob=0.0, verbose=False)


def ours(options: Any, seed: int, folder: Path, **changes: Any) -> dict[str, float]:
    """ITRD on every token and KD at T 8, no gold labels; batches of similar length, cached outputs, bf16 by default."""
    task = load_task(options, folder)
    teacher, student = models(options)
    trainer = ITRDTrainer(
        model=student,
        teacher_model=teacher,
        args=ITRDArguments(
            str(folder),
            losses={"itrd": {"projection_init": "identity"}, "kd": {"temperature": 8}},
            pooling="tokens",
            task_weight=0.0,
            teacher_cache=str(folder / "teacher"),
            learning_rate=RATE,
            warmup_steps=WARMUP,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH,
            save_strategy="no",
            seed=seed,
            **changes,
        ),
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        data_collator=task.collator,
        processing_class=task.tokenizer,
        compute_metrics=task.compute_metrics,
    )
    del teacher
    trainer.train()
    return {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}


def padded(task: SquadTask, split: str) -> datasets.Dataset:
    """The windows of a split, padded to the full length."""
    windows = task.train_dataset if split == "train" else task.eval_dataset
    kept = [*task.tokenizer.model_input_names, *(("start_positions", "end_positions") if split == "train" else ())]
    pad = {"padding": "max_length", "max_length": LENGTH}
    return windows.select_columns(kept).map(lambda rows: task.tokenizer.pad(rows, **pad), batched=True)


def textbrewer(
    options: Any, seed: int, folder: Path, make: Callable[[Any], tuple[Any, Any]] = models
) -> dict[str, float]:
    """Its loop with its published losses, on the models that ``make`` makes."""
    from textbrewer_side import distiller

    torch.manual_seed(seed)
    task = load_task(options, folder)
    teacher, student = make(options)
    data = padded(task, "train").remove_columns(["start_positions", "end_positions"]).with_format("torch")
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    steps = len(loader) * options.epochs
    made = distiller(teacher, student, folder, options.epochs)
    with made:
        made.train(
            optimizer,
            loader,
            num_epochs=options.epochs,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": int(WARMUP * steps), "num_training_steps": steps},
            output_hidden_states=True,
        )
    student.eval()
    logits: list[list[Any]] = [[], []]
    with torch.no_grad():
        for batch in DataLoader(padded(task, "validation").with_format("torch"), batch_size=32):
            outputs = student(**{key: value.to(student.device) for key, value in batch.items()})
            logits[0].append(outputs.start_logits.cpu().numpy())
            logits[1].append(outputs.end_logits.cpu().numpy())
    return task.compute_metrics(EvalPrediction(tuple(np.concatenate(part) for part in logits), None))


def plain(options: Any, seed: int, folder: Path) -> dict[str, float]:
    """Fine-tuning on the gold labels with Trainer's defaults, but for rate and schedule."""
    task = load_task(options, folder)
    student = models(options)[1]
    trainer = Trainer(
        model=student,
        args=TrainingArguments(
            str(folder),
            learning_rate=RATE,
            warmup_steps=WARMUP,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH,
            save_strategy="no",
            seed=seed,
        ),
        train_dataset=padded(task, "train"),
        data_collator=default_data_collator,
    )
    trainer.train()
    return task.compute_metrics(EvalPrediction(trainer.predict(padded(task, "validation")).predictions, None))


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--validation_file", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=10**9, help="training questions, spread over the file")
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    options = parser.parse_args()
    sides = {"ours": ours, "textbrewer": textbrewer, "padded_finetune": plain}
    if computes_bf16():
        sides["ours_fp32"] = functools.partial(ours, bf16=False)
    if importlib.util.find_spec("textbrewer") is None:
        print("textbrewer is not installed: its row is left out")
        del sides["textbrewer"]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for seed in options.seeds:
        for name, side in sides.items():
            folder = Path(tempfile.mkdtemp(prefix="itrd-bench-"))
            started = time.perf_counter()
            scores[name].append(side(options, seed, folder))
            seconds[name].append(time.perf_counter() - started)
            shutil.rmtree(folder)
            print(f"{name}, seed {seed}: {seconds[name][-1]:.0f} s, {scores[name][-1]}", flush=True)
    headline: dict[str, float] = {}
    details: dict[str, Any] = {"sides": {}, "bf16": computes_bf16()}
    rows = []
    for name in sides:
        em, f1 = [np.array([score[key] for score in scores[name]]) for key in ("exact_match", "f1")]
        took = summary(seconds[name])
        over = summary([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
        std = [float(x.std(ddof=1)) if len(x) > 1 else None for x in (em, f1)]
        details["sides"][name] = {"seconds": took, "over_ours": over, "em": em.mean(), "f1": f1.mean(), "std": std}
        rows.append([name, took["median"], over["median"], float(em.mean()), float(f1.mean()), len(em)])
        headline[f"f1_{name}"], headline[f"em_{name}"] = float(f1.mean()), float(em.mean())
        if name != "ours":
            headline[f"{name}_over_ours"] = over["median"]
    show(["", "seconds", "over ours", "EM", "F1", "seeds"], rows)
    finish("end_to_end", headline, details, options)


if __name__ == "__main__":
    main()
