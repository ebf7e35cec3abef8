"""One teacher pass for several trainings: what is shared, what is not, and that nothing else changes."""

import pytest

from experiments.test_compare import TWO, recipes  # noqa: F401  (a fixture)
from itrd_nlp.distillation.teacher_cache import TeacherCache
from itrd_nlp.experiments.compare import compare, plan_runs
from itrd_nlp.experiments.teacher_pass import cache_for_all
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import read_json

TOKENS = {"losses": {"itrd": {}}, "pooling": "tokens", "label": "tokens"}
ALL = {"losses": {"cosine": {}, "kd": {}}, "pooling": "all_tokens", "layer_map": [[1, 1]], "label": "all"}
WHOLE = ["--num_train_epochs", "2", "--max_steps", "-1", "--max_train_samples", "16"]


@pytest.fixture
def passes(monkeypatch):
    """The outputs of each pass of a teacher, as they come."""
    passes, fill = [], TeacherCache.fill

    def counted(self, missing, *args, **kwargs):
        passes.append({name for outputs in missing.values() for name in outputs})
        return fill(self, missing, *args, **kwargs)

    monkeypatch.setattr(TeacherCache, "fill", counted)
    return passes


def scores_of(records):
    return [(record.label, record.examples["student"]) for record in records]


def test_one_pass_serves_logits_and_layers_of_any_map(recipes, tmp_path, passes):  # noqa: F811
    names = recipes(kd=TWO["a"], tokens=TOKENS, all=ALL)
    runs = plan_runs(names, [1, 2], [*WHOLE, "--teacher_cache", str(tmp_path / "cache")], tmp_path / "out")
    records = compare(runs)
    (outputs,) = passes
    assert {name.partition("@")[2] for name in outputs} == {"", "all_tokens"}  # logits of both heads, and layers
    assert all(record.stored_teacher for record in records)

    passes.clear()
    alone = []
    for run in plan_runs(names, [1, 2], [*WHOLE, "--teacher_cache", str(tmp_path / "other")], tmp_path / "apart"):
        alone += compare([run])
    assert len(passes) == 3 and scores_of(alone) == scores_of(records)


def test_another_pooling_takes_a_pass_of_its_own(recipes, tmp_path, passes):  # noqa: F811
    names = recipes(tokens=TOKENS, all=ALL, mean=TWO["b"])
    compare(plan_runs(names, [1], [*WHOLE, "--teacher_cache", str(tmp_path / "cache")], tmp_path / "out"))
    assert [{name.partition("@")[2] for name in outputs} for outputs in passes] == [{"", "all_tokens"}, {"mean"}]


def test_each_precision_has_a_pass_of_its_own(recipes, tmp_path, passes):  # noqa: F811
    """Two trainings of each; the trainers of all are built before the first pass."""
    names = recipes(a=TWO["a"], b=TWO["b"])
    points = [f"{name} --bf16={bf16}" for bf16 in ("true", "false") for name in names]
    words = [*WHOLE, "--pooling=mean", "--teacher_cache", str(tmp_path / "cache")]
    runs = plan_runs(points, [1], words, tmp_path / "out")
    cache_for_all([run[1:] for run in runs])
    keys = [read_json(path) for path in (tmp_path / "cache").glob("*/key.json")]
    assert sorted(key["computed in"] for key in keys) == ["bf16", "no"] and len(passes) == 2


def test_short_trainings_share_what_none_of_them_would_cache(recipes, tmp_path, passes):  # noqa: F811
    words = ["--max_steps", "2", "--teacher_cache", str(tmp_path / "cache")]
    short = ["--per_device_train_batch_size", "5", "--max_train_samples", "20"]
    runs = plan_runs(recipes(tokens=TOKENS, all=ALL, kd=TWO["a"]), [1], [*words, *short], tmp_path / "out")
    assert [record.stored_teacher for record in compare(runs)] == [True] * 3 and len(passes) == 1


def test_a_mistake_in_the_last_recipe_is_reported_before_the_first_trains(recipes, tmp_path):  # noqa: F811
    wrong = {"losses": {"cosine": {}}, "layer_map": [[9, 1]], "label": "wrong"}
    runs = plan_runs(recipes(kd=TWO["a"], wrong=wrong), [1], [], tmp_path / "out")
    with pytest.raises(UserError, match="layer_map"):
        compare(runs)
    assert not [*tmp_path.rglob("model.safetensors")]  # neither a student nor the teacher


def test_what_is_not_cached_makes_no_pass(recipes, tmp_path, passes):  # noqa: F811
    fine_tuned = {"losses": {}, "label": "gold labels"}
    names = recipes(a={**TWO["a"], "teacher_cache": "off"}, b={**TOKENS, "teacher_cache": "off"}, c=fine_tuned)
    cache_for_all([run[1:] for run in plan_runs(names, [1], WHOLE, tmp_path / "out")])
    assert passes == []
