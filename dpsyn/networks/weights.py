"""Weights of published networks: a local file, or an address that is fetched once into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from dpsyn.errors import UserError, invalid, missing
from dpsyn.files import public_cache, room_on_disk, sha256, write


def check_weights(key: str, path: str | None, what: str) -> None:
    """Raises Missing for what is neither a file that is there nor an address.

    key: the setting that names the weights.
    path: what it is set to; None: nothing.
    what: says which weights they are, for messages.
    """
    if not isinstance(path, str) or not ("://" in path or Path(path).expanduser().is_file()):
        raise missing(key, "null" if path is None else path, f"an existing file or an address ({what})")


def local_weights(key: str, path: str, what: str) -> Path:
    """The file itself, or the cached copy of what is at an address, fetched now if need be.

    key: the setting that names the weights.
    path: a file, or an address.
    what: says which weights they are, for messages.

    Raises UserError where it cannot be fetched: it says which file to put where.
    """
    check_weights(key, path, what)
    if "://" not in path:
        return Path(path).expanduser()
    import urllib.request
    from http.client import HTTPException

    name = path.partition("#")[0].rsplit("/", 1)[-1].split("?")[0]
    place = public_cache() / "weights" / hashlib.sha256(path.encode()).hexdigest()[:12] / name
    if place.exists():
        _check_digest(key, path, place)
        return place
    kind = None
    with room_on_disk(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
        try:
            with (
                os.fdopen(descriptor, "wb") as file,
                urllib.request.urlopen(path.partition("#")[0], timeout=60) as answer,
            ):
                expected, got = answer.headers.get("Content-Length"), 0
                while block := answer.read(1 << 20):
                    file.write(block)
                    got += len(block)
            if expected is not None and got != int(expected):
                kind = f"{got} of {expected} bytes came"
            else:
                os.replace(temporary, place)
        except (OSError, ValueError, HTTPException) as error:
            network = isinstance(error, ConnectionError | TimeoutError) or hasattr(error, "reason")
            if isinstance(error, OSError) and error.errno is not None and not network:
                raise  # the disk
            kind = type(error).__name__
        finally:
            Path(temporary).unlink(missing_ok=True)
    if kind is not None:
        do = f"Put the file at {place}, or name a local one with {key}=."
        raise UserError(f"{key}={path}: {what} cannot be fetched ({kind}). {do}")
    _check_digest(key, path, place)
    return place


def _check_digest(key: str, path: str, place: Path) -> None:
    """Against `#sha256=` in the address, the digits at the end of a name as torch's hub has them (x-1a2b3c4d.pth), and
    what was first fetched, whose digest is kept beside it. Raises UserError."""
    found, kept = sha256(place), place.with_name(f"{place.name}.sha256")
    wanted = [stated.group(1).lower()] if (stated := re.search(r"#sha256=([0-9a-fA-F]{64})$", path)) else []
    wanted += [named.group(1)] if (named := re.search(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$", place.name)) else []
    wanted += [kept.read_text().strip()] if kept.exists() else []
    if other := next((digest for digest in wanted if not found.startswith(digest)), None):
        do = f"Nothing of it was loaded. Remove {place.parent} to fetch it again."
        raise invalid(key, path, f"weights with the digest {other}, not {found}", do)
    if not kept.exists():
        write(kept, found.encode(), private=True, shared=True)
