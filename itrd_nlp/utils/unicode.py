"""Valid Unicode: JSON and command lines can hold half a character, which no tokenizer or file takes."""

import re
from typing import Any

HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a surrogate without its partner


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can encode.

    Example:
        >>> is_text("naïve"), is_text("\\ud83e"), is_text(None)
        (True, False, False)
    """
    return isinstance(value, str) and not HALF_CHARACTER.search(value)
