"""A run from its parts to its files: iterates the loop, saves, measures, shows, and can be cut off anywhere."""

from __future__ import annotations

import hashlib
import io
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpsyn.api import Pinged
from dpsyn.cell_run import CellPlan, evolve_cells, records_in_a_vote, release_name
from dpsyn.cells import Question
from dpsyn.electorate import Electorate, open_electorate, survey_of, told_of_rows
from dpsyn.errors import UserError, bad
from dpsyn.evolution import Makers, begin, evolve, split
from dpsyn.expansion import expand
from dpsyn.files import cache_folder, private_folder, sha256, write
from dpsyn.job import Job, check, public_sources, rows_asked
from dpsyn.metric.vital_signs import vital_signs
from dpsyn.picture import sample_grid, sample_texts
from dpsyn.population import Population
from dpsyn.privacy import account
from dpsyn.privacy.budget import Budget, Charge
from dpsyn.privacy.ledger import Ledger, Receipt, read_receipt
from dpsyn.privacy.query import LabelCounts, Nearest, about_cells
from dpsyn.privacy.statement import statement
from dpsyn.run import RunDirectory
from dpsyn.runtime import torch_dtype
from dpsyn.selection import shares_of
from dpsyn.show import Screen
from dpsyn.spending import Spending
from dpsyn.storage import from_parquet, to_parquet
from dpsyn.survey import check_survey
from dpsyn.voting import Search, faiss_search, sparse_search, torch_search
from dpsyn.workers import asked_in_batches

PICTURED = 20  # samples of a label that are read for the picture
WORTH_KEEPING = 1.0  # seconds: a part of an expansion that is made faster is made again after an interruption


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
        (f"metric.parts.{name}.public", data)
        for name, metric in job.metrics.items()
        if not metric.private
        for data in metric.reads()
    ]
    for key, source in [*public_sources(job), *declared]:
        if source.digests() & job.data.digests():
            raise UserError(f"{key}: files of the private data (data.path) are among these, which must be public.")
    if known:
        run.refuse_another(known, job.identity, fingerprint, job.operational)
    if isinstance(job.api, Pinged) and max(run.iterations(), default=-1) < job.releases:
        job.api.ping("generate")
    budget = job.budget(known["sigma"] if known else None)
    with run.locked():
        if (known := run.identity() if run.has_begun() else None) is not None:
            # of two that start at once, the second comes here
            run.refuse_another(known, job.identity, fingerprint, job.operational)
        identity = known["run"] if known else run.begin(job.identity, fingerprint, budget.sigma)
        account.check_directory(identity, run.root)
        ledger = Ledger(run.private, run.votes, identity, job.privacy, budget, job.seed)
        lost = ledger.recover()
        known_by = job.data_known_by()
        settings = (run.private / "config.yaml").read_bytes()
        mine = account.entry(job.data_name, known_by, identity, job.root, job.privacy, budget, lost, settings)
        account.check_limit(mine)
        if known:
            account.enter(mine)
            _state(job, run, budget, lost, mine)
        was_finished = max(run.iterations(), default=-1) == job.releases
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
            synthetic = _longer(job, run, final, was_finished) or _expand(job, makers, run, final, job.expand_rows)
            _draw(job, run)
            _state(job, run, budget, lost, mine)
            run.stamp()
            run.log("data are there")
            for line in run.contents():
                screen.line(line)
            try:
                _measure(job, run, synthetic, screen)
            except KeyboardInterrupt:
                there = run.release / "synthetic.parquet"
                raise KeyboardInterrupt(f"The data are there ({there}); metrics are missing.") from None
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
        job.api.check_degree(job.last_degree)
        job.api.check()
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
        receipt = ledger.written(t, sha256(run.checkpoint(t - 1)))
        labels, population = population.labels, run.load(t)
        ancestors = ancestors[population.parents]
        signs = _signs(receipt, labels, ancestors)
        run.add_metrics({"iteration": t, **signs}, private=False)  # a crash may have come before it
        screen.released(t, signs)
    if electorate is None:
        return population
    receipts: dict[int, Receipt] = {}

    def release(t: int, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
        search = _search(job.runtime.device, electorate.entries > 0)
        query = Nearest(vectors, labels, job.privacy.nearest, search, sha256(run.checkpoint(t - 1)))
        with _private_side(run, screen, f"iteration {t}: private records vote", "vote"):
            receipts[t] = ledger.release(t, query, electorate)
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

    def ask(t: int, question: Question) -> tuple[np.ndarray, float]:
        with _private_side(run, screen, f"release {t}: private records vote", "vote"):
            receipts[t] = ledger.release(t, about_cells(question), electorate)
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

    def ask(t: int, question: Question) -> tuple[np.ndarray, float]:
        if t not in receipts or receipts[t].population != about_cells(question).about:
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
    receipt = ledger.release(len(job.schedule) + 1, LabelCounts(len(job.labels)), electorate)
    shares = shares_of(receipt.votes.astype(np.float64))
    sizes = [step.size for step in job.schedule]
    while not split(min(sizes), shares)[shares > 0].all():
        shares = shares_of(np.where(split(min(sizes), shares) > 0, shares, 0.0))
    screen.line(f"labels with a share: {(shares > 0).sum()} of {len(shares)}, by a noisy release")
    return shares


def _electorate(job: Job, run: RunDirectory, screen: Screen) -> Electorate:
    cache = cache_folder()  # out here, where what is wrong with it may be said
    with _private_side(run, screen, "reading and embedding the private records", "electorate"):
        identity = {**job.cache_identity, "embedded by": job.embed.fingerprint()}
        electorate = open_electorate(job.data, job.embed, identity, job.privacy.unit, cache)
    for name, content in told_of_rows(electorate).items():
        write(run.private / name, content, private=True)
    check_survey(survey_of(electorate), job.data, job.privacy.unit, str(run.private))
    return electorate


def _expand(job: Job, makers: Makers, run: RunDirectory, final: Population, rows: int | None) -> Population:
    if rows is None:
        synthetic = final
    else:
        degree = job.last_degree
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

        # without votes there is nothing to vary
        synthetic = begin(makers, rows) if degree is None else expand(makers, final, rows, degree, kept)
    write(run.release / "synthetic.parquet", to_parquet(synthetic, job.labels, lineage=False))
    return synthetic


def _longer(job: Job, run: RunDirectory, final: Population, was_finished: bool) -> Population | None:
    """What `dpsyn expand` made of a finished run, where it has more rows than this run would end with: it stays."""
    path = run.release / "synthetic.parquet"
    if not was_finished or not path.exists():
        return None
    there = from_parquet(path.read_bytes(), path)
    return there if len(there) > (job.expand_rows or len(final)) else None


def _measure(job: Job, run: RunDirectory, population: Population, screen: Screen) -> None:
    final = population.iteration == job.releases
    for at, (name, metric) in enumerate(job.metrics.items(), 1):
        with _private_side(run, screen, f"metric {at} of {len(job.metrics)}: {name}", f"metric {name}"):
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


def _state(job: Job, run: RunDirectory, budget: Budget, lost: Sequence[Charge], mine: account.Entry) -> None:
    import yaml

    runs = account.sharing(mine)
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
