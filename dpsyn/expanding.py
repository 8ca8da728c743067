"""The synthetic data: the final population, or more rows made from it. All of it is post-processing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from dpsyn.errors import UserError, invalid
from dpsyn.files import private_folder, sha256, write
from dpsyn.job import Job
from dpsyn.population import Population
from dpsyn.privacy.ledger import answer_of, read_receipt
from dpsyn.privacy.query import Answer, Query
from dpsyn.report import write_report
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import seal
from dpsyn.runs.storage import from_parquet, to_parquet
from dpsyn.schedule import Ask, PublicSide
from dpsyn.show import Screen
from dpsyn.sides import public_side

WORTH_KEEPING = 1.0  # seconds: faster parts are made again after an interruption


def expand_run(job: Job, screen: Screen, rows: int) -> Path:
    """`dpsyn expand`: more rows for a finished run; neither its data nor `private/` is needed.

    job: the parts of the run, as `compose.rebuilt` gives them.
    screen: where its progress is shown.
    rows: of the synthetic data, all of them.
    """
    run = RunDirectory(job.root, job.privacy.is_private)
    with run.locked():
        done = run.iterations()
        if not done or done[-1] != job.iterations:
            raise UserError(f"{job.root}: the run is not finished. Finish it with the command that began it.")
        final = run.load(done[-1])
        if rows < len(final):
            raise invalid("rows", rows, f"at least {len(final)}, the rows of the final population")
        if job.schedule.uses_api:
            if job.degree is not None:
                job.api.check_degree(job.degree)
            elif job.schedule.varies():
                raise invalid("expand.degree", "null", "how far a variation goes", "Add expand.degree=.")
            job.api.check()
        receipts = {int(path.stem): read_receipt(path) for path in run.votes.glob("*.parquet")}

        def ask(t: int, query: Query) -> Answer:
            if t not in receipts or receipts[t].population != query.about:
                raise UserError(f"{run.votes}: release {t} is missing, or is not the one of this run.")
            return answer_of(receipts[t], query)

        with screen.shown(), public_side(job, run, screen, [(0, rows)]) as public:
            write_synthetic(job, run, public, ask, final, rows)
        write_report(run)
        seal(run.release, ["synthetic.parquet"], private=not run.is_private)
        run.stamp()
    return run.release


def write_synthetic(
    job: Job, run: RunDirectory, public: PublicSide, ask: Ask, final: Population, rows: int | None
) -> Population:
    """Writes and returns the synthetic data: the final population, or more rows made from it.

    job: the parts of the run.
    run: its directory.
    public: the public side, which is asked for variations.
    ask: answers what was released before.
    final: the last population.
    rows: of the synthetic data; None: those of the final population.
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

    synthetic = final if rows is None else job.schedule.expand(public, ask, final, rows, job.degree, keep)
    write(run.release / "synthetic.parquet", to_parquet(synthetic, job.labels, lineage=False))
    return synthetic


def longer(job: Job, run: RunDirectory, final: Population, was_finished: bool) -> Population | None:
    """What `dpsyn expand` made of a finished run, where it has more rows than this run would end with: it stays.

    job: the parts of the run.
    run: its directory.
    final: the last population.
    was_finished: whether the run was, before it was started this time.
    """
    path = run.release / "synthetic.parquet"
    if not was_finished or not path.exists():
        return None
    there = from_parquet(path.read_bytes(), path)
    return there if len(there) > (job.expand_rows or len(final)) else None
