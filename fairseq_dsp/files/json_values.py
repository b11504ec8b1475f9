"""JSON that others may have written: how a file of it is read, and what is asked of its values. Called by all readers of such files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from fairseq_dsp.errors import Refusal

# name of an entry -> what its value must be, and whether one is
Rules = dict[str, tuple[str, Callable[[Any], bool]]]

_LONGEST = 60  # characters of a value in a sentence


def read_json(path: str, option: str, any_number: bool = False) -> Any:
    """What a file of JSON holds.

    Args:
        option: that which named the file, as sentences say it.
        any_number: NaN and infinity, which JSON does not know, are left to the rules of the values.

    Raises:
        Refusal: the file cannot be read, is no whole JSON, or has such a number that is not left to the rules.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, parse_constant=float if any_number else _refuse_constant)
    except OSError as error:
        raise Refusal(f"{option} must be a file, but {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, numbers and nesting without end
        raise Refusal(f"{option} must be whole JSON, but {path} is not: {error}.") from error


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
