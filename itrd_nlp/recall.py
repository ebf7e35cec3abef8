"""When the teacher's answers are kept on disk, and how training reads them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn

from itrd_nlp.errors import UserError
from itrd_nlp.plan import data_digest, digest, weights_digest
from itrd_nlp.representation import Pooling
from itrd_nlp.sampling import text_lengths
from itrd_nlp.teacher_cache import TeacherCache, split_rows

if TYPE_CHECKING:
    from itrd_nlp.trainer import ITRDTrainer

ROW = "teacher_row"  # column of the training data: an example's place in the cache
STORED = "teacher"  # entry of a batch: what was stored about its examples
AUTO_LIMIT = 16 * 2**30  # bytes that `auto` takes at most
AUTO_FOLDER = Path(HF_HOME) / "itrd_nlp" / "teacher_cache"
PROBES = 8  # examples drawn twice to see whether they stay the same, and asked about to judge the size


class Recall:
    """A collator that adds to each batch of training data what the teacher said about it."""

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Tensor]], cache: TeacherCache):
        self.collator, self.cache = collator, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if ROW not in rows[0]:  # evaluation
            return dict(self.collator(rows))
        batch = self.collator([{key: value for key, value in row.items() if key != ROW} for row in rows])
        return {**batch, STORED: self.cache.read([row[ROW] for row in rows])}


def store_teacher(trainer: "ITRDTrainer", teacher: nn.Module) -> TeacherCache | None:
    """What ``teacher`` answers about the training data of ``trainer``, asked for where they are not yet on disk.

    Returns:
        The whole cache; None, after a word why, where the teacher has to be asked about every batch.

    Raises:
        UserError: the folder that was named has no room.
    """
    args, data = trainer.args, trainer.train_dataset
    draw, ask = trainer.draw, trainer.ask_teacher
    auto = args.teacher_cache == "auto"

    def say(text: str) -> None:
        if args.process_index == 0:
            print(f"[teacher cache] {text}", flush=True)

    probes = range(min(PROBES, len(data))) if isinstance(data, Dataset) else ()
    reason = _unfit(data, lambda: draw(probes)) or _ends_early(trainer)
    if reason is None:
        lengths, pooling = text_lengths(data, args.length_column_name), trainer.teacher_reader.pooling
        dtype = getattr(torch, args.teacher_cache_dtype)
        batch = draw(probes)
        size = size_of(split_rows(ask(batch), batch, pooling), len(data), lengths, pooling, dtype.itemsize)
        root = AUTO_FOLDER if auto else Path(args.teacher_cache)
        cache = TeacherCache(root, _key(trainer, teacher, batch), len(data), size, dtype)
        mine = cache.missing(range(args.process_index, cache.count, args.world_size), say)
        lacking = size * len(mine) // cache.count
        reason = no_room(root, lacking * args.world_size)
        if reason and not auto:
            raise UserError(f"teacher_cache {root}: {reason}; name a folder elsewhere, or --teacher_cache off")
        if auto and lacking and size > AUTO_LIMIT:
            reason = f"it takes {gib(size)}, above {gib(AUTO_LIMIT)}; --teacher_cache FOLDER would write it"
    reasons = [text for text in gather_object([reason]) if text]
    if reasons:
        say(f"not used: {reasons[0]}; the teacher is asked about each batch")
        return None
    say(f"{gib(size)} in {cache.folder}, {gib(lacking * args.world_size)} of it to be written")
    if mine:
        longest = max(lengths) if lengths else 1
        cache.fill(
            mine,
            draw,
            ask,
            pooling,
            lengths,
            budget=longest * args.per_device_eval_batch_size,
            show=not args.disable_tqdm,
        )
    trainer.accelerator.wait_for_everyone()
    if not cache.whole():
        raise UserError(
            f"teacher_cache {root}: parts of it are on other machines; name a folder that all of them share"
        )
    return cache


def _key(trainer: "ITRDTrainer", teacher: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """All that the answers depend on."""
    reader, config = trainer.teacher_reader, teacher.config.to_diff_dict()
    return {
        "weights": weights_digest(teacher),
        "config": {
            key: str(value) for key, value in config.items() if key not in ("_name_or_path", "transformers_version")
        },
        "data": data_digest(trainer.train_dataset),
        "collated": digest({key: value.tolist() for key, value in batch.items()}),
        "layers": reader.tap_names,
        "heads": reader.heads,
        "pooling": [reader.pooling.kind, reader.pooling.count],
        "computed in": trainer.accelerator.mixed_precision,
    }


def _ends_early(trainer: "ITRDTrainer") -> str | None:
    args = trainer.args
    seen = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps > 0 and seen < len(trainer.train_dataset):
        return f"training ends after {seen} of {len(trainer.train_dataset)} examples"
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


def _unfit(dataset: Any, draw: Callable[[], Mapping[str, Any]]) -> str | None:
    """Why the teacher's answers about a training set cannot be kept, or None.

    Args:
        dataset: the training data.
        draw: collates some of its examples, always the same ones.
    """
    if not isinstance(dataset, Dataset):
        return f"the training data is a {type(dataset).__name__}, not a datasets.Dataset"
    if dataset.format["type"] == "custom":
        return "the training data is transformed when it is read"
    first, second = draw(), draw()
    same = first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return None if same else "the training data is augmented at random"


def no_room(folder: Path, needed: int) -> str | None:
    """Why ``needed`` bytes cannot be written to ``folder``, or None."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return f"it takes {gib(needed)} and {existing} has {gib(free)} left" if needed > 0.9 * free else None


def gib(count: float) -> str:
    """Bytes for people.

    Example:
        >>> gib(3 * 2**30), gib(5 * 2**20)
        ('3.00 GiB', '5.0 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
