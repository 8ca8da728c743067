"""The two sides of a run while it works: what each shows of itself, logs, and lets out when it fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dpsyn.errors import UserError
from dpsyn.job import Job
from dpsyn.runs.cost import Spending
from dpsyn.runs.directory import RunDirectory
from dpsyn.schedule import PublicSide
from dpsyn.show import Screen
from dpsyn.workers import asked_in_batches


@contextmanager
def public_side(
    job: Job, run: RunDirectory, screen: Screen, to_come: Sequence[tuple[int, int]]
) -> Iterator[PublicSide]:
    """The public side while the run works: api and embedding, asked in batches, and watched.

    job: the parts of the run.
    run: its directory.
    screen: where its progress is shown.
    to_come: (generated, varied) rows of each iteration that is left.
    """
    rows = [*to_come, job.expansion_api_rows]
    spending = Spending(job.api, job.asked_labels, run, sum(g for g, _ in rows), sum(v for _, v in rows))
    screen.asked = lambda: str(spending)

    @contextmanager
    def progress(text: str, rows: int | None) -> Iterator[Callable[[int], None]]:
        with screen.phase(text, rows) as advance, run.timed(text):

            def done(more: int) -> None:
                advance(more)
                spending.done(text, more)

            yield done

    try:
        with asked_in_batches(job.api, job.embed, job.runtime, progress) as asked:
            yield PublicSide(asked, asked.embed, job.labels, job.facts, job.seed, job.api.labelled)
    finally:
        spending.save()


@contextmanager
def private_side(run: RunDirectory, screen: Screen, text: str, log: str) -> Iterator[None]:
    """Shows that private data are at work and no more; what a library says of them when it fails stays private too.

    run: its directory.
    screen: where it is shown.
    text: what is done, without a number.
    log: name of the phase in the private log.
    """
    with screen.private_phase(text), run.timed(log):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            run.log(traceback.format_exc())
            name = type(error).__name__
            raise UserError(f"{text}: failed ({name}). What was said of it may be private: see private/log.") from None
