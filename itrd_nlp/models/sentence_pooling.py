"""How the folder of a sentence encoder says that it makes one embedding of its tokens' vectors."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from itrd_nlp.distillation.pooling import SENTENCE_POOLING
from itrd_nlp.models.projection import FOLDER, has_projection
from itrd_nlp.models.weight_files import cached_path, is_unknown
from itrd_nlp.utils.errors import UserError

logger = logging.getLogger(__name__)

KINDS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}  # sentence-transformers' names


def read_pooling(source: str) -> str | None:
    """The pooling that a sentence encoder's folder or Hub id asks for, ``"mean"`` or ``"cls"``; None without a word.

    Raises:
        UserError: embeddings that are made otherwise.
    """
    pooling, modules = None, _load_json(source, "modules.json")
    if modules is None and is_unknown(source, "modules.json"):
        logger.warning(
            f"[pooling] {source}: its modules.json, which says how embeddings are made, is not here, and the Hub "
            "cannot be asked; the mean of the tokens is taken"
        )
    for part in modules or []:
        step = part["type"].rpartition(".")[2]
        if step == "Pooling":
            options = _load_json(source, f"{part['path']}/config.json") or {}
            modes = [name for name, on in options.items() if on is True and name.startswith("pooling_mode_")]
            step = options.get("pooling_mode") or " and ".join(mode.removeprefix("pooling_mode_") for mode in modes)
            pooling = KINDS.get(step)
        if step == "Dense" and part["path"] == FOLDER and has_projection(source):
            continue
        if step not in ("Transformer", "Normalize", *KINDS):
            raise UserError(
                f"{source} makes its embeddings by {step}: expected the mean of the tokens or the first of them; take "
                "another model"
            )
    return pooling


def set_pooling(config: Any, source: str | Path) -> None:
    """Let a sentence encoder's config say what its folder or Hub id says, where that is a pooling of this package."""
    with contextlib.suppress(UserError):  # of others, where embeddings are made
        if (pooling := read_pooling(str(source))) is not None:
            setattr(config, SENTENCE_POOLING, pooling)


def _load_json(source: str, name: str) -> Any:
    path = cached_path(source, name)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
