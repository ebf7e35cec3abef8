"""The cache against the live teacher, and against what happens to files."""

import copy
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import BertForQuestionAnswering, TrainerCallback

import tiny
from forked import on_ranks
from itrd_nlp import student_from_teacher
from itrd_nlp.cli.main import main
from itrd_nlp.distillation import cache_folders, teacher_cache, teacher_outputs
from itrd_nlp.distillation import shards as shard_module
from itrd_nlp.distillation.cache_folders import entries
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.pooling import POOLINGS, Pooling
from itrd_nlp.distillation.stored_rows import size_of
from itrd_nlp.distillation.teacher_cache import TeacherCache
from itrd_nlp.distillation.teacher_outputs import NotCached, plan_teacher_cache, probe_indices
from itrd_nlp.distillation.teacher_source import Source
from itrd_nlp.losses.base import Representation
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import PAD_MULTIPLE
from training.test_trainer import trainer

TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


class Losses(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            other = ("grad_norm", "learning_rate", "epoch")
            self.seen.append({key: value for key, value in logs.items() if key not in other})


def train(folder, cache, **changes):
    losses = Losses()
    made = trainer(folder, callbacks=[losses], teacher_cache=str(cache), max_steps=-1, num_train_epochs=2, **changes)
    made.train()
    return made, losses.seen


def prepare(folder, cache, **changes):
    """A trainer that has decided about its cache and filled it, before it trains."""
    made = trainer(folder, teacher_cache=str(cache), max_steps=-1, num_train_epochs=2, **changes)
    made.get_train_dataloader()
    return made


def shards(folder):
    return sorted(folder.glob("*/*/*.safetensors"))


@pytest.mark.parametrize("head", ["qa", "classes"])
@pytest.mark.parametrize("pooling", [*POOLINGS, "tokens:4"])
def test_losses_are_those_of_the_live_teacher(tmp_path, head, pooling):
    live, expected = train(tmp_path / "a", "off", head=head, pooling=pooling)
    cached, found = train(tmp_path / "b", tmp_path / "c", head=head, pooling=pooling, teacher_cache_dtype="float32")
    assert live.teacher is not None and cached.teacher is None
    assert len(expected) == len(found) == 16
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("pooling", ["tokens", "tokens:4", "all_tokens"])
def test_texts_without_padding_need_no_attention_mask(tmp_path, pooling):
    """Their special tokens differ in number all the same."""
    data = tiny.rows(equal_length=True).remove_columns("attention_mask")
    masks = [[1] * (1 + i % 3) + [0] * (10 - i % 3) + [1] for i in range(len(data))]
    data = data.remove_columns("special_tokens_mask").add_column("special_tokens_mask", masks)
    _, expected = train(tmp_path / "a", "off", data=data, pooling=pooling)
    _, found = train(tmp_path / "b", tmp_path / "c", data=data, pooling=pooling, teacher_cache_dtype="float32")
    assert len(expected) == len(found) == 16
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def test_under_bf16_they_differ_by_its_rounding(tmp_path):
    _, expected = train(tmp_path / "a", "off", bf16=True)
    made, found = train(tmp_path / "b", tmp_path / "c", bf16=True)
    _, whole = train(tmp_path / "e", tmp_path / "f", bf16=False)
    assert made.teacher is None
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=2e-2, abs=2e-2)
    assert found != whole


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_read_is_what_the_teacher_says(tmp_path, dtype):
    made = trainer(tmp_path / "a", teacher_cache=str(tmp_path / "c"), teacher_cache_dtype=dtype, max_steps=8)
    places = [5, 63, 0, 17]
    live = made.ask_teacher(made.draw(places))
    made.get_train_dataloader()
    batch = made.draw(places)
    stored = made.ask_teacher(batch)
    assert set(stored.logits) == {"start_logits", "end_logits"} and len(stored.features) == 2
    for head, value in live.logits.items():
        torch.testing.assert_close(stored.logits[head], value, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for value, expected in zip(stored.features, live.features, strict=True):
        assert value.dtype == getattr(torch, dtype)
        torch.testing.assert_close(value.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def count_questions(monkeypatch):
    asked = []
    original = teacher_cache.TeacherCache.fill

    def fill(self, numbers, *args, **options):
        asked.append(list(numbers))
        return original(self, numbers, *args, **options)

    monkeypatch.setattr(teacher_cache.TeacherCache, "fill", fill)
    return asked


class Reversed(BertForQuestionAnswering):
    """A user's own teacher, with weights of a known one."""

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **labels):
        outputs = super().forward(input_ids, attention_mask, token_type_ids, **labels)
        outputs["start_logits"] = -outputs["start_logits"]
        return outputs


def test_a_class_of_the_users_own_has_outputs_of_its_own(tmp_path, monkeypatch):
    asked, teacher = count_questions(monkeypatch), tiny.bert()
    own = Reversed(teacher.config)
    own.load_state_dict(teacher.state_dict())
    students = [student_from_teacher(teacher, "even:2", verbose=False) for _ in range(2)]
    stored = []
    for i, (each, student) in enumerate(zip((teacher, own), students, strict=True)):
        made = prepare(tmp_path / f"{i}", tmp_path / "c", teacher=each, student=student, losses={"kd": {}})
        stored.append(made.ask_teacher(made.draw([0])).logits["start_logits"])
    assert asked == [[0], [0]]
    assert torch.equal(stored[0], -stored[1])


def test_seeds_and_recipes_share_it_and_other_questions_do_not(tmp_path, monkeypatch):
    asked, teacher = count_questions(monkeypatch), tiny.bert()
    options = {"teacher": teacher, "losses": {"itrd": {}, "kd": {}}}
    prepare(tmp_path / "a", tmp_path / "c", **options)
    prepare(tmp_path / "b", tmp_path / "c", seed=3, learning_rate=1e-4, **options)
    prepare(tmp_path / "e", tmp_path / "c", **{**options, "losses": {"kd": {}, "itrd": {"alpha": 2}}})
    assert asked == [[0]]
    other = tiny.bert(seed=1)
    changed = copy.deepcopy(teacher)
    changed.bert.encoder.layer[0].output.dense.bias.data[0] += 1e-3
    for i, change in enumerate(
        [
            {"teacher": other},
            {"teacher": changed, "student": student_from_teacher(teacher, "even:2", verbose=False)},
            {"data": tiny.rows(seed=4)},
            {"teacher_cache_dtype": "bfloat16"},
        ]
    ):
        prepare(tmp_path / str(i), tmp_path / "c", **{**options, **change})
    assert len(asked) == 5 and len(entries(tmp_path / "c")) == 5
    other = copy.deepcopy(teacher)  # the same weights with another number of heads
    other.config.num_attention_heads //= 2
    prepare(tmp_path / "heads", tmp_path / "c", **{**options, "teacher": other})
    assert len(entries(tmp_path / "c")) == 6


def test_runs_of_one_teacher_add_to_one_folder(tmp_path, monkeypatch):
    asked, teacher = count_questions(monkeypatch), tiny.bert()
    options = {"teacher": teacher, "losses": {"itrd": {}, "kd": {}}, "layer_map": [[2, 1], [4, 2]], "pooling": "tokens"}
    first = prepare(tmp_path / "a", tmp_path / "c", **options)
    assert asked == [[0]] and len(shards(tmp_path / "c")) == 4
    free = [{"layer_map": "last"}, {"losses": {"itrd": {}}}, {"losses": {"kd": {}}}, {"pooling": "all_tokens"}]
    for i, change in enumerate(free):
        prepare(tmp_path / f"free{i}", tmp_path / "c", **{**options, **change})
    assert len(asked) == 1
    added = [
        ({"pooling": "cls"}, 2),
        ({"layer_map": [[0, 0], [4, 2]]}, 1),
        ({"losses": {"minilmv2": {"relation_heads": 4}}}, 6),
    ]
    for i, (change, files) in enumerate(added):
        before = {path: path.stat().st_mtime_ns for path in shards(tmp_path / "c")}
        prepare(tmp_path / f"added{i}", tmp_path / "c", **{**options, **change})
        after = {path: path.stat().st_mtime_ns for path in shards(tmp_path / "c")}
        assert len(after) == len(before) + files and before.items() <= after.items()
    (folder,) = entries(tmp_path / "c")
    assert folder.folder == first.cache.folder and folder.announced == pytest.approx(folder.size, rel=0.3)


@pytest.mark.parametrize("pooling", ["tokens", "all_tokens"])
def test_layers_that_another_run_stored_are_read_as_one_own(tmp_path, pooling):
    changes = {"losses": {"itrd": {}, "kd": {}}, "pooling": pooling}
    _, expected = train(tmp_path / "a", tmp_path / "b", **changes)
    train(
        tmp_path / "d",
        tmp_path / "c",
        **{**changes, "pooling": {"tokens": "all_tokens", "all_tokens": "tokens"}[pooling]},
    )
    _, found = train(tmp_path / "e", tmp_path / "c", **changes)
    assert found == expected


def on_a_rank(folder):
    teacher_cache.SHARD_EXAMPLES = 10
    asked, original = [], TeacherCache.fill

    def fill(self, numbers, *args, **options):
        asked.extend(numbers)
        return original(self, numbers, *args, **options)

    TeacherCache.fill = fill
    _, live = train(f"{folder}/a", "off", per_device_train_batch_size=4)
    made, stored = train(f"{folder}/b", f"{folder}/c", per_device_train_batch_size=4)
    return [asked, live, stored, made.teacher is None]


def test_two_ranks_write_a_part_each_and_read_all(tmp_path):
    ranks = on_ranks(on_a_rank, tmp_path)
    assert [asked for asked, *_ in ranks] == [[0, 2, 4, 6], [1, 3, 5]] and len(shards(tmp_path / "c")) == 4 * 7
    for _, live, stored, alone in ranks:
        assert alone and len(live) == len(stored)
        for a, b in zip(live, stored, strict=True):
            assert a == pytest.approx(b, rel=5e-3, abs=5e-3)
    assert ranks[0][1]


@pytest.mark.promise("damaged on disk")
def test_a_killed_pass_goes_on_and_a_damaged_file_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_cache, "SHARD_EXAMPLES", 10)
    asked = count_questions(monkeypatch)
    _, expected = train(tmp_path / "a", tmp_path / "c")
    files = shards(tmp_path / "c")
    assert len(files) == 4 * 7  # two layers, two heads
    before = {path: path.read_bytes() for path in files}
    files[2].unlink()
    content = bytearray(before[files[4]])
    content[100] ^= 4  # in the header
    files[4].write_bytes(content)
    files[5].write_bytes(before[files[5]][:100])
    files[6].write_bytes(before[files[6]] + b"more")
    files[1].write_bytes(before[files[1]][:-1])
    files[0].write_bytes(bytes(len(before[files[0]])))
    capsys.readouterr()
    _, found = train(tmp_path / "b", tmp_path / "c")
    said = capsys.readouterr().err
    assert found == expected and asked == [list(range(7)), [0, 1, 2, 4, 5, 6]]
    assert all(f"{files[place]} is damaged" in said for place in (0, 1, 4, 5, 6))
    assert {path: path.read_bytes() for path in shards(tmp_path / "c")} == before


