"""Comparisons and sweeps: what runs, what is refused, what the table holds."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from filelock import FileLock

from experiments.test_run import BEST, SMALL
from itrd_nlp.cli.main import main
from itrd_nlp.experiments import compare as module
from itrd_nlp.experiments.compare import check_fair, compare, finished, grid, plan_runs
from itrd_nlp.experiments.run import run
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import BusyError, UserError
from itrd_nlp.utils.io import read_json, write_json


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Writes recipes into a folder of their own and returns their names."""
    monkeypatch.chdir(tmp_path)

    def write(**several):
        (tmp_path / "base.yaml").write_text(json.dumps(SMALL))
        for name, changes in several.items():
            (tmp_path / f"{name}.yaml").write_text(json.dumps({"base": "base.yaml", **changes}))
        return [f"{name}.yaml" for name in several]

    return write


TWO = {"a": {"losses": {"kd": {}}, "label": "KD"}, "b": {"losses": {"itrd": {}}}}


def test_every_recipe_and_seed_runs_once_with_one_teacher_and_one_undistilled_student_a_seed(
    recipes, tmp_path, capsys, monkeypatch
):
    words = ["compare", *recipes(**TWO), "--seeds", "1", "2", "--output_dir", "out"]
    assert main(words) == 0
    out, said = capsys.readouterr()
    assert said.count("[teacher] fine-tuning") == 1 and said.count("training without distillation") == 2
    assert said.count("training with distillation") == 4
    table = [line for line in out.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in table[2:]]
    assert names[:2] == ["teacher", "undistilled"] and {*names[2:]} == {"KD", "itrd"}
    assert sorted(p.parent.name for p in tmp_path.glob("out/*/*/record.json")) == [
        "seed-1",
        "seed-1",
        "seed-2",
        "seed-2",
    ]
    record = Record.read(tmp_path / "out" / "a" / "seed-1" / "record.json")
    assert len(record.examples["student"]["f1"]) == 10 and not record.latency_ms
    assert record.step_seconds["student"] > 0 and record.peak_mib["student"] > 1
    mean = sum(record.examples["student"]["f1"]) / 10
    assert record.metrics["student"]["f1"] == pytest.approx(mean, abs=0.01)

    monkeypatch.setattr("itrd_nlp.experiments.run.run", lambda *_: pytest.fail("nothing is left to run"))
    assert main(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == table


def test_scores_of_other_examples_or_of_another_version_are_made_again(recipes, tmp_path, monkeypatch):
    (run,) = plan_runs(recipes(a=TWO["a"]), [1], [], tmp_path / "out")
    compare([run])
    record = read_json(run.record)
    write_json(run.record, {**record, "arguments": {**record["arguments"], "max_eval_samples": 3}})
    assert not finished(run)  # `itrd distill` was told another number, and wrote its record there
    write_json(run.record, record)
    assert finished(run)
    assert not finished(plan_runs(["a.yaml"], [1], ["--bf16_full_eval", "true"], tmp_path / "out")[0])
    monkeypatch.setattr(module, "scoring_versions", lambda task: [0])
    assert not finished(run)


def test_files_behind_a_link_are_looked_at(recipes, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "cats").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "cats")
    (tmp_path / "cats" / "again").symlink_to(tmp_path / "images")  # a circle
    recipes(a=TWO["a"])
    words = ["--train_file", str(tmp_path / "images")]
    inputs = []
    for _ in range(2):
        inputs.append(module._inputs(plan_runs(["a.yaml"], [1], words, tmp_path / "out")[0]))
        (tmp_path / "cats" / "1.png").touch()
    assert inputs[0]["files"] != inputs[1]["files"]


def test_a_changed_argument_is_another_run(recipes, tmp_path):
    (run,) = plan_runs(recipes(a=TWO["a"]), [1], [], tmp_path / "out")
    compare([run])
    assert finished(run)
    path = tmp_path / "a.yaml"
    path.write_text(path.read_text() + "\n")
    assert not finished(run)  # a recipe that was touched is looked at anew, which costs little
    (changed,) = plan_runs(["a.yaml"], [1], ["--learning_rate", "1e-3"], tmp_path / "out")
    assert not finished(changed)
    with pytest.raises(UserError, match="differs in learning_rate"):
        compare([changed])


