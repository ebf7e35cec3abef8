"""One pass of the teacher for several trainings, which then find all that they read of it in the cache."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.teacher_outputs import cache_teacher_outputs, sharing_key
from itrd_nlp.experiments.config import RunArguments
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.output_folder import SAME_RUN
from itrd_nlp.experiments.run import check_run, check_selection, load_teacher
from itrd_nlp.experiments.tasks import tokenised_task
from itrd_nlp.experiments.train import build_trainer, ensure_trained
from itrd_nlp.experiments.trainings import Training, without_publishing
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.trainer import ITRDTrainer
from itrd_nlp.utils.ranks import from_first_rank, log_first

logger = logging.getLogger(__name__)


@dataclass
class _Pass:
    """What makes the trainer that runs the teacher, and what it reads for all."""

    build: Callable[[], ITRDTrainer]
    extractor: FeatureExtractor
    readers: int = 1

    def join(self, other: "_Pass") -> None:
        self.extractor = self.extractor.union(other.extractor)
        self.readers += other.readers

    def run(self) -> None:
        trainer = self.build()  # anew: a trainer that was built since may have set another precision for all
        log_first(logger, trainer.args, f"[teacher cache] one pass for {self.readers} students")
        trainer.teacher_extractor = self.extractor
        cache = cache_teacher_outputs(trainer.teacher_source()._replace(readers=self.readers))
        if cache is not None:
            cache.release()


def cache_for_all(runs: Sequence[tuple[RunArguments, ITRDArguments]]) -> None:
    """Cache at once what all trainings of ``runs`` read of their teacher, which is fine-tuned first where it has to be.

    Each training would cache its own part, in a pass of its own. Features that are pooled in another way take another
    pass, and so do students whose tokenizers cut other windows. Runs of one label differ in their seeds alone.

    Raises:
        UserError: what :func:`itrd_nlp.experiments.run.run` would refuse of any of them.
    """
    distinct = [*{run_args.label: (run_args, training_args) for run_args, training_args in runs}.values()]
    planned = [(*run, task) for run, task in zip(distinct, _tasks(distinct), strict=True)]
    sources = _teachers(planned)
    loaded: tuple[Any, Task] | None = None  # what `teacher` was loaded for, which is the same for most runs
    teacher: PreTrainedModel | None = None
    passes: dict[tuple[str, str], _Pass] = {}  # by what they depend on, and the pooling of their features, if any
    for (run_args, training_args, task), source in zip(planned, sources, strict=True):
        if not training_args.losses or training_args.teacher_cache == "off" or source is None:
            continue
        if loaded != (source, task.for_teacher):
            teacher = load_model(source, task.for_teacher, training_args.seed)[0]
            loaded = source, task.for_teacher
        student, _ = make_student(run_args.student, task, teacher, training_args.seed, trial=True)
        build = partial(build_trainer, student, teacher, without_publishing(training_args), task)
        trainer = build()
        key = sharing_key(trainer.teacher_source())
        if key is not None:
            extractor = trainer.teacher_extractor
            own = _Pass(build, extractor)
            first = passes.setdefault((key, extractor.stored.spec if extractor.module_names else ""), own)
            if first is not own:
                first.join(own)
    for key, pooling in [*passes]:
        others = [spec for other, spec in passes if other == key and spec]
        if not pooling and others:  # logits alone: any pass has them
            passes[key, others[0]].join(passes.pop((key, pooling)))
    for shared in passes.values():
        if shared.readers > 1:
            shared.run()


def _tasks(runs: Sequence[tuple[RunArguments, ITRDArguments]]) -> list[Task]:
    """The task of each run, tokenised once for those that are alike."""
    tasks: dict[str, Task] = {}
    chosen = []
    for run_args, training_args in runs:
        decides = [getattr(run_args, name) for name in SAME_RUN]
        key = json.dumps([*decides, training_args.task_weight > 0], default=str)
        if key not in tasks:
            tasks[key] = tokenised_task(run_args, training_args)
        chosen.append(tasks[key])
    return chosen


def _teachers(planned: Sequence[tuple[RunArguments, ITRDArguments, Task]]) -> list[Any]:
    """Folder or Hub id of each run's teacher, which is there then; None where the data holds its outputs."""
    sources: list[Any] = []
    untrained: dict[Path, tuple[PreTrainedModel, Training, Task]] = {}
    for run_args, training_args, task in planned:  # all are checked before anything is trained
        check_run(run_args, training_args)
        check_selection(run_args, training_args, task)
        model, tuning = load_teacher(run_args, training_args, task)
        sources.append(run_args.teacher if tuning is None else str(tuning.folder))
        if model is None or tuning is None:
            continue
        if not from_first_rank(partial(getattr, tuning, "is_finished"), training_args):
            untrained.setdefault(tuning.folder, (model, tuning, task.for_teacher))
    for model, tuning, task in untrained.values():
        ensure_trained(model, tuning, task, "teacher")
    return sources
