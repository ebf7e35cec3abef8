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
from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.folder_locks import Lock, lock_in_use
from itrd_nlp.distillation.shards import CacheError, Listing, keep_if_intact, shard_files, write_shard
from itrd_nlp.distillation.stored_rows import split_rows
from itrd_nlp.losses.base import INDEX, Representation
from itrd_nlp.utils.batches import token_batches
from itrd_nlp.utils.errors import DamagedError
from itrd_nlp.utils.hashing import digest
from itrd_nlp.utils.io import paths_below, read_json, write_json
from itrd_nlp.utils.modeling import PAD_MULTIPLE

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
        missing: dict[int, list[str]] = {}
        for number in sorted(numbers):
            for output, paths in files.items():
                if number not in paths or not keep_if_intact(paths[number]):
                    missing.setdefault(number, []).append(output)
        return missing

    def prepare(self) -> None:
        """Make the folders, with the key beside them; remove day-old files of killed passes."""
        for output in self.outputs:
            (self.folder / output).mkdir(parents=True, exist_ok=True)
        for path in paths_below(self.folder):
            if ".tmp" in path.name:  # ours, and those of safetensors
                with suppress(FileNotFoundError):  # another run has just renamed it
                    if time.time() - path.stat().st_mtime > DAY:
                        path.unlink()
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
            forward: the teacher's representation of a batch, pooled as ``extractor`` stores it.
            lengths: tokens of each example, where known.
            budget: tokens of a batch, padding included; an example of unknown length counts as ``PAD_MULTIPLE``.
            show: a progress bar.

        Raises:
            CacheError: an output that ``dtype`` cannot hold, or a folder that cannot be written.
        """
        shards = {n: range(n * self.shard, min(self.examples, (n + 1) * self.shard)) for n in missing}
        total = sum(map(len, shards.values()))
        listing = Listing(self.folder / output for output in self.outputs)
        with tqdm(total=total, desc="Caching teacher outputs", unit="example", disable=not show) as progress:
            for number, examples in shards.items():
                outputs = [name for name in missing[number] if not listing.holds(self.folder / name, number)]
                if not outputs:  # another run was faster
                    progress.update(len(examples))
                    continue
                rows: list[dict[str, Tensor]] = [{}] * len(examples)
                for indices in token_batches([lengths[i] if lengths else PAD_MULTIPLE for i in examples], budget):
                    batch = draw([examples[i] for i in indices])
                    on_cpu = self._on_cpu(forward(batch))  # at once: a GPU would wait for each example's copy
                    for i, tensors in zip(indices, split_rows(on_cpu, batch, extractor), strict=True):
                        rows[i] = {name: tensors[name] for name in outputs}
                    progress.update(len(indices))
                for name in outputs:
                    self._write(name, number, [example[name] for example in rows])

    def _on_cpu(self, outputs: Representation) -> Representation:
        """A teacher's outputs on the CPU, in the precision in which they are stored."""
        mask = None if outputs.mask is None else outputs.mask.cpu()
        return outputs.map(lambda x: x.to("cpu", self.dtype))._replace(mask=mask)

    def _write(self, output: str, number: int, examples: Sequence[Tensor]) -> None:
        rows = torch.cat(list(examples))
        if not rows.isfinite().all():
            advice = "" if self.dtype == torch.float32 else "; --teacher_cache_dtype float32 would store it"
            raise CacheError(f"the teacher's {output} does not fit {self.dtype}{advice}")
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

    def map_files(self) -> None:
        """Map all files into memory now; :meth:`read` does it where nobody has."""
        _ = self._shards

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
