#!/usr/bin/env python
"""The private side at two sizes: records of 384 floats, made on the fly, embedded, cached and voting.

Peak memory does not depend on the number of records.

    .venv/bin/python scripts/bench_memory.py [--sizes 500000 2000000]
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
from pathlib import Path

import numpy as np

from dpsyn.data import Records
from dpsyn.networks.search import cpu_search
from dpsyn.population import Samples
from dpsyn.privacy.electorate import open_electorate
from dpsyn.privacy.query import Nearest

DIMENSION = 384


@dataclass(frozen=True)
class Made:
    n: int
    id: str | None = None
    labels: tuple = ({},)
    records: int | None = None
    on_error: str = "refuse"
    unit_column: str | None = None

    def check(self):
        pass

    def fingerprint(self):
        return str(self.n)

    def batches(self, size):
        rng = np.random.default_rng(0)
        for start in range(0, self.n, size):
            rows = min(size, self.n - start)
            yield Records(Samples(rng.integers(0, 256, (rows, DIMENSION, 1, 1), np.uint8)), np.zeros(rows, np.int64))


def one(n, folder):
    def embed(samples):
        return samples.content.reshape(len(samples), -1).astype(np.float32)

    start = time.perf_counter()
    electorate = open_electorate(Made(n), embed, {}, "record", Path(folder))
    embedded = time.perf_counter() - start
    candidates = np.random.default_rng(1).integers(0, 256, (200, DIMENSION)).astype(np.float32)
    start = time.perf_counter()
    electorate.tallied(Nearest(candidates, np.zeros(200, np.int64), 1, search=cpu_search))
    voted = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n:>10,} records: embedded in {embedded:.1f} s, voted in {voted:.1f} s, peak memory {peak:.0f} MiB",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--one", type=int)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        if chosen.one:
            one(chosen.one, folder)
        else:
            for size in chosen.sizes:
                subprocess.run([sys.executable, __file__, "--one", str(size)], check=True)


if __name__ == "__main__":
    main()
