"""Several recipes and seeds side by side: every run once, the same teacher, the same budget, one table."""

import dataclasses
import itertools
import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.fairness import SAME_TRAINING, check_same
from itrd_nlp.experiments.output_folder import NO_PART, arguments_of, is_locked, lock_owner
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.tasks import OPTIONS
from itrd_nlp.losses.distributed import from_first_rank
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import BusyError, DamagedError, UserError
from itrd_nlp.utils.io import read_json, write_json

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds to wait where every run left is another call's

# what a fair comparison keeps equal; learning rates and schedules are a method's own
SAME_RUN = (
    *("task", "teacher", "teacher_config", "teacher_training", "tokenizer", "student"),
    *(name for name in OPTIONS if name not in NO_PART),
)
ASKED = "asked.json"  # beside a record: what it was made of


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
        UserError: as :func:`~itrd_nlp.experiments.parsing.parse`, one recipe twice, a single seed among the words, or
            ``push_to_hub``.
    """
    split = [_split(recipe) for recipe in recipes]
    if any(word.partition("=")[0] == "--seed" for word in [*argv, *itertools.chain(*split)]):
        raise UserError("--seed: a comparison has several; expected --seeds 0 1 2")
    folders = [folder_of(recipe) for recipe in recipes]
    runs = []
    for seed, ((first, *words), folder) in itertools.product(seeds, zip(split, folders, strict=True)):
        place = ["--output_dir", str(output / folder / f"seed-{seed}"), "--seed", str(seed)]
        run_args, training_args = parse(first, [*argv, *words, *place])
        if training_args.push_to_hub:
            raise UserError(
                "--push_to_hub with several runs: expected it with `itrd distill`, for the one that you choose; with "
                f"the same arguments and --output_dir {place[1]} it finds that student trained"
            )
        label = run_args.label or " + ".join(training_args.losses) or "undistilled"
        run_args.label = ", ".join([label, *(word.removeprefix("--") for word in words)])
        runs.append(Run(first, run_args, training_args))
    labels = [str(run.run_args.label) for run in runs[: len(recipes)]]
    for names, advice in ((folders, "name {!r}: expected each once"), (labels, "label {!r}: set another in one")):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"two recipes have the {advice.format(twice[0])}")
    return runs


def _split(recipe: str) -> list[str]:
    return [recipe] if Path(recipe).is_file() else shlex.split(recipe)


def folder_of(recipe: str) -> str:
    """Name of the folder of a recipe, with what is changed in it.

    Example:
        >>> folder_of("squad/t3-itrd --losses.itrd.alpha=2 --pooling=cls")
        't3-itrd,losses.itrd.alpha=2,pooling=cls'
    """
    first, *words = _split(recipe)
    return re.sub(r"[^\w.=,:-]+", "_", ",".join([Path(first).stem, *(word.removeprefix("--") for word in words)]))


def check_fair(runs: Sequence[Run]) -> None:
    """Raise :class:`UserError` where two runs differ in what a fair comparison keeps equal."""
    first = runs[0]
    for other in runs[1:]:
        for place, fields in (("run_args", SAME_RUN), ("training_args", SAME_TRAINING)):
            for field in fields:
                mine, theirs = [getattr(getattr(run, place), field) for run in (first, other)]
                if mine != theirs:
                    raise UserError(
                        f"{first.name} and {other.name} differ in {field} ({mine} and {theirs}): expected the same; "
                        f"add --{field} VALUE for all, or --unfair to compare them all the same"
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
        UserError: an unfair pair, or what :func:`itrd_nlp.experiments.run.run` refuses.
    """
    if not unfair:
        check_fair(runs)
    waiting, told = list(runs), False
    while waiting:
        left = []
        for each in waiting:
            if not _attempt(each):
                left.append(each)
            elif keep is not None:
                keep(each, read_record(each))
        if len(left) == len(waiting):
            if not told and runs[0].training_args.process_index == 0:
                logger.info("\n".join(["[compare] waiting for other runs:", *map(_who, left)]))
            told = True
            time.sleep(PATIENCE)
        waiting = left
    records = from_first_rank(lambda: [read_record(each) for each in runs], runs[0].training_args)
    if not unfair:
        check_same(records)
    return records


def _attempt(each: Run) -> bool:
    """Whether a run is done; not where another call is at it."""
    from itrd_nlp.experiments.run import run

    output = each.record.parent
    done, taken = from_first_rank(lambda: (finished(each), is_locked(output)), each.training_args)
    if done or taken:
        return done
    if each.training_args.process_index == 0:
        logger.info(f"[compare] {each.name}, seed {each.training_args.seed}")
    asked = _asked(each)
    try:
        run(each.run_args, each.training_args, each.name)
    except BusyError as error:
        if each.training_args.process_index == 0:
            logger.info(f"[compare] later: {error}")
        return False
    if each.training_args.process_index == 0:
        write_json(output / ASKED, asked)
    PartialState().wait_for_everyone()
    return True


def _who(each: Run) -> str:
    folder = each.record.parent
    return f"  {folder} is in use by {lock_owner(folder)}; Ctrl-C stops waiting, and the same command continues"


def finished(run: Run) -> bool:
    """Whether the record of a run is there, made of the same arguments, models and files."""
    if not (run.record.is_file() and (run.record.parent / ASKED).is_file()):
        return False
    try:
        record, asked = Record.read(run.record), read_json(run.record.parent / ASKED)
    except DamagedError as error:
        logger.warning(f"[compare] {error}: made again")
        return False
    compared = run.run_args.baseline and bool(run.training_args.losses)
    lacks = compared > ("baseline" in record.metrics) or run.run_args.latency > bool(record.latency_ms)
    return not lacks and asked == _asked(run)


def _asked(run: Run) -> dict[str, Any]:
    """All that decides a run, as JSON values: its arguments, and the age of the files and folders that they name."""
    fields = {f.name: getattr(run.run_args, f.name) for f in dataclasses.fields(run.run_args) if f.name not in NO_PART}
    places = [run.name]
    for value in (fields[key] for key in ("teacher", "student", "tokenizer", "train_file", "validation_file")):
        places += value.values() if isinstance(value, dict) else [value]  # {from: FOLDER}, {checkpoint: FILE}
    found = [Path(place) for place in places if isinstance(place, str) and Path(place).exists()]
    files = [_stamp(path) for place in found for path in sorted([place, *place.glob("*")])]
    plan = arguments_of(run.run_args, run.training_args)
    return json.loads(json.dumps({"arguments": plan, "fields": fields, "files": files}, default=str))


def _stamp(path: Path) -> list[Any]:
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else [path.name]


def read_record(run: Run) -> Record:
    """The record of a run, under the label that it is asked for by now."""
    record = Record.read(run.record)
    record.label = str(run.run_args.label)
    return record


def grid(axes: Sequence[str]) -> list[str]:
    """The points of a sweep, as words of the command line.

    Args:
        axes: ``"losses.itrd.alpha=1.01,1.5"``: an argument and its values, which hold no commas.

    Raises:
        UserError: an axis without values.

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
