#!/usr/bin/env python
"""A whole `dpsyn run` by the code of another commit and by this one, in turns: CPU seconds, wall seconds, peak memory.

    git worktree add ../before COMMIT
    .venv/bin/python scripts/bench_runs.py ../before [--rounds 3] +experiment=adult data.path=adult/train.csv metric=none

Both run in this environment. Account and cache are new each time. Paths of files must be absolute.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def once(checkout: Path, overrides: Sequence[str]) -> tuple[float, float, float]:
    """CPU seconds with those of its children, wall seconds, peak MiB of its largest process."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/output", "w+b") as output:
        places = {"PYTHONPATH": str(checkout), "XDG_STATE_HOME": f"{folder}/state", "XDG_CACHE_HOME": f"{folder}/cache"}
        command = [sys.executable, "-m", "dpsyn", "run", *overrides, f"run_dir={folder}/run"]
        start = time.perf_counter()
        running = subprocess.Popen(command, env=os.environ | places, cwd=folder, stdout=output, stderr=output)
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            output.seek(0)
            sys.exit(f"{checkout}: the run ended with {running.returncode}:\n{output.read().decode()}")
        return used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss / 2**10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path, help="of dpsyn, at another commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--there", action="append", default=[], metavar="KEY=VALUE", help="for the checkout alone")
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="of `dpsyn run`")
    chosen = parser.parse_intermixed_args(arguments)
    both = ((chosen.checkout.resolve(), [*chosen.overrides, *chosen.there]), (HERE, chosen.overrides))
    found = [[once(*each) for each in both] for _ in range(chosen.rounds)]
    there, here = ([statistics.median(each) for each in zip(*runs, strict=True)] for runs in zip(*found, strict=True))
    print(f"{'':13} {'there':>8} {'here':>8} {'here of there':>14}")
    for name, before, after in zip(("CPU seconds", "wall seconds", "peak MiB"), there, here, strict=True):
        print(f"{name:13} {before:8.1f} {after:8.1f} {after / before:14.2f}")


if __name__ == "__main__":
    main()
