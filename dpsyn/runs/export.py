"""A run's data as files of one's own: csv, jsonl, parquet, a folder of images, or arrays.

Reads `release/` alone; the data and `private/` may be gone. What is written is complete when it is there.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.errors import UserError, invalid, one_of
from dpsyn.files import room_on_disk, stamp, sync_folder, sync_tree, write
from dpsyn.population import Label, Population, some_of
from dpsyn.runs.directory import TEXT, RunDirectory
from dpsyn.runs.storage import columns_of, from_parquet, label_name, labels_of, to_parquet
from dpsyn.tables import times

UNSAFE = re.compile(r"""[",\x00-\x1f\x7f\x85\u2028\u2029]|^\s|\s$""")  # in a cell of a csv: it stands in quotes
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')  # in the name of a folder, somewhere
LONGEST = 60  # characters of one, of four bytes each at most
FORMATS = ("csv", "jsonl", "parquet", "imagefolder", "npz")


Describe = Callable[[RunDirectory, Path, Sequence[str], int], None]
"""(the run, the folder, names of the files that hold the rows, how many rows): writes what tells of them"""


def export(
    run: RunDirectory,
    to: Path,
    form: str,
    iteration: int | None = None,
    everything: bool = False,
    describe: Describe | None = None,
    rows: int | None = None,
) -> int:
    """Writes a folder and returns how many rows it holds.

    run: a finished or an interrupted one.
    to: the folder, which is not there or empty.
    form: one of FORMATS.
    iteration: None for the final data set, a number for what survived that iteration's vote (of iteration 0: all).
    everything: of an iteration also the fresh variations that nobody has voted for.
    describe: what writes the card of the folder; None: nobody. Besides the data the folder gets
        the run's privacy.json.
    rows: so many of them, drawn at random, the same each time; None: all.

    Raises UserError for what is not there or does not fit.
    """
    if form not in FORMATS:
        raise invalid("--format", form, one_of(FORMATS))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise invalid("--to", to, "a folder that does not exist yet, or an empty one")
    population, labels = _chosen(run, iteration, everything)
    if rows is not None:
        population = _some(population, rows)
    pictures = population.samples.content.ndim == 4
    if pictures != (form == "imagefolder") and form not in ("parquet", "npz"):
        raise invalid(
            "--format", form, f"parquet, npz or {'imagefolder' if pictures else 'csv or jsonl'} for these data"
        )
    temporary = to.absolute().with_name(f".{to.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    with room_on_disk(to):
        try:
            temporary.mkdir(parents=True)
            names = []
            for name, content in WRITERS[form](population, labels, run.text_column):
                names.append(name)
                place = temporary / name
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
            write(temporary / "privacy.json", (run.release / "privacy.json").read_bytes())
            if describe is not None:
                describe(run, temporary, names, len(population))
            sync_tree(temporary)
            stamp(temporary)
            if to.exists():
                to.rmdir()
            temporary.rename(to)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(to.absolute().parent)
    return len(population)


def _chosen(run: RunDirectory, iteration: int | None, everything: bool) -> tuple[Population, Sequence[Label]]:
    if iteration is None:
        path = run.release / "synthetic.parquet"
        if not path.exists():
            raise UserError(f"{run.root}: the run is not finished. Finish it, or name an iteration: --iteration N.")
        content = path.read_bytes()
        return from_parquet(content, path), labels_of(content, path)
    if iteration not in run.iterations():
        raise invalid("--iteration", iteration, f"one of {', '.join(map(str, run.iterations()))}")
    population = run.load(iteration)
    path = run.checkpoint(iteration)
    labels = labels_of(path.read_bytes(), path)
    if everything or iteration == 0:
        return population, labels
    if not population.survivors.any():
        do = "This schedule keeps none: give --all for their variations."
        raise UserError(f"--iteration={iteration}: no survivors stand in it. {do}")
    return some_of(population, population.survivors), labels


def _some(population: Population, rows: int) -> Population:
    """So many rows, in the order in which they stand."""
    if not 1 <= rows <= len(population):
        do = "`dpsyn expand` makes more." if rows > len(population) else ""
        raise invalid("--rows", rows, f"a whole number from 1 to {len(population)}, the rows that there are", do)
    return some_of(population, np.sort(np.random.default_rng(0).permutation(len(population))[:rows]))


Files = Iterator[tuple[str, bytes]]


def _rows(
    population: Population, labels: Sequence[Label], text: str, decimals: bool = False
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Names of columns, then the rows: the content as its cells were written, then a column for each of the label's.

    text: the name of the column of texts.
    decimals: numbers as texts, with all decimals that their column has.
    """
    samples = population.samples
    columns = columns_of(samples.content, samples.forms)
    for name in samples.content.dtype.names or ():
        form = samples.forms.get(name, {})
        if samples.content.dtype[name].kind in "mM":
            columns[name] = [times.written(value, form) for value in columns[name]]
        elif "true" in form:
            columns[name] = [None if value is None else form["true" if value else "false"] for value in columns[name]]
        elif "decimals" in form and decimals:
            digits = int(form["decimals"])
            columns[name] = [None if value is None else f"{value:.{digits}f}" for value in columns[name]]
        elif form.get("decimals") == "0":
            columns[name] = [None if value is None else int(value) for value in columns[name]]
    if not samples.content.dtype.names and text not in labels[0]:
        columns = {text: columns["text"]}
    named = {name: [labels[i][name] for i in population.labels] for name in labels[0] if name not in columns}
    return [*columns, *named], zip(*columns.values(), *named.values(), strict=True)


def as_csv(population: Population, labels: Sequence[Label], text: str = TEXT) -> Files:
    """The files of a csv. Not by the csv module: before Python 3.11.9 and 3.12.3 it leaves a lone carriage return
    without quotes, and who reads the file finds two rows.

    population: of texts or table rows.
    labels: as declared.
    text: the name of the column of texts.
    """
    names, rows = _rows(population, labels, text, decimals=True)
    lines = [",".join(map(_quoted, names)), *(",".join(map(_quoted, row)) for row in rows)]
    # a line with nothing in it would be taken for no row
    yield "data.csv", "".join(f"{line or _quoted('')}\n" for line in lines).encode()


def _quoted(value: Any) -> str:
    """A cell of a csv; nothing for a missing value, two quotes for an empty text."""
    if value is None:
        return ""
    text = str(value)
    return '"{}"'.format(text.replace('"', '""')) if not text or UNSAFE.search(text) else text


def as_jsonl(population: Population, labels: Sequence[Label], text: str = TEXT) -> Files:
    names, rows = _rows(population, labels, text)
    lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str) + "\n" for row in rows)
    yield "data.jsonl", "".join(lines).encode()


def _parquet(population: Population, labels: Sequence[Label], _: str) -> Files:
    yield "data.parquet", to_parquet(population, labels, lineage=False)


def _imagefolder(population: Population, labels: Sequence[Label], _: str) -> Files:
    """A folder a label, which `datasets` and torchvision read as the class."""
    from PIL import Image

    folders = folders_of(labels)
    for number, (image, label) in enumerate(zip(population.samples.content, population.labels, strict=True)):
        sink = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(sink, "PNG")
        yield f"{folders[label]}/{number:07d}.png", sink.getvalue()


def folders_of(labels: Sequence[Label]) -> list[str]:
    """A folder's name for each label, as it is declared but for what a file system takes for something else. Labels
    whose names would then be one, capitals aside, get their number too.

    labels: as declared.
    """
    values = ["_".join(UNFIT.sub("_", value) for value in label.values()) for label in labels]
    names = [value.strip(" .")[:LONGEST].rstrip(" .") or "all" for value in values]
    alike = len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names)
    return [f"{i}_{name}" for i, name in enumerate(names)] if alike else names


def _npz(population: Population, labels: Sequence[Label], _: str) -> Files:
    """Not by numpy.savez, which a column called `file` stops."""
    content = population.samples.content
    fields = {name: content[name] for name in content.dtype.names} if content.dtype.names else {"content": content}
    arrays = {name: _words(values) if values.dtype.kind == "O" else values for name, values in fields.items()}
    if not (content.dtype.names and set(labels[0]) <= set(fields)):
        own = "row." if content.dtype.names else ""
        names = np.array([label_name(label) for label in labels])
        arrays |= {f"{own}label": population.labels, f"{own}label_names": names}
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=False)
    yield "data.npz", sink.getvalue()


def _words(values: np.ndarray) -> np.ndarray:
    """Of fixed width, as arrays of objects would be pickled; '' where there is none."""
    return np.array(["" if value is None else value for value in values], str)


WRITERS: Mapping[str, Callable[[Population, Sequence[Label], str], Files]] = {
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parquet": _parquet,
    "imagefolder": _imagefolder,
    "npz": _npz,
}
