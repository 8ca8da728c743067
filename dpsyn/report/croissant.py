"""`croissant.json`: the data set in MLCommons' Croissant 1.0, with the fields of its extension for responsible AI."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsyn.files import sha256
from dpsyn.privacy.budget import format_epsilon
from dpsyn.privacy.statement import format_delta
from dpsyn.report.facts import NOUNS, Released
from dpsyn.report.layout import Layout

NAME = "croissant.json"
MOST_FIELDS = 1000
FORMATS = {
    ".parquet": "application/x-parquet",
    ".csv": "text/csv",
    ".jsonl": "application/jsonlines",
    ".json": "application/json",
    ".npz": "application/zip",
}
TYPES = (  # of a column's type, the first that fits
    (r"image", "sc:ImageObject"),
    (r"bool", "sc:Boolean"),
    (r"u?int|class label", "sc:Integer"),
    (r"float|double", "sc:Float"),
    (r"date32", "sc:Date"),
    (r"timestamp", "sc:DateTime"),
    (r"", "sc:Text"),
)
CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(released: Released, layout: Layout) -> bytes:
    """JSON-LD. What only the curator knows comes from `card` of the settings, and is left out where it is not there.

    released: what is in the release.
    layout: where its rows lie.
    """
    curator = released.card.get("curator")
    told = {
        "citeAs": released.card.get("citation"),
        "datePublished": released.card.get("published"),
        "license": released.card.get("license"),
        "url": released.card.get("url"),
        "creator": {"@type": "sc:Organization", "name": curator} if curator else None,
    }
    whole = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": re.sub(r"[^\w.-]+", "-", released.name).strip("-.") or "dpsyn",
        "description": _description(released, layout),
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "version": "1.0.0",
        "keywords": ["synthetic", "dpsyn", *(["differential privacy"] if released.promise.is_private else [])],
        **{key: value for key, value in told.items() if value is not None},
        **{f"rai:{key}": value for key, value in _responsible(released).items()},
        **_files(layout),
    }
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _description(released: Released, layout: Layout) -> str:
    promise, what = released.promise, f"{layout.rows:,} synthetic {NOUNS[released.kind]}"
    if promise.epsilon is None or promise.delta is None:
        return f"{what}, made without noise that protects anybody: for tests only."
    return (
        f"{what} in the place of private ones, made by Private Evolution under differential privacy: epsilon "
        f"{format_epsilon(promise.epsilon)}, delta {format_delta(promise.delta)}, one {promise.unit} "
        f"{'replaced' if promise.neighbours == 'replace' else 'added or removed'}. {promise.status}."
    )


def _responsible(released: Released) -> dict[str, Any]:
    """The fields that conferences ask for, as far as the release tells."""
    promise = released.promise
    private = (
        f"None of the private records stands in it. {promise.text}"
        if promise.is_private
        else "Made without noise that protects anybody: it may tell of the records. Do not publish it."
    )
    intended = released.card.get("intended_use")
    return {
        "hasSyntheticData": True,
        "dataCollection": "Candidates were made up by models or simulators, or chosen among public ones. Private "
        "records voted for the candidates nearest to them, or for the cells that they lie in; noise was added to the "
        "counts; what was voted for was kept and varied.",
        "dataCollectionType": ["Others"],
        "dataLimitations": [
            "Rows are not records. What is computed from them is an estimate; what its error is has to be measured.",
            "What is rare in the private data drowns in the noise first.",
            *promise.limits,
        ],
        "dataBiases": [
            "Small groups are told worse than large ones.",
            "What the candidates' model or pool leans to may stay in the data.",
        ],
        "personalSensitiveInformation": [private],
        "dataUseCases": [intended or "Development, teaching and first analyses in the place of the private data."],
        "dataSocialImpact": "It lets others work on data that cannot be shared. Facts about a population that it shows "
        "may be used for or against its members; no guarantee covers that.",
        "dataReleaseMaintenancePlan": "Releases from the same data add up. This one does not change.",
    }


def _files(layout: Layout) -> dict[str, Any]:
    """Without privacy.json, which holds the checksum of what is written here."""
    if "*" in layout.data:
        return {}
    files = [layout.data, *(["marginals.parquet"] if "marginals" in layout.configs else [])]
    found: dict[str, Any] = {"distribution": [_file(layout.folder, name) for name in files]}
    if not layout.data.endswith(".npz"):
        columns = list(layout.columns.items())[:MOST_FIELDS]
        named = _named([name for name, _ in columns])
        fields = [_field(f"rows/{own}", layout.data, *each) for own, each in zip(named, columns, strict=True)]
        found["recordSet"] = [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}]
    return found


def _named(columns: Sequence[str]) -> list[str]:
    """Each column in letters that an id may have; those that would be alike with their number."""
    names = [re.sub(r"[^\w.-]", "_", column) for column in columns]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}_{at}" for at, name in enumerate(names)]


def _file(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": FORMATS[path.suffix],
        "sha256": sha256(path),
    }


def _field(own: str, file: str, column: str, kind: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": file}, "extract": {"column": column}}
    if kind == "image":
        source["transform"] = {"jsonPath": "bytes"}
    data_type = next(name for pattern, name in TYPES if re.match(pattern, kind))
    return {
        "@type": "cr:Field",
        "@id": own,
        "name": column,
        "dataType": data_type,
        "source": source,
    }
