"""The one path from arguments to results: teacher, student without distillation, student with, record."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.output_folder import (
    arguments_of,
    baseline_fingerprint,
    check_arguments,
    locked,
    reserve,
    run_fingerprint,
)
from itrd_nlp.experiments.recipes import changed
from itrd_nlp.experiments.sources import sources_of
from itrd_nlp.experiments.suggestions import suggest
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.experiments.train import earlier_models, evaluate_once, private, train
from itrd_nlp.export.latency import latency, texts
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_positions
from itrd_nlp.training.hub import publish, with_repo
from itrd_nlp.training.matching import match
from itrd_nlp.training.model_card import write_card
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, first_line, nearest
from itrd_nlp.utils.hashing import data_digest, digest
from itrd_nlp.utils.io import make_folder, write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit

logger = logging.getLogger(__name__)

# what a teacher's training takes over from the student's: where and how it runs, not what it learns
MACHINE_FIELDS = (
    "use_cpu",
    "bf16",
    "fp16",
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "report_to",
    "disable_tqdm",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "dataloader_num_workers",
    "torch_compile",
    "per_device_eval_batch_size",
)

MODELS = "models.json"  # of an output folder: row -> folder or Hub id of its model, on this machine

# what would make a continued run another one
INEXACT = (
    "resume_from_checkpoint",
    "save_only_model",
    "ignore_data_skip",
    "restore_callback_states_from_checkpoint",
)
# what would leave a run without its metrics while it trains, or make its batches depend on the machine
UNFIT = {
    "auto_find_batch_size": (True, "a run is the same on every machine; set per_device_train_batch_size"),
    "dataloader_in_order": (False, "a run takes its examples in an order that can be repeated; leave it out"),
    "batch_eval_metrics": (True, "a task's metric needs all predictions; leave it out"),
    "eval_do_concat_batches": (False, "a task's metric needs all predictions; leave it out"),
    "prediction_loss_only": (True, "a run is scored by its predictions; leave it out"),
}


def run(run_args: RunArguments, training_args: ITRDArguments, name: str = "run") -> Record:
    """Distil one student and measure it beside its teacher and beside the same student without distillation.

    A killed run is continued by the same call: finished models are kept and training resumes from its last checkpoint.
    With ``push_to_hub``, checkpoints are published as they come, and at the end the student with its card.

    Args:
        run_args: task, models and data.
        training_args: how the student trains, with or without distillation; ``output_dir`` receives ``student/``, its
            card in it, and ``record.json``; teacher and undistilled student are kept where other recipes find them.
        name: the recipe's name, for the record.

    Returns:
        The record, as written to ``output_dir/record.json``.

    Raises:
        UserError: the arguments, the data or the models do not fit; one line each, before anything is trained.
    """
    output = Path(str(training_args.output_dir))
    make_folder(output)
    check_exact(training_args)
    plain = plain_arguments(run_args, training_args)
    task = announced_task(run_args, training_args)
    with training_args.main_process_first(desc="tokenising"):  # the others find it on disk
        _ = task.train_dataset, task.eval_dataset
    training_args = with_repo(training_args)
    _say(training_args, f"[run] {output}: processes {training_args.world_size}, bf16 {training_args.bf16}")
    record = _new_record(name, run_args, training_args, task)
    check_arguments(output, training_args, run_args.overwrite)
    teacher, source = find_teacher(run_args, training_args, task, record)
    start, record.student_map = make_student(run_args.student, task, teacher, training_args.seed)
    baseline = baseline_fingerprint(plain, task, start)
    plan = run_fingerprint(training_args, baseline, teacher)
    record.digests = {what: plan[what] for what in ("teacher", "student", "training data")}
    record.digests["validation data"] = digest([data_digest(task.eval_dataset), task.scoring()])
    folders = folders_of(run_args, training_args, baseline)
    with locked(output, training_args):
        reserve(output, plan, run_args.overwrite, training_args)
        _measure(record, "teacher", teacher, run_args, plain, task)
        del teacher  # training with its stored answers needs the memory more
        for role, folder in folders.items():
            student = start  # no longer the one before: the next needs its memory
            distils = role == "student" and bool(training_args.losses)
            reused = (folder / "finished.json").is_file()
            if role == "baseline" and not task.labelled:
                _say(training_args, "[baseline] as it starts: without labels there is nothing else to learn from")
                _measure(record, role, student, run_args, plain, task)
                continue
            doing = f"reusing {folder}" if reused else f"training {'with' if distils else 'without'} distillation"
            _say(training_args, f"[{role}] {doing}{'' if reused or distils else _not_taken(folder)}")
            if role == "student":
                _say(training_args, record.student_map)
            arguments = dataclasses.replace(training_args if distils else plain, output_dir=str(folder))
            fingerprint = digest(plan if distils else baseline)
            origin = source if distils else None
            student = train(copy.deepcopy(start), origin, arguments, task, record, role, fingerprint)
            _measure(record, role, student, run_args, plain, task)
        if training_args.process_index == 0:
            places = {"teacher": source, **{role: str(folder) for role, folder in folders.items()}}
            write_json(output / MODELS, {**places, "student": str(output / "student")})
            _finish(record, student, source, run_args, training_args, task)
        PartialState().wait_for_everyone()  # until the record can be read
        if training_args.push_to_hub and training_args.process_index == 0:  # no other rank waits for the upload
            publish(output / "student", str(training_args.hub_model_id), training_args, "End of training")
            _say(training_args, f"[push] {output / 'student'} to https://huggingface.co/{training_args.hub_model_id}")
    return record


def _new_record(name: str, run_args: RunArguments, training_args: ITRDArguments, task: Task) -> Record:
    """What is known of a run before its models are."""
    label = run_args.label or " + ".join(training_args.losses) or "undistilled"
    asked = arguments_of(run_args, training_args)
    record = Record(name, asked, training_args.seed, label, **provenance(training_args.device))
    record.data, record.metric_names = task.summary(), list(task.metric_names)
    return record


def check_exact(training_args: ITRDArguments) -> None:
    """Raise :class:`UserError` where an option would keep a run from continuing exactly, or from being scored."""
    for option in INEXACT:
        if getattr(training_args, option):
            raise UserError(f"{option}: a run continues by itself, exactly, from its own checkpoints; leave it out")
    for option, (value, reason) in UNFIT.items():
        if bool(getattr(training_args, option)) is value:
            raise UserError(f"{option} {str(value).lower()}: {reason}")


def plain_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    """How the student trains without distillation."""
    plain = private(training_args)
    return _changed(plain, run_args.baseline_training, "baseline_training") if training_args.losses else plain


def folders_of(run_args: RunArguments, training_args: ITRDArguments, baseline: Mapping[str, Any]) -> dict[str, Path]:
    """Where the students of a run go, by their row; ``baseline`` is :func:`baseline_fingerprint` them."""
    undistilled = Path(run_args.shared_dir) / f"undistilled-{digest(baseline)}"
    if not training_args.losses:
        return {"student": undistilled}
    student = {"student": Path(str(training_args.output_dir)) / "student"}
    return {"baseline": undistilled, **student} if run_args.baseline else student


def _finish(
    record: Record,
    student: PreTrainedModel,
    source: str,
    run_args: RunArguments,
    training_args: ITRDArguments,
    task: Task,
) -> None:
    """What the first rank does once all models are there: latency, the record, the student's card."""
    output = Path(str(training_args.output_dir))
    folder = output / "student"
    if not training_args.losses:
        student.save_pretrained(folder)
        if processor := task.processor(student):
            processor.save_pretrained(folder)
    if run_args.latency:
        models = {"teacher": load_model(source, task, training_args.seed)[0], "student": student}
        record.latency_length = min(128, *map(window_limit, models.values())) if task.modality == "text" else 0
        record.latency_ms = latency(models, lambda count: _example(task, student, record.latency_length, count))
    write_json(output / "record.json", dataclasses.asdict(record))
    repo = training_args.hub_model_id if training_args.push_to_hub else None
    sources = sources_of(run_args, bool(training_args.losses))
    write_card(folder, student, record, repo=repo, sources=sources, defaults=defaults_of(RunArguments))


