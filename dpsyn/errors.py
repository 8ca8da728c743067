"""The errors that a user can fix: one line each, with the name, the value, what is expected, what to do.

They never quote private data: a message about a private row names the column and the rule, nothing else.
"""

import difflib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

INSTALLED_AS = {
    "PIL": "pillow",
    "python_avatars": "python-avatars",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
}


class UserError(Exception):
    """An error that the user can fix. The command line shows its text as one line and ends with status 2."""


class Missing(UserError):
    """What a run needs and is not here: data, weights, a package, a name that only the user knows. A run is refused; a
    plan needs nothing of the kind, and tells it."""


class OutOfSpace(UserError):
    """A disk is full. Nothing half-written is left behind, and the same command goes on later."""


def invalid(key: str, value: object, expected: str, do: str = "") -> UserError:
    """`key=value: expected ... do`, the form of every complaint about a setting.

    key: the setting, as it is typed.
    value: what it was set to; public, as it is shown.
    expected: a noun.
    do: a sentence on what the user can do; '' for none.
    """
    return UserError(_complaint(key, value, expected, do))


def missing(key: str, value: object, expected: str, do: str = "") -> Missing:
    """As `invalid`, of what may be given later: a plan goes on without it.

    key: the setting, as it is typed.
    value: what it was set to; public, as it is shown.
    expected: a noun.
    do: a sentence on what the user can do; '' for none.
    """
    return Missing(_complaint(key, value, expected, do))


def _complaint(key: str, value: object, expected: str, do: str) -> str:
    return f"{key}={value}: expected {expected}." + (f" {do}" if do else "")


def check_packages(key: str, value: object, *packages: str, do: str = "") -> None:
    """Raises Missing for the first package that is not installed.

    key: the setting that needs them.
    value: of the setting.
    packages: by the names of their imports.
    do: how to get one; '': by pip.
    """
    for package in packages:
        if find_spec(package) is None:
            name = INSTALLED_AS.get(package, package)
            raise missing(key, value, f"the package {name}", do or f"Install it: pip install {name}")


def one_of(values: Iterable[object]) -> str:
    """'a, b or c'"""
    *head, last = [str(value) for value in values]
    return f"{', '.join(head)} or {last}" if head else last


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """'Did you mean ...?', or nothing.

    word: that is not known.
    known: words that are.
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
