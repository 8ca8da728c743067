import dataclasses
import os
import pickle
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import yaml
from fakes import Seeing
from omegaconf import OmegaConf

from dpsyn import compose
from dpsyn.api import pool as module
from dpsyn.api.pool import Pool
from dpsyn.api.pool import graph as graph_module
from dpsyn.build import build, config_folder
from dpsyn.data import Records, Refusal
from dpsyn.errors import OutOfSpace, UserError
from dpsyn.files import named_by, public_cache
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Population, Samples, concatenate, take
from dpsyn.runs.storage import from_parquet, to_parquet

ROWS = np.dtype([("age", "i4"), ("income", "f8"), ("sex", "U6")])
MIXED = np.dtype([("age", "i4"), ("town", "O")])
CALLS = []  # rows that an embedding was asked for
RUNTIME = Runtime(batch_size=64, device="cpu")


@dataclass(frozen=True)
class Made:
    """n rows, made anew by every reading; others are refused."""

    n: int
    kind: str = "images"
    labels: tuple = ({"size": "small"}, {"size": "large"})
    path: str = "made"

    def check(self):
        if self.path != "made":
            raise UserError(f"data.path={self.path}: expected made.")

    def fingerprint(self):
        return f"{self.n} {self.kind}"

    def rows(self):
        rng = np.random.default_rng(0)
        if self.kind == "images":
            return rng.integers(0, 256, (self.n, 4, 4, 3), np.uint8)
        if self.kind == "texts":
            return np.array([f"text {i} é\n\ud800" for i in rng.integers(0, 999, self.n)], object)
        if self.kind == "rows":
            return np.array([(rng.integers(99), rng.random(), f"s{i}") for i in range(self.n)], ROWS)
        return np.array([(rng.integers(99), f"town {i}") for i in range(self.n)], MIXED)

    def which(self):
        """The label of each row."""
        return np.arange(self.n) * 7 % 10 // 6 % len(self.labels)

    def batches(self, size):
        rows, labels = self.rows(), self.which()
        refusal = Refusal(0, "image", "not a readable image", "")
        for start in range(0, self.n, size):
            part = slice(start, start + size)
            yield Records(Samples(rows[part]), labels[part], None, (refusal,))
        yield Records(Samples(rows[:0]), labels[:0], None, (refusal,))


@dataclass(frozen=True)
class Numbers(Seeing):
    """Some numbers about any content; row i of them is about row i alone."""

    scale: float = 1.0
    runtime: Runtime = Runtime()

    def __call__(self, samples):
        CALLS.append(len(samples))
        content = samples.content
        if content.ndim == 4:
            return content.reshape(len(content), -1).astype(np.float32) * np.float32(self.scale)
        if content.dtype == object:
            rows = [(len(text), sum(text.encode("utf-8", "surrogatepass"))) for text in content]
            return np.array(rows, np.float32).reshape(-1, 2)
        return np.stack([content["age"], np.arange(len(content)) * 0 + 1], 1).astype(np.float32)


def made(n=200, kind="images", by_label=False, neighbours=None, runtime=RUNTIME, **data):
    return Pool(Made(n, kind, **data), Numbers(), "made", by_label, neighbours, runtime)


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


def named(api, numbers):
    return [api.data.labels[number] for number in numbers]


def at(api, items):
    """The samples that are these items."""
    items = np.asarray(items, np.int64)
    return Samples(api.data.rows()[items], {"item": items})


@contextmanager
def recorded(seen, text, rows):
    seen.append([text, rows, 0])

    def advance(more):
        seen[-1][2] += more

    yield advance


@pytest.fixture(autouse=True)
def nothing_asked():
    CALLS.clear()


@pytest.mark.parametrize("kind", ["images", "texts", "rows", "mixed"])
def test_samples_are_items_of_the_pool_whatever_they_are(kind):
    api = made(kind=kind, neighbours=20)
    labels = [{}] * 150
    first = api.generate(labels, seeds(150))
    second = api.vary(first, labels, 20, seeds(150, 1))
    for samples in (first, second):
        assert samples.traits["item"].dtype == np.int64
        assert samples.content.dtype == api.data.rows().dtype
        assert (samples.content == api.data.rows()[samples.traits["item"]]).all()
        assert type(samples.content) is np.ndarray
        assert np.array_equal(api.vectors(samples), Numbers()(Samples(samples.content)))
    assert concatenate([first, second]).content.shape[0] == 300
    assert len(api.vary(api.generate([], seeds(0)), [], 20, seeds(0))) == 0


