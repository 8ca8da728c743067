"""What every run of this user has spent on a data set: losses add up, whoever forgets them.

One file a data set in the state folder, append-only, a JSON line whenever a run starts or a draw of it is lost; the
last line of a run counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dpsyn.files import room_on_disk, state_folder
from dpsyn.privacy.budget import Budget, Charge, Neighbours, Settings, Unit, epsilon_of


@dataclass(frozen=True)
class Entry:
    """One run on a data set: all its declared charges, and those of its lost draws."""

    data: str
    run: str
    directory: str
    unit: Unit
    neighbours: Neighbours
    delta: float
    charges: tuple[Charge, ...]


def entry(
    data: str, run: str, directory: Path, settings: Settings, budget: Budget, lost: Sequence[Charge]
) -> Entry | None:
    """What a run declares. None for one without noise: there is nothing to add up."""
    if not settings.is_private:
        return None
    charges = (*budget.charges, *lost)
    return Entry(data, run, str(directory), settings.unit, settings.neighbours, budget.delta, charges)


def enter(entry: Entry | None) -> None:
    """Puts a run on the account, before its first release; one without any is not put there."""
    if entry is None or not entry.charges or entry in entries(entry.data):
        return
    path = _file(entry.data)
    with room_on_disk(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cut_off = path.read_bytes()[-1:] not in (b"", b"\n")  # by a crash: else that line would swallow this one
        file.write("\n" * cut_off + json.dumps(asdict(entry)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def entries(data: str) -> list[Entry]:
    """The runs on one data set, oldest first."""
    path = _file(data)
    return _read(path) if path.exists() else []


def everything() -> dict[str, list[Entry]]:
    """All data sets that this user has run on."""
    found = [_read(path) for path in sorted(state_folder().glob("*.jsonl"))]
    return {runs[0].data: runs for runs in found if runs}


def joint_epsilon(runs: Sequence[Entry], delta: float) -> float | None:
    """Epsilon of all releases of all runs together at one delta. None where they protect different units."""
    if len({(run.unit, run.neighbours) for run in runs}) != 1:
        return None
    return epsilon_of([charge for run in runs for charge in run.charges], delta, runs[0].neighbours)


def _file(data: str) -> Path:
    return state_folder() / f"{hashlib.sha256(data.encode()).hexdigest()[:24]}.jsonl"


def _read(path: Path) -> list[Entry]:
    runs: dict[str, Entry] = {}
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the last line of a run that was killed while it wrote: it had released nothing yet
            continue
        entry = Entry(**{**values, "charges": tuple(Charge(**charge) for charge in values["charges"])})
        runs[entry.run] = entry
    return list(runs.values())
