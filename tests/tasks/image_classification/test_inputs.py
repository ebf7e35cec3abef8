"""Every route by which labelled images come, with every form of label, before every kind of teacher.

Each case gives what an independent reading of the same rows gives, or is refused in one line; nothing between.
"""

import io
import json
import pickle
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

pytest.importorskip("timm", reason="the extra vision is not installed")

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value  # noqa: E402
from PIL import Image as PIL  # noqa: E402

from itrd_nlp.tasks.image_classification.files import load_images  # noqa: E402
from itrd_nlp.tasks.image_classification.task import ImageTask  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.classes import Head  # noqa: E402
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402

SEEN = Preprocessing.plain(32, (0.0,) * 3, (1.0,) * 3)
NAMES = ["fox", "ant", "Big cat"]  # as a data set declares them: neither sorted nor a teacher's order
TRUTH = [0, 1, 2, 2, 0, 1, 1, 2, 0]  # the class of image i, a number in NAMES; its red says which image it is
LABELS = {  # a form of label -> (values, type of `datasets`); None: refused by every route
    "declared": (TRUTH, ClassLabel(names=NAMES)),
    "declared, -1": ([-1 if i == 4 else x for i, x in enumerate(TRUTH)], ClassLabel(names=NAMES)),
    "declared, none": ([None if i == 4 else x for i, x in enumerate(TRUTH)], ClassLabel(names=NAMES)),
    "names": ([NAMES[x] for x in TRUTH], Value("string")),
    "large names": ([NAMES[x] for x in TRUTH], Value("large_string")),
    "digits": ([str(x) for x in TRUTH], Value("string")),
    "numbers": (TRUTH, Value("int64")),
    "small numbers": (TRUTH, Value("uint8")),
    "whole floats": ([float(x) for x in TRUTH], Value("float64")),
    "floats": ([x + 0.5 for x in TRUTH], Value("float32")),
    "numbers, -1": ([-1 if i == 4 else x for i, x in enumerate(TRUTH)], Value("int64")),
    "numbers, none": ([None if i == 4 else x for i, x in enumerate(TRUTH)], Value("int64")),
    "names, none": ([None if i == 4 else NAMES[x] for i, x in enumerate(TRUTH)], Value("string")),
    "lists": ([[x] for x in TRUTH], List(Value("int64"))),
    "lists of names": ([[NAMES[x]] for x in TRUTH], List(Value("string"))),
    "dates": ([f"2024-01-0{x + 1}" for x in TRUTH], Value("date32")),
}
NEVER = {"floats", "numbers, -1", "numbers, none", "names, none", "lists", "lists of names", "dates"}
FOLDERS = ("folder", "hidden beside", "zip", "tar.gz", "splits")  # which hold names alone
TABLES = ("parquet", "bare parquet", "bytes", "arrow folder", "arrow splits", "hub", "hub as file", "image column")
BARE = ("bare parquet", "bytes")  # which declare nothing
LISTED = ("metadata.csv", "metadata.jsonl")  # whose texts are names, and numbers numbers
ROUTES = {
    **dict.fromkeys(FOLDERS, ("names", "digits")),
    **{route: tuple(form for form in LABELS if form[:8] != "declared" or route not in BARE) for route in TABLES},
    **dict.fromkeys(LISTED, ("names", "numbers", "whole floats", "floats", "names, none")),
    "torchvision": ("declared",),
}
HEADS = {
    "none": None,
    "named": Head("teacher", ["ant", "FOX", "big_cat"], 3),
    "other": Head("teacher", ["bee", "cow", "dog"], 3),
    "large": Head("teacher", [f"thing {i}" for i in range(20)], 20),
    "nameless": Head("teacher", [], 3),
}
CASES = [(route, form, head) for route, forms in ROUTES.items() for form in forms for head in HEADS]
DRAWN = set(random.Random(7).sample(CASES, 40))  # of each run of the tests; all of them with `-m slow`


def picture(i):
    return PIL.new("RGB", (32, 32), (20 * i, 90, 10))


def encoded(i):
    file = io.BytesIO()
    picture(i).save(file, "png")
    return file.getvalue()


def in_folders(root, form):
    for i, label in enumerate(LABELS[form][0]):
        (root / label).mkdir(parents=True, exist_ok=True)
        picture(i).save(root / label / f"{i}.{('png', 'PNG', 'bmp')[i % 3]}")
    return root


def table(form, image="img"):
    values, kind = LABELS[form]
    features = Features({image: Image(), "label": Value("string") if kind == Value("date32") else kind})
    data = Dataset.from_dict(
        {image: [{"bytes": encoded(i), "path": None} for i in range(9)], "label": values}, features
    )
    return data.cast_column("label", kind)


