"""Folders of images as people keep them."""

import shutil

import pytest

pytest.importorskip("timm", reason="the extra vision is not installed")

from PIL import Image as PIL  # noqa: E402

from itrd_nlp.experiments.parsing import parse  # noqa: E402
from itrd_nlp.experiments.tasks import TASKS  # noqa: E402
from itrd_nlp.tasks.image_classification import decoding, folders  # noqa: E402
from itrd_nlp.tasks.image_classification.decoding import decode_all, encoded_images  # noqa: E402
from itrd_nlp.tasks.image_classification.files import load_images  # noqa: E402
from itrd_nlp.tasks.image_classification.folders import images_below  # noqa: E402
from itrd_nlp.tasks.image_classification.task import ImageTask  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402

SEEN = Preprocessing.plain(32, (0.5,) * 3, (0.5,) * 3)


def photos(root, counts, side=40):
    """A folder with so many JPEGs in each folder below."""
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for j in range(count):
            PIL.new("RGB", (side, side), (40 * i, 40 * j, 99)).save(root / name / f"IMG_{j:04d}.jpg")
    return root


def read(place):
    """Each image's path below ``place``, and its class."""
    data = load_images(train_file=str(place))[0]
    paths = [row["image"]["path"].removeprefix(f"{place}/") for row in encoded_images(data)]
    return list(zip(paths, data["label"][:], strict=True))


def test_hidden_files_and_folders_are_neither_classes_nor_images(tmp_path):
    root = photos(tmp_path / "photos", {"cat": 2, "dog": 1})
    expected = read(root)
    assert expected == [("cat/IMG_0000.jpg", "cat"), ("cat/IMG_0001.jpg", "cat"), ("dog/IMG_0000.jpg", "dog")]
    for hidden in (".ipynb_checkpoints", "__MACOSX/cat", "dog/.ipynb_checkpoints", "@eaDir", "cat/.thumbs"):
        photos(root, {hidden: 1})
    for file in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "cat/._IMG_0000.jpg", "dog/notes.txt", "cover.jpg"):
        shutil.copy(root / "cat" / "IMG_0000.jpg", root / file)
    assert read(root) == expected
    task = ImageTask(*load_images(train_file=str(root)), SEEN)
    line = f"{root} (skipped: 1 .txt, 9 hidden, 1 outside the class folders): 3 images, 2 classes: cat, dog"
    assert task.describe() == [line]


