import logging
import os
import shutil
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
    "embedding/test_efficientnet",
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
    "test_discover",
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


# files that take longest, longest first: processes end together where none is left with one of these at the end
LONG = [
    "cluster/test_ray_nodes",
    "test_image_runs",
    "test_run",
    "test_readme",
    "test_hostile",
    "test_scripts",
    "test_house",
    "api/test_avatar",
    "test_planning",
    "privacy/test_shards",
    "test_table_runs",
    "test_evaluate",
    "report/test_report",
    "test_replay",
    "test_rows_then_texts",
    "test_compose",
    "report/test_loading",
    "test_golden",
    "test_text_runs",
]


def pytest_collection_modifyitems(items):
    def place(item):
        return str(item.path.relative_to(ROOT).with_suffix(""))

    for item in items:
        if place(item) in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.index(place(item)) if place(item) in LONG else len(LONG))


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


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Nothing here can cut the power: a call to sync is made, and watched by tests, but waits for no disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with a finished run of each kind, by name. Copy one before you change it."""
    from filelock import FileLock
    from harness import ended

    small = {
        "images": ["+experiment=smoke", "schedule.size=20", "expand.rows=60", "card.curator=A curator",
                   "card.license=cc-by-4.0", "card.published=2026-11-30"],
        "texts": ["+experiment=text_smoke", "schedule.size=80", "metric=lengths"],
        "cells": ["+experiment=breast_cancer", "schedule.size=300", "metric=none", "privacy.epsilon=8"],
        "Tab-PE": ["+experiment=breast_cancer_tab_pe", "schedule.releases=2", "schedule.sampled_releases=1",
                   "metric=none"],
        "none": ["+experiment=smoke", "schedule=none", "schedule.size=20", "expand.rows=null"],
        "noisy label shares": ["+experiment=smoke", "label_shares=noisy", "schedule.size=20", "schedule.releases=2"],
        "not private": ["+experiment=smoke", "schedule.size=20", "privacy=none"],
    }  # fmt: skip
    own = tmp_path_factory.mktemp("runs") / "own"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return ended(own, small)
    made = tmp_path_factory.getbasetemp().parent / "runs"  # of all of pytest's processes
    with FileLock(f"{made}.lock"):
        if not made.exists():
            ended(made.with_suffix(".part"), small).rename(made)
    return Path(shutil.copytree(made, own))


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a network rounds by its threads, and takes as many as are free
