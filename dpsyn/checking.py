"""`dpsyn check`: what a run would make of the private rows. It spends and writes nothing. What it prints is private."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rich.console import Console

from dpsyn.data import Refusal
from dpsyn.errors import UserError
from dpsyn.job import Job, check
from dpsyn.privacy.survey import Survey, Surveyor, check_survey
from dpsyn.runs.storage import label_name

BATCH = 256
EXAMPLES = 10  # rows of a rule that are named
PRIVATE = "PRIVATE: exact facts about the private rows. Do not publish them, and do not paste them into a report."
GUIDE = (
    "Correct what is misread: paths, delimiters, encodings, formats, columns, spellings, broken rows. Do not choose "
    "bounds, categories, labels, sizes, epsilon or any other published setting by these numbers: such a choice would "
    "tell of the rows, and is not covered by the guarantee."
)


def show_check(job: Job) -> bool:
    """Reads all rows and prints what was met. Returns whether a run would begin. Raises UserError as a run would."""
    check(job)
    console = Console(soft_wrap=True)
    console.print(PRIVATE, style="bold", markup=False, highlight=False)
    survey, examples = _read(job, console)
    for line in _lines(job, survey, examples):
        console.print(line, markup=False, highlight=False)
    try:
        check_survey(survey, job.data, job.privacy.unit)
        verdict, begins = "a run would begin", True
    except UserError as error:
        verdict, begins = f"a run would be refused: {error}", False
    console.print(verdict, style="bold", markup=False, highlight=False)
    console.print(GUIDE, markup=False, highlight=False)
    return begins


def _read(job: Job, console: Console) -> tuple[Survey, dict[str, list[Refusal]]]:
    met = Surveyor(len(job.data.labels))
    examples: dict[str, list[Refusal]] = defaultdict(list)
    with console.status("reading the private rows"):
        for records in job.data.batches(BATCH):
            met.add(records)
            for refusal in records.refused:
                known = examples[f"column '{refusal.column}': {refusal.rule}"]
                if len(known) < EXAMPLES:
                    known.append(refusal)
    return met.survey, examples


def _place(refusal: Refusal) -> str:
    """Where a row stands: 'a.csv:17', the line as editors count them; 'row 17' where no file is known."""
    if not refusal.file:
        return f"row {refusal.line or refusal.row + 1}"
    return f"{refusal.file}:{refusal.line}" if refusal.line else refusal.file


def _lines(job: Job, survey: Survey, examples: dict[str, list[Refusal]]) -> Iterator[str]:
    yield f"rows read: {survey.rows:,}, of which {survey.voting:,} can vote"
    for rule, count in sorted(survey.refused.items()):
        places = ", ".join(map(_place, examples[rule]))
        yield f"refused, {rule}: {count:,} ({places}{', ...' if count > EXAMPLES else ''})"
    for column, rules in sorted(survey.adjusted.items()):
        for rule, count in sorted(rules.items()):
            yield f"adjusted, column '{column}': {rule}: {count:,} ({count / max(1, survey.voting):.1%} of its cells)"
    for what, count in sorted(survey.remarks.items()):
        yield f"{what}: {count:,}"
    unmet = [label_name(label) for label, count in zip(job.data.labels, survey.labels, strict=True) if not count]
    yield f"labels met: {len(job.data.labels) - len(unmet):,} of {len(job.data.labels):,} declared"
    if unmet:
        yield f"labels that no row has: {', '.join(unmet[:EXAMPLES])}{', ...' if len(unmet) > EXAMPLES else ''}"
    if survey.users is not None:
        yield f"users met: {survey.users:,}; rows that name none, and cast no vote for one: {survey.without_user:,}"
    if job.data.records is not None:
        yield f"data.records={job.data.records:,} is declared, {survey.rows:,} rows are there"
