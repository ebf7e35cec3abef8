"""Words of a command line."""

from collections.abc import Iterable


def underscored(words: Iterable[str]) -> list[str]:
    """Words in which options have underscores, as ``--max_length`` for ``--max-length``: argparse accepts both.

    Example:
        >>> underscored(["--max-length=8", "--student.init", "--label", "a-b", "--losses.some-loss", "{a-b: 1}"])
        ['--max_length=8', '--student.init', '--label', 'a-b', '--losses.some-loss', '{a-b: 1}']
    """
    return [_underscored(word) if word.startswith("--") else word for word in map(str, words)]


def _underscored(option: str) -> str:
    name, equals, value = option.removeprefix("--").partition("=")
    first, dot, inner = name.partition(".")
    return f"--{first.replace('-', '_')}{dot}{inner}{equals}{value}"
