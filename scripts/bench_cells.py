#!/usr/bin/env python
"""Votes in cells, stage by stage: CPU seconds with one thread and with more, and beside them the sweep and the counts as
plain loops over rows and marginals. All ways must give the same rows and counts.

    .venv/bin/python scripts/bench_cells.py [--rows 32561] [--columns 14] [--made 32561] [--threads 2] [--rounds 3]
    .venv/bin/python scripts/bench_cells.py --folder data/adult        # its train.csv, by the schema adult
    .venv/bin/python scripts/bench_cells.py --beside CHECKOUT ...      # CPU seconds and peak memory of both, in turns

CHECKOUT: of dpsyn, at another commit; each runs in processes of its own, on one thread.
Wall time depends on what else the machine does: compare it between the columns, not between runs.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.compose import config_folder
from dpsyn.data.tables import Tables
from dpsyn.population import Population, Samples
from dpsyn.privacy.marginals import Marginal, cell_of, counts_of
from dpsyn.privacy.query import Answer
from dpsyn.randomness import row_seeds
from dpsyn.runs.storage import to_parquet
from dpsyn.schedule import gibbs
from dpsyn.schedule.subspaces import plan
from dpsyn.schedule.sweeps import sweep
from dpsyn.tables.codec import coded_columns, decode, encode
from dpsyn.tables.schema import Schema, read

MULTIPLIER = 4.0  # about that of epsilon 1
SWEPT = 8192
Rows = tuple[np.ndarray, np.ndarray]


def made_schema(columns: int) -> Schema:
    """A third numbers, a third categories, a third booleans; and a label."""
    kinds = [
        {"kind": "integer", "bounds": [0, 100]},
        {"kind": "category", "values": list("abcdef")},
        {"kind": "boolean"},
    ]
    declared = {f"c{j}": kinds[j % 3] for j in range(columns)}
    return Schema({"columns": declared | {"label": {"kind": "boolean"}}, "labels": ["label"]})


def made_rows(schema: Schema, rows: int) -> Rows:
    """Codes int32 [rows, columns] that depend on each other, and labels int64 [rows]."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, 5)).astype(np.float32)
    facts = coded_columns(schema)
    codes = np.empty((rows, len(facts)), np.int32)
    for j, column in enumerate(facts):
        own = hidden @ rng.normal(0, 0.4, 5).astype(np.float32) + 0.5 * rng.normal(size=rows).astype(np.float32)
        codes[:, j] = np.clip((own + 2.5) * column.codes / 5, 0, column.codes - 1)
    return codes, (hidden[:, 0] > 0).astype(np.int64)


def read_rows(schema: Schema, folder: Path) -> Rows:
    data = Tables(
        path=str(folder / "train.csv"),
        schema=schema,
        builder=None,
        subset=None,
        split="train",
        revision=None,
        delimiter=None,
        encoding="utf-8",
        header=True,
        decimal=".",
        thousands=None,
        id=None,
        records=None,
        on_error="refuse",
        unit_column=None,
        max_refused=0.01,
        max_adjusted=0.05,
    )
    parts = [(encode(schema, records.samples.content), records.labels) for records in data.batches(256)]
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([labels for _, labels in parts])


def one_by_one(marginals: Sequence[Marginal], rows: Rows) -> np.ndarray:
    """The baseline of counts: a pass over the rows for every marginal."""
    together = np.concatenate([rows[0], rows[1][:, None]], 1, dtype=np.int32).T.copy().T
    return np.concatenate([np.bincount(cell_of(m, together), minlength=m.size) for m in marginals])


