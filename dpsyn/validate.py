"""Checks of settings, a line each. All raise UserError: `key=value: expected ...`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dpsyn.errors import invalid, one_of


def flag(key: str, value: Any) -> None:
    if type(value) is not bool:
        raise invalid(key, value, "true or false")


def text_or_null(key: str, value: Any) -> None:
    """A text or None.

    key: the setting, as it is typed.
    value: what it was set to.
    """
    if not isinstance(value, str | None):
        raise invalid(key, value, "a text, or null")


def name_or_null(key: str, value: Any, expected: str = "a text, or null") -> None:
    """A text that is not blank, or None.

    key: the setting, as it is typed.
    value: what it was set to.
    expected: in words, a noun.
    """
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise invalid(key, value, expected)


def choice(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise invalid(key, value, one_of("null" if each is None else each for each in allowed))


def whole(key: str, value: Any, least: int = 0, optional: bool = False, most: int | None = None) -> None:
    """An int that is no bool.

    key: the setting, as it is typed.
    value: what it was set to.
    least: the smallest that is allowed.
    optional: whether None is allowed.
    most: the largest that is allowed; None: there is none.
    """
    if optional and value is None:
        return
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f", {least} or more" if most is None else f" from {least} to {most}"
        raise invalid(key, value, f"a whole number{bounds}" + (", or null" if optional else ""))


def number(
    key: str,
    value: Any,
    expected: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    optional: bool = False,
    do: str = "",
) -> None:
    """A finite int or float within bounds.

    key: the setting, as it is typed.
    value: what it was set to.
    expected: the bounds in words, a noun.
    least: the smallest that is allowed.
    most: the largest that is allowed.
    above: an open bound below.
    optional: whether None is allowed.
    do: a sentence on what the user can do; '' for none.
    """
    if optional and value is None:
        return
    if type(value) not in (int, float) or not (least <= value <= most and above < value < math.inf):
        raise invalid(key, value, expected, do)


def side_lengths(key: str, value: Any, optional: bool = False) -> None:
    """[height, width] px.

    key: the setting, as it is typed.
    value: what it was set to.
    optional: whether None is allowed.
    """
    expected = "[height, width] px" + (", or null" if optional else "")
    if optional and value is None:
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise invalid(key, value, expected)
    if not all(type(side) is int and side > 0 for side in value):
        raise invalid(key, list(value), expected)
