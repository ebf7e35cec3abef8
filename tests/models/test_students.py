"""Layer surgery: one mechanism for every encoder, exact copies, and refusals in one line."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5EncoderModel,
)

import tiny
from itrd_nlp.distillation.layers import find_layers
from itrd_nlp.distillation.pooling import SENTENCE_POOLING, sentence_pooling
from itrd_nlp.models import layer_choice
from itrd_nlp.models.layer_choice import pick_layers
from itrd_nlp.models.new import resized_config
from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student, student_from_teacher
from itrd_nlp.utils.errors import UserError

VOCABULARY, LAYERS = 40, 6
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 24}
RELATIVE = {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p"}
SPECIAL = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
CONFIGS = {
    "bert": BertConfig(**COMMON),
    "roberta": RobertaConfig(**COMMON),
    "distilbert": DistilBertConfig(**DISTILBERT, max_position_embeddings=32, pad_token_id=1),
    "electra": ElectraConfig(**COMMON, embedding_size=8),
    "mpnet": MPNetConfig(**COMMON),
    "deberta-v2": DebertaV2Config(**COMMON, **RELATIVE, conv_kernel_size=3, conv_act="gelu"),
    "deberta-v3": DebertaV2Config(**COMMON, **RELATIVE, share_att_key=True, position_biased_input=False),
    "modernbert": ModernBertConfig(**COMMON, **SPECIAL, local_attention=4),
}
HEADS = {"qa": AutoModelForQuestionAnswering, "classification": AutoModelForSequenceClassification}
every_model = pytest.mark.parametrize("head", HEADS)
every_architecture = pytest.mark.parametrize("name", CONFIGS)


def make(name: str, head: str = "qa", auto_class=None, layers: int = LAYERS) -> PreTrainedModel:
    """A tiny teacher in evaluation mode whose weights are all random: no bias is 0, no scale is 1."""
    config = resized_config(CONFIGS[name], range(layers), {})
    model = (auto_class or HEADS[head]).from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Two sequences of 14 tokens; the second has 4 tokens of padding."""
    ids = torch.randint(5, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[1, 10:], mask[1, 10:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: PreTrainedModel) -> torch.Tensor:
    """All logits of a model in one tensor."""
    out = model(**batch())
    return torch.stack([out.start_logits, out.end_logits]) if "start_logits" in out else out.logits


def twin(name: str, layer_list: str, picked: list[int]) -> str:
    """Teacher's name of a student weight, written out by splitting on dots."""
    pieces, depth = name.split("."), layer_list.count(".") + 1
    if ".".join(pieces[:depth]) == layer_list:
        pieces[depth] = str(picked[int(pieces[depth])])
    return ".".join(pieces)


def with_layers(teacher: PreTrainedModel, picked: list[int]) -> PreTrainedModel:
    """A copy of the teacher with its list of layers replaced in place; ModernBERT's layer 0 never has `attn_norm`."""
    model = copy.deepcopy(teacher)
    path, layers = find_layers(model)
    kept = nn.ModuleList([layers[i] for i in picked])
    if model.config.model_type == "modernbert":
        kept[0].attn_norm = nn.Identity()
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, kept)
    return model


