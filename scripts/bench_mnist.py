#!/usr/bin/env python
"""`mnist` and `mnist_sim_pe` on the real files: time, peak memory, accuracy, and the share that is dpsyn's own overhead.

    .venv/bin/python scripts/bench_mnist.py FOLDER [--experiment mnist] [--threads 2] [--seeds 1] [KEY=VALUE ...]
    .venv/bin/python scripts/bench_mnist.py FOLDER --seeds 3 api.fonts=bundled metric=judges

FOLDER holds train.parquet and test.parquet. The overhead is all but generating, varying, embedding, voting and metrics.
With several seeds, each a run, every number of the metrics is told by its mean and its range.
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
    parser.add_argument("--seeds", type=int, default=1)
    chosen, overrides = parser.parse_known_args(arguments)
    runs = [measured(chosen, [*overrides, f"seed={seed}"]) for seed in range(chosen.seeds)]
    print("| judged by | mean | range |\n|---|---|---|")
    for name in runs[0]:
        found = [run[name] for run in runs]
        print(f"| {name} | {sum(found) / len(found):.4g} | {min(found):.4g} to {max(found):.4g} |")


def measured(chosen: argparse.Namespace, overrides: Sequence[str]) -> dict[str, float]:
    """One run, and what its metrics say: numbers by 'metric.number'."""
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
        numbers: dict[str, float] = {}
        for line in (root / "private/metrics.jsonl").read_text().splitlines():
            said = json.loads(line)
            print(said, flush=True)
            numbers |= {
                f"{said['metric']}.{k}": v for k, v in said.items() if k not in ("metric", "iteration", "final")
            }
    return numbers


if __name__ == "__main__":
    main()
