"""Models of a folder or the Hub: with all weights that the config promises, or refused in one line that names them."""

from __future__ import annotations

import contextlib
import inspect
import json
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils import logging as transformers_logging

from itrd_nlp.models.classes import has_head
from itrd_nlp.models.onnx_model import folder_of
from itrd_nlp.utils.errors import UserError, first_line, nearest
from itrd_nlp.utils.tokenizers import UNREADABLE, is_empty

BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError, pickle.UnpicklingError)
# what torch.compile, FSDP and activation checkpointing put into names of weights, wherever a module was wrapped
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Loaded(NamedTuple):
    """A model, and what its checkpoint did not hold."""

    model: PreTrainedModel  # in fp32 and eval mode
    new: frozenset[str]  # names of weights that were initialised: all of the head's, or of the pooler that it needs


def load_checkpoint(
    source: str | Path,
    model_class: Any,
    config: PretrainedConfig | None = None,
    *,
    seed: int = 0,
    other_classes: bool = False,
) -> Loaded:
    """The model of a folder or Hub id: the one way in which weights are read.

    A head that the checkpoint lacks, or that is the head of another task, is initialised; nothing else ever is.
    Prefixes that wrappers of the model left in the names of all weights (``module.``, ``_orig_mod.``, ``model.``) are
    removed.

    Args:
        source: folder or Hub id.
        model_class: AutoModelFor..., or a class of transformers.
        config: of the model, where it differs from the checkpoint's.
        seed: initialises what no checkpoint holds; torch's state is left as it was.
        other_classes: whether ``config`` asks for other classes than the checkpoint's head has, which then is new.

    Raises:
        UserError: nothing there, an adapter, quantised weights, weights that are missing, of other shapes or
            non-finite, and layers beyond those of the config.
    """
    config = load_config(source) if config is None else config
    model, info = _load(source, model_class, config, seed)
    encoder = _encoder_names(model)
    if lacking := info["missing_keys"] & encoder:
        renamed = _without_prefix(source, lacking, model.base_model_prefix)
        if renamed is not None:
            model, info = _load(source, type(model), config, seed, renamed)
    missing, wrong = info["missing_keys"], {name: shapes for name, *shapes in info["mismatched_keys"]}
    headless = model_class is AutoModel
    named = not headless and has_head(config, model_class)
    required = encoder if not named or other_classes else {*model.state_dict()}
    _refuse_missing(source, sorted(missing & required), headed=not missing & encoder)
    for name, (found, expected) in sorted(wrong.items()):
        if name in required:
            raise UserError(
                f"{source}: {name} has the shape {(*found,)}, its config says {(*expected,)}: expected the config of "
                "the model that was saved"
            )
    _refuse_extra_layers(source, model, info["unexpected_keys"])
    _refuse_nonfinite(source, model)
    new = {*missing, *wrong}
    if not (headless or named) and _other_head(config):
        new |= _reinitialise(model, {*model.state_dict()} - encoder - new, seed)
    return Loaded(model.eval(), frozenset(new))


def load_config(source: str | Path) -> PretrainedConfig:
    """The config of a folder or Hub id; raises :class:`UserError` for none, an adapter, and quantised weights."""
    refuse_adapter(source)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except BROKEN as error:
            raise _nothing(source, error) from None
    if how := getattr(config, "quantization_config", None):
        method = how.get("quant_method") if isinstance(how, Mapping) else getattr(how, "quant_method", None)
        raise UserError(
            f"{source} holds weights that were quantised ({method or 'by an unknown method'}): expected fp32, fp16 or "
            "bf16; name the model that it was made of"
        )
    return config


def refuse_adapter(source: str | Path) -> None:
    """Raise :class:`UserError` for a folder of PEFT, which holds what is added to a model and not the model."""
    path = Path(source)
    if (path / ADAPTER_CONFIG_NAME).is_file() or (not path.exists() and cached_path(source, ADAPTER_CONFIG_NAME)):
        raise UserError(
            f"{source} is an adapter (LoRA or the like), not a model: merge it into its base with peft, "
            "model.merge_and_unload().save_pretrained(FOLDER), save the tokenizer there too, and name that folder"
        )


def named_class(config: PretrainedConfig, source: str | Path) -> Any:
    """The class of transformers that a config names as its architecture.

    Raises:
        UserError: none, or none of transformers.
    """
    name = (config.architectures or [""])[0]
    found = getattr(transformers, name, None)
    if not (inspect.isclass(found) and issubclass(found, PreTrainedModel)):
        raise UserError(f"{source}: its config names the architecture {name!r}; expected an encoder of transformers")
    return found