def _example(task: Task, model: PreTrainedModel, length: int, count: int) -> dict[str, torch.Tensor]:
    """A batch to time a forward with."""
    if task.modality == "text":
        return texts(model.get_input_embeddings().weight.shape[0], length, count)
    return {"pixel_values": task.eval_dataset[0]["pixel_values"].expand(count, -1, -1, -1)}


def _measure(
    record: Record,
    role: str,
    model: PreTrainedModel,
    run_args: RunArguments,
    training_args: ITRDArguments,
    task: Task,
) -> None:
    """Scores, parameters and size of one row."""
    record.metrics[role], record.examples[role] = evaluate_once(model, run_args, training_args, task)
    record.parameters[role], record.size_mib[role] = parameter_count(model), size_mib(model)


def build_task(run_args: RunArguments, task_weight: float = 1.0) -> Task:
    """The task of a run, its data and tokenizer loaded; where its labels weigh nothing, training needs none."""
    if run_args.task not in TASKS:
        raise UserError(
            f"task {run_args.task!r} is not known: expected one of {sorted(TASKS)}{nearest(run_args.task, TASKS)}"
        )
    if run_args.teacher is None:
        raise UserError("no teacher: expected a folder or a Hub id; add --teacher FOLDER")
    return TASKS[run_args.task](run_args, task_weight)


