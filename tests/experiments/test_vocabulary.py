"""The student option vocabulary, from the command line to the student's folder."""

import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast

from distillation.test_alignment import tokenizer
from experiments.test_two_tokenizers import model, words
from itrd_nlp import answer
from itrd_nlp.experiments import vocabulary
from itrd_nlp.experiments.dry_run import dry_run
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.models import make_student
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.experiments.tasks import announced_task, build_task
from itrd_nlp.experiments.vocabulary import corpus_texts, training_texts
from itrd_nlp.models.vocabulary_cut import cut_vocabulary
from itrd_nlp.utils.errors import UserError

SIZE = 100  # of 160 pieces; 91 are special tokens and characters
SPEC = {"from": "teacher", "layers": "first:2", "vocabulary": SIZE}


def squad(tmp_path, kind="wordpiece", spec=SPEC, **changes):
    return parse(None, words(tmp_path, kind, spec=json.dumps(spec), layer_map="even", num_train_epochs="1", **changes))


def rows_of(tmp_path, task, **changes):
    """Arguments of a task on rows, whose teacher has no head."""
    options = {
        "task": task,
        "teacher": model(tmp_path / "teacher", "wordpiece"),
        "student": json.dumps(SPEC),
        **changes,
    }
    return parse(None, [word for name, value in options.items() for word in (f"--{name}", str(value))])


def test_pieces_are_counted_once_for_the_same_texts(tmp_path, monkeypatch):
    calls, count = [], vocabulary.count_pieces
    monkeypatch.setattr(vocabulary, "count_pieces", lambda *args: calls.append(args) or count(*args))
    monkeypatch.setattr(vocabulary, "features_folder", lambda: tmp_path / "cache")
    own, texts = tokenizer("wordpiece"), ["the cat sat", "on the mat"]
    first = vocabulary.cached_counts(own, texts)
    assert vocabulary.cached_counts(own, texts).tolist() == first.tolist() == count(own, texts).tolist()
    (path,) = (tmp_path / "cache").iterdir()
    assert len(calls) == 1
    vocabulary.cached_counts(own, [*texts, "again"])
    vocabulary.cached_counts(tokenizer("bytes"), texts)
    assert len(calls) == 3
    path.write_text(path.read_text().replace("1", "2"))  # damaged
    assert vocabulary.cached_counts(own, texts).tolist() == first.tolist() and len(calls) == 4


def test_a_run_cuts_trains_saves_and_evaluates_with_the_same_pieces(tmp_path, caplog):
    caplog.set_level("INFO", "itrd_nlp")
    plan = dry_run(*squad(tmp_path))
    assert plan.rows["student"].doing == "trained"
    record = run(*squad(tmp_path))
    full = tokenizer("wordpiece")
    assert f"vocabulary: {len(full)} -> {SIZE} pieces" in record.student_map
    assert f"[vocabulary] {len(full)} -> {SIZE} pieces, " in caplog.text
    assert record.parameters["student"] < record.parameters["teacher"]
    folder = str(tmp_path / "out" / "student")
    own, student = AutoTokenizer.from_pretrained(folder), AutoModelForQuestionAnswering.from_pretrained(folder)
    assert len(own) == student.config.vocab_size == SIZE
    arguments = parse(None, ["--task", "squad", "--teacher", folder, *words(tmp_path)[6:10], "--max_length", "96"])
    saved = evaluate_saved(*arguments)
    assert saved["total"] == record.metrics["student"]["total"] and "f1" in saved
    assert answer(folder, "Where did the cat sit?", "The cat sat on the mat.").text
    assert (
        "a text about something else is cut into more tokens"
        in (tmp_path / "out" / "student" / "README.md").read_text()
    )
    before = (tmp_path / "out" / "student" / "model.safetensors").stat().st_mtime_ns
    assert run(*squad(tmp_path)).metrics == record.metrics  # the same pieces: nothing is trained again
    assert (tmp_path / "out" / "student" / "model.safetensors").stat().st_mtime_ns == before


def test_another_size_or_corpus_is_another_run(tmp_path):
    (tmp_path / "more.txt").write_text("engine engines unbelievable\n")
    changes = {"losses": "{}", "baseline": "false"}
    run(*squad(tmp_path, **changes))
    for other in ({"spec": {**SPEC, "vocabulary": SIZE - 1}}, {"corpus": tmp_path / "more.txt"}):
        with pytest.raises(UserError, match=r"holds another run, which differs in .*vocabulary"):
            run(*squad(tmp_path, **changes, **other))


