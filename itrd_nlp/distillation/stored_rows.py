"""A teacher's representation of a batch as rows for each example, as they are stored, and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from itrd_nlp.distillation.alignment import FIRST_TOKENS
from itrd_nlp.distillation.feature_extractor import PADDING_LOGIT, FeatureExtractor
from itrd_nlp.distillation.pooling import real_tokens, text_mask, token_mask
from itrd_nlp.losses.base import SPAN_HEADS, Representation


def split_rows(
    representation: Representation, batch: Mapping[str, Tensor], extractor: FeatureExtractor
) -> list[dict[str, Tensor]]:
    """A batch's representation as one dict of rows for each example, by output; padding is left out.

    Args:
        representation: pooled as ``extractor.stored``.
    """
    mask = representation.mask
    examples = len(next(iter(batch.values())))
    parts: dict[str, Sequence[Tensor]] = {}
    for head, value in representation.logits.items():
        if head in SPAN_HEADS and mask is not None:
            parts[head] = value[mask].split(mask.sum(1).tolist())
        elif len(value) == examples or mask is None:
            parts[head] = value.split(len(value) // examples)
        else:
            parts[head] = value.split(real_tokens(batch).sum(1).tolist())
    for output, value in zip(extractor.feature_outputs, representation.features, strict=True):
        samples = len(value) // examples if mask is None else extractor.stored.samples(batch).tolist()
        parts[output] = value.split(samples)
    for output, value in zip(extractor.attention_outputs, representation.attention, strict=True):
        parts[output] = value.split(text_mask(batch).sum(1).tolist())
    return [{output: values[i] for output, values in parts.items()} for i in range(examples)]


def join_rows(stored: Mapping[str, Tensor], batch: Mapping[str, Tensor], extractor: FeatureExtractor) -> Representation:
    """The teacher's representation of a batch, from its stored rows: the opposite of :func:`split_rows`."""
    mask = token_mask(batch)
    logits = {head: stored[head] for head in extractor.heads}
    for head, value in logits.items():
        if head in SPAN_HEADS and mask is not None:
            padded = torch.full(mask.shape, PADDING_LOGIT, device=mask.device)
            logits[head] = padded.masked_scatter(mask, value.float())
        elif FIRST_TOKENS in batch:  # all real tokens, where losses compare the first one of each word
            logits[head] = value[batch[FIRST_TOKENS][real_tokens(batch)].bool()]
    features = tuple(stored[output] for output in extractor.feature_outputs)
    if extractor.stored.kind != extractor.pooling.kind and mask is not None:  # all tokens, where losses see real ones
        real = real_tokens(batch)[mask].nonzero().squeeze(1)  # found once, which waits
        features = tuple(x.index_select(0, real) for x in features)
    return Representation(
        logits, features, mask, attention=tuple(stored[output] for output in extractor.attention_outputs)
    )


def size_of(
    probes: Sequence[Mapping[str, Tensor]],
    examples: int,
    lengths: Sequence[int] | None,
    extractor: FeatureExtractor,
    itemsize: int,
) -> dict[str, int]:
    """Bytes of each output of all examples, judged by the rows of a few: an upper bound, without the headers of files.

    Args:
        lengths: tokens of each example, where known.
        itemsize: bytes of a stored number.
    """
    sizes = {}
    for output in probes[0]:
        most = max(len(probe[output]) for probe in probes)
        if most == 1:
            rows = examples
        elif lengths is None:
            rows = examples * most
        else:
            sampled = output in extractor.feature_outputs and extractor.stored.count
            rows = sum(min(sampled or length, length) for length in lengths)
        sizes[output] = rows * probes[0][output][:1].numel() * itemsize + examples * 8
    return sizes
