"""Whose classes count, and in which order."""

import json

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from datasets import ClassLabel, Dataset, Value  # noqa: E402
from timm.data import ImageNetInfo  # noqa: E402
from transformers import AutoConfig, AutoModelForImageClassification  # noqa: E402

from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.experiments.parsing import parse  # noqa: E402
from itrd_nlp.experiments.run import run  # noqa: E402
from itrd_nlp.experiments.tasks import TASKS  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.classes import Head, head_of, settle_classes  # noqa: E402
from itrd_nlp.vision.models import load_image_model, preprocessing_of  # noqa: E402
from tasks.image_classification.test_folders import photos  # noqa: E402
from vision.test_models import VIT  # noqa: E402


def split(labels, kind="string"):
    """A split without its images; ``kind`` may be the names that the data set declares."""
    feature = Value(kind) if isinstance(kind, str) else ClassLabel(names=kind)
    return Dataset.from_dict({"image": labels, "label": labels}).cast_column("label", feature)


def settled(train, validation=None, head=None, **options):
    names, splits = settle_classes(train, validation, head, **options)
    return names, *(each["label"][:] for each in splits if each is not None)


PETS = Head("teacher", ["dog", "Guinea pig", "cat"], 3)
NAMELESS = Head("nameless", [], 3)


@pytest.mark.parametrize(
    "train,places",
    [
        (split(["cat", "dog", "cat"]), [2, 0, 2]),  # some of its classes, by name: in its order
        (split(["CAT", "guinea_pig"]), [2, 1]),
        (split([0, 1, 1], ["cat", "dog"]), [2, 0, 0]),
        (split(["2", "0", "1"]), [2, 0, 1]),  # numbers are places among the outputs
        (split([2, 0, 1], "int64"), [2, 0, 1]),
        (split([2, 0, 1], ["0", "1", "2"]), [2, 0, 1]),
    ],
)
def test_a_teachers_order_counts(train, places):
    assert settled(train, head=PETS) == (PETS.names, places)
    assert settled(None, train, head=PETS) == (PETS.names, places)


@pytest.mark.parametrize("train", [split(["cat", "dog", "fox"]), split([0, 1], ["dog", "cat", "eel"])])
def test_other_classes_than_the_teachers_are_refused(train):
    if train.features["label"] == Value("string"):
        with pytest.raises(UserError, match="teacher has the classes dog, Guinea pig, cat, the data has cat, dog, fox"):
            settled(train, head=PETS)
    other = split(["ant", "bee", "cow"])
    for head in (PETS, Head("teacher", ["ant", "bee"], 2)):
        with pytest.raises(UserError, match="expected the same names, or their numbers from 0"):
            settled(None, other, head=head)
    with pytest.raises(UserError, match="expected the same names"):
        settled(other, head=PETS)


def test_a_head_for_something_else_is_replaced():
    thousand = Head("teacher", [f"thing {i}" for i in range(1000)], 1000)
    assert settled(split(["cat", "dog"]), head=thousand) == (["cat", "dog"], [0, 1])
    assert settled(split([0, 1], "int64"), head=thousand) == (["0", "1"], [0, 1])  # not its first two
    assert settled(None, split([0, 1], "int64"), head=thousand)[0] == thousand.names  # some, to evaluate it


def test_folders_called_like_synsets_are_the_classes_of_imagenet():
    info = ImageNetInfo()
    imagenet = Head("teacher", [*info.label_descriptions()], 1000)
    assert settled(split(["n01443537", "n15075141"]), head=imagenet) == (imagenet.names, [1, 999])
    assert settled(None, split(["n01440764"]), head=imagenet) == (imagenet.names, [0])
    with pytest.raises(UserError, match="expected the same names"):
        settled(None, split(["n01440764"]), head=PETS)