def test_no_fewer_pieces_are_the_run_without_the_option(tmp_path):
    plain, same = (
        build_task(squad(tmp_path, spec=spec)[0])
        for spec in ({**SPEC, "vocabulary": 160}, {"from": "teacher", "layers": "first:2"})
    )
    assert plain.vocabulary is None and same.vocabulary is None and plain.teacher_tokenizer is None
    assert plain.tokenizer.get_vocab() == same.tokenizer.get_vocab() == tokenizer("wordpiece").get_vocab()


def test_what_does_not_occur_is_left_out_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "itrd_nlp")
    task = announced_task(*squad(tmp_path, spec={**SPEC, "vocabulary": 159}, max_train_samples=1))
    assert len(task.tokenizer) < 159
    assert "; no others occur, so that they are fewer than 159" in caplog.text
    (tmp_path / "more.txt").write_text("engines\n" + "the engines\n" * 50)
    more = build_task(squad(tmp_path, spec=SPEC, max_train_samples=1, corpus=tmp_path / "more.txt")[0])
    assert "engines" in more.tokenizer.get_vocab() and "engines" not in task.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("task", "columns", "texts"),
    [
        ("classification", {"text": ["the cat", "a dog"], "label": ["a", "b"]}, ["the cat", "a dog"]),
        ("regression", {"sentence1": ["x"], "sentence2": ["y"], "score": [1.0]}, ["x", "y"]),
        ("embedding", {"sentence1": ["x"], "sentence2": ["y"], "score": [1.0]}, ["x", "y"]),
        ("tagging", {"words": [["the", "cat"]], "tags": [["O", "B-X"]]}, ["the", "cat"]),
        ("reranking", {"query": ["x"], "positive": ["y"], "negative": ["z"]}, ["x", "x", "y", "z"]),
    ],
)
def test_the_texts_of_every_task_count(tmp_path, task, columns, texts):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
    )
    made = build_task(rows_of(tmp_path, task, train_file=path)[0])
    assert [*training_texts(made)] == texts == [*training_texts(made.for_teacher)]
    expected = cut_vocabulary(tokenizer("wordpiece"), texts, SIZE)
    assert made.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert made.vocabulary.cut.kept_ids == expected.kept_ids
    assert made.for_teacher.tokenizer.get_vocab() == tokenizer("wordpiece").get_vocab() and made.for_teacher is not made


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ({**SPEC, "tokenizer": "OTHER"}, {}),
        ({**SPEC, "from": "OTHER"}, {}),
        ({"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "vocabulary": 300}, {}),
    ],
)
def test_it_goes_with_other_options_of_a_student(tmp_path, spec, changes):
    other = model(tmp_path / "other", "bytes")
    spec = {key: other if value == "OTHER" else value for key, value in spec.items()}
    teacher = "bytes" if "model_type" in spec else "wordpiece"
    run_args, _ = squad(tmp_path, teacher, spec={**spec, "vocabulary": 300}, **changes)
    task = build_task(run_args)
    source = AutoModelForQuestionAnswering.from_pretrained(run_args.teacher)
    student, description = make_student(run_args.student, task, source, 0)
    assert len(task.tokenizer) == student.config.vocab_size < len(tokenizer("bytes")) and description
    assert task.for_teacher.tokenizer.get_vocab() == tokenizer(teacher).get_vocab()
    table = student.get_input_embeddings().weight
    if "tokenizer" in spec:
        assert "averaged" in description
    elif "from" in spec:
        old = AutoModel.from_pretrained(other).get_input_embeddings().weight
        assert torch.equal(table, old[task.vocabulary.cut.kept_ids])


def test_without_a_teacher_the_pieces_are_those_of_the_student_s_source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": "the cat", "label": c, "teacher_logits": [1.0, 2.0]}) for c in "ab"))
    spec = {"from": model(tmp_path / "own", "wordpiece"), "layers": "first:1", "vocabulary": SIZE}
    run_args, _ = parse(None, ["--task", "classification", "--student", json.dumps(spec), "--train_file", str(path)])
    task = build_task(run_args)
    student, _ = make_student(run_args.student, task, None, 0)
    assert task.teacher_tokenizer is None and student.config.vocab_size == len(task.tokenizer) <= SIZE


