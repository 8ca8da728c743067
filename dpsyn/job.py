"""A run from its parts to its files: iterates the loop, saves, measures, shows, and can be cut off anywhere."""

from __future__ import annotations

import hashlib
import io
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.electorate import Electorate, open_electorate, refused_rows
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, bad
from dpsyn.evolution import Makers, begin, evolve, split
from dpsyn.expansion import expand
from dpsyn.files import cache_folder, private_folder, sha256, write
from dpsyn.metric import Metric
from dpsyn.metric.vital_signs import vital_signs
from dpsyn.picture import sample_grid
from dpsyn.population import Label, Population, Samples, concatenate, take
from dpsyn.privacy import account
from dpsyn.privacy.budget import Budget, Charge, Settings, plan
from dpsyn.privacy.ledger import Ledger, Receipt
from dpsyn.privacy.statement import statement
from dpsyn.run import RunDirectory
from dpsyn.runtime import Runtime
from dpsyn.schedule import Step
from dpsyn.show import Screen
from dpsyn.storage import from_parquet, to_parquet
from dpsyn.voting import Search, Votes, faiss_search, torch_search

PICTURED = 20  # samples of a label that are read for the picture
WORTH_KEEPING = 1.0  # seconds: a part of an expansion that is made faster is made again after an interruption


@dataclass(frozen=True)
class Job:
    """All parts of a run.

    root: the run directory. identity: the settings that identify the run. public: those of them that are published.
    cache_identity: the settings of data and embedding. metrics: name to part; every: also after every n-th iteration.
    expand_rows: None for no expansion; expand_degree: None for that of the last step.
    """

    name: str
    root: Path
    seed: int
    data: Data
    api: Api
    embed: Embedding
    privacy: Settings
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

    @property
    def labels(self) -> Sequence[Label]:
        return self.data.labels

    @property
    def data_key(self) -> str:
        """Under which the account adds up what was spent on this data set. Private where it is a place."""
        return self.data.id or f"place {Path(str(self.identity['data'].get('path'))).absolute()}"


