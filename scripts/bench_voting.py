#!/usr/bin/env python
"""Votes against a bare faiss flat search over the same vectors: the price of exact votes.

.venv/bin/python scripts/bench_voting.py [--records 50000] [--candidates 10000] [--dimension 384] [--threads 2]
"""

import argparse
import os
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)

    import faiss
    import numpy as np

    from dpsyn.privacy.electorate import BLOCK_BYTES
    from dpsyn.privacy.nearest import cpu_search, distinct, nearest
    from dpsyn.privacy.votes import count_by_record

    faiss.omp_set_num_threads(chosen.threads)
    rng = np.random.default_rng(0)
    records = rng.standard_normal((chosen.records, chosen.dimension), dtype=np.float32)
    fresh = rng.standard_normal((chosen.candidates, chosen.dimension), dtype=np.float32)
    half = fresh[: chosen.candidates // 2]
    near = np.concatenate([half, half + 0.05 * rng.standard_normal(half.shape, dtype=np.float32)])
    rows = max(1, BLOCK_BYTES // (4 * chosen.dimension))

    def bare(candidates):
        faiss.cvar.distance_compute_blas_database_bs = 1024  # faiss as it comes
        index = faiss.IndexFlatL2(candidates.shape[1])
        index.add(candidates)
        return np.bincount(index.search(records, 1)[1].ravel(), minlength=len(candidates))

    def votes(candidates):
        candidates = candidates[distinct(candidates)]
        search = cpu_search(candidates)
        blocks = (records[start : start + rows] for start in range(0, len(records), rows))
        return count_by_record((nearest(block, candidates, 1, search) for block in blocks), len(candidates))

    for name, candidates in (("independent candidates", fresh), ("half of them close variations", near)):
        times = {"bare": [], "votes": []}
        for _ in range(chosen.rounds):
            for what, run in (("bare", bare), ("votes", votes)):
                start = time.perf_counter()
                run(candidates)
                times[what].append(time.perf_counter() - start)
        best = {what: min(values) for what, values in times.items()}
        ratio = best["votes"] / best["bare"]
        print(f"{name}: faiss {best['bare']:.2f} s, exact votes {best['votes']:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