def test_a_corpus_in_every_format(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two \n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\nfour"))
    (tmp_path / "plain").write_text("five")
    (tmp_path / "c.csv").write_text("query,document,label\nsix,seven,1\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"words": ["eight", "nine"], "tags": ["O", "O"]}))
    pq.write_table(pa.table({"mine": ["ten"], "id": ["x"]}), tmp_path / "e.parquet")
    questions = [{"id": "1", "question": "eleven", "answers": []}]
    article = {"paragraphs": [{"context": "twelve", "qas": questions}]}
    (tmp_path / "f.json").write_text(json.dumps({"data": [article]}))
    names = ("a.txt", "b.txt.gz", "plain", "c.csv", "d.jsonl", "e.parquet", "f.json")
    files = [str(tmp_path / name) for name in names]
    run_args, _ = rows_of(tmp_path, "classification", text_column="mine")
    run_args.corpus = files
    expected = "one, two ,three,four,five,six,seven,eight,nine,ten,eleven,twelve".split(",")
    assert [text.strip() for text in corpus_texts(run_args)] == [text.strip() for text in expected]
    assert parse(None, ["--corpus", *files])[0].corpus == files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {**SPEC, "vocabulary": 20}}, r"vocabulary 20: expected \d+ or more: so many are special tokens"),
        ({"spec": {**SPEC, "vocabulary": "8k"}}, "vocabulary '8k': expected the number of tokens to keep, e.g. 8000"),
        ({"spec": {"from": "teacher"}, "corpus": "x.txt"}, r"corpus 'x.txt' .* add --student.vocabulary 8000"),
        ({"spec": {**SPEC, "vocabulary": None}, "corpus": "x.txt"}, "corpus 'x.txt' with a student that keeps its"),
        ({"corpus": "CORPUS"}, "'.*corpus.csv' has the columns a, b: expected one of texts, such as text"),
        ({"corpus": "x.txt"}, "file 'x.txt' does not exist"),
        ({"corpus": "EMPTY"}, "empty.txt' holds no text: expected one a line"),
        ({"corpus": "BYTES"}, "bytes.bin' is not text: .*; save it as UTF-8"),
    ],
)
def test_wrong_input_is_one_line_before_training(tmp_path, changes, message):
    (tmp_path / "corpus.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00\xd8")
    files = {"CORPUS": "corpus.csv", "EMPTY": "empty.txt", "BYTES": "bytes.bin"}
    spec = changes.get("spec", SPEC)
    changes = {
        key: tmp_path / files[value] if value in files else value for key, value in changes.items() if key != "spec"
    }
    with pytest.raises(UserError, match=message):
        build_task(squad(tmp_path, spec=spec, **changes)[0])


def test_images_have_no_vocabulary(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(UserError, match="expected an image classifier"):
        make_student({"vocabulary": 9}, SimpleNamespace(modality="image"), None, 0)


def trained(kind, texts):
    """A tokenizer of 4,000 pieces."""
    if kind == "unigram":
        made, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(vocab_size=4000, unk_token="[UNK]")
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    elif kind == "wordpiece":
        made, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer(vocab_size=4000)
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    else:
        made = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet)
        made.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer.special_tokens = ["[UNK]"]
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_no_real_text_becomes_unknown(shared, kind):
    files = [path for path in sorted(shared.glob("data/*/*")) if path.suffix in (".csv", ".json", ".jsonl")]
    files = [str(path) for path in files if "bert_predictions" not in path.name]
    columns = SimpleNamespace(corpus=files, text_column=None, text_pair_column=None)
    texts = [*dict.fromkeys(corpus_texts(columns))]
    own = trained(kind, texts[::50])
    cut = cut_vocabulary(own, texts[::10], 2500)
    assert len(texts) > 50_000 and len(cut.kept_ids) == 2500
    for start in range(0, len(texts), 10_000):
        batch = texts[start : start + 10_000]
        for before, after in zip(own(batch)["input_ids"], cut.tokenizer(batch)["input_ids"], strict=True):
            assert after.count(cut.tokenizer.unk_token_id) == before.count(own.unk_token_id)
