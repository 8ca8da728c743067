"""The steps of Private Evolution, one for each noisy release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api import Degree
from dpsyn.errors import invalid
from dpsyn.population import F64, I64
from dpsyn.schedule.selection import proportional, top
from dpsyn.validate import flag, whole

Select = Callable[[F64, int, np.random.Generator], I64]
"""(noisy votes of one label's candidates int64 [m], how many, generator) -> rows int64 [how many] in [0, m)"""


@dataclass(frozen=True)
class Step:
    """One iteration: a release of votes, then the next population.

    size: how many survivors, over all labels.
    degree: how far a variation goes; the api says what its degrees mean.
    variations: how many are made of each survivor.
    keep_survivors: they stay in the population.
    lookahead: a candidate is embedded as the mean of this many of its variations (K of the paper); 0: as itself.
    smooth: noisy votes are shared out among this many nearest candidates of a label before they select; 1: none.
    select: noisy votes -> rows that survive.

    >>> step = Step(size=100, degree=0.5, select=top, variations=2)
    >>> step.rows  # 100 survivors, and two variations of each
    300
    """

    size: int
    degree: Degree
    select: Select
    variations: int = 1
    keep_survivors: bool = True
    lookahead: int = 0
    smooth: int = 1

    def __post_init__(self) -> None:
        if not callable(self.select):
            raise invalid("schedule.select", self.select, "a way to select, by its _target_")
        for key, least in (("size", 1), ("variations", 0), ("lookahead", 0), ("smooth", 1)):
            whole(f"schedule.{key}", getattr(self, key), least)
        flag("schedule.keep_survivors", self.keep_survivors)
        if self.variations == 0 and not self.keep_survivors:
            expected = "1 or more with schedule.keep_survivors=false"
            raise invalid("schedule.variations", 0, expected, "Nothing would be left.")

    @property
    def rows(self) -> int:
        """Of the population that it leaves behind, at most."""
        return self.size * (self.variations + self.keep_survivors)


def tab_pe_steps(
    releases: int, size: int, degrees: Sequence[float], power: float, sampled_releases: int, variations: int
) -> tuple[Step, ...]:
    """Tab-PE (arXiv 2606.08259, algorithm 2): some releases sample survivors in proportion to votes, later ones rank.

    A sampled survivor is replaced by one variation, a ranked one stays beside its variations; so do those of the last
    sampled release, so that the first ranking has something to choose from. The last release ends on its survivors.

    releases: votes.
    size: rows that survive.
    degrees: [r0, r1]; of release t it is r0 - (r0 - r1) * ((t - 1) / (releases + 1))^power, as published.
    power: how the degree falls.
    sampled_releases: the first ones, whose survivors are sampled.
    variations: of each survivor of a later one.
    """
    if type(releases) is not int or type(sampled_releases) is not int or not 0 <= sampled_releases < releases:
        expected = f"a whole number below schedule.releases={releases}"
        raise invalid("schedule.sampled_releases", sampled_releases, expected)
    if isinstance(degrees, str) or len(degrees) != 2:
        raise invalid("schedule.degrees", degrees, "two numbers, the first and the last")
    widest, least = degrees
    made = []
    for t in range(1, releases + 1):
        degree = widest - (widest - least) * ((t - 1) / (releases + 1)) ** power
        if t < sampled_releases:
            made.append(Step(size, degree, proportional, 1, keep_survivors=False))
        else:
            select = proportional if t == sampled_releases else top
            made.append(Step(size, degree, select, variations if t < releases else 0))
    return tuple(made)


def steps(
    releases: int,
    size: int | Sequence[int],
    degree: Degree | Sequence[Degree],
    select: Select | Sequence[Select],
    variations: int | Sequence[int] = 1,
    keep_survivors: bool | Sequence[bool] = True,
    lookahead: int | Sequence[int] = 0,
    smooth: int | Sequence[int] = 1,
) -> tuple[Step, ...]:
    """Every argument but the first is one value for all steps, or a list with a value a release; see `Step`.

    A mapping of degrees may hold lists too: `{font: [0.8, 0.4], size: 3}`. Raises UserError for a list of another
    length.

    releases: how many steps.
    size: rows that survive.
    degree: of the variations.
    select: which candidates survive.
    variations: of each survivor.
    keep_survivors: whether they stay beside their variations.
    lookahead: variations whose mean embedding stands for a candidate; 0: its own.
    smooth: nearest candidates among which votes are shared; 1: none.
    """
    whole("schedule.releases", releases, 1)

    def at(key: str, value: object, t: int) -> object:
        if isinstance(value, Mapping):
            return {name: at(f"{key}.{name}", part, t) for name, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != releases:
                do = f"schedule.releases is {releases}."
                raise invalid(f"schedule.{key}", list(value), f"one value, or one a release ({releases})", do)
            return value[t]
        return value

    given = {"size": size, "degree": degree, "select": select, "variations": variations}
    given |= {"keep_survivors": keep_survivors, "lookahead": lookahead, "smooth": smooth}
    return tuple(Step(**{k: at(k, v, t) for k, v in given.items()}) for t in range(releases))  # type: ignore[arg-type]
