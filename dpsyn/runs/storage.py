"""Samples <-> parquet, in the layout that `datasets.load_dataset("parquet", ...)` reads as images and class labels.

Columns: `image` {bytes, path} or `text` or the columns of a table; `label`; and for checkpoints `parent`, `survivor`
and a column `trait.<name>` each.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.errors import UserError
from dpsyn.files import sha256
from dpsyn.population import MISSING, Label, Population, Samples
from dpsyn.tables import times

CHOSEN = "chosen_labels.json"  # beside the synthetic data whose labels have shares that were chosen, not learned
GROUP_BYTES = 2**28  # of pixels
ARROW_NAMES = {"double": "float64", "date32[day]": "date32"}  # as `datasets` calls them
NONE: Mapping[str, Mapping[str, str]] = {}
UNIT = "ms"  # of times: parquet has no seconds


def labels_are_chosen(release: Path) -> bool:
    """Whether the shares of the labels of synthetic.parquet were chosen, by the file beside it that says so of it.

    release: the folder.
    """
    try:
        said = json.loads((release / CHOSEN).read_text(encoding="utf-8"))
        return bool(said["sha256"] == sha256(release / "synthetic.parquet"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def label_name(label: Label) -> str:
    """'3', or 'Hotels | 5' for a label of several columns, or 'all' for data without labels."""
    return " | ".join(label.values()) or "all"


def to_parquet(population: Population, labels: Sequence[Label], lineage: bool = True) -> bytes:
    """A parquet file, as bytes.

    Without lineage a table whose columns hold its labels has no further column for them: it is as its source is.

    population: n rows.
    labels: as declared.
    lineage: parents, survivors and traits too, all that `from_parquet` needs to give the population back.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content, forms = population.samples.content, population.samples.forms
    own = _bookkeeping(bool(content.dtype.names))
    if not lineage and content.dtype.names and set(labels[0]) <= set(content.dtype.names):
        labels, beside = [{}], dict[str, np.ndarray]()
    else:
        beside = {own["label"]: population.labels}
    facts: dict[str, Any] = {
        "iteration": population.iteration,
        "labels": [dict(label) for label in labels],
        "traits": {},
        "shape": content.shape[1:],
        "fields": [[name, content.dtype[name].str] for name in content.dtype.names or ()],
        "forms": {name: dict(form) for name, form in forms.items()},
    }
    traits = population.samples.traits if lineage else {}
    if lineage:
        beside |= {own["parent"]: population.parents, own["survivor"]: population.survivors}
    for name, values in traits.items():
        facts["traits"][name] = [values.dtype.str if values.dtype.kind != "O" else "O", values.shape[1:]]
    names = {"names": [label_name(label) for label in labels], "_type": "ClassLabel"}

    def table(part: slice) -> Any:
        columns, features = _content(content[part], forms)
        for name, values in beside.items():
            columns[name] = pa.array(values[part])
            features[name] = names if name == own["label"] else _value(values.dtype.name)
        for name, values in traits.items():
            columns[f"trait.{name}"], features[f"trait.{name}"] = _trait(values[part])
        described = {"huggingface": json.dumps({"info": {"features": features}}), "dpsyn": json.dumps(facts)}
        return pa.table(columns).replace_schema_metadata(described)

    sink, step = pa.BufferOutputStream(), group_rows(content)
    first = table(slice(step))
    with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
        writer.write_table(first, step)
        for start in range(step, len(content), step):
            writer.write_table(table(slice(start, start + step)), step)
    return bytes(sink.getvalue())


