#!/usr/bin/env python
"""How many records a value of an open column needs to be found with one chance in two (schedule=discover).

Beside it what needs no spelling: thresholding noisy counts of the values that occur, which takes half of delta for those
that do not; and a declared list, of whose values a noisy count tells those that occur. Values are made up, 12 of each
number of records; noise is Gaussian, as much as the budget says; numbers are means over the rounds.

    .venv/bin/python scripts/bench_discover.py [--epsilons 0.5 1 4] [--rounds 20] [--values 12]
"""

import argparse
from collections.abc import Sequence

import numpy as np
import yaml
from scipy.special import ndtri

from dpsyn.population import Samples
from dpsyn.privacy.budget import Settings, calibrated, multiplier
from dpsyn.privacy.query import Answer, Block
from dpsyn.schedule import Facts, PublicSide
from dpsyn.schedule.discover import Characters, Discover
from dpsyn.tables.schema import Schema

DELTA, FALSE = 1e-5, 0.1
SYLLABLES = [first + vowel + last for first in "bdfglmnrst" for vowel in "aeiou" for last in ("", "n", "r", "ck")]
SHAPES = {
    "codes of 5": (5, ["upper", "digits"]),
    "codes of 7": (7, ["upper", "digits"]),
    "names to 24": (24, "text"),
}


def made(shape, n, rng):
    """n different values, the same for the same generator."""
    longest, _ = SHAPES[shape]
    found = dict[str, None]()
    while len(found) < n:
        if "codes" in shape:
            value = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"), longest))
        else:
            words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))).capitalize() for _ in range(rng.integers(1, 4))]
            value = " ".join(words)[:longest].strip()
        found[value] = None
    return list(found)


def measured(shape, epsilon, stride, rounds, each):
    """(records for one chance in two, false values a round, cells of all releases in millions)."""
    longest, characters = SHAPES[shape]
    said = {"kind": "category", "values": "open", "longest": longest, "characters": characters}
    schema = Schema({"columns": {"value": said, "age": {"kind": "boolean"}}})
    rng, settings = np.random.default_rng(0), Settings(epsilon=epsilon, delta=DELTA)
    sizes = np.unique((np.geomspace(2, 30, 20) * multiplier(settings)).astype(int))
    values = made(shape, each * len(sizes), rng)
    counts = np.repeat(sizes, each)
    schedule = Discover(stride, FALSE, 1000)
    public = PublicSide(None, None, schema.labels, Facts(np.ones(1), int(counts.sum()), schema, settings), seed=0)
    noise = [charge.sigma for charge in calibrated(settings, schedule.releases(public.facts)).charges]
    content = np.empty(counts.sum(), schema.dtype)
    content["value"] = np.repeat(np.array(values, object), counts)
    codes, exact = Characters(schema)(Samples(content)), {}
    hits, false, cells = np.zeros(len(sizes)), 0, 0

    def ask(t, query):
        nonlocal cells
        if query.about not in exact:
            exact[query.about] = query.tally([Block(0, codes, np.full(len(codes), -1))])
        cells += query.size
        return Answer(exact[query.about] + rng.normal(0, noise[t - 1], query.size), noise[t - 1])

    for _ in range(rounds):
        exact.clear()
        columns = yaml.load(schedule.files(public, ask)["schema.yaml"], yaml.CSafeLoader)["columns"]
        found = set(columns["value"]["values"]) - {"other"}
        hits += np.array([value in found for value in values]).reshape(len(sizes), each).mean(1)
        false += len(found - set(values))
    needed = np.interp(0.5, np.maximum.accumulate(hits / rounds), sizes)
    return needed, false / rounds, cells / rounds / 1e6, len(values)


def ideal(epsilon):
    """Noise for one histogram at half of delta, and a threshold that a single record passes with the other half."""
    noise = multiplier(Settings(epsilon=epsilon, delta=DELTA / 2))
    return 1 + noise * -float(ndtri(DELTA / 2))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--values", type=int, default=12)
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    chosen = parser.parse_args(arguments)
    for epsilon in chosen.epsilons:
        for shape in chosen.shapes:
            for stride in chosen.strides:
                needed, false, cells, n = measured(shape, epsilon, stride, chosen.rounds, chosen.values)
                listed = multiplier(Settings(epsilon=epsilon, delta=DELTA)) * -float(ndtri(FALSE / n))
                print(
                    f"epsilon {epsilon:g}, {shape}, stride {stride}: found from {needed:.0f} records on, {false:.2f} false "
                    f"values, {cells:.2f} million cells; thresholding {ideal(epsilon):.0f}, of {n} declared {listed:.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
