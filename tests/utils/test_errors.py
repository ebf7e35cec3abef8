"""Tests of itrd_nlp.utils.errors, beside the doctests."""

import pytest

from itrd_nlp.utils.errors import UserError, one_line


@pytest.mark.parametrize(
    ("error", "limit", "expected"),
    [
        (OSError("no\n  such   file"), 160, "no such file"),
        (OSError(), 160, "OSError"),
        (OSError("12345 789"), 9, "12345 789"),
        (OSError("12345 7890"), 9, "12345 ..."),  # a word is whole or gone
        (OSError("1234567890"), 9, "123456789 ..."),
        (OSError("a " * 300), None, ("a " * 300).strip()),
        (
            UserError("Caught UserError in worker 0.\nTraceback: ...\nUserError: 'x.png' is damaged"),
            160,
            "'x.png' is damaged",
        ),
    ],
)
def test_a_message_is_one_line_cut_between_words(error, limit, expected):
    assert one_line(error, limit) == expected