@pytest.mark.promise("damaged on disk")
@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_number_that_changed_is_found_by_the_doctor(tmp_path, capsys, place):
    made, _ = fill(tmp_path / "c", 1.0)
    (path,) = shards(tmp_path / "c")
    capsys.readouterr()
    main(["doctor", "--teacher_cache", str(tmp_path / "c"), "--output_dir", str(tmp_path)])
    assert "damaged" not in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)
    assert main(["doctor", "--teacher_cache", str(tmp_path / "c"), "--output_dir", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"FIX   {made.folder}" in said and path.name in said


class Counting:
    """A file that counts the bytes that are read of it."""

    def __init__(self, file, read):
        self.file, self.bytes = file, read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, size=-1):
        content = self.file.read(size)
        self.bytes.append(len(content))
        return content


def test_a_start_reads_headers_alone(tmp_path, monkeypatch):
    made, _ = fill(tmp_path / "c", 1.0, examples=4096)
    (path,) = shards(tmp_path / "c")
    read, original = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: Counting(original(self, *args, **kwargs), read))
    assert made.missing([0]) == {} and path.stat().st_size > 50_000 and 0 < sum(read) < 1000


def test_a_damaged_file_that_cannot_be_removed_is_never_used(tmp_path, monkeypatch):
    prepare(tmp_path / "a", tmp_path / "c")
    path = shards(tmp_path / "c")[0]
    path.write_bytes(b"")

    def refuse(self, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=f"{path} is damaged and cannot be removed .*Permission denied"):
        prepare(tmp_path / "b", tmp_path / "c")


