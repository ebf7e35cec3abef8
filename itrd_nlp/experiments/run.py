"""The one path from arguments to results: teacher, student without distillation, student with it, record."""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.finished import store_temperature
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.output_folder import (
    arguments_of,
    baseline_fingerprint,
    check_arguments,
    locked,
    reserve,
    run_fingerprint,
)
from itrd_nlp.experiments.scoring import Scores, evaluate_once, predictions, scores_of
from itrd_nlp.experiments.sources import sources_of
from itrd_nlp.experiments.tasks import TASKS, check_teacher
from itrd_nlp.experiments.train import train
from itrd_nlp.experiments.trainings import (
    Training,
    baseline_arguments,
    check_exact,
    private,
    student_trainings,
    teacher_arguments,
    teacher_training,
)
from itrd_nlp.experiments.vocabulary import check_vocabulary, with_vocabulary
from itrd_nlp.export.latency import latency, texts
from itrd_nlp.losses.distributed import from_first_rank
from itrd_nlp.models.classes import TEMPERATURE
from itrd_nlp.models.projection import embedding_projection, has_projection
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_positions
from itrd_nlp.training.hub import publish, with_repo
from itrd_nlp.training.matching import match
from itrd_nlp.training.model_card import write_card
from itrd_nlp.training.options import defaults_of
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, nearest
from itrd_nlp.utils.hashing import data_digest, digest
from itrd_nlp.utils.io import make_folder, write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib, window_limit

logger = logging.getLogger(__name__)

MODELS = "models.json"  # of an output folder: row -> folder or Hub id of its model, on this machine
NO_LABELS = "left untrained: there are no labels to train it on"  # the baseline


def run(run_args: RunArguments, training_args: ITRDArguments, name: str = "run") -> Record:
    """Distil one student and measure it beside its teacher and beside the same student without distillation.

    A killed run is continued by the same call: finished models are reused and training resumes from its last
    checkpoint. With ``push_to_hub``, checkpoints are published as they come, and at the end the student with its card.

    Args:
        run_args: task, models and data.
        training_args: how the student trains, with or without distillation; ``output_dir`` receives ``student/``, its
            card in it, and ``record.json``; teacher and undistilled student go where other recipes find them.
        name: the recipe's name, for the record.

    Returns:
        The record, as written to ``output_dir/record.json``.

    Raises:
        UserError: the arguments, the data or the models do not fit; one line each, before anything is trained.
    """
    output = Path(str(training_args.output_dir))
    make_folder(output)
    check_exact(training_args)
    baseline_args = baseline_arguments(run_args, training_args)
    task = tokenised_task(run_args, training_args)
    training_args = with_repo(training_args)
    _say(training_args, f"[run] {output}: processes {training_args.world_size}, bf16 {training_args.bf16}")
    record = _new_record(name, run_args, training_args, task)
    check_arguments(output, training_args, run_args.overwrite)

    teacher, tuning = load_teacher(run_args, training_args, task)
    teacher_source = run_args.teacher if tuning is None else str(tuning.folder)
    if teacher is not None and tuning is not None:
        teacher = train(teacher, tuning, task.for_teacher, record, "teacher", teacher_source)
    start, record.student_map = make_student(
        run_args.student, task, teacher, training_args.seed, share=partial(from_first_rank, training_args=training_args)
    )
    baseline = baseline_fingerprint(baseline_args, task, start)
    outputs = task.train_dataset if teacher is None else teacher
    fingerprint = run_fingerprint(training_args, baseline, outputs, run_args.keep_projection)
    record.digests = {what: fingerprint[what] for what in ("teacher", "student", "training data")}
    record.digests["validation data"] = digest([data_digest(task.eval_dataset), task.scoring()])

    with locked(output, training_args):
        reserve(output, fingerprint, run_args.overwrite, training_args)
        documents = _measure_teacher(record, teacher, run_args, baseline_args, task)
        del teacher  # training with its cached outputs needs the memory more
        _say(training_args, record.student_map)
        trainings = student_trainings(run_args, training_args, baseline, fingerprint)
        for role, training in trainings.items():
            student = start  # lets go of the previous student: the next one needs its memory
            if role == "baseline" and not task.labelled:
                _say(training_args, f"[baseline] {NO_LABELS}")
            else:
                student = train(copy.deepcopy(start), training, task, record, role, teacher_source)
            _measure(record, role, student, run_args, baseline_args, task)
            if documents is not None and role == "student":
                assert isinstance(task, EmbeddingTask)  # `load_teacher` refuses others
                queries = task.in_file_order(predictions(student, baseline_args, task))
                record.metrics[role]["cross_spearman"] = task.cross_score(queries, documents)
        if training_args.process_index == 0:
            trained = {role: str(each.folder) for role, each in trainings.items() if each.is_finished}
            given = {} if teacher_source is None else {"teacher": teacher_source}
            write_json(output / MODELS, {**given, **trained, "student": str(output / "student")})
            _finish(record, student, teacher_source, run_args, training_args, task)
        PartialState().wait_for_everyone()  # until the record can be read
        if training_args.push_to_hub and training_args.process_index == 0:  # no other rank waits for the upload
            publish(output / "student", str(training_args.hub_model_id), training_args, "End of training")
            _say(training_args, f"[push] {output / 'student'} to https://huggingface.co/{training_args.hub_model_id}")
    return record


