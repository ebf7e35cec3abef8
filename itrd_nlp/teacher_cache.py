"""What the teacher says about each training example: computed once, kept on disk, memory-mapped."""

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
from tqdm.auto import tqdm

from itrd_nlp.durable import file_digest, move, write_json
from itrd_nlp.errors import UserError, first_line
from itrd_nlp.plan import digest
from itrd_nlp.pooling import Pooling, real_tokens
from itrd_nlp.representation import SPAN_HEADS, Representation
from itrd_nlp.sampling import MULTIPLE, token_batches

VERSION = 1  # of the files: part of the key
SHARD_EXAMPLES, SHARD_BYTES = 4096, 64 * 2**20  # of a file at most: what a killed pass loses


class TeacherCache:
    """A folder of shards, each with what the teacher says about the same number of examples; safe for several runs.

    A shard is a safetensors file that carries its own digest in its name and appears under that name when it is whole:
    a pass that was killed goes on where it stopped, and a damaged file is noticed, named and made again. The folder is
    named by ``key``, so that whatever the answers depend on must be in it. Every tensor is stored as rows, with the
    number of rows of each example beside it: one for a pooled layer or the logits of a classifier, one for each token
    of a span head, up to 32 for ``tokens:32``.

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}  # workers map the files anew

    def missing(self, numbers: Iterable[int], say: Callable[[str], None] = print) -> list[int]:
        """Those of the shards ``numbers`` that are not there whole; a damaged file is named and removed."""
        found = self._files()
        lacking = [number for number in numbers if number not in found]
        for number in set(numbers) & set(found):
            path = found[number]
            with suppress(FileNotFoundError):  # another run has removed it
                if file_digest(path).startswith(path.stem.partition("-")[2]):
                    continue
                say(f"{path} is damaged: made again")
                path.unlink()
            lacking.append(number)
        return sorted(lacking)

    def prepare(self) -> None:
        """Make the folder, with the key beside the shards; what killed passes left behind is removed after a day."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink(missing_ok=True)
        write_json(self.folder / "key.json", self.key)

    def prepared(self) -> bool:
        """Whether the folder is there, on this machine too."""
        return (self.folder / "key.json").is_file()

    def whole(self) -> bool:
        """Whether a file is there for each shard."""
        return len(self._files()) == self.count

    def _files(self) -> dict[int, Path]:
        return {int(path.name.partition("-")[0]): path for path in sorted(self.folder.glob("*.safetensors"))}

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
        try:
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
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"teacher cache {self.folder}: {first_line(error)}; name another with --teacher_cache"
            ) from None
        finally:
            progress.close()

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
        save_file(tensors, aside)
        aside.chmod((self.folder / "key.json").stat().st_mode & 0o777)  # safetensors hides its files from other users
        move(aside, self.folder / f"{number:06d}-{file_digest(aside)[:16]}.safetensors")

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
    for tap, value in enumerate(representation.attention):
        tokens = batch["attention_mask"].sum(1).tolist() if masked else len(value) // examples
        parts[f"attention.{tap}"] = value.split(tokens)
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
