"""All that a page tells of a run, read from `release/` alone. Nothing there is trusted: it may be a stranger's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import evaluation
from dpsyn.errors import UserError
from dpsyn.files import sha256
from dpsyn.population import I64, Bool, Population
from dpsyn.privacy.budget import Adjacency, Charge, Unit
from dpsyn.privacy.ledger import Receipt, read_receipt
from dpsyn.privacy.query import CELLS, HISTOGRAM, LABELS, PREFIXES, SUMS
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.storage import from_parquet, label_name, labels_are_chosen, labels_of, read_lineage
from dpsyn.runs.verification import read_charge

NOUNS = {"images": "images", "texts": "texts", "tables": "table rows"}
# written from the other files, or after them: they do not tell of themselves. The statement holds their checksums
OF_THE_REST = ("report.html", "README.md", "croissant.json", "deployment.yaml", "privacy.json")
NO_VOTES = (
    LABELS,
    f"{CELLS} ",
    f"{SUMS} ",
    f"{HISTOGRAM} ",
    f"{PREFIXES} ",
)  # what receipts of other queries are about
LOOKED_AT = {"images": 400, "texts": 5_000, "tables": 100_000}  # rows of the synthetic data
MOST_ITERATIONS, MOST_CHARGES = 1_000, 10_000  # of a stranger's release


@dataclass(frozen=True)
class Promise:
    """What `privacy.json` states, its types checked. epsilon, delta: None where nothing is promised. lost: charges of
    lost draws. joint: epsilon of all runs on the data that were known when it was written, `runs` of them."""

    status: str
    epsilon: float | None
    delta: float | None
    unit: Unit
    neighbours: Adjacency
    charges: tuple[Charge, ...]
    lost: tuple[Charge, ...]
    receipts: Mapping[int, str]
    joint: float | None
    runs: int
    records: int | None
    mechanism: str
    accountant: str
    limits: tuple[str, ...]
    text: str

    @property
    def is_private(self) -> bool:
        return self.epsilon is not None


@dataclass(frozen=True)
class Lineage:
    """Where the rows of an iteration come from: labels int64 [n], parents int64 [n], survivors bool [n]."""

    iteration: int
    labels: I64
    parents: I64
    survivors: Bool


@dataclass(frozen=True)
class Released:
    """Everything in `release/`, content only where it is looked at.

    settings: of config.yaml; {} where it cannot be read. labels: their names. votes: iteration to the receipt of votes
    for the candidates of the iteration before. cells: receipts of counts of cells, by number. numbers: lines of
    metrics.jsonl. evaluation: what was measured under DP, as evaluation.json says it. labels_chosen: the shares of the
    labels were chosen, not learned. rows: of the synthetic data, or
    of the last population where there are none yet; row_labels int64 [rows], 0 for a table whose columns hold its
    labels; sample: of `some_of` them. files: name, bytes, sha256.
    """

    run: RunDirectory
    promise: Promise
    settings: Mapping[str, Any]
    settings_text: str
    labels: tuple[str, ...]
    lineages: tuple[Lineage, ...]
    votes: Mapping[int, Receipt]
    cells: Mapping[int, Receipt]
    numbers: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any] | None
    is_finished: bool
    labels_chosen: bool
    rows: int
    row_labels: I64
    sample: Population
    files: tuple[tuple[str, int, str], ...]

    @property
    def kind(self) -> str:
        return kind_of(self.sample)

    @property
    def digest(self) -> str | None:
        """Of the file with the synthetic data; None where it is not there yet."""
        return next((digest for name, _, digest in self.files if name == "synthetic.parquet"), None)

    @property
    def card(self) -> Mapping[str, str]:
        """What its curator says of it; no key where nothing is said."""
        said = self.settings.get("card")
        given = said.items() if isinstance(said, Mapping) else ()
        return {str(key): " ".join(str(value).split())[:2000] for key, value in given if value is not None}

    @property
    def name(self) -> str:
        return str(self.settings.get("name", "dpsyn"))[:80]


def kind_of(population: Population) -> str:
    """'images', 'texts' or 'tables'"""
    content = population.samples.content
    return "images" if content.ndim == 4 else "tables" if content.dtype.names else "texts"


def some_of(n: int, most: int) -> I64:
    """Numbers of rows in their order, the same every time: all, or `most` of them, drawn. Every tenth row would be of
    half of the labels where ten labels take turns.

    n: rows there are.
    most: rows that are looked at.
    """
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def read(run: RunDirectory) -> Released:
    """Raises UserError, naming the file, for a release that is damaged, has no population yet, or is not dpsyn's."""
    promise = read_promise(run.release / "privacy.json")
    iterations = run.iterations()
    if not iterations:
        raise UserError(f"{run.root}: nothing is there to report on yet. Give the command that began the run.")
    if len(iterations) > MOST_ITERATIONS:
        raise UserError(f"{run.root}: expected at most {MOST_ITERATIONS} iterations.")
    lineages = tuple(Lineage(t, *run.lineage(t)) for t in iterations)
    receipts = {
        receipt.iteration: receipt for path in sorted(run.votes.glob("*.parquet")) for receipt in [read_receipt(path)]
    }
    path = run.release / "synthetic.parquet"
    is_finished = path.exists()
    last = run.checkpoint(iterations[-1])
    path = path if is_finished else last
    content = path.read_bytes()
    row_labels, _, _ = read_lineage(content, path)
    first = from_parquet(content, path, rows=np.arange(min(1, len(row_labels))))
    some = some_of(len(row_labels), LOOKED_AT[kind_of(first)])
    settings, text = _settings(run.release / "config.yaml")
    return Released(
        run=run,
        promise=promise,
        settings=settings,
        settings_text=text,
        labels=tuple(label_name(label) for label in labels_of(last.read_bytes(), last)),
        lineages=lineages,
        votes=_votes(receipts, lineages),
        cells={t: receipt for t, receipt in receipts.items() if receipt.population.startswith(f"{CELLS} ")},
        numbers=read_numbers(run.release / "metrics.jsonl"),
        evaluation=read_evaluation(run.release / evaluation.NAME),
        is_finished=is_finished,
        labels_chosen=is_finished and labels_are_chosen(run.release),
        rows=len(row_labels),
        row_labels=row_labels,
        sample=from_parquet(content, path, rows=some),
        files=_files(run.release),
    )


