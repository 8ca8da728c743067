#!/usr/bin/env python
"""The graph of a pool, and variations drawn from it, against faiss's flat search of everything at once.

.venv/bin/python scripts/bench_pool.py [--rows 50000] [--dimension 384] [--neighbours 50] [--threads 2]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpsyn.api.pool import Pool
from dpsyn.data import Records
from dpsyn.embedding import Embedding
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples

BATCH = 2000
VARIED = 1_000_000


@dataclass(frozen=True)
class Made:
    n: int
    dimension: int
    labels: tuple = ({},)

    def check(self):
        pass

    def fingerprint(self):
        return f"{self.n} {self.dimension}"

    def batches(self, size):
        rng = np.random.default_rng(0)
        for start in range(0, self.n, size):
            rows = np.zeros(min(size, self.n - start), [("values", "f4", (self.dimension,))])
            rows["values"] = rng.standard_normal(rows["values"].shape, dtype=np.float32)
            yield Records(Samples(rows), np.zeros(len(rows), np.int64))


@dataclass(frozen=True)
class Values(Embedding):
    def __call__(self, samples):
        return samples.content["values"]

    def fingerprint(self):
        return ""

    def reads(self):
        return ()


def pool(chosen):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    data = Made(chosen.rows, chosen.dimension)
    api = Pool(data, Values(), "made", False, chosen.neighbours, Runtime(device="cpu"))
    labels, seeds = [{}] * BATCH, np.arange(BATCH, dtype=np.uint64)
    before, start = peak(), time.process_time()
    first = api.generate(labels, seeds)
    read = time.process_time() - start
    start = time.process_time()
    api.vary(first, labels, chosen.neighbours, seeds)
    searched, memory = time.process_time() - start, peak() - before
    start = time.process_time()
    for block in range(VARIED // BATCH):
        api.vary(first, labels, chosen.neighbours, seeds + np.uint64(BATCH * block))
    print(searched, memory, read, VARIED / (time.process_time() - start))


def plain(chosen):
    import faiss

    faiss.omp_set_num_threads(chosen.threads)
    data = Made(chosen.rows, chosen.dimension)
    before = peak()
    vectors = np.concatenate([Values()(records.samples) for records in data.batches(BATCH)])
    start = time.process_time()
    index = faiss.IndexFlatL2(chosen.dimension)
    index.add(vectors)
    _, found = index.search(vectors, chosen.neighbours)
    np.save(os.path.join(os.environ["XDG_CACHE_HOME"], "graph.npy"), found.astype(np.int32))
    print(time.process_time() - start, peak() - before)


def peak():
    """MiB, with the pages of mapped files, which the system can take back."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=["pool", "faiss"])
    chosen = parser.parse_args(arguments)
    if chosen.one:
        {"pool": pool, "faiss": plain}[chosen.one](chosen)
        raise SystemExit
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # of the processes below
    numbers = {}
    for what in ("faiss", "pool"):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as cache:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", what]
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            numbers[what] = [float(number) for number in out.split()]
    (naive, naive_peak), (searched, own_peak, read, rows) = numbers["faiss"], numbers["pool"]
    print(f"{chosen.rows:,} items of {chosen.dimension} floats, {chosen.neighbours} neighbours each")
    print(f"faiss, everything at once: {naive:.1f} CPU s, {naive_peak:.0f} MiB more at the peak than before it")
    print(f"graph of the pool: {searched:.1f} CPU s, {own_peak:.0f} MiB, with the reading ({read:.1f} s) before it")
    print(f"ratio of time {searched / naive:.2f}, of memory {own_peak / naive_peak:.2f}")
    print(f"variations: {rows:,.0f} rows/s")
    what = f"graph of a pool, {chosen.neighbours} neighbours of {chosen.dimension}"
    print(f"| {what} | faiss's flat search | {searched / naive:.2f} of its time |")


if __name__ == "__main__":
    main()
