"""The embedded reading comprehension: answers, determinism, rivals, and the tokenizer."""

import itertools
from collections import Counter, defaultdict

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from itrd_nlp.tasks.toy import MAX_LENGTH, WORDS, build_tokenizer, generate


@pytest.fixture(scope="module")
def stories() -> Dataset:
    return generate(2000, seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


# every entity that the word lists can spell, and its type
KINDS = {" ".join(parts): kind for kind, lists in WORDS.items() for parts in itertools.product(*lists)}


def rivals(answer: str, context: str) -> int:
    """How many entities of the answer's type the context names, the answer included."""
    return sum(name in context for name, kind in KINDS.items() if kind == KINDS[answer])


def test_every_answer_stands_at_its_offset(stories):
    for row in stories:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert text and row["context"][start : start + len(text)] == text


def test_columns_and_ids(stories):
    assert stories.column_names == ["id", "question", "context", "answers"]
    assert len(set(stories["id"])) == len(stories) == 2000


def test_a_seed_gives_the_same_stories_and_another_seed_gives_others(stories):
    assert generate(50, seed=0)[:] == stories[:50]
    other = generate(2000, seed=1)
    assert not {*zip(stories["context"], stories["question"], strict=True)} & {
        *zip(other["context"], other["question"], strict=True)
    }
    assert not set(stories["id"]) & set(other["id"])


def test_each_story_has_rivals_of_the_answer(stories):
    for row in stories.select(range(500)):
        assert rivals(row["answers"]["text"][0], row["context"]) >= 3, row


def test_an_answer_is_named_once_so_that_its_offset_is_the_only_right_one(stories):
    for row in stories:
        assert row["context"].count(row["answers"]["text"][0]) == 1


def test_the_question_does_not_give_the_answer(stories):
    answers = defaultdict(Counter)
    for row in generate(10000, seed=3):
        answers[row["question"]][row["answers"]["text"][0]] += 1
    known = [row for row in stories if row["question"] in answers]
    hits = sum(answers[row["question"]].most_common(1)[0][0] == row["answers"]["text"][0] for row in known)
    assert len(known) > 1000 and hits / len(known) < 0.2


def test_no_place_in_the_story_gives_the_answer(stories):
    places = Counter(
        (KINDS[row["answers"]["text"][0]], row["context"][: row["answers"]["answer_start"][0]].count("."))
        for row in stories
    )
    for kind in WORDS:
        of_kind = [count for (found, _), count in places.items() if found == kind]
        assert max(of_kind) / sum(of_kind) < 0.5


def test_answers_vary_in_type_and_length(stories):
    texts = [row["answers"]["text"][0] for row in stories]
    assert {KINDS[text] for text in texts} == set(WORDS)
    assert {len(text.split()) for text in texts} == {1, 2}


def test_the_tokenizer_cuts_every_answer_out_as_whole_tokens(stories, tokenizer):
    for row in stories.select(range(300)):
        encoded = tokenizer(row["question"], row["context"], return_offsets_mapping=True)
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        spans = [
            span
            for span, part in zip(encoded["offset_mapping"], encoded.sequence_ids(), strict=True)
            if part == 1 and start <= span[0] and span[1] <= start + len(text)
        ]
        assert row["context"][spans[0][0] : spans[-1][1]] == text and len(spans) == len(text.split())


def test_the_tokenizer_knows_every_word(stories, tokenizer):
    encoded = tokenizer(stories["question"][:], stories["context"][:])["input_ids"]
    used = {token for ids in encoded for token in tokenizer.convert_ids_to_tokens(ids)}
    assert "[UNK]" not in used and not any(token.startswith("##") for token in used)
    assert max(map(len, encoded)) <= MAX_LENGTH == tokenizer.model_max_length


def test_pairs_are_encoded_as_bert_does(tokenizer):
    encoded = tokenizer("Who is Alana?", "Alana Ash lives.")
    assert encoded.tokens() == "[CLS] who is alana ? [SEP] alana ash lives . [SEP]".split()
    assert encoded["token_type_ids"] == [0] * 6 + [1] * 5
    assert encoded["attention_mask"] == [1] * 11
    assert tokenizer.pad_token_id == 0 and tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)


def test_unknown_words_fall_into_characters(tokenizer):
    assert tokenizer.tokenize("Zürich 71!") == ["z", "##u", "##r", "##i", "##c", "##h", "7", "##1", "!"]
    assert tokenizer.tokenize("☃") == ["[UNK]"]


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    text = ("Where does Alana live?", "Alana Ash lives in Brimby.")
    assert reloaded(*text, return_offsets_mapping=True) == tokenizer(*text, return_offsets_mapping=True)
    assert reloaded.get_vocab() == build_tokenizer().get_vocab()
    assert reloaded.model_max_length == MAX_LENGTH and reloaded.pad_token == "[PAD]" and reloaded.mask_token == "[MASK]"
