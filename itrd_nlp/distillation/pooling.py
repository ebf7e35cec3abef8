"""From the outputs of a model's layers to the (n, d) samples that losses compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from itrd_nlp.utils.errors import UserError

POOLINGS = ("mean", "cls", "tokens", "all_tokens")
SENTENCE_POOLING = "sentence_pooling"  # field of an encoder's config: "mean" or "cls" makes its embeddings


class Pooling:
    """Turns (batch, length, d) into the (n, d) that losses compare. Padding never counts.

    Args:
        spec: ``"mean"``: the mean of an example's real tokens; ``"cls"``: its first token; ``"tokens"``: every real
            token is a sample; ``"tokens:32"``: 32 real tokens of each example (all, where it has fewer), drawn from its
            content alone, thus the same at each epoch and seed, in any batch and on any rank. Real tokens are those
            that are neither padding nor, where the batch carries ``special_tokens_mask``, special; ``"all_tokens"``
            takes the special ones too. Of an image's (d, height, width) map, each position is a token.

    Raises:
        UserError: an unknown spec.
    """

    def __init__(self, spec: str = "mean"):
        kind, _, count = str(spec).partition(":")
        bad_count = bool(count) and (kind != "tokens" or not count.isdigit() or int(count) < 1)
        if kind not in POOLINGS or bad_count or str(spec).endswith(":"):
            raise UserError(
                f'pooling {spec!r}: expected "mean", "cls", "tokens", "tokens:32" (any count) or "all_tokens"'
            )
        self.spec, self.kind, self.count = spec, kind, int(count or 0)

    @property
    def by_token(self) -> bool:
        """Whether tokens are samples, rather than examples."""
        return self.kind in ("tokens", "all_tokens")

    def __call__(self, features: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Pool each (batch, length, d) tensor of ``features`` with the masks of ``batch``."""
        if "pixel_values" in batch:
            return tuple(self._pool_image(x) for x in features)
        mask = text_mask(batch)
        if self.kind == "cls":
            first = mask.int().argmax(1)  # not 0 where padding is on the left
            rows = torch.arange(len(first), device=first.device)
            return tuple(x[rows, first] for x in features)
        if self.kind == "all_tokens":
            return _rows(features, mask)
        real = real_tokens(batch)
        if self.kind == "mean":
            count = real.sum(1, keepdim=True).clamp_min(1)
            return tuple(_sum(x * real[..., None]) / count for x in features)
        if self.count:
            real = sample_tokens(batch["input_ids"], real, self.count)
        return _rows(features, real)

    def _pool_image(self, x: Tensor) -> Tensor:
        """Pool (n, d), (n, tokens, d) or (n, d, height, width) of images."""
        if self.count:
            raise UserError(f"pooling tokens:{self.count} of images: expected mean, cls or tokens")
        if x.ndim == 2:
            return x
        if x.ndim == 4 and self.kind == "cls":
            raise UserError("pooling cls of an image's map: expected mean or tokens; a map has no class token")
        x = x.flatten(2).mT if x.ndim == 4 else x
        if self.kind in ("tokens", "all_tokens"):
            return x.flatten(0, 1)
        return x[:, 0] if self.kind == "cls" else x.mean(1)

    def samples(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch,): how many of the n samples come from each example."""
        if self.kind in ("mean", "cls"):
            return torch.ones(len(text_mask(batch)), dtype=torch.long)
        if self.kind == "all_tokens":
            return text_mask(batch).sum(1)
        real = real_tokens(batch).sum(1)
        return real.clamp_max(self.count) if self.count else real


def token_mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """:func:`text_mask`; None of images."""
    return None if "pixel_values" in batch else text_mask(batch)


def text_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length) bool: True where a token is not padding; everywhere, where the batch does not say."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length) bool: True where a token is neither padding nor special; a text of specials alone keeps them."""
    mask = text_mask(batch)
    if "special_tokens_mask" not in batch:
        return mask
    real = mask & ~batch["special_tokens_mask"].bool()
    return torch.where(real.any(1, keepdim=True), real, mask)


def sample_tokens(input_ids: Tensor, real: Tensor, count: int) -> Tensor:
    """Choose up to ``count`` real tokens of each row by a hash of the row's content and the token's rank.

    Args:
        input_ids, real: (batch, length) token ids, and where they are real.

    Returns:
        (batch, length) bool with at most ``count`` True a row; the choice does not depend on padding or on the batch.
    """
    rank = real.long().cumsum(1) * real
    content = _mix((input_ids * real + 1) * rank).sum(1, keepdim=True) & _MASK
    priority = _mix(content + _mix(rank)).masked_fill(~real, -1)
    highest = priority.topk(min(count, real.shape[1]), dim=1).indices
    return torch.zeros_like(real).scatter_(1, highest, True) & real


_MASK = (1 << 31) - 1


def _mix(x: Tensor) -> Tensor:
    """An integer hash into 0 .. 2^31 - 1, the same on every device (xor-shift and multiply)."""
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * multiplier) & _MASK
    return x ^ (x >> 16)


def _rows(features: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
    """The (n, d) rows of (batch, length, d) tensors where a (batch, length) mask holds; found once, which waits."""
    index = mask.flatten().nonzero().squeeze(1)
    return tuple(x.flatten(0, 1).index_select(0, index) for x in features)


def _sum(x: Tensor) -> Tensor:
    return x.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))


def sentence_pooling(config: Any) -> Pooling:
    """The pooling that makes the embeddings of an encoder with this config; the mean where it does not say."""
    return Pooling(getattr(config, SENTENCE_POOLING, "mean"))
