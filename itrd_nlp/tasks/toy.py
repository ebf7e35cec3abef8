"""Embedded reading comprehension: seeded little stories with a question each, and a tokenizer for them. No download."""

import random
import re
import string
from typing import Any, NamedTuple

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MAX_LENGTH = 128  # tokens of a question and its story together; most have 35 to 60
RIVALS = 3  # subjects of the relation in question: as many answers of the right type
OTHERS = 1  # facts of another relation
NAMING = 0.4  # how often the question names a part of the answer ("Who is called Alana?")
REVERSE = 0.3  # how often the value is given and the subject asked for, where a relation allows it


class Relation(NamedTuple):
    """A fact of the form (subject, value): the types of both, how it is told and how either is asked for."""

    subject: str
    value: str
    statements: tuple[str, ...]
    value_questions: tuple[str, ...]
    subject_questions: tuple[str, ...] = ()


def _blend(heads: str, tails: str) -> tuple[str, ...]:
    return tuple(head + tail for head in heads.split() for tail in tails.split())


# An entity takes a word of each list of its type; within a story no word serves twice.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "person": (
        _blend("Al Bel Dor Fin", "ana eth ino us"),
        tuple("Ash Birch Cole Dunn Frost Grant Holt Kerr Lark Moss Nash Pike Reed Stone Vane Webb".split()),
    ),
    "place": (_blend("Brim Dal Fen Thorn", "by dale ford wick"),),
    "job": (
        tuple("baker barber carpenter clerk doctor farmer gardener judge miller painter pilot sailor tailor".split())
        + ("night guard", "ship builder", "school cook"),
    ),
    "thing": (
        tuple("black blue brown green grey red violet white".split()),
        tuple("boat clock drum flute kettle lamp mirror piano saddle sledge tent wagon".split()),
    ),
    "date": (
        tuple("January February March April June July August October November December".split()),
        tuple(str(year) for year in range(1900, 1960, 4)),
    ),
    "price": (
        tuple(str(number) for number in range(20, 100, 5)),
        tuple("crowns dollars ducats florins francs marks pounds roubles shillings".split()),
    ),
}

RELATIONS = (
    Relation(
        "person", "place",
        ("{s} lives in {v}.", "{s} has a house in {v}.", "The home of {s} is in {v}."),
        ("Where does {s} live?", "In which town is the home of {s}?"),
        ("Who lives in {v}?", "Who has a house in {v}?"),
    ),
    Relation(
        "person", "job",
        ("{s} works as a {v}.", "{s} earns a living as a {v}.", "The trade of {s} is that of a {v}."),
        ("What does {s} work as?", "What is the trade of {s}?"),
        ("Who works as a {v}?", "Who earns a living as a {v}?"),
    ),
    Relation(
        "person", "date",
        ("{s} was born in {v}.", "{s} came into the world in {v}.", "The birth of {s} was in {v}."),
        ("When was {s} born?", "In which month and year did {s} come into the world?"),
    ),
    Relation(
        "person", "thing",
        ("{s} owns a {v}.", "{s} keeps a {v} in the barn.", "The {v} belongs to {s}."),
        ("What does {s} own?", "Which thing belongs to {s}?"),
        ("Who owns the {v}?", "To whom does the {v} belong?"),
    ),
    Relation(
        "person", "person",
        ("{s} is married to {v}.", "{s} took {v} as a spouse."),
        ("Who is married to {s}?", "Who is the spouse of {s}?"),
        ("Who is married to {v}?",),
    ),
    Relation(
        "thing", "price",
        ("The {s} costs {v}.", "The {s} sells for {v}.", "The price of the {s} is {v}."),
        ("How much is the {s}?", "What does the {s} cost?"),
    ),
    Relation(
        "thing", "place",
        ("The {s} is kept in {v}.", "The {s} stands in {v}."),
        ("Where is the {s}?", "In which town is the {s}?"),
        ("Which thing is in {v}?",),
    ),
)  # fmt: skip

