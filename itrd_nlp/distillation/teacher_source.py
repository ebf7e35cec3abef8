"""The source of cached teacher outputs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from torch import nn
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.alignment import TEACHER, is_paired
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.losses.base import Representation
from itrd_nlp.utils.batches import text_lengths
from itrd_nlp.utils.modeling import input_names


class Source(NamedTuple):
    """Where a teacher's outputs come from, and what they depend on."""

    teacher: nn.Module
    extractor: FeatureExtractor
    data: Any  # training examples, as the trainer received them
    args: Any  # ITRDArguments
    draw: Callable[[Sequence[int]], Mapping[str, Any]]  # the batch of the examples with these indices, as it reads it
    forward: Callable[[Mapping[str, Any]], Representation]  # the teacher's of a batch, pooled as it is stored
    batches: Callable[[], int]  # of an epoch
    precision: str  # of autocast, and of fp32 where tf32 is set
    share: float | None = None  # of the examples that an epoch draws; None: all of them, in batches of equal size
    readers: int = 1  # trainings like this one that read the outputs

    @property
    def lengths(self) -> list[int] | None:
        """The teacher's tokens of each example, where known."""
        if isinstance(self.data, Dataset) and f"{TEACHER}length" in self.data.column_names:
            return text_lengths(self.data, f"{TEACHER}length")
        return text_lengths(self.data, self.args.length_column_name)

    @property
    def inputs(self) -> Any:
        """What the teacher reads of the data: its outputs depend neither on labels nor on the student's tokens."""
        if not isinstance(self.data, Dataset):
            return self.data
        columns = self.data.column_names
        paired = is_paired(columns)
        named = {name.removeprefix(TEACHER): name for name in columns if name.startswith(TEACHER) or not paired}
        read = [name for name in self.input_names if name in named]
        if "input_ids" not in read:  # images
            return self.data
        return self.data.select_columns([named[name] for name in read]).rename_columns({named[n]: n for n in read})

    @property
    def input_names(self) -> list[str]:
        """The columns of texts that a teacher reads, and the mask by which its outputs are pooled."""
        labels = find_labels(type(self.teacher))
        names = [*input_names(self.teacher), "special_tokens_mask"]
        return [name for name in names if name not in labels]

    @property
    def folder(self) -> Path | None:
        """The folder that the user named; ``auto`` names none."""
        name = self.args.teacher_cache
        return None if name == "auto" else Path(name).expanduser().absolute()
