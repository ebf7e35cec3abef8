"""``itrd cache``: cached teacher outputs, shown and removed."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, help="as --teacher_cache names it; that of auto by default")
    parser.add_argument("--clear", action="store_true", help="remove all that no run uses at the moment")


def run(args: Namespace, rest: list[str]) -> None:
    """Print what a folder of cached teacher outputs holds, or remove it."""
    from itrd_nlp.distillation.cache_folders import AUTO_FOLDER, clear, entries, gib
    from itrd_nlp.utils.errors import UserError
    from itrd_nlp.utils.tables import Table

    root = args.folder or AUTO_FOLDER
    if args.folder and not root.is_dir():
        raise UserError(f"{root}: no such folder; expected one that --teacher_cache named")
    if args.clear:
        removed, left = clear(root)
        print(f"removed {len(removed)}, {gib(sum(entry.size for entry in removed))}")
        for entry in left:
            print(f"left {entry.folder}: in use, or another user's")
        return
    found = entries(root)
    rows = [[e.folder.name, gib(e.size), e.last_used] for e in found]
    caption = f"{len(found)} in {root}, {gib(sum(entry.size for entry in found))}"
    print(Table(f"{caption}:", ["", "size", "last used"], rows).markdown() if found else caption)


CACHE = Command(
    "cache",
    "show or remove cached teacher outputs",
    ("itrd cache", "itrd cache runs/cache --clear"),
    run,
    arguments,
)