def build_task(run_args: RunArguments, task_weight: float = 1.0) -> Task:
    """The task of a run, its data and tokenizer loaded; with a ``task_weight`` of 0 training needs no labels."""
    if run_args.task not in TASKS:
        raise UserError(
            f"task {run_args.task!r} is not known: expected one of {sorted(TASKS)}{nearest(run_args.task, TASKS)}"
        )
    check_teacher(run_args)
    check_vocabulary(run_args)
    task = with_vocabulary(run_args, TASKS[run_args.task](run_args, task_weight), task_weight)
    if task.teacher_tokenizer is not None and task.of_teacher is None:
        task.of_teacher = TASKS[run_args.task](dataclasses.replace(run_args, student={"from": "teacher"}), task_weight)
    return task


def announced_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """:func:`build_task`; the first process reports how each split of the data was read."""
    task = build_task(run_args, training_args.task_weight)
    for line in task.describe() if training_args.process_index == 0 else ():
        logger.info(f"[data] {line}")
    if task.vocabulary is not None:
        _say(training_args, f"[vocabulary] {task.vocabulary.description}")
    return task


def tokenised_task(run_args: RunArguments, training_args: ITRDArguments) -> Task:
    """:func:`announced_task` with its examples ready; the first process makes them, the others read them from disk."""
    task = announced_task(run_args, training_args)
    with training_args.main_process_first(desc="tokenising"):
        splits = {"train": task.train_dataset, "validation": task.eval_dataset}
        _ = task.for_teacher.eval_dataset  # its training data only where it is fine-tuned
    for split, dataset in splits.items():
        if dataset is None:
            raise UserError(f"no {split} data: expected --{split}_file FILE or --dataset HUB_ID")
    return task


def load_teacher(
    run_args: RunArguments, training_args: ITRDArguments, task: Task
) -> tuple[PreTrainedModel | None, Training | None]:
    """The teacher of the recipe, and how it is fine-tuned first; None where it has a head for the task.

    There is no teacher where its outputs stand in the training data.

    The student is matched with it once, so that its mistakes are reported before the teacher trains.
    """
    if isinstance(task, EmbeddingTask) and isinstance(run_args.teacher, str) and has_projection(run_args.teacher):
        raise UserError(
            f"{run_args.teacher} makes its embeddings by Dense: expected the mean of the tokens; take another teacher"
        )
    arguments = teacher_arguments(run_args, training_args)
    own_task = task.for_teacher
    model, complete = None, True
    if run_args.teacher is not None:
        model, complete = load_model(run_args.teacher, own_task, arguments.seed, run_args.teacher_config)
        check_positions(model, own_task.max_length, "the teacher")
    student, _ = make_student(run_args.student, task, model, training_args.seed, trial=True)
    check_positions(student, task.max_length, "the student")
    if training_args.losses:
        matched = match(
            student, model, private(training_args), task.train_dataset, task.collator, task.processor(student)
        )
    if run_args.keep_projection:
        if not (isinstance(task, EmbeddingTask) and training_args.losses):
            raise UserError(
                f"keep_projection with task {run_args.task} and the losses {training_args.losses}: it is for sentence "
                "embeddings that are distilled; leave it out"
            )
        embedding_projection(matched.distiller)
    if complete or model is None:
        return model, None
    with training_args.main_process_first(desc="tokenising for the teacher"):
        _ = own_task.train_dataset
    return model, teacher_training(run_args, arguments, baseline_fingerprint(arguments, own_task, model))


