"""The study of scripts/families.yaml: teachers and students with tokenizers of their own.

    python scripts/families.py run --data FOLDER --minilm FOLDER --mpnet FOLDER [--only SECTION ...] [--field value ...]
    python scripts/families.py page [--check]

`run` trains what has no record yet, and takes any argument of `itrd distill`. The folder of `--data` holds
`squad/train.json`, `squad/validation.json`, `banking77/train.csv` and so on, as the plan names them; `--minilm` is
all-MiniLM-L6-v2, `--mpnet` an all-mpnet-base-v2 that was fine-tuned on the same SQuAD files.
"""

import argparse
import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from studies import origins, train_runs, write_page
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from itrd_nlp.experiments.compare import Run
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.report import comparison_table
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.training.record import Record
from itrd_nlp.utils.console import show_messages

ROOT = Path(__file__).resolve().parents[1]
PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
RESULTS = ROOT / "scripts" / "results" / "families"
PAGE = ROOT / "docs" / "families.md"
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}


def run(sections: list[str], output: Path, folders: Mapping[str, Path], argv: list[str]) -> None:
    """Train the points of some sections that have no record yet."""
    for name, spec in PLAN["tokenizers"].items():
        folder = output / "tokenizers" / name
        if not (folder / "tokenizer.json").is_file():
            train_tokenizer(folders["data"] / spec["file"], spec).save_pretrained(folder)
    for name in sections:
        train_runs(runs_of(name, output, folders, argv))


def runs_of(name: str, output: Path, folders: Mapping[str, Path], argv: list[str]) -> dict[Path, Run]:
    """The runs of a section, by the paths of their records."""
    section, runs = PLAN["sections"][name], {}
    words = {key: str(folder) for key, folder in folders.items()}
    for tokenizer in PLAN["tokenizers"]:
        folder = output / "tokenizers" / tokenizer
        words[tokenizer] = f'--student=\'{{from: teacher, layers: "first:3", tokenizer: "{folder}"}}\''
    shared = [*PLAN["arguments"].split(), f"--shared_dir={output / 'shared'}", f"--teacher_cache={output / 'cache'}"]
    for seed, (label, point) in itertools.product(section["seeds"], section["points"].items()):
        recipe, *own = shlex.split(point.format_map(words))
        own = [*shlex.split(section["words"].format_map(words)), *own]
        own += [f"--output_dir={output / 'runs' / name / slug(label)}-{seed}", f"--seed={seed}", f"--label={label}"]
        runs[record_path(name, label, seed)] = Run(recipe, *parse(recipe, [*shared, *argv, *own]))
    return runs


def record_path(section: str, label: str, seed: int) -> Path:
    """Where the record of a point lies."""
    return RESULTS / section / f"{slug(label)},seed-{seed}.json"


def slug(label: str) -> str:
    """A label as the name of a file."""
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def train_tokenizer(file: Path, spec: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A tokenizer of a plan's kind and size, trained on columns of a file."""
    columns = read_table(str(file)).columns
    texts = list(dict.fromkeys(text for name in spec["columns"] for text in columns[name][:]))
    options = {"vocab_size": spec["pieces"], "special_tokens": [*SPECIAL.values()], "show_progress": False}
    if spec["kind"] == "Unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(unk_token=SPECIAL["unk_token"], **options)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    parts = [normalizers.NFC(), *([normalizers.Lowercase()] if spec["lower"] else [])]
    backend.normalizer = normalizers.Sequence(parts)
    backend.train_from_iterator(texts, trainer)
    ids = {name: backend.token_to_id(SPECIAL[name]) for name in ("sep_token", "cls_token")}
    backend.post_processor = processors.BertProcessing(*[(SPECIAL[name], index) for name, index in ids.items()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **SPECIAL)


def page() -> str:
    """The page, from the records that are there."""
    parts, used = [PLAN["introduction"].strip(), ""], []
    for name, section in PLAN["sections"].items():
        parts += [f"## {section['title']}", "", section["note"].strip(), ""]
        if records := list(records_of(name)):
            used += records
            labels = {record.label for record in records}
            against = section["against"] if section["against"] in labels else None
            parts += [comparison_table(records, against=against).markdown(), ""]
            parts += [section["finding"].strip(), ""] if "finding" in section else []
        else:
            parts += ["Not run yet.", ""]
    return "\n".join([*parts, origins(used)] if used else parts) + "\n"


def records_of(name: str) -> Iterator[Record]:
    """The records of a section whose points have all their seeds, in the plan's order."""
    section = PLAN["sections"][name]
    for label in section["points"]:
        paths = [record_path(name, label, seed) for seed in section["seeds"]]
        if all(path.is_file() for path in paths):
            yield from map(Record.read, paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--only", nargs="+", choices=[*PLAN["sections"]], default=[*PLAN["sections"]])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/families"))
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    for name in ("data", "minilm", "mpnet"):
        parser.add_argument(f"--{name}", type=Path, help="a folder, see above")
    options, rest = parser.parse_known_args()
    if options.what == "page":
        write_page(PAGE, page(), "python scripts/families.py page", options.check)
        return
    show_messages()
    folders = {name: getattr(options, name) for name in ("data", "minilm", "mpnet")}
    if missing := [name for name, folder in folders.items() if folder is None]:
        parser.error(f"--{missing[0]}: expected a folder")
    run(options.only, options.output_dir, folders, rest)


if __name__ == "__main__":
    main()
