"""Whether a training caches its teacher's outputs on disk: all ranks decide alike, before anything is trained."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, wait_for_everyone
from datasets import Dataset
from torch import Tensor

from itrd_nlp.distillation.cache_folders import AUTO_FOLDER, find_room, gib, make_room, no_room, stamp_used, total_limit
from itrd_nlp.distillation.shards import CacheError
from itrd_nlp.distillation.stored_rows import size_of, split_rows
from itrd_nlp.distillation.teacher_cache import Missing, TeacherCache
from itrd_nlp.distillation.teacher_source import Source
from itrd_nlp.utils.batches import padded_length
from itrd_nlp.utils.datasets import NumberedDataset
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import data_digest, digest, weights_digest
from itrd_nlp.utils.modeling import PAD_MULTIPLE
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)

AUTO_LIMIT = 32 * 2**30  # bytes that one run reads at most under `auto`; all together: total_limit()
USUAL_BATCH = 8  # per_device_eval_batch_size by default
GPU_TOKENS = 2**14  # of a batch of the teacher on a GPU by default, at least: 43 texts of 384 tokens
SHARED_SECONDS = 60  # after which every machine should see a folder that another one made
DRAWS = 32  # of them, by which rare augmentation is noticed
PROBES = 8  # examples, and up to half as many more, from which size and storability are judged


class NotCached(Exception):
    """Why the teacher runs on each batch instead."""


def cache_teacher_outputs(source: Source) -> TeacherCache | None:
    """The cached teacher outputs of all training examples, computed where they are not yet on disk.

    Returns:
        The complete cache; None, after the reason was logged, where the teacher has to run on each batch.

    Raises:
        UserError: the folder that the user named cannot take them.
    """
    args = source.args
    cache: TeacherCache | None = None
    try:
        cache, missing = plan_teacher_cache(source)
        if missing:
            _stop_if(_reserve(source, cache, missing), source.folder)
        plan = f"{gib(cache.size)} in {cache.folder}, {gib(cache.bytes_of(missing))} of it to be written"
        log_first(logger, args, f"[teacher cache] {plan}")
        _stop_if(_fill(source, cache, missing), source.folder)
    except NotCached as reason:
        log_first(logger, args, f"[teacher cache] not used, the teacher runs on each batch: {reason}")
        if cache is not None:
            cache.release()
        return None
    stamp_used(cache.folder)
    wait_for_everyone()
    if all(gather_object([cache.is_complete()])):
        return cache
    cache.release()
    if source.folder is not None:
        raise UserError(
            f"teacher_cache {cache.folder}: a process does not see all files that were written; expected a folder that "
            "all machines share, and that nothing else removes"
        )
    log_first(logger, args, "[teacher cache] not used, the teacher runs on each batch: machines do not share a folder")
    return None


def _fill(source: Source, cache: TeacherCache, missing: Missing) -> str | None:
    """Compute this rank's part of what is missing; why it cannot be written, or None: all ranks hear of it."""
    args = source.args
    of_rank = dict([*missing.items()][args.process_index :: args.world_size])
    if not of_rank:
        return None
    lengths = source.lengths
    longest = padded_length(max(lengths)) if lengths else PAD_MULTIPLE
    budget = longest * args.per_device_eval_batch_size
    is_default = args.per_device_eval_batch_size == USUAL_BATCH
    if lengths and is_default and source.teacher.device.type == "cuda":  # so few texts would leave a GPU idle
        budget = max(budget, GPU_TOKENS)
    try:
        cache.fill(of_rank, source.draw, source.forward, source.extractor, lengths, budget, show=not args.disable_tqdm)
    except CacheError as error:
        return str(error)
    return None


def sharing_key(source: Source) -> str | None:
    """What trainings have in common whose teacher can run once for all; None where it runs on each batch."""
    args = source.args
    if _why_live(source):
        return None
    return digest([_key(source, _probe(source)), args.teacher_cache, args.teacher_cache_dtype])


def plan_teacher_cache(source: Source) -> tuple[TeacherCache, Missing]:
    """The cache that a training would use, and what is yet to be written of it.

    Raises:
        NotCached: the teacher would run on each batch.
        UserError: the folder that the user named cannot take them.
    """
    args, data = source.args, source.data
    root, dtype = source.folder or AUTO_FOLDER, getattr(torch, args.teacher_cache_dtype)
    _stop_if(_why_live(source))
    lengths = source.lengths
    batch = _probe(source)
    draws = (_probe(source) for _ in range(DRAWS))
    same = all(torch.equal(x, draw[name]) for draw in draws for name, x in batch.items() if isinstance(x, Tensor))
    _stop_if(None if same else "the training data is augmented at random")
    examples = split_rows(source.forward(batch), batch, source.extractor)
    _stop_if(_not_storable(examples, dtype), source.folder)
    sizes = size_of(examples, len(data), lengths, source.extractor, dtype.itemsize)
    tokens = sum(lengths) if lengths else PAD_MULTIPLE * len(data)
    cache = TeacherCache(root, _key(source, batch), sizes, len(data), tokens, dtype)
    if not cache.hold() and args.process_index == 0:
        for folder in cache.other_versions():
            logger.info(
                f"[teacher cache] {folder} was written by an earlier version and is not used; it can be deleted"
            )
    missing = _missing(source, cache)
    if missing:
        needed = cache.bytes_of(missing)
        _stop_if(_too_short(source))
        if source.folder:
            _stop_if(no_room(root, needed), source.folder)
        elif cache.size > AUTO_LIMIT:
            _stop_if(f"it takes {gib(cache.size)}, above {gib(AUTO_LIMIT)}; --teacher_cache FOLDER would write it")
        else:
            _stop_if(from_first_rank(lambda: find_room(cache.folder, cache.outputs, needed, total_limit())[1], args))
    return cache, missing


