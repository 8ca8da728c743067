#!/usr/bin/env python
"""api=chat against a server of ours on the loopback, in a process of its own: how fast, at what cost of the client.

    .venv/bin/python scripts/bench_chat.py [--calls 2000] [--concurrency 128] [--latency 0.2] [--per-minute 600]
                                        [--seconds 30] [--blind]

First without limits: wall time by the ideal one (calls / concurrency * latency), and CPU time of the client a call;
`asking` is the queue and the HTTP client alone, the rest is rendering, cleaning and keeping. Then under a limit that
the server counts over a minute: the rate by the limit, and how many were refused with 429; once with the limit told to
the client, and (--blind) once without.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

import numpy as np
import openai  # noqa: F401  # its import is no part of a call
import yaml

from dpsyn.api.chat import Chat
from dpsyn.build import config_folder
from dpsyn.language import prompts
from dpsyn.language.asking import Endpoint, Question, ask
from dpsyn.language.pace import Limits


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--per-minute", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--blind", action="store_true")
    chosen = parser.parse_args(arguments)
    SERVER = Path(__file__).resolve().parents[1] / "tests" / "chat_server.py"

    @contextlib.contextmanager
    def server(*arguments):
        """(its address, its counts, when it has ended)"""
        command = [sys.executable, str(SERVER), "--latency", str(chosen.latency), *arguments]
        counts = {}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process.stdout.readline().strip(), counts
            process.stdin.close()
            counts |= json.loads(process.stdout.readline())

    def part(url, **settings):
        plain = yaml.safe_load((config_folder() / "api" / "chat.yaml").read_text())
        asked = {**plain.pop("prompts"), "file": prompts.read("yelp", config_folder() / "prompts")}
        del plain["_target_"], asked["_target_"]
        given = {"model": "m", "base_url": url, "api_key_env": None, "concurrency": chosen.concurrency, **settings}
        return Chat(**{**plain, **given, "prompts": prompts.Prompts(**asked)})

    def rows(n):
        labels = [{"category": ("Bars", "Hotels & Travel")[i % 2], "stars": str(1 + i % 5)} for i in range(n)]
        return labels, np.random.default_rng(time.time_ns()).integers(0, 2**64, n, np.uint64)

    class Nothing:
        def before(self, question):
            return True

        def answered(self, question, answer):
            return None

        def failed(self, question, sent):
            pass

        given_up = failed

    def timed(work):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        return time.perf_counter() - wall, time.process_time() - cpu, answer

    n, ideal = chosen.calls, chosen.calls / chosen.concurrency * chosen.latency
    with server() as (url, _):
        limits = Limits(chosen.concurrency, None, None, 60, 600, 600, 6)
        text = [
            {"role": "user", "content": "Write a review of a bar that a regular would write, in about 60 words. " * 5}
        ]
        questions = [Question(i, {"model": "m", "messages": text, "max_tokens": 100, "seed": i}, 200) for i in range(n)]
        wall, cpu, _ = timed(lambda: ask([questions], [Endpoint(url, None, None)], limits, Nothing()))
        print(
            f"asking:   {n} calls in {wall:.2f} s, {wall / ideal:.2f} of the ideal; {1e3 * cpu / n:.2f} ms of CPU a call"
        )
        chat, (labels, seeds) = part(url), rows(n)
        wall, cpu, fresh = timed(lambda: chat.generate(labels, seeds))
        print(
            f"generate: {n} calls in {wall:.2f} s, {wall / ideal:.2f} of the ideal; {1e3 * cpu / n:.2f} ms of CPU a call"
        )
        wall, cpu, _ = timed(lambda: chat.vary(fresh, labels, 0.5, seeds))
        print(
            f"vary:     {n} calls in {wall:.2f} s, {wall / ideal:.2f} of the ideal; {1e3 * cpu / n:.2f} ms of CPU a call"
        )
        wall, cpu, _ = timed(lambda: chat.vary(fresh, labels, 0.5, seeds))
        print(f"again:    {n} rows from the cache in {wall:.2f} s")

    n = round(chosen.per_minute / 60 * chosen.seconds)
    for told in (chosen.per_minute, *([None] if chosen.blind else [])):
        with server("--per-minute", str(chosen.per_minute)) as (url, counts):
            chat, (labels, seeds) = part(url, requests_per_minute=told), rows(n)
            start = time.perf_counter()
            chat.generate(labels, seeds)
            wall = time.perf_counter() - start
        rate = 60 * n / wall
        share = f"{rate:.0f} a minute, {rate / chosen.per_minute:.3f} of it"
        print(f"limit of {chosen.per_minute} a minute, {'told' if told else 'not told'}: {share}; the server: {counts}")


if __name__ == "__main__":
    main()
