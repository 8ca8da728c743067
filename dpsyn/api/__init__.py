"""The contract of a candidate maker: a foundation model or a simulator that is asked, never trained."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.population import F32, U64, Label, Samples

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""(what is done, for how many rows, None where that is not known) -> a context that gets the number of rows done"""

Degree = float | Mapping[str, Any]
"""How far a variation goes: a number, or several by name. The api says what its degrees mean."""


@contextmanager
def unwatched(text: str, rows: int | None) -> Iterator[Callable[[int], None]]:
    """A `Progress` that nobody sees.

    text: what is done.
    rows: for how many; None: not known.
    """
    yield lambda _: None


@dataclass(frozen=True)
class Usage:
    """What asking a paid or slow model took, or will take.

    calls: requests that were answered. cached: rows whose answer was kept from before; they cost nothing.
    prompt_tokens, answer_tokens: of the calls. money: what they cost by the price table; None where it has no price.
    fallbacks: rows that got no answer of their own. seconds: how long it takes at the limits that are set; None where
    that is not known.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    money: float | None = 0.0
    fallbacks: int = 0
    seconds: float | None = None


@runtime_checkable
class Api(Protocol):
    """Row-aligned: row i of the answer is for row i of the request, always as many rows as asked for, in order.

    Row i depends on its label, its seed (uint64) and, when varied, its parent and the degree, and on nothing else:
    not on the other rows, the batch size, or the number of workers. A row that cannot be made comes back as its
    parent. An api never sees private data.

    A part subclasses this contract and says what data it `reads`: there is no default, since the private data must not
    be among them. An api may have, besides, what `Adopting`, `LooksUp`, `Queued`, `Pinged` or `Metered` ask, the last
    one in itself or in an api that is one of its fields. Marks on its fields (`dpsyn/marks.py`) say which settings may
    be published, and which may change when a run resumes.

    It is picklable until it is first asked: with `runtime.devices` each process has a copy.

    row_bytes: about what a row takes on disk, for `dpsyn plan`.
    """

    @property
    @abstractmethod
    def row_bytes(self) -> int: ...

    @abstractmethod
    def generate(self, labels: Sequence[Label], seeds: U64) -> Samples:
        """One fresh sample a label.

        labels: [n].
        seeds: uint64 [n].
        """
        ...

    @abstractmethod
    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: U64) -> Samples:
        """One variation a row.

        samples: the parents, [n].
        labels: [n].
        degree: how far, the same for all rows.
        seeds: uint64 [n].
        """
        ...

    @abstractmethod
    def reads(self) -> Sequence[Data]:
        """Every data set that it reads, also through another part; () for none. It is a promise."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether a fresh sample is of the label that it was asked for; otherwise it may serve any."""
        return True

    def check(self) -> None:
        """Cheap checks of its settings, before anything is written or spent. Raises UserError."""
        return None

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for a degree that it does not know."""
        return None

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raises UserError for labels that it cannot be asked for."""
        return None

    def check_keys(self) -> None:
        """Raises UserError for a key that a request needs and that is not set. A finished run needs none."""
        return None


@dataclass(frozen=True)
class Unasked(Api):
    """Stands where a schedule asks no api. row_bytes: of a row of its own."""

    row_bytes: int = 0

    def generate(self, labels: Sequence[Label], seeds: U64) -> Samples:
        raise RuntimeError("a schedule that uses no api asked one")

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: U64) -> Samples:
        raise RuntimeError("a schedule that uses no api asked one")

    def reads(self) -> Sequence[Data]:
        return ()


@runtime_checkable
class Metered(Protocol):
    """An api that tells what asking takes."""

    @property
    def usage(self) -> Usage:
        """So far: of this process, and of those before it that `resume` told of."""
        ...

    def resume(self, before: Usage, run: str | None) -> None:
        """Goes on from what was used before.

        before: what processes before this one took.
        run: an id of the run; None where it is not known.
        """
        ...

    def estimate(self, labels: Sequence[Label], generated: int, varied: int) -> Usage:
        """Estimated usage of these numbers of rows, evenly over the labels, from declared lengths.

        labels: over which the rows are spread evenly.
        generated: fresh rows.
        varied: variations.
        """
        ...