def test_items_are_drawn_uniformly():
    items = made(50).generate([{}] * 50_000, seeds(50_000)).traits["item"]
    counts = np.bincount(items, minlength=50)
    assert ((counts - 1000) ** 2 / 1000).sum() < 95  # chi-square, 49 degrees of freedom: 1e-4


def test_variations_are_uniform_over_the_nearest_with_the_item_itself_among_them():
    api = made()
    items = api.vary(at(api, [7] * 20_000), [{}] * 20_000, 10.0, seeds(20_000)).traits["item"]
    assert set(items) == set(nearest(api, 7)[:10])
    counts = np.bincount(items)[nearest(api, 7)[:10]]
    assert ((counts - 2000) ** 2 / 2000).sum() < 34  # chi-square, 9 degrees of freedom: 1e-4
    for degree in (0, 0.0, 1, 1.0):
        assert (api.vary(at(api, [3, 5]), [{}] * 2, degree, seeds(2)).traits["item"] == [3, 5]).all()


def squares(api, item):
    vectors = Numbers()(Samples(api.data.rows())).astype(np.float64)
    return ((vectors - vectors[item]) ** 2).sum(1)


def nearest(api, item, among=None):
    """Brute force in float64: itself first, ties to the lower item."""
    distances = squares(api, item)
    distances[item] = -1
    among = np.arange(len(distances)) if among is None else among
    return among[np.lexsort((among, distances[among]))]


@pytest.mark.parametrize("by_label", [False, True])
def test_the_graph_is_that_of_brute_force_in_any_blocks(by_label, monkeypatch):
    monkeypatch.setattr(graph_module, "BLOCK", 50)
    monkeypatch.setattr(graph_module, "FOUND", 33 * 40)
    api = made(by_label=by_label)
    graph = graph_of(api, 40)
    for item in range(200):
        among = np.flatnonzero(api.data.which() == api.data.which()[item]) if by_label else None
        expected = nearest(api, item, among)[:40]
        assert graph[item, 0] == item and len(set(graph[item, :40])) == 40
        # equal distances are settled by a float32's rounding
        assert (squares(api, item)[graph[item, :40]] == squares(api, item)[expected]).all()


def graph_of(api, width):
    api.vary(at(api, [0]), api.data.labels[:1], width, seeds(1))
    return np.array(api.graph(api.stock(), width))


def test_items_that_are_equal_come_by_number_and_a_wider_graph_begins_with_the_narrower(monkeypatch):
    monkeypatch.setattr(graph_module, "BLOCK", 64)
    api = made(300, "rows")  # of their vectors a hundred are distinct
    narrow = graph_of(api, 5)
    wide = graph_of(api, 60)
    assert narrow.shape == (300, 5) and wide.shape == (300, 60)
    assert (wide[:, :5] == narrow).all()
    for item in range(300):
        assert (wide[item] == nearest(api, item)[:60]).all()


def test_all_items_may_be_equal():
    api = made(40, "mixed")
    same = dataclasses.replace(api, embedding=Same())
    assert (graph_of(same, 40) == [[i, *np.delete(np.arange(40), i)] for i in range(40)]).all()


@dataclass(frozen=True)
class Same(Seeing):
    def __call__(self, samples):
        return np.zeros((len(samples), 3), np.float32)


@pytest.mark.parametrize("rows", [[0], [149, 3, 3, 70], list(range(20, 120))], ids=["one", "mixed", "many"])
@pytest.mark.parametrize("by_label", [False, True])
def test_neither_batch_nor_order_changes_a_sample(rows, by_label):
    api = made(by_label=by_label)
    labels = named(api, np.arange(150) % 2)
    first = api.generate(labels, seeds(150))
    second = api.vary(first, labels, 15, seeds(150, 1))
    few = [labels[i] for i in rows]
    assert (api.generate(few, seeds(150)[rows]).traits["item"] == first.traits["item"][rows]).all()
    again = api.vary(take(first, np.array(rows)), few, 15, seeds(150, 1)[rows])
    assert (again.content == second.content[rows]).all()


def test_by_label_every_row_stays_within_its_label_and_meets_all_of_it():
    api = made(by_label=True, neighbours=20)
    asked = np.arange(3000) % 2
    labels = named(api, asked)
    samples = api.generate(labels, seeds(3000))
    for turn in range(3):
        items = samples.traits["item"]
        assert (api.data.which()[items] == asked).all()
        assert len(np.unique(items)) == 200 or turn
        samples = api.vary(samples, labels, 20, seeds(3000, turn))
    copies = [dict(label) for label in labels]  # a label is what it says, not which object
    assert (api.generate(copies, seeds(3000)).content == api.generate(labels, seeds(3000)).content).all()