def test_a_head_without_names_takes_numbers_alone():
    assert settled(split([2, 0, 1], ["x", "y", "z"]), head=NAMELESS) == (["x", "y", "z"], [2, 0, 1])
    assert settled(split(["2", "0", "1"]), head=NAMELESS) == (["0", "1", "2"], [2, 0, 1])
    for head in (NAMELESS, NAMELESS._replace(outputs=None)):
        with pytest.raises(UserError, match="nameless does not name its classes, .*expected id2label.*class_names"):
            settled(split(["cat", "dog", "fox"]), head=head)
    assert settled(split(["cat", "dog"]), head=NAMELESS)[0] == ["cat", "dog"]  # it will get another head
    for some in (split([0, 1], "int64"), split(["0", "1"])):  # of its classes
        assert settled(None, some, head=NAMELESS) == (["0", "1", "2"], [0, 1])
    assert settled(None, split(["2", "0"]), head=NAMELESS) == (["0", "1", "2"], [2, 0])


def test_training_and_evaluation_agree_by_name():
    train, numbers = split(["cat", "dog", "fox"]), split([0, 1, 2], "int64")
    declared = split([0, 0, 1], ["fox", "cat", "dog"])
    assert settled(train, declared)[2] == [2, 2, 0]
    assert settled(declared, train)[2] == [1, 2, 0] and settled(declared, numbers)[2] == [0, 1, 2]
    assert settled(train, split(["Fox"]))[2] == [2]
    with pytest.raises(UserError, match="row 0, has the label '0': expected names, 3 classes cat, dog, fox"):
        settled(train, numbers)
    with pytest.raises(UserError, match="row 1, has the label 'cow': expected names, 3 classes cat, dog, fox"):
        settled(train, split(["cat", "cow"]))
    with pytest.raises(UserError, match="has the class 'cat' alone: expected two or more"):
        settled(split(["cat", "cat"]))


def test_numbers_are_sorted_as_such_and_matched_by_name_where_they_are_names():
    assert settled(split(["10", "9", "2"])) == (["2", "9", "10"], [2, 1, 0])
    assert settled(split(["1", "2", "3"]), split([3, 1], "int64"))[2] == [2, 0]
    assert settled(split([0, 3], "int64"), split([4], "int64")) == ([*"01234"], [0, 3], [4])
    with pytest.raises(UserError, match="has the label '-1': expected one of the 2 classes 0, 1"):
        settled(split([1, -1], "int64"))


