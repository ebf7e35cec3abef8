"""ReviewKD against its formula in plain loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.losses.reviewkd import Fusion, context_loss
from itrd_nlp.utils.batch_norm import Norm
from itrd_nlp.utils.errors import UserError
from losses.made import batch, made, pair


def by_hand(student, teacher):
    """The context loss of (n, c, side, side) lists, with pooling by averages of equal squares."""
    total, weights, weight, side = 0.0, 0.0, 2.0, student.shape[2]
    for level in (side, *(coarse for coarse in (4, 2, 1) if coarse < side)):
        weight /= 2
        block, squares = side // level, []
        for i, j, y, x in itertools.product(*map(range, (*student.shape[:2], level, level))):
            inside = list(itertools.product(range(y * block, (y + 1) * block), range(x * block, (x + 1) * block)))
            means = [sum(maps[i, j, a, b].item() for a, b in inside) / len(inside) for maps in (student, teacher)]
            squares.append((means[0] - means[1]) ** 2)
        total += weight * sum(squares) / len(squares)
        weights += weight
    return total / weights


@pytest.mark.parametrize("side", [8, 4, 2, 1])
def test_context_loss_matches_the_formula(side):
    student, teacher = torch.randn(2, 3, 2, side, side, dtype=torch.float64)
    assert context_loss(student, teacher).item() == pytest.approx(by_hand(student, teacher))


def test_the_terms_are_a_sum_over_stages_from_the_deepest_on():
    loss = made("reviewkd", weight=2.0, warmup=0.0)
    student, teacher = pair("reviewkd")
    found = loss(student, teacher, batch())["reviewkd"]
    again = made("reviewkd", weight=2.0, warmup=0.0)
    stages = [x if x.ndim == 4 else x[:, :, None, None] for x in student.maps]
    targets = [x if x.ndim == 4 else x[:, :, None, None] for x in teacher.maps]
    total, deeper = 0.0, None
    for k in (2, 1, 0):
        fusion = again.fusions[k]
        x = fusion.narrow(stages[k])
        if deeper is not None:
            up = F.interpolate(deeper, x.shape[2:], mode="nearest")
            shares = torch.sigmoid(fusion.attention[0](torch.cat([x, up], 1)))
            x = shares[:, [0]] * x + shares[:, [1]] * up
        x = deeper = F.interpolate(x, targets[k].shape[2:], mode="nearest")
        total = total + context_loss(fusion.widen(x), targets[k])
    torch.testing.assert_close(found, 2 * total)


def test_the_weight_grows_over_the_first_epochs():
    """The authors count epochs from 0: the first one has no weight."""
    student, teacher = pair("reviewkd")
    values = []
    for epoch in (0, 1, 5, 20, 40):
        loss = made("reviewkd", warmup=20.0)
        loss.epoch = epoch
        values.append(loss(student, teacher, batch())["reviewkd"].item())
    full = values[3]
    assert values == pytest.approx([0, full / 20, full / 4, full, full]) and full > 0


@pytest.mark.parametrize(("warmup", "shares"), [(0.0, [1, 1]), (1.0, [0, 1]), (2.0, [0, 0.5])])
def test_a_warm_up_of_one_epoch_leaves_the_first_one_out(warmup, shares):
    student, teacher = pair("reviewkd")
    full, values = made("reviewkd", warmup=0.0)(student, teacher, batch())["reviewkd"].item(), []
    for epoch in range(2):
        loss = made("reviewkd", warmup=warmup)
        loss.epoch = epoch
        values.append(loss(student, teacher, batch())["reviewkd"].item())
    assert values == pytest.approx([share * full for share in shares])


def test_widths_of_the_fused_maps():
    shapes = Shapes((), (), ("logits",), maps=(((16, 32, 32), (16, 32, 32)), ((64,), (64,))))
    loss = build_losses({"reviewkd": None}, shapes)["reviewkd"]
    assert [f.narrow[0].out_channels for f in loss.fusions] == [64, 64]
    assert [f.attention is None for f in loss.fusions] == [False, True]


def test_one_value_a_channel_is_normalised_by_what_was_seen_before():
    norm = Norm(3)
    norm.running_mean += 2
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), (x - 2) / (1 + norm.eps) ** 0.5)
    fusion = Fusion(3, 4, 5, deepest=True)
    assert fusion(x, None, torch.Size([1, 1]))[0].shape == (1, 5, 1, 1)


def test_what_is_no_map_is_refused():
    shapes = Shapes((), (), ("logits",), maps=(((16, 8), (16, 8)),))
    with pytest.raises(UserError, match="maps, as in a ResNet"):
        build_losses({"reviewkd": None}, shapes)
