"""Exported models answer in a browser, through transformers.js, as they do in PyTorch."""

import sys
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from transformers import BertForQuestionAnswering, BertForSequenceClassification, BertTokenizer

import tiny
from cli.test_main import CONTEXT

for library in ("onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="the extra export is not installed")
pytest.importorskip("playwright", reason="needs playwright: pip install 'itrd_nlp[dev]'")
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "browser"))

import check  # noqa: E402

from itrd_nlp.export.export import export  # noqa: E402
from itrd_nlp.inference.answering import answer  # noqa: E402
from itrd_nlp.inference.texts import classify  # noqa: E402
from itrd_nlp.models.onnx_model import FILES  # noqa: E402


def test_the_server_has_the_page_and_the_files_of_one_folder_alone(tmp_path):
    (tmp_path / "exported" / "onnx").mkdir(parents=True)
    (tmp_path / "exported" / "onnx" / "model.onnx").write_bytes(b"weights")
    (tmp_path / "secret.txt").write_text("not for the page")
    with check.served(tmp_path / "exported") as address:
        root = address.removesuffix("index.html")
        assert b"transformers.min.js" in urlopen(address).read()
        assert urlopen(f"{root}model/onnx/model.onnx").read() == b"weights"
        for path in ("model/../secret.txt", "model/%2e%2e/secret.txt", "model/none.json"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(root + path)
    assert check.is_local(address) and not check.is_local("https://cdn.example.org/x.wasm")


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification"])
def test_probabilities_are_compared_without_their_temperature(tmp_path, problem):
    logits = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    chances = torch.sigmoid if problem.startswith("multi") else partial(torch.softmax, dim=0)
    tiny.config(problem_type=problem, calibration_temperature=2.0).save_pretrained(tmp_path)
    there = check.plain(dict(zip("abc", chances(logits / 2).tolist(), strict=True)), tmp_path)
    assert there == pytest.approx(dict(zip("abc", chances(logits).tolist(), strict=True)))


@pytest.fixture(scope="module")
def browser(request):
    """A browser, where transformers.js is there too."""
    if not check.LIBRARY.is_dir():
        pytest.skip("needs transformers.js: npm install --prefix scripts/browser --ignore-scripts")
    return request.getfixturevalue("chromium")


@pytest.fixture(scope="module")
def words(tokenizer):
    """A tokenizer of the class that BERT's models have: transformers.js knows by it that they read token types."""
    return BertTokenizer(vocab=tokenizer.get_vocab())


def exported(place, kind, tokenizer, **fields):
    """The folder of a model whose outputs differ clearly, and that of its export."""
    torch.manual_seed(1)
    config = tiny.config(layers=2, vocab_size=len(tokenizer), max_position_embeddings=512, **fields)
    config.initializer_range = 0.2
    kind(config).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    export(str(place / "model"), place / "onnx")
    return str(place / "model"), place / "onnx"


@pytest.mark.slow
def test_questions(browser, tmp_path, words):
    model, folder = exported(tmp_path, BertForQuestionAnswering, words)
    questions = [[question, CONTEXT] for question in ("who was in the house", "where was the king?", "who is it")]
    for form, file in FILES.items():
        results = check.predict(browser, folder, "question-answering", form, questions)
        source = model if form == "fp32" else folder / file
        for result, pair in zip(results, questions, strict=True):
            assert result["answer"] == answer(source, *pair).text, (form, pair)


@pytest.mark.slow
def test_classes_of_texts(browser, tmp_path, words):
    labels = {0: "no", 1: "yes", 2: "maybe"}
    model, folder = exported(tmp_path, BertForSequenceClassification, words, id2label=labels)
    texts = ["the king", CONTEXT, "Who is in THE city?  (the 2nd)"]
    for form, file in FILES.items():
        results = check.predict(browser, folder, "text-classification", form, [[text, {"top_k": 3}] for text in texts])
        source = model if form == "fp32" else str(folder / file)
        for result, text in zip(results, texts, strict=True):
            expected = classify(source, text)["scores"]
            scores = {each["label"]: each["score"] for each in result}
            assert scores == pytest.approx(expected, abs=1e-4 if form == "fp32" else 0.01), (form, text)