def test_a_file_that_is_missing_in_the_data_is_no_fault_of_the_cache(tmp_path):
    made = TeacherCache(tmp_path, {}, {"layer@mean": 64}, 4, 4, torch.float16)
    made.prepare()

    def draw(places):
        raise FileNotFoundError("picture.png")

    with pytest.raises(FileNotFoundError, match="picture.png"):
        made.fill({0: ["layer@mean"]}, draw, None, READER, None, 100, show=False)


def test_a_relative_folder_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = trainer("a", teacher_cache="c", max_steps=8)
    made.get_train_dataloader()
    monkeypatch.chdir("/")
    assert made.cache.read([0]) and made.cache.folder.parent == tmp_path / "c"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = trainer(tmp_path / "b", teacher_cache="~/c", max_steps=8)
    made.get_train_dataloader()
    assert shards(tmp_path / "home" / "c")


def test_answers_of_an_earlier_version_are_named_and_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_cache, "VERSION", 1)
    made = prepare(tmp_path / "a", tmp_path / "c")
    monkeypatch.undo()
    asked = count_questions(monkeypatch)
    capsys.readouterr()
    prepare(tmp_path / "b", tmp_path / "c")
    assert capsys.readouterr().err.count(f"{made.cache.folder} was written by an earlier version and is not used") == 1
    prepare(tmp_path / "b", tmp_path / "c")
    assert asked == [[0]] and "earlier version" not in capsys.readouterr().err


