"""The contract of a schedule: which queries are asked of private records, in which order, and what is made of them.

A schedule never sees a private record. It asks queries and gets noisy answers; all else is post-processing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dpsyn.api import Api, Degree
from dpsyn.embedding import Coder, Embedding
from dpsyn.errors import invalid
from dpsyn.population import F32, F64, I64, U64, Label, Population, Samples
from dpsyn.privacy.budget import Release, Settings
from dpsyn.privacy.query import Answer, Query
from dpsyn.tables.schema import Schema

Ask = Callable[[int, Query], Answer]
"""(number of the release, from 1 on; query) -> its noisy answer: the one written down, or a new one"""

Keep = Callable[[str, Callable[[], Population]], Population]
"""(name of a part, how to make it) -> the part, found or made"""


@dataclass(frozen=True)
class Facts:
    """Public facts that a schedule plans by.

    shares: float64 [l], of each declared label; sums to 1.
    records: the declared number of records, or None.
    schema: of a table; None for other data.
    privacy: the settings of the group.
    has_rows: the api has whole rows, a pool of them: it is asked once for all texts of a row.
    """

    shares: F64
    records: int | None
    schema: Schema | None
    privacy: Settings
    has_rows: bool = False

    @property
    def asked_a_row(self) -> int:
        """Samples that the api is asked for, for one row."""
        texts = len(self.schema.texts) if self.schema is not None else 1
        return 1 if self.has_rows else max(1, texts)


class Maker(Protocol):
    """What is asked for candidates: an api, or one that is asked in batches."""

    def generate(self, labels: Sequence[Label], seeds: U64) -> Samples: ...

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: U64) -> Samples: ...


@dataclass(frozen=True)
class PublicSide:
    """All that a schedule works with, besides answers.

    api: makes candidates.
    embed: samples -> vectors, float32 [n, d].
    labels: as declared.
    facts: as above.
    seed: of every random draw except the noise.
    labelled: a fresh sample is of the label it was asked for; otherwise it may serve any.
    """

    api: Maker
    embed: Callable[[Samples], F32]
    labels: Sequence[Label]
    facts: Facts
    seed: int
    labelled: bool = True

    def named(self, labels: I64) -> list[Label]:
        return [self.labels[i] for i in labels]


@runtime_checkable
class Schedule(Protocol):
    @abstractmethod
    def releases(self, facts: Facts) -> Sequence[Release]:
        """All noisy releases, in the order of their numbers, fixed before the first. Iteration t makes release t; a
        release beyond the iterations comes before them. Raises UserError for facts that it cannot work with."""
        ...

    @abstractmethod
    def api_rows(self, facts: Facts) -> Sequence[tuple[int, int]]:
        """(generated, varied) rows that each iteration asks the api for, at most: iteration 0, 1, ..."""
        ...

    @abstractmethod
    def final_size(self, facts: Facts) -> int:
        """Rows of the final population, at most."""
        ...

    @abstractmethod
    def run(self, public: PublicSide, ask: Ask, last: Population | None) -> Iterator[Population]:
        """A population for every iteration after the last one, which is saved before the next is asked for. A function
        of its arguments, the answers and the seed.

        public: what is not private: facts, seed, api and embedding.
        ask: the only way to private records.
        last: what an interrupted run goes on from; None: from the beginning.
        """
        ...

    def least_size(self) -> int | None:
        """The rows that a step shares out among the labels, at least; None where there is no such step."""
        return None

    @property
    def uses_api(self) -> bool:
        """False: it asks neither the api nor the embedding, and neither need be chosen."""
        return True

    @property
    def finds_values(self) -> bool:
        """True: it finds the values of a schema's open columns. Every other schedule is refused where there are any."""
        return False

    def files(self, public: PublicSide, ask: Ask) -> Mapping[str, bytes]:
        """What is released besides rows, by name: a function of answers and public facts.

        public: what is not private.
        ask: answers what was released before.
        """
        return {}

    def coder(self, facts: Facts, embed: Embedding) -> Coder | None:
        """What turns private records into what its queries are about; None: the embedding. A dataclass, or a
        function of a module: what is kept of the records is named by its settings.

        facts: public ones about the data and the settings.
        embed: the embedding of the run.
        """
        return None

    def asked_labels(self, facts: Facts, labels: Sequence[Label]) -> Sequence[Label]:
        """What the api is asked for, or examples of it: the labels, where nothing else is said.

        facts: public ones about the data and the settings.
        labels: as declared.
        """
        return labels

    def check(self, facts: Facts, api: Api) -> None:
        """Cheap checks. Raises UserError for facts or an api that it cannot work with.

        facts: public ones about the data and the settings.
        api: that it would ask.
        """
        return None

    def warnings(self, facts: Facts, deviations: Sequence[float]) -> Iterable[str]:
        """What public facts alone say that the data will not show, a line each.

        facts: public ones about the data and the settings.
        deviations: standard deviations of the noise of each release, in records.
        """
        return ()

    def signal(self, facts: Facts, deviations: Sequence[float]) -> float | None:
        """How far the true votes of candidates lie apart, in deviations of the noise, about, where it is least; None
        where public facts do not tell.

        facts: public ones about the data and the settings.
        deviations: standard deviations of the noise of each release, in records.
        """
        return None

    def varies(self) -> bool:
        """Whether the rows of an expansion are variations, which `dpsyn expand` needs a degree for."""
        return True

    def degree(self, declared: Degree | None) -> Degree | None:
        """How far the rows of an expansion are varied. declared: `expand.degree`."""
        return declared

    def expand(
        self,
        public: PublicSide,
        ask: Ask,
        final: Population,
        rows: int,
        degree: Degree | None,
        keep: Keep,
        sizes: I64 | None = None,
    ) -> Population:
        """More rows made from the final population, without a new release. Raises UserError where it cannot.

        public: what is not private.
        ask: answers what was released before.
        final: the last population.
        rows: of the result, all of them.
        degree: of the variations; None: as the schedule thinks fit.
        keep: keeps parts that took long.
        sizes: rows of each label that were chosen, int64 [l], which sum to `rows`; None: as they were learned.
        """
        raise invalid("expand.rows", rows, "null with this schedule")
