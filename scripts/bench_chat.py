#!/usr/bin/env python
"""api=chat against a server of ours on the loopback, in a process of its own: how fast, at what cost of the client.

    .venv/bin/python scripts/bench_chat.py [--rounds 20] [--concurrency 32 128 512] [--latency 0.2]
                                        [--per-minute 600] [--seconds 30] [--blind]

First without limits, by concurrency: calls a second, by the ideal (concurrency / latency), and CPU time of the client
process a call. `openai` is its plain client in threads, `aiohttp` a loop that does nothing but send and read: the
baselines. `asking` is the queue and the HTTP client alone; `generate` and `vary` render, clean and keep, too; `again`
finds all in the cache. Then under a limit that the server counts over a minute: the rate by the limit, and how many
were refused with 429; once with the limit told to the client, and (--blind) once without.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

import aiohttp
import numpy as np
import openai
import yaml

from dpsyn.api.chat import Chat
from dpsyn.build import config_folder
from dpsyn.language import prompts
from dpsyn.language.asking import Question, ask
from dpsyn.language.endpoints import Endpoint
from dpsyn.language.pace import Limits

MESSAGES = [{"role": "user", "content": "Write a review of a bar that a regular would write, in about 60 words. " * 5}]
OF_OPENAI = 5  # its client is asked so many times fewer


class Nothing:
    """An asker that keeps nothing."""

    def before(self, question):
        return True

    def answered(self, question, answer):
        return None

    def failed(self, question, sent):
        pass

    given_up = failed


def bodies(n):
    return [{"model": "m", "messages": MESSAGES, "max_tokens": 100, "seed": i} for i in range(n)]


def by_openai(url, n, concurrency):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(lambda body: client.chat.completions.create(**body), bodies(n)))


def by_aiohttp(url, n, concurrency):
    async def worker(session, waiting):
        for body in waiting:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                json.loads(await response.read())

    async def all_of_them():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            waiting = iter(bodies(n))
            await asyncio.gather(*[worker(session, waiting) for _ in range(concurrency)])

    asyncio.run(all_of_them())


def by_asking(url, n, concurrency):
    questions = [Question(i, body, 200) for i, body in enumerate(bodies(n))]
    ask([questions], [Endpoint(url, None, None)], Limits(concurrency, None, None, 60, 600, 600, 6), Nothing())


def part(url, **settings):
    plain = yaml.safe_load((config_folder() / "api" / "chat.yaml").read_text())
    asked = {**plain.pop("prompts"), "file": prompts.read("yelp", config_folder() / "prompts")}
    del plain["_target_"], asked["_target_"]
    given = {"model": "m", "base_url": url, "api_key_env": None, **settings}
    return Chat(**{**plain, **given, "prompts": prompts.Prompts(**asked)})


def rows(n):
    labels = [{"category": ("Bars", "Hotels & Travel")[i % 2], "stars": str(1 + i % 5)} for i in range(n)]
    return labels, np.random.default_rng(time.time_ns()).integers(0, 2**64, n, np.uint64)


@contextlib.contextmanager
def server(*arguments):
    """(its address, its counts, when it has ended)"""
    command = [sys.executable, str(Path(__file__).resolve().parents[1] / "tests" / "chat_server.py"), *arguments]
    counts = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip(), counts
        process.stdin.close()
        counts |= json.loads(process.stdout.readline())


def timed(work):
    """(seconds, of them of the CPU, what came)"""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work()
    return time.perf_counter() - wall, time.process_time() - cpu, answer


def without_limits(concurrency, rounds, latency):
    ideal, n, few = concurrency / latency, rounds * concurrency, -(-rounds // OF_OPENAI) * concurrency
    print(f"{concurrency} at once, {latency} s each: ideal {ideal:.0f} calls a second")
    base = 0.0

    def measured(name, calls, work):
        nonlocal base
        wall, cpu, answer = timed(work)
        base = base or cpu / calls  # of the first line, openai's
        shares = f"{calls / wall / ideal:.3f} of the ideal; {1e3 * cpu / calls:.3f} ms of CPU a call"
        print(f"  {name:9} {calls / wall:6.0f} a second, {shares}, {cpu / calls / base:.2f} of openai's")
        if name in ("generate", "vary"):
            what = f"{name} by a chat endpoint, {concurrency} at once, {1e3 * cpu / calls:.2f} ms of CPU a call"
            print(f"| {what} | openai's client | {cpu / calls / base:.2f} of its time |")
        return answer

    with server("--latency", str(latency)) as (url, _):
        chat, (labels, seeds) = part(url, concurrency=concurrency), rows(n)
        measured("openai", few, lambda: by_openai(url, few, concurrency))
        measured("aiohttp", n, lambda: by_aiohttp(url, n, concurrency))
        measured("asking", n, lambda: by_asking(url, n, concurrency))
        fresh = measured("generate", n, lambda: chat.generate(labels, seeds))
        measured("vary", n, lambda: chat.vary(fresh, labels, 0.5, seeds))
        wall, cpu, _ = timed(lambda: chat.vary(fresh, labels, 0.5, seeds))
        print(f"  again     {n} rows from the cache in {wall:.2f} s, {1e3 * cpu / n:.3f} ms of CPU each")


def under_a_limit(per_minute, seconds, latency, told):
    n = round(per_minute / 60 * seconds)
    with server("--latency", str(latency), "--per-minute", str(per_minute)) as (url, counts):
        chat, (labels, seeds) = part(url, requests_per_minute=per_minute if told else None), rows(n)
        wall, _, _ = timed(lambda: chat.generate(labels, seeds))
    rate = 60 * n / wall
    share = f"{rate:.0f} a minute, {rate / per_minute:.3f} of it"
    print(f"limit of {per_minute} a minute, {'told' if told else 'not told'}: {share}; the server: {counts}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--per-minute", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--blind", action="store_true")
    chosen = parser.parse_args(arguments)

    for concurrency in chosen.concurrency:
        without_limits(concurrency, chosen.rounds, chosen.latency)
    for told in (True, *([False] if chosen.blind else [])):
        under_a_limit(chosen.per_minute, chosen.seconds, chosen.latency, told)


if __name__ == "__main__":
    main()
