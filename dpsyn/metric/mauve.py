"""MAUVE (Pillutla et al. 2021, 2102.01454) on vectors of an embedding of ours; by the package mauve-text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import Missing, UserError
from dpsyn.metric import Metric, check_comparable, check_real, check_settings, sampled_sides
from dpsyn.population import Modality, Population


@dataclass(frozen=True)
class Mauve(Metric):
    """The area under the divergence curve of both sides, quantised together: 1 where they are alike, towards 0 else.

    Numbers compare only for one embedding, and for equal numbers of rows and buckets.

    data: the real data, embedded once. embedding: in place of the language model's states of the paper. buckets: of the
    quantisation (k-means); None: a tenth of the rows of a side. scaling: c of the paper. rows: of each side at most, a
    uniform sample. seed: of that and of k-means. batch_size: rows read at once. public: the real data are public;
    otherwise the number is private.
    """

    data: Data
    embedding: Embedding
    buckets: int | None
    scaling: int
    rows: int
    seed: int
    batch_size: int
    public: bool

    def __post_init__(self) -> None:
        least = {"scaling": 1, "rows": 2, "seed": 0, "batch_size": 1}
        check_settings(self, "mauve", least if self.buckets is None else {**least, "buckets": 2}, self.public)

    def check(self) -> None:
        """Raises UserError without the package, and without real data."""
        if find_spec("mauve") is None:
            raise Missing("metric mauve: the package is not installed. pip install mauve-text, or leave it out.")
        check_real(self.data)
        self.embedding.check()

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return self.embedding.fits

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'mauve': from 0 to 1}. Raises UserError where a side has fewer than two rows, or fewer than buckets."""
        ours, real = sampled_sides(population.samples, self.data, self.embedding, self.batch_size, self.rows, self.seed)
        rows = min(len(ours), len(real))
        if rows < (least := max(2, self.buckets or 2)):
            raise UserError(f"metric mauve: expected {least} synthetic and real rows, or more.")
        check_comparable(ours, real)
        from mauve import compute_mauve

        found = compute_mauve(
            p_features=real[:rows],
            q_features=ours[:rows],
            num_buckets=self.buckets or "auto",
            mauve_scaling_factor=self.scaling,
            seed=self.seed,
            verbose=False,
        )
        return {"mauve": float(found.mauve)}
