"""Student and losses in one module, so that one forward uses every trainable tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.alignment import is_paired, teacher_view
from itrd_nlp.distillation.feature_extractor import FeatureExtractor, accepted_inputs
from itrd_nlp.distillation.layers import (
    LayerMap,
    find_layers,
    matched_attention,
    matched_layers,
)
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.probe import (
    check_heads,
    check_pairable,
    check_vocabulary,
    common_heads,
    read_probe,
)
from itrd_nlp.distillation.stages import check_widths, matched_maps
from itrd_nlp.distillation.teacher_columns import column_extractors
from itrd_nlp.losses import Shapes, build_losses, of_losses
from itrd_nlp.losses.base import Representation
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.utils.batches import IGNORED
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import INDEPENDENT, seeded


class Distiller(nn.Module):
    """The module to train: the student, and the projectors that its losses own.

    Gradient zeroing, clipping, all-reduce, the optimizer and checkpoints all look at this one module; the frozen
    teacher is never part of it.

    Args:
        student: the model to train.
        losses: name -> :class:`DistillationLoss`.
        extractor: how the student is read.
        task_weight: weight of the student's own loss on the gold labels; 0 leaves it out, and needs no labels.
    """

    accepts_loss_kwargs = False  # Trainer would count the labels of all ranks at each step, which no loss reads

    def __init__(
        self,
        student: PreTrainedModel,
        losses: nn.ModuleDict | None = None,
        extractor: FeatureExtractor | None = None,
        task_weight: float = 1.0,
    ):
        super().__init__()
        self.student = student
        self.losses = losses if losses is not None else nn.ModuleDict()
        self.extractor = extractor or FeatureExtractor((), (), Pooling())
        self.task_weight = task_weight
        self.idle_head: str | None = None  # a weight of a head that nothing trains
        self._counts: dict[tuple[bool, bool], int] = {}
        # every rank writes the same memory banks: DDP need not broadcast them
        banks = {name: m for name, m in self.named_modules() if isinstance(m, MemoryBank)}
        same = [f"{name}.{key}" for name, bank in banks.items() for key, _ in bank.named_buffers()]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, same)

    @property
    def config(self) -> Any:
        """The student's configuration, where Trainer and its callbacks look for one."""
        return self.student.config

    @property
    def main_input_name(self) -> str:
        """The student's, by which Trainer counts tokens."""
        return self.student.main_input_name

    def get_input_embeddings(self) -> nn.Module:
        """The student's, where NEFTune adds its noise."""
        return self.student.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The student's, by which FSDP finds tied weights."""
        return self.student.get_output_embeddings()

    def tie_weights(self) -> None:
        """Tie the student's weights again once FSDP holds them."""
        self.student.tie_weights()

    @property
    def _no_split_modules(self) -> list[str]:
        """The class of the student's layers, which FSDP holds one by one; none where it cannot find them."""
        try:
            return [type(find_layers(self.student)[1][0]).__name__]
        except UserError:
            return []

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The student's, by which Trainer counts what training computes; the teacher's part is not in it."""
        options = (only_trainable, exclude_embeddings)
        if options not in self._counts:  # Trainer asks at each batch
            self._counts[options] = self.student.num_parameters(*options)
        return self._counts[options]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trade compute for memory in the student, as Trainer's option of that name asks."""
        self.student.activation_checkpointing_enable(**options)

    def forward(self, teacher: Representation | None = None, **batch: Tensor) -> Any:
        """Without a teacher, the student's own outputs; with one, ``{"loss": total, "terms": {name: scalar}}``.

        Args:
            teacher: the teacher's representation of the same batch.
            batch: tensors of shape (batch, ...), labels included; the losses see all of them.
        """
        if teacher is None:
            outputs = self.student(**accepted_inputs(self.student, batch))
            if "loss" in outputs:
                outputs["loss"] = _zero_without_labels(outputs["loss"], batch)
            return outputs
        outputs, student = self.extractor(self.student, batch)
        terms: dict[str, Tensor] = {}
        if self.task_weight:
            terms["task"] = self.task_weight * _zero_without_labels(outputs["loss"], batch).float()
        for name, loss in self.losses.items():
            for term, value in loss(student, teacher, batch).items():
                terms[name if term == name else f"{name}/{term}"] = value
        return {"loss": torch.stack(list(terms.values())).sum(), "terms": terms}


