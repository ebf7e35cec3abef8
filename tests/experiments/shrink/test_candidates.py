"""The students that a search tries."""

import pytest
from transformers import BertConfig, DistilBertConfig, FNetConfig

import tiny
from itrd_nlp.experiments.shrink.request import Request
from itrd_nlp.experiments.shrink.search import Candidate, ladder
from itrd_nlp.utils.errors import UserError

BERT, MINILM = BertConfig(), BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


@pytest.mark.parametrize("config", [BERT, MINILM, DistilBertConfig(), BertConfig(num_hidden_layers=1)], ids=str)
def test_the_default_students_differ_and_fit_their_teacher(config):
    candidates = ladder(config)
    assert len({candidate.name for candidate in candidates}) == len(candidates) <= 8
    head = config.hidden_size // config.num_attention_heads
    for candidate in candidates:
        assert 1 <= candidate.layers <= config.num_hidden_layers
        assert candidate.hidden_size is None or candidate.hidden_size % head == 0


def test_the_default_students_of_bert_base():
    names = ["l8-v8000", "l6-v8000", "l4-v8000", "l3-v8000", "l2-v8000", "l6", "l6-h512-v8000", "l4-h512-v8000"]
    assert [candidate.name for candidate in ladder(BERT)] == names


def test_a_small_vocabulary_is_not_cut():
    config = BertConfig(vocab_size=5000, num_hidden_layers=6)
    assert [candidate.name for candidate in ladder(config)] == ["l4", "l3", "l2", "l1", "l3-h512", "l2-h512"]


def test_what_a_user_lists_is_tried_in_every_combination():
    candidates = ladder(BERT, [3, 2], [768, 384], [4000, 0])
    assert [candidate.name for candidate in candidates] == [
        *("l3-v4000", "l3", "l3-h384-v4000", "l3-h384"),
        *("l2-v4000", "l2", "l2-h384-v4000", "l2-h384"),
    ]
    assert [candidate.name for candidate in ladder(MINILM, layers=[3])] == ["l3-v8000", "l3", "l3-h256-v8000"]


def test_a_narrower_student_gets_a_narrower_feed_forward_network():
    (words,) = Candidate(3, 256, 8000).words(MINILM, hidden_dropout_prob=0)
    assert words == (
        '--student={"from": "teacher", "layers": "first:3", "hidden_dropout_prob": 0, "vocabulary": 8000, '
        '"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 1024}'
    )
    (words,) = Candidate(3, 512).words(DistilBertConfig())
    assert '"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048' in words


@pytest.mark.parametrize(
    "sizes",
    [{"layers": [13]}, {"layers": [0]}, {"hidden_sizes": [1000]}, {"hidden_sizes": [500]}, {"vocabularies": [-1]}],
    ids=str,
)
def test_sizes_that_the_teacher_does_not_have_are_refused(sizes):
    with pytest.raises(UserError, match=f"^--{next(iter(sizes))} -?\\d+: expected"):
        ladder(BERT, **sizes)


def test_a_narrower_student_of_answers_trains_its_head_with_kd(tmp_path, tokenizer):
    tiny.bert(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    request = Request(str(tmp_path), "train.json", "validation.json", tmp_path / "out")
    assert "--losses.kd.temperature=8" in request.student(Candidate(1, 16))
    assert "--losses.kd.temperature=8" not in request.student(Candidate(1))
    assert {*request.arguments(*request.student(Candidate(1, 16)))[1].losses} == {"itrd", "kd"}


def test_a_model_of_one_head_has_no_narrower_student():
    assert all(each.hidden_size is None for each in ladder(tiny.config(num_attention_heads=1)))
    assert ladder(FNetConfig(num_hidden_layers=4))
