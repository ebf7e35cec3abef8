"""``itrd demo``: a web page on this computer where teacher and student answer."""

from argparse import ArgumentParser, Namespace

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--student", required=True, help="folder or Hub id")
    parser.add_argument("--teacher", help="folder or Hub id; without it the student answers alone")
    parser.add_argument("--port", type=int, default=7860, help="of this computer; 0: any free one")
    parser.add_argument("--examples", help="SQuAD JSON, CSV, parquet or JSON lines: its first three texts are offered")


def run(args: Namespace, rest: list[str]) -> None:
    from itrd_nlp.cli.demo import serve

    serve(args.student, args.teacher, args.port, args.examples)


DEMO = Command(
    "demo",
    "a web page on this computer: teacher and student answer side by side",
    (
        "itrd demo --student runs/t6/student --teacher runs/teacher",
        "itrd demo --student runs/t6/student --port 0 --examples dev-v1.1.json",
    ),
    run,
    arguments,
)
