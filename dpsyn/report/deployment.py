"""`deployment.yaml`: a record for OpenDP's registry of deployments, as far as a program can fill it (its schema:
opendp/deployments-registry-data). What only the curator knows comes from `card` of the settings, or stays empty, with a
comment that says what belongs there."""

from __future__ import annotations

import re
from typing import Any

import yaml

from dpsyn.privacy.budget import format_epsilon
from dpsyn.report.facts import NOUNS, Released
from dpsyn.report.layout import Layout

NAME = "deployment.yaml"
HEAD = "# For the registry of deployments of OpenDP. Fill what is empty, or set card.* and run the command again.\n"
EMPTY = {
    "curator": "who publishes the data",
    "curator_type": "Government, Industry or Nonprofit",
    "intended_use": "what the data are for",
    "region": "which region the data describe, or whose law applies",
    "sector": "Technology, Healthcare, Education, Government, Energy or Finance",
    "published": "YYYY-MM-DD",
    "justification": "how epsilon, the unit and all other settings were chosen, and by whom",
    "author": "who fills in this record",
}


def deployment(released: Released, layout: Layout) -> bytes | None:
    """Yaml; None where nothing is promised, so that there is nothing to register.

    released: what is in the release.
    layout: where its rows lie.
    """
    promise = released.promise
    if promise.epsilon is None or promise.delta is None:
        return None
    by_user = promise.unit == "user"
    unit = "all rows of one user" if by_user else "one record"
    joint = f"together epsilon {format_epsilon(promise.joint)}" if promise.joint is not None else "joint loss unknown"
    known = f"{promise.runs} runs on the same data were known, {joint}." if promise.runs > 1 else "No other was known."

    def told(key: str) -> str:
        return released.card.get(key) or f"EMPTY {key}"

    record: dict[str, Any] = {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", released.name.lower()).strip("-") or "dpsyn",
        "deployment": {
            "basic": {
                "name": released.name,
                "data_curators": [
                    {"data_curator_name": told("curator"), "data_curator_type": told("curator_type")},
                ],
                "description": f"{layout.rows:,} synthetic {NOUNS[released.kind]}, made by Private Evolution (dpsyn).",
                "intended_use": told("intended_use"),
                "data_product_type": "Synthetic data",
                "data_product_region": told("region"),
                "data_product_sector": told("sector"),
                "publication_date": told("published"),
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": "Data sets that the declared schema, labels and sizes accept; see config.yaml.",
                "unprotected_quantities": "Everything that is listed as assumed public in privacy.json: labels, sizes, "
                "schema, models, embeddings, pools and prompts. That a run was refused is not protected.",
            },
            "privacy_loss": {
                "privacy_unit": "User-level" if by_user else "Record-level",
                "privacy_unit_details": f"Neighbouring data sets differ by {unit}, "
                f"{'replaced' if promise.neighbours == 'replace' else 'added or removed'}.",
                **({"number_of_privacy_units": promise.records} if promise.records and not by_user else {}),
                "privacy_parameters": {"epsilon": promise.epsilon, "delta": promise.delta},
                "privacy_parameters_details": promise.text,
            },
            "deployment_model": {
                "model_name": "Central",
                "actors": "Whoever holds the private data and ran dpsyn is trusted. Readers of the release, and "
                "whoever sees the requests to the generating model, are not.",
                "release_type": "One release",
                "release_type_details": f"The losses of releases from the same data add up. {known}",
                "data_source_type": "Static",
                "access_type": "Non-interactive",
            },
            "implementation": {
                "preprocessing_and_hyperparameter_tuning": "Rows are read by the declared schema, one by one. Settings "
                "are assumed to have been chosen without the private data; no loss of any tuning is counted.",
                "mechanisms": f"{promise.mechanism}, in {len(promise.charges)} releases of counts, listed in "
                "privacy.json. Exact counts are integers; the noise has no seed. Time and traffic are not protected.",
                "composition": f"{promise.accountant}; checked by exact convolution. {len(promise.lost)} lost draws "
                "are counted.",
                "post_processing": "Selection, variation, expansion and this folder are functions of the noisy answers "
                "and of public settings.",
                "justification": told("justification"),
                "additional_information": "`dpsyn verify` recomputes epsilon from the receipts in votes/.",
            },
            "administrative": {
                "evidence_sources": {},
                "status": "Draft",
                "registry_authors": [told("author")],
                "tier": 3,
            },
        },
    }
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=1000)
    for key, what in EMPTY.items():
        text = re.sub(rf"(: |- )EMPTY {key}$", rf"\1''  # {what}", text, flags=re.MULTILINE)
    return (HEAD + text).encode("utf-8", "backslashreplace")
