"""`dpsyn evaluate`: finished runs, measured and compared. What it prints is private, unless all data that it reads are
public."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn import compose
from dpsyn.data import Data
from dpsyn.errors import UserError, did_you_mean, invalid
from dpsyn.files import write
from dpsyn.job import Job, check, check_public
from dpsyn.population import Samples
from dpsyn.privacy.holdout import Side
from dpsyn.privacy.statement import as_json
from dpsyn.report import write_report
from dpsyn.report.facts import read_numbers
from dpsyn.report.real import Rows, against
from dpsyn.runs.directory import RunDirectory, flat
from dpsyn.runs.seal import seal
from dpsyn.runs.storage import from_parquet
from dpsyn.show import Screen
from dpsyn.sides import private_side
from dpsyn.threads import on_free_threads

PRIVATE = "PRIVATE: numbers on real data, without noise. Do not publish them; no choice by them is covered."
READ = 50_000  # private rows that are held in memory, the first ones
SHOWN_KEYS = 3  # of those in which runs differ
WIDTH = 100  # characters, about those of a terminal


@dataclass(frozen=True)
class Measured:
    """A run and its numbers, by 'metric.number'. settings: that identify it, by their keys, without the seed. is_bare:
    no vote was asked for, so its data say what the candidates are worth alone."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    is_bare: bool
    numbers: Mapping[str, float]


def measure(
    job: Job, run: RunDirectory, screen: Screen, iteration: int | None = None, public: bool = False
) -> Measured:
    """Measures the final data, or those of an iteration, by the metrics of the job, and writes the numbers down.

    job: the parts of the run, with its metrics.
    run: a run of this user.
    screen: what is shown meanwhile.
    iteration: whose data are measured; None: the final ones.
    public: into the release, which only metrics may that say that the data they read are public.

    Raises UserError for a run that is not finished, has no metric, or an iteration that is not there.
    """
    check_measurable(job, run, iteration, public)
    path = run.release / "synthetic.parquet"
    found: dict[str, float] = {}
    with run.locked(), screen.shown():
        population = from_parquet(path.read_bytes(), path) if iteration is None else run.load(iteration)
        for at, (name, metric) in enumerate(job.metrics.items(), 1):
            with (
                private_side(run, screen, f"metric {at} of {len(job.metrics)}: {name}", f"metric {name}"),
                on_free_threads(),
            ):
                numbers = metric(population)
            final = iteration is None
            said = {"iteration": population.iteration, "final": final, "metric": name, **numbers}
            run.add_metrics(said, private=not public)
            found |= {f"{name}.{key}": float(value) for key, value in numbers.items()}
        if public:
            _publish(job, run)
    return _of(job, run, found)


def check_measurable(job: Job, run: RunDirectory, iteration: int | None = None, public: bool = False) -> None:
    """Raises UserError as `measure`: of several runs none is measured if one cannot be.

    job: the parts of the run, with its metrics.
    run: a run of this user.
    iteration: whose data are measured; None: the final ones.
    public: into the release.
    """
    check(job)
    if not job.metrics:
        do = "Name a group: metric=light_classifier."
        raise invalid("metric", "none", f"metrics, here or when {run.root} began", do)
    check_public(job)
    for name, metric in job.metrics.items():
        if public and metric.private:
            key = f"metric.parts.{name}.public"
            raise invalid(key, "false", "true with --public", "Only where the real data that it reads are public.")
    if iteration is None and not (run.release / "synthetic.parquet").exists():
        raise UserError(f"{run.root}: the run is not finished. Finish it, or name an iteration: --iteration N.")
    if iteration is not None and iteration not in run.iterations():
        raise invalid("--iteration", iteration, f"one of {', '.join(map(str, run.iterations()))}")


def _of(job: Job, run: RunDirectory, numbers: Mapping[str, float]) -> Measured:
    settings = {key: value for key, value in flat(job.identity).items() if key != "seed"}
    return Measured(str(run.root), settings, job.seed, not job.releases, numbers)


def recorded(job: Job, run: RunDirectory) -> Measured:
    """What was measured of the final data when the run ended, privately or not.

    job: the parts of the run.
    run: where it is.
    """
    found: dict[str, float] = {}
    for path in (run.release / "metrics.jsonl", run.private / "metrics.jsonl"):
        for numbers in read_numbers(path):
            if numbers.get("final") and (name := numbers.get("metric")):
                own = {key: value for key, value in numbers.items() if key not in ("iteration", "final", "metric")}
                found |= {f"{name}.{key}": float(value) for key, value in own.items() if not isinstance(value, str)}
    return _of(job, run, found)


def beside_private(run: RunDirectory, screen: Screen) -> dict[str, Any] | None:
    """The finished data beside the private ones, for the private page; None where the private data are not there, the
    run is not finished, it found values alone, or it is not one of this user.

    run: a run.
    screen: what is shown meanwhile.
    """
    try:
        job = compose.rebuilt(run, [], measured=True)
        job.data.check()
    except UserError:
        return None
    if not (run.release / "synthetic.parquet").exists() or job.schedule.finds_values:
        return None
    with private_side(run, screen, "comparing the data with the private ones", "private page"):
        return _beside(job, run)


def _beside(job: Job, run: RunDirectory) -> dict[str, Any] | None:
    path = run.release / "synthetic.parquet"
    try:
        real = _rows(job.data, job.side(is_held=False))
        held = next((data for metric in job.metrics.values() for data in metric.reads()), None)
        if job.hold_out:
            tested = _rows(job.data, job.side(is_held=True))
        elif held is not None and held.digests() != job.data.digests():
            tested = _rows(held, None)
        else:  # others of the private ones
            real, tested = (_rows(job.data, Side(0.3, is_held)) for is_held in (False, True))
    except UserError:
        return None
    if not len(real.labels) or not len(tested.labels):
        return None
    embed = job.embed_samples
    synthetic, first = from_parquet(path.read_bytes(), path), run.load(run.iterations()[0])
    return against(synthetic, first, real, tested, embed, job.facts.schema)


