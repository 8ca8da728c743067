"""All parts of a run, and what can be found out about them before it begins."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.cell_run import CellPlan
from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import bad
from dpsyn.evolution import split
from dpsyn.metric import Metric
from dpsyn.population import Label
from dpsyn.privacy.budget import Budget, Settings, calibrated, plan
from dpsyn.runtime import Runtime
from dpsyn.schedule import Step, final_size


@dataclass(frozen=True)
class Job:
    """All parts of a run.

    root: the run directory. start: rows of iteration 0. schedule: the steps after it, () for no votes. cells: votes in
    subspaces, in the place of start and schedule.
    shares: of the labels, float64 [l], sums to 1; noisy_shares: they come from a release of noisy counts instead.
    identity: the settings that identify the run. public: those of them that are published. cache_identity: those of
    data and embedding. operational: keys of settings that a run goes on with others of. metrics: name to part; every:
    also after every n-th iteration.
    expand_rows: None for no expansion; expand_degree: None for that of the last step.
    """

    name: str
    root: Path
    seed: int
    data: Data
    api: Api
    embed: Embedding
    privacy: Settings
    start: int
    schedule: tuple[Step, ...]
    shares: np.ndarray
    metrics: Mapping[str, Metric]
    every: int
    expand_rows: int | None
    expand_degree: Degree | None
    runtime: Runtime
    identity: Mapping[str, Any]
    cache_identity: Mapping[str, Any]
    public: Mapping[str, Any]
    operational: frozenset[str] = frozenset()
    noisy_shares: bool = False
    cells: CellPlan | None = None

    @property
    def labels(self) -> Sequence[Label]:
        return self.data.labels

    def budget(self, sigma: float | None = None) -> Budget:
        """sigma: as calibrated when the run began; None: calibrate."""
        if self.cells:
            return calibrated(self.privacy, self.cells.parts, sigma)
        return plan(self.privacy, len(self.schedule), sigma, self.noisy_shares)

    @property
    def releases(self) -> int:
        """Iterations after the first population, each with one release."""
        return len(self.cells.releases) if self.cells else len(self.schedule)

    @property
    def final_size(self) -> int:
        """Rows of the final population, at most."""
        if self.cells:
            return self.cells.size
        return final_size(self.schedule) if self.schedule else self.start

    @property
    def last_degree(self) -> Degree | None:
        """Of the expansion: its own, or else that of the last step."""
        last = self.schedule[-1].degree if self.schedule else None
        return last if self.expand_degree is None else self.expand_degree

    @property
    def data_name(self) -> str:
        """What the account shows for this data set. Private where it is a place."""
        return self.data.id or str(self.identity["data"].get("path"))

    def data_known_by(self, read: bool = True) -> tuple[str, ...]:
        """What tells this data set from others: its id, its place, and digests of its files. Private.

        read: with the digests, for which local files are read once, and the hub is asked for a commit.
        """
        path = self.identity["data"].get("path")
        found = [] if self.data.id is None else [self.data.id]
        if isinstance(path, str):
            place = os.path.expanduser(path)
            local = os.path.exists(place) or glob.has_magic(place)
            found += [f"place {os.path.realpath(place)}"] if local else [f"hub {path}"]
        if read:
            found += [f"content {digest}" for digest in self.data.digests()]
        return tuple(found)


def check(job: Job) -> None:
    """What can be found out without reading a private row, loading a model or writing a file. Raises UserError."""
    for size in [] if job.cells else [step.size for step in job.schedule] or [job.start]:
        if not split(size, job.shares)[job.shares > 0].all():
            raise bad("schedule.size", size, f"enough for every one of the {len(job.labels)} labels")
    if job.privacy.unit == "user" and job.data.unit_column is None:
        raise bad("privacy.unit", "user", "a column of user ids", "Name it with data.unit_column=.")
    if job.expand_rows is not None and job.expand_rows < job.final_size:
        do = "Those are the final survivors."
        raise bad("expand.rows", job.expand_rows, f"null, or at least {job.final_size}", do)
    if job.expand_rows is not None and job.cells:
        raise bad("expand.rows", job.expand_rows, "null with schedule=cells", "Its rows are schedule.size.")
    above = next(path for path in (job.root.absolute(), *job.root.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise bad("run_dir", job.root, "a folder that can be made", f"{above} is none to write in.")
    for degree in [*(step.degree for step in job.schedule), job.last_degree]:
        if degree is not None:
            job.api.check_degree(degree)
    job.data.check()
    for key, source in public_sources(job):
        if source.place is None:
            continue
        if _same_place(source.place, job.data.place):
            raise bad(key, source.place, "public data, not those of data.path")
        place = Path(source.place).expanduser()
        if any((above / "privacy.json").exists() for above in (place, *place.parents[:3])):
            raise bad(key, place, "public data, not what dpsyn released", "Its privacy loss would not be counted here.")
    job.api.check()
    job.embed.check()
    for metric in job.metrics.values():
        metric.check()
    job.api.check_labels(job.labels)


def rows_asked(job: Job) -> list[tuple[int, int]]:
    """(generated, varied) rows that each iteration asks the api for, at most: iteration 0, the steps, the expansion."""
    rows = job.start
    asked = [(rows, 0)]
    for step in job.schedule:
        asked.append((0, step.size * step.folds + rows * step.lookahead))
        rows = step.size * (step.folds + step.keep)
    more = job.expand_rows or 0
    return [*asked, (more, 0) if job.last_degree is None else (0, more)]


def public_sources(job: Job) -> list[tuple[str, Data]]:
    """The data that api and embedding read, and what names them: pools, and what features were learned from."""
    own, learned = list(job.api.reads()), list(job.embed.reads())
    for data in learned:
        if data in own:  # a pool reads what its embedding learned from, too
            own.remove(data)
    return [*(("api.path", data) for data in own), *(("embedding.data", data) for data in learned)]


def _same_place(one: str, two: str | None) -> bool:
    if two is None:
        return False
    return one == two or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(two))
