"""Studies whose plans are lists of tables: scripts/families.yaml and scripts/cuts.yaml.

    python scripts/tables.py families run --data FOLDER --minilm FOLDER --mpnet FOLDER [--only TABLE ...] [--field ...]
    python scripts/tables.py families page [--check]

`run` trains what has no record yet, and takes any argument of `itrd distill`. The folder of `--data` holds
`squad/train.json`, `squad/validation.json`, `banking77/train.csv` and so on, as the plans name them; `--minilm` is
all-MiniLM-L6-v2, `--mpnet` an all-mpnet-base-v2 that was fine-tuned on the same SQuAD files. The searches of a plan are
run by the commands in their notes; each `frontier.json` is copied to `scripts/results/STUDY/searches`.
"""

import argparse
import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from studies import train_runs, write_page
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from itrd_nlp.experiments.compare import Run
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.report import comparison_table, update
from itrd_nlp.experiments.shrink.report import search_table, verdict
from itrd_nlp.tasks.tabular import read_table
from itrd_nlp.training.record import Record, short_commit
from itrd_nlp.utils.console import run_script, show_messages
from itrd_nlp.utils.io import read_json
from itrd_nlp.utils.tables import markdown_table, metric_title

SCRIPTS = Path(__file__).resolve().parent
STUDIES = ("families", "cuts")
MARKER = "shrink search"  # of the table in README.md
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}


class Study:
    """A plan, the records of its runs, and the page that shows them."""

    def __init__(self, name: str):
        self.name = name
        self.plan: dict[str, Any] = yaml.safe_load((SCRIPTS / f"{name}.yaml").read_text(encoding="utf-8"))
        self.results = SCRIPTS / "results" / name
        self.path = SCRIPTS.parent / "docs" / f"{name}.md"

    def run(self, tables: list[str], output: Path, folders: Mapping[str, Path], argv: list[str]) -> None:
        """Train the points of some tables that have no record yet."""
        texts = self.texts_of(tables)
        for name, spec in self.plan["tokenizers"].items():
            if not any(f"{{{name}}}" in text for text in texts):
                continue
            folder = output / "tokenizers" / name
            if not (folder / "tokenizer.json").is_file():
                train_tokenizer(folders["data"] / spec["file"], spec).save_pretrained(folder)
        for name in tables:
            train_runs(self.runs_of(name, output, folders, argv))

    def texts_of(self, tables: list[str]) -> list[str]:
        """What the plan says of the runs of some tables."""
        specs = [self.plan["tables"][name] for name in tables]
        return [text for spec in specs for text in (spec["words"], *spec["points"].values())]

    def runs_of(self, table: str, output: Path, folders: Mapping[str, Path], argv: list[str]) -> dict[Path, Run]:
        """The runs of a table, by the paths of their records."""
        spec, runs = self.plan["tables"][table], {}
        words = {key: shlex.quote(str(folder)) for key, folder in folders.items()}
        for tokenizer in self.plan["tokenizers"]:
            folder = output / "tokenizers" / tokenizer
            words[tokenizer] = shlex.quote(f'--student={{from: teacher, layers: "first:3", tokenizer: "{folder}"}}')
        shared = [*self.plan["arguments"].split(), f"--shared_dir={output / 'shared'}"]
        shared.append(f"--teacher_cache={output / 'cache'}")
        for seed, (label, point) in itertools.product(spec["seeds"], spec["points"].items()):
            recipe, *own = shlex.split(point.format_map(words))
            common = [*shared, *shlex.split(spec["words"].format_map(words)), *argv]
            own += [
                f"--output_dir={output / 'runs' / table / slug(label)}-{seed}",
                f"--seed={seed}",
                f"--label={label}",
            ]
            runs[self.record_path(table, label, seed)] = Run(recipe, *parse(recipe, [*common, *own]))
        return runs

    def record_path(self, table: str, label: str, seed: int) -> Path:
        """Where the record of a point lies."""
        return self.results / table / f"{slug(label)},seed-{seed}.json"

    def page(self) -> str:
        """The page, from the records that are there."""
        parts = [self.plan["introduction"].strip(), ""]
        for name, spec in self.plan["tables"].items():
            parts += [f"## {spec['title']}", "", spec["note"].strip(), ""]
            if records := list(self.records_of(name)):
                labels = {record.label for record in records}
                against = spec["against"] if spec["against"] in labels else None
                parts += [comparison_table(records, against=against).markdown(), ""]
                parts += [spec["finding"].strip(), ""] if "finding" in spec else []
            else:
                parts += ["Not run yet.", ""]
        for name, spec in self.plan.get("searches", {}).items():
            parts += [f"## {spec['title']}", "", spec["note"].strip(), ""]
            folder = self.results / "searches"
            record = folder / f"{name}.json"
            parts += _search(read_json(record)) if record.is_file() else ["Not run yet.", ""]
            if record.is_file() and (live := folder / f"{name}-live.json").is_file():
                parts += [_cost(read_json(record), Record.read(live), **spec["live"]), ""]
            parts += [spec["finding"].strip(), ""] if record.is_file() and "finding" in spec else []
        return "\n".join(parts)

    def readme_table(self) -> str:
        """The teacher, the student that a search chose, and the same student without distillation."""
        record = read_json(self.results / "searches" / f"{self.plan['readme']}.json")
        teacher = record["teacher"]
        chosen = next(row for row in record["candidates"] if row["name"] == record["chosen"])
        label = f"the smallest student tried that keeps {100 * record['goal']['keep']:g} %"
        rows = [("teacher", teacher["score"], teacher["mib"], 1.0)]
        if int8 := teacher.get("int8"):
            rows.append(("teacher in ONNX int8", int8["score"], int8["mib"], int8["speedup"]))
        rows.append((label, chosen["score"], chosen["mib"], chosen["speedup"]))
        rows.append(("that student without distillation", record["baseline"], chosen["mib"], chosen["speedup"]))
        columns = ["", metric_title(record["metric"]), "of the teacher, %", "MiB", "times as fast"]
        cells = []
        for name, score, mib, speedup in rows:
            cells.append(
                [name, f"{score:.2f}", f"{100 * score / teacher['score']:.1f}", f"{mib:.1f}", f"{speedup:.1f}"]
            )
        how = "One seed; students in ONNX int8 (without distillation: scored in PyTorch), the first teacher in PyTorch "
        how += f"fp32; one text of 128 tokens; chosen and scored on the same {record['examples']:,} texts"
        low = "" if chosen["kept_low"] is None else f", 95 % interval from {100 * chosen['kept_low']:.1f} % up"
        return f"{markdown_table(columns, cells)}\n\n{how}{low}. {_minutes(record)}"

    def records_of(self, table: str) -> Iterator[Record]:
        """The records of a table in the plan's order: points that have the first seed, of the seeds that all have."""
        spec = self.plan["tables"][table]
        paths = {
            label: {seed: self.record_path(table, label, seed) for seed in spec["seeds"]} for label in spec["points"]
        }
        begun = [of_seeds for of_seeds in paths.values() if of_seeds[spec["seeds"][0]].is_file()]
        seeds = [seed for seed in spec["seeds"] if all(of_seeds[seed].is_file() for of_seeds in begun)]
        for of_seeds in begun:
            yield from (Record.read(of_seeds[seed]) for seed in seeds)


