"""Only a complete checkpoint is resumed from."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_callback import ExportableState

import tiny
from itrd_nlp.experiments.finished import read_finished
from itrd_nlp.training.checkpoint import MARKER, last_checkpoint, load_distiller, mark_complete, why_incomplete
from itrd_nlp.training.checkpoint_trainer import rotate
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import write_json
from training.test_trainer import trainer, weights


def made(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}" / "inner").mkdir(parents=True)
        for name in ("model.safetensors", "inner/optimizer.pt"):
            (folder / f"checkpoint-{step}" / name).write_text(f"{name} {step}")
        mark_complete(folder / f"checkpoint-{step}")


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.promise("damaged on disk")
@pytest.mark.parametrize("change", [cut, lambda path: path.unlink()], ids=["cut", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "inner/optimizer.pt", MARKER])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(tmp_path, capsys, name, change):
    made(tmp_path, 9, 10)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    change(tmp_path / "checkpoint-10" / name)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    told = capsys.readouterr().err
    assert "checkpoint-10 is passed over: " in told and name in told


def test_none_is_none(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None


OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


class Counted(TrainerCallback, ExportableState):
    """A callback with a state, as EarlyStoppingCallback has it."""

    def state(self):
        return {"args": {}, "attributes": {}}


def test_a_resumed_run_may_have_one_more_callback(tmp_path):
    trainer(tmp_path, **{**OPTIONS, "max_steps": 4}).train()
    again = trainer(tmp_path, callbacks=[Counted()], **OPTIONS)
    again.train(resume_from_checkpoint=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    assert "Counted" in again.state.stateful_callbacks


def test_the_trainer_resumes_from_the_last_whole_one(tmp_path, capsys):
    whole = trainer(tmp_path, **OPTIONS)
    whole.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    assert all(why_incomplete(path) is None for path in tmp_path.glob("checkpoint-*"))
    cut(tmp_path / "checkpoint-6" / "optimizer.pt")
    again = trainer(tmp_path, **OPTIONS)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is passed over: optimizer.pt has " in capsys.readouterr().err
    assert all((value == weights(again)[key]).all() for key, value in weights(whole).items())
    assert why_incomplete(tmp_path / "checkpoint-6") is None


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_training_reads_its_teacher_as_before(tmp_path, capsys, monkeypatch, cached):
    """Another training may have cached the teacher's outputs meanwhile, or they may be gone: they are rounded."""
    options, cache = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}, str(tmp_path / "cache")
    first = trainer(tmp_path / "a", teacher_cache=cache if cached else "off", **options)
    first.train()
    trainer(tmp_path / "b", teacher_cache=cache, **options).train()  # fills it
    again = trainer(tmp_path / "a", teacher_cache=cache, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert ("not used, as before the checkpoint" in capsys.readouterr().err) != cached
    assert all((value == weights(again)[key]).all() for key, value in weights(first).items())
    monkeypatch.setattr("itrd_nlp.training.trainer.cache_teacher_outputs", lambda source: None)
    again = trainer(tmp_path / "a", teacher_cache=cache, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert ("used before the checkpoint but not now: the result may differ" in capsys.readouterr().err) == cached


def test_one_of_an_abandoned_future_does_not_outlive_a_new_one(tmp_path):
    trainer(tmp_path, save_total_limit=1, **{**OPTIONS, "max_steps": 2}).train()
    (tmp_path / "checkpoint-9").mkdir()  # killed while it was written
    trainer(tmp_path, save_total_limit=1, **{**OPTIONS, "max_steps": 4}).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_the_last_training_s_is_resumed_not_the_longest(tmp_path):
    trainer(tmp_path, **{**OPTIONS, "max_steps": 6}).train()
    shorter = trainer(tmp_path, learning_rate=1e-4, **{**OPTIONS, "max_steps": 2})
    shorter.train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    trainer(tmp_path, learning_rate=1e-4, **{**OPTIONS, "max_steps": 4}).train(resume_from_checkpoint=True)
    os.utime(tmp_path / "checkpoint-2" / MARKER)  # as a copy may leave it
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_one_that_is_written_again_is_incomplete_until_it_is_whole(tmp_path, monkeypatch):
    trainer(tmp_path, **{**OPTIONS, "max_steps": 2}).train()
    assert why_incomplete(tmp_path / "checkpoint-2") is None
    monkeypatch.setattr(Trainer, "_save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, learning_rate=1e-4, **{**OPTIONS, "max_steps": 2}).train()
    assert "never finished" in why_incomplete(tmp_path / "checkpoint-2")


def test_the_best_one_is_found_in_a_folder_that_was_moved(tmp_path):
    scores = iter([0.9, 0.1])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "eval_strategy": "steps", "eval_steps": 2}
    data = {"eval_dataset": tiny.rows(8), "compute_metrics": lambda _: {"f1": next(scores)}}
    trainer(tmp_path / "a", **data, **best, **{**OPTIONS, "max_steps": 4}).train()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = trainer(tmp_path / "b", **data, **best, **{**OPTIONS, "max_steps": 4})
    moved.train(resume_from_checkpoint=True)  # which saves nothing any more
    assert moved.state.best_model_checkpoint == str(tmp_path / "b" / "checkpoint-2")


def test_a_damaged_one_that_is_asked_for_is_refused(tmp_path):
    trainer(tmp_path, **OPTIONS).train()
    cut(tmp_path / "checkpoint-6" / "model.safetensors")
    with pytest.raises(UserError, match="cannot be resumed from: model.safetensors has "):
        trainer(tmp_path, **OPTIONS).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for path in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="no complete checkpoint"):
        trainer(tmp_path, **OPTIONS).train(resume_from_checkpoint=True)


def test_one_of_another_trainer_is_taken_with_a_warning(tmp_path, capsys):
    whole = trainer(tmp_path, **OPTIONS)
    whole.train()
    (tmp_path / "checkpoint-4" / MARKER).unlink()
    again = trainer(tmp_path, **OPTIONS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert f"checkpoint-4 has no {MARKER}: it may be incomplete" in capsys.readouterr().err
    assert all((value == weights(again)[key]).all() for key, value in weights(whole).items())


def test_the_best_one_is_checked_before_it_is_loaded(tmp_path, monkeypatch):
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    made = trainer(tmp_path, eval_dataset=tiny.rows(8), **OPTIONS, **best)
    evaluate = made._load_best_model

    def damaged():
        cut(Path(made.state.best_model_checkpoint) / "model.safetensors")
        evaluate()

    monkeypatch.setattr(made, "_load_best_model", damaged)
    with pytest.raises(
        UserError, match="model.safetensors has [0-9]+ bytes, [0-9]+ were written; take another checkpoint"
    ):
        made.train()


class OwnConfig(PretrainedConfig):
    """Of a model that transformers does not know."""

    model_type = "own"

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width


class OwnClassifier(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(tiny.VOCABULARY, config.width)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask, labels=None):
        mask = attention_mask[..., None]
        logits = self.classifier((self.embed_tokens(input_ids) * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def trainer_of_own_model(folder, **changes):
    torch.manual_seed(0)
    student = OwnClassifier(OwnConfig(width=12))
    return trainer(folder, student=student, **{**OPTIONS, "head": "classes", "losses": {"kd": {}}, **changes})


def test_a_model_of_the_users_own_class_is_resumed(tmp_path):
    whole = trainer_of_own_model(tmp_path)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = trainer_of_own_model(tmp_path)
    assert again.train(resume_from_checkpoint=True).global_step == 6
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(whole).items())


def test_the_best_checkpoint_of_the_users_own_class_is_loaded(tmp_path):
    scores = iter([0.1, 0.9, 0.2])
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "f1"}
    data = {"eval_dataset": tiny.rows(8, head="classes"), "compute_metrics": lambda _: {"f1": next(scores)}}
    ours = trainer_of_own_model(tmp_path, **data, **best)
    ours.train()
    expected = OwnClassifier.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.student.state_dict().items())
    latest = OwnClassifier.from_pretrained(tmp_path / "checkpoint-6").state_dict()
    assert not torch.equal(latest["classifier.weight"], expected["classifier.weight"])


def test_a_damaged_config_of_the_users_own_class_is_told_in_one_line(tmp_path):
    ours = trainer_of_own_model(tmp_path, max_steps=1)
    ours.save_model()
    cut(tmp_path / "config.json")
    with pytest.raises(UserError, match=f"no model in '{tmp_path}'") as error:
        load_distiller(ours.distiller, tmp_path)
    assert "\n" not in str(error.value)


def test_the_best_one_stays_however_its_folder_is_spelt(tmp_path, monkeypatch):
    made(tmp_path, 1, 2, 3)
    monkeypatch.chdir(tmp_path)
    rotate(tmp_path, 2, {tmp_path / "checkpoint-3", Path("checkpoint-1")})
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


def test_a_folder_that_is_not_there_and_other_losses_are_told_in_one_line(tmp_path):
    trainer(tmp_path / "a", **{**OPTIONS, "max_steps": 2}, losses={"itrd": {}}).train()
    with pytest.raises(UserError, match="no such folder; expected a checkpoint"):
        trainer(tmp_path / "a", **OPTIONS).train(resume_from_checkpoint=str(tmp_path / "gone"))
    other = trainer(tmp_path / "b", **OPTIONS, losses={"crd": {}})
    with pytest.raises(UserError, match="itrd_state.safetensors is of other losses"):
        load_distiller(other.distiller, tmp_path / "a" / "checkpoint-2")


def test_older_ones_stay_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def killed(checkpoint):
        raise KeyboardInterrupt

    trainer(tmp_path, save_total_limit=1, **{**OPTIONS, "max_steps": 2}).train()
    monkeypatch.setattr("itrd_nlp.training.checkpoint_trainer.mark_complete", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, save_total_limit=1, **OPTIONS).train(resume_from_checkpoint=True)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] .\nunexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(UserError, match="checkpoint-2 could not be written .*make room") as error:
        trainer(tmp_path, **OPTIONS).train()
    assert "\n" not in str(error.value)


def test_another_failure_is_not_told_as_a_full_disk(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("torch.save", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        trainer(tmp_path, **OPTIONS).train()


def test_those_who_may_read_a_model_s_config_may_read_its_weights(tmp_path):
    before = os.umask(0o027)
    try:
        trainer(tmp_path, max_steps=1).save_model()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
    assert {"model.safetensors", "itrd_state.safetensors", "config.json"} <= {*modes} and {*modes.values()} == {0o640}


def test_results_of_another_user_that_cannot_be_read_are_told_in_one_line(tmp_path, monkeypatch):
    write_json(tmp_path / "finished.json", {"files": {"model.safetensors": "0"}})
    (tmp_path / "model.safetensors").write_text("")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("itrd_nlp.utils.hashing.file_digest", refuse)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read .*Permission denied"):
        read_finished(tmp_path, "")
