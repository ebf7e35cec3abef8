"""What a search is asked for: the task of a model and its data, where nobody names it, and the words of its runs."""

import json

import pytest
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import tiny
from itrd_nlp.experiments.shrink.request import Request, infer_task
from itrd_nlp.experiments.shrink.search import Candidate
from itrd_nlp.utils.errors import UserError

PAIR = {"sentence1": "a", "sentence2": "b"}
COLUMNS = {
    "squad": {"question": "Who?", "context": "Ada wrote it.", "answer": "Ada"},
    "reranking": {"query": "who", "document": "Ada", "label": 1},
    "tagging": {"tokens": ["Ada", "wrote"], "ner_tags": ["B-PER", "O"]},
    "classification": {"text": "good", "label": "pos"},
    "multilabel": {"text": "good", "labels": ["a", "b"]},
    "regression": {"text": "good", "score": 3},
}


@pytest.fixture
def folder(tmp_path):
    BertModel(tiny.config()).save_pretrained(tmp_path / "encoder")
    return tmp_path


def data(folder, row):
    (folder / "dev.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder / "dev.jsonl")


@pytest.mark.parametrize("task,row", COLUMNS.items(), ids=str)
def test_without_a_head_the_columns_say_it(folder, task, row):
    assert infer_task(str(folder / "encoder"), data(folder, row)) == task


def test_more_columns_and_forms(folder):
    encoder = str(folder / "encoder")
    assert infer_task(encoder, data(folder, {"query": "who", "positive": "Ada", "negative": "Bob"})) == "reranking"
    assert infer_task(encoder, data(folder, {"text": "good", "labels": "['a', 'b']"})) == "multilabel"
    assert infer_task(encoder, data(folder, {"text": "good", "label": 0.5})) == "regression"
    assert infer_task(encoder, data(folder, {**PAIR, "label": 2})) == "classification"
    confident = {"text": "good", "label": "pos", "score": 0.93}  # of whoever labelled it
    assert infer_task(encoder, data(folder, confident)) == "classification"
    assert infer_task(encoder, data(folder, {**PAIR, "label": 2, "score": 3.5})) == "regression"


def test_a_column_that_is_named_holds_the_labels(folder):
    encoder = str(folder / "encoder")
    both = data(folder, {**PAIR, "label": 2, "score": 3.5, "rating": 2.5, "stars": 4})
    request = Request(encoder, "a.csv", both, folder / "out", words=["--label_column", "label"])
    assert request.task == "classification"
    tasks = {name: infer_task(encoder, both, name) for name in ("label", "score", "rating", "stars")}
    assert tasks == {
        "label": "classification",
        "score": "regression",
        "rating": "regression",
        "stars": "classification",
    }
    assert infer_task(encoder, data(folder, {"tokens": ["Ada"], "pos_tags": ["NOUN"]}), "pos_tags") == "tagging"
    assert infer_task(encoder, data(folder, {"query": "who", "document": "Ada", "gain": 1}), "gain") == "reranking"


def test_losses_are_those_of_the_task_s_recipe(folder):
    (folder / "encoder" / "modules.json").write_text("[]")
    file = data(folder, {**PAIR, "score": 3.5})
    request = Request(str(folder / "encoder"), file, file, folder / "out", words=["--losses.cosine", "null"])
    assert request.task == "embedding" and [*request.arguments()[1].losses] == ["itrd"]


def test_students_that_would_not_learn_from_their_teacher_are_refused(folder):
    with pytest.raises(UserError, match="losses {} with `itrd shrink`: expected a loss"):
        Request(str(folder / "encoder"), "a.csv", data(folder, COLUMNS["multilabel"]), folder, words=["--losses={}"])


def test_a_search_is_known_by_what_decides_it(folder):
    model, file = str(folder / "encoder"), data(folder, COLUMNS["multilabel"])

    def values(*words):
        return Request(model, file, file, folder / "out", words=words).values()

    same = values("--bf16=false", "--seed", "1")
    assert values("--seed=1", "--bf16", "false", "--num_proc=2", "--disable_tqdm", "true") == same
    assert values("--bf16=false", "--seed=2") != same
    data(folder, {"text": "bad", "labels": ["b"]})
    other = values("--bf16=false", "--seed=1")
    assert [name for name in same if same[name] != other[name]] == ["training data"]
    BertModel(tiny.config()).save_pretrained(folder / "encoder")
    assert [name for name in other if other[name] != values("--bf16=false", "--seed=1")[name]] == ["weights"]


def test_scored_pairs_are_for_embeddings_where_the_model_is_a_sentence_encoder(folder):
    file = data(folder, {**PAIR, "score": 3.5})
    assert infer_task(str(folder / "encoder"), file) == "regression"
    (folder / "encoder" / "modules.json").write_text("[]")
    assert infer_task(str(folder / "encoder"), file) == "embedding"


def test_a_sentence_encoder_of_the_hub_is_one_too(folder, monkeypatch):
    named = str(folder / "encoder")
    monkeypatch.setattr("itrd_nlp.experiments.shrink.request.cached_path", lambda source, name: f"cache/{name}")
    assert infer_task(named, data(folder, {**PAIR, "score": 3.5})) == "embedding"


def test_a_head_says_it_whatever_the_columns(folder):
    BertForQuestionAnswering(tiny.config()).save_pretrained(folder / "qa")
    assert infer_task(str(folder / "qa"), data(folder, COLUMNS["classification"])) == "squad"


def test_one_output_is_for_reranking_where_the_columns_are(folder):
    BertForSequenceClassification(tiny.config(num_labels=1)).save_pretrained(folder / "one")
    one = str(folder / "one")
    for task in ("reranking", "regression"):
        assert infer_task(one, data(folder, COLUMNS[task])) == task
    assert infer_task(one, data(folder, {"query": "who", "pos": ["Ada"], "neg": ["Bob"]})) == "reranking"
    assert infer_task(one, data(folder, {**PAIR, "score": 3.5})) == "regression"


def test_neither_a_head_nor_labels_is_refused(folder):
    with pytest.raises(UserError, match="has no head, and .* no texts with labels"):
        infer_task(str(folder / "encoder"), data(folder, {"text": "good"}))


def test_an_image_classifier_is_refused(folder):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    with pytest.raises(UserError, match="classifies images: expected a text encoder"):
        infer_task(str(folder / "vit"), data(folder, COLUMNS["classification"]))


def test_a_model_of_images_without_a_head_is_refused(folder):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(config).save_pretrained(folder / "vit")
    with pytest.raises(UserError, match="vit is a vit model, which reads images: expected a text encoder"):
        Request(str(folder / "vit"), "a.csv", data(folder, COLUMNS["classification"]), folder / "out")


def test_a_corpus_serves_the_students_whose_vocabulary_is_cut(tmp_path, tokenizer):
    tiny.bert(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    words = ["--corpus", "more.txt"]
    request = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out", words=words)
    corpora = [request.arguments(*request.student(each))[0].corpus for each in (Candidate(1, None, 100), Candidate(1))]
    assert corpora == [["more.txt"], None]


def test_the_students_of_an_encoder_that_pools_first_tokens_learn_these(folder):
    (folder / "encoder" / "modules.json").write_text('[{"path": "1_Pooling", "type": "a.Pooling"}]')
    (folder / "encoder" / "1_Pooling").mkdir()
    (folder / "encoder" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    request = Request(str(folder / "encoder"), "a.csv", data(folder, {**PAIR, "score": 3.5}), folder / "out")
    assert request.task == "embedding" and request.arguments()[1].pooling == "cls"


@pytest.mark.parametrize("width,rates", [(384, (4e-4, 1e-4)), (768, (4e-4, 5e-5)), (1536, (2e-4, 2.5e-5))])
def test_rates_follow_the_width_of_the_teacher(folder, width, rates):
    tiny.config(width=width).save_pretrained(folder / "wide")
    request = Request(str(folder / "wide"), "a.csv", data(folder, COLUMNS["classification"]), folder / "out")
    run_args, training_args = request.arguments()
    assert (training_args.learning_rate, run_args.teacher_training["learning_rate"]) == pytest.approx(rates)


@pytest.mark.parametrize(
    "task,losses",
    [
        ("squad", {"itrd"}),
        ("classification", {"itrd", "kd"}),
        ("tagging", {"itrd", "kd"}),
        ("reranking", {"itrd", "kd"}),
        ("regression", {"itrd", "kd"}),
    ],
)
def test_each_task_has_its_losses(folder, task, losses):
    request = Request(str(folder / "encoder"), "a.csv", data(folder, COLUMNS[task]), folder / "out")
    assert request.task == task and {*request.arguments()[1].losses} == losses


@pytest.mark.parametrize(("width", "weight"), [(384, 0), (768, 1)])
def test_answers_are_learned_beside_gold_labels_where_that_did_better(tmp_path, tokenizer, width, weight):
    tiny.bert(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    request = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out")
    request.config.hidden_size = width
    assert request.arguments()[1].task_weight == weight
    request.words = ["--task_weight=0.5"]
    assert request.arguments()[1].task_weight == 0.5


def test_a_student_of_answers_that_is_cut_inside_trains_its_head_with_kd(tmp_path, tokenizer):
    tiny.bert(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    request = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out")
    assert "--losses.kd.temperature=8" in request.student(Candidate(1, 16))
    assert "--losses.kd.temperature=8" in request.student(Candidate(1, None, 100))
    assert "--losses.kd.temperature=8" not in request.student(Candidate(1))
    assert {*request.arguments(*request.student(Candidate(1, 16)))[1].losses} == {"itrd", "kd"}
    narrow = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out", words=["--losses", "{itrd: {}}"])
    assert {*narrow.arguments(*narrow.student(Candidate(1, 16)))[1].losses} == {"itrd", "kd"}
    words = [["--losses.kd.temperature", "4"], ["--losses.kd.temperature=4"], ["--losses", "{kd: {temperature: 4}}"]]
    for own in words:  # the user's, for all students alike
        request = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out", words=own)
        chosen = [
            request.arguments(*request.student(each))[1].losses["kd"] for each in (Candidate(1, 16), Candidate(1))
        ]
        assert chosen == [{"temperature": 4}] * 2