def test_a_folder_that_is_called_teacher_counts_where_it_is_one(recipes, tmp_path):
    (run,) = plan_runs(recipes(a=TWO["a"]), [1], [], tmp_path / "out")
    run.run_args.student = {"from": "teacher"}
    before = module._inputs(run)
    (tmp_path / "teacher").mkdir()
    assert module._inputs(run) == before  # the student is cut out of the recipe's teacher, which lies elsewhere
    run.run_args.teacher = "teacher"
    empty = module._inputs(run)
    (tmp_path / "teacher" / "weights").write_text("1")
    assert module._inputs(run) != empty


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"teacher_training": {"max_steps": 3}}, "differ in teacher_training"),
        ({"student": {"layers": "last:1"}}, "differ in student"),
        ({"max_steps": 3}, r"differ in max_steps \(2 and 3\)"),
        ({"per_device_train_batch_size": 4}, "differ in per_device_train_batch_size"),
        ({"max_train_samples": 30}, "differ in max_train_samples"),
        (BEST | {"metric_for_best_model": "f1"}, "differ in load_best_model_at_end"),
    ],
)
def test_unfair_pairs_are_refused_before_anything_runs(recipes, tmp_path, changes, words):
    runs = plan_runs(recipes(a=TWO["a"], b={**TWO["b"], **changes}), [1], [], tmp_path / "out")
    with pytest.raises(UserError, match=words) as error:
        compare(runs)
    assert "--unfair" in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()
    check_fair(plan_runs(["a.yaml", "a.yaml --learning_rate=3e-3"], [1], [], tmp_path / "out"))


def test_a_run_that_another_call_is_at_is_left_to_it(recipes, tmp_path, monkeypatch, capsys):
    from itrd_nlp.experiments import run as runner

    runs, whole, tries = plan_runs(recipes(**TWO), [1], [], tmp_path / "out"), runner.run, []

    def busy_at_first(run_args, training_args, name):
        tries.append(name)
        if tries.count(name) == 1 and name == "a.yaml":
            raise BusyError("another run is training in it")
        return whole(run_args, training_args, name)

    monkeypatch.setattr(runner, "run", busy_at_first)
    monkeypatch.setattr(module, "PATIENCE", 0)
    assert [record.label for record in compare(runs)] == ["KD", "itrd"]
    assert tries == ["a.yaml", "b.yaml", "a.yaml"] and "later: another run" in capsys.readouterr().err


def test_a_folder_that_another_call_holds_is_left_alone(recipes, tmp_path, monkeypatch, capsys):
    runs = plan_runs(recipes(**TWO), [1], ["--baseline", "false"], tmp_path / "out")
    output = runs[0].record.parent
    output.mkdir(parents=True)
    lock = FileLock(output / ".lock")
    lock.acquire()
    rests = []

    def rest(seconds):  # all else is done: the other call ends after the third
        rests.append(seconds)
        if len(rests) == 3:
            lock.release()

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=rest))
    compare(runs)
    said = capsys.readouterr().err
    assert len(rests) == 3 and said.count(f"{output} is in use by another process; Ctrl-C stops waiting") == 1
    assert runs[1].record.stat().st_mtime_ns < runs[0].record.stat().st_mtime_ns
    lock.acquire()
    with pytest.raises(BusyError, match="another run is at"):
        run(runs[0].run_args, runs[0].training_args)
    lock.release()


@pytest.mark.slow
def test_two_calls_train_one_undistilled_student(recipes, tmp_path, capfd):
    recipes(**TWO)
    words = ["--seeds", "1", "--output_dir", "out"]
    others = [
        subprocess.Popen([sys.executable, "-m", "itrd_nlp.cli", "compare", name, *words])
        for name in ("a.yaml", "b.yaml")
    ]
    assert [other.wait() for other in others] == [0, 0]
    compare(plan_runs(["a.yaml", "b.yaml"], [1], [], tmp_path / "out"))
    assert len(list((tmp_path / "runs" / "shared").glob("undistilled-*"))) == 1


