"""Run an exported model with onnxruntime and tokenizers alone; `itrd export` puts this file beside it.

python run.py QUESTION CONTEXT        the answer of a question-answering model
python run.py TEXT [TEXT]             classes of a text or pair, tags of its words, or its embedding
python run.py QUERY DOCUMENT [...]    the documents of a reranker, the most relevant one first
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

from itrd_nlp.tasks.metrics import relevance
from itrd_nlp.tasks.question_answering.spans import Windows, find_answers
from itrd_nlp.utils.errors import UserError

TOKEN_INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}  # in tokenizers


class Model:
    """One of the models in an exported folder.

    Args:
        folder: where this file is.
        file: in it; onnx/model_quantized.onnx is the int8 one.
        threads: of a forward, which sleep between two; None: onnxruntime's choice, which keeps a core busy.
    """

    def __init__(self, folder: Path, file: str = "onnx/model.onnx", threads: int | None = None):
        import onnxruntime

        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.temperature = self.config.get("calibration_temperature")  # of probabilities
        self.record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if not (folder / file).is_file():
            raise UserError(f"--model {file}: there is no such file in {folder}")
        # the first one's kernel is slow on CPUs; the second one rounds the sums of binary networks, and signs flip
        fusions = {"disabled_optimizers": ["SkipLayerNormFusion", "ConvMulFusion"]}
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(folder / file, options, providers=providers, **fusions)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        if "input_ids" in self.inputs:
            from tokenizers import Tokenizer

            self.settings = self.record["settings"]
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.encode_special_tokens = self.settings["split_special_tokens"]

    def __call__(self, *inputs: str) -> Any:
        """Predict an image's file, one text or two."""
        if "pixel_values" in self.inputs:
            if len(inputs) > 1:
                raise UserError(f"{len(inputs)} images: expected one")
            return self.classes(self.run(pixel_values=self.pixels(inputs[0]))["logits"][0])
        if "start_logits" in self.outputs:
            if len(inputs) != 2:
                raise UserError(f"{len(inputs)} texts: expected a question and a context")
            return self.answer(*inputs)
        if self.settings.get("ranks"):
            return self.ranking(*inputs)
        if not 1 <= len(inputs) <= 2:
            raise UserError(f"{len(inputs)} texts: expected one, or two")
        if not inputs[0].strip():
            raise UserError("the text is empty: expected text")
        if "last_hidden_state" in self.outputs:
            vectors = [self.embedding(text) for text in inputs]
            return vectors[0].tolist() if len(inputs) == 1 else float(vectors[0] @ vectors[1])
        if self.record["architecture"].endswith("ForTokenClassification"):
            if len(inputs) > 1:
                raise UserError("two texts: this model tags the words of one")
            return self.tags(inputs[0])
        return self.classes(self.run_texts([self.encode(*inputs)])["logits"][0])

    def run(self, **feed: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def run_texts(self, texts: list[Any]) -> dict[str, np.ndarray]:
        """The outputs by name for encoded texts of the same length."""
        feed = {name: [getattr(text, TOKEN_INPUTS[name]) for text in texts] for name in self.inputs}
        # on Windows, numpy 1 would make integers of 32 bits, which the model refuses
        return self.run(**{name: np.array(values, dtype=np.int64) for name, values in feed.items()})

    def encode(self, text: Any, second: Any = None, **options: Any) -> Any:
        """The tokens of a text or pair, cut to ``max_length``."""
        self.truncate()
        return self.tokenizer.encode(text, second, **options)

    def truncate(self, **options: Any) -> None:
        """Let the tokenizer cut texts to ``max_length`` from now on, without padding."""
        self.tokenizer.no_padding()
        direction = self.settings["truncation_side"]
        self.tokenizer.enable_truncation(self.settings["max_length"], direction=direction, **options)

    def classes(self, logits: np.ndarray) -> Any:
        """The probability of each class, the highest first; the value of a regression, or one for each target."""
        kind = self.config.get("problem_type")
        scaled = logits.astype(np.float64) / (self.temperature or 1)
        if kind == "multi_label_classification":
            scores = logistic(scaled)
        elif len(logits) == 1:
            return float(logits[0])
        elif kind == "regression":
            return dict(zip(self.record["labels"], map(float, logits), strict=True))
        else:
            scores = np.exp(scaled - scaled.max())
            scores /= scores.sum()
        return {self.record["labels"][index]: float(scores[index]) for index in np.argsort(-scores)}

    def ranking(self, query: str, *documents: str) -> list[dict[str, Any]]:
        """The documents, the most relevant one first, with their scores; documents are cut, never the query."""
        if not documents:
            raise UserError("a query alone: expected documents too")
        if not all(text.strip() for text in (query, *documents)):
            raise UserError("the query or a document is empty: expected text")
        self.tokenizer.no_truncation()
        tokens = len(self.tokenizer.encode(query, add_special_tokens=False).ids)
        if tokens >= self.settings["max_length"] - self.tokenizer.num_special_tokens_to_add(True):
            raise UserError(f"the query has {tokens} tokens, which leave no room for a document: shorten it")
        self.truncate(strategy="only_second")
        logits = [self.run_texts([self.tokenizer.encode(query, text)])["logits"][0] for text in documents]
        scores = [relevance(each) for each in logits]
        order = sorted(range(len(documents)), key=lambda index: -scores[index])
        results = [{"index": i, "score": float(scores[i]), "document": documents[i]} for i in order]
        if self.temperature is not None and len(logits[0]) == 1:
            results = [{**each, "probability": float(logistic(each["score"] / self.temperature))} for each in results]
        return results

    def embedding(self, text: str) -> np.ndarray:
        """The mean of all tokens' vectors, or the first, as the config says, of length 1: dot products are cosines."""
        vectors = self.run_texts([self.encode(text)])["last_hidden_state"][0]
        vector = vectors[0] if self.config.get("sentence_pooling") == "cls" else vectors.mean(0)
        return vector / np.linalg.norm(vector)

    def tags(self, text: str) -> list[list[str | None]]:
        """Each word with the tag of its first token; None for a word beyond ``max_length``."""
        words = text.split()
        tokens = self.encode(words, is_pretokenized=True)
        best = self.run_texts([tokens])["logits"][0].argmax(1)
        tags: list[str | None] = [None] * len(words)
        for index, word in reversed(list(enumerate(tokens.word_ids))):  # a word's first token comes last and wins
            if word is not None:
                tags[word] = self.record["labels"][best[index]]
        return [[word, tag] for word, tag in zip(words, tags, strict=True)]

    def answer(self, question: str, context: str) -> dict[str, Any]:
        """The best span of the context over its windows, as in evaluation; infinite scores become None."""
        for kind, text in (("question", question), ("context", context)):
            if not text.strip():
                raise UserError(f"the {kind} is empty: expected text")
        question = self.cut(question.strip(), self.settings["question_tokens"])
        self.truncate(stride=self.settings["doc_stride"], strategy="only_second")
        tokens = self.tokenizer.encode(question, context)
        windows = [tokens, *tokens.overflowing]
        spans = self.context_spans(windows)
        longest = max(len(window.ids) for window in windows)
        for window in windows:
            window.pad(longest, pad_id=self.settings["pad_token_id"])
        outputs = self.run_texts(windows)
        options = {name: self.settings[name] for name in ("n_best", "max_answer_length", "null_threshold")}
        (result,) = find_answers(outputs["start_logits"], outputs["end_logits"], spans, [context], **options)
        values = result._asdict().items()
        return {name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in values}

    def cut(self, question: str, limit: int) -> str:
        """The question without the tokens beyond a limit."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        offsets = self.tokenizer.encode(question, add_special_tokens=False).offsets
        return question[: offsets[limit][0]].rstrip() if len(offsets) > limit else question

    def context_spans(self, windows: list[Any]) -> Windows:
        """The characters of each token in the context; "no answer" is at the CLS token, or else at the first."""
        cls = self.settings["cls_token_id"]
        columns: dict[str, list[Any]] = {"null_position": [], "char_starts": [], "char_ends": []}
        for window in windows:
            columns["null_position"].append(window.ids.index(cls) if cls in window.ids else 0)
            parts = zip(window.sequence_ids, window.offsets, strict=True)
            offsets = [span if part == 1 else (-1, -1) for part, span in parts]
            columns["char_starts"].append([start for start, _ in offsets])
            columns["char_ends"].append([end for _, end in offsets])
        return Windows.from_features({**columns, "example_index": [0] * len(windows)})

    def pixels(self, file: str) -> np.ndarray:
        """The pixel values of an image, (1, 3, height, width)."""
        from PIL import Image

        module = runpy.run_path(str(self.folder / "pixels.py"))
        try:
            image = module["coloured"](Image.open(file))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{file}: expected a picture ({error})") from None
        if steps := self.record["preprocessing"]:
            return np.asarray(module["pixels"](image, steps))[None]
        try:
            import torchvision  # noqa: F401
            from transformers import AutoImageProcessor
        except ImportError:
            raise UserError("this model's image processor needs: pip install transformers torch torchvision") from None
        backend = self.record["backend"]
        processor = AutoImageProcessor.from_pretrained(self.folder, backend=backend, trust_remote_code=False)
        return np.asarray(processor(image, return_tensors="pt")["pixel_values"])


def logistic(values: Any) -> Any:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0, -values))


def main() -> int:
    """Print a prediction as JSON; wrong input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="as above")
    parser.add_argument("--model", default="onnx/model.onnx", help="file in this folder")
    arguments = parser.parse_args()
    try:
        result = Model(Path(__file__).resolve().parent, arguments.model)(*arguments.inputs)
    except UserError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(result, ensure_ascii=not unicode))
    return 0


if __name__ == "__main__":
    sys.exit(main())
