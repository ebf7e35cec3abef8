"""Windows as the tokens of two tokenizers, where a student needs shorter ones than its teacher."""

import pytest

from distillation.test_alignment import tokenizer
from itrd_nlp.distillation.alignment import ALIGNMENT
from itrd_nlp.tasks.question_answering.paired_windows import make_paired_features
from itrd_nlp.tasks.question_answering.windows import make_features, question_tokens

MAX_LENGTH, LIMIT = 96, 512


def features(tokens, context):
    """The columns of a question of so many of the teacher's tokens, which knows no word of more than 100 characters."""
    answers = {"text": ["the"], "answer_start": [0]}
    examples = {"question": [" ".join(["the"] * tokens)], "context": [context], "answers": [answers]}
    return make_paired_features(examples, [0], tokenizer("bytes"), tokenizer("wordpiece"), MAX_LENGTH, 16, LIMIT)


@pytest.mark.parametrize("tokens", [5, 14, 40])
def test_shorter_windows_have_shorter_questions(tokens):
    words = ["x" * 150 if i % 8 == 7 else "the" for i in range(100)]
    columns = features(tokens, " ".join(words))
    assert 0 < max(map(len, columns["input_ids"])) <= LIMIT
    longest = max(map(len, columns["teacher_input_ids"]))
    assert longest < MAX_LENGTH
    for ids in columns["teacher_input_ids"]:
        length = ids.tolist().index(tokenizer("wordpiece").sep_token_id) - 1
        assert 0 < length <= min(tokens, question_tokens(MAX_LENGTH - 1))
        assert length == tokens or length <= longest / 4 + 1


@pytest.mark.parametrize("tokens", [5, 14, 40])
def test_a_word_that_fits_no_window_leaves_its_question_out(tokens, caplog):
    assert not features(tokens, f"the {'x' * 3000} the engine")
    assert "question 0 is left out: 24 of the teacher's tokens" in caplog.text


def test_labels_and_alignment_hold_in_every_window():
    filler = " ".join(f"the engine of {year}" for year in range(1800, 1860))
    context = f"{filler} Zoë's naïve café 東京 {filler}"
    answer = "naïve café"
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    examples = {"question": ["the the"], "context": [context], "answers": [answers]}
    own, other = tokenizer("bytes"), tokenizer("wordpiece")
    columns = make_paired_features(examples, [0], own, other, MAX_LENGTH, 16, LIMIT)
    found = 0
    for ids, start, end in zip(columns["input_ids"], columns["start_positions"], columns["end_positions"], strict=True):
        if start:
            found += 1
            assert own.decode(ids[start : end + 1]).strip() == answer
    assert found and len(columns["input_ids"]) > 3
    compared = 0
    for row, (ids, theirs) in enumerate(zip(columns["input_ids"], columns["teacher_input_ids"], strict=True)):
        for i, j, *weights in columns[ALIGNMENT][row].reshape(-1, 4).tolist():
            piece = other.convert_ids_to_tokens(int(theirs[int(i)])).removeprefix("##")
            token = own.decode([ids[int(j)]]).strip().lower()
            if weights == [1, 1] and piece.isalnum() and token.isascii():
                assert piece == token
                compared += 1
    assert compared > 100


@pytest.mark.parametrize("stride", [16, 60])
def test_windows_that_fit_are_the_teachers_own(stride):
    """Whatever their overlap."""
    answers = {"text": ["the"], "answer_start": [0]}
    examples = {"question": ["the the"], "context": [" ".join(["the engine"] * 100)], "answers": [answers]}
    pair = tokenizer("bytes"), tokenizer("wordpiece")
    columns = make_paired_features(examples, [0], *pair, MAX_LENGTH, stride, LIMIT)
    own = make_features(examples, [0], pair[1], MAX_LENGTH, stride, evaluation=False)
    assert [ids.tolist() for ids in columns["teacher_input_ids"]] == [list(ids) for ids in own["input_ids"]]
