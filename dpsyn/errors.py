"""The errors that a user can fix: one line each, with the name, the value, what is expected, what to do.

They never quote private data: a message about a private row names the column and the rule, nothing else.
"""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake that the user can mend. The command line shows its text as one line and ends with status 2."""


class OutOfSpace(UserError):
    """A disk is full. Nothing half-written is left behind, and the same command goes on later."""


def invalid(key: str, value: object, expected: str, do: str = "") -> UserError:
    """`key=value: expected ... do`, the form of every complaint about a setting."""
    return UserError(f"{key}={value}: expected {expected}." + (f" {do}" if do else ""))


def one_of(values: Iterable[object]) -> str:
    """'a, b or c'"""
    *head, last = [str(value) for value in values]
    return f"{', '.join(head)} or {last}" if head else last


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """'Did you mean ...?', or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
