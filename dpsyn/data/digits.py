"""The 1,797 handwritten digits that come with scikit-learn: real, tiny, and on every machine."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from dpsyn.data import Records, held_out
from dpsyn.errors import check_packages
from dpsyn.population import Label, Modality, Samples
from dpsyn.reading.embedded import rows_of
from dpsyn.reading.labels import check_declared
from dpsyn.validate import choice


@dataclass(frozen=True)
class Digits:
    """Images uint8 [n, 8, 8, 1], label column `digit`, "0" to "9" (sklearn.datasets.load_digits; UCI, 1998).

    split: 'train', 'test' (about a fifth of the rows, chosen by a hash of each row's own pixels) or 'all'.
    id, records, on_error: as in `dpsyn.data.Data`. No row of it is ever refused.
    """

    split: str = "train"
    id: str | None = "digits"
    records: int | None = 1400
    on_error: str = "refuse"

    def __post_init__(self) -> None:
        choice("data.split", self.split, ("train", "test", "all"))
        check_declared(self.id, self.records, self.on_error)

    @property
    def labels(self) -> Sequence[Label]:
        return tuple({"digit": str(digit)} for digit in range(10))

    @property
    def unit_column(self) -> None:
        return None

    @property
    def max_refused(self) -> float:
        return 0.0

    @property
    def max_adjusted(self) -> float:
        return 0.0

    def check(self) -> None:
        """Raises UserError without scikit-learn."""
        check_packages("data", "digits", "sklearn")

    def fingerprint(self) -> str:
        images, digits = self._rows()
        return blake2b(images.tobytes() + digits.tobytes(), digest_size=32).hexdigest()

    @property
    def modality(self) -> Modality:
        return "images"

    @property
    def place(self) -> str | None:
        return None

    def digests(self) -> set[str]:
        return {self.fingerprint()}

    def batches(self, size: int) -> Iterator[Records]:
        images, digits = self._rows()
        for start in range(0, len(images), size):
            stop = start + size
            yield Records(Samples(images[start:stop]), digits[start:stop])

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        images, digits, others = _all()
        rows = others if self.split == "test" else ~others if self.split == "train" else slice(None)
        return images[rows].copy(), digits[rows].copy()


@functools.cache
def _all() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, digits, and bool: whether a row is held out."""
    values = np.array(rows_of("digits.csv.gz"), np.float64)  # 64 pixels, 0 to 16, and the digit
    images = np.rint(values[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, values[:, -1].astype(np.int64), np.array([held_out(image.tobytes()) for image in images])