def bare(form, column):
    """What pandas and pyarrow write: no word of `datasets` in the file."""
    kept = table(form).data.table
    return pa.table({"image": column, "label": kept["label"].combine_chunks()})


def written(route, form, root):
    """The keywords of `load_images` for a case that is written below ``root``."""
    path = root / "data"
    if route in FOLDERS:
        if route == "splits":
            in_folders(path / "train", form), in_folders(path / "val", form)
            return {"dataset": str(path)}
        in_folders(path, form)
        if route == "hidden beside":
            shutil.copytree(path / LABELS[form][0][0], path / ".ipynb_checkpoints")
            (path / ".DS_Store").write_text("x"), (path / LABELS[form][0][1] / "notes.txt").write_text("x")
        if route in ("zip", "tar.gz"):
            packed = shutil.make_archive(str(root / "in"), {"tar.gz": "gztar"}.get(route, route), root, "data")
            return {"train_file": packed}
        return {"train_file": str(path)}
    path.mkdir()
    if route in LISTED:
        rows = [{"file_name": f"{i}.png", "label": x} for i, x in enumerate(LABELS[form][0])]
        for i in range(9):
            picture(i).save(path / f"{i}.png")
        lines = [json.dumps(row) for row in rows]
        if route.endswith("csv"):
            cells = [["" if x is None else str(x) for x in row.values()] for row in rows]
            lines = ["file_name,label", *(",".join(row) for row in cells)]
        (path / route).write_text("\n".join(lines))
    elif route == "torchvision":
        return _unpacked_cifar(path)
    elif route == "arrow folder":
        table(form).save_to_disk(str(path))
    elif route == "arrow splits":
        DatasetDict({"train": table(form), "test": table(form)}).save_to_disk(str(path))
        return {"dataset": str(path)}
    elif route in ("hub", "hub as file"):
        (path / "data").mkdir()
        for split in ("train", "test"):
            table(form).to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")
        return {"dataset": str(path)} if route == "hub" else {"train_file": str(path)}
    else:
        path = path / "train.parquet"
        if route in ("parquet", "image column"):
            table(form, {"parquet": "img"}.get(route, "image")).to_parquet(path)
        elif route == "bytes":
            pa.parquet.write_table(bare(form, pa.array([encoded(i) for i in range(9)])), path)
        else:
            pa.parquet.write_table(bare(form, pa.array([{"bytes": encoded(i), "path": None} for i in range(9)])), path)
    return {"train_file": str(path)}


def _unpacked_cifar(path):
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.stack([np.asarray(picture(i)).transpose(2, 0, 1).reshape(-1) for i in range(9)])
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        part = slice(2 * i, 2 * i + 2) if i < 4 else slice(8, 9)
        (folder / name).write_bytes(pickle.dumps({"data": pixels[part], "labels": TRUTH[part]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    return {"train_file": str(path)}


def refused(form, head):
    """Whether a case means nothing."""
    if form in NEVER:
        return True
    named = form.startswith("declared") or "names" in form
    if head == "other" and named:
        return True
    return head == "nameless" and form in ("names", "large names")  # names without numbers


def expected(form, head, names):
    """The class of each image that has one, by the plain meaning of its label."""
    if "names" in form or form.startswith("declared"):
        plain = [name.lower().replace("_", " ") for name in names]
        places = [plain.index(NAMES[x].lower()) for x in TRUTH]
    else:
        places = TRUTH
    return {i: x for i, x in enumerate(places) if not (form.startswith("declared,") and i == 4)}


@pytest.mark.parametrize(
    "route,form,head",
    [pytest.param(*case, marks=[] if case in DRAWN else pytest.mark.slow, id=", ".join(case)) for case in CASES],
)
def test_right_or_refused(route, form, head, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    words = written(route, form, tmp_path)
    if refused(form, head):
        with pytest.raises(UserError) as error:
            ImageTask(*load_images(**words), SEEN, head=HEADS[head])
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        return
    task = ImageTask(*load_images(**words), SEEN, head=HEADS[head])
    if head == "named" or (head == "other" and form not in ("names", "declared")):
        assert task.class_names == HEADS[head].names
    for data, dataset in ((task.train, task.train_dataset), (task.validation, task.eval_dataset)):
        if data is not None:
            dataset.augment = False
            rows = dataset.__getitems__(range(len(data)))
            found = {round(row["pixel_values"][0, 0, 0].item() * 255) // 20: int(row["labels"]) for row in rows}
            assert len(rows) == len(found) and found == expected(form, head, task.class_names)
