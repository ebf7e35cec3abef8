"""When the teacher's answers are kept on disk, and how training reads them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object, wait_for_everyone
from datasets import Dataset
from torch import Tensor, nn

from itrd_nlp.distillation.cache_folders import (
    default_folder,
    find_room,
    gib,
    make_room,
    no_room,
    stamp_used,
    total_limit,
)
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.distillation.teacher_cache import TeacherCache, split_rows
from itrd_nlp.losses.base import INDEX, Representation
from itrd_nlp.losses.distributed import from_first_rank
from itrd_nlp.utils.batches import MULTIPLE, text_lengths
from itrd_nlp.utils.datasets import NumberedDataset
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import data_digest, digest, weights_digest

logger = logging.getLogger(__name__)

STORED = "teacher"  # entry of a batch: what was stored about its examples
AUTO_LIMIT = 16 * 2**30  # bytes that one training set takes at most under `auto`; all together: total_limit()
AUTO_FOLDER = default_folder()
PROBES = 8  # examples, and up to half as many more, that are drawn twice, and asked about to judge the size


class IndexedCollator:
    """A collator that adds to each batch of training data its examples' places, and what is stored about them."""

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Tensor]], cache: TeacherCache | None):
        self.collator, self.cache = collator, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if INDEX not in rows[0]:  # evaluation
            return dict(self.collator(rows))
        places = [row[INDEX] for row in rows]
        batch = dict(self.collator([{key: value for key, value in row.items() if key != INDEX} for row in rows]))
        batch[INDEX] = torch.tensor(places)
        if self.cache is not None:
            batch[STORED] = self.cache.read(places)
        return batch


class Source(NamedTuple):
    """Where a teacher's outputs come from, and what they depend on."""

    teacher: nn.Module
    extractor: FeatureExtractor
    data: Any  # training examples, as the trainer was given them
    args: Any  # ITRDArguments
    draw: Callable[[Sequence[int]], Mapping[str, Any]]  # the batch of the examples with these indices
    forward: Callable[[Mapping[str, Any]], Representation]  # what the teacher outputs for a batch
    batches: Callable[[], int]  # of an epoch
    precision: str  # that of autocast


class _Live(Exception):
    """Why the teacher has to be asked about each batch."""


def cache_teacher_outputs(source: Source) -> TeacherCache | None:
    """The cached teacher outputs of all training examples, computed where they are not yet on disk.

    All ranks decide alike: whatever stops one of them stops all.

    Returns:
        The whole cache; None, after the reason was printed, where the teacher has to be asked about every batch.

    Raises:
        UserError: the folder that was named cannot take them.
    """

    def say(text: str) -> None:
        if source.args.process_index == 0:
            logger.info(f"[teacher cache] {text}")

    try:
        return _store(source, say)
    except _Live as reason:
        say(f"not used, the teacher is asked about each batch: {reason}")
        return None


