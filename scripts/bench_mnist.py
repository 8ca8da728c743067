#!/usr/bin/env python
"""`mnist` and `mnist_sim_pe` on the real files: time, peak memory, accuracy, and the share that is dpsyn's own overhead.

    .venv/bin/python scripts/bench_mnist.py FOLDER [--experiment mnist] [--threads 2] [KEY=VALUE ...]

FOLDER holds train.parquet and test.parquet. The overhead is all but generating, varying, embedding, voting and metrics.
The account and the cache of this user are left alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CHILD = """
import resource, sys
from dpsyn.cli import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
raise SystemExit(status)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiment", default="mnist")
    parser.add_argument("--threads", type=int, default=2)
    chosen, overrides = parser.parse_known_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        command = [
            "run",
            f"+experiment={chosen.experiment}",
            f"data.path={chosen.folder / 'train.parquet'}",
            f"run_dir={root}",
            *overrides,
        ]
        own = {
            "XDG_STATE_HOME": f"{folder}/state",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "OMP_NUM_THREADS": str(chosen.threads),
        }
        cores = sorted(os.sched_getaffinity(0))[: chosen.threads]
        start = time.perf_counter()
        ended = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-c", CHILD, *command],
            env={**os.environ, **own},
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        total = time.perf_counter() - start
        print(ended.stdout)
        phases: dict[str, float] = {}
        for line in (root / "private/log").read_text().splitlines():
            if found := re.search(r"^\S+ (.*) ([\d.]+) s$", line):
                name = found[1].split()[0]
                phases[name] = phases.get(name, 0.0) + float(found[2])
        work = {"generating", "varying", "embedding", "vote", "electorate", "metric"}
        for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
            print(f"{name:>12} {seconds:7.1f} s")
        rest = total - sum(seconds for name, seconds in phases.items() if name in work)
        print(f"total {total:.1f} s, overhead {rest:.1f} s ({rest / total:.1%}), on {chosen.threads} cores")
        for line in (root / "private/metrics.jsonl").read_text().splitlines():
            print(json.loads(line))


if __name__ == "__main__":
    main()
