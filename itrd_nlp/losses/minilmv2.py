"""MiniLMv2: the relations between a text's tokens, in their queries, keys and values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, check_layers, check_positive, mean, text_mask
from itrd_nlp.utils.errors import UserError

RELATIONS = ("queries", "keys", "values")


class MiniLMv2Loss(DistillationLoss):
    """Multi-head self-attention relation distillation (Wang et al., Findings of ACL 2021, eq. 5 and 6).

    The queries of all attention heads of a layer are put side by side and cut into ``relation_heads`` parts; in each
    part, the softmax of the scaled inner products with every token of the text is a distribution for each token. The
    divergence of the student's from the teacher's is averaged over the parts and over all tokens of the batch; likewise
    for keys and values. The paper averages within each text first (its eq. 6), so that each text counts alike; here a
    long one counts more, which changes the loss of texts of uneven lengths by about a quarter.

    The paper matches the student's last layer with one of the teacher's: ``layer_map: last``, or ``[[21, 6]]`` for a
    large teacher, whose last layers are too special. With several pairs the terms are averaged over them.

    Args:
        shapes: widths of the queries of the matched layers.
        weight: weight of each of the three terms.
        relation_heads: parts of the queries, keys and values; 48 for a base teacher in the paper.
    """

    paper = (
        "Wang et al.: MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained "
        "Transformers. Findings of ACL 2021"
    )
    reads_features = False
    reads_logits = False
    reads_attention = True
    of_texts = True

    def __init__(self, shapes: Shapes, *, weight: float = 1.0, relation_heads: int = 48):
        super().__init__()
        check_layers("minilmv2", shapes)
        check_positive("minilmv2", weight=weight, relation_heads=relation_heads)
        for width in sum(shapes.attention_widths, ()):
            if width % relation_heads:
                raise UserError(
                    f"minilmv2 with relation_heads {relation_heads} and queries of width {width}: expected a divisor "
                    "of both models' widths"
                )
        self.weight, self.relation_heads = weight, relation_heads

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``queries``, ``keys`` and ``values``, weighted."""
        tokens = text_mask(student).sum(1)
        return {
            name: self.weight
            * mean(
                relation_divergence(s, t, tokens, self.relation_heads)
                for s, t in zip(student.attention[kind::3], teacher.attention[kind::3], strict=True)
            )
            for kind, name in enumerate(RELATIONS)
        }


def relation_divergence(student: Tensor, teacher: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """KL(teacher || student) of the relations of tokens, averaged over tokens and heads.

    Args:
        student, teacher: (n, d) vectors of the tokens, one text after the other; the widths may differ.
        tokens: (batch,) number of each text's tokens.
        heads: parts into which d is cut.
    """
    divergence, _ = _Divergence.apply(student, teacher, tokens.tolist(), heads)
    return divergence


class _Divergence(torch.autograd.Function):
    """The divergence and its gradient, text by text: memory never holds a batch's heads times length squared."""

    @staticmethod
    def forward(student: Tensor, teacher: Tensor, tokens: list[int], heads: int) -> tuple[Tensor, Tensor]:
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        width, count = student.shape[1] // heads, len(student) * heads
        texts = zip(*(x.split(tokens) for x in (student, teacher, gradient)), strict=True)
        for student_rows, teacher_rows, slope_rows in texts:
            parts = _parts(student_rows, heads)
            log_s, log_t = _relations(parts), _relations(_parts(teacher_rows, heads))
            p = log_t.exp()
            total += torch.linalg.vecdot(p.flatten(), log_t.sub_(log_s).flatten())
            slope = log_s.exp_().sub_(p)  # of the divergence by the scores, which are symmetric in the vectors
            slope_rows += ((slope + slope.mT) @ parts).transpose(0, 1).flatten(1)
        return total / count, gradient / (count * width**0.5)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.saved_tensors[0], None, None, None


def _parts(x: Tensor, heads: int) -> Tensor:
    """(length, d) as (heads, length, d / heads)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _relations(parts: Tensor) -> Tensor:
    """(heads, length, length) logarithms of each token's distribution over the text."""
    return (parts / parts.shape[-1] ** 0.5 @ parts.mT).log_softmax(-1)
