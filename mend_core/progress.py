"""Telling a person how far long work has come: a short text and a fraction in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]


def unheard(_text: str, _fraction: float) -> None:
    """A `Progress` for where nobody listens."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work, as that of the whole.

    Args:
        progress: Of the whole.
        start: Fraction of the whole at which the part begins.
        end: Fraction at which it ends.
    """
    return lambda text, fraction: progress(text, start + fraction * (end - start))
