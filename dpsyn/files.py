"""Files that are complete when they exist: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import inspect
import os
import platform
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dpsyn.errors import OutOfSpace, UserError

MANY_FILES = 100  # over these, one call syncs them all
STAMP = (
    315532800  # 1980-01-01: one modification time for all that is released, so none of them tells how long a run took
)


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Turns a full disk into one line that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutOfSpace(f"{path}: the disk is full. Make room and give the same command again; it goes on.") from None


def write(path: Path, content: bytes, private: bool = False, shared: bool = False) -> None:
    """Replaces `path` in one step. A private file is for its owner alone; released files get one fixed mtime.

    path: in a folder that is there.
    content: all of the file.
    private: whether it is for its owner alone.
    shared: whether others may write it at the same time, as they may in a cache; whoever ends last has written it.
    """
    own = f".{platform.node()}.{os.getpid()}.{threading.get_ident()}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.part")
    with room_on_disk(path):
        try:
            temporary.unlink(missing_ok=True)  # of a stranger's folder it may be a link to a file elsewhere
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(temporary, how, 0o600 if private else 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not private:
                os.utime(temporary, (STAMP, STAMP))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_folder(path: Path, contents: dict[str, bytes]) -> None:
    """A folder of released files that appears whole or not at all.

    path: of the folder, which is not there.
    contents: of its files by name.
    """
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    with room_on_disk(path):
        try:
            temporary.mkdir()
            for name, content in contents.items():
                write(temporary / name, content)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def folder(path: Path, mode: int = 0o777) -> Path:
    """Makes a folder and those above it that are missing, each of them synced into the one above it.

    path: of the folder, which may be there.
    mode: of the folder itself, before the umask.
    """
    if not path.is_dir():
        with room_on_disk(path):
            folder(path.parent)
            try:
                path.mkdir(mode=mode)
            except FileExistsError:  # another process was faster
                pass
            except FileNotFoundError:  # above it is what is no real folder: /proc, a link to nowhere
                raise UserError(f"{path}: expected a place where a folder can be made.") from None
            sync_folder(path.parent)
    return path


def private_folder(path: Path) -> Path:
    """Makes a folder that only its owner can enter.

    Raises UserError for what is there and is a link, belongs to another user, or was open for others to write in.
    """
    folder(path, 0o700)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: expected a folder and no link, since private data lie there. Remove it.")
    if found.st_uid != os.geteuid():
        raise UserError(
            f"{path}: expected a folder of your own, since private data lie there. It belongs to another user."
        )
    if found.st_mode & 0o022:
        raise UserError(
            f"{path}: expected a folder that no other user can write in. Look what is there, then chmod 700."
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, by a lock on this file; others wait. It falls with whoever holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_folder(path: Path) -> None:
    """Without it a rename may be undone by a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """All files below a folder are on the disk. One call a file took 48 s for 6,000 on a busy disk."""
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    if len(found) > MANY_FILES:
        os.sync()
        return
    for path in found:
        sync_folder(path)


def stamp(root: Path) -> None:
    """Gives everything under `root` the one date."""
    for path in [root, *root.rglob("*")]:
        os.utime(path, (STAMP, STAMP))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_folder() -> Path:
    """What is remembered across runs of this user: `$XDG_STATE_HOME/dpsyn`."""
    return private_folder(Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "dpsyn")


def cache_folder() -> Path:
    """Embeddings of private rows: `$XDG_CACHE_HOME/dpsyn/private`, for its owner alone. It can be deleted any time."""
    return private_folder(_caches() / "private")


def public_cache() -> Path:
    """What tells nothing of private data: weights, graphs of public pools."""
    return private_folder(_caches() / "public")


def answers_cache(name: str) -> Path:
    """What models answered to the runs that share the folder of this name, for its owner alone."""
    return private_folder(_caches() / name)


def _caches() -> Path:
    return private_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpsyn")


UNNAMED = "a part that its settings describe: a dataclass, or a function of a module"


def named_by(part: Any) -> str:
    """What a part is and all its settings but the runtime, so that what is kept can be named by them. Raises ValueError
    for one whose settings do not say what it is, with its type."""
    if is_dataclass(part) and not isinstance(part, type):
        known = [each.name for each in fields(part) if each.compare and each.name != "runtime"]
        return f"{type(part).__module__}.{type(part).__qualname__}({ {n: named_by(getattr(part, n)) for n in known} })"
    if isinstance(part, Mapping):
        return repr({str(key): named_by(value) for key, value in part.items()})
    if isinstance(part, list | tuple):
        return repr([named_by(value) for value in part])
    if part is None or isinstance(part, str | int | float | Path):
        return repr(part)
    if inspect.isfunction(part) and "<" not in part.__qualname__:
        return f"{part.__module__}.{part.__qualname__}"
    raise ValueError(type(part).__name__)
