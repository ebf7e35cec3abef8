"""Student and losses in one module, so that one forward uses every trainable tensor."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.feature_extractor import FeatureExtractor, accepted_inputs, check_features
from itrd_nlp.distillation.features import attention_modules, find_layers, last_module, layer_modules, layer_pairs
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.losses import Shapes, build_losses, of_losses
from itrd_nlp.losses.base import Representation
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.utils.errors import UserError, first_line
from itrd_nlp.utils.tokenizers import check_shared_vocabulary, table_rows

logger = logging.getLogger(__name__)

IGNORED = -100  # a label that torch's cross entropy leaves out


class Distiller(nn.Module):
    """What is trained: the student, and the projectors that its losses own.

    Gradient zeroing, clipping, all-reduce, the optimizer and checkpoints all look at this one module; the frozen
    teacher is never part of it.

    Args:
        student: the model to train.
        losses: name -> :class:`DistillationLoss`.
        extractor: how the student is read.
        task_weight: weight of the student's own loss on the gold labels; 0 leaves it out, and needs no labels.
    """

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
        self._counts: dict[tuple[bool, bool], int] = {}
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

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The student's, by which Trainer counts what training computes; the teacher's part is not in it."""
        asked = (only_trainable, exclude_embeddings)
        if asked not in self._counts:  # Trainer asks at each batch
            self._counts[asked] = self.student.num_parameters(*asked)
        return self._counts[asked]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trade compute for memory in the student, as Trainer's option of that name asks."""
        self.student.activation_checkpointing_enable(**options)

    def forward(self, teacher: Representation | None = None, **batch: Tensor) -> Any:
        """Without a teacher, the student's own outputs; with one, ``{"loss": total, "terms": {name: scalar}}``.

        Args:
            teacher: what the teacher says about the same batch.
            batch: tensors of shape (batch, ...), labels included; the losses see all of them.
        """
        if teacher is None:
            outputs = self.student(**accepted_inputs(self.student, batch))
            if "loss" in outputs:
                outputs["loss"] = _labelled(outputs["loss"], batch)
            return outputs
        outputs, student = self.extractor(self.student, batch)
        terms: dict[str, Tensor] = {}
        if self.task_weight:
            terms["task"] = self.task_weight * _labelled(outputs["loss"], batch).float()
        for name, loss in self.losses.items():
            for term, value in loss(student, teacher, batch).items():
                terms[name if term == name else f"{name}/{term}"] = value
        return {"loss": torch.stack(list(terms.values())).sum(), "terms": terms}


def _labelled(loss: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The student's own loss; 0 where no label of the batch counts, as of sentences without a token: 0 / 0 is none."""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        return loss
    return torch.where((labels != IGNORED).any(), loss, torch.zeros_like(loss))


def build_distiller(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    probe: Mapping[str, Tensor],
    *,
    losses: Mapping[str, Mapping[str, Any] | None],
    layer_map: str | Sequence[Sequence[int]] = "even",
    pooling: str = "mean",
    task_weight: float = 1.0,
    seed: int = 0,
    examples: int = 0,
    labels: Tensor | None = None,
    gathers: bool = False,
) -> tuple[Distiller, FeatureExtractor]:
    """Match a student with its teacher on one probe batch, before anything is trained.

    Args:
        student, teacher: models that take the same batches and return the same heads.
        probe: a small batch as training will see it.
        losses: name -> options, see :data:`itrd_nlp.losses.LOSSES`.
        layer_map: see :func:`itrd_nlp.distillation.features.layer_pairs`.
        pooling: see :class:`itrd_nlp.distillation.pooling.Pooling`.
        task_weight: see :class:`Distiller`.
        seed: initialises the losses' own parameters; torch's global state is left as it was.
        examples: of the training data, where they can be numbered.
        labels: (examples,) classes of images.
        gathers: whether statistics are those of all processes' samples.

    Returns:
        What to train, and how to read the teacher.

    Raises:
        UserError: the two models do not fit each other, the batch or the options; one line each.
    """
    _check_vocabulary(student, teacher, probe)
    if not losses:
        raise UserError("losses is empty: expected at least one, e.g. {itrd: {}}")
    pool = Pooling(pooling)
    nothing: list[list[str]] = [[], []]
    layers = _matched_layers(teacher, student, layer_map) if of_losses(losses, "reads_features") else nothing
    attention = _matched_attention(teacher, student, layer_map) if of_losses(losses, "reads_attention") else nothing
    maps = _matched_maps(teacher, student) if of_losses(losses, "reads_maps") else nothing
    extractors = [FeatureExtractor(layers[i], (), pool, attention[i], maps[i]) for i in range(2)]
    seen = [_probe(teacher, extractors[0], probe), _probe(student, extractors[1], probe, trains=True)]
    heads = _common_heads(seen[0][0], seen[1][0], headless=not find_labels(type(student)))
    extractors[1].heads = heads
    if of_losses(losses, "reads_logits"):
        extractors[0].heads = heads
    else:
        extractors[0].stop = True
    if task_weight and "loss" not in seen[1][0]:
        raise UserError(
            f"task_weight is {task_weight} but the training data carries no labels: name their column with "
            "--label_column, or set --task_weight 0 to learn from the teacher alone"
        )
    shapes = _shapes(seen[1][1], seen[0][1])._replace(heads=heads, pooling=pooling, examples=examples, labels=labels)
    shapes = shapes._replace(independent=student.config.problem_type == "multi_label_classification")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = build_losses(losses, shapes)
    for loss in modules.values():
        loss.gathers = gathers
    return Distiller(student, modules, extractors[1], task_weight), extractors[0]


def _shapes(student: Representation, teacher: Representation) -> Shapes:
    """What the two representations of a probe tell the losses."""
    attention = zip(student.attention[::3], teacher.attention[::3], strict=True)
    maps = zip(student.maps, teacher.maps, strict=True)
    return Shapes(
        student_widths=tuple(x.shape[1] for x in student.features),
        teacher_widths=tuple(x.shape[1] for x in teacher.features),
        heads=(),
        attention_widths=tuple((s.shape[1], t.shape[1]) for s, t in attention),
        maps=tuple((tuple(s.shape[1:]), tuple(t.shape[1:])) for s, t in maps),
    )


def compile_layers(model: PreTrainedModel, batch: Mapping[str, Tensor], backend: str | None, mode: str | None) -> bool:
    """Compile each layer of an encoder for any length, once for all of them; hooks and the losses stay as they are.

    Args:
        model: the student.
        batch: tried before training; where the machine cannot compile, the model stays as it was, with a word.

    Returns:
        Whether the layers are compiled.
    """
    layers, training = find_layers(model)[1], model.training
    if "forward" in vars(layers[0]):
        return True
    model.train()
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend or "inductor", mode=mode)
    try:
        sum(x.sum() for x in model(**accepted_inputs(model, batch)).values() if x.requires_grad).backward()
    except Exception as error:  # whatever a compiler may raise
        for layer in layers:
            del layer.forward
        logger.warning(f"[compile] not used: {first_line(error)}")
        return False
    finally:
        model.train(training)
        model.zero_grad()
    return True


