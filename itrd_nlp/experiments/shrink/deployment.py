"""What a student costs and scores where it runs: as ONNX with int8 weights."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from itrd_nlp.experiments.benchmark import forward_ms, torch_threads
from itrd_nlp.experiments.intervals import compare_examples, examples_of
from itrd_nlp.experiments.models import make_student
from itrd_nlp.experiments.scoring import Scores, evaluate_in_fp32
from itrd_nlp.experiments.shrink.request import Request
from itrd_nlp.experiments.shrink.search import Candidate, Goal
from itrd_nlp.experiments.tasks import build_task
from itrd_nlp.export.export import export
from itrd_nlp.export.folder import deployed_mib
from itrd_nlp.models.onnx_model import FILES, OnnxModel
from itrd_nlp.tasks.base import Task
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.training.record import Record
from itrd_nlp.utils.modeling import parameter_count, window_limit
from itrd_nlp.utils.tokenizers import save_processor

LENGTH = 128  # tokens of the one text whose latency is measured, where the teacher takes so many
REPEATS = 20
MAX_DROP = 0.5  # points that int8 may lose of a score that is not enough; what loses more stays in fp32


class Cost(NamedTuple):
    """What a student costs.

    Attributes:
        parameters: of the student in PyTorch.
        mib: of all files that are needed to run it.
        ms: median of a forward of one text.
        speedup: the teacher's median in PyTorch fp32 over that.
        tokens: of that text.
    """

    parameters: int
    mib: float
    ms: float
    speedup: float
    tokens: int = LENGTH


class Bench(NamedTuple):
    """Where students are scored and timed beside their teacher.

    Attributes:
        task: on the data that scores them.
        arguments: of their training.
        teacher: in PyTorch.
        threads: of a timed forward; None: torch's number.
    """

    task: Task
    arguments: ITRDArguments
    teacher: PreTrainedModel
    threads: int | None

    def scores(self, model: PreTrainedModel) -> Scores:
        """The scores of a model as it is."""
        return evaluate_in_fp32(model, self.arguments, self.task)

    def cost(self, folder: Path, form: str, parameters: int) -> Cost:
        """The cost of an exported student, timed in turns with the teacher."""
        with torch_threads(self.threads):
            models = {"teacher": self.teacher.cpu().float().eval(), "student": OnnxModel(folder / FILES[form])}
            tokens = min(LENGTH, window_limit(self.teacher))
            times = forward_ms(models, tokens, 1, REPEATS)
        ms = {name: each["median"] for name, each in times.items()}
        return Cost(parameters, deployed_mib(folder, form), ms["student"], ms["teacher"] / ms["student"], tokens)


def measure_untrained(request: Request, candidates: Sequence[Candidate], teacher: PreTrainedModel) -> dict[str, Cost]:
    """The cost of each student before it is trained, which training does not change."""
    costs = {}
    for candidate in candidates:
        run_args, training_args = request.arguments(*request.student(candidate, init="random"))
        task = build_task(run_args, training_args.task_weight)
        student, _ = make_student(run_args.student, task, teacher, training_args.seed)
        bench = Bench(task, training_args, teacher, request.threads)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "exported"
            _export_model(student, task, folder)
            costs[candidate.name] = bench.cost(folder, "int8", parameter_count(student))
    return costs


def deploy(bench: Bench, student: Path, output: Path, untrained: Cost, goal: Goal, enough: float) -> dict[str, Any]:
    """Export a trained student and score it as it will run.

    Args:
        student: its folder.
        output: folder that takes the exported model.
        untrained: its cost in int8. It is timed again, beside its teacher, only where a part stays in fp32: training
            does not change the time of the same graph, but a busy machine may.
        goal: whose limits are kept: where a part in fp32 exceeds them, nothing is left in fp32.
        enough: the score that is asked for.

    Returns:
        JSON values: the fields of :class:`Cost`, ``metrics`` and ``examples`` as of
        :func:`itrd_nlp.experiments.scoring.evaluate`, and ``form``, such as ``int8``.
    """
    scores: dict[str, Scores] = {}  # name of an exported file -> its last ones

    def score(model: PreTrainedModel) -> Mapping[str, float]:
        scores[Path(model.name_or_path).name] = last = bench.scores(model)
        return last.metrics

    record = export(str(student), output, bench.task, score, max_drop=MAX_DROP, enough=enough)
    form, cost = record["quantisation"]["kept"], untrained
    if form != "int8" or record["quantisation"]["fp32_nodes"]:
        cost = bench.cost(output, form, record["parameters"])
        if not goal.fits(cost.mib, cost.speedup):
            export(str(student), output, bench.task, score)
            form, cost = "int8", untrained
    cost = cost._replace(mib=deployed_mib(output, form))
    return {**cost._asdict(), **scores[Path(FILES[form]).name]._asdict(), "form": form}


def deploy_teacher(bench: Bench, output: Path) -> dict[str, Any]:
    """What a teacher costs and scores in ONNX int8, as JSON values: what users would have without a student."""
    teacher = bench.teacher
    _export_model(teacher, bench.task, output)  # as it was loaded: its own folder may name another head
    cost = bench.cost(output, "int8", parameter_count(teacher))
    return {**cost._asdict(), **bench.scores(OnnxModel(output / FILES["int8"]))._asdict()}


def _export_model(model: PreTrainedModel, task: Task, output: Path) -> None:
    """Export a model that is in memory, with the task's tokenizer."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        save_processor(task.processor(model), Path(temporary))
        export(temporary, output)


def share_kept(record: Record, **scores: Scores) -> dict[str, Any]:
    """The share of the teacher's score that a student keeps, and the lower end of its 95 % interval over examples.

    Args:
        record: of a training of that student, which also scored the teacher.
        **scores: replace those of the rows ``student`` and ``teacher``.
    """
    metrics = {**record.metrics, **{row: of_row.metrics for row, of_row in scores.items()}}
    examples = {**record.examples, **{row: of_row.examples for row, of_row in scores.items()}}
    rescored = dataclasses.replace(record, metrics=metrics, examples=examples)
    _, interval = compare_examples(examples_of([rescored], "student"), examples_of([rescored], "teacher"))
    score, teacher = (metrics[row][record.metric_names[-1]] for row in ("student", "teacher"))
    if teacher <= 0:  # on a test file; of the validation file it was refused
        return {"score": score, "kept": None, "kept_low": None}
    low = None if interval is None else 1 + interval[0] / teacher
    return {"score": score, "kept": score / teacher, "kept_low": low}
