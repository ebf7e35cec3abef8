"""Every method inside the trainer: cached teacher outputs, resuming with its memory bank, two ranks."""

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import (
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    ElectraConfig,
    ElectraForQuestionAnswering,
    MPNetConfig,
    MPNetForQuestionAnswering,
    RoFormerConfig,
    RoFormerForQuestionAnswering,
)

import tiny
from distillation.test_teacher_cache import train
from forked import on_ranks
from itrd_nlp import ITRDTrainer
from itrd_nlp.losses import LOSSES
from itrd_nlp.losses.memory_bank import MemoryBank
from itrd_nlp.utils.errors import UserError
from training.test_trainer import digest, dropping, trainer, weights

SMALL = {"dim": 8, "negatives": 32}
METHODS = {
    "kd": {"losses": {"kd": {}}},
    "distilbert": {
        "losses": {"kd": {"temperature": 2, "weight": 0.5}, "cosine": {}},
        "task_weight": 0.5,
        "layer_map": "last",
        "pooling": "all_tokens",
    },
    "textbrewer": {
        "losses": {"textbrewer": {}, "kd": {"t_squared": False, "weight": 2}},
        "task_weight": 0,
        "layer_map": [[0, 0], [2, 1], [4, 2]],
        "pooling": "all_tokens",
    },
    "crd": {"losses": {"crd": SMALL}, "layer_map": "last"},
    "crd + kd": {"losses": {"crd": SMALL, "kd": {}}, "layer_map": "last", "pooling": "cls"},
    "wcord": {"losses": {"wcord": SMALL}, "layer_map": "last"},
    "minilmv2": {"losses": {"minilmv2": {"relation_heads": 4}}, "layer_map": [[3, 2]], "task_weight": 0},
    "srd": {"losses": {"srd": {}, "kd": {}}, "pooling": "tokens"},
    "vkd": {"losses": {"vkd": {}}, "pooling": "tokens"},
    "itrd + minilmv2": {"losses": {"itrd": {}, "minilmv2": {"relation_heads": 4}}, "pooling": "tokens:3"},
}


def test_every_loss_is_among_the_methods():
    elsewhere = {"reviewkd", "listwise", "margin_mse"}  # of images, of rerankers
    assert {name for method in METHODS.values() for name in method["losses"]} == {*LOSSES} - elsewhere


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_alike_with_stored_answers(tmp_path, method):
    live, expected = train(tmp_path / "a", "off", **METHODS[method])
    cached, found = train(tmp_path / "b", tmp_path / "c", teacher_cache_dtype="float32", **METHODS[method])
    assert live.teacher is not None and cached.teacher is None
    assert len(expected) == len(found) == 16
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
        assert a["loss"] == pytest.approx(sum(value for key, value in a.items() if key != "loss"), rel=1e-4)


@pytest.mark.parametrize("method", ["crd + kd", "wcord", "vkd"])
def test_resuming_is_bit_equal_with_its_state(tmp_path, method):
    options = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None, **METHODS[method]}
    whole = trainer(tmp_path, teacher=dropping(), **options)
    start = {name: bank.student.clone() for name, bank in banks(whole)}
    whole.train()
    resumed = trainer(tmp_path, teacher=dropping(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    expected = weights(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())
    assert all(not torch.equal(bank.student, start[name]) for name, bank in banks(resumed))
    assert len(start) == (method != "vkd")


def banks(made: ITRDTrainer):
    return [(name, m) for name, m in made.model.named_modules() if isinstance(m, MemoryBank)]


def on_a_rank(folder, method):
    students = {"teacher": tiny.bert(width=48), "student": tiny.bert(layers=2, seed=3)}
    steps = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 4}
    made = trainer(folder, **students, **steps, **METHODS[method])
    before = weights(made)
    made.train()
    after = weights(made)
    still = sorted(key for key, value in after.items() if torch.equal(before[key], value))
    written = [key for key in after if key.endswith(("banks.0.student", "banks.0.teacher"))]
    rows = [int((before[key] == after[key]).all(1).sum()) for key in written]
    return [made.args.world_size, digest(made), still, rows]


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("textbrewer", "srd", "vkd")]


@pytest.mark.parametrize("method", ["crd + kd", "wcord", "minilmv2", *SLOW])
def test_two_ranks_stay_equal_and_share_their_memory(tmp_path, method):
    ranks = on_ranks(on_a_rank, tmp_path, method)
    assert ranks[0] == ranks[1] and ranks[0][0] == 2
    head = {"minilmv2": "student.qa_outputs."}.get(method, "nothing")  # which no loss reads there
    constant = ".parametrizations.weight.0.base"  # of torch's orthogonal maps
    still = [name for name in ranks[0][2] if not (name.startswith(head) or name.endswith(constant))]
    assert all("layer.1." in name for name in still), still
    assert ranks[0][3] == ([0, 0] if method in ("crd + kd", "wcord") else [])  # every example of both ranks is written


