"""Cached teacher outputs: computed once for each training example, read again by every batch."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import tqdm

from itrd_nlp.distillation.cache_folders import announce
from itrd_nlp.distillation.feature_extractor import PADDING_LOGIT
from itrd_nlp.distillation.folder_locks import Lock, lock_in_use
from itrd_nlp.distillation.pooling import Pooling, real_tokens, token_mask
from itrd_nlp.distillation.shards import keep_if_intact, shard_files, write_shard
from itrd_nlp.losses.base import INDEX, SPAN_HEADS, Representation
from itrd_nlp.utils.batches import MULTIPLE, token_batches
from itrd_nlp.utils.errors import DamagedError, UserError
from itrd_nlp.utils.hashing import digest
from itrd_nlp.utils.io import read_json, write_json

VERSION = 2  # of the files: part of the key
SHARD_EXAMPLES, SHARD_BYTES = 4096, 64 * 2**20  # of a file at most: a killed pass loses the one that it was writing
DAY = 86400  # seconds
STORED = "teacher"  # entry of a batch: the cached outputs of its examples


class TeacherCache:
    """A folder of shards, each with the teacher's outputs for the same number of examples; safe for several runs.

    A pass that was killed goes on after the last complete shard. The folder is named by ``key``, which must therefore
    hold whatever the outputs depend on. Every tensor is stored as rows, with the number of rows of each example beside
    it: one for a pooled layer or the logits of a classifier, one for each token of a span head, up to 32 for
    ``tokens:32``.

    Args:
        root: holds one folder for each key.
        key: JSON values that decide the outputs: weights, data, layers, pooling, precision.
        examples: how many the data has.
        size: estimated bytes of all shards.
        dtype: of the stored numbers.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], examples: int, size: int, dtype: torch.dtype):
        self.examples, self.size, self.dtype = examples, size, dtype
        self.shard = max(1, min(SHARD_EXAMPLES, SHARD_BYTES * examples // size))  # examples of a shard
        self.count = -(-examples // self.shard)  # of shards
        self.key = {**key, "examples": examples, "dtype": str(dtype), "shard": self.shard, "version": VERSION}
        self.folder = root / digest(self.key)
        self.lock: Lock | None = None

    def __getstate__(self) -> dict[str, Any]:  # workers map the files anew, while this process holds the lock
        return {**{name: value for name, value in self.__dict__.items() if name != "_shards"}, "lock": None}

    def hold(self) -> bool:
        """Keep the folder from being evicted while this object lives; False where there is no folder."""
        self.lock = self.lock or lock_in_use(self.folder)
        return self.lock is not None

    def release(self) -> None:
        """Let the folder be evicted, once nothing is read any more."""
        if self.lock is not None:
            self.lock.close()
        self.lock = None

    def other_versions(self) -> list[Path]:
        """Folders of the same outputs in files of another version."""
        folders = []
        for path in self.folder.parent.glob("*/key.json"):
            with suppress(OSError, DamagedError):
                if path.parent != self.folder and digest({**read_json(path), "version": VERSION}) == self.folder.name:
                    folders.append(path.parent)
        return folders

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """The shards among ``numbers`` that have no intact file, by header and size; damaged files are removed.

        Raises:
            UserError: a damaged file that cannot be removed.
        """
        files = shard_files(self.folder)
        return [number for number in sorted(numbers) if number not in files or not keep_if_intact(files[number])]

    def prepare(self) -> None:
        """Make the folder, with the key beside the shards; remove day-old files of killed passes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink(missing_ok=True)
        announce(self.folder, self.size)
        write_json(self.folder / "key.json", self.key)

    def bytes_of(self, shards: int) -> int:
        """Estimated bytes of so many shards."""
        return self.size * shards // self.count

    def is_complete(self) -> bool:
        """Whether a file is there for each shard."""
        return len(shard_files(self.folder)) == self.count

    def fill(
        self,
        numbers: Sequence[int],
        draw: Callable[[Sequence[int]], Mapping[str, Tensor]],
        forward: Callable[[Mapping[str, Tensor]], Representation],
        pooling: Pooling,
        lengths: Sequence[int] | None,
        budget: int,
        show: bool = True,
    ) -> None:
        """Run the teacher on the examples of the shards ``numbers``, and write them.

        Args:
            draw: the batch of the examples with these indices.
            forward: the teacher's representation of a batch.
            pooling: how its features are pooled.
            lengths: tokens of each example, where known.
            budget: tokens of a batch, padding included; an example of unknown length counts as ``batches.MULTIPLE``.
            show: a progress bar.

        Raises:
            UserError: an output that ``dtype`` cannot hold, or a folder that cannot be written.
        """
        shards = {n: range(n * self.shard, min(self.examples, (n + 1) * self.shard)) for n in numbers}
        total = sum(map(len, shards.values()))
        with tqdm(total=total, desc="Caching teacher outputs", unit="example", disable=not show) as progress:
            for number, examples in shards.items():
                if number in shard_files(self.folder):  # another run was faster
                    progress.update(len(examples))
                    continue
                rows: list[dict[str, Tensor]] = [{}] * len(examples)
                for indices in token_batches([lengths[i] if lengths else MULTIPLE for i in examples], budget):
                    batch = draw([examples[i] for i in indices])
                    for i, tensors in zip(indices, split_rows(forward(batch), batch, pooling), strict=True):
                        rows[i] = {key: value.to("cpu", self.dtype) for key, value in tensors.items()}
                    progress.update(len(indices))
                self._write(number, rows)

    def _write(self, number: int, examples: Sequence[Mapping[str, Tensor]]) -> None:
        tensors = {}
        for key in examples[0]:
            rows = torch.cat([example[key] for example in examples])
            if not rows.isfinite().all():
                raise UserError(
                    f"the teacher's {key} does not fit {self.dtype}: expected finite numbers; set "
                    "--teacher_cache_dtype float32, or --teacher_cache off"
                )
            tensors[key] = rows
            tensors[f"{key}#rows"] = torch.tensor([len(example[key]) for example in examples])
        write_shard(self.folder, number, tensors)

    @cached_property
    def _shards(self) -> list[dict[str, tuple[Tensor, np.ndarray]]]:
        """For every shard and key: the rows, mapped into memory, and the index of each example's first row."""
        shards = []
        files = shard_files(self.folder)
        for number in range(self.count):
            tensors = load_file(files[number])
            keys = [key for key in tensors if f"{key}#rows" in tensors]
            starts = {key: np.concatenate([[0], tensors[f"{key}#rows"].cumsum(0).numpy()]) for key in keys}
            shards.append({key: (tensors[key], starts[key]) for key in keys})
        return shards

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The stored tensors of the examples at ``indices``: for each key their rows, one example after the other."""
        parts: dict[str, list[Tensor]] = {}
        for index in indices:
            i = index % self.shard
            for key, (rows, starts) in self._shards[index // self.shard].items():
                parts.setdefault(key, []).append(rows[starts[i] : starts[i + 1]])
        return {key: torch.cat(rows) for key, rows in parts.items()}


class IndexedCollator:
    """A collator that adds to each batch of training data its examples' indices and cached teacher outputs."""

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Tensor]], cache: TeacherCache | None):
        self.collator, self.cache = collator, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if INDEX not in rows[0]:  # evaluation
            return dict(self.collator(rows))
        indices = [row[INDEX] for row in rows]
        batch = dict(self.collator([{key: value for key, value in row.items() if key != INDEX} for row in rows]))
        batch[INDEX] = torch.tensor(indices)
        if self.cache is not None:
            batch[STORED] = self.cache.read(indices)
        return batch


