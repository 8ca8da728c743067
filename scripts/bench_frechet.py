#!/usr/bin/env python
"""Frechet distance of rows of 2048 floats, made on the fly and streamed: time and peak memory at two sizes.

    .venv/bin/python scripts/bench_frechet.py [--rows 25000 50000] [--dimension 2048] [--threads 2]

Against numpy.cov of the whole array, and the distance against scipy.linalg.sqrtm, in the same run. Every measurement
is a process of its own; memory is what it took beyond its imports. The peak does not depend on the number of rows.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000])
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(chosen.threads)

    import numpy as np
    from scipy.linalg import sqrtm

    from dpsyn.metric.frechet import distance, moments

    def features(n, seed):
        """float32 [n, d] in batches, correlated, 0 or more: like those of Inception."""
        rng = np.random.default_rng(seed)
        mix = rng.standard_normal((64, chosen.dimension), dtype=np.float32) / 16
        for start in range(0, n, chosen.batch):
            rows = min(chosen.batch, n - start)
            noise = rng.standard_normal((rows, chosen.dimension), dtype=np.float32) / 4
            yield np.maximum(rng.standard_normal((rows, 64), dtype=np.float32) @ mix + noise + 0.2, 0)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def one(what, n):
        """Prints seconds and MiB, the making of the rows left out of the seconds."""
        before = peak()
        if what == "making":
            start = time.perf_counter()
            for _ in features(n, 0):
                pass
        elif what == "streamed":
            start = time.perf_counter()
            moments(features(n, 0))
        elif what == "numpy.cov":
            whole = np.concatenate(list(features(n, 0)))
            start = time.perf_counter()
            np.cov(whole, rowvar=False)
        else:
            a, b = moments(features(n, 0)), moments(features(n, 1))
            start = time.perf_counter()
            if what == "distance":
                distance(a, b)
            else:
                root = sqrtm(a[1] @ b[1])
                gap = a[0] - b[0]
                gap @ gap + np.trace(a[1] + b[1] - 2 * root.real)
        print(time.perf_counter() - start, peak() - before)

    def measured(what, n):
        command = [sys.executable, *sys.argv, "--one", what, str(n)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return tuple(map(float, out.split()))

    if chosen.one:
        one(chosen.one[0], int(chosen.one[1]))
        raise SystemExit
    for n in chosen.rows:
        making, _ = measured("making", n)
        seconds, memory = measured("streamed", n)
        seconds -= making
        whole_seconds, whole_memory = measured("numpy.cov", n)
        print(
            f"{n} x {chosen.dimension}: streamed {seconds:.1f} s, {memory:.0f} MiB; numpy.cov of the whole array "
            f"{whole_seconds:.1f} s, {whole_memory:.0f} MiB; ratio {seconds / whole_seconds:.2f}"
        )
    rows = 2 * chosen.dimension
    (ours, _), (theirs, _) = measured("distance", rows), measured("sqrtm", rows)
    print(f"distance from the moments: {ours:.1f} s, by scipy.linalg.sqrtm {theirs:.1f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
