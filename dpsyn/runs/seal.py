"""Checksums of all released files, in the statement: whoever has the published folder alone finds a changed byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsyn.files import sha256, write
from dpsyn.privacy.statement import as_json, sealed

STATEMENT = "privacy.json"
MOST = 100_000  # files of a stranger's folder that are looked at


def seal(run_folder: Path, names: Sequence[str] | None = None, private: bool = False) -> None:
    """Writes the checksums of the released files into the statement beside them.

    run_folder: the released folder.
    names: of the files that were written anew; the checksums of all others stay as they are, so that nothing of a
        stranger's release is vouched for. None: of all files there are. Nothing happens where names are given and the
        statement has no checksums yet.
    private: the statement is for its owner alone.
    """
    path = run_folder / STATEMENT
    said = json.loads(path.read_text(encoding="utf-8"))
    if names is None:
        known = digests_of(run_folder)
    elif isinstance(said.get("files"), dict):
        there = [name for name in names if (run_folder / name).is_file()]
        known = {name: digest for name, digest in said["files"].items() if name not in names}
        known = dict(sorted({**known, **{name: sha256(run_folder / name) for name in there}}.items()))
    else:
        return
    write(path, as_json(sealed(said, known)), private=private)


def digests_of(folder: Path) -> dict[str, str]:
    """sha256 of `released_files`, by name."""
    return {name: sha256(folder / name) for name in released_files(folder)}


def released_files(folder: Path) -> list[str]:
    """Names of all files but the statement, sorted; none that begin with a dot, which a hub or a system may add."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix() for name in found if name.as_posix() != STATEMENT and not any(p[0] == "." for p in name.parts)
    )[:MOST]


def differences(folder: Path, said: Mapping[str, Any], content: bytes) -> list[str]:
    """What of the folder is not as the statement lists it, a line each.

    folder: the released one.
    said: the statement, with its checksums.
    content: of the statement's file.
    """
    faults = []
    rest = {key: value for key, value in said.items() if key != "sha256"}
    if said.get("sha256") != hashlib.sha256(as_json(rest)).hexdigest() or as_json(said) != content:
        faults.append(f"{folder / STATEMENT}: not as it was written (wrong checksum)")
    known, there = said["files"], released_files(folder)
    for name in there:
        if name not in known:
            faults.append(f"{folder / name}: the statement does not list this file")
        elif sha256(folder / name) != known[name]:
            faults.append(f"{folder / name}: not as it was released (wrong checksum)")
    faults += [f"{folder / name}: this file is gone" for name in known if name not in there]
    return faults
