#!/usr/bin/env python
"""The table of README: what dpsyn's own code takes beside a stated baseline, measured in turn in the same run.

    .venv/bin/python scripts/bench_all.py [--tiny]

Every line is printed by the script that measures it (`scripts/bench_NAME.py`), in CPU seconds or in ratios of them.
Needs the full install and no data; --tiny runs all of them in a minute, for figures that mean nothing.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = {
    "voting": (
        "--dimensions 64 384 768 --candidates 1000 5000 50000",
        "--candidates 50 --dimensions 16 --billions 0.001 --rounds 1",
    ),
    "pool": ("--rows 20000 --threads 1", "--rows 500 --dimension 16 --neighbours 5 --threads 1"),
    "render": ("--images 20000 --fonts bundled", "--images 200 --fonts bundled --rounds 1"),
    "avatar": ("", "--images 20 --rounds 1"),
    "cells": ("", "--rows 2000 --columns 5 --rounds 1"),
    "chat": ("--concurrency 128 --seconds 1", "--rounds 5 --concurrency 4 --latency 0.01 --seconds 1"),
    "plan": ("--rounds 1", "--rounds 1 --experiments digits"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="all of them in a minute")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    chosen = parser.parse_args(arguments)
    print("| what | beside | it takes |\n|---|---|---|", flush=True)
    for name in chosen.only:
        command = [sys.executable, str(HERE / f"bench_{name}.py"), *COMMANDS[name][chosen.tiny].split()]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print("".join(line for line in said.splitlines(keepends=True) if line.startswith("| ")), end="", flush=True)


if __name__ == "__main__":
    main()
