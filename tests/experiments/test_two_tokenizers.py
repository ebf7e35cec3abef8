"""A student with a tokenizer of its own, from the command line to its folder."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from distillation.test_alignment import tokenizer
from itrd_nlp import ITRDArguments, ITRDTrainer, rerank
from itrd_nlp.distillation.alignment import ALIGNMENT
from itrd_nlp.distillation.paired import PairedCollator, pair_dataset
from itrd_nlp.experiments.models import make_student
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.run import run
from itrd_nlp.experiments.tasks import _tokenizers, tokenised_task
from itrd_nlp.inference.texts import TextModel
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.io import read_json

SENTENCE = "The {animal} sat on the {place} and ate {food} in {year}."
ANIMALS, PLACES, FOODS = (
    ("cat", "naïve dog", "engine 👩‍👩‍👧", "東京 bird"),
    ("mat", "roof of Zoë's café"),
    ("€3 cake", "fish"),
)


def questions(path, count):
    rows = []
    for i in range(count):
        animal, place, food = ANIMALS[i % 4], PLACES[i % 2], FOODS[(i // 2) % 2]
        context = " ".join(SENTENCE.format(animal=animal, place=place, food=food, year=1800 + i + n) for n in range(4))
        answer = {"text": [place], "answer_start": [context.index(place)]}
        rows.append({"id": str(i), "question": f"Where did the {animal} sit?", "context": context, "answers": answer})
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def model(path, kind, width=24, layers=2):
    own = tokenizer(kind)
    config = BertConfig(
        vocab_size=len(own),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=512,
        pad_token_id=own.pad_token_id,
    )
    torch.manual_seed(width)
    BertForQuestionAnswering(config).save_pretrained(path)
    own.save_pretrained(path)
    return str(path)


def words(tmp_path, teacher="wordpiece", student="bytes", spec=None, **changes):
    made = {
        "task": "squad",
        "teacher": model(tmp_path / "teacher", teacher, 32, 3),
        "student": spec or model(tmp_path / "student", student),
        "train_file": questions(tmp_path / "train.jsonl", 12),
        "validation_file": questions(tmp_path / "validation.jsonl", 4),
        "shared_dir": str(tmp_path / "shared"),
        "output_dir": str(tmp_path / "out"),
        "teacher_cache": str(tmp_path / "cache"),
        "max_length": "96",
        "doc_stride": "16",
        "layer_map": "last",
        "pooling": "tokens",
        "losses": "{itrd: {}, kd: {temperature: 2}}",
        "num_train_epochs": "2",
        "per_device_train_batch_size": "4",
        "latency": "false",
        "bf16": "false",
        **changes,
    }
    return [word for name, value in made.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize(("teacher", "student"), [("wordpiece", "bytes"), ("unigram", "wordpiece")])
def test_a_student_with_its_own_tokenizer_is_distilled_and_saved_with_it(tmp_path, teacher, student):
    record = run(*parse(None, words(tmp_path, teacher, student)))
    assert record.stored_teacher and {"task", "itrd/correlation", "kd"} <= {*record.terms["student"][-1]}
    assert all(value == value for value in record.terms["student"][-1].values())
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "student")
    assert saved.get_vocab() == tokenizer(student).get_vocab()
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "student")


@pytest.mark.parametrize(
    "pooling", [*(pytest.param(p, marks=pytest.mark.slow) for p in ("mean", "tokens")), "tokens:8"]
)
def test_cached_outputs_give_the_losses_of_the_live_teacher(tmp_path, pooling):
    terms = []
    for cache in ("off", str(tmp_path / "cache")):
        changes = {"pooling": pooling, "teacher_cache": cache, "output_dir": str(tmp_path / cache[-5:])}
        argv = words(tmp_path, teacher_cache_dtype="float32", logging_steps="1", **changes)
        terms.append(run(*parse(None, argv)).terms["student"])
    for live, cached in zip(*terms, strict=True):
        for name in ("itrd/correlation", "kd"):
            assert cached[name] == pytest.approx(live[name], rel=1e-4, abs=1e-4)


def test_the_cache_depends_on_the_teacher_and_its_texts_alone(tmp_path):
    for student in ("bytes", "unigram", "wordpiece"):  # the last one shares the teacher's tokenizer
        folder = tmp_path / student
        folder.mkdir()
        run(*parse(None, words(folder, "wordpiece", student, teacher_cache=tmp_path / "c")))
    assert len([path for path in (tmp_path / "c").iterdir() if path.is_dir()]) == 1


def rows(path, count, tagged):
    lines = []
    for i in range(count):
        text = SENTENCE.format(animal=ANIMALS[i % 4], place=PLACES[i % 2], food=FOODS[i % 2], year=1800 + i)
        tags = ["B-Y" if word.startswith("18") else "O" for word in text.split()]
        lines.append({"words": text.split(), "tags": tags} if tagged else {"text": text, "label": "ab"[i % 2]})
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.parametrize("cache", ["off", "on"])
@pytest.mark.parametrize(
    ("task", "pooling"),
    [
        ("tagging", "tokens"),
        pytest.param("classification", "mean", marks=pytest.mark.slow),
        pytest.param("classification", "tokens", marks=pytest.mark.slow),
    ],
)
def test_rows_of_text_too(tmp_path, task, pooling, cache):
    changes = {"task": task, "pooling": pooling, "teacher_cache": "off" if cache == "off" else tmp_path / "cache"}
    changes["train_file"] = rows(tmp_path / "rows.jsonl", 16, task == "tagging")
    changes["validation_file"] = rows(tmp_path / "validation_rows.jsonl", 8, task == "tagging")
    argv = words(tmp_path, "wordpiece", "unigram", **changes)
    start = argv.index("--doc_stride")
    record = run(*parse(None, argv[:start] + argv[start + 2 :]))
    terms = record.terms["student"][-1]
    assert {"task", "itrd/correlation", "kd"} <= {*terms} and terms["kd"] >= 0
    assert record.stored_teacher == (cache == "on")


def test_cached_outputs_of_tags_give_the_losses_of_the_live_teacher(tmp_path):
    terms = []
    for cache in ("off", str(tmp_path / "cache")):
        changes = {"task": "tagging", "teacher_cache": cache, "output_dir": str(tmp_path / cache[-5:])}
        changes["train_file"] = rows(tmp_path / "rows.jsonl", 16, True)
        changes["validation_file"] = rows(tmp_path / "validation_rows.jsonl", 8, True)
        argv = words(tmp_path, "wordpiece", "unigram", teacher_cache_dtype="float32", logging_steps="1", **changes)
        start = argv.index("--doc_stride")
        terms.append(run(*parse(None, argv[:start] + argv[start + 2 :])).terms["student"])
    for live, cached in zip(*terms, strict=True):
        for name in ("itrd/correlation", "kd"):
            assert cached[name] == pytest.approx(live[name], rel=1e-4, abs=1e-4)


def test_tags_are_compared_at_the_first_tokens_of_words_that_both_read(tmp_path):
    changes = {"task": "tagging", "losses": "{kd: {temperature: 2}}", "teacher_cache": "off", "task_weight": "0"}
    changes["train_file"] = rows(tmp_path / "rows.jsonl", 16, True)
    changes["validation_file"] = rows(tmp_path / "validation_rows.jsonl", 8, True)
    changes |= {"max_steps": "1", "learning_rate": "0", "per_device_train_batch_size": "16", "logging_steps": "1"}
    spec = {"from": model(tmp_path / "student", "unigram"), "layers": "first:2"}
    spec |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    argv = words(tmp_path, "wordpiece", spec=json.dumps(spec), **changes)
    start = argv.index("--doc_stride")
    argv = argv[:start] + argv[start + 2 :]
    record = run(*parse(None, argv))
    models = read_json(tmp_path / "out" / "models.json")
    total, words_read = 0.0, 0
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        given, logits = json.loads(line)["words"], []
        for role in ("teacher", "student"):
            own = AutoTokenizer.from_pretrained(models[role])
            tagger = AutoModelForTokenClassification.from_pretrained(models[role]).eval()
            tokens = own(given, is_split_into_words=True, return_tensors="pt")
            first = {word: i for i, word in reversed([*enumerate(tokens.word_ids())]) if word is not None}
            logits.append(tagger(**tokens).logits[0, [first[word] for word in range(len(given))]] / 2)
        expected = torch.nn.functional.kl_div(
            *[x.log_softmax(-1) for x in logits[::-1]], log_target=True, reduction="sum"
        )
        total, words_read = total + 4 * expected.item(), words_read + len(given)
    assert record.terms["student"][-1]["kd"] == pytest.approx(total / words_read, rel=1e-4)


def encoder(path, kind, family):
    """An encoder of a family with a tokenizer whose padding has the id that its positions are counted from."""
    own = tokenizer(kind)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    ids = {"vocab_size": len(own), "pad_token_id": own.pad_token_id, "max_position_embeddings": 514}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(family, **sizes, **ids)).save_pretrained(path)
    own.save_pretrained(path)
    return str(path)


def ranked(path):
    lines = []
    for i in range(6):
        query = f"Where did the {ANIMALS[i % 4]} sit?"
        for k, place in enumerate(PLACES):
            text = SENTENCE.format(animal=ANIMALS[i % 4], place=place, food="fish", year=1800 + i)
            lines.append({"query": f"{query} {i}", "document": text, "label": int(k == i % 2)})
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def alike(path):
    lines = [
        {"sentence1": f"The {a} sat in {i}.", "sentence2": f"A {b} ate in {i}.", "score": i % 3}
        for i, (a, b) in enumerate(zip(ANIMALS * 3, ANIMALS[1:] * 4, strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.parametrize("family", ["roberta", "electra"])
@pytest.mark.parametrize(("task", "rows"), [("reranking", ranked), ("embedding", alike)])
def test_a_student_of_another_family_and_tokenizer_ranks_and_embeds(tmp_path, task, rows, family):
    file = rows(tmp_path / "rows.jsonl")
    losses = {"reranking": "{itrd: {}, listwise: {}}", "embedding": "{itrd: {}, cosine: {}}"}[task]
    made = {
        "task": task,
        "teacher": encoder(tmp_path / "teacher", "unigram", "bert"),
        "student": encoder(tmp_path / "student", "bytes", family),
        "train_file": file,
        "validation_file": file,
        "losses": losses,
        "task_weight": "0",
        "layer_map": "last",
        "max_length": "64",
        "num_train_epochs": "1",
        "per_device_train_batch_size": "4",
        "teacher_training": "{max_steps: 1}",
    }
    folders = {name: tmp_path / name for name in ("output_dir", "shared_dir", "teacher_cache")}
    options = {**made, **folders, "latency": "false", "bf16": "false", "baseline": "false"}
    record = run(*parse(None, [word for name, value in options.items() for word in (f"--{name}", str(value))]))
    terms = record.terms["student"][-1]
    assert record.stored_teacher and terms["itrd/correlation"] > 0 and all(value == value for value in terms.values())
    folder = str(tmp_path / "output_dir" / "student")
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer("bytes").get_vocab()
    if task == "reranking":
        assert len(rerank(folder, "Where?", ["The cat sat.", "It rained."])) == 2
    else:
        assert len(TextModel(folder).predict_one("The cat sat.")["embedding"]) == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "all_tokens"}, "pooling all_tokens with a student that has a tokenizer of its own"),
        ({"losses": "{minilmv2: {relation_heads: 4}}"}, "minilmv2 with a student that has a tokenizer of its own"),
    ],
)
def test_what_compares_the_tokens_of_one_tokenizer_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(*parse(None, words(tmp_path, **changes)))


def test_a_student_cut_from_the_teacher_takes_over_its_vectors(tmp_path):
    tokenizer("bytes").save_pretrained(tmp_path / "pieces")
    spec = json.dumps({"from": "teacher", "layers": "first:2", "tokenizer": str(tmp_path / "pieces")})
    record = run(*parse(None, words(tmp_path, student="bytes", layer_map="even", num_train_epochs="1", spec=spec)))
    assert "averaged" in record.student_map and record.parameters["student"] > 0
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "student")
    assert saved.get_vocab() == tokenizer("bytes").get_vocab()


def test_the_vectors_of_its_new_pieces_are_the_teachers(tmp_path):
    tokenizer("bytes").save_pretrained(tmp_path / "pieces")
    spec = {"from": "teacher", "layers": "first:2", "tokenizer": str(tmp_path / "pieces")}
    run_args, args = parse(None, words(tmp_path, student="bytes", spec=json.dumps(spec)))
    task = tokenised_task(run_args, args)
    teacher = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "teacher")
    student, _ = make_student(run_args.student, task, teacher, 0)
    old, new = [model.get_input_embeddings().weight for model in (teacher, student)]
    theirs, ours = tokenizer("wordpiece").get_vocab(), tokenizer("bytes").get_vocab()
    assert torch.equal(new[ours["Ġthe"]], old[theirs["the"]])
    piece = next(p for p in ours if p.startswith("Ġ") and p[1:].isalpha() and p[1:].islower() and p[1:] not in theirs)
    covering = tokenizer("wordpiece")(piece[1:], add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(new[ours[piece]], old[covering].mean(0))


def test_a_tokenizer_whose_padding_would_move_positions_is_refused(tmp_path):
    own = tokenizer("bytes")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    ids = {"vocab_size": len(own), "max_position_embeddings": 514, "pad_token_id": own.pad_token_id + 1}
    RobertaForQuestionAnswering(RobertaConfig(**sizes, **ids)).save_pretrained(tmp_path / "roberta")
    own.save_pretrained(tmp_path / "roberta")
    tokenizer("wordpiece").save_pretrained(tmp_path / "pieces")
    spec = {"from": str(tmp_path / "roberta"), "layers": "first:1", "tokenizer": str(tmp_path / "pieces")}
    with pytest.raises(UserError, match="pads with the id .*, from which RobertaForQuestionAnswering counts positions"):
        run(*parse(None, words(tmp_path, spec=json.dumps(spec))))


def test_a_new_student_takes_a_tokenizer_of_its_own(tmp_path):
    tokenizer("bytes").save_pretrained(tmp_path / "pieces")
    spec = {"model_type": "bert", "tokenizer": str(tmp_path / "pieces"), "hidden_size": 24, "num_hidden_layers": 1}
    spec |= {"num_attention_heads": 4, "intermediate_size": 32}
    run(*parse(None, words(tmp_path, spec=json.dumps(spec), max_steps="1")))
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "student")
    assert saved.get_input_embeddings().num_embeddings == len(tokenizer("bytes"))


def test_without_a_teacher_the_student_s_tokenizer_is_the_one_that_is_named(tmp_path):
    tokenizer("bytes").save_pretrained(tmp_path / "pieces")
    spec = {"from": model(tmp_path / "start", "wordpiece"), "layers": "first:1", "tokenizer": str(tmp_path / "pieces")}
    made = parse(None, ["--task", "classification", "--student", json.dumps(spec)])[0]
    assert _tokenizers(made).student.get_vocab() == tokenizer("bytes").get_vocab()


def test_tags_from_python_are_refused_in_one_line(tmp_path):
    student = AutoModelForTokenClassification.from_pretrained(model(tmp_path / "student", "bytes"))
    teacher = AutoModelForTokenClassification.from_pretrained(model(tmp_path / "teacher", "wordpiece", 32, 3))
    own, theirs = tokenizer("bytes"), tokenizer("wordpiece")
    tokens = own([SENTENCE] * 4, return_special_tokens_mask=True)
    data = Dataset.from_dict({"text": [SENTENCE] * 4, **tokens})
    arguments = ITRDArguments(str(tmp_path / "out"), losses={"kd": {}}, task_weight=0, use_cpu=True, bf16=False)
    options = {"train_dataset": data, "processing_class": own, "teacher_processing_class": theirs}
    with pytest.raises(UserError, match="logits of tokens, .*: expected the words that both read"):
        ITRDTrainer(student, teacher, arguments, **options)
    with pytest.raises(UserError, match="teacher_processing_class alone: expected the student's tokenizer"):
        ITRDTrainer(student, teacher, arguments, **{**options, "processing_class": None})
    with pytest.raises(UserError, match="teacher_processing_class without teacher_model"):
        ITRDTrainer(student, None, arguments, **options)


def test_texts_that_were_tokenised_with_padding_are_paired(tmp_path):
    own, theirs = tokenizer("bytes"), tokenizer("wordpiece")
    texts = [SENTENCE, "The cat sat."]
    made = [Dataset.from_dict({"text": texts, **own(texts, padding=padding)}) for padding in (False, "longest")]
    plain, padded = (pair_dataset(data, own, theirs) for data in made)
    assert plain[ALIGNMENT] == padded[ALIGNMENT]


@pytest.mark.parametrize("special", [False, True])
def test_both_pool_special_tokens_or_neither_does(special):
    own, theirs = tokenizer("bytes"), tokenizer("wordpiece")
    texts = [SENTENCE, "The cat sat."]
    data = Dataset.from_dict({"text": texts, **own(texts, return_special_tokens_mask=special)})
    masks = pair_dataset(data, own, theirs)["teacher_special_tokens_mask"]
    assert all(any(mask) == special for mask in masks)


@pytest.mark.parametrize("pair", [False, True])
def test_the_trainer_tokenises_for_the_teacher(tmp_path, pair):
    student = AutoModelForSequenceClassification.from_pretrained(model(tmp_path / "student", "bytes"))
    teacher = AutoModelForSequenceClassification.from_pretrained(model(tmp_path / "teacher", "wordpiece", 32, 3))
    own, theirs = tokenizer("bytes"), tokenizer("wordpiece")
    texts = [SENTENCE.format(animal=ANIMALS[i % 4], place=PLACES[i % 2], food="fish", year=1800 + i) for i in range(12)]
    columns = {"text": texts, "text_pair": texts[::-1]} if pair else {"text": texts}
    tokens = own(*columns.values(), truncation=True, max_length=40, return_special_tokens_mask=True)
    data = Dataset.from_dict({**columns, **tokens, "labels": [i % 2 for i in range(12)]})
    options = {"losses": {"itrd": {}, "kd": {}}, "layer_map": "last", "pooling": "tokens", "bf16": False}
    arguments = ITRDArguments(str(tmp_path / "out"), max_steps=3, use_cpu=True, logging_steps=1, **options)
    made = ITRDTrainer(
        student, teacher, arguments, train_dataset=data, processing_class=own, teacher_processing_class=theirs
    )
    made.train()
    assert made.state.log_history[0]["itrd/correlation"] > 0 and made.state.log_history[0]["kd"] >= 0
    with pytest.raises(UserError, match="expected the text that was tokenised"):
        wrong = data.remove_columns("text").add_column("text", texts[1:] + texts[:1])
        pair_dataset(wrong, own, theirs)
    with pytest.raises(UserError, match="that keeps its texts, as text"):
        pair_dataset(data.remove_columns("text"), own, theirs)


def test_a_teacher_s_text_is_cut_to_its_positions_and_ends_no_later_than_the_student_s(tmp_path):
    own, theirs = tokenizer("bytes"), tokenizer("wordpiece")  # neither says how many tokens it takes
    texts = [f"{SENTENCE.format(animal='cat', place='mat', food='fish', year=1800 + i)} {SENTENCE}" for i in range(8)]
    tokens = own(texts, truncation=True, max_length=20, return_special_tokens_mask=True)
    assert min(map(len, theirs(texts)["input_ids"])) > 24
    data = Dataset.from_dict({"text": texts, **tokens, "labels": [i % 2 for i in range(8)]})
    assert max(map(len, pair_dataset(data, own, theirs)["teacher_input_ids"])) > 24
    paired = pair_dataset(data, own, theirs, max_length=24)
    assert {*map(len, paired["teacher_input_ids"])} == {24}
    options = {"truncation": True, "return_offsets_mapping": True}
    ends = [spans[-2][1] for spans in own(texts, max_length=20, **options)["offset_mapping"]]  # before </s>
    for end, row, spans in zip(ends, paired, theirs(texts, max_length=24, **options)["offset_mapping"], strict=True):
        mask = row["teacher_special_tokens_mask"]
        begins = [span[0] for span, special in zip(spans, mask, strict=True) if not special]
        assert max(begins) < end and len(begins) == sum(span[0] < end and span[1] > 0 for span in spans)
    config = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=len(theirs), max_position_embeddings=24, **config))
    student = AutoModelForSequenceClassification.from_pretrained(model(tmp_path / "student", "bytes"))
    options = {"losses": {"itrd": {}, "kd": {}}, "layer_map": "last", "pooling": "tokens", "bf16": False}
    arguments = ITRDArguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, logging_steps=1, **options)
    made = {"train_dataset": data, "processing_class": own, "teacher_processing_class": theirs}
    ITRDTrainer(student, teacher, arguments, **made).train()


def test_one_tokenizer_trains_as_without_alignment(tmp_path):
    own = tokenizer("bytes")
    texts = [SENTENCE.format(animal=ANIMALS[i % 4], place=PLACES[i % 2], food="fish", year=1800 + i) for i in range(8)]
    tokens = own(texts, truncation=True, return_special_tokens_mask=True)
    plain = Dataset.from_dict({"text": texts, **tokens, "labels": [i % 2 for i in range(8)]})
    logs = []
    for data, collator, theirs in (
        (plain, None, None),
        (plain, None, copy.deepcopy(own)),  # another object, the same tokens
        (pair_dataset(plain, own, own), PairedCollator(DataCollatorWithPadding(own), own), None),
    ):
        student, teacher = [
            AutoModelForSequenceClassification.from_pretrained(model(tmp_path / name, "bytes", *sizes))
            for name, sizes in (("student", (24, 2)), ("teacher", (32, 3)))
        ]
        options = {"losses": {"itrd": {}, "kd": {}}, "layer_map": "last", "pooling": "tokens", "bf16": False}
        arguments = ITRDArguments(str(tmp_path / "out"), max_steps=4, use_cpu=True, logging_steps=1, **options)
        options = {"train_dataset": data, "processing_class": own, "teacher_processing_class": theirs}
        made = ITRDTrainer(student, teacher, arguments, data_collator=collator, **options)
        made.train()
        logs.append([log["loss"] for log in made.state.log_history if "loss" in log])
    assert logs[0] == logs[1]
    assert logs[2] == pytest.approx(logs[0], rel=1e-5)


@pytest.mark.parametrize("losses,warned", [("{itrd: {}}", True), ("{itrd: {}, kd: {}}", False)])
def test_a_student_of_answers_that_learns_features_alone_is_told_what_they_lack(tmp_path, caplog, losses, warned):
    tokenizer("bytes").save_pretrained(tmp_path / "pieces")
    spec = json.dumps({"from": "teacher", "layers": "first:1", "tokenizer": str(tmp_path / "pieces")})
    changes = {"losses": losses, "task_weight": "0", "max_steps": "1", "baseline": "false"}
    with caplog.at_level("INFO"):
        run(*parse(None, words(tmp_path, spec=spec, **changes)))
    assert ("learns that from KD" in caplog.text) == warned
