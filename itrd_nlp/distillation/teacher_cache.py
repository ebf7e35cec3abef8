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

from itrd_nlp.distillation.alignment import WORDS
from itrd_nlp.distillation.cache_folders import announce
from itrd_nlp.distillation.feature_extractor import PADDING_LOGIT, FeatureExtractor
from itrd_nlp.distillation.folder_locks import Lock, lock_in_use
from itrd_nlp.distillation.pooling import real_tokens, token_mask
from itrd_nlp.distillation.shards import keep_if_intact, shard_files, write_shard
from itrd_nlp.losses.base import INDEX, SPAN_HEADS, Representation
from itrd_nlp.utils.batches import MULTIPLE, token_batches
from itrd_nlp.utils.errors import DamagedError, UserError
from itrd_nlp.utils.hashing import digest
from itrd_nlp.utils.io import read_json, write_json

VERSION = 3  # of the files: part of the key
# of a file: a killed pass loses those that it was writing
SHARD_EXAMPLES, SHARD_TOKENS = 4096, 16384  # at most
SHARDS = 4096  # at most; a larger data set has more examples in each
DAY = 86400  # seconds
STORED = "teacher"  # entry of a batch: the cached outputs of its examples

Missing = Mapping[int, Sequence[str]]  # number of a shard -> the outputs that it lacks