def _matched_layers(
    teacher: PreTrainedModel, student: PreTrainedModel, layer_map: str | Sequence[Sequence[int]]
) -> list[list[str]]:
    """Modules of the matched layers' outputs in the teacher and in the student."""
    if layer_map == "last":
        return [[last_module(teacher)], [last_module(student)]]
    names = [layer_modules(model) for model in (teacher, student)]
    pairs = layer_pairs(layer_map, *[len(names) - 1 for names in names])
    return [[names[i][pair[i]] for pair in pairs] for i in range(2)]


def _matched_attention(
    teacher: PreTrainedModel, student: PreTrainedModel, layer_map: str | Sequence[Sequence[int]]
) -> list[list[str]]:
    """Modules of the matched layers' queries, keys and values in the teacher and in the student."""
    found = [find_layers(teacher), find_layers(student)]
    pairs = layer_pairs(layer_map, *[len(layers) for _, layers in found])
    return [[name for pair in pairs for name in attention_modules(*found[i], pair[i])] for i in range(2)]


def _matched_maps(teacher: PreTrainedModel, student: PreTrainedModel) -> list[list[str]]:
    """Modules of all stages, and of what enters the classifier, in the teacher and in the student."""
    if any(model.main_input_name != "pixel_values" for model in (teacher, student)):
        raise UserError("the losses compare maps of images: expected image classifiers, not encoders of text")
    from itrd_nlp.distillation.stages import classifier_input, find_stages

    theirs, ours = find_stages(teacher), find_stages(student)
    if len(ours.outputs) != len(theirs.outputs):
        raise UserError(
            f"the teacher has {len(theirs.outputs)} stages, the student {len(ours.outputs)}: expected equally many to "
            "compare their maps"
        )
    return [[*theirs.preact, classifier_input(teacher)], [*ours.outputs, classifier_input(student)]]


@torch.no_grad()
def _probe(
    model: PreTrainedModel, extractor: FeatureExtractor, probe: Mapping[str, Tensor], trains: bool = False
) -> tuple[Any, Representation]:
    """What a model says about the probe, once it is known to take such batches and to be read right.

    A text model that trains must take them in training, too: Reformer does not, at most lengths. An image classifier is
    not asked, as that would move the statistics of its batch norm.
    """
    device, training = next(model.parameters()).device, model.training
    batch = {key: value.to(device) for key, value in probe.items()}
    try:
        if trains and "input_ids" in batch:
            model.train()
            with torch.random.fork_rng():
                _check_forward(model, batch)
        model.eval()
        _check_forward(model, batch)
        if "input_ids" in batch and (extractor.module_names or extractor.attention):
            check_features(model, batch, extractor)
        return extractor(model, batch)
    finally:
        model.train(training)


def _check_forward(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    inputs = accepted_inputs(model, batch)
    try:
        model(**inputs)
    except Exception as error:  # whatever a model of another kind raises for lack of its own inputs
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
        raise UserError(f"{type(model).__name__} cannot take a batch of {shapes} ({first_line(error)})") from None


def _common_heads(teacher: Mapping[str, Any], student: Mapping[str, Any], headless: bool) -> tuple[str, ...]:
    """Names of the logits that both models return, in equal shapes; none of encoders without a head."""
    found = [{k: tuple(v.shape) for k, v in outputs.items() if k.endswith("logits")} for outputs in (teacher, student)]
    if found[0] != found[1] or not (found[0] or headless):
        raise UserError(
            f"the teacher returns {found[0] or 'no logits'}, the student {found[1] or 'no logits'}: expected the "
            "same heads with the same number of classes; give both the same task head"
        )
    return tuple(found[0])


def _check_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, probe: Mapping[str, Tensor]) -> None:
    if "input_ids" not in probe:
        return
    check_shared_vocabulary(teacher, student)
    rows = [count for model in (teacher, student) if (count := table_rows(model)) is not None]
    highest = int(probe["input_ids"].max())
    if rows and highest >= min(rows):
        raise UserError(
            f"the data holds token id {highest}, the models know ids below {min(rows)}: tokenise with the "
            "teacher's own tokenizer"
        )