def _search(record: dict[str, Any]) -> list[str]:
    """What `itrd shrink` found, as lines of Markdown."""
    return [search_table(record).markdown(), "", f"{verdict(record)} {_minutes(record)}", ""]


def _cost(search: dict[str, Any], live: Record, student: str, epochs: float) -> str:
    """What a search took beside one distillation of a student with a live teacher, measured on fewer epochs."""
    measured = live.arguments["num_train_epochs"]
    seconds = live.seconds["student"] * epochs / measured
    return (
        f"One distillation of {student} with a live teacher takes {seconds / 60:.0f} minutes for {epochs:g} epochs "
        f"(measured over {measured:g}; commit {short_commit(live.commit, live.dirty)}): the search took "
        f"{search['seconds'] / seconds:.1f} times that."
    )


def _minutes(record: dict[str, Any]) -> str:
    names = [name for name in ("torch", "transformers", "onnxruntime") if name in record["versions"]]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in names)
    return (
        f"The search took {record['seconds'] / 60:.0f} minutes, earlier ones in its folder included "
        f"({record['device']}; {versions}; commit {short_commit(record['commit'], record['dirty'])})."
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="names of tables in the plan")
    parser.add_argument("--output_dir", type=Path, help="default: runs/STUDY")
    parser.add_argument("--check", action="store_true", help="only fail where the page is stale")
    for name in ("data", "minilm", "mpnet"):
        parser.add_argument(f"--{name}", type=Path, help="a folder, see above")
    options, rest = parser.parse_known_args()
    study = Study(options.study)
    if options.what == "page":
        if rest or options.only:
            parser.error(f"page {' '.join(rest) or '--only'}: expected --check alone")
        if "readme" in study.plan:
            update(SCRIPTS.parent / "README.md", study.readme_table(), options.check, MARKER)
        write_page(study.path, study.page(), f"python scripts/tables.py {study.name} page", options.check)
        return
    show_messages()
    tables = options.only or [*study.plan["tables"]]
    if unknown := [name for name in tables if name not in study.plan["tables"]]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(study.plan['tables'])}")
    texts = study.texts_of(tables)
    folders = {name: getattr(options, name) for name in ("data", "minilm", "mpnet")}
    if missing := [name for name in folders if folders[name] is None and any(f"{{{name}}}" in text for text in texts)]:
        parser.error(f"--{missing[0]}: expected a folder")
    study.run(tables, options.output_dir or Path("runs") / study.name, folders, rest)


if __name__ == "__main__":
    run_script(main)
