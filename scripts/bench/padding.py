"""How much of an epoch's tokens is padding, by how batches are made.

    python scripts/bench/padding.py --model FOLDER --train_file train.json

Windows of up to 384 tokens, batches of 16, or of as many tokens as 16 full windows.
"""

import tempfile
from pathlib import Path

import datasets
import torch
from common import arguments, finish, show
from transformers import AutoTokenizer

from itrd_nlp.tasks.question_answering.data import load_squad
from itrd_nlp.tasks.question_answering.task import SquadTask
from itrd_nlp.training.sampling import EpochLengthSampler
from itrd_nlp.utils.batches import token_batches

LENGTH, STRIDE, BATCH = 384, 128, 16


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="its tokenizer is used")
    parser.add_argument("--train_file", type=Path, required=True)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    questions, _, _ = load_squad(None, str(options.train_file), None)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        task = SquadTask(
            AutoTokenizer.from_pretrained(options.model), questions, None, max_length=LENGTH, doc_stride=STRIDE
        )
        lengths = task.train_dataset.with_format(None)["length"][:]
    orders = {
        "random": torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist(),
        "grouped": list(EpochLengthSampler(BATCH, None, lengths, 0, lambda: 0)),
    }
    batches = {name: [order[i : i + BATCH] for i in range(0, len(order), BATCH)] for name, order in orders.items()}
    batches["tokens"] = token_batches(lengths, BATCH * LENGTH)
    shares = {"full": 1 - sum(lengths) / (LENGTH * len(lengths))}
    for name, made in batches.items():
        shares[name] = 1 - sum(lengths) / sum(len(batch) * max(lengths[i] for i in batch) for batch in made)
    show(["share of padding", *shares], [[f"{len(lengths)} windows", *shares.values()]])
    finish("padding", shares, {"windows": len(lengths), "mean_tokens": sum(lengths) / len(lengths)}, options)


if __name__ == "__main__":
    main()
