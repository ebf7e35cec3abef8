"""The package's messages: loggers below ``itrd_nlp``, written to standard error once somebody asks to see them."""

import logging
import sys


class _StderrHandler(logging.Handler):
    """Write each message to what ``sys.stderr`` is when it comes: notebooks and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # it was closed
            print(self.format(record), file=sys.stderr, flush=True)


def show_messages() -> None:
    """Write the package's messages, progress included, to standard error, as every command does.

    Without it `logging` decides: by default Python prints warnings and hides progress.
    """
    logger = logging.getLogger("itrd_nlp")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.propagate = False
