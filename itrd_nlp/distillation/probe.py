"""Checks on one batch, before training: both models take it, are read right, and fit each other."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from itrd_nlp.distillation.alignment import FIRST_TOKENS, is_paired
from itrd_nlp.distillation.feature_extractor import (
    UNREAD,
    FeatureExtractor,
    ForwardHooks,
    accepted_inputs,
    without_appended,
)
from itrd_nlp.distillation.layers import is_norm, layer_modules
from itrd_nlp.distillation.pooling import text_mask
from itrd_nlp.losses import of_losses
from itrd_nlp.losses.base import SPAN_HEADS, Representation
from itrd_nlp.utils.errors import UserError, one_line
from itrd_nlp.utils.tokenizers import check_shared_vocabulary, table_rows

CLASS_TOKEN = re.compile(r"(^|\.)(cls_token|class_token|class_embedding)\w*$")  # a parameter


def check_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, probe: Mapping[str, Tensor]) -> None:
    """Refuse two models with different vocabularies, and a probe with token ids that one of them does not know."""
    if "input_ids" not in probe:
        return
    check_shared_vocabulary(teacher, student)
    rows = [count for model in (teacher, student) if (count := table_rows(model)) is not None]
    highest = int(probe["input_ids"].max())
    if rows and highest >= min(rows):
        raise UserError(
            f"the data holds token id {highest}, the models know ids below {min(rows)}: tokenise with the "
            "teacher's own tokenizer"
        )


def check_pairable(losses: Mapping[str, Any], pooling: str) -> None:
    """Refuse losses and poolings of one tokenizer's tokens, where teacher and student have tokenizers of their own."""
    if names := of_losses(losses, "reads_attention"):
        raise UserError(
            f"{names[0]} with a student that has a tokenizer of its own: it relates the tokens of a text with each "
            "other; expected a loss that compares features or logits, such as itrd or kd"
        )
    if pooling == "all_tokens":
        raise UserError(
            "pooling all_tokens with a student that has a tokenizer of its own: its special tokens are others; "
            "expected mean, cls, tokens or tokens:32"
        )


def check_heads(logits: Mapping[str, Tensor], probe: Mapping[str, Tensor]) -> None:
    """Refuse logits that losses cannot compare: of pixels, and of tokens that nothing pairs where teacher and student
    have tokenizers of their own."""
    unpaired = is_paired(probe) and FIRST_TOKENS not in probe
    for head, value in logits.items():
        if value.ndim > 3:
            raise UserError(
                f"{head} of shape {tuple(value.shape)}: expected classes of examples, (batch, classes), or of their "
                "tokens, (batch, length, classes); or losses on features, such as itrd"
            )
        if unpaired and head not in SPAN_HEADS and value.ndim == 3:
            raise UserError(
                "logits of tokens, and a student that has a tokenizer of its own: expected the words that both read, "
                "as `itrd distill --task tagging` gives them; or losses on features, such as itrd"
            )


@torch.no_grad()
def read_probe(
    model: PreTrainedModel, extractor: FeatureExtractor, probe: Mapping[str, Tensor], trains: bool = False
) -> tuple[Any, Representation]:
    """A model's outputs and representation of the probe, once it is known to take such batches and to be read right.

    A text model that trains must take them in train mode too: Reformer does not, at most lengths. An image classifier
    is not tried in train mode, as that would move the statistics of its batch norm.
    """
    device, training = next(model.parameters()).device, model.training
    batch = {key: value.to(device) for key, value in probe.items()}
    try:
        if trains and "input_ids" in batch:
            model.train()
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                outputs_of(model, batch)
        model.eval()
        outputs_of(model, batch)
        if "input_ids" in batch and (extractor.module_names or extractor.attention):
            check_features(model, batch, extractor)
        if "pixel_values" in batch and extractor.pooling.kind == "cls":
            check_class_token(model, batch, extractor)
        return extractor(model, batch)
    finally:
        model.train(training)


def outputs_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Any:
    """What a model returns for a batch; :class:`UserError` where it cannot take it."""
    inputs = accepted_inputs(model, batch)
    try:
        return model(**inputs)
    except Exception as error:  # a model of another kind may raise anything for lack of its own inputs
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
        raise UserError(f"{type(model).__name__} cannot take a batch of {shapes} ({one_line(error)})") from None