def split_rows(
    representation: Representation, batch: Mapping[str, Tensor], pooling: Pooling
) -> list[dict[str, Tensor]]:
    """A batch's representation as one dict of rows for each example; padding is left out."""
    mask = representation.mask
    examples = len(next(iter(batch.values())))
    parts: dict[str, Sequence[Tensor]] = {}
    masked = "attention_mask" in batch  # without it all examples have equally many samples
    for head, value in representation.logits.items():
        if head in SPAN_HEADS and mask is not None:
            parts[head] = value[mask].split(mask.sum(1).tolist())
        else:
            parts[head] = value.split(1 if len(value) == examples else real_tokens(batch).sum(1).tolist())
    for layer, value in enumerate(representation.features):
        parts[f"features.{layer}"] = value.split(pooling.samples(batch).tolist() if masked else len(value) // examples)
    for layer, value in enumerate(representation.attention):
        tokens = batch["attention_mask"].sum(1).tolist() if masked else len(value) // examples
        parts[f"attention.{layer}"] = value.split(tokens)
    return [{key: values[i] for key, values in parts.items()} for i in range(examples)]


def join_rows(stored: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Representation:
    """The teacher's representation of a batch, from its stored rows: the opposite of :func:`split_rows`."""
    mask = token_mask(batch)
    logits = {key: value for key, value in stored.items() if not key.startswith(("features.", "attention."))}
    for head in logits:
        if head in SPAN_HEADS and mask is not None:
            padded = torch.full(mask.shape, PADDING_LOGIT, device=mask.device)
            logits[head] = padded.masked_scatter(mask, logits[head].float())
    features, attention = [
        tuple(stored[f"{kind}.{i}"] for i in range(sum(key.startswith(f"{kind}.") for key in stored)))
        for kind in ("features", "attention")
    ]
    return Representation(logits, features, mask, attention=attention)


def size_of(
    probes: Sequence[Mapping[str, Tensor]],
    examples: int,
    lengths: Sequence[int] | None,
    pooling: Pooling,
    itemsize: int,
) -> int:
    """Bytes of a cache of all examples, judged by a few: an upper bound, without the headers of files.

    Args:
        probes: the rows of a few examples.
        examples: how many the data has.
        lengths: tokens of each example, where known.
        itemsize: bytes of a stored number.
    """
    total = 0
    for key in probes[0]:
        most = max(len(probe[key]) for probe in probes)
        if most == 1:
            rows = examples
        elif lengths is None:
            rows = examples * most
        else:
            limit = pooling.count if key.startswith("features.") and pooling.count else max(lengths)
            rows = sum(min(limit, length) for length in lengths)
        total += rows * probes[0][key][:1].numel() * itemsize + examples * 8
    return total
