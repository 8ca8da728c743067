"""A run on Ray is the same run: its bytes, what it says of wrong settings, nodes and drivers that end."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from harness import digits, files, own_data, parquet, run

from dpsyn import evaluation
from dpsyn.data.images import Images
from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.networks.runtime import OnRay
from dpsyn.privacy import electorate as module
from dpsyn.privacy.electorate import open_electorate
from dpsyn.privacy.query import LabelCounts, Nearest
from dpsyn.privacy.votes import unseal

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dpsyn[ray]'")
pytestmark = pytest.mark.slow

from dpsyn.cluster import private, session  # noqa: E402

OUR_MODULES = os.pathsep.join(str(Path(__file__).parents[up]) for up in range(3))
PIXELS = {"size": [8, 8], "blur": 0.5, "directions": 0, "pool": 1}
PRIVATE = {"num_cpus": 2, "resources": {"private": 1}}


@pytest.fixture(scope="module")
def cluster():
    """A cluster that is there already: its head may hold no private rows. Begun once for all tests of this file."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", OUR_MODULES)
        patched.setenv("RAY_prestart_worker_first_driver", "0")  # else Ray begins a process a processor that few ask
        begun = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        yield begun
        begun.shutdown()


@contextmanager
def private_node(cluster, **given):
    """While it lasts, the cluster has one node that may hold private rows."""
    node = cluster.add_node(**PRIVATE, **given)
    try:
        yield
    finally:
        cluster.remove_node(node)


def of_run(root):
    """The receipts and the data of a run, and what was measured of them."""
    kept = ("/votes/", "synthetic", "evaluation")
    return {at: content for at, content in files(root).items() if any(part in at for part in kept)}


def at_home(monkeypatch, folder):
    """A run has an account and a cache of its own, and the one id that all have."""
    monkeypatch.setattr("dpsyn.runs.directory.secrets.token_hex", lambda n: "0" * 2 * n)
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(folder))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(settings, folder, driver, its temporary folder) of a run whose driver was killed after its first votes."""
    folder = tmp_path_factory.mktemp("killed")
    path = parquet(folder / "a.parquet", digits(150))
    given = [*own_data(path), "privacy.noise=insecure_seeded"]
    short = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))  # what a killed driver leaves is in there
    script = folder / "begin.py"
    script.write_text(
        "import sys; from dpsyn.runs import directory; from harness import run\n"
        "directory.secrets.token_hex = lambda n: '0' * 2 * n\n"
        "if __name__ == '__main__': run(*sys.argv[1:])\n"
    )
    root = folder / "run"
    started = [sys.executable, str(script), str(root), *given, "runtime=ray", "runtime.shards=3"]
    environment = {"TMPDIR": str(short), "PYTHONPATH": OUR_MODULES}
    environment |= {name: str(folder) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME")}
    driver = subprocess.Popen(started, start_new_session=True, env=os.environ | environment)
    until = time.monotonic() + 120
    while not list(root.rglob("votes/*.parquet")) and time.monotonic() < until and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    yield given, folder, driver, short
    shutil.rmtree(short)


def test_a_run_whose_driver_is_killed_goes_on_on_another_number_of_shards(killed, tmp_path, monkeypatch):
    given, folder, _, _ = killed
    assert list(folder.rglob("votes/001.parquet")) and not list(folder.rglob("synthetic.parquet"))
    at_home(monkeypatch, folder)
    run(folder / "run", *given, "runtime=ray", "runtime.shards=5")  # on a cluster of its own
    at_home(monkeypatch, tmp_path)
    run(tmp_path / "run", *given)
    assert len(of_run(tmp_path / "run")) > 2 and of_run(tmp_path / "run") == of_run(folder / "run")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["runtime.address=127.0.0.1:9"],
            "runtime.address=127.0.0.1:9: expected the address of a Ray cluster that answers",
        ),
        (["runtime.makers=0"], "runtime.makers=0: expected"),
        (["runtime.devices=[cpu]"], r"runtime.devices=\['cpu'\]: expected null on Ray"),
    ],
)
def test_what_cannot_be_asked_of_a_cluster_is_one_line_before_a_row_is_read(tmp_path, given, said):
    refused(tmp_path, said, *given)


def refused(folder, said, *given):
    path = parquet(folder / "a.parquet", digits(50))
    with pytest.raises(UserError, match=f"^{said}"):
        run(folder / "run", *own_data(path), "runtime=ray", *given)
    assert not (folder / "run").exists()


def test_what_a_cluster_has_not_is_one_line_before_a_row_is_read(cluster, tmp_path):
    at = f"runtime.address={cluster.address}"
    refused(tmp_path, rf"{at}: expected a node with the resource private", at)
    with private_node(cluster):
        refused(tmp_path, r"runtime.gpus=4: expected no more than there are \(\d+\) for 2 makers", at, "runtime.gpus=4")
        refused(
            tmp_path, r"runtime.makers=9: expected fewer than the cluster has processors \(5\)", at, "runtime.makers=9"
        )


@pytest.mark.parametrize("other", [("1.0.0", "3.11.1"), (ray.__version__, "3.9.1")], ids=["Ray", "Python"])
def test_another_ray_or_python_on_the_cluster_is_one_line(cluster, tmp_path, monkeypatch, other):
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: other)  # of this process
    at = f"runtime.address={cluster.address}"
    refused(tmp_path, f"{at}: expected a cluster with what is here, Ray {ray.__version__} and Python 3", at)


LACKING = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *at: None if name in ("sklearn", "python_avatars") else find(name, *at)
"""


