"""The synthetic data: the final population, or more rows made from it. All of it is post-processing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpsyn.errors import UserError, did_you_mean, invalid, one_of
from dpsyn.files import private_folder, sha256, write
from dpsyn.job import Job
from dpsyn.population import I64, Label, Population, some_of
from dpsyn.privacy.ledger import answer_of, read_receipt
from dpsyn.privacy.query import Answer, Query
from dpsyn.randomness import generator
from dpsyn.report import write_report
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import seal
from dpsyn.runs.storage import CHOSEN, from_parquet, label_name, labels_are_chosen, to_parquet
from dpsyn.schedule import Ask, PublicSide
from dpsyn.schedule.start import split
from dpsyn.show import Screen
from dpsyn.sides import public_side

WORTH_KEEPING = 1.0  # seconds: faster parts are made again after an interruption


def expand_run(job: Job, screen: Screen, rows: int, labels: Sequence[str] = (), shares: str | None = None) -> Path:
    """`dpsyn expand`: more rows for a finished run; neither its data nor `private/` is needed.

    job: the parts of the run, as `compose.rebuilt` gives them.
    screen: where its progress is shown.
    rows: of the synthetic data, all of them.
    labels: COLUMN=VALUE each: rows of these alone; none: of all.
    shares: of the labels, 'uniform' or numbers with commas between, in the order in which they are declared; None: as
        they were learned.

    Raises UserError for a label that is none.
    """
    run = RunDirectory(job.root, job.privacy.is_private)
    with run.locked():
        done = run.iterations()
        if not done or done[-1] != job.iterations:
            raise UserError(f"{job.root}: the run is not finished. Finish it with the command that began it.")
        final = run.load(done[-1])
        chosen = labels or shares is not None
        sizes = chosen_sizes(job.labels, final, rows, labels, shares) if chosen else None
        if rows < 1:
            raise invalid("--rows", rows, "a whole number, 1 or more")
        if job.schedule.uses_api:
            if job.degree is not None:
                job.api.check_degree(job.degree)
            elif job.schedule.varies():
                raise invalid("expand.degree", "null", "how far a variation goes", "Add expand.degree=.")
            job.api.check()
        receipts = {int(path.stem): read_receipt(path) for path in run.votes.glob("*.parquet") if path.stem.isdecimal()}

        def ask(t: int, query: Query) -> Answer:
            if t not in receipts or receipts[t].population != query.about:
                raise UserError(f"{run.votes}: release {t} is missing, or is not the one of this run.")
            return answer_of(receipts[t], query)

        with screen.shown(), public_side(job, run, screen, [(0, rows)]) as public:
            write_synthetic(job, run, grown(job, run, public, ask, final, rows, sizes), sizes)
        write_report(run)
        seal(run.release, ["synthetic.parquet", CHOSEN], private=not run.is_private)
        run.stamp()
    return run.release


def chosen_sizes(
    labels: Sequence[Label], final: Population, rows: int, wanted: Sequence[str], shares: str | None
) -> I64:
    """Rows of each label, int64 [l]. Raises UserError.

    labels: as declared, [l].
    final: the last population.
    rows: what they sum to.
    wanted: COLUMN=VALUE each, as of `expand_run`.
    shares: as of `expand_run`.
    """
    if rows < 1:
        raise UserError(f"--rows {rows}: expected a whole number, 1 or more.")
    values: dict[str, list[str]] = {}
    for text in wanted:
        column, sign, value = text.partition("=")
        known = list(dict.fromkeys(str(label[column]) for label in labels if column in label))
        if not known or not sign:
            columns = list(dict.fromkeys(name for label in labels for name in label))
            expected = f"COLUMN=VALUE with {one_of(columns)}" if columns else "none: these data have no labels"
            raise UserError(f"--labels {text}: expected {expected}. {did_you_mean(column, columns)}".strip())
        if value not in known:
            raise UserError(f"--labels {text}: expected {one_of(known)}. {did_you_mean(value, known)}".strip())
        values.setdefault(column, []).append(value)
    mine = [all(str(label[column]) in own for column, own in values.items()) for label in labels]
    taken = np.flatnonzero(mine)
    if shares is None:
        weights = np.bincount(final.labels, minlength=len(labels))[taken].astype(np.float64)
        if not weights.sum():
            raise UserError(f"--labels {' '.join(wanted)}: expected labels of which the final population has rows.")
    elif shares == "uniform":
        weights = np.ones(len(taken))
    else:
        weights = _numbers(shares)
        if len(weights) != len(taken):
            names = ", ".join(label_name(labels[i]) for i in taken[:5].tolist())
            raise UserError(f"--shares {shares}: expected uniform, or {len(taken)} numbers, one a label ({names}).")
    sizes = np.zeros(len(labels), np.int64)
    weights /= weights.max()  # of numbers whose sum is no number any more
    sizes[taken] = split(rows, weights / weights.sum())
    return sizes


def _numbers(shares: str) -> np.ndarray:
    try:
        weights = np.array([float(text) for text in shares.split(",")])
    except ValueError:
        weights = np.zeros(0)
    if not len(weights) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.max():
        raise UserError(f"--shares {shares}: expected uniform, or numbers, 0 or more, with commas between.")
    return weights


def write_synthetic(job: Job, run: RunDirectory, synthetic: Population, sizes: I64 | None = None) -> None:
    """Into the release.

    job: the parts of the run.
    run: its directory.
    synthetic: as `grown` makes it.
    sizes: rows of each label that were chosen, which is then said beside them; None: as they were learned.
    """
    content = to_parquet(synthetic, job.labels, lineage=False)
    if sizes is not None:  # first: it tells of which file it is true
        named = {label_name(label): size for label, size in zip(job.labels, sizes.tolist(), strict=True) if size}
        said = {"rows_of_labels": named, "sha256": hashlib.sha256(content).hexdigest()}
        write(run.release / CHOSEN, json.dumps(said, indent=1).encode())
    write(run.release / "synthetic.parquet", content)
    if sizes is None:
        (run.release / CHOSEN).unlink(missing_ok=True)


def grown(
    job: Job,
    run: RunDirectory,
    public: PublicSide,
    ask: Ask,
    final: Population,
    rows: int | None,
    sizes: I64 | None = None,
) -> Population:
    """The synthetic data: the final population, more rows made from it, or some of it. Nothing is written to the
    release.

    job: the parts of the run.
    run: its directory.
    public: the public side, which is asked for variations.
    ask: answers what was released before.
    final: the last population.
    rows: of the synthetic data; None: those of the final population.
    sizes: rows of each label that were chosen; None: as they were learned.
    """
    final_hash = sha256(run.checkpoint(final.iteration))[:16]

    def keep(name: str, make: Callable[[], Population]) -> Population:
        key = hashlib.sha256(f"{final_hash} {job.degree} {job.identity['api']} {name}".encode()).hexdigest()[:16]
        path = private_folder(run.private / "expand") / f"{key}.parquet"
        if path.exists():
            return from_parquet(path.read_bytes(), path)
        start = time.perf_counter()
        part = make()
        if time.perf_counter() - start >= WORTH_KEEPING:
            write(path, to_parquet(part, job.labels), private=True)
        return part

    if rows is None:
        return final
    if sizes is None and rows < len(final):
        return fewer(final, rows, job.seed)
    return job.schedule.expand(public, ask, final, rows, job.degree, keep, sizes)


def fewer(population: Population, rows: int, seed: int) -> Population:
    """Some of the rows, drawn at random, as many of each label as its share says, in the order in which they stand.

    population: of n rows.
    rows: how many, 1 to n.
    seed: of the run.
    """
    order = generator(seed, population.iteration, "expand").permutation(len(population))
    order = order[np.argsort(population.labels[order], kind="stable")]
    return some_of(population, np.sort(order[((np.arange(rows) + 0.5) * len(order) / rows).astype(np.int64)]))


def longer(job: Job, run: RunDirectory, final: Population, was_finished: bool) -> Population | None:
    """What `dpsyn expand` made of a finished run, where it has more rows than this run would end with, or labels in
    shares that were chosen: it stays.

    job: the parts of the run.
    run: its directory.
    final: the last population.
    was_finished: whether the run was, before it was started this time.
    """
    path = run.release / "synthetic.parquet"
    if not was_finished or not path.exists():
        return None
    there = from_parquet(path.read_bytes(), path)
    if labels_are_chosen(run.release):
        return there
    return there if len(there) > max(job.expand_rows or 0, len(final)) else None
