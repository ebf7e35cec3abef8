"""What a training step costs where teacher and student have tokenizers of their own.

    python scripts/bench/alignment.py

Every row trains the same layers of a BERT with random weights on the same made-up questions, cut by the student's
byte-level BPE. Rows that distil also read from the cache what a teacher with WordPiece outputs, and align it by
characters. Rows take turns in one process.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import SHAPES, arguments, bert, finish, ratio, show, summary
from datasets import Dataset, disable_progress_bars
from step_cost import BATCH, LAYERS, ready, stepper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from itrd_nlp import ITRDArguments, student_from_teacher
from itrd_nlp.experiments.train import build_trainer
from itrd_nlp.export.latency import take_turns
from itrd_nlp.tasks.question_answering.task import SquadTask

ITRD, KD = {"itrd": {"beta_mi": 0}}, {"kd": {"temperature": 8}}
ROWS: dict[str, dict[str, Any]] = {  # arguments of the trainer; without losses it fine-tunes
    "fine-tuning": {},
    "kd": {"losses": KD},
    "itrd, mean": {"losses": ITRD},
    "itrd, tokens:32": {"losses": ITRD, "pooling": "tokens:32"},
    "itrd, tokens": {"losses": ITRD, "pooling": "tokens"},
    "itrd + kd, tokens": {"losses": {**ITRD, **KD}, "pooling": "tokens"},
}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
WORDS, PIECES = 3000, 2000  # different words of the texts, and pieces of each tokenizer


def questions(count: int) -> Dataset:
    """Questions of ten words on contexts of fifty: about 100 tokens together."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(WORDS)]
    rows = []
    for i in range(count):
        context = draw.choices(words, k=50)
        answer = {"text": [context[20]], "answer_start": [len(" ".join(context[:20])) + 1]}
        rows.append(
            {
                "id": str(i),
                "question": " ".join(draw.choices(words, k=10)),
                "context": " ".join(context),
                "answers": answer,
            }
        )
    return Dataset.from_list(rows)


def tokenizer(texts: Sequence[str], kind: str) -> PreTrainedTokenizerFast:
    """A WordPiece or byte-level BPE tokenizer that was trained on some texts."""
    options: dict[str, Any] = {
        "vocab_size": PIECES,
        "special_tokens": [*SPECIAL.values()],
        "show_progress": False,
    }
    if kind == "WordPiece":
        backend, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer(**options)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    else:
        backend, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.train_from_iterator(texts, trainer)
    ends = [(SPECIAL[name], backend.token_to_id(SPECIAL[name])) for name in ("sep_token", "cls_token")]
    backend.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **SPECIAL)


def measure(shape: str, repeats: int, folder: Path) -> dict[str, Any]:
    """All rows at one shape."""
    data = questions(BATCH)
    texts = [*data["question"], *data["context"]]
    of_student, of_teacher = (tokenizer(texts, kind) for kind in ("BPE", "WordPiece"))
    teacher = bert(shape)
    steps: dict[str, Callable[[], None]] = {}
    for row, options in ROWS.items():
        distils = "losses" in options
        task = SquadTask(of_student, data, None, teacher_tokenizer=of_teacher if distils else None)
        args = ITRDArguments(
            str(folder / "out"),
            per_device_train_batch_size=BATCH,
            disable_tqdm=True,
            **{"teacher_cache": str(folder / "teacher"), "losses": ITRD, **options},
        )
        student = student_from_teacher(teacher, f"even:{LAYERS}", verbose=False)
        steps[row] = stepper(ready(build_trainer(student, teacher if distils else None, args, task)))
    times = take_turns(steps, repeats, warmup=2)
    lengths = {"student": task.train_dataset["length"], "teacher": task.train_dataset["teacher_length"]}
    tokens = {model: [min(own), max(own)] for model, own in lengths.items()}
    base = times["fine-tuning"]
    return {
        "precision": "bf16" if args.bf16 else "fp32",
        "tokens": tokens,
        "steps": {row: {"seconds": summary(t), "over_finetune": ratio(t, base)} for row, t in times.items()},
    }


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["minilm", "bert-base"], choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        shapes = {shape: measure(shape, options.repeats, Path(folder) / shape) for shape in options.shapes}
    for shape, measured in shapes.items():
        print(f"{shape}, {LAYERS} layers, {BATCH} texts, {measured['precision']}, n = {options.repeats}")
        print(", ".join(f"{low} to {high} tokens of the {model}" for model, (low, high) in measured["tokens"].items()))
        rows = [
            [row, step["seconds"]["median"], step["over_finetune"]["median"], step["over_finetune"]["spread"]]
            for row, step in measured["steps"].items()
        ]
        show(["step", "seconds", "over fine-tuning", "±"], rows)
    last = shapes[options.shapes[-1]]["steps"]
    headline = {"aligned_over_finetune": last["itrd, mean"]["over_finetune"]["median"]}
    finish("alignment", headline, {"shapes": shapes, "setting": {"layers": LAYERS, "batch": BATCH}}, options)


if __name__ == "__main__":
    main()
