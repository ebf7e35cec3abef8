"""The results of predictions for one text or image, from a model's outputs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize


def classification(logits: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The result for one text or image from its logits, (classes)."""
    scores = logits.double().softmax(0).tolist()
    return {"label": names[int(logits.argmax())], "scores": dict(zip(names, scores, strict=True))}


def multilabel(logits: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The result of classes of which several may hold."""
    scores = dict(zip(names, logits.double().sigmoid().tolist(), strict=True))
    return {"labels": [name for name, score in scores.items() if score > 0.5], "scores": scores}


def embedding(vector: Tensor, pair_vector: Tensor | None = None) -> dict[str, Any]:
    """The result for one text or pair from the vectors, (d)."""
    first = normalize(vector, dim=0)
    if pair_vector is None:
        return {"embedding": first.tolist()}
    second = normalize(pair_vector, dim=0)
    return {"embedding": first.tolist(), "embedding_pair": second.tolist(), "similarity": float(first @ second)}