def _rows(data: Data, side: Side | None) -> Rows:
    """Some private rows, of one side. In memory."""
    keeps = None if side is None else side.filter()
    contents, labels = list[Any](), list[Any]()
    forms: Mapping[str, Mapping[str, str]] = {}
    for records in data.batches(256):
        if not len(records.samples):
            continue
        mine = np.ones(len(records.samples), bool) if keeps is None else keeps(records)
        contents.append(records.samples.content[mine])
        labels.append(records.labels[mine])
        forms = records.samples.forms
        if len(contents) > READ // 256:
            break
    if not contents:
        return Rows(Samples(np.zeros(0, object)), np.zeros(0, np.int64))
    return Rows(Samples(np.concatenate(contents), forms=forms), np.concatenate(labels))


def _publish(job: Job, run: RunDirectory) -> None:
    """Numbers of public data stand in the release, so what they were computed by is assumed public too."""
    import yaml

    path = run.release / "privacy.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    if "assumed_public" in said:
        before = said["assumed_public"]["metric"]
        parts = {**before["parts"], **job.public["metric"]["parts"]}
        said["assumed_public"]["metric"] = {**before, "parts": parts}
        write(path, as_json(said))
        text = yaml.safe_dump(said["assumed_public"], sort_keys=False)
        write(run.release / "config.yaml", text.encode())
    write_report(run)
    names = ["config.yaml", "metrics.jsonl"]
    seal(run.release, names, private=not run.is_private)
    run.stamp()


def fails(measured: Sequence[Measured], least: Mapping[str, float]) -> list[str]:
    """A line for each number of a run that is below what it must be. It tells the bound, not the number, which may be
    private: logs of CI are read by others.

    measured: the runs.
    least: by 'number' or 'metric.number'. Raises UserError for a number that no run has.
    """
    known = sorted({key for each in measured for key in each.numbers})
    found = []
    for name, bound in least.items():
        keys = [key for key in known if name in (key, key.partition(".")[2])]
        if not keys:
            raise invalid("--fail-under", f"{name}={bound:g}", "a number that was measured", did_you_mean(name, known))
        for each in measured:
            found += [
                f"{each.name}: {key} is below {bound:g}"
                for key in keys
                if key in each.numbers and not each.numbers[key] >= bound
            ]
    return found


def as_text(measured: Sequence[Measured]) -> str:
    """A table: a line a run; then, of several, differences from the runs that asked for no vote, or else from the first
    ones, paired by their seeds, each with its standard error where there are several seeds. Of more numbers than a
    terminal is wide: a line a number, and the runs are its columns."""
    names = list(dict.fromkeys(key for each in measured for key in each.numbers))
    lines = [["run", *names]]
    lines += [[each.name, *(_number(each.numbers.get(key)) for key in names)] for each in measured]
    groups = _groups(measured)
    base = next((key for key, runs in groups.items() if runs[0].is_bare), next(iter(groups)))
    word = "lift over" if groups[base][0].is_bare else "difference from"
    for key, runs in groups.items():
        if key != base:
            of = f"{_named(key)}: {word} {_named(base)}"
            lines.append([of, *(_difference(runs, groups[base], name) for name in names)])
    text = _aligned(lines)
    if max(map(len, text.splitlines())) <= WIDTH:
        return text
    heads = [line[0] for line in lines[1:]]
    numbered = [str(at) for at in range(1, len(heads) + 1)]
    columns = [["number", *names], *([at, *line[1:]] for at, line in zip(numbered, lines[1:], strict=True))]
    return _aligned(list(zip(numbered, heads, strict=True))) + "\n" + _aligned(list(zip(*columns, strict=True)))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(text) + "\n"


def as_mappings(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """For programs."""
    return [{"run": each.name, "seed": each.seed, "numbers": dict(each.numbers)} for each in measured]


Key = tuple[tuple[str, str], ...]


def _groups(measured: Sequence[Measured]) -> dict[Key, list[Measured]]:
    """Runs that differ in their seed alone, by the settings in which the groups differ."""
    every = dict.fromkeys(key for each in measured for key in each.settings)
    differing = [key for key in every if len({repr(each.settings.get(key)) for each in measured}) > 1]
    found: dict[Key, list[Measured]] = {}
    for each in measured:
        found.setdefault(tuple((key, str(each.settings.get(key))) for key in differing), []).append(each)
    return found


def _named(key: Key) -> str:
    said = [f"{name.removesuffix('._target_')}={value.rpartition('.')[2] if name.endswith('_target_') else value}"
            for name, value in key[:SHOWN_KEYS]]  # fmt: skip
    return ", ".join([*said, *(["..."] if len(key) > SHOWN_KEYS else [])]) or "all"


def _difference(runs: Sequence[Measured], base: Sequence[Measured], name: str) -> str:
    ours = {each.seed: each.numbers[name] for each in runs if name in each.numbers}
    theirs = {each.seed: each.numbers[name] for each in base if name in each.numbers}
    pairs = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if not ours or not theirs:
        return "-"
    if not len(pairs):
        return f"{np.mean(list(ours.values())) - np.mean(list(theirs.values())):+.4g}"
    error = f" ± {pairs.std(ddof=1) / math.sqrt(len(pairs)):.2g}" if len(pairs) > 1 else ""
    return f"{pairs.mean():+.4g}{error}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
