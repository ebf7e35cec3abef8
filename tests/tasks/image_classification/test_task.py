"""Image classification from arguments to a record, through the trainer that texts have."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

timm = pytest.importorskip("timm", reason="the extra vision is not installed")

from transformers import AutoImageProcessor, AutoModelForImageClassification, EvalPrediction  # noqa: E402

from forked import on_ranks  # noqa: E402
from itrd_nlp import ITRDArguments, ITRDTrainer  # noqa: E402
from itrd_nlp.cli.main import main  # noqa: E402
from itrd_nlp.experiments.parsing import parse  # noqa: E402
from itrd_nlp.experiments.recipes import recipes  # noqa: E402
from itrd_nlp.experiments.run import run  # noqa: E402
from itrd_nlp.experiments.tasks import image_task  # noqa: E402
from itrd_nlp.experiments.train import build_trainer  # noqa: E402
from itrd_nlp.losses import correlation_loss, mutual_information_loss  # noqa: E402
from itrd_nlp.tasks.image_classification.images import prepare  # noqa: E402
from itrd_nlp.tasks.image_classification.task import ImageTask  # noqa: E402
from itrd_nlp.utils.errors import UserError  # noqa: E402
from itrd_nlp.vision.models import load_image_model  # noqa: E402
from itrd_nlp.vision.preprocessing import Preprocessing  # noqa: E402
from vision.pictures import parquet, pictures  # noqa: E402

SEEN = Preprocessing.plain(32, (0.5,) * 3, (0.25,) * 3)
METHODS = {
    "kd": {},
    "crd": {"dim": 8, "negatives": 16},
    "wcord": {"dim": 8, "negatives": 16},
    "reviewkd": {"warmup": 0},
    "itrd": {},
    "srd": {},
    "vkd": {},
}
SMALL = [
    "--per_device_train_batch_size=8",
    "--per_device_eval_batch_size=16",
    "--disable_tqdm=true",
    "--report_to=none",
]


@pytest.fixture
def words(tmp_path):
    """Arguments of a small run."""
    train = parquet(tmp_path / "train.parquet", 24)
    test = parquet(tmp_path / "test.parquet", 20, seed=1)
    places = {"train_file": train, "validation_file": test, "shared_dir": tmp_path / "shared"}
    return [*SMALL, "--bf16=false", *(f"--{key}={value}" for key, value in places.items())]


def trainer_of(student, losses, words, recipe="cifar10/resnet56a-resnet20a-itrd", teacher="cifar_resnet20a", count=16):
    run_args, args = parse(recipe, ["--losses", json.dumps(losses), "--teacher", teacher, *words])
    task = ImageTask(pictures(count), pictures(8, seed=1), SEEN)
    models = [load_image_model(name, task.class_names, seed)[0] for seed, name in enumerate((student, teacher))]
    return build_trainer(models[0], models[1], args, task)


FAST = ("cifar_resnet20",)  # the others take the same path
STUDENTS = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in timm.list_models("cifar_*")]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("student", STUDENTS)
def test_every_method_alone_trains_every_network(name, student, tmp_path):
    stages = len(timm.create_model(student).feature_info)
    teacher = next(n for n in ("cifar_resnet8x4", "cifar_vgg8") if len(timm.create_model(n).feature_info) == stages)
    words = [*SMALL, "--bf16=false", f"--output_dir={tmp_path}", "--max_steps=1", "--lr_milestones=1"]
    words += ["--task_weight=0", "--weight_decay=0"]  # so that only the method moves the weights
    trainer = trainer_of(student, {name: METHODS[name]}, words, teacher=teacher)
    before = [p.detach().clone() for p in trainer.student.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.student.parameters(), strict=True))
    (log,) = [log for log in trainer.state.log_history if "train_loss" in log]
    assert np.isfinite(log["train_loss"])


def test_the_recipe_is_a_plain_loop_of_sgd_bit_for_bit(tmp_path):
    recipe, steps = "cifar100/resnet56-resnet20-itrd", 30
    words = [*SMALL, f"--output_dir={tmp_path}", "--num_train_epochs=15", "--eval_strategy=no", "--save_strategy=no"]
    words += ["--lr_milestones", "8", "10", "12"]  # two steps an epoch
    losses = parse(recipe)[1].losses
    trainer = trainer_of("cifar_resnet20", losses, words, recipe=recipe, teacher="cifar_resnet8x4")
    batches, collate = [], trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or {k: v.clone() for k, v in batches[-1].items()}
    twin = trainer_of("cifar_resnet20", losses, words, recipe=recipe, teacher="cifar_resnet8x4")
    trainer.train()

    student, teacher, (embed,) = (
        twin.student.timm_model,
        twin.teacher.timm_model.eval(),
        twin.model.losses["itrd"].projectors,
    )
    parameters = [*student.parameters(), *embed.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    milestones = [16, 20, 24]
    student.train()
    for step, batch in enumerate(batches[:steps]):
        rate = 0.05 * 0.1 ** sum(step >= milestone for milestone in milestones)
        optimizer.param_groups[0]["lr"] = rate
        with torch.no_grad():
            t = teacher.forward_head(teacher.forward_features(batch["pixel_values"]), pre_logits=True)
        s = student.forward_head(student.forward_features(batch["pixel_values"]), pre_logits=True)
        z, t = embed(s), t[None]
        terms = [F.cross_entropy(student.fc(s), batch["labels"]), 2 * correlation_loss(z[None], t, 1.01).mean()]
        loss = torch.stack([*terms, 1 * mutual_information_loss(z[None], t, "raw").mean()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, loops in zip(
        trainer.student.timm_model.state_dict().values(), student.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, loops)


def test_from_arguments_to_a_record_and_the_same_again(words, tmp_path, capsys):
    output = tmp_path / "out"
    argv = ["--num_train_epochs=2", "--lr_milestones=1", f"--output_dir={output}", *words]
    argv += ["--teacher", "cifar_resnet20a", "--teacher_training", '{"num_train_epochs": 1, "optim": "sgd"}']
    run_args, args = parse("cifar10/resnet56a-resnet20a-itrd", argv)
    record = run(run_args, args, "cifar10/x")
    assert (
        set(record.metrics) == {"teacher", "baseline", "student"} and len(record.examples["student"]["accuracy"]) == 20
    )
    assert [row["epoch"] for row in record.evaluations["student"]] == [1, 2]
    assert record.evaluations["student"][-1]["accuracy"] == record.metrics["student"]["accuracy"]
    assert record.latency_ms["student"]["32"]["median"] > 0 and record.data["training images"] == 24
    student = AutoModelForImageClassification.from_pretrained(output / "student")
    assert student.config.architecture == "cifar_resnet20a"
    assert run(run_args, args, "cifar10/x").metrics == record.metrics
    capsys.readouterr()
    validation = [word for word in words if "validation" in word]
    assert main(["evaluate", str(output / "student"), "--task", "cifar10", "--bf16=false", *validation]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == record.metrics["student"]["accuracy"]


def test_resuming_inside_an_epoch_repeats_the_augmentation(tmp_path):
    weights = {}
    for name, argv in {"whole": [], "first": ["--max_steps=5"], "rest": []}.items():
        output = tmp_path / ("whole" if name == "whole" else "cut")
        words = [*SMALL, "--bf16=false", f"--output_dir={output}", "--num_train_epochs=3", "--lr_milestones=2"]
        words += ["--save_strategy=steps", "--save_steps=5", "--eval_strategy=no", *argv]
        trainer = trainer_of("cifar_resnet20a", {"crd": METHODS["crd"], "itrd": {}}, words, count=24)
        if name == "first":
            trainer.args.max_steps = -1
            trainer.add_callback(_StopAt(5))
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-5") if name == "rest" else None)
        weights[name] = trainer.model.state_dict()
    for key, value in weights["whole"].items():
        assert torch.equal(value, weights["rest"][key]), key


@pytest.mark.parametrize(
    "argv,steps",
    [([], 3), (["--dataloader_drop_last=true"], 2), (["--gradient_accumulation_steps=2"], 2)],
)
def test_milestones_are_epochs_however_batches_are_cut(argv, steps, tmp_path):
    words = [*SMALL, "--bf16=false", f"--output_dir={tmp_path}", "--num_train_epochs=2", "--lr_milestones=1", *argv]
    words += ["--logging_steps=1", "--eval_strategy=no", "--save_strategy=no"]
    trainer = trainer_of("cifar_resnet20a", {"kd": {}}, words, count=20)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([0.05] * steps + [0.005] * steps)


def test_images_of_ones_own_train_under_the_default_arguments(tmp_path):
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    models = [load_image_model("cifar_resnet20", ["a", "b", "c"], seed)[0] for seed in (0, 1)]
    args = ITRDArguments(str(tmp_path), max_steps=2, report_to="none", disable_tqdm=True)
    ITRDTrainer(models[0], models[1], args, train_dataset=rows).train()


def on_a_rank(folder, loss, student, teacher):
    words = [*SMALL, "--bf16=false", f"--output_dir={folder}", "--num_train_epochs=2", "--lr_milestones=1"]
    words += ["--logging_steps=1", "--eval_strategy=no", "--save_strategy=no"]
    made = trainer_of(student, {loss: METHODS[loss]}, words, teacher=teacher, count=24)
    made.train()
    state = made.accelerator.unwrap_model(made.model).state_dict()
    kept = [v for k, v in state.items() if "running" not in k and "num_batches" not in k]  # a rank's own
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in kept)).hexdigest()
    rates = [log["learning_rate"] for log in made.state.log_history if "learning_rate" in log]
    return [made.args.world_size, digest, rates]


@pytest.mark.parametrize(
    "loss,student,teacher",
    [
        ("reviewkd", "cifar_resnet20a", "cifar_resnet20a"),
        pytest.param("crd", "cifar_resnet20a", "cifar_resnet20a", marks=pytest.mark.slow),
        pytest.param("itrd", "cifar_vgg_small_rbnn", "cifar_vgg_small_fp", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_stay_equal(loss, student, teacher, tmp_path):
    first, second = on_ranks(on_a_rank, tmp_path, loss, student, teacher)
    assert first[:2] == second[:2] and first[0] == 2
    assert first[2] == pytest.approx([0.05, 0.05, 0.005, 0.005])


from transformers import TrainerCallback  # noqa: E402


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.slow
def test_a_student_of_signs_learns_by_its_schedule(words, tmp_path):
    argv = ["--num_train_epochs=2", "--warmup_steps=0"]
    argv += ["--teacher_training={max_steps: 1}", f"--output_dir={tmp_path / 'out'}", "--latency=false", *words]
    run_args, args = parse("cifar10-binary/vgg_small-recu-itrd", argv)
    run(run_args, args, "x")
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "student")
    taus = {round(value.item(), 4) for key, value in student.state_dict().items() if key.endswith("tau")}
    assert taus == {0.9029}  # of the second of two epochs


def test_without_losses_the_student_learns_from_its_labels_alone(words, tmp_path):
    argv = ["--student=cifar_resnet20a", "--teacher=cifar_resnet20a", "--num_train_epochs=1", "--warmup_steps=0"]
    argv += ["--teacher_training={max_steps: 1}", f"--output_dir={tmp_path / 'out'}", "--latency=false", *words]
    argv += ["--logging_steps=1"]
    record = run(*parse("cifar10-binary/resnet18-recu", argv), "x")
    assert set(record.metrics) == {"teacher", "student"} and record.label == "ReCU"
    assert "task" not in record.terms["student"][-1] and record.parameters.get("projectors", 0) == 0


@pytest.mark.parametrize("name", [n for n in recipes() if n.startswith(("cifar", "imagenet"))])
def test_recipes_name_networks_that_exist(name):
    run_args, args = parse(name)
    assert args.decay_all and args.max_grad_norm == 0 and args.optim == "sgd"
    for spec in (run_args.teacher, run_args.student):
        assert timm.is_model(_network(spec))


@pytest.mark.parametrize("name", [name for name in recipes() if name.endswith("-reviewkd") and name.startswith("c")])
def test_networks_of_reviewkd_have_equally_many_stages(name):
    run_args, _ = parse(name)
    with torch.device("meta"):
        networks = [timm.create_model(_network(spec)) for spec in (run_args.teacher, run_args.student)]
    assert len({len(network.feature_info) for network in networks}) == 1


def _network(spec):
    return (spec["timm"] if isinstance(spec, dict) else spec).removeprefix("timm/")


PAIRS = sorted({n.rpartition("-itrd")[0] for n in recipes() if n.startswith("cifar100/") and n.endswith("-itrd")})
SMALLEST = ("cifar100/resnet110-resnet20", "itrd-kd")  # the others take the same path


@pytest.mark.parametrize(
    "method", ["kd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("crd", "reviewkd", "itrd"))]
)
def test_binary_networks_learn_by_every_method_in_half_precision(method, tmp_path):
    words = [*SMALL, "--bf16=true", f"--output_dir={tmp_path}", "--max_steps=1", "--lr_milestones=1"]
    for kind in ("recu", "rbnn"):
        trainer = trainer_of(f"cifar_vgg_small_{kind}", {method: METHODS[method]}, words, teacher="cifar_vgg_small_fp")
        trainer.train()
        assert all(p.isfinite().all() for p in trainer.student.parameters())


@pytest.mark.parametrize("teacher", ["transformers", pytest.param("timm", marks=pytest.mark.slow)])
def test_a_new_model_of_transformers_is_saved_with_its_teachers_preprocessing(teacher, words, tmp_path, capsys):
    from vision.test_models import VIT

    argv = [
        f"--teacher={json.dumps(VIT) if teacher == 'transformers' else 'cifar_resnet20a'}",
        f"--student={json.dumps({**VIT, 'num_hidden_layers': 1})}",
        "--latency=false",
    ]
    argv += ["--teacher_training={max_steps: 1}", f"--output_dir={tmp_path / 'out'}", "--max_steps=1", *words]
    argv += ["--save_strategy=steps", "--save_steps=1"]
    record = run(*parse("cifar10/resnet56a-resnet20a-itrd", argv), "x")
    assert {"student", "teacher"} <= {*record.calibration}
    capsys.readouterr()
    validation = [word for word in words if "validation" in word]
    assert main(["evaluate", str(tmp_path / "out" / "student"), "--task", "cifar10", "--bf16=false", *validation]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == record.metrics["student"]["accuracy"]
    folders = {path.parent for path in (tmp_path / "out" / "student").rglob("*processor_config.json")}
    assert {folder.name for folder in folders} == {"student", "checkpoint-1"}
    assert all(AutoImageProcessor.from_pretrained(folder) for folder in folders)


def test_the_warm_up_of_reviewkd_follows_the_epochs_of_the_trainer(words, tmp_path):
    shares = []
    for warmup in (0, 2):
        argv = [*words, "--num_train_epochs=3", "--max_steps=-1", "--learning_rate=0", "--logging_steps=1"]
        argv += [f"--output_dir={tmp_path / str(warmup)}", "--save_strategy=no", "--eval_strategy=no"]
        trainer = trainer_of("cifar_resnet20", {"reviewkd": {"warmup": warmup, "weight": 1.0}}, argv)
        trainer.train()
        shares.append([log["reviewkd"] for log in trainer.state.log_history if "reviewkd" in log])
    assert len(shares[0]) == len(shares[1]) == 6  # 16 images in batches of 8
    factors = [warm / full for warm, full in zip(shares[1], shares[0], strict=True)]
    assert factors == pytest.approx([0, 0, 0.5, 0.5, 1, 1], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("depth,accuracy", [(20, 91.73), (56, 93.39)])
def test_published_weights_score_what_was_published(depth, accuracy, capsys):
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip("needs the published weights and CIFAR-10's test images")
    words = ["--checkpoint", str(folder / f"resnet{depth}.safetensors"), "--task", "cifar10", "--bf16", "false"]
    words += ["--validation_file", str(folder / "test.parquet"), "--per_device_eval_batch_size", "250"]
    assert main(["evaluate", f"cifar_resnet{depth}a", *words]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(accuracy)


def test_there_are_the_thirteen_pairs_of_the_paper():
    assert len(PAIRS) == 13
    assert sum(parse(f"{pair}-itrd")[1].losses["itrd"]["alpha"] == 1.01 for pair in PAIRS) == 7


@pytest.mark.parametrize(
    "pair,method",
    [
        pytest.param(pair, method, marks=[] if (pair, method) == SMALLEST else pytest.mark.slow)
        for pair, method in itertools.product(PAIRS, ["itrd-corr", "itrd", "itrd-kd"])
    ],
)
def test_the_papers_recipes_take_two_steps(pair, method, tmp_path):
    run_args, args = parse(
        f"{pair}-{method}", ["--max_steps=2", f"--output_dir={tmp_path}", *SMALL, "--eval_strategy=no"]
    )
    task = ImageTask(pictures(16, classes=100), None, SEEN)
    names = [f"class {i}" for i in range(100)]
    models = [load_image_model(spec, names, 0)[0] for spec in (run_args.student, run_args.teacher["timm"])]
    trainer = build_trainer(*models, args, task)
    trainer.train()
    assert all(np.isfinite(log["train_loss"]) for log in trainer.state.log_history if "train_loss" in log)


def test_metrics():
    task = ImageTask(None, pictures(3), SEEN)
    logits = np.eye(20)[[0, 5, 2]] + 0.1 * np.eye(20)[[9, 1, 9]]
    scores, each = task.score(EvalPrediction(logits, np.array([0, 1, 7])))
    assert scores["accuracy"] == pytest.approx(100 / 3) and each["accuracy"] == [100.0, 0.0, 0.0]
    assert scores["total"] == 3
    far = logits + 0.01 * np.arange(20)  # now the classes of high numbers come next
    far[1, 1], far[2, 7] = 0.5, -1
    scores, _ = task.score(EvalPrediction(far, np.array([0, 1, 7])))
    assert scores["top5_accuracy"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "argv,message",
    [
        (["--validation_file=x.parquet"], "x.parquet: no such file or folder"),
        (["--doc_stride=3"], "doc_stride 3 with images: it is for other tasks"),
        (["--teacher=cifar_resnet20b"], "did you mean 'cifar_resnet20'"),
        (["--task=cifar100"], "the data has 10 classes: expected 100"),
        (["--student={from: teacher}"], "expected an image classifier, e.g. --student cifar_resnet20"),
        (["--pooling=tokens:4", "--layer_map=even"], "pooling tokens:4 of images"),
        (["--losses={minilmv2: {}}"], "minilmv2 with images: it compares the tokens of texts"),
        (["--losses={textbrewer: {}}"], "textbrewer with images: it compares the tokens of texts"),
        (["--tokens_per_batch=9"], "tokens_per_batch with images"),
        (["--student=vit_tiny_patch16_224"], r"cannot take a batch of pixel_values \(2, 3, 32, 32\)"),
        (["--label_smoothing_factor=0.1"], "label_smoothing_factor: the loss is the model's own"),
        (["--lr_milestones=300"], "expected epochs between 0 and num_train_epochs"),
        (["--warmup_steps=3"], "lr_milestones with warmup_steps"),
        (["--torch_compile=true"], "torch_compile with images"),
        (["--dataloader_persistent_workers=true", "--dataloader_num_workers=1"], "persistent_workers with images"),
        (["--activation_checkpointing=true"], "activation_checkpointing with batch normalisation"),
        (["--teacher_config={x: 1}"], "expected the options in --teacher itself"),
        (["--teacher={timm: cifar_resnet20a, checkpoint: no.pth}"], "no.pth: no such file"),
        (["--student=cifar_resnet18_recu", "--losses={reviewkd: {}}"], "the teacher has 3 stages, the student 4"),
        (["--dataset=photos.zip"], "'photos.zip' is one file: expected a Hub id or a folder"),
        (
            ["--student=cifar_mobilenetv2_half", "--pooling=tokens", "--layer_map=even"],
            "their maps differ in size: expected the same number",
        ),
        (["--metric_for_best_model=top5", "--load_best_model_at_end=true"], "metric_for_best_model"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_trained(argv, message, words, tmp_path):
    base = ["--teacher=cifar_resnet20a", f"--output_dir={tmp_path / 'out'}", *words]
    with pytest.raises(UserError, match=message) as error:
        run(*parse("cifar10/resnet56a-resnet20a-itrd", [*base, *argv]), "x")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("sides,expected", [((40,) * 6, 40), ((40, 40, 48, 40, 40, 40), 224), ((300,) * 6, 224)])
def test_a_new_model_takes_the_size_that_all_images_have(tmp_path, sides, expected):
    for i, side in enumerate(sides):
        folder = tmp_path / "pictures" / "train" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures(1, side=side)["image"][0].save(folder / f"{i:03}.png")
    argv = ["--task", "images", "--train_file", str(tmp_path / "pictures" / "train"), "--teacher"]
    task = image_task(parse(None, [*argv, json.dumps({"model_type": "resnet"})])[0])
    assert task.preprocessing.size == (expected, expected)


def test_images_keep_their_place_through_the_collator():
    images = prepare(pictures(4), SEEN, augment=False)
    batch = ImageTask.collator([images[3], images[1]])
    assert batch["training_index"].tolist() == [3, 1] and batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)


def test_weights_lie_as_fsdp2_asks_for(tmp_path):
    trainer = trainer_of("cifar_resnet20", {"itrd": {}}, [*SMALL, f"--output_dir={tmp_path}"])
    assert all(
        weight.is_contiguous() for network in (trainer.model, trainer.teacher) for weight in network.parameters()
    )
