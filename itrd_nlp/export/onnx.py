"""Conversion of a trained model into an ONNX file."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from itrd_nlp.models.onnx_model import FILES, need_onnxruntime
from itrd_nlp.utils.errors import UserError, needing, one_line

OPSET = 20  # GELU is one operator; with 23, where attention is one too, onnxruntime 1.32 is slower on CPUs
LARGEST = 2 * 2**30 - 2**24  # bytes of weights in one ONNX file; the graph takes some of its 2 GiB


def need_exporter() -> None:
    """Raise :class:`UserError` where the libraries of the extra ``export`` are not installed."""
    need_onnxruntime()
    with needing("export needs onnx and onnxscript", "export"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401


class Positional(nn.Module):
    """A model with positional inputs and a tuple of outputs, as the exporter requires."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(output[name] for name in self.outputs)


def write_model(model: PreTrainedModel, batch: Mapping[str, Tensor], folder: Path) -> None:
    """Write the ONNX file and ``config.json`` into a new folder, with free batch size and, for texts, free length.

    Args:
        model: in eval mode; its outputs keep their names.
        batch: inputs of at least two rows.

    Raises:
        UserError: a model larger than an ONNX file, or one that torch cannot export.
    """
    if (size := sum(p.numel() for p in model.parameters()) * 4) > LARGEST:
        raise UserError(f"the weights are {size / 2**30:.1f} GiB: an ONNX file holds 2; distil into a smaller model")
    import onnx

    (folder / FILES["fp32"]).parent.mkdir(parents=True)
    model.config.save_pretrained(folder)
    with torch.inference_mode():
        outputs = [name for name, value in model(**batch).items() if isinstance(value, Tensor)]
    outputs = [name for name in outputs if name != "pooler_output"]  # nothing reads it, and often nobody has trained it
    attention = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")  # the smaller graph, and the faster one
        with quiet():
            onnx.save(_export(model, batch, outputs), folder / FILES["fp32"])
    except (torch.onnx.OnnxExporterError, ImportError, RuntimeError, ValueError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own error only lists what it tried
            cause = cause.__cause__
        reason = f"torch {torch.__version__} cannot export it ({type(cause).__name__}: {one_line(cause)})"
        raise UserError(f"{type(model).__name__}: {reason}; another torch and onnxscript may") from None
    finally:
        model.set_attn_implementation(attention)


def _export(model: PreTrainedModel, batch: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
    """The ONNX model, without the exporter's notes: lines of code, and paths of this machine."""
    axes = {0: "batch"} if "pixel_values" in batch else {0: "batch", 1: "length"}
    program = torch.onnx.export(
        Positional(model, [*batch], outputs),
        (*batch.values(),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[*batch],
        output_names=outputs,
        dynamic_shapes={"tensors": (axes,) * len(batch)},
        verbose=False,
    )
    proto = program.model_proto  # a property that makes a new one each time
    graph = proto.graph
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    return proto


def operators(model: Any) -> Counter[str]:
    """Count the operators of an ONNX model."""
    return Counter(node.op_type for node in model.graph.node)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the reports of the exporters, which mean nothing to a user."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
