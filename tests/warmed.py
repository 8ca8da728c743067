"""Imported once by the server that forks killed runs: what a run imports and computes, each of them has at once."""

import os
import tempfile
from pathlib import Path

import pytest
from harness import run

with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
    patched.setenv("XDG_STATE_HOME", f"{folder}/state")
    patched.setenv("XDG_CACHE_HOME", f"{folder}/cache")
    run(Path(folder, "run"), "data.id=null")
os.fsync = lambda descriptor: None  # a process that is killed loses nothing that it wrote: no power is cut
