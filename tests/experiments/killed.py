"""A run that kills itself: ``python killed.py CALLS RECIPE --field value ...``. RECIPE ``shrink`` begins a search.

With CALLS above 0 the process ends by SIGKILL when Python enters its so-many-th function of this package, of Trainer or
of what writes files; with 0 the run ends by itself, and their number is printed. Of each function the first calls count
alone, so that no inner loop takes most of the moments.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

import torch

from itrd_nlp.cli.main import main as itrd
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run

torch.set_num_threads(1)
MOST = 20  # calls of a function that count
PARTS = ("/itrd_nlp/", "/transformers/trainer", "/torch/serialization", "/safetensors/", "/transformers/modeling_utils")


def main(calls: int, recipe: str, argv: list[str]) -> int:
    count = 0
    entered: Counter[CodeType] = Counter()

    def enter(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and any(part in frame.f_code.co_filename for part in PARTS):
            entered[frame.f_code] += 1
            count += entered[frame.f_code] <= MOST
            if count == calls and calls:
                print(f"killed in {Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    arguments = None if recipe == "shrink" else parse(recipe, argv)
    sys.setprofile(enter)
    if arguments is None:
        itrd([recipe, *argv])
    else:
        run(*arguments)
    sys.setprofile(None)
    return count


if __name__ == "__main__":
    print(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
