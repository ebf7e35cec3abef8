"""From a model to the smallest one that keeps its quality: the search, its files, and its result."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from itrd_nlp.experiments.finished import FINISHED
from itrd_nlp.experiments.output_folder import PLAN, locked
from itrd_nlp.experiments.shrink.report import plot, search_table, verdict
from itrd_nlp.experiments.shrink.request import Request
from itrd_nlp.experiments.shrink.rounds import Search
from itrd_nlp.experiments.shrink.search import PIECES, Goal, ladder
from itrd_nlp.export.onnx import need_exporter
from itrd_nlp.models.loading import load_tokenizer
from itrd_nlp.models.vocabulary_cut import least_pieces
from itrd_nlp.training.checkpoint import SIDECAR
from itrd_nlp.training.model_card import CARD, add_note, is_own
from itrd_nlp.utils.console import without_repeats
from itrd_nlp.utils.errors import UserError, writing
from itrd_nlp.utils.io import make_folder, read_json, write_json

logger = logging.getLogger(__name__)

RECORD, TABLE, PLOT = "frontier.json", "frontier.md", "frontier.svg"
REQUEST = "request.json"  # what decides the files in an output folder
SEARCH_FILES = ("student", "onnx", "runs", "deployed", RECORD, PLAN)  # by a search; the last by a run


class ShrinkResult(NamedTuple):
    """The result of a search.

    Attributes:
        chosen: name of the smallest student that meets the goal, or else of the nearest.
        met: whether it meets the goal.
        kept: its share of the teacher's score, on the test file if there is one, else on the validation file.
        mib: of all files that are needed to run it.
        speedup: time of the teacher in PyTorch fp32 over its own in ONNX int8, for one text of 128 tokens.
        seconds: of the search, those of earlier calls included.
        candidates: number of students considered, those beyond the limits included.
        folder: holds ``student/``, ``onnx/`` and ``frontier.json``.
    """

    chosen: str
    met: bool
    kept: float
    mib: float
    speedup: float
    seconds: float
    candidates: int
    folder: Path


def shrink(
    model: str,
    train_file: str,
    validation_file: str,
    *,
    test_file: str | None = None,
    task: str | None = None,
    keep: float = 0.97,
    max_mib: float | None = None,
    min_speedup: float | None = None,
    output_dir: str | Path = "runs/shrink",
    layers: Sequence[int] | None = None,
    hidden_sizes: Sequence[int] | None = None,
    vocabularies: Sequence[int] | None = None,
    threads: int | None = None,
    argv: Sequence[str] = (),
) -> ShrinkResult:
    """Make a model as small as it gets while it keeps a share of its score.

    Students with fewer layers, a smaller vocabulary and a narrower network learn from the same cached outputs of the
    teacher. All of them get a quarter of the training; those that a smaller one beats stop there. Of the others the
    middle one is trained to its end, exported to ONNX with int8 weights, and scored: if it keeps enough, larger ones
    stop, otherwise smaller ones, until one is left.

    Args:
        model: folder or Hub id of an encoder; without a head it is fine-tuned first.
        train_file, validation_file: as for ``itrd distill``.
        test_file: data to score the chosen student and its teacher on, once.
        task: a name of ``itrd_nlp.experiments.shrink.request.RECIPES``; by default that of the head, or of the columns.
        keep: share of the teacher's score (the last metric in tables, such as F1 or accuracy) to keep.
        max_mib: most MiB of all files that are needed to run the student.
        min_speedup: least time of the teacher in PyTorch fp32 over that of the student in ONNX int8.
        output_dir: folder of everything; the same call continues there.
        layers, hidden_sizes, vocabularies: sizes to try instead of the default ones, in every combination; numbers of
            layers alone are tried with a small vocabulary, with the whole one, and with a narrower network.
        threads: of timed forward passes, as on the machine that will run the student; torch's setting by default.
        argv: ``--field value`` words for all trainings, such as ``["--bf16", "true"]``.

    Returns:
        The choice; ``student/`` in its folder is a plain transformers model, ``onnx/`` its export.

    Raises:
        UserError: something cannot work; one line, before anything is trained.
    """
    goal = Goal(keep, max_mib, min_speedup)
    goal.check()
    need_exporter()
    output = Path(output_dir).expanduser()
    request = Request(model, train_file, validation_file, output, test_file, task, argv, threads)
    small = small_vocabulary(request.tokenizer) if vocabularies is None else 0
    candidates = ladder(request.config, layers, hidden_sizes, vocabularies, small)
    if request.corpus and not any(candidate.vocabulary for candidate in candidates):
        raise UserError(f"--corpus {request.corpus[0]}: no candidate has a smaller vocabulary; leave it out")
    make_folder(output)
    with without_repeats(), locked(output, request.arguments()[1]):
        search = Search(request, goal, candidates)
        search.check()
        _reserve(request)  # once nothing is wrong with it
        record = search.run()
        _write(record, request)
    chosen = next(row for row in record["candidates"] if row["name"] == record["chosen"])
    return ShrinkResult(
        chosen=record["chosen"],
        met=record["met"],
        kept=(record["test"] or chosen)["kept"],
        mib=chosen["mib"],
        speedup=chosen["speedup"],
        seconds=record["seconds"],
        candidates=len(candidates),
        folder=output,
    )


def small_vocabulary(tokenizer: str) -> int:
    """The pieces of a small vocabulary by default: at least half of them are frequent ones; 0 where none can be cut.

    Args:
        tokenizer: its folder or Hub id.
    """
    try:
        return max(PIECES, 2 * least_pieces(load_tokenizer(tokenizer)))
    except UserError as error:
        logger.warning(f"[shrink] no smaller vocabulary is tried: {error}")
        return 0


def _reserve(request: Request) -> None:
    """Take the output folder for a search; raise :class:`UserError` where it holds another."""
    path = request.output / REQUEST
    values = request.values()
    if path.is_file():
        old = read_json(path)
        if "weights" not in old:
            raise UserError(
                f"{request.output} holds a search that another version of itrd_nlp began, which did not write down all "
                "that decides it: finish it with that version, or choose another --output_dir"
            )
        if changed := sorted(name for name in values if old.get(name) != values[name]):
            raise UserError(
                f"{request.output} holds another search, which differs in {', '.join(changed)}: expected the same; "
                "choose another --output_dir"
            )
    elif other := [name for name in SEARCH_FILES if (request.output / name).exists()]:
        raise UserError(
            f"{request.output} holds {other[0]}, which no search made: expected a folder of its own; choose another "
            "--output_dir"
        )
    write_json(path, values)


def _write(record: dict[str, Any], request: Request) -> None:
    """Write the record, the table, the plot, the chosen student with its card, and its export."""
    output = request.output
    chosen = output / "runs" / record["chosen"] / "whole" / "student"
    with writing(output):
        card, edited = output / "student" / CARD, output / f"edited-{CARD}"
        if not is_own(card):
            shutil.copy2(card, edited)  # until it is back: a kill leaves it there
        files = [name for name in read_json(chosen / FINISHED)["files"] if name != SIDECAR]  # for resuming alone
        _replace(output / "student", chosen, [*files, CARD])
        if edited.is_file():
            edited.replace(card)
        _replace(output / "onnx", output / "deployed" / record["chosen"])
        table = f"{search_table(record).markdown()}\n\n{verdict(record)}\n"
        (output / TABLE).write_text(table, encoding="utf-8")
        try:
            (output / PLOT).write_text(plot(record) + "\n", encoding="utf-8")
        except UserError as error:
            logger.warning(f"[shrink] no plot: {error}")
    add_note(output / "student", "Chosen by `itrd shrink`", table)
    write_json(output / RECORD, record)


def _replace(folder: Path, source: Path, files: Sequence[str] | None = None) -> None:
    """Copy a folder, or some of its files, in place of another."""
    shutil.rmtree(folder, ignore_errors=True)
    if files is None:
        shutil.copytree(source, folder)
        return
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, folder / name)
