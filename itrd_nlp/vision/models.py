"""Load or build the image classifiers that a recipe names: of timm or transformers, new or trained."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import load_state_dict
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    set_seed,
)
from transformers.image_utils import PILImageResampling

from itrd_nlp.models.classes import first_few, label_fields
from itrd_nlp.models.loading import load_checkpoint, load_config, quiet
from itrd_nlp.models.new import new_model
from itrd_nlp.models.onnx_model import folder_of
from itrd_nlp.models.weight_files import common_prefix
from itrd_nlp.utils.errors import UserError, nearest, one_line
from itrd_nlp.vision.classes import alike, named_classes
from itrd_nlp.vision.networks.cifar_net import IMAGENET_MEAN, IMAGENET_STD
from itrd_nlp.vision.preprocessing import Preprocessing
from itrd_nlp.vision.steps import timm_config

USUAL_SIDE = 224  # pixels
KEYS = ("timm", "checkpoint", "class_names", "model_args")  # of a timm model in a recipe
SOURCES = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")  # of weights, in model_args


def load_image_model(
    source: str | dict[str, Any], names: Sequence[str], seed: int, preprocessing: Preprocessing | None = None
) -> tuple[PreTrainedModel, bool]:
    """Load or build an image classifier.

    Models of timm come in transformers' wrapper, whose folders ``from_pretrained`` loads again (those of the
    ``cifar_*`` networks after ``import itrd_nlp.vision``).

    Args:
        source: a name of ``timm.list_models()``, for a new model; or ``{timm: NAME, checkpoint: FILE, class_names:
            [...], model_args: {...}}``, the classes in the order of the checkpoint's outputs; or a folder or Hub id; or
            the config of a new model of transformers, with its ``model_type``.
        names: of the classes.
        seed: initialises what no checkpoint holds.
        preprocessing: of the images that the model will see, for its config; its own by default.

    Returns:
        The model, and whether all its weights were loaded, head included; if not, it has to be trained.

    Raises:
        UserError: no such model, or weights that do not fit it.
    """
    set_seed(seed)
    if isinstance(source, str) and (Path(source).is_dir() or not timm.is_model(source)):
        model, complete = _pretrained(source, names, seed)
        if preprocessing is not None and model.base_model_prefix == "timm_model":
            model.config.pretrained_cfg = timm_config(preprocessing)
        return model, complete
    if isinstance(source, dict) and "model_type" in source:
        _check_channels(source, source.get("num_channels", 3))
        fields = label_fields(names, None)
        return new_model(source, AutoModelForImageClassification, "image classifier", "vit", **fields), False
    options: dict[str, Any] = {"timm": source} if isinstance(source, str) else source
    _check_options(source, options, names)
    name = options["timm"]
    config = TimmWrapperConfig(architecture=name, model_args=options.get("model_args"))
    config.update(label_fields(names, None))
    config.pretrained_cfg = timm_config(preprocessing or preprocessing_of(options))
    try:
        model = TimmWrapperForImageClassification(config)
        set_seed(seed)  # the wrapper initialised all weights in its own way: draw timm's
        model.timm_model = timm.create_model(name, num_classes=len(names), **(config.model_args or {}))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model {source}: timm cannot make it ({one_line(error)})") from None
    if "checkpoint" in options:
        _load(model, options["checkpoint"])
    return model, "checkpoint" in options


def _check_options(source: Any, options: dict[str, Any], names: Sequence[str]) -> None:
    """Raise :class:`UserError` for a wrong description of a timm model."""
    for key in options:
        if key not in KEYS:
            raise UserError(f"a model with the key {key!r}: expected {', '.join(KEYS)}{nearest(key, KEYS)}")
    name, model_args = options.get("timm"), options.get("model_args") or {}
    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(str(name), timm.list_models())}")
    if "." in name:
        raise UserError(f"model {name!r}: expected timm/{name} for its weights of the Hub, or {name.partition('.')[0]}")
    _check_channels(source, model_args.get("in_chans", 3), "in_chans")
    for key in SOURCES:
        if key in model_args:
            raise UserError(f"model {source}: model_args may not say where weights come from ({key}); use checkpoint")
    if (classes := options.get("class_names")) is not None:
        if "checkpoint" not in options or not isinstance(classes, list):
            raise UserError(
                f"model {source}: expected class_names as a list beside a checkpoint, whose classes they are"
            )
        _check_classes(options["checkpoint"], [str(name) for name in classes], names)


def _check_classes(source: Any, own: Sequence[str], names: Sequence[str]) -> None:
    if not alike(own, names):
        raise UserError(
            f"{source} has the classes {first_few(own)}, the data {first_few(names)}: expected the same in one order, "
            "or a model without such a head"
        )


def _check_channels(source: Any, channels: Any, name: str = "num_channels") -> None:
    if isinstance(channels, int) and channels != 3:
        raise UserError(f"model {source}: {name} {channels}: images are read in colour, expected 3")


def _load(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a checkpoint into a timm model; all weights must be there."""
    if not Path(checkpoint).is_file():
        raise UserError(
            f"checkpoint {checkpoint}: no such file; expected weights as .safetensors or .pth "
            "(scripts/fetch_teachers.py fetches published teachers)"
        )
    try:
        weights = load_state_dict(checkpoint, weights_only=True)
        if missing := sorted(model.timm_model.state_dict().keys() - weights.keys()):
            prefix = common_prefix(weights, missing)  # such as Lightning's; timm removes those of torch itself
            weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        model.timm_model.load_state_dict(weights)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint}: expected the weights of {model.config.architecture} with "
            f"{model.config.num_labels} classes ({one_line(error)})"
        ) from None


