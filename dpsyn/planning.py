"""What a run promises and costs, before and after: the tables of `plan`, `budget`, the head of `run` and its end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from dpsyn.api import metered
from dpsyn.errors import invalid
from dpsyn.job import Job, check, needed
from dpsyn.networks.runtime import OnRay
from dpsyn.privacy import account
from dpsyn.privacy.budget import (
    WEAK,
    Budget,
    Charge,
    epsilon_of,
    exact_epsilon,
    format_epsilon,
    largest_hit_rates,
    records_in_a_vote,
)
from dpsyn.privacy.statement import format_delta
from dpsyn.runs.cost import at_most, format_usage
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.storage import label_name

ALARMS = 0.05  # the rate of false alarms of the attacker that `plan --epsilon` tells of


def facts(job: Job) -> dict[str, str]:
    """What stands at the head of a run's panel."""
    budget = job.budget()
    return {"run": str(job.root), "promise": promise(job, budget), "noise": noise(job, budget)}


def promise(job: Job, budget: Budget) -> str:
    """'(1.0, 1e-05)-DP, one record added or removed'

    job: the parts of the run.
    budget: of its declared schedule.
    """
    if not job.privacy.is_private:
        return f"NOT PRIVATE (privacy.noise={job.privacy.noise}): for tests only"
    epsilon = epsilon_of(budget.charges, budget.delta, budget.adjacency)
    change = "replaced" if budget.adjacency == "replace" else "added or removed"
    weak = " WEAK" if epsilon > WEAK else ""
    pair = f"({format_epsilon(epsilon)}, {format_delta(budget.delta)})"
    return f"{pair}-differentially private, one {job.privacy.unit} {change}{weak}"


def noise(job: Job, budget: Budget) -> str:
    """'standard deviation 11.7 records in each of 8 releases'

    job: the parts of the run.
    budget: of its declared schedule.
    """
    if not budget.charges:
        return "no release: no private row is read"
    found = sorted(deviations(job, budget))
    least, most = f"{found[0]:.4g}", f"{found[-1]:.4g}"
    span = f"{least} records in each of" if least == most else f"{least} to {most} records in"
    return f"standard deviation {span} {len(found)} release{'s' if len(found) > 1 else ''}"


def deviations(job: Job, budget: Budget) -> list[float]:
    """Of the noise of each release, in records.

    job: the parts of the run.
    budget: of its declared schedule.
    """
    pairs = zip(budget.charges, [*job.releases, *job.evaluation], strict=True)
    return [charge.sigma * records_in_a_vote(charge, release.moves) for charge, release in pairs]


def show_plan(job: Job, given: Sequence[str] = ()) -> None:
    """Prints privacy, sizes, calls and disk, and what a run needs that is not here. Nothing is read or written.

    job: the parts of the run.
    given: the overrides of the command line.

    Raises UserError for what no run could have.
    """
    needs = needed(job)
    budget = job.budget()
    console = Console()
    lines = {
        "run directory": str(job.root),
        "promise": promise(job, budget),
        "noise": noise(job, budget),
        "labels": f"{len(job.labels)}: {_shortened([label_name(label) for label in job.labels])}",
        "records (declared)": "not declared" if job.data.records is None else f"{job.data.records:,}",
    }
    if job.hold_out:
        unit = "users" if job.data.unit_column else "records"
        lines["held out"] = f"about {job.hold_out:.3g} of the {unit}; they cast no vote"
    if isinstance(job.runtime, OnRay):
        lines["machines"] = _machines(job.runtime)
    warnings = [*_warnings(job, budget), *_ignored(job, given)]
    for name, value in [*lines.items(), *(("warning", text) for text in warnings)]:
        console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table(job, budget))
    asked = [*job.api_rows, job.expansion_api_rows]
    generated, varied = sum(g for g, _ in asked), sum(v for _, v in asked)
    console.print(f"rows of the synthetic data: {job.rows:,} at most", highlight=False)
    if job.schedule.uses_api:
        console.print(f"API rows: at most {generated + varied:,}", highlight=False)
    if apis := metered(job.api):
        console.print(f"at most: {format_usage(at_most(apis, job.asked_labels, generated, varied))}", highlight=False)
    stored = job.rows + (generated + varied if job.schedule.uses_api else job.schedule.final_size(job.facts))
    console.print(f"disk: about {_megabytes(stored * job.api.row_bytes)} for the run", highlight=False)
    for text in needs:
        console.print(f"still needed to run: {text}", markup=False, highlight=False, soft_wrap=True)
    if any(text.startswith("data") for text in needs):
        console.print("known only with the data: whether they have the declared columns", highlight=False)


