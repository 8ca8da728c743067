"""A run on Ray is the same run: its bytes, what it says of wrong settings, and what it leaves lying about."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import digits, files, own_data, parquet, run

from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.networks.runtime import OnRay
from dpsyn.privacy import electorate as module
from dpsyn.privacy.electorate import by_threads, open_electorate
from dpsyn.privacy.marginals import Marginal
from dpsyn.privacy.query import QUERIES, CellCounts, CellScores, EmbeddingSums, LabelCounts, Nearest
from dpsyn.privacy.votes import unseal

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dpsyn[ray]'")
pytestmark = pytest.mark.slow

from dpsyn.cluster import private, session  # noqa: E402
from dpsyn.cluster.public import dispatching  # noqa: E402

PIXELS = Pixels(size=[8, 8], blur=0.5, directions=0, pool=1)
CANARY = "canary-471112"


@pytest.fixture(autouse=True)
def loadable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A cluster on this machine, whose files are kept."""
    kept = []

    class Kept:
        def __init__(self, **given):
            kept.append(Path(tempfile.mkdtemp(prefix="dpsyn-", dir="/tmp")))

        def __enter__(self):
            return str(kept[0])

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(session.tempfile, "TemporaryDirectory", Kept)
    runtime = OnRay(makers=2, shards=3)
    with session.connected(runtime):
        yield runtime, kept[0]
    shutil.rmtree(kept[0], ignore_errors=True)


def data_of(folder, n=120):
    from dpsyn.data.images import Images

    rows = [{**row, "user": f"{CANARY}-{at % 17}"} for at, row in enumerate(digits(n))]
    return Images(
        str(parquet(folder / "a.parquet", rows)),
        labels={"label": [str(i) for i in range(10)]},
        mode="L",
        unit_column="user",
    )


@dataclass(frozen=True)
class Codes:
    """Two pixels as codes of a table."""

    def __call__(self, samples):
        return samples.content.reshape(len(samples), -1)[:, 20:22].astype(np.int32) // 64

    def fingerprint(self):
        return ""


MADE = np.random.default_rng(0).normal(0, 9, (4000, 64)).astype(np.float32)
GRID = tuple(Marginal((j,), (np.arange(4),)) for j in (0, 1))
OF_VECTORS = [
    Nearest(MADE, np.arange(4000) % 10, 2),
    LabelCounts(10),
    EmbeddingSums(10, np.full(64, 0.1, np.float32), 2.0),
]
OF_CODES = [CellCounts("cells", GRID), CellScores("scores", GRID, (np.full(4, 9), np.full(4, 7)))]


def exact(electorate, queries=OF_VECTORS):
    asked = [query for query in queries if electorate.unit == "record" or query.additive]
    return [unseal(electorate.tallied(query)) for query in asked]


def test_shards_on_ray_count_the_same_and_nothing_of_them_lies_about_in_clear(here, tmp_path, monkeypatch):
    _, folder = here
    monkeypatch.setattr(module, "FEW", 5)
    data = data_of(tmp_path)
    private.check_nodes(data, tmp_path)
    assert {type(query) for query in (*OF_VECTORS, *OF_CODES)} == set(QUERIES)
    found = {}
    for unit in ("record", "user"):
        for embed, queries in ((PIXELS, OF_VECTORS), (Codes(), OF_CODES)):
            given = (data, embed, {"of": type(embed).__name__}, unit)
            alone = open_electorate(*given, tmp_path / "alone", 1)
            spread = open_electorate(*given, tmp_path / "ray", 3, private.reading(data, 3), private.counting)
            assert spread.parts == 3 and spread.count is private.counting and alone.count is by_threads
            expected = exact(alone, queries)
            for one, two in zip(expected, exact(spread, queries), strict=True):
                np.testing.assert_array_equal(one, two)
            found.setdefault(unit, expected)
    assert not list((tmp_path / "ray").rglob("*.try"))
    assert folder.stat().st_mode & 0o77 == 0
    there = [path for path in folder.rglob("*") if path.is_file()]
    assert len(there) > 5
    hidden = [CANARY.encode(), found["record"][0].tobytes()[:800], found["user"][0].tobytes()[:800]]
    for path in there:
        content = path.read_bytes()
        assert not any(secret in content for secret in hidden), path