def _pretrained(source: str, names: Sequence[str], seed: int) -> tuple[PreTrainedModel, bool]:
    try:
        config = load_config(source)
    except UserError as error:
        hint = nearest(source, timm.list_models())
        raise UserError(f"{error}{'' if Path(source).is_dir() else f', or a model of timm{hint}'}") from None
    size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", (getattr(config, "num_channels", 3),))
    _check_channels(source, size[0])
    fits = config.num_labels == len(names)
    if not fits:
        config.update(label_fields(names, "single_label_classification"))
    elif config.problem_type not in (None, "single_label_classification"):
        raise UserError(f"{source} is for {config.problem_type}: expected a model that puts each image into one class")
    model, new = load_checkpoint(source, AutoModelForImageClassification, config, seed=seed, other_classes=not fits)
    own, complete = named_classes(config), fits and not new
    if not own or not complete:  # no names of its own, or a new head
        model.config.update(label_fields(names, None))
    else:
        _check_classes(source, own, names)
    return model, complete


def preprocessing_of(source: str | dict[str, Any], side: int = USUAL_SIDE) -> Preprocessing:
    """Load a model's own image processor.

    Args:
        source: see :func:`load_image_model`.
        side: size of the images in pixels, for a new model whose config does not give one.

    Raises:
        UserError: a folder or Hub id without a processor, or with one that cannot be used.
    """
    name = source.get("timm") if isinstance(source, dict) else source
    if isinstance(name, str) and not Path(name).is_dir() and timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name).to_dict()
        if isinstance(source, dict) and (size := (source.get("model_args") or {}).get("img_size")):
            cfg["input_size"] = (3, *size) if isinstance(size, list | tuple) else (3, size, size)
        return Preprocessing.of_timm(cfg, name)
    if isinstance(source, dict):
        size = source.get("image_size") or _usual_side(source, side)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        own = CLIPImageProcessor(
            size={"shortest_edge": height} if height == width else {"height": height, "width": width},
            crop_size={"height": height, "width": width},
            resample=PILImageResampling.BILINEAR,
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        )
        return Preprocessing(own, f"a new {source.get('model_type')}")
    try:
        with quiet():  # timm's processor knows Pillow alone
            own = AutoImageProcessor.from_pretrained(folder_of(source), trust_remote_code=False)
    except Exception as error:  # a processor's constructor may raise anything for a wrong file
        hint = nearest(source, timm.list_models())
        raise UserError(f"{source}: nothing says how it wants its images{hint} ({one_line(error)})") from None
    return Preprocessing(own, source)


def _usual_side(source: dict[str, Any], side: int) -> int:
    """The image size of a new model of transformers: its kind's default, else the images', up to 224."""
    try:
        usual = getattr(AutoConfig.for_model(source["model_type"]), "image_size", None)
    except (KeyError, ValueError):  # no such kind: building the model reports it
        usual = None
    return usual if isinstance(usual, int) else min(side, USUAL_SIDE)
