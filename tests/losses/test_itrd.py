"""ITRDLoss: which features meet which projection, what is weighted, what is skipped."""

import pytest
import torch

from itrd_nlp import correlation_loss, mutual_information_loss
from itrd_nlp.losses import LOSSES, Shapes, build_losses
from itrd_nlp.losses.base import FEW, Representation
from itrd_nlp.losses.itrd import ITRDLoss
from itrd_nlp.utils.errors import UserError


def representation(*widths, n=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = tuple(torch.randn(n, width, generator=draw) for width in widths)
    return Representation({"logits": torch.randn(n, 3, generator=draw)}, features, None)


def shapes(student, teacher):
    return Shapes(tuple(student), tuple(teacher), ("logits",))


def test_equal_widths_project_for_the_correlation_only():
    loss = ITRDLoss(shapes([6, 6], [6, 6]), beta_corr=3.0, beta_mi=0.5, alpha=1.5, mi_form="raw")
    s, t = representation(6, 6), representation(6, 6, seed=1)
    terms = loss(s, t, {})
    pairs = list(zip(s.features, t.features, strict=True))
    projected = [correlation_loss(p(x), y, 1.5) for p, (x, y) in zip(loss.projectors, pairs, strict=True)]
    plain = [mutual_information_loss(x, y, "raw") for x, y in pairs]
    torch.testing.assert_close(terms["correlation"], 3.0 * sum(projected) / 2)
    torch.testing.assert_close(terms["mutual_information"], 0.5 * sum(plain) / 2)
    assert len({id(p) for p in loss.projectors}) == 2


def test_unequal_widths_project_for_both():
    loss = ITRDLoss(shapes([4], [7]))
    s, t = representation(4), representation(7, seed=1)
    terms = loss(s, t, {})
    projected = loss.projectors[0](s.features[0])
    torch.testing.assert_close(terms["correlation"], 2 * correlation_loss(projected, t.features[0]))
    torch.testing.assert_close(terms["mutual_information"], mutual_information_loss(projected, t.features[0]))


def test_projection_options():
    s, t = representation(6, 6), representation(6, 6, seed=1)
    shared = ITRDLoss(shapes([6, 6], [6, 6]), projection="shared")
    assert sum(p.numel() for p in shared.parameters()) == 6 * 6 + 6
    none = ITRDLoss(shapes([6, 6], [6, 6]), projection="none")
    assert not list(none.parameters())
    identity = ITRDLoss(shapes([6, 6], [6, 6]), projection_init="identity")
    torch.testing.assert_close(identity(s, t, {}), none(s, t, {}))
    two = [representation(6, 6, seed=seed) for seed in (0, 1)]
    (projection,) = {id(p): p for p in shared.projectors}.values()
    each = [correlation_loss(projection(x), y) for x, y in zip(two[0].features, two[1].features, strict=True)]
    torch.testing.assert_close(shared(*two, {})["correlation"], 2 * sum(each) / 2)


def test_a_term_of_weight_zero_is_absent_and_trains_nothing_idle():
    s, t = representation(6), representation(6, seed=1)
    assert set(ITRDLoss(shapes([6], [6]), beta_mi=0)(s, t, {})) == {"correlation"}
    only_mi = ITRDLoss(shapes([6], [6]), beta_corr=0)
    assert set(only_mi(s, t, {})) == {"mutual_information"} and not list(only_mi.parameters())
    assert list(ITRDLoss(shapes([5], [6]), beta_corr=0).parameters())


def test_the_gram_is_capped_by_a_seeded_sample_of_matching_rows():
    loss = ITRDLoss(shapes([6], [6]), mi_samples=10)
    s, t = representation(6, n=40), representation(6, n=40, seed=1)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:10]
    expected = mutual_information_loss(s.features[0][rows], t.features[0][rows])
    torch.testing.assert_close(loss(s, t, {})["mutual_information"], expected)
    other = ITRDLoss(shapes([6], [6]), mi_samples=10, seed=1)(s, t, {})
    assert not torch.equal(other["mutual_information"], expected)


def test_layers_of_images_have_positions_of_their_own():
    """Each is sampled by itself; the last one may be of a single image."""
    loss = ITRDLoss(shapes([6, 6, 6], [6, 6, 6]), mi_samples=10)
    layers = [[representation(6, n=n, seed=seed).features[0] for n in (40, 20, 1)] for seed in (0, 1)]
    s, t = (Representation({}, tuple(each), None) for each in layers)
    rows = {n: torch.randperm(n, generator=torch.Generator().manual_seed(0))[:10] for n in (40, 20)}
    each = [mutual_information_loss(layers[0][i][rows[n]], layers[1][i][rows[n]]) for i, n in enumerate(rows)]
    terms = loss(s, t, {})
    torch.testing.assert_close(terms["mutual_information"], sum(each) / 3)
    pairs = zip(loss.projectors, *layers, strict=True)
    correlations = [correlation_loss(p(x), y) for p, x, y in pairs if len(x) > 1]
    torch.testing.assert_close(terms["correlation"], 2 * sum(correlations) / 3)


def test_one_sample_gives_zero_terms_that_still_reach_every_parameter():
    loss = ITRDLoss(shapes([4], [7]))
    terms = loss(representation(4, n=1), representation(7, n=1, seed=1), {})
    torch.stack(list(terms.values())).sum().backward()
    assert all(value.item() == 0 for value in terms.values())
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_full_and_projected_in_it_where_there_are_many_samples(dtype):
    loss = ITRDLoss(shapes([6], [6]))
    for n in (FEW, FEW + 1):
        rounded = [representation(6, n=n, seed=i) for i in range(2)]
        rounded = [x._replace(features=tuple(f.to(dtype) for f in x.features)) for x in rounded]
        full = loss(*[x.float() for x in rounded], {})
        with torch.autocast("cpu", torch.bfloat16):
            terms = loss(*rounded, {})
            projected = loss.project(rounded[0].features)
        assert projected[0].dtype == torch.bfloat16
        half = loss.terms(rounded[0]._replace(projected=projected).float(), rounded[1].float(), {})
        assert all(value.dtype == torch.float32 for value in terms.values())
        torch.testing.assert_close(terms, full if n == FEW else half, rtol=0, atol=0)
        assert half["correlation"] != full["correlation"]
        torch.testing.assert_close(loss(*rounded, {}), full, rtol=0, atol=0)


def test_build_losses_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'itrd'"):
        build_losses({"itdr": {}}, shapes([4], [4]))
    with pytest.raises(UserError, match="did you mean 'beta_corr'"):
        build_losses({"itrd": {"beta_cor": 1}}, shapes([4], [4]))
    with pytest.raises(UserError, match="matched layers"):
        build_losses({"itrd": None}, shapes([], []))
    with pytest.raises(UserError, match="one pair of widths"):
        build_losses({"itrd": {"projection": "shared"}}, shapes([4, 5], [6, 6]))
    named = dict.fromkeys(["kd", "itrd", "cosine"])
    assert list(build_losses(named, shapes([4], [4]))) == list(named) and set(named) < set(LOSSES)
