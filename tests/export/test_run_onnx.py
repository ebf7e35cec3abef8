"""The script of an exported folder says of the same texts what the package says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

import tiny
from itrd_nlp.export import run_onnx
from itrd_nlp.export.folder import text_settings, write_tokenizer
from itrd_nlp.inference.answering import answer, load_model
from itrd_nlp.inference.reranking import rerank
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.models.onnx_model import FUSIONS
from itrd_nlp.utils.errors import UserError

pytest.importorskip("onnxruntime", reason="the extra export is not installed")

ODD = "e\u0301tudes 🦊👩‍👩‍👧 市長の山田 שלום עולם\u202e \x00\x07\x1b[0m \u200b naïve ﬁ Ⅷ ½ [SEP] </s> [MASK]"
SHORT = "the king was in the house of the city"
CONTEXTS = {
    "short": SHORT,
    "one word": "king",
    "long": " and then ".join([SHORT] * 40),
    "odd": ODD,
    "odd and long": f"{ODD} {SHORT}. " * 12,
    "blanks": f"  \n\t{SHORT} \n\n  {SHORT}\u00a0 ",
    "no token": "\x00\x01",
    "one long word": "k" * 300,
    "capitals": SHORT.upper(),
}
QUESTIONS = {
    "short": "who was in the house?",
    "blanks": "  who was it ",
    "long": "who was the king of the city in the house and where was it " * 20,
    "odd": ODD,
}


def of_bytes(prefix: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, as RoBERTa's: no token types, and its padding is number 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, [("t", "h")] if "th" in vocabulary else []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="<s>",
        sep_token="</s>",
        add_prefix_space=prefix,
        **names,
    )


def changed(tokenizer, **options) -> PreTrainedTokenizerFast:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = {name: getattr(tokenizer, name) for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if options.pop("cased", False):
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    if options.pop("stored", False):  # what a file may hold is not what counts
        backend.enable_truncation(5)
        backend.enable_padding(length=40)
    defaults = {"model_max_length": 512, "model_input_names": names, **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**defaults, **options})


TOKENIZERS = {
    "bert": lambda bert: bert,
    "cased": lambda bert: changed(bert, cased=True),
    "no token types": lambda bert: changed(bert, model_input_names=["input_ids", "attention_mask"]),
    "few positions": lambda bert: changed(bert, model_max_length=48),
    "cut on the left": lambda bert: changed(bert, truncation_side="left"),
    "special tokens as text": lambda bert: changed(bert, split_special_tokens=True),
    "padding of another number": lambda bert: changed(bert, pad_token="[MASK]"),
    "truncation in the file": lambda bert: changed(bert, stored=True),
    "bytes": lambda bert: of_bytes(prefix=False),
    "bytes after a blank": lambda bert: of_bytes(prefix=True),
}
HEADS = {
    "answers": (BertForQuestionAnswering, RobertaForQuestionAnswering),
    "classification": (BertForSequenceClassification, RobertaForSequenceClassification),
    "tagging": (BertForTokenClassification, RobertaForTokenClassification),
    "embedding": (BertModel, RobertaModel),
}


class Session:
    """PyTorch's model where onnxruntime's is expected, so that the two ways to read texts alone differ."""

    def __init__(self, model, inputs, outputs):
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.inputs]

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in self.outputs]

    @torch.no_grad()
    def run(self, _, feed):
        made = self.model(**{name: torch.from_numpy(value) for name, value in feed.items()})
        return [made[name].numpy() for name in self.outputs]


def saved(folder, head, tokenizer, seed=0, **fields):
    """A folder with a new model and its tokenizer."""
    torch.manual_seed(seed)
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.4}
    config = tiny.config(layers=2, **{"max_position_embeddings": 512, **options, **fields})
    kinds = HEADS[head]
    if "token_type_ids" not in tokenizer.model_input_names and tokenizer.pad_token_id == 1:
        values = {**config.to_dict(), "max_position_embeddings": config.max_position_embeddings + 2}
        del values["model_type"]
        kinds[1](RobertaConfig(**values)).eval().save_pretrained(folder)
    else:
        kinds[0](config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def script(folder, model, tokenizer, monkeypatch, task=None):
    """``run.py`` of an export of a model whose outputs are PyTorch's."""
    outputs = {"Answering": ["start_logits", "end_logits"], "Classification": ["logits"]}
    name = type(model).__name__
    made = next((outputs[kind] for kind in outputs if name.endswith(kind)), ["last_hidden_state"])
    labels = [] if not hasattr(model.config, "id2label") else [*model.config.id2label.values()]
    record = {"architecture": name, "labels": labels, "settings": text_settings(model, tokenizer, task)}
    (folder / "export.json").write_text(json.dumps(record))
    if name.endswith("TokenClassification"):
        write_tokenizer(folder, str(folder), "tagging", record["settings"]["max_length"], has_types=False)
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").touch()
    session, chosen, given = Session(model, [*tokenizer.model_input_names], made), {}, []
    monkeypatch.setattr(
        "onnxruntime.InferenceSession",
        lambda file, settings, **options: (given.append(settings), chosen.update(options), session)[-1],
    )
    script = run_onnx.Model(folder)
    assert chosen == {"providers": ["CPUExecutionProvider"], **FUSIONS}
    run_onnx.Model(folder, threads=3)
    assert given[-1].intra_op_num_threads == 3 and given[0].intra_op_num_threads == 0  # onnxruntime's choice
    (folder / "onnx" / "model.onnx").unlink()
    return script


