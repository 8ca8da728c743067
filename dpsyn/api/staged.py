"""One api for the first iterations, another after: a simulator finds the kind of thing, a model its details (Sim-PE).

Hybrid of arXiv 2502.05505, section 5.3: avatars, then a diffusion model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dpsyn.api import Adopting, Api, Degree, Pinged
from dpsyn.data import Data
from dpsyn.errors import invalid
from dpsyn.population import Label, Samples

STAGES = ("first", "second")


@dataclass(frozen=True)
class Staged(Api):
    """`first` makes the samples of iteration 0; a degree {first: d} or {second: d} says who varies them, and how far.

    Samples carry the traits of both, as `first.font`, `second.class`: from the start `second` adopts what `first` made,
    so that survivors and variations of the iteration where they change hands stand side by side. Once `second` has
    varied a sample, `first` can no longer draw it: its traits are those of the ancestor.
    """

    first: Api
    second: Api

    def __post_init__(self) -> None:
        for stage in STAGES:
            if not isinstance(api := getattr(self, stage), Api):
                raise invalid(f"api.{stage}", api or "null", "an api, {_target_: ..., and its arguments}")

    @property
    def row_bytes(self) -> int:
        return max(self.first.row_bytes, self.second.row_bytes)

    @property
    def labelled(self) -> bool:
        return self.first.labelled

    def check(self) -> None:
        """The cheap checks of both, and that `second` can go on with what `first` made."""
        if not isinstance(self.second, Adopting):
            raise invalid("api.second", type(self.second).__name__, "an api that adopts the samples of another")
        for api in (self.first, self.second):
            api.check()

    def ping(self, what: Literal["generate", "vary"]) -> None:
        """Of both: `second` is asked before there is anything for it to vary."""
        if isinstance(self.first, Pinged):
            self.first.ping(what)
        if isinstance(self.second, Pinged):
            self.second.ping("vary")

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for a degree that does not say whose it is, or that this one refuses."""
        stage, own = _stage(degree)
        getattr(self, stage).check_degree(own)

    def target(self, degree: Degree | None) -> Api:
        return self.first if degree is None else getattr(self, _stage(degree)[0])

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Of both."""
        self.first.check_labels(labels)
        self.second.check_labels(labels)

    def check_keys(self) -> None:
        """Of both."""
        self.first.check_keys()
        self.second.check_keys()

    def reads(self) -> Sequence[Data]:
        return (*self.first.reads(), *self.second.reads())

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Of `first`, with the traits of both."""
        made = self.first.generate(labels, seeds)
        adopted = Samples(made.content)
        if isinstance(self.second, Adopting):
            adopted = self.second.adopt(adopted, labels, seeds)
        return Samples(made.content, {**_named("first", made.traits), **_named("second", adopted.traits)})

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """By whom the degree names; the traits of the other stay those of the parent."""
        stage, own = _stage(degree)
        mine = {name.removeprefix(f"{stage}."): v for name, v in samples.traits.items() if name.startswith(f"{stage}.")}
        varied = getattr(self, stage).vary(Samples(samples.content, mine), labels, own, seeds)
        return Samples(varied.content, {**samples.traits, **_named(stage, varied.traits)})


def _stage(degree: Degree) -> tuple[str, Degree]:
    if not isinstance(degree, Mapping) or len(degree) != 1 or next(iter(degree)) not in STAGES:
        raise invalid("schedule.degree", degree, "{first: d} or {second: d}: who varies, and how far")
    return next(iter(degree.items()))


def _named(stage: str, traits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{stage}.{name}": values for name, values in traits.items()}
