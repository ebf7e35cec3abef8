"""Run the study of scripts/base.yaml: train what has no record yet, and keep the records; base_page.py shows them.

    python scripts/base.py [--stages STAGE ...] --test_file FILE --teacher FOLDER --train_file FILE ...

Stages are `teacher`, `rates`, those of the plan, `questions`, `test` and `deploy`, by default all of them in this
order; `test` also follows each stage that trains students. It takes any argument of `itrd distill` and continues what
was killed.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from studies import has_record, questions_of, record_path, train_missing

from itrd_nlp.experiments.benchmark import benchmark
from itrd_nlp.experiments.compare import plan_runs
from itrd_nlp.experiments.evaluation import scored_task, scorer
from itrd_nlp.experiments.finished import FINISHED
from itrd_nlp.experiments.models import load_model
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import MODELS, load_teacher
from itrd_nlp.experiments.scoring import evaluate_once
from itrd_nlp.experiments.tasks import tokenised_task
from itrd_nlp.experiments.train import train
from itrd_nlp.export.export import export
from itrd_nlp.export.onnx import need_exporter
from itrd_nlp.models.onnx_model import FILES, OnnxModel
from itrd_nlp.models.weight_files import cached_path
from itrd_nlp.training.record import Record
from itrd_nlp.utils.console import run_script, show_messages
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.hashing import file_digest, weights_digest
from itrd_nlp.utils.io import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RESULTS = ROOT / "scripts" / "results" / "base"
ARTICLES, DEPLOYED, LATENCY = "articles.json", "deployed.json", "latency.json"  # in RESULTS, beside the records
SIZES = {"t3": "3 layers", "t6": "6 layers"}


class Study:
    """One call of `run`: where it writes, and the words that every run gets."""

    def __init__(self, output: Path, test_file: Path, argv: Sequence[str]):
        self.output, self.test_file = output, test_file
        self.words = [*PLAN["arguments"].split(), *argv]
        self.words += ["--shared_dir", str(output / "shared"), "--teacher_cache", str(output / "cache")]
        self.teacher, self.digest = Path(), ""  # folder and weights, once it is fine-tuned

    def run(self, stages: Sequence[str]) -> None:
        """Run the stages, in the order of the plan."""
        if "deploy" in stages:
            need_exporter()  # hours before it exports
        RESULTS.mkdir(parents=True, exist_ok=True)
        self._write_articles()
        self._fine_tune()
        if "rates" in stages:
            self._try_rates()
        for name, stage in PLAN["stages"].items():
            if name in stages:
                self._train([f"squad-base/{recipe}" for recipe in stage["recipes"]], stage["seeds"])
        if "questions" in stages:
            points = [point for question in questions_of(PLAN) for point in question.points.values()]
            self._train(list(dict.fromkeys(points)), PLAN["seeds"])
        if "test" in stages:
            self._test()
        if "deploy" in stages:
            self._deploy()

    def _write_articles(self) -> None:
        """Write which article each question is about."""
        validation_file = Path(parse("squad-base/t3-kd", self.words)[0].validation_file)
        files = {"validation": validation_file, "test": self.test_file}
        write_json(RESULTS / ARTICLES, {split: articles_of(path) for split, path in files.items()})

    def _fine_tune(self) -> None:
        run_args, training_args = parse("squad-base/t3-kd", [*self.words, "--output_dir", str(self.output / "teacher")])
        task = tokenised_task(run_args, training_args)
        model, tuning = load_teacher(run_args, training_args, task)
        self.teacher = Path(run_args.teacher if tuning is None else tuning.folder)
        if tuning is not None:
            model = train(model, tuning, task, Record("teacher", {}, training_args.seed), "teacher", "")
        self.digest = weights_digest(model)

    def _train(self, points: Sequence[str], seeds: Sequence[int]) -> None:
        for seed in seeds:
            known = self._sizes_with_baseline(seed)
            own = [f"--baseline={str(not known.issuperset(map(size_named, points))).lower()}"]
            train_missing(points, [seed], [*self.words, *own], self.output / "runs", RESULTS, self.digest)
        for path in self.output.glob("runs/*/*/student/checkpoint-*"):
            if (path.parent / FINISHED).is_file():  # what is finished is not continued
                shutil.rmtree(path)
        self._test()

    def _sizes_with_baseline(self, seed: int) -> set[str]:
        """The sizes whose student without distillation stands in a record that this call would not replace."""
        points = [f"squad-base/{recipe}" for stage in PLAN["stages"].values() for recipe in stage["recipes"]]
        sizes = set()
        for point in dict.fromkeys(points):
            path = record_path(RESULTS, point, seed)
            (run,) = plan_runs([point], [seed], [*self.words, "--baseline=true"], self.output / "runs")
            if has_record(path, run, self.digest) and "baseline" in Record.read(path).metrics:
                sizes.add(size_named(point))
        return sizes

    def _try_rates(self) -> None:
        """Train on whole articles of the training data, and score on others of it."""
        plan, folder = PLAN["rates"], self.output / "rates"
        run_args, _ = parse(None, [*self.words, "--task", "squad"])
        articles = json.loads(Path(run_args.train_file).read_text(encoding="utf-8"))["data"]
        order = iter(np.random.default_rng(plan["seed"]).permutation(len(articles)))
        folder.mkdir(parents=True, exist_ok=True)
        words = [*self.words, "--teacher", str(self.teacher)]
        for split in ("training", "validation"):
            some = take_articles(order, articles, plan[split])
            path = folder / f"{split}.json"
            path.write_text(json.dumps({"version": "1.1", "data": some}), encoding="utf-8")
            words += [f"--{split.removesuffix('ing')}_file", str(path)]
        train_missing(rate_points(), [plan["seed"]], words, folder, RESULTS / "rates")

    def _task(self, data: Path | None = None) -> tuple[Any, Any, Any]:
        """Arguments and task of an evaluation, on the validation data or on others."""
        words = [*self.words, *(["--validation_file", str(data)] if data else [])]
        run_args, training_args = parse("squad-base/t3-kd", words)
        return run_args, training_args, scored_task(run_args, training_args)

    def _models(self) -> Iterator[tuple[str, Path]]:
        """The models of all records whose folders are here, by the names of their scores."""
        yield "teacher", self.teacher
        for path, record in records().items():
            folder = self.output / "runs" / path.stem.rpartition(",")[0] / f"seed-{record.seed}"
            if (folder / MODELS).is_file():
                models = read_json(folder / MODELS)
                yield path.stem, Path(models["student"])
                if "baseline" in models and "=" not in path.stem:
                    yield baseline_name(record), Path(models["baseline"])

    def _test(self) -> None:
        """Score every model out of domain that has no scores yet, or those of other weights."""
        folders = dict(self._models())
        data = file_digest(self.test_file)[:12]
        digests = {name: f"{_weights(folder)} on {data}" for name, folder in folders.items()}
        missing = {name: folder for name, folder in folders.items() if _scored(test_file(name)) != digests[name]}
        if not missing:
            return
        run_args, training_args, task = self._task(self.test_file)
        for name, folder in missing.items():
            started = time.perf_counter()
            model = load_model(str(folder), task, training_args.seed)[0]
            metrics, examples, _ = evaluate_once(model, run_args, training_args, task)
            f1 = [round(value, 2) for value in examples["f1"]]
            test_file(name).parent.mkdir(exist_ok=True)
            scores = {"scored": digests[name], "metrics": metrics, "f1": f1, "seconds": time.perf_counter() - started}
            write_json(test_file(name), {**scores, **provenance(training_args.device)})

    def _deploy(self) -> None:
        """Export the first seed's students; score their int8 models; time a student of each size in turns."""
        _, training_args, task = self._task()
        deployed = read_json(RESULTS / DEPLOYED) if (RESULTS / DEPLOYED).is_file() else {}
        models = {name: folder for name, folder in self._models() if "=" not in name}
        seed = f",seed-{PLAN['seeds'][0]}"
        models = {n: folder for n, folder in models.items() if n == "teacher" or n.endswith(seed)}
        for name, folder in models.items():
            weights = _weights(folder)
            if deployed.get(name, {}).get("weights") != weights:
                exported, started = self.output / "onnx" / name, time.perf_counter()
                if exported.exists():
                    shutil.rmtree(exported)
                export(str(folder), exported)
                model = OnnxModel(exported / FILES["int8"])
                mib = (exported / FILES["int8"]).stat().st_size / 2**20
                metrics = scorer(task, training_args)(model)
                scores = {"weights": weights, "mib": mib, "metrics": metrics, "seconds": time.perf_counter() - started}
                deployed[name] = {**scores, **provenance(training_args.device)}
                write_json(RESULTS / DEPLOYED, deployed)
        timed = {"teacher": "teacher", **{size: f"{size}-best{seed}" for size in SIZES}}
        folders = {name: str(models[model]) for name, model in timed.items() if model in models}
        before = read_json(RESULTS / LATENCY)["rows"] if (RESULTS / LATENCY).is_file() else []
        if not {*folders} <= {row["name"] for row in before}:
            write_json(RESULTS / LATENCY, benchmark(folders, lengths=[128], batches=[1]))


