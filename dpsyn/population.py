"""Samples and Population: frozen, row-aligned arrays. Row i of every array is about sample i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]

MISSING = np.iinfo(np.int64).min
"""In a table's column of integers: no value."""

Modality = Literal["images", "texts", "rows", "rows with texts"]
"""What samples are of."""
MODALITIES: tuple[Modality, ...] = get_args(Modality)

Label = Mapping[str, str]
"""Column names to values, `{"digit": "3"}`: prompts and texts are formatted from it."""


@dataclass(frozen=True)
class Samples:
    """Rows of one modality.

    content: images uint8 [n, h, w, c] | texts object of str [n] | table rows, structured [n], with a field a column:
        object of str or None | int64 or MISSING | float64 or NaN | datetime64[D or s], timedelta64[s] or NaT | int8: 1
        true, 0 false, -1 none.
    traits: what the api needs to vary a row again (class id, font, pool index, ...), [n, ...] each.
    forms: of columns of times, by name: 'format' and 'timezone', as the schema declares them.
    Raises ValueError where an array has another number of rows.

    >>> rows = Samples(np.zeros((3, 8, 8, 1), np.uint8), {"font": np.array([4, 1, 4])})
    >>> len(rows), take(rows, np.array([2, 0])).traits["font"].tolist()
    (3, [4, 4])
    """

    content: Array
    traits: Mapping[str, Array] = field(default_factory=dict)
    forms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _same_rows(len(self.content), self.traits)

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Population:
    """What one iteration ends with.

    labels: int64 [n], index into the declared labels.
    parents: int64 [n], row in the population before; -1 where there is none.
    survivors: bool [n], True where the row itself was voted for (not a fresh variation of it).
    """

    iteration: int
    samples: Samples
    labels: I64
    parents: I64
    survivors: Bool

    def __post_init__(self) -> None:
        rows = {"labels": self.labels, "parents": self.parents, "survivors": self.survivors}
        _same_rows(len(self.samples), rows)

    def __len__(self) -> int:
        return len(self.samples)


def _same_rows(n: int, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if len(array) != n:
            raise ValueError(f"{name} has {len(array)} rows, expected {n}: row i of every array is about sample i")


def of_texts(texts: Sequence[str | None]) -> Samples:
    """Texts as samples, without traits."""
    content = np.empty(len(texts), object)
    content[:] = texts
    return Samples(content)


def take(samples: Samples, rows: I64 | Bool) -> Samples:
    """The named rows, in that order.

    samples: n of them.
    rows: int64 [m], or bool [n].
    """
    return replace(
        samples, content=samples.content[rows], traits={name: values[rows] for name, values in samples.traits.items()}
    )


def some_of(population: Population, rows: I64 | Bool) -> Population:
    """The named rows of a population, in that order.

    population: of n rows.
    rows: int64 [m], or bool [n].
    """
    lineage = (population.labels[rows], population.parents[rows], population.survivors[rows])
    return Population(population.iteration, take(population.samples, rows), *lineage)


def concatenate(parts: Sequence[Samples]) -> Samples:
    """All rows of all parts, in order. Parts must have the same traits. Raises ValueError for no parts."""
    if not parts:
        raise ValueError("concatenate needs at least one part")
    names = parts[0].traits.keys()
    if any(part.traits.keys() != names for part in parts):
        raise ValueError(f"traits differ: {[sorted(part.traits) for part in parts]}")
    return Samples(
        np.concatenate([part.content for part in parts]),
        {name: np.concatenate([part.traits[name] for part in parts]) for name in names},
        parts[0].forms,
    )
