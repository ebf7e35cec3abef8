"""The one path from arguments to results: teacher, student without distillation, student with it, record."""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.trainer_utils import SaveStrategy

from itrd_nlp.distillation.layers import last_module
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.fairness import DECIDING
from itrd_nlp.experiments.measure import finish, measure, measure_teacher
from itrd_nlp.experiments.models import check_scores, load_model, make_student
from itrd_nlp.experiments.output_folder import arguments_of, check_arguments, locked, reserve
from itrd_nlp.experiments.tasks import tokenised_task
from itrd_nlp.experiments.train import train
from itrd_nlp.experiments.trainings import (
    Training,
    baseline_arguments,
    check_exact,
    student_trainings,
    teacher_arguments,
    teacher_training,
    without_publishing,
)
from itrd_nlp.losses import of_losses
from itrd_nlp.models.projection import embedding_projection, has_projection
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.embedding import EmbeddingTask
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import check_positions, is_sharded
from itrd_nlp.training.fingerprint import selects
from itrd_nlp.training.hub import publish, with_repo
from itrd_nlp.training.matching import UNTRAINED_HEAD, match
from itrd_nlp.training.record import Record
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.errors import UserError, nearest
from itrd_nlp.utils.hashing import data_digest, digest
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)

MODELS = "models.json"  # of an output folder: row -> folder or Hub id of its model, on this machine
NO_LABELS = "left untrained: it learns from labels alone, which training examples lack"  # the baseline
UNTAUGHT_PIECES = (
    "the features of a word do not say at which of its tokens an answer starts or ends: a student that splits words "
    "otherwise than its teacher learns that from KD; add --losses.kd.temperature 2"
)


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
    baseline_args = check_run(run_args, training_args)
    task = tokenised_task(run_args, training_args)
    check_selection(run_args, training_args, task)
    training_args = with_repo(training_args)
    log_first(logger, training_args, f"[run] {output}: {_scale_of(training_args)}, bf16 {training_args.bf16}")
    if training_args.world_size == 1 and 0 < training_args.n_gpu < (count := torch.cuda.device_count()):
        log_first(logger, training_args, f"[run] on one of {count} GPUs: start with `accelerate launch` to use all")
    record = _new_record(name, run_args, training_args, task)
    teacher, tuning = load_teacher(run_args, training_args, task)
    teacher_source = run_args.teacher if tuning is None else str(tuning.folder)
    if teacher is not None and tuning is not None:
        teacher = train(teacher, tuning, task.for_teacher, record, "teacher", teacher_source)
    on_first_rank = partial(from_first_rank, training_args=training_args)
    start, record.student_map = make_student(
        run_args.student, task, teacher, training_args.seed, on_first_rank=on_first_rank
    )
    fingerprint, trainings = student_trainings(run_args, training_args, task, start, teacher)
    record.digests = {what: fingerprint[what] for what in (*DECIDING, "student's config")}
    record.digests["validation data"] = digest([data_digest(task.eval_dataset), task.scoring()])
    if task.modality == "text":  # the same with any tokenizer
        record.digests["validation examples"] = digest(task.scoring())

    with locked(output, training_args):
        reserve(output, fingerprint, run_args.overwrite, training_args)
        documents = measure_teacher(record, teacher, run_args, baseline_args, task)
        del teacher  # training with its cached outputs needs the memory more
        log_first(logger, training_args, record.student_map)
        for role, training in trainings.items():
            student = start  # lets go of the previous student: the next one needs its memory
            if role == "baseline" and not task.labelled:
                log_first(logger, training_args, f"[baseline] {NO_LABELS}")
            else:
                student = train(copy.deepcopy(start), training, task, record, role, teacher_source)
            measured = documents if role == "student" else None
            measure(record, role, student, run_args, baseline_args, task, measured)
        if training_args.process_index == 0:
            write_json(output / MODELS, _models(output, teacher_source, trainings))
            finish(record, student, teacher_source, run_args, training_args, task)
        PartialState().wait_for_everyone()  # until the record can be read
        if training_args.push_to_hub and training_args.process_index == 0:  # no other rank waits for the upload
            publish(output / "student", str(training_args.hub_model_id), training_args, "End of training")
            log_first(
                logger,
                training_args,
                f"[push] {output / 'student'} to https://huggingface.co/{training_args.hub_model_id}",
            )
    return record


