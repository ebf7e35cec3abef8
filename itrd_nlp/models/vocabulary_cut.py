"""A tokenizer with fewer pieces: the most frequent ones of some texts, and those without which a text is unknown."""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from itrd_nlp.models.pieces import Symbol, irreplaceable, map_ids, piece_uses, symbols_by_id, with_pieces
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tokenizers import backend_state, counts_by_padding, table_rows
from itrd_nlp.utils.unicode import is_text

KINDS = ("WordPiece", "BPE", "Unigram")  # of `tokenizers`; BERT, RoBERTa and DeBERTa-v3 have one each
BATCH = 1000  # texts


class CutVocabulary(NamedTuple):
    """A tokenizer with some pieces of another, in the order that they have there."""

    tokenizer: PreTrainedTokenizerBase
    kept_ids: list[int]  # the other tokenizer's id of each piece, increasing
    pieces_before: int  # of the other tokenizer


def cut_vocabulary(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int) -> CutVocabulary:
    """Keep the pieces of a tokenizer that some texts need most; a text that it can read stays readable.

    Special and added tokens and the alphabet (single characters or bytes, also as continuing pieces) always stay. A
    piece that is gone falls into smaller ones; see :func:`keep_pieces`. Abdaoui et al. (SustaiNLP 2020, "Load what you
    need") make multilingual BERT smaller this way.

    Args:
        tokenizer: fast, of WordPiece, BPE or Unigram; it is not changed.
        texts: whose pieces are counted.
        size: the most pieces to keep. As many as the tokenizer has, or more, leave it as it is.

    Returns:
        The smaller tokenizer, and the old id of each of its pieces. It has fewer than ``size`` where fewer occur.

    Raises:
        UserError: a tokenizer of another kind, no texts, or a ``size`` that cannot hold special tokens and alphabet.
    """
    check_size(size)
    return keep_pieces(tokenizer, count_pieces(tokenizer, texts), size)


def check_size(size: Any) -> None:
    """Raise :class:`UserError` for what is not a number of pieces."""
    if type(size) is not int or size < 1:
        raise UserError(f"vocabulary {size!r}: expected the number of tokens to keep, e.g. 8000")


