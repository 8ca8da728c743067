"""A schedule is a tuple of Steps; its length is the number of releases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api import Degree
from dpsyn.errors import bad
from dpsyn.selection import proportional, top

Select = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(noisy votes of one label's candidates int64 [m], how many, generator) -> rows int64 [how many] in [0, m)"""


@dataclass(frozen=True)
class Step:
    """One iteration: a release of votes, then the next population.

    size: how many survivors, over all labels.
    degree: how far a variation goes; the api says what its degrees mean.
    folds: variations made of each survivor.
    keep: survivors stay in the population.
    lookahead: a candidate is embedded as the mean of this many of its variations (K of the paper); 0: as itself.
    smooth: noisy votes are shared out among this many nearest candidates of a label before they select; 1: none.
    select: noisy votes -> rows that survive.
    """

    size: int
    degree: Degree
    select: Select
    folds: int = 1
    keep: bool = True
    lookahead: int = 0
    smooth: int = 1

    def __post_init__(self) -> None:
        if not callable(self.select):
            raise bad("schedule.select", self.select, "a way to select, by its _target_")
        for key, least in (("size", 1), ("folds", 0), ("lookahead", 0), ("smooth", 1)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise bad(f"schedule.{key}", value, f"a whole number, {least} or more")
        if not isinstance(self.keep, bool):
            raise bad("schedule.keep", self.keep, "true or false")
        if self.folds == 0 and not self.keep:
            raise bad("schedule.folds", 0, "1 or more when schedule.keep=false", "Nothing would be left.")


def tab_pe(
    releases: int, size: int, degrees: Sequence[float], power: float, drawn: int, folds: int
) -> tuple[Step, ...]:
    """Tab-PE (arXiv 2606.08259, algorithm 2): `drawn` releases of PE's own selection, then ranked ones.

    A drawn survivor is replaced by one variation, a ranked one stays beside `folds` of them; so do those of the last
    drawn release, that the first ranking has something to choose from. The last release ends on its survivors.
    degrees: [r0, r1]; of release t it is r0 - (r0 - r1) * ((t - 1) / (releases + 1))^power, as published.
    """
    if type(releases) is not int or type(drawn) is not int or not 0 <= drawn < releases:
        raise bad("schedule.drawn", drawn, f"a whole number below schedule.releases={releases}")
    if isinstance(degrees, str) or len(degrees) != 2:
        raise bad("schedule.degrees", degrees, "two numbers, the first and the last")
    widest, least = degrees
    made = []
    for t in range(1, releases + 1):
        degree = widest - (widest - least) * ((t - 1) / (releases + 1)) ** power
        if t < drawn:
            made.append(Step(size, degree, proportional, 1, keep=False))
        else:
            made.append(Step(size, degree, proportional if t == drawn else top, folds if t < releases else 0))
    return tuple(made)


@dataclass(frozen=True)
class Cells:
    """Votes in subspaces (dpsyn/cells.py) in the place of Steps: the releases follow from the schema and the budget.

    size: rows of the synthetic table; None: as many as data.records declares, and 20,000 at least.
    scores: choose pairs of columns by noisy scores, where there are too many to ask them all. Never so for users and
        under replace-one, where one unit moves a score by more than one: all pairs are asked then, or none.
    """

    size: int | None
    scores: bool

    def __post_init__(self) -> None:
        if self.size is not None and (type(self.size) is not int or self.size < 1):
            raise bad("schedule.size", self.size, "a whole number, 1 or more, or null")
        if type(self.scores) is not bool:
            raise bad("schedule.scores", self.scores, "true or false")


def initial_size(schedule: Sequence[Step]) -> int:
    """Rows of the population before the first vote: as many as the first step leaves behind."""
    return schedule[0].size * (schedule[0].folds + schedule[0].keep)


def final_size(schedule: Sequence[Step]) -> int:
    """Rows after the last step, at most."""
    last = schedule[-1]
    return last.size * (last.folds + last.keep)


def steps(
    releases: int,
    size: int | Sequence[int],
    degree: Degree | Sequence[Degree],
    select: Select | Sequence[Select],
    folds: int | Sequence[int] = 1,
    keep: bool | Sequence[bool] = True,
    lookahead: int | Sequence[int] = 0,
    smooth: int | Sequence[int] = 1,
) -> tuple[Step, ...]:
    """`releases` Steps; every other argument is one value for all of them, or a list with a value a release.

    A mapping of degrees may hold lists too: `{font: [0.8, 0.4], size: 3}`.
    Raises UserError for a list of another length.
    """
    if isinstance(releases, bool) or not isinstance(releases, int) or releases < 1:
        raise bad("schedule.releases", releases, "a whole number, 1 or more")

    def at(key: str, value: object, t: int) -> object:
        if isinstance(value, Mapping):
            return {name: at(f"{key}.{name}", part, t) for name, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != releases:
                do = f"schedule.releases is {releases}."
                raise bad(f"schedule.{key}", list(value), f"one value, or one a release ({releases})", do)
            return value[t]
        return value

    given = {"size": size, "degree": degree, "select": select, "folds": folds, "keep": keep}
    given |= {"lookahead": lookahead, "smooth": smooth}
    return tuple(Step(**{k: at(k, v, t) for k, v in given.items()}) for t in range(releases))  # type: ignore[arg-type]


def none(
    releases: int,
    size: int | Sequence[int],
    degree: Degree | Sequence[Degree],
    select: Select | Sequence[Select],
    folds: int | Sequence[int] = 1,
    keep: bool | Sequence[bool] = True,
    lookahead: int | Sequence[int] = 0,
    smooth: int | Sequence[int] = 1,
) -> int:
    """No vote at all, for comparison: how many rows `steps` with these arguments would end with."""
    return final_size(steps(releases, size, degree, select, folds, keep, lookahead, smooth))
