import logging
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


# modules that carry out whole runs, or load networks: the rest is `scripts/test -m "not slow"`
SLOW = [
    "api/test_avatar",
    "api/test_diffusion",
    "api/test_local_llm",
    "api/test_pool",
    "api/test_stable_diffusion",
    "data/test_texts",
    "embedding/test_inception",
    "embedding/test_sentence",
    "embedding/test_vision",
    "language/test_asking",
    "metric/test_metrics",
    "metric/test_table_metrics",
    "metric/test_text_metrics",
    "privacy/test_account",
    "privacy/test_ledger",
    "report/test_card",
    "report/test_loading",
    "report/test_report",
    "schedule/test_cells",
    "schedule/test_third_schedule",
    "test_cli",
    "test_compose",
    "test_evaluate",
    "test_contracts",
    "test_golden",
    "test_hostile",
    "test_init",
    "test_image_runs",
    "test_parts",
    "test_python",
    "test_readme",
    "test_replay",
    "test_run",
    "test_table_runs",
    "test_text_runs",
    "test_workers",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path.relative_to(ROOT).with_suffix("")) in SLOW:
            item.add_marker(pytest.mark.slow)


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
