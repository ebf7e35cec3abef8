"""What the teacher says about each training example: computed once, kept on disk, memory-mapped."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import tqdm

from itrd_nlp.distillation.cache_folders import Lock, announce, lock_in_use
from itrd_nlp.distillation.pooling import Pooling, real_tokens
from itrd_nlp.losses.base import SPAN_HEADS, Representation
from itrd_nlp.utils.batches import MULTIPLE, token_batches
from itrd_nlp.utils.errors import DamagedError, UserError, first_line
from itrd_nlp.utils.hashing import digest, file_digest
from itrd_nlp.utils.io import move, read_json, write_json

VERSION = 2  # of the files: part of the key
DIGITS = 16  # of each checksum in a file's name
SHARD_EXAMPLES, SHARD_BYTES = 4096, 64 * 2**20  # of a file at most: what a killed pass loses


class TeacherCache:
    """A folder of shards, each with what the teacher says about the same number of examples; safe for several runs.

    A shard is a safetensors file that appears under its name when it is whole, so that a pass that was killed goes on
    where it stopped. The name carries two SHA-256 checksums, of the whole file and of its header, which says how long
    the file is: a start reads headers and sizes alone, and makes a shard again that was cut, emptied or overwritten; a
    changed number inside is found by :func:`damaged`, which reads everything. The folder is named by ``key``, so that
    whatever the answers depend on must be in it. Every tensor is stored as rows, with the number of rows of each
    example beside it: one for a pooled layer or the logits of a classifier, one for each token of a span head, up to 32
    for ``tokens:32``.

    Args:
        root: holds one folder for each key.
        key: JSON values that decide the answers: weights, data, layers, pooling, precision.
        examples: how many the data has.
        size: bytes of all shards, about.
        dtype: of the stored numbers.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], examples: int, size: int, dtype: torch.dtype):
        self.shard = max(1, min(SHARD_EXAMPLES, SHARD_BYTES * examples // size))
        self.key = {**key, "examples": examples, "dtype": str(dtype), "shard": self.shard, "version": VERSION}
        self.folder = root / digest(self.key)
        self.examples, self.dtype = examples, dtype
        self.count = -(-examples // self.shard)  # of shards
        self.size = size
        self.lock: Lock | None = None

    def __getstate__(self) -> dict[str, Any]:  # workers map the files anew, while this process keeps them
        return {**{name: value for name, value in self.__dict__.items() if name != "_shards"}, "lock": None}

    def hold(self) -> bool:
        """Keep the folder from being evicted while this object lives, unless it is not there."""
        self.lock = self.lock or lock_in_use(self.folder)
        return self.lock is not None

    def release(self) -> None:
        """Let the folder be evicted: nothing is read any more."""
        if self.lock is not None:
            self.lock.close()
        self.lock = None

    def earlier(self) -> list[Path]:
        """Folders of the same answers in files of another version."""
        found = []
        for path in self.folder.parent.glob("*/key.json"):
            with suppress(OSError, DamagedError):
                if path.parent != self.folder and digest({**read_json(path), "version": VERSION}) == self.folder.name:
                    found.append(path.parent)
        return found

    def missing(self, numbers: Iterable[int], say: Callable[[str], None] = print) -> list[int]:
        """Those of the shards ``numbers`` that are not there whole, by header and size; damaged ones are removed.

        Raises:
            UserError: a damaged file that cannot be removed.
        """
        found = self._files()
        lacking = [number for number in numbers if number not in found]
        for number in set(numbers) & set(found):
            path = found[number]
            try:
                if header_digest(path) == path.stem.rpartition("-")[2]:
                    continue
                say(f"{path} is damaged: made again")
                path.unlink()
            except FileNotFoundError:  # another run has removed it
                pass
            except OSError as error:
                raise UserError(f"{path} is damaged and cannot be removed ({first_line(error)})") from None
            lacking.append(number)
        return sorted(lacking)

    def prepare(self) -> None:
        """Make the folder, with the key beside the shards; what killed passes left behind is removed after a day."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink(missing_ok=True)
        announce(self.folder, self.size)
        write_json(self.folder / "key.json", self.key)

    def prepared(self) -> bool:
        """Whether the folder is there, on this machine too."""
        return (self.folder / "key.json").is_file()

    def whole(self) -> bool:
        """Whether a file is there for each shard."""
        return len(self._files()) == self.count

    def _files(self) -> dict[int, Path]:
        return files_of(self.folder)

    def fill(
        self,
        numbers: Sequence[int],
        draw: Callable[[Sequence[int]], Mapping[str, Tensor]],
        ask: Callable[[Mapping[str, Tensor]], Representation],
        pooling: Pooling,
        lengths: Sequence[int] | None,
        budget: int,
        show: bool = True,
    ) -> None:
        """Ask the teacher about the examples of the shards ``numbers``.

        Args:
            draw: the batch of the examples at some places.
            ask: what the teacher says about a batch.
            pooling: how its features are pooled.
            lengths: tokens of each example, where known.
            budget: tokens of a batch, padding included; an example of unknown length counts as ``sampling.MULTIPLE``.
            show: a progress bar.

        Raises:
            UserError: an answer that ``dtype`` cannot hold, or a folder that cannot be written.
        """
        places = {n: range(n * self.shard, min(self.examples, (n + 1) * self.shard)) for n in numbers}
        progress = tqdm(
            total=sum(map(len, places.values())), desc="Asking the teacher", unit="example", disable=not show
        )
        with progress:
            for number, inside in places.items():
                if number in self._files():  # another run was faster
                    progress.update(len(inside))
                    continue
                answers: list[dict[str, Tensor]] = [{}] * len(inside)
                for places_of_batch in token_batches([lengths[i] if lengths else MULTIPLE for i in inside], budget):
                    batch = draw([inside[i] for i in places_of_batch])
                    for place, answer in zip(places_of_batch, split_rows(ask(batch), batch, pooling), strict=True):
                        answers[place] = {key: value.to("cpu", self.dtype) for key, value in answer.items()}
                    progress.update(len(places_of_batch))
                self._write(number, answers)

    def _write(self, number: int, answers: Sequence[Mapping[str, Tensor]]) -> None:
        tensors = {}
        for key in answers[0]:
            rows = torch.cat([answer[key] for answer in answers])
            if not rows.isfinite().all():
                raise UserError(
                    f"the teacher's {key} does not fit {self.dtype}: expected finite numbers; set "
                    "--teacher_cache_dtype float32, or --teacher_cache off"
                )
            tensors[key] = rows
            tensors[f"{key}#rows"] = torch.tensor([len(answer[key]) for answer in answers])
        aside = self.folder / f"{number:06d}.{uuid4().hex}.tmp"
        try:
            save_file(tensors, aside)
            mode = (self.folder / "key.json").stat().st_mode & 0o777
            aside.chmod(mode)  # safetensors hides its files from other users
            name = f"{number:06d}-{file_digest(aside)[:DIGITS]}-{header_digest(aside)}.safetensors"
            move(aside, self.folder / name)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise UserError(
                f"teacher cache {self.folder}: {first_line(error)}; name another with --teacher_cache"
            ) from None

    @cached_property
    def _shards(self) -> list[dict[str, tuple[Tensor, np.ndarray]]]:
        """Of every shard and key: the rows, mapped into memory, and where the rows of each example start."""
        shards = []
        files = self._files()
        for number in range(self.count):
            tensors = load_file(files[number])
            keys = [key for key in tensors if f"{key}#rows" in tensors]
            starts = {key: np.concatenate([[0], tensors[f"{key}#rows"].cumsum(0).numpy()]) for key in keys}
            shards.append({key: (tensors[key], starts[key]) for key in keys})
        return shards

    def read(self, places: Sequence[int]) -> dict[str, Tensor]:
        """What is stored about the examples at ``places``: for each key their rows, one example after the other."""
        found: dict[str, list[Tensor]] = {}
        for place in places:
            inside = place % self.shard
            for key, (rows, starts) in self._shards[place // self.shard].items():
                found.setdefault(key, []).append(rows[starts[inside] : starts[inside + 1]])
        return {key: torch.cat(rows) for key, rows in found.items()}


def files_of(folder: Path) -> dict[int, Path]:
    """The files of a folder of cached teacher outputs by the number of their shard."""
    return {int(path.name.partition("-")[0]): path for path in sorted(folder.glob("*.safetensors"))}


def header_digest(path: Path) -> str:
    """Checksum of a safetensors file's header; empty where the file is not as long as its header says."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), size))
    try:
        ends = [values["data_offsets"][1] for key, values in json.loads(header).items() if key != "__metadata__"]
        if size != 8 + len(header) + max(ends):
            return ""
    except (ValueError, TypeError, KeyError, AttributeError):  # no header
        return ""
    return hashlib.sha256(length + header).hexdigest()[:DIGITS]


def damaged(folder: Path) -> list[Path]:
    """The files of a folder of cached teacher outputs whose content has changed since they were written: reads all."""
    files = sorted(folder.glob("*.safetensors"))
    return [path for path in files if file_digest(path)[:DIGITS] != path.stem.split("-")[1]]


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
    """What was stored about a batch as the representation that the losses compare."""
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    logits = {key: value for key, value in stored.items() if not key.startswith(("features.", "attention."))}
    for head in logits:
        if head in SPAN_HEADS and mask is not None:
            padded = torch.full(mask.shape, -1e4, device=mask.device)
            logits[head] = padded.masked_scatter(mask, logits[head].float())
    features, attention = [
        tuple(stored[f"{kind}.{i}"] for i in range(sum(key.startswith(f"{kind}.") for key in stored)))
        for kind in ("features", "attention")
    ]
    return Representation(logits, features, mask, attention=attention)