def check(job: Job) -> None:
    """What can be found out without reading a private row, loading a model or writing a file. Raises UserError."""
    if not job.schedule:
        raise bad("schedule.releases", 0, "1 or more")
    for step in job.schedule:
        if step.size < len(job.labels) or not split(step.size, job.shares)[job.shares > 0].all():
            raise bad("schedule.size", step.size, f"enough for every one of the {len(job.labels)} labels")
    if job.privacy.unit == "user" and job.data.unit_column is None:
        raise bad("privacy.unit", "user", "a column of user ids", "Name it with data.unit_column=.")
    if job.expand_rows is not None and job.expand_rows < final_size(job.schedule):
        do = "Those are the final survivors."
        raise bad("expand.rows", job.expand_rows, f"null, or at least {final_size(job.schedule)}", do)
    above = next(path for path in (job.root.absolute(), *job.root.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise bad("run_dir", job.root, "a folder that can be made", f"{above} is none to write in.")
    check_degree = getattr(job.api, "check_degree", lambda degree: None)
    for degree in [step.degree for step in job.schedule] + [job.expand_degree or 0.0]:
        check_degree(degree)
    job.data.check()
    for part in (job.api, job.embed, *job.metrics.values()):
        getattr(part, "check", lambda: None)()


def final_size(schedule: Sequence[Step]) -> int:
    """Rows after the last step, at most."""
    last = schedule[-1]
    return last.size * (last.folds + last.keep)


def carry_out(job: Job, screen: Screen) -> Path:
    """Runs, or goes on with, the job. Returns the folder with the results. Raises UserError."""
    check(job)
    _check_device(job.runtime.device)
    run = RunDirectory(job.root, job.privacy.is_private)
    known, fingerprint = run.identity(), job.data.fingerprint()
    if known:
        run.refuse_another(known, job.identity, fingerprint)
    budget = plan(job.privacy, len(job.schedule), known["sigma"] if known else None)
    with run.locked():
        if (known := run.identity()) is not None:
            run.refuse_another(known, job.identity, fingerprint)  # of two that start at once, the second comes here
        identity = known["run"] if known else run.begin(job.identity, fingerprint, budget.sigma)
        ledger = Ledger(run.private, run.votes, identity, job.privacy, budget, job.seed)
        lost = ledger.recover()
        account.enter(job.data_key, identity, job.root.absolute(), job.privacy, budget, lost)
        _state(job, run, budget, lost)
        with screen.shown():
            final = _evolve(job, run, ledger, screen)
            synthetic = _expand(job, run, final, screen, job.expand_rows, job.expand_degree)
            _measure(job, run, synthetic, screen)
            _draw(job, run)
        _state(job, run, budget, lost)
        run.stamp()
        run.log("done")
    return run.release


def expand_run(job: Job, screen: Screen, rows: int) -> Path:
    """`dpsyn expand`: more rows for a finished run; neither its data nor `private/` is needed."""
    run = RunDirectory(job.root, job.privacy.is_private)
    with run.locked():
        done = run.iterations()
        if not done or done[-1] != len(job.schedule):
            raise UserError(f"{job.root}: the run is not finished. Finish it with the command that began it.")
        final = run.load(done[-1])
        if rows < len(final):
            raise bad("rows", rows, f"at least {len(final)}, the rows of the final population")
        with screen.shown():
            _expand(job, run, final, screen, rows, job.expand_degree)
        run.stamp()
    return run.release


def _evolve(job: Job, run: RunDirectory, ledger: Ledger, screen: Screen) -> Population:
    makers = _makers(job, run, screen)
    done = run.iterations()
    population = run.load(0) if done else None
    ancestors = np.arange(0 if population is None else len(population))
    for t in done[1:]:
        assert population is not None
        receipt = ledger.release(t, sha256(run.checkpoint(t - 1)), _nothing_left)
        labels, population = population.labels, run.load(t)
        ancestors = ancestors[population.parents]
        signs = _signs(receipt, labels, ancestors)
        run.add_metrics({"iteration": t, **signs}, private=False)  # a crash may have come before it
        screen.released(t, signs)
    if population is not None and population.iteration == len(job.schedule):
        return population
    electorate = _electorate(job, run, screen)
    if population is None:
        population = begin(makers, job.schedule)
        run.save(population, job.labels)
        ancestors = np.arange(len(population))
    receipts: dict[int, Receipt] = {}

    def release(t: int, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
        def vote() -> Votes:
            return electorate.vote(vectors, labels, job.privacy.nearest, _search(job.runtime.device))

        with _private_side(run, screen, f"iteration {t}: private records vote", "vote"):
            receipts[t] = ledger.release(t, sha256(run.checkpoint(t - 1)), vote)
        grid = receipts[t].charge.grid
        return receipts[t].votes if grid == 1 else receipts[t].votes / grid

    labels = population.labels
    for after in evolve(makers, release, job.schedule, population):
        t = after.iteration
        with _timed(run, "save"):
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


def _nothing_left() -> Any:
    raise UserError("private: a receipt of a finished iteration is gone. The run cannot go on; name another run_dir.")


def _electorate(job: Job, run: RunDirectory, screen: Screen) -> Electorate:
    with _private_side(run, screen, "reading and embedding the private records", "electorate"):
        electorate = open_electorate(job.data, job.embed, dict(job.cache_identity), job.privacy.unit, cache_folder())
    write(run.private / "refused.jsonl", refused_rows(electorate), private=True)
    return electorate


def _expand(
    job: Job, run: RunDirectory, final: Population, screen: Screen, rows: int | None, degree: Degree | None
) -> Population:
    if rows is None:
        synthetic = final
    else:
        makers = _makers(job, run, screen)
        degree = job.schedule[-1].degree if degree is None else degree
        folder = private_folder(run.private / "expand")
        final_hash = sha256(run.checkpoint(final.iteration))[:16]

        def kept(places: str, make: Callable[[], Population]) -> Population:
            key = hashlib.sha256(f"{final_hash} {degree} {places}".encode()).hexdigest()[:16]
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
    final = population.iteration == len(job.schedule)
    for name, metric in job.metrics.items():
        with _private_side(run, screen, f"metric {name}", f"metric {name}"):
            numbers = metric(population)
        run.add_metrics({"iteration": population.iteration, "final": final, "metric": name, **numbers}, metric.private)
        if not metric.private:
            words = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            screen.line(f"{name} ({'final data' if final else f'iteration {population.iteration}'}): {words}")


def _draw(job: Job, run: RunDirectory) -> None:
    iterations = run.iterations()
    populations = [run.load(t, per_label=PICTURED) for t in iterations]
    if populations[0].samples.content.ndim != 4:
        return
    sink = io.BytesIO()
    sample_grid(populations, job.labels).save(sink, "PNG")
    write(run.release / "samples.png", sink.getvalue())


def _state(job: Job, run: RunDirectory, budget: Budget, lost: Sequence[Charge]) -> None:
    import yaml

    runs = account.entries(job.data_key)
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


def _search(device: str) -> Callable[[np.ndarray], Search]:
    if device == "auto" and not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        device = "cpu"  # known without importing torch, which takes seconds
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return faiss_search if device == "cpu" else lambda candidates: torch_search(candidates, device)


def _makers(job: Job, run: RunDirectory, screen: Screen) -> Makers:
    api = _Batched(job.api, job.embed, job.runtime.batch_size, run, screen)
    return Makers(api, api.embed, job.labels, job.shares, job.seed)


@dataclass(frozen=True)
class _Batched:
    """The api and the public side of the embedding, asked in batches, with their progress shown."""

    api: Api
    inner: Embedding
    size: int
    run: RunDirectory
    screen: Screen

    @property
    def row_bytes(self) -> int:
        return self.api.row_bytes

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        return self._joined("generating", len(labels), lambda rows: self.api.generate(labels[rows], seeds[rows]))

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        def part(rows: slice) -> Samples:
            return self.api.vary(take(samples, np.arange(len(samples))[rows]), labels[rows], degree, seeds[rows])

        return self._joined("varying", len(labels), part)

    def embed(self, samples: Samples) -> np.ndarray:
        rows = np.arange(len(samples))
        parts = [part for part in self._parts("embedding", len(rows), lambda at: self.inner(take(samples, rows[at])))]
        return np.concatenate(parts).astype(np.float32, copy=False)

    def _joined(self, text: str, n: int, make: Callable[[slice], Samples]) -> Samples:
        return concatenate(list(self._parts(text, n, make)))

    def _parts(self, text: str, n: int, make: Callable[[slice], Any]) -> Iterator[Any]:
        with self.screen.phase(text, n) as advance, _timed(self.run, text):
            for start in range(0, max(n, 1), self.size):
                rows = slice(start, min(start + self.size, n))
                part = make(rows)
                count = len(part)
                if count != rows.stop - rows.start:
                    raise RuntimeError(f"{text}: asked for {rows.stop - rows.start} rows, got {count}")
                advance(count)
                yield part


@contextmanager
def _private_side(run: RunDirectory, screen: Screen, text: str, log: str) -> Iterator[None]:
    """Shows that private data are at work and no more; what a library says of them when it fails stays private too."""
    with screen.private_phase(text), _timed(run, log):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            run.log(traceback.format_exc())
            name = type(error).__name__
            raise UserError(f"{text}: failed ({name}). What was said of it may be private: see private/log.") from None


@contextmanager
def _timed(run: RunDirectory, what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    run.log(f"{what} {time.perf_counter() - start:.3f} s")
