"""Width cuts: one mechanism for every encoder, against slices written out by name and networks with dead units."""

import copy
from functools import cache, partial

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaConfig,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    ModernBertConfig,
    XLNetConfig,
)

from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.models import unit_axes as module
from itrd_nlp.models.importance import choose_units
from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student, student_from_teacher
from itrd_nlp.models.unit_axes import unit_axes
from itrd_nlp.models.width import Widths, slice_weights, widths_of, with_common_names
from models import test_students
from models.test_students import COMMON, CONFIGS, HEADS, batch, outputs, refusal

MODERN_DROPOUTS = {"embedding_dropout", "mlp_dropout", "classifier_dropout"}

ALL = {**HEADS, "tags": AutoModelForTokenClassification}
LAYERS, HIDDEN, SIZE, INNER = 3, 16, 4, 24  # of the tiny models; SIZE entries a head
make = partial(test_students.make, layers=LAYERS)
every_architecture = pytest.mark.parametrize("name", CONFIGS)


def inner_field(name):
    return "hidden_dim" if name == "distilbert" else "intermediate_size"


def cut(model, layers=f"even:{LAYERS}", **options):
    return cut_student(model, layers, calibration=[batch()], **options)


@cache
def axes_of(name):
    return unit_axes(make(name, auto_class=AutoModel), batch())