def refusal(call) -> str:
    """The message of the UserError that a call must raise, in one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_model
@every_architecture
def test_mapped_layers_and_everything_outside_are_bitwise_copies(name, head):
    teacher = make(name, head)
    path, _ = find_layers(teacher)
    student = student_from_teacher(teacher, "even:3", verbose=False)
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert type(student) is type(teacher)
    assert len(find_layers(student)[1]) == student.config.num_hidden_layers == 3
    for key, weight in ours.items():
        assert torch.equal(weight, theirs[twin(key, path, [1, 3, 5])]), key
    outside = {key for key in theirs if not key.startswith(f"{path}.")}
    assert outside == {key for key in ours if not key.startswith(f"{path}.")}


@every_model
@every_architecture
def test_all_layers_give_exactly_the_teachers_logits(name, head):
    teacher = make(name, head)
    student = student_from_teacher(teacher, f"even:{LAYERS}", verbose=False)
    assert torch.equal(outputs(student), outputs(teacher))
    assert student.num_parameters() == teacher.num_parameters()


@every_model
@pytest.mark.parametrize("picked", [[1, 3, 5], [0, 4, 5], [2]], ids=str)
@every_architecture
def test_picked_layers_act_as_in_a_teacher_with_the_others_removed(name, head, picked):
    teacher = make(name, head)
    student = student_from_teacher(teacher, picked, verbose=False)
    assert torch.equal(outputs(student), outputs(with_layers(teacher, picked)))
    assert not torch.equal(outputs(student), outputs(teacher))


@every_model
@every_architecture
def test_a_saved_student_reloads_with_the_auto_class(name, head, tmp_path):
    student = student_from_teacher(make(name, head), "even:3", verbose=False)
    student.save_pretrained(tmp_path)
    reloaded = HEADS[head].from_pretrained(tmp_path)
    assert type(reloaded) is type(student)
    assert torch.equal(outputs(reloaded), outputs(student))


@every_architecture
def test_the_teacher_is_untouched_and_shares_no_storage(name):
    teacher = make(name)
    weights, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    storages = {weight.untyped_storage().data_ptr() for weight in teacher.state_dict().values()}
    random_state = torch.get_rng_state()
    student = student_from_teacher(teacher, "last:2", verbose=False)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert storages.isdisjoint(weight.untyped_storage().data_ptr() for weight in student.state_dict().values())
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)
    assert teacher.config.to_dict() == config
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, weights[key])


@every_model
@every_architecture
def test_gradients_reach_what_they_reach_in_the_teacher(name, head):
    teacher = make(name, head).requires_grad_(False)
    student = student_from_teacher(teacher, "even:3", verbose=False)
    path, _ = find_layers(teacher)
    outputs(student).square().sum().backward()
    outputs(teacher.requires_grad_(True)).square().sum().backward()
    in_teacher = {key for key, weight in teacher.named_parameters() if weight.grad is not None}
    for key, weight in student.named_parameters():
        assert (weight.grad is not None) == (twin(key, path, [1, 3, 5]) in in_teacher), key


@every_model
@every_architecture
def test_a_narrower_student_trains(name, head):
    inner = "hidden_dim" if name == "distilbert" else "intermediate_size"
    overrides = {"hidden_size": 8, "num_attention_heads": 2, inner: 12}
    student, student_map = cut_student(make(name, head), "even:3", init="random", **overrides)
    assert student_map.parts["student layer 1"].startswith("new")
    assert student_map.parameters < student_map.source_parameters / 2
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)  # a fresh ModernBERT head has gradients of norm 50 to 80
    before = outputs(student)
    before.square().mean().backward()
    optimizer.step()
    after = outputs(student)
    assert before.isfinite().all() and after.square().mean() < before.square().mean()


def test_an_inner_width_keeps_the_weights_of_equal_shape():
    teacher = make("bert")
    student, student_map = cut_student(teacher, [0, 5], init="random", intermediate_size=20)
    theirs, ours = teacher.bert.encoder.layer[5], student.bert.encoder.layer[1]
    assert torch.equal(ours.attention.self.query.weight, theirs.attention.self.query.weight)
    assert ours.intermediate.dense.weight.shape == (20, 16)
    assert student_map.parts["student layer 2"] == "teacher layer 6 (index 5); new: 3 of 16 weights"


def test_fresh_weights_depend_on_the_seed_alone():
    def first_weight(seed: int) -> torch.Tensor:
        student = student_from_teacher(make("bert"), "first:1", seed=seed, hidden_size=8, init="random", verbose=False)
        return student.bert.encoder.layer[0].attention.self.query.weight

    assert torch.equal(first_weight(3), first_weight(3))
    assert not torch.equal(first_weight(3), first_weight(4))


@every_architecture
def test_dropout_overrides_keep_every_weight(name):
    field = "attention_dropout" if name in ("distilbert", "modernbert") else "attention_probs_dropout_prob"
    teacher = make(name)
    student = student_from_teacher(teacher, f"even:{LAYERS}", verbose=False, **{field: 0.37})
    assert getattr(student.config, field) == 0.37 and getattr(teacher.config, field) != 0.37
    assert torch.equal(outputs(student), outputs(teacher))


def test_a_new_number_of_labels_makes_a_new_head():
    student, student_map = cut_student(make("roberta", "classification"), "first:2", num_labels=5)
    assert outputs(student).shape == (2, 5) and len(student.config.id2label) == 5
    assert student_map.parts["classifier"] == "copied; new: out_proj.weight, out_proj.bias"


def test_tied_weights_stay_tied():
    student = student_from_teacher(make("bert", auto_class=AutoModelForMaskedLM), "even:2", verbose=False)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_modernbert_keeps_the_attention_type_of_each_picked_layer():
    teacher = make("modernbert")
    student, student_map = cut_student(teacher, [1, 3, 4])
    assert student.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert [layer.attention_type for layer in student.model.layers] == student.config.layer_types
    assert student_map.parts["student layer 1"] == "teacher layer 2 (index 1); dropped: attn_norm.weight"


def test_a_list_as_long_as_the_layers_but_not_about_them_is_kept():
    config = copy.deepcopy(CONFIGS["deberta-v3"])
    config.num_hidden_layers = len(config.pos_att_type)
    student = student_from_teacher(AutoModelForQuestionAnswering.from_config(config), "first:1", verbose=False)
    assert student.config.pos_att_type == ["p2c", "c2p"]


def test_the_attention_implementation_is_kept():
    teacher = make("bert")
    teacher.set_attn_implementation("eager")
    student = student_from_teacher(teacher, f"even:{LAYERS}", verbose=False)
    assert student.config._attn_implementation == "eager"
    assert torch.equal(outputs(student), outputs(teacher))


@pytest.mark.parametrize("training", [True, False])
def test_precision_and_mode_follow_the_source(training):
    student = student_from_teacher(make("modernbert").bfloat16().train(training), "even:2", verbose=False)
    assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}
    assert student.training is training


def test_a_folder_without_a_head_gets_a_seeded_new_one(tmp_path):
    teacher = make("bert", auto_class=AutoModel)
    teacher.save_pretrained(tmp_path)
    student, student_map = cut_student(str(tmp_path), "last:2", model_class=AutoModelForQuestionAnswering, seed=5)
    again, _ = cut_student(str(tmp_path), "last:2", model_class=AutoModelForQuestionAnswering, seed=5)
    classifier, _ = cut_student(str(tmp_path), "last:2", model_class=AutoModelForSequenceClassification)
    assert type(student).__name__ == "BertForQuestionAnswering"
    assert type(classifier).__name__ == "BertForSequenceClassification"
    assert student_map.parts["qa_outputs"] == "new" and student_map.parts["embeddings"] == "copied"
    assert torch.equal(student.qa_outputs.weight, again.qa_outputs.weight)
    assert torch.equal(student.bert.encoder.layer[1].output.dense.weight, teacher.encoder.layer[5].output.dense.weight)


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForMaskedLM]
)
def test_a_folder_s_student_has_the_head_that_its_config_names(tmp_path, auto_class):
    teacher = make("bert", auto_class=auto_class)
    teacher.save_pretrained(tmp_path)
    student = student_from_teacher(str(tmp_path), "even:2", verbose=False)
    again = student_from_teacher(teacher, "even:2", verbose=False)
    assert type(student) is type(teacher)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None}))
    assert type(student_from_teacher(str(tmp_path), "even:2", verbose=False)).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("layers", "total", "expected"),
    [
        ("even:3", 6, [1, 3, 5]),
        ("even:3", 12, [3, 7, 11]),
        ("even:1", 12, [11]),
        ("even:5", 5, [0, 1, 2, 3, 4]),
        ("first:3", 12, [0, 1, 2]),
        ("last:3", 12, [9, 10, 11]),
        ([0, 4, 8], 12, [0, 4, 8]),
        ((2,), 3, [2]),
    ],
)
def test_specifications(layers, total, expected):
    assert pick_layers(layers, total) == expected


def test_even_is_increasing_and_ends_at_the_last_layer_for_every_count():
    for total in range(1, 49):
        for n in range(1, total + 1):
            picked = pick_layers(f"even:{n}", total)
            assert len(picked) == n and picked == sorted(set(picked)) and picked[0] >= 0 and picked[-1] == total - 1


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("even:7", ['layers="even:7"', "1 to 6 of 6", '"even:3"']),
        ("even:0", ['layers="even:0"', "1 to 6 of 6"]),
        ("last:-1", ['layers="last:-1"', "1 to 6 of 6"]),
        ("first", ['layers="first"', '"first:3"']),
        ("frist:4", ['layers="frist:4"', "did you mean 'first'?"]),
        ([0, 6], ["layers=[0, 6]", "no [6]", "from 0 to 5"]),
        ([-1, 2], ["no [-1]"]),
        ([3, 1], ["layers=[3, 1]", "increase", "[1, 3]"]),
        ([1, 1], ["layers=[1, 1]", "repeats", "write [1]"]),
        ([], ["layers=[]", '"even:3"']),
        (3, ["layers=3", '"even:3"']),
        ([0, 1.0], ["layers=[0, 1.0]", "indices"]),
    ],
    ids=str,
)
def test_layers_that_cannot_be_picked_are_refused(layers, words):
    message = refusal(lambda: student_from_teacher(make("bert"), layers))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("bert", {"hiden_size": 8}, ["'hiden_size'", "BertConfig", "did you mean 'hidden_size'?"]),
        ("distilbert", {"attention_drop": 0.0}, ["did you mean 'attention_dropout'?"]),
        ("bert", {"model_type": "roberta"}, ["'model_type' is not a field"]),
        ("bert", {"num_hidden_layers": 3}, ["num_hidden_layers=3", 'layers="even:3"']),
        ("distilbert", {"n_layers": 3}, ["n_layers=3", 'layers="even:3"']),
        ("bert", {"hidden_size": 18}, ["hidden_size=18", "num_attention_heads=4", "multiple"]),
        ("distilbert", {"dim": 18}, ["hidden_size=18", "num_attention_heads=4"]),
        ("bert", {"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ("bert", {"hidden_size": "wide"}, ["'hidden_size': 'wide'", "expected int"]),
        ("bert", {"hidden_act": "gleu"}, ["'hidden_act': 'gleu'", "BertForQuestionAnswering"]),
    ],
    ids=str,
)
def test_overrides_that_do_not_fit_are_refused(name, overrides, words):
    message = refusal(lambda: student_from_teacher(make(name), "even:2", init="random", **overrides))
    assert all(word in message for word in words), message


def test_sources_that_are_no_encoders_are_refused(tmp_path):
    qa = AutoModelForQuestionAnswering
    gpt2 = qa.from_config(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=1))
    t5 = qa.from_config(T5Config(num_layers=2, d_model=8, num_heads=2, d_ff=8, d_kv=4, vocab_size=20))
    shared = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 4, "vocab_size": 20}
    albert = qa.from_config(AlbertConfig(**shared, num_hidden_layers=3))
    decoder = AutoModel.from_config(BertConfig(**COMMON, is_decoder=True))
    assert "GPT2ForQuestionAnswering is a decoder" in refusal(lambda: student_from_teacher(gpt2, "first:1"))
    assert "BertModel is a decoder" in refusal(lambda: student_from_teacher(decoder, "first:1"))
    assert "T5ForQuestionAnswering is an encoder-decoder" in refusal(lambda: student_from_teacher(t5, "first:1"))
    assert "albert.encoder.albert_layer_groups (1)" in refusal(lambda: student_from_teacher(albert, "first:1"))
    missing = str(tmp_path / "missing")
    assert missing in refusal(lambda: student_from_teacher(missing))


def test_a_loaded_encoder_pools_as_its_folder_says(tmp_path):
    make("bert", auto_class=AutoModel).save_pretrained(tmp_path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    loaded = AutoModel.from_pretrained(tmp_path)
    students = [student_from_teacher(source, "first:2", verbose=False) for source in (str(tmp_path), loaded)]
    assert [sentence_pooling(student.config).kind for student in students] == ["cls", "cls"]
    assert not hasattr(loaded.config, SENTENCE_POOLING)


def test_how_a_teacher_was_loaded_is_not_the_students_business():
    options = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    teacher = make("bert")
    teacher.set_attn_implementation("eager")
    for name, value in options.items():
        setattr(teacher.config, name, value)
    student = student_from_teacher(teacher, "first:2", verbose=False)
    assert not student.config.output_hidden_states and not student.config.output_attentions
    assert student.config.return_dict and set(student(**batch())) == {"start_logits", "end_logits"}


class Adapted(nn.Module):
    """A linear layer as libraries of adapters wrap it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x)


