"""Every architecture that transformers has a head for, made tiny, and judged as teacher and as student."""

import itertools
import math
import re
import tempfile
import traceback
import warnings
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)
from transformers.models.auto import modeling_auto

from itrd_nlp.distillation.distiller import build_distiller
from itrd_nlp.distillation.feature_extractor import ForwardHooks, accepted_inputs
from itrd_nlp.distillation.layers import find_layers, is_norm, layer_modules
from itrd_nlp.models.loading import load_checkpoint, quiet
from itrd_nlp.models.students import cut_student
from itrd_nlp.utils.errors import UserError

VOCABULARY, POSITIONS, LAYERS, LENGTH, CLASSES, SIDE = 64, 128, 4, 12, 3, 32
LARGEST = 60_000_000  # parameters of what can be tried in seconds
POLICIES = (
    "",
    "layers",
    "sizes",
    "layers sizes",
    "layers sizes images",
)  # what is left as it is, tried in turn until a forward works
HEADS = {
    "QUESTION_ANSWERING": AutoModelForQuestionAnswering,
    "SEQUENCE_CLASSIFICATION": AutoModelForSequenceClassification,
    "TOKEN_CLASSIFICATION": AutoModelForTokenClassification,
    "IMAGE_CLASSIFICATION": AutoModelForImageClassification,
}
SIZES = {  # what the names of a config's fields say, and what is small; the first that fits counts
    r"num_labels|.*(dropout|eps|std|range|theta|factor|prob|scale|rate)$": None,
    r"rotary_dim": 4,
    r"(\w+_)?head_dim|d_kv|attention_head_size|d_head|global_head_dim|key_value_proj_dim": 8,
    r"(\w+_)?lora_rank": 8,
    r"vocab_size|(\w+_)?vocab_size|n_words": VOCABULARY,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_source_positions": POSITIONS,
    r"num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_(en|de)coder_layers|num_blocks": LAYERS,
    r"(\w+_)?(hidden_size|d_model|n_embd|embed_dim|embedding_size|dim|d_embed|hidden_dim|emb_dim|projection_dim)": 32,
    r"(\w+_)?(intermediate_size|ffn_dim|d_ff|d_inner|n_inner|ffn_hidden_size|intermediate_dim|feedforward_size)": 48,
    r"(\w+_)?(num_attention_heads|n_heads?|num_heads|attention_heads|num_key_value_heads|n_head_kv|num_kv_heads)": 4.0,
    r"num_(local_|routed_)?experts|n_routed_experts": 4.0,
    r"num_experts_per_tok|moe_topk|top_k|n_group|topk_group|n_shared_experts": 1,
    r"image_size": SIDE,
}


ROLES = ("teacher", "student")


class Verdict(NamedTuple):
    outcome: str  # right, refused, wrong, or not makeable
    reason: str = ""


