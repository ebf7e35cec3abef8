"""MiniLMv2: the relations between a text's tokens, as their queries, keys and values have them."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from itrd_nlp.errors import UserError
from itrd_nlp.losses.base import DistillationLoss, Shapes, check_layers, check_positive, mean, text_mask
from itrd_nlp.pooling import by_example
from itrd_nlp.representation import Representation

RELATIONS = ("queries", "keys", "values")


class MiniLMv2Loss(DistillationLoss):
    """Multi-head self-attention relation distillation (Wang et al., Findings of ACL 2021, eq. 5 and 6).

    The queries of all attention heads of a layer are put side by side and cut into ``relation_heads`` parts; in each
    part, the softmax of the scaled inner products with every token of the text is a distribution for each token. The
    divergence of the student's from the teacher's is averaged over tokens and parts; likewise for keys and values. The
    paper matches the student's last layer with one layer of the teacher: ``layer_map: last``, or ``[[21, 6]]`` for a
    large teacher, whose last layers are too special. With several pairs the terms are averaged over them.

    Args:
        shapes: widths of the queries of the matched layers.
        weight: weight of each of the three terms.
        relation_heads: parts of the queries, keys and values; 48 for a base teacher in the paper.
    """

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
        tokens: (batch,) how many each text has.
        heads: parts into which d is cut.
    """
    relations = []
    for x in (student, teacher):
        padded, mask = by_example(x, tokens)
        parts = padded.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = parts @ parts.mT / parts.shape[-1] ** 0.5
        relations.append(scores.masked_fill(~mask[:, None, None, :], -1e4).log_softmax(-1))
    divergence = F.kl_div(*relations, reduction="none", log_target=True).sum(-1)  # (batch, heads, length)
    return (divergence * mask[:, None]).sum() / (mask.sum() * heads)
