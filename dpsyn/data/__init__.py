"""The contract of private (or held-out) data: public facts as attributes, private rows streamed in batches."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol, runtime_checkable

from dpsyn.errors import UserError
from dpsyn.population import I64, Label, Modality, Samples
from dpsyn.tables.schema import Schema


@dataclass(frozen=True)
class Refusal:
    """A private row that cannot vote. Private: it goes to `private/refused.jsonl`, and only there.

    Only `column` and `rule` may be shown to the user.

    row: its number in the whole data set, from 0 on.
    value: of the cell that is wrong, or of the line.
    file: its name, below the path of the data; '' where there is none to name.
    line: the first one of the row in that file, from 1 on; in parquet and on the hub the number of the row; of an image
        in a file of its own 0.
    """

    row: int
    column: str
    rule: str
    value: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class Records:
    """A batch of rows that can be read. Reading is a map of one row: no row changes how another is read.

    labels: int64 [n], index into the declared labels.
    units: int64 [n], one number a user, -1 for a row without an id (it casts no vote); None without a unit column.
    refused: the rows met since the batch before that cannot be read or have an undeclared label.
    adjusted: how many cells of these rows were read as another value, as a schema says, by 'column: rule'. The numbers
        are private.
    remarks: what else was met since the batch before, files that are passed over say, and how often; private.
    users: the ids of the users met for the first time since the batch before, by their numbers, which go up from 0 by
        one. Data that are not `Divisible` need not tell them.
    """

    samples: Samples
    labels: I64
    units: I64 | None = None
    refused: Sequence[Refusal] = ()
    adjusted: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, int] = field(default_factory=dict)
    users: Sequence[str] = ()


@runtime_checkable
class Data(Protocol):
    """Rows of one modality, read anew by every call of `batches`.

    id: the name under which releases from this data set are added up; None: its place stands for it.
    labels: declared, public, never discovered.
    records: how many there are, a declared public number, or None. Never counted from the rows.
    on_error: 'refuse' stops before the first release when a row is refused; 'skip' lets that row cast no vote.
    unit_column: the column that names the user of a row, or None.
    max_refused: a run begins only where no more than this share of the rows cast no vote.
    max_adjusted: and where of no column more than this share of the cells was read as another value.
    """

    @property
    def id(self) -> str | None: ...
    @property
    def labels(self) -> Sequence[Label]: ...
    @property
    def records(self) -> int | None: ...
    @property
    def on_error(self) -> str: ...
    @property
    def unit_column(self) -> str | None: ...
    @property
    def max_refused(self) -> float: ...
    @property
    def max_adjusted(self) -> float: ...

    def check(self) -> None:
        """Cheap checks (paths, packages, settings) without reading a row. Raises UserError."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the content of the data: private, it never leaves `private/` and the private cache."""
        ...

    @property
    @abstractmethod
    def place(self) -> str | None:
        """Where its rows lie: a local path or a name on the hub; None for data that ship with a package. No pool may
        lie where the private data do."""
        ...

    @abstractmethod
    def digests(self) -> set[str]:
        """Of the content of each of its files, or of the whole: none of those of the private data may be among those of
        a pool. Private."""
        ...

    @abstractmethod
    def batches(self, size: int) -> Iterator[Records]:
        """All rows in batches of at most `size`, streamed. A UserError raised here names a column and a rule only."""
        ...


Batches = Callable[[int], Iterator[Records]]
"""Some rows of a data set, as `Data.batches` gives all of them: their numbers, and those of users, begin at 0."""


@runtime_checkable
class Divisible(Data, Protocol):
    """Data that can be read in parts, each in a process of its own. Others are read in one."""

    def parts(self, n: int, least: int = 1) -> Sequence[Batches]:
        """Runs of the rows which in this order are all of them, each read as it is among all. Another process can be
        given them.

        n: parts at most.
        least: bytes of a part at least.
        """
        ...


@runtime_checkable
class TableData(Data, Protocol):
    """Table rows, with what is declared of their columns."""

    @property
    def schema(self) -> Schema: ...


@runtime_checkable
class Known(Data, Protocol):
    """Data that say what their rows are, where no schema does."""

    @property
    def modality(self) -> Modality: ...


def modality_of(data: Data) -> Modality | None:
    """What the rows are; None where the data do not say."""
    if isinstance(data, TableData):
        return "rows with texts" if data.schema.texts else "rows"
    return data.modality if isinstance(data, Known) else None


def held_out(row: bytes) -> bool:
    """True for a fifth of all rows, by their content: no other row moves a row to the other side."""
    return int.from_bytes(blake2b(row, digest_size=8).digest(), "big") % 5 == 0


@contextmanager
def said_of(key: str) -> Iterator[None]:
    """What a reader says of `data.` is said of `key`, so that nobody looks for it in the private data."""
    try:
        yield
    except UserError as error:
        raise type(error)(re.sub(r"(?<![\w./=])data(?=[.=])", key, str(error))) from None
