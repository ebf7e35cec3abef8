"""How the folder of a sentence encoder says that it makes one embedding of its tokens' vectors: read, and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import CONFIG_NAME

from itrd_nlp.distillation.pooling import SENTENCE_POOLING
from itrd_nlp.models.classes import LIBRARY_FILE, warn_of_prompt
from itrd_nlp.models.projection import FOLDER, has_projection
from itrd_nlp.models.weight_files import cached_json, is_unknown
from itrd_nlp.utils.console import warn_once
from itrd_nlp.utils.errors import DamagedError, UserError

TOKENIZER = "tokenizer.json"
LENGTH_FILE = "sentence_bert_config.json"
BEFORE = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # kinds with a file of their own
LENGTH_FILES_BEFORE = tuple(f"sentence_{kind}_config.json" for kind in BEFORE)
KINDS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}  # sentence-transformers' names


def read_pooling(source: str) -> str | None:
    """The pooling that a sentence encoder's folder or Hub id asks for, ``"mean"`` or ``"cls"``; None without a word.

    Raises:
        UserError: embeddings that are made otherwise.
    """
    pooling, modules = None, cached_json(source, "modules.json")
    if modules is None:  # a checkpoint of this package, or a model that its trainer saved
        pooling = (cached_json(source, CONFIG_NAME) or {}).get(SENTENCE_POOLING)
    if modules is None and pooling is None and is_unknown(source, "modules.json"):
        warn_once(
            f"[pooling] {source}: its modules.json, which says how embeddings are made, is not here, and the Hub "
            "cannot be asked; the mean of the tokens is taken"
        )
    for module in modules or []:
        step = module["type"].rpartition(".")[2]
        if step == "Pooling":
            step = _pooling_mode(cached_json(source, f"{module['path']}/config.json") or {})
            pooling = KINDS.get(step)
        if step == "Dense" and module["path"] == FOLDER and has_projection(source):
            continue
        if step not in ("Transformer", "Normalize", *KINDS):
            raise UserError(
                f"{source} makes its embeddings by {step}: expected the mean of the tokens or the first of them; take "
                "another model"
            )
    _warn_of_differences(source)
    return pooling


def _pooling_mode(options: Mapping[str, Any]) -> str:
    """The modes that a ``Pooling`` module's config turns on."""
    if isinstance(mode := options.get("pooling_mode"), str):
        return mode
    turned_on = [name for name, on in options.items() if on is True and name.startswith("pooling_mode_")]
    return " and ".join(mode or [name.removeprefix("pooling_mode_") for name in turned_on])


def _warn_of_differences(source: str) -> None:
    """Warn where sentence-transformers would change an encoder's texts, or make other embeddings of them."""
    fields = cached_json(source, LIBRARY_FILE) or {}
    warn_of_prompt(fields, source)
    if width := fields.get("truncate_dim"):
        warn_once(
            f"[pooling] {source}: sentence-transformers keeps the first {width} numbers of an embedding, which nothing "
            "here does"
        )
    if fields.get("similarity_fn_name") in ("dot", "dot_score") and not normalises(source):
        warn_once(
            f"[pooling] {source}: its embeddings are compared by their dot product, in which their length counts; here "
            "all have length 1"
        )
    lowers = (cached_json(source, LENGTH_FILE) or {}).get("do_lower_case")
    tokenizer = cached_json(source, TOKENIZER) if lowers else None
    if tokenizer is not None and not _lowercases(tokenizer.get("normalizer")):
        warn_once(f"[pooling] {source}: sentence-transformers lowercases its texts, which nothing here does")


def normalises(source: str) -> bool:
    """Whether sentence-transformers gives the embeddings of a folder or Hub id the length 1; True without its files."""
    modules = cached_json(source, "modules.json")
    return modules is None or any(module["type"].endswith(".Normalize") for module in modules)


def _lowercases(normalizer: dict[str, Any] | None) -> bool:
    """Whether a fast tokenizer, or one in a sequence, makes letters small."""
    parts = [normalizer or {}, *(normalizer or {}).get("normalizers", [])]
    return any(part.get("type") == "Lowercase" or part.get("lowercase") for part in parts)


def read_length(source: str) -> int | None:
    """The tokens at which a sentence encoder's folder or Hub id cuts a text; None without a word.

    Where it is one of sentence-transformers, and no file of it says, its tokenizer does.
    """
    fields = [(name, "max_seq_length") for name in (LENGTH_FILE, *LENGTH_FILES_BEFORE)]
    if cached_json(source, "modules.json") is not None:
        fields.append(("tokenizer_config.json", "model_max_length"))
    lengths = ((cached_json(source, name) or {}).get(key) for name, key in fields)
    return next((n for n in lengths if isinstance(n, int) and 0 < n < VERY_LARGE_INTEGER), None)


def set_pooling(config: Any, source: str | Path) -> None:
    """Let a sentence encoder's config say what its folder or Hub id says, where that is a pooling of this package."""
    try:
        pooling = read_pooling(str(source))
    except DamagedError:
        raise
    except UserError:  # an error where embeddings are made
        return
    if pooling is not None:
        setattr(config, SENTENCE_POOLING, pooling)


def sentence_files(pooling: str, width: int, max_length: int | None, normalise: bool = True) -> dict[str, Any]:
    """File -> content of what makes a model's folder one of sentence-transformers.

    Args:
        pooling: ``"mean"`` or ``"cls"``.
        width: of the tokens' vectors.
        max_length: tokens of a text.
        normalise: give the embeddings the length 1.
    """
    parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    if not normalise:
        del parts["2_Normalize"]
    return {
        "modules.json": _modules(parts),
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
        },
        LENGTH_FILE: {"max_seq_length": max_length, "do_lower_case": False},
    }


def with_dense(files: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`sentence_files` with a projection between pooling and normalisation."""
    parts = {"": "Transformer", "1_Pooling": "Pooling", FOLDER: "Dense", "3_Normalize": "Normalize"}
    return {**files, "modules.json": _modules(parts)}


def write_files(files: Mapping[str, Any], folder: Path) -> None:
    """Write each as JSON."""
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _modules(parts: Mapping[str, str]) -> list[dict[str, Any]]:
    """What ``modules.json`` lists: folder -> kind of module."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts.items())
    ]
