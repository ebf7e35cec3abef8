"""Seconds of a search, those of earlier calls included."""

import time
from pathlib import Path

from itrd_nlp.utils.io import read_json, write_json


class Clock:
    """Adds up the seconds of all calls in a file; what a killed call did since its last :meth:`lap` is lost."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds = float(read_json(path)["seconds"]) if path.is_file() else 0.0
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Write down the seconds until now, and return them."""
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        write_json(self.path, {"seconds": self.seconds})
        return self.seconds