def compare_answers(model, run, tokenizer, questions, contexts, **options):
    for question in questions:
        for context in contexts:
            found, wanted = run(question, context), answer(model, question, context, tokenizer, **options)._asdict()
            place = f"{question!r:.40} {context!r:.40}"
            assert (found["text"], found["start"], found["end"]) == (wanted["text"], wanted["start"], wanted["end"]), (
                place
            )
            for name in ("score", "no_answer_score"):
                if np.isfinite(wanted[name]):
                    assert found[name] == pytest.approx(wanted[name], abs=1e-4), place
                else:
                    assert found[name] is None


DRAWN = ("bert", "cut on the left", "bytes after a blank", "special tokens as text")  # in every run of the tests


@pytest.mark.parametrize(
    "name", [name if name in DRAWN else pytest.param(name, marks=pytest.mark.slow) for name in TOKENIZERS]
)
def test_answers(tmp_path, tokenizer, monkeypatch, name):
    own = TOKENIZERS[name](tokenizer)
    folder = saved(tmp_path, "answers", own, seed=len(name))
    model = load_model(folder)
    run = script(tmp_path, model, own, monkeypatch)
    compare_answers(model, run, own, QUESTIONS.values(), CONTEXTS.values())


@pytest.mark.parametrize("threshold", [None, -2.0, 0.0, 3.0])
@pytest.mark.parametrize(
    "lengths",
    [
        {"max_length": 64, "doc_stride": 16, "n_best": 2, "max_answer_length": 4},
        {"max_length": 40, "doc_stride": 0, "n_best": 1, "max_answer_length": 1},
        {"max_length": 384, "doc_stride": 300, "n_best": 50, "max_answer_length": 500},
    ],
)
def test_answers_as_the_task_that_scored_the_model(tmp_path, tokenizer, monkeypatch, lengths, threshold):
    folder = saved(tmp_path, "answers", tokenizer, seed=3)
    model = load_model(folder)
    task = SimpleNamespace(**lengths, has_unanswerable=threshold is not None, null_threshold=threshold or 0.0)
    run = script(tmp_path, model, tokenizer, monkeypatch, task)
    contexts = [CONTEXTS[name] for name in ("short", "long", "odd", "no token")]
    compare_answers(model, run, tokenizer, QUESTIONS.values(), contexts, **lengths, null_threshold=threshold)


