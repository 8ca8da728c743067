import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsyn.embedding import Sparse
from dpsyn.networks.search import cpu_search, torch_search
from dpsyn.privacy.budget import GRID
from dpsyn.privacy.nearest import dense_search, distinct, nearest, sparse_search
from dpsyn.privacy.votes import Votes, count_by_record, count_by_user

SEARCHES = {"numpy": cpu_search, "torch": lambda candidates: dense_search(torch_search(candidates, "cpu"))}


def brute(records, candidates, k):
    gaps = ((records[:, None].astype(np.float64) - candidates[None].astype(np.float64)) ** 2).sum(-1)
    return np.sort(np.argsort(gaps, axis=1, kind="stable")[:, :k], axis=1)


@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES.keys())
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 5), grid=st.booleans(), near=st.booleans())
def test_the_nearest_are_those_of_float64_with_ties_to_the_lowest_row(make, seed, k, grid, near):
    rng = np.random.default_rng(seed)
    m, d = int(rng.integers(k, 60)), int(rng.integers(1, 40))
    candidates = rng.standard_normal((m, d)).astype(np.float32)
    if grid:  # many equal distances
        candidates = np.round(candidates)
    if near:  # gaps far below what float32 can tell
        candidates = np.concatenate([candidates, candidates + np.float32(1e-6)])
    candidates = candidates[distinct(candidates)]
    records = np.concatenate([candidates[:5], np.round(rng.standard_normal((30, d))).astype(np.float32)])
    k = min(k, len(candidates))
    found = np.sort(nearest(records, candidates, k, make(candidates)), axis=1)
    assert (found == brute(records, candidates, k)).all()


@pytest.mark.parametrize("make", [sparse_search, SEARCHES["torch"]], ids=["sparse", "torch"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 5), whole=st.booleans())
def test_records_told_by_few_entries_vote_as_their_dense_vectors_do(make, seed, k, whole):
    rng = np.random.default_rng(seed)
    m, d = int(rng.integers(k, 200)), int(rng.integers(3, 40))
    told = int(rng.integers(1, d + 1))

    def drawn(n):
        values = rng.standard_normal((n, told)).astype(np.float32)
        places = np.argsort(rng.random((n, d)), axis=1)[:, :told].astype(np.int32)
        return Sparse(places, np.round(values) if whole else values, d)  # whole numbers: many equal distances

    candidates = drawn(m).dense()
    candidates = candidates[distinct(candidates)]
    records, k = drawn(150), min(k, len(candidates))
    assert (np.count_nonzero(records.dense(), axis=1) <= told).all()
    found = np.sort(nearest(records, candidates, k, make(candidates)), axis=1)
    assert (found == brute(records.dense(), candidates, k)).all()


def test_rounding_of_large_norms_does_not_decide_a_vote():
    rng = np.random.default_rng(0)
    candidates = (1000 + rng.standard_normal((500, 64)) * 1e-2).astype(np.float32)
    records = (1000 + rng.standard_normal((200, 64)) * 1e-2).astype(np.float32)
    for make in SEARCHES.values():
        found = nearest(records, candidates, 1, make(candidates))
        assert (found == brute(records, candidates, 1)).all()
    _, bare = torch_search(candidates, "cpu")(records, 1)
    assert (bare != found).any()  # what a bare float32 search makes of them


def test_threads_that_share_the_records_find_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    candidates, records = np.float32(np.round(rng.standard_normal((40, 6)))), np.float32(rng.standard_normal((1001, 6)))
    candidates = candidates[distinct(candidates)]
    monkeypatch.setattr("dpsyn.networks.search.free_threads", lambda: 3)
    assert (nearest(records, candidates, 1, cpu_search(candidates)) == brute(records, candidates, 1)).all()


def test_a_record_without_a_distance_votes_for_the_lowest_row():
    candidates = np.eye(6, dtype=np.float32)
    records = np.zeros((4, 6), np.float32)
    records[0, 0], records[1, 1], records[2, 2], records[3] = np.nan, np.inf, 1e30, candidates[4]
    assert nearest(records, candidates, 1, cpu_search(candidates)).ravel().tolist() == [0, 0, 0, 4]
    told = Sparse(np.tile(np.arange(6, dtype=np.int32), (4, 1)), records, 6)
    assert nearest(told, candidates, 1, sparse_search(candidates)).ravel().tolist() == [0, 0, 0, 4]


def test_identical_candidates_are_one_and_the_lowest_row_stands_for_them():
    vectors = np.array([[1, 0], [0, 1], [1, 0], [np.nan, 0], [-0.0, 1], [np.inf, 1]], np.float32)
    assert distinct(vectors).tolist() == [0, 1]


def test_every_candidate_is_asked_when_a_search_gives_nothing():
    candidates = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)
    records = candidates[::-1].copy()

    def broken(records, k):
        return np.full((len(records), k), np.inf, np.float32), np.full((len(records), k), -1)

    assert (nearest(records, candidates, 1, broken).ravel() == np.arange(40)[::-1]).all()


def test_a_user_in_many_labels_moves_the_votes_by_at_most_one():
    # one user, records in 4 labels: normalised label by label this would be a vector of norm 2
    choices = [(np.zeros(10, np.int64), np.full((10, 1), 25 * label)) for label in range(4)]
    moved = (count_by_user(choices, 100)) / GRID
    assert np.linalg.norm(moved) <= 1
    assert np.linalg.norm(moved) > 0.99


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30), k=st.integers(1, 3))
def test_one_user_more_changes_the_votes_of_no_other_and_moves_at_most_one(seed, n, k):
    rng = np.random.default_rng(seed)
    parts = [
        (rng.integers(-1, 6, b), np.stack([rng.permutation(n + 3)[:k] for _ in range(b)]))
        for b in rng.integers(1, 50, 3)
    ]
    without = [(np.where(units == 3, -1, units), rows) for units, rows in parts]
    difference = (count_by_user(parts, n + 3)) - (count_by_user(without, n + 3))
    assert (difference >= 0).all()
    assert np.sum(difference**2) <= GRID**2


def test_rows_without_an_id_cast_no_vote():
    assert (count_by_user([(np.full(5, -1), np.zeros((5, 1), np.int64))], 3)).tolist() == [0, 0, 0]
    assert (count_by_user([], 3)).tolist() == [0, 0, 0]


def test_records_cast_one_vote_for_each_of_their_nearest():
    counted = count_by_record([np.array([[0, 2], [2, 1]]), np.array([[2, 0]])], 4)
    assert counted.tolist() == [2, 1, 3, 0]


LEAKS = [
    repr, str, "{}".format, list, len, np.asarray, np.array, pickle.dumps, copy.copy, copy.deepcopy, json.dumps, vars,
    lambda votes: votes[0], lambda votes: votes == votes, bool, hash, sum, lambda votes: f"{votes!r}",
]  # fmt: skip


@pytest.mark.parametrize("leak", LEAKS)
def test_exact_counts_cannot_be_printed_copied_or_pickled(leak):
    votes = Votes(np.array([31337, 4242]), 1, 1)
    try:
        got = leak(votes)
    except TypeError as error:
        got = str(error)
    assert "31337" not in str(got)
    assert "4242" not in str(got)
