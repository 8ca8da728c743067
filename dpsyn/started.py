"""A run that was started: its ledger, and what is declared before the first record is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dpsyn.files import sha256, write
from dpsyn.job import Job
from dpsyn.privacy import account
from dpsyn.privacy.budget import Budget, Charge
from dpsyn.privacy.electorate import Electorate
from dpsyn.privacy.ledger import Ledger, answer_of
from dpsyn.privacy.nearest import search_on
from dpsyn.privacy.query import QUERIES, Answer, CellCounts, Nearest, Query
from dpsyn.privacy.statement import statement
from dpsyn.report import marginals
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.storage import label_name
from dpsyn.schedule import Ask
from dpsyn.show import Screen
from dpsyn.sides import private_side


@dataclass(frozen=True)
class Started:
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

    def recalled(self, t: int, query: Query) -> Answer:
        """What a release said, without a word on the screen. Raises UserError where it was not made.

        t: its number.
        query: that was asked.
        """
        return answer_of(self.ledger.written(t, query.about), query)

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
