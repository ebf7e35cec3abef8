"""The commands on saved models: ``itrd evaluate``, ``export``, ``benchmark`` and ``demo``; and ``itrd score``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from itrd_nlp.cli.command import Command, check_parent
from itrd_nlp.utils.console import print_json
from itrd_nlp.utils.errors import UserError


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder, Hub id, or a name of timm")
    parser.add_argument("--calibrate", action="store_true", help="also fit a temperature, and rate the probabilities")
    parser.add_argument("--checkpoint", help="weights of a model of timm, .safetensors or .pth")


def _evaluate(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.experiments.evaluation import evaluate_saved, with_task
    from itrd_nlp.experiments.parsing import parse

    run_args, training_args = parse(None, ["--teacher", args.model, *with_task(args.model, rest)])
    if args.checkpoint:
        run_args.teacher = {"timm": args.model, "checkpoint": args.checkpoint}
    metrics = evaluate_saved(run_args, training_args, args.calibrate)
    if training_args.process_index == 0:
        print_json(metrics, indent=1)


EVALUATE = Command(
    "evaluate",
    "score a saved model on a task's validation data",
    (
        "itrd evaluate runs/t6/student --validation_file dev-v1.1.json",
        "itrd evaluate runs/classify/l3-itrd/student --validation_file reviews.csv --calibrate",
        "itrd evaluate runs/toy/t1-itrd/student --task toy",
        "itrd evaluate cifar_resnet56a --checkpoint resnet56.th --task cifar10 --dataset uoft-cs/cifar10 --bf16 false",
    ),
    _evaluate,
    _evaluate_arguments,
    subject="MODEL",
)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id; also scored if evaluation data is named")
    parser.add_argument("--output", type=Path, help="folder to make; the model's name with -onnx by default")
    parser.add_argument("--no_int8", action="store_true", help="leave the quantised model out")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature on the data, and export it")
    parser.add_argument("--max_drop", type=float, help="main-metric points int8 may lose before nodes stay in fp32")


def _export(args: Namespace, rest: list[str]) -> None:
    """Export a model, and print its table and what became of the quantisation."""
    from itrd_nlp.experiments.evaluation import calibration_of, evaluation_task, scorer, text_options_of
    from itrd_nlp.export.export import export
    from itrd_nlp.export.folder import export_table
    from itrd_nlp.export.quantization import verdict
    from itrd_nlp.utils.io import named_path

    model = named_path(Path(args.model))
    output = args.output or Path(f"{model if model.is_dir() else model.name}-onnx")
    text_options = text_options_of(args.model, rest)
    task, training_args = evaluation_task(args.model, [] if text_options else rest)
    score = None if task is None else scorer(task, training_args)
    calibration = None
    if args.calibrate:
        if task is None:
            raise UserError("--calibrate without validation data: add --validation_file FILE or --dataset HUB_ID")
        calibration = calibration_of(args.model, task, training_args)
    options = {"int8": not args.no_int8, "max_drop": args.max_drop, "calibration": calibration}
    options["text_options"] = text_options
    record = export(args.model, output, task, score, **options)
    print(f"\n{export_table(record).markdown()}\n")
    if record["quantisation"]:
        print(f"{verdict(record['quantisation'])}\n")
    print(f"exported: {output}")


EXPORT = Command(
    "export",
    "write a model as ONNX, in fp32 and int8, checked against PyTorch",
    (
        "itrd export runs/t6/student --output t6-onnx --validation_file dev-v1.1.json",
        "itrd export runs/t6/student --output t6-onnx --validation_file dev-v1.1.json --max_drop 0.5",
        "itrd export runs/toy/t1-itrd/student --task toy",
        "itrd export BAAI/bge-reranker-base --output reranker-onnx --task reranking",
        "itrd export runs/cifar100/resnet32x4-resnet8x4-itrd/student --no_int8",
    ),
    _export,
    _export_arguments,
    subject="MODEL",
)


def _benchmark_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub ids, or what itrd export wrote")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of a text; 32, 128 and 384 by default")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="texts or images at once")
    parser.add_argument("--threads", type=int, help="threads per forward pass; torch's number by default")
    parser.add_argument("--device", default="cpu", help="cuda: PyTorch in fp32 and bf16 on the GPU, and no ONNX")
    parser.add_argument("--repeats", type=int, default=10, help="timed forward passes each, after two for warm-up")
    parser.add_argument("--output", type=Path, help="also keep the measurements in this JSON file")
    parser.add_argument("--plot", type=Path, help="also draw them: .svg, or .html with the table")


def _benchmark(args: Namespace, rest: list[str]) -> None:
    """Measure the models; print, save and plot the results."""
    from itrd_nlp.experiments.benchmark import benchmark, by_short_name
    from itrd_nlp.experiments.benchmark_report import benchmark_table, write_plot
    from itrd_nlp.experiments.evaluation import evaluation_task
    from itrd_nlp.experiments.plots import need_matplotlib
    from itrd_nlp.utils.io import write_json

    for option in ("output", "plot"):
        if (path := getattr(args, option)) is not None:
            check_parent(path, f"--{option}")
    if args.plot is not None:
        if args.plot.suffix not in (".svg", ".html"):
            raise UserError(f"--plot {args.plot}: expected a name that ends in .svg or .html")
        need_matplotlib()  # before measuring, which takes minutes
    task, training_args = evaluation_task(args.models[0], rest)
    options = {name: getattr(args, name) for name in ("lengths", "batches", "threads", "repeats", "device")}
    record = benchmark(by_short_name(args.models), task, training_args, **options)
    print(f"\n{benchmark_table(record).markdown()}")
    if args.output is not None:
        write_json(args.output, record)
    if args.plot is not None:
        write_plot(args.plot, record)


BENCHMARK = Command(
    "benchmark",
    "size and speed of models in PyTorch, ONNX and int8, in turns",
    (
        "itrd benchmark runs/t6/student TEACHER --lengths 128 384 --plot speed.html",
        "itrd benchmark runs/toy/t1-itrd/student --task toy --output speed.json",
    ),
    _benchmark,
    _benchmark_arguments,
    subject="MODEL",
)


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--student", required=True, help="folder or Hub id")
    parser.add_argument("--teacher", help="folder or Hub id; without it the student answers alone")
    parser.add_argument("--port", type=int, default=7860, help="of this computer; 0: any free one")
    parser.add_argument("--examples", help="SQuAD JSON, CSV, parquet or JSON lines: its first three texts are offered")


def _demo(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.cli.demo import serve

    serve(args.student, args.teacher, args.port, args.examples)


DEMO = Command(
    "demo",
    "a web page on this computer: teacher and student answer side by side",
    (
        "itrd demo --student runs/t6/student --teacher runs/teacher",
        "itrd demo --student runs/t6/student --port 0 --examples dev-v1.1.json",
    ),
    _demo,
    _demo_arguments,
)


def _score_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--predictions", required=True, type=Path, help="JSON of question id to answer text")
    parser.add_argument("--data", required=True, help="SQuAD JSON, CSV, parquet or JSON lines")


def _score(args: Namespace, rest: list[str]) -> None:
    """Print exact match and F1 of a file of predictions."""
    from itrd_nlp.tasks.question_answering.scores import read_predictions, squad_scores

    predictions = read_predictions(args.predictions)
    golds = _clean_answers(args.data)
    if not golds:  # load_squad repairs a file, warns of what it finds, or says what is wrong with it
        from itrd_nlp.tasks.question_answering.data import load_squad

        golds = {row["id"]: row["answers"]["text"] for row in load_squad(validation_file=args.data).validation or ()}
    scores = squad_scores(predictions, golds)
    for name, value in scores.items():
        print(f"{name}: {value}" if isinstance(value, int) else f"{name}: {value:.3f}")


def _clean_answers(file: str) -> dict[str, list[str]]:
    """Gold answers by question id of a text file in which nothing needs repair or a warning; empty for other files.

    This path does without `datasets`, whose import takes longer than scoring.
    """
    from itrd_nlp.tasks.plain_files import DELIMITED, OBJECTS, read_plain, suffix_of
    from itrd_nlp.tasks.question_answering.gold_answers import read_answers

    path = Path(file)
    if not path.is_file() or suffix_of(path) not in (*DELIMITED, *OBJECTS):
        return {}
    columns = read_plain(path, suffix_of(path))
    if not {"id", "question", "context", "answers"} <= columns.keys():
        return {}
    golds: dict[str, list[str]] = {}
    for index, cells in enumerate(zip(*columns.values(), strict=True)):
        row = dict(zip(columns, cells, strict=True))
        answers = read_answers(row, f"row {index} of '{file}'")
        if row["id"] in golds or not _is_clean(row, answers):
            return {}
        golds[row["id"]] = [text for text, _ in answers]
    return golds


def _is_clean(row: dict[str, Any], answers: list[tuple[str, int | None]]) -> bool:
    """Whether every cell has the expected type and every answer is in the context at its offset."""
    return (
        all(isinstance(row[name], str) for name in ("id", "question", "context"))
        and isinstance(row["answers"], str | list | dict)
        and row["answers"] != ""
        and all(start is not None and start >= 0 and row["context"].startswith(text, start) for text, start in answers)
    )


SCORE = Command(
    "score",
    "EM and F1 of SQuAD-format predictions",
    (
        "itrd score --predictions predictions.json --data dev-v1.1.json",
        "itrd score --predictions predictions.json --data held-out.csv",
    ),
    _score,
    _score_arguments,
)
