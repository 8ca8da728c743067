"""A run from its parts to its files: iterates the loop, saves, measures, shows, and can be cut off anywhere."""

from __future__ import annotations

import hashlib
import io
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.cell_run import CellPlan, evolve_cells, records_in_a_vote, release_name
from dpsyn.cells import Question
from dpsyn.data import Data
from dpsyn.electorate import Electorate, open_electorate, told_of_rows
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, bad
from dpsyn.evolution import Makers, begin, evolve, split
from dpsyn.expansion import expand
from dpsyn.files import cache_folder, private_folder, sha256, write
from dpsyn.metric import Metric
from dpsyn.metric.vital_signs import vital_signs
from dpsyn.picture import sample_grid, sample_texts
from dpsyn.population import Label, Population
from dpsyn.privacy import account
from dpsyn.privacy.budget import Budget, Charge, Settings, calibrated, plan
from dpsyn.privacy.ledger import LABELS, Ledger, Receipt, read_receipt
from dpsyn.privacy.statement import statement
from dpsyn.run import RunDirectory
from dpsyn.runtime import Runtime, torch_dtype
from dpsyn.schedule import Step, final_size
from dpsyn.selection import shares_of
from dpsyn.show import Screen
from dpsyn.spending import Spending
from dpsyn.storage import from_parquet, to_parquet
from dpsyn.voting import Search, Votes, faiss_search, sparse_search, torch_search
from dpsyn.workers import asked_in_batches

