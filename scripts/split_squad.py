"""Cut SQuAD v1.1's development set into the files that docs/base.md and docs/results.md measure on, by article.

    python scripts/split_squad.py dev-v1.1.json FOLDER     # FOLDER/train.json and FOLDER/validation.json

dev-v1.1.json is the official file (https://rajpurkar.github.io/SQuAD-explorer/). Seven of its 48 articles are in
neither file. Of the other data sets in docs/families.md we used the official splits as they are.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from itrd_nlp.utils.console import run_script
from itrd_nlp.utils.errors import UserError, reading
from itrd_nlp.utils.io import make_folder

VALIDATION = (
    "Sky_(United_Kingdom)",
    "Huguenot",
    "Oxygen",
    "Construction",
    "University_of_Chicago",
    "Intergovernmental_Panel_on_Climate_Change",
    "Force",
)
UNUSED = (
    "Martin_Luther",
    "Packet_switching",
    "American_Broadcasting_Company",
    "Genghis_Khan",
    "Pharmacy",
    "Jacksonville,_Florida",
    "Kenya",
)
QUESTIONS = {"train": 7721, "validation": 1156}


def read_articles(path: Path) -> list[dict[str, Any]]:
    """The articles of a file in SQuAD's layout."""
    with reading(path, "dev-v1.1.json"):
        try:
            return json.loads(path.read_text(encoding="utf-8"))["data"]
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{path}: not in SQuAD's layout; expected dev-v1.1.json") from None


def split(articles: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The articles of each file, in the order of the official one.

    Raises:
        UserError: their questions are not as many as in the files that were measured on.
    """
    files = {
        "train": [article for article in articles if article["title"] not in (*VALIDATION, *UNUSED)],
        "validation": [article for article in articles if article["title"] in VALIDATION],
    }
    for name, part in files.items():
        count = sum(len(paragraph["qas"]) for article in part for paragraph in article["paragraphs"])
        if count != QUESTIONS[name]:
            raise UserError(f"{name}: {count} questions, expected {QUESTIONS[name]}; take SQuAD's dev-v1.1.json")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dev", type=Path, help="dev-v1.1.json")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make_folder(args.folder)
    for name, part in split(read_articles(args.dev)).items():
        text = json.dumps({"version": "1.1", "data": part}, ensure_ascii=False)
        (args.folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
