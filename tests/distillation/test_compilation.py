"""Compiled layers train as the others do."""

import copy

import pytest
import torch
from transformers import TrainerCallback

import tiny
from itrd_nlp.distillation.compilation import compile_layers
from itrd_nlp.training import trainer as trainer_module
from training.test_trainer import trainer


def losses_of(folder, **changes):
    made = trainer(folder, max_steps=6, **changes)
    made.train()
    return [log["loss"] for log in made.state.log_history if "loss" in log], made


def test_compiled_layers_give_the_same_losses_at_every_length(tmp_path):
    calls = []

    class Compiled(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            calls.append(all("forward" in vars(layer) for layer in model.student.bert.encoder.layer))

    expected, _ = losses_of(tmp_path / "a")
    found, made = losses_of(
        tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager", callbacks=[Compiled()]
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert calls == [True] * 6 and not any("forward" in vars(layer) for layer in made.student.bert.encoder.layer)
    made.save_model(str(tmp_path / "student"))
    assert type(made.student).from_pretrained(tmp_path / "student").num_parameters() == made.student.num_parameters()


def test_data_without_columns_compiles_too(tmp_path, monkeypatch):
    options = {"torch_compile": True, "torch_compile_backend": "eager", "train_sampling_strategy": "random"}
    tried = []
    monkeypatch.setattr(trainer_module, "compile_layers", lambda *args: tried.append(compile_layers(*args)))
    losses_of(tmp_path, data=list(tiny.rows()), **options)
    assert tried == [True]


def test_a_copy_of_a_trained_student_has_layers_of_its_own(tmp_path):
    _, made = losses_of(tmp_path, torch_compile=True, torch_compile_backend="eager")
    student, batch = made.student.eval(), tiny.collate(list(tiny.rows(2)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    copied, before = copy.deepcopy(student), student(**inputs).start_logits
    torch.nn.init.normal_(copied.bert.encoder.layer[0].output.dense.weight)
    assert torch.equal(student(**inputs).start_logits, before)
    assert not torch.allclose(copied(**inputs).start_logits, before)


def test_where_nothing_compiles_training_goes_on_in_words(tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        def call(*args, **options):
            raise RuntimeError("no compiler here\nand a long trace")

        return call

    expected, _ = losses_of(tmp_path / "a")
    monkeypatch.setattr(torch, "compile", refuse)
    found, made = losses_of(tmp_path / "b", torch_compile=True)
    assert "[compile] not used: no compiler here and a long trace\n" in capsys.readouterr().err
    assert found == expected and not any("forward" in vars(layer) for layer in made.student.bert.encoder.layer)


def test_an_unknown_backend_leaves_the_model_as_it_was():
    model, batch = tiny.bert(layers=2).eval(), tiny.collate(list(tiny.rows(2)))
    assert not compile_layers(model, batch, "no-such-backend", None)
    assert not model.training and not any("forward" in vars(layer) for layer in model.bert.encoder.layer)


def test_compiling_twice_is_compiling_once():
    model, batch = tiny.bert(layers=1), tiny.collate(list(tiny.rows(2)))
    assert compile_layers(model, batch, "eager", None)
    compiled = model.bert.encoder.layer[0].forward
    assert compile_layers(model, batch, "eager", None) and model.bert.encoder.layer[0].forward is compiled
