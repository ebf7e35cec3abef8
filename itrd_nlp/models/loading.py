"""Load models from a folder or the Hub, with all weights that the config asks for, or refuse them in one line."""

import contextlib
import inspect
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from itrd_nlp.distillation.stages import timm_heads
from itrd_nlp.models.classes import CONFIG_ERRORS, has_head, with_library_fields
from itrd_nlp.models.onnx_model import folder_of
from itrd_nlp.models.weight_files import cached_path, weights_without_prefix
from itrd_nlp.utils.errors import UserError, nearest, one_line
from itrd_nlp.utils.modeling import position_limit, seeded, window_limit
from itrd_nlp.utils.tokenizers import LOADING_ERRORS, is_empty

BROKEN = (*CONFIG_ERRORS, SafetensorError, pickle.UnpicklingError)  # what loading raises, of a config or weights


class Loaded(NamedTuple):
    """A model, and the weights that its checkpoint lacks."""

    model: PreTrainedModel  # in fp32 and eval mode
    new: frozenset[str]  # names of weights that were initialised: of the head, and of the pooler that it needs


def load_checkpoint(
    source: str | Path,
    model_class: Any,
    config: PretrainedConfig | None = None,
    *,
    seed: int = 0,
    other_classes: bool = False,
) -> Loaded:
    """Load the model of a folder or Hub id, refusing or reporting every missing weight.

    A head that the checkpoint lacks, that is the head of another task, or whose config does not name its class, is
    initialised; nothing else ever is.
    Prefixes that wrappers of the model left in the names of all weights (``module.``, ``_orig_mod.``, ``model.``) are
    removed.

    Args:
        source: folder or Hub id.
        model_class: AutoModelFor..., or a class of transformers.
        config: the model's, where it differs from the checkpoint's.
        seed: initialises what no checkpoint holds; torch's state is left as it was.
        other_classes: whether ``config`` asks for other classes than the checkpoint's head has, which then is new.

    Raises:
        UserError: no model, an adapter, quantised weights, weights that are missing, of other shapes or non-finite, or
            more layers than the config says.
    """
    config = load_config(source) if config is None else config
    model, info = _load(source, model_class, config, seed)
    encoder = _encoder_names(model)
    if missing := info["missing_keys"] & encoder:
        weights = weights_without_prefix(source, missing, model.base_model_prefix)
        model, info = _load(source, type(model), config, seed, weights)
    is_encoder = model.base_model is model and "For" not in type(model).__name__  # its pooler is not read
    wants_head = model_class is not AutoModel and not is_encoder
    own_head = wants_head and has_head(config, model_class)
    required = {*model.state_dict()} if own_head and not other_classes else encoder
    _refuse_unfit(source, info, required, encoder)
    _refuse_extra_layers(source, model, info["unexpected_keys"])
    _refuse_nonfinite(source, model)
    new = {*info["missing_keys"], *[name for name, *_ in info["mismatched_keys"]]}
    names_its_class = config.model_type != "timm_wrapper"  # timm's own configs name no class
    if wants_head and not own_head and names_its_class:  # or its config names no class: what outputs mean is unknown
        new |= _reinitialise(model, {*model.state_dict()} - encoder - new, seed)
    return Loaded(model.eval(), frozenset(new))


def load_config(source: str | Path, config_class: Any = AutoConfig) -> PretrainedConfig:
    """Load the config of a folder or Hub id; raise :class:`UserError` for none, an adapter, and quantised weights.

    ``config_class`` is that of a model which transformers does not know: a user's own, or one with code of the Hub.
    """
    refuse_adapter(source)
    with quiet():
        try:
            config = config_class.from_pretrained(source, trust_remote_code=False)
        except BROKEN as error:
            raise _no_model(source, error) from None
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method") or "by an unknown method"
        raise UserError(
            f"{source} holds weights that were quantised ({method}): expected fp32, fp16 or bf16; name the model from "
            "which it was made"
        )
    return with_library_fields(config, source)


