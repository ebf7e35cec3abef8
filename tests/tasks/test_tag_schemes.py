"""Schemes of tags: one reading of the same entities in each of them, and what is refused."""

import random

import pytest

from itrd_nlp.tasks.tag_schemes import entities, scheme_of
from itrd_nlp.utils.errors import UserError


def drawn(draw, kinds=("PER", "LOC")):
    """A length and entities (type, first, after the last) that do not overlap."""
    length, spans, place = draw.randint(1, 12), [], 0
    while place < length:
        end = min(length, place + draw.randint(1, 4))
        if draw.random() < 0.5:
            spans.append((draw.choice(kinds), place, end))
        place = end
    return length, spans


def written(length, spans, letters, form="{}-{}", outside="O"):
    """Tags by a scheme's letters: of a first word, one inside, the last, and an entity of one word."""
    first, inside, last, alone = letters
    tags = [outside] * length
    for kind, start, end in spans:
        marks = [alone] if end - start == 1 else [first, *[inside] * (end - start - 2), last]
        tags[start:end] = [form.format(mark, kind) for mark in marks]
    return tags


def iob1(length, spans):
    """B only where an entity of the same type ends just before."""
    tags = written(length, spans, "IIII")
    ends = {(kind, end) for kind, _, end in spans}
    for kind, start, _ in spans:
        if (kind, start) in ends:
            tags[start] = f"B-{kind}"
    return tags


def ioe1(length, spans):
    """E only where an entity of the same type begins just after."""
    tags = written(length, spans, "IIII")
    starts = {(kind, start) for kind, start, _ in spans}
    for kind, _, end in spans:
        if (kind, end) in starts:
            tags[end - 1] = f"E-{kind}"
    return tags


SCHEMES = {
    "IOB2": lambda n, s: written(n, s, "BIIB"),
    "IOB1": iob1,
    "IOE1": ioe1,
    "IOE2": lambda n, s: written(n, s, "IIEE"),
    "IOBES": lambda n, s: written(n, s, "BIES"),
    "BILOU": lambda n, s: written(n, s, "BILU"),
    "BMEWO": lambda n, s: written(n, s, "BMEW"),
    "BMES": lambda n, s: written(n, s, "BMES"),
    "underscores": lambda n, s: written(n, s, "BIIB", "{}_{}"),
    "colons": lambda n, s: written(n, s, "BIIB", "{}:{}"),
    "suffixes": lambda n, s: written(n, s, "BIIB", "{1}-{0}"),
    "suffixes with underscores": lambda n, s: written(n, s, "BIES", "{1}_{0}"),
    "small letters": lambda n, s: written(n, s, "biib", outside="o"),
    "dashes": lambda n, s: written(n, s, "BIES", "{}\u2013{}"),
    "outside as _": lambda n, s: written(n, s, "BIIB", outside="_"),
    "outside as -": lambda n, s: written(n, s, "BIES", outside="-"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_entities_are_read_from_every_scheme(scheme):
    draw = random.Random(scheme)
    sentences = [drawn(draw) for _ in range(60)]
    tags = [SCHEMES[scheme](*sentence) for sentence in sentences]
    read = scheme_of({tag for row in tags for tag in row})
    assert read.name and read.types == ["LOC", "PER"]
    for row, (_, spans) in zip(tags, sentences, strict=True):
        assert entities([read.tags[tag] for tag in row]) == {*spans}


@pytest.mark.parametrize("letters", ["BIIB", "BIES", "BILU", "BMEW", "biib"])
def test_letters_alone_are_one_type_of_entity(letters):
    draw = random.Random(letters)
    sentences = [drawn(draw, ("entity",)) for _ in range(60)]
    tags = [written(*sentence, letters, "{}", "O") for sentence in sentences]
    read = scheme_of({tag for row in tags for tag in row})
    assert read.types == ["entity"]
    for row, (_, spans) in zip(tags, sentences, strict=True):
        assert entities([read.tags[tag] for tag in row]) == {*spans}


def test_tags_without_a_scheme_count_word_by_word():
    for tags in (["NOUN", "VERB", "X"], ["NN", "-LRB-", "PRP$", "-"], ["O", "PERSON", "E-mail"], ["S", "M", "L"]):
        read = scheme_of(tags)
        assert not read.name and read.types == sorted({*tags} - {"O"})
        row = [tag for tag in tags for _ in range(2)]
        expected = {(tag, i, i + 1) for i, tag in enumerate(row) if tag != "O"}
        assert entities([read.tags[tag] for tag in row]) == expected


def test_markers_of_a_head_are_no_entities():
    read = scheme_of(["O", "B-PER", "I-PER", "[CLS]", "<pad>"])
    assert read.tags["[CLS]"] == read.tags["<pad>"] == "O" and read.types == ["PER"]


@pytest.mark.parametrize(
    "tags,words",
    [
        (["O", "B-PER", "NOUN"], "are 'B-PER' and 'NOUN': expected one scheme"),
        (["O", "B-PER", "I"], "are 'B-PER' and 'I': expected one scheme"),
        (["O", "B-PER|I-ORG", "B-PER|O"], r"hold several for one word, such as 'B-PER\|I-ORG'"),
        (["O", "O+B-LOC"], r"hold several for one word, such as 'O\+B-LOC'"),
        (["O", "B-PER", "0"], "are 'B-PER' and '0': expected one scheme"),
        (["O", "B-PER", "I-PER", "L-PER", "E-PER"], "have the letters B, E, I, L: expected those of one scheme"),
        (["O", "B", "I", "U", "S"], "have the letters B, I, S, U: expected those of one scheme"),
    ],
)
def test_mixed_schemes_are_refused_by_name(tags, words):
    with pytest.raises(UserError, match=words) as error:
        scheme_of(tags, "'a.jsonl'")
    assert "\n" not in str(error.value)
