"""A tokenizer and a few generated questions in a folder: what a dry run of a SQuAD recipe needs instead of the Hub.

python scripts/dry_data.py FOLDER
"""

import argparse
from pathlib import Path

from itrd_nlp.tasks.toy import build_tokenizer, generate
from itrd_nlp.utils.console import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if (folder / "validation.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder)
    generate(96, seed=1).to_json(folder / "train.jsonl")
    generate(8, seed=2).to_json(folder / "validation.jsonl")


if __name__ == "__main__":
    run_script(main)
