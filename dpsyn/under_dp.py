"""Evaluation under DP: a finished run, measured through its own ledger, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

from dpsyn import evaluation
from dpsyn.errors import invalid
from dpsyn.files import sha256, write
from dpsyn.job import Job
from dpsyn.population import Population
from dpsyn.privacy.query import Histogram
from dpsyn.report.facts import read_evaluation
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.storage import label_name, to_parquet
from dpsyn.sides import private_side
from dpsyn.started import Started
from dpsyn.voters import check_voters, opened

OUTGROWN = "the numbers are gone, and they were about rows that are gone too: the data were expanded since"


def settled(job: Job, run: RunDirectory) -> Job:
    """The job with the evaluation that was settled for this run before. Raises UserError for another one.

    job: as it was composed now.
    run: its directory.
    """
    epsilon = run.evaluation_epsilon()
    if epsilon is None or job.evaluate == epsilon:
        return job
    if job.evaluate is not None:
        raise invalid("evaluate.epsilon", job.evaluate, f"{epsilon:g}", "This run is, or is being, measured with that.")
    return replace(job, evaluate=epsilon)


def evaluate(state: Started, synthetic: Population, own: Callable[[], Population]) -> None:
    """Measures the finished data on units that were held out, through the ledger, once.

    state: of the start that finished the data.
    synthetic: the rows that are measured.
    own: makes the rows that the run ended with, before an expansion.
    """
    job, run, planned = state.job, state.run, state.job.evaluation
    numbers = range(len(job.releases) + 1, len(job.releases) + len(planned) + 1)
    begun = [t for t in numbers if (run.votes / f"{t:03d}.parquet").exists()]
    made = len(begun) == len(planned)
    if not planned:
        return
    path, digest = run.release / evaluation.NAME, sha256(run.release / "synthetic.parquet")
    if made and (there := read_evaluation(path)) is not None:  # one that is damaged is made again from the receipts
        if line := evaluation.outgrown(there, digest):
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
            electorate = opened(job, judge, {"judge": judge.fingerprint()}, is_held=True)
        if not (job.hold_out and job.releases):  # else the voters were looked at
            check_voters(job, run, electorate)
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