def test_without_by_label_the_labels_of_the_pool_do_not_matter():
    items = made(50).generate([{"digit": "3"}] * 2000, seeds(2000)).traits["item"]
    assert len(np.unique(items)) == 50


def test_an_item_is_embedded_once_whoever_asks_and_however_often():
    one, two = made(neighbours=30), made(neighbours=20)
    for api in (one, two):
        samples = api.generate([{}] * 90, seeds(90))
        api.vectors(api.vary(samples, [{}] * 90, 20, seeds(90)))
    assert sum(CALLS) == 200 and max(CALLS) == 64
    other = dataclasses.replace(one, embedding=Numbers(runtime=Runtime(batch_size=7)))  # speed is no setting
    other.generate([{}], seeds(1))
    assert sum(CALLS) == 200
    dataclasses.replace(one, embedding=Numbers(2.0)).generate([{}], seeds(1))
    assert sum(CALLS) == 400


def test_a_pool_tells_what_it_is_at_and_how_far_and_does_each_once():
    api, seen = made(), []
    for degree in (None, 3, 3):
        api.prepare(degree, partial(recorded, seen))
    stages = [("reading the pool", None), ("embedding the pool", 200), ("finding neighbours in the pool", 200)]
    assert seen == [[text, rows, 200] for text, rows in stages]


def test_the_graph_is_built_once_and_again_for_a_larger_degree_alone(monkeypatch):
    built = []
    connect = graph_module.connect
    monkeypatch.setattr(
        module, "connect", lambda stock, width, *rest: built.append(width) or connect(stock, width, *rest)
    )
    for degree in (50, 20, 5):
        graph_of(made(), degree)
    assert built == [50]
    graph_of(made(), 80)
    graph_of(made(), 60)
    assert built == [50, 80]
    api = made(100, neighbours=70)
    for degree in (5, 70):
        graph_of(api, degree)
    assert built == [50, 80, 70]


@dataclass(frozen=True)
class NotYet(Seeing):
    def __call__(self, samples):
        raise AssertionError("embedded before it was counted")


def test_a_pool_that_is_too_small_is_found_before_it_is_embedded():
    for api, line in (
        (made(neighbours=201), r"^api\.neighbours=201: expected at most 200"),
        (made(neighbours=150, by_label=True), r"^api\.neighbours=150: .*label {'size': 'large'}"),
        (made(0), r"^api\.path=made: expected at least one row that can be read"),
    ):
        with pytest.raises(UserError, match=line):
            dataclasses.replace(api, embedding=NotYet()).generate([{"size": "small"}], seeds(1))


def test_a_pool_smaller_than_asked_is_one_line_and_with_neighbours_before_anything_is_spent():
    with pytest.raises(
        UserError, match=r"^api\.neighbours=201: expected at most 200, the items of the pool\. "
    ) as line:
        made(neighbours=201).generate([{}], seeds(1))
    assert "\n" not in str(line.value)
    api = made()
    samples = api.generate([{}], seeds(1))
    api.vary(samples, [{}], 200, seeds(1))
    with pytest.raises(UserError, match=r"^schedule\.degree=201: expected at most 200, the items of the pool\.$"):
        api.vary(samples, [{}], 201, seeds(1))
    smaller = int((api.data.which() == 1).sum())
    labels = api.data.labels
    for api in (made(by_label=True), made(by_label=True, neighbours=smaller)):
        samples = api.generate(labels, seeds(2))
        api.vary(samples, labels, smaller, seeds(2))
    api = made(by_label=True)
    api.vary(take(samples, [0]), labels[:1], smaller + 1, seeds(1))
    with pytest.raises(UserError, match=rf"^schedule\.degree={smaller + 1}: .*label {{'size': 'large'}}\.$"):
        api.vary(samples, labels, smaller + 1, seeds(2))
    with pytest.raises(UserError, match=rf"^api\.neighbours={smaller + 1}: expected at most {smaller}, .*'large'"):
        made(by_label=True, neighbours=smaller + 1).generate(labels, seeds(2))
    with pytest.raises(UserError, match=r"^schedule\.degree=21: expected at most api\.neighbours=20\."):
        made(neighbours=20).check_degree(21)


@pytest.mark.parametrize("degree", [0.5, -1, True, float("nan"), float("inf"), "a", {"font": 1}])
def test_what_is_no_degree_is_one_line(degree):
    with pytest.raises(UserError, match=r"^schedule\.degree=.*expected a whole number"):
        made().check_degree(degree)


