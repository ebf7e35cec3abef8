"""What safety costs: checking each step for non-finite numbers, marking a checkpoint, statistics over all processes.

    python scripts/bench/safety.py

MiniLM shapes, three student layers, ITRD on each text's mean and on every token. Sides take turns in one process; those
of two processes in the same two, over gloo.
"""

import argparse
import functools
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import debug_launcher
from common import arguments, bert, finish, ratio
from step_cost import collate, ready, stepper, texts
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from itrd_nlp import ITRDArguments, ITRDTrainer, student_from_teacher
from itrd_nlp.export.latency import take_turns
from itrd_nlp.training.checkpoint import mark_complete

BATCH, LAYERS = 16, 3
EPOCH = 5475  # steps of an epoch of SQuAD at this batch


def trainer(folder: Path, batch: int, **options: Any) -> ITRDTrainer:
    """A trainer that is ready to step, with a stored teacher."""
    teacher = bert("minilm")
    return ready(
        ITRDTrainer(
            model=student_from_teacher(teacher, f"even:{LAYERS}", verbose=False),
            teacher_model=teacher,
            args=ITRDArguments(
                str(folder / "out"), per_device_train_batch_size=batch, teacher_cache=str(folder / "teacher"),
                max_steps=99, disable_tqdm=True, report_to="none", **options,
            ),
            train_dataset=texts(batch),
            data_collator=collate,
        )
    )  # fmt: skip


def checked(folder: Path, repeats: int) -> dict[str, Any]:
    """A step with the check for non-finite numbers, over one without."""
    made = trainer(folder, BATCH)
    step, guard = stepper(made), made.nonfinite
    blind = SimpleNamespace(watch=lambda *_: None, check=lambda *_: True)

    def unguarded() -> None:
        made.nonfinite = blind  # type: ignore[assignment]
        step()
        made.nonfinite = guard

    times = take_turns({"with": step, "without": unguarded}, repeats, warmup=2)
    return ratio(times["with"], times["without"])


def marked(folder: Path, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writing a checkpoint with its marker, over Trainer's own; and what they add to an epoch of SQuAD."""
    made = trainer(folder, BATCH)
    step = stepper(made)
    step()
    made.create_scheduler(99)
    stateful = [each for each in (*made.callback_handler.callbacks, made.control) if isinstance(each, ExportableState)]
    made.state.stateful_callbacks = {type(each).__name__: {} for each in stateful}  # which train() would set
    checkpoint = folder / "out" / "checkpoint-0"

    def own() -> None:
        shutil.rmtree(checkpoint, ignore_errors=True)
        Trainer._save_checkpoint(made, made.model, None)

    times = take_turns({"own": own, "marker": functools.partial(mark_complete, checkpoint), "step": step}, repeats)
    both = [a + b for a, b in zip(times["own"], times["marker"], strict=True)]
    epoch = [EPOCH * t for t in times["step"]]
    return ratio(both, times["own"]), ratio([a + b for a, b in zip(epoch, times["marker"], strict=True)], epoch)


def on_each_rank(folder: Path, repeats: int) -> None:
    """A step with gathered statistics over one without, on this process; the first writes it down."""
    torch.set_num_threads(1)
    found = {}
    for pooling in ("mean", "tokens"):
        made = {
            gathers: trainer(folder, BATCH // 2, pooling=pooling, gather_across_ranks=gathers)
            for gathers in (True, False)
        }
        times = take_turns({str(gathers): stepper(each) for gathers, each in made.items()}, repeats, warmup=2)
        found[pooling] = ratio(times["True"], times["False"])
    if torch.distributed.get_rank() == 0:
        (folder / "ranks.json").write_text(json.dumps(found))


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    options: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        debug_launcher(on_each_rank, args=(folder, options.repeats), num_processes=2)
        gathered = json.loads((folder / "ranks.json").read_text())
        writing, epoch = marked(folder, options.repeats)
        ratios = {
            "a step with the check for non-finite numbers, over one without": checked(folder, options.repeats),
            "a checkpoint written with its marker and forced to disk, over Trainer's own": writing,
            "an epoch of SQuAD with one such checkpoint, over one without": epoch,
            "a step on two processes with statistics over both, one mean a text, over one without": gathered["mean"],
            "the same, every token a sample": gathered["tokens"],
        }
    setting = (
        f"MiniLM shapes into {LAYERS} layers, {BATCH} texts a step, cached outputs, medians ± half the interquartile "
        "range (`scripts/bench/safety.py`)."
    )
    finish(
        "safety", {name: row["median"] for name, row in ratios.items()}, {"ratios": ratios, "setting": setting}, options
    )


if __name__ == "__main__":
    main()