def test_what_a_node_lacks_or_does_not_see_is_one_line_before_a_row_is_read(cluster, tmp_path, monkeypatch):
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking/sitecustomize.py").write_text(LACKING)
    lacking = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "lacking"), OUR_MODULES])}
    at, mine = f"runtime.address={cluster.address}", "/proc/self/cwd"  # another folder in every process
    with private_node(cluster, env_vars=lacking):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UserError, match=r"^a private node: data=digits: expected the package scikit-learn\. Install"
        ):
            run(tmp_path / "run", "runtime=ray", at)
        refused(tmp_path, f"a private node: data.path={mine}/a.parquet: expected", at, f"data.path={mine}/a.parquet")
        folder = f"runtime.private_folder={mine}/vectors"
        refused(tmp_path, f"{folder}: expected a folder that all private nodes see", at, folder)
        pytest.importorskip("python_avatars")
        pytest.importorskip("cairosvg", exc_type=(ImportError, OSError))
        made = ["api=avatar", "schedule.degree=0.5", "expand.degree=0.5"]
        refused(tmp_path, "a maker on Ray: api=avatar: expected the package python-avatars", at, *made)


def test_a_run_on_ray_writes_what_a_run_without_it_writes(cluster, tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", digits(150))
    of_users = ["data.unit_column=user", "privacy.unit=user", "label_shares=noisy"]
    of_users += ["data.hold_out=0.4", "evaluate.epsilon=5"]
    on_ray = ["runtime=ray", "runtime.shards=3", f"runtime.address={cluster.address}"]
    with private_node(cluster):
        for name, on in (("alone", []), ("ray", on_ray)):
            at_home(monkeypatch, tmp_path / name)
            printed = run(tmp_path / name / "run", *own_data(path, *of_users), "privacy.noise=insecure_seeded", *on)
    assert "ray: 2 node(s), 2 maker(s), 3 shard(s) on 1 private" in printed
    assert len(of_run(tmp_path / "ray")) > 2 and of_run(tmp_path / "ray") == of_run(tmp_path / "alone")
    assert list((tmp_path / "ray").rglob(evaluation.NAME))


class SlowPixels(Pixels):
    def __call__(self, samples):
        time.sleep(0.5)
        return super().__call__(samples)


class SlowCounts(LabelCounts):
    def tally(self, blocks):
        time.sleep(2)
        return super().tally(blocks)


def test_a_node_that_is_removed_while_rows_are_read_or_counted_changes_no_count(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEW", 5)
    monkeypatch.setattr(module, "BATCH", 16)
    data = Images(
        str(parquet(tmp_path / "a.parquet", digits(120))), labels={"label": [str(i) for i in range(10)]}, mode="L"
    )
    made = np.random.default_rng(0).normal(0, 9, (400, 64)).astype(np.float32)
    queries = [Nearest(made, np.arange(400) % 10, 2), LabelCounts(10)]
    alone = open_electorate(data, Pixels(**PIXELS), {}, "record", tmp_path / "alone", 1)
    expected = [unseal(alone.tallied(query)) for query in queries]
    nodes = [cluster.add_node(**PRIVATE) for _ in range(3)]

    def removing(after):
        timer = threading.Timer(after, cluster.remove_node, (nodes.pop(0),))
        timer.start()
        return timer

    with session.connected(OnRay(address=cluster.address, makers=1, shards=7)) as lines:
        assert "RAY_USE_TLS is not set" in lines[1]
        private.check_nodes(data, Pixels(**PIXELS), tmp_path)
        start = time.monotonic()
        removed = removing(1.5)
        found = open_electorate(
            data, SlowPixels(**PIXELS), {}, "record", tmp_path / "ray", 7, private.reading(data, 7), private.counting
        )
        removed.join()
        assert len(session.private_nodes()) == 2
        for one, query in zip(expected, queries, strict=True):
            np.testing.assert_array_equal(one, unseal(found.tallied(query)))
        removed = removing(1)
        np.testing.assert_array_equal(expected[1], unseal(found.tallied(SlowCounts(10))))
        removed.join()
        assert len(session.private_nodes()) == 1
        assert time.monotonic() - start < 120
    cluster.remove_node(nodes.pop())


def test_of_a_killed_driver_nothing_is_left_but_a_folder_of_its_own(killed):
    """Last in this file: Ray's agents look for their dead head for a minute."""
    _, _, driver, short = killed

    def left():
        found = subprocess.run(["ps", "-ww", "-o", "args=", "-s", str(driver.pid)], capture_output=True, text=True)
        return [line for line in found.stdout.splitlines() if "ray" in line]

    until = time.monotonic() + 90
    while left() and time.monotonic() < until:
        time.sleep(0.5)
    assert not left()
    assert {path.stat().st_mode & 0o777 for path in short.iterdir()} == {0o700}
