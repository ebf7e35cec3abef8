"""Alignment of a teacher's tokens with those of a student that cuts the same texts in another way.

Tokens are compared by the characters that they stand for. A token's span is its first character and the one behind its
last, counted over all texts of an example, as fast tokenizers report them. A special token has no characters but a
slot, negative on both ends of its span: before the first text, behind it, or behind the second.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from itrd_nlp.losses.base import SPAN_HEADS

TEACHER = "teacher_"  # before the columns of a batch that hold the teacher's tokens of its texts
ALIGNMENT = "alignment"  # column: (pairs, 4), see `align`; in a batch the two indices, (batch, pairs, 2) integers
WEIGHTS = "alignment_weights"  # of a batch: the two weights, (batch, pairs, 2)
FIRST_TOKENS = "first_tokens"  # column: 1 at the first token of each word that both models read
UNREACHED = 1e-9  # probability of a teacher's token at which no token of the student starts, or ends
BEFORE = -1  # slot of the special tokens before the first text; -2 behind it, -3 behind the second

Span = tuple[int, int]
Shares = dict[int, float]  # index of a token -> how much it counts


def text_spans(
    offsets: Sequence[Span], sequence_ids: Sequence[int | None], starts: Sequence[int], texts: Sequence[str] = ()
) -> list[Span]:
    """The spans of the tokens of one example, without the blanks around them, which some tokenizers count.

    Args:
        offsets: of each token, in its own text.
        sequence_ids: which text each token belongs to; None: a special token.
        starts: the characters before each text.
        texts: in which blanks are looked for.

    Example:
        >>> ids, texts = [None, 0, None, 1, None], ["Ada", "the wrote"]
        >>> text_spans([(0, 0), (0, 3), (0, 0), (3, 9), (0, 0)], ids, [0, 4], texts)
        [(-1, -1), (0, 3), (-2, -2), (8, 13), (-3, -3)]
    """
    spans, slot = [], BEFORE
    for (begin, end), text in zip(offsets, sequence_ids, strict=True):
        if text is None:
            spans.append((slot, slot))
        else:
            slot = BEFORE - 1 - text
            if texts:
                piece = texts[text][begin:end]
                begin = end - len(piece.lstrip())
                end = begin + len(piece.strip())
            spans.append((starts[text] + begin, starts[text] + end))
    return spans


def align(teacher: Sequence[Span], student: Sequence[Span]) -> list[tuple[int, int, float, float]]:
    """Which tokens of two tokenizers belong together.

    A token with characters belongs to the other side's token of the same characters; where there is none, to all that
    share characters with it, by how many; else to the nearest one. A special token belongs to the other side's in the
    same slot: the first to the first, the second to the second where there is one, else to the last; in an empty slot
    to the first token.

    Args:
        teacher, student: spans of one example's tokens.

    Returns:
        Pairs (teacher's token, student's token, weight in the teacher's token, weight in the student's token). The
        first weights of each teacher's token sum to 1, as do the second ones of each student's token. One tokenizer on
        both sides gives each token itself.

    Example:
        >>> align([(-1, -1), (0, 4), (5, 9)], [(-1, -1), (0, 1), (1, 6), (6, 9)])
        [(0, 0, 1.0, 1.0), (1, 1, 0.25, 1.0), (1, 2, 0.75, 0.75), (2, 2, 0.25, 0.25), (2, 3, 0.75, 1.0)]
    """
    pairs: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for t, shares in _shares(teacher, student).items():
        for s, share in shares.items():
            pairs[t, s][0] = share
    for s, shares in _shares(student, teacher).items():
        for t, share in shares.items():
            pairs[t, s][1] = share
    return [(t, s, of_teacher, of_student) for (t, s), (of_teacher, of_student) in sorted(pairs.items())]


def _shares(tokens: Sequence[Span], others: Sequence[Span]) -> dict[int, Shares]:
    """For each token, how much each of the other side's tokens counts in it."""
    twins, owners = _twins(tokens, others), defaultdict(list)
    for j, (begin, end) in enumerate(others):
        for character in range(max(begin, 0), end):
            owners[character].append(j)
    result = _same_roles(tokens, others)
    for i, (begin, end) in enumerate(tokens):
        if begin < 0:
            continue
        if i in twins:
            result[i] = {twins[i]: 1.0}
            continue
        shared = Counter(j for character in range(begin, end) for j in owners.get(character, ()))
        if shared:
            result[i] = {j: count / shared.total() for j, count in shared.items()}
        else:
            result[i] = {_nearest((begin, end), others): 1.0}
    return result


def _same_roles(tokens: Sequence[Span], others: Sequence[Span]) -> dict[int, Shares]:
    """The other side's token of the same slot and rank, for each special token."""
    slots, seen, result = defaultdict(list), Counter[int](), {}
    for j, (slot, _) in enumerate(others):
        slots[slot].append(j)
    for i, (slot, _) in enumerate(tokens):
        if slot < 0:
            same = slots.get(slot, [0])
            result[i] = {same[min(seen[slot], len(same) - 1)]: 1.0}
            seen[slot] += 1
    return result


