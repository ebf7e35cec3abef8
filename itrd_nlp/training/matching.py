"""Matching of a student with its teacher, the data and the arguments, before anything is trained."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.alignment import ALIGNMENT, FIRST_TOKENS, TEACHER, is_paired
from itrd_nlp.distillation.distiller import Distiller, build_distiller
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.teacher_columns import teacher_columns
from itrd_nlp.losses import of_losses
from itrd_nlp.losses.base import GROUP, INDEX
from itrd_nlp.models.classes import classes_of, first_out_of_order
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.checks import (
    check_activation_checkpointing,
    check_batches,
    check_model,
    check_precision,
    check_token_ids,
    missing_lengths_error,
    set_attention,
)
from itrd_nlp.training.group_sampling import check_groups
from itrd_nlp.training.image_checks import check_images, check_last_batch
from itrd_nlp.utils.datasets import numbering
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.modeling import input_names, reads_images

UNTRAINED_HEAD = (
    "nothing trains the student's head ({}), and it differs from the teacher's: the losses compare features only and "
    "task_weight is 0; add --losses.kd.temperature 2, or set --task_weight 1"
)


class Match(NamedTuple):
    """What :func:`match` makes of a student and its teacher."""

    distiller: Distiller  # what is trained
    extractor: FeatureExtractor  # reads the teacher
    columns: list[str]  # of the data, which a batch needs
    label_names: list[str]  # of the data's labels


def match(
    student: PreTrainedModel | None,
    teacher: PreTrainedModel | None,
    args: ITRDArguments,
    dataset: Any,
    collator: Any,
    tokenizer: Any = None,
) -> Match:
    """Match a student with its teacher on the first training examples, without training.

    Args:
        teacher: None where the student is fine-tuned, or learns from a teacher's outputs in columns of the data.
        args: their ``label_names`` are the student's where they name none.
        dataset, collator: the training data, and what makes a batch of its examples.
        tokenizer: of the data; None where it is unknown.

    Raises:
        UserError: student, teacher, data and arguments do not fit; one line each.
    """
    student, *others = models = _checked_models(student, teacher, args)
    if dataset is not None:  # models of any precision are scored
        check_precision(student, args)
    outputs = teacher_columns(dataset) if teacher is None and args.losses else []
    check_batches(args, distils=teacher is not None or bool(outputs))
    paired = is_paired(getattr(dataset, "column_names", None) or ())
    _check_data(dataset, tokenizer, student, others, args)
    label_names = args.label_names if args.label_names is not None else _label_names(student)
    columns = [*_columns(models, label_names), *outputs]
    if paired:
        columns += [ALIGNMENT, FIRST_TOKENS, *(TEACHER + name for name in (*columns, FIRST_TOKENS))]
    read = columns if args.remove_unused_columns else None
    if dataset is not None:
        check_last_batch(student, args, dataset, lambda: probe_batch(dataset, collator, read))
    if args.tokens_per_batch is not None and isinstance(dataset, IterableDataset):
        raise missing_lengths_error(args)  # of which Trainer asks for no batches by a sampler
    if teacher is None and not outputs:
        set_attention(student, args.attn_implementation)
        return Match(Distiller(student), FeatureExtractor((), (), Pooling()), columns, label_names)
    options = {name: getattr(args, name) for name in ("losses", "layer_map", "pooling", "task_weight", "seed")}
    if of_losses(args.losses, "reads_index"):
        options |= numbering(dataset)
    probe = probe_batch(dataset, collator, read)
    distiller, extractor = build_distiller(
        student, outputs if teacher is None else teacher, probe, gathers=args.gather_across_ranks, **options
    )
    if teacher is not None and "logits" in distiller.extractor.heads:
        _check_order(student, teacher)
    set_attention(student, args.attn_implementation)  # after the probe, which is in fp32: flash attention takes none
    return Match(distiller, extractor, columns, label_names)


def _checked_models(
    student: PreTrainedModel | None, teacher: PreTrainedModel | None, args: ITRDArguments
) -> list[PreTrainedModel]:
    """The student, and the teacher where there is one, once each can be read and trained."""
    models = [check_model(student), *([] if teacher is None else [check_model(teacher)])]
    for model in models:
        check_images(model, args)
    if teacher is not None and {*models[0].parameters()} & {*teacher.parameters()}:
        raise UserError(
            "student and teacher share weights, which training would freeze: expected a student with weights of its "
            "own; make it with student_from_teacher, or copy its modules (copy.deepcopy)"
        )
    check_activation_checkpointing(models[0], args)
    return models


def _check_data(
    dataset: Any, tokenizer: Any, student: PreTrainedModel, teachers: Sequence[PreTrainedModel], args: ITRDArguments
) -> None:
    """Refuse columns that a trainer adds, and token ids and groups that models or batches cannot take."""
    names = getattr(dataset, "column_names", None) or ()
    if INDEX in names:
        raise UserError(f"train_dataset has a column {INDEX!r}, which a trainer adds: remove it")
    if is_paired(names):
        check_token_ids(dataset, tokenizer, [student])
        if teachers:
            name = f"{TEACHER}input_ids"
            check_token_ids(dataset.select_columns([name]).rename_column(name, "input_ids"), None, teachers)
    else:
        check_token_ids(dataset, tokenizer, [student, *teachers])
    check_groups(args, dataset)


def _label_names(student: PreTrainedModel) -> list[str]:
    """The names of a model's labels; :class:`UserError` for an image classifier that takes none."""
    names = getattr(student, "label_names", find_labels(type(student)))
    if reads_images(student) and not names:
        raise UserError(
            f"{type(student).__name__} takes no labels, it is for prediction alone: expected another class in "
            '"architectures" of its config.json'
        )
    return list(names)


def _check_order(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Refuse heads with the same classes in another order, which the losses would confuse."""
    student_classes, teacher_classes = classes_of(student.config), classes_of(teacher.config)
    if (first := first_out_of_order(student_classes, teacher_classes)) is not None:
        raise UserError(
            f"class {first} is {student_classes[first]!r} in the student, {teacher_classes[first]!r} in the teacher: "
            "expected one order; if the student's head is new, give its config the teacher's id2label and label2id"
        )


def _columns(models: Iterable[nn.Module], label_names: Iterable[str]) -> list[str]:
    """The columns that a batch needs: the inputs of every model, the labels, the mask for pooling, and groups."""
    names = [name for model in models for name in input_names(model)]
    return [*dict.fromkeys([*names, *label_names, "label", "label_ids", "labels", "special_tokens_mask", GROUP])]


def probe_batch(dataset: Any, collator: Any, columns: Iterable[str] | None) -> dict[str, Tensor]:
    """A batch of the first two examples of a dataset, with the named columns alone, or with all."""
    if dataset is None:
        raise UserError("no train_dataset: expected one to distil on; pass train_dataset")
    first = list(islice(dataset, 2))
    if not first:
        raise UserError("train_dataset is empty: expected at least one example; check the training file")
    if isinstance(dataset, Mapping) or not all(isinstance(row, Mapping) for row in first):
        raise UserError(f"train_dataset is a {type(dataset).__name__}: expected a dataset of examples, each a mapping")
    names = None if columns is None else set(columns)
    rows = [{key: value for key, value in row.items() if names is None or key in names} for row in first]
    try:
        return dict(collator(rows))
    except UserError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the collator makes no batch of the columns {', '.join(rows[0]) or '(none is left)'} ({one_line(error)}): "
            "expected numbers, of one length or padded by it; pass a data_collator for this task, e.g. "
            "DataCollatorForTokenClassification, or remove_unused_columns=False if it reads other columns"
        ) from error