def test_layers_that_were_changed_after_loading_are_refused():
    teacher = make("bert")
    attention = teacher.bert.encoder.layer[1].attention.self
    attention.query = Adapted(attention.query)
    for layers in ("first:2", [1], "best:1"):
        message = refusal(lambda: student_from_teacher(teacher, layers))  # noqa: B023
        assert "has no bert.encoder.layer.1.attention.self.query.weight" in message and "merge adapters" in message
    pruned = make("bert")
    nn.utils.prune.l1_unstructured(pruned.bert.encoder.layer[0].output.dense, "weight", 0.5)
    assert "as where adapters, pruning" in refusal(lambda: student_from_teacher(pruned, "first:1"))
    smaller = make("bert")
    smaller.bert.encoder.layer[2].intermediate.dense = nn.Linear(16, 8)
    assert "has no bert.encoder.layer.2.intermediate.dense.weight" in refusal(lambda: student_from_teacher(smaller))


def test_weights_that_an_override_adds_start_afresh():
    student, student_map = cut_student(make("modernbert"), "first:2", mlp_bias=True)
    assert find_layers(student)[1][0].mlp.Wi.bias is not None and "new: " in describe_map(student_map)


@pytest.mark.parametrize("layers", ["last:2", [2]], ids=str)
def test_biases_of_positions_that_the_first_layer_has_for_all_stay(layers):
    torch.manual_seed(0)
    config = T5Config(num_layers=4, d_model=16, num_heads=2, d_ff=8, d_kv=8, vocab_size=VOCABULARY)
    teacher = T5EncoderModel(config).eval()
    student, student_map = cut_student(teacher, layers)
    first = [find_layers(model)[1][0].layer[0].SelfAttention for model in (student, teacher)]
    assert torch.equal(*(each.relative_attention_bias.weight for each in first))
    assert "new" not in describe_map(student_map)
    picked = copy.deepcopy(teacher)
    blocks = picked.encoder.block
    kept = [copy.deepcopy(blocks[i]) for i in student_map.layers]
    kept[0].layer[0].SelfAttention.relative_attention_bias = blocks[0].layer[0].SelfAttention.relative_attention_bias
    kept[0].layer[0].SelfAttention.has_relative_attention_bias = True
    picked.encoder.block = nn.ModuleList(kept)
    ids = {"input_ids": torch.randint(2, VOCABULARY, (2, 9))}
    torch.testing.assert_close(student(**ids).last_hidden_state, picked(**ids).last_hidden_state)
    full, cut = [model(**ids).last_hidden_state.mean(1) for model in (teacher, student)]
    (difference,) = layer_choice._differences(teacher, [tuple(student_map.layers)], [ids]).values()
    assert difference == pytest.approx(1 - F.cosine_similarity(cut, full).mean().item(), abs=1e-5)


