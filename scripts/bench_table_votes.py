#!/usr/bin/env python
"""Rows of 15 columns (the schema of Adult, made on the fly) embedded, cached and voting for 5,000 candidates: as dpsyn
keeps them, told by an entry a column, and beside it as dense one-hot vectors.

Time goes with rows and falls with threads; peak memory does not depend on the number of rows.

    .venv/bin/python scripts/bench_table_votes.py [--rows 250000 1000000] [--threads 1 2] [--wide]

--wide: with one more column, of 2,000 categories.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CANDIDATES = 5000


def one(rows, threads, dense, wide, folder):
    import numpy as np

    from dpsyn.api.table import Table as Api
    from dpsyn.compose import config_folder
    from dpsyn.data import Records
    from dpsyn.embedding.table import Table
    from dpsyn.networks.search import cpu_search
    from dpsyn.privacy.electorate import open_electorate
    from dpsyn.privacy.nearest import sparse_search
    from dpsyn.privacy.query import Nearest
    from dpsyn.tables import schema

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    adult = schema.read("adult", config_folder() / "schemas")
    if wide:
        towns = {"kind": "category", "values": [str(town) for town in range(2000)]}
        adult = {**adult, "columns": {**adult["columns"], "town": towns}}
    table = schema.Schema({**adult, "labels": []})  # one label: every row meets every candidate
    api = Api(table, 0.05)

    @dataclass(frozen=True)
    class Made:
        id = records = unit_column = None
        labels = table.labels
        on_error = "refuse"

        def check(self):
            pass

        def fingerprint(self):
            return str(rows)

        def batches(self, size):
            for start in range(0, rows, size):
                seeds = np.arange(start, min(start + size, rows), dtype=np.uint64)
                yield Records(api.generate(table.labels * len(seeds), seeds), np.zeros(len(seeds), np.int64))

    embed = Table(table, 1.0, 1 / 3, 0.5)
    start = time.perf_counter()
    kept = embed.__call__ if dense else embed
    electorate = open_electorate(Made(), kept, {}, "record", Path(folder))
    made = time.perf_counter() - start
    candidates = embed(api.generate(table.labels * CANDIDATES, np.arange(CANDIDATES, dtype=np.uint64) + 2**40))
    start = time.perf_counter()
    search = cpu_search if dense else sparse_search
    electorate.tallied(Nearest(candidates, np.zeros(CANDIDATES, np.int64), 1, search=search))
    voted = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    bytes_a_row = sum(file.stat().st_size for file in Path(folder).rglob("*.vectors")) / rows
    print(json.dumps({"embedded": made, "voted": voted, "peak": peak, "bytes": bytes_a_row, "d": candidates.shape[1]}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        rows, threads, dense, folder = chosen.one
        one(int(rows), int(threads), dense == "dense", chosen.wide, folder)
        sys.exit()
    for rows in chosen.rows:
        for threads in chosen.threads:
            found = {}
            for kept in ("sparse", "dense"):  # a process each, so that a peak is its own
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, __file__, "--one", str(rows), str(threads), kept, folder]
                    command += ["--wide"] * chosen.wide
                    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                    ended = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
                found[kept] = json.loads(ended.stdout)
                told = (
                    "{embedded:.1f} s made and embedded, {voted:.1f} s voted, {peak:,.0f} MiB, {bytes:,.0f} bytes a row"
                )
                size = f"{rows:,} rows of {found[kept]['d']} entries, {CANDIDATES:,} candidates, {threads} threads"
                print(f"{size}, {kept}: {told.format(**found[kept])}", flush=True)
            print(f"  votes: {found['sparse']['voted'] / found['dense']['voted']:.2f} of the time of dense vectors")


if __name__ == "__main__":
    main()