def test_relations_are_found_in_other_encoders(tmp_path):
    small = {"vocab_size": tiny.VOCABULARY, "max_position_embeddings": 64}
    distil = DistilBertForQuestionAnswering(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **small))
    electra = ElectraForQuestionAnswering(
        ElectraConfig(hidden_size=32, embedding_size=32, num_hidden_layers=3, num_attention_heads=4, **small)
    )
    mpnet = MPNetForQuestionAnswering(
        MPNetConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **small)
    )
    for student in (distil, electra, mpnet):
        made = trainer(tmp_path, student=student, losses={"minilmv2": {"relation_heads": 8}}, layer_map="last")
        made.train()
        assert made.state.log_history[-2]["minilmv2/values"] > 0


def test_layers_without_attention_are_refused(tmp_path):
    options = {"losses": {"minilmv2": {"relation_heads": 4}}}
    with pytest.raises(UserError, match="layer 0, the embedding output, which has no attention"):
        trainer(tmp_path, layer_map=[[0, 1]], **options)
    teacher = tiny.bert()
    for layer in teacher.bert.encoder.layer:
        layer.attention.self.key = torch.nn.Sequential(layer.attention.self.key)
    with pytest.raises(UserError, match="no separate projections"):
        trainer(tmp_path, teacher=teacher, student=tiny.bert(layers=2), layer_map="last", **options)


class Listed(TorchDataset):
    def __init__(self):
        self.rows = list(tiny.rows())

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def test_negatives_are_of_other_classes_where_examples_have_one(tmp_path):
    data = tiny.rows(12, "classes")
    bank = trainer(tmp_path, data=data, head="classes", losses={"crd": SMALL}).distiller.losses["crd"].banks[0]
    labels = torch.tensor(data["labels"])
    others = bank._others(torch.arange(12))
    assert {*labels.tolist()} == {0, 1} and (labels[others] != labels[:, None]).all()
    bank = trainer(tmp_path, losses={"crd": SMALL}).distiller.losses["crd"].banks[0]  # of answers
    assert bank.alike.eq(1).all()


def test_a_regression_with_several_targets_compares_scores(tmp_path):
    models = [tiny.bert("classes", layers=layers, num_labels=3, problem_type="regression") for layers in (4, 2)]
    data = tiny.rows(head="classes", labels=False)
    options = {"losses": {"kd": {}}, "task_weight": 0}
    assert trainer(tmp_path, *models, data=data, **options).distiller.losses["kd"].scores


def test_a_memory_bank_needs_data_that_can_be_numbered(tmp_path):
    with pytest.raises(UserError, match="expected a datasets.Dataset"):
        trainer(tmp_path, data=Listed(), losses={"crd": SMALL})


def test_transformed_data_cannot_be_numbered_either(tmp_path):
    data = tiny.rows()
    data.set_transform(lambda rows: rows)
    with pytest.raises(UserError, match="expected a datasets.Dataset"):
        trainer(tmp_path, data=data, losses={"crd": SMALL})


def test_batches_too_small_for_statistics_are_refused(tmp_path):
    for losses in ({"srd": {}}, {"itrd": {}}):
        with pytest.raises(UserError, match="statistics need at least 2 samples"):
            trainer(tmp_path, losses=losses, per_device_train_batch_size=1)


def test_a_rate_of_their_own_for_the_losses_parameters(tmp_path):
    made = trainer(tmp_path, projector_learning_rate=0.5, learning_rate=1e-6, weight_decay=0.1, max_steps=1)
    before = weights(made)
    made.train()
    moved = {key: (value - before[key]).abs().max() for key, value in weights(made).items()}
    assert all(value > 0.1 for key, value in moved.items() if key.endswith("projectors.0.weight"))
    assert all(value < 1e-5 for key, value in moved.items() if key.startswith("student."))
    rates = {group["initial_lr"] for group in made.optimizer.param_groups}
    assert rates == {0.5, 1e-6}
    with pytest.raises(UserError, match="projector_learning_rate is 0"):
        trainer(tmp_path, projector_learning_rate=0.0)


def test_the_student_s_attention_can_be_chosen(tmp_path):
    made = trainer(tmp_path, attn_implementation="eager")
    assert made.student.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="attn_implementation 'quick'"):
        trainer(tmp_path, attn_implementation="quick")
    small = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "embedding_size": 32, "intermediate_size": 32}
    config = RoFormerConfig(num_hidden_layers=2, num_attention_heads=2, **small)
    with pytest.raises(UserError, match="RoFormerForQuestionAnswering cannot use it.*one way only"):
        trainer(tmp_path, student=RoFormerForQuestionAnswering(config), attn_implementation="sdpa")
