"""`release/README.md`: what the folder is, for people and for `datasets`, which reads its head."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpsyn.privacy.budget import format_epsilon
from dpsyn.privacy.statement import format_delta
from dpsyn.report.facts import Released
from dpsyn.runs.storage import columns_in

SHOWN_LABELS, SHOWN_COLUMNS = 60, 400
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
NOUNS = {"images": "images", "texts": "texts", "tables": "table rows"}
MODALITY = {"images": "image", "texts": "text", "tables": "tabular"}


def card(released: Released) -> bytes:
    """Markdown with a YAML head: `datasets.load_dataset` of this folder gives synthetic.parquet, with `name` the
    iterations or the votes."""
    head = yaml.safe_dump(_head(released), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{_body(released)}".encode("utf-8", "backslashreplace")


def _head(released: Released) -> Mapping[str, Any]:
    files = {"default": "synthetic.parquet" if released.is_finished else _last(released)}
    files["iterations"] = "iterations/*/samples.parquet"
    if released.votes or released.cells:
        files["votes"] = "votes/*.parquet"
    size = next((name for most, name in SIZES if released.rows < most), "n>10M")
    return {
        "pretty_name": " ".join(released.name.split()),
        "tags": ["synthetic", "dpsyn", *(["differential-privacy"] if released.promise.is_private else [])],
        "modalities": [MODALITY[released.kind]],
        "size_categories": [size],
        "configs": [
            {
                "config_name": name,
                "data_files": place,
                "description": _digest(released, place),
                **({"default": True} if name == "default" else {}),
            }
            for name, place in files.items()
        ],
    }


def _digest(released: Released, pattern: str) -> str:
    """Of the content of these files. `datasets` takes what it has cached for a folder of the same name, the same head
    and the same modification times, whatever is in it: it gave the digits of one release for the texts of another."""
    known = [digest for name, _, digest in released.files if fnmatch.fnmatchcase(name, pattern)]
    return f"sha256 {hashlib.sha256(' '.join(known).encode()).hexdigest()}"


def _last(released: Released) -> str:
    return f"iterations/{released.lineages[-1].iteration:03d}/samples.parquet"


def _body(released: Released) -> str:
    promise, noun = released.promise, NOUNS[released.kind]
    path = released.run.release / "synthetic.parquet" if released.is_finished else None
    path = path or released.run.checkpoint(released.lineages[-1].iteration)
    columns = columns_in(path.read_bytes(), path)
    shown = list(columns.items())[:SHOWN_COLUMNS]
    labels = [plain(label) for label in released.labels[:SHOWN_LABELS]]
    more = len(released.labels) - len(labels)
    made = "made up by dpsyn, or chosen among public ones. No private record was copied into them."
    unfinished = "" if released.is_finished else "\n**The run is not finished: these are not its final data.**\n"
    limits = [
        *promise.limits,
        "What is rare in the private data drowns in the noise first, so small groups are told worse than large ones.",
        "The rows are not the records: what is computed from them is an estimate, and its error is not stated.",
    ]
    return "\n".join(
        [
            f"# {plain(released.name)}: {released.rows:,} synthetic {noun}",
            "",
            f"{released.rows:,} {noun}, {made} `report.html` shows them, and what is known of them.",
            unfinished,
            *(
                ["**The shares of the labels were chosen, not learned from the private data.**", ""]
                * released.labels_chosen
            ),
            "```python",
            "from datasets import load_dataset",
            "",
            'data = load_dataset("release", split="train")  # this folder',
            "print(data[0])",
            "```",
            "",
            "`pandas.read_parquet`, polars and DuckDB read `synthetic.parquet` as well. All candidates",
            'are in `load_dataset("release", "iterations")`, the noisy answers that chose among them in "votes".',
            "",
            "## Privacy",
            "",
            *_promise(released),
            "",
            f"> {plain(promise.text)}",
            "",
            "`privacy.json` lists the charges; `dpsyn verify RUN` recomputes epsilon from them.",
            "",
            "## Columns",
            "",
            "| column | type |",
            "|---|---|",
            *(f"| {plain(name)} | {plain(kind)} |" for name, kind in shown),
            *([f"\n{len(columns) - len(shown)} more columns are not listed."] if len(columns) > len(shown) else []),
            "",
            *(
                [f"Labels: {'; '.join(labels)}{f' and {more:,} more' if more else ''}.", ""]
                if len(released.labels) > 1
                else []
            ),
            "## Limits",
            "",
            *(f"* {plain(limit)}" for limit in limits),
            "",
        ]
    )


def _promise(released: Released) -> list[str]:
    promise = released.promise
    if promise.epsilon is None or promise.delta is None:
        return [f"**{plain(promise.status)}: for tests only, do not publish.**"]
    change = "replaced" if promise.neighbours == "replace" else "added or removed"
    return [
        "| status | epsilon | delta | protected | noisy releases |",
        "|---|---|---|---|---|",
        f"| {plain(promise.status)} | {format_epsilon(promise.epsilon)} | {format_delta(promise.delta)} "
        f"| one {promise.unit}, {change} | {len(promise.receipts)} of {len(promise.charges)} |",
    ]


def plain(text: str) -> str:
    """One line that Markdown takes for words, whatever is in it."""
    words = re.sub(r"[\s\x00-\x1f]+", " ", text).strip()
    return re.sub(r"([\\`*{}\[\]<>#|~]|(?<!\w)_|_(?!\w))", r"\\\1", words)
