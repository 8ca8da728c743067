"""What every run of this user has spent on a data set: losses add up, whoever forgets them.

One file in the state folder, append-only, a JSON line whenever a run is declared, starts, or loses a draw; the last
line of a run counts. A data set is known by its `data.id`, its place and a digest of the content of each of its files,
all of them salted hashes: two runs that share one of these are on the same data, and so are all that they share others
with. So a link, another spelling of a path, another working directory, a renamed or a re-declared data set adds up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dpsyn.errors import UserError, invalid
from dpsyn.files import room_on_disk, state_folder, sync_folder, write
from dpsyn.privacy.budget import Adjacency, Budget, Charge, Settings, Unit, epsilon_of, format_epsilon

PLANNED = "planned "  # before the directory, instead of the id of a run that has not begun


@dataclass(frozen=True)
class Entry:
    """One run on a data set: all its declared charges, and those of its lost draws.

    data: how the data set is named on the screen. keys: salted hashes of what it is known by. run: the id of the run,
    or 'planned DIRECTORY' for a member of a sweep that has not begun. limit: the joint epsilon that this run sets for
    its data, None for none. charges: () for a run without noise that protects; it spends nothing that could be added.
    settings: salted hash of the file in which the run keeps its settings, '' before it has begun.
    """

    data: str
    run: str
    directory: str
    unit: Unit
    neighbours: Adjacency
    delta: float
    charges: tuple[Charge, ...]
    keys: tuple[str, ...] = ()
    limit: float | None = None
    settings: str = ""


def entry(
    data: str,
    known_by: Sequence[str],
    run: str | None,
    directory: Path,
    settings: Settings,
    budget: Budget,
    lost: Sequence[Charge] = (),
    file: bytes = b"",
) -> Entry:
    """What a run declares.

    data: what the user is shown of which data they are, a name or a place.
    known_by: id, places and digests of its data; the account keeps salted digests of them.
    run: its id; None before it has begun.
    directory: of the run.
    settings: privacy settings of the run.
    budget: what it will spend.
    lost: charges of draws whose receipts are gone, which count as well.
    file: in which the run keeps its settings; empty before it has begun.
    """
    place = os.path.realpath(directory)
    charges = (*budget.charges, *lost) if settings.is_private else ()
    keys = tuple(sorted(salted(text) for text in known_by))
    return Entry(
        data,
        run or PLANNED + place,
        place,
        settings.unit,
        settings.adjacency,
        budget.delta,
        charges,
        keys,
        settings.max_joint_epsilon,
        salted(file.hex()) if run else "",
    )


def enter(*entries: Entry) -> None:
    """Puts runs on the account, before their first release: all of them, or none.

    Raises UserError where the joint epsilon of their data would pass the limit that was set for it, and for a run that
    was begun in another directory: a copy would draw again, and be charged once.
    """
    with _locked() as path:
        before = _read()
        for new in entries:
            check_known_directory(new.run, new.directory, before)
        after = _merged([*before, *entries])
        if after == before:
            return
        for new in entries:
            _check_limit(new, _sharing(new, after))
        _append(path, [json.dumps(asdict(new)) for new in entries])


def check_directory(run: str, directory: Path) -> None:
    """Raises UserError for a run that was begun in another directory.

    run: its id.
    directory: in which it is to go on.
    """
    check_known_directory(run, os.path.realpath(directory), _read())


def check_limit(new: Entry) -> None:
    """The refusal of `enter` for too large a joint epsilon, before a private row is read; writes nothing."""
    _check_limit(new, _sharing(new, _merged([*_read(), new])))


def withdraw(directories: Sequence[Path]) -> None:
    """Takes members of a sweep that did not begin off the account: nothing was drawn for them."""
    with _locked() as path:
        planned = {entry.run for entry in _read()}
        gone = [name for place in directories if (name := PLANNED + os.path.realpath(place)) in planned]
        _append(path, [json.dumps({"withdrawn": name}) for name in gone])


def sharing(known: Entry) -> list[Entry]:
    """The runs on the same data, this one too, oldest first. None of those that spend nothing."""
    return _sharing(known, _merged([*_read(), known]))


def of_run(run: str) -> list[Entry]:
    """The same for a run by its id; [] where the account does not know it."""
    entries = _read()
    known = next((entry for entry in entries if entry.run == run and entry.charges), None)
    return _sharing(known, entries) if known else []


def wrote(file: bytes) -> bool:
    """Whether a run of this user keeps its settings in a file of this content: nobody else wrote it."""
    return any(known.settings == salted(file.hex()) for known in _read())


def everything() -> list[list[Entry]]:
    """All runs of this user that spent something, by data set."""
    entries = [entry for entry in _read() if entry.charges]
    found: list[list[Entry]] = []
    while entries:
        runs = _sharing(entries[0], entries)
        found.append(runs)
        entries = [entry for entry in entries if entry not in runs]
    return found


def joint_epsilon(runs: Sequence[Entry], delta: float) -> float | None:
    """Epsilon of all releases of all runs together at one delta. None where they protect different units.

    runs: entries of the account.
    delta: of the joint statement.
    """
    if len({(run.unit, run.neighbours) for run in runs}) != 1:
        return None
    return together([run.charges for run in runs], delta, runs[0].neighbours)


def together(runs: Sequence[Sequence[Charge]], delta: float, adjacency: Adjacency) -> float:
    """Epsilon of the charges of some runs. Who is held out of one may vote in another: of several, every unit is taken
    to bear all.

    runs: the charges of each.
    delta: of the statement.
    adjacency: how neighbouring data sets differ.
    """
    if len(runs) == 1:
        return epsilon_of(runs[0], delta, adjacency)
    return epsilon_of([replace(charge, of="all") for run in runs for charge in run], delta, adjacency)


def check_known_directory(run: str, directory: str, entries: Sequence[Entry]) -> None:
    began = next((entry.directory for entry in entries if entry.run == run), directory)
    if began != directory:
        raise UserError(
            f"run_dir={directory}: this run was begun in {began}. A copy would draw noise again that is charged once. "
            "Go on there, or name another run_dir for a new run."
        )


def _check_limit(new: Entry, runs: Sequence[Entry]) -> None:
    """A limit holds until a later run sets another one."""
    limits = [entry.limit for entry in runs if entry.limit is not None]
    limit = new.limit if new.limit is not None else limits[-1] if limits else None
    if limit is None or not new.charges:
        return
    joint = joint_epsilon(runs, new.delta)
    if joint is None:
        do = "Runs that protect different units cannot be added up."
        raise invalid("privacy.max_joint_epsilon", f"{limit:g}", "runs that protect the same unit on these data", do)
    if joint > limit:
        do = f"With this run all {len(runs)} on these data would spend it together. `dpsyn budget` lists them."
        raise invalid("privacy.max_joint_epsilon", f"{limit:g}", f"at least {format_epsilon(joint)}", do)


def _sharing(known: Entry, entries: Sequence[Entry]) -> list[Entry]:
    keys, found = set(known.keys), -1
    while len(keys) != found:
        found = len(keys)
        for entry in entries:
            if keys & set(entry.keys):
                keys |= set(entry.keys)
    return [entry for entry in entries if (entry.charges or entry.run == known.run) and keys & set(entry.keys)]


def _merged(entries: Sequence[Entry]) -> list[Entry]:
    """The last entry of a run counts, at the place of its first, and knows its data by all that any of them did and its
    limit by the last that set one; a run that begins takes the place of what was planned in its directory."""
    runs: dict[str, Entry] = {}
    for entry in entries:
        if not entry.run.startswith(PLANNED):
            runs.pop(PLANNED + entry.directory, None)
        earlier = runs.get(entry.run, entry)
        limit = earlier.limit if entry.limit is None else entry.limit
        runs[entry.run] = replace(entry, keys=tuple(sorted({*earlier.keys, *entry.keys})), limit=limit)
    return list(runs.values())


def salted(text: str) -> str:
    return hashlib.sha256(_salt() + text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _salt() -> bytes:
    """Secret, so that the account does not tell whoever has a file that it was used."""
    path = state_folder() / "salt"
    if not path.exists():
        temporary = path.with_name(f".salt.{os.getpid()}")
        write(temporary, secrets.token_bytes(32), private=True)
        with room_on_disk(path), suppress(FileExistsError):  # another process was faster
            os.link(temporary, path)
        temporary.unlink()
    return path.read_bytes()


@contextmanager
def _locked() -> Iterator[Path]:
    """The file of the account, for one process at a time."""
    path = state_folder() / "account.jsonl"
    with room_on_disk(path), os.fdopen(os.open(state_folder() / "lock", os.O_RDWR | os.O_CREAT, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def _append(path: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    is_new = not path.exists()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        cut_off = path.read_bytes()[-1:] not in (b"", b"\n")  # by a crash: else that line would swallow this one
        file.write("\n" * cut_off + "".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def _read() -> list[Entry]:
    """All runs, oldest first."""
    entries: list[Entry] = []
    for path in sorted(state_folder().glob("*.jsonl"), key=lambda path: path.name == "account.jsonl"):
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # the last line of a run that was killed while it wrote: it had released nothing yet
                continue
            if "withdrawn" in values:
                entries = [entry for entry in entries if entry.run != values["withdrawn"]]
                continue
            known = Entry(**{**values, "charges": tuple(Charge(**charge) for charge in values["charges"])})
            # a file of its own for each data set is how earlier versions kept their accounts
            entries.append(replace(known, keys=tuple(known.keys) or (salted(known.data),)))
    return _merged(entries)
