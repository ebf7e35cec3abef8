"""Alignment of a teacher's tokens with those of a student that cuts the same texts in another way.

Tokens are compared by the characters that they stand for. A token's span is its first character and the one behind its
last, counted over all texts of an example; a special token has a slot instead, see :data:`BEFORE`. Spans are what fast
tokenizers call offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# what both ends of a span say of a token without characters
BEFORE = -1  # a special token before the first text; -2 one behind it, -3 one behind the second text
PADDING = -100
TEACHER = "teacher_"  # before the columns of a batch that hold the teacher's tokens of its texts
SPANS, WORDS = "spans", "first_tokens"  # columns: of all tokens; True at the first token of each word that has a tag

Span = tuple[int, int]


def is_paired(batch: Mapping[str, Tensor]) -> bool:
    """Whether a batch holds its texts as the teacher's tokens too."""
    return f"{TEACHER}input_ids" in batch


def teacher_view(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A batch as the teacher reads it."""
    if not is_paired(batch):
        return batch
    return {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}


def text_spans(offsets: Sequence[Span], sequence_ids: Sequence[int | None], starts: Sequence[int]) -> list[Span]:
    """The spans of the tokens of one example.

    Args:
        offsets: of each token, in its own text.
        sequence_ids: which text each token belongs to; None: a special token.
        starts: the characters before each text.

    Example:
        >>> text_spans([(0, 0), (0, 2), (0, 0), (1, 4), (0, 0)], [None, 0, None, 1, None], [0, 3])
        [(-1, -1), (0, 2), (-2, -2), (4, 7), (-3, -3)]
    """
    spans, slot = [], BEFORE
    for (begin, end), text in zip(offsets, sequence_ids, strict=True):
        if text is None:
            spans.append((slot, slot))
        else:
            slot = BEFORE - 1 - text
            spans.append((starts[text] + begin, starts[text] + end))
    return spans


def feature_weights(teacher: Tensor, student: Tensor) -> Tensor:
    """How much each student token counts in the student's feature of each teacher token.

    A teacher's token gets the student's token of the same characters; where there is none, the mean over the tokens
    that share characters with it, weighted by how many; else the nearest one.

    Args:
        teacher: (batch, t, 2) spans.
        student: (batch, s, 2) spans of the same texts.

    Returns:
        (batch, t, s): the row of a token with characters sums to 1, that of a special token or padding is 0. The
        identity on tokens with characters where both tokenizers are the same.
    """
    shared, same = _shared_characters(teacher, student), _same_characters(teacher, student)
    total = shared.sum(2, keepdim=True)
    weights = torch.where(total > 0, shared / total.clamp_min(1), _nearest(teacher, student))
    return torch.where(same.any(2, keepdim=True), same.float(), weights) * (teacher[..., :1] >= 0)


def align_features(layers: Sequence[Tensor], batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The student's (batch, s, d) layers as features of the teacher's tokens, (batch, t, d) in fp32."""
    if not layers:
        return []
    weights = feature_weights(batch[TEACHER + SPANS], batch[SPANS])
    with torch.autocast(weights.device.type, enabled=False):
        return [weights @ x.float() for x in layers]


def span_weights(teacher: Tensor, student: Tensor) -> Tensor:
    """To which of the teacher's tokens the probability of each student token goes.

    It goes to the teacher's token of the same characters; where there is none, it is divided among the tokens that
    share characters with it, by how many; else it goes to the nearest one. That of a special token goes to the
    teacher's in the same slot: the first to the first, the second to the second where there is one, else to the last;
    in an empty slot to the first token.

    Args:
        teacher: (batch, t, 2) spans.
        student: (batch, s, 2) spans of the same texts.

    Returns:
        (batch, t, s): the column of every token but padding sums to 1, so no probability is lost. The identity where
        both tokenizers are the same.
    """
    shared, same = _shared_characters(teacher, student), _same_characters(teacher, student)
    total = shared.sum(1, keepdim=True)
    weights = torch.where(total > 0, shared / total.clamp_min(1), _nearest(student, teacher).mT)
    weights = torch.where(same.any(1, keepdim=True), same.float(), weights)
    is_text = student[:, None, :, 0] >= 0
    return torch.where(is_text, weights, _same_role(teacher, student)) * (student[:, None, :, 0] != PADDING)


def move_spans(logits: Tensor, weights: Tensor, least: float = 1e-9) -> Tensor:
    """The distribution of a span head over the teacher's tokens.

    Args:
        logits: (batch, s) of the student, very low at padding.
        weights: (batch, t, s) :func:`span_weights`.
        least: probability below which none falls, so that its logarithm is finite.

    Returns:
        (batch, t) logarithms of the moved probabilities.
    """
    probabilities = torch.einsum("bts,bs->bt", weights, logits.float().softmax(1))
    return probabilities.clamp_min(least).log()


def _shared_characters(teacher: Tensor, student: Tensor) -> Tensor:
    """(batch, t, s) number of characters that two tokens share; 0 for tokens without characters."""
    begin = torch.maximum(teacher[:, :, None, 0], student[:, None, :, 0])
    end = torch.minimum(teacher[:, :, None, 1], student[:, None, :, 1])
    return (end - begin).clamp_min(0).float()


def _same_characters(teacher: Tensor, student: Tensor) -> Tensor:
    """(batch, t, s): True for two tokens of equal spans, one to one: an emoji's bytes are tokens of one span."""
    equal = (teacher[:, :, None] == student[:, None]).all(3) & (teacher[:, :, None, 0] >= 0)
    as_many = equal.sum(1, keepdim=True) == equal.sum(2, keepdim=True)
    return equal & as_many & (_rank(teacher)[:, :, None] == _rank(student)[:, None])


def _nearest(some: Tensor, others: Tensor) -> Tensor:
    """(batch, m, n): 1 at the nearest of ``others``, the first of several; any token where none has characters."""
    gap = torch.maximum(others[:, None, :, 0] - some[:, :, None, 1], some[:, :, None, 0] - others[:, None, :, 1])
    far = torch.iinfo(gap.dtype).max // 2
    special, padding = others[:, None, :, 0] < 0, others[:, None, :, 0] == PADDING
    gap = gap.clamp_min(0).masked_fill(special, far).masked_fill(padding, far + 1)
    return torch.zeros_like(gap, dtype=torch.float).scatter_(2, gap.argmin(2, keepdim=True), 1.0)


def _same_role(teacher: Tensor, student: Tensor) -> Tensor:
    """(batch, t, s): 1 where two special tokens have the same slot and rank in it."""
    slots, ours = teacher[:, :, None, 0], student[:, None, :, 0]
    rank_t, rank_s = _rank(teacher)[:, :, None], _rank(student)[:, None]
    same = (slots == ours) & (ours < 0)
    last = (same.sum(1, keepdim=True) - 1).clamp_min(0)
    chosen = same & (rank_t == torch.minimum(rank_s, last))
    empty = ~same.any(1, keepdim=True)
    first = torch.zeros_like(same)
    first[:, 0] = True
    return torch.where(empty, first, chosen).float()


def _rank(spans: Tensor) -> Tensor:
    """(batch, n): how many tokens of the same span, or slot, stand before each."""
    before = torch.ones(spans.shape[1], spans.shape[1], dtype=torch.bool, device=spans.device).tril(-1)
    return ((spans[:, :, None] == spans[:, None]).all(3) & before).sum(2)
