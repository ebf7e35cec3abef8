"""CRD: heads, embeddings and the mean over layers; the bank has its own test."""

import torch
import torch.nn.functional as F

from losses.made import batch, made, pair


def test_each_layer_has_heads_and_a_bank_and_the_layers_are_averaged():
    loss, twin = made("crd", weight=0.5), made("crd", weight=0.5)
    student, teacher = pair("crd")
    torch.manual_seed(3)
    value = loss(student, teacher, batch())["crd"]
    torch.manual_seed(3)
    layers = []
    for heads, bank, s, t in zip(twin.heads, twin.banks, student.features, teacher.features, strict=True):
        v_s, v_t = F.normalize(heads[0](s), dim=1), F.normalize(heads[1](t), dim=1)
        layers.append(bank(v_s, v_t, batch()["training_index"]))
    torch.testing.assert_close(value, 0.5 * (layers[0] + layers[1]) / 2)
    assert loss.banks[0].student.shape == (20, 5)


def test_the_options_reach_the_banks():
    (bank,) = made("crd", student=(6,), teacher=(6,), temperature=0.1, momentum=0.8, negatives=7).banks
    assert (bank.temperature, bank.momentum, bank.negatives) == (0.1, 0.8, 7)


def test_it_learns_to_tell_examples_apart():
    loss = made("crd", student=(6,), teacher=(6,))
    student, teacher = pair("crd")
    teacher = teacher._replace(features=teacher.features[:1])
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for step in range(150):
        torch.manual_seed(step)
        value = loss(student._replace(features=teacher.features), teacher, batch())["crd"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.7 * sum(values[:10])
