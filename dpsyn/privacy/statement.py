"""`release/privacy.json`: what is promised, the numbers it rests on, and what it does not cover."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpsyn.files import sha256
from dpsyn.privacy.account import Entry, joint_epsilon
from dpsyn.privacy.budget import WEAK, Budget, Charge, Settings, closed_form, epsilon_of, shown

FORMAT = "dpsyn privacy 1"

ASSUMES = (
    "It holds if (1) what is listed as assumed public was chosen without the private data, and the models and pools "
    "were not built from it; (2) the private folder, the noise and the memory of the host stay secret; (3) the run was "
    "not copied, rolled back or altered."
)


def statement(
    settings: Settings,
    budget: Budget,
    lost: Sequence[Charge],
    receipts: Sequence[Path],
    public: Mapping[str, Any],
    data_id: str | None,
    runs: Sequence[Entry],
    records: int | None,
) -> bytes:
    """JSON. receipts: those released so far. public: all settings that are assumed public. runs: on the same data."""
    if not settings.is_private:
        facts: dict[str, Any] = {
            "format": FORMAT,
            "status": "NOT PRIVATE" if settings.noise == "none" else "INSECURE NOISE",
            "epsilon": None,
            "delta": None,
            "charges": _charges(budget, receipts),
            "statement": "Nothing is promised: the votes were released without noise that could protect them. "
            "For tests only; do not publish.",
        }
        return (json.dumps(facts, indent=2) + "\n").encode()
    epsilon = epsilon_of((*budget.charges, *lost), budget.delta, budget.neighbours)
    complete = len(receipts) == len(budget.charges)
    status = ["DP"] if complete else ["INCOMPLETE"]
    status += ["WEAK"] if epsilon > WEAK else []
    joint = joint_epsilon(runs, budget.delta) if runs else epsilon
    facts = {
        "format": FORMAT,
        "status": ", ".join(status),
        "epsilon": float(shown(epsilon)),
        "delta": budget.delta,
        "unit": settings.unit,
        "neighbours": settings.neighbours,
        "covers": "everything under release/, and every request sent to the generating model",
        "charges": _charges(budget, receipts),
        "lost_draws": len(lost),
        "lost_charges": [asdict(charge) for charge in lost],
        "epsilon_declared_schedule": float(shown(epsilon_of(budget.charges, budget.delta, budget.neighbours))),
        "mechanism": f"discrete Gaussian, OpenDP {importlib.metadata.version('opendp')}, operating system's randomness",
        "accountant": {
            "method": "privacy loss distributions, connect the dots; "
            + ("discrete Gaussian" if settings.unit == "record" else "continuous Gaussian, rounded at random"),
            "version": f"dp-accounting {importlib.metadata.version('dp-accounting')}",
            "closed_form": round(closed_form((*budget.charges, *lost), budget.delta, budget.neighbours), 4),
        },
        "record_domain": "data sets that the declared labels and sizes accept; that a run was refused is not protected",
        "assumed_public": public,
        "joint": {
            "data_id": data_id,
            "runs": max(1, len(runs)),
            "epsilon": None if joint is None else float(shown(joint)),
            "delta": budget.delta,
        },
        "limits": _limits(budget, epsilon, records),
        "statement": _sentences(settings, budget, epsilon, len(lost), len(runs), joint),
    }
    return (json.dumps(facts, indent=2) + "\n").encode()


def _charges(budget: Budget, receipts: Sequence[Path]) -> list[dict[str, Any]]:
    digests = {int(path.stem): sha256(path) for path in receipts}
    return [asdict(charge) | {"receipt_sha256": digests.get(t)} for t, charge in enumerate(budget.charges, 1)]


def _limits(budget: Budget, epsilon: float, records: int | None) -> list[str]:
    limits = []
    if epsilon > WEAK:
        limits.append(f"epsilon {shown(epsilon)} is over {WEAK:g}: a weak guarantee")
    if records and budget.delta >= 1 / records:
        limits.append(f"delta {budget.delta:g} is not below 1/{records}, one over the declared number of records")
    return limits


def _sentences(settings: Settings, budget: Budget, epsilon: float, lost: int, runs: int, joint: float | None) -> str:
    unit = "record" if settings.unit == "record" else "user, that is all rows with one value of the unit column"
    change = "replacing" if settings.neighbours == "replace" else "adding or removing"
    known = (
        "none" if runs < 2 else f"{runs} runs with this one, together epsilon " + (shown(joint) if joint else "unknown")
    )
    group = (
        " A person with m records has only the weaker guarantee of a group of m." if settings.unit == "record" else ""
    )
    return (
        "Everything under release/, and every request sent to the generating model, is together (epsilon, delta)-"
        f"differentially private with epsilon = {shown(epsilon)}, delta = {budget.delta:g}, for data sets that differ "
        f"by {change} one {unit}. Private data was used only in the {len(budget.charges)} noisy releases listed under "
        '"charges" (discrete Gaussian noise from the operating system\'s generator, never from the published seed) and '
        f"{lost} lost draws, also counted. All else is computed from those releases and from what is listed as assumed "
        "public. Epsilon is that of the full declared schedule, however early the run stopped. "
        f"{ASSUMES}{group} It does not cover: other releases from the same data (their losses add; those known here: "
        f"{known}); anything in private/, among it all metrics on real data, and any choice made with them; how long "
        "the run took, its traffic, whether it was refused; rounding by which an embedding may depend on the batch; "
        f"facts about the population that the data show without any one {settings.unit}. It is not a claim that the "
        "data are anonymous or lawful to share."
    )