def _zero_without_labels(loss: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The student's own loss; 0, not its 0 / 0, where every label of the batch is ignored."""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        return loss
    return torch.where((labels != IGNORED).any(), loss, torch.zeros_like(loss))


def build_distiller(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Sequence[str],
    probe: Mapping[str, Tensor],
    *,
    losses: Mapping[str, Mapping[str, Any] | None],
    layer_map: LayerMap = "even",
    pooling: str = "mean",
    task_weight: float = 1.0,
    seed: int = 0,
    examples: int = 0,
    labels: Tensor | None = None,
    gathers: bool = False,
) -> tuple[Distiller, FeatureExtractor]:
    """Match a student with its teacher on one probe batch, before anything is trained.

    Args:
        student, teacher: models that take the same batches and return the same heads; or, as the teacher, the columns
            of the batches that hold its outputs, see ``itrd_nlp.distillation.teacher_columns``.
        probe: a small batch as training will see it.
        losses: name -> options, see :data:`itrd_nlp.losses.LOSSES`.
        layer_map: see :func:`itrd_nlp.distillation.layers.layer_pairs`.
        pooling: see :class:`itrd_nlp.distillation.pooling.Pooling`.
        task_weight: see :class:`Distiller`.
        seed: initialises the losses' own parameters; torch's global state is left as it was.
        examples: of the training data, where they can be numbered.
        labels: (examples,) classes, where each example has one.
        gathers: whether statistics are those of all processes' samples.

    Returns:
        The module to train, and the extractor for the teacher.

    Raises:
        UserError: the two models do not fit each other, the batch or the options; one line each.
    """
    if not losses:
        raise UserError("losses is empty: expected at least one, e.g. {itrd: {}}")
    of_teacher, of_student = _extractors(teacher, student, probe, losses, layer_map, pooling)
    if isinstance(teacher, PreTrainedModel):
        teacher_outputs, teacher_probe = _read(teacher, of_teacher, teacher_view(probe))
    else:
        teacher_outputs, teacher_probe = of_teacher(None, probe)
    student_outputs, student_probe = _read(student, of_student, probe, trains=True)
    _check_samples(student_probe, teacher_probe, pooling)
    headless = not find_labels(type(student))
    of_student.heads = common_heads(teacher_outputs, student_outputs, headless, by_token=not is_paired(probe))
    of_teacher.stop = not of_losses(losses, "reads_logits")
    if not of_teacher.stop:
        check_heads({head: student_outputs[head] for head in of_student.heads}, probe)
    of_teacher.heads = () if of_teacher.stop else of_student.heads
    if task_weight and "loss" not in student_outputs:
        raise UserError(
            f"task_weight is {task_weight} but the training data carries no labels: name their column with "
            "--label_column, or set --task_weight 0 to learn from the teacher alone"
        )
    teacher_config = teacher.config if isinstance(teacher, PreTrainedModel) else student.config
    _take_problem_type(student.config, teacher_config)
    shapes = Shapes(
        heads=of_student.heads,
        pooling=pooling,
        examples=examples,
        labels=labels,
        independent=student.config.problem_type == INDEPENDENT,
        scores="regression" in (student.config.problem_type, teacher_config.problem_type),
        **_sizes(student_probe, teacher_probe),
    )
    with seeded(seed):  # losses are built on the CPU
        modules = build_losses(losses, shapes)
    for loss in modules.values():
        loss.gathers = gathers
        loss.check_batch(probe)
    distiller = Distiller(student, modules, of_student, task_weight)
    if of_teacher.stop and not task_weight and not headless:
        distiller.idle_head = _idle_head(student, teacher)
    return distiller, of_teacher


def _read(
    model: PreTrainedModel, extractor: FeatureExtractor, probe: Mapping[str, Tensor], trains: bool = False
) -> tuple[Any, Representation]:
    """:func:`read_probe`, once the widths of what was read are those that the model's config says."""
    outputs, representation = read_probe(model, extractor, probe, trains)
    modules = [*extractor.module_names, *extractor.maps]
    check_widths(model, modules, [*representation.features, *representation.maps])
    return outputs, representation


def _check_samples(student: Representation, teacher: Representation, pooling: str) -> None:
    """Refuse matched layers of which one gives more samples than the other."""
    for s, t in zip(student.features, teacher.features, strict=True):
        if len(s) != len(t):
            raise UserError(
                f"pooling {pooling!r} makes {len(s):,} samples of the student's layer and {len(t):,} of the teacher's, "
                "as their maps differ in size: expected the same number; set --pooling mean"
            )


def _take_problem_type(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Let a student whose ``problem_type`` is unknown have independent classes as its teacher; refuse two that differ.

    Where the data has labels, reading the probe has set it.
    """
    if student.problem_type is None and teacher.problem_type == INDEPENDENT:
        student.problem_type = INDEPENDENT
    known = None not in (student.problem_type, teacher.problem_type)
    differ = known and (student.problem_type == INDEPENDENT) != (teacher.problem_type == INDEPENDENT)
    if differ and student.num_labels > 1:
        raise UserError(
            f"the teacher's problem_type is {teacher.problem_type}, the student's {student.problem_type}: expected one "
            "for both; set student.config.problem_type"
        )


def _sizes(student: Representation, teacher: Representation) -> dict[str, Any]:
    """The fields of :class:`Shapes` that two representations of one batch tell."""
    queries = zip(student.attention[::3], teacher.attention[::3], strict=True)
    maps = zip(student.maps, teacher.maps, strict=True)
    return {
        "student_widths": tuple(x.shape[1] for x in student.features),
        "teacher_widths": tuple(x.shape[1] for x in teacher.features),
        "attention_widths": tuple((s.shape[1], t.shape[1]) for s, t in queries),
        "maps": tuple((tuple(s.shape[1:]), tuple(t.shape[1:])) for s, t in maps),
    }


def _idle_head(student: PreTrainedModel, teacher: PreTrainedModel | Sequence[str]) -> str | None:
    """A weight of the student's head that is not the teacher's already, or None."""
    encoder = {id(weight) for weight in student.base_model.parameters()}
    trained = dict(teacher.named_parameters()) if isinstance(teacher, PreTrainedModel) else {}
    for name, weight in student.named_parameters():
        if id(weight) not in encoder and not (name in trained and torch.equal(weight, trained[name].to(weight))):
            return name
    return None


def _extractors(
    teacher: PreTrainedModel | Sequence[str],
    student: PreTrainedModel,
    probe: Mapping[str, Tensor],
    losses: Mapping[str, Any],
    layer_map: LayerMap,
    pooling: str,
) -> Sequence[FeatureExtractor]:
    """Extractors of the teacher and of the student for what the losses compare; their heads are not yet known."""
    if not isinstance(teacher, PreTrainedModel):
        return column_extractors(teacher, student, losses, layer_map, Pooling(pooling))
    if is_paired(probe):
        check_pairable(losses, pooling)
    else:
        check_vocabulary(student, teacher, probe)
    none: list[list[str]] = [[], []]
    layers = matched_layers(teacher, student, layer_map) if of_losses(losses, "reads_features") else none
    attention = matched_attention(teacher, student, layer_map) if of_losses(losses, "reads_attention") else none
    maps = matched_maps(teacher, student) if of_losses(losses, "reads_maps") else none
    return [FeatureExtractor(layers[i], (), Pooling(pooling), attention[i], maps[i]) for i in range(2)]
