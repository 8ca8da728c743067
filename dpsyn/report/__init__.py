"""The page of a run and what makes its data load anywhere, from `release/` alone; for its keeper a page from `private/`
too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsyn.files import private_folder, write
from dpsyn.report.card import card
from dpsyn.report.croissant import croissant
from dpsyn.report.deployment import deployment
from dpsyn.report.facts import Released, read
from dpsyn.report.layout import Layout, of_export, of_release
from dpsyn.report.page import rendered
from dpsyn.report.private import read_private
from dpsyn.report.shown import as_shown
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import seal


def write_report(run: RunDirectory) -> Path:
    """`release/report.html`, README.md, croissant.json and deployment.yaml: functions of the other files there. Their
    checksums in the statement follow. Raises UserError as `facts.read`."""
    released, path = read(run), run.release / "report.html"
    written = _describe(released, of_release(released), private=not run.is_private)
    write(path, rendered(released), private=not run.is_private)
    seal(run.release, [*written, path.name], private=not run.is_private)
    run.stamp()
    return path


def describe_export(run: RunDirectory, folder: Path, names: Sequence[str], rows: int) -> None:
    """The same, but for the page, of what `dpsyn export` wrote.

    run: what was exported.
    folder: where the files are.
    rows: how many there are.
    names: of the files that hold the rows.
    """
    _describe(read(run), of_export(folder, names, rows), private=False)
    seal(folder, is_export=True)


def _describe(released: Released, layout: Layout, private: bool) -> list[str]:
    """Writes what tells of the data, and returns the names of the files."""
    contents = {
        "README.md": card(released, layout),
        "croissant.json": croissant(released, layout),
        "deployment.yaml": deployment(released, layout),
    }
    for name, content in contents.items():
        if content is not None:
            write(layout.folder / name, content, private=private)
    return [name for name, content in contents.items() if content is not None]


def write_private_report(run: RunDirectory, beside: Mapping[str, Any] | None = None) -> Path:
    """`private/report.html`, for the keeper of the data alone.

    run: a run of this user.
    beside: the synthetic data beside the private ones, by `dpsyn.report.real.against`; None where the private data are
        not there.
    """
    path = private_folder(run.private) / "report.html"
    released = read(run)
    told = {} if beside is None else as_shown(released, beside)
    write(path, rendered(released, {**read_private(run), **told}), private=True)
    return path