@dataclass
class Meter:
    """What an api that asks an endpoint has used, this process and those before it; and whom it tells of its progress.

    calls, cached, prompt_tokens, answer_tokens, fallbacks: as in Usage.

    lost: money that requests without an answer may have cost.
    run: id of the run that asks; None where it is not known.
    advance: called with the number of rows that are done, while the api is watched.
    """

    ADDED: ClassVar = ("calls", "cached", "prompt_tokens", "answer_tokens", "fallbacks")

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    fallbacks: int = 0
    lost: float = 0.0
    run: str | None = None
    advance: Callable[[int], None] | None = None

    def usage(self, money: float | None) -> Usage:
        """money: what the calls cost; None where that is not known."""
        return Usage(money=money, **{name: getattr(self, name) for name in self.ADDED})

    def resume(self, before: Usage, run: str | None) -> None:
        """Adds what processes before this one took. Money is counted anew, from calls and tokens.

        before: what processes before this one took.
        run: an id of the run; None where it is not known.
        """
        self.run = run
        for name in self.ADDED:
            setattr(self, name, getattr(self, name) + getattr(before, name))

    def done(self, rows: int) -> None:
        """So many more rows are done."""
        if self.advance is not None:
            self.advance(rows)

    @contextmanager
    def watched(self, advance: Callable[[int], None]) -> Iterator[None]:
        """While it lasts, advance(n) is called as n more rows are done."""
        self.advance = advance
        try:
            yield
        finally:
            self.advance = None


def metered(api: object, name: str = "") -> dict[str, Metered]:
    """The api, or else those of its fields that are metered, and theirs, by the names of the fields: 'first'.

    api: a part.
    name: of the field that it stands in; '' for the api of the run.
    """
    if isinstance(api, Metered):
        return {name: api}
    found: dict[str, Metered] = {}
    for each in fields(api) if is_dataclass(api) else ():
        part = getattr(api, each.name)
        if isinstance(part, Api):
            found |= metered(part, f"{name}.{each.name}".lstrip("."))
    return found


def together(usages: Iterable[Usage]) -> Usage:
    """Sums; money and seconds are None where one of them is not known. Several apis are asked one after the other."""
    total = Usage(seconds=0.0)
    for usage in usages:
        sums = {each.name: _sum(getattr(total, each.name), getattr(usage, each.name)) for each in fields(Usage)}
        total = Usage(**sums)
    return total


def _sum(one: Any, two: Any) -> Any:
    return None if one is None or two is None else one + two


@runtime_checkable
class Adopting(Protocol):
    """An api that goes on with what another made."""

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: U64) -> Samples:
        """The samples with the traits that this api needs to vary them; content as it is.

        samples: of another api, [n].
        labels: [n].
        seeds: uint64 [n].
        """
        ...


@runtime_checkable
class LooksUp(Protocol):
    """An api that has looked at all that it makes with an embedding."""

    @property
    def embedding(self) -> Embedding: ...

    def vectors(self, samples: Samples) -> F32:
        """float32 [n, d]: what `embedding` says of samples that it made."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """An api that has long work to do before it can be asked, on public data, and says how far it is."""

    def prepare(self, degree: Degree | None, progress: Progress) -> None:
        """Does what is left to do; nothing where it is done.

        degree: of the variations that it will be asked for; None: fresh samples.
        progress: shows each stage.
        """
        ...


@runtime_checkable
class Queued(Protocol):
    """An api that gets all rows of an iteration in one call, and queues them itself."""

    def watched(self, advance: Callable[[int], None]) -> AbstractContextManager[None]:
        """While it lasts, advance(n) is called, from any thread, as n more rows are done."""
        ...


@runtime_checkable
class Delegating(Protocol):
    """An api that hands each request to one of several."""

    def target(self, degree: Degree | None) -> Api:
        """The one that is asked; degree: None for fresh samples."""
        ...


def asked_of(api: Api, degree: Degree | None) -> Api:
    """The api that answers this request: itself, or the one that it hands the request to.

    api: that is asked.
    degree: of the variations; None: fresh samples.
    """
    return api.target(degree) if isinstance(api, Delegating) else api


@runtime_checkable
class Pinged(Protocol):
    """An api that asks an endpoint."""

    def ping(self, what: Literal["generate", "vary"]) -> None:
        """One request like those to come, before the first release. Raises UserError where they would be refused."""
        ...