def test_a_failed_pass_leaves_complete_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_EXAMPLES", 16)
    made = trainer(tmp_path / "a", teacher_cache=str(tmp_path / "c"), max_steps=8)
    ask, calls = made._run_teacher, []

    def dies(batch, **options):
        calls.append(1)
        if len(calls) > 6:  # the probe, and two or more batches for each of the 16
            raise KeyboardInterrupt
        return ask(batch, **options)

    made._run_teacher = dies
    with pytest.raises(KeyboardInterrupt):
        made.train()
    before = len(shards(tmp_path / "c")) // 4
    assert 0 < before < 4
    asked = count_questions(monkeypatch)
    prepare(tmp_path / "b", tmp_path / "c")
    assert len(asked[0]) == 4 - before and len(shards(tmp_path / "c")) == 4 * 4


def test_the_size_that_is_announced_is_what_is_written(tmp_path, capsys):
    made = trainer(tmp_path / "a", data=tiny.rows(1500), teacher_cache=str(tmp_path / "c"), max_steps=-1)
    made.get_train_dataloader()
    announced = float(capsys.readouterr().err.partition("[teacher cache] ")[2].partition(" MiB")[0]) * 2**20
    written = sum(path.stat().st_size for path in shards(tmp_path / "c"))
    assert announced == pytest.approx(written, rel=0.15)


@pytest.mark.parametrize(
    ("dataset", "word"),
    [
        (tiny.rows().with_transform(lambda rows: rows), "transformed when it is read"),
        (
            type("Rows", (TorchDataset,), {"__len__": lambda s: 64, "__getitem__": lambda s, i: tiny.rows()[i]})(),
            "Rows",
        ),
    ],
)
def test_data_that_may_change_keeps_the_teacher(tmp_path, capsys, dataset, word):
    made = trainer(tmp_path / "a", data=dataset, teacher_cache=str(tmp_path / "c"), train_sampling_strategy="random")
    made.get_train_dataloader()
    assert made.teacher is not None and word in capsys.readouterr().err


