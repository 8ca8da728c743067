#!/usr/bin/env python
"""Texts as the private side, and as a pool, at two sizes: written, read, embedded by a hash, voting; drawn from.

Peak memory does not depend on how many there are.

    .venv/bin/python scripts/bench_texts.py [--sizes 200000 2000000] [--formats csv jsonl parquet]
"""

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dpsyn.api.pool import Pool
from dpsyn.data.texts import Texts
from dpsyn.embedding import Embedding
from dpsyn.networks.runtime import Runtime
from dpsyn.networks.search import cpu_search
from dpsyn.privacy.electorate import open_electorate
from dpsyn.privacy.query import Nearest

LABELS = {"category": [f"category {i}" for i in range(10)], "stars": ["1", "2", "3", "4", "5"]}
GROUP = 10_000


def made(n):
    """Groups of rows {text, category, stars}; a text has about 600 characters, some of them quotes and line ends."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzé", k=draw.randint(2, 10))) for _ in range(5000)]
    phrases = [" ".join(draw.choices(words, k=12)) + draw.choice([".\n", '". ', ", "]) for _ in range(20_000)]
    for start in range(0, n, GROUP):
        rows = min(GROUP, n - start)
        texts = ["".join(draw.choices(phrases, k=draw.randint(2, 14))) for _ in range(rows)]
        yield {
            "text": texts,
            "category": draw.choices(LABELS["category"], k=rows),
            "stars": draw.choices(LABELS["stars"], k=rows),
        }


def write(path, n):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.schema({name: pa.string() for name in ("text", *LABELS)})) as file:
            for group in made(n):
                file.write_table(pa.table(group))
        return
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        if path.suffix == ".csv":
            rows.writerow(["text", *LABELS])
        for group in made(n):
            if path.suffix == ".csv":
                rows.writerows(zip(*group.values(), strict=True))
            else:
                names = list(group)
                file.writelines(
                    json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in zip(*group.values(), strict=True)
                )


@dataclass(frozen=True)
class Hashed(Embedding):
    def __call__(self, samples):
        digests = b"".join(blake2b(text.encode(), digest_size=64).digest() for text in samples.content)
        return np.frombuffer(digests, np.uint8).reshape(-1, 64).astype(np.float32)

    def fingerprint(self):
        return ""

    def reads(self):
        return ()


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def private(path, _):
    data = Texts(str(path), labels=LABELS)
    data.check()
    n, read = timed(lambda: sum(len(records.samples) for records in data.batches(256)))
    _, digest = timed(data.fingerprint)
    electorate, embedded = timed(lambda: open_electorate(data, Hashed(), {}, "record", path.parent))
    candidates = np.random.default_rng(1).integers(0, 256, (5000, 64)).astype(np.float32)
    labels = np.arange(5000) % len(data.labels)
    _, voted = timed(lambda: electorate.tallied(Nearest(candidates, labels, 1, search=cpu_search)))
    print(
        f"{path.suffix[1:]:>8} {n:>10,} texts: read in {read:.1f} s ({n / read:,.0f} a second), file hashed in "
        f"{digest:.1f} s, embedded in {embedded:.1f} s, voted in {voted:.1f} s, peak memory {peak():.0f} MiB",
        flush=True,
    )


def pool(path, _):
    api = Pool(Texts(str(path)), Hashed(), str(path), False, None, Runtime(device="cpu"))
    labels, seeds = [{}] * 5000, np.arange(5000, dtype=np.uint64)
    before = peak()
    samples, first = timed(lambda: api.generate(labels, seeds))
    _, again = timed(lambda: api.generate(labels, seeds))
    print(
        f"    pool: 5,000 drawn in {first:.1f} s, again in {again:.2f} s, peak memory {before:.0f} to {peak():.0f} MiB",
        flush=True,
    )
    assert all(samples.content)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument(
        "--formats", nargs="+", choices=["csv", "jsonl", "parquet"], default=["csv", "jsonl", "parquet"]
    )
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "FILE", "SIZE"))
    chosen = parser.parse_args(arguments)
    if chosen.one:
        what, file, size = chosen.one
        {"write": write, "private": private, "pool": pool}[what](Path(file), int(size))
        raise SystemExit
    for size in chosen.sizes:
        for form in chosen.formats:
            with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
                path = Path(folder) / f"texts.{form}"
                own = {**os.environ, "XDG_CACHE_HOME": folder}
                for what in ("write", "private", "pool", "pool"):  # the second time the pool is only opened
                    command = [sys.executable, __file__, "--one", what, str(path), str(size)]
                    subprocess.run(command, check=True, env=own)


if __name__ == "__main__":
    main()
