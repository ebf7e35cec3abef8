"""Images as a model's own image processor makes them: in evaluation, in training, and beside a student."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Image

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from PIL import Image as PIL  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402
from transformers import AutoImageProcessor  # noqa: E402
from transformers.models.auto.image_processing_auto import (  # noqa: E402
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)

import itrd_nlp.vision  # noqa: E402, F401
from itrd_nlp.tasks.image_classification.images import DecodedImages, MemoryImages, prepare  # noqa: E402
from itrd_nlp.tasks.image_classification.task import ImageTask  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.utils.hashing import digest  # noqa: E402
from itrd_nlp.vision.models import load_image_model, preprocessing_of  # noqa: E402
from itrd_nlp.vision.pixels import pixels  # noqa: E402
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402
from itrd_nlp.vision.steps import difference, steps_of  # noqa: E402
from vision.pictures import pictures  # noqa: E402
from vision.test_models import VIT  # noqa: E402

IN = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"crop_size": {"height": 224, "width": 224}}
KINDS = {  # what published models say
    "MobileViTImageProcessor": {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}},
    "LevitImageProcessor": {"size": {"shortest_edge": 224}, "resample": 3, **CROP, **IN},
    "EfficientNetImageProcessor": {
        **{"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 0},
        **{"image_mean": IN["image_mean"], "image_std": [0.47853944, 0.4732864, 0.47434163]},
    },
    "ViTImageProcessor": {
        **{"size": {"height": 224, "width": 192}, "do_rescale": False},
        **{"image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    },
    "ViTImageProcessorPil": {"size": {"height": 96, "width": 96}, "resample": 3},
    "DeiTImageProcessor": {"size": {"height": 256, "width": 256}, "resample": 3, **CROP, **IN},
    "BitImageProcessor": {"size": {"shortest_edge": 256}, "resample": 3, **CROP, **IN},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 384}, "do_normalize": False},
    "PoolFormerImageProcessor": {"size": {"shortest_edge": 224}, "crop_pct": 0.9, **CROP},
    "CLIPImageProcessor": {"size": 80, "crop_size": 64},
}


def photograph(height=300, width=400):
    y, x = np.mgrid[0:height, 0:width]
    planes = [120 + 100 * np.sin(x / 37), 60 + 50 * np.cos(y / 23) + 0 * x, 200 - 0.4 * x + 0 * y]
    return PIL.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))


def rows(*images):
    return Dataset.from_dict({"image": list(images), "label": [0] * len(images)}).cast_column("image", Image())


def saved(folder, name, fields):
    """A folder with a processor, and the same processor."""
    own = getattr(transformers, name)(**fields)
    own.save_pretrained(folder)
    return AutoImageProcessor.from_pretrained(folder)


def theirs(processor, image):
    return torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0]))


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_sees_what_the_models_own_processor_makes(name, tmp_path):
    own = saved(tmp_path, name, KINDS[name])
    for image in (photograph(), photograph(90, 300), photograph(300, 90)):
        equal(prepare(rows(image), preprocessing_of(str(tmp_path)), False)[0]["pixel_values"], theirs(own, image))


@pytest.mark.parametrize("name", KINDS)
def test_training_scales_colours_as_the_processor_does(name, tmp_path):
    own = saved(tmp_path, name, KINDS[name])
    image = PIL.new("RGB", (300, 280), (200, 30, 90))
    equal(prepare(rows(image), preprocessing_of(str(tmp_path)), True)[0]["pixel_values"], theirs(own, image))


@pytest.mark.parametrize("fields", [{}, {"do_flip_channel_order": False}])
def test_small_images_in_memory_are_the_processors_too(fields, tmp_path):
    size = {"height": 32, "width": 32}
    own = saved(tmp_path, "MobileViTImageProcessor", {"size": size, "crop_size": size, **fields})
    data, seen = pictures(3), preprocessing_of(str(tmp_path))
    images = prepare(data, seen, augment=False)
    assert isinstance(images, MemoryImages)
    for place, row in enumerate(data):
        equal(images[place]["pixel_values"], theirs(own, row["image"]))


def test_small_images_that_a_processor_crops_are_cropped_in_evaluation(tmp_path):
    own = saved(tmp_path, "ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875})
    data, seen = pictures(2), preprocessing_of(str(tmp_path))
    images = prepare(data, seen, augment=False)
    assert isinstance(images, DecodedImages) and isinstance(prepare(data, seen, augment=True), MemoryImages)
    equal(images[1]["pixel_values"], theirs(own, data[1]["image"]))


def test_digests_of_images_in_memory_are_what_they_were():
    data = pictures(2)
    images = prepare(data, preprocessing_of("cifar_resnet20"), augment=True)
    import hashlib

    hashed = hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()).hexdigest()
    how = [32, [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761], 1.0, "bilinear", "center"]
    assert images.digest() == digest([hashed, how, True])


@pytest.mark.parametrize(
    "name,fields,words",
    [
        ("ViltImageProcessor", {}, "makes pixel_values, pixel_mask"),
        ("VideoMAEImageProcessor", {}, r"makes of one image \(1, 1, 3, 224, 224\)"),
        ("Pix2StructImageProcessor", {}, "makes flattened_patches"),
        ("IdeficsImageProcessor", {}, "makes a Tensor, without a name"),
        ("ViTImageProcessor", {"do_resize": False}, "makes images of several sizes"),
        ("CLIPImageProcessor", {"do_center_crop": False}, "makes images of several sizes"),
        ("ImageGPTImageProcessor", {}, "cannot take one image alone"),
        ("ViTImageProcessor", {"image_mean": [0.5], "image_std": [0.5, 0.5]}, "cannot take one image alone"),
        ("ViTImageProcessor", {"image_mean": [float("nan")] * 3}, "does not scale each colour by itself"),
        ("SuperPointImageProcessor", {"do_grayscale": True}, "does not scale each colour by itself"),
    ],
)
def test_processors_that_cannot_serve_are_one_line(name, fields, words, tmp_path):
    getattr(transformers, name)(**fields).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"processor of .* \({name}\) .*{words}.*: expected one that makes") as error:
        preprocessing_of(str(tmp_path))
    assert "\n" not in str(error.value)


def test_code_beside_a_processor_is_not_run(tmp_path):
    values = {"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="nothing says how it wants its images"):
        preprocessing_of(str(tmp_path))


TIMMS = [  # cropped, rounded down, squashed, with a border, of two sides
    ("resnet34", {}),
    ("cifar_resnet20", {"crop_pct": 0.875}),
    ("vit_base_patch16_siglip_224", {"crop_mode": "squash"}),
    ("resnet34", {"crop_mode": "border", "crop_pct": 1.0}),
    ("resnet34", {"input_size": (3, 160, 224)}),
    ("efficientnet_b0", {"interpolation": "nearest", "crop_pct": 0.77}),
]


@pytest.mark.parametrize("name,changes", TIMMS)
def test_evaluation_sees_what_timms_transform_makes(name, changes):
    cfg = timm.get_pretrained_cfg(name).to_dict() | changes
    seen, own = Preprocessing.of_timm(cfg), create_transform(**resolve_data_config({}, pretrained_cfg=cfg))
    how = steps_of(seen)
    assert how["grey_levels"] < 1e-3
    for image in (photograph(), photograph(90, 300), photograph(300, 90)):
        equal(prepare(rows(image), seen, False)[0]["pixel_values"], own(image))
        equal(torch.from_numpy(pixels(image, how)), own(image))


TEACHERS = {
    "mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "timm": None,
}


@pytest.mark.parametrize("student", [VIT, "cifar_resnet20"])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_students_folder_makes_the_teachers_pixels(teacher, student, tmp_path):
    """Of whatever kind they are, by transformers' AutoImageProcessor; by timm, where timm has such a transform."""
    seen = Preprocessing.plain(32, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), crop_pct=0.5, interpolation="bicubic")
    if TEACHERS[teacher]:
        saved(tmp_path / "teacher", *TEACHERS[teacher])
        seen = preprocessing_of(str(tmp_path / "teacher"))
    task = ImageTask(pictures(4), pictures(4), seen)
    model, _ = load_image_model(student, task.class_names, 0, task.preprocessing)
    model.save_pretrained(tmp_path / "student")
    if saver := task.processor(model):
        saver.save_pretrained(tmp_path / "student")
    images = prepare(rows(photograph()), seen, augment=False)
    own = AutoImageProcessor.from_pretrained(tmp_path / "student")
    equal(theirs(own, photograph()), images[0]["pixel_values"])
    again = preprocessing_of(str(tmp_path / "student"))
    equal(again(photograph()), images[0]["pixel_values"])
    loaded, complete = load_image_model(str(tmp_path / "student"), task.class_names, 0)
    assert complete and loaded.config.num_labels == 10
    if student is not VIT:
        config = json.loads((tmp_path / "student" / "config.json").read_text())
        transform = create_transform(**resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"]))
        found = transform(photograph())
        levels = 255 * torch.tensor(seen.std)[:, None, None]
        near = bool(((found - images[0]["pixel_values"]).abs() * levels).max() < 3)
        assert near == (teacher != "mobilevit")


def processors():
    """Each class of image processor that transformers has, of either backend."""
    names = {name for kinds in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in kinds.values() if name}
    return sorted(names)


def served(name):
    """Whether a class with its own defaults makes the same pixels here, or is refused in one line; else it fails."""
    if name == "TimmWrapperImageProcessor":  # has none of its own
        own = transformers.TimmWrapperImageProcessor({"input_size": (3, 64, 64)})
    else:
        try:
            own = get_image_processor_class_from_name(name)()
        except (ImportError, TypeError):  # what it needs is not installed: no model of it can be loaded either
            return "cannot be made"
    try:
        seen = Preprocessing(own)
    except UserError as error:
        assert "\n" not in str(error), error
        return "refused"
    for image in (photograph(), photograph(90, 300), photograph(17, 12)):
        equal(prepare(rows(image), seen, False)[0]["pixel_values"], theirs(own, image))
    plain = PIL.new("RGB", (130, 97), (200, 30, 90))
    middle = [side // 2 for side in seen.size]
    found, expected = prepare(rows(plain), seen, True)[0]["pixel_values"], theirs(own, plain)
    equal(found[:, middle[0], middle[1]], expected[:, middle[0], middle[1]])
    how = steps_of(seen)
    return "right, by transformers alone" if how is None else "right, also by numpy and Pillow"


def configurations():
    """A model of timm for each preprocessing that any of its pretrained ones asks for."""
    kinds = {}
    for name in timm.list_pretrained():
        cfg = timm.get_pretrained_cfg(name).to_dict()
        kinds.setdefault(json.dumps(resolve_data_config({}, pretrained_cfg=cfg)), name)
    return sorted(kinds.values())


def served_by_timm(name):
    cfg = timm.get_pretrained_cfg(name).to_dict()
    own = create_transform(**resolve_data_config({}, pretrained_cfg=cfg))
    try:
        seen = Preprocessing.of_timm(cfg)
    except UserError as error:
        assert "\n" not in str(error), error
        return "refused"
    how = steps_of(seen)
    for image in (photograph(), photograph(90, 300)):
        equal(prepare(rows(image), seen, False)[0]["pixel_values"], own(image))
        equal(torch.from_numpy(pixels(image, how)), own(image))
    return "right"


def test_some_processors_are_served_or_refused():
    for name in random.Random(0).sample(processors(), 7):
        served(name)
    for name in random.Random(0).sample(configurations(), 4):
        served_by_timm(name)


@pytest.mark.parametrize("kind", ["ConvNextImageProcessor", "LevitImageProcessor", "EfficientNetImageProcessor"])
def test_steps_near_torchvisions_are_a_grey_level_off_on_photographs(kind):
    fields = {"resample": 0} if kind.startswith("Efficient") else {}
    seen = Preprocessing(getattr(transformers, kind)(**fields))
    how = steps_of(seen)
    for image in (photograph(), photograph(402, 299)):
        apart = np.abs(pixels(image, how) - seen(image).numpy()) * 255 * np.float32(seen.std)[:, None, None]
        assert apart.max() < 2.1 and apart.mean() < 0.05


def test_steps_that_are_wrong_are_not_taken(monkeypatch):
    seen = Preprocessing.plain(48, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 0.8, "bicubic")
    how = steps_of(seen)
    wrong = {"fit": "squash", "size": [60, 60]}, {"size": 61}, {"interpolation": "bilinear"}, {"order": [2, 1, 0]}
    for change in (*wrong, {"rounding": "down"}, {"mean": [0.4, 0.5, 0.7]}, {"std": [float("nan")] * 3}):
        assert difference(how, seen) < 1e-3 and difference({**how, **change}, seen) is None
        monkeypatch.setattr("itrd_nlp.vision.steps._suggested", lambda _, change=change: [{**how, **change}])
        assert steps_of(seen) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", processors())
def test_every_processor_of_transformers_is_served_or_refused(name, record_property):
    record_property("outcome", served(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", configurations())
def test_every_preprocessing_of_timm_is_served_or_refused(name, record_property):
    record_property("outcome", served_by_timm(name))