def _twins(tokens: Sequence[Span], others: Sequence[Span]) -> dict[int, int]:
    """Tokens of the same characters, one to one, where both sides have as many: an emoji's bytes share one span."""
    groups: list[dict[Span, list[int]]] = []
    for side in (tokens, others):
        groups.append(defaultdict(list))
        for i, span in enumerate(side):
            groups[-1][span].append(i)
    pairs = [(group, groups[1].get(span, [])) for span, group in groups[0].items() if span[0] >= 0]
    return {i: j for first, second in pairs if len(first) == len(second) for i, j in zip(first, second, strict=True)}


def _nearest(span: Span, others: Sequence[Span]) -> int:
    """The nearest token with characters, of several the first; the first token of all where none has characters."""
    begin, end = span
    gaps = [(first < 0, max(first - end, begin - last, 0)) for first, last in others]
    return min(range(len(others)), key=gaps.__getitem__)


def unread_indices(teacher: Sequence[Span], student: Sequence[Span], starts: Sequence[int]) -> list[int]:
    """The indices of a teacher's tokens outside of what a student, which cuts texts, reads of each.

    Args:
        teacher, student: spans of one example's tokens.
        starts: the characters before each text.

    Example:
        >>> unread_indices([(-1, -1), (0, 4), (5, 9), (-2, -2), (10, 13)], [(-1, -1), (0, 1), (1, 4)], [0, 10])
        [2, 4]
    """
    parts: dict[int, list[Span]] = defaultdict(list)  # which of the texts -> spans of the student's tokens
    for span in student:
        if span[0] >= 0:
            parts[bisect_right(starts, span[0])].append(span)
    indices = []
    for i, (begin, end) in enumerate(teacher):
        if begin >= 0:
            own = parts.get(bisect_right(starts, begin), [(0, 0)])
            first, last = min(own)[0], max(end for _, end in own)
            if begin >= last or begin < end <= first:
                indices.append(i)
    return indices


def is_paired(batch: Container[str]) -> bool:
    """Whether a batch, a row or the columns of a dataset hold the texts as the teacher's tokens too."""
    return f"{TEACHER}input_ids" in batch


def teacher_view(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A batch as the teacher reads it."""
    if not is_paired(batch):
        return batch
    return {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}


def align_features(layers: Sequence[Tensor], batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The student's (batch, s, d) layers as features of the teacher's tokens, (batch, t, d) in fp32."""
    if not layers:
        return []
    weights = _dense(batch, 0)
    with torch.autocast(weights.device.type, enabled=False):
        return [weights @ x.float() for x in layers]


def align_spans(heads: Mapping[str, Tensor], batch: Mapping[str, Tensor], padding: float) -> dict[str, Tensor]:
    """The distributions of span heads over the teacher's tokens.

    A span starts with the first of the student's tokens that share characters with a teacher's token, and ends with the
    last. The probability of a start or an end elsewhere, in between or at a blank that is a token of the student alone,
    goes to the teacher's first token, which means that there is no answer.

    Args:
        heads: (batch, s) logits of the student by their names in ``SPAN_HEADS``, very low at padding.
        padding: the logit of padding.

    Returns:
        (batch, t) logarithms of the moved probabilities; of ``UNREACHED`` where none of the student's tokens starts or
        ends.
    """
    weights, owned = _dense(batch, 1), _dense(batch, 0) > 0
    is_padding = batch[f"{TEACHER}attention_mask"] == 0
    moved = {}
    for head, x in heads.items():
        edges = _at_edges(weights, owned, head)
        reached = edges.any(2)
        with torch.autocast(weights.device.type, enabled=False):  # in logarithms, so that nothing is too unlikely
            shares = edges.masked_fill(~reached[..., None], 1).log()
            logarithm = (shares + x.float().log_softmax(1)[:, None]).logsumexp(2)
        moved[head] = logarithm.masked_fill(~reached, math.log(UNREACHED)).masked_fill(is_padding, padding)
    return moved


def _at_edges(weights: Tensor, owned: Tensor, head: str) -> Tensor:
    """(batch, t, s) the weights of those of the student's tokens that open, or close, a teacher's token.

    Args:
        weights: the second ones of :func:`align`.
        owned: where the first ones are above 0.
    """
    overlaps = ((weights > 0) & owned).int()
    rank = overlaps.cumsum(2) if head == SPAN_HEADS[0] else overlaps.flip(2).cumsum(2).flip(2)
    edges = weights * overlaps * (rank == 1)  # the rank is 1 behind the first one, too
    edges[:, 0] += weights.sum(1) - edges.sum(1)
    return edges


def _dense(batch: Mapping[str, Tensor], column: int) -> Tensor:
    """(batch, t, s) one of the two weights of :func:`align`."""
    pairs, weights = batch[ALIGNMENT], batch[WEIGHTS][..., column].float()
    (count, t), s = batch[f"{TEACHER}input_ids"].shape, batch["input_ids"].shape[1]
    index = pairs[..., 0] * s + pairs[..., 1]
    return torch.zeros(count, t * s, device=weights.device).scatter_add_(1, index, weights).view(count, t, s)
