import logging
import os

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    """No test reads or leaves anything in the account or the cache of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    yield home
    off = [name for name, logger in logging.root.manager.loggerDict.items() if getattr(logger, "disabled", False)]
    assert not [name for name in off if name.startswith("dpsyn")], "a test disabled the loggers of those that follow"
    assert logging.root.level <= logging.WARNING and not logging.root.manager.disable and not logging.root.disabled


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