def from_parquet(
    content: bytes, where: object, per_label: int | None = None, rows: np.ndarray | None = None
) -> Population:
    """The inverse of `to_parquet`. Raises UserError for what it did not write. Without lineage there are no traits, no
    parents (-1), and every row is a survivor.

    content: of the file.
    where: names the file in messages.
    per_label: decode at most this many rows of each label, survivors first, evenly spaced; None: all.
    rows: int64 [m], decode these rows alone, in this order; None: as `per_label` says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without Arrow's threads: a process that ends soon after they began is aborted by them (apache/arrow#34314). Of
        # runs that were refused after their votes were read, one in ten ended with 134, not 2.
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        facts = json.loads(file.schema_arrow.metadata[b"dpsyn"])
        own = _bookkeeping(bool(facts["fields"]))
        if rows is None and per_label is not None:
            rows = _few_of(file, own, per_label)
        table = file.read(use_threads=False) if rows is None else _read_rows(file, rows)
        n = table.num_rows
        if n and own["label"] in table.column_names:
            given = table[own["label"]].to_numpy()
            if given.min() < 0 or given.max() >= len(facts["labels"]):
                raise ValueError("label")
        missing = {"label": np.zeros(n, np.int64), "parent": np.full(n, -1), "survivor": np.ones(n, bool)}
        for key, values in missing.items():
            if own[key] not in table.column_names:
                table = table.append_column(own[key], pa.array(values))
        traits = {
            name: _array(table[f"trait.{name}"], np.dtype(dtype), tuple(shape))
            for name, (dtype, shape) in facts["traits"].items()
        }
        return Population(
            facts["iteration"],
            Samples(
                _read_content(table, tuple(facts["shape"]), facts["fields"], facts["forms"]), traits, facts["forms"]
            ),
            table[own["label"]].to_numpy(),
            table[own["parent"]].to_numpy(),
            table[own["survivor"]].to_numpy(),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise UserError(f"{where}: not a checkpoint of this version of dpsyn.") from None


def _bookkeeping(rows: bool) -> dict[str, str]:
    """Names of the columns beside the content; beside a table's own, which may be called so, they say `row.`."""
    return {key: f"row.{key}" if rows else key for key in ("label", "parent", "survivor")}


def labels_of(content: bytes, where: object) -> list[Label]:
    """The declared labels of what `to_parquet` wrote. Raises UserError for anything else.

    content: of the file.
    where: names the file in messages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(json.loads(pq.read_schema(pa.BufferReader(content)).metadata[b"dpsyn"])["labels"])
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise UserError(f"{where}: not a file of this version of dpsyn.") from None


def rows_in(content: bytes, where: object) -> int:
    """How many rows stand in what `to_parquet` wrote. Raises UserError for no parquet file.

    content: of the file.
    where: names the file in messages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).metadata.num_rows)
    except pa.ArrowException:
        raise UserError(f"{where}: not a file of this version of dpsyn.") from None


