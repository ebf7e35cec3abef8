"""Run an exported model with onnxruntime and tokenizers alone; `itrd export` puts this file beside it.

python run.py QUESTION CONTEXT        what a question-answering model answers
python run.py TEXT [TEXT]             classes of a text or a pair of them, of its tokens, or its mean vector
python run.py IMAGE                   classes of an image (needs Pillow, and pixels.py beside this file)
"""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

STRIDE = 3  # windows of a long context overlap by a third
LONGEST_ANSWER = 30  # tokens


class Model:
    """An exported folder.

    Args:
        folder: where it lies.
        file: which of its models.
    """

    def __init__(self, folder: Path, file: str = "model.onnx"):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        if "input_ids" in self.inputs:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            padding = self.config.get("pad_token_id") or 0
            self.tokenizer.enable_padding(pad_id=padding, pad_token=self.tokenizer.id_to_token(padding))

    def __call__(self, *given: str) -> Any:
        """What the model says of an image's file, of a text or of two."""
        if "pixel_values" in self.inputs:
            if len(given) > 1:
                raise SystemExit(f"{len(given)} images: expected one")
            return self.classes(self.run(pixel_values=self.pixels(given[0]))["logits"][0])
        if "start_logits" in self.outputs:
            return self.answer(*given)
        self.tokenizer.enable_truncation(self.record["max_length"])
        text = self.tokenizer.encode(given[0], given[1] if len(given) > 1 else None)
        made = self.run_texts([text])
        if "last_hidden_state" in made:
            return made["last_hidden_state"][0].mean(0).tolist()
        logits = made["logits"][0]
        if logits.ndim == 1:
            return self.classes(logits)
        names = [self.record["labels"][place] for place in logits.argmax(1)]
        kept = zip(text.tokens, names, text.special_tokens_mask, strict=True)
        return [[token, name] for token, name, special in kept if not special]

    def answer(self, question: str, context: str) -> dict[str, Any]:
        """The best span of the context, over windows of it, and the sum of its two logits."""
        longest = self.record["max_length"]
        self.tokenizer.enable_truncation(longest, stride=longest // STRIDE, strategy="only_second")
        text = self.tokenizer.encode(question.strip(), context)
        windows = [text, *text.overflowing]
        made = self.run_texts(windows)
        best: dict[str, Any] = {"text": "", "logit": -np.inf}
        for window, start, end in zip(windows, made["start_logits"], made["end_logits"], strict=True):
            inside = np.array([part == 1 for part in window.sequence_ids])
            spans = np.where(inside[:, None] & inside, start[:, None] + end, -np.inf)
            spans = np.where(np.triu(np.tri(len(spans), k=LONGEST_ANSWER - 1)) > 0, spans, -np.inf)
            first, last = np.unravel_index(spans.argmax(), spans.shape)
            if spans[first, last] > best["logit"]:
                begin, stop = window.offsets[first][0], window.offsets[last][1]
                best = {"text": context[begin:stop], "start": begin, "end": stop, "logit": float(spans[first, last])}
        return best

    def run_texts(self, texts: list[Any]) -> dict[str, np.ndarray]:
        """The outputs by name for encoded texts of one length."""
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        return self.run(**{name: np.array([getattr(t, columns[name]) for t in texts]) for name in self.inputs})

    def run(self, **feed: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def classes(self, logits: np.ndarray) -> Any:
        """The probability of each class; of a regression the value."""
        kind = self.config.get("problem_type")
        if kind == "regression" or len(logits) == 1:
            return float(logits[0])
        scores = 1 / (1 + np.exp(-logits))
        if kind != "multi_label_classification":
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="+", help="question and context, one text or two, or an image's file")
    parser.add_argument("--model", default="model.onnx", help="file beside this one")
    arguments = parser.parse_args()
    model = Model(Path(__file__).resolve().parent, arguments.model)
    print(json.dumps(model(*arguments.given), ensure_ascii=False))
