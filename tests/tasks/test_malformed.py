"""Malformed input: each file is used, its rows are skipped and counted, or it is refused in one line."""

import copy
import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from safetensors.torch import save_file

from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.tasks import build_task
from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.utils.errors import UserError

PIL = pytest.importorskip("PIL.Image", reason="the extra vision is not installed")

CONTEXT = "The king was in the river house. The king of the city was in 1066. "
WORDS = ["king", "river", "house", "city", "1066", "The", "in the"]


def rows(draw: random.Random, count: int = 6) -> list[dict[str, Any]]:
    """Good questions, in the columns of SQuAD."""
    made = []
    for number in range(count):
        context = CONTEXT * draw.randint(1, 4)
        text = draw.choice(WORDS)
        answers = {"text": [text], "answer_start": [context.index(text)]}
        made.append({"id": f"q{number}", "question": f"who {number}?", "context": context, "answers": answers})
    return made


def official(good: list[dict[str, Any]]) -> dict[str, Any]:
    """The same in SQuAD's own layout."""
    paragraphs = []
    for row in good:
        answers = [{"text": t, "answer_start": s} for t, s in zip(*row["answers"].values(), strict=True)]
        qas = [{"id": row["id"], "question": row["question"], "answers": answers}]
        paragraphs.append({"context": row["context"], "qas": qas})
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


def set_in(*path: str, to: Callable[[random.Random], Any]) -> Callable[..., None]:
    """Change one value of a question."""

    def change(draw: random.Random, row: dict[str, Any]) -> None:
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] = to(draw)

    return change


def drop(key: str) -> Callable[..., None]:
    return lambda draw, row: row.pop(key)


