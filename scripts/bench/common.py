"""What the benchmarks share: sides that take turns in one process, tables, and records."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForQuestionAnswering

from itrd_nlp.training.record import short_commit
from itrd_nlp.utils.environment import provenance
from itrd_nlp.utils.io import write_json
from itrd_nlp.utils.tables import markdown_table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
SHAPES = {
    "tiny": {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 48},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}


def arguments(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--record", action="store_true", help=f"keep the result in {RESULTS.parent.name}/bench")
    return parser


def bert(shape: str, seed: int = 0, **changes: Any) -> BertForQuestionAnswering:
    """A BERT of random weights; without attention dropout, which takes CPUs off their fast attention."""
    torch.manual_seed(seed)
    return BertForQuestionAnswering(BertConfig(**SHAPES[shape], attention_probs_dropout_prob=0.0, **changes))


def origin(record: Mapping[str, Any], libraries: Sequence[str] = ("torch", "transformers")) -> str:
    """Device, versions and commit of a record."""
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in libraries)
    return f"{record['device']}; {versions}; commit {short_commit(record['commit'], record['dirty'])}"


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, half the interquartile range and number of repeats."""
    if len(values) < 2:
        return {"median": values[0], "spread": 0.0, "n": 1}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "spread": (high - low) / 2, "n": len(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Summary of the ratios of two sides' times, turn by turn."""
    return summary([a / b for a, b in zip(over, under, strict=True)])


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, printed."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    table = markdown_table(columns, cells)
    print(f"\n{table}\n", flush=True)
    return table


def finish(name: str, headline: dict[str, Any], details: dict[str, Any], options: argparse.Namespace) -> None:
    """Keep the result where asked, and print its headline as the last line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = {key: Path(value).name if isinstance(value, Path) else value for key, value in vars(options).items()}
    record = {"benchmark": name, **headline, **details, "options": asked, **provenance(device)}
    if options.record:
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS / f"{name}.json", record)
    print(json.dumps(headline))
