"""`dpsyn verify`: what a run says of its privacy, held against its receipts and intents by the closed form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dpsyn.errors import UserError
from dpsyn.files import sha256
from dpsyn.privacy.budget import Charge, closed_form, shown, tolerance
from dpsyn.privacy.ledger import LABELS, read_receipt
from dpsyn.run import RunDirectory


@dataclass(frozen=True)
class Report:
    lines: Sequence[str]
    agrees: bool


def verified(run: RunDirectory) -> Report:
    """Raises UserError for a statement that cannot be read."""
    try:
        said = json.loads((run.release / "privacy.json").read_text())
        declared = [Charge(**{k: v for k, v in charge.items() if k != "receipt_sha256"}) for charge in said["charges"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{run.release / 'privacy.json'}: this is no statement of dpsyn.") from None
    lines, faults = [f"status: {said['status']}"], []
    if said["epsilon"] is None:
        return Report([*lines, "nothing is promised, nothing to verify"], True)
    runs = set()
    for path in sorted(run.votes.glob("*.parquet")):
        try:
            receipt = read_receipt(path)
        except UserError as error:
            faults.append(str(error))
            continue
        runs.add(receipt.run)
        t = receipt.iteration
        if t > len(declared) or asdict(receipt.charge) != asdict(declared[t - 1]):
            faults.append(f"{path}: charged otherwise than the statement says")
        elif said["charges"][t - 1]["receipt_sha256"] not in (None, sha256(path)):
            faults.append(f"{path}: not the receipt that the statement names")
        before = run.checkpoint(t - 1)
        about = {"label": LABELS, "counts": "cells "}.get(receipt.charge.name.split()[0])  # where it is no population
        if about is not None and not receipt.population.startswith(about):
            faults.append(f"{path}: not about what its charge is for")
        if about is None and before.exists() and sha256(before) != receipt.population:
            faults.append(f"{before}: not the population that was voted on")
    missing = [c["name"] for t, c in enumerate(said["charges"], 1) if c["receipt_sha256"] and not _receipt(run, t)]
    faults += [f"the receipt of '{name}' is gone" for name in missing]
    if len(runs) > 1:
        faults.append("the receipts belong to several runs")
    lost = [Charge(**charge) for charge in said["lost_charges"]]
    if (run.private / "config.yaml").exists():
        intents = [path.name.split("-")[0] for path in (run.private / "intents").glob("*-*")]
        receipts = sorted(path.stem for path in run.votes.glob("*.parquet"))
        faults += [f"the receipt of iteration {t} has no intent" for t in receipts if t not in intents]
        counted = len(intents) - len(receipts)
        lines.append(f"noisy draws started: {len(intents)}, receipts: {len(receipts)}, lost: {counted}")
        if counted != len(lost):
            faults.append(f"the statement counts {len(lost)} lost draws, the intents say {counted}")
    else:
        lines.append("private/ is not here: lost draws are taken from the statement")
    if declared:
        epsilon = closed_form([*declared, *lost], said["delta"], said["neighbours"])
        lines.append(f"stated: epsilon {shown(said['epsilon'])} at delta {said['delta']:g}")
        lines.append(f"closed form of Gaussian composition: epsilon {shown(epsilon)}")
        if abs(epsilon - said["epsilon"]) > tolerance(declared) * epsilon:
            faults.append("the stated epsilon and the closed form disagree")
    lines += [f"FAULT: {fault}" for fault in faults]
    lines.append("all agrees" if not faults else f"{len(faults)} fault(s): do not rely on this statement")
    return Report(lines, not faults)


def _receipt(run: RunDirectory, t: int) -> bool:
    return (run.votes / f"{t:03d}.parquet").exists()
