"""The 569 tumours that come with scikit-learn: a real table, tiny, and on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from dpsyn.data import Records, held_out
from dpsyn.errors import check_packages, invalid
from dpsyn.population import Label, Samples
from dpsyn.reading.embedded import rows_of
from dpsyn.reading.labels import check_declared
from dpsyn.tables.columns import REFUSED
from dpsyn.tables.schema import Schema, check_schema
from dpsyn.validate import choice

MEASURED = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
)  # fmt: skip
COLUMNS = (*(form.format(name) for form in ("mean {}", "{} error", "worst {}") for name in MEASURED), "diagnosis")


@dataclass(frozen=True)
class BreastCancer:
    """Table rows of 30 features of the nuclei of cells, label column `diagnosis` (sklearn.datasets.load_breast_cancer;
    Wisconsin diagnostic, UCI 1995).

    schema: of these columns. split: 'train', 'test' (about a fifth, chosen by a hash of each row) or 'all'.
    id, records, on_error: as in `dpsyn.data.Data`. No row of it is ever refused.
    """

    schema: Schema
    split: str = "train"
    id: str | None = "breast_cancer"
    records: int | None = 460
    on_error: str = "refuse"

    def __post_init__(self) -> None:
        check_schema("data.schema", self.schema)
        choice("data.split", self.split, ("train", "test", "all"))
        check_declared(self.id, self.records, self.on_error)

    @property
    def labels(self) -> Sequence[Label]:
        return self.schema.labels

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
        """Raises UserError without scikit-learn, and for a schema of other columns."""
        check_packages("data", "breast_cancer", "sklearn")
        if wrong := set(self.schema.columns) ^ set(COLUMNS):
            raise invalid("data.schema.file", min(wrong), "the columns of the schema breast_cancer, all and no other")

    def fingerprint(self) -> str:
        return blake2b(repr(self._content().tolist()).encode(), digest_size=32).hexdigest()

    @property
    def place(self) -> str | None:
        return None

    def digests(self) -> set[str]:
        return {self.fingerprint()}

    def batches(self, size: int) -> Iterator[Records]:
        content = self._content()
        labels = self.schema.labels_of(content)
        for start in range(0, len(content), size):
            yield Records(Samples(content[start : start + size]), labels[start : start + size])

    def _content(self) -> np.ndarray:
        content, rules = self.schema.read(_cells())
        assert (rules < REFUSED).all()
        if self.split == "all":
            return content
        others = np.array([held_out(repr(row).encode()) for row in content.tolist()])
        return content[others if self.split == "test" else ~others]


def _cells() -> dict[str, list[str]]:
    (_, _, *kinds), *rows = rows_of("breast_cancer.csv")  # numbers of rows and columns, and the two diagnoses
    cells = {name: [str(float(row[at])) for row in rows] for at, name in enumerate(COLUMNS[:-1])}
    return {**cells, "diagnosis": [kinds[int(row[-1])] for row in rows]}
