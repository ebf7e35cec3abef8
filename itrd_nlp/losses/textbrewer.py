"""TextBrewer: hidden states by their squared difference and by the Gram matrices of each text's tokens."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from itrd_nlp.losses.base import DistillationLoss, Representation, Shapes, by_example, check_layers, text_mask
from itrd_nlp.losses.projectors import project_unequal
from itrd_nlp.utils.errors import UserError


class TextBrewerLoss(DistillationLoss):
    """The intermediate losses of TextBrewer's question-answering recipes (Yang et al., ACL 2020), summed over layers.

    ``hidden_mse`` is the squared difference of hidden states, averaged over tokens and features; ``mmd`` the squared
    difference of each text's token-by-token Gram matrices, averaged over pairs of tokens. Its documentation divides a
    Gram matrix by the width of the features; release 0.2.1.post1, given a mask, by the batch's padded length. Its
    recipes match the embeddings too, sum the layers with weight 1, and add KD at T 8, summed over start and end without
    T^2: ``kd: {temperature: 8, t_squared: false, weight: 2}`` here, with ``task_weight: 0``.

    Args:
        shapes: widths of the matched layers, pooled to ``all_tokens`` (TextBrewer's) or ``tokens``.
        hidden_mse, mmd: weights of the two terms; a term of weight 0 is not computed. Layers of unequal width are
            projected for ``hidden_mse``.
        gram_scale: what a Gram matrix is divided by: ``"length"`` (as its code) or ``"width"`` (as documented).
    """

    paper = (
        "Yang et al.: TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing. "
        "ACL 2020"
    )
    reads_logits = False
    of_texts = True

    def __init__(self, shapes: Shapes, *, hidden_mse: float = 1.0, mmd: float = 1.0, gram_scale: str = "length"):
        super().__init__(project_unequal(shapes) if hidden_mse else [])
        check_layers("textbrewer", shapes)
        if hidden_mse < 0 or mmd < 0 or not (hidden_mse or mmd):
            raise UserError(
                f"textbrewer with hidden_mse {hidden_mse}, mmd {mmd}: expected weights >= 0, one of them above 0"
            )
        if shapes.pooling in ("mean", "cls"):
            raise UserError(
                f"textbrewer with pooling {shapes.pooling!r}: it compares tokens; expected all_tokens or tokens"
            )
        if gram_scale not in ("length", "width"):
            raise UserError(f'textbrewer with gram_scale {gram_scale!r}: expected "length" or "width"')
        self.hidden_mse, self.mmd, self.gram_scale = hidden_mse, mmd, gram_scale

    def terms(self, student: Representation, teacher: Representation, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``hidden_mse`` and ``mmd``, weighted."""
        mask = text_mask(student)
        assert student.samples is not None  # it comes with the mask
        terms: dict[str, Tensor] = {}
        if self.hidden_mse:
            pairs = zip(student.projected, teacher.features, strict=True)
            terms["hidden_mse"] = self.hidden_mse * sum(F.mse_loss(s, t) for s, t in pairs)
        if self.mmd:
            layers = zip(student.features, teacher.features, strict=True)
            length = mask.shape[1] if self.gram_scale == "length" else None
            terms["mmd"] = self.mmd * sum(gram_difference(s, t, student.samples, length) for s, t in layers)
        return terms


def gram_difference(student: Tensor, teacher: Tensor, samples: Tensor, scale: int | None = None) -> Tensor:
    """Mean squared difference of the Gram matrices of each text's tokens.

    Args:
        student, teacher: (n, d) tokens, one text after the other; the widths may differ.
        samples: (batch,) tokens of each text.
        scale: by which the Gram matrices are divided; each by its width where it is None.
    """
    grams = []
    for x in (student, teacher):
        tokens, mask = by_example(x, samples)
        grams.append(tokens @ tokens.mT / (scale or x.shape[1]))
    pairs = mask[:, :, None] & mask[:, None, :]
    return ((grams[0] - grams[1]).square() * pairs).sum() / pairs.sum()
