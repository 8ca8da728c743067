"""Cartoon faces as a simulator (Sim-PE, arXiv 2502.05505): the 16 parameters of python_avatars, drawn by cairosvg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.api.avatar.faces import HEIGHT, PARAMETERS, WIDTH, names, pictures, values
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid, missing
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Label, Samples
from dpsyn.processes import Ended, end_kept, is_worker, kept, shared_out
from dpsyn.randomness import uniform
from dpsyn.threads import processors
from dpsyn.validate import number, side_lengths

CHUNK = 64  # rows that a worker gets at once
OFTEN_NONE = ("facial_hair", "accessory")  # python_avatars draws NONE half of the time, any value else


@dataclass(frozen=True)
class Avatar(Api):
    """Images uint8 [n, h, w, 3]. Traits: the 16 parameters, str [n] each, by the names that python_avatars gives them.

    Published settings: image_size 32, crop [40, 40, 224, 224]; degrees .8 .6 .4 .2 .1 .08 .06.

    image_size: [height, width] px. crop: [left, top, right, bottom] px of the face of 264x280, or None: all of it.
    `runtime.workers` processes draw, started when first asked and kept; 0 or 1: this one, and so it is in a process
    that is itself a worker. Neither this nor the batch size changes a sample.

    What is transparent is black, as published. Labels do not matter: the votes choose. One graphic of one shirt is
    text in a font of the system; all else is the same on any machine.
    """

    image_size: Sequence[int]
    crop: Sequence[int] | None
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        side_lengths("api.image_size", self.image_size)
        if self.crop is not None:
            good = _whole(self.crop, 4) and min(self.crop) >= 0
            if not good or not (self.crop[0] < self.crop[2] <= WIDTH and self.crop[1] < self.crop[3] <= HEIGHT):
                raise invalid("api.crop", self.crop, f"[left, top, right, bottom] px within {WIDTH}x{HEIGHT}, or null")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a small colour picture and its traits."""
        return int(np.prod(self.image_size)) * 3 // 2 + 100

    def check(self) -> None:
        """Raises UserError where python_avatars, cairosvg or the library libcairo is missing."""
        do = "Install it: pip install 'dpsyn[avatar]'"
        check_packages("api", "avatar", "python_avatars", "cairosvg", do=do)
        try:
            import cairosvg  # noqa: F401
        except OSError:
            do = "Install it: apt-get install libcairo2, or brew install cairo."
            raise missing("api", "avatar", "the system's library libcairo", do) from None

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        expected = "one number, 0 to 1: the probability that a parameter is drawn anew"
        number("schedule.degree", degree, expected, least=0, most=1)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Every parameter uniform over its values, but for facial_hair and accessory: NONE half of the time."""
        self.check()
        return self.drawn(random_rows(np.asarray(seeds), "avatar.fresh"))

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """Each parameter keeps its value with probability 1 - degree, and else is drawn as in `generate`, which may
        give the old value again. As published. Raises UserError for samples of another api."""
        self.check()
        self.check_degree(degree)
        assert not isinstance(degree, Mapping)
        if missing := PARAMETERS.keys() - samples.traits.keys():
            lacking = ", ".join(sorted(missing))
            raise UserError(f"api avatar: the samples lack the traits {lacking}: another api drew them.")
        old = np.stack([_indices(name, samples.traits[name]) for name in PARAMETERS], axis=1)
        coins = [uniform(np.asarray(seeds), "avatar.coin", k) for k in range(len(PARAMETERS))]
        return self.drawn(
            np.where(np.stack(coins, axis=1) < degree, random_rows(np.asarray(seeds), "avatar.anew"), old)
        )

    def drawn(self, rows: np.ndarray) -> Samples:
        """rows: int64 [n, 16], indices into the values of each parameter."""
        distinct, places = np.unique(rows, axis=0, return_inverse=True)
        size, crop = tuple(self.image_size), tuple(self.crop or (0, 0, WIDTH, HEIGHT))
        workers = processors() if self.runtime.workers is None else self.runtime.workers
        if workers < 2 or len(distinct) <= CHUNK or is_worker():
            images = pictures(distinct, size, crop)
        else:
            parts = [(distinct[start : start + CHUNK], size, crop) for start in range(0, len(distinct), CHUNK)]
            try:
                images = np.concatenate(shared_out(kept(workers), pictures, parts))
            except BaseException as error:
                end_kept(workers)  # answers may be left in their pipes
                if not isinstance(error, Ended):
                    raise
                said = f"api avatar: a worker ended before its work was done ({error})."
                do = (
                    "Give the same command again; with runtime.workers=0 this process draws, and shows what goes wrong."
                )
                raise UserError(f"{said} {do}") from None
        traits = {name: np.array(names(name), np.str_)[rows[:, k]] for k, name in enumerate(PARAMETERS)}
        return Samples(images[places.reshape(-1)], traits)


def _whole(values: Any, n: int) -> bool:
    sequence = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == n
    return sequence and all(type(value) is int for value in values)


def _indices(name: str, traits: np.ndarray) -> np.ndarray:
    """int64 [n]. Raises UserError for a value that this version of python_avatars does not have."""
    known = {value: k for k, value in enumerate(names(name))}
    unknown = next((value for value in traits.tolist() if value not in known), None)
    if unknown is not None:
        do = "Install the version of python_avatars that drew these samples."
        raise invalid(f"api avatar, {name}", unknown, "a value that python_avatars knows", do)
    return np.array([known[value] for value in traits.tolist()], np.int64)


def random_rows(seeds: np.ndarray, stream: str) -> np.ndarray:
    """Parameters int64 [n, 16], each row from its seed and the stream alone.

    seeds: uint64 [n].
    stream: a name of `STREAMS`.
    """
    columns = []
    for k, name in enumerate(PARAMETERS):
        column = np.floor(uniform(seeds, stream, k) * len(values(name))).astype(np.int64)
        if name in OFTEN_NONE:
            column[uniform(seeds, stream, 50 + k) < 0.5] = names(name).index("NONE")
        columns.append(column)
    return np.stack(columns, axis=1)
