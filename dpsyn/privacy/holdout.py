"""Which units vote and which are held out, to measure the finished data on: by a keyed hash of the unit itself."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from dpsyn.data import Records
from dpsyn.errors import UserError
from dpsyn.population import Array, Bool

KEY = b"dpsyn hold-out 1"  # public, and another hash than that of the splits of data sets
NEEDED = "data.hold_out: expected data that tell the ids of their users; these do not."


@dataclass(frozen=True)
class Side:
    """One side of the split. share: of all units that are held out, about; is_held: those, or the others.

    A unit is a user where a column names them, or else a record, by its content and its label. So which side it is on
    depends on the unit alone: another one that is added or removed moves nobody.
    """

    share: float
    is_held: bool

    def filter(self) -> Filter:
        return Filter(self, [])


@dataclass(frozen=True)
class Filter:
    """Of the batches of one reading, in order. users: which of those met are held out."""

    side: Side
    users: list[bool]

    def __call__(self, records: Records) -> Bool:
        """bool [n]: the records on this side. Raises UserError where users are not told."""
        self.users.extend(self._is_held(user.encode("utf-8", "surrogatepass")) for user in records.users)
        rows = zip(records.samples.content, records.labels, strict=True)
        held = np.array([self._is_held(_content(row) + b" %d" % label) for row, label in rows], bool)
        if records.units is not None:
            known = records.units >= 0
            if known.any() and records.units.max() >= len(self.users):
                raise UserError(NEEDED)
            held[known] = np.array(self.users, bool)[records.units[known]] if known.any() else False
        return held == self.side.is_held

    def _is_held(self, unit: bytes) -> bool:
        digest = blake2b(unit, digest_size=8, key=KEY).digest()
        return int.from_bytes(digest, "big") < self.side.share * 2**64


def _content(row: Array) -> bytes:
    if isinstance(row, np.ndarray):
        return row.tobytes()
    return (row if isinstance(row, str) else repr(row.item())).encode("utf-8", "surrogatepass")
