"""TextBrewer's own library beside our `textbrewer` loss: equal losses on the same batches, EM/F1, seconds a step.

    python scripts/bench/textbrewer_parity.py --teacher FOLDER --train_file train.json --validation_file dev.json

Both start from the same layers of a fine-tuned question-answering model, with the losses of TextBrewer's published T3
and T6 settings, no dropout, in fp32, with a live teacher. First the losses of both on the same batches, student and
teacher untouched; then a step of each, taking turns; then each in a loop of its own, ours with batches of similar
length. Needs TextBrewer: see textbrewer_side.py.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import end_to_end
import torch
from common import arguments, finish, ratio, show, summary
from textbrewer_side import distiller
from transformers import AutoModelForQuestionAnswering

from itrd_nlp import ITRDArguments, ITRDTrainer, student_from_teacher
from itrd_nlp.export.latency import take_turns

LOSSES = {"textbrewer": {}, "kd": {"temperature": 8, "t_squared": False, "weight": 2}}


def models(options: Any) -> tuple[Any, Any]:
    """The teacher, and a student of every second (or nth) of its layers, without dropout."""
    teacher = AutoModelForQuestionAnswering.from_pretrained(options.teacher)
    off = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    return teacher, student_from_teacher(teacher, f"even:{options.layers}", verbose=False, **off)


def ours(options: Any, task: Any, folder: Path, epochs: float, seed: int) -> ITRDTrainer:
    """Our trainer with the same losses."""
    teacher, student = models(options)
    ratio_of_layers = teacher.config.num_hidden_layers // options.layers
    return ITRDTrainer(
        model=student,
        teacher_model=teacher,
        args=ITRDArguments(
            str(folder),
            losses=LOSSES,
            task_weight=0.0,
            layer_map=[[ratio_of_layers * i, i] for i in range(options.layers + 1)],
            pooling="all_tokens",
            teacher_cache="off",
            bf16=False,
            learning_rate=end_to_end.RATE,
            warmup_steps=end_to_end.WARMUP,
            num_train_epochs=epochs,
            per_device_train_batch_size=end_to_end.BATCH,
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        data_collator=task.collator,
        processing_class=task.tokenizer,
        compute_metrics=task.compute_metrics,
    )


def equal_losses(options: Any, task: Any, folder: Path) -> list[dict[str, float]]:
    """By how much each term differs on the same batches, relative to TextBrewer's.

    Its KD is a cross-entropy: the divergence, plus the entropy of the teacher, which no gradient sees.
    """
    made = ours(options, task, folder, 1, 0)
    theirs = distiller(*models(options), folder)
    theirs.model_S.train()
    made.model.train()
    rows = []
    for first in range(0, options.batches * end_to_end.BATCH, end_to_end.BATCH):
        batch = made.draw(range(first, first + end_to_end.BATCH))
        teacher = made.ask_teacher(batch)
        softened = [(logits / 8).log_softmax(-1) for logits in teacher.logits.values()]
        entropy = sum(-(x.exp() * x).sum(-1).mean().item() for x in softened)
        with torch.no_grad():
            terms = {key: term.item() for key, term in made.model(teacher=teacher, **batch)["terms"].items()}
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
        said = theirs.train_on_batch(inputs, {"output_hidden_states": True})[1]
        other = {kind: sum(v.item() for k, v in said.items() if kind in k) for kind in ("hidden_mse", "mmd", "kd_loss")}
        mine = (terms["textbrewer/hidden_mse"], terms["textbrewer/mmd"], terms["kd"] + entropy)
        rows.append({kind: abs(a - b) / abs(b) for a, (kind, b) in zip(mine, other.items(), strict=True)})
    return rows


def steps(options: Any, task: Any, folder: Path) -> dict[str, list[float]]:
    """Seconds of a step of each: forward of both models, losses, backward, clipping, AdamW."""
    made = ours(options, task, folder, 1, 0)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1
    made.model_wrapped = made.accelerator.prepare_model(made.model)
    teacher, student = models(options)
    optimizer = torch.optim.AdamW(student.parameters(), lr=end_to_end.RATE, weight_decay=0.0, fused=True)
    theirs = distiller(teacher.eval(), student.train(), folder)
    batch = made.draw(range(end_to_end.BATCH))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}

    def my_step() -> None:
        made.training_step(made.model_wrapped, batch)
        torch.nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)
        made.optimizer.step()
        made.model.zero_grad()

    def their_step() -> None:
        loss, _ = theirs.train_on_batch(inputs, {"output_hidden_states": True})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return take_turns({"ours": my_step, "textbrewer": their_step}, options.repeats, warmup=2)


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    for name in ("teacher", "train_file", "validation_file"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=600, help="training questions, spread over the file")
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batches", type=int, default=8, help="on which the losses are compared")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="itrd-bench-"))
    task = end_to_end.load_task(options, folder)
    losses = equal_losses(options, task, folder)
    times = steps(options, task, folder)
    scores: dict[str, list[dict[str, float]]] = {"ours": [], "textbrewer": []}
    for seed in options.seeds:
        trainer = ours(options, task, folder, options.epochs, seed)
        trainer.train()
        found = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
        scores["ours"].append(found)
        scores["textbrewer"].append(end_to_end.textbrewer(options, seed, folder, models))
        print(f"seed {seed}:", {name: rows[-1]["f1"] for name, rows in scores.items()}, flush=True)
    shutil.rmtree(folder)
    worst = max(max(row.values()) for row in losses)
    rows = [
        [name, summary(times[name])["median"]]
        + [sum(score[key] for score in some) / len(some) for key in ("exact_match", "f1")]
        for name, some in scores.items()
    ]
    show(["losses of TextBrewer", "s a step", "EM", "F1"], rows)
    headline = {"losses_differ_by": worst, "textbrewer_over_ours": ratio(times["textbrewer"], times["ours"])["median"]}
    kept = {
        name: [{key: score[key] for key in ("exact_match", "f1")} for score in some] for name, some in scores.items()
    }
    steps_of = {name: summary(values) for name, values in times.items()}
    finish("textbrewer_parity", headline, {"losses": losses, "steps": steps_of, "scores": kept}, options)


if __name__ == "__main__":
    main()
