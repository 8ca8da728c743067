"""Sums of embeddings: what one unit moves, on the grid and through the real electorate and ledger."""

import numpy as np
import pytest
from harness import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stability import EMBED, ODD, ROWS, electorate_of

from dpsyn.embedding import Sparse
from dpsyn.privacy.budget import SUMS_GRID, Charge, Release, Settings, calibrated
from dpsyn.privacy.ledger import Ledger
from dpsyn.privacy.query import COUNT, Answer, Block, EmbeddingSums, Histogram
from dpsyn.privacy.votes import unseal

QUERY = EmbeddingSums(10, np.full(64, 0.1, np.float32), 2.0)
HALF = EmbeddingSums(10, np.full(64, 0.1, np.float32), 2.0, replaceable=True)


def sums(folder, rows, unit="record", query=QUERY):
    return unseal(electorate_of(folder, rows, unit).tallied(query))


def block(vectors, label=0, units=None, codes=None):
    units = np.arange(len(vectors)) if units is None else np.asarray(units)
    return Block(label, np.asarray(vectors, np.float32), units, codes)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-9, 0.3, 1.0, 50.0, 1e12]), replaceable=st.booleans())
def test_a_record_adds_a_vector_of_norm_one_at_most(seed, scale, replaceable):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(1, 40))
    query = EmbeddingSums(3, rng.standard_normal(d).astype(np.float32), float(rng.uniform(0.1, 3)), replaceable)
    vectors = (scale * rng.standard_normal((5, d))).astype(np.float32)
    vectors[0], vectors[1] = np.nan, np.inf
    for vector in vectors:
        moved = query.tally([block(vector[None], 1)])
        assert np.linalg.norm(moved / SUMS_GRID) <= (0.5**0.5 if replaceable else 1.0)
        assert moved.reshape(3, -1)[[0, 2]].any() == False  # noqa: E712
    assert (query.tally([block(vectors, 1)]) == sum(query.tally([block(v[None], 1)]) for v in vectors)).all()


@pytest.mark.parametrize("at", [0, 70, 150], ids=["front", "middle", "end"])
def test_one_record_more_moves_the_sums_of_its_label_by_norm_one_at_most_and_no_other(tmp_path, at):
    difference = sums(tmp_path / "b", [*ROWS[:at], ODD, *ROWS[at:]]) - sums(tmp_path / "a", ROWS)
    assert 0.2 * SUMS_GRID < np.linalg.norm(difference) <= SUMS_GRID
    assert set(np.flatnonzero(difference.reshape(10, 65).any(1))) == {3}


@pytest.mark.parametrize("where", ["one label", "all labels"])
def test_one_user_more_moves_the_sums_by_norm_one_at_most_whatever_their_labels(tmp_path, where):
    theirs = [{**row, "user": "new"} for row in digits(80, seed=9)]
    if where == "one label":
        theirs = [{**row, "label": "3"} for row in theirs]
    difference = sums(tmp_path / "b", [*theirs[:30], *ROWS, *theirs[30:]], "user") - sums(tmp_path / "a", ROWS, "user")
    assert 0.05 * SUMS_GRID < np.linalg.norm(difference) <= SUMS_GRID


def test_one_row_more_of_a_user_moves_no_other_user(tmp_path):
    assert len({row["user"] for row in ROWS}) > 3
    mine = [row for row in ROWS if row["user"] == "u3"]
    others = [row for row in ROWS if row["user"] != "u3"]
    alone = sums(tmp_path / "a", mine, "user")
    assert (sums(tmp_path / "b", ROWS, "user") - sums(tmp_path / "c", others, "user") == alone).all()


def test_a_unit_that_is_replaced_moves_what_may_be_asked_then_by_the_root_of_two_at_most():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.standard_normal((40, 64)), np.eye(64), -np.eye(64)]).astype(np.float32) * 9
    parts = np.stack([HALF.tally([block(v[None])]) for v in vectors])
    gaps = np.linalg.norm(parts[:, None] - parts[None], axis=2) / SUMS_GRID
    assert 1.35 < gaps.max() <= 2**0.5
    whole = np.stack([QUERY.tally([block(v[None])]) for v in vectors])
    assert np.linalg.norm(whole[:, None] - whole[None], axis=2).max() / SUMS_GRID > 1.9  # so the ledger refuses these


def test_rows_without_an_id_are_in_no_sum():
    blocks = [block(np.ones((4, 64)), 2, [-1, 0, -1, 1])]
    known = [block(np.ones((2, 64)), 2, [0, 1])]
    assert (QUERY.tally_by_user(lambda: blocks) == QUERY.tally_by_user(lambda: known)).all()
    assert not QUERY.tally_by_user(lambda: []).any()


def test_sparse_records_have_the_sums_of_their_dense_vectors():
    dense = EMBED(next(iter(_digits().batches(100))).samples)
    told = Sparse(np.tile(np.arange(64, dtype=np.int32), (len(dense), 1)), dense, 64)
    units = np.arange(len(dense))
    assert (QUERY.tally([Block(0, told, units)]) == QUERY.tally([Block(0, dense, units)])).all()


def _digits():
    from dpsyn.data.digits import Digits

    return Digits(split="test", id=None, records=None, on_error="refuse")


def test_a_noisy_answer_tells_means_and_counts_in_records():
    vectors = np.random.default_rng(1).normal(0.1, 0.1, (500, 64)).astype(np.float32)
    exact = QUERY.tally([block(vectors, 4)]) / SUMS_GRID
    found, counts, noise, noise_of_count = QUERY.told(Answer(exact, 2.0))
    taken = (vectors.astype(np.float64) - QUERY.centre) / 2
    assert np.allclose(found[4], taken.sum(0), atol=1e-2) and counts.round(3).tolist() == [0, 0, 0, 0, 500, *[0] * 5]
    assert noise == pytest.approx(2 / (1 - COUNT**2) ** 0.5) and noise_of_count == pytest.approx(2 / COUNT)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-9, 0.3, 50.0, 1e12]), replaceable=st.booleans())