def test_random_collators_and_short_runs_keep_the_teacher(tmp_path, capsys):
    def noisy(rows):
        batch = tiny.collate(rows)
        return {**batch, "input_ids": torch.where(torch.rand(batch["input_ids"].shape) < 0.2, 7, batch["input_ids"])}

    def rarely(rows):
        batch = tiny.collate(rows)
        return {**batch, "input_ids": batch["input_ids"].flip(1) if torch.rand(()) < 0.3 else batch["input_ids"]}

    for seed, collator in enumerate([noisy, *[rarely] * 8]):
        made = trainer(tmp_path / "a", teacher_cache=str(tmp_path / "c"), max_steps=8)
        made.data_collator = collator
        torch.manual_seed(seed)
        made.get_train_dataloader()
        assert made.teacher is not None and "augmented at random" in capsys.readouterr().err
    made = trainer(tmp_path / "b", teacher_cache=str(tmp_path / "c"), max_steps=7)
    made.train()
    assert made.teacher is not None and "ends after 7 of an epoch's 8 batches" in capsys.readouterr().err
    made = trainer(tmp_path / "d", teacher_cache=str(tmp_path / "c"), max_steps=2, tokens_per_batch=160)
    made.train()
    assert made.teacher is not None and "ends after 2 of an epoch's " in capsys.readouterr().err
    made = trainer(tmp_path / "e", teacher_cache=str(tmp_path / "c"), accelerator_config={"dispatch_batches": True})
    made.get_train_dataloader()
    assert made.teacher is not None and "dispatch_batches" in capsys.readouterr().err
    assert not shards(tmp_path / "c")


def test_a_second_training_uses_a_cache_that_the_first_had_not(tmp_path):
    made = trainer(tmp_path / "a", teacher_cache=str(tmp_path / "c"), max_steps=7)
    made.train()
    made.args.max_steps = 16
    made.train()
    assert made.cache is not None and made.teacher is None and made.state.global_step == 16


def test_maps_are_not_cached(tmp_path):
    args = ITRDArguments(str(tmp_path), use_cpu=True, teacher_cache=str(tmp_path / "c"))
    extractor = SimpleNamespace(maps=["stage"])
    source = Source(None, extractor, tiny.rows(), args, None, None, lambda: 8, "no")
    with pytest.raises(NotCached, match="maps of an image classifier"):
        plan_teacher_cache(source)


def test_one_epoch_is_stored_only_where_a_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "c")
    for cache, stored in (("auto", False), (str(tmp_path / "d"), True)):
        made = trainer(tmp_path / "a", teacher_cache=cache, max_steps=-1, num_train_epochs=1)
        made.train()
        assert (made.teacher is None) == stored
        assert ("one epoch gains nothing from it" in capsys.readouterr().err) != stored


def test_a_short_run_reads_what_is_there(tmp_path):
    prepare(tmp_path / "a", tmp_path / "c")
    made = trainer(tmp_path / "b", teacher_cache=str(tmp_path / "c"), max_steps=2)
    made.train()
    assert made.teacher is None


def test_training_data_can_be_evaluated_after_training(tmp_path):
    made, _ = train(tmp_path / "a", tmp_path / "c")
    assert made.evaluate(made.train_dataset)["eval_loss"] > 0


def test_probes_are_spread_and_hold_the_longest():
    lengths = [5] * 1000
    lengths[321] = lengths[654] = 90
    places = probe_indices(1000, lengths)
    assert {0, 321, 654, 999} <= set(places) and len(places) <= 12 and places == sorted(set(places))
    assert probe_indices(3, None) == [0, 1, 2]


