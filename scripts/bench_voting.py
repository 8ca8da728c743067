#!/usr/bin/env python
"""Exact votes against a bare product of matrices and the row-wise minimum of it: the price of all that is not
arithmetic. Beside them faiss's flat search, and torch's product with its minimum.

    .venv/bin/python scripts/bench_voting.py [--dimensions 64 384 768] [--candidates 1000 5000 50000] [--rounds 5]

On one thread, in CPU seconds, all of a round one after the other; medians, and the median of the rounds' ratios. The
votes are those of faiss's search, but where float32 cannot tell two candidates apart.
"""

import argparse
import os
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 384, 768])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 5000, 50_000])
    parser.add_argument("--billions", type=float, default=40.0, help="floating point operations of a search")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--near", action="store_true", help="half of the candidates are close variations of the others")
    chosen = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"

    import faiss
    import numpy as np
    import torch

    from dpsyn.networks.search import cpu_search
    from dpsyn.privacy.nearest import nearest

    print("dimension candidates records GFLOP/s: bare torch faiss votes, time of votes: of bare, of torch, of faiss")
    rng = np.random.default_rng(0)

    def compared(n, m, d):
        records = rng.standard_normal((n, d), dtype=np.float32)
        candidates = rng.standard_normal((m, d), dtype=np.float32)
        if chosen.near:
            candidates[m // 2 :] = candidates[: m - m // 2] + 0.05 * candidates[m // 2 :]
        turned = np.ascontiguousarray(candidates.T)
        room = np.empty((256, m), np.float32)
        squares, there = torch.from_numpy((candidates**2).sum(1)), torch.from_numpy(turned)
        search = cpu_search(candidates)

        def bare():
            for start in range(0, n, 256):
                part = records[start : start + 256]
                np.matmul(part, turned, out=room[: len(part)]).argmin(1)

        def bare_torch():
            for start in range(0, n, 256):
                torch.addmm(squares, torch.from_numpy(records[start : start + 256]), there, alpha=-2).argmin(1)

        def by_faiss():
            return faiss.knn(records, candidates, 1)[1]

        def votes():
            return nearest(records, candidates, 1, search)

        runs = [bare, bare_torch, by_faiss, votes]
        same = (by_faiss() == votes()).mean()
        assert same > 0.999, f"{same:.4f} of the votes are those of faiss"
        seconds = np.array([[cpu(run) for run in runs] for _ in range(chosen.rounds)])
        rates = " ".join(f"{2e-9 * n * m * d / s:6.0f}" for s in np.median(seconds, 0))
        ratios = " ".join(f"{ratio:5.2f}" for ratio in np.median(seconds[:, -1:] / seconds[:, :-1], 0))
        print(f"{d:6} {m:8} {n:8}   {rates}   {ratios}", flush=True)
        price = np.median(seconds[:, -1] / seconds[:, 0])
        what = f"votes, {m:,} candidates of {d} entries"
        print(f"| {what} | numpy's product and its minimum | {price:.2f} of its time |", flush=True)

    for d in chosen.dimensions:
        for m in chosen.candidates:
            compared(int(min(max(chosen.billions * 1e9 / (2 * m * d), 256), 2**18)), m, d)


def cpu(run):
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
