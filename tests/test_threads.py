"""How many threads are started is decided in one place, by what is free."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dpsyn
from dpsyn import threads
from dpsyn.threads import Reading


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors, files of the kernel that a test writes, and no call before."""
    monkeypatch.setattr(threads, "PROC", tmp_path / "proc")
    monkeypatch.setattr(threads, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "affinity", lambda: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda name, text: (
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True),
        (tmp_path / name).write_text(text),
    )


def test_processors_are_those_of_the_affinity_and_of_the_quota_of_any_control_group_above(machine):
    assert threads.processors() == 8
    machine("proc/self/cgroup", "0::/a/b\n")
    machine("cgroup/a/b/cpu.max", "max 100000\n")
    assert threads.processors() == 8
    machine("cgroup/a/cpu.max", "250000 100000\n")
    assert threads.processors() == 3  # two and a half
    machine("cgroup/a/b/cpu.max", "50000 100000\n")
    assert threads.processors() == 1


def test_the_quota_of_version_1_counts_also_where_a_container_hides_its_own_path(machine):
    machine("proc/self/cgroup", "5:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n")
    machine("cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    machine("cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert threads.processors() == 8
    machine("cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
    assert threads.processors() == 4


def test_free_are_the_processors_that_others_do_not_use(machine):
    def unused(everybody, own, group=None):
        before = None if group is None else 0.0
        return threads.unused(Reading(0.0, 0.0, before, 0.0), Reading(2.0, everybody, group, own))

    assert unused(0.1, 0.0) == 8
    assert unused(6.0, 0.0) == 5
    assert unused(16.0, 6.0) == 3  # our own work counts for nothing
    assert unused(16.0, 0.0) == unused(20.0, 0.0) == 1
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", "400000 100000\n")
    assert unused(0.1, 0.0, 0.1) == 4
    assert unused(4.0, 0.0, 4.0) == 2  # a neighbour in the container has two of its four


def test_what_the_processors_did_is_read_without_idle_and_nice_time_and_without_others_processors(machine, monkeypatch):
    hertz = os.sysconf("SC_CLK_TCK")
    row = "{} 100 1000 50 99999 7 1 2 3 0 0\n"
    machine("proc/stat", row.format("cpu ") + row.format("cpu0") + row.format("cpu1") + row.format("cpu8") + "intr 5\n")
    assert threads.used({0, 1, 2}) == pytest.approx(2 * 156 / hertz)


def test_the_users_own_limit_is_kept_and_an_answer_holds_for_a_second(machine, monkeypatch):
    monkeypatch.setattr(threads, "unused", lambda then, now: 6)
    monkeypatch.setattr(threads, "KEPT", -1.0)
    assert threads.free_threads() == 6
    monkeypatch.setattr(threads, "unused", lambda then, now: 1)
    monkeypatch.setattr(threads, "KEPT", 60.0)
    assert threads.free_threads() == 6
    for limit, least in (("2", 2), ("64", 6), ("3,1", 3), ("", 6), ("many", 6), ("0", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
        assert threads.free_threads() == least
    monkeypatch.undo()
    time.sleep(threads.KEPT)  # what it was told here holds as long


BUSY = """
import subprocess, sys, time
from dpsyn.threads import free_threads, processors, on_free_threads
burn = "import time; end = time.time() + 30\\nwhile time.time() < end: pass"
others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(2 * processors())]
try:
    time.sleep(1.5)
    import numpy, threadpoolctl
    with on_free_threads():
        print(free_threads(), max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
finally:
    for other in others:
        other.kill()
"""


def test_beside_processes_that_burn_every_processor_one_thread_is_started():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.split() == ["1", "1"]


def test_threads_without_work_sleep_and_the_environment_has_the_last_word(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["GOMP_SPINCOUNT"] == "0"
    assert os.environ["KMP_BLOCKTIME"] == "200"


def test_nobody_else_counts_processors():
    for path in Path(dpsyn.__file__).parent.rglob("*.py"):
        if path.name != "threads.py":
            assert not re.search(r"cpu_count|sched_getaffinity|n_jobs|omp_get", path.read_text()), path
