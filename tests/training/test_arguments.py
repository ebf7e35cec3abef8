"""YAML sets the defaults, the command line wins, and a typo is one line."""

import importlib.util
import json
import os
import pickle
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from itrd_nlp.cli.commands.training import help_text
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.trainings import baseline_arguments, without_publishing
from itrd_nlp.training import arguments
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.options import DistillationOptions
from itrd_nlp.utils.errors import UserError


def test_every_process_reads_the_weights_under_fsdp(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # the default of `accelerate launch --use_fsdp`
    args = ITRDArguments(str(tmp_path), use_cpu=True)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" and args.ddp_timeout == 86400


def test_a_launcher_s_precision_fills_what_nobody_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    fp32 = ITRDArguments(str(tmp_path), bf16=False, use_cpu=True)
    assert fp32.mixed_precision == "no" and without_publishing(fp32).mixed_precision == "no"
    assert without_publishing(ITRDArguments(str(tmp_path), bf16=True, use_cpu=True), bf16=False).mixed_precision == "no"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(arguments, "computes_bf16", lambda use_cpu: False)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # it asks for the device
    for name in ("_check_words", "_check_schedule", "_check_optimizer"):
        monkeypatch.setattr(arguments, name, lambda args: None)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 1)
    monkeypatch.setattr(TrainingArguments, "deepspeed_plugin", None, raising=False)
    assert ITRDArguments(str(tmp_path)).bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    chosen = ITRDArguments(str(tmp_path))
    assert chosen.fp16 and not chosen.bf16 and chosen.mixed_precision == "fp16"
    assert not ITRDArguments(str(tmp_path), bf16=True).fp16


