"""dpsyn from Python: the same composition, checks, ledger and refusals as the command line, and no other configuration.

import dpsyn

run = dpsyn.run("+experiment=adult", "privacy.epsilon=1", data=frame)
run.synthetic.to_pandas()
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn import compose
from dpsyn.build import build
from dpsyn.errors import UserError, invalid
from dpsyn.execution import carry_out, evaluate_run
from dpsyn.files import cache_folder, private_folder, write
from dpsyn.job import Job, check
from dpsyn.planning import facts, planned
from dpsyn.population import Array
from dpsyn.privacy.account import salted
from dpsyn.report import write_report
from dpsyn.runs.directory import TEXT, RunDirectory, mapping_in, open_run
from dpsyn.runs.storage import from_parquet, label_name, labels_of
from dpsyn.runs.verification import Report, verified
from dpsyn.show import Screen

Given = str | Path | Mapping[str, Any] | Sequence[str] | Array | Any
"""Private data: a path; a frame of pandas or polars, a table of Arrow; columns by their names; a list of texts (column
`text`); images, uint8 [n, h, w] or [n, h, w, channels] (column `image`)."""


def run(*overrides: str, data: Given = None, config_dir: str | Path | None = None, quiet: bool = True) -> Run:
    """Runs, or resumes, what `dpsyn run` of the same overrides would.

    overrides: as on the command line, `"privacy.epsilon=1"`.
    data: takes the place of `data.path`. What is no path is kept in the private cache, for its owner alone, under a
        name of its content, so that the same rows resume a run. It needs `data.id=` among the overrides: releases from
        data of one id add up, also where a row was added or the order is another one.
    config_dir: configs of your own.
    quiet: print nothing.

    Raises UserError, one line, for all that the command line refuses.
    """
    job = _job(overrides, data, config_dir, keeps=True)
    check(job)
    carry_out(job, _screen(job, quiet))
    return open(job.root)


def plan(*overrides: str, data: Given = None, config_dir: str | Path | None = None) -> dict[str, Any]:
    """What `dpsyn plan --json` of the same overrides says: epsilon, releases, rows, what is needed. Reads no row.

    overrides: as on the command line.
    data: takes the place of `data.path`.
    config_dir: configs of your own.
    """
    return planned(_job(overrides, data, config_dir))


def open(path: str | Path) -> Run:
    """A run that exists, or a published release/ folder. Raises UserError where there is none."""
    return Run(open_run(Path(path), alone=True))


@dataclass(frozen=True)
class Run:
    """A run on disk. directory: where."""

    directory: RunDirectory

    @property
    def path(self) -> Path:
        return self.directory.root

    @property
    def synthetic(self) -> Synthetic:
        """The final data. Raises UserError where the run is not finished."""
        path = self.directory.release / "synthetic.parquet"
        if not path.exists():
            raise UserError(f"{self.path}: the run is not finished. Give the command that began it.")
        return Synthetic(path, self.directory.text_column)

    @property
    def privacy(self) -> dict[str, Any]:
        """The statement, `release/privacy.json`."""
        return mapping_in(self.directory.release / "privacy.json")

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What was measured under differential privacy, `release/evaluation.json`; None where nothing was."""
        path = self.directory.release / "evaluation.json"
        return mapping_in(path) if path.exists() else None

    def report(self) -> Path:
        """Writes the page again, and returns its place."""
        return write_report(self.directory)

    def verify(self) -> Report:
        """As `dpsyn verify`: lines, and whether all agrees and is complete."""
        return verified(self.directory)

    def evaluate(self, epsilon: float) -> dict[str, Any]:
        """As `dpsyn evaluate RUN --epsilon E`: spends it, and returns the numbers."""
        job = compose.rebuilt(self.directory, [], measured=True)
        evaluate_run(job, _screen(job, quiet=True), epsilon)
        found = self.evaluation
        assert found is not None
        return found


