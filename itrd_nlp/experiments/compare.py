"""Several recipes and seeds side by side: every run once, the same teacher, the same budget, one table."""

import dataclasses
import itertools
import logging
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.fairness import budget_arguments, check_same
from itrd_nlp.experiments.output_folder import (
    NOT_IN_FINGERPRINT,
    SAME_RUN,
    arguments_of,
    is_locked,
    lock_owner,
    without_parents,
)
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.scoring import scoring_versions
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.fingerprint import VERSION, scoring_values
from itrd_nlp.training.record import Record
from itrd_nlp.utils.command_line import underscored
from itrd_nlp.utils.console import without_repeats
from itrd_nlp.utils.errors import BusyError, DamagedError, UserError
from itrd_nlp.utils.hashing import digest, json_values
from itrd_nlp.utils.io import paths_below, read_json, write_json
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)

LONGEST = 200  # bytes of a folder's name; file systems take 255
PATIENCE = 10.0  # seconds between two looks where other calls hold every run that is left
INPUTS = "inputs.json"  # beside a record: what it was made from


class Run(NamedTuple):
    """One student to train: a recipe, or a point of a sweep, at one seed."""

    name: str
    run_args: RunArguments
    training_args: ITRDArguments

    @property
    def record(self) -> Path:
        return Path(str(self.training_args.output_dir)) / "record.json"


def plan_runs(recipes: Sequence[str], seeds: Sequence[int], argv: Sequence[str], output: str | Path) -> list[Run]:
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
    if len({*seeds}) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: expected each once")
    if any(word.partition("=")[0] == "--seed" for word in [*map(str, argv), *itertools.chain(*map(_split, recipes))]):
        raise UserError("--seed: a comparison has several; expected --seeds 0 1 2")
    runs = []
    for seed, recipe in itertools.product(seeds, recipes):
        name, *words = _split(recipe)
        folder = str(Path(output) / folder_of(recipe) / f"seed-{seed}")
        run_args, training_args = parse(name, [*argv, *words, "--output_dir", folder, "--seed", str(seed)])
        if training_args.push_to_hub:
            raise UserError(
                "--push_to_hub with several runs: expected it with `itrd distill`, for the one that you choose; with "
                f"the same arguments and --output_dir {folder} it finds that student trained"
            )
        label = run_args.label or " + ".join(training_args.losses) or "undistilled"
        run_args.label = ", ".join([label, *(word.removeprefix("--") for word in words)])
        runs.append(Run(name, run_args, training_args))
    _refuse_twice(map(folder_of, recipes), "name {!r}: expected each once")
    _refuse_twice((str(run.run_args.label) for run in runs[: len(recipes)]), "label {!r}: set another in one")
    return runs


def _refuse_twice(names: Iterable[str], message: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"two recipes have the {message.format(name)}")


def _split(recipe: str) -> list[str]:
    try:
        return [recipe] if _is_file(recipe) else underscored(shlex.split(recipe))
    except ValueError as error:
        raise UserError(f"recipe {recipe!r}: expected a file or a packaged recipe, and words ({error})") from None


def _is_file(name: str) -> bool:
    with suppress(OSError):  # too long for a name
        return Path(name).is_file()
    return False


def folder_of(recipe: str) -> str:
    """Name of the folder of a recipe, with what is changed in it; a long one is cut and ends in a digest.

    Example:
        >>> folder_of("squad/t3-itrd --losses.itrd.alpha=2 --pooling=cls")
        't3-itrd,losses.itrd.alpha=2,pooling=cls'
    """
    first, *words = _split(recipe)
    name = re.sub(r"[^\w.=,:-]+", "_", ",".join([Path(first).stem, *(word.removeprefix("--") for word in words)]))
    name = name.replace(":", "_") if os.name == "nt" else name  # Windows allows none
    return name if len(name.encode()) <= LONGEST else f"{name[: LONGEST // 4]}-{digest(name)}"


def check_fair(runs: Sequence[Run]) -> None:
    """Raise :class:`UserError` where two runs differ in what a fair comparison keeps equal."""
    if not runs:
        raise UserError("no runs to compare: expected at least one")
    first = runs[0]
    for other in runs[1:]:
        pairs = [(name, getattr(first.run_args, name), getattr(other.run_args, name)) for name in SAME_RUN]
        for name in budget_arguments(bool(first.training_args.load_best_model_at_end)):
            pairs.append((name, getattr(first.training_args, name), getattr(other.training_args, name)))
        for name, value, other_value in pairs:
            if value != other_value:
                raise UserError(
                    f"{first.name} and {other.name} differ in {name} ({value} and {other_value}): expected the same; "
                    f"add --{name} VALUE for all, or --unfair to compare them all the same"
                )


