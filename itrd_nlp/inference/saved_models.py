"""The task that a saved model is for, and the model with its head."""

from transformers import PreTrainedModel, TimmWrapperForImageClassification

from itrd_nlp.models.classes import saved_config, task_of
from itrd_nlp.models.loading import load_checkpoint, load_config, named_class
from itrd_nlp.models.onnx_model import OnnxModel, is_exported
from itrd_nlp.models.projection import with_projection
from itrd_nlp.models.sentence_pooling import read_length, set_pooling
from itrd_nlp.tasks.tokenising import MAX_LENGTH, RERANKER_LENGTH
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import inference_device


def saved_task(source: str) -> str | None:
    """:func:`task_of` a folder or Hub id; None also without a readable config, of which loading the model complains."""
    config = saved_config(source)
    return None if config is None else task_of(config)


def default_length(source: str, task: str | None) -> int:
    """The tokens at which texts are cut for a saved model: of a sentence encoder what its folder says."""
    if task == "reranking":
        return RERANKER_LENGTH
    return (read_length(source) if task == "embedding" else None) or MAX_LENGTH


def load_saved(source: str) -> PreTrainedModel:
    """Load the model of a folder or Hub id with the head that its config names, exported or not, in eval mode.

    It is on the GPU where there is one; an exported model runs on the CPU.

    Raises:
        UserError: no trained model there.
    """
    return OnnxModel(source) if is_exported(source) else load_trained(source).to(inference_device())


def load_trained(source: str) -> PreTrainedModel:
    """Load the model of a folder or Hub id with the head that its config names, in fp32 and eval mode.

    Raises:
        UserError: no model, an exported one, one that is not an encoder of transformers, or missing weights.
    """
    if is_exported(source):
        raise UserError(f"{source} is exported already: expected the folder of the model that it was made of")
    config = load_config(source)
    if config.model_type == "timm_wrapper":
        import itrd_nlp.vision  # noqa: F401  # registers its networks with timm
    # timm's own config names no architecture
    kind = TimmWrapperForImageClassification if config.model_type == "timm_wrapper" else named_class(config, source)
    if config.is_encoder_decoder:
        raise UserError(f"{source}: {kind.__name__} is an encoder-decoder; expected an encoder of transformers")
    model = with_projection(load_checkpoint(source, kind, config).model, source)
    if task_of(config) == "embedding":
        set_pooling(model.config, source)
    return model
