"""The contract of a metric: numbers about a population that nothing in the loop reads; and what metrics share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, bad
from dpsyn.population import Population, Samples, take


class Metric(Protocol):
    """private: True where it reads private data. Its numbers are then not differentially private: they go to
    `private/metrics.jsonl` and never to `release/`, the panel or a return value."""

    @property
    def private(self) -> bool: ...

    def __call__(self, population: Population) -> Mapping[str, float]:
        """Names to numbers."""
        ...


def check_settings(metric: Any, name: str, least: Mapping[str, int]) -> None:
    """least: for each setting that is a whole number, the least that it can be. Raises UserError, also for a `public`
    that is not true or false: a word such as "no" would count as true, and publish a private number."""
    for key, at_least in least.items():
        value = getattr(metric, key)
        if type(value) is not int or value < at_least:
            raise bad(f"metric.parts.{name}.{key}", value, f"a whole number, {at_least} or more")
    if type(metric.public) is not bool:
        raise bad(f"metric.parts.{name}.public", metric.public, "true or false")


def check_real(data: Data | None) -> None:
    """Raises UserError without real data, or for what they can tell to be wrong without reading a row."""
    if data is None:
        raise UserError("held_out=null: this metric needs real data. Declare a part of the group data as held_out.")
    try:
        data.check()
    except UserError as error:
        raise type(error)(re.sub(r"\bdata\.", "held_out.", str(error))) from None


def real_samples(data: Data, size: int) -> Iterator[Samples]:
    """All real rows that can be read, in batches of at most `size`."""
    return (records.samples for records in data.batches(size) if len(records.samples))


def batched(samples: Samples, size: int) -> Iterator[Samples]:
    """All rows, in batches of at most `size`."""
    return (take(samples, np.arange(k, min(k + size, len(samples)))) for k in range(0, len(samples), size))


def sampled(batches: Iterable[Samples], embedding: Embedding, rows: int, seed: int) -> np.ndarray:
    """Vectors float32 [rows or fewer, d] of a uniform sample of a stream whose length is not known, in random order.

    Every row draws a key from `seed` and its place in the stream, not from its batch; the lowest keys stay. A row that
    cannot stay is not embedded: of n rows about rows * (1 + log(n / rows)) are.
    """
    rng = np.random.default_rng(seed)
    keys, vectors = np.empty(0), np.empty((0, 0), np.float32)
    for samples in batches:
        fresh = rng.random(len(samples))
        chosen = fresh < (keys[-1] if len(keys) == rows else 1.0)
        if not chosen.any():
            continue
        found = embedding(take(samples, chosen))
        keys = np.concatenate([keys, fresh[chosen]])
        order = np.argsort(keys, kind="stable")[:rows]
        keys, vectors = keys[order], np.concatenate([vectors, found] if len(vectors) else [found])[order]
    return vectors


def check_comparable(ours: np.ndarray, real: np.ndarray) -> None:
    """Raises UserError where vectors [..., d] of synthetic and real samples have another d."""
    if ours.shape[-1] != real.shape[-1]:
        raise UserError(
            "held_out: the embedding makes vectors of another length of the real samples than of the synthetic ones. "
            "Give both one size and as many channels."
        )
