"""What an image classifier says of a folder or file is what its evaluation on it scores."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

pytest.importorskip("timm", reason="the extra vision is not installed")

from PIL import Image as PIL  # noqa: E402

from cli.test_main import refused  # noqa: E402
from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.inference.images import read_images  # noqa: E402
from itrd_nlp.tasks.image_classification.files import load_images  # noqa: E402
from itrd_nlp.tasks.image_classification.images import prepare  # noqa: E402
from itrd_nlp.vision.models import load_image_model, preprocessing_of  # noqa: E402

NAMES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "model"
    load_image_model("cifar_resnet8x4", NAMES, seed=0)[0].eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["of one size", "of any size"])
def pictures(request, tmp_path_factory):
    """A folder with one folder for each class."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        for i in range(4):
            size = (32, 32) if request.param == "of one size" else tuple(draw.integers(20, 90, 2))
            PIL.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "0.png").write_bytes(b"nothing")
    return root


def predicted(capsys, *words):
    capsys.readouterr()
    assert main(["predict", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_of_several_columns_of_images_the_one_that_evaluation_takes_is_read(tmp_path):
    mask, photo = [PIL.new("RGB", (32, 32), colour) for colour in ("black", "red")]
    columns = {"mask": [mask], "image": [photo], "label": [1]}
    data = Dataset.from_dict(columns).cast_column("mask", Image()).cast_column("image", Image())
    data.to_parquet(tmp_path / "a.parquet")
    found = [read_images(str(tmp_path / "a.parquet"))[0], load_images(validation_file=str(tmp_path / "a.parquet"))[1]]
    assert [images[0]["image"].getpixel((0, 0)) for images in found] == [(255, 0, 0)] * 2


def test_a_temperature_in_the_config_divides_the_logits(model, pictures, capsys, tmp_path):
    calibrated = shutil.copytree(model, tmp_path / "calibrated")
    config = json.loads((calibrated / "config.json").read_text())
    (calibrated / "config.json").write_text(json.dumps({**config, "calibration_temperature": 0.25}))
    before, after = (predicted(capsys, str(source), "--file", str(pictures)) for source in (model, calibrated))
    for plain, sharp in zip(before, after, strict=True):
        powers = np.array([*plain["scores"].values()]) ** 4
        assert sharp["label"] == plain["label"] and [*sharp["scores"].values()] == pytest.approx(powers / powers.sum())


@pytest.mark.parametrize("names", [["age"], ["age", "height"]])
def test_a_regression_model_gives_its_values(pictures, capsys, tmp_path, names):
    made = load_image_model("cifar_resnet8x4", names, seed=0)[0].eval()
    made.config.problem_type = "regression" if len(names) > 1 else None
    made.save_pretrained(tmp_path / "model")
    rows = predicted(capsys, str(tmp_path / "model"), "--file", str(pictures))
    found = [[row["score"]] if len(names) == 1 else [row["scores"][name] for name in names] for row in rows]
    images = prepare(read_images(str(pictures))[0], preprocessing_of(str(tmp_path / "model")), augment=False)
    pixels = torch.stack([images[i]["pixel_values"] for i in range(len(rows))])
    with torch.no_grad():
        np.testing.assert_allclose(found, made(pixel_values=pixels).logits, atol=1e-5)


def test_independent_classes_get_probabilities_of_their_own(model, pictures, capsys, tmp_path):
    folder = shutil.copytree(model, tmp_path / "several")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    (one,) = predicted(capsys, str(folder), "--file", str(pictures / "cat" / "0.png"))
    (other,) = predicted(capsys, model, "--file", str(pictures / "cat" / "0.png"))
    odds = [one["scores"][name] / (1 - one["scores"][name]) for name in NAMES]
    assert [x / sum(odds) for x in odds] == pytest.approx([other["scores"][name] for name in NAMES], rel=1e-4)
    assert one["labels"] == [name for name in NAMES if one["scores"][name] > 0.5]


def test_a_folder(model, pictures, capsys):
    found = predicted(capsys, model, "--file", str(pictures))
    assert len(found) == 12
    right = [said["label"] == said["image"].split("/")[-2] for said in found]
    capsys.readouterr()
    words = ["--validation_file", str(pictures), "--bf16=false", "--use_cpu=true", "--disable_tqdm=true"]
    assert main(["evaluate", model, *words]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :])["accuracy"] == pytest.approx(100 * np.mean(right))
    alone = random.Random(0).choice(found)
    (again,) = predicted(capsys, model, "--file", alone["image"])
    assert again["label"] == alone["label"] and again["scores"] == pytest.approx(alone["scores"], abs=1e-5)


def test_a_parquet_file(model, pictures, capsys, tmp_path):
    files = sorted(str(path) for path in pictures.glob("[a-z]*/*.png"))
    Dataset.from_dict({"image": files}).cast_column("image", Image()).to_parquet(tmp_path / "images.parquet")
    by_row = predicted(capsys, model, "--file", str(tmp_path / "images.parquet"))
    by_file = predicted(capsys, model, "--file", str(pictures), "--output", str(tmp_path / "out.jsonl"))
    assert by_file == []
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [said["image"] for said in by_row] == list(range(12))
    for row, file in zip(by_row, lines, strict=True):
        assert row["scores"] == pytest.approx(file["scores"], abs=1e-5)


def test_wrong_input_is_one_line(model, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    assert "no such file or folder" in refused(capsys, "predict", model, "--file", "missing.png")
    assert "holds no images" in refused(capsys, "predict", model, "--file", str(tmp_path / "empty"))
    assert "holds no images" in refused(capsys, "predict", model, "--file", str(tmp_path / "rows.jsonl"))
    column = Dataset.from_dict({"image": [None, str(tmp_path / "broken.png")]}).cast_column("image", Image())
    column.to_parquet(tmp_path / "rows.parquet")
    assert "row 0: no image" in refused(capsys, "predict", model, "--file", str(tmp_path / "rows.parquet"))
    assert "cannot be decoded" in refused(capsys, "predict", model, "--file", str(tmp_path / "broken.png"))
    assert "--max_length with images" in refused(capsys, "predict", model, "--file", "a.png", "--max_length", "8")
    assert "expected a model for" in refused(capsys, "predict", model, "--text", "a cat")
