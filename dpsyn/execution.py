"""A run from its parts to its files: iterates the schedule, saves, measures, shows, and can be cut off anywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dpsyn import evaluation
from dpsyn.api import Pinged
from dpsyn.errors import UserError
from dpsyn.expanding import grown, longer, write_synthetic
from dpsyn.files import sha256, write
from dpsyn.job import Job, check, check_public
from dpsyn.networks.runtime import OnRay, check_device, torch_dtype
from dpsyn.population import Population
from dpsyn.privacy import account
from dpsyn.privacy.ledger import Ledger
from dpsyn.privacy.query import CELLS, HISTOGRAM, LABELS, PREFIXES, SUMS
from dpsyn.report import write_report
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.picture import preview
from dpsyn.runs.seal import seal
from dpsyn.schedule import PublicSide
from dpsyn.schedule.vital_signs import vital_signs
from dpsyn.show import Screen
from dpsyn.sides import private_side, public_side
from dpsyn.started import Started
from dpsyn.threads import on_free_threads
from dpsyn.under_dp import OUTGROWN, evaluate, settled
from dpsyn.voters import private_cache, voters

PICTURED = 20  # samples of a label that are read for the picture


def carry_out(job: Job, screen: Screen) -> Path:
    """Runs, or resumes, the job. Returns the folder with the results. Raises UserError.

    job: the parts of the run.
    screen: where its progress is shown.
    """
    check(job)
    for device in [job.runtime.device, *(job.runtime.devices or [])]:
        check_device(device)
    if job.runtime.dtype == "float16":
        torch_dtype(job.runtime)
    if not isinstance(job.runtime, OnRay):
        return _carry_out(job, screen)
    from dpsyn.cluster.private import check_nodes
    from dpsyn.cluster.public import check_makers
    from dpsyn.cluster.session import connected

    with connected(job.runtime) as lines:
        if job.releases or job.evaluation:
            check_nodes(job.data, job.coder, private_cache(job))
        check_makers(job.api, job.embed, job.runtime)
        for line in lines:
            screen.line(line)
        return _carry_out(job, screen)


def evaluate_run(job: Job, screen: Screen, epsilon: float) -> Path:
    """`dpsyn evaluate RUN --epsilon E`: measures a finished run on its held-out units, or, where it has none, on the
    records that voted. Returns the file with the numbers. Raises UserError for a run that is not finished.

    job: the parts of the run.
    screen: what is shown meanwhile.
    epsilon: what the evaluation spends.
    """
    run = RunDirectory(job.root, job.privacy.is_private)
    if not (run.release / "synthetic.parquet").exists():
        raise UserError(f"{job.root}: the run is not finished. Finish it with the command that began it.")
    carry_out(replace(job, evaluate=epsilon, metrics={}), screen)
    if not (path := run.release / evaluation.NAME).exists():
        raise UserError(f"{path}: {OUTGROWN}.")
    return path


def _carry_out(job: Job, screen: Screen) -> Path:
    run = RunDirectory(job.root, job.privacy.is_private)
    known, fingerprint = run.identity() if run.has_begun() else None, job.data.fingerprint()
    check_public(job)
    if known:
        run.check_same(known, job.identity, fingerprint, job.free)
    if isinstance(job.api, Pinged) and max(run.iterations(), default=-1) < job.iterations:
        job.api.ping("generate")
    job.budget(known["sigma"] if known else None)  # what cannot be calibrated leaves no directory
    with run.locked():
        job = settled(job, run)
        if (known := run.identity() if run.has_begun() else None) is not None:
            # of two that start at once, the second comes here
            run.check_same(known, job.identity, fingerprint, job.free)
        budget = job.budget(known["sigma"] if known else None)
        identity = known["run"] if known else run.begin(job.identity, fingerprint, budget.sigma, job.measured_by)
        account.check_directory(identity, run.root)
        ledger = Ledger(run.private, run.votes, identity, job.privacy, budget, job.seed)
        lost = ledger.recover()
        settings = (run.private / "config.yaml").read_bytes()
        entry = account.entry(
            job.data_name, job.data_known_by(), identity, job.root, job.privacy, budget, lost, settings
        )
        account.check_limit(entry)
        state = Started(job, run, screen, ledger, budget, lost, entry)
        if known:
            state.declare()
        done = run.iterations()
        with screen.shown(), public_side(job, run, screen, job.api_rows[max(done, default=-1) + 1 :]) as public:
            was_finished = max(done, default=-1) == job.iterations
            final = _iterate(state, public)
            own = partial(grown, job, run, public, state.ask(None), final, job.expand_rows)
            synthetic = longer(job, run, final, was_finished)
            if synthetic is None:
                synthetic = own()
                write_synthetic(job, run, synthetic)
            for name, content in job.schedule.files(public, state.recalled).items():
                write(run.release / name, content)
            evaluate(state, synthetic, own)
            preview(run.release, [run.load(t, per_label=PICTURED) for t in run.iterations()], job.labels)
            state.declare()
            _present(run)
            run.log("data are there")
            for line in run.contents():
                screen.line(line)
            try:
                _measure(job, run, synthetic, screen)
            except KeyboardInterrupt:
                there = run.release / "synthetic.parquet"
                raise KeyboardInterrupt(f"The data are there ({there}); metrics are missing.") from None
            if not all(metric.private for metric in job.metrics.values()):
                _present(run)
        run.log("done")
    return run.release


def _iterate(state: Started, public: PublicSide) -> Population:
    """The loop: all iterations that are left. Returns the final population."""
    job, run, screen = state.job, state.run, state.screen
    last, ancestors = _done_before(state)
    electorate = None
    if job.releases and (last is None or last.iteration < job.iterations):
        electorate = voters(job, run, screen)
    for population in job.schedule.run(public, state.ask(electorate), last):
        t = population.iteration
        with run.timed("save"):
            run.save(population, job.labels)
        screen.reached(t)
        if t == 0:
            state.declare()
        ancestors = _show_votes(state, t, last, population, ancestors)
        if job.every and 0 < t < job.iterations and t % job.every == 0:
            _measure(job, run, population, screen)
        run.stamp()
        last = population
    assert last is not None
    return last


def _done_before(state: Started) -> tuple[Population | None, np.ndarray | None]:
    """The last population that is there, and the founder that each of its rows descends from."""
    last: Population | None = None
    ancestors: np.ndarray | None = None
    for t in state.run.iterations():
        if last is not None and t != last.iteration + 1:
            gone = state.run.checkpoint(t - 1)
            raise UserError(f"{gone}: this checkpoint is missing. Restore it, or name another run_dir.")
        population = state.run.load(t)
        ancestors = _show_votes(state, t, last, population, ancestors)
        last = population
        state.screen.reached(t)
    return last, ancestors


def _show_votes(
    state: Started, t: int, before: Population | None, after: Population, ancestors: np.ndarray | None
) -> np.ndarray | None:
    """Vital signs of an iteration whose release was of votes for the population before it. Returns the ancestors."""
    if (after.parents < 0).all():  # founders
        return np.arange(len(after))
    if before is None or ancestors is None:
        return None
    if t > len(state.budget.charges) or state.ledger.subject(t).startswith((LABELS, CELLS, SUMS, HISTOGRAM, PREFIXES)):
        return None
    receipt = state.ledger.written(t, sha256(state.run.checkpoint(t - 1)))
    ancestors = ancestors[after.parents]
    signs = vital_signs(receipt.votes, receipt.charge.sigma * receipt.charge.grid, before.labels, ancestors)
    state.run.add_metrics({"iteration": t, **signs}, private=False)
    state.screen.released(t, signs)
    if silent := signs["labels_without_votes"]:
        state.screen.line(f"iteration {t}: {silent:.0f} label(s) without votes, chosen at random")
    return ancestors


def _present(run: RunDirectory) -> None:
    """The page and the card, from all else that is released; then the checksums of everything."""
    with run.timed("report"):
        write_report(run)
        seal(run.release, private=not run.is_private)
        run.stamp()


def _measure(job: Job, run: RunDirectory, population: Population, screen: Screen) -> None:
    final = population.iteration == job.iterations
    for at, (name, metric) in enumerate(job.metrics.items(), 1):
        with (
            private_side(run, screen, f"metric {at} of {len(job.metrics)}: {name}", f"metric {name}"),
            on_free_threads(),
        ):
            numbers = metric(population)
        run.add_metrics({"iteration": population.iteration, "final": final, "metric": name, **numbers}, metric.private)
        if numbers and not metric.private:
            words = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            screen.line(f"{name} ({'final data' if final else f'iteration {population.iteration}'}): {words}")
