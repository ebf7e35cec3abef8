"""The pieces in the JSON of a fast tokenizer: what they are made of, which of them a text cannot do without."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece that stands for a byte of an unknown character


class Symbol(NamedTuple):
    """A character of a piece, and where it stands in a word, as far as pieces are marked by it."""

    character: str
    continues: bool  # "##a" of WordPiece
    ends: bool  # "a</w>" of some BPE


def symbols_by_id(model: Mapping[str, Any]) -> dict[int, list[Symbol]]:
    """The symbols of each piece."""
    prefix, suffix = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    vocabulary = model["vocab"]
    if model["type"] == "Unigram":
        return {i: _symbols(piece, "", "") for i, (piece, _) in enumerate(vocabulary)}
    return {i: _symbols(piece, prefix, suffix) for piece, i in vocabulary.items()}


def _symbols(piece: str, prefix: str, suffix: str) -> list[Symbol]:
    rest = piece.removeprefix(prefix) or piece
    characters = rest.removesuffix(suffix) or rest
    continues, ends, last = len(rest) < len(piece), len(characters) < len(rest), len(characters) - 1
    return [Symbol(c, continues or (prefix != "" and i > 0), ends and i == last) for i, c in enumerate(characters)]


def irreplaceable(
    model: Mapping[str, Any], symbols: Mapping[int, Sequence[Symbol]], occurs: Callable[[str], bool]
) -> set[int]:
    """The ids of the alphabet, of pieces that it cannot spell, and of those for unknown characters.

    A text with a character that the alphabet lacks is read by a longer piece alone, and only if the pieces before it
    end where it begins. All pieces that share a symbol with it stay, and all that share one with those, and so on: then
    no piece crosses from such characters to others, and texts of such characters are cut as before.

    Args:
        model: of the tokenizer's JSON.
        symbols: of the pieces, without added tokens.
        occurs: whether characters can come to the model in one word.
    """
    alphabet = {each[0] for each in symbols.values() if len(each) == 1}
    result = {i for i, each in symbols.items() if len(each) == 1}
    longer = {i: each for i, each in symbols.items() if len(each) > 1}
    while unspelled := {i for i, each in longer.items() if not alphabet.issuperset(each)}:
        needed = [i for i in unspelled if occurs("".join(symbol.character for symbol in longer[i]))]
        alphabet = alphabet.difference(*(longer[i] for i in needed))
        result.update(needed)
        longer = {i: each for i, each in longer.items() if i not in unspelled}
    return result | _for_unknown_characters(model)


def _for_unknown_characters(model: Mapping[str, Any]) -> set[int]:
    vocabulary, unknown = model["vocab"], model.get("unk_token")
    ids = set()
    if model["type"] == "Unigram":
        # an unknown character costs 10 more than the piece of the lowest score: `tokenizers`, models/unigram/model.rs
        ids.add(min(range(len(vocabulary)), key=lambda i: vocabulary[i][1]))
        if model["unk_id"] is not None:
            ids |= {*range(model["unk_id"] + 1)}  # classes such as RemBERT's take its number for granted
        vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    elif unknown in vocabulary:
        ids.add(vocabulary[unknown])
    if model.get("byte_fallback"):
        ids |= {i for piece, i in vocabulary.items() if BYTE.fullmatch(piece)}
    return ids


def piece_uses(counts: np.ndarray, model: Mapping[str, Any], symbols: Mapping[int, Sequence[Symbol]]) -> np.ndarray:
    """How often each piece of BPE is made, as a token or as a part of one."""
    ids: Mapping[str, int] = model["vocab"]
    parts: dict[int, tuple[int, int]] = {}
    for first, second in model["merges"]:
        parts.setdefault(ids[_merged(first, second, model)], (ids[first], ids[second]))
    uses = counts.copy()
    for merged in sorted(parts, key=lambda i: -len(symbols[i])):
        for part in parts[merged]:
            uses[part] += uses[merged]
    return uses


def _merged(first: str, second: str, model: Mapping[str, Any]) -> str:
    return first + second[len(model.get("continuing_subword_prefix") or "") :]


def with_pieces(state: Mapping[str, Any], kept_ids: Sequence[int]) -> dict[str, Any]:
    """A tokenizer's JSON with some of its pieces, numbered from 0."""
    new = {old: index for index, old in enumerate(kept_ids)}
    model, padding = dict(state["model"]), state["padding"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {piece: new[i] for piece, i in model["vocab"].items() if i in new}
    if model["type"] == "BPE":
        pieces = model["vocab"]
        model["merges"] = [(a, b) for a, b in model["merges"] if {a, b, _merged(a, b, model)} <= pieces.keys()]
    return {
        **state,
        "model": model,
        "added_tokens": [{**token, "id": new[token["id"]]} for token in state["added_tokens"]],
        "post_processor": map_ids(state["post_processor"], new.__getitem__),
        "padding": padding and {**padding, "pad_id": new.get(padding["pad_id"], 0)},
    }


def map_ids(node: Any, function: Callable[[int], Any]) -> Any:
    """A post-processor's JSON with a function of each id: in pairs of token and id, and in the ``ids`` of templates."""
    if isinstance(node, dict):
        return {
            key: [function(i) for i in value] if key == "ids" else map_ids(value, function)
            for key, value in node.items()
        }
    if isinstance(node, list):
        if len(node) == 2 and isinstance(node[0], str) and type(node[1]) is int:
            return [node[0], function(node[1])]
        return [map_ids(value, function) for value in node]
    return node
