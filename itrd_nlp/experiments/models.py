"""The models of a recipe: loaded, built from a config, or cut out of another."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, DataCollatorWithPadding, PreTrainedModel, set_seed

from itrd_nlp.distillation.alignment import TEACHER
from itrd_nlp.distillation.pooling import SENTENCE_POOLING
from itrd_nlp.experiments.student_spec import StudentSpec
from itrd_nlp.models.classes import RAW_SCORES, classes_of, first_out_of_order, has_head, is_reranker, saved_config
from itrd_nlp.models.loading import load_checkpoint, load_config, load_tokenizer
from itrd_nlp.models.new import OPTIONS, check_fields, new_model, one_score
from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student
from itrd_nlp.models.vocabulary import move_vocabulary, transfer_embeddings
from itrd_nlp.models.width import with_common_names
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.text_classification import RegressionTask
from itrd_nlp.utils.batches import token_batches
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.modeling import INDEPENDENT, PAD_MULTIPLE
from itrd_nlp.utils.tokenizers import check_fit, position_padding, table_rows

logger = logging.getLogger(__name__)

SPECIAL_IDS = tuple(f"{kind}_token_id" for kind in ("bos", "eos", "cls", "sep", "mask"))  # in configs
CALIBRATION = 128  # the first training examples, on which it is measured what a student keeps
CALIBRATION_BATCH = 1024  # tokens, padding included


def load_model(
    source: str | dict[str, Any], task: Task, seed: int, changes: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, bool]:
    """A model with the task's head, in fp32, and whether that head was in the checkpoint.

    Args:
        source: folder or Hub id; or the config of a new model, with its ``model_type``.
        task: gives the head, and the vocabulary of a new model.
        seed: initialises what no checkpoint holds.
        changes: config fields that replace the checkpoint's, where its head is missing and will be trained.

    Raises:
        UserError: there is no such model, or its config is invalid.
    """
    set_seed(seed)
    if task.modality == "image":
        return _image_model(source, task, seed, changes)
    if isinstance(source, dict):
        return _new_text_model(source, task), False
    config = load_config(source)
    if changes:
        changes = with_common_names(config, changes)
        check_fields(changes, config, str(source))
    if task.one_score and has_head(config, task.model_class) and config.num_labels == 2:
        model = one_score(load_checkpoint(source, task.model_class, config, seed=seed).model, task.config_fields)
        check_fit(model, task.tokenizer, str(source))
        return _with_saved_fields(model, task), True
    _set_classes(config, task, str(source))
    model, new = load_checkpoint(source, task.model_class, config, seed=seed)
    complete = not new or task.model_class is AutoModel  # an encoder's pooler is not read
    if changes and complete:
        logger.info(f"[teacher] {source} needs no new head: teacher_config {changes} is not used")
    elif changes:
        try:
            config.update(changes)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"teacher_config {changes}: {one_line(error)}; correct the value") from None
        model, _ = load_checkpoint(source, task.model_class, config, seed=seed)
    check_fit(model, task.tokenizer, str(source))
    return _with_saved_fields(model, task), complete


def check_scores(source: Any, task: Task) -> None:
    """Refuse a saved model for regression that scores by a function of its outputs: labels are compared with these."""
    config = saved_config(source) if isinstance(task, RegressionTask) and isinstance(source, str) else None
    if config is None or not is_reranker(config):
        return
    function = str(config.sentence_transformers["activation_fn"] or "Sigmoid").rpartition(".")[2]
    if function != "Identity":
        raise UserError(
            f"{source}: its scores are the {function} of its outputs, which --task regression compares with labels: "
            "expected a model whose outputs are the scores; --task reranking takes it"
        )


def make_student(
    spec: str | dict[str, Any],
    task: Task,
    teacher: PreTrainedModel | None,
    seed: int,
    *,
    trial: bool = False,
    on_first_rank: Callable[[Callable[[], Any]], Any] = lambda measure: measure(),
) -> tuple[PreTrainedModel, str]:
    """A new student as the recipe describes it, and a text that says where its layers come from.

    What it keeps of layers and units is measured on the first training examples, as the source's tokens.

    Args:
        spec: folder or Hub id, used as it is, with its own tokenizer; or ``{from: teacher | folder | Hub id, layers:
            even:3, tokenizer: folder, vocabulary: 8000, ...}`` with config fields of the student; or the config of a
            new model, with its ``model_type``. The task has the smaller vocabulary already.
        teacher: None where its outputs are in the training data; no student is cut out of it then.
        trial: measure on two short examples, for a student whose sizes alone are looked at.
        on_first_rank: see `cut_student`.

    Raises:
        UserError: no such source, layers or fields.
    """
    if task.modality == "image":
        return _image_student(spec, task, seed)
    student_spec = StudentSpec.read(spec)
    source, layers, own_tokenizer = student_spec.source, student_spec.layers, student_spec.tokenizer
    fields = dict(student_spec.fields)
    if source is None:
        set_seed(seed)
        shared = own_tokenizer is None and task.vocabulary is None
        student = _new_text_model(fields, task, table_rows(teacher) if shared and teacher is not None else None)
        return student, f"{type(student).__name__}: new, {student.num_parameters():,} parameters"
    if student_spec.as_is:
        return load_model(source, task, seed)[0], f"{source}, as it is"
    for key in sorted({*fields} - {*OPTIONS}):
        if key in inspect.signature(cut_student).parameters:
            raise UserError(f"student has the key {key!r}: expected from, layers, init, vocabulary and config fields")
    fields |= {"calibration": _calibration(task, source, own_tokenizer, trial), "on_first_rank": on_first_rank}
    start: PreTrainedModel | str = source
    if source == "teacher" and teacher is not None:  # without one, `check_teacher` has refused it
        start = teacher
    else:
        config, wanted = load_config(source), task.config_fields
        if wanted and has_head(config, task.model_class) and config.num_labels == len(wanted["id2label"]):
            _check_order(config, wanted, source)
        fields = {**wanted, **fields}
    if own_tokenizer is None:
        fields["vocabulary"] = task.vocabulary and task.vocabulary.cut
        student, student_map = cut_student(start, layers, model_class=task.model_class, seed=seed, **fields)
        return _with_saved_fields(student.train(), task), describe_map(student_map)
    from_tokenizer = load_tokenizer(start) if isinstance(start, str) else task.for_teacher.tokenizer
    return _student_with_tokenizer(start, from_tokenizer, layers, own_tokenizer, task, seed, fields)


def _student_with_tokenizer(
    source: PreTrainedModel | str,
    from_tokenizer: Any,
    layers: Any,
    own_tokenizer: str,
    task: Task,
    seed: int,
    fields: Mapping[str, Any],
) -> tuple[PreTrainedModel, str]:
    """A student with the task's tokenizer, whose pieces start from those of its source."""
    cut, student_map = cut_student(source, layers, model_class=task.model_class, seed=seed, **fields)
    if (padding := position_padding(cut)) not in (None, task.tokenizer.pad_token_id):
        raise UserError(
            f"the tokenizer {own_tokenizer} pads with the id {task.tokenizer.pad_token_id}: expected {padding}, from "
            f"which {type(cut).__name__} counts positions; train it with its padding token there"
        )
    sizes = {"vocab_size": len(task.tokenizer), "pad_token_id": task.tokenizer.pad_token_id}
    for name in SPECIAL_IDS:
        if isinstance(getattr(cut.config, name, None), int):
            sizes[name] = getattr(task.tokenizer, name)
    student, resized = cut_student(cut, range(len(student_map.layers)), seed=seed, **sizes)
    student_map = dataclasses.replace(student_map, parameters=resized.parameters)
    student = _with_saved_fields(student.train(), task)
    check_fit(student, task.tokenizer, f"the student with the tokenizer {own_tokenizer}")
    transfer = transfer_embeddings(cut.get_input_embeddings().weight, from_tokenizer, task.tokenizer)
    move_vocabulary(student, transfer)
    counts = f"{transfer.copied:,} copied, {transfer.averaged:,} averaged, {transfer.unknown:,} the mean of all"
    return student, f"{describe_map(student_map)}\n  pieces of {own_tokenizer}: {counts}"


