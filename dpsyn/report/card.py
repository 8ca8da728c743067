"""`release/README.md`: what the folder is, for people and for `datasets`, which reads its head."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpsyn import evaluation
from dpsyn.privacy.budget import format_epsilon
from dpsyn.privacy.statement import format_delta
from dpsyn.report.contents import schema_of
from dpsyn.report.facts import NOUNS, Released
from dpsyn.report.layout import Layout
from dpsyn.runs.seal import OURS, digests_of

SHOWN_LABELS, SHOWN_COLUMNS = 60, 400
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
MODALITY = {"images": "image", "texts": "text", "tables": "tabular"}


def card(released: Released, layout: Layout) -> bytes:
    """Markdown with a YAML head: `datasets.load_dataset` of the folder gives the rows, with `name` the iterations, the
    votes or the marginals.

    released: what is in the release.
    layout: where its rows lie.
    """
    head = yaml.safe_dump(_head(released, layout), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{_body(released, layout)}".encode("utf-8", "backslashreplace")


def _head(released: Released, layout: Layout) -> Mapping[str, Any]:
    size = next((name for most, name in SIZES if layout.rows < most), "n>10M")
    license, schema = released.card.get("license"), schema_of(released)
    configs = [
        {
            "config_name": name,
            "data_files": place,
            "description": _digest(layout, place),
            **({"default": True} if name == "default" else {}),
        }
        for name, place in layout.configs.items()
    ]
    return {
        "pretty_name": " ".join(released.name.split()),
        **({"license": license} if license else {}),
        "tags": ["synthetic", "dpsyn", *(["differential-privacy"] if released.promise.is_private else [])],
        "modalities": [MODALITY[released.kind], *(["text"] if schema is not None and schema.texts else [])],
        "size_categories": [size],
        **({"configs": configs} if configs else {}),
    }


def _digest(layout: Layout, places: str | list[str]) -> str:
    """Of the content of these files. `datasets` takes what it has cached for a folder of the same name, the same head
    and the same modification times, whatever is in it: it gave the digits of one release for the texts of another."""
    is_export = OURS.fullmatch(layout.data) is None  # files of names that a run does not write
    patterns = [places] if isinstance(places, str) else places
    known = [
        digest
        for name, digest in digests_of(layout.folder, is_export).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    return f"sha256 {hashlib.sha256(' '.join(known).encode()).hexdigest()}"


def _body(released: Released, layout: Layout) -> str:
    promise, noun, columns = released.promise, NOUNS[released.kind], layout.columns
    shown = list(columns.items())[:SHOWN_COLUMNS]
    labels = [plain(label) for label in released.labels[:SHOWN_LABELS]]
    more = len(released.labels) - len(labels)
    made = "made up by dpsyn, or chosen among public ones. No private record was copied into them."
    if any(name == "schema.yaml" for name, _, _ in released.files):
        made = "which show the values that noisy counts found, each column by itself. `schema.yaml` lists them."
    before = "" if released.evaluation is None else evaluation.outgrown(released.evaluation, released.digest)
    unfinished = "" if released.is_finished else "\n**The run is not finished: these are not its final data.**\n"
    limits = [
        *promise.limits,
        "What is rare in the private data drowns in the noise first, so small groups are told worse than large ones.",
        "The rows are not the records: what is computed from them is an estimate, and its error is not stated.",
    ]
    return "\n".join(
        [
            f"# {plain(released.name)}: {layout.rows:,} synthetic {noun}",
            "",
            f"{layout.rows:,} {noun}, {made}"
            + (" `report.html` shows them, and what is known of them." if "iterations" in layout.configs else ""),
            unfinished,
            *(
                ["**The shares of the labels were chosen, not learned from the private data.**", ""]
                * released.labels_chosen
            ),
            *([f"The numbers of `{evaluation.NAME}` were {before}.", ""] if before else []),
            *_loading(layout),
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


def _loading(layout: Layout) -> list[str]:
    if not layout.configs:
        return ["```python", "import numpy", "", f'data = numpy.load("{layout.data}")', "print(data.files)", "```"]
    folder = "release" if "iterations" in layout.configs else "FOLDER"
    lines = ["```python", "from datasets import load_dataset", ""]
    lines += [f'data = load_dataset("{folder}", split="train")  # this folder', "print(data[0])", "```"]
    if layout.data.endswith(".parquet"):
        lines += ["", f"`pandas.read_parquet`, polars and DuckDB read `{layout.data}` as well."]
    if "iterations" in layout.configs:
        earlier = " and ".join(f'"{name}"' for name in layout.configs if name.startswith("iterations_from"))
        others = f" (earlier ones, of other columns, in {earlier})" if earlier else ""
        lines += [
            f'All candidates are in `load_dataset("release", "iterations")`{others}, the noisy answers that chose'
        ]
        lines += ['among them in "votes"' + (', in words in "marginals".' if "marginals" in layout.configs else ".")]
    return lines


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
