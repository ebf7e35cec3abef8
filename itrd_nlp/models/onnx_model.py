"""Exported models, run by onnxruntime behind the interface of a transformers model."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from itrd_nlp.utils.errors import UserError, needing, one_line
from itrd_nlp.utils.io import read_json

# of an exported folder, where transformers.js and optimum look for them
FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
# SkipLayerNormFusion: a normalisation takes 0.17 ms fused with the sum before it, and 0.02 ms alone (128 tokens, width
# 256). ConvMulFusion multiplies scales into binary filters and so rounds their sums: signs flip
FUSIONS = {"disabled_optimizers": ["SkipLayerNormFusion", "ConvMulFusion"]}
RECORD = "export.json"  # at the folder's root, with config and tokenizer
SETTINGS = ("max_length", "doc_stride", "n_best", "max_answer_length", "null_threshold")  # of texts, in the record
DEFAULTS = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}  # as in transformers


def is_exported(source: Any) -> bool:
    """Whether a model is a folder that ``itrd export`` wrote, or one of the files in it."""
    if not isinstance(source, str | Path):
        return False
    # other folders hold onnx/model.onnx beside weights, too
    return exported_file(source).is_file() and (Path(folder_of(source)) / RECORD).is_file()


def exported_file(source: str | Path) -> Path:
    """The .onnx file itself, or the fp32 one in a folder."""
    path = Path(source)
    return path if path.suffix == ".onnx" else path / FILES["fp32"]


def folder_of(source: str | Path) -> str | Path:
    """The folder of a model's config and tokenizer: the one above ``onnx/`` of an .onnx file, else the source."""
    return Path(source).absolute().parent.parent if str(source).endswith(".onnx") else source


def exported_settings(source: str | Path, chosen: Collection[str] = ()) -> dict[str, Any]:
    """How an exported model reads texts, by the names of a run's arguments; empty where no record says so.

    Args:
        chosen: the arguments that a caller chooses anew: the stride of windows of another length is left out.
    """
    record = Path(folder_of(source)) / RECORD
    settings = read_json(record).get("settings", {}) if record.is_file() else {}
    if "max_length" in chosen and "doc_stride" not in chosen:
        settings.pop("doc_stride", None)
    return {name: value for name, value in settings.items() if name in SETTINGS}


class OnnxModel(PreTrainedModel):
    """A model that onnxruntime runs on the CPU; it has no parameters and cannot be trained.

    Args:
        source: folder of ``itrd export``, or an .onnx file in it. It runs with as many threads as torch
            has when it is loaded.

    Raises:
        UserError: onnxruntime is not installed, or the source is not an exported model.
    """

    config_class = PretrainedConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the graph is fixed: no choice to refuse

    def __init__(self, source: str | Path):
        onnxruntime = need_onnxruntime()
        path = exported_file(source)
        try:
            config = AutoConfig.from_pretrained(folder_of(path), trust_remote_code=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors
            # idle threads that spin slow whatever runs next, such as a PyTorch model timed in turns: 35 ms became 84 ms
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], **FUSIONS)
        except Exception as error:  # onnxruntime's errors have no other class in common
            raise UserError(f"{path}: expected a model that `itrd export` wrote ({one_line(error)})") from None
        super().__init__(config)
        self.session, self.path = session, path
        self.name_or_path = str(path)
        self.inputs = [entry.name for entry in session.get_inputs()]
        self.outputs = [entry.name for entry in session.get_outputs()]
        self.token_outputs = token_outputs(session)
        self.label_names = [] if "last_hidden_state" in self.outputs else ["labels"]  # an encoder takes none
        self.main_input_name = "pixel_values" if "pixel_values" in self.inputs else "input_ids"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        """The exported model's outputs by name, on the CPU; with labels also a loss of NaN, as it is not known."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "pixel_values": pixel_values}
        inputs |= {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        feed = {}
        for name in self.inputs:
            value = DEFAULTS[name](input_ids) if inputs[name] is None else inputs[name]
            feed[name] = value.cpu().numpy()
        outputs = dict(zip(self.outputs, map(torch.from_numpy, self.session.run(None, feed)), strict=True))
        return ModelOutput(outputs if labels is None else {"loss": torch.tensor(float("nan")), **outputs})


def token_outputs(session: Any) -> set[str]:
    """The outputs of an exported model with one row a token: their second dimension is the length, and not a number."""
    return {entry.name for entry in session.get_outputs() if len(entry.shape) > 1 and isinstance(entry.shape[1], str)}


def need_onnxruntime() -> Any:
    """Import onnxruntime; raise :class:`UserError` where it is not installed."""
    with needing("ONNX needs onnxruntime", "export"):
        import onnxruntime
    return onnxruntime
