"""A sentence encoder's projection to another width: a ``Dense`` module of sentence-transformers, without activation."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.distillation.distiller import Distiller
from itrd_nlp.distillation.layers import last_module
from itrd_nlp.distillation.pooling import sentence_pooling
from itrd_nlp.models.weight_files import cached_json, cached_path
from itrd_nlp.utils.errors import UserError

FOLDER = "2_Dense"  # of the module in a sentence encoder's folder
IDENTITY = "torch.nn.modules.linear.Identity"  # what sentence-transformers calls no activation
NAMES = {f"module_{end}_name": "sentence_embedding" for end in ("input", "output")}  # what its Dense reads and writes


def embedding_projection(distiller: Distiller, of_teachers_last: bool = True) -> nn.Module:
    """The linear map from a student's sentence embedding to its teacher's; the identity where the widths are equal.

    It belongs to the first loss whose projected features have the teacher's direction. Others, such as ITRD's, compare
    standardised features: their projection fixes neither scale nor offset, on which a cosine depends.

    Args:
        of_teachers_last: whether the teacher's last layer is what the student's is compared with.

    Raises:
        UserError: no such loss, or features that are not the embeddings: their pooling, of the last layer.
    """
    extractor, losses = distiller.extractor, distiller.losses
    mapping = [name for name, loss in losses.items() if loss.maps_to_teacher]
    if not mapping:
        raise UserError(
            f"keep_projection with the losses {', '.join(losses)}: their projection fixes no scale; expected one that "
            "does, cosine or vkd, beside them: add --losses.cosine.weight 1"
        )
    pooling = sentence_pooling(distiller.student.config).spec
    of_last = of_teachers_last and extractor.module_names[-1:] == (last_module(distiller.student),)
    if extractor.pooling.spec != pooling or not of_last:
        raise UserError(
            f"keep_projection needs the embedding itself: expected --pooling {pooling} and --layer_map last"
        )
    return losses[mapping[0]].projectors[-1]


def save_projection(projection: nn.Module, folder: Path) -> None:
    """Write a linear map into a sentence encoder's folder; its ``modules.json`` has to name it."""
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)  # an orthogonal map computes it
    tensors = {"linear.weight": weight.detach().float().cpu().contiguous()}
    if isinstance(bias, Tensor):
        tensors["linear.bias"] = bias.detach().float().cpu().contiguous()
    config = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": "linear.bias" in tensors}
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FOLDER / "model.safetensors")
    text = json.dumps({**config, "activation_function": IDENTITY}, indent=1) + "\n"
    (folder / FOLDER / "config.json").write_text(text, encoding="utf-8")
    mode = (folder / FOLDER / "config.json").stat().st_mode & 0o777
    (folder / FOLDER / "model.safetensors").chmod(mode)  # safetensors makes it private


def has_projection(source: str | Path) -> bool:
    """Whether a folder or Hub id holds a projection that :func:`with_projection` can add."""
    return _config(source) is not None and _weights(source) is not None


def _weights(source: str | Path) -> str | None:
    return cached_path(source, f"{FOLDER}/model.safetensors")


def _config(source: str | Path) -> dict[str, Any] | None:
    config = cached_json(source, f"{FOLDER}/config.json") or {}
    plain = not config.get("use_residual") and all(config.get(key, name) in (name, None) for key, name in NAMES.items())
    return config if plain and config.get("activation_function") == IDENTITY else None


def with_projection(model: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """Let a sentence encoder return its last hidden state in the width of its projection, where its folder has one.

    The map is linear, so the projected embedding is the mean, or the first, of the projected tokens: any code that
    pools the encoder's output, even after export, gets the projected embedding.
    """
    config = _config(source)
    weights = _weights(source)
    if config is None or weights is None:
        return model
    projection = nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
    projection.load_state_dict({name.removeprefix("linear."): value for name, value in load_file(weights).items()})
    model.add_module("projection", projection.to(model.device))
    model.register_forward_hook(_project)
    return model.eval()


def _project(module: Any, args: Any, output: Any) -> Any:
    output["last_hidden_state"] = module.projection(output["last_hidden_state"])
    return output


def projected_width(model: Any) -> int | None:
    """The width of a model's projection; None where it has none."""
    return model.projection.out_features if _project in model._forward_hooks.values() else None
