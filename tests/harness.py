"""The whole program on small real data, for tests: runs, and noise that is the same in two runs."""

import io
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build
from dpsyn.data.digits import Digits
from dpsyn.execution import carry_out
from dpsyn.planning import facts
from dpsyn.privacy import ledger
from dpsyn.privacy.budget import calibrated
from dpsyn.schedule import Facts
from dpsyn.schedule.evolution import WithLabelShares, private_evolution
from dpsyn.schedule.selection import balanced
from dpsyn.show import Screen

TINY = ["+experiment=smoke", "schedule.size=20", "expand.rows=60"]


def job(root, *overrides):
    return build(compose.settings([*TINY, f"run_dir={root}", *overrides]))


def run(root, *overrides):
    """Carries a tiny run out and returns what it printed."""
    made, out = job(root, *overrides), io.StringIO()
    carry_out(made, Screen(Console(file=out, width=100), facts(made), len(made.releases)))
    return out.getvalue()


def ended(home, runs):
    """Finished runs in a folder, with an account and caches of their own. runs: overrides by name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        for name, overrides in runs.items():
            assert cli.main(["run", *overrides, f"run_dir={home / name}"]) == 0
    return home


def files(root):
    """Relative name -> content of all files under a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def digits(n=120, seed=0):
    """Real digits as rows {image png, label, user}."""
    batches = list(Digits(split="all", id=None, records=None, on_error="refuse").batches(2000))
    rows = np.random.default_rng(seed).permutation(len(batches[0].labels))[:n]
    return [
        {"image": png(batches[0].samples.content[i, ..., 0]), "label": str(batches[0].labels[i]), "user": f"u{i % 17}"}
        for i in rows
    ]


def png(image):
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def parquet(path, rows):
    images = pa.array([{"bytes": row["image"], "path": None} for row in rows])
    table = {"image": images, "label": [row["label"] for row in rows], "user": [row["user"] for row in rows]}
    pq.write_table(pa.table(table), path)
    return path


def own_data(path, *overrides):
    """Overrides that put a parquet file in the place of the embedded digits."""
    return [
        "data=mnist",
        f"data.path={path}",
        "data.id=test",
        "data.records=100",
        "data.label_columns={digit: label}",
        *overrides,
    ]


def same_noise(monkeypatch, noisy=None):
    """Records the noisy votes of a run, or hands recorded ones out again whatever the exact ones are."""
    recorded = [] if noisy is None else list(noisy)
    kept = list(recorded)
    real = ledger.discrete_gaussian

    def draw(exact, scale):
        if noisy is None:
            recorded.append(real(exact, scale))
            return recorded[-1]
        assert len(exact) == len(kept[0])
        return kept.pop(0)

    monkeypatch.setattr(ledger, "discrete_gaussian", draw)
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    monkeypatch.setattr("dpsyn.privacy.account.check_known_directory", lambda *_: None)  # all have this one id
    return recorded


def answer(query, blocks):
    """The exact answer about (codes, labels) blocks of rows: int64 [entries]."""
    from dpsyn.privacy.marginals import counts_of

    return query.answer(counts_of(query.marginals, blocks))


def vote_budget(settings, releases, sigma=None, label_shares=False):
    """The budget of so many releases of votes, and of noisy label shares."""
    schedule = private_evolution(releases, 10, 1, balanced)
    facts = Facts(np.full(10, 0.1), None, None, settings)
    planned = (WithLabelShares(schedule) if label_shares else schedule).releases(facts)
    return calibrated(settings, planned, sigma)


def at_moment(moment, act):
    """Replaces os.fsync, os.replace and os.mkdir: `act` is called before the one that is meant.

    moment: (the call's name, how the path ends that it is for, and which of these: 1 for the first). Returns a list of
    the moments that were reached.
    """
    name, ends, *nth = moment
    reached, met = [], 0

    def watched(call, real):
        def around(*arguments, **keywords):
            nonlocal met
            path = arguments[1] if call == "replace" else arguments[0]
            path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            if call == name and path.endswith(ends):
                met += 1
                if met == (nth[0] if nth else 1):
                    reached.append(moment)
                    act()
            return real(*arguments, **keywords)

        return around

    for call in ("fsync", "replace", "mkdir"):
        setattr(os, call, watched(call, getattr(os, call)))
    return reached


FORKED = multiprocessing.get_context("forkserver")  # a fork of warm imports starts at once, a new process in seconds
WARM = ["pytest"]


def warm(*modules):
    """Imported once by the server that processes are forked from, of what each of them would import. It begins with
    the first of them, so a file says this when its turn comes: what only others need is not imported."""
    WARM.extend(modules)
    FORKED.set_forkserver_preload(WARM)


def forked(target, *arguments):
    """What the target sends to its last argument, a pipe, from a process of its own; None where that was killed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server imports from nowhere else
        forkserver.ensure_running()
    here, there = FORKED.Pipe()
    process = FORKED.Process(target=target, args=(*arguments, there))
    process.start()
    there.close()
    process.join(120)
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return here.recv()