def _new_record(name: str, run_args: RunArguments, training_args: ITRDArguments, task: Task) -> Record:
    label = run_args.label or " + ".join(training_args.losses) or "undistilled"
    arguments = arguments_of(run_args, training_args)
    record = Record(name, arguments, training_args.seed, label, **provenance(training_args.device))
    record.data, record.metric_names = task.summary(), list(task.metric_names)
    return record


def _measure(
    record: Record, role: str, model: PreTrainedModel, run_args: RunArguments, arguments: ITRDArguments, task: Task
) -> None:
    """Scores, parameters and size of one row."""
    _record_scores(record, role, evaluate_once(model, run_args, arguments, task))
    record.parameters[role], record.size_mib[role] = parameter_count(model), size_mib(model)


def _record_scores(record: Record, role: str, scores: Scores) -> None:
    record.metrics[role], record.examples[role] = scores.metrics, scores.examples
    if scores.calibration is not None:
        record.calibration[role] = scores.calibration


def _measure_teacher(
    record: Record, teacher: PreTrainedModel | None, run_args: RunArguments, arguments: ITRDArguments, task: Task
) -> Any:
    """The teacher's row: of the model, or of its outputs where the validation data holds them; else there is none.

    Returns:
        With ``keep_projection``, the teacher's embeddings of the validation texts, in their order; None where it has
        none.
    """
    prediction = task.teacher_prediction()
    if teacher is not None:
        _measure(record, "teacher", teacher, run_args, arguments, task.for_teacher)
    elif prediction is not None:
        _record_scores(record, "teacher", scores_of(task, prediction))
    if not run_args.keep_projection or "teacher" not in record.metrics:
        return None
    record.metric_names.insert(0, "cross_spearman")
    record.metrics["teacher"]["cross_spearman"] = record.metrics["teacher"]["spearman"]  # both texts are its own
    own_task = task.for_teacher
    assert isinstance(own_task, EmbeddingTask)  # `load_teacher` refuses others
    if prediction is not None and teacher is None:
        return own_task.in_file_order(prediction.predictions)
    return own_task.in_file_order(predictions(teacher, arguments, own_task))


def _finish(
    record: Record,
    student: PreTrainedModel,
    teacher_source: Any,
    run_args: RunArguments,
    training_args: ITRDArguments,
    task: Task,
) -> None:
    """Measure latency, then write the record and the student's card; on the first rank, once all models are there."""
    output = Path(str(training_args.output_dir))
    folder = output / "student"
    if "student" in record.calibration:
        setattr(student.config, TEMPERATURE, record.calibration["student"]["temperature"])
        store_temperature(folder, record.calibration["student"]["temperature"])
    if not training_args.losses:  # the student is the undistilled one, in the shared folder
        student.save_pretrained(folder)
        if processor := task.processor(student):
            processor.save_pretrained(folder)
    if run_args.latency:
        models = {"student": student}
        if teacher_source is not None:
            teacher = load_model(teacher_source, task.for_teacher, training_args.seed)[0]
            models = {"teacher": teacher, **models}
        record.latency_length = min(128, *map(window_limit, models.values())) if task.modality == "text" else 0
        record.latency_ms = latency(models, lambda count: _inputs(task, models, record.latency_length, count))
    write_json(output / "record.json", dataclasses.asdict(record))
    repo = training_args.hub_model_id if training_args.push_to_hub else None
    sources = sources_of(run_args, bool(training_args.losses))
    write_card(folder, student, record, repo=repo, sources=sources, defaults=defaults_of(RunArguments))


def _inputs(task: Task, models: Mapping[str, PreTrainedModel], length: int, count: int) -> dict[str, torch.Tensor]:
    """A batch of ``count`` examples that all models take, whose forward is timed."""
    if task.modality == "text":
        rows = [model.get_input_embeddings().weight.shape[0] for model in models.values()]
        return texts(min(rows), length, count)
    return {"pixel_values": task.eval_dataset[0]["pixel_values"].expand(count, -1, -1, -1)}


def _say(training_args: ITRDArguments, text: str) -> None:
    if training_args.process_index == 0:
        logger.info(text)
