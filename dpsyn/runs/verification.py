"""`dpsyn verify`: what a run says of its privacy, held against its receipts and intents.

The whole statement is made again from the facts in it, and compared; epsilon is computed by exact convolution, with
neither the accountant nor its library.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpsyn import evaluation
from dpsyn.errors import UserError
from dpsyn.files import sha256
from dpsyn.privacy import account
from dpsyn.privacy.budget import GRID, SMALLEST_SIGMA, SUMS_GRID, Charge, exact_epsilon, format_epsilon, is_evaluation
from dpsyn.privacy.ledger import Receipt, answer_of, read_receipt
from dpsyn.privacy.query import CELLS, HISTOGRAM, LABELS, PREFIXES, SUMS
from dpsyn.privacy.statement import UNSEALED, Facts, document, format_delta, unprotected
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import differences
from dpsyn.runs.storage import label_name, labels_of

ROUNDING = 1e-5  # how far, relatively, a stated epsilon may lie below exact convolution


@dataclass(frozen=True)
class Report:
    """lines: what was found. agrees: the statement is true. complete: all declared releases were made."""

    lines: Sequence[str]
    agrees: bool
    complete: bool


def verified(run: RunDirectory) -> Report:
    """Raises UserError for a statement that cannot be read."""
    path = run.release / "privacy.json"
    try:
        content = path.read_bytes()
        whole = json.loads(content.decode("utf-8"))
        said = {key: value for key, value in whole.items() if key not in UNSEALED}
        lines, faults = [f"status: {said['status']}"], list[str]()
        is_sealed = isinstance(whole.get("files"), dict)
        if is_sealed:
            faults += differences(run.release, whole, content)
            lines.append(f"files: {len(whole['files'])}, each compared with its checksum")
        declared = [read_charge(charge) for charge in said["charges"]]
        stated = {t: c["receipt_sha256"] for t, c in enumerate(said["charges"], 1) if c["receipt_sha256"]}
        if said["epsilon"] is None:
            noise = "none" if said["status"] == "NOT PRIVATE" else "insecure_seeded"
            if said != json.loads(json.dumps(unprotected(noise, declared, stated))):
                faults.append("the statement is not the one that dpsyn writes of a run without protecting noise")
            lines.append("nothing is promised, nothing to verify")
            return _report(lines, faults, complete=is_sealed)
        facts = _facts(said, declared, stated)
        made_again = document(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path}: this is no statement of this version of dpsyn.") from None
    receipts = _receipts(run, faults)
    for receipt in receipts.values():
        _check_receipt(run, receipt, declared, stated, faults)
    if stated and not receipts and is_sealed and not any(name.startswith("votes/") for name in whole["files"]):
        lines.append("no receipts lie here, as in an export: epsilon was not computed again; ask for the whole release")
        return _report(lines, [*faults, *_differences(said, made_again)], complete=False)
    faults += [f"the receipt of '{declared[t - 1].name}' is gone" for t in stated if t not in receipts]
    if len(runs := {receipt.run for receipt in receipts.values()}) > 1:
        faults.append("the receipts belong to several runs")
    lines.append(_check_intents(run, list(facts.lost), receipts, faults))
    _check_epsilon(facts, lines, faults)
    faults += _differences(said, made_again)
    faults += _settings_differ(run, facts)
    _check_evaluation(run, facts, receipts, lines, faults)
    _check_joint(facts, runs, lines, faults)
    complete = len(receipts) == len(declared)
    if complete and not is_sealed:
        lines.append("INCOMPLETE: the files have no checksums yet. The command that began the run ends it.")
        complete = False
    elif not complete:
        made = f"{len(receipts)} of {len(declared)} releases were made"
        lines.append(f"INCOMPLETE: {made}. The guarantee holds; the data are not those of the finished run.")
    return _report(lines, faults, complete)


def _report(lines: Sequence[str], faults: Sequence[str], complete: bool) -> Report:
    end = f"{len(faults)} fault(s): do not rely on this statement" if faults else "all agrees"
    return Report([*lines, *(f"FAULT: {fault}" for fault in faults), end], not faults, complete)


def read_charge(said: Mapping[str, Any]) -> Charge:
    """Of a statement, which may be anybody's. Raises ValueError or TypeError for what is none."""
    charge = Charge(**{key: value for key, value in said.items() if key != "receipt_sha256"})
    whole = type(charge.moves) is int and charge.moves > 0 and charge.grid in (1, GRID, SUMS_GRID)
    whole = whole and charge.of in ("all", "voters", "held_out")
    if not isinstance(charge.name, str) or not charge.name.strip() or not whole or not 0 <= charge.sigma < math.inf:
        raise ValueError(charge)
    return charge


