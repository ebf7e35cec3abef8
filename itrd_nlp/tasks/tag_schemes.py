"""Schemes of tags: which letters mark the words of an entity, where they stand, and what the tags say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from itrd_nlp.utils.errors import UserError

OUTSIDE = "O"
NOTHING = {"O", "o", "_", "-"}  # how files write that a word belongs to no entity
SPECIAL = re.compile(r"\[\w+\]|<\w+>")  # such as [CLS], which some heads have among their classes
FAMILIES = {  # letters of a scheme -> what each is among B (begins), I (inside), E (ends), S (alone)
    "IOB": {"B": "B", "I": "I"},
    "IOE": {"I": "I", "E": "E"},
    "IOBES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMEWO": {"B": "B", "M": "I", "E": "E", "W": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
}
LETTERS = "BIESLUMW"
MARK = "[-\u2010-\u2015\u2212_:/.|]"  # hyphens and dashes of every kind, and what stands for them
PREFIXED = re.compile(rf"([{LETTERS}]){MARK}(.+)", re.IGNORECASE)
SUFFIXED = re.compile(rf"(.+){MARK}([{LETTERS}])", re.IGNORECASE)
ONE = rf"(?:[{LETTERS}]{MARK}[^|+&;,#]+|O)"
SEVERAL = re.compile(rf"{ONE}(?:[|+&;,#]{ONE})+")  # tags of entities within one another


class Scheme(NamedTuple):
    """What the tags of a set mean.

    Attributes:
        name: of the scheme; "" of tags that count word by word, such as parts of speech.
        tags: tag -> ``O``, or a letter of B, I, E and S, a hyphen and the type of entity; S of those word by word.
        types: of entities, sorted.
    """

    name: str
    tags: dict[str, str]
    types: list[str]


def scheme_of(tags: Iterable[str], source: str = "the data") -> Scheme:
    """The scheme of a set of tags.

    Letters may stand before or after the type (``B-PER``, ``B_PER``, ``PER-B``), in either case, or alone, where there
    is one type of entity. Tags none of which begins or continues an entity count word by word.

    Raises:
        UserError: letters of several schemes, or some tags with a letter and others without.

    Example:
        >>> scheme_of(["O", "B-PER", "L-PER", "U-PER"]).name, scheme_of(["B", "I", "O"]).tags["B"]
        ('BILOU', 'B-entity')
    """
    given = sorted({*tags})
    inner = [tag for tag in given if tag not in NOTHING and not SPECIAL.fullmatch(tag)]
    outside = {tag: OUTSIDE for tag in given if tag not in inner}
    if nested := [tag for tag in inner if SEVERAL.fullmatch(tag)]:
        raise UserError(
            f"the tags of {source} hold several for one word, such as {nested[0]!r}: expected one; choose one"
        )
    for parted in (_before, _after, _alone):
        found = {tag: parted(tag) for tag in inner}
        pairs = {tag: pair for tag, pair in found.items() if pair is not None}
        letters = {letter for letter, _ in pairs.values()}
        if len(pairs) == len(inner) and letters & {"B", "I"}:
            family = _family(letters, source)
            made = {tag: f"{FAMILIES[family][letter]}-{kind}" for tag, (letter, kind) in pairs.items()}
            return Scheme(family, {**made, **outside}, sorted({kind for _, kind in pairs.values()}))
    lettered = [tag for tag in inner if (pair := _before(tag)) and pair[0] in "BI"]
    odd = [tag for tag in inner if not _before(tag)]
    if lettered:
        raise UserError(
            f"the tags of {source} are {lettered[0]!r} and {odd[0]!r}: expected one scheme, such as IOB2, whose tags "
            "begin with B-, with I- or are O; rename the odd ones"
        )
    inner += [tag for tag in outside if tag == "-"]  # punctuation, among parts of speech
    return Scheme("", outside | {tag: f"S-{tag}" for tag in inner}, sorted(inner))


def _before(tag: str) -> tuple[str, str] | None:
    """The letter before a type, and the type."""
    found = PREFIXED.fullmatch(tag)
    return (found[1].upper(), found[2]) if found else None


def _after(tag: str) -> tuple[str, str] | None:
    """The letter after a type, and the type."""
    found = SUFFIXED.fullmatch(tag)
    return (found[2].upper(), found[1]) if found else None


def _alone(tag: str) -> tuple[str, str] | None:
    """A letter without a type, where there is one type of entity alone."""
    return (tag.upper(), "entity") if len(tag) == 1 and tag.upper() in LETTERS else None


def _family(letters: set[str], source: str) -> str:
    """The first scheme that has all letters."""
    found = next((name for name, letter in FAMILIES.items() if letters <= {*letter}), None)
    if found is None:
        mixed, known = ", ".join(sorted(letters)), ", ".join(FAMILIES)
        raise UserError(f"the tags of {source} have the letters {mixed}: expected those of one scheme, of {known}")
    return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (type, first word, word after the last) of all entities, as ``conlleval`` reads them.

    Args:
        tags: as :class:`Scheme` writes them; one without a letter is an entity of a word.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
        >>> sorted(entities(["NOUN", "NOUN"]))
        [('NOUN', 0, 1), ('NOUN', 1, 2)]
    """
    spans, kind, start = set(), "", -1  # -1: none is open
    for i, tag in enumerate([*tags, OUTSIDE]):
        prefix, dash, name = tag.partition("-")
        if not (dash and prefix in ("B", "I", "E", "S")):
            prefix, name = (OUTSIDE, "") if tag == OUTSIDE else ("S", tag)
        if start >= 0 and not (prefix in ("I", "E") and name == kind):
            spans.add((kind, start, i))
            start = -1
        if prefix != OUTSIDE and start < 0:
            kind, start = name, i
        if prefix in ("E", "S"):
            spans.add((kind, start, i + 1))
            start = -1
    return spans