class Failing:
    def __call__(self, samples):
        raise ValueError(f"{CANARY} {samples.content[0]}")

    def fingerprint(self):
        return ""


def test_of_an_error_on_the_private_side_ray_learns_the_kind_alone(here, tmp_path):
    _, folder = here
    data = data_of(tmp_path)
    with pytest.raises(RuntimeError, match=r"^ValueError") as caught:
        open_electorate(data, Failing(), {}, "record", tmp_path / "ray", 2, private.reading(data, 2), private.counting)
    assert CANARY in caught.value.__notes__[0]
    for path in folder.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


class Mortal:
    """An api whose maker dies at the first batch that it is asked for, once."""

    def __init__(self, marks):
        self.marks = marks

    def check(self):
        pass

    def vary(self, samples, labels, degree, seeds):
        raise UserError("api.texts=...: expected something else.")

    def generate(self, labels, seeds):
        mark = Path(self.marks) / f"{int(seeds[0])}"
        if seeds[0] % 3 == 1 and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        if seeds[0] == 999:
            os.kill(os.getpid(), signal.SIGKILL)
        return seeds * 2


class Nothing:
    def check(self):
        pass

    def __call__(self, samples):
        return samples


def test_a_maker_that_dies_is_replaced_and_its_batch_asked_again_in_order(here, tmp_path):
    runtime, _ = here
    with dispatching(Mortal(str(tmp_path)), Nothing(), runtime) as dispatch:
        batches = [lambda at=at: (None, np.array([at])) for at in range(12)]
        assert [int(part[0]) for part in dispatch("generate", batches)] == [2 * at for at in range(12)]
        assert len(list(tmp_path.iterdir())) == 4
        with pytest.raises(UserError, match=r"^api.texts=\.\.\.: expected something else\.$"):
            list(dispatch("vary", [lambda: (None, None, None, None)]))
        with pytest.raises(UserError, match=r"^runtime.makers=2: 3 makers ended on one batch"):
            list(dispatch("generate", [lambda: (None, np.array([999]))]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["runtime.address=127.0.0.1:9"],
            "runtime.address=127.0.0.1:9: expected the address of a Ray cluster that answers",
        ),
        (["runtime.gpus=4"], r"runtime.gpus=4: expected no more than there are \(\d+\) for 2 makers"),
        (["runtime.makers=0"], "runtime.makers=0: expected"),
        (["runtime.devices=[cpu]"], r"runtime.devices=\['cpu'\]: expected null on Ray"),
    ],
)
def test_what_a_cluster_has_not_is_one_line_before_a_row_is_read(tmp_path, given, said):
    path = parquet(tmp_path / "a.parquet", digits(50))
    with pytest.raises(UserError, match=f"^{said}"):
        run(tmp_path / "run", *own_data(path), "runtime=ray", *given)
    assert not (tmp_path / "run").exists()


def test_parts_that_cannot_be_sent_are_refused(here):
    runtime, _ = here
    with (
        pytest.raises(UserError, match=r"^runtime=ray: expected parts that can be pickled"),
        dispatching(lambda: None, Nothing(), runtime),
    ):
        pass


@pytest.mark.parametrize("given", [[], ["data.unit_column=user", "privacy.unit=user", "label_shares=noisy"]])
def test_a_run_on_ray_writes_what_a_run_without_it_writes(tmp_path, monkeypatch, given):
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    path = parquet(tmp_path / "a.parquet", digits(150))
    seen = []
    for name, on in (("alone", []), ("ray", ["runtime=ray", "runtime.shards=3"])):
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(variable, str(tmp_path / name))
        printed = run(tmp_path / name / "run", *own_data(path, *given), "privacy.noise=insecure_seeded", *on)
        found = files(tmp_path / name / "run")
        seen.append({name: content for name, content in found.items() if "/votes/" in name or "synthetic" in name})
    assert "ray: 1 node(s), 2 maker(s), 3 shard(s) on 1 private" in printed
    assert len(seen[0]) > 2 and seen[0] == seen[1]


