"""SIGTERM and Ctrl-C: a run stops at once or after its next checkpoint, and the same command continues it."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
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
        self.process, self.received = os.getpid(), 0.0  # when the first signal came to this process

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a forked worker leaves Ctrl-C to this process, which then ends it."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        first = not self.received
        if not self.can_wait or (not first and time.monotonic() > self.received + ECHO):
            raise Stopped(number)
        self.received = self.received or time.monotonic()
        if self.number:  # a copy of the first, or another rank told of it
            return
        self.number = number
        text = f"\n[stop] {signal.Signals(number).name}: a checkpoint, then the end; again to stop at once\n"
        with suppress(OSError):  # standard error is closed
            os.write(STDERR, text.encode())  # print fails where the signal came in the middle of another print


def exit_flag() -> Any:
    """A shared flag for data loader workers: its ``value`` becomes True once this process exits.

    multiprocessing then sends its workers SIGTERM once and waits for them.
    """
    return _exit_flag(os.getpid())


@cache
def _exit_flag(process: int) -> Any:  # one a process: a forked one must not share its parent's
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    # atexit would not run in children of multiprocessing
    Finalize(None, setattr, args=(flag, "value", True), exitpriority=100)
    return flag


def start_worker(initialise: Callable[[int], None] | None, exiting: Any, worker: int) -> None:
    """Start a data loader's worker: a launcher signals all processes, and the step under way still needs its batch.

    A SIGTERM that comes later is from the trainer, which ends its workers; so is one that comes once the
    :func:`exit_flag` is set.
    """
    received: list[float] = []

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if exiting.value or received[-1] > received[0] + ECHO:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    if initialise is not None:
        initialise(worker)


@contextmanager
def stoppable() -> Iterator[Request]:
    """Take SIGTERM and Ctrl-C as a request to stop.

    Raises:
        Stopped: a signal came; where the run could wait, at the end of the block.
    """
    request, before = Request(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.number:
        raise Stopped(request.number, request.reached)


@contextmanager
def stoppable_training() -> Iterator[Request]:
    """Take a signal that would end the process, or a :func:`stoppable` block around, as a request to stop training.

    At the end, the signal goes on to where it would have gone: a script ends by SIGTERM as if it had not waited. What
    a script handles itself is left alone; so is its Ctrl-C, which Python turns into KeyboardInterrupt.

    Raises:
        Stopped: in a stoppable block, unless the signal came after the last step: what was trained is written first.
    """
    request, stop = Request(), None
    before: dict[int, Any] = {}  # the handlers that this one stands in for
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        before |= {n: handler for n, handler in handlers.items() if handler == signal.SIG_DFL or _request_of(handler)}
    try:
        for number in before:
            signal.signal(number, request.note)
        yield request
    except Stopped as at_once:
        stop = at_once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop is None and request.number:
        outer = _request_of(before.get(request.number))
        if outer is not None and not request.reached:
            outer.number, outer.received = request.number, request.received
        else:
            stop = Stopped(request.number, request.reached)
    if stop is not None:
        if before.get(stop.number) == signal.SIG_DFL:
            signal.raise_signal(stop.number)
        raise stop


def _request_of(handler: object) -> Request | None:
    """The request that a signal handler serves, or None."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Request) else None