def test_a_broken_image_is_named_before_a_teacher_trains(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / split, {"cat": 3, "dog": 3}, side=90)
    broken = tmp_path / "val" / "dog" / "IMG_0001.jpg"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    words = ["--task=images", "--teacher=cifar_resnet20", f"--dataset={tmp_path}"]
    task = TASKS["images"](parse(None, words)[0])
    assert len(task.train_dataset) == 6
    with pytest.raises(UserError, match=rf"^validation image 4 \({broken}\) cannot be decoded \(.*runcated.*") as error:
        _ = task.eval_dataset
    assert "\n" not in str(error.value)
    (tmp_path / "val" / "cat" / "IMG_0002.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"^validation image 2 .*; 1 more cannot, such as .*IMG_0001.jpg$"):
        decode_all(load_images(str(tmp_path))[1])


def test_a_broken_orientation_is_named_too(tmp_path):
    """Such an image decodes; turning it upright fails."""
    root = photos(tmp_path, {"cat": 2, "dog": 2})
    exif = PIL.Exif()
    exif[0x0112], exif[0x0100] = 6, 90  # turn it; its width
    path = tmp_path / "cat" / "IMG_0000.jpg"
    PIL.open(path).copy().save(path, exif=exif)
    decode_all(load_images(train_file=str(root))[0])
    content = path.read_bytes()
    width = content.index(b"\x01\x00\x00\x04")  # the tag and its type, a number
    path.write_bytes(content[: width + 3] + b"\x01" + content[width + 4 :])
    with pytest.raises(UserError, match=r"train image 0 \(.*IMG_0000.jpg\) cannot be decoded"):
        decode_all(load_images(train_file=str(root))[0])


def test_of_very_many_images_the_headers_alone_are_read(tmp_path, monkeypatch):
    data = load_images(train_file=str(photos(tmp_path / "a", {"cat": 3, "dog": 3})))[0]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = load_images(train_file=str(tmp_path / "b"))[0]
    assert decode_all(data) == decode_all(copied)
    monkeypatch.setattr(decoding, "DECODED", 5)
    assert decode_all(data) == decode_all(data)
    (tmp_path / "a" / "dog" / "IMG_0000.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="train image 3 .* cannot be decoded"):
        decode_all(data)


def test_an_image_that_changes_in_its_place_is_other_data(tmp_path):
    def digest():
        task = ImageTask(*load_images(train_file=str(root)), SEEN)
        _ = task.train_dataset
        return task.train_dataset.digest()

    root = photos(tmp_path / "a", {"cat": 1, "dog": 1})
    before = digest()
    assert digest() == before
    PIL.new("RGB", (40, 40), (1, 2, 3)).save(root / "cat" / "IMG_0000.jpg")
    assert digest() != before


@pytest.mark.parametrize("inside", ["", "photos", "photos/photos"])
@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_packed_folder(tmp_path, suffix, inside, monkeypatch):
    monkeypatch.setattr(folders.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = photos(tmp_path / "in" / inside, {"cat": 2, "dog": 1})
    photos(tmp_path / "in" / "__MACOSX", {"cat": 2})
    archive = shutil.make_archive(str(tmp_path / "x"), {"tar.gz": "gztar"}.get(suffix, suffix), tmp_path / "in")
    train = load_images(train_file=archive)[0]
    assert train["label"][:] == ["cat", "cat", "dog"]
    first = train[0]["image"].getpixel((0, 0))
    photos(root, {"ant": 1}), shutil.rmtree(root / "cat")
    assert first != (0, 0, 98)
    shutil.make_archive(str(tmp_path / "x"), {"tar.gz": "gztar"}.get(suffix, suffix), tmp_path / "in")
    assert load_images(train_file=archive)[0]["label"][:] == ["ant", "dog"]  # never what the file held before
    (tmp_path / f"x.{suffix}").write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected an archive of images"):
        load_images(train_file=archive)


def test_splits_by_any_of_their_names(tmp_path):
    for train, held in (("Training", "Validation"), ("train", "val"), ("train", "test"), ("train", "dev")):
        root = tmp_path / f"{train}-{held}"
        photos(root / train, {"cat": 2, "dog": 2}), photos(root / held, {"cat": 1, "dog": 1})
        photos(root / ".cache", {"x": 1})
        assert [len(split) for split in load_images(str(root))] == [4, 2]
    photos(root / "test", {"cat": 3, "dog": 3})
    assert len(load_images(str(root))[1]) == 2  # the validation split comes before the test split
    alone = photos(tmp_path / "alone" / "train", {"cat": 1, "dog": 1}).parent
    assert len(load_images(train_file=str(alone))[0]) == 2
    for name, found in (("train", [2, None]), ("val", [None, 2])):
        only = photos(tmp_path / f"only {name}" / name, {"cat": 1, "dog": 1}).parent
        assert [split and len(split) for split in load_images(str(only))] == found
    with pytest.raises(UserError, match="only val has the splits val: expected train too"):
        load_images(train_file=str(only))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels_beside_the_images(tmp_path, ending):
    for split in ("train", "test"):
        root = photos(tmp_path / split, {".": 3})
        rows = [("IMG_0002.jpg", "fox"), ("IMG_0000.jpg", "ant"), ("IMG_0001.jpg", "fox")]
        texts = {
            "csv": "\n".join(["file_name,label", *(",".join(row) for row in rows)]),
            "jsonl": "\n".join(f'{{"file_name": "{file}", "label": "{label}"}}' for file, label in rows),
        }
        (root / f"metadata.{ending}").write_text(texts[ending])
    for data in load_images(str(tmp_path)):
        found = {(row["image"].getpixel((0, 0))[1] + 20) // 40: row["label"] for row in data}
        assert found == {0: "ant", 1: "fox", 2: "fox"}
    (root / f"metadata.{ending}").write_text(texts[ending].replace("IMG_0001", "IMG_0009"))
    data = load_images(str(tmp_path))[1]
    assert data.info.description == f"{root} (skipped: 1 without a row of metadata)"
    with pytest.raises(UserError, match="validation image 2 .*IMG_0009.jpg.* cannot be decoded"):
        decode_all(data)
    (root / f"metadata.{ending}").write_text(texts[ending].replace("file_name", "file"))
    with pytest.raises(UserError, match="metadata beside the images cannot be read") as error:
        load_images(str(tmp_path))
    assert "\n" not in str(error.value)


def test_names_and_links_as_computers_have_them(tmp_path):
    root = photos(tmp_path / "a [1] * b", {"Zo\u0308e's cat": 1, "big dog": 1, "train set": 1})
    photos(tmp_path / "else", {"x": 1})
    (root / "linked").symlink_to(tmp_path / "else" / "x", target_is_directory=True)
    (root / "big dog" / "IMG_0000.jpg").rename(root / "big dog" / "IMG 0.JPEG")
    assert [label for _, label in read(root)] == ["Zo\u0308e's cat", "big dog", "linked", "train set"]
    (root / "linked" / "again").symlink_to(root, target_is_directory=True)  # a circle
    assert len([*images_below(root)]) == 4
    (root / "big dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"train image 2 \(.*gone.png\) cannot be decoded"):
        decode_all(load_images(train_file=str(root))[0])


def test_folders_below_a_class_folder_belong_to_it(tmp_path):
    root = photos(tmp_path / "a", {"cat/2021": 1, "cat/2022/May": 1, "dog": 1})
    assert [label for _, label in read(root)] == ["cat", "cat", "dog"]


@pytest.mark.parametrize(
    "counts,message",
    [
        ({}, "holds no folders: expected a folder with one of images for each class, or metadata.csv"),
        ({".": 3}, "holds 3 images outside class folders: expected a folder with one of images for each class"),
        ({"cat": 1, "dog": 0}, r"a/dog holds no images, 1 of 2 class folders hold none: expected files such as .jpg"),
        ({".hidden": 3}, "holds no folders"),
    ],
)
def test_what_is_no_folder_of_classes(tmp_path, counts, message):
    (tmp_path / "a").mkdir()
    photos(tmp_path / "a", counts)
    with pytest.raises(UserError, match=message):
        load_images(train_file=str(tmp_path / "a"))


def test_a_column_of_labels_that_class_folders_do_not_have_is_refused(tmp_path):
    photos(tmp_path / "a", {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="--label_column coarse: .*a has one set of classes and no columns"):
        load_images(train_file=str(tmp_path / "a"), label_column="coarse")
