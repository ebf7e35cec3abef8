"""``itrd export``: a model as ONNX, in fp32 and int8."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.errors import UserError


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id; scored, too, where data to evaluate on are named")
    parser.add_argument("--output", type=Path, help="folder to make; the model's name with -onnx by default")
    parser.add_argument("--no_int8", action="store_true", help="leave the quantised model out")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature on the data, and export it")
    parser.add_argument("--max_drop", type=float, help="points of the main metric that int8 may lose; more stays fp32")


def run(args: Namespace, rest: list[str]) -> None:
    """Export a model, and print its table and what became of the quantisation."""
    from itrd_nlp.experiments.evaluation import calibration_of, evaluation_task, scorer
    from itrd_nlp.export.export import export
    from itrd_nlp.export.folder import export_table
    from itrd_nlp.export.quantization import verdict

    model = Path(args.model)
    output = args.output or Path(f"{model if model.is_dir() else model.name}-onnx")
    task, training_args = evaluation_task(args.model, rest)
    score = None if task is None else scorer(task, training_args)
    calibration = None
    if args.calibrate:
        if task is None:
            raise UserError("--calibrate without validation data: add --validation_file FILE or --dataset HUB_ID")
        calibration = calibration_of(args.model, task, training_args)
    options = {"int8": not args.no_int8, "max_drop": args.max_drop, "calibration": calibration}
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
        "itrd export runs/cifar100/resnet32x4-resnet8x4-itrd/student --no_int8",
    ),
    run,
    arguments,
    subject="MODEL",
)
