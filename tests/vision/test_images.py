"""Images from wherever they come, and as a network takes them."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("timm", reason="the extra vision is not installed")

from datasets import Dataset, Image, Value  # noqa: E402
from PIL import Image as PIL  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from itrd_nlp.dataset import Epoch  # noqa: E402
from itrd_nlp.errors import UserError  # noqa: E402
from itrd_nlp.losses.base import INDEX  # noqa: E402
from itrd_nlp.vision.image_files import class_names, load_images  # noqa: E402
from itrd_nlp.vision.images import PADDING, DecodedImages, MemoryImages, Preprocessing, prepare  # noqa: E402
from vision.pictures import parquet, pictures  # noqa: E402

SEEN = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def epoch(number, seed):
    return Epoch(number, 9, seed, resumed=False)


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
    plain = Preprocessing(32, (0.0,) * 3, (1.0,) * 3)
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
    images = prepare(pictures(8), SEEN._replace(size=size), augment=True)
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
    seen = Preprocessing(28, (0.5,) * 3, (0.5,) * 3, crop_pct=0.875)
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
    assert len({digest(), digest(count=5), digest(seen=SEEN._replace(std=(1.0, 1.0, 1.0))), digest(augment=False)}) == 4
    other = SEEN._replace(size=16)
    assert digest(seen=other) == digest(seen=other, seed=1) != digest(count=5, seen=other)


def test_parquet_files_with_the_columns_of_the_hub(tmp_path):
    train = parquet(tmp_path / "train.parquet", 12)
    test = parquet(tmp_path / "test.parquet", 6, label="fine_label", seed=1)
    splits = load_images(train_file=str(train), validation_file=str(test))
    assert [split.column_names for split in splits] == [["image", "label"]] * 2
    assert [len(split) for split in splits] == [12, 6]
    assert class_names(*splits) == [f"class {i}" for i in range(10)]
    assert np.array_equal(arrays(splits[0]), arrays(pictures(12)))


def test_a_folder_of_images(tmp_path):
    data = pictures(6, classes=2)
    for i, row in enumerate(data):
        folder = tmp_path / "train" / f"kind{row['label']}"
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{i}.png")
    train, _ = load_images(train_file=str(tmp_path / "train"))
    assert sorted(train["label"]) == [0, 0, 0, 1, 1, 1] and class_names(train) == ["kind0", "kind1"]


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
        ({"train_file": str(tmp_path / "text.parquet")}, "expected a parquet file of images"),
        ({"train_file": str(tmp_path / "words.parquet")}, "with the columns text: expected images and one of label"),
        ({"train_file": str(tmp_path / "empty")}, "expected a folder with one of images for each class"),
        ({"dataset": str(tmp_path / "empty")}, "could not be loaded: check its name"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            load_images(**options)
        assert "\n" not in str(error.value)


def test_classes_without_names_are_counted():
    data = pictures(4).cast_column("label", Value("int64"))
    assert class_names(None, data) == ["0", "1", "2", "3"]
    assert class_names(None, data, classes=6) == ["0", "1", "2", "3", "4", "5"]
    with pytest.raises(UserError, match="whole numbers"):
        class_names(pictures(4), data.cast_column("label", Value("string")))


def test_images_of_several_sizes_are_resized_when_read(capsys):
    odd = [PIL.new("RGB", (32, 32)), PIL.new("RGB", (40, 36))]
    data = Dataset.from_dict({"image": odd, "label": [0, 1]}).cast_column("image", Image())
    images = prepare(data, SEEN, augment=False)
    assert isinstance(images, DecodedImages) and images[1]["pixel_values"].shape == (3, 32, 32)
    assert "image 1 has 40x36 pixels: all are resized when they are read" in capsys.readouterr().out


def test_grey_images_become_coloured():
    data = Dataset.from_dict({"image": [PIL.new("L", (32, 32), 9)], "label": [0]}).cast_column("image", Image())
    images = prepare(data, Preprocessing(32, (0.0,) * 3, (1.0,) * 3), augment=False)
    torch.testing.assert_close(images[0]["pixel_values"], torch.full((3, 32, 32), 9 / 255))


def test_other_classes_in_evaluation_are_refused():
    train, test = pictures(4, classes=4), pictures(3, classes=3)
    with pytest.raises(UserError, match="other classes, e.g. 'class 3'"):
        class_names(train, test)
