#!/usr/bin/env python
"""Votes of made-up records counted by 1 and by 2 threads, and by 2 shards on Ray on this machine.

All in turn in one process; seconds by the clock, medians, ratios to one thread. And the most memory of the driver, in
processes of their own, for each of some numbers of records on Ray. At the end, the CPU seconds that it took are set against
`--paper`: records, candidates, nodes and cores of each of a run that is larger than this machine, its vectors of the
same 64 numbers and of 384.

    .venv/bin/python scripts/bench_cluster.py [--records 1000000] [--candidates 5000] [--rounds 3] [--memory 100000 1000000]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dpsyn.data import Records
from dpsyn.population import Samples

DIMENSION, CODES = 64, 8


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
            yield Records(Samples(rng.integers(0, CODES, (rows, DIMENSION, 1, 1), np.uint8)), np.zeros(rows, np.int64))


@dataclass(frozen=True)
class Flat:
    kind: str

    def __call__(self, samples):
        return samples.content.reshape(len(samples), -1).astype(self.kind)

    def fingerprint(self):
        return ""


def asked(candidates):
    """Queries by name, each with what embeds the records for it."""
    from dpsyn.privacy.marginals import Marginal
    from dpsyn.privacy.nearest import search_on
    from dpsyn.privacy.query import CellCounts, Nearest

    vectors = np.random.default_rng(1).integers(0, CODES, (candidates, DIMENSION)).astype(np.float32)
    grid = tuple(Marginal((i, j), (np.arange(CODES),) * 2) for i in range(20) for j in range(i))
    nearest = Nearest(vectors, np.zeros(candidates, np.int64), 1, search=search_on("cpu", False))
    return {"Nearest": (nearest, Flat("float32")), "CellCounts": (CellCounts("pairs", grid), Flat("int32"))}


def driver(records, candidates, folder):
    """Counts once on Ray, and prints the most memory that this process took."""
    from dpsyn.cluster import private, session
    from dpsyn.networks.runtime import OnRay
    from dpsyn.privacy.electorate import open_electorate

    query, embed = asked(candidates)["Nearest"]
    with session.connected(OnRay(shards=2)):
        count = (private.reading(Made(records), 1), private.counting)
        open_electorate(Made(records), embed, {}, "record", Path(folder), 2, *count).tallied(query)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


@dataclass(frozen=True)
class Units:
    """Of vectors of 64 numbers.

    read: CPU seconds a record, to read and to keep it.
    kept: bytes on disk a record.
    pair: CPU seconds a record and candidate, to find the nearest.
    """

    read: float
    kept: float
    pair: float


def on_paper(units, records, candidates, nodes, cores):
    print(f"a record: {units.read * 1e6:.1f} us to read, {units.kept:.0f} bytes kept")
    print(f"a record and candidate: {units.pair * 1e9:.2f} ns, {2 * DIMENSION / units.pair / 1e9:.0f} GFLOP a second")
    print(f"{records:,} records, {candidates:,} candidates, {nodes} nodes of {cores} cores (computed, not run):")
    for dimension in (DIMENSION, 384):
        wider = dimension / DIMENSION
        kept, sent = units.kept * wider * records / nodes, 8 * candidates * nodes * cores
        print(
            f"  vectors of {dimension}: read once {units.read * wider * records / nodes / cores:.0f} s;"
            f" a release {units.pair * wider * records * candidates / nodes / cores:.0f} s of all cores,"
            f" {kept / 2**30:.1f} GiB of disk read a node, {4 * dimension * candidates / 2**20:.0f} MiB of candidates to a node,"
            f" {sent / 2**20:.0f} MiB of tallies to the driver"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--candidates", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--paper", type=int, nargs=4, default=[10**8, 10_000, 64, 16])
    parser.add_argument("--driver", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.driver:
        driver(int(chosen.driver[0]), chosen.candidates, chosen.driver[1])
        return
    from dpsyn.cluster import private, session
    from dpsyn.networks.runtime import OnRay
    from dpsyn.privacy.electorate import by_threads, open_electorate

    with tempfile.TemporaryDirectory() as folder, session.connected(OnRay(shards=2)):
        for name, (query, embed) in asked(chosen.candidates).items():
            given = (Made(chosen.records), embed, {"for": name}, "record", Path(folder))
            start = time.process_time()
            records = open_electorate(*given, 1)
            read = time.process_time() - start
            ways = {"1 thread": (1, by_threads), "2 threads": (2, by_threads), "2 shards on Ray": (2, private.counting)}
            found: dict[str, list[float]] = {way: [] for way in ways}
            spent = dict[str, float]()  # CPU seconds of the first round: a search may use all cores
            for _ in range(chosen.rounds):
                for way, (shards, count) in ways.items():
                    start, used = time.perf_counter(), time.process_time()
                    replace(records, shards=shards, count=count).tallied(query)
                    found[way].append(time.perf_counter() - start)
                    spent.setdefault(way, time.process_time() - used)
            alone = statistics.median(found["1 thread"])
            if name == "Nearest":
                kept = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                units = Units(
                    read / chosen.records, kept / chosen.records, spent["1 thread"] / chosen.records / chosen.candidates
                )
            for way, times in found.items():
                each = statistics.median(times)
                said = f"{each:.2f} s, {alone / each:.2f} times as fast as 1 thread"
                print(f"{name}, {chosen.records:,} records, {way}: {said}", flush=True)
    peaks = []
    for records in chosen.memory:
        with tempfile.TemporaryDirectory() as folder:
            given = [sys.executable, __file__, "--candidates", str(chosen.candidates), "--driver", str(records), folder]
            peaks.append(float(subprocess.run(given, check=True, stdout=subprocess.PIPE).stdout))
    sizes = " and ".join(f"{peak:.0f} MiB at {n:,}" for peak, n in zip(peaks, chosen.memory, strict=True))
    print(f"driver on Ray: {sizes} records, ratio {peaks[-1] / peaks[0]:.2f}")
    on_paper(units, *chosen.paper)


if __name__ == "__main__":
    main()
