"""What is asked of values in JSON that others may have written. Called by the readers of score files and of results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# name of an entry -> what its value must be, and whether one is
Rules = dict[str, tuple[str, Callable[[Any], bool]]]

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


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The same rule for a value that may be null."""
    return lambda value: value is None or fits(value)


def broken(content: dict[str, Any], rules: Rules) -> list[str]:
    """What is wrong with entries that are there, each by itself; of a sentence, without its end."""
    return [
        f"`{name}` must be {rule}, but is {excerpt(content[name])}"
        for name, (rule, fits) in rules.items()
        if name in content and not fits(content[name])
    ]


def excerpt(value: Any) -> str:
    """The value in a sentence, short enough for one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, nesting without end
        text = "something huge"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "…"
