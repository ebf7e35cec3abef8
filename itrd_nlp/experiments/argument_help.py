"""The help on a run's arguments; imports neither torch nor transformers, so that it appears at once."""

import argparse
import json
from typing import Any

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.training.options import DistillationOptions, defaults_of

TRAINER_DOCS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"


def help_text() -> str:
    """Describe each argument that this package defines, with its default, and link to Trainer's own."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    for title, arguments in (("what is trained on what", RunArguments), ("how it trains", DistillationOptions)):
        group = parser.add_argument_group(title)
        defaults = defaults_of(arguments)
        for field in arguments.__dataclass_fields__.values():
            group.add_argument(
                f"--{field.name}",
                help=field.metadata["help"] + _default(defaults[field.name]),
                choices=field.metadata.get("choices"),
                metavar=None if "choices" in field.metadata else "VALUE",
            )
    trainer = f"Every other field of transformers.TrainingArguments is an argument, too:\n{TRAINER_DOCS}\n"
    return f"{parser.format_help().lstrip()}\n{trainer}"


def _default(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f" (default: {text})"