def test_each_batch_looks_up_neither_columns_nor_files(tmp_path, monkeypatch):
    """Both take time with the examples: the pass would take quadratic time."""
    calls = Counter()

    def counting(name, original):
        return lambda *args, **options: (calls.update([name]), original(*args, **options))[1]

    columns = ITRDTrainer._remove_unused_columns
    monkeypatch.setattr(ITRDTrainer, "_remove_unused_columns", counting("columns", columns))
    for module in (shard_module, teacher_cache):
        monkeypatch.setattr(module, "shard_files", counting("files", module.shard_files))
    monkeypatch.setattr(teacher_cache, "SHARD_EXAMPLES", 8)
    counts = []
    for examples in (24, 240):
        calls.clear()
        made = prepare(tmp_path / "a", tmp_path / "c", data=tiny.rows(examples))
        assert made.cache.count == examples / 8
        counts.append(dict(calls))
    assert counts[0] == counts[1] and counts[0]["columns"] < 5


def test_shards_that_another_run_writes_meanwhile_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_EXAMPLES", 8)
    monkeypatch.setattr(shard_module, "REFRESH", -1.0)
    fill(tmp_path / "other", 1.0)
    made, sizes = fill(tmp_path / "c", 1.0)
    for path in shards(tmp_path / "c")[1:]:
        path.unlink()
    sizes.clear()

    def draw(places):
        sizes.append(len(places))
        for path in shards(tmp_path / "other"):
            shutil.copy(path, made.folder / "layer@mean")
        return {"attention_mask": torch.ones(len(places), 1, dtype=torch.long)}

    def ask(batch):
        return Representation({}, (torch.ones(len(batch["attention_mask"]), 4),), batch["attention_mask"] > 0)

    made.fill({1: ["layer@mean"], 2: ["layer@mean"]}, draw, ask, READER, None, budget=8 * PAD_MULTIPLE, show=False)
    assert sizes == [8] and made.is_complete()


READER = FeatureExtractor(["layer"], (), Pooling())


def fill(folder, answer, examples=20, lengths=None):
    """A cache of ``examples``, filled eight at a time, and the sizes of the batches."""
    made = TeacherCache(folder, {}, {"layer@mean": examples * 16}, examples, examples, torch.float16)
    sizes = []

    def draw(places):
        sizes.append(len(places))
        return {"attention_mask": torch.ones(len(places), 1, dtype=torch.long)}

    def ask(batch):
        return Representation({}, (torch.full((len(batch["attention_mask"]), 4), answer),), batch["attention_mask"] > 0)

    made.prepare()
    made.fill(made.missing(range(made.count)), draw, ask, READER, lengths, budget=8 * PAD_MULTIPLE, show=False)
    return made, sizes


def test_examples_of_unknown_length_are_asked_about_together(tmp_path):
    assert fill(tmp_path / "a", 1.0)[1] == [8, 8, 4]
    assert fill(tmp_path / "b", 1.0, lengths=[2 * PAD_MULTIPLE] * 20)[1] == [4] * 5


def test_a_late_answer_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match="layer@mean does not fit torch.float16"):
        fill(tmp_path, 1e6)


def test_what_a_killed_pass_left_behind_goes_after_a_day(tmp_path):
    made, _ = fill(tmp_path, 1.0)
    old, new = [made.folder / "layer@mean" / f"000000.{name}.tmp" for name in "ab"]
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    made.prepare()
    assert new.exists() and not old.exists() and made.is_complete()
    assert {path.stat().st_mode for path in shards(tmp_path)} == {(made.folder / "key.json").stat().st_mode}


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="MiB left; name a folder elsewhere, or --teacher_cache off$"):
        prepare(tmp_path / "a", tmp_path / "c")
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "c")
    made = prepare(tmp_path / "b", "auto")
    assert made.teacher is not None and "MiB left" in capsys.readouterr().err and not shards(tmp_path / "c")
    monkeypatch.undo()
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "c")
    monkeypatch.setattr(teacher_outputs, "AUTO_LIMIT", 1000)
    made = prepare(tmp_path / "d", "auto")
    assert made.teacher is not None and "--teacher_cache FOLDER would write it" in capsys.readouterr().err