class TeacherCache:
    """A folder for one teacher and its texts, with a folder of shards for each output; safe for several runs.

    An output is a layer as it is pooled, or the logits of a head. Runs that need other outputs add them to the same
    folder, so that a layer is computed once, whatever student it is for. A pass that was killed goes on after the last
    complete shard. The folder is named by ``key``, which must therefore hold whatever all outputs depend on. Outputs
    are stored as rows, with the number of rows of each example beside them: one for a pooled layer or the logits of a
    classifier, one for each token of a span head, up to 32 for ``tokens:32``.

    Args:
        root: holds one folder for each key.
        key: JSON values that decide the outputs: weights, data, precision.
        outputs: what this run reads: name -> estimated bytes.
        examples: how many the data has.
        tokens: how many all examples have together.
        dtype: of the stored numbers.
    """

    def __init__(
        self,
        root: Path,
        key: Mapping[str, Any],
        outputs: Mapping[str, int],
        examples: int,
        tokens: int,
        dtype: torch.dtype,
    ):
        self.outputs, self.examples, self.dtype = dict(outputs), examples, dtype
        self.size = sum(outputs.values())
        by_tokens = SHARD_TOKENS * examples // max(1, tokens)
        self.shard = max(1, min(SHARD_EXAMPLES, by_tokens), -(-examples // SHARDS))  # examples of a shard
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
        """Folders of the same teacher and data in files of another version."""
        folders = []
        for path in self.folder.parent.glob("*/key.json"):
            with suppress(OSError, DamagedError):
                other = read_json(path)
                same = all(other.get(name) == self.key.get(name) for name in ("weights", "data", "dtype"))
                if same and other.get("version") != VERSION:
                    folders.append(path.parent)
        return folders

    def missing(self, numbers: Iterable[int]) -> dict[int, list[str]]:
        """The outputs that the shards ``numbers`` lack, by header and size of files; damaged files are removed.

        Raises:
            UserError: a damaged file that cannot be removed.
        """
        files = {output: shard_files(self.folder / output) for output in self.outputs}
        missing = {
            number: [
                output
                for output in self.outputs
                if number not in files[output] or not keep_if_intact(files[output][number])
            ]
            for number in sorted(numbers)
        }
        return {number: outputs for number, outputs in missing.items() if outputs}

    def prepare(self) -> None:
        """Make the folders, with the key beside them; remove day-old files of killed passes."""
        for output in self.outputs:
            (self.folder / output).mkdir(parents=True, exist_ok=True)
        for path in self.folder.rglob("*.tmp"):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink(missing_ok=True)
        announce(self.folder, self.outputs)
        write_json(self.folder / "key.json", self.key)

    def bytes_of(self, missing: Missing) -> int:
        """Estimated bytes of what is missing."""
        return sum(self.outputs[output] for outputs in missing.values() for output in outputs) // self.count

    def is_complete(self) -> bool:
        """Whether a file is there for each shard of each output."""
        return all(len(shard_files(self.folder / output)) == self.count for output in self.outputs)

    def fill(
        self,
        missing: Missing,
        draw: Callable[[Sequence[int]], Mapping[str, Tensor]],
        forward: Callable[[Mapping[str, Tensor]], Representation],
        extractor: FeatureExtractor,
        lengths: Sequence[int] | None,
        budget: int,
        show: bool = True,
    ) -> None:
        """Run the teacher on the examples of shards that lack outputs, and write those.

        Args:
            draw: the batch of the examples with these indices.
            forward: the teacher's representation of a batch, pooled as it is stored.
            extractor: how the teacher is read.
            lengths: tokens of each example, where known.
            budget: tokens of a batch, padding included; an example of unknown length counts as ``batches.MULTIPLE``.
            show: a progress bar.

        Raises:
            UserError: an output that ``dtype`` cannot hold, or a folder that cannot be written.
        """
        shards = {n: range(n * self.shard, min(self.examples, (n + 1) * self.shard)) for n in missing}
        total = sum(map(len, shards.values()))
        with tqdm(total=total, desc="Caching teacher outputs", unit="example", disable=not show) as progress:
            for number, examples in shards.items():
                outputs = [name for name in missing[number] if number not in shard_files(self.folder / name)]
                if not outputs:  # another run was faster
                    progress.update(len(examples))
                    continue
                rows: list[dict[str, Tensor]] = [{}] * len(examples)
                for indices in token_batches([lengths[i] if lengths else MULTIPLE for i in examples], budget):
                    batch = draw([examples[i] for i in indices])
                    for i, tensors in zip(indices, split_rows(forward(batch), batch, extractor), strict=True):
                        rows[i] = {name: tensors[name].to("cpu", self.dtype) for name in outputs}
                    progress.update(len(indices))
                for name in outputs:
                    self._write(name, number, [example[name] for example in rows])

    def _write(self, output: str, number: int, examples: Sequence[Tensor]) -> None:
        rows = torch.cat(list(examples))
        if not rows.isfinite().all():
            raise UserError(
                f"the teacher's {output} does not fit {self.dtype}: expected finite numbers; set "
                "--teacher_cache_dtype float32, or --teacher_cache off"
            )
        mode = (self.folder / "key.json").stat().st_mode & 0o777  # safetensors hides its files from other users
        counts = torch.tensor([len(example) for example in examples])
        write_shard(self.folder / output, number, {"rows": rows, "counts": counts}, mode)

    @cached_property
    def _shards(self) -> dict[str, list[tuple[Tensor, np.ndarray]]]:
        """For every output and shard: the rows, mapped into memory, and the index of each example's first row."""
        shards: dict[str, list[tuple[Tensor, np.ndarray]]] = {}
        for output in self.outputs:
            files = shard_files(self.folder / output)
            tensors = [load_file(files[number]) for number in range(self.count)]
            shards[output] = [(t["rows"], np.concatenate([[0], t["counts"].cumsum(0).numpy()])) for t in tensors]
        return shards

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The stored outputs of the examples at ``indices``: for each its rows, one example after the other."""
        parts: dict[str, list[Tensor]] = {output: [] for output in self.outputs}
        for output, shards in self._shards.items():
            for index in indices:
                rows, starts = shards[index // self.shard]
                i = index % self.shard
                parts[output].append(rows[starts[i] : starts[i + 1]])
        return {output: torch.cat(rows) for output, rows in parts.items()}


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
    representation: Representation, batch: Mapping[str, Tensor], extractor: FeatureExtractor
) -> list[dict[str, Tensor]]:
    """A batch's representation as one dict of rows for each example, by output; padding is left out.

    Args:
        representation: pooled as ``extractor.stored``.
    """
    mask = representation.mask
    examples = len(next(iter(batch.values())))
    parts: dict[str, Sequence[Tensor]] = {}
    masked = "attention_mask" in batch  # without it all examples have equally many samples
    for head, value in representation.logits.items():
        if head in SPAN_HEADS and mask is not None:
            parts[head] = value[mask].split(mask.sum(1).tolist())
        else:
            parts[head] = value.split(1 if len(value) == examples else real_tokens(batch).sum(1).tolist())
    for output, value in zip(extractor.feature_outputs, representation.features, strict=True):
        samples = extractor.stored.samples(batch).tolist() if masked else len(value) // examples
        parts[output] = value.split(samples)
    for output, value in zip(extractor.attention_outputs, representation.attention, strict=True):
        tokens = batch["attention_mask"].sum(1).tolist() if masked else len(value) // examples
        parts[output] = value.split(tokens)
    return [{output: values[i] for output, values in parts.items()} for i in range(examples)]


def join_rows(stored: Mapping[str, Tensor], batch: Mapping[str, Tensor], extractor: FeatureExtractor) -> Representation:
    """The teacher's representation of a batch, from its stored rows: the opposite of :func:`split_rows`."""
    mask = token_mask(batch)
    logits = {head: stored[head] for head in extractor.heads}
    for head, value in logits.items():
        if head in SPAN_HEADS and mask is not None:
            padded = torch.full(mask.shape, PADDING_LOGIT, device=mask.device)
            logits[head] = padded.masked_scatter(mask, value.float())
        elif WORDS in batch:  # all real tokens, where losses compare the first one of each word
            logits[head] = value[batch[WORDS][real_tokens(batch)].bool()]
    features = tuple(stored[output] for output in extractor.feature_outputs)
    if extractor.stored.kind != extractor.pooling.kind and mask is not None:  # all tokens, where losses see real ones
        real = real_tokens(batch)[mask]
        features = tuple(x[real] for x in features)
    return Representation(
        logits, features, mask, attention=tuple(stored[output] for output in extractor.attention_outputs)
    )


def size_of(
    probes: Sequence[Mapping[str, Tensor]],
    examples: int,
    lengths: Sequence[int] | None,
    extractor: FeatureExtractor,
    itemsize: int,
) -> dict[str, int]:
    """Bytes of each output of all examples, judged by a few: an upper bound, without the headers of files.

    Args:
        probes: the rows of a few examples.
        examples: how many the data has.
        lengths: tokens of each example, where known.
        itemsize: bytes of a stored number.
    """
    sizes = {}
    for output in probes[0]:
        most = max(len(probe[output]) for probe in probes)
        if most == 1:
            rows = examples
        elif lengths is None:
            rows = examples * most
        else:
            sampled = output in extractor.feature_outputs and extractor.stored.count
            rows = sum(min(sampled or length, length) for length in lengths)
        sizes[output] = rows * probes[0][output][:1].numel() * itemsize + examples * 8
    return sizes
