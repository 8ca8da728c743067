"""The contract of a metric: numbers about a population that nothing in the loop reads."""

from collections.abc import Mapping
from typing import Protocol

from dpsyn.population import Population


class Metric(Protocol):
    """private: True where it reads private data. Its numbers are then not differentially private: they go to
    `private/metrics.jsonl` and never to `release/`, the panel or a return value."""

    @property
    def private(self) -> bool: ...

    def __call__(self, population: Population) -> Mapping[str, float]:
        """Names to numbers."""
        ...
