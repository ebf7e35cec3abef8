"""Predictions of a saved image classifier, which sees images as its evaluation does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from torch import Tensor

from itrd_nlp.inference.batches import run_batches
from itrd_nlp.inference.results import classification, multilabel
from itrd_nlp.inference.saved_models import load_saved
from itrd_nlp.models.classes import TASK_OF_PROBLEM, classes_of, distinct, temperature_of
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.utils.errors import UserError, needing

with needing("images need torchvision and timm", "vision"):
    from itrd_nlp.tasks.image_classification.files import check_no_nulls, with_images
    from itrd_nlp.tasks.image_classification.folders import SUFFIXES, images_below
    from itrd_nlp.tasks.image_classification.images import prepare
    from itrd_nlp.tasks.image_classification.task import collate
    from itrd_nlp.vision.models import preprocessing_of


def predict_images(source: str, path: str, progress: bool = True) -> list[dict[str, Any]]:
    """Classify an image, all images below a folder, or those of a parquet file.

    Args:
        source: folder or Hub id of the classifier, exported or not.
        path: an image file; a folder, whose images at any depth are taken in the order of their paths; or a parquet or
            arrow file with a column of images, whose labels are not read.
        progress: show a progress bar.

    Returns:
        For each image ``image``, its path or the index of its row; ``label``, or ``labels`` where several may hold;
        and ``scores``, the probability of each class, by the temperature in the model's config where it has one. Of a
        regression model ``score``, or ``scores`` where it has several outputs.

    Raises:
        UserError: no such classifier, no images, or one that cannot be decoded.
    """
    data, names = read_images(path)
    model = load_saved(source)
    classes = distinct(classes_of(model.config))
    kind = TASK_OF_PROBLEM.get(model.config.problem_type, "regression" if len(classes) == 1 else "")
    result = {"multilabel": multilabel, "regression": _values}.get(kind, classification)
    temperature = temperature_of(model.config) or 1.0
    images = prepare(data, preprocessing_of(source), augment=False)
    batches = run_batches(
        model,
        [1] * len(names),
        lambda indices: {"pixel_values": collate(images.__getitems__(indices.tolist()))["pixel_values"]},
        unit="image" if progress else "",
    )
    return [
        {"image": names[index], **result(logits / temperature, classes)}
        for indices, _, output in batches
        for index, logits in zip(indices, output["logits"].float().cpu(), strict=True)
    ]


def _values(outputs: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The result of a regression model."""
    values = outputs.tolist()
    return {"score": values[0]} if len(values) == 1 else {"scores": dict(zip(names, values, strict=True))}


def read_images(path: str) -> tuple[Dataset, Sequence[Any]]:
    """Images in the column ``image``, beside a column ``label`` of zeros; and the name of each image.

    Raises:
        UserError: nothing there, or no images.
    """
    root = Path(path)
    if not root.exists():
        raise UserError(f"{path}: no such file or folder; expected an image, a folder of images, or a parquet file")
    names: Sequence[Any]
    if root.is_dir() or root.suffix.lower() in SUFFIXES:
        names = sorted(map(str, images_below(root))) if root.is_dir() else [str(root)]
        if not names:
            raise UserError(f"{path} holds no images: expected files such as .jpg or .png in it")
        data = Dataset.from_dict({"image": names}).cast_column("image", Image())
    else:
        table = read_table(path, "validation", "images").dataset
        columns, image = (None, None) if table is None else with_images(table)
        if columns is None or image is None:
            raise UserError(f"{path} holds no images: expected a column of them in a parquet file, or image files")
        data = columns.select_columns([image])
        data = data if image == "image" else data.rename_column(image, "image")
        check_no_nulls(data, "image", path)
        names = range(len(data))
    return data.add_column("label", [0] * len(data)), names
