"""A teacher whose outputs are in columns of the training data, in place of a model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.layers import LayerMap, last_module
from itrd_nlp.distillation.pooling import Pooling, token_mask
from itrd_nlp.losses import LOSSES, of_losses
from itrd_nlp.losses.base import Representation
from itrd_nlp.utils.errors import UserError

# columns of a dataset, and entries of a batch: (examples, classes) logits and (examples, d) sentence embeddings
LOGITS, EMBEDDING = "teacher_logits", "teacher_embedding"
COLUMNS = (LOGITS, EMBEDDING)


def teacher_columns(data: Any) -> list[str]:
    """The columns of training data that hold a teacher's outputs, by the first example where no schema names them."""
    names = getattr(data, "column_names", None)
    if names is None and data is not None:  # streamed, or no dataset of `datasets`
        first = next(iter(data), None)
        names = first if isinstance(first, Mapping) else ()
    return [name for name in COLUMNS if name in (names or ())]


def without_teacher(data: Any) -> Any:
    """A dataset without the columns of a teacher's outputs."""
    columns = teacher_columns(data)
    return data.remove_columns(columns) if columns else data


class ColumnExtractor(FeatureExtractor):
    """Reads the teacher's representation from columns of a batch, where a :class:`FeatureExtractor` runs a model."""

    def __init__(self, columns: Sequence[str], pooling: Pooling):
        super().__init__((), (), pooling)
        self.columns = columns

    def __call__(
        self, model: nn.Module | None, batch: Mapping[str, Tensor], to_store: bool = False
    ) -> tuple[Any, Representation]:
        """The teacher's outputs by name, and its representation of a batch; there is no model to run."""
        logits = {"logits": batch[LOGITS].float()} if LOGITS in self.columns else {}
        features = (batch[EMBEDDING].float(),) if EMBEDDING in self.columns else ()
        read = {head: value for head, value in logits.items() if head in self.heads}
        return logits, Representation(read, features, token_mask(batch))


def column_extractors(
    columns: Sequence[str],
    student: PreTrainedModel,
    losses: Collection[str],
    layer_map: LayerMap,
    pooling: Pooling,
) -> tuple[FeatureExtractor, FeatureExtractor]:
    """Extractors of the teacher's columns and of the student, whose last layer is compared with the embeddings.

    Raises:
        UserError: a loss that needs a teacher's hidden states, or a map or pooling that has no embedding to compare.
    """
    known = [name for name in losses if name in LOSSES]  # `build_losses` refuses the others
    inner = [*of_losses(known, "reads_attention"), *of_losses(known, "reads_maps")]
    if EMBEDDING not in columns:
        inner += of_losses(known, "reads_features")
    if inner:
        raise UserError(
            f"{inner[0]} compares hidden states, of which the data has none ({', '.join(columns)}): expected "
            f"{'losses on embeddings, such as cosine' if EMBEDDING in columns else '--losses {kd: {}}'}, or a teacher; "
            "to learn from the labels alone, leave the column out"
        )
    if not of_losses(known, "reads_features"):
        return ColumnExtractor([name for name in columns if name == LOGITS], pooling), FeatureExtractor((), (), pooling)
    if layer_map != "last":
        raise UserError(
            f"layer_map {layer_map!r} with {EMBEDDING} in the data: a sentence embedding has one layer; expected "
            "--layer_map last"
        )
    if pooling.kind not in ("mean", "cls"):
        raise UserError(
            f"pooling {pooling.spec!r} with {EMBEDDING} in the data: a text has one embedding; expected mean or cls"
        )
    return ColumnExtractor(columns, pooling), FeatureExtractor([last_module(student)], (), pooling)