@without_repeats()
def compare(
    runs: Sequence[Run], unfair: bool = False, on_record: Callable[[Run, Record], None] | None = None
) -> list[Record]:
    """Train what is missing and return all records, in the order of ``runs``.

    Finished runs are read, killed ones continue. Several calls may share a comparison: each skips the run that another
    one is training, and comes back to it.

    Args:
        runs: see :func:`plan_runs`.
        unfair: also compare runs that differ in teacher, student, data or budget.
        on_record: called with each run and its record as soon as it is there.

    Raises:
        UserError: an unfair pair, or what :func:`itrd_nlp.experiments.run.run` refuses.
    """
    if not unfair:
        check_fair(runs)
    waiting, announced = list(runs), False
    first_args = runs[0].training_args
    unfinished = from_first_rank(lambda: [i for i, each in enumerate(runs) if not finished(each)], first_args)
    if len(unfinished) > 1:
        from itrd_nlp.experiments.teacher_pass import cache_for_all

        cache_for_all([(runs[i].run_args, runs[i].training_args) for i in unfinished])
    while waiting:
        busy = []
        for each in waiting:
            if not _attempt(each):
                busy.append(each)
            elif on_record is not None:
                on_record(each, read_record(each))
        if len(busy) == len(waiting):
            if not announced:
                log_first(logger, first_args, "\n".join(["[compare] waiting for other runs:", *map(_who, busy)]))
            announced = True
            time.sleep(PATIENCE)
        waiting = busy
    records = from_first_rank(lambda: [read_record(each) for each in runs], first_args)
    if not unfair:
        check_same(records)
    return records


def _attempt(each: Run) -> bool:
    """Run what is not finished; False where another call holds its folder."""
    from itrd_nlp.experiments.run import run

    output = each.record.parent
    done = from_first_rank(lambda: finished(each), each.training_args)
    if done or from_first_rank(lambda: is_locked(output), each.training_args):
        return done
    log_first(logger, each.training_args, f"[compare] {each.name}, seed {each.training_args.seed}")
    inputs = _inputs(each)
    try:
        run(each.run_args, each.training_args, each.name)
    except BusyError as error:
        log_first(logger, each.training_args, f"[compare] later: {error}")
        return False
    if each.training_args.process_index == 0:
        write_json(output / INPUTS, inputs)
    PartialState().wait_for_everyone()
    return True


def _who(each: Run) -> str:
    folder = each.record.parent
    return f"  {folder} is in use by {lock_owner(folder)}; Ctrl-C stops waiting, and the same command continues"


def finished(run: Run) -> bool:
    """Whether the record of a run is there, made from the same arguments, models and files."""
    if not (run.record.is_file() and (run.record.parent / INPUTS).is_file()):
        return False
    try:
        record, inputs = Record.read(run.record), read_json(run.record.parent / INPUTS)
    except DamagedError as error:
        logger.warning(f"[compare] {error}: made again")
        return False
    if run.run_args.latency and not record.latency_ms:
        return False
    if run.run_args.baseline and run.training_args.losses and "baseline" not in record.metrics:
        return False
    return inputs == _inputs(run) and record.arguments == inputs["arguments"]  # else `itrd distill` wrote it there


def _inputs(run: Run) -> dict[str, Any]:
    """All that decides a run, as JSON values: its arguments, and the age of the files and folders that they name."""
    fields = {name: value for name, value in vars(run.run_args).items() if name not in NOT_IN_FINGERPRINT}
    sources: list[Any] = [run.name]
    for key in ("teacher", "student", "tokenizer", "train_file", "validation_file", "dataset"):
        value = fields[key]
        spec = value if isinstance(value, dict) else {"folder": value}  # {from: FOLDER}, {checkpoint: FILE}
        sources += [source for name, source in spec.items() if (name, source) != ("from", "teacher")]
    sources += fields["corpus"] or []
    paths = [Path(source) for source in sources if isinstance(source, str) and Path(source).exists()]
    files = [_stamp(file) for path in paths for file in sorted([path, *paths_below(path)])]
    arguments = arguments_of(run.run_args, run.training_args)
    scored = {**scoring_values(run.training_args), "versions": [VERSION, *scoring_versions(run.run_args.task)]}
    # a digest, as folders of images hold millions of files
    fields = without_parents(fields)
    return json_values({"arguments": arguments, "fields": fields, "files": digest(files), "scored": scored})


def _stamp(path: Path) -> list[Any]:
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else [path.name]


def read_record(run: Run) -> Record:
    """The record of a run; its file gets the run's present label."""
    record, label = Record.read(run.record), str(run.run_args.label)
    if record.label != label:
        record.label = label
        if run.training_args.process_index == 0:
            write_json(run.record, dataclasses.asdict(record))
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
        columns.append([shlex.quote(f"--{name.removeprefix('--')}={value}") for value in values.split(",")])
    return [" ".join(words) for words in itertools.product(*columns)]