def recipe(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_yaml_over_defaults(tmp_path):
    name = recipe(tmp_path, "learning_rate: 3e-5\nseed: 7\nlosses: {itrd: {alpha: 1.5}, kd: {temperature: 8}}\n")
    run_args, training_args = parse(
        name, ["--seed", "9", "--losses.kd.temperature", "2e0", "--losses.itrd.beta_mi=0.5", "--baseline", "false"]
    )
    assert training_args.learning_rate == 3e-5 and training_args.seed == 9
    assert training_args.losses == {"itrd": {"alpha": 1.5, "beta_mi": 0.5}, "kd": {"temperature": 2.0}}
    assert run_args.baseline is False and run_args.max_length == RunArguments().max_length
    assert training_args.output_dir == "runs/mine"


def test_mappings_and_lists_survive_the_command_line(tmp_path):
    name = recipe(tmp_path, "student: {from: teacher, layers: [0, 2]}\nlayer_map: [[4, 1], [12, 3]]\n")
    run_args, training_args = parse(name, ["--teacher", '{"model_type": "bert"}'])
    assert run_args.student == {"from": "teacher", "layers": [0, 2]} and run_args.teacher == {"model_type": "bert"}
    assert training_args.layer_map == [[4, 1], [12, 3]]
    assert parse(name, ["--student.layers", "last:1"])[0].student["layers"] == "last:1"


def test_the_command_line_adds_to_mappings(tmp_path):
    plain = recipe(tmp_path, "seed: 1\n")
    added = {"itrd": {}, "kd": {"temperature": 4}}
    assert parse(plain, ["--losses.kd.temperature", "4"])[1].losses == added
    without = parse("classify/l3-itrd-kd", ["--losses.kd", "null"])
    assert [*without[1].losses] == ["itrd"] and without[0].label is None
    for words in (["--losses={vkd: {}}"], ["--losses.vkd.weight=2"]):
        assert parse("classify/l3-itrd-kd", words)[0].label is None  # it names the recipe's losses
        assert parse("classify/l3-itrd-kd", [*words, "--label=mine"])[0].label == "mine"
    assert parse("classify/l3-itrd-kd", ["--losses.kd.temperature=2"])[0].label == "ITRD + KD"
    with pytest.raises(UserError, match="--losses.crd null: expected one of the recipe's losses .itrd, kd"):
        parse("classify/l3-itrd-kd", ["--losses.crd=null"])
    assert parse(plain, ["--losses", '{"itrd": {}}', "--losses.kd.temperature", "4"])[1].losses == added
    assert parse(plain, ["--teacher", "123"])[0].teacher == "123"


@pytest.mark.parametrize("text", ["3e-5", "3.0e-5", "0.00003", "3E-05"])
def test_every_way_to_write_a_number_is_a_number(tmp_path, text):
    assert parse(recipe(tmp_path, f"learning_rate: {text}\n"))[1].learning_rate == pytest.approx(3e-5)
    assert parse(recipe(tmp_path, f"losses: {{kd: {{weight: {text}}}}}"))[1].losses["kd"]["weight"] == 3e-5


@pytest.mark.parametrize(
    "text,argv,words",
    [
        ("learning_rat: 1\n", [], "did you mean 'learning_rate'"),
        ("- 1\n", [], "`key: value`"),
        ("a: [1\n", [], "not readable as YAML"),
        ("seed: 1\n", ["--sede", "2"], "did you mean 'seed'"),
        ("seed: 1\n", ["--seed", "two"], "invalid int value"),
        ("seed: 1\n", ["--losses", "{itrd"], "expected a YAML value"),
        ("seed: 1\n", ["--loses.itrd.alpha", "2"], "did you mean 'losses'"),
        ("student: some/model\n", ["--student.layers", "even:2"], "not a mapping"),
        ("seed: 1\n", ["--losses.kd.temperature", "--seed", "3"], "has no value"),
        ("seed: 1\n", ["--losses.kd.temperature", "[1"], "expected a YAML value"),
        ("losses: [itrd, kd]\n", [], "expected a mapping"),
        ("learning_rate: null\n", [], "is null"),
        ("max_eval_samples: -1\n", [], "1 or more"),
        ("task_weight: -1\n", [], "expected 0 or more"),
        ("tokens_per_batch: 0\n", [], "tokens_per_batch is 0: expected 1 or more"),
        ("output_dir: /elsewhere\n", [], "output_dir: expected on the command line"),
        ("label_names: [labels, --push_to_hub=true]\n", [], "label_names holds '--push_to_hub=true'"),
        ("hub_private_repo: false\n", [], "hub_private_repo: expected on the command line"),
        ("hub_token: hf_secret\n", [], "hub_token: expected on the command line"),
        ("teacher_cache: /elsewhere\n", [], "teacher_cache: expected on the command line"),
        ("teacher_cache_dtype: int8\n", [], "teacher_cache_dtype.*'int8'"),
        ("fp16: true\nuse_cpu: true\n", [], "fp16 on a CPU"),
        ("eval_strategy: sometimes\n", [], "eval_strategy"),
        ("load_best_model_at_end: true\nsave_strategy: steps\neval_strategy: epoch\n", [], "strategy"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, text, argv, words):
    with pytest.raises(UserError, match=words) as error:
        parse(recipe(tmp_path, text), argv)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'squad/t6-itrd'"):
        parse("squad/t6_itrd")


def test_help_lists_every_argument_of_the_package_and_links_to_trainers():
    text = help_text()
    assert all(f"--{field.name} " in text for kind in (RunArguments, DistillationOptions) for field in fields(kind))
    assert "Every other field of transformers.TrainingArguments" in text and "https://" in text


def test_a_field_of_the_package_is_one_that_trainer_lacks_or_has_another_default_for():
    trainers = {field.name: field for field in fields(TrainingArguments)}
    for field in fields(DistillationOptions):
        assert field.name not in trainers or field.default != trainers[field.name].default, field.name


def test_arguments_survive_a_pickle(tmp_path):
    arguments = ITRDArguments(str(tmp_path), losses={"kd": {}})
    assert pickle.loads(pickle.dumps(arguments)).to_dict() == arguments.to_dict()


@pytest.mark.parametrize("text,expected", [("off", "off"), ('"off"', "off"), ("auto", "auto"), ("on", "auto")])
def test_a_recipe_may_say_off(tmp_path, text, expected):
    _, training_args = parse(recipe(tmp_path, f"teacher_cache: {text}\n"), [])
    assert training_args.teacher_cache == expected
    assert ITRDArguments("x", teacher_cache=False).teacher_cache == "off"


@pytest.mark.parametrize("amx,avx512", [(False, False), (True, False), (False, True)])
def test_bf16_is_the_default_where_a_cpu_computes_in_it(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert ITRDArguments("x").bf16 == (amx or avx512) and ITRDArguments("x").use_cpu
    assert not ITRDArguments("x", bf16=False).bf16


def test_arguments_become_json_for_trackers():
    assert json.loads(ITRDArguments("x", use_cpu=True).to_json_string())["losses"] == {"itrd": {}}


SCHEDULE = "num_train_epochs: 240\nlr_milestones: [150, 180, 210]\n"


@pytest.mark.parametrize(
    "argv,milestones",
    [
        ([], [150, 180, 210]),
        (["--num_train_epochs=24"], [15, 18, 21]),
        (["--num_train_epochs", "1"], [0.625, 0.75, 0.875]),
        (["--num_train_epochs", "480"], [300, 360, 420]),
        (["--num_train_epochs=24", "--lr_milestones", "8", "10"], [8, 10]),
        (["--lr_milestones", "null"], None),
        (["--seed", "3", "--lr_milestones=None", "--num_train_epochs=24"], None),
        (["--lr_milestones=null", "--lr_scheduler_type=cosine", "--warmup_steps=5"], None),
    ],
)
def test_milestones_keep_their_share_of_the_epochs(argv, milestones, tmp_path):
    name = recipe(tmp_path, SCHEDULE)
    args = parse(name, argv)[1]
    assert args.lr_milestones == (milestones and pytest.approx(milestones))
    (tmp_path / "child.yaml").write_text("base: mine.yaml\nnum_train_epochs: 60\n")
    if not argv:
        assert parse(str(tmp_path / "child.yaml"))[1].lr_milestones == pytest.approx([37.5, 45, 52.5])


def test_milestones_of_a_baseline_of_its_own_length(tmp_path):
    run_args, args = parse(recipe(tmp_path, SCHEDULE), ["--baseline_training={num_train_epochs: 24}"])
    plain = baseline_arguments(run_args, args)
    assert plain.num_train_epochs == 24 and plain.lr_milestones == pytest.approx([15, 18, 21])
    assert args.lr_milestones == [150, 180, 210]
    run_args, args = parse(recipe(tmp_path, SCHEDULE), ["--baseline_training={lr_milestones: null}"])
    assert baseline_arguments(run_args, args).lr_milestones is None


@pytest.mark.parametrize("epochs", ["fast", "-1", "0"])
def test_epochs_that_are_none_are_still_told(epochs, tmp_path):
    with pytest.raises(UserError, match="num_train_epochs"):
        parse(recipe(tmp_path, SCHEDULE), [f"--num_train_epochs={epochs}"])
    with pytest.raises(UserError, match="lr_milestones"):
        parse(recipe(tmp_path, SCHEDULE.replace("[150, 180, 210]", f"[{epochs}]")))


@pytest.mark.parametrize(
    "schedule,options",
    [("cosine_with_min_lr", None), ("warmup_stable_decay", {}), ("cosine", {"num_cycle": 1})],
)
def test_a_schedule_without_its_options_is_refused_before_training(tmp_path, schedule, options):
    with pytest.raises(UserError, match=f"lr_scheduler_type {schedule} with lr_scheduler_kwargs .*: expected its opt"):
        ITRDArguments(str(tmp_path), lr_scheduler_type=schedule, lr_scheduler_kwargs=options)


@pytest.mark.parametrize(
    "schedule,options",
    [("cosine_with_min_lr", {"min_lr": 1e-6}), ("warmup_stable_decay", {"num_decay_steps": 2}), ("polynomial", None)],
)
def test_a_schedule_with_its_options_is_taken(tmp_path, schedule, options):
    made = ITRDArguments(str(tmp_path), lr_scheduler_type=schedule, lr_scheduler_kwargs=options)
    assert made.lr_scheduler_type == schedule


@pytest.mark.parametrize("options", [{"optim_args": "nonsense"}, {"optim": "adamw_bnb_8bit"}])
def test_an_optimizer_that_cannot_be_is_refused_before_training(tmp_path, options):
    if options.get("optim") and importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(UserError, match="optim .* with optim_args .*: expected an optimizer that is installed"):
        ITRDArguments(str(tmp_path), **options)


def test_a_process_uses_one_gpu_where_there_are_several(monkeypatch):
    made = TrainingArguments.__post_init__

    def with_gpus(args):
        made(args)
        args._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_gpus)
    assert ITRDArguments("x", use_cpu=True).n_gpu == 1