@pytest.mark.parametrize("head", ALL)
@every_architecture
def test_all_units_are_the_identity_bit_for_bit(name, head):
    teacher = make(name, auto_class=ALL[head])
    axes, prefix = unit_axes(teacher, batch()), find_layers(teacher)[0]
    units = choose_units(teacher, axes, widths_of(teacher.config), range(LAYERS), [batch()])
    assert units.hidden.tolist() == [*range(HIDDEN)]
    assert [layer.tolist() for layer in units.heads] == [[*range(HIDDEN // SIZE)]] * LAYERS
    assert [layer.tolist() for layer in units.inner] == [[*range(INNER)]] * LAYERS
    weights = slice_weights(teacher.state_dict(), axes, units, prefix)
    assert weights.keys() == teacher.state_dict().keys()
    assert all(torch.equal(weights[key], weight) for key, weight in teacher.state_dict().items())
    student, student_map = cut_student(teacher, f"even:{LAYERS}", hidden_size=HIDDEN, intermediate_size=INNER)
    assert torch.equal(outputs(student), outputs(teacher)) and not student_map.units


def by_hand(name, weight, units, layer):
    """One weight of a BERT or ModernBERT, sliced entry by entry as its name says."""
    hidden = [*map(int, units.hidden)]
    heads = [] if layer is None else [int(h) * SIZE + i for h in units.heads[layer] for i in range(SIZE)]
    inner = [] if layer is None else [*map(int, units.inner[layer])]
    fused = [block * HIDDEN + i for block in range(3) for i in heads]
    gated = [block * INNER + i for block in range(2) for i in inner]
    rows, columns = hidden, hidden
    if "self." in name:
        rows = heads
    elif "attention.output.dense" in name or "attn.Wo" in name:
        columns = heads
    elif "attn.Wqkv" in name:
        rows = fused
    elif "intermediate.dense" in name:
        rows = inner
    elif "mlp.Wi" in name:
        rows = gated
    elif "output.dense" in name or "mlp.Wo" in name:
        columns = inner
    elif "embeddings" in name and weight.ndim == 2 or name.startswith(("qa_outputs", "classifier")):
        rows = range(len(weight))
    if weight.ndim == 1:
        return torch.stack([weight[i] for i in rows])
    return torch.stack([torch.stack([weight[i, j] for j in columns]) for i in rows])


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_cut_keeps_exactly_the_rows_and_columns_of_its_units(name):
    teacher, picked = make(name), [0, 2]
    axes, (prefix, _) = unit_axes(teacher, batch()), find_layers(teacher)
    units = choose_units(teacher, axes, Widths(12, 3, 10), picked, [batch()])
    student, _ = cut(teacher, picked, hidden_size=12, intermediate_size=10)
    assert student.config.num_attention_heads == 3
    theirs, ours = teacher.state_dict(), student.state_dict()
    for key, weight in ours.items():
        layer = None
        if key.startswith(f"{prefix}."):
            index, _, rest = key.removeprefix(f"{prefix}.").partition(".")
            layer = picked[int(index)]
            key = f"{prefix}.{layer}.{rest}"
        assert torch.equal(weight, by_hand(key, theirs[key], units, layer)), key


def test_importance_in_plain_loops():
    teacher, real = make("bert", auto_class=AutoModel), [(0, t) for t in range(14)] + [(1, t) for t in range(10)]
    hidden, inner, heads = torch.zeros(HIDDEN), torch.zeros(LAYERS, INNER), torch.zeros(LAYERS, HIDDEN // SIZE)
    seen = {}
    for key, part in teacher.named_modules():
        part.register_forward_hook(lambda _, args, out, key=key: seen.update({key: (args[0] if args else None, out)}))
    with torch.no_grad():
        teacher(**batch())
    picked = [0, 2]
    for b, t in real:
        hidden += seen["embeddings.LayerNorm"][1][b, t].abs()
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}"
            if layer in picked:
                hidden += seen[f"{at}.attention.output.LayerNorm"][1][b, t].abs()
                hidden += seen[f"{at}.output.LayerNorm"][1][b, t].abs()
            inner[layer] += torch.nn.functional.gelu(seen[f"{at}.intermediate.dense"][1][b, t]).abs()
            context = seen[f"{at}.attention.output.dense"][0][b, t]
            for head in range(HIDDEN // SIZE):
                heads[layer, head] += sum(x * x for x in context[head * SIZE : (head + 1) * SIZE]) ** 0.5
    units = choose_units(teacher, axes_of("bert"), Widths(8, 2, 6), picked, [batch()])
    assert units.hidden.tolist() == sorted(sorted(range(HIDDEN), key=lambda i: -hidden[i])[:8])
    for layer in range(LAYERS):
        assert units.inner[layer].tolist() == sorted(sorted(range(INNER), key=lambda i: -inner[layer, i])[:6])
        assert units.heads[layer].tolist() == sorted(sorted(range(HIDDEN // SIZE), key=lambda i: -heads[layer, i])[:2])


def test_padding_and_the_order_of_batches_do_not_count():
    teacher, axes = make("electra"), unit_axes(make("electra"), batch())
    short = {key: value[1:, :10] for key, value in batch().items()}
    long = {key: value[:1] for key, value in batch().items()}
    chosen = [choose_units(teacher, axes, Widths(8, 2, 6), [0, 1], each) for each in ([batch()], [short, long])]
    assert torch.equal(chosen[0].hidden, chosen[1].hidden)
    for one, other in zip((*chosen[0].inner, *chosen[0].heads), (*chosen[1].inner, *chosen[1].heads), strict=True):
        assert torch.equal(one, other)


def live_units(seed, count, total):
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@every_architecture
def test_dead_inner_units_are_cut_and_outputs_stay(name):
    teacher = make(name, auto_class=AutoModelForTokenClassification)
    axes, prefix = unit_axes(teacher, batch()), find_layers(teacher)[0]
    live = [live_units(layer, 10, INNER) for layer in range(LAYERS)]
    for key, weight in teacher.state_dict().items():
        for dim, axis in enumerate(axes[key]):
            if axis.unit == "inner" and dim == 0:  # gelu(0) is 0, and 0 times a gate
                alive = torch.zeros(INNER).index_fill(0, live[int(key.removeprefix(prefix).split(".")[1])], 1)
                weight.mul_(alive.repeat(axis.blocks).view(-1, *[1] * (weight.ndim - 1)))
    student, student_map = cut(teacher, **{inner_field(name): 10})
    assert student_map.units == {"inner units of each layer": (10, INNER)}
    assert student.num_parameters() < teacher.num_parameters()
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-5, atol=1e-5)


def with_dead_units(name, live, heads):
    """An encoder in which some hidden units and heads are always 0, and whose hidden states have the mean 0."""
    model, axes = make(name, auto_class=AutoModel), axes_of(name)
    prefix = find_layers(model)[0]
    alive = torch.zeros(HIDDEN).index_fill(0, live, 1)
    for key, weight in model.state_dict().items():
        layer = int(key.removeprefix(prefix).split(".")[1]) if key.startswith(f"{prefix}.") else 0
        if "conv.conv" in key:  # its activation would move the mean
            weight.zero_()
        for dim, axis in enumerate(axes[key]):
            shape = [-1 if i == dim else 1 for i in range(weight.ndim)]
            if axis.unit == "hidden" and weight.ndim == 1 and "norm" in key.lower() and key.endswith("weight"):
                weight.copy_(alive)
            elif axis.unit == "hidden":
                mean = weight.index_select(dim, live).mean(dim, keepdim=True)
                weight.sub_(mean).mul_(alive.view(shape))
            elif axis.unit == "heads":
                of_head = torch.zeros(HIDDEN // SIZE).index_fill(0, heads[layer], 1)
                weight.mul_(of_head.repeat_interleave(axis.size).repeat(axis.blocks).view(shape))
    return model


@every_architecture
def test_dead_hidden_units_and_heads_are_cut_and_hidden_states_stay(name):
    live, share = live_units(9, 12, HIDDEN), 12 / HIDDEN
    heads = [live_units(0 if name == "mpnet" else layer, 3, HIDDEN // SIZE) for layer in range(LAYERS)]
    teacher = with_dead_units(name, live, heads)
    student, student_map = cut(teacher, hidden_size=12)
    assert student_map.units == {"hidden units": (12, HIDDEN), "heads of each layer": (3, HIDDEN // SIZE)}
    with torch.no_grad():
        for key, weight in student.named_parameters():
            if "norm" in key.lower() and key.endswith("weight") and len(weight) == 12:
                weight.mul_(share**-0.5)  # the deviation was over 16 units, 4 of them at the mean
        before, after = [model(**batch()).last_hidden_state for model in (teacher, student)]
    real = batch()["attention_mask"].bool()
    assert before[real].abs().max() > 0.5 and before[..., live].count_nonzero() == before.count_nonzero()
    torch.testing.assert_close(after[real], before[..., live][real], rtol=1e-3, atol=1e-3)  # the eps of norms


@every_architecture
def test_a_narrower_student_is_saved_and_reloaded(name, tmp_path):
    teacher = make(name)
    weights = copy.deepcopy(teacher.state_dict())
    student, _ = cut(teacher, "first:2", hidden_size=12, intermediate_size=10)
    assert all(torch.equal(weight, weights[key]) for key, weight in teacher.state_dict().items())
    student.save_pretrained(tmp_path)
    reloaded = HEADS["qa"].from_pretrained(tmp_path)
    assert (reloaded.config.hidden_size, reloaded.config.num_attention_heads) == (12, 3)
    assert getattr(reloaded.config, inner_field(name)) == 10
    assert torch.equal(outputs(reloaded), outputs(student))


@every_architecture
def test_heads_that_are_not_told_from_hidden_units_are_noticed(name, monkeypatch):
    monkeypatch.setattr(module, "_mark_heads", lambda *arguments: None)
    assert "in another order it returns another" in refusal(lambda: unit_axes(make(name), batch()))


def test_sizes_that_coincide_are_told_apart():
    config = BertConfig(**{**COMMON, "intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": 40})
    config.num_labels = 16
    teacher = AutoModelForSequenceClassification.from_config(config).eval()
    student, _ = cut(teacher, "first:1", hidden_size=8, intermediate_size=4)
    assert student.classifier.weight.shape == (16, 8)
    assert student.bert.embeddings.position_embeddings.weight.shape == (16, 8)
    assert student.bert.encoder.layer[0].output.dense.weight.shape == (8, 4)
    assert torch.equal(student.classifier.bias, teacher.classifier.bias)


def test_embeddings_as_wide_as_the_hidden_size_stay_so_and_others_stay():
    equal = AutoModel.from_config(ElectraConfig(**COMMON, embedding_size=16)).eval()
    assert cut(equal, hidden_size=8)[0].embeddings.word_embeddings.weight.shape == (40, 8)
    other = make("electra")
    student, _ = cut(other, hidden_size=12)
    assert torch.equal(
        student.electra.embeddings.word_embeddings.weight, other.electra.embeddings.word_embeddings.weight
    )
    assert student.electra.embeddings_project.weight.shape == (12, 8)
    message = refusal(lambda: cut(other, hidden_size=8))
    assert "hidden_size=8" in message and "without electra.embeddings_project" in message


def test_tied_embeddings_stay_tied_and_other_classes_make_a_new_head():
    teacher = make("bert", auto_class=AutoModelForMaskedLM)
    student, _ = cut(teacher, "first:2", hidden_size=8)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    teacher = make("roberta", "classification")
    student, student_map = cut(teacher, "first:2", hidden_size=8, num_labels=5)
    assert outputs(student).shape == (2, 5)
    assert student_map.parts["classifier"] == "copied; new: out_proj.weight, out_proj.bias"


def test_modes_precision_and_hooks(capsys):
    teacher = make("modernbert").bfloat16().train()
    student = student_from_teacher(teacher, "first:2", hidden_size=8, calibration=[batch()])
    assert teacher.training and student.training and student.dtype == torch.bfloat16
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in teacher.modules())
    assert "hidden units: the 8 most important of 16" in capsys.readouterr().out


def test_the_first_process_measures_for_all():
    other, _ = cut(make("bert"), "first:1", hidden_size=8)
    answers = []

    def first_rank(measure):
        answers.append(measure())
        return answers[0]

    def later_rank(measure):
        return answers[0]

    first, _ = cut(make("bert"), "best:1", hidden_size=8, on_first_rank=first_rank)
    later, later_map = cut_student(make("bert"), "best:1", hidden_size=8, on_first_rank=later_rank)
    assert all(torch.equal(weight, later.state_dict()[key]) for key, weight in first.state_dict().items())
    assert "best:1" in describe_map(later_map) and other.num_parameters() == later.num_parameters()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bert", {"hidden_size": 10}, ["hidden_size=10", "16 and a multiple of 4, the size of a head", "random"]),
        ("distilbert", {"dim": 10}, ["hidden_size=10", "multiple of 4"]),
        ("bert", {"hidden_size": 20}, ["hidden_size=20", "at most the source's 16"]),
        ("bert", {"hidden_size": 0}, ["hidden_size=0"]),
        ("bert", {"intermediate_size": 25}, ["intermediate_size=25", "at most the source's 24;"]),
        ("distilbert", {"intermediate_size": -1}, ["hidden_dim=-1"]),
        ("bert", {"hidden_size": 8, "num_attention_heads": 4}, ["num_attention_heads=4", "size of 4, which makes 2"]),
        (
            "bert",
            {"num_attention_heads": 2},
            ["num_attention_heads=2 with hidden_size=16", "heads keep their size"],
        ),
        ("bert", {"init": "randm"}, ["init='randm'", "did you mean 'random'?"]),
        ("bert", {"inti": "random"}, ["did you mean 'init'?"]),
        ("bert", {"hidden_size": 8, "calibration": None}, ["narrower student", "calibration=[batch, ...]"]),
        ("bert", {"hidden_size": 8, "calibration": []}, ["calibration is empty"]),
        ("bert", {"hidden_size": 8, "calibration": ["text"]}, ["a batch of str", "input_ids"]),
        (
            "bert",
            {"hidden_size": 8, "calibration": [{"input_ids": torch.tensor([[99]])}]},
            ["input_ids (1, 1)", "range"],
        ),
    ],
    ids=str,
)
def test_widths_that_cannot_be_cut_are_refused(name, options, words):
    options = {"calibration": [batch()], **options}
    message = refusal(lambda: cut_student(make(name), "even:2", **options))
    assert all(word in message for word in words), message


def test_encoders_that_cannot_be_sliced_are_refused_and_start_at_random():
    kinds = {
        "another order": DebertaConfig(**COMMON),  # queries, keys and values of each head stand together
        "does not follow hidden_size": XLNetConfig(d_model=16, n_layer=3, n_head=4, d_inner=24, vocab_size=40),
        "size of tensor": AutoConfig.for_model("eurobert", **COMMON, bos_token_id=2, eos_token_id=3),  # shared keys
    }
    for words, config in kinds.items():
        model = AutoModelForSequenceClassification.from_config(config).eval()
        message = refusal(lambda model=model: cut(model, hidden_size=8))
        assert words in message and f"{type(model).__name__} cannot be cut in width" in message, message
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "init": "random"}
    student, student_map = cut_student(AutoModel.from_config(kinds["another order"]), "first:2", **sizes)
    assert student.config.hidden_size == 8 and not student_map.units


@pytest.mark.parametrize(
    "config,attention,others",
    [
        (DistilBertConfig(), {"attention_dropout"}, {"dropout", "qa_dropout", "seq_classif_dropout"}),
        (ModernBertConfig(), {"attention_dropout"}, MODERN_DROPOUTS),
        (BertConfig(), {"attention_probs_dropout_prob"}, {"hidden_dropout_prob"}),
        (FNetConfig(), set(), {"hidden_dropout_prob"}),
        (ModernBertConfig(embedding_dropout=0), {"attention_dropout"}, MODERN_DROPOUTS),  # a saved 0 is an integer
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_dropout_by_the_names_of_bert_is_that_of_any_config(config, attention, others):
    made = with_common_names(config, {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0.25, "layers": 3})
    assert made == {**dict.fromkeys(attention, 0), **dict.fromkeys(others, 0.25), "layers": 3}
    own = with_common_names(config, {"hidden_dropout_prob": 0, **dict.fromkeys(others, 0.5)})
    assert own == dict.fromkeys(others, 0.5)  # what is named itself counts