def planned(job: Job) -> dict[str, Any]:
    """The same for programs. Raises UserError as `show_plan`."""
    needs, budget = needed(job), job.budget()
    asked = [*job.api_rows, job.expansion_api_rows]
    generated, varied = (sum(pair[side] for pair in asked) if job.schedule.uses_api else 0 for side in (0, 1))
    private = job.privacy.is_private
    noise, apis = deviations(job, budget), metered(job.api)
    usage = format_usage(at_most(apis, job.asked_labels, generated, varied)) if apis else None
    return {
        "run": str(job.root),
        "private": private,
        "epsilon": float(_epsilon(job, budget.charges, whole=True)) if private else None,
        "delta": budget.delta if private else None,
        "unit": job.privacy.unit,
        "adjacency": job.privacy.adjacency,
        "releases": [
            {
                "name": charge.name,
                "noise_in_records": noise[at],
                "epsilon_alone": float(_epsilon(job, [charge])) if private else None,
                **release.told,
            }
            for at, (charge, release) in enumerate(zip(budget.charges, [*job.releases, *job.evaluation], strict=True))
        ],
        "rows": job.rows,
        "api_rows": generated + varied,
        "usage_at_most": usage,
        "warnings": list(_warnings(job, budget)),
        "needed": needs,
    }


def compared(job: Job) -> dict[str, Any]:
    """What one epsilon promises and hides, to be held beside others; from public numbers alone. Raises UserError as
    `show_plan`."""
    budget, hits = job.budget(), None
    noise = deviations(job, budget)
    if job.privacy.is_private and budget.charges:
        hits = math.ceil(100 * float(largest_hit_rates(budget.charges, budget.adjacency, np.array([ALARMS]))[0])) / 100
    return {
        "epsilon": float(_epsilon(job, budget.charges, whole=True)) if job.privacy.is_private else None,
        "hits": hits,
        "noise_in_records": max(noise, default=0.0),
        "signal_to_noise": job.schedule.signal(job.facts, noise),
        "warnings": list(_warnings(job, budget)),
    }


