"""A run from its parts to its files: iterates the schedule, saves, measures, shows, and can be cut off anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import evaluation
from dpsyn.api import Pinged
from dpsyn.embedding import Coder
from dpsyn.errors import UserError, invalid
from dpsyn.expanding import grown, longer, write_synthetic
from dpsyn.files import cache_folder, named_by, private_folder, sha256, write
from dpsyn.job import Job, check, check_public
from dpsyn.networks.runtime import OnRay, check_device, torch_device, torch_dtype
from dpsyn.population import Population
from dpsyn.privacy import account
from dpsyn.privacy.budget import Budget, Charge
from dpsyn.privacy.electorate import Electorate, open_electorate, row_reports, survey_of
from dpsyn.privacy.ledger import Ledger, answer_of
from dpsyn.privacy.nearest import search_on
from dpsyn.privacy.query import CELLS, HISTOGRAM, LABELS, QUERIES, SUMS, Answer, CellCounts, Histogram, Nearest, Query
from dpsyn.privacy.statement import statement
from dpsyn.privacy.survey import check_survey
from dpsyn.report import marginals, write_report
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.picture import preview
from dpsyn.runs.seal import seal
from dpsyn.runs.storage import label_name, to_parquet
from dpsyn.schedule import Ask, PublicSide
from dpsyn.schedule.vital_signs import vital_signs
from dpsyn.show import Screen
from dpsyn.sides import private_side, public_side
from dpsyn.threads import on_free_threads

PICTURED = 20  # samples of a label that are read for the picture
OUTGROWN = "the numbers are gone, and they were about rows that are gone too: the data were expanded since"


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
            check_nodes(job.data, job.coder, _private_cache(job))
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
        job = _with_evaluation(job, run)
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
        state = _State(job, run, screen, ledger, budget, lost, entry)
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
            _evaluate(state, synthetic, own)
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


@dataclass(frozen=True)
class _State:
    """What a start of a run works with: its directory, its ledger, and its line on the account.

    declared: not empty once this start has entered its charges. counts: of cells, with the queries, by release.
    """

    job: Job
    run: RunDirectory
    screen: Screen
    ledger: Ledger
    budget: Budget
    lost: Sequence[Charge]
    entry: account.Entry
    declared: list[str] = field(default_factory=list)
    counts: dict[int, tuple[CellCounts, Answer]] = field(default_factory=dict)

    def declare(self) -> None:
        """Enters all charges on the account, and writes what `release/` says of them."""
        import yaml

        account.enter(self.entry)
        self.declared.append(self.entry.run)
        job, run, receipts = self.job, self.run, sorted(self.run.votes.glob("*.parquet"))
        runs = account.sharing(self.entry)
        text = statement(job.privacy, self.budget, self.lost, receipts, job.public, job.data.id, runs, job.data.records)
        write(run.release / "privacy.json", text)
        write(run.release / "config.yaml", yaml.safe_dump(dict(job.public), sort_keys=False).encode())

    def _write_marginals(self, t: int, query: CellCounts, answer: Answer) -> None:
        """All noisy counts of cells up to now, for others to read. A run that goes on asks them all again, so only a
        new one is a reason to write."""
        self.counts[t] = (query, answer)
        schema = self.job.facts.schema
        if schema is not None and not self.run.checkpoint(t).exists():
            names = [label_name(label) for label in self.job.labels]
            write(self.run.release / marginals.NAME, marginals.marginals(schema, names, self.counts))

    def ask(self, electorate: Electorate | None) -> Ask:
        """electorate: None where only what is written down may be used."""
        job, run, name = self.job, self.run, [charge.name for charge in self.budget.charges]
        search = search_on(job.runtime.device, bool(electorate and electorate.entries))

        def ask(t: int, query: Query) -> Answer:
            if type(query) not in QUERIES:
                raise RuntimeError(
                    f"release {t}: {type(query).__name__} is no query of dpsyn.privacy; nothing was read"
                )
            if isinstance(query, Nearest):
                query = replace(query, search=search, population=sha256(run.checkpoint(t - 1)))
            if not self.declared:
                self.declare()  # once all is there that the first release needs
            with private_side(run, self.screen, f"release {t}: private records vote", "vote"):
                receipt = self.ledger.release(t, query, electorate)
            answer = answer_of(receipt, query)
            if type(query) is CellCounts:
                self._write_marginals(t, query, answer)
            if not isinstance(query, Nearest):
                size = f"{len(answer.values):,} noisy numbers"
                self.screen.line(f"{name[t - 1]}: {size}, deviation {answer.deviation:.4g} records")
            return answer

        return ask


def _iterate(state: _State, public: PublicSide) -> Population:
    """The loop: all iterations that are left. Returns the final population."""
    job, run, screen = state.job, state.run, state.screen
    last, ancestors = _done_before(state)
    electorate = None
    if job.releases and (last is None or last.iteration < job.iterations):
        electorate = _electorate(job, run, screen)
    for population in job.schedule.run(public, state.ask(electorate), last):
        t = population.iteration
        with run.timed("save"):
            run.save(population, job.labels)
        if t == 0:
            state.declare()
        ancestors = _show_votes(state, t, last, population, ancestors)
        if job.every and 0 < t < job.iterations and t % job.every == 0:
            _measure(job, run, population, screen)
        run.stamp()
        last = population
    assert last is not None
    return last


def _done_before(state: _State) -> tuple[Population | None, np.ndarray | None]:
    """The last population that is there, and the founder that each of its rows descends from."""
    last: Population | None = None
    ancestors: np.ndarray | None = None
    for t in state.run.iterations():
        population = state.run.load(t)
        ancestors = _show_votes(state, t, last, population, ancestors)
        last = population
    return last, ancestors


def _show_votes(
    state: _State, t: int, before: Population | None, after: Population, ancestors: np.ndarray | None
) -> np.ndarray | None:
    """Vital signs of an iteration whose release was of votes for the population before it. Returns the ancestors."""
    if (after.parents < 0).all():  # founders
        return np.arange(len(after))
    if before is None or ancestors is None:
        return None
    if t > len(state.budget.charges) or state.ledger.subject(t).startswith((LABELS, CELLS, SUMS, HISTOGRAM)):
        return None
    receipt = state.ledger.written(t, sha256(state.run.checkpoint(t - 1)))
    ancestors = ancestors[after.parents]
    signs = vital_signs(receipt.votes, receipt.charge.sigma * receipt.charge.grid, before.labels, ancestors)
    state.run.add_metrics({"iteration": t, **signs}, private=False)
    state.screen.released(t, signs)
    if silent := signs["labels_without_votes"]:
        state.screen.line(f"iteration {t}: {silent:.0f} label(s) without votes, chosen at random")
    return ancestors


def _with_evaluation(job: Job, run: RunDirectory) -> Job:
    """The job with the evaluation that was settled for this run before. Raises UserError for another one."""
    settled = run.evaluation_epsilon()
    if settled is None or job.evaluate == settled:
        return job
    if job.evaluate is not None:
        raise invalid("evaluate.epsilon", job.evaluate, f"{settled:g}", "This run is, or is being, measured with that.")
    return replace(job, evaluate=settled)


def _evaluate(state: _State, synthetic: Population, own: Callable[[], Population]) -> None:
    """Measures the finished data on units that were held out, through the ledger, once.

    own: makes the rows that the run ended with, before an expansion.
    """
    job, run, planned = state.job, state.run, state.job.evaluation
    numbers = range(len(job.releases) + 1, len(job.releases) + len(planned) + 1)
    begun = [t for t in numbers if (run.votes / f"{t:03d}.parquet").exists()]
    made = len(begun) == len(planned)
    if not planned:
        return
    path, digest = run.release / evaluation.NAME, sha256(run.release / "synthetic.parquet")
    if made and path.exists():
        said = evaluation.as_mapping(json.loads(path.read_text(encoding="utf-8")))
        if said is not None and (line := evaluation.outgrown(said, digest)):
            state.screen.line(line)
        return
    state.screen.line("measuring the data on held-out units" if job.hold_out else "measuring the data")
    embed = job.embed_samples
    labels = [label_name(label) for label in job.labels]

    def prepared(rows: Population, digest: str) -> tuple[evaluation.Judge, dict[int, Histogram], bool]:
        """The judge, its questions by their numbers, and whether they are those that were asked already."""
        judge = evaluation.judge(rows, job.labels, embed, job.facts.schema, digest)
        names = [release.name for release in planned]
        asked = dict(zip(numbers, evaluation.queries(evaluation.asked(judge), len(labels), names), strict=True))
        return judge, asked, all(state.ledger.subject(t) == asked[t].about for t in begun)

    judge, asked, are_same = prepared(synthetic, digest)
    if not are_same:
        synthetic = own()
        digest = hashlib.sha256(to_parquet(synthetic, job.labels, lineage=False)).hexdigest()
        judge, asked, are_same = prepared(synthetic, digest)
    if not are_same:
        state.screen.line(OUTGROWN)
        return
    for line in evaluation.remarks(judge):
        state.screen.line(line)
    assert job.evaluate is not None
    run.settle_evaluation(job.evaluate)  # from here on it may be spent
    electorate = None
    if not made:
        with private_side(run, state.screen, "judging the private records", "electorate"):
            electorate = _opened(job, judge, {"judge": judge.fingerprint()}, is_held=True)
        if not (job.hold_out and job.releases):  # else the voters were looked at
            _check_survey(job, run, electorate)
    ask = state.ask(electorate)
    answers = {release.name: ask(t, query) for release, (t, query) in zip(planned, asked.items(), strict=True)}
    by, by_record = evaluation.asked(judge), job.privacy.unit == "record"
    judged = {"rows": len(synthetic), "sha256": digest}
    said = {**evaluation.told(by, labels, answers, by_record, job.hold_out > 0), "judged": judged}
    write(path, (json.dumps(said, indent=1) + "\n").encode(), private=not run.is_private)
    for each in said["numbers"]:
        if each["value"] is not None:
            low, high = each["noise_low"], each["noise_high"]
            state.screen.line(f"{each['name']}: {each['value']:.3f} ({low:.3f} to {high:.3f} by noise alone)")


def _check_survey(job: Job, run: RunDirectory, electorate: Electorate) -> None:
    for name, content in row_reports(electorate).items():
        write(run.private / name, content, private=True)
    check_survey(survey_of(electorate), job.data, job.privacy.unit, str(run.private))


def _present(run: RunDirectory) -> None:
    """The page and the card, from all else that is released; then the checksums of everything."""
    with run.timed("report"):
        write_report(run)
        seal(run.release, private=not run.is_private)
        run.stamp()


def _electorate(job: Job, run: RunDirectory, screen: Screen) -> Electorate:
    _private_cache(job)  # out here, where what is wrong with it may be said
    with private_side(run, screen, "reading and embedding the private records", "electorate"):
        own = job.schedule.coder(job.facts, job.embed)  # its settings stand nowhere else
        identity = {"embedded by": job.coder.fingerprint(), "coder": own and named_by(own)}
        electorate = _opened(job, job.coder, identity, is_held=False)
    _check_survey(job, run, electorate)
    return electorate


def _opened(job: Job, coder: Coder, identity: Mapping[str, Any], is_held: bool) -> Electorate:
    """One side of the private records, read where the runtime reads them. identity: of the coder, for the cache."""
    named = {**job.cache_identity, **identity}
    given, side = (job.data, coder, named, job.privacy.unit, _private_cache(job)), job.side(is_held)
    if isinstance(job.runtime, OnRay):
        from dpsyn.cluster import private, session

        shards = session.shards_of(job.runtime)
        return open_electorate(*given, shards, private.reading(job.data, shards), private.counting, side=side)
    electorate = open_electorate(*given, job.runtime.shards, side=side)
    # a GPU's memory is one
    return electorate if torch_device(job.runtime) == "cpu" else replace(electorate, shards=1)


def _private_cache(job: Job) -> Path:
    own = job.runtime.private_folder if isinstance(job.runtime, OnRay) else None
    return cache_folder() if own is None else private_folder(Path(own).expanduser().absolute())


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
