"""The private records of a run, read and embedded: all that may vote, or those that were held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpsyn.embedding import Coder
from dpsyn.files import cache_folder, named_by, private_folder, write
from dpsyn.job import Job
from dpsyn.networks.runtime import OnRay, torch_device
from dpsyn.privacy.electorate import Electorate, open_electorate, row_reports, survey_of
from dpsyn.privacy.survey import check_survey
from dpsyn.runs.directory import RunDirectory
from dpsyn.show import Screen
from dpsyn.sides import private_side


def voters(job: Job, run: RunDirectory, screen: Screen) -> Electorate:
    """Those that vote in a run, read and embedded, once per data set and settings. Raises UserError.

    job: the parts of the run.
    run: its directory; what was met in the rows is written under `private/`.
    screen: what is shown meanwhile, without a number of records.
    """
    private_cache(job)  # out here, where what is wrong with it may be said
    with private_side(run, screen, "reading and embedding the private records", "electorate"):
        own = job.schedule.coder(job.facts, job.embed)  # its settings stand nowhere else
        identity = {"embedded by": job.coder.fingerprint(), "coder": own and named_by(own)}
        electorate = opened(job, job.coder, identity, is_held=False)
    check_voters(job, run, electorate)
    return electorate


def opened(job: Job, coder: Coder, identity: Mapping[str, Any], is_held: bool) -> Electorate:
    """One side of the private records, read where the runtime reads them.

    job: the parts of the run.
    coder: makes of records what is counted.
    identity: of the coder, for the cache.
    is_held: the units that were held out, instead of those that vote.
    """
    named = {**job.cache_identity, **identity}
    given, side = (job.data, coder, named, job.privacy.unit, private_cache(job)), job.side(is_held)
    if isinstance(job.runtime, OnRay):
        from dpsyn.cluster import private, session

        shards = session.shards_of(job.runtime)
        return open_electorate(*given, shards, private.reading(job.data, shards), private.counting, side=side)
    electorate = open_electorate(*given, job.runtime.shards, side=side)
    # a GPU's memory is one
    return electorate if torch_device(job.runtime) == "cpu" else replace(electorate, shards=1)


def private_cache(job: Job) -> Path:
    """The folder of embedded private records, for its owner alone. Raises UserError where it is open to others."""
    own = job.runtime.private_folder if isinstance(job.runtime, OnRay) else None
    return cache_folder() if own is None else private_folder(Path(own).expanduser().absolute())


def check_voters(job: Job, run: RunDirectory, electorate: Electorate) -> None:
    """Writes under `private/` what was met in the rows. Raises UserError where too much was refused or adjusted.

    job: the parts of the run.
    run: its directory.
    electorate: the records, read.
    """
    for name, content in row_reports(electorate).items():
        write(run.private / name, content, private=True)
    check_survey(survey_of(electorate), job.data, job.privacy.unit, str(run.private))