def count_pieces(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> np.ndarray:
    """How often each piece occurs in texts, without special tokens around them.

    Counts are whole numbers, so that they depend neither on the order of the texts nor on the number of threads.

    Returns:
        (highest id + 1,) int64 counts.

    Raises:
        UserError: a tokenizer of another kind, no texts, or something else than text among them.
    """
    backend = Tokenizer.from_str(json.dumps(_state(tokenizer)))
    backend.no_truncation()
    backend.no_padding()
    repeats: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        if not is_text(text):
            raise UserError(f"texts to count pieces in: expected whole characters, as in UTF-8, found {text!r:.40}")
        repeats[text] += 1
    if not any(repeats):
        raise UserError("no texts to count pieces in: expected at least one; give training data or --corpus FILE")
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    distinct = list(repeats)
    with tqdm(total=len(distinct), desc="Counting pieces", unit="text") as bar:
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            ids = [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
            times = np.repeat([repeats[text] for text in batch], [len(each) for each in ids])
            # where no text has a token, the array is one of floats
            np.add.at(counts, np.concatenate(ids).astype(np.int64), times)
            bar.update(len(batch))
    return counts


def keep_pieces(tokenizer: PreTrainedTokenizerBase, counts: np.ndarray, size: int) -> CutVocabulary:
    """:func:`cut_vocabulary` with the counts of :func:`count_pieces`.

    The pieces with the highest counts stay; of equal counts, those with the lower ids. In BPE a piece counts wherever
    it is merged on the way to a longer one, too: then what a piece is merged of counts at least as often, and stays
    with it; of equal counts, the shorter pieces stay.
    """
    state, before = _state(tokenizer), tokenizer.get_vocab()
    if size >= len(before):
        return CutVocabulary(tokenizer, sorted(before.values()), len(before))
    symbols = symbols_by_id(state["model"])
    required = _required(tokenizer, state, symbols)
    if size < len(required):
        raise UserError(
            f"vocabulary {size}: expected {len(required)} or more: so many are special tokens and single characters or "
            "bytes, without which texts become unknown"
        )
    merges = state["model"].get("merges")
    uses = counts if merges is None else piece_uses(counts, state["model"], symbols)
    order = sorted(
        (i for i in symbols if uses[i] > 0 and i not in required),
        key=lambda i: (-uses[i], 0 if merges is None else len(symbols[i]), i),
    )
    kept_ids = sorted({*required, *order[: size - len(required)]})
    cut = copy.deepcopy(tokenizer)
    # transformers has no public way to exchange what does the work
    cut._tokenizer = Tokenizer.from_str(json.dumps(with_pieces(state, kept_ids)))
    names = {index: piece for piece, index in before.items()}
    if cut.get_vocab() != {names[old]: new for new, old in enumerate(kept_ids)}:
        raise UserError(
            f"the ids of {type(tokenizer).__name__} cannot follow each other: expected added tokens behind its other "
            "pieces; leave vocabulary out"
        )
    return CutVocabulary(cut, kept_ids, len(before))


def least_pieces(tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest vocabulary that a tokenizer can be cut to: special tokens and its alphabet.

    Raises:
        UserError: a tokenizer of another kind.
    """
    state = _state(tokenizer)
    return len(_required(tokenizer, state, symbols_by_id(state["model"])))


def _required(
    tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any], symbols: Mapping[int, Sequence[Symbol]]
) -> set[int]:
    """The ids of the pieces that stay in any vocabulary."""
    special = _special_ids(tokenizer, state)
    plain = {i: each for i, each in symbols.items() if i not in special}
    return special | irreplaceable(state["model"], plain, partial(_occurs, tokenizer.backend_tokenizer))


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The JSON of a fast tokenizer whose pieces can be cut; raises :class:`UserError` for another one."""
    name, expected = type(tokenizer).__name__, "expected a fast one of WordPiece, BPE or Unigram; leave vocabulary out"
    if not hasattr(tokenizer, "is_fast"):
        raise UserError(
            f"a tokenizer {tokenizer!r:.40}: expected one of transformers, see AutoTokenizer.from_pretrained"
        )
    if not tokenizer.is_fast:
        raise UserError(f"a smaller vocabulary of {name}, a slow tokenizer: {expected}")
    state = backend_state(tokenizer)
    if state["model"]["type"] not in KINDS:
        raise UserError(f"a smaller vocabulary of {name}, whose kind is {state['model']['type']}: {expected}")
    return state


def _occurs(backend: Tokenizer, characters: str) -> bool:
    """Whether characters stay in one word: the normaliser may change them, and the pre-tokeniser may part them."""
    text = backend.normalizer.normalize_str(characters) if backend.normalizer else characters
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
    return any(characters in word for word, _ in words)


def _special_ids(tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> set[int]:
    """Added tokens, special ones, and what the post-processor puts around texts."""
    ids: list[int] = []
    map_ids(state["post_processor"], ids.append)
    return {*ids, *tokenizer.all_special_ids, *(token["id"] for token in state["added_tokens"])}


def vocabulary_fields(model: PreTrainedModel, cut: CutVocabulary, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields that fewer pieces change: their number, and the ids of special tokens; none for all pieces.

    Args:
        overrides: further fields that are changed, none of these.

    Raises:
        UserError: a model without a table of pieces, with one for another tokenizer, or whose positions would move.
    """
    name, rows = type(model).__name__, table_rows(model)
    if not isinstance(cut, CutVocabulary):
        raise UserError(f"vocabulary={cut!r:.40}: expected the result of cut_vocabulary(tokenizer, texts, size)")
    if rows is None or rows <= cut.kept_ids[-1]:
        table = "no table of pieces" if rows is None else f"a table of {rows:,} rows"
        raise UserError(f"{name} has {table}: expected the model of the tokenizer, with {cut.pieces_before:,} pieces")
    if len(cut.kept_ids) == cut.pieces_before:
        return {}
    new = {old: index for index, old in enumerate(cut.kept_ids)}
    fields = {
        field: new.get(value, getattr(cut.tokenizer, field, None))
        for field, value in model.config.to_dict().items()
        if field.endswith("_token_id") and isinstance(value, int)
    }
    before, after = getattr(model.config, "pad_token_id", None), fields.get("pad_token_id")
    if before != after and counts_by_padding(model):
        raise UserError(
            f"{name} counts positions from its padding id, which would change from {before} to {after}: expected "
            "special tokens at the start of the vocabulary; leave vocabulary out"
        )
    fields["vocab_size"] = len(cut.kept_ids)
    if both := sorted(fields.keys() & overrides.keys()):
        raise UserError(f"{both[0]}={overrides[both[0]]!r} with vocabulary, which decides it: leave either out")
    return fields


def cut_rows(
    weights: Mapping[str, Tensor], smaller: Mapping[str, Tensor], rows: int | None, kept_ids: Sequence[int]
) -> dict[str, Tensor]:
    """Weights with a row for each piece (embeddings, and the outputs of a masked language model) for fewer pieces.

    Args:
        weights: of a model with a table of ``rows`` rows, by name.
        smaller: of a model with one of ``len(kept_ids)`` rows: its shapes say which weights have a row for each piece.
    """
    heights = (rows, len(kept_ids))
    return {
        name: weight[torch.tensor(kept_ids, device=weight.device)]
        if name in smaller and (*weight.shape[:1], *smaller[name].shape[:1]) == heights
        else weight
        for name, weight in weights.items()
    }
