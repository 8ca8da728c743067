"""The one door to private data: what goes through it is charged, noised, written down, and only then used.

For iteration t and attempt a, in this order:

1. the budget is checked, the votes are counted in memory, room for the receipt is taken: nothing is spent yet
2. intent `private/intents/ttt-a`, created exclusively and synced: from here on the draw counts as spent
3. noise is drawn, once, for the whole vector
4. receipt `private/pending/ttt.parquet`, synced
5. renamed to `release/votes/ttt.parquet`, folder synced: from here on the votes may be used

After a crash a complete receipt in `pending` is renamed (5), never drawn again. An intent without a receipt is a lost
draw: charged, though nobody saw it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dpsyn.errors import UserError
from dpsyn.files import private_folder, room_on_disk, stamp, sync_folder
from dpsyn.privacy.budget import Budget, Charge, Settings, epsilon_of, format_epsilon, records_in_a_vote
from dpsyn.privacy.mechanism import discrete_gaussian, insecure_seeded
from dpsyn.privacy.query import Answer, Query
from dpsyn.privacy.votes import Votes, unseal

FORMAT = "dpsyn receipt 1"
ALTERED = "The run was altered, or another version of dpsyn began it."
GONE = "private: the receipt of a finished iteration is missing. The run cannot resume; name another run_dir."


class Tallying(Protocol):
    """Private records that can be asked (`dpsyn.privacy.electorate.Electorate`)."""

    def tallied(self, query: Query) -> Votes: ...


@dataclass(frozen=True)
class Receipt:
    """Noisy votes and what they cost.

    votes: int64 [n], one entry a candidate, in 1/charge.grid.
    population: what was asked about: sha256 of the file that holds the candidates, or `about` of another query.
    """

    votes: np.ndarray
    run: str
    iteration: int
    charge: Charge
    population: str


@dataclass(frozen=True)
class Ledger:
    """private: the private folder of the run. votes: the folder of released receipts. run: the identity of the run.

    seed: only of `privacy.noise=insecure_seeded`; real noise has no seed.
    """

    private: Path
    votes: Path
    run: str
    settings: Settings
    budget: Budget
    seed: int = 0

    def release(self, iteration: int, query: Query, electorate: Tallying | None) -> Receipt:
        """The noisy answer of an iteration: the one written down, or a new one at the price of one charge.

        iteration: from 1 on, the number of the receipt.
        query: what is asked.
        electorate: the private records; None where only what is written down may be used.

        Raises UserError where the receipt there is, or the budget, does not allow it; RuntimeError for a query that
        moves more than is charged.
        """
        path = self._receipt(iteration)
        if path.exists():
            return self.written(iteration, query.about)
        if electorate is None:
            raise UserError(GONE)
        if not 1 <= iteration <= len(self.budget.charges):
            declared = len(self.budget.charges)
            raise UserError(
                f"privacy: release {iteration} was not declared: the budget has {declared}. Nothing was read."
            )
        charge = self.budget.charges[iteration - 1]
        one_row = charge.grid == 1 and self.budget.adjacency == "add_remove"
        doubled = query.signed and self.budget.adjacency == "replace"
        if (charge.grid == 1 and query.moves > charge.moves) or not (query.additive or one_row) or doubled:
            raise RuntimeError(f"release {iteration}: it moves more than it is charged for; nothing was read")
        votes, population = electorate.tallied(query), query.about
        if votes.moves > charge.moves or votes.grid != charge.grid:
            raise RuntimeError(f"release {iteration}: it moves more than it is charged for; nothing was released")
        exact = unseal(votes)

        def sealed(noisy: np.ndarray) -> bytes:
            return receipt_bytes(Receipt(noisy, self.run, iteration, charge, population))

        pending = private_folder(self.private / "pending") / path.name
        self._overwrite(pending, b"\0" * len(sealed(np.zeros_like(exact))))
        self._intend(iteration, charge, population)
        self._overwrite(pending, sealed(self._with_noise(exact, charge, iteration)))
        self._publish(pending, path)
        return self._verified(read_receipt(path), population)

    def written(self, iteration: int, about: str) -> Receipt:
        """What was released before. Raises UserError where it is gone, or is about something else.

        iteration: from 1 on, the number of the receipt.
        about: the query's own, which the receipt's must equal.
        """
        path = self._receipt(iteration)
        if not path.exists():
            raise UserError(GONE)
        return self._verified(read_receipt(path), about)

    def subject(self, iteration: int) -> str:
        """What the release of an iteration is about: its receipt's population."""
        path = self._receipt(iteration)
        if not path.exists():
            raise UserError(GONE)
        return read_receipt(path).population

    def recover(self) -> tuple[Charge, ...]:
        """Puts in order what a crash left behind, and returns the charges of the lost draws.

        Raises UserError for receipts without an intent or of another run, and for more lost draws than were accepted.
        """
        for pending in sorted((self.private / "pending").glob("*.parquet")):
            try:
                read_receipt(pending)
            except UserError:
                pending.unlink()
            else:
                self._publish(pending, self.votes / pending.name)
        lost: list[Charge] = []
        intents = self._intents()
        for path in sorted(self.votes.glob("*.parquet")):
            receipt = read_receipt(path)
            self._verified(receipt, receipt.population)
            if path != self._receipt(receipt.iteration) or not intents.get(receipt.iteration):
                raise UserError(
                    f"{path}: there is no intent for this receipt. Intents were deleted, or it was copied here."
                )
        for iteration, attempts in sorted(intents.items()):
            released = self._receipt(iteration).exists()
            lost += attempts[: len(attempts) - released]
        accepted = self.settings.accept_lost_draws
        if len(lost) > accepted:
            epsilon = epsilon_of((*self.budget.charges, *lost), self.budget.delta, self.budget.adjacency)
            raise UserError(
                f"privacy.accept_lost_draws={accepted}: {len(lost)} noisy release(s) were started and lost. "
                f"They count as spent: epsilon becomes {format_epsilon(epsilon)} "
                f"instead of {format_epsilon(self.budget.epsilon)}. "
                f"To go on with that, add privacy.accept_lost_draws={len(lost)}."
            )
        return tuple(lost)

    def _receipt(self, iteration: int) -> Path:
        return self.votes / f"{iteration:03d}.parquet"

    def _intents(self) -> dict[int, list[Charge]]:
        found: dict[int, list[Charge]] = {}
        for path in sorted((self.private / "intents").glob("*-*")):
            if not re.fullmatch(r"\d+-\d+", path.name):
                raise UserError(f"{path}: this is no intent that a run wrote. Remove it, and the same command goes on.")
            iteration = int(path.name.split("-")[0])
            try:
                charge = Charge(**json.loads(path.read_text())["charge"])
            except (ValueError, KeyError, TypeError):  # cut off by a crash: it was meant for what was declared
                charge = self.budget.charges[iteration - 1]
            found.setdefault(iteration, []).append(charge)
        return found

    def _verified(self, receipt: Receipt, population: str) -> Receipt:
        name = self._receipt(receipt.iteration)
        if receipt.run != self.run:
            raise UserError(f"{name}: this receipt belongs to another run.")
        if receipt.population != population:
            raise UserError(f"{name}: the votes are for another population than the one before it. {ALTERED}")
        if receipt.charge not in self.budget.charges[receipt.iteration - 1 : receipt.iteration]:
            raise UserError(f"{name}: charged {receipt.charge.sigma}, calibrated {self.budget.sigma}. {ALTERED}")
        return receipt

    def _intend(self, iteration: int, charge: Charge, population: str) -> None:
        folder = private_folder(self.private / "intents")
        attempt = 1 + len(list(folder.glob(f"{iteration:03d}-*")))
        path = folder / f"{iteration:03d}-{attempt}"
        with room_on_disk(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump({"run": self.run, "population": population, "charge": asdict(charge)}, file)
                    file.flush()
                    os.fsync(file.fileno())
                sync_folder(folder)
            except OSError:
                path.unlink()  # nothing was drawn yet
                raise

    def _with_noise(self, exact: np.ndarray, charge: Charge, iteration: int) -> np.ndarray:
        if self.settings.noise == "none":
            return exact
        if self.settings.noise == "insecure_seeded":
            return insecure_seeded(exact, charge.sigma * charge.grid, (self.seed, iteration))
        return discrete_gaussian(exact, charge.sigma * charge.grid)

    def _overwrite(self, path: Path, content: bytes) -> None:
        """In place, so that the room taken before the draw is there after it."""
        with room_on_disk(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())

    def _publish(self, pending: Path, path: Path) -> None:
        pending.chmod(0o644 if self.settings.is_private else 0o600)
        stamp(pending)
        with room_on_disk(path):
            os.replace(pending, path)
            sync_folder(path.parent)


def answer_of(receipt: Receipt, query: Query) -> Answer:
    """The noisy answer in records. A user with one row moves every entry of a release a little, by a vector of norm
    one: in records it is worth the root of their number.

    receipt: of the release.
    query: that was asked.
    """
    charge = receipt.charge
    scale = records_in_a_vote(charge, query.moves)
    return Answer(receipt.votes * (scale / charge.grid), charge.sigma * scale)


def receipt_bytes(receipt: Receipt) -> bytes:
    """Parquet, one column `votes`; of one length for one number of candidates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = json.dumps(_facts(receipt), sort_keys=True)
    metadata = {"dpsyn": facts, "sha256": _checksum(facts, receipt.votes)}
    table = pa.table({"votes": pa.array(receipt.votes, pa.int64())}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def read_receipt(path: Path) -> Receipt:
    """Raises UserError for a file that is no receipt, or not the one that was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # without Arrow's threads: see dpsyn/runs/storage.py
        table = pq.read_table(pa.BufferReader(path.read_bytes()), use_threads=False, pre_buffer=False)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        facts = json.loads(metadata["dpsyn"])
        votes = table["votes"].to_numpy().astype(np.int64)
        if metadata["sha256"] != _checksum(metadata["dpsyn"], votes) or facts["format"] != FORMAT:
            raise ValueError
        return Receipt(votes, facts["run"], facts["iteration"], Charge(**facts["charge"]), facts["population"])
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError):
        raise UserError(
            f"{path}: this receipt is damaged (wrong checksum). Restore it, or start in another run_dir."
        ) from None


def _facts(receipt: Receipt) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": receipt.run,
        "iteration": receipt.iteration,
        "charge": asdict(receipt.charge),
        "population": receipt.population,
    }


def _checksum(facts: str, votes: np.ndarray) -> str:
    return hashlib.sha256(facts.encode() + b"\0" + votes.astype("<i8").tobytes()).hexdigest()