@torch.no_grad()
def check_features(model: nn.Module, batch: Mapping[str, Tensor], extractor: FeatureExtractor) -> None:
    """Refuse a text encoder whose layers, as hooks read them, are not its hidden states.

    Args:
        model: in eval mode.
        batch: some texts; one is left out where there are as many as tokens, so that the two axes differ in size.
        extractor: how the model would be read.

    Raises:
        UserError: a layer whose output is not (batch, length, d), or is not the hidden state that the model returns.
    """
    if batch["input_ids"].shape[0] == batch["input_ids"].shape[1]:
        batch = {key: value[1:] for key, value in batch.items()}
    shape, name = batch["input_ids"].shape, type(model).__name__
    inputs = {key: value for key, value in accepted_inputs(model, batch).items() if key not in find_labels(type(model))}
    names = layer_modules(model) if extractor.module_names else []
    with ForwardHooks(model, [*names, *extractor.attention]) as hooks:
        outputs = model(**inputs, output_hidden_states=True)
    for module, x in zip(hooks.names, hooks.features, strict=True):
        if x.ndim != 3 or len(x) != shape[0] or x.shape[1] < shape[1]:
            raise UserError(
                f"{name}: {module} gives {tuple(x.shape)} of {shape[0]} texts of {shape[1]} tokens: expected "
                f"(texts, tokens, width); {UNREAD}"
            )
    mask = text_mask(batch)
    layers = hooks.features[: len(names)]
    states = outputs.get("hidden_states") or outputs.get("encoder_hidden_states") or ()
    if names and len(states) == len(names):
        pairs = zip(layers, states, strict=True)
        same = [_agree(without_appended(x, batch), state, mask) for x, state in pairs]
        last, last_state = model.get_submodule(names[-1]), [*states][-1]
        if is_norm(last) and not same[-1] and getattr(last, "weight", last_state).shape[-1] == last_state.shape[-1]:
            # the model reports this state as it is before its final norm
            same[-1] = _agree(without_appended(layers[-1], batch), last(last_state), mask)
    else:  # without hidden states to compare, refuse what appends tokens
        same = [x.shape[1] == shape[1] for x in layers]
    for module in extractor.module_names:
        layer = names.index(module)
        if not same[layer]:
            raise UserError(f"{name}: what {module} gives is not hidden state {layer} of the model: {UNREAD}")


def check_class_token(model: nn.Module, batch: Mapping[str, Tensor], extractor: FeatureExtractor) -> None:
    """Refuse pooling cls of an image model's layers whose first token is a patch."""
    with ForwardHooks(model, extractor.module_names) as hooks:
        outputs_of(model, batch)
    has_token = any(CLASS_TOKEN.search(name) for name, _ in model.named_parameters())
    for name, x in zip(hooks.names, hooks.features, strict=True):
        if x.ndim == 3 and (not has_token or math.isqrt(x.shape[1]) ** 2 == x.shape[1]):  # patches alone, in a square
            raise UserError(f"pooling cls of {name}, which has no class token: expected mean or tokens")


def _agree(x: Tensor, state: Tensor, mask: Tensor) -> bool:
    """Whether two (batch, length, d) tensors agree where tokens are not padding."""
    return x.shape == state.shape and torch.allclose(x[mask].float(), state[mask].float(), rtol=1e-4, atol=1e-5)


def common_heads(
    teacher: Mapping[str, Any], student: Mapping[str, Any], headless: bool, by_token: bool = True
) -> tuple[str, ...]:
    """Names of the logits that both models return, in equal shapes; none of encoders without a head.

    ``by_token``: both read the same tokens, so that outputs for each token are equally many.
    """

    def shape(head: str, value: Tensor) -> tuple[int, ...]:
        of_tokens = head in SPAN_HEADS or value.ndim == 3
        return tuple(value.shape) if by_token or not of_tokens else (value.shape[0], *value.shape[2:])

    teacher_heads, student_heads = [
        {head: shape(head, value) for head, value in outputs.items() if head.endswith("logits")}
        for outputs in (teacher, student)
    ]
    if teacher_heads != student_heads or not (teacher_heads or headless):
        raise UserError(
            f"the teacher returns {teacher_heads or 'no logits'}, the student {student_heads or 'no logits'}: "
            "expected the same heads with the same number of classes; give both the same task head"
        )
    return tuple(teacher_heads)