def _facts(said: Mapping[str, Any], declared: Sequence[Charge], stated: Mapping[int, str]) -> Facts:
    version = re.compile(r"[\w.+]+")
    opendp, accounting = said["mechanism"].split(",")[1].split()[-1], said["accountant"]["version"].split()[-1]
    ok = bool(version.fullmatch(opendp) and version.fullmatch(accounting))
    ok &= said["unit"] in ("record", "user") and said["neighbours"] in ("add_remove", "replace")
    ok &= 0 < said["delta"] < 1 and all(charge.sigma >= SMALLEST_SIGMA for charge in declared)
    if not ok or not all(isinstance(said[key], float | int) for key in ("epsilon", "epsilon_declared_schedule")):
        raise ValueError(said["delta"])
    joint = said["joint"]
    return Facts(
        epsilon=said["epsilon"],
        declared=said["epsilon_declared_schedule"],
        delta=said["delta"],
        unit=said["unit"],
        neighbours=said["neighbours"],
        charges=tuple(declared),
        lost=tuple(read_charge(charge) for charge in said["lost_charges"]),
        receipts=stated,
        public=said["assumed_public"],
        records=said["records"],
        data_id=joint["data_id"],
        runs=joint["runs"],
        joint=joint["epsilon"],
        opendp=opendp,
        accounting=accounting,
    )


def _receipts(run: RunDirectory, faults: list[str]) -> dict[int, Receipt]:
    found = {}
    for path in sorted(run.votes.glob("*.parquet")):
        try:
            receipt = read_receipt(path)
        except UserError as error:
            faults.append(str(error))
            continue
        if path.stem != f"{receipt.iteration:03d}":
            faults.append(f"{path}: this is the receipt of another release")
        found[receipt.iteration] = receipt
    return found


def _check_receipt(
    run: RunDirectory, receipt: Receipt, declared: Sequence[Charge], stated: Mapping[int, str], faults: list[str]
) -> None:
    t, path = receipt.iteration, run.votes / f"{receipt.iteration:03d}.parquet"
    if not 1 <= t <= len(declared) or asdict(receipt.charge) != asdict(declared[t - 1]):
        faults.append(f"{path}: charged otherwise than the statement says")
    elif not path.exists() or stated.get(t) != sha256(path):
        faults.append(f"{path}: not the receipt that the statement names")
    before, subject = run.checkpoint(t - 1), receipt.population
    kind = (receipt.charge.name.split() or [""])[0]
    of_cells, of_sums, of_prefixes = (subject.startswith(f"{each} ") for each in (CELLS, SUMS, PREFIXES))
    of_bins = subject.startswith(f"{HISTOGRAM} ")
    of_counts = subject == LABELS or of_cells or of_sums or of_bins or of_prefixes
    meant = {
        "votes": not of_counts,
        "label": subject == LABELS,
        "counts": of_cells,
        "embedding": of_sums,
        "prefixes": of_prefixes,
    }
    if not meant.get(kind, True) or of_bins != is_evaluation(receipt.charge):
        faults.append(f"{path}: not about what its charge is for")
    elif not of_counts and before.exists() and sha256(before) != subject:
        faults.append(f"{before}: not the population that was voted on")


def _check_intents(run: RunDirectory, lost: list[Charge], receipts: Mapping[int, Receipt], faults: list[str]) -> str:
    if not (run.private / "config.yaml").exists():
        return "private/ is not here: lost draws are taken from the statement"
    intents = [path.name.split("-")[0] for path in (run.private / "intents").glob("*-*")]
    faults += [f"the receipt of release {t} has no intent" for t in receipts if f"{t:03d}" not in intents]
    counted = len(intents) - len(receipts)
    if counted != len(lost):
        faults.append(f"the statement counts {len(lost)} lost draws, the intents say {counted}")
    return f"noisy draws started: {len(intents)}, receipts: {len(receipts)}, lost: {counted}"


def _check_epsilon(facts: Facts, lines: list[str], faults: list[str]) -> None:
    """A stated epsilon may be above the exact one: the accountant rounds up."""
    if not facts.charges:
        return
    exact = exact_epsilon((*facts.charges, *facts.lost), facts.delta, facts.neighbours)
    declared = exact_epsilon(facts.charges, facts.delta, facts.neighbours)
    lines.append(f"stated: epsilon {format_epsilon(facts.epsilon)} at delta {format_delta(facts.delta)}")
    lines.append(f"exact convolution: epsilon {format_epsilon(exact)}")
    if facts.epsilon < exact * (1 - ROUNDING):
        faults.append(f"the stated epsilon {facts.epsilon:g} is below {format_epsilon(exact)}, that of the charges")
    if facts.declared < declared * (1 - ROUNDING):
        faults.append(f"the epsilon of the declared schedule is {format_epsilon(declared)}, not {facts.declared:g}")