NAMING_QUESTIONS = {
    "person": ("Who is called {w}?", "What is the full name of {w}?"),
    "thing": ("Which thing is {w}?", "What is there that is {w}?"),
}


def generate(n: int, seed: int) -> Dataset:
    """Generate ``n`` examples of extractive question answering with the columns of SQuAD.

    Each story tells the same relation of three subjects, and one fact of another relation. Entities and values are
    drawn anew for each example: the answer cannot be known from the question, its type or the training set, but by
    finding in the story what the question names.

    Args:
        n: number of examples.
        seed: equal seeds give equal examples; ids carry the seed.

    Returns:
        Dataset with ``id``, ``question``, ``context`` and ``answers`` (``text``, ``answer_start``).
    """
    rng = random.Random(seed)
    return Dataset.from_list([{"id": f"toy-{seed}-{i}", **_example(rng)} for i in range(n)])


def _example(rng: random.Random) -> dict[str, Any]:
    topic, other = rng.sample(RELATIONS, 2)
    stock = {kind: _entities(rng, kind) for kind in WORDS}
    subjects = [stock[topic.subject].pop() for _ in range(RIVALS)]
    facts = [(topic, subject, stock[topic.value].pop()) for subject in subjects]
    fact = facts[0]
    question, answer = _question(rng, *fact)
    if answer == subjects[0]:  # another fact about the answer would name it twice
        subjects.reverse()
    for i in range(OTHERS):
        subject = subjects[i] if other.subject == topic.subject else stock[other.subject].pop()
        facts.append((other, subject, stock[other.value].pop()))
    rng.shuffle(facts)

    sentences: list[str] = []
    start = 0
    for relation, subject, value in facts:
        sentence = rng.choice(relation.statements).format(s=subject, v=value)
        if (relation, subject, value) == fact:
            start = sum(len(s) + 1 for s in sentences) + sentence.index(answer)
        sentences.append(sentence)
    return {
        "question": question,
        "context": " ".join(sentences),
        "answers": {"text": [answer], "answer_start": [start]},
    }


def _entities(rng: random.Random, kind: str) -> list[str]:
    """Entities of one type that share no word."""
    columns = [rng.sample(words, 2 * (RIVALS + OTHERS)) for words in WORDS[kind]]
    return [" ".join(parts) for parts in zip(*columns, strict=True)]


def _question(rng: random.Random, relation: Relation, subject: str, value: str) -> tuple[str, str]:
    """A question about one fact, and its answer; a person is asked about by the given name."""
    entities = ((relation.subject, subject), (relation.value, value))
    named = [(kind, entity) for kind, entity in entities if kind in NAMING_QUESTIONS]
    if named and rng.random() < NAMING:
        kind, entity = rng.choice(named)
        return rng.choice(NAMING_QUESTIONS[kind]).format(w=entity.split()[0]), entity
    s, v = _handle(relation.subject, subject), _handle(relation.value, value)
    if relation.subject_questions and rng.random() < REVERSE:
        return rng.choice(relation.subject_questions).format(v=v), subject
    return rng.choice(relation.value_questions).format(s=s), value


def _handle(kind: str, entity: str) -> str:
    return entity.split()[0] if kind == "person" else entity


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A small uncased BERT tokenizer: every word of the stories is one token, any other word falls into characters.

    Returns:
        Tokenizer of about 300 tokens with BERT's special tokens, pairs, token types and offsets.
    """
    texts = [text for group in (*(g for r in RELATIONS for g in r[2:]), *NAMING_QUESTIONS.values()) for text in group]
    words = {word for text in texts for word in re.findall("[a-z]+", re.sub("{.}", "", text).lower())}
    words |= {word for lists in WORDS.values() for value in sum(lists, ()) for word in value.lower().split()}
    characters = string.ascii_lowercase + string.digits
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*string.punctuation, *characters, *(f"##{c}" for c in characters), *sorted(words - set(characters))]
    vocabulary = {token: i for i, token in enumerate(special + pieces)}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, special, strict=True)),
    )
