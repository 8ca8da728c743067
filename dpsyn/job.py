"""All parts of a run, and what can be found out about them before it begins."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import evaluation
from dpsyn.api import Api, Degree
from dpsyn.data import Data, TableData, modality_of
from dpsyn.embedding import Coder, Embedding
from dpsyn.errors import Missing, UserError, invalid
from dpsyn.metric import Metric, check_judges
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Label
from dpsyn.privacy.budget import Bearers, Budget, Release, Settings, calibrated, is_evaluation, with_evaluation
from dpsyn.privacy.holdout import Side
from dpsyn.schedule import Facts, Schedule


@dataclass(frozen=True)
class Job:
    """All parts of a run.

    root: the run directory.
    shares: of the labels, float64 [l], sums to 1.
    metrics: name to part; every: also after every n-th iteration.
    expand_rows: None for no expansion; expand_degree: None for what the schedule says.
    identity: the settings that identify the run; public: those of them that are published; cache_identity: those of
        data and embedding.
    free: keys of settings that may change when a run resumes.
    hold_out: the share of the units that casts no vote. evaluate: epsilon of numbers about them; None: not measured.
    measured_by: the settings of the metrics and of the data that they read.
    """

    name: str
    root: Path
    seed: int
    data: Data
    api: Api
    embed: Embedding
    privacy: Settings
    schedule: Schedule
    shares: np.ndarray
    metrics: Mapping[str, Metric]
    every: int
    expand_rows: int | None
    expand_degree: Degree | None
    runtime: Runtime
    identity: Mapping[str, Any]
    cache_identity: Mapping[str, Any]
    public: Mapping[str, Any]
    free: frozenset[str] = frozenset()
    hold_out: float = 0.0
    evaluate: float | None = None
    measured_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Sequence[Label]:
        return self.data.labels

    @cached_property
    def facts(self) -> Facts:
        schema = self.data.schema if isinstance(self.data, TableData) else None
        records = self.data.records
        voters = None if records is None else max(1, round(records * (1 - self.hold_out)))
        has_rows = any(modality_of(data) == "rows with texts" for data in self.api.reads())
        return Facts(self.shares, voters, schema, self.privacy, has_rows)

    @cached_property
    def releases(self) -> Sequence[Release]:
        """All that the data are made of, by number."""
        found = self.schedule.releases(self.facts)
        return [replace(release, of="voters") for release in found] if self.hold_out else found

    @property
    def rows(self) -> int:
        """Of the synthetic data, at most."""
        return self.expand_rows or self.schedule.final_size(self.facts)

    @property
    def expanded(self) -> int:
        """Rows that an expansion makes; 0 where the schedule ends with as many as are wanted, or more."""
        return self.rows if self.rows > self.schedule.final_size(self.facts) else 0

    @cached_property
    def evaluation(self) -> Sequence[Release]:
        """Those that measure the finished data; their numbers come after."""
        if self.evaluate is None:
            return ()
        of: Bearers = "held_out" if self.hold_out else "all"
        return evaluation.releases(len(self.labels), self.facts.schema, self.schedule.uses_api, of)

    def side(self, is_held: bool) -> Side | None:
        """Of the hold-out split; None where nobody is held out."""
        return Side(self.hold_out, is_held) if self.hold_out else None

    @cached_property
    def api_rows(self) -> Sequence[tuple[int, int]]:
        """(generated, varied) rows that each iteration asks the api for, at most; the expansion is not among them."""
        return self.schedule.api_rows(self.facts)

    @property
    def expansion_api_rows(self) -> tuple[int, int]:
        """Those that the expansion asks for."""
        return 0, self.expanded * self.facts.asked_a_row

    @property
    def iterations(self) -> int:
        """The number of the last one."""
        return len(self.api_rows) - 1

    @property
    def coder(self) -> Coder:
        """What turns private records into what votes are about."""
        return self.schedule.coder(self.facts, self.embed) or self.embed

    @property
    def embed_samples(self) -> Embedding | None:
        """The embedding of what the run makes: of rows with texts not that of the texts alone. None: it has none."""
        if not self.schedule.uses_api:
            return None
        return self.coder if isinstance(self.coder, Embedding) else self.embed

    @property
    def asked_labels(self) -> Sequence[Label]:
        """What the api is asked for, or examples of it."""
        return self.schedule.asked_labels(self.facts, self.labels)

    @property
    def degree(self) -> Degree | None:
        """Of the expansion."""
        return self.schedule.degree(self.expand_degree)

    def budget(self, sigma: float | None = None) -> Budget:
        """sigma: as calibrated when the run began; None: calibrate."""
        budget = calibrated(self.privacy, self.releases, sigma)
        if self.evaluate is None:
            return budget
        return with_evaluation(budget, self.privacy, self.evaluation, self.evaluate)

    @property
    def data_name(self) -> str:
        """What the account shows for this data set. Private where it is a place."""
        return self.data.id or str(self.data.place)

    def data_known_by(self, read: bool = True) -> tuple[str, ...]:
        """What tells this data set from others: its id, its place, and digests of its files. Private.

        read: with the digests, for which local files are read once, and the hub is asked for a commit.
        """
        path = self.data.place
        found = [] if self.data.id is None else [self.data.id]
        if path is not None:
            place = os.path.expanduser(path)
            local = os.path.exists(place) or glob.has_magic(place)
            found += [f"place {os.path.realpath(place)}"] if local else [f"hub {path}"]
        if read:
            found += [f"content {digest}" for digest in self.data.digests()]
        return tuple(found)


def check(job: Job) -> None:
    """What can be found out without reading a private row, loading a model or writing a file. Raises UserError."""
    for lack in lacks(job):
        raise lack


def lacks(job: Job) -> Iterator[Missing]:
    """What the run needs and is not here: data, weights, packages, names; of each part the first that is found out.

    Raises UserError for all else that `check` refuses.
    """
    job.schedule.check(job.facts, job.api)
    if job.privacy.unit == "user" and job.data.unit_column is None:
        raise invalid("privacy.unit", "user", "a column of user ids", "Name it with data.unit_column=.")
    _check_evaluation(job)
    _check_metrics(job)
    above = next(path for path in (job.root.absolute(), *job.root.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise invalid("run_dir", job.root, "a directory that can be created", f"{above} is not writable.")
    if job.degree is not None:
        job.api.check_degree(job.degree)
    yield from (no_data := list(_missing(job.data.check)))
    for key, source in public_sources(job):
        if source.place is None:
            continue
        if _same_place(source.place, job.data.place):
            raise invalid(key, source.place, "public data, not those of data.path")
        place = Path(source.place).expanduser()
        if any((above / "privacy.json").exists() for above in (place, *place.parents[:3])):
            raise invalid(
                key, place, "public data, not what dpsyn released", "Its privacy loss would not be counted here."
            )
    yield from (no_api := list(_missing(job.api.check)))
    # what reads the same data lacks them for the same reason
    same = no_api and {data.place for data in job.api.reads()} & {data.place for data in job.embed.reads()}
    implied = {str(lack) for lack in _missing(job.embed.check)} if same else set()
    yield from (lack for lack in _missing(job.embed.check) if str(lack) not in implied)
    for metric in job.metrics.values():
        if not (no_data and any(data.place == job.data.place for data in metric.reads())):
            yield from (lack for lack in _missing(metric.check) if str(lack) not in implied)
    yield from _missing(partial(job.api.check_labels, job.asked_labels))


def _check_metrics(job: Job) -> None:
    """Raises UserError for a metric that judges other data than those of the run."""
    if job.metrics and job.schedule.finds_values:
        what = "none with a schedule that finds values"
        raise invalid("metric.parts", ", ".join(job.metrics), what, "Its rows are no data.")
    if (modality := modality_of(job.data)) is not None:
        for name, metric in job.metrics.items():
            check_judges(f"metric.parts.{name}", metric, modality)


def _check_evaluation(job: Job) -> None:
    """Raises UserError where too few units are held out for what is asked of them."""
    if job.evaluate is None:
        return
    if job.schedule.finds_values:
        raise invalid(
            "evaluate.epsilon", job.evaluate, "null with a schedule that finds values", "Its rows are no data."
        )
    if not job.evaluation:
        raise invalid("evaluate.epsilon", job.evaluate, "null, as these data have no label, column or embedding")
    least = evaluation.needed([charge for charge in job.budget().charges if is_evaluation(charge)])
    if job.data.records is not None and job.privacy.unit == "record":
        held = round(job.data.records * (job.hold_out or 1))
        if held < least:
            share = min(1.0, math.ceil(1000 * least / job.data.records) / 1000)
            do = f"At this epsilon {least:,} records are needed, for the noise to leave anything to see."
            if share < 1:
                do += f" data.hold_out={share:g} holds as many out."
            raise invalid("data.hold_out", f"{job.hold_out:g}", f"more than about {held:,} held-out records", do)


def needed(job: Job) -> list[str]:
    """A line for each of `lacks`, and for keys. Raises UserError as `check` does."""
    return list(dict.fromkeys(str(lack) for lack in (*lacks(job), *_missing(job.api.check_keys))))


def _missing(look: Callable[[], object]) -> Iterator[Missing]:
    try:
        look()
    except Missing as error:
        yield error


def check_public(job: Job) -> None:
    """Raises UserError where what must be public holds files of the private data."""
    declared = [
        (f"metric.parts.{name}.public", data)
        for name, metric in job.metrics.items()
        if not metric.private
        for data in metric.reads()
    ]
    for key, source in [*public_sources(job), *declared]:
        if source.digests() & job.data.digests():
            raise UserError(f"{key}: files of the private data (data.path) are among these, which must be public.")


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