def announced_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """:func:`build_task`; the first process says what was understood of the data, a line for each split."""
    task = build_task(run_args, training_args.task_weight)
    for line in task.describe() if training_args.process_index == 0 else ():
        logger.info(f"[data] {line}")
    return task


def find_teacher(
    run_args: RunArguments, training_args: ITRDArguments, task: Task, record: Record
) -> tuple[PreTrainedModel, str]:
    """The teacher of a run and where it can be loaded again; fine-tuned first when it has no task head of its own.

    A fine-tuned teacher is kept for the next run. It trains as ``teacher_training`` says, whatever the student's
    arguments are, so that recipes and seeds share it.
    """
    model, source, tuning = load_teacher(run_args, training_args, task)
    if tuning is None:
        return model, source
    reused = (Path(source) / "finished.json").is_file()
    doing = f"reusing {source}" if reused else f"fine-tuning, to be kept in {source}{_not_taken(Path(source))}"
    _say(training_args, f"[teacher] {doing}")
    return train(model, None, tuning.arguments, task, record, "teacher", tuning.fingerprint), source


class Tuning(NamedTuple):
    """How a teacher is fine-tuned."""

    arguments: ITRDArguments
    fingerprint: str


def load_teacher(
    run_args: RunArguments, training_args: ITRDArguments, task: Task
) -> tuple[PreTrainedModel, str, Tuning | None]:
    """The teacher as it is named, where the run will find it, and how it is fine-tuned; None where it is complete.

    What the student will need is tried on it, fine-tuned or not.
    """
    for split, dataset in (("train", task.train_dataset), ("validation", task.eval_dataset)):
        if dataset is None:
            raise UserError(f"no {split} data: expected --{split}_file FILE or --dataset HUB_ID")
    spec, arguments = run_args.teacher, _teacher_arguments(run_args, training_args)
    model, complete = load_model(spec, task, arguments.seed, run_args.teacher_config)
    check_positions(model, task.max_length, "the teacher")
    student, _ = make_student(run_args.student, task, model, training_args.seed)
    check_positions(student, task.max_length, "the student")
    if training_args.losses:
        match(student, model, private(training_args), task.train_dataset, task.collator, task.processor(student))
    if complete:
        return model, spec, None
    plan = baseline_fingerprint(arguments, task, model)
    slug = Path(spec).name if isinstance(spec, str) else spec.get("timm") or spec["model_type"]
    folder = Path(run_args.shared_dir) / f"{slug}-{digest(plan)}"
    return model, str(folder), Tuning(dataclasses.replace(arguments, output_dir=str(folder)), digest(plan))


def _not_taken(folder: Path) -> str:
    """What is said of the models of earlier versions beside a folder that is to be trained."""
    names = ", ".join(path.name for path in earlier_models(folder))
    told = "not taken, as an earlier version of itrd_nlp did not write down all that decides them"
    return f"; {told}: {names}" if names else ""


def _teacher_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    inherited = {key: getattr(training_args, key) for key in MACHINE_FIELDS}
    if inherited["save_strategy"] == "best":  # by a metric that is the student's
        inherited["save_strategy"] = "epoch"
    own = ITRDArguments(output_dir=training_args.output_dir, **inherited)
    return _changed(own, run_args.teacher_training, "teacher_training")


def _changed(training_args: ITRDArguments, changes: Mapping[str, Any], name: str) -> ITRDArguments:
    """The arguments with what a mapping named ``name`` sets."""
    known = {field.name for field in dataclasses.fields(ITRDArguments)}
    for key in changes:
        if key not in known:
            raise UserError(f"{name}: unknown key {key!r}; expected a training argument{suggest(key, known)}")
    try:
        kept = {name: getattr(training_args, name) for name in ("num_train_epochs", "lr_milestones")}
        return dataclasses.replace(training_args, **changed(kept, changes))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: {first_line(error)}") from None


def _say(training_args: ITRDArguments, text: str) -> None:
    if training_args.process_index == 0:
        logger.info(text)
