"""The student option ``vocabulary``: a tokenizer cut to the pieces of a run's training texts."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.models.vocabulary_cut import CutVocabulary, check_size, count_pieces, keep_pieces
from itrd_nlp.tasks.plain_files import read_lines, suffix_of
from itrd_nlp.tasks.reranking.rows import NEGATIVE
from itrd_nlp.tasks.rows import CLASSES, DOCUMENTS, POSITIVES, QUERIES, WORD_COLUMNS
from itrd_nlp.tasks.tabular import SUFFIXES, read_table
from itrd_nlp.tasks.tokenising import features_folder, tokenizer_identity
from itrd_nlp.utils.errors import DamagedError, UserError, writing
from itrd_nlp.utils.hashing import digest
from itrd_nlp.utils.io import read_json, write_json

TASK_COLUMNS = ("question", "context", "text", "text_pair")  # in which the tasks keep their training texts
TEXT_COLUMNS = {  # of files
    *TASK_COLUMNS,
    *(name for layout in (*CLASSES.layouts, *WORD_COLUMNS.layouts) for name in layout),
    *(*QUERIES, *DOCUMENTS, *POSITIVES),
}


class StudentVocabulary(NamedTuple):
    """A student's own vocabulary, cut from that of its source."""

    cut: CutVocabulary
    fingerprint: dict[str, Any]  # what decides it, beside the source's tokenizer
    description: str


def check_vocabulary(run_args: RunArguments) -> None:
    """Raise :class:`UserError` for a ``vocabulary`` that is not a number, and for a corpus without one."""
    if (size := run_args.student_spec.vocabulary) is not None:
        check_size(size)
    elif run_args.corpus:
        raise UserError(
            f"corpus {run_args.corpus[0]!r} with a student that keeps its vocabulary: expected a number of tokens "
            "to keep; add --student.vocabulary 8000, or leave corpus out"
        )


def student_vocabulary(run_args: RunArguments, task: Any) -> StudentVocabulary | None:
    """The vocabulary of a student with the option ``vocabulary``, cut from the task's tokenizer.

    Each process counts for itself, unless an earlier one kept the counts: they are whole numbers and equal ones have an
    order, so that all get the same pieces within seconds, and none waits for another.

    Returns:
        None where the student has no such option, or the tokenizer no more pieces; for images, which are refused with
        the student; and for data without training examples, which is refused before it is tokenised.
    """
    size = run_args.student_spec.vocabulary
    if size is None or task.modality == "image" or task.train is None or size >= len(task.tokenizer):
        return None
    counts = cached_counts(task.tokenizer, [*training_texts(task), *corpus_texts(run_args)])
    cut = keep_pieces(task.tokenizer, counts, size)
    pieces, share = len(cut.kept_ids), counts[cut.kept_ids].sum() / max(1, counts.sum())
    description = f"{cut.pieces_before:,} -> {pieces:,} pieces, {100 * share:.1f}% of the tokens in the texts"
    if pieces < size:
        description += f"; no others occur, so that they are fewer than {size:,}"
    return StudentVocabulary(cut, {"size": size, "counts": digest(counts.tolist())}, description)


def cached_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """:func:`count_pieces`, or what an earlier call kept: the students of a search have the same."""
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(text.encode("utf-8", "surrogatepass") + b"\0")
    key = digest([tokenizer_identity(tokenizer), hashed.hexdigest()])
    path = features_folder() / f"pieces-{key}.json"
    with suppress(DamagedError):
        return np.array(read_json(path)["counts"], np.int64)
    counts = count_pieces(tokenizer, texts)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"counts": counts.tolist()})
    return counts


def training_texts(task: Any) -> Iterator[str]:
    """The texts of the training examples that a task uses; of lists of words, the words."""
    for name in TASK_COLUMNS:
        if name in task.train.column_names:
            yield from _texts(task.train[name][:])


def corpus_texts(run_args: RunArguments) -> Iterator[str]:
    """The texts of ``--corpus``: the lines of text files, the text columns of other files.

    Raises:
        UserError: a file that cannot be read, or without such a column.
    """
    for source in run_args.corpus or ():
        path = Path(source)
        if path.is_file() and suffix_of(path) not in SUFFIXES:
            yield from read_lines(path)
            continue
        table = read_table(source)
        own = {run_args.text_column, run_args.text_pair_column}
        names = [name for name in table.columns if name in TEXT_COLUMNS | own or NEGATIVE.fullmatch(name)]
        if not names:
            raise UserError(
                f"'{source}' has the columns {', '.join(table.columns)}: expected one of texts, such as text, question "
                "or sentence; name yours with --text_column, or give a text file with one text a line"
            )
        for name in names:
            yield from _texts(table.columns[name][:])


def _texts(cells: Sequence[Any]) -> Iterator[str]:
    for cell in cells:
        if isinstance(cell, str):
            yield cell
        elif isinstance(cell, list | tuple):
            yield from _texts(cell)