@pytest.mark.parametrize(
    "key, wrong", [("by_label", "no"), ("neighbours", 0), ("neighbours", 2.5), ("neighbours", True)]
)
def test_a_wrong_setting_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^api\.{key}=.*expected"):
        dataclasses.replace(made(), **{key: wrong})


def test_other_labels_than_the_pool_has_are_one_line():
    api = made(by_label=True)
    with pytest.raises(UserError, match=r"^api\.data\.labels=.*'small'.*expected {'size': 'huge'} among them\."):
        api.generate([api.data.labels[0], {"size": "huge"}], seeds(2))
    api = made(by_label=True, labels=(*api.data.labels, {"size": "huge"}))
    with pytest.raises(UserError, match=r"^api\.path=made: expected at least one row with the label {'size': 'huge'}"):
        api.generate(api.data.labels, seeds(3))


def test_of_a_pool_of_texts_only_those_that_are_asked_for_are_decoded():
    api = made(kind="texts")
    first, folder = api.generate([{}] * 20, seeds(20)), public_cache() / "pools" / api.folder_name
    starts = np.fromfile(folder / "starts", np.int64)
    unasked = np.setdiff1d(np.arange(200), first.traits["item"])
    content = bytearray((folder / "content").read_bytes())
    for item in unasked:
        content[starts[item]] = 0
    (folder / "content").write_bytes(content)
    module.opened.cache_clear()
    assert (made(kind="texts").generate([{}] * 20, seeds(20)).content == first.content).all()


def test_an_empty_pool_is_one_line_and_leaves_nothing():
    with pytest.raises(UserError, match=r"^api\.path=made: expected at least one row .*\(1 were left out\)\.$"):
        made(0).generate([{}], seeds(1))
    assert not [path for path in (public_cache() / "pools").iterdir() if path.is_dir()]


@dataclass(frozen=True)
class Partly(Seeing):
    def __call__(self, samples):
        vectors = Numbers()(samples)
        vectors[samples.content[:, 0, 0, 0] < 64] = np.nan
        vectors[samples.content[:, 0, 0, 0] > 192] = 1e30
        return vectors


def test_rows_without_a_vector_are_left_out():
    api = dataclasses.replace(made(), embedding=Partly())
    images = api.generate([{}] * 500, seeds(500)).content
    assert images[:, 0, 0, 0].min() >= 64 and images[:, 0, 0, 0].max() <= 192
    stock = api.stock()
    assert 0 < len(stock.order) < 200 and set(graph_of(api, 20)[stock.order].ravel()) <= {*stock.order.tolist()}


def test_check_finds_a_missing_path_and_names_the_reader_as_the_pools():
    made().check()
    with pytest.raises(UserError, match=r"^api\.path=null: expected public data"):
        dataclasses.replace(made(), path=None).check()
    with pytest.raises(UserError, match=r"^api\.data\.path=elsewhere: expected made"):
        made(path="elsewhere").check()
    with pytest.raises(UserError, match=r"^api=function: expected a part that its settings describe"):
        dataclasses.replace(made(), embedding=lambda samples: None).check()


def test_settings_tell_parts_apart_and_the_runtime_does_not():
    assert named_by(Numbers(1.0)) != named_by(Numbers(2.0))
    assert named_by(Numbers(1.0)) == named_by(Numbers(1.0, Runtime(device="cpu")))
    assert named_by({"a": [1, None]}) != named_by({"a": ["1", None]})
    assert named_by(seeds) == f"{__name__}.seeds"


def test_samples_of_another_api_are_given_their_nearest_items():
    api = made(by_label=True)
    rng = np.random.default_rng(1)
    asked = np.arange(150) % 2
    foreign = Samples(rng.integers(0, 256, (150, 4, 4, 3), np.uint8), {"font": np.arange(150)})
    adopted = api.adopt(foreign, named(api, asked), seeds(150))
    assert (adopted.content == foreign.content).all() and (adopted.traits["font"] == np.arange(150)).all()
    theirs, vectors = Numbers()(foreign).astype(float), Numbers()(Samples(api.data.rows())).astype(float)
    for row in range(150):
        among = np.flatnonzero(api.data.which() == asked[row])
        assert adopted.traits["item"][row] == among[((vectors[among] - theirs[row]) ** 2).sum(1).argmin()]
    again = api.adopt(at(api, [5, 199]), named(api, api.data.which()[[5, 199]]), seeds(2))
    assert (again.traits["item"] == [5, 199]).all()
    with pytest.raises(UserError, match="another length"):
        api.adopt(Samples(foreign.content[:, :2]), named(api, asked), seeds(150))
    varied = api.vary(adopted, named(api, asked), 5, seeds(150))
    assert (varied.content == api.data.rows()[varied.traits["item"]]).all()


