"""Several recipes and seeds side by side: every run once, the same teacher, the same budget, one table."""

import itertools
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from itrd_nlp.arguments import ITRDArguments, RunArguments, parse
from itrd_nlp.errors import BusyError, UserError
from itrd_nlp.plan import arguments_of
from itrd_nlp.record import Record

PATIENCE = 10.0  # seconds to wait where every run left is another call's

# what a fair comparison keeps equal; learning rates and schedules are a method's own
RUN_FIELDS = (
    "task",
    "teacher",
    "teacher_config",
    "teacher_training",
    "tokenizer",
    "student",
    "dataset",
    "train_file",
    "validation_file",
    "max_train_samples",
    "max_eval_samples",
    "max_length",
    "doc_stride",
    "n_best",
    "max_answer_length",
    "null_threshold",
)
TRAINING_FIELDS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "tokens_per_batch",
    "bf16",
    "fp16",
    "world_size",
)


class Run(NamedTuple):
    """One student to train: a recipe, or a point of a sweep, at one seed."""

    name: str
    run_args: RunArguments
    training_args: ITRDArguments

    @property
    def record(self) -> Path:
        return Path(str(self.training_args.output_dir)) / "record.json"


def plan_runs(recipes: Sequence[str], seeds: Sequence[int], argv: Sequence[str], output: Path) -> list[Run]:
    """The runs of a comparison, seed by seed, each in its own folder below ``output``.

    Args:
        recipes: YAML files or packaged recipes; each may be followed by ``--field value`` words, e.g. the point of a
            sweep ``"squad/t3-itrd --losses.itrd.alpha=2"``.
        seeds: of every recipe.
        argv: ``--field value`` words for all of them.

    Raises:
        UserError: as :func:`itrd_nlp.arguments.parse`, the same recipe twice, or a single seed in ``argv``.
    """
    if any(word.partition("=")[0] == "--seed" for word in argv):
        raise UserError("--seed: a comparison has several; expected --seeds 0 1 2")
    split = [shlex.split(recipe) for recipe in recipes]
    folders = [folder_of(recipe) for recipe in recipes]
    for recipe, folder in zip(recipes, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"recipe {recipe!r} is named twice, or two files have its name: expected different ones")
    runs = []
    for seed, ((first, *words), folder) in itertools.product(seeds, zip(split, folders, strict=True)):
        label = ["--label", " ".join(words).replace("--", "")] if words else []
        place = ["--output_dir", str(output / folder / f"seed-{seed}"), "--seed", str(seed)]
        runs.append(Run(first, *parse(first, [*label, *argv, *words, *place])))
    return runs


def folder_of(recipe: str) -> str:
    """Name of the folder of a recipe, with what is changed in it.

    Example:
        >>> folder_of("squad/t3-itrd --losses.itrd.alpha=2 --pooling=cls")
        't3-itrd,losses.itrd.alpha=2,pooling=cls'
    """
    first, *words = shlex.split(recipe)
    return re.sub(r"[^\w.=,:-]+", "_", ",".join([Path(first).stem, *(word.removeprefix("--") for word in words)]))


def check_fair(runs: Sequence[Run]) -> None:
    """Raise :class:`UserError` where two runs differ in what a fair comparison keeps equal."""
    first = runs[0]
    for other in runs[1:]:
        for place, fields in (("run_args", RUN_FIELDS), ("training_args", TRAINING_FIELDS)):
            for field in fields:
                mine, theirs = [getattr(getattr(run, place), field) for run in (first, other)]
                if mine != theirs:
                    raise UserError(
                        f"{first.name} and {other.name} differ in {field} ({mine} and {theirs}): expected the same; "
                        f"add --{field} VALUE for all, or --unfair to compare them all the same"
                    )


def check_same(records: Sequence[Record]) -> None:
    """Raise :class:`UserError` where records are of different teachers, students or data."""
    for record in records[1:]:
        for what, value in records[0].digests.items():
            if what == "student" and record.seed != records[0].seed:
                continue  # a new head is drawn by the seed
            if record.digests.get(what) != value:
                raise UserError(
                    f"{records[0].recipe} and {record.recipe}, seed {record.seed}, were not made with the same {what}: "
                    "expected one for all; run them again together, or add --unfair"
                )


def compare(
    runs: Sequence[Run], unfair: bool = False, keep: Callable[[Run, Record], None] | None = None
) -> list[Record]:
    """Train what is not yet there and return all records, in the order of ``runs``.

    A finished run is read, one that was killed continues; a call beside another of the same comparison leaves the run
    to it that the other is at, and comes back to it.

    Args:
        runs: see :func:`plan_runs`.
        unfair: also compare what differs in teacher, student, data or budget.
        keep: called with each run and its record as soon as it is there.

    Raises:
        UserError: an unfair pair, or what :func:`itrd_nlp.run.run` refuses.
    """
    if not unfair:
        check_fair(runs)
    waiting = list(runs)
    while waiting:
        left = []
        for each in waiting:
            if not _attempt(each):
                left.append(each)
            elif keep is not None:
                keep(each, Record.read(each.record))
        if len(left) == len(waiting):
            time.sleep(PATIENCE)
        waiting = left
    records = [Record.read(each.record) for each in runs]
    if not unfair:
        check_same(records)
    return records


def _attempt(each: Run) -> bool:
    """Whether a run is done; not where another call is at it, or at something it needs."""
    from itrd_nlp.run import run

    if finished(each):
        return True
    if each.training_args.process_index == 0:
        print(f"[compare] {each.name}, seed {each.training_args.seed}", flush=True)
    try:
        run(each.run_args, each.training_args, each.name)
    except BusyError as busy:
        if each.training_args.world_size > 1:  # the other processes of this call do not know it
            raise
        print(f"[compare] later: {busy}", flush=True)
        return False
    return True


def finished(run: Run) -> bool:
    """Whether the record of a run is there, made with the same arguments."""
    return run.record.is_file() and Record.read(run.record).arguments == arguments_of(run.run_args, run.training_args)


def grid(axes: Sequence[str]) -> list[str]:
    """The points of a sweep, as words of the command line.

    Args:
        axes: ``"losses.itrd.alpha=1.01,1.5"``: an argument and its values.

    Example:
        >>> grid(["losses.itrd.alpha=1.01,1.5", "learning_rate=1e-4"])
        ['--losses.itrd.alpha=1.01 --learning_rate=1e-4', '--losses.itrd.alpha=1.5 --learning_rate=1e-4']
    """
    columns = []
    for axis in axes:
        name, equals, values = axis.partition("=")
        if not equals or not all(values.split(",")):
            raise UserError(f"--grid {axis!r}: expected an argument and its values, e.g. losses.itrd.alpha=1.01,1.5")
        columns.append([f"--{name.removeprefix('--')}={value}" for value in values.split(",")])
    return [" ".join(words) for words in itertools.product(*columns)]


def axes_of(record: Record) -> Mapping[str, Any]:
    """The arguments that a point of a sweep sets, by its label."""
    pairs = [word.partition("=") for word in record.label.split()]
    return {name: yaml.safe_load(value) for name, equals, value in pairs if equals}
