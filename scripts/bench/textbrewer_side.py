"""TextBrewer's own library (0.2.1.post1) on our models and batches, in the settings its authors publish for T3 and T6.

It is not a dependency: `pip install tensorboard; pip install --no-deps textbrewer==0.2.1.post1`, in an environment that
is thrown away.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def distiller(teacher: nn.Module, student: nn.Module, folder: Path, epochs: int = 1) -> Any:
    """hidden_mse and mmd on the embeddings and every student layer, and KD at T 8 without gold labels."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    ratio = teacher.config.num_hidden_layers // student.config.num_hidden_layers
    layers = [(ratio * i, i) for i in range(student.config.num_hidden_layers + 1)]
    common = {"feature": "hidden", "weight": 1}
    matches = [{"layer_T": t, "layer_S": s, "loss": "hidden_mse", **common} for t, s in layers]
    matches += [{"layer_T": [t, t], "layer_S": [s, s], "loss": "mmd", **common} for t, s in layers]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher.to(device), student.to(device)
    return GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device=device, ckpt_epoch_frequency=epochs),
        DistillationConfig(temperature=8, intermediate_matches=matches),
        teacher,
        student,
        _adaptor,
        _adaptor,
    )


def _adaptor(batch: Mapping[str, Tensor], outputs: Any) -> dict[str, Any]:
    mask = batch["attention_mask"]
    padding = mask == 0  # its own mask of logits has no effect on those of spans
    return {
        "logits": [logits.masked_fill(padding, -1e4) for logits in (outputs.start_logits, outputs.end_logits)],
        "hidden": outputs.hidden_states,
        "inputs_mask": mask,
    }
