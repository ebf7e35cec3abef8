"""Checks that a tokenizer fits a model, and that two tokenizers are the same; and how one is saved."""

import copy
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import is_decoder

PARTS = {"normalizer": "normaliser", "pre_tokenizer": "pre-tokeniser"}  # of a fast tokenizer
IN_WORDS = {**PARTS, "vocab": "scores of tokens"}
SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
LOADING_ERRORS = (OSError, ValueError, ImportError, TypeError)  # what loading raises: a file or a library is missing
SAMPLE = ("Zoë's 2 río-naïve\tcats; ÄB cd?", "It's 3,14 — ok.")


def backend_state(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer is made of, as in ``tokenizer.json``."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def save_processor(processor: Any, folder: Path) -> None:
    """Save a tokenizer or an image processor into a model's folder.

    A fast tokenizer remembers the truncation and padding of its last call, and would cut texts at that length wherever
    its file is read by another library: they are left out.
    """
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    processor.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    if isinstance(processor, PreTrainedTokenizerBase) and config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        values = _for_transformers_4(processor, values)
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _for_transformers_4(tokenizer: PreTrainedTokenizerBase, values: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's config, as transformers 4 reads it, too."""
    extra = values.pop("extra_special_tokens", None)
    if extra:  # a list of them had this name there, which transformers 5 reads
        values["additional_special_tokens" if isinstance(extra, list) else "extra_special_tokens"] = extra
    if type(tokenizer) is PreTrainedTokenizerFast:  # of no model's own class
        state = backend_state(tokenizer)["pre_tokenizer"] or {}
        values |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": tokenizer.model_input_names}
        values |= {name: state[name] for name in ("add_prefix_space",) if name in state}
    return values


def table_rows(model: PreTrainedModel) -> int | None:
    """The number of rows of a model's token embeddings; None without them, as in CANINE and image models."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return getattr(model.config, "vocab_size", None)  # an exported model has its config alone
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer that does not fit a model; give a model without a padding token the tokenizer's.

    Args:
        source: what an error calls the model.

    Raises:
        UserError: token ids beyond the table of embeddings; or another padding token, where the model counts by it.
    """
    rows = table_rows(model)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and highest >= rows:
        raise UserError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, its table of embeddings {rows} rows ({token!r} has "
            f"the id {highest}): expected a row for each; call model.resize_token_embeddings({highest + 1}), train and "
            "save the model, or take the tokenizer that it was trained with"
        )
    config = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    elif tokenizer.pad_token_id not in (None, config.pad_token_id) and counts_by_padding(model):
        raise UserError(
            f"{source}: its padding token has the id {config.pad_token_id}, its tokenizer's {tokenizer.pad_token_id}: "
            "expected one, by which the model finds the positions of tokens; correct pad_token_id in its config.json"
        )


def counts_by_padding(model: PreTrainedModel) -> bool:
    """Whether positions start after the padding index, as in RoBERTa, or a decoder's head reads the last token."""
    return position_padding(model) is not None or is_decoder(model)


def position_padding(model: PreTrainedModel) -> int | None:
    """The padding id after which a model counts positions, as RoBERTa and MPNet do; None where it counts from 0."""
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    return next((index for table in tables if (index := getattr(table, "padding_idx", None)) is not None), None)


def own_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model's files on this machine, or None."""
    if not model.name_or_path:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS:
        return None
    return None if is_empty(tokenizer) else tokenizer


def is_empty(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has only special tokens: what transformers 5 builds where the files are missing."""
    return len(tokenizer) <= len(tokenizer.all_special_tokens)


def check_shared_vocabulary(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Refuse two models with different tokenizers; where a tokenizer is missing, with embeddings of different sizes.

    Equal tokenizers allow embeddings of different sizes: they may have more rows than the tokenizer has tokens.
    """
    rows = [table_rows(model) for model in (teacher, student)]
    expected = "expected one tokenizer for both, or ITRDTrainer(..., teacher_processing_class=TOKENIZER)"
    if teacher.name_or_path != student.name_or_path:
        own = [own_tokenizer(model) for model in (teacher, student)]
        if own[0] is not None and own[1] is not None:
            # a tagger's puts a blank before each word, see `for_words`: the ids mean the same
            difference = tokenizers_differ(own[0], own[1])
            if difference and tokenizers_differ(with_blanks(own[0]), with_blanks(own[1])):
                raise UserError(f"the tokenizers of teacher and student differ in {difference}: {expected}")
            return
    if None not in rows and rows[0] != rows[1]:
        raise UserError(f"the teacher's vocabulary has {rows[0]} tokens, the student's {rows[1]}: {expected}")


def tokenizers_differ(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """The first difference of two tokenizers, in words; None where both tokenise every text alike."""
    first_ids, second_ids = first.get_vocab(), second.get_vocab()
    if first_ids != second_ids:
        changed = sum(second_ids.get(token) != index for token, index in first_ids.items())
        return f"their vocabularies ({len(first_ids)} and {len(second_ids)} tokens, {changed} not shared)"
    for name in SPECIAL:
        if getattr(first, name) != getattr(second, name):
            return f"{name} ({getattr(first, name)} and {getattr(second, name)})"
    parts, others = _parts(first), _parts(second)
    for name, value in parts.items():
        if others.get(name) != value:
            return f"the {IN_WORDS.get(name, name)}"
    for pair in (SAMPLE[:1], SAMPLE):  # special tokens around texts can be defined in several ways
        if first(*pair)["input_ids"] != second(*pair)["input_ids"]:
            return f"the tokens of {' and '.join(map(repr, pair))}"
    return None


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The parts of a fast tokenizer, beside its tokens, that decide how it cuts a text."""
    if not tokenizer.is_fast:
        return {"kind": type(tokenizer).__name__}
    state = backend_state(tokenizer)
    model = {name: value or None for name, value in state["model"].items()}
    if isinstance(model["vocab"], dict):  # else with the scores of Unigram
        del model["vocab"]
    return {
        **{name: state.get(name) for name in PARTS},
        **model,
        "split_special_tokens": tokenizer.split_special_tokens,
    }


def input_columns(tokens: Container[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The names in a tokenizer's output that a model or its pooling reads."""
    return [name for name in (*tokenizer.model_input_names, "special_tokens_mask") if name in tokens]


def null_position(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The index of the CLS token, which stands for "no answer"; 0 without one."""
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a slow tokenizer, padding on the left, and a tokenizer without a padding token."""
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(f"{kind} is a slow tokenizer without character offsets: load a fast one (use_fast=True)")
    if tokenizer.padding_side != "right":
        raise UserError(f"{kind} pads on the {tokenizer.padding_side}: load it with padding_side='right'")
    if tokenizer.pad_token is None:
        raise UserError(f"{kind} has no padding token: set one, such as tokenizer.pad_token = tokenizer.eos_token")


def for_words(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """:func:`with_blanks` of a tokenizer, which then cuts words given one by one as it cuts them within a text.

    Raises:
        UserError: as :func:`check_tokenizer`; or a tokenizer that cuts them in another way even then.
    """
    check_tokenizer(tokenizer)
    own, kind = with_blanks(tokenizer), type(tokenizer).__name__
    if not _cuts_words_alike(own):
        raise UserError(
            f"{kind} cuts words given one by one in another way than in a text, and no blank before "
            "each helps: expected a tokenizer as BERT's, RoBERTa's or DeBERTa's; take another model to tag words"
        )
    return own


def with_blanks(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that puts a blank before each word, where words given one by one need one; else the tokenizer itself.

    Byte-level BPE and SentencePiece tell words by the blanks before them. By default, the tokenizers of RoBERTa and
    ModernBERT put none before words given one by one, and read all of them as the middle of a word.
    """
    if not tokenizer.is_fast or _cuts_words_alike(tokenizer):
        return tokenizer
    own: Any = copy.deepcopy(tokenizer)
    state = backend_state(own)
    first = state["pre_tokenizer"] or {}
    if first.get("type") == "ByteLevel":
        first["add_prefix_space"] = True
    elif first.get("type") == "Metaspace":
        first["prepend_scheme"] = "always"
    else:  # of several, some may cut a word before ByteLevel, which would put a blank before each part
        normal = own._tokenizer.normalizer.normalize_str(" ") if state["normalizer"] else " "  # Gemma's: "▁"
        replacement = normal if len(normal) == 1 else " "
        blank = {"type": "Metaspace", "replacement": replacement, "prepend_scheme": "always", "split": False}
        parts = [blank, first] if first else [blank]
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    _offsets_with_blanks(state["post_processor"])
    own._tokenizer = Tokenizer.from_str(json.dumps(state))
    own._tokenizer.encode_special_tokens = tokenizer.split_special_tokens  # is not in the state
    # saved; the classes of some models, RoBERTa's among them, make their pre-tokeniser by it
    own.add_prefix_space = own.init_kwargs["add_prefix_space"] = True
    return own


def _offsets_with_blanks(processor: Any) -> None:
    """Let a post-processor, or each in a sequence, take the blank before a word for one that is not in the text."""
    for part in (processor or {}).get("processors", [processor or {}]):
        if "add_prefix_space" in part:
            part["add_prefix_space"] = True


def _cuts_words_alike(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the second of two words gets the same pieces when it is given alone as behind the first."""
    alone, together = [
        tokenizer(text, is_split_into_words=split, add_special_tokens=False)["input_ids"]
        for text, split in ((["a", "a"], True), ("a a", False))
    ]
    return len(alone) == len(together) and alone[-1:] == together[-1:]
