"""The files of a checkpoint: where they are, their tensors, and the prefixes that wrappers left in their names."""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import load_json

# what torch.compile, FSDP and activation checkpointing put into names of weights, wherever a module was wrapped
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def cached_path(source: str | Path, name: str) -> str | None:
    """The path of a file of a folder or Hub id, or None."""
    raises = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(str(source), name, **raises, _raise_exceptions_for_gated_repo=False)
    except (OSError, ValueError):  # no such repository: an error where the config is read
        return None


def cached_json(source: str | Path, name: str) -> Any:
    """The value of a JSON file of a folder or Hub id, None without it; :class:`DamagedError` where it holds none."""
    path = cached_path(source, name)
    return None if path is None else load_json(Path(path))


def is_unknown(source: str | Path, name: str) -> bool:
    """Whether nobody can say if a Hub id has a file: it is not here, and the Hub cannot be asked."""
    with contextlib.suppress(ValueError):  # no id of the Hub
        return not Path(source).exists() and try_to_load_from_cache(str(source), name) is None
    return False


def _weights(source: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, whichever of transformers' files holds them."""
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = cached_path(source, name)
        if path is None:
            continue
        files = [path]
        if name.endswith(".json"):
            parts = {*load_json(Path(path))["weight_map"].values()}
            files = [file for part in sorted(parts) if (file := cached_path(source, part))]
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= load_file(file) if "safetensors" in name else torch.load(file, "cpu", weights_only=True)
        return tensors
    return {}


def weights_without_prefix(source: str | Path, missing: set[str], base: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, without what wrappers put before their names.

    Args:
        missing: names that the model has and the checkpoint lacks.
        base: prefix of the encoder in the model, which a checkpoint of an encoder alone lacks too.

    Raises:
        UserError: the checkpoint holds several models.
    """
    weights = {WRAPPERS.sub("", name): value for name, value in _weights(source).items()}
    try:
        prefix = common_prefix(weights, sorted(missing)) or common_prefix(
            weights, sorted(name.removeprefix(f"{base}.") for name in missing)
        )
    except ValueError as error:
        raise UserError(
            f"{source} holds several models, under {error}: expected the weights of one; save that one by itself"
        ) from None
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def common_prefix(names: Iterable[str], wanted: Iterable[str]) -> str:
    """The prefix under which most of the ``wanted`` names are among ``names``; empty where there is none.

    Raises:
        ValueError: several prefixes would do.

    Example:
        >>> common_prefix(["model.a.weight", "model.b.weight", "loss.c"], ["a.weight", "b.weight"])
        'model.'
    """
    names, wanted = {*names}, [*wanted]
    first = wanted[0]
    candidates = {name.removesuffix(first) for name in names if name.endswith(f".{first}")}
    counts = {prefix: sum(prefix + name in names for name in wanted) for prefix in candidates}
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise ValueError(" and ".join(sorted(best)))
    return best[0] if best else ""