def check_run(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    """The arguments of the baseline; raises :class:`UserError` for arguments that are refused whatever the data."""
    check_exact(training_args)
    check_arguments(Path(str(training_args.output_dir)), training_args, run_args.overwrite)
    return baseline_arguments(run_args, training_args)


def check_selection(run_args: RunArguments, training_args: ITRDArguments, task: Task) -> None:
    """Raise :class:`UserError` where the best checkpoint of a training is chosen by what the task does not measure."""
    _check_metric(training_args, task, "")
    _check_metric(teacher_arguments(run_args, training_args), task, "teacher_training: ")
    _check_metric(baseline_arguments(run_args, training_args), task, "baseline_training: ")


def _check_metric(training_args: ITRDArguments, task: Task, where: str) -> None:
    saves_best = training_args.save_strategy == SaveStrategy.BEST
    if not (selects(training_args) or saves_best):
        return
    known = [*task.metric_names, *task.further_metrics]
    known += [] if isinstance(task, EmbeddingTask) else ["loss"]  # encoders have none
    metric = (training_args.metric_for_best_model or "").removeprefix("eval_")
    if metric not in known:
        what = f"metric_for_best_model is {metric!r}" if metric else "save_strategy best without metric_for_best_model"
        raise UserError(f"{where}{what}: expected one of {', '.join(known)}{nearest(metric, known)}")


def load_teacher(
    run_args: RunArguments, training_args: ITRDArguments, task: Task
) -> tuple[PreTrainedModel | None, Training | None]:
    """The teacher of the recipe, and how it is fine-tuned first; None where it has a head for the task.

    There is no teacher where its outputs are in the training data.

    The student is matched with it once, so that its mistakes are reported before the teacher trains.
    """
    if isinstance(task, EmbeddingTask):
        _check_embedding(task, run_args, training_args)
    arguments = teacher_arguments(run_args, training_args)
    own_task = task.for_teacher
    model, complete = None, True
    if run_args.teacher is not None:
        check_scores(run_args.teacher, own_task)
        model, complete = load_model(run_args.teacher, own_task, arguments.seed, run_args.teacher_config)
        check_positions(model, own_task.max_length, "the teacher")
    student, _ = make_student(run_args.student, task, model, training_args.seed, trial=True)
    check_positions(student, task.max_length, "the student")
    if training_args.losses:
        processor, trial_args = task.processor(student), without_publishing(training_args)
        matched = match(student, model, trial_args, task.train_dataset, task.collator, processor)
        if matched.distiller.idle_head is not None:
            raise UserError(UNTRAINED_HEAD.format(matched.distiller.idle_head))
        by_features = not training_args.task_weight and not of_losses(training_args.losses, "reads_logits")
        if by_features and isinstance(task, SquadTask) and task.teacher_tokenizer is not None:
            log_first(logger, training_args, f"[losses] {UNTAUGHT_PIECES}")
    if run_args.keep_projection:
        _check_keep_projection(run_args, training_args, task)
        last = model is None or matched.extractor.module_names[-1:] == (last_module(model),)
        embedding_projection(matched.distiller, of_teachers_last=last)
    if complete or model is None:
        return model, None
    if not task.labelled:
        raise UserError(
            f"{run_args.teacher} has no head for the task, and training examples lack labels to fine-tune it on: "
            "expected a teacher with its head, or a label for each example"
        )
    with training_args.main_process_first(desc="tokenising for the teacher"):
        _ = own_task.train_dataset
    return model, teacher_training(run_args, arguments, own_task, model)


def _check_keep_projection(run_args: RunArguments, training_args: ITRDArguments, task: Task) -> None:
    if is_sharded(training_args):
        raise UserError(
            "keep_projection with FSDP or DeepSpeed, which hold the projection in parts: start with DDP "
            "(scripts/accelerate/multi_gpu.yaml)"
        )
    if not (isinstance(task, EmbeddingTask) and training_args.losses):
        raise UserError(
            f"keep_projection with task {run_args.task} and the losses {training_args.losses}: it is for sentence "
            "embeddings that are distilled; leave it out"
        )


def _check_embedding(task: EmbeddingTask, run_args: RunArguments, training_args: ITRDArguments) -> None:
    if isinstance(run_args.teacher, str) and has_projection(run_args.teacher):
        raise UserError(
            f"{run_args.teacher} makes its embeddings by Dense: expected the mean of the tokens or the first of them; "
            "take another teacher"
        )
    if training_args.losses and task.teacher_tokenizer is not None and training_args.pooling not in ("mean", "cls"):
        raise UserError(
            f"pooling {training_args.pooling!r} of embeddings with tokenizers of their own: expected mean or cls"
        )
    if training_args.losses and task.pooling == "cls" and training_args.pooling == "mean":
        raise UserError(
            f"pooling 'mean' with {run_args.teacher or run_args.student}, whose embeddings are its first token's: add "
            "--pooling cls"
        )


def better_baseline(record: Record, output: Path) -> str | None:
    """The folder of the student without distillation, where it scored as high as the distilled one or higher."""
    folder, metric = read_json(output / MODELS).get("baseline"), record.metric_names[-1]  # None: none was trained
    if folder is None or record.metrics["baseline"][metric] < record.metrics["student"][metric]:
        return None
    return str(folder)


def _scale_of(args: ITRDArguments) -> str:
    """How many processes train, and on how many examples a step, by which a learning rate is chosen."""
    examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    batch = f"{examples} examples a step" if args.tokens_per_batch is None else "batches of tokens"
    return f"processes {args.world_size}, {batch}"


def _new_record(name: str, run_args: RunArguments, training_args: ITRDArguments, task: Task) -> Record:
    label = run_args.label or " + ".join(training_args.losses) or "undistilled"
    arguments = arguments_of(run_args, training_args)
    record = Record(name, arguments, training_args.seed, label, **provenance(training_args.device))
    record.data, record.metric_names = task.summary(), list(task.metric_names)
    return record


def _models(output: Path, teacher: Any, trainings: Mapping[str, Training]) -> dict[str, Any]:
    """Row of the record -> folder or Hub id of its model."""
    trained = {role: str(training.folder) for role, training in trainings.items() if training.is_finished}
    of_teacher = {} if teacher is None else {"teacher": teacher}
    return {**of_teacher, **trained, "student": str(output / "student")}
