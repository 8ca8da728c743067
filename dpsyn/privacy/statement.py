"""`release/privacy.json`: what is promised, the numbers it rests on, and what it does not cover."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any

from dpsyn.files import sha256
from dpsyn.privacy.account import Entry, joint_epsilon
from dpsyn.privacy.budget import (
    WEAK,
    Adjacency,
    Budget,
    Charge,
    Settings,
    Unit,
    borne,
    composed_of,
    epsilon_of,
    exact_epsilon,
    format_epsilon,
    is_evaluation,
)

FORMAT = "dpsyn privacy 3"
UNSEALED = ("files", "sha256")  # keys of a statement that tell of files, not of privacy

ASSUMES = (
    "It holds if (1) what is listed as assumed public was chosen without the private data, and the models and pools "
    "were not built from it; (2) the private folder, the noise and the memory of the host stay secret; (3) the run was "
    "not copied, rolled back or altered."
)
USERS = (
    "user, that is all rows with one value of the unit column (values are compared as text: white space at the ends is "
    "dropped, Unicode is in normal form C, a whole number written as 7.0 is 7, and so in the data's declared way of "
    "writing numbers; rows without a value cast no vote)"
)


@dataclass(frozen=True)
class Facts:
    """All that a statement is made of.

    epsilon: of the declared charges and the lost draws together; declared: without the lost draws. receipts: release to
    the sha256 of its receipt. public: all settings that are assumed public. runs: how many on the same data, with this
    one. joint: their epsilon, None where it is not known. opendp, accounting: versions of the libraries.
    """

    epsilon: float
    declared: float
    delta: float
    unit: Unit
    neighbours: Adjacency
    charges: tuple[Charge, ...]
    lost: tuple[Charge, ...]
    receipts: Mapping[int, str]
    public: Mapping[str, Any]
    records: int | None
    data_id: str | None
    runs: int
    joint: float | None
    opendp: str
    accounting: str


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
    """`privacy.json`, as bytes of JSON.

    settings: privacy settings of the run.
    budget: of its declared schedule.
    lost: charges of draws whose receipts are gone.
    receipts: files of those released so far.
    public: all settings that are assumed public.
    data_id: the declared name of the data; None: it has none.
    runs: entries of the account on the same data, this one too.
    records: the declared number of records; None: it is not declared.
    """
    digests = {int(path.stem): sha256(path) for path in receipts}
    if not settings.is_private:
        return as_json(unprotected(settings.noise, budget.charges, digests))
    epsilon = epsilon_of((*budget.charges, *lost), budget.delta, budget.adjacency)
    joint = joint_epsilon(runs, budget.delta) if runs else epsilon
    facts = Facts(
        epsilon=float(format_epsilon(epsilon)),
        declared=float(format_epsilon(epsilon_of(budget.charges, budget.delta, budget.adjacency))),
        delta=budget.delta,
        unit=settings.unit,
        neighbours=budget.adjacency,
        charges=budget.charges,
        lost=tuple(lost),
        receipts=digests,
        public=public,
        records=records,
        data_id=data_id,
        runs=max(1, len(runs)),
        joint=None if joint is None else float(format_epsilon(joint)),
        opendp=importlib.metadata.version("opendp"),
        accounting=importlib.metadata.version("dp-accounting"),
    )
    return as_json(document(facts))


def as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def sealed(document: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """With the sha256 of all other released files, by name, and of itself: whoever has the folder alone finds a byte
    that was changed.

    document: the statement.
    files: name to sha256.
    """
    whole = {**{key: value for key, value in document.items() if key not in UNSEALED}, "files": dict(files)}
    return {**whole, "sha256": hashlib.sha256(as_json(whole)).hexdigest()}


def dp_event(charges: Sequence[Charge], adjacency: Adjacency) -> dict[str, Any]:
    """The run as an event of dp-accounting, in the fields of its `to_named_tuple`. A discrete Gaussian stands there as
    the continuous one of the same deviation: dp-accounting has no event of its own for it. From a deviation of 1 on
    epsilon differs by less than 2 % (measured at delta 1e-5: 4.43 against 4.38; at 5, 0.7266 against 0.7255). Where
    units are held out, of those that bear more.

    charges: in any order.
    adjacency: how neighbouring data sets differ.
    """

    def event(name: str, **fields: Any) -> dict[str, Any]:
        return {"module_name": "dp_accounting.dp_event", "class_name": name, **fields}

    costliest = max(borne(charges, adjacency), key=lambda part: sum(c.moves / max(c.sigma, 1e-9) ** 2 for c in part))
    noise = sorted(composed_of(costliest, adjacency).items())
    return event(
        "ComposedDpEvent",
        events=[
            event("SelfComposedDpEvent", event=event("GaussianDpEvent", noise_multiplier=deviation), count=times)
            for (deviation, _), times in noise
        ],
    )


def unprotected(noise: str, charges: Sequence[Charge], receipts: Mapping[int, str]) -> dict[str, Any]:
    """Written instead of a statement where the noise is not the system's.

    noise: `privacy.noise`.
    charges: declared; their sigma protects nobody.
    receipts: digests by iteration.
    """
    return {
        "format": FORMAT,
        "status": "NOT PRIVATE" if noise == "none" else "INSECURE NOISE",
        "epsilon": None,
        "delta": None,
        "charges": _charges(charges, receipts),
        "statement": "Nothing is promised: the votes were released without noise that could protect them. "
        "For tests only; do not publish.",
    }


def document(facts: Facts) -> dict[str, Any]:
    """The whole statement. `dpsyn verify` makes it again from the facts in it, and compares."""
    status = ["DP" if len(facts.receipts) == len(facts.charges) else "INCOMPLETE"]
    status += ["WEAK"] if facts.epsilon > WEAK else []
    noise = "discrete Gaussian" if facts.unit == "record" else "continuous Gaussian, rounded at random"
    exact = exact_epsilon((*facts.charges, *facts.lost), facts.delta, facts.neighbours)
    return {
        "format": FORMAT,
        "status": ", ".join(status),
        "epsilon": facts.epsilon,
        "delta": facts.delta,
        "unit": facts.unit,
        "neighbours": facts.neighbours,
        "covers": "everything under release/, and every request sent to the generating model",
        "charges": _charges(facts.charges, facts.receipts),
        "lost_draws": len(facts.lost),
        "lost_charges": [asdict(charge) for charge in facts.lost],
        "epsilon_declared_schedule": facts.declared,
        "dp_event": dp_event((*facts.charges, *facts.lost), facts.neighbours),
        "mechanism": f"discrete Gaussian, OpenDP {facts.opendp}, OpenSSL's generator, seeded by the operating system",
        "accountant": {
            "method": f"privacy loss distributions, connect the dots; {noise}",
            "version": f"dp-accounting {facts.accounting}",
            "exact_convolution": float(f"{exact:.4f}"),
        },
        "record_domain": "data sets that the declared labels and sizes accept; that a run was refused is not protected",
        "assumed_public": facts.public,
        "records": facts.records,
        "joint": {"data_id": facts.data_id, "runs": facts.runs, "epsilon": facts.joint, "delta": facts.delta},
        "limits": _limits(facts),
        "statement": _sentences(facts),
    }


def format_delta(delta: float, digits: int = 6) -> str:
    """Rounded up to so many digits: what is shown is never less than what is promised.

    delta: above 0.
    digits: significant ones.
    """
    rounded = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(Decimal(repr(delta)))
    return f"{float(rounded):g}"


def _charges(charges: Sequence[Charge], receipts: Mapping[int, str]) -> list[dict[str, Any]]:
    return [asdict(charge) | {"receipt_sha256": receipts.get(t)} for t, charge in enumerate(charges, 1)]


def _limits(facts: Facts) -> list[str]:
    limits = []
    if facts.epsilon > WEAK:
        limits.append(f"epsilon {format_epsilon(facts.epsilon)} is over {WEAK:g}: a weak guarantee")
    if facts.records and facts.delta >= 1 / facts.records:
        least = f"1/{facts.records}, one over the declared number of records"
        limits.append(f"delta {format_delta(facts.delta)} is not below {least}")
    return limits


def _of_evaluation(facts: Facts) -> str:
    """What is said of releases that measured the finished data; '' where there are none."""
    measured = [charge for charge in facts.charges if is_evaluation(charge)]
    if not measured:
        return ""
    sides = borne((*facts.charges, *facts.lost), facts.neighbours)
    if len(sides) > 1:
        voters, held = (format_epsilon(exact_epsilon(side, facts.delta, facts.neighbours)) for side in sides)
        return (
            f"The last {len(measured)} releases measured the finished data on {facts.unit}s that had been held out, "
            f"all others were asked of the rest; which of the two a {facts.unit} is follows from a keyed hash of "
            f"itself, so epsilon is the larger of {voters} and {held}. "
        )
    why = "were held out, but may be replaced by one that voted" if measured[0].of == "held_out" else "had voted"
    last = f"The last {len(measured)} releases measured the finished data on {facts.unit}s that {why}"
    return f"{last}: their losses are added. "


def _sentences(facts: Facts) -> str:
    unit = "record" if facts.unit == "record" else USERS
    change = "replacing" if facts.neighbours == "replace" else "adding or removing"
    together = format_epsilon(facts.joint) if facts.joint else "unknown"
    known = "none" if facts.runs < 2 else f"{facts.runs} runs with this one, together epsilon {together}"
    group = " A person with m records has only the weaker guarantee of a group of m." if facts.unit == "record" else ""
    return (
        "Everything under release/, and every request sent to the generating model, is together (epsilon, delta)-"
        f"differentially private with epsilon = {format_epsilon(facts.epsilon)}, "
        f"delta = {format_delta(facts.delta)}, for data "
        f"sets that differ by {change} one {unit}. Private data was used only in the {len(facts.charges)} noisy "
        'releases listed under "charges" (discrete Gaussian noise from a cryptographic generator seeded by the '
        f"operating system, never from the published seed) and {len(facts.lost)} lost draws, also counted. "
        f"{_of_evaluation(facts)}All else is "
        "computed from those releases and from what is listed as assumed public. Epsilon is that of the full declared "
        f"schedule, however early the run stopped. {ASSUMES}{group} It does not cover: other releases from the same "
        f"data (their losses add; those known here: {known}); anything in private/, among it all metrics on real data, "
        "and any choice made with them; how long the run took, its traffic, whether it was refused; rounding by which "
        "an embedding may depend on the batch; facts about the population that the data show without any one "
        f"{facts.unit}. It is not a claim that the data are anonymous or lawful to share."
    )
