"""What Ray is given: the same counts from shards, nothing in clear, makers that die, parts that cannot be sent."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import digits, parquet

from dpsyn.embedding import Coded
from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.networks.runtime import OnRay
from dpsyn.privacy import electorate as module
from dpsyn.privacy.electorate import by_threads, open_electorate
from dpsyn.privacy.marginals import Marginal
from dpsyn.privacy.prefixes import Spelled
from dpsyn.privacy.query import (
    QUERIES,
    CellCounts,
    CellScores,
    EmbeddingSums,
    Histogram,
    LabelCounts,
    Nearest,
    PrefixCounts,
)
from dpsyn.privacy.votes import unseal

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'dpsyn[ray]'")
pytestmark = pytest.mark.slow

from dpsyn.cluster import private, session  # noqa: E402
from dpsyn.cluster.public import check_makers, dispatching  # noqa: E402

PIXELS = Pixels(size=[8, 8], blur=0.5, directions=0, pool=1)
CANARY = "canary-471112"


@pytest.fixture(scope="module")
def here():
    """A cluster on this machine, begun once for all tests of this file, whose files are kept."""
    kept = Path(tempfile.mkdtemp(prefix="dpsyn-", dir="/tmp"))
    runtime = OnRay(makers=2, shards=3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(str(Path(__file__).parents[up]) for up in range(3)))
        patched.setenv("RAY_prestart_worker_first_driver", "0")  # else Ray begins a process a processor that few ask
        patched.setattr(session.tempfile, "TemporaryDirectory", lambda **_: nullcontext(str(kept)))
        with session.connected(runtime):
            yield runtime, kept
    shutil.rmtree(kept, ignore_errors=True)


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


@dataclass(frozen=True)
class Both(Codes):
    """The codes, and the pixels as vectors."""

    def coded(self, samples):
        return Coded(self(samples), PIXELS(samples))


MADE = np.random.default_rng(0).normal(0, 9, (4000, 64)).astype(np.float32)
GRID = tuple(Marginal((j,), (np.arange(4),)) for j in (0, 1))
OF_VECTORS = [
    Nearest(MADE, np.arange(4000) % 10, 2),
    LabelCounts(10),
    EmbeddingSums(10, np.full(64, 0.1, np.float32), 2.0),
]
OF_BOTH = [
    *OF_VECTORS,
    EmbeddingSums(10, np.full(60, 0.1, np.float32), 2.0, False, (0, 1), (np.arange(40).reshape(4, 10) % 5,) * 2),
    CellCounts("cells", GRID),
]
OF_CODES = [
    CellCounts("cells", GRID),
    CellScores("scores", GRID, (np.full(4, 9), np.full(4, 7))),
    Histogram("a judge", (0, 1), (np.arange(40).reshape(4, 10) % 5, np.arange(40).reshape(4, 10) % 3)),
    PrefixCounts((Spelled(0, 4, np.array([[1], [2]], np.int32), 1, np.array([[3, 0]], np.int32)),)),
]


def exact(electorate, queries=OF_VECTORS):
    asked = [query for query in queries if electorate.unit == "record" or query.additive]
    return [unseal(electorate.tallied(query)) for query in asked]


def test_shards_on_ray_count_the_same_and_nothing_of_them_lies_about_in_clear(here, tmp_path, monkeypatch):
    _, folder = here
    monkeypatch.setattr(module, "FEW", 5)
    data = data_of(tmp_path)
    private.check_nodes(data, PIXELS, tmp_path)
    assert {type(query) for query in (*OF_VECTORS, *OF_CODES)} == set(QUERIES)
    found = {}
    for unit in ("record", "user"):
        for embed, queries in ((PIXELS, OF_VECTORS), (Codes(), OF_CODES), (Both(), OF_BOTH)):
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


def test_parts_that_cannot_be_sent_are_refused_before_a_row_is_read(here, tmp_path):
    runtime, _ = here
    for api, embed in ((lambda: None, Nothing()), (Mortal(str(tmp_path)), lambda: None)):
        with pytest.raises(UserError, match=r"^runtime=ray: expected parts that can be pickled"):
            check_makers(api, embed, runtime)
    data = data_of(tmp_path)
    for one, embed in ((data, lambda: None), (Unsendable(data), PIXELS)):
        with pytest.raises(UserError, match=r"^runtime=ray: expected parts that can be pickled"):
            private.check_nodes(one, embed, tmp_path / "none")
    assert not (tmp_path / "none").exists()


class Unsendable:
    """Data that hold what no other process can be given."""

    def __init__(self, data):
        self.data, self.lock = data, threading.Lock()

    def batches(self, size):
        raise AssertionError("a row was read")


@pytest.mark.parametrize("speaks", [True, False])
def test_an_address_where_one_side_alone_speaks_tls_is_refused_at_once(tmp_path, monkeypatch, speaks):
    """Ray would try again for ever."""
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=here", "-days", "2"]
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):  # closed below
                while True:
                    met = listening.accept()[0]
                    with suppress(OSError), serving.wrap_socket(met, True) if speaks else met as there:
                        there.recv(1)
                        there.sendall(b"not TLS" * 9)

        threading.Thread(target=serve, daemon=True).start()
        at = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("RAY_USE_TLS", "0" if speaks else "1")
        wanted = "a cluster without TLS. Set RAY_USE_TLS=1" if speaks else "a cluster that speaks TLS"
        with pytest.raises(UserError, match=f"^runtime.address={at}: expected {wanted}"):
            session.connected(OnRay(address=at)).__enter__()