def _differences(said: Mapping[str, Any], made_again: Mapping[str, Any]) -> list[str]:
    again = json.loads(json.dumps(made_again))
    keys = [*again, *(key for key in said if key not in again)]
    return [f"'{key}' is not what these charges and settings give" for key in keys if said.get(key) != again.get(key)]


def _settings_differ(run: RunDirectory, facts: Facts) -> list[str]:
    import yaml

    path = run.release / "config.yaml"
    if not path.exists():
        return [f"{path}: the settings that are assumed public are gone"]
    try:
        same = yaml.safe_load(path.read_text(encoding="utf-8")) == facts.public
        privacy = facts.public["privacy"]
        noise = privacy["noise"], privacy["unit"], privacy["adjacency"], privacy["delta"]
        data = facts.public["data"]
        same &= facts.records == data.get("records") and facts.data_id == data.get("id")
        is_split = data.get("hold_out", 0) > 0
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        return [f"{path}: these are no settings of dpsyn"]
    faults = [] if same else [f"{path}: not the settings that the statement assumes public"]
    if noise != ("system", facts.unit, facts.neighbours, facts.delta):
        faults.append("the settings of privacy are not those that the statement promises")
    for charge in dict.fromkeys((*facts.charges, *facts.lost)):
        of = "all" if not is_split else "held_out" if is_evaluation(charge) else "voters"
        if charge.of != of:
            faults.append(f"'{charge.name}' is charged to {charge.of}; with this data.hold_out it was asked of {of}")
    return faults


def _check_evaluation(
    run: RunDirectory, facts: Facts, receipts: Mapping[int, Receipt], lines: list[str], faults: list[str]
) -> None:
    """The numbers that were measured under DP, made again from their receipts; which synthetic rows they judge, too."""
    path = run.release / evaluation.NAME
    if not path.exists():
        return
    named = {receipt.charge.name: receipt for receipt in receipts.values() if is_evaluation(receipt.charge)}
    wanted = [charge.name for charge in facts.charges if is_evaluation(charge)]
    if not wanted or set(wanted) != set(named):
        faults.append(f"{path}: these numbers have no receipts")
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        digest = str(said["judged"]["sha256"])
        judged = {"rows": int(said["judged"]["rows"]), "sha256": digest}
        ends = tuple(float(end) for end in said.get("distances", {}).get("ends", ()))
        columns = tuple(
            (str(each["column"]), tuple(map(str, each["bars"])), tuple(float(share) for share in each["synthetic"]))
            for each in said.get("columns", ())
        )
        by = evaluation.Asked(evaluation.digest_of(digest), ends, columns)
        place = run.checkpoint(run.iterations()[-1])
        labels = [label_name(label) for label in labels_of(place.read_bytes(), place)]
        questions = dict(zip(wanted, evaluation.queries(by, len(labels), wanted), strict=True))
        others = [name for name, query in questions.items() if named[name].population != query.about]
        if others:
            faults.append(f"{path}: '{others[0]}' was asked of other synthetic rows, or in other bins")
            return
        answers = {name: answer_of(named[name], query) for name, query in questions.items()}
        is_split = facts.public["data"].get("hold_out", 0) > 0
        again = {**evaluation.told(by, labels, answers, facts.unit == "record", is_split), "judged": judged}
        differ = evaluation.claims_differ(said, json.loads(json.dumps(again)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, IndexError, OSError):
        faults.append(f"{path}: this is no evaluation of this version of dpsyn")
        return
    faults += [f"{path}: '{key}' is not what the receipts give" for key in differ]
    now = run.release / "synthetic.parquet"
    if line := evaluation.outgrown({"judged": judged}, sha256(now) if now.exists() else None):
        lines.append(f"evaluation.json: {line}")
    if not differ:
        lines.append(f"evaluation.json: made again from {len(wanted)} receipts")


def _check_joint(facts: Facts, runs: set[str], lines: list[str], faults: list[str]) -> None:
    if facts.joint is not None and facts.joint < facts.epsilon:
        faults.append("the joint epsilon is below that of this run alone")
    known = account.of_run(next(iter(runs))) if len(runs) == 1 else []
    if not known:
        lines.append("the account of this user does not know this run: other runs on its data are not added up here")
        return
    joint = account.joint_epsilon(known, facts.delta)
    text = "unknown, since they protect different units" if joint is None else format_epsilon(joint)
    lines.append(f"today, all {len(known)} runs on these data that are known here: epsilon {text}")