def test_file(name: str) -> Path:
    """Where a model's scores out of domain lie."""
    return RESULTS / "test" / f"{name}.json"


def _weights(folder: Path) -> str:
    """Digest of a model's weights file."""
    path = cached_path(folder, "model.safetensors")
    return file_digest(Path(str(path)))[:12]


def _scored(path: Path) -> str | None:
    """Digests of the weights and the test data whose scores a file holds; None without one."""
    return read_json(path).get("scored") if path.is_file() else None


def take_articles(order: Iterator[int], articles: Sequence[Any], questions: int) -> list[Any]:
    """The next articles that together have so many questions or more."""
    some: list[Any] = []
    while sum(len(paragraph["qas"]) for article in some for paragraph in article["paragraphs"]) < questions:
        some.append(articles[next(order)])
    return some


def articles_of(path: Path) -> list[int]:
    """For each question of a file in SQuAD's layout, the index of its article."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [i for i, article in enumerate(articles) for paragraph in article["paragraphs"] for _ in paragraph["qas"]]


def rate_points() -> list[str]:
    """Every method at every rate."""
    plan = PLAN["rates"]
    return [f"{point} --learning_rate={rate}" for point in plan["points"].values() for rate in plan["values"]]


def records() -> dict[Path, Record]:
    """The records of the study."""
    return {path: Record.read(path) for path in sorted(RESULTS.glob("t*,seed-*.json"))}


def baseline_name(record: Record) -> str:
    """What the scores of a record's student without distillation are called."""
    return f"{size_of(record)}-undistilled,seed-{record.seed}"


def size_of(record: Record) -> str:
    return size_named(record.recipe)


def size_named(recipe: str) -> str:
    """The student's size in a recipe's name, such as t3 of squad-base/t3-kd."""
    return Path(recipe.partition(" ")[0]).name.partition("-")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    stages = ["teacher", "rates", *PLAN["stages"], "questions", "test", "deploy"]
    parser.add_argument("--stages", nargs="+", choices=stages, metavar="STAGE", default=stages, help=", ".join(stages))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/base"))
    parser.add_argument("--test_file", type=Path, required=True)
    options, rest = parser.parse_known_args()
    show_messages()
    Study(options.output_dir, options.test_file, rest).run(options.stages)


if __name__ == "__main__":
    run_script(main)