def kinds(head: str) -> list[str]:
    """The model types that have a head; of "HEADLESS", those of texts with any head."""
    if head == "HEADLESS":
        texts = [kinds(name) for name in HEADS if not name.startswith("IMAGE")]
        return sorted({*itertools.chain(*texts)} & {*modeling_auto.MODEL_MAPPING_NAMES})
    return sorted(getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES"))


def small(values: dict[str, Any], left: str) -> dict[str, Any]:
    """The fields of a config that are sizes, small, but those of the kinds that are ``left``."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            made[name] = {
                **small(value, left),
                **({"model_type": value["model_type"]} if "model_type" in value else {}),
            }
        elif type(value) is int or value is None:
            size = next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), None)
            kind = {LAYERS: "layers", VOCABULARY: "", POSITIONS: ""}.get(size, "sizes")
            kind = "images" if name == "image_size" else kind
            if size is not None and kind not in left.split() and (value is None or value > size):
                made[name] = int(size)
            elif value is None:
                continue
            elif name.endswith("token_id") and value >= VOCABULARY:
                made[name] = 2
    return made


def tiny(head: str, kind: str) -> Any:
    """A tiny model with random weights.

    Raises:
        Exception: whatever transformers raises for a config that is small in this way.
        ImportError: a library that it needs is missing.
    """
    models, errors = [], []
    for left in POLICIES:
        try:
            models.append(_made(head, kind, left))
            with torch.no_grad():
                models[-1](**accepted_inputs(models[-1], batch_of(models[-1], head)))
            return models[-1]
        except Exception as error:
            errors.append(error)
    if models and re.search(r"specify|missing|NoneType|must be given|required", str(errors[0])):
        return models[0]  # it takes more than a text or an image
    raise errors[-1]


def _made(head: str, kind: str, left: str) -> Any:
    model_class = HEADS.get(head, AutoModel)
    whole = AutoConfig.for_model(kind)
    fields = small(whole.to_dict(), left)
    for name, value in fields.items():
        if isinstance(value, dict):
            inner = getattr(whole, name)
            if isinstance(inner, PretrainedConfig):
                fields[name] = type(inner)(**value)
    labels = {} if head in ("HEADLESS", "QUESTION_ANSWERING") else {"num_labels": CLASSES}
    config = AutoConfig.for_model(kind, **fields, **labels)
    if getattr(config, "pad_token_id", None) is None and head != "IMAGE_CLASSIFICATION":
        config.pad_token_id = 0
    config.architectures = []  # of several classes for one head, such as DeiT's, the first is made
    with torch.device("meta"):
        count = sum(p.numel() for p in model_class.from_config(config).parameters())
    if count > LARGEST:
        raise MemoryError(f"{count:,} parameters")
    torch.manual_seed(0)
    return model_class.from_config(config).eval()


def batch_of(model: Any, head: str, labels: bool = True) -> dict[str, torch.Tensor]:
    """Three texts of other lengths than their number, one padded; or three images."""
    draw = torch.Generator().manual_seed(1)
    if head == "IMAGE_CLASSIFICATION":
        side = model.config.image_size if isinstance(getattr(model.config, "image_size", None), int) else SIDE
        channels = getattr(model.config, "num_channels", 3)
        batch = {"pixel_values": torch.randn(3, channels, side, side, generator=draw)}
        return {**batch, "labels": torch.tensor([0, 1, 2])} if labels else batch
    ids = torch.randint(5, VOCABULARY - 4, (3, LENGTH), generator=draw)
    padding, end = [getattr(model.config, f"{name}_token_id", None) for name in ("pad", "eos")]
    padding, end = padding or 0, (end[0] if isinstance(end, list) else end) or 2
    ids[1, 8:] = padding
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    ids[0, -1] = ids[2, -1] = ids[1, 7] = end
    if head == "QUESTION_ANSWERING" and isinstance(apart := getattr(model.config, "sep_token_id", None), int):
        ids[:, 3] = ids[:, 5] = ids[0, -1] = ids[2, -1] = ids[1, 7] = apart  # Longformer counts them
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels and head == "QUESTION_ANSWERING":
        batch |= {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 3, 4])}
    elif labels and head == "SEQUENCE_CLASSIFICATION":
        batch["labels"] = torch.tensor([0, 1, 2])
    elif labels and head == "TOKEN_CLASSIFICATION":
        batch["labels"] = (ids % CLASSES).masked_fill(mask == 0, -100)
    return batch


def other(head: str, batch: dict[str, torch.Tensor]) -> Any:
    """A student, or teacher, that any architecture is paired with."""
    torch.manual_seed(2)
    common = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    if head == "IMAGE_CLASSIFICATION":
        channels, side, _ = batch["pixel_values"].shape[1:]
        fields = {"image_size": side, "patch_size": side // 4, "num_channels": channels, "num_labels": CLASSES}
        config = AutoConfig.for_model("vit", **fields, **common)
    else:
        labels = {} if head in ("HEADLESS", "QUESTION_ANSWERING") else {"num_labels": CLASSES}
        config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **labels, **common)
    return HEADS.get(head, AutoModel).from_config(config).eval()


def judge(head: str, kind: str) -> dict[str, Verdict]:
    """Whether an architecture is read right, or refused in one line, as ``teacher`` and as ``student``."""
    with warnings.catch_warnings(), quiet(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            model = tiny(head, kind)
        except Exception as error:
            verdict = Verdict("not makeable", f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
            return dict.fromkeys(ROLES, verdict)
        model.save_pretrained(folder)
        return {role: _verdict(head, model, role, folder) for role in ROLES}


def _verdict(head: str, model: Any, role: str, folder: str) -> Verdict:
    try:
        _check(head, model, role, folder)
    except UserError as error:
        fine = "\n" not in str(error) and len(str(error)) < 800
        return Verdict("refused" if fine else "wrong", str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:200]
        return Verdict("wrong", f"{type(error).__name__}: {told} ({place.filename}:{place.lineno})")
    return Verdict("right")


def _check(head: str, model: Any, role: str, folder: str) -> None:
    model_class = HEADS.get(head, AutoModel)
    batch = batch_of(model, head)
    loaded = load_checkpoint(folder, model_class)
    assert not loaded.new, f"loading makes {sorted(loaded.new)[0]} new"
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name]), f"{name} is loaded changed"
    model = loaded.model
    if role == "teacher":
        teacher, student = model, other(head, batch)
    elif head == "IMAGE_CLASSIFICATION":
        teacher, student = other(head, batch), model
    else:
        teacher, (student, _) = model, cut_student(model, "even:2")
    headless = head == "HEADLESS"
    losses: dict[str, Any] = {"itrd": {}} if headless else {"itrd": {}, "kd": {}}
    weight = 0.0 if headless else 1.0
    distiller, reader = build_distiller(student, teacher, batch, losses=losses, layer_map="even", task_weight=weight)
    if head != "IMAGE_CLASSIFICATION" and role == "student":
        _check_reload(student, model_class, head, f"{folder}/cut")
    _check_features(model if role == "teacher" else student, batch)
    with torch.no_grad():
        _, said = reader(teacher, batch)
        plain = teacher(**accepted_inputs(teacher, batch))
    for name, value in said.logits.items():
        wanted = plain[name]
        if name in ("start_logits", "end_logits"):
            wanted = wanted.masked_fill(batch["attention_mask"] == 0, -1e4)
        elif head == "TOKEN_CLASSIFICATION":
            wanted = wanted[batch["attention_mask"].bool()]
        assert torch.equal(value, wanted), f"{name} is not what the teacher says"
    distiller.train()
    made = distiller(teacher=said, **batch)
    assert made["loss"].isfinite(), "the loss is not finite"
    assert math.isclose(sum(made["terms"].values()).item(), made["loss"].item(), rel_tol=1e-5)
    made["loss"].backward()
    for name in _trained(student):
        grads = [p.grad for p in student.get_submodule(name).parameters() if p.grad is not None]
        assert any(bool(grad.abs().sum() > 0) for grad in grads), f"no gradient reaches {name}"
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)  # random weights under batch norm have gradients of 1e8
    torch.optim.SGD(student.parameters(), 1e-3).step()
    _check_reload(student, model_class, head, f"{folder}/trained")


def _trained(student: Any) -> list[str]:
    """The layers, or stages of an image classifier."""
    if student.main_input_name == "pixel_values":
        return [name.removesuffix(":input") for name in layer_modules(student)[1:-1]]
    name, layers = find_layers(student)
    return [f"{name}.{i}" for i in range(len(layers))]


def _check_reload(model: Any, model_class: Any, head: str, folder: str) -> None:
    model.save_pretrained(folder)
    again = model_class.from_pretrained(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), f"{name} is reloaded changed"
    batch = accepted_inputs(model, batch_of(model, head, labels=False))
    with torch.no_grad():
        first, second = [m.eval()(**batch) for m in (model, again)]
    names = [name for name in first if name.endswith("logits") or name == "last_hidden_state"]
    assert names, "the model has no outputs to compare"
    for name in names:
        same = torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6)  # convolutions differ by alignment
        assert same, f"{name} is another after reloading"


def _check_features(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """What hooks read of each layer is what the model itself tells, where it does."""
    hooks = layer_modules(model)
    inputs = {key: value for key, value in accepted_inputs(model, batch).items() if "label" not in key}
    inputs = {key: value for key, value in inputs.items() if not key.endswith("_positions")}
    model.eval()
    with torch.no_grad(), ForwardHooks(model, hooks) as seen:
        outputs = model(**inputs, output_hidden_states=True)
    states = outputs.get("hidden_states") or ()
    if model.main_input_name == "pixel_values":
        for x in seen.features:
            assert len(x) == 3, f"an image's layer has the shape {tuple(x.shape)}"
        _check_maps(model, seen.features, states)
        return
    if len(states) != len(hooks):
        assert not states, f"{len(states)} hidden states of {len(hooks) - 1} layers"
        assert all(x.shape[:2] == batch["input_ids"].shape for x in seen.features)
        return
    mask = batch["attention_mask"].bool()
    for i, (x, told) in enumerate(zip(seen.features, states, strict=True)):
        x = x[:, : mask.shape[1]]
        same = x.shape == told.shape and torch.allclose(x[mask], told[mask], rtol=1e-4, atol=1e-5)
        if not same and i == len(hooks) - 1 and is_norm(norm := model.get_submodule(hooks[i])):
            with torch.no_grad():  # some tell the state before their final norm
                same = torch.allclose(x[mask], norm(told)[mask], rtol=1e-4, atol=1e-5)
        assert same, f"layer {i} is not the model's hidden state"


def _check_maps(model: Any, features: tuple[torch.Tensor, ...], states: tuple[torch.Tensor, ...]) -> None:
    """Of an image classifier: the width of each stage is where the pooling looks for it."""
    told = {tuple(state.shape) for state in states}
    for i, x in enumerate(features[1:-1]):
        if x.ndim == 4 and states:
            assert tuple(x.shape) in told, f"stage {i} has the shape {tuple(x.shape)}, the model tells {sorted(told)}"