def _calibration(task: Task, source: Any, own_tokenizer: str | None, trial: bool) -> Iterator[Mapping[str, Any]]:
    """The first training examples in batches, as the tokens of the model that a student is cut out of."""
    if source != "teacher" and (own_tokenizer is not None or task.vocabulary is not None):
        raise UserError(
            f"student from {source} with another vocabulary: the training data has no tokens of {source} on which to "
            'measure what to keep; take from: teacher, or name layers, such as "first:3", and init: random'
        )
    paired = source == "teacher" and task.teacher_tokenizer is not None
    tokenizer, prefix = (task.teacher_tokenizer, TEACHER) if paired else (task.tokenizer, "")
    data, collate = task.train_dataset, DataCollatorWithPadding(tokenizer, pad_to_multiple_of=PAD_MULTIPLE)
    names = [name for name in tokenizer.model_input_names if prefix + name in data.column_names]
    first = data[:CALIBRATION]
    rows = [{name: first[prefix + name][i] for name in names} for i in range(len(first[prefix + "input_ids"]))]
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))[:2] if trial else rows
    batches = token_batches([len(row["input_ids"]) for row in rows], CALIBRATION_BATCH)
    for k in sorted(range(len(batches)), key=lambda k: abs(k - len(batches) // 2)):  # texts of usual lengths first
        yield collate([rows[i] for i in batches[k]])


def _image_model(
    source: str | dict[str, Any], task: Task, seed: int, changes: dict[str, Any] | None
) -> tuple[PreTrainedModel, bool]:
    from itrd_nlp.vision.models import load_image_model

    if changes:
        raise UserError(f"teacher_config {changes} with images: expected the options in --teacher itself")
    return load_image_model(source, task.class_names, seed, task.preprocessing)


def _image_student(spec: str | dict[str, Any], task: Task, seed: int) -> tuple[PreTrainedModel, str]:
    if not spec or (isinstance(spec, dict) and {"from", "layers", "vocabulary"} & {*spec}):
        raise UserError(f"student {spec}: expected an image classifier, e.g. --student cifar_resnet20")
    student = _image_model(spec, task, seed, None)[0]
    return student.train(), f"{spec}: {student.num_parameters():,} parameters"


def _new_text_model(source: dict[str, Any], task: Task, teacher_rows: int | None = None) -> PreTrainedModel:
    """A new model for the task's tokenizer; its table of tokens has at least the teacher's rows."""
    vocab_size = max(teacher_rows or 0, len(task.tokenizer))
    if task.tokenizer.pad_token_id is not None:  # a family's own may be an ordinary piece here
        source = {"pad_token_id": task.tokenizer.pad_token_id, **source}
    model = new_model(source, task.model_class, "model", "bert", vocab_size=vocab_size, **task.config_fields)
    check_fit(model, task.tokenizer, f"the new {source.get('model_type')} model")
    return _with_saved_fields(model, task)


def _with_saved_fields(model: PreTrainedModel, task: Task) -> PreTrainedModel:
    """The model, its config with the fields that the task adds, and without those that it has from another task."""
    for name in (*RAW_SCORES, SENTENCE_POOLING):
        vars(model.config).pop(name, None)
    model.config.update(dict(task.saved_fields))
    return model


def _set_classes(config: Any, task: Task, source: str) -> None:
    """Give a checkpoint's head the task's classes; raise :class:`UserError` where it was trained with more or fewer."""
    if not task.config_fields:
        return
    classes = len(task.config_fields["id2label"])
    if has_head(config, task.model_class) and config.num_labels != classes:
        raise UserError(
            f"{source} has a head of {config.num_labels} outputs, the data asks for {classes}: expected the same "
            "number; take a model without a head, which is then fine-tuned, or another --task"
        )
    if has_head(config, task.model_class):
        _check_order(config, task.config_fields, source)
    config.update(dict(task.config_fields))


def _check_order(config: Any, fields: Mapping[str, Any], source: str) -> None:
    """Refuse a trained head whose classes have another order, or may hold at once where the task's may not."""
    own, wanted = classes_of(config), [*fields["id2label"].values()]
    if (first := first_out_of_order(own, wanted)) is not None:
        raise UserError(
            f"class {first} is {own[first]!r} in {source} and {wanted[first]!r} in the task: expected the same order; "
            "sort its head and id2label, or remove architectures from its config.json to train a new head"
        )
    kinds = [config.problem_type, fields.get("problem_type")]
    if sorted(map(str, kinds)) == [INDEPENDENT, "single_label_classification"]:
        task = "multilabel" if kinds[0] == INDEPENDENT else "classification"
        raise UserError(f"{source} was trained for {kinds[0]}, the task asks for {kinds[1]}: set --task {task}")