def test_a_changed_checkpoint_is_another_run(recipes, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"1")
    words = ["--student", f"{{timm: x, checkpoint: {path}}}"]
    (run,) = plan_runs(recipes(a=TWO["a"]), [1], words, tmp_path / "out")
    before = module._inputs(run)
    path.write_bytes(b"12")
    assert module._inputs(run) != before


@pytest.mark.parametrize("option", ["corpus", "dataset"])
def test_what_lies_deep_in_data_decides_too(recipes, tmp_path, option):
    inner = tmp_path / "data" / "train" / "cat"
    inner.mkdir(parents=True)
    (run,) = plan_runs(recipes(a=TWO["a"]), [1], [f"--{option}", str(tmp_path / "data")], tmp_path / "out")
    before = module._inputs(run)
    (inner / "new.txt").write_text("new")
    assert module._inputs(run) != before


def test_a_sweep_runs_every_point(recipes, tmp_path, capsys):
    recipes(b=TWO["b"])
    (tmp_path / "my recipes").mkdir()
    (tmp_path / "b.yaml").rename(tmp_path / "my recipes" / "b.yaml")
    shutil.copy(tmp_path / "base.yaml", tmp_path / "my recipes")
    words = [
        "sweep",
        "my recipes/b.yaml",
        "--grid",
        "losses.itrd.alpha=1.01,2",
        "losses.itrd.beta_mi=0,1",
        "--max_steps",
        "1",
    ]
    assert main([*words, "--output_dir", "out"]) == 0
    table = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")][4:]
    assert sorted(table) == [
        f"itrd, losses.itrd.alpha={a}, losses.itrd.beta_mi={b}" for a in ("1.01", "2") for b in ("0", "1")
    ]
    assert len(list(tmp_path.glob("out/*/seed-42/record.json"))) == 4


def test_what_is_asked_anew_of_a_finished_run_is_done(recipes, tmp_path, capsys):
    names = recipes(**TWO)
    assert main(["compare", names[0], "--output_dir", "out", "--baseline", "false"]) == 0
    assert main(["compare", *reversed(names), "--output_dir", "out"]) == 0
    assert "| undistilled |" in capsys.readouterr().out
    record = Record.read(tmp_path / "out" / "a" / "seed-42" / "record.json")
    assert "baseline" in record.metrics
    assert main(["compare", names[0], "--output_dir", "out", "--label", "mine"]) == 0
    assert "| mine |" in capsys.readouterr().out


