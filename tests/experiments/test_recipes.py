"""Packaged recipes hold what their sources say, and a recipe may stand on another."""

import re

import pytest

from itrd_nlp.distillation.layers import layer_pairs
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.experiments.config import TASK_HELP
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.recipes import read_recipe, recipes
from itrd_nlp.experiments.tasks import TASKS
from itrd_nlp.losses import LOSSES, Shapes, build_losses
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError

METHODS = ("kd", "distilbert", "textbrewer", "crd", "wcord", "minilmv2", "srd", "vkd", "itrd-corr", "itrd")


OF_TEXTS = ("squad", "toy", "classify", "tag", "embed", "glue", "rerank")


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith(OF_TEXTS)])
def test_packaged_recipes_hold_arguments_that_exist(name):
    run_args, training_args = parse(name)
    assert training_args.output_dir == f"runs/{name}"
    student_layers = int(str(run_args.student.get("layers", "even:3")).rpartition(":")[2])
    teacher_layers = 6 if name.startswith("squad-small") else 12
    pairs = layer_pairs(training_args.layer_map, teacher_layers, student_layers)
    Pooling(training_args.pooling)
    widths = (768,) * len(pairs)
    attention = tuple(zip(widths, widths, strict=True))
    build_losses(training_args.losses, Shapes(widths, widths, ("start_logits",), attention, training_args.pooling, 9))
    assert set(run_args.teacher_training) <= set(ITRDArguments.__dataclass_fields__)


def test_published_recipes_say_what_their_source_says():
    for name, layers in [("squad/t6-itrd", "first:6"), ("squad/t3-itrd", "first:3")]:
        run_args, training_args = parse(name)
        assert run_args.student == {"from": "google-bert/bert-base-cased", "layers": layers}
        assert training_args.losses["itrd"] == {"beta_corr": 2, "beta_mi": 1, "alpha": 1.01, "mi_form": "raw"}
        assert training_args.losses["kd"] == {"temperature": 8} and training_args.layer_map == "even"


@pytest.mark.parametrize("size", ["t6", "t3"])
def test_the_recommended_recipe_is_the_one_that_was_measured(size):
    run_args, training_args = parse(f"squad/{size}-best")
    measured_run, measured = parse(f"squad-base/{size}-best")
    for name in ("losses", "layer_map", "task_weight", "learning_rate"):
        assert getattr(training_args, name) == getattr(measured, name)
    assert run_args.student == measured_run.student and run_args.student["from"] == "teacher"
    assert run_args.baseline_training["learning_rate"] == measured_run.baseline_training["learning_rate"]


def test_every_method_has_a_recipe_at_every_size():
    for size in ("squad/t6", "squad/t3", "squad-small/l3"):
        made = [parse(f"{size}-{method}")[1].losses for method in METHODS]
        # the others are for images and for rerankers
        assert {name for losses in made for name in losses} == {*LOSSES} - {"reviewkd", "listwise", "margin_mse"}
    assert not any("/_" in name for name in recipes())


def test_textbrewer_s_recipes_are_the_published_ones():
    for name, layers in (("squad/t6-textbrewer", 6), ("squad/t3-textbrewer", 3)):
        _, training_args = parse(name)
        assert training_args.layer_map == [[12 // layers * i, i] for i in range(layers + 1)]
        assert training_args.losses["kd"] == {"temperature": 8, "t_squared": False, "weight": 2}
        assert training_args.task_weight == 0 and training_args.pooling == "all_tokens"


def test_a_table_gives_a_recipe_for_each_pair_and_method():
    names = [name for name in recipes() if name.startswith("cifar100/")]
    assert len(names) == 13 * 8 and all(parse(name)[1].output_dir == f"runs/{name}" for name in names)
    run_args, training_args = parse("cifar100/vgg13-mobilenetv2_half-itrd")
    assert run_args.student == "cifar_mobilenetv2_half" and training_args.learning_rate == 0.01
    assert training_args.losses == {"itrd": {"alpha": 1.5, "mi_form": "raw"}}
    assert parse("cifar100/resnet56-resnet20-reviewkd")[1].losses == {"reviewkd": {"weight": 0.6}}
    with pytest.raises(UserError, match="did you mean 'cifar100/vgg13-vgg8-itrd'"):
        parse("cifar100/vgg13-vgg8-itrt")


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{next(iter(files))}.yaml")


KNOWN = ("seed", "losses", "task")


def test_a_recipe_has_what_its_base_has_and_wins(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "low.yaml").write_text("seed: 1\nlosses: {kd: {}}\n")
    (tmp_path / "deep" / "middle.yaml").write_text("base: ../low.yaml\ntask: toy\n")
    name = write(tmp_path, top="base: deep/middle.yaml\nseed: 3\n")
    assert read_recipe(name, KNOWN) == {"seed": 3, "losses": {"kd": {}}, "task": "toy"}
    run_args, training_args = parse(write(tmp_path, mine="base: squad/t3-crd\nseed: 5\n"))
    assert training_args.losses["crd"] == {} and run_args.label == "CRD"
    assert parse(write(tmp_path, mine="base: squad/t3-crd\nlosses: {srd: {}}\n"))[0].label is None


def test_a_folder_that_is_called_like_a_recipe_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = read_recipe("toy/t1-itrd")
    (tmp_path / "toy" / "t1-itrd").mkdir(parents=True)
    assert read_recipe("toy/t1-itrd") == expected
    with pytest.raises(UserError, match="recipe 'toy' is a folder"):
        read_recipe("toy")


def test_names_are_text_whatever_yaml_makes_of_them(tmp_path):
    text = (
        "{label: yes, save_strategy: no, teacher_training: {eval_strategy: no}, student: {from: 2024-05-01, layers: 3}}"
    )
    (tmp_path / "names.yaml").write_text(text)
    values = read_recipe(str(tmp_path / "names.yaml"))
    assert values["label"] == "yes" and values["save_strategy"] == values["teacher_training"]["eval_strategy"] == "no"
    assert values["student"] == {"from": "2024-05-01", "layers": 3}
    argv = ["--student.from", "2024", "--student.tokenizer", "7", "--teacher_training.save_strategy", "no"]
    run_args, training_args = parse(str(tmp_path / "names.yaml"), [*argv, "--use_cpu=true"])
    assert run_args.student == {"from": "2024", "layers": 3, "tokenizer": "7"} and run_args.label == "yes"
    assert training_args.save_strategy == "no" and run_args.teacher_training["save_strategy"] == "no"
    assert parse(None, ["--student.from", '"2024"', "--use_cpu=true"])[0].student["from"] == "2024"
    assert parse(None, ["--student.tokenizer=null", "--use_cpu=true"])[0].student["tokenizer"] is None


def test_wrong_bases_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or packaged recipe.*did you mean 'squad/t3-crd'"):
        read_recipe(write(tmp_path, a="base: squad/t3-crt\n"), KNOWN)
    with pytest.raises(UserError, match="is its own base, by way of"):
        read_recipe(write(tmp_path, a="base: b.yaml\n", b="base: a.yaml\n"), KNOWN)
    with pytest.raises(UserError, match="unknown key 'sead'"):
        read_recipe(write(tmp_path, a="base: b.yaml\n", b="sead: 1\n"), KNOWN)


def test_the_help_names_every_task():
    assert {*re.findall(r"[a-z]+\d*", TASK_HELP)} - {"or"} == {*TASKS}