def columns_in(path: Path) -> dict[str, str]:
    """Names and types of the columns of what `to_parquet` wrote, as `datasets` names them: 'image', 'class label'.

    path: of the file.

    Raises UserError for another file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        kinds = {"Image": "image", "ClassLabel": "class label", "List": "list"}
        return {name: kinds.get(features[name]["_type"]) or str(features[name]["dtype"]) for name in schema.names}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a file of this version of dpsyn.") from None


def columns_of(content: np.ndarray, forms: Mapping[str, Mapping[str, str]] = NONE) -> dict[str, list[Any]]:
    """Texts or table rows, column by column, as Python values; None for a missing one.

    content: object of str [n], or a structured array of table rows.
    forms: of columns by name, as in `Samples`.
    """
    columns, _ = _content(content, forms)
    return {name: column.to_pylist() for name, column in columns.items()}


def read_lineage(content: bytes, where: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels int64 [n], parents int64 [n] and survivors bool [n] of all rows, without their content. Raises UserError
    for what `to_parquet` did not write.

    content: of the file.
    where: names the file in messages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        facts, n = json.loads(file.schema_arrow.metadata[b"dpsyn"]), file.metadata.num_rows
        own, names = _bookkeeping(bool(facts["fields"])), file.schema_arrow.names
        table = file.read([name for name in own.values() if name in names], use_threads=False)
        missing = {"label": np.zeros(n, np.int64), "parent": np.full(n, -1), "survivor": np.ones(n, bool)}
        labels, parents, survivors = (
            table[own[key]].to_numpy().astype(absent.dtype) if own[key] in names else absent
            for key, absent in missing.items()
        )
        if n and (labels.min() < 0 or labels.max() >= len(facts["labels"])):
            raise ValueError("label")
        return labels, parents, survivors
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        raise UserError(f"{where}: not a checkpoint of this version of dpsyn.") from None


def _few_of(file: Any, own: Mapping[str, str], per_label: int) -> np.ndarray:
    n, names = file.metadata.num_rows, file.schema_arrow.names
    keys = file.read([own[key] for key in ("label", "survivor") if own[key] in names], use_threads=False)
    labels = keys[own["label"]].to_numpy() if own["label"] in names else np.zeros(n, np.int64)
    survivors = keys[own["survivor"]].to_numpy() if own["survivor"] in names else np.ones(n, bool)
    return _few(labels, survivors, per_label)


def _read_rows(file: Any, chosen: np.ndarray) -> Any:
    """These rows, in this order, one group of rows after the other."""
    import pyarrow as pa

    found: list[Any] = []
    start = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        mine = chosen[(start <= chosen) & (chosen < start + rows)] - start
        if len(mine) or not found:
            found.append(file.read_row_group(group, use_threads=False).take(np.sort(mine)))
        start += rows
    order = np.empty(len(chosen), np.int64)
    order[np.argsort(chosen, kind="stable")] = np.arange(len(chosen))
    return pa.concat_tables(found).take(order)


def _few(labels: np.ndarray, survivors: np.ndarray, per_label: int) -> np.ndarray:
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        room = per_label
        for group in (np.flatnonzero((labels == label) & survivors), np.flatnonzero((labels == label) & ~survivors)):
            count = min(room, len(group))
            chosen.append(group[(np.arange(count) * len(group)) // max(1, count)])
            room -= count
    return np.concatenate(chosen)


def group_rows(content: np.ndarray) -> int:
    """Rows of a group in the file, which is all that memory holds of it: Arrow's arrays of bytes, and groups that it
    can read back, end at 2 GiB."""
    return max(1, GROUP_BYTES // max(1, content[:1].nbytes)) if content.ndim == 4 else 2**17


def _content(content: np.ndarray, forms: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    import pyarrow as pa

    if content.ndim == 4:
        step = group_rows(content)
        parts = [content[start : start + step] for start in range(0, max(len(content), 1), step)]
        columns = [[pa.array(list(_encoded(part)), pa.binary()), pa.nulls(len(part), pa.string())] for part in parts]
        pictures = pa.chunked_array([pa.StructArray.from_arrays(pair, ["bytes", "path"]) for pair in columns])
        return {"image": pictures}, {"image": {"_type": "Image"}}
    if content.dtype.names:
        arrays = {name: _column(content[name], forms.get(name, {}).get("timezone")) for name in content.dtype.names}
        return arrays, {
            name: _value(ARROW_NAMES.get(str(array.type), str(array.type))) for name, array in arrays.items()
        }
    if content.dtype.kind in "OU":
        return {"text": pa.array(content.tolist(), pa.string())}, {"text": _value("string")}
    raise TypeError(f"no layout for content of dtype {content.dtype} and shape {content.shape}")


def _column(values: np.ndarray, timezone: str | None) -> Any:
    """An Arrow array, null where a value is missing. timezone: on whose clock times are."""
    import pyarrow as pa

    if values.dtype == np.int8:
        return pa.array(values == 1, pa.bool_(), mask=values < 0)
    if values.dtype.kind == "i":
        return pa.array(values, pa.int64(), mask=values == MISSING)
    if values.dtype.kind == "f":
        return pa.array(values, pa.float64(), mask=np.isnan(values))
    if values.dtype.kind == "m":
        seconds = np.where(np.isnat(values), 0, values.astype(np.int64)) * 1000
        return pa.array(seconds.astype(np.int32), pa.time32(UNIT), mask=np.isnat(values))
    if values.dtype == np.dtype("<M8[s]"):
        moments = values if timezone is None else times.to_utc(values, timezone)
        return pa.array(moments.astype(f"<M8[{UNIT}]"), pa.timestamp(UNIT, timezone), mask=np.isnat(values))
    if values.dtype.kind == "M":
        return pa.array(values, pa.date32(), mask=np.isnat(values))
    return pa.array(values.tolist(), pa.string())


def _read_column(column: Any, dtype: np.dtype, timezone: str | None) -> np.ndarray:
    """The inverse of `_column`."""
    import pyarrow as pa

    if dtype.kind == "O":
        return np.array([*column.to_pylist(), None], dtype)[:-1]
    none = column.is_null().to_numpy(zero_copy_only=False)
    if dtype.kind == "m":
        filled = np.full(len(column), np.timedelta64("NaT"), dtype)
        filled[~none] = (column.drop_null().cast(pa.int32()).to_numpy(zero_copy_only=False) // 1000).astype(dtype)
        return filled
    missing = {"i": -1 if dtype == np.int8 else MISSING, "f": np.nan, "M": np.datetime64("NaT")}[dtype.kind]
    filled = np.full(len(column), missing, dtype)
    filled[~none] = column.drop_null().to_numpy(zero_copy_only=False).astype(dtype)
    return filled if timezone is None else times.from_utc(filled, timezone)


def _read_content(
    table: Any, shape: tuple[int, ...], fields: Sequence[Sequence[str]], forms: Mapping[str, Mapping[str, str]]
) -> np.ndarray:
    if fields:
        content = np.empty(table.num_rows, [(name, dtype) for name, dtype in fields])
        for name, dtype in fields:
            timezone = forms.get(name, {}).get("timezone")
            content[name] = _read_column(table[name].combine_chunks(), np.dtype(dtype), timezone)
        return content
    if "image" not in table.column_names:
        return np.array(table["text"].to_pylist(), dtype=object)
    from PIL import Image

    pictures = np.empty((table.num_rows, *shape), np.uint8)
    for picture, row in zip(pictures, table["image"].to_pylist(), strict=True):
        try:
            opened = np.asarray(Image.open(io.BytesIO(row["bytes"]), formats=("PNG",)))
        except Exception as error:  # whatever a stranger's file does to the decoder
            raise ValueError(type(error).__name__) from None
        picture[...] = opened.reshape(shape)
    return pictures


def _encoded(images: np.ndarray) -> Iterator[bytes]:
    """PNG files, grey or RGB, of pixels that are stored, not deflated: parquet's zstd packs them as well (MNIST: 2.9 MB
    for 16,000, deflated 3.4 MB; CIFAR-10: 5 % more), in a fifth of the time."""
    n, h, w, c = images.shape
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, {1: 0, 3: 2}[c], 0, 0, 0))
    tail = _chunk(b"IEND", b"")
    lines = np.zeros((n, h, 1 + w * c), np.uint8)  # every line begins with its filter: 0, none
    lines[:, :, 1:] = images.reshape(n, h, w * c)
    for image in lines:
        yield head + _chunk(b"IDAT", zlib.compress(image, 0)) + tail


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _trait(values: np.ndarray) -> tuple[Any, Mapping[str, Any]]:
    import pyarrow as pa

    if values.dtype.kind in "OU":
        return pa.array(values.tolist(), pa.string()), _value("string")
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    dtype = values.dtype.name
    if values.ndim == 1:
        return flat, _value(dtype)
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(flat, width), {"feature": _value(dtype), "length": width, "_type": "List"}


def _array(column: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind in "OU":
        return np.array(column.to_pylist(), dtype=dtype)
    flat = column.combine_chunks()
    if shape:
        flat = flat.flatten()
    return flat.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(-1, *shape)


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
