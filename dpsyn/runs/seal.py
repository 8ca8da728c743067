"""Checksums of all released files, in the statement: whoever has the published folder alone finds a changed byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpsyn.files import sha256, write
from dpsyn.privacy.statement import as_json, sealed

STATEMENT = "privacy.json"
MOST = 100_000  # files of a stranger's folder that are looked at
OURS = re.compile(  # what a run writes: a file that somebody put beside them is not vouched for, and not sent anywhere
    r"(README\.md|config\.yaml|croissant\.json|deployment\.yaml|evaluation\.json|chosen_labels\.json|metrics\.jsonl"
    r"|report\.html|schema\.yaml|samples\.(png|txt)|(synthetic|marginals)\.parquet|votes/\d+\.parquet"
    r"|iterations/\d+/(SHA256SUMS|samples\.parquet))"
)


def seal(run_folder: Path, names: Sequence[str] | None = None, private: bool = False, is_export: bool = False) -> None:
    """Writes the checksums of the released files into the statement beside them.

    run_folder: the released folder.
    names: of the files that were written anew; the checksums of all others stay as they are, so that nothing of a
        stranger's release is vouched for. Nothing happens where names are given and the
        statement has no checksums yet. None: of all that a run writes.
    private: the statement is for its owner alone.
    is_export: the folder was made by an export just now: all that is in it is vouched for.
    """
    path = run_folder / STATEMENT
    said = json.loads(path.read_text(encoding="utf-8"))
    if names is None:
        known = digests_of(run_folder, is_export)
    elif isinstance(said.get("files"), dict):
        there = [name for name in names if is_plain(run_folder / name)]
        known = {name: digest for name, digest in said["files"].items() if name not in names}
        known = dict(sorted({**known, **{name: sha256(run_folder / name) for name in there}}.items()))
    else:
        return
    write(path, as_json(sealed(said, known)), private=private)


def digests_of(folder: Path, is_export: bool = False) -> dict[str, str]:
    """sha256 by name of `released_files`, links left out.

    folder: the released one.
    is_export: of all of them; else of those that a run writes.
    """
    names = released_files(folder)
    return {
        name: sha256(folder / name)
        for name in names
        if is_plain(folder / name) and (is_export or OURS.fullmatch(name) is not None)
    }


def is_plain(path: Path) -> bool:
    """A file, and no link to one."""
    return path.is_file() and not path.is_symlink()


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
        if not is_plain(folder / name):
            faults.append(f"{folder / name}: this is a link, not a file")
        elif name not in known:
            faults.append(f"{folder / name}: the statement does not list this file")
        elif sha256(folder / name) != known[name]:
            faults.append(f"{folder / name}: not as it was released (wrong checksum)")
    faults += [f"{folder / name}: this file is gone" for name in known if name not in there]
    return faults
