"""The token embeddings of a student whose tokenizer is not that of the model it was cut from."""

import json
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itrd_nlp.models.pieces import BYTE
from itrd_nlp.utils.tokenizers import backend_state

ROLES = (  # names of the ids of special tokens
    ("pad_token_id",),
    ("unk_token_id",),
    ("mask_token_id",),
    ("cls_token_id", "bos_token_id"),
    ("sep_token_id", "eos_token_id"),
)
REPLACEMENT_CHARACTER = "\ufffd"  # what a part of a character is decoded to


class Marks(NamedTuple):
    """How a tokenizer marks where a piece stands; "" where it does not."""

    start: str  # before the first piece of a word: Ġ of byte-level BPE, a low line of Unigram
    inside: str  # before another one: ## of WordPiece
    end: str  # behind the last one: </w> of some BPE

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Marks":
        """The marks of a fast tokenizer, by what its backend is made of."""
        state = backend_state(tokenizer)
        parts = json.dumps([state[name] for name in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
        start = "Ġ" if '"ByteLevel"' in parts else "▁" if "▁" in parts else ""
        model = state["model"]
        inside = model.get("continuing_subword_prefix") if model["type"] in ("WordPiece", "BPE") else None
        return cls(start, inside or "", model.get("end_of_word_suffix") or "")


class Surface(NamedTuple):
    """What a piece stands for."""

    text: str
    begins: bool  # whether it is the first of a word


class Transfer(NamedTuple):
    """Embeddings for a vocabulary, and where they come from."""

    vectors: Tensor  # (pieces, d)
    copied: int  # pieces that the other vocabulary has too, special tokens by their role
    averaged: int  # pieces that are the mean of those that cover them
    unknown: int  # pieces that are not text, such as a part of a character, or have no cover: the mean of all vectors


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
    marks, target_marks = Marks.of(source), Marks.of(target)
    alike = marks == target_marks  # a piece is written alike
    pieces = _pieces(source, marks)
    roles = _roles(source, target)
    result = vectors.mean(0, keepdim=True).repeat(max(new.values()) + 1, 1)
    copied = averaged = 0
    for piece, index in new.items():
        surface = _surface(piece, target, target_marks)
        same = roles.get(index, old[piece] if alike and piece in old else pieces.get(surface))
        if same is not None:
            result[index] = vectors[same]
            copied += 1
            continue
        if surface is None:
            continue
        covering = [other for other in _covering(surface, source, marks) if other != source.unk_token_id]
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


def _pieces(tokenizer: PreTrainedTokenizerBase, marks: Marks) -> dict[Surface | None, int]:
    """The piece of each surface; of several, one that is written plainly and ends a word, else the first."""
    pieces: dict[Surface | None, int] = {}
    vocabulary = {piece: index for piece, index in tokenizer.get_vocab().items() if not BYTE.fullmatch(piece)}
    surfaces = {piece: _surface(piece, tokenizer, marks) for piece in vocabulary}

    def rank(piece: str) -> tuple[bool, bool, int]:
        surface = surfaces[piece]
        plain = surface is not None and piece.removeprefix(marks.start).removesuffix(marks.end) == surface.text
        return not plain, not piece.endswith(marks.end), vocabulary[piece]

    for piece in sorted(vocabulary, key=rank):
        pieces.setdefault(surfaces[piece], vocabulary[piece])
    pieces.pop(None, None)
    return pieces


def _covering(surface: Surface, tokenizer: PreTrainedTokenizerBase, marks: Marks) -> list[int]:
    """The ids of the pieces into which a tokenizer cuts a text at its place in a word."""
    if surface.begins:
        text = f" {surface.text}" if marks.start else surface.text
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    inside = tokenizer(f"a{surface.text}", add_special_tokens=False, return_offsets_mapping=True)
    spans = list(zip(inside["input_ids"], inside["offset_mapping"], strict=True))
    if any(begin < 1 < end for _, (begin, end) in spans):  # a piece that holds the letter before, too
        return tokenizer(surface.text, add_special_tokens=False)["input_ids"]
    return [index for index, (begin, _) in spans if begin >= 1]


def _surface(piece: str, tokenizer: PreTrainedTokenizerBase, marks: Marks) -> Surface | None:
    """What a piece stands for; None for a part of a character, and for a blank."""
    if marks.inside and piece.startswith(marks.inside) and len(piece) > len(marks.inside):
        return Surface(piece.removeprefix(marks.inside), begins=False)
    text = tokenizer.convert_tokens_to_string([piece]).strip()
    if not text or REPLACEMENT_CHARACTER in text:
        return None
    return Surface(text, begins=not marks.start or piece.startswith(marks.start))
