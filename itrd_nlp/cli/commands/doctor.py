"""``itrd doctor``: check this machine, and say what to fix."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), help="where runs would be written")
    parser.add_argument(
        "--teacher_cache", help="read all cached teacher outputs and compare checksums: auto, or a folder"
    )


def run(args: Namespace, rest: list[str]) -> int:
    """Print the report; returns 1 where something must be fixed."""
    from huggingface_hub.constants import HF_HOME

    from itrd_nlp.cli import doctor
    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER
    from itrd_nlp.utils.environment import installed

    checks = [*doctor.versions(), *(doctor.devices() if installed("torch") else ())]
    checks += [doctor.disk(args.output_dir, "--output_dir"), doctor.disk(Path(HF_HOME), "HF_HOME")]
    checks += [doctor.disk(AUTO_FOLDER, "--teacher_cache"), doctor.hub()]
    if args.teacher_cache is not None:
        root = AUTO_FOLDER if args.teacher_cache == "auto" else Path(args.teacher_cache).expanduser()
        checks += doctor.cached_outputs(root)
    print("\n".join(map(str, checks)))
    count = sum(check.must for check in checks)
    print(f"\n{count} to fix" if count else "\nnothing to fix")
    return int(count > 0)


DOCTOR = Command(
    "doctor",
    "check this machine, and say what to fix; exit code 1 if something must be",
    ("itrd doctor", "itrd doctor --output_dir /data/runs", "itrd doctor --teacher_cache auto"),
    run,
    arguments,
)
