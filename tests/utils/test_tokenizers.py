"""What a tokenizer makes and a model can read; one tokenizer for teacher and student."""

import copy
import json
import sys

import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

import tiny
from itrd_nlp import ITRDArguments, ITRDTrainer
from itrd_nlp.cli.demo import Loaded
from itrd_nlp.experiments.evaluation import evaluate_saved
from itrd_nlp.experiments.models import load_model, make_student
from itrd_nlp.experiments.parsing import parse
from itrd_nlp.experiments.tasks import build_task
from itrd_nlp.export.comparison import sample_batches
from itrd_nlp.inference.answering import answer
from itrd_nlp.inference.texts import classify
from itrd_nlp.tasks.tokenising import tokenizer_identity
from itrd_nlp.training.checks import check_token_ids
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.modeling import position_limit, window_limit
from itrd_nlp.utils.tokenizers import (
    check_fit,
    check_shared_vocabulary,
    for_words,
    save_processor,
    table_rows,
    tokenizers_differ,
)


@pytest.fixture
def texts(tmp_path):
    """Files of classified texts without the tokens that are added below."""
    rows = [{"text": f"the king of city {i}", "label": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "rows.jsonl")


def saved(folder, tokenizer, head="classes", more=0, **changes):
    """A folder with a tiny model of ``head`` whose table has ``more`` rows than the tokenizer has tokens."""
    fields = {"max_position_embeddings": 512, **changes}
    model = tiny.bert(head, layers=2, vocab_size=len(tokenizer) + more, **fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def changed(tokenizer, **parts):
    """The same tokenizer with other parts."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    for name, part in parts.items():
        setattr(backend, name, part)
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="[MASK]", model_input_names=tokenizer.model_input_names, **names
    )


def test_tokens_without_a_row_are_told_before_any_forward(tmp_path, tokenizer, texts, monkeypatch):
    grown = changed(tokenizer)
    saved(tmp_path / "qa", tokenizer, "qa")
    model = saved(tmp_path / "classes", tokenizer)
    grown.add_tokens(["<user>", "<url>"])
    for folder in ("qa", "classes"):
        grown.save_pretrained(tmp_path / folder)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
        raise AssertionError("no forward was expected")

    monkeypatch.setattr(type(model), "forward", forward)
    qa, classes = str(tmp_path / "qa"), str(tmp_path / "classes")
    words = ["--teacher", classes, "--task", "classification", "--validation_file", texts, "--use_cpu", "true"]
    run_args, training_args = parse(None, [*words, "--train_file", texts])
    task = build_task(run_args)
    data = task.train_dataset
    loaded = AutoModelForSequenceClassification.from_pretrained(classes)
    uses = {
        "predict --text": lambda: classify(classes, "the king"),
        "predict --question": lambda: answer(qa, "who", "the king"),
        "demo": lambda: answer(Loaded.read("teacher", qa).model, "who", "the king", grown),
        "evaluate": lambda: evaluate_saved(run_args, training_args),
        "distill": lambda: load_model(classes, task, 0),
        "export, benchmark": lambda: sample_batches(loaded, classes, None),
        "export with data": lambda: sample_batches(loaded, classes, task),
        "trainer": lambda: ITRDTrainer(loaded, args=training_args, train_dataset=data, processing_class=grown),
    }
    for name, use in uses.items():
        with pytest.raises(UserError, match=r"has \d+ tokens, its table of embeddings \d+ rows .'<url>' has") as caught:
            use()
        assert "\n" not in str(caught.value) and "resize_token_embeddings(" in str(caught.value), name
    loaded.resize_token_embeddings(len(grown))
    check_fit(loaded, grown, "enlarged")


def test_a_new_student_s_table_is_as_large_as_the_teacher_s(tmp_path, tokenizer, texts):
    teacher = saved(tmp_path / "teacher", tokenizer, more=7)
    run_args, _ = parse(
        None, ["--teacher", str(tmp_path / "teacher"), "--task", "classification", "--train_file", texts]
    )
    task = build_task(run_args)
    spec = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student, _ = make_student(spec, task, teacher, 0)
    assert table_rows(student) == table_rows(teacher) == len(tokenizer) + 7
    assert table_rows(make_student({**spec, "vocab_size": len(tokenizer)}, task, teacher, 0)[0]) == len(tokenizer)
    with pytest.raises(UserError, match="the new bert model: its tokenizer has"):
        make_student({**spec, "vocab_size": len(tokenizer) - 1}, task, teacher, 0)
    saved(tmp_path / "other", tokenizer)  # the same tokenizer, a smaller table
    other, _ = make_student({"from": str(tmp_path / "other"), "layers": "first:1"}, task, teacher, 0)
    check_shared_vocabulary(*[load_model(str(tmp_path / name), task, 0)[0] for name in ("teacher", "other")])
    assert table_rows(other) == len(tokenizer)


def swapped(tokenizer):
    """The same tokens with two numbers exchanged."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = told["model"]["vocab"]
    vocabulary["king"], vocabulary["city"] = vocabulary["city"], vocabulary["king"]
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(told))
    return changed(tokenizer, model=backend.model)


DIFFERENCES = {
    "their vocabularies (.* 2 not shared)": swapped,
    "the normaliser": lambda t: changed(t, normalizer=normalizers.BertNormalizer(lowercase=False)),
    "the pre-tokeniser": lambda t: changed(t, pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "the tokens of": lambda t: changed(t, post_processor=processors.BertProcessing(("[CLS]", 2), ("[SEP]", 3))),
}


def test_what_cuts_a_text_beside_the_tokens_counts_too(tokenizer):
    """Of WordPiece the longest word, of Unigram the scores; and whether special tokens in a text are text."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["max_input_chars_per_word"] = 3
    shorter = changed(tokenizer, model=Tokenizer.from_str(json.dumps(told)).model)
    assert tokenizers_differ(tokenizer, shorter) == "the max_input_chars_per_word"
    pieces = ["<unk>", "a", "b", "ab"]
    unigrams = [
        models.Unigram([(p, s) for p, s in zip(pieces, scores, strict=True)], 0)
        for scores in ([0, -1, -1, -1], [0, -1, -1, -5])
    ]
    first, second = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>") for model in unigrams
    )
    assert first("ab")["input_ids"] != second("ab")["input_ids"]
    assert tokenizers_differ(first, second) == "the scores of tokens"
    split = changed(tokenizer)
    split.split_special_tokens = True
    assert tokenizers_differ(tokenizer, split) == "the split_special_tokens"
    assert tokenizer_identity(split) != tokenizer_identity(tokenizer)


@pytest.mark.parametrize("words", DIFFERENCES)
def test_what_two_tokenizers_differ_in(tmp_path, tokenizer, words):
    other = DIFFERENCES[words](tokenizer)
    assert len(other) == len(tokenizer) and tokenizers_differ(tokenizer, changed(tokenizer)) is None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(tokenizers_differ(tokenizer, other))
    teacher, student = saved(tmp_path / "a", tokenizer), saved(tmp_path / "b", other)
    check_shared_vocabulary(teacher, student)  # in memory nothing tells
    teacher, student = [AutoModel.from_pretrained(tmp_path / name) for name in "ab"]
    with pytest.raises(UserError, match=f"the tokenizers of teacher and student differ in {words}"):
        check_shared_vocabulary(teacher, student)


def test_a_special_token_that_differs(tokenizer):
    other = changed(tokenizer)
    other.cls_token = "[MASK]"
    assert tokenizers_differ(tokenizer, other) == "cls_token ([CLS] and [MASK])"


def test_a_missing_padding_token_is_the_tokenizer_s(tokenizer):
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2))
    check_fit(model, tokenizer, "gpt2")
    options = {"padding": True, "return_tensors": "pt", "return_token_type_ids": False}
    together, alone = [model.eval()(**tokenizer(some, **options)).logits for some in (["the king", "of"], ["of"])]
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    model.config.pad_token_id = 7
    with pytest.raises(UserError, match="gpt2: its padding token has the id 7, its tokenizer's 0"):
        check_fit(model, tokenizer, "gpt2")


def test_positions_that_are_counted_by_another_padding_token_are_refused(tokenizer):
    common = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = RobertaForSequenceClassification(RobertaConfig(**common, pad_token_id=1))
    with pytest.raises(UserError, match="its padding token has the id 1, its tokenizer's 0: .*positions"):
        check_fit(model, tokenizer, "roberta")
    check_fit(RobertaForSequenceClassification(RobertaConfig(**common, pad_token_id=0)), tokenizer, "roberta")
    check_fit(tiny.bert("classes", vocab_size=len(tokenizer), pad_token_id=3), tokenizer, "bert")  # it reads the mask


DISTANCES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}  # of DeBERTa, between tokens


@pytest.mark.parametrize(
    "kind,fields,limit",
    [
        ("bert", {"max_position_embeddings": 66}, 66),
        ("roberta", {"max_position_embeddings": 66}, 64),
        ("mpnet", {"max_position_embeddings": 514}, 512),
        ("ibert", {"max_position_embeddings": 66}, 64),
        ("gpt2", {"n_positions": 48, "n_embd": 32, "n_layer": 1, "n_head": 4}, 48),
        ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 8}, sys.maxsize),
        ("deberta-v2", {"max_position_embeddings": 66, **DISTANCES}, 66),
        ("deberta-v2", {"max_position_embeddings": 66, **DISTANCES, "position_biased_input": False}, sys.maxsize),
        ("deberta-v2", {**DISTANCES, "position_biased_input": False, "position_buckets": 16}, sys.maxsize),
        ("deberta", {"max_position_embeddings": 66, **DISTANCES, "position_biased_input": False}, sys.maxsize),
    ],
)
def test_the_longest_text_of_a_model(kind, fields, limit):
    common = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    common |= {"intermediate_size": 8}
    fields = fields if "n_head" in fields else {**common, **fields}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**fields, "vocab_size": 40})).eval()
    assert position_limit(model) == limit and window_limit(model) == limit // 8 * 8
    with torch.no_grad():
        if limit == sys.maxsize:
            longer = getattr(model.config, "max_position_embeddings", -1) + 8
            model(input_ids=torch.full((1, max(longer, 600)), 5))
            return
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_all_of_the_data_is_looked_through():
    model = tiny.bert(layers=1)
    rows = tiny.rows(40)
    check_token_ids(rows, None, [model])
    table = rows.to_dict()
    table["input_ids"][33][4] = tiny.VOCABULARY
    with pytest.raises(UserError, match=f"holds token id {tiny.VOCABULARY}, .* knows ids below {tiny.VOCABULARY}"):
        check_token_ids(Dataset.from_dict(table), None, [model])
    check_token_ids(Dataset.from_dict(table).select(range(30)), None, [model])
    table["input_ids"][33] = [5] * 65
    with pytest.raises(UserError, match="holds a text of 65 tokens, .* has 64 positions"):
        check_token_ids(Dataset.from_dict(table), None, [model])
    with pytest.raises(UserError, match="holds a text of 65 tokens"):
        ITRDTrainer(model, args=ITRDArguments(use_cpu=True), eval_dataset=Dataset.from_dict(table))


def test_a_tokenizer_of_no_models_own_class_is_saved_for_transformers_4_too(tmp_path):
    """It knows neither the name of the class in transformers 5 nor its defaults."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.train_from_iterator(["the king"], trainers.BpeTrainer(special_tokens=["<unk>"]))
    mine = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    save_processor(mine, tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and saved["add_prefix_space"] is True
    assert saved["model_input_names"] == mine.model_input_names
    assert AutoTokenizer.from_pretrained(tmp_path)(["the king"]) == mine(["the king"])


def test_further_special_tokens_are_saved_for_transformers_4_too(tokenizer, tmp_path):
    mine = copy.deepcopy(tokenizer)
    mine.add_special_tokens({"extra_special_tokens": ["[E1]", "[E2]"]})
    save_processor(mine, tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["additional_special_tokens"] == ["[E1]", "[E2]"] and "extra_special_tokens" not in saved
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.all_special_tokens == mine.all_special_tokens and loaded("a [E1]") == mine("a [E1]")


def test_a_saved_tokenizer_forgets_how_it_was_called_last(tokenizer, tmp_path):
    mine = copy.deepcopy(tokenizer)
    save_processor(mine, tmp_path / "before")
    mine(["the king", "the house of the city"], truncation=True, max_length=4, padding="max_length")
    assert mine.backend_tokenizer.truncation["max_length"] == 4
    save_processor(mine, tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "before" / name).read_text() == (tmp_path / "after" / name).read_text()
    saved = json.loads((tmp_path / "after" / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None


SENTENCE = ["the", "king's", "naïve", "engine", "of", "1843"]
SPLIT = Regex(r"'s| ?\p{L}+| ?\p{N}{1,2}|\s+")
PRE = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes of parts": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
    "sentencepiece": pre_tokenizers.Metaspace(prepend_scheme="never"),
    "bytes with blanks": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "sentencepiece with blanks": pre_tokenizers.Metaspace(),
}


def trained(pre_tokenizer, normalizer=None):
    """A BPE tokenizer that knows the sentence's words behind a blank."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    special, alphabet = ["<s>", "<pad>", "</s>", "<unk>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(["a", *SENTENCE, *SENTENCE, "a"])] * 3, trainer)
    if "ByteLevel" in str(pre_tokenizer):
        prefix = "add_prefix_space=True" in str(pre_tokenizer)
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def roberta():
    state = json.loads(trained(PRE["bytes"]).backend_tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])


@pytest.mark.parametrize("kind", [*PRE, "roberta"])
def test_words_given_one_by_one_are_cut_as_in_a_text(tmp_path, kind):
    before = roberta() if kind == "roberta" else trained(PRE[kind])
    state = before.backend_tokenizer.to_str()
    own = for_words(before)
    assert (own is before) == ("with blanks" in kind) and before.backend_tokenizer.to_str() == state
    own.save_pretrained(tmp_path)
    options = {"is_split_into_words": True, "add_special_tokens": False, "return_offsets_mapping": True}
    for each in (own, type(own).from_pretrained(tmp_path)):
        tokens = each(SENTENCE, **options)
        text = before(" ".join(["a", *SENTENCE]), add_special_tokens=False)  # all behind a blank
        assert tokens["input_ids"] == text["input_ids"][1:]
        words = tokens.word_ids()
        for word in range(len(SENTENCE)):  # each word's characters, from its first to its last
            spans = [span for span, index in zip(tokens["offset_mapping"], words, strict=True) if index == word]
            assert spans[0][0] == 0 and spans[-1][1] == len(SENTENCE[word])
        assert for_words(each) is each


def test_words_get_the_blank_that_the_normaliser_makes_of_one():
    """As Gemma's and mmBERT's, which reads each word with a "▁" before it."""
    before = trained(pre_tokenizers.Split("▁", "merged_with_next"), normalizers.Replace(" ", "▁"))
    own = for_words(before)
    text = before(" ".join(["a", *SENTENCE]), add_special_tokens=False)["input_ids"]
    assert own(SENTENCE, is_split_into_words=True, add_special_tokens=False)["input_ids"] == text[1:]


def test_a_tokenizer_that_no_blank_helps_tags_no_words():
    pre, blanks = pre_tokenizers.Split("_", "merged_with_next"), normalizers.Replace(" ", "__")
    with pytest.raises(UserError, match="cuts words given one by one in another way than in a text") as caught:
        for_words(trained(pre, blanks))
    assert "\n" not in str(caught.value)


def test_a_tagger_s_blanks_are_no_other_vocabulary(tmp_path):
    own = roberta()
    for name, each in (("a", own), ("b", for_words(own))):
        tiny.bert("classes", layers=1, vocab_size=len(own)).save_pretrained(tmp_path / name)
        each.save_pretrained(tmp_path / name)
    assert tokenizers_differ(own, for_words(own)) == "the pre-tokeniser"
    check_shared_vocabulary(*[AutoModel.from_pretrained(tmp_path / name) for name in "ab"])