TEXTS = [*CONTEXTS.values(), *QUESTIONS.values()]
PAIRS = [
    (SHORT, ODD),
    (CONTEXTS["long"], SHORT),
    (SHORT, CONTEXTS["long"]),
    (CONTEXTS["long"], CONTEXTS["odd and long"]),
]
KINDS = {
    "classification": {"id2label": {0: "no", 1: "yes", 2: "maybe"}},
    "multilabel": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "one label of several": {"num_labels": 1, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "one output": {"num_labels": 1},
    "calibrated": {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "calibration_temperature": 2.5},
    "calibrated, several": {
        "num_labels": 3,
        "problem_type": "multi_label_classification",
        "calibration_temperature": 0.3,
    },
}


@pytest.mark.parametrize("name", ["bert", "few positions", "cut on the left", "bytes after a blank"])
@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_scores(tmp_path, tokenizer, monkeypatch, kind, name):
    own = TOKENIZERS[name](tokenizer)
    package = TextModel(saved(tmp_path, "classification", own, **KINDS[kind]))
    run = script(tmp_path, package.model, own, monkeypatch)
    for texts in [*((text,) for text in TEXTS), *PAIRS]:
        said, found = package.predict_one(*texts), run(*texts)
        assert found == pytest.approx(said.get("scores", said.get("score")), abs=1e-5)
        if "label" in said:
            assert next(iter(found)) == said["label"]
        elif "scores" in said:
            assert [name for name in package.names if found[name] > 0.5] == said["labels"]


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_documents_are_ranked_with_their_probabilities(tmp_path, tokenizer, monkeypatch, temperature):
    fields = {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}
    if temperature:
        fields["calibration_temperature"] = temperature
    package = TextModel(saved(tmp_path, "classification", tokenizer, **fields))
    found = script(tmp_path, package.model, tokenizer, monkeypatch)("who was it", *TEXTS)
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    by_index = {each["index"]: each for each in found}
    for ours in rerank(package, "who was it", TEXTS):
        theirs = by_index[ours.index]
        assert theirs["document"] == ours.document and theirs["score"] == pytest.approx(ours.score, abs=1e-4)
        assert theirs.get("probability") == (temperature and pytest.approx(ours.probability, abs=1e-5))


def test_a_reranker_reads_as_many_tokens_as_its_tokenizer_says(tmp_path, tokenizer):
    for name, length, expected in (("a", 320, 320), ("b", 10**30, 512)):
        own = changed(tokenizer, model_max_length=length)
        fields = {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}
        package = TextModel(saved(tmp_path / name, "classification", own, **fields))
        assert package.max_length == text_settings(package.model, own, None)["max_length"] == expected


@pytest.mark.parametrize("name", ["bert", "cased", "few positions", "bytes", "bytes after a blank"])
def test_tags(tmp_path, tokenizer, monkeypatch, name):
    own = TOKENIZERS[name](tokenizer)
    package = TextModel(saved(tmp_path, "tagging", own, id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}))
    run = script(tmp_path, package.model, own, monkeypatch)
    for text in TEXTS:
        said = package.predict_one(text)
        assert run(text) == [list(pair) for pair in zip(said["words"], said["tags"], strict=True)]


@pytest.mark.parametrize(
    ("name", "fields"),
    [("bert", {}), ("few positions", {}), ("bytes", {}), ("bert", {"sentence_pooling": "cls"})],
)
def test_embeddings(tmp_path, tokenizer, monkeypatch, name, fields):
    own = TOKENIZERS[name](tokenizer)
    package = TextModel(saved(tmp_path, "embedding", own, **fields))
    run = script(tmp_path, package.model, own, monkeypatch)
    for text in TEXTS:
        assert run(text) == pytest.approx(package.predict_one(text)["embedding"], abs=1e-5)
    assert run(*PAIRS[0]) == pytest.approx(package.predict_one(*PAIRS[0])["similarity"], abs=1e-5)


class Windows:
    """numpy 1 as it is on Windows, where integers have 32 bits by default."""

    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, values, dtype=np.int32):
        return np.array(values, dtype)


def test_token_ids_have_64_bits_wherever_it_runs(tmp_path, tokenizer, monkeypatch):
    package = TextModel(saved(tmp_path, "classification", tokenizer))
    run, seen = script(tmp_path, package.model, tokenizer, monkeypatch), []
    plain = run.session.run
    monkeypatch.setattr(run.session, "run", lambda names, feed: seen.append(feed) or plain(names, feed))
    monkeypatch.setattr(run_onnx, "np", Windows())
    run(SHORT)
    assert {value.dtype for feed in seen for value in feed.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_evaluation_refuses_is_not_exported(tmp_path, tokenizer, side):
    own = changed(tokenizer, padding_side=side)
    model = load_model(saved(tmp_path, "answers", own))
    if side == "right":
        text_settings(model, own, None)
    else:
        with pytest.raises(UserError, match="pads on the left"):
            text_settings(model, own, None)


def test_wrong_input_is_one_line(tmp_path, tokenizer, monkeypatch, capsys):
    model = load_model(saved(tmp_path, "answers", tokenizer))
    run = script(tmp_path, model, tokenizer, monkeypatch)
    for given, message in [
        (["who"], "1 texts: expected a question and a context"),
        (["who", "a", "b"], "3 texts"),
        ([" ", "a"], "the question is empty"),
        (["who", ""], "the context is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            run(*given)
    (tmp_path / "run.py").touch()
    monkeypatch.setattr(run_onnx, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setattr("sys.argv", ["run.py", "who", "a", "--model", "model_int4.onnx"])
    capsys.readouterr()
    assert run_onnx.main() == 2
    assert capsys.readouterr().err.startswith("run.py: error: --model model_int4.onnx: there is no such file")
