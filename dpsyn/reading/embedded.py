"""Data files that come with scikit-learn, read without importing it: that takes longer than a small run."""

from __future__ import annotations

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path


def rows_of(name: str) -> list[list[str]]:
    """The cells of a csv file, row by row.

    name: of a file in sklearn/datasets/data.

    Raises FileNotFoundError without scikit-learn, or where it carries no such file.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(name)
    content = (Path(spec.origin).parent / "datasets/data" / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    return list(csv.reader(text.splitlines()))
