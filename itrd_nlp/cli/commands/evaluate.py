"""``itrd evaluate``: a saved model on a task's validation data."""

from argparse import ArgumentParser, Namespace

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="folder, Hub id, or a name of timm")
    parser.add_argument("--calibrate", action="store_true", help="also fit a temperature, and rate the probabilities")
    parser.add_argument("--checkpoint", help="weights of a model of timm, .safetensors or .pth")


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.experiments.evaluation import evaluate_saved, with_task
    from itrd_nlp.experiments.parsing import parse
    from itrd_nlp.utils.console import print_json

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
    run,
    arguments,
    subject="MODEL",
)
