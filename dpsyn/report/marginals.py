"""`release/marginals.parquet`: the noisy counts that votes in cells gave, each cell in words, readable by anyone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from dpsyn.population import I64
from dpsyn.privacy.marginals import LABEL, Marginal
from dpsyn.privacy.query import Answer, CellCounts
from dpsyn.tables.codec import meanings
from dpsyn.tables.schema import Schema

NAME = "marginals.parquet"


def marginals(schema: Schema, labels: Sequence[str], answers: Mapping[int, tuple[CellCounts, Answer]]) -> bytes:
    """Parquet, a row a cell: release, marginal (its number in the release), column_1, cell_1 (its values, in words),
    column_2, ... as far as the marginal has columns, noisy_count and deviation, both in records.

    schema: of the table.
    labels: their names.
    answers: by the number of their release.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = [
        (t, number, marginal) for t, (query, _) in answers.items() for number, marginal in enumerate(query.marginals, 1)
    ]
    values = [answer.values for _, answer in answers.values()]
    deviations = [np.full(len(answer.values), answer.deviation) for _, answer in answers.values()]
    sizes = [marginal.size for _, _, marginal in every]
    columns: dict[str, pa.Array] = {
        "release": pa.array(np.repeat([t for t, _, _ in every], sizes), pa.int32()),
        "marginal": pa.array(np.repeat([number for _, number, _ in every], sizes), pa.int32()),
    }
    parts = [list(_columns(schema, labels, marginal)) for _, _, marginal in every]
    for at, of_each in enumerate(zip_longest(*parts), 1):
        # one list of words a marginal, and which of them stands in each of its rows
        names = [None if part is None else part[0] for part in of_each]
        words, places, known = list[str](), list[I64](), 0
        for part, size in zip(of_each, sizes, strict=True):
            places.append(np.full(size, -1) if part is None else part[2] + known)
            words += [] if part is None else part[1]
            known = len(words)
        which = np.concatenate(places)
        indices = pa.array(which, pa.int32(), mask=which < 0)
        columns[f"column_{at}"] = pa.array(names, pa.string()).take(pa.array(np.repeat(np.arange(len(names)), sizes)))
        columns[f"cell_{at}"] = pa.array(words, pa.string()).take(indices)
    columns["noisy_count"] = pa.array(np.concatenate(values), pa.float64())
    columns["deviation"] = pa.array(np.concatenate(deviations), pa.float64())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue())


def _columns(schema: Schema, labels: Sequence[str], marginal: Marginal) -> Iterator[tuple[str, list[str], I64]]:
    """Of each column of a marginal its name, its cells in words, and which of them each cell of the marginal is in."""
    step = marginal.size
    for j, cells, size in zip(marginal.columns, marginal.cells, marginal.shape, strict=True):
        step //= size
        if j == LABEL:
            name = ", ".join(schema.label_columns)
            words = [
                " | ".join(labels[code] for code in np.flatnonzero(cells == cell).tolist()) for cell in range(size)
            ]
        else:
            name, tell = schema.features[j].name, meanings(schema, j)
            words = [tell(np.flatnonzero(cells == cell)) for cell in range(size)]
        yield name, words, (np.arange(marginal.size) // step) % size
