"""``itrd cache``: list or remove cached teacher outputs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from itrd_nlp.cli.command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, help="as --teacher_cache names it; that of auto by default")
    parser.add_argument("--clear", action="store_true", help="remove all that no run uses at the moment")


def run(args: Namespace, rest: list[str]) -> None:
    """Print the contents of a folder of cached teacher outputs, or remove them."""
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
    folders = entries(root)
    rows = [[entry.folder.name, gib(entry.size), entry.last_used] for entry in folders]
    caption = f"{len(folders)} in {root}, {gib(sum(entry.size for entry in folders))}"
    print(Table(f"{caption}:", ["", "size", "last used"], rows).markdown() if folders else caption)


CACHE = Command(
    "cache",
    "show or remove cached teacher outputs",
    ("itrd cache", "itrd cache runs/cache --clear"),
    run,
    arguments,
)