def _stop_if(reason: str | None, folder: Path | None = None) -> None:
    """Stop on every rank if one has a reason: :class:`UserError` about the named folder, else :class:`NotCached`."""
    reasons = [text for text in gather_object([reason]) if text]
    if reasons and folder:
        raise UserError(f"teacher_cache {folder}: {reasons[0]}; name a folder elsewhere, or --teacher_cache off")
    if reasons:
        raise NotCached(reasons[0])


def _why_live(source: Source) -> str | None:
    """Why the outputs cannot be cached: an example changes, has no index, or is read in another way; or None."""
    data = source.data
    if source.extractor.maps:
        return "a loss reads the maps of an image classifier, which are not cached"
    if isinstance(data, NumberedDataset):
        return "the training data is made anew in each epoch"
    if not isinstance(data, Dataset):
        return f"the training data is a {type(data).__name__}, not a datasets.Dataset"
    if data.format["type"] == "custom":
        return "the training data is transformed when it is read"
    if source.args.accelerator_config.dispatch_batches:
        return "dispatch_batches cuts batches apart"
    return None


def _probe(source: Source) -> Mapping[str, Any]:
    return source.draw(probe_indices(len(source.data), source.lengths))


def probe_indices(examples: int, lengths: Sequence[int] | None) -> list[int]:
    """Indices of the examples that stand for all: spread over the data, and the longest."""
    spread = np.linspace(0, examples - 1, min(PROBES, examples)).astype(int)
    longest = np.argsort(lengths)[-PROBES // 2 :].tolist() if lengths else []
    return sorted({*spread.tolist(), *longest})


def _not_storable(examples: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> str | None:
    for example in examples:
        for key, value in example.items():
            if not value.isfinite().all():
                return f"the teacher's {key} is not finite"
            if not value.to(dtype).isfinite().all():
                return f"the teacher's {key} does not fit {dtype}; --teacher_cache_dtype float32 would store it"
    return None


def _key(source: Source, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What all outputs depend on, apart from the device and library versions."""
    config = source.teacher.config.to_diff_dict()
    collated = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if "input_ids" in collated:
        collated = {name: collated[name] for name in source.input_names if name in collated}
    kind = type(source.teacher)
    own = {} if kind.__module__.startswith("transformers.") else {"class": f"{kind.__module__}.{kind.__qualname__}"}
    return own | {
        "weights": weights_digest(source.teacher),
        "config": {
            key: str(value) for key, value in config.items() if key not in ("_name_or_path", "transformers_version")
        },
        "data": data_digest(source.inputs),
        "collated": digest({name: value.tolist() for name, value in collated.items()}),
        "computed in": source.precision,
    }


def _missing(source: Source, cache: TeacherCache) -> Missing:
    """What no file holds; each rank looks for its part of the shards."""
    args = source.args
    missing, reason = {}, None
    try:
        missing = cache.missing(range(args.process_index, cache.count, args.world_size))
    except UserError as error:
        reason = str(error)
    _stop_if(reason, source.folder)
    return dict(sorted(gather_object([*missing.items()])))


def _too_short(source: Source) -> str | None:
    """Why training runs the teacher no more often than filling the cache would, or None."""
    args = source.args
    if args.tokens_per_batch is None and source.share is None:
        rows = args.train_batch_size * args.world_size
        epoch = (len(source.data) + (0 if args.dataloader_drop_last else rows - 1)) // rows
    else:
        epoch = source.batches()
    batches = source.readers * math.ceil(args.num_train_epochs * epoch)
    if args.max_steps > 0:
        batches = source.readers * args.max_steps * args.gradient_accumulation_steps
    if source.folder is None and source.share is not None and batches * source.share < epoch:
        return f"training draws {batches * source.share / epoch:.2g} documents for each one that a cache would take"
    if batches < epoch:
        return f"training ends after {batches} of an epoch's {epoch} batches"
    if source.folder is None and batches == epoch:
        return "one epoch gains nothing from it; --teacher_cache FOLDER would store them for other runs"
    return None


def _reserve(source: Source, cache: TeacherCache, missing: Missing) -> str | None:
    """Make the folder on the first rank, and room for what is missing; why it cannot be written, or None.

    Only what ``auto`` wrote is ever evicted, and only for ``auto``: a folder that the user named is left alone.
    """

    def prepare() -> str | None:
        try:
            reason = None
            if source.folder is None:
                reason = make_room(cache.folder, cache.outputs, cache.bytes_of(missing), total_limit(), cache.hold)
            if reason is None:
                cache.prepare()
        except (OSError, UserError) as error:
            reason = f"not a folder that can be made ({getattr(error, 'strerror', error)})"
        return reason

    reason = from_first_rank(prepare, source.args)
    began = time.monotonic()
    while not reason and not cache.hold() and time.monotonic() - began < SHARED_SECONDS:
        time.sleep(1)
        with suppress(OSError), os.scandir(cache.folder.parent) as listed:  # has NFS look again
            list(listed)
    if not reason and not cache.hold():
        reason = "process 0 made the folder, this one does not see it: expected one that all machines share"
    return reason
