"""SIGTERM and Ctrl-C: a run stops at once or after its next checkpoint, and the same command continues it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STDERR = 2
ECHO = 1.0  # seconds within which a second signal is a launcher's copy of the first


class Stopped(BaseException):
    """A signal stopped the run, which can be continued."""

    def __init__(self, number: int, reached: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{reached}")
        self.number = number


class Request:
    """A signal that asks to stop: recorded if the run can wait for a checkpoint, raised at once otherwise."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 before one came
        self.can_wait = False
        self.reached = ""  # where training stopped for it
        self.process, self.received = os.getpid(), 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a forked worker leaves Ctrl-C to this process, which then ends it."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if not self.can_wait or (self.number and time.monotonic() > self.received + ECHO):
            raise Stopped(number)
        if self.number:
            return
        self.number, self.received = number, time.monotonic()
        text = f"\n[stop] {signal.Signals(number).name}: a checkpoint, then the end; again to stop at once\n"
        with suppress(OSError):  # standard error is closed
            os.write(STDERR, text.encode())  # print fails where the signal came in the middle of another print


@contextmanager
def stoppable() -> Iterator[Request]:
    """Take SIGTERM and Ctrl-C as a request to stop.

    Raises:
        Stopped: a signal came; where the run could wait, at the end of the block.
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
