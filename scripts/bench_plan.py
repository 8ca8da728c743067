#!/usr/bin/env python
"""CPU seconds of `dpsyn plan` for each experiment, in a folder without data, and the ratio to importing hydra, numpy and
dp_accounting, which no plan can do without. Both in turns, medians.

    .venv/bin/python scripts/bench_plan.py [--experiments digits adult] [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from dpsyn.build import config_folder

BASELINE = [sys.executable, "-c", "import hydra, numpy, dp_accounting"]
EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


def cpu_seconds(command, folder):
    """User and system, of a process that ends with status 0."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: status {process.returncode}")
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in ("imports", *chosen.experiments)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.rounds):
            seconds["imports"].append(cpu_seconds(BASELINE, folder))
            for name in chosen.experiments:
                plan = [sys.executable, "-m", "dpsyn", "plan", f"+experiment={name}"]
                seconds[name].append(cpu_seconds(plan, folder))
    baseline = statistics.median(seconds["imports"])
    for name, values in seconds.items():
        print(
            f"{name:30} {statistics.median(values):5.2f} CPU s, {statistics.median(values) / baseline:4.2f} of imports"
        )
    slowest = max(statistics.median(values) for name, values in seconds.items() if name != "imports")
    ratio = slowest / baseline
    imports = "importing hydra, numpy and dp_accounting"
    print(f"| the slowest plan of all experiments, {slowest:.1f} CPU s | {imports} | {ratio:.1f} times as long |")


if __name__ == "__main__":
    main()