@dataclass(frozen=True)
class Synthetic:
    """Rows on disk, in any form.

    path: a parquet file.
    text: what its column `text` is called in the frames, as in the private data.
    """

    path: Path
    text: str = TEXT

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(self.path).num_rows)

    def to_arrow(self) -> Any:
        """pyarrow.Table"""
        import pyarrow.parquet as pq

        table = pq.read_table(self.path)
        if self.text in table.column_names:
            return table
        return table.rename_columns([self.text if name == TEXT else name for name in table.column_names])

    def to_pandas(self) -> Any:
        """pandas.DataFrame"""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """polars.DataFrame"""
        import polars

        return polars.from_arrow(self.to_arrow())

    def content(self) -> Array:
        """Images uint8 [n, h, w, channels]; texts, object of str [n]; or table rows, structured [n]."""
        return from_parquet(self.path.read_bytes(), self.path).samples.content

    def labels(self) -> list[str]:
        """The name of each row's label, in the order of the rows."""
        content = self.path.read_bytes()
        names = [label_name(label) for label in labels_of(content, self.path)]
        return [names[label] for label in from_parquet(content, self.path).labels]


def _job(overrides: Sequence[str], data: Given, config_dir: str | Path | None, keeps: bool = False) -> Job:
    """keeps: whether rows that are no file are written to one, once all settings are found right."""
    path, content = (data, b"") if data is None or isinstance(data, str | Path) else _as_file(data)
    given = [] if path is None else [f"data.path={path}"]
    texts = compose.with_default(compose.readable([*overrides, *given], sweep=False))
    job = build(compose.settings(texts, None if config_dir is None else str(config_dir)))
    if not isinstance(data, str | Path | None) and job.data.id is None:
        do = "Releases from data of one id add up; by their content alone, rows in another order are other data."
        raise invalid("data.id", "null", "a name for data that are no file", do)
    if path is not None and content and keeps and not Path(path).exists():
        write(Path(path), content, private=True, shared=True)
    return job


def _screen(job: Job, quiet: bool) -> Screen:
    from rich.console import Console

    return Screen(Console(quiet=quiet), facts(job), job.iterations)


def _as_file(data: Any) -> tuple[Path, bytes]:
    """A place in the private cache, named by the rows, and what is to stand there. Raises UserError for what are no
    rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(_table(data).replace_schema_metadata(None), sink)
    content = bytes(sink.getvalue())
    folder = private_folder(cache_folder() / "given")
    return folder / f"{salted(hashlib.sha256(content).hexdigest())}.parquet", content


def _table(data: Any) -> Any:
    import pyarrow as pa

    if isinstance(data, np.ndarray) and data.ndim in (3, 4):
        data = {"image": data}
    elif isinstance(data, Sequence | np.ndarray):
        data = {"text": list(data)}
    try:
        if not isinstance(data, Mapping):
            table = pa.table(data)
            for at, column in enumerate(table.schema):  # categories of polars, which parquet's writer refuses
                if pa.types.is_dictionary(column.type):
                    table = table.set_column(at, column.name, pa.array(table.column(at).to_pylist()))
            # what Arrow calls an index of pandas without a name, as of rows that were chosen
            return table.select([name for name in table.column_names if not name.startswith("__index_level_")])
        return pa.table({name: _column(values) for name, values in data.items()})
    except (pa.ArrowException, TypeError, ValueError, OverflowError, OSError) as error:
        said = type(error).__name__  # not its text, which may quote a row
        raise UserError(f"data: expected a path, a frame, columns by their names, texts or images ({said}).") from None


def _column(values: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.ndim in (3, 4):
        return pa.array([{"bytes": _png(image), "path": None} for image in values])
    return pa.array(values.tolist() if isinstance(values, np.ndarray) else values)


def _png(image: Array) -> bytes:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(sink, "PNG")
    return sink.getvalue()
