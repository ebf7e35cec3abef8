"""Standard output and error of a command: its messages, JSON in any encoding, and progress bars on a terminal alone."""

import codecs
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from itrd_nlp.utils.errors import UserError, one_line

ESCAPED = "backslashreplace"  # Python's escapes: of half a character, which UTF-8 lacks, they are also JSON's
NO_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")  # transformers follows the Hub's


@contextmanager
def console() -> Iterator[None]:
    """Let a command write any character, and show progress bars on a terminal alone.

    A console or pipe in cp1252, Latin-1 or ASCII gets escapes for characters that it lacks.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=ESCAPED)
    if sys.stderr is None or not sys.stderr.isatty():
        hide_bars()
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


@functools.cache
def warn_once(message: str) -> None:
    """Warn once a process: a folder is read each time that its model is loaded."""
    logging.getLogger(__name__).warning(message)


def run_script(main: Callable[[], None]) -> None:
    """Run a script of this project: a user's error is one line on standard error, and the exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {one_line(error, None)}", file=sys.stderr)
        sys.exit(2)


def hide_bars() -> None:
    """Hide the progress bars of `datasets`, `transformers` (also used by this package) and the Hub's client."""
    for name in NO_BARS:
        os.environ.setdefault(name, "1")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON, in ASCII where the output is not UTF: readers of JSON expect no other encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    unicode = codecs.lookup(encoding).name.startswith("utf")
    print(json.dumps(value, ensure_ascii=not unicode, indent=indent))


class _StderrHandler(logging.Handler):
    """Write each message to the current ``sys.stderr``, which notebooks and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # it was closed
            print(self.format(record), file=sys.stderr, flush=True)


def show_messages() -> None:
    """Write the package's messages to standard error, as every command does.

    Without it, Python's `logging` prints warnings alone.
    """
    logger = logging.getLogger("itrd_nlp")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.propagate = False


@contextmanager
def without_repeats() -> Iterator[None]:
    """Show each of the package's messages once, while several runs say the same of the same data and teacher."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        repeated = message in shown and record.levelno == logging.INFO
        shown.add(message)
        return not repeated

    handlers = [each for each in logging.getLogger("itrd_nlp").handlers if isinstance(each, _StderrHandler)]
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)
