"""A flat search by numpy and one by torch find the same rows, ties to the lower one, in any blocks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from dpsyn.networks import search as search_module
from dpsyn.networks.search import cpu_search, flat_search, torch_search


def brute(queries, vectors, k):
    """By float64, of whole numbers: exact in float32, too."""
    gaps = ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(-1)
    rows = np.argsort(gaps, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(gaps, rows, 1), rows


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 50), lines=st.integers(1, 40), k=st.integers(1, 60))
def test_the_nearest_of_whole_numbers_are_found_whatever_the_blocks(seed, width, lines, k):
    rng = np.random.default_rng(seed)
    m, d = int(rng.integers(1, 130)), int(rng.integers(1, 6))
    vectors = rng.integers(-3, 4, (m, d)).astype(np.float32)  # many equal distances
    queries = rng.integers(-3, 4, (90, d)).astype(np.float32)
    k = min(k, m)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search_module, "VECTORS", width)
        patched.setattr(search_module, "BLOCK", width * lines)
        patched.setattr(search_module, "DISTANCES", 7 * m)
        found = [make(vectors)(queries, k) for make in (cpu_search, lambda v: torch_search(v, "cpu"))]
    distances, rows = brute(queries, vectors, k)
    for theirs, places in found:
        assert theirs.dtype == np.float32 and (theirs == distances).all()
        assert places.dtype == np.int64 and (places == rows).all()


@pytest.mark.parametrize("k", [1, 3, 20, 700])
def test_real_vectors_have_the_neighbours_of_float64(k):
    rng = np.random.default_rng(k)
    vectors, queries = (rng.standard_normal((n, 24)).astype(np.float32) for n in (5000, 300))
    distances, rows = brute(queries, vectors, k)
    for search in (flat_search(vectors, "cpu"), torch_search(vectors, "cpu")):
        found, places = search(queries, k)
        assert np.allclose(found, distances, rtol=1e-5, atol=1e-4)
        assert (places == rows).mean() > 0.999


def test_searches_at_once_leave_the_threads_of_blas_as_they_were():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, 64)).astype(np.float32) for n in (3000, 4000))
    search = cpu_search(vectors)
    before = threads()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda n: search(queries[:n], 1), [4000, 300, 2000, 1000, 150]))
    assert threads() == before
    assert all((rows == search(queries[: len(rows)], 1)[1]).all() for _, rows in parts)
