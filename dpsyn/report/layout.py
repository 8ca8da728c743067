"""Where the rows of a folder lie, and how they are loaded: a release, or what `dpsyn export` made of it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsyn.report.facts import Released
from dpsyn.runs.storage import columns_in

TYPES = {  # of Arrow, as a reader's first lines give them, to the names of `dpsyn.runs.storage.columns_in`
    "double": "float64",
    "date32[day]": "date32",
}


@dataclass(frozen=True)
class Layout:
    """folder: where the files are. data: the file that holds the rows, or a pattern of several. rows: how many.
    columns: names to types, 'image', 'class label', 'string', 'int64', ... configs: of `datasets`, names to files or
    patterns; {} where it cannot read them."""

    folder: Path
    data: str
    rows: int
    columns: Mapping[str, str]
    configs: Mapping[str, str | list[str]]


def of_release(released: Released) -> Layout:
    """As a run leaves it: the synthetic data, or those of the last iteration where there are none yet."""
    folder = released.run.release
    data = "synthetic.parquet" if released.is_finished else _last(released)
    configs: dict[str, str | list[str]] = {"default": data, **_iterations(released)}
    if any(name.startswith("votes/") for name, _, _ in released.files):
        configs["votes"] = "votes/*.parquet"
    if any(name == "marginals.parquet" for name, _, _ in released.files):
        configs["marginals"] = "marginals.parquet"
    return Layout(folder, data, released.rows, columns_in(folder / data), configs)


def of_export(folder: Path, names: Sequence[str], rows: int) -> Layout:
    """
    folder: where the files are.
    rows: how many there are.
    names: of the files with the rows, in the folder.
    """
    if len(names) > 1 or names[0].endswith(".png"):
        return Layout(folder, "*/*.png", rows, {"image": "image", "label": "class label"}, {"default": "*/*.png"})
    (name,) = names
    path = folder / name
    configs: dict[str, str | list[str]] = {} if name.endswith(".npz") else {"default": name}
    return Layout(folder, name, rows, _columns(path), configs)


def _iterations(released: Released) -> Mapping[str, str | list[str]]:
    """`datasets` reads files of the same columns together. Of iterations with others, as before there were texts or by
    another api, 'iterations' are those like the last one, 'iterations_from_000' those like the first, ..."""
    alike = dict[tuple[tuple[str, str], ...], list[str]]()
    for each in released.lineages:
        place = _place(each.iteration)
        alike.setdefault(tuple(columns_in(released.run.release / place).items()), []).append(place)
    if len(alike) < 2:
        return {"iterations": "iterations/*/samples.parquet"}
    last = _last(released)
    return {
        "iterations" if last in places else f"iterations_from_{places[0].split('/')[1]}": places
        for places in reversed(alike.values())
    }


def _last(released: Released) -> str:
    return _place(released.lineages[-1].iteration)


def _place(iteration: int) -> str:
    return f"iterations/{iteration:03d}/samples.parquet"


def _columns(path: Path) -> Mapping[str, str]:
    if path.suffix == ".parquet":
        return columns_in(path)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): "array" for name in archive.namelist()}
    from pyarrow import csv, json

    if path.suffix == ".csv":
        with csv.open_csv(path) as reader:
            schema = reader.schema
    else:
        schema = json.read_json(path).schema
    return {field.name: TYPES.get(str(field.type), str(field.type)) for field in schema}
