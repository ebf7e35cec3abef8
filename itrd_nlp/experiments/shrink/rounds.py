"""The rounds of a search: costs before training, a short training of all, whole trainings of a few."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from itrd_nlp.distillation.layers import layer_pairs
from itrd_nlp.experiments.compare import INPUTS, Run, compare
from itrd_nlp.experiments.evaluation import scored_task
from itrd_nlp.experiments.finished import FINISHED
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.run import load_teacher
from itrd_nlp.experiments.scoring import Scores, evaluate_in_fp32, evaluate_once, in_fp32, scoring_versions
from itrd_nlp.experiments.shrink.announcement import announce
from itrd_nlp.experiments.shrink.deployment import Bench, Cost, deploy, deploy_teacher, measure_untrained, share_kept
from itrd_nlp.experiments.shrink.report import why_no_student
from itrd_nlp.experiments.shrink.request import SHORT_SHARE, Request
from itrd_nlp.experiments.shrink.search import Candidate, Goal, Trial, choose, frontier, next_student, reason
from itrd_nlp.experiments.tasks import tokenised_task
from itrd_nlp.experiments.train import ensure_trained
from itrd_nlp.experiments.trainings import Training
from itrd_nlp.models.onnx_model import FILES, OnnxModel
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.record import Record
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.hashing import data_digest, digest, file_digest, first_damage
from itrd_nlp.utils.io import make_folder, read_json, write_json
from itrd_nlp.utils.modeling import parameter_count, size_mib

logger = logging.getLogger(__name__)

SECONDS = "seconds.json"  # in the output folder: how long all calls took


class Search:
    """One search; what it has finished it reads from its output folder."""

    def __init__(self, request: Request, goal: Goal, candidates: Sequence[Candidate]):
        self.request, self.goal, self.output = request, goal, request.output
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self.run_args, self.training_args = request.arguments(*request.student(candidates[0]))
        if self.training_args.world_size > 1:
            raise UserError(
                f"itrd shrink on {self.training_args.world_size} processes: expected one; start it without accelerate "
                "launch, and choose a GPU with CUDA_VISIBLE_DEVICES"
            )
        path = self.output / SECONDS
        self.started, self.seconds_before = time.perf_counter(), read_json(path)["seconds"] if path.is_file() else 0.0
        self.trials: dict[str, Trial] = {}
        self.records: dict[str, Record] = {}  # of the short trainings
        self.whole: dict[str, Record] = {}  # of the others
        self.deployed: dict[str, dict[str, Any]] = {}

    def check(self) -> None:
        """Raise :class:`UserError` for models and data that would be refused once something has been trained."""
        if self.request.test_file is not None:
            self._task(self.request.test_file)
        model, _ = self._source
        for layers in {each.layers for each in self.candidates.values()}:
            layer_pairs(self.training_args.layer_map, self.request.config.num_hidden_layers, layers)
        for narrow in {each.hidden_size: each for each in self.candidates.values() if each.hidden_size}.values():
            run_args, _ = self.request.arguments(*self.request.student(narrow._replace(vocabulary=None)))
            try:
                make_student(run_args.student, self.task, model, self.training_args.seed, trial=True)
            except UserError as error:
                width = self.request.config.hidden_size
                raise UserError(f"{error}; to try no narrower students: --hidden_sizes {width}") from None

    def run(self) -> dict[str, Any]:
        """Run what is missing, and return the record of the search."""
        costs = self.costs
        allowed = [name for name, cost in costs.items() if self.goal.fits(cost.mib, cost.speedup)]
        if not allowed:
            raise UserError(why_no_student(self.goal, costs))
        announce(self.request, self.candidates, costs, allowed)
        if len(allowed) > 1:
            self._train_shortly(allowed)
        self.trials = {name: Trial(costs[name].mib, costs[name].speedup, self._early(name)) for name in allowed}
        names = frontier(self.trials) or allowed
        while name := next_student(names, self.trials, self.goal):
            self._train_wholly(name)
        chosen, met = choose(self.trials, self.goal)
        (card,) = compare([self._run_of(chosen, baseline=True, latency=True)])  # its table is that of the model card
        test = None if self.request.test_file is None else self._test(chosen)
        rows = [self._row(name, cost, names, chosen) for name, cost in costs.items()]
        return {
            "chosen": chosen,
            "met": met,
            "goal": self.goal._asdict(),
            "metric": self.metric,
            "teacher": self._teacher_row(costs, card),
            "candidates": rows,
            "baseline": card.metrics["baseline"][self.metric],
            "baseline_teacher": card.metrics["teacher"][self.metric],  # scored in the same precision
            "baseline_trained": "baseline" in card.seconds,
            "test": test,
            "examples": self.task.eval_examples,
            "seed": self.training_args.seed,
            "threads": self.threads,
            "seconds": self._lap(),
            **{name: getattr(card, name) for name in ("device", "versions", "commit", "dirty")},
        }

    def _lap(self) -> float:
        """Write down the seconds of all calls until now, and return them."""
        seconds = self.seconds_before + time.perf_counter() - self.started
        write_json(self.output / SECONDS, {"seconds": seconds})
        return seconds

    @property
    def threads(self) -> int:
        """Threads of each timed forward pass."""
        return self.request.threads or torch.get_num_threads()

    @cached_property
    def task(self) -> Task:
        """The task as the teacher is scored on it."""
        return tokenised_task(*self.request.arguments("--student={from: teacher}"))

    @property
    def metric(self) -> str:
        """The one that counts: the last in tables."""
        return self.task.metric_names[-1]

    @cached_property
    def _source(self) -> tuple[PreTrainedModel | None, Training | None]:
        """The model that was named, and how it becomes the teacher; None where it is one."""
        return load_teacher(self.run_args, self.training_args, self.task)

    @cached_property
    def teacher(self) -> str:
        """Folder or Hub id of the teacher, which is fine-tuned first where it has no head."""
        model, tuning = self._source
        del self._source  # training needs the memory more
        if model is None or tuning is None:
            return self.request.model
        ensure_trained(model, tuning, self.task, "teacher")
        self._lap()
        return str(tuning.folder)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What each student costs; measured once."""
        path = self.output / f"costs-{self.threads}-threads.json"
        costs = read_json(path) if path.is_file() else {}
        if missing := [candidate for name, candidate in self.candidates.items() if name not in costs]:
            logger.info(f"[shrink] measuring {len(missing)} students before they are trained")
            teacher = self._source[0]
            assert teacher is not None  # a search has no outputs in a file
            measured = measure_untrained(self.request, missing, teacher)
            costs |= {name: cost._asdict() for name, cost in measured.items()}
            write_json(path, costs)
            self._lap()
        return {name: Cost(**costs[name]) for name in self.candidates}

    def _run_of(self, name: str, *, short: bool = False, **options: bool) -> Run:
        return self.request.run_of(self.candidates[name], self.teacher, short=short, **options)

    def _train_shortly(self, names: Sequence[str]) -> None:
        def note(run: Run, record: Record) -> None:
            name = str(run.run_args.label)
            self._check_teacher(record)  # after the first one
            self.records[name] = record
            self._lap()

        logger.info(f"[shrink] {100 * SHORT_SHARE:g} % of the training of {len(names)} students")
        compare([self._run_of(name, short=True) for name in names], unfair=True, on_record=note)

    def _check_teacher(self, record: Record) -> None:
        score = record.metrics["teacher"][self.metric]
        if score <= 0:
            raise UserError(
                f"the teacher's {self.metric} is {score:.2f}: expected one above 0; take a model that was trained for "
                "this task"
            )

    def _early(self, name: str) -> float | None:
        """Share of the teacher's score after the short training; None where there was none."""
        if name not in self.records:
            return None
        scores = self.records[name].metrics
        return scores["student"][self.metric] / scores["teacher"][self.metric]

    def _train_wholly(self, name: str) -> None:
        """Train a student to the end, deploy it, and note what it keeps."""
        logger.info(f"[shrink] {name}: the whole training")
        run = self._run_of(name)
        student = run.record.parent / "student"
        finished = student / FINISHED
        is_intact = finished.is_file() and first_damage(student, read_json(finished)["files"]) is None
        if not is_intact:  # the record alone is not enough
            (run.record.parent / INPUTS).unlink(missing_ok=True)
        (record,) = compare([run])
        self._check_teacher(record)
        self.whole[name] = record
        weights = digest(read_json(finished)["files"])
        enough = self.goal.keep * self.teacher_scores.metrics[self.metric]

        def export_and_score() -> dict[str, Any]:
            task = scored_task(run.run_args, run.training_args)
            folder = self.output / "deployed" / name
            bench = Bench(task, run.training_args, self._load_teacher(), self.request.threads)
            return deploy(bench, student, folder, self.costs[name], self.goal, enough)

        inputs: dict[str, Any] = {"weights": weights, "validation data": record.digests["validation data"]}
        inputs |= {"enough": enough, **{name: getattr(self.goal, name) for name in ("max_mib", "min_speedup")}}
        inputs["threads"] = self.threads
        deployed = self._once(f"{name}.json", inputs, export_and_score)
        shares = share_kept(record, student=_scores(deployed), teacher=self.teacher_scores)
        self.deployed[name] = {**deployed, **shares}
        costs = {key: deployed[key] for key in ("mib", "speedup")}
        self.trials[name] = self.trials[name]._replace(kept=shares["kept"], **costs)
        logger.info(f"[shrink] {name}: keeps {100 * shares['kept']:.1f} % in {deployed['mib']:.1f} MiB")
        self._lap()

    @cached_property
    def teacher_scores(self) -> Scores:
        """The teacher's in fp32, as of students that are deployed: those in records are of the training's precision."""
        return self._score_teacher(self.task)

    def _score_teacher(self, task: Task) -> Scores:
        return evaluate_once(self._load_teacher(), self.run_args, in_fp32(self.training_args), task)

    def _load_teacher(self) -> PreTrainedModel:
        return load_model(self.teacher, self.task, self.training_args.seed)[0]

    def _task(self, validation_file: str, *words: str, teacher: str | None = None) -> Task:
        """The task on other data; a teacher that has been trained says which classes there are."""
        return scored_task(*self.request.arguments(*words, f"--validation_file={validation_file}", teacher=teacher))

    def _test(self, name: str) -> dict[str, Any]:
        """What the chosen student keeps on the test file."""
        file = str(self.request.test_file)
        of_teacher = self._task(file, "--student={from: teacher}", teacher=self.teacher)
        model_file = self.output / "deployed" / name / FILES[self.deployed[name]["form"]]

        def score() -> dict[str, Any]:
            of_student = self._task(file, *self.request.student(self.candidates[name]), teacher=self.teacher)
            teacher = self._score_teacher(of_teacher)
            student = evaluate_in_fp32(OnnxModel(model_file), self.training_args, of_student)
            shares = share_kept(self.whole[name], student=student, teacher=teacher)
            return {**shares, "examples": of_teacher.eval_examples, "teacher_score": teacher.metrics[self.metric]}

        inputs = {"model": file_digest(model_file), "test data": data_digest(of_teacher.eval_dataset)}
        return self._once(f"{name}-test.json", inputs, score)

    def _once(self, file: str, inputs: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What an earlier call measured for the same inputs and kept in a file, or what ``measure`` returns now."""
        path = self.output / "deployed" / file
        values = read_json(path) if path.is_file() else {}
        inputs = {**inputs, "versions": scoring_versions(self.request.task)}
        if any(values.get(name) != value for name, value in inputs.items()):
            make_folder(path.parent)
            path.unlink(missing_ok=True)  # a kill must not leave it beside what is measured now
            values = {**measure(), **inputs}
            write_json(path, values)
        return values

    def _row(self, name: str, cost: Cost, names: Sequence[str], chosen: str) -> dict[str, Any]:
        """What is known of a student."""
        deployed = self.deployed.get(name)
        row = {"name": name, **self.candidates[name]._asdict(), **cost._asdict()}
        row["early"] = self.records[name].metrics["student"][self.metric] if name in self.records else None
        row |= dict.fromkeys(("score", "kept", "kept_low", "form"))
        if deployed is not None:
            known = (*Cost._fields, "score", "kept", "kept_low", "form")
            row |= {key: deployed[key] for key in known if key in deployed}  # earlier versions kept less
        return {**row, "note": reason(name, names, self.trials, self.goal, chosen)}

    def _teacher_row(self, costs: Mapping[str, Cost], record: Record) -> dict[str, Any]:
        """What is known of the teacher."""
        model = self._load_teacher()
        name = Path(self.request.model).name if Path(self.request.model).is_dir() else self.request.model
        row = {"model": name, "parameters": parameter_count(model), "mib": size_mib(model)}
        row["ms"] = statistics.median(cost.ms * cost.speedup for cost in costs.values())
        row["score"] = self.teacher_scores.metrics[self.metric]
        bench = Bench(self.task, self.training_args, model, self.request.threads)
        inputs: dict[str, Any] = {name: record.digests.get(name) for name in ("teacher", "validation examples")}
        inputs["threads"] = self.threads
        folder = self.output / "deployed" / "teacher"
        try:
            int8 = self._once("teacher.json", inputs, lambda: deploy_teacher(bench, folder))
        except UserError as error:
            logger.warning(f"[shrink] the teacher itself in int8 is not shown: {error}")
            return row
        cost = {name: int8[name] for name in Cost._fields if name in int8}
        shares = share_kept(record, student=_scores(int8), teacher=self.teacher_scores)
        return {**row, "int8": {**cost, **shares}}


def _scores(values: Mapping[str, Any]) -> Scores:
    """The scores among the values that were kept in a file."""
    return Scores(**{name: values[name] for name in Scores._fields})