def show_compared(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line an epsilon, and what is hidden at each.

    found: what `compared` gives, an epsilon each.
    """
    table = Table("epsilon", "noise in records", "signal to noise", "found with 5 % false alarms", box=None)
    console = Console()
    for each in found:
        signal = "" if each["signal_to_noise"] is None else f"{each['signal_to_noise']:.2g}"
        hits = "" if each["hits"] is None else f"{each['hits']:.0%} at most"
        table.add_row(str(each["epsilon"]), f"{each['noise_in_records']:,.4g}", signal, hits)
    console.print(table)
    for each in found:
        for text in each["warnings"]:
            console.print(f"at epsilon {each['epsilon']}: {text}", markup=False, highlight=False, soft_wrap=True)


def _machines(runtime: OnRay) -> str:
    """What runs where."""
    where = "a cluster on this machine" if runtime.address is None else f"the Ray cluster at {runtime.address}"
    gpus = f" of {runtime.gpus} GPU(s) each" if runtime.gpus else ""
    shards = "a shard a processor" if runtime.shards is None else f"{runtime.shards} shard(s)"
    return (
        f"{where}: api and embedding in {runtime.makers} maker(s){gpus}; private records in {shards}, on nodes with "
        "the resource `private`; noise and all files here"
    )


def _ignored(job: Job, given: Sequence[str]) -> Iterator[str]:
    """given: overrides."""
    names = ("api", "embedding")
    mine = [text.lstrip("+~") for text in given if re.match(rf"[+~]*({'|'.join(names)})\b", text)]
    if mine and not job.schedule.uses_api:
        yield f"{' '.join(mine)} is ignored: this schedule asks no api, and no embedding"


def _table(job: Job, budget: Budget) -> Table:
    """A line a release, with what the schedule says of it."""
    told = list(dict.fromkeys(key for release in job.releases for key in release.told))
    asks = ["generated", "varied"] if job.schedule.uses_api else []
    names = ("release", *asks, *told, "noise in records", "epsilon alone", "epsilon so far")
    widths = [max(map(len, name.split())) for name in names]  # of the longest word: none is cut
    shown = ["release", *(charge.name for charge in budget.charges)]
    widths[0] = max(len(word) for name in shown for word in name.split())
    table = Table(*(Column(name, min_width=width) for name, width in zip(names, widths, strict=True)), box=None)

    def api_rows(pair: tuple[int, int]) -> list[str]:
        return [f"{rows:,}" for rows in pair] if asks else []

    if asks:
        table.add_row("-", *api_rows(job.api_rows[0]), *("" for _ in told), "", "", "")
    noise_of = deviations(job, budget)
    for t, (release, charge) in enumerate(zip([*job.releases, *job.evaluation], budget.charges, strict=True), 1):
        asked = api_rows(job.api_rows[t]) if t < len(job.api_rows) else [""] * len(asks)
        alone, far = _epsilon(job, [charge]), _epsilon(job, budget.charges[:t], whole=t == len(budget.charges))
        words = [release.told.get(key, "") for key in told]
        table.add_row(release.name, *asked, *words, f"{noise_of[t - 1]:,.4g}", alone, far)
    if job.expanded:
        table.add_row("expand", *api_rows(job.expansion_api_rows), *("" for _ in told), "", "", "")
    return table


def _warnings(job: Job, budget: Budget) -> Iterator[str]:
    if job.data.records and job.privacy.is_private and budget.delta >= 1 / job.data.records:
        yield f"delta {format_delta(budget.delta)} is not below 1/data.records"
    if job.data.unit_column is not None and job.privacy.unit == "record":
        name = job.data.unit_column
        yield f"column '{name}' names users, but privacy.unit=record protects a row, not all rows of a user"
    yield from job.schedule.warnings(job.facts, deviations(job, budget))


def show_end(job: Job) -> None:
    """Prints where things are, besides what the run itself has shown."""
    run = RunDirectory(job.root, job.privacy.is_private)
    console = Console()
    lines = run.contents() if console.is_terminal else []  # elsewhere they stand there already
    metrics = run.private / "metrics.jsonl"
    lines += [f"metrics on real data (private): {metrics}"] if metrics.exists() else []
    if job.data.on_error == "skip":
        lines.append(f"rows that could not be used, if any (private): {run.private / 'refused.jsonl'}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    known = run.identity() if (run.private / "config.yaml").exists() else None
    if known and (joint := joint_of(account.of_run(known["run"]))):
        console.print(joint, highlight=False)


def joint_of(runs: Sequence[account.Entry]) -> str:
    """'all 3 runs on these data together: epsilon 2.12 at delta 1e-05'; '' for one run, or none."""
    if len(runs) < 2:
        return ""
    delta = max(run.delta for run in runs)
    joint = account.joint_epsilon(runs, delta)
    text = (
        "unknown: they protect different units"
        if joint is None
        else f"{format_epsilon(joint)} at delta {format_delta(delta)}"
    )
    return f"all {len(runs)} runs on these data together: epsilon {text}"


def spent() -> list[dict[str, Any]]:
    """What the account of this user knows: of each data set its runs, and their joint epsilon; None where they protect
    different units."""
    found = []
    for runs in account.everything():
        delta = max(run.delta for run in runs)
        each = [
            {
                "run": run.directory,
                "begun": not run.run.startswith(account.PLANNED),
                "epsilon": float(format_epsilon(epsilon_of(run.charges, run.delta, run.neighbours))),
                "delta": run.delta,
                "unit": run.unit,
                "releases": len(run.charges),
            }
            for run in runs
        ]
        joint = account.joint_epsilon(runs, delta)
        together = None if joint is None else float(format_epsilon(joint))
        found.append({"data": runs[0].data, "runs": each, "epsilon": together, "delta": delta})
    return found


def show_budget() -> None:
    """Prints `spent`, a table that is never cut: a path is to be read whole, on a screen or piped."""
    everything = spent()
    if not everything:
        print("No run on any data set is known.")
        return
    lines = [["data set", "run", "epsilon", "delta", "unit", "releases"]]
    for of in everything:
        for run in of["runs"]:
            place = run["run"] + ("" if run["begun"] else " (declared, not begun)")
            numbers = [format_epsilon(run["epsilon"]), format_delta(run["delta"]), run["unit"], str(run["releases"])]
            lines.append([of["data"], place, *numbers])
        joint = "different units" if of["epsilon"] is None else format_epsilon(of["epsilon"])
        last = of["runs"][-1]["unit"]
        lines.append([of["data"], f"all {len(of['runs'])} together", joint, format_delta(of["delta"]), last, ""])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip())


def show_joint_epsilon(jobs: Sequence[Job], read: bool) -> list[float]:
    """Prints the joint epsilon of the jobs of a sweep on the same data.

    Returns the joint epsilon of each data set. Raises UserError where jobs on one protect different units.

    jobs: of the sweep.
    read: know the data by their content too, for which local files are read once.
    """
    found = []
    for runs in _by_data(jobs, read):
        budgets = [job.budget() for job in runs]
        delta = max(budget.delta for budget in budgets)
        if len({(job.privacy.unit, job.privacy.adjacency) for job in runs}) > 1:
            raise invalid(
                "privacy.unit", "several", "one unit and one adjacency in a sweep", "Their sum means nothing."
            )
        found.append(account.together([budget.charges for budget in budgets], delta, runs[0].privacy.adjacency))
        together = f"epsilon {format_epsilon(found[-1])} at delta {format_delta(delta)}"
        print(f"{len(runs)} runs on one data set: together {together}")
    return found


def agree_to_joint_epsilon(jobs: Sequence[Job]) -> None:
    """Puts all jobs of a sweep on the account before the first one starts, so that each says what all of them spend.

    Raises UserError unless the joint epsilon on each data set was agreed to, and where a limit is set and passed.
    """
    for job in jobs:
        check(job)
    joint = max(show_joint_epsilon(jobs, read=True), default=0.0) if len(jobs) > 1 else 0.0
    accepted = [job.privacy.accept_joint_epsilon for job in jobs]
    least = min((value for value in accepted if value is not None), default=None)
    if joint and (least is None or least < joint):
        value = "null" if least is None else f"{least:g}"
        up = math.ceil(joint * 1000) / 1000
        do = "A sweep spends what its runs spend together."
        raise invalid("privacy.accept_joint_epsilon", value, f"at least {up:g}", do)
    account.enter(*(entry for job in jobs if (entry := _declared(job)).charges))


def withdraw_unbegun(jobs: Sequence[Job]) -> None:
    """Takes those of a sweep that did not begin off the account."""
    account.withdraw([job.root for job in jobs])


def _declared(job: Job) -> account.Entry:
    run = RunDirectory(job.root, job.privacy.is_private)
    known = run.identity() if run.has_begun() else None
    budget = job.budget(known["sigma"] if known else None)
    return account.entry(
        job.data_name, job.data_known_by(), known["run"] if known else None, job.root, job.privacy, budget
    )


def _by_data(jobs: Sequence[Job], read: bool) -> list[list[Job]]:
    """Jobs that protect somebody, those together that share data."""
    groups: list[tuple[set[str], list[Job]]] = []
    for job in jobs:
        if not job.privacy.is_private:
            continue
        keys, mine = set(job.data_known_by(read)), [job]
        for group in [group for group in groups if group[0] & keys]:
            groups.remove(group)
            keys, mine = keys | group[0], [*group[1], *mine]
        groups.append((keys, mine))
    return [runs for _, runs in groups]


def _epsilon(job: Job, charges: Sequence[Charge], whole: bool = False) -> str:
    """whole: of the whole budget, which the accountant knows; the others by exact convolution, which takes a hundredth
    of its time (measured: 0.3 ms against 30 to 120)."""
    if not job.privacy.is_private:
        return "-"
    assert job.privacy.delta is not None
    of = epsilon_of if whole else exact_epsilon
    return format_epsilon(of(charges, job.privacy.delta, job.privacy.adjacency))


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _megabytes(n: int) -> str:
    return f"{n / 2**20:,.0f} MB" if n < 2**30 else f"{n / 2**30:,.1f} GB"
