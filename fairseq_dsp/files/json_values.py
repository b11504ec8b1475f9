"""What is asked of values in JSON that others may have written. Called by the readers of score files and of results."""

from __future__ import annotations

import math
from typing import Any

_LONGEST = 60  # characters of a value in a sentence


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether it is a whole number of at least `least`, and no truth value, which Python counts as one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_finite(value: Any, least: float = -math.inf) -> bool:
    """Whether it is a number of at least `least` that a float can hold."""
    try:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least
        )
    except OverflowError:  # a whole number beyond any float
        return False


def excerpt(value: Any) -> str:
    """The value in a sentence, short enough for one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, nesting without end
        text = "something huge"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "…"
