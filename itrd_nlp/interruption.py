"""SIGTERM and Ctrl-C: a run stops at once, or in a moment that suits it, and the same command continues it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A run that was told to stop by a signal, and can be continued."""

    def __init__(self, number: int, reached: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{reached}")
        self.number = number


class Request:
    """A signal that asks to stop: noted where the first can wait, else at once an exception."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 before one came
        self.can_wait = False
        self.reached = ""  # where training stopped for it

    def note(self, number: int, frame: FrameType | None) -> None:
        """What the process does on a signal."""
        if self.number or not self.can_wait:
            raise Stopped(number)
        self.number = number
        print(f"\n[stop] {signal.Signals(number).name}: a checkpoint, then the end; again to stop at once", flush=True)


@contextmanager
def stoppable() -> Iterator[Request]:
    """Take SIGTERM and Ctrl-C as a request to stop.

    Raises:
        Stopped: one came; at the end, where it could wait.
    """
    request, before = Request(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.number:
        raise Stopped(request.number, request.reached)
