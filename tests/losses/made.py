"""Representations and losses for the tests of every method."""

from typing import Any

import torch

from itrd_nlp.losses import Shapes, build_losses
from itrd_nlp.losses.base import GROUP, INDEX, Representation

EXAMPLES = 20  # of the training data
STUDENT, TEACHER = (4, 4), (6, 6)  # widths of two matched layers
MAPS = (((4, 6, 6), (6, 6, 6)), ((5, 3, 3), (7, 5, 5)), ((5,), (7,)))  # (student's, teacher's), of each stage
POOLING = {"textbrewer": "all_tokens", "crd": "mean", "wcord": "mean"}
OF_GROUPS = ("listwise", "margin_mse")  # of one score a document
OPTIONS: dict[str, dict[str, Any]] = {
    "crd": {"dim": 5, "negatives": 30},
    "wcord": {"dim": 5, "negatives": 30},
    "minilmv2": {"relation_heads": 2},
    "reviewkd": {"warmup": 0.0},  # else its first epoch gives 0, whatever the maps
}


def made(name: str, student=STUDENT, teacher=TEACHER, seed: int = 0, **options: Any):
    """A loss by its name, its parameters seeded."""
    torch.manual_seed(seed)
    shapes = Shapes(
        student,
        teacher,
        ("start_logits", "end_logits"),
        attention_widths=tuple(zip(student, teacher, strict=True)),
        pooling=POOLING.get(name, "tokens"),
        examples=EXAMPLES,
        maps=MAPS,
    )
    return build_losses({name: {**OPTIONS.get(name, {}), **options}}, shapes)[name]


def representation(
    widths, name: str = "itrd", lengths=(3, 5, 4, 6), seed: int = 0, dtype=torch.float32
) -> Representation:
    """What a network says about texts of some lengths."""
    draw = torch.Generator().manual_seed(seed)
    texts, longest, tokens = len(lengths), max(lengths), sum(lengths)
    samples = torch.ones(texts, dtype=torch.long) if POOLING.get(name) == "mean" else torch.tensor(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]

    def normal(*shape: int):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return Representation(
        {
            head: normal(texts, 1) if name in OF_GROUPS else normal(texts, longest).masked_fill(~mask, -1e4)
            for head in ("start_logits", "end_logits")
        },
        tuple(normal(int(samples.sum()), width) for width in widths),
        mask,
        attention=tuple(normal(tokens, width) for width in widths for _ in range(3)),
        maps=tuple(normal(texts, *shapes[widths == TEACHER]) for shapes in MAPS),
        samples=samples,
    )


def batch(texts: int = 4) -> dict[str, torch.Tensor]:
    """Two documents of each query, the first one relevant."""
    index = torch.arange(texts)
    return {INDEX: index * 3, GROUP: index // 2, "labels": (1.0 - index % 2)[:, None]}


def pair(name: str, **options: Any) -> tuple[Representation, Representation]:
    """Student and teacher."""
    return representation(STUDENT, name, **options), representation(TEACHER, name, **{"seed": 1, **options})
