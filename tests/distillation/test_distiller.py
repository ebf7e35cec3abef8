"""How models are matched, read and stopped early."""

import pytest
import torch
from transformers import BertForTokenClassification

import tiny
from itrd_nlp.distillation.distiller import build_distiller
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.utils.errors import UserError
from training.test_trainer import trainer


def layers_run(model, call):
    """Indices of the encoder's layers that ran, and whether the head did."""
    seen, handles = [], []
    for i, layer in enumerate(model.bert.encoder.layer):
        handles.append(layer.register_forward_pre_hook(lambda *_, i=i: seen.append(i)))
    handles.append(model.qa_outputs.register_forward_pre_hook(lambda *_: seen.append("head")))
    call()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    "losses,layer_map,ran",
    [
        ({"itrd": {}}, [[1, 1], [2, 2]], [0, 1]),
        ({"itrd": {}}, [[0, 1], [3, 2]], [0, 1, 2]),
        ({"itrd": {}, "kd": {}}, [[1, 1], [2, 2]], [0, 1, 2, 3, "head"]),
        ({"kd": {}}, "even", [0, 1, 2, 3, "head"]),
    ],
)
def test_a_teacher_stops_after_its_last_matched_layer_where_no_loss_reads_logits(tmp_path, losses, layer_map, ran):
    made = trainer(tmp_path, losses=losses, layer_map=layer_map)
    batch = made.draw(range(4))
    answers = []
    assert layers_run(made.teacher, lambda: answers.append(made.ask_teacher(batch))) == ran
    (answer,) = answers
    assert len(answer.features) == (2 if "itrd" in losses else 0) and bool(answer.logits) == ("head" in ran)


def test_stopping_changes_no_feature():
    model, batch = tiny.bert().eval(), tiny.collate(list(tiny.rows(4)))
    modules = ["bert.encoder.layer.0", "bert.encoder.layer.2"]
    with torch.no_grad():
        outputs, whole = FeatureExtractor(modules, ("start_logits", "end_logits"), Pooling())(model, batch)
        nothing, stopped = FeatureExtractor(modules, (), Pooling(), stop=True)(model, batch)
    assert outputs is not None and nothing is None and not stopped.logits
    assert all(torch.equal(a, b) for a, b in zip(whole.features, stopped.features, strict=True))


def test_classes_in_another_order_than_the_teachers_are_refused(tmp_path):
    names = [{0: "good", 1: "bad"}, {0: "bad", 1: "good"}]
    teacher, student, alike = (tiny.bert("classes", layers=2, id2label=each) for each in (*names, names[0]))
    options = {"teacher": teacher, "data": tiny.rows(16, "classes"), "losses": {"kd": {}}}
    with pytest.raises(UserError, match="class 0 is 'bad' in the student, 'good' in the teacher: expected one order"):
        trainer(tmp_path, student=student, **options)
    trainer(tmp_path, student=alike, **options)
    trainer(tmp_path, student=tiny.bert("classes", layers=2), **options)  # of a new head, which nobody has named
    answers = [tiny.bert(layers=2, id2label=each) for each in names]  # of another task before
    trainer(tmp_path, teacher=answers[0], student=answers[1], losses={"kd": {}})


def test_token_classes_count_alike_without_a_mask(tmp_path):
    """Where nothing is padded, a batch may come without its attention mask."""
    torch.manual_seed(0)
    teacher, student = (BertForTokenClassification(tiny.config(layers, num_labels=3)).eval() for layers in (4, 2))
    batch = tiny.collate(list(tiny.rows(4, labels=False, equal_length=True)))
    del batch["special_tokens_mask"]
    losses = []
    for each in (batch, {key: value for key, value in batch.items() if key != "attention_mask"}):
        made, of_teacher = build_distiller(student, teacher, each, losses={"kd": {}}, task_weight=0)
        losses.append(made(of_teacher(teacher, each)[1], **each)["loss"].item())
    assert losses[0] == pytest.approx(losses[1])


def test_a_teacher_without_losses_is_refused(tmp_path):
    with pytest.raises(UserError, match="losses is empty"):
        trainer(tmp_path, losses={})


def test_a_head_that_nothing_trains_is_named_unless_it_is_the_teachers():
    teacher, student = tiny.bert(), tiny.bert(layers=2)
    options = {"probe": tiny.collate(list(tiny.rows(2))), "losses": {"itrd": {}}}
    student.qa_outputs.load_state_dict(teacher.qa_outputs.state_dict())
    assert build_distiller(student, teacher, task_weight=0, **options)[0].idle_head is None
    with torch.no_grad():
        student.qa_outputs.weight += 1
    assert build_distiller(student, teacher, task_weight=0, **options)[0].idle_head == "qa_outputs.weight"
    assert build_distiller(student, teacher, task_weight=1, **options)[0].idle_head is None
    options["losses"] = {"itrd": {}, "kd": {}}
    assert build_distiller(student, teacher, task_weight=0, **options)[0].idle_head is None


UNLABELLED = {"data": tiny.rows(16, labels=False), "losses": {"kd": {}}, "task_weight": 0.0, "max_steps": 2}


def classifier(problem, classes=3, **changes):
    return tiny.bert("classes", num_labels=classes, problem_type=problem, initializer_range=0.3, **changes)


def test_a_student_takes_it_from_its_teacher_that_several_classes_may_hold(tmp_path):
    """Neither labels nor its own config say so."""
    logs = {}
    several = "multi_label_classification"
    for theirs, ours in ((several, None), (several, several), (None, None)):
        student = classifier(ours, layers=2, seed=3)
        made = trainer(tmp_path, teacher=classifier(theirs), student=student, **UNLABELLED)
        made.train()
        assert student.config.problem_type == theirs
        logs[theirs, ours] = [log["kd"] for log in made.state.log_history if "kd" in log]
    assert len(logs[several, None]) == 2
    assert logs[several, None] == logs[several, several] != logs[None, None]


def test_teacher_and_student_of_different_kinds_of_classes_are_refused(tmp_path):
    kinds = ["multi_label_classification", "single_label_classification"]
    for theirs, ours in (kinds, kinds[::-1]):
        models = {"teacher": classifier(theirs), "student": classifier(ours, layers=2)}
        with pytest.raises(UserError, match=f"^the teacher's problem_type is {theirs}, the student's {ours}: expected"):
            trainer(tmp_path, **models, **UNLABELLED)
    # one score is compared as a number, whatever it means
    models = {"teacher": classifier("regression", 1), "student": classifier(kinds[0], 1, layers=2)}
    trainer(tmp_path, **models, **UNLABELLED)