def test_other_data_under_the_same_name_is_another_run(recipes, tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v2").mkdir()
    folders = []
    for version in ("v1", "v2"):
        (tmp_path / version / "dev.json").write_text("{}")
        words = ["--validation_file", str(tmp_path / version / "dev.json")]
        folders.append(plan_runs(recipes(a=TWO["a"]), [1], words, tmp_path / "out")[0])
    assert module._inputs(folders[0]) != module._inputs(folders[1])


def test_labels_that_clash_are_refused_before_anything_runs(recipes, tmp_path, capsys):
    names = recipes(a={"losses": {"kd": {}}}, b={"losses": {"kd": {}}, "learning_rate": 1e-3})
    assert main(["compare", *names]) == 2
    assert "two recipes have the label 'kd'" in capsys.readouterr().err
    assert main(["compare", names[0], "--against", "KD"]) == 2
    assert "expected one of ['kd']" in capsys.readouterr().err


def test_the_best_undistilled_student_is_the_one_to_beat(recipes, tmp_path, capsys):
    names = recipes(a={**TWO["a"], "learning_rate": 1e-5}, b={**TWO["b"], "learning_rate": 1e-2})
    tables = []
    for order in (names, names[::-1]):
        assert main(["compare", *order, "--output_dir", "out"]) == 0
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| undistilled")])
    assert tables[0] == tables[1]
    scores = [Record.read(path).metrics["baseline"]["f1"] for path in (tmp_path / "out").rglob("record.json")]
    assert len({*scores}) == 2 and f"| {max(scores):.2f} |" in tables[0][0]


def test_the_undistilled_student_may_have_a_rate_of_its_own(recipes, tmp_path):
    names = recipes(a=TWO["a"], b={**TWO["b"], "baseline_training": {"learning_rate": 1e-2}})
    assert main(["compare", *names, "--output_dir", "out", "--seeds", "1"]) == 0
    assert len(list((tmp_path / "runs" / "shared").glob("undistilled-*"))) == 2
    assert main(["compare", *names, "--baseline_training", "{learning_rates: 1}"]) == 2


def test_best_checkpoints_are_chosen_alike(recipes, tmp_path):
    names = recipes(a={**TWO["a"], **BEST}, b={**TWO["b"], **BEST, "metric_for_best_model": "f1"})
    with pytest.raises(UserError, match=r"differ in metric_for_best_model \(loss and f1\)"):
        check_fair(plan_runs(names, [1], [], tmp_path / "out"))


def test_a_long_point_has_a_short_folder(recipes, tmp_path):
    (name, _) = recipes(**TWO)
    long = f"{name} --losses='{{itrd: {{beta_mi: 0, projection_init: identity}}}}'" + " --learning_rate=1e-4" * 15
    (run,) = plan_runs([long], [1], [], tmp_path / "out")
    (other,) = plan_runs([long.replace("1e-4", "2e-4")], [1], [], tmp_path / "out")
    folders = [each.record.parent.parent.name for each in (run, other)]
    assert folders[0] != folders[1] and max(map(len, folders)) < 100


def test_options_may_have_hyphens(recipes, tmp_path, capsys):
    (name, _) = recipes(**TWO)
    (run,) = plan_runs([f"{name} --learning-rate=3e-3"], [1], [], tmp_path / "out")
    assert run.run_args.label.endswith("learning_rate=3e-3") and run.training_args.learning_rate == 3e-3
    assert main(["compare", name, "--output-dir", "elsewhere", "--max-steps=1"]) == 0
    assert len([*(tmp_path / "elsewhere").rglob("record.json")]) == 1 and not (tmp_path / "runs" / "compare").exists()


def test_a_new_label_is_written_down(recipes, tmp_path):
    recipes(**TWO)
    for label in ("first", "second"):
        assert main(["compare", "a.yaml", "--output_dir", "out", "--label", label]) == 0
        (path,) = (tmp_path / "out").rglob("record.json")
        assert Record.read(path).label == label


def test_wrong_grids_and_recipes_are_one_line(recipes, tmp_path, capsys):
    names = recipes(**TWO)
    for axis in ("losses.itrd.alpha", "alpha=", "alpha=1,,2"):
        with pytest.raises(UserError, match="expected an argument and its values"):
            grid([axis])
    with pytest.raises(UserError, match="two recipes have the name 'a'"):
        plan_runs([*names, names[0]], [1], [], tmp_path)
    with pytest.raises(UserError, match="--seeds 0 0: expected each once"):
        plan_runs(names, [0, 0], [], tmp_path)
    with pytest.raises(UserError, match="No closing quotation"):
        plan_runs(["o'brien.yaml"], [0], [], tmp_path)
    assert main(["compare", "a.yml", "b.yaml"]) == 2
    assert "no such file or packaged recipe" in capsys.readouterr().err
    for words in ([*names, "--seed", "3"], [f"{names[0]} --seed=3"]):
        assert main(["compare", *words]) == 2
        assert "expected --seeds 0 1 2" in capsys.readouterr().err
    assert main(["sweep", "b.yaml", "--grid", "losses.itrd.alfa=1", "--output_dir", "out"]) == 2
    assert "did you mean 'alpha'" in capsys.readouterr().err
