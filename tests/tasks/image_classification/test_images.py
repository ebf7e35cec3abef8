"""Images from wherever they come, and as a network takes them."""

import io
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

pytest.importorskip("timm", reason="the extra vision is not installed")

from datasets import Dataset, Image, Value  # noqa: E402
from datasets.table import InMemoryTable  # noqa: E402
from PIL import Image as PIL  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from itrd_nlp.experiments.parsing import parse  # noqa: E402
from itrd_nlp.experiments.tasks import TASKS  # noqa: E402
from itrd_nlp.losses.base import INDEX  # noqa: E402
from itrd_nlp.tasks.image_classification import decoding  # noqa: E402
from itrd_nlp.tasks.image_classification.files import load_images  # noqa: E402
from itrd_nlp.tasks.image_classification.images import PADDING, DecodedImages, MemoryImages, prepare  # noqa: E402
from itrd_nlp.utils.datasets import Epoch  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.classes import settle_classes
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402
from vision.pictures import parquet, pictures, png  # noqa: E402

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SEEN = Preprocessing.plain(32, MEAN, STD)


def folder_like(names):
    """Images whose labels are names alone."""
    data = pictures(len(names)).remove_columns("label")
    return data.add_column("label", names)


def epoch(number, seed):
    return Epoch(number, 9, seed, resumed=False)


def class_names(train, validation=None, **options):
    return settle_classes(train, validation, **options)[0]


def labels(data):
    """Of a split alone, as a task has them."""
    return settle_classes(data, None)[1][0]["label"][:]


def arrays(data):
    return np.stack([np.asarray(image) for image in data["image"]])


def test_evaluation_images_are_normalised_exactly():
    data = pictures(5)
    rows = prepare(data, SEEN, augment=False).__getitems__([3, 0])
    for row, place in zip(rows, (3, 0), strict=True):
        expected = (
            torch.tensor(arrays(data)[place]).permute(2, 0, 1).float() / 255 - torch.tensor(SEEN.mean)[:, None, None]
        )
        torch.testing.assert_close(row["pixel_values"], expected / torch.tensor(SEEN.std)[:, None, None])
        assert row["labels"] == data["label"][place] and row[INDEX] == place


