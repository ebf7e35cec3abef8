"""Valid Unicode: JSON and command lines can hold half a character, which no tokenizer or file takes."""

import re
from collections.abc import Sequence
from typing import Any

from itrd_nlp.utils.errors import UserError

HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a surrogate without its partner


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can encode.

    Example:
        >>> is_text("naïve"), is_text("\\ud83e"), is_text(None)
        (True, False, False)
    """
    return isinstance(value, str) and not HALF_CHARACTER.search(value)


def check_filled(kind: str, texts: Sequence[Any], may_be_blank: bool = False) -> None:
    """Raise :class:`UserError` for an item that is not text or is blank; ``kind`` names the items."""
    for number, text in enumerate(texts, start=1):
        if not is_text(text) or not (may_be_blank or text.strip()):
            raise UserError(f"{kind} {number} of {len(texts)} is {text!r:.40}: expected text")
