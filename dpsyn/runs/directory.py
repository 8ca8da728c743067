"""The run directory: what is released, what is private, resume, refusal, one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.errors import UserError
from dpsyn.files import folder, private_folder, room_on_disk, sha256, stamp, write, write_folder
from dpsyn.population import Label, Population
from dpsyn.runs.storage import from_parquet, read_lineage, to_parquet

TEXT = "text"  # what a column of texts is called where nobody calls it otherwise
SHOWN_KEYS = 3  # of those in which two runs differ


@dataclass(frozen=True)
class RunDirectory:
    """root: its place. is_private: without noise that is fit for it, nothing is written to `release/`, and what is
    written is for its owner alone. is_alone: the root itself is what was released, as a recipient has it."""

    root: Path
    is_private: bool = True
    is_alone: bool = False

    @property
    def release(self) -> Path:
        if self.is_alone:
            return self.root
        return self.root / ("release" if self.is_private else "not_private")

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def votes(self) -> Path:
        return self.release / "votes"

    def checkpoint(self, iteration: int) -> Path:
        return self.release / "iterations" / f"{iteration:03d}" / "samples.parquet"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory if need be. Raises UserError where another process works in it."""
        private_folder(self.private)
        with os.fdopen(os.open(self.private / "lock", os.O_RDWR | os.O_CREAT, 0o600), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"run_dir={self.root}: another process is working there. Wait, or name another."
                ) from None
            umask = os.umask(0o077)
            if self.is_private:
                os.umask(umask)
            try:
                for path in (self.votes, self.release / "iterations"):
                    folder(path)
                yield
            finally:
                os.umask(umask)

    def identity(self) -> dict[str, Any] | None:
        """What the run that is there was started as; None where there is none. Raises UserError when it was lost."""
        path = self.private / "config.yaml"
        if not path.exists():
            if any(self.root.glob("*/votes/*")) or any(self.root.glob("*/iterations/*")):
                raise UserError(
                    f"run_dir={self.root}: its private/config.yaml is gone, so this run cannot go on. "
                    "It can be expanded and exported; name another run_dir for a new one."
                )
            return None
        return mapping_in(path, "run", "sigma", "fingerprint", "settings")

    def has_begun(self) -> bool:
        """Whether anything is there that goes with one run alone: none before its first population is."""
        kinds = ("*/iterations/*", "*/votes/*", "private/intents/*")
        return any(any(self.root.glob(kind)) for kind in kinds)

    def begin(self, settings: Mapping[str, Any], fingerprint: str, sigma: float, measured_by: Mapping[str, Any]) -> str:
        """Writes down what a new run is, and returns its id.

        settings: those that identify the run.
        fingerprint: of the data; it stays in `private/`.
        sigma: the noise, as calibrated.
        measured_by: the metrics and the data that they read; they identify nothing.
        """
        import yaml

        run = secrets.token_hex(16)
        facts = {"run": run, "sigma": sigma, "fingerprint": fingerprint, "settings": dict(settings)}
        facts["measured_by"] = dict(measured_by)
        write(self.private / "config.yaml", yaml.safe_dump(facts, sort_keys=False).encode(), private=True)
        return run

    def check_same(
        self, known: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str, free: Collection[str] = ()
    ) -> None:
        """Raises UserError, with the keys that differ, unless these are the settings and the data of the run here.

        known: what `begin` wrote down.
        settings: of the run that is started now.
        fingerprint: of its data.
        free: keys that may differ, such as `api.base_url`.
        """
        before, now = flat(known["settings"]), flat(settings)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        keys = [key for key in keys if not any(f"{key}.".startswith(f"{name}.") for name in free)]
        if keys:
            shown = [f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys[:SHOWN_KEYS]]
            more = [f"and {len(keys) - SHOWN_KEYS} more"] if len(keys) > SHOWN_KEYS else []
            raise UserError(
                f"run_dir={self.root}: a run with other settings is there ({', '.join([*shown, *more])}). "
                "Give the command that began it, or name another run_dir."
            )
        if known["fingerprint"] != fingerprint:
            raise UserError(f"run_dir={self.root}: data: the files changed since this run began. Name another run_dir.")

    def evaluation_epsilon(self) -> float | None:
        """What the numbers about held-out units spend, once that was settled; None where nothing was asked."""
        path = self.private / "evaluation.json"
        return float(mapping_in(path, "epsilon")["epsilon"]) if path.exists() else None

    def settle_evaluation(self, epsilon: float) -> None:
        write(self.private / "evaluation.json", (json.dumps({"epsilon": epsilon}) + "\n").encode(), private=True)

    def save(self, population: Population, labels: Sequence[Label]) -> None:
        """A checkpoint: the folder of an iteration, whole or not there.

        population: with all of its lineage.
        labels: as declared.
        """
        import hashlib

        content = to_parquet(population, labels)
        digest = f"{hashlib.sha256(content).hexdigest()}  samples.parquet\n"
        write_folder(
            self.checkpoint(population.iteration).parent, {"samples.parquet": content, "SHA256SUMS": digest.encode()}
        )

    def load(self, iteration: int, per_label: int | None = None, rows: np.ndarray | None = None) -> Population:
        """The population of an iteration, or some of its rows.

        iteration: from 0 on.
        per_label: decode at most this many rows of each label; None: all.
        rows: int64 [m], decode these alone; None: as `per_label` says.

        Raises UserError where the checkpoint is missing or is not what was written.
        """
        return from_parquet(self._checked(iteration), self.checkpoint(iteration), per_label, rows)

    def lineage(self, iteration: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, parents and survivors of an iteration, as `read_lineage` gives them. Raises UserError as `load`."""
        return read_lineage(self._checked(iteration), self.checkpoint(iteration))

    def _checked(self, iteration: int) -> bytes:
        path = self.checkpoint(iteration)
        try:
            expected = (path.parent / "SHA256SUMS").read_text().split()[0]
            intact = sha256(path) == expected
        except (OSError, IndexError, UnicodeDecodeError):
            intact = False
        if not intact:
            raise UserError(
                f"{path}: this checkpoint is damaged (wrong checksum). Restore it, or name another run_dir."
            )
        return path.read_bytes()

    @property
    def text_column(self) -> str:
        """The name of the column of texts in the private data, where the run says it; or `text`."""
        path = self.release / "config.yaml"
        data = mapping_in(path).get("data") if path.exists() else None
        name = data.get("text_column") if isinstance(data, dict) else None
        return name if isinstance(name, str) else TEXT

    def iterations(self) -> list[int]:
        """The iterations that are there, rising; other names are none, "001 (copy)" say."""
        return sorted(int(path.name) for path in (self.release / "iterations").glob("[0-9]*") if path.name.isdecimal())

    def add_metrics(self, numbers: Mapping[str, Any], private: bool) -> None:
        """One line in `metrics.jsonl`, private or released, unless it is there; the last one of an iteration counts.

        numbers: with the iteration that they are of.
        private: whether they say something of private rows.
        """
        path = (self.private if private else self.release) / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        line = json.dumps(numbers)
        if line not in lines:
            write(path, "".join(f"{text}\n" for text in [*lines, line]).encode(), private=private)

    def read_usage(self) -> dict[str, Any]:
        """What the api took in all starts of this run, from cost.json; {} before the first time."""
        path = self.root / "cost.json"
        return mapping_in(path) if path.exists() else {}

    def write_usage(self, usage: Mapping[str, Any]) -> None:
        write(self.root / "cost.json", (json.dumps(usage, indent=1) + "\n").encode(), private=True)

    def log(self, text: str) -> None:
        """Dates and durations: private."""
        import datetime

        now = datetime.datetime.now().isoformat(timespec="milliseconds")
        path = self.private / "log"
        with room_on_disk(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write(f"{now} {text}\n")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Logs how long what is done inside took: private."""
        start = time.perf_counter()
        yield
        self.log(f"{what} {time.perf_counter() - start:.3f} s")

    def stamp(self) -> None:
        stamp(self.release)

    def contents(self) -> list[str]:
        """Where things are: 'synthetic data: runs/digits/release/synthetic.parquet'."""
        places = {
            "synthetic data": self.release / "synthetic.parquet",
            "schema with the values that were found": self.release / "schema.yaml",
            "pictures": self.release / "samples.png",
            "samples to read": self.release / "samples.txt",
            "privacy statement": self.release / "privacy.json",
            "page to look at": self.release / "report.html",
        }
        return [f"{name}: {path}" for name, path in places.items() if path.exists()]


def open_run(root: Path, alone: bool = False) -> RunDirectory:
    """A run that exists.

    root: its directory.
    alone: also a `release/` folder by itself. Raises UserError where there is none.
    """
    for is_private in (True, False):
        run = RunDirectory(root, is_private)
        if (run.release / "privacy.json").exists():
            return run
    if alone and (root / "privacy.json").exists():
        within = RunDirectory(root.parent, root.name == "release")
        if within.release.name == root.name and within.private.exists():
            return within
        return RunDirectory(root, is_private=root.name != "not_private", is_alone=True)
    if (root / "privacy.json").exists():
        raise UserError(f"{root}: expected the directory of a run; this is a release alone, or an export.")
    raise UserError(f"{root}: no run of dpsyn is there (no release/privacy.json).")


def mapping_in(path: Path, *keys: str) -> dict[str, Any]:
    """What a yaml or JSON file of a run says. Raises UserError where it is damaged.

    path: the file, which is there.
    keys: that it has, among others.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        said: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if isinstance(said, dict) and all(key in said for key in keys):
            return said
    except (ValueError, RecursionError, yaml.YAMLError):
        pass
    raise UserError(f"{path}: this file is damaged. Restore it, or name another run_dir.")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}

    settings: of any depth.
    prefix: what all keys begin with.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
