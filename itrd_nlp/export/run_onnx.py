"""Run an exported model with onnxruntime and tokenizers alone; `itrd export` puts this file beside it.

python run.py QUESTION CONTEXT        what a question-answering model answers
python run.py TEXT [TEXT]             classes of a text or a pair of them, of its words, or its mean vector
python run.py IMAGE                   classes of an image (needs Pillow, and pixels.py beside this file)
"""

import argparse
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np

from itrd_nlp.tasks.question_answering.spans import Windows, find_answers
from itrd_nlp.utils.errors import UserError


class Model:
    """An exported folder.

    Args:
        folder: where it lies.
        file: which of its models.
    """

    def __init__(self, folder: Path, file: str = "model.onnx"):
        import onnxruntime

        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if not (folder / file).is_file():
            raise UserError(f"--model {file}: there is no such file in {folder}")
        self.session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        if "input_ids" in self.inputs:
            from tokenizers import Tokenizer

            self.settings = self.record["settings"]
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.encode_special_tokens = self.settings["split_special_tokens"]

    def __call__(self, *given: str) -> Any:
        """What the model says of an image's file, of a text or of two."""
        if "pixel_values" in self.inputs:
            if len(given) > 1:
                raise SystemExit(f"{len(given)} images: expected one")
            return self.classes(self.run(pixel_values=self.pixels(given[0]))["logits"][0])
        if "start_logits" in self.outputs:
            if len(given) != 2:
                raise UserError(f"{len(given)} texts: expected a question and a context")
            return self.answer(*given)
        if not 1 <= len(given) <= 2:
            raise UserError(f"{len(given)} texts: expected one, or two")
        if not given[0].strip():
            raise UserError("the text is empty: expected text")
        if "last_hidden_state" in self.outputs:
            vectors = [self.embedding(text) for text in given]
            return vectors[0].tolist() if len(given) == 1 else float(vectors[0] @ vectors[1])
        if self.record["architecture"].endswith("ForTokenClassification"):
            return self.tags(*given)
        return self.classes(self.run_texts([self.encode(*given)])["logits"][0])

    def encode(self, text: Any, second: Any = None, **options: Any) -> Any:
        """The tokens of a text or a pair, cut to what the model was evaluated with."""
        self.truncate()
        return self.tokenizer.encode(text, second, **options)

    def truncate(self, **options: Any) -> None:
        """Let the tokenizer cut texts to ``max_length`` from now on, and pad none."""
        self.tokenizer.no_padding()
        direction = self.settings["truncation_side"]
        self.tokenizer.enable_truncation(self.settings["max_length"], direction=direction, **options)

    def embedding(self, text: str) -> np.ndarray:
        """The mean of a text's tokens, special ones included, of length 1: dot products are cosines."""
        vector = self.run_texts([self.encode(text)])["last_hidden_state"][0].mean(0)
        return vector / np.linalg.norm(vector)

    def tags(self, text: str, *more: str) -> list[list[str | None]]:
        """Each word and its tag, that of its first token; None where it was not read, as beyond ``max_length``."""
        if more:
            raise UserError("two texts: this model tags the words of one")
        words = text.split()
        tokens = self.encode(words, is_pretokenized=True)
        best = self.run_texts([tokens])["logits"][0].argmax(1)
        tags: list[str | None] = [None] * len(words)
        for place in reversed(range(len(best))):  # the first token of a word comes last
            if tokens.word_ids[place] is not None:
                tags[tokens.word_ids[place]] = self.record["labels"][best[place]]
        return [[word, tag] for word, tag in zip(words, tags, strict=True)]

    def answer(self, question: str, context: str) -> dict[str, Any]:
        """The best span of the context over windows of it, as in evaluation; infinite scores are None."""
        for kind, text in (("question", question), ("context", context)):
            if not text.strip():
                raise UserError(f"the {kind} is empty: expected text")
        settings = self.settings
        question = self.cut(question.strip(), settings["question_tokens"])
        self.truncate(stride=settings["doc_stride"], strategy="only_second")
        tokens = self.tokenizer.encode(question, context)
        windows = [tokens, *tokens.overflowing]
        places = self.places(windows)
        self.pad(windows, settings["pad_token_id"])
        made = self.run_texts(windows)
        found = find_answers(
            made["start_logits"],
            made["end_logits"],
            places,
            [context],
            n_best=settings["n_best"],
            max_answer_length=settings["max_answer_length"],
            null_threshold=settings["null_threshold"],
        )[0]
        values = found._asdict().items()
        return {name: x if isinstance(x, str) or math.isfinite(x) else None for name, x in values}

    def cut(self, question: str, limit: int) -> str:
        """The question without what lies beyond so many tokens."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        offsets = self.tokenizer.encode(question, add_special_tokens=False).offsets
        return question[: offsets[limit][0]].rstrip() if len(offsets) > limit else question

    @staticmethod
    def pad(windows: list[Any], padding: int) -> None:
        """Fill windows up to the longest, on the right."""
        longest = max(len(window.ids) for window in windows)
        for window in windows:
            window.pad(longest, pad_id=padding)

    def places(self, windows: list[Any]) -> Windows:
        """Where the tokens of windows lie in their context; the no-answer position is that of CLS, else the first."""
        null, starts, ends = [], [], []
        for window in windows:
            ids, start = window.ids, self.settings["cls_token_id"]
            null.append(ids.index(start) if start in ids else 0)
            inside = [part == 1 for part in window.sequence_ids]
            pairs = [offsets if held else (-1, -1) for held, offsets in zip(inside, window.offsets, strict=True)]
            starts.append([first for first, _ in pairs])
            ends.append([last for _, last in pairs])
        columns = {"example_index": [0] * len(windows), "null_position": null}
        return Windows.from_features({**columns, "char_starts": starts, "char_ends": ends})

    def run_texts(self, texts: list[Any]) -> dict[str, np.ndarray]:
        """The outputs by name for encoded texts of one length."""
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        return self.run(**{name: np.array([getattr(t, columns[name]) for t in texts]) for name in self.inputs})

    def run(self, **feed: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def classes(self, logits: np.ndarray) -> Any:
        """The probability of each class, the highest first; of a regression the value."""
        kind = self.config.get("problem_type")
        logits = logits.astype(np.float64)
        if kind == "multi_label_classification":
            scores = np.exp(-np.logaddexp(0, -logits))
        elif kind == "regression" or len(logits) == 1:
            return float(logits[0])
        else:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        return {self.record["labels"][place]: float(scores[place]) for place in np.argsort(-scores)}

    def pixels(self, file: str) -> np.ndarray:
        """An image as the model wants it, (1, 3, height, width)."""
        from PIL import Image

        pictures = runpy.run_path(str(self.folder / "pixels.py"))
        try:
            image = pictures["coloured"](Image.open(file))
        except (OSError, ValueError, SyntaxError) as error:
            raise SystemExit(f"{file}: expected a picture ({error})") from None
        if how := self.record["preprocessing"]:
            return np.asarray(pictures["pixels"](image, how))[None]
        try:
            import torchvision  # noqa: F401
            from transformers import AutoImageProcessor
        except ImportError:
            raise SystemExit("this model's image processor needs: pip install transformers torch torchvision") from None
        own = AutoImageProcessor.from_pretrained(self.folder, backend=self.record["backend"], trust_remote_code=False)
        return np.asarray(own(image, return_tensors="pt")["pixel_values"])


def main() -> int:
    """Print what the model says; wrong input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="+", help="question and context, one text or two, or an image's file")
    parser.add_argument("--model", default="model.onnx", help="file beside this one")
    arguments = parser.parse_args()
    try:
        found = Model(Path(__file__).resolve().parent, arguments.model)(*arguments.given)
    except UserError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(found, ensure_ascii=not unicode))
    return 0


if __name__ == "__main__":
    sys.exit(main())