def test_with_columns_a_record_adds_one_vector_shared_among_their_cells_of_norm_one_at_most(seed, scale, replaceable):
    rng = np.random.default_rng(seed)
    d, count = int(rng.integers(1, 20)), int(rng.integers(1, 5))
    cells = tuple(rng.integers(0, 4, (5, 2)) for _ in range(count))
    columns = tuple(range(count))
    first = int(rng.integers(0, 4))  # the entries before it, and those beyond d, are not summed
    query = EmbeddingSums(2, rng.standard_normal(d).astype(np.float32), 0.7, replaceable, columns, cells, first)
    vectors = (scale * rng.standard_normal((6, first + d + 3))).astype(np.float32)
    codes = rng.integers(0, 5, (6, count)).astype(np.int32)
    apart = []
    for row, (vector, code) in enumerate(zip(vectors, codes, strict=True)):
        label = row % 2
        moved = query.tally([block(vector[None], label, codes=code[None])])
        apart.append(moved)
        others = np.where((np.arange(len(vector)) < first) | (np.arange(len(vector)) >= first + d), 1e30, vector)
        assert (query.tally([block(others[None], label, codes=code[None])]) == moved).all()
        assert np.linalg.norm(moved / SUMS_GRID) <= (0.5**0.5 if replaceable else 1.0)
        by_cell = moved.reshape(-1, d + 1)
        starts = np.cumsum([0, *query.sizes[:-1]])
        mine = {int(start + cell[code[j], label]) for j, (start, cell) in enumerate(zip(starts, cells, strict=True))}
        assert set(np.flatnonzero(by_cell[:, -1])) == mine
    whole = [block(vectors[label::2], label, codes=codes[label::2]) for label in (0, 1)]
    assert (query.tally(whole) == sum(apart)).all()
    users = [block(vectors[label::2], label, [7, 7, 7], codes[label::2]) for label in (0, 1)]
    assert np.linalg.norm(query.tally_by_user(lambda: users) / SUMS_GRID) <= (0.5**0.5 if replaceable else 1.0)


def test_a_record_cannot_be_counted_in_the_cells_of_another_column():
    cells = (np.array([[0], [1]]), np.array([[-1], [0]]))  # -1 would be an entry of the first column
    for asked in (
        lambda: EmbeddingSums(1, np.zeros(3, np.float32), 1.0, columns=(0, 1), cells=cells),
        lambda: Histogram("a judge", (0, 1), cells),
    ):
        with pytest.raises(ValueError, match="expected numbers from 0"):
            asked()


def test_an_answer_about_the_cells_of_columns_tells_their_sums_and_counts_in_records():
    rng = np.random.default_rng(1)
    vectors = rng.normal(0.1, 0.1, (500, 6)).astype(np.float32)
    codes = rng.integers(0, 3, (500, 2)).astype(np.int32)
    cells = (np.arange(3)[:, None], np.array([0, 0, 1])[:, None])
    query = EmbeddingSums(1, np.full(6, 0.1, np.float32), 2.0, columns=(0, 1), cells=cells)
    exact = query.tally([block(vectors, codes=codes)]) / SUMS_GRID
    found, counts, noise, _ = query.told(Answer(exact, 2.0))
    assert query.sizes == (3, 2) and noise == pytest.approx(2 * 2**0.5 / (1 - COUNT**2) ** 0.5)
    assert counts.round(3).tolist() == [*np.bincount(codes[:, 0]), *np.bincount([0, 0, 1], np.bincount(codes[:, 1]))]
    taken = (vectors.astype(np.float64) - query.centre) / 2
    assert np.allclose(found[1], taken[codes[:, 0] == 1].sum(0), atol=1e-2)


def ledger(folder, release, **given):
    chosen = Settings(**{"epsilon": 1.0, "delta": 1e-5, **given})
    votes = folder / "votes"
    votes.mkdir(parents=True)
    return Ledger(folder / "private", votes, "run", chosen, calibrated(chosen, [release]))


def test_the_ledger_releases_sums_on_their_grid_and_refuses_what_moves_more(tmp_path):
    records = electorate_of(tmp_path / "data", ROWS, "record")
    declared = Release("embedding sums", 1, 1.0, grid=SUMS_GRID)
    own = ledger(tmp_path / "a", declared)
    assert own.budget.charges == (Charge("embedding sums", own.budget.sigma, SUMS_GRID, 1),)
    receipt = own.release(1, QUERY, records)
    exact = sums(tmp_path / "data", ROWS)
    assert 0.9 < np.std(receipt.votes - exact) / (own.budget.sigma * SUMS_GRID) < 1.1
    replaced = ledger(tmp_path / "b", declared, adjacency="replace")
    with pytest.raises(RuntimeError, match="moves more than it is charged for; nothing was read"):
        replaced.release(1, QUERY, records)
    replaced.release(1, HALF, records)
    with pytest.raises(RuntimeError, match="moves more than it is charged for; nothing was released"):
        ledger(tmp_path / "c", Release("votes 1", 1, 1.0)).release(1, QUERY, records)
    assert not list((tmp_path / "c").rglob("*.parquet"))
    of_user = ledger(tmp_path / "d", declared, unit="user")
    of_user.release(1, QUERY, electorate_of(tmp_path / "data", ROWS, "user"))