def refuse_adapter(source: str | Path) -> None:
    """Raise :class:`UserError` for a folder of PEFT, which holds an addition to a model without the model."""
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
    architecture = getattr(transformers, name, None)
    if not (inspect.isclass(architecture) and issubclass(architecture, PreTrainedModel)):
        raise UserError(f"{source}: its config names the architecture {name!r}; expected an encoder of transformers")
    return architecture


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports on weights: missing ones are errors here, and new ones are trained."""
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
    """Run ``from_pretrained`` on a checkpoint, or on weights that were read already; return its report too."""
    options: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    if weights is not None:
        options["state_dict"] = weights
    with quiet(), seeded(seed):
        try:
            path = source if weights is None else None
            model, info = model_class.from_pretrained(path, config=config, trust_remote_code=False, **options)
        except BROKEN as error:
            raise _no_model(source, error) from None
    model.name_or_path = model.config.name_or_path = str(source)
    return model, info


def _no_model(source: str | Path, error: BaseException) -> UserError:
    return UserError(
        f"no model in {str(source)!r}: expected a folder with config and weights, or a Hub id ({one_line(error)})"
    )


def _encoder_names(model: PreTrainedModel) -> set[str]:
    """Names of all weights except those of the head, and of a pooler, which is as new as the head it feeds."""
    names, prefix = {*model.state_dict()}, f"{model.base_model_prefix}."
    if model.base_model is not model:
        names = {name for name in names if name.startswith(prefix)}
    elif "For" in type(model).__name__:  # the encoder is among the children: those that hold layers
        kinds = nn.ModuleList | nn.Embedding
        encoders = [n for n, child in model.named_children() if any(isinstance(m, kinds) for m in child.modules())]
        names = {name for name in names if name.partition(".")[0] in encoders}
    if prefix == "timm_model.":  # this prefix covers the head too
        heads = [f"{name}." for name in timm_heads(model)]
        names = {name for name in names if not any(name.startswith(head) for head in heads)}
    return {name for name in names if not name.removeprefix(prefix).startswith("pooler.")}


def _refuse_unfit(source: str | Path, info: dict[str, Any], required: set[str], encoder: set[str]) -> None:
    """Refuse a checkpoint that lacks required weights, or has them in other shapes than its config says."""
    if names := sorted(info["missing_keys"] & required):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        has_encoder = info["missing_keys"].isdisjoint(encoder)
        advice = "; to train a new head, remove architectures from its config.json" if has_encoder else ""
        raise UserError(
            f"{source} lacks {names[0]}{more}: expected a trained model with all weights that its config asks "
            f"for{advice}"
        )
    for name, shape, expected in sorted(info["mismatched_keys"]):
        if name in required:
            raise UserError(
                f"{source}: {name} has the shape {(*shape,)}, its config says {(*expected,)}: expected the config of "
                "the model that was saved"
            )


def _refuse_extra_layers(source: str | Path, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
    """Refuse a checkpoint with more layers than its config says: the model would not be the one that was trained."""
    prefix = f"{model.base_model_prefix}."
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    counts = {name.removeprefix(prefix): len(module) for name, module in lists.items()}
    for name in sorted(unexpected):
        if name.endswith("distance_embedding.weight"):
            raise UserError(
                f"{source} holds {name}: its positions are relative ones, which transformers no longer computes; "
                "expected a model with absolute or rotary positions"
            )
        for index in re.finditer(r"\.(\d+)\.", name):
            stem = name[: index.start()].removeprefix(prefix)
            if stem in counts and counts[stem] <= int(index[1]):
                raise UserError(
                    f"{source} holds {name}, its config says {counts[stem]} layers: expected the config of the model "
                    "that was saved"
                )


def _refuse_nonfinite(source: str | Path, model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UserError(f"{source}: {name} holds non-finite numbers; expected a model whose training succeeded")


@torch.no_grad()
def _reinitialise(model: PreTrainedModel, names: set[str], seed: int) -> set[str]:
    """Initialise a head that was loaded from another task's, as names and shapes happen to fit; a pooler may stay."""
    names = {name for name in names if not name.removeprefix(f"{model.base_model_prefix}.").startswith("pooler.")}
    if names:
        with seeded(seed), quiet():
            fresh = type(model)._from_config(model.config, dtype=torch.float32).state_dict()
        state = model.state_dict()
        tied = {weight.data_ptr() for name, weight in state.items() if name not in names}
        for name, weight in state.items():
            if name in names and weight.data_ptr() not in tied:
                weight.copy_(fresh[name])
    return names


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved with a model; where it states no longest text, the model's positions limit it.

    Raises:
        UserError: there is no tokenizer.
    """
    refuse_adapter(folder_of(source))
    advice = "save the model's there, or name another folder as tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder_of(source), trust_remote_code=False)
    except LOADING_ERRORS as error:
        folder = Path(source)
        if folder.is_dir():
            raise UserError(f"no tokenizer in '{source}': {advice} ({one_line(error)})") from error
        siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
        raise UserError(
            f"model '{source}' is neither a folder here nor could its tokenizer be loaded from the "
            f"Hub ({one_line(error)}){nearest(folder.name, siblings)}"
        ) from error
    if is_empty(tokenizer):
        raise UserError(f"no tokenizer files in '{source}': {advice}")
    if tokenizer.model_max_length == VERY_LARGE_INTEGER and (limit := _text_limit(source)) is not None:
        tokenizer.model_max_length = limit
    return tokenizer


def _text_limit(source: str | Path) -> int | None:
    """The most tokens of a text that a saved model takes; None where there is no model, or it has no limit."""
    try:
        config = AutoConfig.from_pretrained(folder_of(source), trust_remote_code=False)
        with torch.device("meta"), quiet():
            model = AutoModel.from_config(config)
    except BROKEN:
        return None
    return window_limit(model) if position_limit(model) < sys.maxsize else None
