"""What the second notebook measures and draws."""

import numpy as np
import pytest
import torch

import tiny
from itrd_nlp import correlation_loss, mutual_information_loss
from itrd_nlp.distillation.feature_extractor import accepted_inputs

pytest.importorskip("matplotlib", reason="the notebooks draw with matplotlib: pip install 'itrd_nlp[notebooks]'")

from measuring import correlation_histogram, fit_projector, gram_matrices, layer_features


@pytest.mark.parametrize("layer", [-1, 0, 2])
def test_a_layer_s_features_are_those_of_the_hidden_states_at_real_tokens(layer):
    model = tiny.bert(hidden_dropout_prob=0.5)
    batch = tiny.collate(list(tiny.rows(5)))
    found = layer_features(model.train(), batch, layer)
    assert model.training and not found.requires_grad
    hidden = model.eval()(**accepted_inputs(model, batch), output_hidden_states=True).hidden_states[layer]
    real = batch["attention_mask"].bool() & ~batch["special_tokens_mask"].bool()
    rows = [hidden[i, j] for i, text in enumerate(real) for j, is_real in enumerate(text) if is_real]
    assert torch.equal(found, torch.stack(rows))


def test_the_pooling_may_be_another():
    model, batch = tiny.bert(), tiny.collate(list(tiny.rows(5)))
    assert layer_features(model, batch, pooling="mean").shape == (5, 32)


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(60, 4, generator=draw) + 3
    noise = torch.randn(60, 6, generator=draw)
    return student, student @ torch.randn(4, 6, generator=draw) + 0.5 * noise - 7


def test_it_is_least_squares_as_numpy_solves_it(pair):
    student, teacher = pair
    design = np.hstack([student.numpy(), np.ones((60, 1))])
    expected = design @ np.linalg.lstsq(design, teacher.numpy(), rcond=None)[0]
    np.testing.assert_allclose(fit_projector(student, teacher)(student).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_no_other_linear_map_has_a_lower_correlation_loss_on_the_same_samples(pair):
    student, teacher = pair
    linear = fit_projector(student, teacher).requires_grad_(True)
    lowest = correlation_loss(linear(student), teacher)
    assert torch.autograd.grad(lowest, linear.weight)[0].abs().max() < 1e-5
    for seed in range(20):
        step = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        assert correlation_loss(student @ (linear.weight + 0.05 * step).mT, teacher) > lowest


def test_features_that_repeat_each_other_have_a_solution(pair):
    student, teacher = pair
    twice = torch.cat([student, student, torch.ones(60, 1)], 1)
    torch.testing.assert_close(fit_projector(twice, teacher)(twice), fit_projector(student, teacher)(student))


@pytest.mark.parametrize("rows", [(60, 59), (5, 5)])
def test_too_few_or_other_samples_are_refused(pair, rows):
    with pytest.raises(ValueError, match="expected the same n"):
        fit_projector(pair[0][: rows[0]], pair[1][: rows[1]])


def test_a_histogram_counts_every_feature_and_says_the_loss():
    teacher = torch.randn(30, 7)
    students = {"close": teacher + 0.1 * torch.randn(30, 7), "far": torch.randn(30, 7)}
    (axis,) = correlation_histogram(students, teacher).axes
    assert [sum(bar.get_height() for bar in bars) for bars in axis.containers] == [7, 7]
    for text, (name, features) in zip(axis.get_legend().get_texts(), students.items(), strict=True):
        assert name in text.get_text() and f"{correlation_loss(features, teacher):.2f} bits" in text.get_text()


def test_gram_matrices_hold_the_cosines_and_say_the_loss():
    models = {"teacher": torch.randn(6, 4), "student": torch.randn(6, 3)}
    *axes, bar = gram_matrices(models, models["teacher"]).axes
    for axis, (name, features) in zip(axes, models.items(), strict=True):
        expected = torch.cosine_similarity(features[:, None], features[None], dim=-1)
        np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-6)
        bits = mutual_information_loss(features, models["teacher"]).item()
        assert name in axis.get_title() and f"{bits:.2f} bits" in axis.get_title()
    assert bar.get_ylabel() == "cosine"
