"""The token embeddings of a student whose tokenizer is not that of the model it was cut from."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLES = (  # names of the ids of special tokens
    ("pad_token_id",),
    ("unk_token_id",),
    ("mask_token_id",),
    ("cls_token_id", "bos_token_id"),
    ("sep_token_id", "eos_token_id"),
)
UNREADABLE = "\ufffd"  # what a part of a character is decoded to
STARTS, CONTINUES = ("Ġ", "▁"), "##"  # marks of pieces: before the first one of a word, before another one


class Surface(NamedTuple):
    """What a piece stands for."""

    text: str
    begins: bool  # whether it is the first of a word


class Transfer(NamedTuple):
    """Embeddings for a vocabulary, and where they come from."""

    vectors: Tensor  # (pieces, d)
    copied: int  # pieces that the other vocabulary has too, special tokens by their role
    averaged: int  # pieces that are the mean of those that cover them
    unknown: int  # pieces that are no text, such as a part of a character, or have no cover: the mean of all vectors


@torch.no_grad()
def transfer_embeddings(vectors: Tensor, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> Transfer:
    """Embeddings of another vocabulary (fast vocabulary transfer, Gee et al., EMNLP 2022, industry track).

    A piece that both vocabularies have, at the same place in a word, keeps its vector; another one gets the mean of the
    vectors of the pieces into which ``source`` cuts its text.

    Args:
        vectors: (rows, d) of the source's pieces.
        source, target: fast tokenizers.

    Returns:
        The vectors of the target's pieces, in the order of their ids.
    """
    old, new = source.get_vocab(), target.get_vocab()
    marks = [_mark_of_starts(vocabulary) for vocabulary in (old, new)]
    alike = marks[0] == marks[1]  # a piece is written alike
    pieces = {_surface(piece, source, marks[0]): index for piece, index in old.items()}
    pieces.pop(None, None)
    roles = _roles(source, target)
    result = vectors.mean(0, keepdim=True).repeat(max(new.values()) + 1, 1)
    copied = averaged = 0
    for piece, index in new.items():
        surface = _surface(piece, target, marks[1])
        same = roles.get(index, old[piece] if alike and piece in old else pieces.get(surface))
        if same is not None:
            result[index] = vectors[same]
            copied += 1
            continue
        if surface is None:
            continue
        text = f" {surface.text}" if surface.begins and marks[0] else surface.text
        covering = source(text, add_special_tokens=False)["input_ids"]
        covering = [other for other in covering if other != source.unk_token_id]
        if covering:
            result[index] = vectors[covering].mean(0)
            averaged += 1
    return Transfer(result, copied, averaged, len(target) - copied - averaged)


def move_vocabulary(student: PreTrainedModel, transfer: Transfer) -> None:
    """Give a student the embeddings of its tokenizer; its table must have as many rows."""
    table = student.get_input_embeddings().weight
    with torch.no_grad():
        table[: len(transfer.vectors)] = transfer.vectors.to(table)


def _roles(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> dict[int, int]:
    """Ids of the target's special tokens -> those of the source with the same role."""
    pairs = {}
    for names in ROLES:
        source_id = next((getattr(source, name) for name in names if getattr(source, name) is not None), None)
        target_id = next((getattr(target, name) for name in names if getattr(target, name) is not None), None)
        if source_id is not None and target_id is not None:
            pairs[target_id] = source_id
    return pairs


def _surface(piece: str, tokenizer: PreTrainedTokenizerBase, mark: str) -> Surface | None:
    """What a piece stands for; None for a part of a character, and for a blank."""
    if piece.startswith(CONTINUES) and len(piece) > len(CONTINUES):
        return Surface(piece.removeprefix(CONTINUES), begins=False)
    text = tokenizer.convert_tokens_to_string([piece]).strip()
    if not text or UNREADABLE in text:
        return None
    return Surface(text, begins=not mark or piece.startswith(mark))


def _mark_of_starts(vocabulary: Iterable[str]) -> str:
    """How a tokenizer marks the first piece of a word: byte-level BPE by Ġ, Unigram by a low line, WordPiece not."""
    pieces = list(vocabulary)
    return next((mark for mark in STARTS if any(piece.startswith(mark) and len(piece) > 1 for piece in pieces)), "")