def test_samples_without_an_item_of_this_pool_are_one_line():
    api = made()
    with pytest.raises(UserError, match="lack the trait item"):
        api.vary(Samples(api.data.rows()), [{}] * 200, 1, seeds(200))
    with pytest.raises(UserError, match="another one"):
        made(20).vectors(at(api, [20]))


def test_samples_come_back_from_disk_and_vary_as_before():
    api = made()
    samples = api.generate([{}] * 50, seeds(50))
    population = Population(0, samples, np.zeros(50, int), np.full(50, -1), np.zeros(50, bool))
    back = from_parquet(to_parquet(population, [{}]), "test").samples
    one, two = (api.vary(each, [{}] * 50, 9, seeds(50, 1)) for each in (samples, back))
    assert (one.content == two.content).all()


def test_a_pool_can_be_pickled_before_and_after_it_was_asked():
    api = made()
    before = pickle.loads(pickle.dumps(api))
    first = api.generate([{}] * 9, seeds(9))
    after = pickle.dumps(api)
    assert len(after) < 5000
    for copy in (before, pickle.loads(after)):
        assert (copy.generate([{}] * 9, seeds(9)).content == first.content).all()


def test_what_a_killed_process_left_does_no_harm():
    api = made()
    folder = public_cache() / "pools" / api.folder_name
    folder.with_suffix(".part").mkdir(parents=True)
    (folder.with_suffix(".part") / "content").write_bytes(b"half")
    expected = api.data.rows()[api.generate([{}] * 9, seeds(9)).traits["item"]]
    (folder / "neighbours.part").write_bytes(b"half")
    assert (api.generate([{}] * 9, seeds(9)).content == expected).all()
    assert (graph_of(api, 9)[7] == nearest(api, 7)[:9]).all()
    assert not list(folder.parent.rglob("*.part"))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(monkeypatch):
    api = made()
    api.generate([{}], seeds(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graph_module, "connect_part", full)
    with pytest.raises(OutOfSpace):
        graph_of(api, 9)
    assert not list((public_cache() / "pools").rglob("*.part"))


SLOW = """
import sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/api"]
import numpy as np, test_pool
class Slow(test_pool.Made):
    def batches(self, size):
        print("reading", flush=True)
        time.sleep(1)
        yield from super().batches(size)
api = test_pool.made()
api = test_pool.dataclasses.replace(api, data=Slow(200))
print(api.generate([{{}}] * 9, test_pool.seeds(9)).traits["item"].tolist(), sum(test_pool.CALLS))
"""


def test_of_two_processes_at_once_one_reads_and_both_have_the_pool():
    code = SLOW.format(tests=os.path.dirname(os.path.dirname(__file__)))
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=60)[0].split("\n") for process in both]
    assert sorted(len(out) for out in outs) == [2, 3]  # one says that it reads
    assert outs[0][-2].split("]")[0] == outs[1][-2].split("]")[0]
    assert sorted(int(out[-2].split("]")[1]) for out in outs) == [0, 200]


def test_variations_are_looked_up_not_searched():
    api = made(2000)
    samples = api.generate([{}] * 20_000, seeds(20_000))
    api.vary(samples, [{}] * 20_000, 10, seeds(20_000))
    start = time.process_time()
    api.vary(samples, [{}] * 20_000, 10, seeds(20_000, 1))
    assert time.process_time() - start < 0.2  # measured: 0.01


def test_the_yaml_needs_a_path_alone_and_reads_it_wherever_it_stands(tmp_path):
    rows = Made(30).rows()
    population = Population(0, Samples(rows), np.zeros(30, int), np.full(30, -1), np.zeros(30, bool))
    (tmp_path / "public.parquet").write_bytes(to_parquet(population, [{}], lineage=False))
    place = str(tmp_path / "public.parquet")
    budget = ["privacy.epsilon=1", "privacy.delta=1e-5"]
    job = build(compose.settings(["data=digits", "api=pool", f"api.path={place}", "api.neighbours=9", *budget]))
    assert job.api.data.path == place and job.api.embedding == job.embed
    job.api.check()
    labels = [{"digit": "3"}] * 20
    samples = job.api.vary(job.api.generate(labels, seeds(20)), labels, 9, seeds(20))
    assert (samples.content == rows[samples.traits["item"]]).all()
    assert np.array_equal(job.api.vectors(samples), job.embed(samples))
    text = (config_folder() / "api/pool.yaml").read_text()
    nested = OmegaConf.create({"embedding": 1, "api": {"second": {**yaml.safe_load(text), "path": place}}})
    assert nested.api.second.data.path == place