ODD = ["\0", "🦊" * 9, "‮שלום عالم‬", "\n\t ", "é" * 3, "\ud83e\udd8a", "<script>", "𝔘", "\ud83e", "0"]
CHANGES: dict[str, Callable[[random.Random, dict[str, Any]], object]] = {
    "no question": drop("question"),
    "no context": drop("context"),
    "no answers": drop("answers"),
    "no id": drop("id"),
    "no start": lambda draw, row: row["answers"].pop("answer_start"),
    "no text": lambda draw, row: row["answers"].pop("text"),
    "wrong start": set_in("answers", "answer_start", to=lambda draw: [draw.randint(-99, 9999)]),
    "odd start": set_in("answers", "answer_start", to=lambda draw: [draw.choice(["4", "four", "", None, 4.0, []])]),
    "two starts": set_in("answers", "answer_start", to=lambda draw: [1, 2]),
    "text of numbers": set_in("answers", "text", to=lambda draw: [draw.choice([1066, None, {}, ["king"]])]),
    "answers in words": set_in("answers", to=lambda draw: draw.choice(["king", "[]", "{", "null", 4, True])),
    "lost answer": set_in("answers", "text", to=lambda draw: [draw.choice(["queen", " ", "", "KING", "king "])]),
    "empty context": set_in("context", to=lambda draw: draw.choice(["", " ", "\n"])),
    "empty question": set_in("question", to=lambda draw: draw.choice(["", " ", "?"])),
    "long context": set_in("context", to=lambda draw: CONTEXT * (100_000 // len(CONTEXT) + 1)),
    "long question": set_in("question", to=lambda draw: "who " * draw.randint(100, 2000)),
    "odd context": lambda draw, row: row.update(context=draw.choice(ODD) + row["context"] + draw.choice(ODD)),
    "odd question": set_in("question", to=lambda draw: draw.choice(ODD)),
    "odd answer": set_in("answers", "text", to=lambda draw: [draw.choice(ODD)]),
    "context of another kind": set_in("context", to=lambda draw: draw.choice([None, 3, ["a"], {"b": 1}, True])),
    "question of another kind": set_in("question", to=lambda draw: draw.choice([None, 3, ["a"], {"b": 1}])),
    "the same id": set_in("id", to=lambda draw: "q1"),
    "an id that is a number": set_in("id", to=lambda draw: draw.choice([7, 7.5, None, True])),
    "fields of SQuAD 2": lambda draw, row: row.update(is_impossible=True, plausible_answers=[{"text": "king"}]),
    "unknown fields": lambda draw, row: row.update(notes={"by": ["me"]}, score=None),
}


def read(train: str, validation: str, tokenizer: Any) -> SquadTask:
    """Everything that a run does with its files before a model sees them."""
    data = load_squad(train_file=train, validation_file=validation)
    task = SquadTask(tokenizer, data.train, data.validation, max_length=64, doc_stride=16, skipped=data.skipped)
    assert len(task.train_dataset) and len(task.eval_dataset)
    for row in data.train:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"][start : start + len(text)] == text  # an answer that is used is where it is said to be
    return task


def checked(use: Callable[[], Any]) -> Any:
    """What ``use`` returns, or None where it refuses in one line; any other error is a failure."""
    try:
        return use()
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 600
        return None


@pytest.mark.promise("malformed question files")
@pytest.mark.parametrize("layout", ["official", "rows"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(4))
def test_a_question_file(tmp_path, tokenizer, layout, change, seed):
    draw = random.Random(f"{change} {seed}")
    good = rows(draw)
    bad = official(good) if layout == "official" else copy.deepcopy(good)
    entries = [p for a in bad["data"] for p in a["paragraphs"]] if layout == "official" else bad
    entry = draw.choice(entries)
    if layout == "official" and change not in ("no context", "empty context", "long context", "odd context"):
        entry = entry["qas"][0]
        if "answers" in entry and isinstance(entry["answers"], list):
            entry["answers"] = entry["answers"][0]  # changed as the rows' are, then put back
    try:
        CHANGES[change](draw, entry)
    except (KeyError, AttributeError, TypeError):
        pytest.skip("no such field in this layout")
    if layout == "official" and isinstance(entry.get("answers"), dict):
        entry["answers"] = [entry["answers"]]
    (tmp_path / "bad.json").write_text(json.dumps(bad), encoding="utf-8")
    (tmp_path / "good.json").write_text(json.dumps(good))
    bad_file, good_file = str(tmp_path / "bad.json"), str(tmp_path / "good.json")
    task = checked(lambda: read(bad_file, good_file, tokenizer))
    if task is not None:
        skipped = sum(task.skipped.values())
        assert task.summary()["training questions"] + skipped == len(good)  # nothing is dropped in silence
    task = checked(lambda: read(good_file, bad_file, tokenizer))
    assert task is None or task.summary()["validation questions"] == len(good)


@pytest.mark.promise("malformed question files")
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_question_file_with_broken_bytes(tmp_path, tokenizer, suffix, seed):
    draw = random.Random(f"{suffix} {seed}")
    good = rows(draw, 3)
    lines = {"json": json.dumps(good), "jsonl": "\n".join(map(json.dumps, good))}
    flat = [",".join([r["question"], r["context"], r["answers"]["text"][0]]) for r in good]
    lines["csv"] = "\n".join(["question,context,answer", *flat])
    content = bytearray(lines[suffix].encode())
    for _ in range(draw.choice([1, 1, 5, 50])):
        place = draw.randrange(len(content))
        match draw.randrange(3):
            case 0:
                content[place] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randrange(1, 40)]
            case 2:
                content[place:place] = draw.randbytes(draw.randrange(1, 9))
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    (tmp_path / "good.json").write_text(json.dumps(good))
    checked(lambda: read(str(path), str(tmp_path / "good.json"), tokenizer))


def encoded(image: PIL.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(mode: str, size: tuple[int, int] = (32, 32)) -> PIL.Image:
    return PIL.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)


IMAGES = {
    "whole": (encoded(noise("RGB")), 1),
    "grey": (encoded(noise("L")), 1),
    "grey with alpha": (encoded(noise("LA")), 1),
    "transparent": (encoded(noise("RGBA")), 1),
    "palette": (encoded(noise("P")), 1),
    "one bit": (encoded(noise("1")), 1),
    "CMYK": (encoded(noise("CMYK"), "jpeg"), 1),
    "one pixel": (encoded(noise("RGB", (1, 1))), 1),
    "a line": (encoded(noise("RGB", (1, 300))), 1),
    "large": (encoded(noise("RGB", (400, 300)), "jpeg"), 1),
    "truncated png": (encoded(noise("RGB"))[:200], 1),
    "truncated jpeg": (encoded(noise("RGB", (64, 64)), "jpeg")[:300], 1),
    "no image": (b"hello", 1),
    "empty": (b"", 1),
    "png with a broken header": (encoded(noise("RGB"))[:8] + b"\0" * 60, 1),
    "label too high": (encoded(noise("RGB")), 10),
    "label far too high": (encoded(noise("RGB")), 2**40),
    "label below 0": (encoded(noise("RGB")), -1),
}


@pytest.mark.promise("malformed images")
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", IMAGES)
def test_an_image(tmp_path, name, place):
    vision = pytest.importorskip("itrd_nlp.tasks.image_classification.task", exc_type=ImportError)
    from itrd_nlp.tasks.image_classification.decoding import read_image
    from itrd_nlp.tasks.image_classification.files import load_images
    from itrd_nlp.vision.preprocessing import Preprocessing

    content, label = IMAGES[name]
    images, labels = [IMAGES["whole"][0]] * 3, [0, 1, 2]
    images[place], labels[place] = content, label
    features = Features({"img": Image(decode=False), "label": Value("int64")})
    data = Dataset.from_dict({"img": [{"bytes": b, "path": None} for b in images], "label": labels}, features=features)
    data.cast_column("img", Image()).to_parquet(tmp_path / "images.parquet")

    def use() -> Any:
        file = str(tmp_path / "images.parquet")
        train, validation = load_images(train_file=file, validation_file=file)
        read_image(train, 0)
        task = vision.ImageTask(train, validation, Preprocessing.plain(32, (0.5,) * 3, (0.5,) * 3), 10)
        seen = [task.train_dataset.__getitems__([0, 1, 2]), task.eval_dataset.__getitems__([0, 1, 2])]
        return [row["pixel_values"] for some in seen for row in some]

    pixels = checked(use)
    bad = name in ("no image", "empty") or name.startswith(("truncated", "png with", "label"))
    assert (pixels is None) == bad
    assert bad or all(x.shape == (3, 32, 32) and x.isfinite().all() for x in pixels)


RECIPES = {
    "empty": "",
    "a list": "- task: squad",
    "a word": "squad",
    "broken": "losses: {itrd: {",
    "a tab": "losses:\n\titrd: {}",
    "bytes": b"\xff\xfe\x00",
    "unknown key": "learning_rat: 1",
    "a key that is a number": "3: 4",
    "a key that is null": "null: 4",
    "rate in words": "learning_rate: fast",
    "rate of a list": "learning_rate: [1, 2]",
    "unknown loss": "losses: {itrt: {}}",
    "losses as a list": "losses: [itrd]",
    "options as a list": "losses: {itrd: [1]}",
    "batch of 0": "per_device_train_batch_size: 0",
    "batch below 0": "per_device_train_batch_size: -4",
    "batch of a half": "per_device_train_batch_size: 1.5",
    "epochs below 0": "num_train_epochs: -1",
    "unknown optimizer": "optim: adamm",
    "unknown schedule": "lr_scheduler_type: steps",
    "task weight below 0": "task_weight: -1",
    "a base that is not there": "base: nothing/here",
    "its own base": "base: recipe.yaml",
    "two documents": "task: squad\n---\ntask: toy",
    "a Python object": "label: !!python/object/apply:os.system [exit]",
    "a Python name": "label: !!python/name:os.system",
    "an alias of itself": "student: &a {from: *a}",
    "a student that is a list": "student: [1]",
    "a teacher that is a number": "teacher: 7",
    "a mapping for a word": "task: {a: b}",
}


def test_a_recipe_without_a_mistake(tmp_path):
    (tmp_path / "recipe.yaml").write_text("losses: {itrd: {}}\nlearning_rate: 1\n")
    _, training_args = parse(str(tmp_path / "recipe.yaml"), ["--use_cpu", "true"])
    assert build_losses(training_args.losses, Shapes((8,), (8,), ("logits",)))


@pytest.mark.promise("malformed recipes")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(tmp_path, name):
    content = RECIPES[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def use() -> bool:
        run_args, training_args = parse(str(path), ["--use_cpu", "true"])
        build_losses(training_args.losses, Shapes((8,), (8,), ("logits",)))
        if name in ("a mapping for a word", "a teacher that is a number"):  # a name until the model is looked for
            build_task(run_args)
        return True

    assert checked(use) is None  # refused in a line


WEIGHTS = ["cut", "flipped header", "empty", "text", "another shape", "missing tensors", "a pickle", "no config"]


@pytest.mark.promise("malformed models")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_model_s_folder(tmp_path, tiny_bert, tokenizer, name):
    tiny_bert.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    match name:
        case "cut":
            weights.write_bytes(whole[: len(whole) // 2])
        case "flipped header":
            weights.write_bytes(bytes([whole[0] ^ 255]) + whole[1:])
        case "empty":
            weights.write_bytes(b"")
        case "text":
            weights.write_text("weights")
        case "another shape":
            state = tiny_bert.state_dict()
            save_file({k: v[:1].contiguous() for k, v in state.items()}, weights, {"format": "pt"})
        case "missing tensors":
            save_file({"x": torch.zeros(1)}, weights, {"format": "pt"})
        case "a pickle":
            weights.unlink()
            torch.save({"x": print}, tmp_path / "pytorch_model.bin")
        case "no config":
            (tmp_path / "config.json").write_text("{}")
    data = Dataset.from_list(rows(random.Random(0)))
    task = SquadTask(tokenizer, data, data, max_length=64, doc_stride=16)
    assert checked(lambda: load_model(str(tmp_path), task, 0)) is None
