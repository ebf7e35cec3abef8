"""What a saved image classifier says of images, which it sees as its evaluation does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from transformers.utils.logging import tqdm

from itrd_nlp.inference.saved_models import load_saved
from itrd_nlp.inference.texts import classified
from itrd_nlp.models.classes import classes_of
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.utils.errors import UserError, first_line

try:
    from itrd_nlp.tasks.image_classification.files import with_images
    from itrd_nlp.tasks.image_classification.folders import SUFFIXES, images_below
    from itrd_nlp.tasks.image_classification.images import prepare
    from itrd_nlp.tasks.image_classification.task import collate
    from itrd_nlp.vision.models import preprocessing_of
except (ImportError, RuntimeError) as error:
    raise UserError(f"images need torchvision and timm: pip install 'itrd_nlp[vision]' ({first_line(error)})") from None

BATCH = 32  # images of a forward


@torch.no_grad()
def predict_images(source: str, place: str, progress: bool = True) -> list[dict[str, Any]]:
    """What an image classifier says of an image, of all below a folder, or of the rows of a parquet file.

    Args:
        source: folder or Hub id of the classifier, exported or not.
        place: an image file; a folder, at whose depths all images are taken in the order of their paths; or a parquet
            or arrow file with a column of images, whose labels are not read.
        progress: show a progress bar.

    Returns:
        For each image ``image``, its path or the number of its row, ``label``, and the probability of each class as
        ``scores``.

    Raises:
        UserError: no such classifier, no images, or one that cannot be decoded.
    """
    data, names = read_images(place)
    model = load_saved(source)
    classes = classes_of(model.config)
    images = prepare(data, preprocessing_of(source), augment=False)
    made = []
    with tqdm(total=len(names), desc="Predicting", unit="image", disable=not progress) as bar:
        for begin in range(0, len(names), BATCH):
            chosen = range(begin, min(begin + BATCH, len(names)))
            pixels = collate(images.__getitems__(list(chosen)))["pixel_values"].to(model.device)
            logits = model(pixel_values=pixels)["logits"].float().cpu().numpy()
            made += [{"image": names[i], **classified(row, classes)} for i, row in zip(chosen, logits, strict=True)]
            bar.update(len(chosen))
    return made


def read_images(place: str) -> tuple[Dataset, Sequence[Any]]:
    """The images of a place, in the columns image and label, which says nothing; and the name of each.

    Raises:
        UserError: nothing there, or no images.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; expected an image, a folder of images, or a parquet file")
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        files = sorted(map(str, images_below(path))) if path.is_dir() else [str(path)]
        if not files:
            raise UserError(f"{place} holds no images: expected files such as .jpg or .png in it")
        data = Dataset.from_dict({"image": files}).cast_column("image", Image())
        names: Sequence[Any] = files
    else:
        table = read_table(place, "validation", "images").dataset
        columns, image = (None, None) if table is None else with_images(table)
        if columns is None or image is None:
            raise UserError(f"{place} holds no images: expected a column of them in a parquet file, or image files")
        data = columns.select_columns([image]).rename_columns({image: "image"} if image != "image" else {})
        names = range(len(data))
    return data.add_column("label", [0] * len(data)), names
