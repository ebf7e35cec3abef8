"""What the processes of a run tell each other."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate.utils import broadcast_object_list

from itrd_nlp.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")


def log_first(
    logger: logging.Logger, training_args: "TrainingArguments", message: str, level: int = logging.INFO
) -> None:
    """Log a message on the first rank alone."""
    if training_args.process_index == 0:
        logger.log(level, message)


def from_first_rank(find: Callable[[], T], training_args: "TrainingArguments") -> T:
    """The value of ``find`` on the first rank, broadcast to every rank.

    Files may change while ranks read them, e.g. when another run writes them: ranks that each looked for themselves
    could disagree, and then wait for each other for ever.

    Raises:
        UserError: raised by the first rank, on every rank.
        RuntimeError: on the others, where the first fails in another way.
    """
    if training_args.world_size == 1:
        return find()
    message: list[Any] = [None, None]
    failed: Exception | None = None
    if training_args.process_index == 0:
        try:
            message[0] = find()
        except Exception as error:
            failed = error
            message[1] = error if isinstance(error, UserError) else RuntimeError(f"the first process failed: {error!r}")
    broadcast_object_list(message)
    if failed or message[1]:
        raise failed or message[1]
    return message[0]