def _store(source: Source, say: Callable[[str], None]) -> TeacherCache:
    args, rank, ranks = source.args, source.args.process_index, source.args.world_size
    cache, size, lacking = _plan(source, say)
    needed = size * len(lacking) // cache.count
    if lacking:
        _agree(_no_folder(source, cache, size, needed, say), _named(args))
    say(f"{gib(size)} in {cache.folder}, {gib(needed)} of it to be written")
    if mine := lacking[rank::ranks]:
        lengths = text_lengths(source.data, args.length_column_name)
        longest = -(-max(lengths) // MULTIPLE) * MULTIPLE if lengths else MULTIPLE
        budget, pooling = longest * args.per_device_eval_batch_size, source.extractor.pooling
        cache.fill(mine, source.draw, source.forward, pooling, lengths, budget, show=not args.disable_tqdm)
    stamp_used(cache.folder)
    wait_for_everyone()
    if not all(gather_object([cache.whole()])):
        raise UserError(f"teacher_cache {cache.folder}: files are gone that were written; start again")
    return cache


def _named(args: Any) -> Path | None:
    """The folder that was named; ``auto`` names none."""
    return None if args.teacher_cache == "auto" else Path(args.teacher_cache).expanduser().absolute()


def plan_teacher_cache(source: Source) -> tuple[TeacherCache, int, int] | str:
    """What :func:`cache_teacher_outputs` would do: the cache, its bytes, those to be written; or why it would not.

    Raises:
        UserError: the folder that was named cannot take them.
    """
    try:
        cache, size, lacking = _plan(source, print)
    except _Live as reason:
        return str(reason)
    return cache, size, size * len(lacking) // cache.count


def _plan(source: Source, say: Callable[[str], None]) -> tuple[TeacherCache, int, list[int]]:
    """The cache, its size in bytes, and the shards that are not there."""
    args, data, draw = source.args, source.data, source.draw
    rank, ranks, named = args.process_index, args.world_size, _named(args)
    root, dtype = named or AUTO_FOLDER, getattr(torch, args.teacher_cache_dtype)
    _agree(_unfit(data, args))
    lengths, pooling = text_lengths(data, args.length_column_name), source.extractor.pooling
    probes = probe_places(len(data), lengths)
    batch = draw(probes)
    _agree(None if _equal(batch, draw(probes)) else "the training data is augmented at random")
    answers = split_rows(source.forward(batch), batch, pooling)
    _agree(_unstorable(answers, dtype), named)
    size = size_of(answers, len(data), lengths, pooling, dtype.itemsize)
    cache = TeacherCache(root, _key(source, batch), len(data), size, dtype)
    if not cache.hold():
        for folder in cache.earlier() if rank == 0 else ():
            say(f"{folder} is of an earlier version: not used, delete it as you like")
    mine, reason = [], None
    try:
        mine = cache.missing(range(rank, cache.count, ranks), say)
    except UserError as error:
        reason = str(error)
    _agree(reason, named)
    lacking = sorted(gather_object(mine))
    if lacking:
        _agree(_too_short(source, auto=named is None))
        needed = size * len(lacking) // cache.count
        if named is None:
            _agree(from_first_rank(lambda: _above_limit(cache, size, needed), args))
        _agree(no_room(root, needed) if named else None, named)
    return cache, size, lacking


def _above_limit(cache: TeacherCache, size: int, needed: int) -> str | None:
    """Why ``auto`` does not take so much, whatever may be evicted, or None."""
    if size > AUTO_LIMIT:
        return f"it takes {gib(size)}, above {gib(AUTO_LIMIT)}; --teacher_cache FOLDER would write it"
    return find_room(cache.folder, size, needed, total_limit()).reason


def _agree(reason: str | None, named: Path | None = None) -> None:
    """Stop on every rank where one has a reason: with an error about the folder that was named, or :class:`_Live`."""
    reasons = [text for text in gather_object([reason]) if text]
    if reasons and named:
        raise UserError(f"teacher_cache {named}: {reasons[0]}; name a folder elsewhere, or --teacher_cache off")
    if reasons:
        raise _Live(reasons[0])


def _unfit(data: Any, args: Any) -> str | None:
    """Why the teacher's answers about a training set cannot be kept, or None."""
    if isinstance(data, NumberedDataset):
        return "the training data is made anew in each epoch"
    if not isinstance(data, Dataset):
        return f"the training data is a {type(data).__name__}, not a datasets.Dataset"
    if data.format["type"] == "custom":
        return "the training data is transformed when it is read"
    if args.accelerator_config.dispatch_batches:
        return "dispatch_batches cuts batches apart"
    return None


def probe_places(examples: int, lengths: Sequence[int] | None) -> list[int]:
    """Places of the examples that stand for all: spread over the data, and the longest."""
    spread = np.linspace(0, examples - 1, min(PROBES, examples)).astype(int)
    longest = np.argsort(lengths)[-PROBES // 2 :].tolist() if lengths else []
    return sorted({*spread.tolist(), *longest})


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items() if isinstance(value, Tensor))


def _unstorable(answers: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> str | None:
    for answer in answers:
        for key, value in answer.items():
            if not value.isfinite().all():
                return f"the teacher's {key} is not finite"
            if not value.to(dtype).isfinite().all():
                return f"the teacher's {key} does not fit {dtype}; --teacher_cache_dtype float32 would store it"
    return None


def _no_folder(source: Source, cache: TeacherCache, size: int, needed: int, say: Callable[[str], None]) -> str | None:
    """Why the missing shards cannot be written, or None; the first process makes their folder, and room for it.

    Only what ``auto`` wrote is ever evicted, and only for ``auto``: a folder that was named is its user's.
    """

    def make() -> str | None:
        try:
            reason = None
            if _named(source.args) is None:
                reason = make_room(cache.folder, size, needed, total_limit(), cache.hold, say)
            if reason is None:
                cache.prepare()
        except OSError as error:
            reason = f"not a folder that can be made ({error.strerror})"
        return reason

    reason = from_first_rank(make, source.args)
    if not reason and not (cache.prepared() and cache.hold()):
        reason = "process 0 made the folder, this one does not see it: expected one that all machines share"
    return reason


def _key(source: Source, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """All that the answers depend on."""
    extractor, config = source.extractor, source.teacher.config.to_diff_dict()
    return {
        "weights": weights_digest(source.teacher),
        "config": {
            key: str(value) for key, value in config.items() if key not in ("_name_or_path", "transformers_version")
        },
        "data": data_digest(source.data),
        "collated": digest({key: value.tolist() for key, value in batch.items() if isinstance(value, Tensor)}),
        "layers": [*extractor.module_names, *extractor.attention],
        "heads": extractor.heads,
        "pooling": [extractor.pooling.kind, extractor.pooling.count],
        "computed in": source.precision,
    }


def _too_short(source: Source, auto: bool) -> str | None:
    """Why training asks the teacher no more often than storing its answers would, or None."""
    args = source.args
    if args.tokens_per_batch is None:
        rows = args.train_batch_size * args.world_size
        epoch = (len(source.data) + (0 if args.dataloader_drop_last else rows - 1)) // rows
    else:
        epoch = source.batches()
    limited = args.max_steps > 0
    batches = args.max_steps * args.gradient_accumulation_steps if limited else math.ceil(args.num_train_epochs * epoch)
    if batches < epoch:
        return f"training ends after {batches} of an epoch's {epoch} batches"
    if auto and batches == epoch:
        return "one epoch gains nothing from it; --teacher_cache FOLDER would store them for other runs"
    return None


def size_of(
    answers: Sequence[Mapping[str, Tensor]],
    examples: int,
    lengths: Sequence[int] | None,
    pooling: Pooling,
    itemsize: int,
) -> int:
    """Bytes of a cache for ``examples``, judged by the ``answers`` to a few; an upper bound but for files' headers.

    Args:
        lengths: tokens of each example, where known.
        itemsize: bytes of a stored number.
    """
    total = 0
    for key in answers[0]:
        rows = [len(answer[key]) for answer in answers]
        if max(rows) == 1:
            count = examples
        elif lengths is None:
            count = examples * max(rows)
        else:
            most = pooling.count if key.startswith("features.") and pooling.count else max(lengths)
            count = sum(min(most, length) for length in lengths)
        total += count * answers[0][key][:1].numel() * itemsize + examples * 8
    return total