def test_augmentation_is_a_crop_of_the_padded_image_mirrored_or_not():
    plain = Preprocessing.plain(32, (0.0,) * 3, (1.0,) * 3)
    data = pictures(30)
    images = prepare(data, plain, augment=True)
    images.start_epoch(epoch(0, seed=3))
    padded = np.pad(arrays(data), ((0, 0), (PADDING,) * 2, (PADDING,) * 2, (0, 0)))
    mirrored, corners = 0, set()
    for row in images.__getitems__(range(30)):
        found = (row["pixel_values"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        matches = [
            (y, x, flip)
            for y in range(2 * PADDING + 1)
            for x in range(2 * PADDING + 1)
            for flip in (False, True)
            if np.array_equal(found, padded[row[INDEX], y : y + 32, x : x + 32][:, :: -1 if flip else 1])
        ]
        assert len(matches) == 1
        mirrored += matches[0][2]
        corners.add(matches[0][:2])
    assert 5 < mirrored < 25 and len(corners) > 15


def equal(first, second):
    return all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [32, 16])
def test_what_is_drawn_depends_on_seed_epoch_and_place_alone(size):
    images = prepare(pictures(8), Preprocessing.plain(size, MEAN, STD), augment=True)
    assert isinstance(images, MemoryImages if size == 32 else DecodedImages)
    images.start_epoch(epoch(2, seed=1))
    together = images.__getitems__(range(8))
    assert equal(together, [images[i] for i in range(8)])
    state = torch.random.get_rng_state()
    again = pickle.loads(pickle.dumps(images))
    assert equal(together, again.__getitems__(range(8)))
    assert torch.equal(state, torch.random.get_rng_state())
    for number, seed in ((3, 1), (2, 2)):
        images.start_epoch(epoch(number, seed))
        assert not equal(together, images.__getitems__(range(8)))
    images.start_epoch(epoch(2, seed=1))
    assert equal(together, images.__getitems__(range(8)))


def test_large_images_are_cropped_to_the_network():
    data = pictures(4, side=48)
    seen = Preprocessing.plain(28, (0.5,) * 3, (0.5,) * 3, crop_pct=0.875)
    row = prepare(data, seen, augment=False)[1]
    expected = v2.functional.center_crop(v2.functional.resize(data[1]["image"], [32]), [28])
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255
    torch.testing.assert_close(row["pixel_values"], (expected - 0.5) / 0.5)
    assert prepare(data, seen, augment=True)[1]["pixel_values"].shape == (3, 28, 28)


def test_digests_tell_images_and_preprocessing_but_not_seeds():
    def digest(count=4, seen=SEEN, augment=True, seed=0):
        images = prepare(pictures(count), seen, augment)
        images.start_epoch(epoch(1, seed))
        return images.digest()

    assert digest() == digest(seed=5)
    assert (
        len({digest(), digest(count=5), digest(seen=Preprocessing.plain(32, MEAN, (1.0,) * 3)), digest(augment=False)})
        == 4
    )
    other = Preprocessing.plain(16, MEAN, STD)
    assert digest(seen=other) == digest(seen=other, seed=1) != digest(count=5, seen=other)


def test_parquet_files_with_the_columns_of_the_hub(tmp_path):
    train = parquet(tmp_path / "train.parquet", 12)
    test = parquet(tmp_path / "test.parquet", 6, label="fine_label", seed=1)
    splits = load_images(train_file=str(train), validation_file=str(test))
    assert [split.column_names for split in splits] == [["image", "label"]] * 2
    assert [len(split) for split in splits] == [12, 6]
    assert class_names(*splits) == [f"class {i}" for i in range(10)]
    assert np.array_equal(arrays(splits[0]), arrays(pictures(12)))


def folder_of(place, **classes):
    """A folder with a folder of so many images for each class."""
    for i, (name, count) in enumerate(classes.items()):
        (place / name).mkdir(parents=True)
        for j in range(count):
            PIL.new("RGB", (32, 32), (i, j, 0)).save(place / name / f"test_{j}.png")
    return place


def test_folders_called_like_splits_are_classes_unless_they_hold_folders(tmp_path):
    train, _ = load_images(train_file=str(folder_of(tmp_path / "a", bus=2, test=1, train=3)))
    assert class_names(train) == ["bus", "test", "train"] and labels(train) == [0, 0, 1, 2, 2, 2]
    for split, count in (("train", 2), ("test", 1)):
        folder_of(tmp_path / "b" / split, bus=count, car=count)
    whole = str(tmp_path / "b")
    for splits in (load_images(train_file=whole, validation_file=whole), load_images(whole)):
        assert [len(split) for split in splits] == [4, 2]
    folder_of(tmp_path / "b", bus=1)
    with pytest.raises(UserError, match=r"b holds t\w+, with folders in it, beside bus: expected splits alone"):
        load_images(validation_file=whole)


def test_some_images_of_a_folder_are_of_all_its_classes(tmp_path):
    place = str(folder_of(tmp_path / "a", bus=6, car=6, eel=6))
    words = ["--teacher=cifar_resnet20", f"--train_file={place}", f"--validation_file={place}"]
    task = TASKS["images"](parse(None, ["--task=images", *words, "--max_train_samples=6", "--max_eval_samples=30"])[0])
    assert task.train["label"] == [0, 0, 1, 1, 2, 2] and len(task.validation) == 18


def test_a_file_takes_the_place_of_a_split_that_the_data_set_lacks(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", 6)
    test = str(parquet(tmp_path / "test.parquet", 3))
    assert [len(split) for split in load_images(str(tmp_path / "hub"), validation_file=test)] == [6, 3]
    train, validation = load_images(str(tmp_path / "hub"))
    assert len(train) == 6 and validation is None


def test_a_data_set_to_evaluate_needs_no_training_split(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", 6)
    train, validation = load_images(str(tmp_path / "hub"))
    assert train is None and len(validation) == 6
    (tmp_path / "other" / "data").mkdir(parents=True)
    parquet(tmp_path / "other" / "data" / "extra-00000-of-00001.parquet", 6)
    with pytest.raises(UserError, match=r"has the splits \['extra'\]: expected train, or one to evaluate"):
        load_images(str(tmp_path / "other"))


def test_labels_of_other_names_and_types(tmp_path):
    data = pictures(4)
    names = Dataset.from_dict({"image": data["image"][:], "kind": ["dog", "cat", "dog", "cat"]})
    names.cast_column("image", Image()).to_parquet(tmp_path / "names.parquet")
    train, _ = load_images(train_file=str(tmp_path / "names.parquet"), label_column="kind")
    assert class_names(train) == ["cat", "dog"] and labels(train) == [1, 0, 1, 0]
    with pytest.raises(UserError, match="columns image, kind: expected images and one of label.*; see --label_column"):
        load_images(train_file=str(tmp_path / "names.parquet"))
    with pytest.raises(UserError, match="columns image, kind: expected images and sort$"):
        load_images(train_file=str(tmp_path / "names.parquet"), label_column="sort")
    small = Dataset.from_dict({"image": data["image"][:], "label": [0, 1, 2, 3]}).cast_column("label", Value("int8"))
    small.cast_column("image", Image()).to_parquet(tmp_path / "small.parquet")
    assert class_names(load_images(train_file=str(tmp_path / "small.parquet"))[0]) == ["0", "1", "2", "3"]


def test_images_written_without_datasets(tmp_path):
    rows = [{"image": {"bytes": png(x), "path": None}, "label": i} for i, x in enumerate(arrays(pictures(2)))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain.parquet")
    train, _ = load_images(train_file=str(tmp_path / "plain.parquet"))
    assert np.array_equal(arrays(train), arrays(pictures(2)))
    undecoded = pictures(2).cast_column("image", Image(decode=False))  # a flag that files keep
    undecoded.save_to_disk(tmp_path / "saved")
    assert np.array_equal(arrays(load_images(train_file=str(tmp_path / "saved"))[0]), arrays(pictures(2)))


@pytest.mark.parametrize("column", ["image", "label"])
def test_rows_without_an_image_or_a_label_are_named(column, tmp_path):
    columns = {"image": pictures(3)["image"][:], "label": [0, 1, 2]}
    columns[column][1] = None
    Dataset.from_dict(columns).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"row 1: no {column}; expected one in every row, 1 have none"):
        load_images(train_file=str(tmp_path / "train.parquet"))


def test_a_copied_file_is_the_same_data(tmp_path):
    first = parquet(tmp_path / "a.parquet", 3, side=80)
    second = tmp_path / "b.parquet"
    second.write_bytes(first.read_bytes())
    large = Preprocessing.plain(96, MEAN, STD)
    digests = {prepare(load_images(train_file=str(path))[0], large, False).digest() for path in (first, second)}
    assert len(digests) == 1


@pytest.mark.parametrize("decoded", [1, 0])
def test_an_image_without_bytes_and_path_is_told(decoded, monkeypatch):
    monkeypatch.setattr(decoding, "DECODED", decoded)
    nothing = pyarrow.array([{"bytes": None, "path": None}], Image().pa_type)  # as a parquet file may hold it
    data = Dataset(InMemoryTable(pyarrow.table({"image": nothing, "label": [0]})))
    with pytest.raises(UserError, match="image 0 cannot be decoded .it has neither bytes nor a path"):
        decoding.decode_all(data.cast_column("image", Image()))


@pytest.mark.parametrize("side", [32, 96])
def test_sixteen_bits_are_scaled_and_numbers_of_unknown_range_refused(side):
    def seen(image):
        data = Dataset.from_dict({"image": [image], "label": [0]}).cast_column("image", Image())
        return prepare(data, Preprocessing.plain(side, (0.0,) * 3, (1.0,) * 3), augment=False)[0]["pixel_values"]

    deep = PIL.fromarray(np.full((side, side), 30_000, np.uint16))
    torch.testing.assert_close(seen(deep), torch.full((3, side, side), (30_000 // 256) / 255))
    file = io.BytesIO()
    PIL.fromarray(np.full((side, side), 0.5, np.float32)).save(file, "tiff")
    with pytest.raises(UserError, match="image 0 cannot be decoded .*floating-point"):
        seen({"bytes": file.getvalue(), "path": None})
    file = io.BytesIO()
    PIL.fromarray(np.full((side, side), 200, np.int32)).save(file, "tiff")
    with pytest.raises(UserError, match="image 0 cannot be decoded .*32 bits"):
        seen({"bytes": file.getvalue(), "path": None})
    grey = b"P5 %d %d 65535\n" % (side, side) + np.full((side, side), 30_000, ">u2").tobytes()
    torch.testing.assert_close(seen({"bytes": grey, "path": None}), seen(deep))


def test_what_torchvision_unpacks(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = arrays(pictures(4)).transpose(0, 3, 1, 2).reshape(4, -1)
    with pytest.raises(UserError, match="not what torchvision unpacks"):
        load_images(train_file=str(tmp_path))
    names = [f"fine {i}" for i in range(100)]
    for name, content in {
        "train": {"data": pixels, "fine_labels": [5, 1, 99, 0]},
        "test": {"data": pixels[:1], "fine_labels": [7]},
        "meta": {"fine_label_names": names},
    }.items():
        (folder / name).write_bytes(pickle.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        train, test = load_images(train_file=str(tmp_path), validation_file=str(folder))
    assert train["label"] == [5, 1, 99, 0] and test["label"] == [7] and class_names(train) == names
    assert np.array_equal(arrays(train), arrays(pictures(4)))


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "text.parquet").write_text("no")
    (tmp_path / "empty").mkdir()
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "words.parquet")
    for options, words in [
        ({}, "no images given"),
        ({"train_file": "missing.parquet"}, "missing.parquet: no such file or folder"),
        ({"train_file": str(tmp_path / "text.parquet")}, "is not valid parquet"),
        ({"train_file": str(tmp_path / "words.parquet")}, "with the columns text: expected images and one of label"),
        (
            {"train_file": str(tmp_path / "empty")},
            "holds no folders: expected a folder with one of images for each class",
        ),
        ({"dataset": str(tmp_path / "empty")}, "could not be loaded: expected files of rows"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load_images(**options)
        assert "\n" not in str(error.value)


def test_classes_without_names_are_counted():
    data = pictures(4).cast_column("label", Value("int64"))
    assert class_names(None, data) == ["0", "1", "2", "3"]
    assert class_names(None, data, classes=6) == ["0", "1", "2", "3", "4", "5"]
    with pytest.raises(UserError, match="row 0, has the label '0': expected names, 4 classes"):
        class_names(folder_like(["a", "b", "c", "d"]), data)


def test_images_of_several_sizes_are_resized_when_read(capsys):
    odd = [PIL.new("RGB", (32, 32)), PIL.new("RGB", (40, 36))]
    data = Dataset.from_dict({"image": odd, "label": [0, 1]}).cast_column("image", Image())
    images = prepare(data, SEEN, augment=False)
    assert isinstance(images, DecodedImages) and images[1]["pixel_values"].shape == (3, 32, 32)
    assert "image 1 has 40x36 pixels: all are resized when they are read" in capsys.readouterr().err


def test_grey_images_become_coloured():
    data = Dataset.from_dict({"image": [PIL.new("L", (32, 32), 9)], "label": [0]}).cast_column("image", Image())
    images = prepare(data, Preprocessing.plain(32, (0.0,) * 3, (1.0,) * 3), augment=False)
    torch.testing.assert_close(images[0]["pixel_values"], torch.full((3, 32, 32), 9 / 255))


def test_other_classes_in_evaluation_are_refused():
    train, test = pictures(4, classes=4), pictures(3, classes=3)
    assert class_names(train, test) == [f"class {i}" for i in range(4)]  # a small sample may lack some
    with pytest.raises(UserError, match="row 3, has the label 'class 3': expected one of the 3 classes"):
        class_names(test, train)
