"""Numbers on the command line, checked as argparse reads them."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError: It is less.
        ValueError: It is no whole number.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def positive(text: str) -> float:
    """A finite number above 0.

    Raises:
        ArgumentTypeError: It is not above 0, or not finite.
        ValueError: It is no number.
    """
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number