def test_classes_that_share_a_name():
    cranes = Head("imagenet", ["crane", "dog", "crane"], 3)
    assert settled(split([2, 0, 1], "int64"), head=cranes) == (cranes.names, [2, 0, 1])
    assert settled(None, split(["dog"]), head=cranes) == (cranes.names, [1])
    with pytest.raises(UserError, match="has the label 'crane'|has the classes crane"):
        settled(None, split(["crane"]), head=cranes)
    names = ["crane bird", "dog", "crane"]  # as the Hub's data set tells ImageNet's two apart
    assert settled(split([2, 0, 1], names), head=cranes) == (cranes.names, [2, 0, 1])
    assert settled(None, split([2, 0], names), head=cranes) == (cranes.names, [2, 0])
    for other in (["crane bird", "cow", "crane"], ["horse", "dog", "crane"]):
        with pytest.raises(UserError, match="expected the same names"):
            settled(split([2, 0, 1], other), head=cranes)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Saved classifiers of three classes by every way a recipe names one."""
    root = tmp_path_factory.mktemp("teachers")
    for name, source in (("vit", VIT), ("timm", "cifar_resnet20")):
        load_image_model(source, PETS.names, 0)[0].save_pretrained(root / name)
    model = load_image_model(VIT, [f"LABEL_{i}" for i in range(3)], 0)[0]
    model.save_pretrained(root / "nameless")
    for name in ("vit", "nameless"):
        preprocessing_of(VIT).processor.save_pretrained(root / name)
    torch.save(timm.create_model("cifar_resnet20", num_classes=3).state_dict(), root / "weights.pth")
    return root


def test_what_a_recipe_names_says_its_classes(teachers):
    weights = {"timm": "cifar_resnet20", "checkpoint": str(teachers / "weights.pth")}
    assert head_of(str(teachers / "vit"))[1:] == head_of(str(teachers / "timm"))[1:] == PETS[1:]
    assert head_of(str(teachers / "nameless"))[1:] == ([], 3)
    assert head_of(weights)[1:] == ([], None) and head_of({**weights, "class_names": PETS.names})[1:] == PETS[1:]
    assert head_of("cifar_resnet20") is None and head_of(VIT) is None and head_of({"timm": "cifar_resnet20"}) is None


def test_a_classifiers_order_from_evaluate_to_the_student(teachers, tmp_path, capsys):
    root = photos(tmp_path / "in", {"cat": 2, "DOG": 2, "guinea pig": 2}, side=32)
    model = AutoModelForImageClassification.from_pretrained(teachers / "timm").eval()
    words = ["--task=images", "--bf16=false", f"--validation_file={root}"]
    assert main(["evaluate", str(teachers / "timm"), *words]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]

    task = TASKS["images"](parse(None, ["--teacher", str(teachers / "timm"), *words])[0])
    rows = task.eval_dataset.__getitems__(range(6))
    assert [row["labels"] for row in rows] == [0, 0, 2, 2, 1, 1]  # DOG, cat, guinea pig
    with torch.no_grad():
        right = model(torch.stack([row["pixel_values"] for row in rows])).logits.argmax(1) == torch.tensor(
            [0, 0, 2, 2, 1, 1]
        )
    assert accuracy == pytest.approx(100 * right.float().mean().item())
    argv = [*words, f"--train_file={root}", "--student=cifar_resnet20", "--losses={kd: {}}", "--max_steps=1"]
    argv += [f"--output_dir={tmp_path / 'out'}", f"--shared_dir={tmp_path / 'shared'}", "--baseline=false"]
    run(*parse(None, [*argv, f"--teacher={teachers / 'timm'}", "--latency=false", "--layer_map=last"]), "x")
    assert AutoConfig.from_pretrained(tmp_path / "out" / "student").id2label == dict(enumerate(PETS.names))


@pytest.mark.parametrize("folders", [["ant", "bee", "cow"], ["cat", "dog", "fox"]])
@pytest.mark.parametrize("teacher", ["vit", "timm", "nameless", "weights.pth"])
def test_evaluating_on_other_classes_is_one_line(teachers, tmp_path, teacher, folders, capsys):
    root = photos(tmp_path / "in", dict.fromkeys(folders, 1), side=32)
    name = [str(teachers / teacher)]
    if teacher.endswith("pth"):
        name = ["cifar_resnet20", "--checkpoint", *name]
    assert main(["evaluate", *name, "--task=images", "--bf16=false", f"--validation_file={root}"]) != 0
    error = capsys.readouterr().err
    assert "has the classes" in error or "does not name its classes" in error


def test_a_student_with_other_classes_is_refused(teachers):
    for name in ("vit", "timm"):
        model, complete = load_image_model(str(teachers / name), ["DOG", "guinea-pig", "Cat"], 0)
        assert complete and list(model.config.id2label.values()) == PETS.names
        for names in (["cat", "dog", "Guinea pig"], ["ant", "bee", "cow"]):
            with pytest.raises(UserError, match="expected the same in one order, or a model without such a head"):
                load_image_model(str(teachers / name), names, 0)
    model, complete = load_image_model(str(teachers / "nameless"), PETS.names, 0)
    assert complete and list(model.config.id2label.values()) == PETS.names
    weights = {"timm": "cifar_resnet20", "checkpoint": str(teachers / "weights.pth"), "class_names": PETS.names}
    assert load_image_model(weights, PETS.names, 0)[1]
    with pytest.raises(UserError, match="expected the same in one order"):
        load_image_model(weights, sorted(PETS.names), 0)
    with pytest.raises(UserError, match="class_names as a list beside a checkpoint"):
        load_image_model({"timm": "cifar_resnet20", "class_names": PETS.names}, PETS.names, 0)