def row_by_row(state: gibbs.State, rows: np.ndarray, rng: np.random.Generator) -> None:
    """The baseline of a sweep: the same arithmetic along each row's atoms."""
    for j, steps in enumerate(state.bins):
        mass = np.bincount(steps[-1], state.one_way[j])
        base = np.log(mass / mass.sum() + 1e-5).astype(np.float32)
        if len(base) == 1:
            continue
        terms = []
        for m in state.measurements:
            if j not in m.marginal.columns:
                continue
            axis = m.marginal.columns.index(j)
            force = np.moveaxis(m.force.take(m.marginal.cells[axis], axis), axis, -1).reshape(-1, len(base))
            others = [at for at in range(m.noisy.ndim) if at != axis]
            if not others:
                base = base + force[0].astype(np.float32)
                continue
            grid = Marginal(*(tuple(part[at] for at in others) for part in (m.marginal.columns, m.marginal.cells)))
            terms.append((grid, force.astype(np.float32)))
        for at in range(0, len(rows), SWEPT):
            block = rows[at : at + SWEPT]
            weights = np.broadcast_to(base, (len(block), len(base))).copy()
            for grid, force in terms:
                weights += force[cell_of(grid, block)]
            weights -= weights.max(1, keepdims=True)
            np.exp(weights, out=weights)
            np.cumsum(weights, 1, out=weights)
            points = rng.random(len(block), dtype=np.float32) * weights[:, -1]
            block[:, j] = np.minimum((weights <= points[:, None]).sum(1), len(base) - 1)


class Clock:
    """CPU and wall seconds by stage, added up."""

    def __init__(self) -> None:
        self.spent = dict[str, np.ndarray]()

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        before = np.array([time.process_time(), time.perf_counter()])
        result = work()
        taken = np.array([time.process_time(), time.perf_counter()]) - before
        self.spent[stage] = self.spent.get(stage, np.zeros(2)) + taken
        return result


def run(schema: Schema, rows: Rows, made: int) -> tuple[Clock, gibbs.State, np.ndarray, Sequence[Marginal]]:
    """A whole run, as `schedule=cells` does it. Returns its clock, its state, its codes, and the marginals asked."""
    clock, facts, labels, asked = Clock(), coded_columns(schema), len(schema.labels), list[Marginal]()
    blocks = [(rows[0][rows[1] == label], rows[1][rows[1] == label]) for label in range(labels)]
    rng, state = np.random.default_rng(0), gibbs.start(facts, labels, len(rows[0]))
    for release in plan(facts, labels, len(rows[0]), MULTIPLIER):
        query = clock("next query", partial(gibbs.next_query, state, release))
        counts = query.answer(clock("count", partial(counts_of, query.marginals, blocks)))
        deviation = MULTIPLIER * (release.moves / release.share) ** 0.5
        answer = Answer(counts + np.rint(np.random.default_rng(1).normal(0, deviation, len(counts))), deviation)
        state = clock("learn", partial(gibbs.update, state, release, query, answer, rng))
        asked += query.marginals
    codes, of = clock("sample", partial(gibbs.sample, state, made, rng))
    content = clock("decode", partial(decode, schema, codes, of, row_seeds(0, 0, "vary", made)))
    population = Population(0, Samples(content), of, np.full(made, -1), np.ones(made, bool))
    clock("write", partial(to_parquet, population, schema.labels))
    return clock, state, codes, asked


