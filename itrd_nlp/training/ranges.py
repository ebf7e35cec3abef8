"""Which numbers the arguments of Trainer may be, whose own errors come late or not at all."""

import math
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from itrd_nlp.utils.errors import UserError, nearest

SEEDS = (0, 2**32 - 1)  # numpy's
POSITIVE = (0.0, math.inf)
RANGES = {  # argument -> the lowest and the highest number
    "seed": SEEDS,
    "data_seed": SEEDS,
    "learning_rate": POSITIVE,
    "weight_decay": POSITIVE,
    "adam_beta1": (0.0, math.nextafter(1.0, 0.0)),
    "adam_beta2": (0.0, math.nextafter(1.0, 0.0)),
    "adam_epsilon": POSITIVE,
    "max_grad_norm": POSITIVE,
    "num_train_epochs": POSITIVE,
    "warmup_steps": POSITIVE,
    "dataloader_num_workers": POSITIVE,
    "label_smoothing_factor": (0.0, 1.0),
    "task_weight": POSITIVE,
}
MAPPINGS = ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs")  # which Trainer would take as text, too


def check_ranges(args: Any) -> None:
    """Raise :class:`UserError` for what no training can have, such as a negative learning rate or a logger of no name.

    Args:
        args: :class:`transformers.TrainingArguments`.
    """
    for name in MAPPINGS:
        if isinstance(getattr(args, name, None), str):
            raise UserError(f"{name} is {getattr(args, name)!r}: expected a mapping as JSON")
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"report_to {name!r}: expected none, or {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
                f"{nearest(name, INTEGRATION_TO_CALLBACK)}"
            )
    for name, (lowest, highest) in RANGES.items():
        value = getattr(args, name, None)
        if isinstance(value, int | float) and not (lowest <= value <= highest and math.isfinite(value)):
            most = f"to {highest:g}" if math.isfinite(highest) else "or more"
            raise UserError(f"{name} is {value}: expected {lowest:g} {most}")
