"""Schemes of tags: which letters mark the words of an entity, and which entities tags stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from itrd_nlp.utils.errors import UserError

OUTSIDE = "O"
NOTHING = {"O", "o", "_", "-"}  # how files write that a word belongs to no entity
SPECIAL = re.compile(r"\[\w+\]|<\w+>")  # such as [CLS], which some heads have among their classes
FAMILIES = {  # letters of a scheme -> B (begins), I (inside), E (ends) or S (alone)
    "IOB": {"B": "B", "I": "I"},
    "IOE": {"I": "I", "E": "E"},
    "IOBES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMEWO": {"B": "B", "M": "I", "E": "E", "W": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
}
LETTERS = "[BIESLUMW]"
MARK = "[-\u2010-\u2015\u2212_:/.|]"  # hyphens and dashes of every kind, and what replaces them
PREFIXED, SUFFIXED, ALONE = (
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<letter>{LETTERS}){MARK}(?P<type>.+)",
        rf"(?P<type>.+){MARK}(?P<letter>{LETTERS})",
        rf"(?P<letter>{LETTERS})(?P<type>)",
    )
)
ONE = rf"(?:{LETTERS}{MARK}[^|+&;,#]+|O)"
SEVERAL = re.compile(rf"{ONE}(?:[|+&;,#]{ONE})+")  # tags of nested entities


class Scheme(NamedTuple):
    """What the tags of a set mean.

    Attributes:
        name: of the scheme; "" for tags that count word by word, such as parts of speech.
        tags: tag -> ``O``, or a letter of B, I, E and S, a hyphen and the type of entity; S for those word by word.
        types: of entities, sorted.
    """

    name: str
    tags: dict[str, str]
    types: list[str]


def scheme_of(tags: Iterable[str], source: str = "the data") -> Scheme:
    """Find the scheme of a set of tags.

    Letters may stand before or after the type (``B-PER``, ``B_PER``, ``PER-B``), in either case, or alone, where there
    is one type of entity. Tags none of which begins or continues an entity count word by word.

    Raises:
        UserError: letters of several schemes, or some tags with a letter and others without.

    Example:
        >>> scheme_of(["O", "B-PER", "L-PER", "U-PER"]).name, scheme_of(["B", "I", "O"]).tags["B"]
        ('BILOU', 'B-entity')
    """
    names = sorted({*tags})
    inner = [tag for tag in names if tag not in NOTHING and not SPECIAL.fullmatch(tag)]
    outside = {tag: OUTSIDE for tag in names if tag not in inner}
    if nested := [tag for tag in inner if SEVERAL.fullmatch(tag)]:
        raise UserError(
            f"the tags of {source} hold several for one word, such as {nested[0]!r}: expected one; choose one"
        )
    for form in (PREFIXED, SUFFIXED, ALONE):
        parts = {tag: match for tag in inner if (match := form.fullmatch(tag))}
        letters = {match["letter"].upper() for match in parts.values()}
        if len(parts) == len(inner) and letters & {"B", "I"}:
            family = _family(letters, source)
            types = {tag: match["type"] or "entity" for tag, match in parts.items()}
            read = {tag: f"{FAMILIES[family][parts[tag]['letter'].upper()]}-{types[tag]}" for tag in parts}
            return Scheme(family, {**read, **outside}, sorted({*types.values()}))
    lettered = [tag for tag in inner if (match := PREFIXED.fullmatch(tag)) and match["letter"] in "BIbi"]
    if lettered:
        odd = next(tag for tag in inner if not PREFIXED.fullmatch(tag))
        raise UserError(
            f"the tags of {source} are {lettered[0]!r} and {odd!r}: expected one scheme, such as IOB2, whose tags "
            "begin with B-, with I- or are O; rename the odd ones"
        )
    inner += [tag for tag in outside if tag == "-"]  # punctuation, among parts of speech
    return Scheme("", outside | {tag: f"S-{tag}" for tag in inner}, sorted(inner))


def _family(letters: set[str], source: str) -> str:
    """The first scheme that has all letters."""
    for name, meanings in FAMILIES.items():
        if letters <= {*meanings}:
            return name
    raise UserError(
        f"the tags of {source} have the letters {', '.join(sorted(letters))}: expected those of one scheme, of "
        f"{', '.join(FAMILIES)}"
    )


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