PICTURED = 20  # samples of a label that are read for the picture
WORTH_KEEPING = 1.0  # seconds: a part of an expansion that is made faster is made again after an interruption


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
    def data_key(self) -> str:
        """Under which the account adds up what was spent on this data set. Private where it is a place."""
        return self.data.id or f"place {Path(str(self.identity['data'].get('path'))).absolute()}"


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
    if job.expand_rows is not None and job.last_degree is None:
        raise bad("expand.degree", "null", "how far a variation goes, with schedule=none")
    above = next(path for path in (job.root.absolute(), *job.root.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise bad("run_dir", job.root, "a folder that can be made", f"{above} is none to write in.")
    check_degree = getattr(job.api, "check_degree", lambda degree: None)
    for degree in [*(step.degree for step in job.schedule), job.last_degree]:
        if degree is not None:
            check_degree(degree)
    job.data.check()
    for key, source in _public_sources(job):
        if _same_place(getattr(source, "path", None), getattr(job.data, "path", None)):
            raise bad(key, getattr(source, "path", None), "public data, not those of data.path")
        place = Path(str(getattr(source, "path", None))).expanduser()
        if any((above / "privacy.json").exists() for above in (place, *place.parents[:3])):
            raise bad(key, place, "public data, not what dpsyn released", "Its privacy loss would not be counted here.")
    for part in (job.api, job.embed, *job.metrics.values()):
        getattr(part, "check", lambda: None)()
    if (lengths := getattr(getattr(job.api, "prompts", None), "lengths", None)) is not None:
        for what in ("generate", "vary"):
            lengths(job.labels, what)  # finds a placeholder or a label that a prompt file has nothing for


def rows_asked(job: Job) -> list[tuple[int, int]]:
    """(generated, varied) rows that each iteration asks the api for, at most: iteration 0, the steps, the expansion."""
    rows = job.start
    asked = [(rows, 0)]
    for step in job.schedule:
        asked.append((0, step.size * step.folds + rows * step.lookahead))
        rows = step.size * (step.folds + step.keep)
    return [*asked, (0, job.expand_rows or 0)]


def _public_sources(job: Job) -> list[tuple[str, Data]]:
    """The data that api and embedding read, and what names them: pools, and what features were learned from."""

    def found(part: Any) -> Iterator[Data]:
        for field in fields(part) if is_dataclass(part) else ():
            inner = getattr(part, field.name)
            if hasattr(inner, "batches"):
                yield inner
            elif is_dataclass(inner) and inner != job.embed:
                yield from found(inner)

    return [(key, s) for key, part in (("api.path", job.api), ("embedding.data", job.embed)) for s in found(part)]


def _contents(data: Data) -> set[str]:
    return getattr(data, "contents", lambda: {data.fingerprint()})()


def _same_place(one: object, two: object) -> bool:
    if not isinstance(one, str) or not isinstance(two, str):
        return False
    return one == two or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(two))


def carry_out(job: Job, screen: Screen) -> Path:
    """Runs, or goes on with, the job. Returns the folder with the results. Raises UserError."""
    check(job)
    for device in [job.runtime.device, *(job.runtime.devices or [])]:
        _check_device(device)
    if job.runtime.dtype == "float16":
        torch_dtype(job.runtime)
    run = RunDirectory(job.root, job.privacy.is_private)
    known, fingerprint = run.identity() if run.has_begun() else None, job.data.fingerprint()
    declared = [
        (f"metric.parts.{name}.public", getattr(metric, "data", None))
        for name, metric in job.metrics.items()
        if not metric.private
    ]
    for key, source in [*_public_sources(job), *((key, data) for key, data in declared if data is not None)]:
        if _contents(source) & _contents(job.data):
            raise UserError(f"{key}: files of the private data (data.path) are among these, which must be public.")
    if known:
        run.refuse_another(known, job.identity, fingerprint, job.operational)
    budget = job.budget(known["sigma"] if known else None)
    with run.locked():
        if (known := run.identity() if run.has_begun() else None) is not None:
            # of two that start at once, the second comes here
            run.refuse_another(known, job.identity, fingerprint, job.operational)
        identity = known["run"] if known else run.begin(job.identity, fingerprint, budget.sigma)
        ledger = Ledger(run.private, run.votes, identity, job.privacy, budget, job.seed)
        lost = ledger.recover()
        mine = account.entry(job.data_key, identity, job.root.absolute(), job.privacy, budget, lost)
        if known:
            account.enter(mine)
            _state(job, run, budget, lost, mine)
        to_come = rows_asked(job)[len(run.iterations()) :]
        with screen.shown(), _makers(job, run, screen, to_come) as makers:
            left = job.releases > max(run.iterations(), default=0)
            electorate = _electorate(job, run, screen) if left else None
            noisy_shares = job.noisy_shares and job.schedule
            if job.cells or noisy_shares:  # a release comes before anything else is there
                account.enter(mine)
                _state(job, run, budget, lost, mine)
            if job.cells:
                final = _evolve_cells(job, job.cells, run, ledger, electorate, screen)
            if noisy_shares:
                makers = replace(makers, shares=_label_shares(job, ledger, electorate, screen))
            fresh = None
            if not job.cells and not run.iterations():
                fresh = begin(makers, job.start)
                run.save(fresh, job.labels)
                account.enter(mine)  # once all is there that the first release needs
                _state(job, run, budget, lost, mine)
            if not job.cells:
                final = _evolve(job, makers, run, ledger, electorate, screen, fresh)
            synthetic = _expand(job, makers, run, final, job.expand_rows)
            _measure(job, run, synthetic, screen)
            _draw(job, run)
        _state(job, run, budget, lost, mine)
        run.stamp()
        run.log("done")
    return run.release


def expand_run(job: Job, screen: Screen, rows: int) -> Path:
    """`dpsyn expand`: more rows for a finished run; neither its data nor `private/` is needed."""
    run = RunDirectory(job.root, job.privacy.is_private)
    with run.locked():
        done = run.iterations()
        if not done or done[-1] != job.releases:
            raise UserError(f"{job.root}: the run is not finished. Finish it with the command that began it.")
        final = run.load(done[-1])
        if rows < len(final):
            raise bad("rows", rows, f"at least {len(final)}, the rows of the final population")
        if job.cells:
            more = _drawn_again(job, replace(job.cells, size=rows), run)
            write(run.release / "synthetic.parquet", to_parquet(more, job.labels, lineage=False))
            run.stamp()
            return run.release
        if job.last_degree is None:
            raise bad("expand.degree", "null", "how far a variation goes", "Add expand.degree=.")
        getattr(job.api, "check_degree", lambda degree: None)(job.last_degree)
        getattr(job.api, "check", lambda: None)()
        with screen.shown(), _makers(job, run, screen, [(0, rows)]) as makers:
            _expand(job, makers, run, final, rows)
        run.stamp()
    return run.release


def _evolve(
    job: Job,
    makers: Makers,
    run: RunDirectory,
    ledger: Ledger,
    electorate: Electorate | None,
    screen: Screen,
    fresh: Population | None,
) -> Population:
    """fresh: iteration 0, if it has just been made."""
    population = run.load(0) if fresh is None else fresh
    ancestors = np.arange(len(population))
    for t in run.iterations()[1:]:
        receipt = ledger.release(t, sha256(run.checkpoint(t - 1)), _nothing_left)
        labels, population = population.labels, run.load(t)
        ancestors = ancestors[population.parents]
        signs = _signs(receipt, labels, ancestors)
        run.add_metrics({"iteration": t, **signs}, private=False)  # a crash may have come before it
        screen.released(t, signs)
    if electorate is None:
        return population
    receipts: dict[int, Receipt] = {}

    def release(t: int, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
        def vote() -> Votes:
            return electorate.vote(
                vectors, labels, job.privacy.nearest, _search(job.runtime.device, electorate.entries > 0)
            )

        with _private_side(run, screen, f"iteration {t}: private records vote", "vote"):
            receipts[t] = ledger.release(t, sha256(run.checkpoint(t - 1)), vote)
        grid = receipts[t].charge.grid
        return receipts[t].votes if grid == 1 else receipts[t].votes / grid

    labels = population.labels
    for after in evolve(makers, release, job.schedule, population):
        t = after.iteration
        with run.timed("save"):
            run.save(after, job.labels)
        ancestors = ancestors[after.parents]
        signs = _signs(receipts[t], labels, ancestors)
        run.add_metrics({"iteration": t, **signs}, private=False)
        screen.released(t, signs)
        if signs["labels_without_votes"]:
            screen.line(f"iteration {t}: {signs['labels_without_votes']:.0f} label(s) without votes, chosen at random")
        if job.every and t % job.every == 0 and t < len(job.schedule):
            _measure(job, run, after, screen)
        labels, population = after.labels, after
        run.stamp()
    return population


def _evolve_cells(
    job: Job, plan: CellPlan, run: RunDirectory, ledger: Ledger, electorate: Electorate | None, screen: Screen
) -> Population:
    receipts: dict[int, Receipt] = {}

    def ask(t: int, about: str, question: Question) -> tuple[np.ndarray, float]:
        def vote() -> Votes:
            return electorate.vote_in_cells(question) if electorate else _nothing_left()

        with _private_side(run, screen, f"release {t}: private records vote", "vote"):
            receipts[t] = ledger.release(t, about, vote)
        return _counts(receipts[t], question)

    done = max(run.iterations(), default=0)
    final = None
    for t in range(1, done + 1):
        screen.line(f"{release_name(t, plan.releases[t - 1])}: done before")
    for final in evolve_cells(plan, ask, job.seed, done):
        t = final.iteration
        with run.timed("save"):
            run.save(final, job.labels)
        release, charge = plan.releases[t - 1], receipts[t].charge
        deviation = charge.sigma * records_in_a_vote(charge, release.moves)
        screen.line(
            f"{release_name(t, release)}: {len(receipts[t].votes):,} noisy counts, deviation {deviation:.4g} records"
        )
        if job.every and t % job.every == 0 and t < len(plan.releases):
            _measure(job, run, final, screen)
        run.stamp()
    return final or run.load(done)


def _drawn_again(job: Job, plan: CellPlan, run: RunDirectory) -> Population:
    """Another number of rows, from the receipts alone."""
    receipts = {int(path.stem): read_receipt(path) for path in run.votes.glob("*.parquet")}

    def ask(t: int, about: str, question: Question) -> tuple[np.ndarray, float]:
        if t not in receipts or receipts[t].population != about:
            raise UserError(f"{run.votes}: release {t} is missing, or is not the one of this run.")
        return _counts(receipts[t], question)

    *_, final = evolve_cells(plan, ask, job.seed, len(plan.releases) - 1)
    return final


def _counts(receipt: Receipt, question: Question) -> tuple[np.ndarray, float]:
    """In records."""
    vote = records_in_a_vote(receipt.charge, len(question.subspaces))
    return receipt.votes * vote / receipt.charge.grid, receipt.charge.sigma * vote


def _label_shares(job: Job, ledger: Ledger, electorate: Electorate | None, screen: Screen) -> np.ndarray:
    """float64 [l]: of the noisy counts, nothing for labels that would not get a row in every iteration."""
    vote = electorate.vote_for_labels if electorate else _nothing_left
    receipt = ledger.release(len(job.schedule) + 1, LABELS, vote)
    shares = shares_of(receipt.votes.astype(np.float64))
    sizes = [step.size for step in job.schedule]
    while not split(min(sizes), shares)[shares > 0].all():
        shares = shares_of(np.where(split(min(sizes), shares) > 0, shares, 0.0))
    screen.line(f"labels with a share: {(shares > 0).sum()} of {len(shares)}, by a noisy release")
    return shares


def _nothing_left() -> Any:
    raise UserError("private: a receipt of a finished iteration is gone. The run cannot go on; name another run_dir.")


def _electorate(job: Job, run: RunDirectory, screen: Screen) -> Electorate:
    with _private_side(run, screen, "reading and embedding the private records", "electorate"):
        identity = {**job.cache_identity, "embedded by": getattr(job.embed, "fingerprint", lambda: None)()}
        electorate = open_electorate(job.data, job.embed, identity, job.privacy.unit, cache_folder())
    for name, content in told_of_rows(electorate).items():
        write(run.private / name, content, private=True)
    return electorate


def _expand(job: Job, makers: Makers, run: RunDirectory, final: Population, rows: int | None) -> Population:
    if rows is None:
        synthetic = final
    else:
        degree = job.last_degree
        assert degree is not None
        folder = private_folder(run.private / "expand")
        final_hash = sha256(run.checkpoint(final.iteration))[:16]

        def kept(places: str, make: Callable[[], Population]) -> Population:
            key = hashlib.sha256(f"{final_hash} {degree} {job.identity['api']} {places}".encode()).hexdigest()[:16]
            path = folder / f"{key}.parquet"
            if path.exists():
                return from_parquet(path.read_bytes(), path)
            start = time.perf_counter()
            part = make()
            if time.perf_counter() - start < WORTH_KEEPING:
                return part
            write(path, to_parquet(part, job.labels), private=True)
            return part

        synthetic = expand(makers, final, rows, degree, kept)
    write(run.release / "synthetic.parquet", to_parquet(synthetic, job.labels, lineage=False))
    return synthetic


def _measure(job: Job, run: RunDirectory, population: Population, screen: Screen) -> None:
    final = population.iteration == job.releases
    for name, metric in job.metrics.items():
        with _private_side(run, screen, f"metric {name}", f"metric {name}"):
            numbers = metric(population)
        run.add_metrics({"iteration": population.iteration, "final": final, "metric": name, **numbers}, metric.private)
        if numbers and not metric.private:
            words = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            screen.line(f"{name} ({'final data' if final else f'iteration {population.iteration}'}): {words}")


def _draw(job: Job, run: RunDirectory) -> None:
    iterations = run.iterations()
    populations = [run.load(t, per_label=PICTURED) for t in iterations]
    content = populations[0].samples.content
    if content.ndim == 4:
        sink = io.BytesIO()
        sample_grid(populations, job.labels).save(sink, "PNG")
        write(run.release / "samples.png", sink.getvalue())
    elif content.dtype.kind == "O":
        write(run.release / "samples.txt", sample_texts(populations, job.labels).encode())


def _state(job: Job, run: RunDirectory, budget: Budget, lost: Sequence[Charge], mine: account.Entry | None) -> None:
    import yaml

    others = [known for known in account.entries(job.data_key) if mine is None or known.run != mine.run]
    runs = [*others, mine] if mine else others
    receipts = sorted(run.votes.glob("*.parquet"))
    text = statement(job.privacy, budget, lost, receipts, job.public, job.data.id, runs, job.data.records)
    write(run.release / "privacy.json", text)
    write(run.release / "config.yaml", yaml.safe_dump(dict(job.public), sort_keys=False).encode())


def _signs(receipt: Receipt, labels: np.ndarray, ancestors: np.ndarray) -> dict[str, float]:
    signs = vital_signs(receipt.votes, receipt.charge.sigma * receipt.charge.grid, labels, ancestors)
    silent = sum(receipt.votes[labels == label].sum() <= 0 for label in np.unique(labels))
    return {**signs, "labels_without_votes": float(silent)}


def _check_device(device: str) -> None:
    """Not in `check`: a run for another machine can be planned here."""
    if device.startswith("cuda"):
        import torch

        if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise bad("runtime.device", device, "a device of this machine", "auto takes what there is.")


def _search(device: str, sparse: bool) -> Callable[[np.ndarray], Search]:
    if device == "auto" and not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        device = "cpu"  # known without importing torch, which takes seconds
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return sparse_search if sparse else faiss_search
    return lambda candidates: torch_search(candidates, device)


@contextmanager
def _makers(job: Job, run: RunDirectory, screen: Screen, to_come: Sequence[tuple[int, int]]) -> Iterator[Makers]:
    """to_come: (generated, varied) rows of each iteration that is left."""
    generated, varied = (sum(rows) for rows in zip(*(to_come or [(0, 0)]), strict=True))
    spending = Spending(job.api, job.labels, run, generated, varied)
    screen.asked = lambda: str(spending)

    @contextmanager
    def during(text: str, rows: int) -> Iterator[Callable[[int], None]]:
        with screen.phase(text, rows) as advance, run.timed(text):

            def done(more: int) -> None:
                advance(more)
                spending.done(text, more)

            yield done

    try:
        with asked_in_batches(job.api, job.embed, job.runtime, during) as asked:
            yield Makers(asked, asked.embed, job.labels, job.shares, job.seed)
    finally:
        spending.save()


@contextmanager
def _private_side(run: RunDirectory, screen: Screen, text: str, log: str) -> Iterator[None]:
    """Shows that private data are at work and no more; what a library says of them when it fails stays private too."""
    with screen.private_phase(text), run.timed(log):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            run.log(traceback.format_exc())
            name = type(error).__name__
            raise UserError(f"{text}: failed ({name}). What was said of it may be private: see private/log.") from None