def test_names_of_classes_keep_one_order():
    teacher = make("bert", "classification")
    student = student_from_teacher(teacher, "first:1", id2label={0: "a", 1: "b", 2: "c"}, verbose=False)
    assert student.config.label2id == {"a": 0, "b": 1, "c": 2} and student.config.num_labels == 3
    student = student_from_teacher(teacher, "first:1", id2label={"0": "a", "1": "b"}, verbose=False)
    assert student.config.label2id == {"a": 0, "b": 1}
    student = student_from_teacher(teacher, "first:1", label2id={"x": 0, "y": 1}, verbose=False)
    assert student.config.id2label == {0: "x", 1: "y"}


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: None, lambda model: nn.Linear(2, 2)])
def test_what_is_no_plain_model_is_refused(wrap):
    message = refusal(lambda: student_from_teacher(wrap(make("bert")), "first:1"))
    assert "expected a PreTrainedModel, a folder or a Hub id" in message and "\n" not in message and len(message) < 250


def test_shared_and_staged_layers_are_refused():
    groups = AlbertConfig(**COMMON, embedding_size=8, num_hidden_groups=LAYERS)
    assert "albert_layer_groups (6)" in refusal(lambda: student_from_teacher(AlbertModel(groups), "first:2"))
    swin = SwinForImageClassification(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    )
    assert "heads by stage" in refusal(lambda: student_from_teacher(swin, [0]))


