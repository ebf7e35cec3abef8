"""The choice of layers by measurement, against students that are cut and compared one by one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForTokenClassification

from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.models import layer_choice
from itrd_nlp.models.calibration_set import calibration_batches
from itrd_nlp.models.layer_choice import best_layers, pick_layers
from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student
from models.test_students import CONFIGS, LAYERS, batch, make, outputs, refusal

every_architecture = pytest.mark.parametrize("name", CONFIGS)


def best(teacher, count, **options):
    return cut_student(teacher, f"best:{count}", calibration=[batch()], **options)


def with_identities(live, auto_class=AutoModelForQuestionAnswering):
    """A BERT whose layers change nothing but for the live ones: a normalised state normalised again stays."""
    teacher = make("bert", auto_class=auto_class)
    for key, weight in teacher.state_dict().items():
        if "LayerNorm" in key:
            weight.fill_(float(key.endswith("weight")))
        elif "output.dense" in key and int(key.split("layer.")[1].split(".")[0]) not in live:
            weight.zero_()
    return teacher


@pytest.mark.parametrize("subsets", [300, 0], ids=["all", "one by one"])
@pytest.mark.parametrize("live", [[1, 4], [0, 2, 5], [3]], ids=str)
def test_layers_that_do_something_are_kept(live, subsets, monkeypatch):
    monkeypatch.setattr(layer_choice, "SUBSETS", subsets)
    teacher = with_identities(live)
    student, student_map = best(teacher, len(live))
    assert student_map.layers == live
    assert torch.allclose(outputs(student), outputs(teacher), atol=1e-4)
    assert f"best:{len(live)} " in describe_map(student_map).splitlines()[1]


def divergence(student, teacher, head):
    """The KL divergence from the teacher, example by example and token by token."""
    mask, total, count = batch()["attention_mask"].bool(), 0.0, 0
    with torch.no_grad():
        ours, theirs = student(**batch()), teacher(**batch())
    if head == "qa":
        for row in range(2):
            for name in ("start_logits", "end_logits"):
                p, q = (x[name][row][mask[row]].log_softmax(-1) for x in (theirs, ours))
                total += (p.exp() * (p - q)).sum()
        return total / 2
    pairs = zip(theirs.logits, ours.logits, strict=True)
    if head == "tags":
        pairs = [(theirs.logits[r, t], ours.logits[r, t]) for r in range(2) for t in range(14) if mask[r, t]]
    for one, other in pairs:
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        total, count = total + (p.exp() * (p - q)).sum(), count + 1
    return total / count


@pytest.mark.parametrize("head", ["qa", "classification", "tags"])
@every_architecture
def test_the_differences_are_those_of_the_students(name, head):
    teacher = make(name, head, AutoModelForTokenClassification if head == "tags" else None, layers=4)
    subsets = [*itertools.combinations(range(4), 2)]
    differences = layer_choice._differences(teacher, subsets, [batch()])
    for subset in subsets:
        student, _ = cut_student(teacher, list(subset))
        assert differences[subset] == pytest.approx(float(divergence(student, teacher, head)), rel=1e-3, abs=1e-5)
    chosen, words = best_layers(teacher, 2, [batch()])
    assert tuple(chosen) == min(differences, key=differences.get)
    assert words.startswith("change of the outputs before training: best:2 ") and "first:2" in words


def test_encoders_are_compared_by_cosine_and_scores_by_squares():
    teacher = make("mpnet", auto_class=AutoModel)
    differences = layer_choice._differences(teacher, [(0, 3)], [batch()])
    student, mask = cut_student(teacher, [0, 3])[0], batch()["attention_mask"]
    means = []
    for model in (teacher, student):
        states = model(**batch()).last_hidden_state
        means.append(torch.stack([states[row, : mask[row].sum()].mean(0) for row in range(2)]))
    assert differences[0, 3] == pytest.approx(1 - F.cosine_similarity(*means).mean().item(), abs=1e-5)
    scorer, _ = cut_student(make("roberta", "classification"), f"even:{LAYERS}", num_labels=1)
    differences = layer_choice._differences(scorer, [(0, 3)], [batch()])
    gap = outputs(cut_student(scorer, [0, 3])[0]) - outputs(scorer)
    assert differences[0, 3] == pytest.approx(gap.square().mean().item(), rel=1e-4)
    several = {"problem_type": "multi_label_classification"}
    scorer, _ = cut_student(make("roberta", "classification"), f"even:{LAYERS}", **several)
    p, q = [outputs(model).sigmoid() for model in (scorer, cut_student(scorer, [0, 3])[0])]
    divergence_of_each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    difference = layer_choice._differences(scorer, [(0, 3)], [batch()])[0, 3]
    assert difference == pytest.approx(divergence_of_each.mean().item(), rel=1e-3)
    scorer, _ = cut_student(make("roberta", "classification"), f"even:{LAYERS}", problem_type="regression")
    assert outputs(scorer).shape[1] > 1
    differences = layer_choice._differences(scorer, [(0, 3)], [batch()])
    gap = outputs(cut_student(scorer, [0, 3])[0]) - outputs(scorer)
    assert differences[0, 3] == pytest.approx(gap.square().mean().item(), rel=1e-4)


def test_batches_count_by_their_examples():
    teacher, whole = make("modernbert"), batch()
    parts = [{key: value[row : row + 1] for key, value in whole.items()} for row in range(2)]
    one, two = [layer_choice._differences(teacher, [(1, 2)], batches) for batches in ([whole], parts)]
    assert one[1, 2] == pytest.approx(two[1, 2], rel=1e-4)


def test_a_source_without_a_head_is_compared_as_an_encoder(tmp_path):
    encoder = with_identities([1, 4], AutoModel)
    encoder.save_pretrained(tmp_path)
    student, student_map = best(str(tmp_path), 2, model_class=AutoModelForQuestionAnswering)
    assert student_map.layers == [1, 4] and type(student).__name__ == "BertForQuestionAnswering"


def test_the_source_is_left_as_it_was():
    teacher = make("modernbert").train()
    modules, weights = [*teacher.modules()], {key: weight.clone() for key, weight in teacher.state_dict().items()}
    best(teacher, 2)
    assert [*teacher.modules()] == modules and teacher.training and find_layers(teacher)[1][1].training
    assert all(torch.equal(weight, weights[key]) for key, weight in teacher.state_dict().items())
    with pytest.raises(Exception, match="input_ids"):
        cut_student(teacher, "best:2", calibration=[{"input_ids": torch.tensor([[99]])}])
    assert [*teacher.modules()] == modules and teacher.training


def test_a_layer_runs_once_for_all_subsets_that_begin_alike():
    teacher = make("bert")
    calls = []
    for i, layer in enumerate(find_layers(teacher)[1]):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    best(teacher, 3)
    every = [*itertools.combinations(range(LAYERS), 3)]
    few, more = [layer_choice._first_tokens([batch()], tokens) for tokens in layer_choice.TOKENS]
    assert len([*few]) == len([*more]) == 1 and len(every) == layer_choice.FINALISTS  # so that two rounds are alike
    tree = {subset[:depth] for subset in every for depth in (1, 2, 3)}
    assert len(calls) == 2 * (LAYERS + len(tree))


def test_so_many_tokens_are_compared():
    def rows(length, count=8, batches=3, tokens=4096):
        made = [{"input_ids": torch.zeros(count, length)}] * batches
        return [len(few["input_ids"]) for few in layer_choice._first_tokens(made, tokens)]

    assert rows(512) == [8]
    assert rows(300) == [8, 5]
    assert rows(100) == [8, 8, 8]
    assert rows(9000) == [1]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("best:7", ['layers="best:7"', "1 to 6 of 6", '"best:3"']),
        ("best", ['layers="best"', '"best:3"']),
        ("bset:2", ["did you mean 'best'?"]),
        ("best:3", ['layers="best:3"', "calibration=[batch, ...]"]),
    ],
)
def test_what_cannot_be_measured_is_refused(layers, words):
    message = refusal(lambda: cut_student(make("bert"), layers))
    assert all(word in message for word in words), message
    assert "calibration" in refusal(lambda: pick_layers("best:3", LAYERS))


def test_labels_are_no_part_of_the_calibration_set():
    (made,) = calibration_batches(make("bert"), [{**batch(), "start_positions": torch.zeros(2), "text": "x"}], "")
    assert set(made) == {"input_ids", "attention_mask"}