def common_prefix(found: Iterable[str], wanted: Iterable[str]) -> str:
    """The prefix that all wanted names have among those that were found; empty where there is none.

    Raises:
        ValueError: several would do.

    Example:
        >>> common_prefix(["model.a.weight", "model.b.weight", "loss.c"], ["a.weight", "b.weight"])
        'model.'
    """
    found, wanted = {*found}, [*wanted]
    first = wanted[0]
    candidates = {name.removesuffix(first) for name in found if name.endswith(f".{first}")}
    held = {prefix: sum(prefix + name in found for name in wanted) for prefix in candidates}
    best = [prefix for prefix, count in held.items() if count == max(held.values())]
    if len(best) > 1:
        raise ValueError(" and ".join(sorted(best)))
    return best[0] if best else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' reports on weights: what is missing is told here, and what is new is trained."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load(
    source: str | Path, model_class: Any, config: PretrainedConfig, seed: int, weights: dict[str, Tensor] | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What ``from_pretrained`` makes of a checkpoint, or of weights that were read already, and its report."""
    options: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    if weights is not None:
        options["state_dict"] = weights
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            where = source if weights is None else None
            model, info = model_class.from_pretrained(where, config=config, trust_remote_code=False, **options)
        except BROKEN as error:
            raise _nothing(source, error) from None
    model.name_or_path = model.config.name_or_path = str(source)
    return model, info


def _nothing(source: str | Path, error: BaseException) -> UserError:
    return UserError(
        f"no model in {str(source)!r}: expected a folder with config and weights, or a Hub id ({first_line(error)})"
    )


def _encoder_names(model: PreTrainedModel) -> set[str]:
    """Names of the weights of everything but the head, and but a pooler, which is as new as the head it feeds."""
    names, prefix = {*model.state_dict()}, f"{model.base_model_prefix}."
    if model.base_model is not model:
        names = {name for name in names if name.startswith(prefix)}
    elif "For" in type(model).__name__:  # the encoder is among the children: those that hold layers
        inside = [name for name, child in model.named_children() if _has_layers(child)]
        names = {name for name in names if name.partition(".")[0] in inside}
    if prefix == "timm_model.":  # the whole network, head included
        found = model.timm_model.get_classifier()
        own = [part for part in (found if isinstance(found, tuple) else (found,)) if isinstance(part, nn.Module)]
        heads = [f"{name}." for name, part in model.named_modules() if any(part is head for head in own)]
        names = {name for name in names if not any(name.startswith(head) for head in heads)}
    return {name for name in names if not name.removeprefix(prefix).startswith("pooler.")}


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList | nn.Embedding) for part in module.modules())


def _without_prefix(source: str | Path, lacking: set[str], base: str) -> dict[str, Tensor] | None:
    """The weights of a checkpoint under the names that the model has; None where a prefix is not the reason."""
    weights = {WRAPPERS.sub("", name): value for name, value in _weights(source).items()}
    try:
        prefix = common_prefix(weights, sorted(lacking)) or common_prefix(
            weights, sorted(name.removeprefix(f"{base}.") for name in lacking)
        )
    except ValueError as error:
        raise UserError(
            f"{source} holds several models, under {error}: expected the weights of one; save that one by itself"
        ) from None
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _weights(source: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, whichever of transformers' files holds them."""
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = cached_path(source, name)
        if path is None:
            continue
        files = [path]
        if name.endswith(".json"):
            parts = {*json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()}
            files = [found for part in sorted(parts) if (found := cached_path(source, part))]
        made: dict[str, Tensor] = {}
        for file in files:
            made |= load_file(file) if "safetensors" in name else torch.load(file, "cpu", weights_only=True)
        return made
    return {}


def cached_path(source: str | Path, name: str) -> str | None:
    """The path of a file of a folder or Hub id, or None."""
    raises = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(str(source), name, **raises, _raise_exceptions_for_gated_repo=False)
    except (OSError, ValueError):  # no such repository, which is told where its config is read
        return None


def _refuse_missing(source: str | Path, names: list[str], headed: bool) -> None:
    if not names:
        return
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    untrained = "; to train a new head, remove architectures from its config.json" if headed else ""
    raise UserError(
        f"{source} lacks {names[0]}{more}: expected a trained model with all weights that its config asks "
        f"for{untrained}"
    )


def _refuse_extra_layers(source: str | Path, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Refuse a checkpoint with more layers than its config says: the model would be another one than was trained."""
    prefix = f"{model.base_model_prefix}."
    counts = {
        name.removeprefix(prefix): len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    for name in sorted(unexpected):
        for found in re.finditer(r"\.(\d+)\.", name):
            stem = name[: found.start()].removeprefix(prefix)
            if counts.get(stem, 1 << 30) <= int(found[1]):
                raise UserError(
                    f"{source} holds {name}, its config says {counts[stem]} layers: expected the config of the model "
                    "that was saved"
                )


def _refuse_nonfinite(source: str | Path, model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{source}: {name} holds non-finite numbers; expected a model whose training succeeded")


def _other_head(config: PretrainedConfig) -> bool:
    """Whether a config names a class of transformers with some head."""
    return any("For" in name and hasattr(transformers, name) for name in config.architectures or ())


@torch.no_grad()
def _reinitialise(model: PreTrainedModel, names: set[str], seed: int) -> set[str]:
    """Initialise a head that was loaded from another task's, whose weights happen to have its names and shapes.

    A pooler is left: what it learned serves any head of sentences.
    """
    names = {name for name in names if not name.removeprefix(f"{model.base_model_prefix}.").startswith("pooler.")}
    if names:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.default_generator.manual_seed(seed)
            fresh = type(model)._from_config(model.config, dtype=torch.float32).state_dict()
        for name, weight in model.state_dict().items():
            if name in names:
                weight.copy_(fresh[name])
    return names


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model.

    Raises:
        UserError: none there.
    """
    refuse_adapter(folder_of(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_of(source))
    except UNREADABLE as error:
        folder = Path(source)
        if folder.is_dir():
            reason = f"save the model's there, or name another folder as tokenizer ({first_line(error)})"
            raise UserError(f"no tokenizer in '{source}': {reason}") from error
        beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
        reason = f"neither a folder here nor could its tokenizer be loaded from the Hub{nearest(folder.name, beside)}"
        raise UserError(f"model '{source}' is {reason}") from error
    if is_empty(tokenizer):
        raise UserError(
            f"no tokenizer files in '{source}': save the model's there, or name another folder as tokenizer"
        )
    return tokenizer
