"""What every loss of ``LOSSES`` keeps, whatever its formula."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itrd_nlp.losses import LOSSES, Shapes, build_losses
from itrd_nlp.utils.errors import UserError
from losses.made import OF_GROUPS, POOLING, STUDENT, TEACHER, batch, made, pair, representation

NAMES = sorted(LOSSES)
OF_LAYERS = sorted({*NAMES} - {"kd", *OF_GROUPS})
DEGENERATE = {
    "constant": lambda x: torch.ones_like(x),
    "zero": lambda x: torch.zeros_like(x),
    "huge": lambda x: x * 1e4,
}


def total(loss, student, teacher, texts=4, seed=0):
    torch.manual_seed(seed)
    return torch.stack(list(loss(student, teacher, batch(texts)).values())).sum()


def changed(representation, change):
    parts = (representation.features, representation.attention, representation.maps)
    features, attention, maps = [tuple(map(change, x)) for x in parts]
    logits = {head: change(value) for head, value in representation.logits.items()}
    return representation._replace(features=features, attention=attention, maps=maps, logits=logits)


def everything(representation):
    """All that a loss may look at."""
    logits = representation.logits.values()
    return [*representation.features, *representation.attention, *representation.maps, *logits]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_differences(name):
    loss = made(name, **({"local_weight": 1e-9} if name == "wcord" else {})).double()  # its plan is a constant
    student, teacher = pair(name, dtype=torch.float64)
    total(loss, student, teacher)  # fixes the constants of a memory bank
    inputs = [x.requires_grad_() for x in everything(student)]
    ends = [len(student.features), len(student.features) + len(student.attention)]

    def value(*x):
        rebuilt = student._replace(
            features=x[: ends[0]],
            attention=x[slice(*ends)],
            maps=x[ends[1] : -2],
            logits=dict(zip(student.logits, x[-2:], strict=True)),
        )
        return total(copy.deepcopy(loss), rebuilt, teacher)  # a memory bank is as it was at each call

    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_training_lowers_the_loss_and_reaches_every_parameter(name):
    loss = made(name)
    student, teacher = pair(name)
    inputs = [x.requires_grad_() for x in everything(student)]
    start = copy.deepcopy(loss)
    before = total(loss, student, teacher)
    before.backward()
    assert all(p.grad is not None for p in loss.parameters())
    with torch.no_grad():
        for p in (*loss.parameters(), *(x for x in inputs if x.grad is not None)):
            p -= 1e-3 * p.grad
    start.load_state_dict({**start.state_dict(), **dict(loss.named_parameters())})
    assert total(start, student, teacher) < before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_compared_in_full(name, dtype):
    student, teacher = pair(name, dtype=dtype)
    half = total(made(name), student, teacher)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, total(made(name), student.float(), teacher.float()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_degenerate_representations_give_finite_losses_and_gradients(name, kind, who):
    loss = made(name)
    student, teacher = pair(name)
    student = changed(student, DEGENERATE[kind]) if who != "teacher" else student
    teacher = changed(teacher, DEGENERATE[kind]) if who != "student" else teacher
    inputs = [x.requires_grad_() for x in everything(student)]
    value = total(loss, student, teacher)
    value.backward()
    gradients = [x.grad for x in (*inputs, *loss.parameters()) if x.grad is not None]
    assert value.isfinite() and gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", OF_LAYERS)  # a softmax over one token is refused
def test_one_text_of_one_token_trains_on(name):
    loss = made(name)
    student, teacher = representation(STUDENT, name, lengths=(1,)), representation(TEACHER, name, lengths=(1,), seed=1)
    features = [x.requires_grad_() for x in everything(student)]
    value = total(loss, student, teacher, texts=1)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert any(x.grad is not None for x in features)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_that_it_needs_several_samples_where_it_gathers_them(name, monkeypatch):
    gathered = []
    monkeypatch.setattr("itrd_nlp.losses.base.gather_samples", lambda x: (gathered.append(x), x)[1])
    loss = made(name)
    loss.gathers = True
    total(loss, *pair(name))
    assert bool(gathered) == loss.needs_statistics


@pytest.mark.parametrize("name", NAMES)
def test_its_state_is_kept_whole(name):
    loss, fresh = made(name), made(name, seed=1)
    student, teacher = pair(name)
    total(loss, student, teacher)
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(total(loss, student, teacher), total(fresh, student, teacher), rtol=0, atol=0)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_without_layers_it_is_refused(name):
    shapes = Shapes((), (), ("logits",), pooling=POOLING.get(name, "tokens"), examples=9)
    with pytest.raises(UserError, match="without matched layers"):
        build_losses({name: None}, shapes)


@pytest.mark.parametrize(
    "name,options,words",
    [
        ("crd", {"weight": 0}, "crd with weight 0"),
        ("crd", {"momentum": 1}, "below 1"),
        ("wcord", {"local_weight": -1}, "wcord with local_weight -1"),
        ("wcord", {"dim": 0}, "wcord with dim 0"),
        ("textbrewer", {"hidden_mse": 0, "mmd": 0}, "one of them above 0"),
        ("textbrewer", {"gram_scale": "height"}, 'expected "length" or "width"'),
        ("minilmv2", {"relation_heads": 5}, "divisor"),
        ("srd", {"exponent": 0}, "above 0"),
        ("vkd", {"weight": -1}, "above 0"),
        ("cosine", {"weight": 0}, "above 0"),
        ("vkd", {"weight": "much"}, "wrong type"),
        ("crd", {"negatives": 1e4}, "expected int"),
        ("kd", {"t_squared": 1}, "expected bool"),
        ("kd", {"temperature": 0}, "kd with temperature 0"),
        ("kd", {"weight": 0}, "kd with weight 0"),
        ("itrd", {"beta_corr": 0, "beta_mi": 0}, "one above 0"),
        ("itrd", {"beta_corr": -1}, "weights >= 0"),
        ("itrd", {"mi_form": "log"}, '"log2" or "raw"'),
        ("itrd", {"alpha": 0}, "positive order"),
        ("itrd", {"mi_samples": 1}, "at least 2"),
        ("itrd", {"projection": "linear"}, "per_layer"),
        ("itrd", {"projection": "none"}, "equal widths"),
        ("itrd", {"projection_init": "eye"}, "identity"),
        ("margin_mse", {"pairs": "label"}, "margin_mse with pairs 'label': expected one of labels, all"),
        ("margin_mse", {"weight": 0}, "margin_mse with weight 0"),
        ("listwise", {"temperature": -1}, "listwise with temperature -1"),
        ("listwise", {"temprature": 1}, "did you mean 'temperature'"),
        ("reviewkd", {"warmup": -1.0}, "warmup -1"),
    ],
)
def test_wrong_options_are_one_line(name, options, words):
    with pytest.raises(UserError, match=words) as error:
        made(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name,pooling", [("crd", "tokens"), ("wcord", "tokens:4"), ("textbrewer", "mean")])
def test_a_pooling_that_does_not_fit_is_refused(name, pooling):
    shapes = Shapes(STUDENT, TEACHER, ("logits",), pooling=pooling, examples=9)
    with pytest.raises(UserError, match=f"{name} with pooling '{pooling}'"):
        build_losses({name: None}, shapes)


def test_data_that_cannot_be_numbered_is_refused():
    with pytest.raises(UserError, match="datasets.Dataset of at least 2"):
        build_losses({"crd": None}, Shapes(STUDENT, TEACHER, ("logits",)))


@pytest.mark.parametrize("name", ["textbrewer", "minilmv2"])
def test_batches_that_tell_no_texts_apart_are_refused(name):
    student, teacher = pair(name)
    with pytest.raises(UserError, match="batches without attention_mask"):
        made(name)(student._replace(mask=None), teacher, batch())


KINDS = {"as it is": lambda x: x, **DEGENERATE, "one row for all": lambda x: x[:1].expand_as(x)}


@pytest.mark.promise("any representation: finite losses and gradients")
@pytest.mark.parametrize("name", NAMES)
def test_any_shape_precision_and_scale_gives_finite_losses_and_gradients(name, record_property):
    seen = 0

    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(
        lengths=st.lists(st.integers(2, 7), min_size=1, max_size=6),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        kinds=st.tuples(*[st.sampled_from(sorted(KINDS))] * 2),
        powers=st.tuples(*[st.integers(-6, 3)] * 2),  # of ten
        seed=st.integers(0, 99),
    )
    def check(lengths, dtype, kinds, powers, seed):
        nonlocal seen
        seen += 1
        loss = made(name, seed=seed)
        loss = loss.double() if dtype == torch.float64 else loss
        both = []
        for widths, kind, power, which in zip((STUDENT, TEACHER), kinds, powers, (0, 1), strict=True):
            one = representation(widths, name, lengths=tuple(lengths), seed=2 * seed + which, dtype=dtype)
            most = torch.finfo(dtype).max
            both.append(changed(one, lambda x, k=kind, p=power, m=most: (KINDS[k](x) * 10.0**p).clamp(-m, m)))
        inputs = [x.detach().requires_grad_() for x in everything(both[0])]
        ends = [len(both[0].features), len(both[0].features) + len(both[0].attention)]
        student = both[0]._replace(
            features=tuple(inputs[: ends[0]]),
            attention=tuple(inputs[slice(*ends)]),
            maps=tuple(inputs[ends[1] : -2]),
            logits=dict(zip(both[0].logits, inputs[-2:], strict=True)),
        )
        value = total(loss, student, both[1], texts=len(lengths), seed=seed)
        value.backward()
        gradients = [x.grad for x in (*inputs, *loss.parameters()) if x.grad is not None]
        assert value.isfinite() and gradients
        assert not any(g.isnan().any() for g in gradients)
        # a gradient may be beyond fp16, which is what loss scaling is for
        assert all(g.isfinite().all() for g in gradients if g.dtype != torch.float16)

    check()
    record_property("cases", seen)
