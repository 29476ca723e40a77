"""Text of others, made safe to look at: a prompt must not steer the reader's terminal."""

from __future__ import annotations

import unicodedata

_HIDING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control, format, surrogate and line-separating characters."""

_JOINERS = frozenset("\u200c\u200d")
"""Written inside words of several scripts and inside emoji; invisible only beside plain text."""


def visible(text: str, *, lines: bool = True) -> str:
    r"""Writes every character that a terminal obeys or hides as its escape, such as `\x1b`.

    Args:
        text: Anything a person or a model wrote.
        lines: Whether tabs and line ends may stay; without, each becomes a space.
    """
    if text.isprintable():
        return text
    return "".join(_shown(text, at, lines) for at in range(len(text)))


def _shown(text: str, at: int, lines: bool) -> str:
    character = text[at]
    if character in "\t\n\r":
        if lines and character != "\r":
            return character
        return " "
    if character in _JOINERS and 0 < at < len(text) - 1 and not text[at - 1].isascii():
        return character
    if unicodedata.category(character) in _HIDING:
        return character.encode("unicode_escape").decode()
    return character
