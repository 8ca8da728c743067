#!/usr/bin/env python
"""Private data read, embedded and counted by one process, and by one a core: small PNGs in parquet and texts in csv.

Both in turn, in processes of their own; seconds by the clock, and their ratio.

    .venv/bin/python scripts/bench_shards.py [--rows 200000] [--candidates 5000] [--shards 2] [--rounds 3]
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

KINDS = ("images", "texts")


def write(kind, rows, folder):
    import numpy as np

    rng = np.random.default_rng(0)
    if kind == "texts":
        words = np.array([f"word{i}" for i in range(5000)])
        with (folder / "texts.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["text"])
            lines.writerows([" ".join(words[rng.integers(0, len(words), 15)])] for _ in range(rows))
        return
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png():
        pixels, stream = np.zeros((28, 28), np.uint8), io.BytesIO()
        pixels[5:23, 8:20] = rng.integers(0, 256, (18, 12))
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    made = [png() for _ in range(1000)]
    images = [{"bytes": made[at % len(made)], "path": None} for at in range(rows)]
    pq.write_table(pa.table({"image": images}), folder / "images.parquet", row_group_size=10_000)


def one(kind, shards, candidates, folder):
    import numpy as np

    from dpsyn.data.images import Images
    from dpsyn.data.texts import Texts
    from dpsyn.embedding.ngrams import Ngrams
    from dpsyn.embedding.pixels import Pixels
    from dpsyn.privacy.electorate import open_electorate
    from dpsyn.privacy.nearest import search_on
    from dpsyn.privacy.query import Nearest

    images = Images(str(folder / "images.parquet"), mode="L")
    data = images if kind == "images" else Texts(str(folder / "texts.csv"))
    embed = Pixels([28, 28], 1.0, 0, 4) if kind == "images" else Ngrams(64, [1, 1], None)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        start = time.perf_counter()
        electorate = open_electorate(data, embed, {}, "record", Path(cache), shards)
        read = time.perf_counter() - start
        vectors = np.random.default_rng(1).normal(0, 0.1, (candidates, electorate.dimension)).astype(np.float32)
        query = Nearest(vectors, np.zeros(candidates, np.int64), 1, search=search_on("cpu", False))
        start = time.perf_counter()
        electorate.tallied(query)
        print(json.dumps({"read and embedded": read, "counted": time.perf_counter() - start}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--candidates", type=int, default=5000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        kind, shards, folder = chosen.one
        one(kind, int(shards), chosen.candidates, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            write(kind, chosen.rows, Path(folder))
            found: dict[int, list[dict[str, float]]] = {1: [], chosen.shards: []}
            for _ in range(chosen.rounds):
                for shards, times in found.items():
                    given = ["--candidates", str(chosen.candidates), "--one", kind, str(shards), folder]
                    ended = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE)
                    times.append(json.loads(ended.stdout))
            for what in found[1][0]:
                alone, spread = (statistics.median(each[what] for each in times) for times in found.values())
                said = f"{alone:.2f} s by 1, {spread:.2f} s by {chosen.shards}"
                print(f"{chosen.rows:,} {kind}, {what}: {said}: {alone / spread:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
