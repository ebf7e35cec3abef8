"""The one path from arguments to results: teacher, student without distillation, student with, record."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from itrd_nlp.arguments import ITRDArguments, RunArguments
from itrd_nlp.errors import UserError, nearest
from itrd_nlp.measure import latency, parameter_count, size_mib
from itrd_nlp.plan import TRAIN_DATA_FIELDS, claim, digest, plan_of, training_data_digest
from itrd_nlp.record import Record, provenance
from itrd_nlp.task import TASKS, Task
from itrd_nlp.text.answering import load_tokenizer
from itrd_nlp.text.students import cut_student, describe_map
from itrd_nlp.trainer import ITRDTrainer

SPEED_KEYS = ("loss", "epoch", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
TASK_FIELDS = (
    *TRAIN_DATA_FIELDS,
    "validation_file",
    "max_eval_samples",
    "n_best",
    "max_answer_length",
    "null_threshold",
)
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
    "per_device_eval_batch_size",
)


def run(run_args: RunArguments, training_args: ITRDArguments, name: str = "run") -> Record:
    """Distil one student and measure it beside its teacher and beside the same student without distillation.

    A killed run is continued by the same call: finished models are kept and training resumes from its last checkpoint.

    Args:
        run_args: task, models and data.
        training_args: how the student trains, with or without distillation; ``output_dir`` receives ``student/``,
            ``baseline/`` and ``record.json``.
        name: the recipe's name, for the record.

    Returns:
        The record, as written to ``output_dir/record.json``.

    Raises:
        UserError: the arguments, the data or the models do not fit; one line each.
    """
    output = Path(str(training_args.output_dir))
    if not training_args.losses:
        raise UserError("losses is empty: expected at least one, e.g. {itrd: {}}")
    if run_args.teacher is None:
        raise UserError("no teacher: expected a folder or a Hub id; add --teacher FOLDER")
    _say(training_args, f"[run] {output}: processes {training_args.world_size}, bf16 {training_args.bf16}")
    task = build_task(run_args)
    if task.train_dataset is None or task.eval_dataset is None:
        missing = "train" if task.train_dataset is None else "validation"
        raise UserError(f"no {missing} data: expected --{missing}_file FILE or --dataset HUB_ID")
    record = Record(name, plan_of(run_args, training_args), training_args.seed, **provenance(training_args.device))
    claim(output, record.arguments, run_args.overwrite, training_args)
    teacher = find_teacher(run_args, training_args, task, record)
    models: dict[str, PreTrainedModel] = {"teacher": teacher}
    trained: list[tuple[str, PreTrainedModel | None]] = [("baseline", None)] if run_args.baseline else []
    for role, with_teacher in [*trained, ("student", teacher)]:
        _say(training_args, f"[{role}] training {'with' if with_teacher else 'without'} distillation")
        student, record.student_map = make_student(run_args, task, teacher, training_args.seed)
        if role == "student":
            _say(training_args, record.student_map)
        arguments = dataclasses.replace(training_args, output_dir=str(output / role))
        models[role] = train(student, with_teacher, arguments, task, record, role)
    for role, model in models.items():
        record.metrics[role] = evaluate(model, training_args, task)
        record.parameters[role] = parameter_count(model)
    record.data, record.metric_names = task.summary(), list(task.metric_names)
    if training_args.process_index == 0:
        record.size_mib = {role: size_mib(model) for role, model in models.items()}
        record.latency_ms = latency({role: model for role, model in models.items() if role != "baseline"})
        record.write(output / "record.json")
    return record


def evaluate_saved(model: str, run_args: RunArguments, training_args: ITRDArguments) -> dict[str, float]:
    """Score a saved model on the validation data that the arguments name."""
    if not (run_args.dataset or run_args.validation_file or run_args.task == "toy"):
        raise UserError("no data: expected --validation_file FILE or --dataset HUB_ID")
    task = build_task(run_args)
    loaded, complete = load_model(model, task, training_args.seed)
    if not complete:
        raise UserError(
            f"{model} has no head for task {run_args.task}: expected a fine-tuned model; distil or fine-tune it"
        )
    return evaluate(loaded, training_args, task)


def build_task(run_args: RunArguments) -> Task:
    """The task of a run, its data and tokenizer loaded."""
    if run_args.task not in TASKS:
        raise UserError(f"task {run_args.task!r} is not known: expected one of {sorted(TASKS)}")
    source = run_args.tokenizer or (run_args.teacher if isinstance(run_args.teacher, str) else None)
    tokenizer = load_tokenizer(source) if source else None
    options = {key: getattr(run_args, key) for key in TASK_FIELDS}
    return TASKS[run_args.task](tokenizer, **options)


def load_model(
    source: str | dict[str, Any], task: Task, seed: int, changes: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, bool]:
    """A model with the task's head, and whether that head was in the checkpoint; a mapping is a new model's config.

    ``changes`` are config fields that differ from the checkpoint's.
    """
    set_seed(seed)
    if isinstance(source, dict):
        options = {"vocab_size": len(task.tokenizer), **source}
        return task.model_class.from_config(AutoConfig.for_model(options.pop("model_type"), **options)), False
    try:
        config = AutoConfig.from_pretrained(source)
        for key in changes or {}:
            if key not in config.to_dict():
                raise UserError(f"the config of {source} has no field {key!r}{nearest(key, config.to_dict())}")
        config.update(changes or {})
        model, info = task.model_class.from_pretrained(source, config=config, output_loading_info=True)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"no model in {source!r}: expected a folder with config and weights, or a Hub id ({_first_line(error)})"
        ) from None
    return model, not info["missing_keys"]


def find_teacher(run_args: RunArguments, training_args: ITRDArguments, task: Task, record: Record) -> PreTrainedModel:
    """The teacher of a run; fine-tuned first, and kept for the next run, when it has no task head of its own.

    It trains as ``teacher_training`` says, whatever the student's arguments are, so that recipes and seeds share it.
    """
    spec = run_args.teacher
    arguments = _teacher_arguments(run_args, training_args)
    model, complete = load_model(spec, task, arguments.seed, run_args.teacher_config)
    if complete:
        return model
    plan = {
        "teacher": [spec, run_args.teacher_config],
        "task": [run_args.task, training_data_digest(run_args)],
        "training": run_args.teacher_training,
    }
    slug = Path(spec).name if isinstance(spec, str) else spec["model_type"]
    folder = Path(run_args.teacher_dir) / f"{slug}-{digest(plan)}"
    reused = (folder / "finished.json").is_file()
    _say(training_args, f"[teacher] {'reusing' if reused else 'fine-tuning, to be kept in'} {folder}")
    return train(model, None, dataclasses.replace(arguments, output_dir=str(folder)), task, record, "teacher")


def make_student(
    run_args: RunArguments, task: Task, teacher: PreTrainedModel, seed: int
) -> tuple[PreTrainedModel, str]:
    """A new student as the recipe describes it, and the map of what came from where."""
    spec = run_args.student if run_args.student is not None else {}
    if isinstance(spec, str):
        _check_tokenizer(spec, task)
        return load_model(spec, task, seed)[0], f"{spec}, as it is"
    options = dict(spec)
    source = options.pop("from", "teacher")
    if source == "teacher":
        source = teacher
    else:
        _check_tokenizer(source, task)
    student, student_map = cut_student(
        source, options.pop("layers", "even:3"), model_class=task.model_class, seed=seed, **options
    )
    return student.train(), describe_map(student_map)


def train(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    arguments: ITRDArguments,
    task: Task,
    record: Record,
    role: str,
) -> PreTrainedModel:
    """Train one row of the table into its folder, or take it from there when an earlier call has finished it."""
    folder = Path(str(arguments.output_dir))
    finished = folder / "finished.json"
    if not finished.is_file():
        started = time.perf_counter()
        trainer = ITRDTrainer(
            model=model,
            teacher_model=teacher,
            args=arguments,
            train_dataset=task.train_dataset,
            eval_dataset=task.eval_dataset,
            data_collator=task.collator,
            processing_class=task.tokenizer,
            compute_metrics=task.compute_metrics,
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        trainer.save_model()
        if trainer.is_world_process_zero():
            result = {
                "seconds": time.perf_counter() - started,
                "projectors": parameter_count(trainer.accelerator.unwrap_model(trainer.model).losses),
                "terms": [log for log in trainer.state.log_history if "loss" in log],
            }
            finished.write_text(json.dumps(result))
        trainer.accelerator.wait_for_everyone()
    result = json.loads(finished.read_text())
    record.seconds[role], record.terms[role] = result["seconds"], result["terms"]
    if teacher is not None:
        record.parameters["projectors"] = result["projectors"]
    return task.model_class.from_pretrained(folder)


def evaluate(model: PreTrainedModel, training_args: ITRDArguments, task: Task) -> dict[str, float]:
    """The task's metric on its evaluation data, e.g. ``{"exact_match": 81.5, "f1": 88.6}``."""
    trainer = ITRDTrainer(
        model=model,
        args=training_args,
        eval_dataset=task.eval_dataset,
        data_collator=task.collator,
        processing_class=task.tokenizer,
        compute_metrics=task.compute_metrics,
    )
    metrics = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    return {key: float(value) for key, value in metrics.items() if key not in SPEED_KEYS}


def _teacher_arguments(run_args: RunArguments, training_args: ITRDArguments) -> ITRDArguments:
    known = {field.name for field in dataclasses.fields(ITRDArguments)}
    for key in run_args.teacher_training:
        if key not in known:
            raise UserError(f"teacher_training: unknown key {key!r}; expected a training argument{nearest(key, known)}")
    inherited = {key: getattr(training_args, key) for key in MACHINE_FIELDS}
    return ITRDArguments(**{**inherited, "output_dir": training_args.output_dir, **run_args.teacher_training})


def _check_tokenizer(source: str, task: Task) -> None:
    vocabulary = load_tokenizer(source).get_vocab()
    if vocabulary != task.tokenizer.get_vocab():
        raise UserError(
            f"the student's tokenizer ({source}, {len(vocabulary)} tokens) is not the teacher's ({len(task.tokenizer)} "
            "tokens): expected the same; cut the student from a model with the teacher's tokenizer"
        )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _say(training_args: ITRDArguments, text: str) -> None:
    if training_args.process_index == 0:
        print(text, flush=True)
