"""``itrd shrink``: from a model to the smallest one that keeps its quality."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command
from itrd_nlp.utils.console import print_json

NOT_MET = 3  # exit code where no student is what was asked for
OWN = ("train_file", "validation_file", "test_file", "task", "keep", "max_mib", "min_speedup", "output_dir")
SIZES = ("layers", "hidden_sizes", "vocabularies")


def arguments(parser: ArgumentParser) -> None:
    """Add the options: the data, the goal, and the sizes to try."""
    parser.add_argument("model", help="folder or Hub id of an encoder; without a head it is fine-tuned first")
    parser.add_argument("--train_file", required=True, help="as of itrd distill")
    parser.add_argument("--validation_file", required=True, help="chooses the student")
    parser.add_argument("--test_file", help="scores the chosen student and its teacher, once")
    parser.add_argument("--task", help="by default that of the model's head, or of the data's columns")
    parser.add_argument("--keep", type=float, default=0.97, help="share of the teacher's score; 0.97 by default")
    parser.add_argument("--max_mib", type=float, help="most MiB of all files that are needed to run it")
    parser.add_argument("--min_speedup", type=float, help="least times as fast as the teacher, for one text")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/shrink"), help="runs/shrink by default")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of layers to try")
    parser.add_argument("--hidden_sizes", type=int, nargs="+", help="widths to try")
    parser.add_argument("--vocabularies", type=int, nargs="+", help="numbers of pieces to try; 0 keeps all")


def run(args: Namespace, rest: list[str]) -> int:
    """Search, and print the table, the verdict and the result as JSON; 3 where no student meets the goal."""
    from itrd_nlp.experiments.shrink.report import search_table, verdict
    from itrd_nlp.experiments.shrink.shrink import RECORD, shrink
    from itrd_nlp.utils.io import read_json
    from itrd_nlp.utils.tables import print_table

    options = {name: getattr(args, name) for name in (*OWN, *SIZES)}
    result = shrink(args.model, **options, argv=rest)
    record = read_json(result.folder / RECORD)
    print_table(search_table(record))
    print(f"\n{verdict(record)}\n\nstudent: {result.folder / 'student'}\nONNX:    {result.folder / 'onnx'}")
    values = result._asdict()
    print_json({name: values[name] for name in ("chosen", "kept", "mib", "speedup", "seconds", "candidates")}, None)
    return 0 if result.met else NOT_MET


SHRINK = Command(
    "shrink",
    "make a model as small as it gets while it keeps a share of its score",
    (
        "itrd shrink my-classifier --train_file train.csv --validation_file dev.csv --test_file test.csv",
        "itrd shrink google-bert/bert-base-uncased --train_file train-v1.1.json --validation_file dev-v1.1.json",
        "itrd shrink my-reranker --train_file train.csv --validation_file dev.csv --keep 0.95 --max_mib 20 --bf16 true",
    ),
    run,
    arguments,
    subject="MODEL",
    continues=True,
)
