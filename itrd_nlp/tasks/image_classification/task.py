"""The task of image classification: data, head and metric."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForImageClassification, EvalPrediction, PreTrainedModel, default_data_collator

from itrd_nlp.models.classes import first_few
from itrd_nlp.tasks.base import Task
from itrd_nlp.tasks.image_classification.decoding import decode_all
from itrd_nlp.tasks.image_classification.images import DecodedImages, ImageDataset, prepare
from itrd_nlp.tasks.metrics import logits_of, top_accuracy
from itrd_nlp.utils.errors import UserError
from itrd_nlp.vision.classes import Head, settle_classes
from itrd_nlp.vision.preprocessing import Preprocessing


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack examples into a batch with channels-last pixels: convolutions follow their input's layout and are faster.

    Weights stay contiguous, which FSDP2 requires.
    """
    batch = default_data_collator(rows)
    batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    return batch


class ImageTask(Task):
    """Data, head and metric of image classification.

    Args:
        train: training images from :func:`itrd_nlp.tasks.image_classification.files.load_images`, or None.
        validation: images for evaluation, or None.
        preprocessing: the teacher's; the student gets the same pixels.
        classes: the expected number of classes; None accepts what the data or the teacher has.
        head: of a trained teacher, whose classes are taken; None if the head is to be trained.
        train_count, eval_count: use this many images, evenly spaced, since folders are sorted by class; None: all.

    Raises:
        UserError: as :func:`itrd_nlp.vision.classes.settle_classes`, or another number of classes than expected.
    """

    modality = "image"
    examples = "images"
    model_class = AutoModelForImageClassification
    metric_names = ("accuracy",)
    tokenizer = None
    max_length = 0
    labelled = True
    has_probabilities = True
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
        self.further_metrics = ("top5_accuracy",) if len(self.class_names) > 10 else ()
        self.train, self.validation = _spread(train, train_count), _spread(validation, eval_count)

    @cached_property
    def train_dataset(self) -> ImageDataset | None:
        """Augmented training images; raises :class:`UserError` if one cannot be decoded."""
        return self._prepared(self.train, augment=True)

    @cached_property
    def eval_dataset(self) -> ImageDataset | None:
        """Evaluation images; raises :class:`UserError` if one cannot be decoded."""
        return self._prepared(self.validation, augment=False)

    def _prepared(self, split: Dataset | None, augment: bool) -> ImageDataset | None:
        if split is None:
            return None
        images = prepare(split, self.preprocessing, augment)
        if isinstance(images, DecodedImages):  # images in memory are decoded already
            split._fingerprint = decode_all(split)  # depends on their content, not on their paths
        return images

    def describe(self) -> list[str]:
        """Describe each split in a line: source, number of images, classes."""
        classes = f"{len(self.class_names)} classes: {first_few(self.class_names)}"
        return [
            f"{split.info.description or name}: {len(split):,} images, {classes}"
            for name, split in (("training", self.train), ("validation", self.validation))
            if split is not None
        ]

    def processor(self, model: PreTrainedModel) -> Any:
        """The image processor to save beside a model; None if the model's config holds it."""
        return self.preprocessing.saver(model)

    def score(self, prediction: EvalPrediction) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """Compute the accuracy, and that of each image, 0 or 100."""
        logits = logits_of(prediction.predictions)
        labels = np.asarray(prediction.label_ids)
        correct = 100.0 * (logits.argmax(1) == labels)
        scores = {"accuracy": float(correct.mean())}
        if logits.shape[1] > 10:
            scores["top5_accuracy"] = top_accuracy(logits, labels, 5)
        return {**scores, "total": len(labels)}, {"accuracy": correct.tolist()}

    def scoring(self) -> list[Any]:
        """Nothing but the labels decides the scores of given logits."""
        return []


def _spread(split: Dataset | None, count: int | None) -> Dataset | None:
    """Select ``count`` evenly spaced images."""
    if split is None or count is None or count >= len(split):
        return split
    return split.select([i * len(split) // count for i in range(count)])