def once(schema: Schema, rows: Rows, made: int) -> dict[str, Any]:
    """A whole run: CPU seconds by stage, its peak memory, and a digest of its codes."""
    clock, _, codes, _ = run(schema, rows, made)
    cpu = {stage: float(spent[0]) for stage, spent in clock.spent.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    digest = hashlib.sha256(codes.astype(np.int32).tobytes()).hexdigest()
    return {"cpu": cpu | {"all": sum(cpu.values())}, "MiB": peak, "digest": digest}


def beside(checkout: Path, rounds: int, given: Sequence[str]) -> None:
    """One process after the other, this code and the checkout's in turns."""
    places = (checkout.resolve(), Path(__file__).resolve().parent.parent)
    found: list[list[dict[str, Any]]] = [[], []]
    for _ in range(rounds):
        for place, runs in zip(places, found, strict=True):
            environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--one", *given]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout))
    print(f"{'stage':12} {'CPU s, there':>14} {'here':>8} {'here of there':>14}")
    for stage in found[0][0]["cpu"]:
        there, here = (np.array([each["cpu"][stage] for each in runs]) for runs in found)
        print(f"{stage:12} {np.median(there):14.2f} {np.median(here):8.2f} {np.median(here / there):14.2f}")
    print("peak MiB " + ", here ".join(f"{max(each['MiB'] for each in runs):.0f}" for runs in found))
    print(f"the same codes: {len({each['digest'] for runs in found for each in runs}) == 1}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=32_561)
    parser.add_argument("--columns", type=int, default=14)
    parser.add_argument("--made", type=int, help="synthetic rows; as many as there are rows, unless said")
    parser.add_argument("--folder", type=Path, help="of Adult's train.csv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.beside:
        folder = ["--folder", str(chosen.folder)] if chosen.folder else []
        made = ["--made", str(chosen.made)] if chosen.made else []
        given = [*folder, *made, "--rows", str(chosen.rows), "--columns", str(chosen.columns)]
        beside(chosen.beside, chosen.rounds, given)
        return

    schema = Schema(read("adult", config_folder() / "schemas")) if chosen.folder else made_schema(chosen.columns)
    start = time.process_time()
    rows = read_rows(schema, chosen.folder) if chosen.folder else made_rows(schema, chosen.rows)
    what = "read and encoded" if chosen.folder else "made"
    if chosen.one:
        print(json.dumps(once(schema, rows, chosen.made or len(rows[0]))))
        return
    print(f"{len(rows[0]):,} rows of {len(schema.features)} columns, {what} in {time.process_time() - start:.2f} CPU s")

    run(made_schema(2), made_rows(made_schema(2), 100), 100)  # which imports what is imported late
    found = {}
    for threads in (1, chosen.threads):
        os.environ["OMP_NUM_THREADS"] = str(threads)
        found[threads] = run(schema, rows, chosen.made or len(rows[0]))
    (one, state, codes, asked), (more, _, others, _) = found[1], found[chosen.threads]
    print(f"{'stage':12} {'CPU s, 1 thread':>16} {f'{chosen.threads} threads':>10} {'wall, 1 / more':>15}")
    for stage in [*one.spent, "all"]:
        (cpu, wall), (cpu_more, wall_more) = (
            np.sum(list(clock.spent.values()), 0) if stage == "all" else clock.spent[stage] for clock in (one, more)
        )
        print(f"{stage:12} {cpu:16.2f} {cpu_more:10.2f} {wall / wall_more:15.2f}")
    print(f"the same rows for any number of threads: {np.array_equal(codes, others)}")

    os.environ["OMP_NUM_THREADS"] = "1"
    ways: dict[str, tuple[Callable[[np.ndarray], object], Callable[[np.ndarray], object]]] = {
        "sweep": (
            lambda held: row_by_row(state, held, np.random.default_rng(5)),
            lambda held: sweep(gibbs.redraws(state, state.measurements, len(held)), held, np.random.default_rng(5)),
        ),
        "counts": (lambda _: one_by_one(asked, rows), lambda _: counts_of(asked, [rows])),
    }
    for name, both in ways.items():
        taken, results = np.zeros((chosen.rounds, 2)), dict[int, np.ndarray]()
        for number in range(chosen.rounds):
            for way, work in enumerate(both):
                held = state.rows.copy(order="F")
                before = time.process_time()
                answer = work(held)
                taken[number, way] = time.process_time() - before
                results[way] = held if answer is None else np.asarray(answer)
        plain, ours = np.median(taken, 0)
        ratio = statistics.median(taken[:, 0] / np.maximum(taken[:, 1], 1e-9))
        same = np.array_equal(results[0], results[1])
        print(f"{name}: plain {plain:.3f} CPU s, here {ours:.3f}, {ratio:.1f} times as fast; the same: {same}")
        print(f"| tables: {name} | the same row by row, marginal by marginal | {ratio:.1f} times as fast |")


if __name__ == "__main__":
    main()