class SlowPixels(Pixels):
    def __call__(self, samples):
        time.sleep(0.5)
        return super().__call__(samples)


class SlowCounts(LabelCounts):
    def tally(self, blocks):
        time.sleep(2)
        return super().tally(blocks)


@pytest.mark.parametrize("while_they_are", ["read", "counted"])
def test_a_node_that_is_removed_changes_no_count(tmp_path, monkeypatch, while_they_are):
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(module, "FEW", 5)
    monkeypatch.setattr(module, "BATCH", 16)
    data = data_of(tmp_path)
    expected = exact(open_electorate(data, PIXELS, {}, "record", tmp_path / "alone", 1))
    slow = SlowPixels(size=[8, 8], blur=0.5, directions=0, pool=1) if while_they_are == "read" else PIXELS
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        removed, _ = (cluster.add_node(num_cpus=2, resources={"private": 1}) for _ in range(2))
        removing = threading.Timer(1.5, cluster.remove_node, (removed,))
        with session.connected(OnRay(address=cluster.address, makers=1, shards=7)) as lines:
            assert "RAY_USE_TLS is not set" in lines[1]
            private.check_nodes(data, tmp_path)
            start = time.monotonic()
            if while_they_are == "read":
                removing.start()
            found = open_electorate(
                data, slow, {}, "record", tmp_path / "ray", 7, private.reading(data, 7), private.counting
            )
            if while_they_are == "counted":
                removing.start()
                np.testing.assert_array_equal(unseal(found.tallied(SlowCounts(10))), expected[1])
            for one, two in zip(expected, exact(found), strict=True):
                np.testing.assert_array_equal(one, two)
            removing.join()
            assert len(session.private_nodes()) == 1
            assert time.monotonic() - start < 90
    finally:
        cluster.shutdown()


def test_a_cluster_without_a_private_node_is_refused():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        with (
            pytest.raises(UserError, match=r"expected a node with the resource private"),
            session.connected(OnRay(address=cluster.address)),
        ):
            pass
    finally:
        cluster.shutdown()


def test_a_run_whose_driver_is_killed_goes_on_on_another_number_of_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    path = parquet(tmp_path / "a.parquet", digits(150))
    given = [*own_data(path), "privacy.noise=insecure_seeded"]
    short = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))  # what a killed driver leaves is in there
    script = tmp_path / "begin.py"
    script.write_text(
        "import sys; from dpsyn.runs import directory; from harness import run\n"
        "directory.secrets.token_hex = lambda n: '0' * 2 * n\n"
        "if __name__ == '__main__': run(*sys.argv[1:])\n"
    )
    for name in ("alone", "killed"):
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(variable, str(tmp_path / name))
        root = tmp_path / name / "run"
        if name == "killed":
            started = [sys.executable, str(script), str(root), *given, "runtime=ray", "runtime.shards=3"]
            driver = subprocess.Popen(started, start_new_session=True, env={**os.environ, "TMPDIR": str(short)})
            until = time.monotonic() + 120
            while not list(root.rglob("votes/*.parquet")) and time.monotonic() < until and driver.poll() is None:
                time.sleep(0.01)
            driver.kill()
            driver.wait()
            assert list(root.rglob("votes/001.parquet")) and not list(root.rglob("synthetic.parquet"))
        run(root, *given, *(["runtime=ray", "runtime.shards=5"] if name == "killed" else []))
    one, two = (
        {at: content for at, content in files(tmp_path / name / "run").items() if "/votes/" in at or "synthetic" in at}
        for name in ("alone", "killed")
    )
    assert len(one) > 2 and one == two

    def left():
        found = subprocess.run(["ps", "-ww", "-o", "args=", "-s", str(driver.pid)], capture_output=True, text=True)
        return [line for line in found.stdout.splitlines() if "ray" in line]

    while left() and time.monotonic() < until + 60:
        time.sleep(0.5)
    assert not left()
    assert {path.stat().st_mode & 0o777 for path in short.iterdir()} == {0o700}
    shutil.rmtree(short)