def read_promise(path: Path) -> Promise:
    """Raises UserError for what is no statement."""
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        charges = tuple(read_charge(charge) for charge in said["charges"])
        if len(charges) > MOST_CHARGES:
            raise ValueError(len(charges))
        promised, records = said["epsilon"] is not None, said.get("records")
        joint: Any = said["joint"] if promised else {"runs": 1, "epsilon": None}
        unit: Unit = said["unit"] if promised else "record"
        neighbours: Adjacency = said["neighbours"] if promised else "add_remove"
        if unit not in ("record", "user") or neighbours not in ("add_remove", "replace"):
            raise ValueError(unit)
        return Promise(
            status=str(said["status"])[:60],
            epsilon=_positive(said["epsilon"]) if promised else None,
            delta=_positive(said["delta"]) if promised else None,
            unit=unit,
            neighbours=neighbours,
            charges=charges,
            lost=tuple(read_charge(charge) for charge in said["lost_charges"]) if promised else (),
            receipts={t: str(c["receipt_sha256"]) for t, c in enumerate(said["charges"], 1) if c["receipt_sha256"]},
            joint=None if joint["epsilon"] is None else _positive(joint["epsilon"]),
            runs=int(joint["runs"]),
            records=records if isinstance(records, int) else None,
            mechanism=str(said.get("mechanism", "none"))[:300],
            accountant=", ".join(str(said["accountant"][key]) for key in ("method", "version"))[:300]
            if promised
            else "none",
            limits=tuple(str(limit)[:300] for limit in said["limits"][:10]) if promised else (),
            text=str(said["statement"])[:20_000],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path}: this is no statement of this version of dpsyn.") from None


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(value)
    return float(value)


def _votes(receipts: Mapping[int, Receipt], lineages: Sequence[Lineage]) -> dict[int, Receipt]:
    rows = {each.iteration + 1: len(each.labels) for each in lineages}
    return {
        t: receipt
        for t, receipt in receipts.items()
        if not receipt.population.startswith(NO_VOTES) and rows.get(t) == len(receipt.votes)
    }


def _settings(path: Path) -> tuple[Mapping[str, Any], str]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}, ""
    return (found if isinstance(found, Mapping) else {}), text


def read_numbers(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Lines of metrics.jsonl that hold an iteration and numbers; the last one of an iteration and a metric counts."""
    if not path.exists():
        return ()
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[:100_000]:
        try:
            numbers = json.loads(line)
            key = (int(numbers["iteration"]), bool(numbers.get("final")), str(numbers.get("metric", "")))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        found[key] = {name: value for name, value in numbers.items() if isinstance(value, int | float | str)}
    return tuple(found.values())


def read_evaluation(path: Path) -> Mapping[str, Any] | None:
    """What an evaluation.json says, as `evaluation.as_mapping` gives it; None where it is not there, or damaged."""
    try:
        return evaluation.as_mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def _files(folder: Path) -> tuple[tuple[str, int, str], ...]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and name not in OF_THE_REST and not path.name.startswith("."):
            found.append((name, path.stat().st_size, sha256(path)))
    return tuple(found)