def test_numbers_too_large_for_the_precision_are_refused(tmp_path):
    teacher = tiny.bert()
    teacher.qa_outputs.bias.data += 1e5
    with pytest.raises(UserError, match="start_logits does not fit torch.float16.*teacher_cache_dtype float32"):
        prepare(tmp_path / "a", tmp_path / "c", teacher=teacher)
    prepare(tmp_path / "a", tmp_path / "c", teacher=teacher, teacher_cache_dtype="float32")


def overflow(made):
    """Let a teacher's logits overflow float16 in the pass that fills the cache, after the probe."""
    run, calls = made._run_teacher, []

    def overflows(batch, to_store=False):
        calls.append(to_store)
        outputs = run(batch, to_store)
        grown = {head: 1e9 * value for head, value in outputs.logits.items()}
        return outputs._replace(logits=grown) if to_store and len(calls) > 1 else outputs

    made._run_teacher = overflows


def test_files_that_another_machine_keeps_to_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TeacherCache, "is_complete", lambda cache: False)
    with pytest.raises(UserError, match="does not see all files that were written; expected a folder that all"):
        prepare(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "c")
    made = prepare(tmp_path / "d", "auto")
    assert made.cache is None and made.teacher is not None
    assert "machines do not share a folder" in capsys.readouterr().err


def test_a_value_that_does_not_fit_after_the_probe_leaves_auto_with_the_live_teacher(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "c")
    _, expected = train(tmp_path / "live", "off")
    losses = Losses()
    options = {"max_steps": -1, "num_train_epochs": 2}
    made = trainer(tmp_path / "a", callbacks=[losses], teacher_cache="auto", **options)
    overflow(made)
    made.train()
    assert made.teacher is not None and made.cache is None and losses.seen == expected
    said = capsys.readouterr().err
    assert "not used, the teacher runs on each batch: the teacher's " in said and "does not fit" in said
    assert cache_folders.clear(tmp_path / "c")[1] == []  # none is locked
    named = trainer(tmp_path / "b", teacher_cache=str(tmp_path / "d"), **options)
    overflow(named)
    words = "^teacher_cache .*logits does not fit torch.float16; .* float32 would store it; name a folder elsewhere"
    with pytest.raises(UserError, match=words):
        named.train()


def overflow_on_a_rank(folder):
    teacher_cache.SHARD_EXAMPLES = 10
    teacher_outputs.AUTO_FOLDER = Path(folder, "c")
    options = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    made = trainer(f"{folder}/a", teacher_cache="auto", **options)
    if made.args.process_index == 1:
        overflow(made)
    made.train()
    return [made.cache is None and made.teacher is not None, made.state.global_step]


def test_a_value_that_does_not_fit_on_one_rank_leaves_all_with_the_live_teacher(tmp_path):
    assert on_ranks(overflow_on_a_rank, tmp_path) == [[True, 16]] * 2


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        prepare(tmp_path / "a", tmp_path / "file")


def test_workers_map_the_files_themselves(tmp_path):
    made, _ = train(tmp_path / "a", tmp_path / "c")
    made.cache.read([0])
    assert len(pickle.dumps(made.cache)) < 2000
    again = pickle.loads(pickle.dumps(made.cache)).read([3, 9])
    for key, value in made.cache.read([3, 9]).items():
        torch.testing.assert_close(again[key], value)
    _, expected = train(tmp_path / "b", tmp_path / "c")
    _, found = train(tmp_path / "d", tmp_path / "c", dataloader_num_workers=2)
    assert found == expected


def test_size_is_an_upper_bound_for_sampled_tokens():
    probes = [
        {"layer@tokens-4": torch.zeros(rows, 8), "start_logits": torch.zeros(tokens)}
        for rows, tokens in ((2, 2), (4, 9))
    ]
    extractor = FeatureExtractor(["layer"], (), Pooling("tokens:4"))
    sizes = size_of(probes, 3, [2, 9, 30], extractor, 2)
    assert sizes == {"layer@tokens-4": (2 + 4 + 4) * 8 * 2 + 3 * 8, "start_logits": (2 + 9 + 30) * 2 + 3 * 8}
