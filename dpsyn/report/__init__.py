"""The page and the card of a run, from `release/` alone; for its keeper a page from `private/` too."""

from pathlib import Path

from dpsyn.files import private_folder, write
from dpsyn.report.card import card
from dpsyn.report.facts import read
from dpsyn.report.page import rendered
from dpsyn.report.private import read_private
from dpsyn.runs.directory import RunDirectory


def write_report(run: RunDirectory) -> Path:
    """`release/report.html`, and the card README.md: functions of the other files there. Raises UserError as
    `facts.read`."""
    released, path = read(run), run.release / "report.html"
    write(run.release / "README.md", card(released), private=not run.is_private)
    write(path, rendered(released), private=not run.is_private)
    run.stamp()
    return path


def write_private_report(run: RunDirectory) -> Path:
    """`private/report.html`, for the keeper of the data alone."""
    path = private_folder(run.private) / "report.html"
    write(path, rendered(read(run), read_private(run)), private=True)
    return path