def test_find_layers_takes_the_outermost_list_and_refuses_two():
    model = make("bert")
    name, layers = find_layers(model)
    assert name == "bert.encoder.layer" and layers is model.bert.encoder.layer
    layers[0].experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(LAYERS)])
    assert find_layers(model) == (name, layers)
    model.adapters = nn.ModuleList([nn.Linear(2, 2) for _ in range(LAYERS)])
    message = refusal(lambda: find_layers(model))
    assert "2 lists of config.num_hidden_layers=6" in message
    assert "bert.encoder.layer (6)" in message and "adapters (6)" in message


def test_a_checkpoint_in_half_precision_gives_a_student_in_fp32(tmp_path):
    tiny.bert(layers=2).half().save_pretrained(tmp_path)
    student, _ = cut_student(str(tmp_path), "first:1", model_class=AutoModelForQuestionAnswering)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("layers,period", [([0, 1, 2], 3), ([0, 2, 3], 2), ([3], 1), ([4, 5], None)])
def test_a_modernbert_tells_transformers_4_which_layers_attend_globally(layers, period):
    config = resized_config(ModernBertConfig(num_hidden_layers=6), layers, {})
    assert config.layer_types == [ModernBertConfig(num_hidden_layers=6).layer_types[i] for i in layers]
    assert config.to_dict().get("global_attn_every_n_layers") == period


def test_a_modernbert_tells_transformers_4_its_rotations():
    kinds = {"full_attention": 3e4, "sliding_attention": 2e4}
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds.items()}
    values = resized_config(ModernBertConfig(num_hidden_layers=6, rope_parameters=rope), [0, 2], {}).to_dict()
    assert values["global_rope_theta"] == 3e4 and values["local_rope_theta"] == 2e4
    assert ModernBertConfig.from_dict(values).rope_parameters == rope


def test_embeddings_as_wide_as_the_hidden_states_stay_so_at_random():
    teacher = ElectraModel(ElectraConfig(**COMMON, **SPECIAL, embedding_size=COMMON["hidden_size"]))
    options = {"hidden_size": 8, "num_attention_heads": 2, "init": "random"}
    student, _ = cut_student(teacher, "first:2", **options)
    assert student.get_input_embeddings().embedding_dim == 8
