"""What a run survives: the tests that are marked with a promise, and the page that counts them.

    python scripts/reliability.py run
    python scripts/reliability.py page

``run`` starts these tests and records how many cases each promise had and how many failed; what safety costs is
measured by ``scripts/bench/safety.py``, and a memory for tiny batches by ``scripts/bench/memory_bank.py``. ``page``
writes ``docs/reliability.md`` from these records and the words in ``scripts/reliability.yaml``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from bench.common import origin
from studies import write_page

from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.io import read_json, write_json
from itrd_nlp.utils.tables import markdown_table

LIBRARIES = ("python", "torch", "transformers")
ROOT = Path(__file__).resolve().parents[1]
WORDS = ROOT / "scripts" / "reliability.yaml"
RECORD = ROOT / "scripts" / "results" / "reliability" / "promises.json"
BENCH = ROOT / "scripts" / "results" / "bench"
PAGE = ROOT / "docs" / "reliability.md"


def measure() -> None:
    """Run the tests of all promises and write their record."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "promises.json"
        words = ["-m", "pytest", "-m", "promise", "--promises", str(counts), "--numprocesses", "2", "tests"]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
        found = json.loads(counts.read_text(encoding="utf-8"))
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    write_json(RECORD, {"promises": found, **provenance(torch.device("cpu"))})


def page() -> str:
    """The page, from the records."""
    words = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    paths = (RECORD, BENCH / "safety.json", BENCH / "memory_bank.json")
    record, safety, memory = [read_json(path) for path in paths]
    if lacking := {*record["promises"]} - {*words["promises"]}:
        raise SystemExit(f"{WORDS.name} lacks the promise {min(lacking)!r} of the record: add it")
    rows = []
    for name, said in words["promises"].items():
        count = record["promises"].get(name)
        cells = [f"{count['cases']:,}", str(count["failures"])] if count else ["not counted yet", ""]
        rows.append([said["promise"], said["tested"], *cells])
    table = markdown_table(["promise", "how it is tested", "cases", "failures"], rows, texts=2)
    parts = [words["introduction"], table, "", origin(record, LIBRARIES) + ".", "", words["processes"], costs(safety)]
    parts += ["", words["memory"], memory["table"], "", origin(memory, LIBRARIES) + "."]
    return "\n".join(parts) + "\n"


def costs(safety: dict[str, Any]) -> str:
    """Ratios of steps, and of writing a checkpoint."""
    ratios = safety["ratios"].items()
    rows = [[name, f"{row['median']:.3f} ± {row['spread']:.3f}", str(row["n"])] for name, row in ratios]
    table = markdown_table(["", "ratio", "n"], rows)
    return f"## What safety costs\n\n{table}\n\n{safety['setting']} {origin(safety, LIBRARIES)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--check", action="store_true", help="with page: only fail where it is stale")
    options = parser.parse_args()
    if options.what == "run":
        measure()
        return
    write_page(PAGE, page(), "python scripts/reliability.py page", options.check)


if __name__ == "__main__":
    main()
