"""Names on the Hugging Face hub. Each is made a commit once, and kept: a run that goes on, goes on with the same."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from dpsyn.errors import invalid, missing
from dpsyn.files import folder, public_cache, write
from dpsyn.networks.packaged import PACKAGE, in_package
from dpsyn.validate import name_or_null

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def local_model(key: str, name: str) -> Path | None:
    """The folder that is there, the GGUF file, or what the package of `package:NAME` carries; None for any other name.
    Raises Missing where that package is not installed.

    key: the setting that names the model.
    name: what it is set to.
    """
    if name.startswith(PACKAGE):
        return in_package(key, name)
    place = Path(name).expanduser()
    return place if place.is_dir() or (place.suffix.lower() == ".gguf" and place.is_file()) else None


def model_folder(key: str, name: Any, expected: str, needs_owner: bool = True) -> Path | None:
    """What is here under a model's name (see `local_model`), or None for a name on the hub: OWNER/NAME, or NAME alone
    where no owner is needed. Raises Missing for anything else, with what is expected.

    key: the setting that names the model.
    name: what it is set to.
    expected: a noun, for messages.
    needs_owner: whether a name on the hub is OWNER/NAME, and NAME alone is refused.
    """
    if isinstance(name, str) and name and (place := local_model(key, name)) is not None:
        return place
    if not isinstance(name, str) or not NAME.fullmatch(name) or (needs_owner and "/" not in name):
        raise missing(key, name or "null", expected)
    return None


def check_revision(key: str, revision: str | None) -> None:
    """Raises UserError for what cannot be a commit, a tag or a branch.

    key: the setting.
    revision: what it is set to; None: the newest at the first use.
    """
    name_or_null(key, revision, "a commit, a tag or a branch on the hub, or null: the newest at the first use")


@functools.cache
def commit_of(
    key: str, name: str, revision: str | None, kind: Literal["model", "dataset"] = "model", do: str = ""
) -> str:
    """The commit that a revision was at the first use.

    It is kept in the public cache; in its place the copy in the hub's own cache counts where the hub is not reached.
    Raises UserError where there is neither.

    key: the setting that names the model or data set, for messages.
    name: OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    kind: of what it is the name.
    do: what the user can do where there is none, a sentence.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants, snapshot_download

    constants.HF_HUB_DISABLE_TELEMETRY = True
    named = json.dumps([constants.ENDPOINT, kind, name, revision])
    place = public_cache() / "hub" / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, LookupError):
        kept = json.loads(place.read_text())["commit"]
        if COMMIT.fullmatch(kept):
            return str(kept)
    failure = "no commit"
    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind).sha
    except Exception as error:
        found, failure = None, type(error).__name__
        with suppress(Exception):
            found = Path(snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True)).name
    if found is None or not COMMIT.fullmatch(found):
        which = f" and has revision={revision}" if revision is not None else ""
        raise invalid(
            key, name, f"an existing file or folder, or a name on the hub that can be reached{which} ({failure})", do
        )
    folder(place.parent)
    known = {"name": name, "revision": revision, "commit": found}
    write(place, json.dumps(known).encode(), private=True, shared=True)
    return found


def pinned(key: str, name: str, revision: str | None, do: str) -> str | None:
    """The commit of a model, or None for what is here. Raises UserError as `commit_of` does.

    key: the setting that names the model.
    name: what is here (see `local_model`), or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    do: what the user can do where there is none, a sentence.
    """
    return commit_of(key, name, revision, do=do) if local_model(key, name) is None else None


def fetched(
    key: str,
    name: str,
    revision: str | None,
    wanted: Sequence[str],
    others: Sequence[str],
    do: str,
    ignored: Sequence[str] = (),
) -> Path:
    """The folder itself, or the cached copy of what the hub has.

    key: the setting that names the model.
    name: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    wanted: patterns of the files, safetensors among them.
    others: of those that are fetched where there are no safetensors.
    do: what to do where it cannot be had.
    ignored: patterns of files that are not fetched.

    Raises UserError.
    """
    if (here := local_model(key, name)) is not None:
        return here
    commit = commit_of(key, name, revision, do=do)
    from huggingface_hub import snapshot_download

    try:
        found = Path(
            snapshot_download(name, revision=commit, allow_patterns=list(wanted), ignore_patterns=list(ignored))
        )
        there = [path.relative_to(found).as_posix() for path in found.rglob("*.safetensors")]
        if not any(fnmatch(name, pattern) for name in there for pattern in wanted):
            found = Path(snapshot_download(name, revision=commit, allow_patterns=[*wanted, *others]))
        return found
    except (OSError, ValueError) as error:
        failure = type(error).__name__
    raise invalid(key, name, f"an existing folder, or a name on the hub whose files can be fetched ({failure})", do)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and remarks of transformers and the hub, which would break into the panel."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()  # the hub's too
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
