"""SIGTERM and Ctrl-C: a run stops at once, or in a moment that suits it, and the same command continues it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STDERR = 2
ECHO = 1.0  # seconds in which a second signal is a launcher's copy of the first


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
        self.process, self.came = os.getpid(), 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """What the process does on a signal; a forked worker leaves Ctrl-C to this one, which then ends it."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if not self.can_wait or (self.number and time.monotonic() > self.came + ECHO):
            raise Stopped(number)
        if self.number:
            return
        self.number, self.came = number, time.monotonic()
        text = f"\n[stop] {signal.Signals(number).name}: a checkpoint, then the end; again to stop at once\n"
        with suppress(OSError):  # nobody reads it any more
            os.write(STDERR, text.encode())  # print fails where the signal came in the middle of another print


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
