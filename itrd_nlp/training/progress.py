"""What a terminal shows: a live line of training, and tables. Elsewhere, such as in a file, both are plain text."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from itrd_nlp.utils.tables import SHORT, Table

if TYPE_CHECKING:
    from itrd_nlp.training.trainer import ITRDTrainer

# of Trainer's logs
HIDDEN = ("epoch", "step", "learning_rate", "grad_norm", "total_flos", "num_input_tokens_seen", "total", "runtime")


def on_terminal() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def print_table(table: Table) -> None:
    """Print a table: drawn on a terminal, as Markdown elsewhere."""
    if not on_terminal():
        print(table.markdown())
        return
    drawn = RichTable(box=box.SIMPLE_HEAD, title=Text(table.caption), title_justify="left", title_style="none")
    for place, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if place else "left")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


@contextmanager
def progress(trainer: "ITRDTrainer", title: str) -> Iterator[None]:
    """Show how ``trainer`` trains or evaluates: live on a terminal, else what it logs, one line each.

    What was chosen otherwise stays: ``disable_tqdm``, a notebook's own display.
    """
    if trainer.pop_callback(ProgressCallback) is None:
        yield
        return
    if not on_terminal():
        trainer.add_callback(PrinterCallback)
        yield
        return
    shown = _Shown(title)
    trainer.add_callback(shown)
    try:
        yield
    finally:  # whatever ends it gives the terminal back
        shown.live.stop()


class _Shown(TrainerCallback):
    """Steps and time left; below them the loss and its terms, and what was last measured on the evaluation data."""

    def __init__(self, title: str):
        self.title = title
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.terms, self.scores = Text(), Text(style="bold")
        self.live = Live(Group(self.bars, self.terms, self.scores), refresh_per_second=4)
        self.training: TaskID | None = None
        self.evaluating: TaskID | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training = self.bars.add_task(self.title, total=state.max_steps, completed=state.global_step)
            self.live.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            self.bars.update(self.training, completed=state.global_step)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.evaluating is None:
            self.evaluating = self.bars.add_task("evaluating", total=len(eval_dataloader))
            self.live.start()
        self.bars.advance(self.evaluating)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.evaluating is not None:
            self.bars.remove_task(self.evaluating)
            self.evaluating = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            epoch = f"epoch {state.epoch:.2f}  "
            self.terms.plain = epoch + "  ".join(f"{k} {v:.4g}" for k, v in logs.items() if k not in HIDDEN)
        elif "eval_runtime" in logs:
            found = {k.removeprefix("eval_"): v for k, v in logs.items() if "_second" not in k}
            shown = {SHORT.get(k, k): v for k, v in found.items() if k not in (*HIDDEN, "loss")}
            self.scores.plain = "  ".join(f"{name} {value:.2f}" for name, value in shown.items())
