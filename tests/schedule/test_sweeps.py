"""A sweep draws what plain arithmetic row by row draws, whatever the blocks, the joined terms and the threads."""

import numpy as np
import pytest

from dpsyn.schedule import sweeps
from dpsyn.schedule.sweeps import Term, redraw, sweep

SIZES = (7, 3, 1, 12, 2)  # codes of the columns; the last one is the label


def terms(seed=0):
    """Of every column that is drawn: with a column cut in two ways, with two others, with the label, and of none."""
    rng = np.random.default_rng(seed)

    def term(column, *others):
        cuts = {j: rng.permutation(np.arange(SIZES[j]) % max(1, SIZES[j] - at)) for at, j in enumerate(others)}
        shape = [int(cells.max()) + 1 for cells in cuts.values()]
        return Term(cuts, rng.normal(0, 2, (*shape, SIZES[column])).astype(np.float32))

    return {
        0: [term(0, 1, 4), term(0, 3), term(0, 4), term(0, 1), term(0, 4, 3)],
        1: [term(1, 0), term(1, 4, 0, 3)],
        3: [term(3)],
    }


def row_by_row(columns, rows, rng):
    for j, mine in columns.items():
        chances = rng.random(len(rows), dtype=np.float32)
        for row, chance in zip(rows, chances, strict=True):
            weights = np.zeros(SIZES[j], np.float32)
            for term in mine:
                weights = weights + term.weights[tuple(cells[row[i]] for i, cells in term.cells.items())]
            sums = np.cumsum(np.exp(weights - weights.max()))
            row[j] = min((sums <= chance * sums[-1]).sum(), SIZES[j] - 1)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("n", [0, 1, 77, 301])
@pytest.mark.parametrize("many", [0, 10**9])
def test_rows_are_those_of_plain_arithmetic_and_the_generator_goes_on_where_it_would(n, threads, many, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(sweeps, "BLOCK", 33)  # odd: two float32 are drawn of each 64 bits
    monkeypatch.setattr(sweeps, "MANY", many)
    monkeypatch.setattr(sweeps, "JOINT", 2)
    start = np.stack([np.random.default_rng(1).integers(0, size, n) for size in SIZES], 1).astype(np.int32)
    plain, ours = start.copy(), np.asfortranarray(start)
    first, second = np.random.default_rng(2), np.random.default_rng(2)
    for times in (1, 2):
        for _ in range(times):
            row_by_row(terms(times), plain, first)
        sweep([redraw(j, mine, n) for j, mine in terms(times).items()], ours, second, times)
        np.testing.assert_array_equal(ours, plain)
    assert first.random(dtype=np.float32) == second.random(dtype=np.float32)
    assert first.random() == second.random()


def test_a_part_of_the_rows_becomes_what_it_becomes_of_all_and_the_others_stay(monkeypatch):
    monkeypatch.setattr(sweeps, "BLOCK", 33)
    rows = np.stack([np.random.default_rng(1).integers(0, size, 100) for size in SIZES], 1)
    columns = [redraw(j, mine, 100) for j, mine in terms().items()]
    whole, some = rows.copy(), rows.copy()
    first, second = np.random.default_rng(2), np.random.default_rng(2)
    sweep(columns, whole, first)
    sweep(columns, some, second, part=(33, 80))
    np.testing.assert_array_equal(some, np.concatenate([rows[:33], whole[33:80], rows[80:]]))
    assert first.random() == second.random()


def test_terms_that_make_few_cells_become_one_and_others_stay():
    assert len(redraw(0, terms()[0], 10**6).terms) == 1
    assert len(redraw(0, terms()[0], 0).terms) == 5
