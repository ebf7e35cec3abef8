"""The task of image classification: data, head and metric."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForImageClassification, EvalPrediction, PreTrainedModel, default_data_collator

from itrd_nlp.models.classes import listed
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.image_classification.decoding import check_images
from itrd_nlp.tasks.image_classification.images import DecodedImages, prepare
from itrd_nlp.tasks.metrics import check_finite, top_accuracy
from itrd_nlp.utils.datasets import NumberedDataset
from itrd_nlp.utils.errors import UserError
from itrd_nlp.vision.classes import Head, settle_classes
from itrd_nlp.vision.preprocessing import Preprocessing


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch whose pixels lie channels last in memory: convolutions follow their input, and are faster so.

    Weights stay contiguous, which FSDP2 asks for.
    """
    batch = default_data_collator(rows)
    batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    return batch


class ImageTask(Task):
    """Data, head and metric of image classification.

    Args:
        train: as :func:`itrd_nlp.tasks.image_classification.files.load_images` returns it, or None.
        validation: the same for evaluation.
        preprocessing: of the teacher; the student sees the same pixels.
        classes: how many there must be; None takes what the data or the teacher has.
        head: of the teacher, whose classes count; None where it is to be trained.
        train_count, eval_count: use so many images, from all over, as folders are sorted by class; None: all.

    Raises:
        UserError: as :func:`itrd_nlp.vision.classes.settle_classes`, or another number of classes than expected.
    """

    modality = "image"
    model_class = AutoModelForImageClassification
    metric_names = ("accuracy",)
    tokenizer = None
    max_length = 0
    labelled = True
    collator = staticmethod(collate)

    def __init__(
        self,
        train: Dataset | None,
        validation: Dataset | None,
        preprocessing: Preprocessing,
        classes: int | None = None,
        head: Head | None = None,
        train_count: int | None = None,
        eval_count: int | None = None,
    ):
        self.preprocessing = preprocessing
        self.class_names, (train, validation) = settle_classes(train, validation, head, classes)
        if classes not in (None, len(self.class_names)):
            raise UserError(f"the data has {len(self.class_names)} classes: expected {classes}; see --task")
        self.train, self.validation = _spread(train, train_count), _spread(validation, eval_count)

    @cached_property
    def train_dataset(self) -> NumberedDataset | None:
        """Training images, augmented; :class:`UserError` where one cannot be decoded."""
        return self._prepared(self.train, augment=True)

    @cached_property
    def eval_dataset(self) -> NumberedDataset | None:
        """Evaluation images; :class:`UserError` where one cannot be decoded."""
        return self._prepared(self.validation, augment=False)

    def _prepared(self, split: Dataset | None, augment: bool) -> NumberedDataset | None:
        if split is None:
            return None
        made = prepare(split, self.preprocessing, augment)
        if isinstance(made, DecodedImages):  # the others are decoded, all of them
            split._fingerprint = check_images(split)  # which names their content, not where they lie
        return made

    def describe(self) -> list[str]:
        """A line for each split: where it lies, how many images it has, and the classes."""
        classes = f"{len(self.class_names)} classes: {listed(self.class_names)}"
        return [
            f"{split.info.description or name}: {len(split):,} images, {classes}"
            for name, split in (("training", self.train), ("validation", self.validation))
            if split is not None
        ]

    def processor(self, model: PreTrainedModel) -> Any:
        """What saves the image processor of the task beside a model; None where the model's config holds it."""
        return self.preprocessing.saver(model.base_model_prefix == "timm_model")

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """What `compute_metrics` returns, and the accuracy of each evaluation image, 0 or 100."""
        found = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        logits = check_finite(found)
        labels = np.asarray(prediction.label_ids)
        right = 100.0 * (logits.argmax(1) == labels)
        scores = {"accuracy": float(right.mean())}
        if logits.shape[1] > 10:
            scores["top5_accuracy"] = top_accuracy(logits, labels, 5)
        return {**scores, "total": len(labels)}, {"accuracy": right.tolist()}

    def scoring(self) -> list[Any]:
        """Nothing but the labels decides the scores."""
        return []

    def summary(self) -> dict[str, int]:
        """How many images are trained and evaluated on, for the record."""
        counts = {"training images": self.train, "validation images": self.validation}
        return {name: len(split) for name, split in counts.items() if split is not None}


def _spread(split: Dataset | None, count: int | None) -> Dataset | None:
    """So many images from all over a split."""
    if split is None or count is None or count >= len(split):
        return split
    return split.select([i * len(split) // count for i in range(count)])
