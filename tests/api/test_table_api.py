"""Rows drawn from a schema and varied, rows as vectors and as codes, rows from a public pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpsyn.api.pool import Pool
from dpsyn.api.table import Table
from dpsyn.data import Records
from dpsyn.data.tables import Tables
from dpsyn.embedding.table import Table as Embedding
from dpsyn.errors import UserError
from dpsyn.networks.search import cpu_search
from dpsyn.population import MISSING, Samples, take
from dpsyn.privacy import electorate
from dpsyn.privacy.nearest import sparse_search
from dpsyn.privacy.query import Nearest
from dpsyn.privacy.votes import unseal
from dpsyn.schedule.cells import Codes
from dpsyn.tables import codec
from dpsyn.tables.schema import Schema

COLUMNS: dict[str, Any] = {
    "age": {"kind": "integer", "bounds": [17, 90]},
    "pay": {"kind": "number", "bounds": [0, 50], "resolution": 0.5, "missing": True},
    "born": {"kind": "date", "bounds": ["1990-01-01", "2009-12-31"], "missing": True},
    "wed": {"kind": "boolean", "missing": True},
    "size": {"kind": "ordered", "values": ["s", "m", "l", "xl"]},
    "job": {"kind": "category", "values": ["clerk", "cook", "smith"], "missing": True},
    "one": {"kind": "integer", "bounds": [7, 7]},
    "rich": {"kind": "category", "values": ["no", "yes"]},
}
PEOPLE = Schema({"columns": COLUMNS, "labels": ["rich"]})
API = Table(PEOPLE, 0.1)


def seeds(n: int, start: int = 0) -> np.ndarray:
    return np.random.default_rng(start).integers(0, 2**64, n, np.uint64)


def labels(n: int) -> list[Any]:
    return [PEOPLE.labels[i % 2] for i in range(n)]


def same(a: Samples, b: Samples) -> bool:
    return repr(a.content.tolist()) == repr(b.content.tolist())


def test_fresh_rows_have_the_columns_of_the_source_and_every_value_of_the_domain() -> None:
    made = API.generate(labels(4000), seeds(4000)).content
    assert made.dtype == PEOPLE.dtype and made.dtype.names == tuple(COLUMNS)
    assert made["rich"].tolist() == ["no", "yes"] * 2000
    assert set(made["age"].tolist()) == set(range(17, 91)) and set(made["one"].tolist()) == {7}
    assert set(made["job"].tolist()) == {"clerk", "cook", "smith", None}
    assert 0.2 < np.mean([job is None for job in made["job"]]) < 0.3  # one of four values
    assert set(made["wed"].tolist()) == {0, 1, -1} and set(made["size"].tolist()) == {"s", "m", "l", "xl"}
    pay = made["pay"]
    assert 0.07 < np.isnan(pay).mean() < 0.13 and set(pay[~np.isnan(pay)].tolist()) == {k / 2 for k in range(101)}
    born = made["born"][~np.isnat(made["born"])]
    assert born.min() >= np.datetime64("1990-01-01") and born.max() <= np.datetime64("2009-12-31")


def test_a_rate_of_0_is_the_parent_and_a_rate_bounds_how_far_a_number_moves() -> None:
    parents = API.generate(labels(3000), seeds(3000))
    assert same(API.vary(parents, labels(3000), 0, seeds(3000, 1)), parents)
    varied = API.vary(parents, labels(3000), 0.1, seeds(3000, 1)).content
    before = parents.content
    step = varied["age"] - before["age"]
    assert 6 <= np.abs(step).max() <= 8 and len(set(step.tolist())) > 10  # 0.1 * 73, rounded
    assert varied["age"].min() >= 17 and varied["age"].max() <= 90
    changed = np.array([a != b for a, b in zip(varied["job"], before["job"], strict=True)])
    assert 0.05 < changed.mean() < 0.1  # drawn anew with probability 0.1, of four values
    both = ~np.isnan(varied["pay"]) & ~np.isnan(before["pay"])
    assert np.mean(np.isnan(varied["pay"]) != np.isnan(before["pay"])) < 0.05 < both.mean()
    found = np.isnan(before["pay"]) & ~np.isnan(varied["pay"])
    lost = ~np.isnan(before["pay"]) & np.isnan(varied["pay"])
    assert found.any() and lost.any()
    assert (np.abs(varied["pay"] - before["pay"])[both] <= 5).all()
    assert (varied["rich"] == before["rich"]).all()


def test_a_row_depends_on_its_label_parent_rate_and_seed_alone() -> None:
    own, mine = seeds(100), labels(100)
    parents = API.generate(mine, own)
    varied = API.vary(parents, mine, 0.4, own)
    order = np.random.default_rng(0).permutation(100)[:30]
    some = [mine[i] for i in order]
    assert same(API.generate(some, own[order]), take(parents, order))
    assert same(API.vary(take(parents, order), some, 0.4, own[order]), take(varied, order))


def test_what_is_made_and_varied_keeps_every_constraint() -> None:
    constraints = ["a <= b", "c is null unless wed", "a >= floor"]
    columns = {
        "a": {"kind": "integer", "bounds": [0, 30]},
        "b": {"kind": "integer", "bounds": [0, 30]},
        "c": {"kind": "number", "bounds": [0, 1], "missing": True},
        "wed": {"kind": "boolean"},
        "floor": {"kind": "integer", "bounds": [0, 9]},
    }
    table = Schema({"columns": columns, "labels": ["floor"], "constraints": constraints})
    api, mine = Table(table, 0.05), [table.labels[i % 10] for i in range(1000)]
    made = api.generate(mine, seeds(1000))
    varied = api.vary(made, mine, 0.5, seeds(1000, 1))
    for rows in (made, varied):
        assert not table.broken(rows.content).any()
        assert rows.content["floor"].tolist() == [i % 10 for i in range(1000)]


@pytest.mark.parametrize("degree", [-0.1, 1.5, True, "0.5", None, {"rate": 0.5}])
def test_a_degree_that_is_no_rate_is_refused(degree: Any) -> None:
    with pytest.raises(UserError, match=r"^schedule\.degree=.*: expected a number from 0 "):
        API.check_degree(degree)


def test_wrong_settings_and_rows_of_another_schema_are_one_line() -> None:
    other = Schema({"columns": {"age": COLUMNS["age"], "rich": {"kind": "boolean"}}, "labels": ["rich"]})
    rows = Table(other, 0).generate([other.labels[0]], seeds(1))
    with pytest.raises(UserError, match=r"^api\.missing_rate=2: expected a probability"):
        Table(PEOPLE, 2)
    with pytest.raises(
        UserError, match=r"^api\.schema=adult: expected the schema of a table\. Choose data that have one: "
    ):
        Table("adult", 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^api\.schema=\.\.\.: expected the schema of the rows"):
        API.vary(rows, labels(1), 0.5, seeds(1))
    with pytest.raises(UserError, match=r"^data\.labels={'rich': 'true'}: expected labels of the schema"):
        API.generate([other.labels[1]], seeds(1))
    for embedding, whose in ((Embedding(PEOPLE, 1, 1, 1), "its schema"), (Codes(PEOPLE), r"data\.schema")):
        with pytest.raises(UserError, match=f"expected rows of {whose}"):
            embedding(rows)
    with pytest.raises(UserError, match=r"^embedding\.category_weight=-1: expected a number, 0 or more"):
        Embedding(PEOPLE, 1.0, -1, 1.0)


# Vectors and codes


def row(**cells: Any) -> Samples:
    given = {"age": "17", "pay": "0", "born": "1990-01-01", "wed": "true", "size": "s", "job": "cook", "one": "7"}
    content, rules = PEOPLE.read({name: [cell] for name, cell in {**given, "rich": "no", **cells}.items()})
    assert not rules.any()
    return Samples(content)


@pytest.mark.parametrize(
    ("cells", "distance"),
    [
        ({}, 0),
        ({"rich": "yes"}, 0),  # a label
        ({"age": "90"}, 1),
        ({"age": "90", "pay": "50"}, 2**0.5),
        ({"born": "2009-12-31"}, 1),
        ({"size": "xl"}, 1),
        ({"size": "m"}, 1 / 3),
        ({"job": "smith"}, 2**0.5 / 3),
        ({"job": ""}, 2**0.5 / 3),
        ({"wed": "false"}, 2**0.5 / 3),
        ({"pay": ""}, 0.5**0.5),  # halfway, and the indicator
    ],
)
def test_distances_are_those_of_the_published_embedding(cells: dict[str, Any], distance: float) -> None:
    embed = Embedding(PEOPLE, 1.0, 1 / 3, 0.5)
    one, other = embed(row()), embed(row(**cells))
    assert one.dtype == np.float32 and one.shape == (1, 1 + 2 + 2 + 3 + 1 + 4 + 1)
    assert np.linalg.norm(one - other) == pytest.approx(distance, abs=1e-6)


def test_a_column_of_one_value_or_none_at_all_gives_no_nan_and_moves_nothing() -> None:
    nothing = row(pay="", born="", wed="", job="")
    vectors = Embedding(PEOPLE, 1.0, 1 / 3, 0.5)(nothing)
    assert np.isfinite(vectors).all() and vectors[0, -1] == 0  # `one`, which is always 7


def test_private_rows_are_kept_as_an_entry_a_column_and_one_for_each_number_that_may_be_missing() -> None:
    made = API.generate(labels(400), seeds(400))
    embed = Embedding(PEOPLE, 1.0, 1 / 3, 0.5)
    told = embed.sparse(made)
    assert told.indices.shape == told.values.shape == (400, 7 + 2)
    assert (told.dense() == embed(made)).all()
    assert all(len(set(indices)) == 9 for indices in told.indices.tolist())


@pytest.mark.parametrize("columns", [COLUMNS, {"job": COLUMNS["job"]}], ids=["many columns", "one column"])
def test_rows_kept_as_few_entries_vote_as_dense_vectors_do(columns: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(electorate, "SPARSE", 1)  # these columns are few
    table = Schema({"columns": columns, "labels": ["rich"] if "rich" in columns else []})
    api, embed = Table(table, 0.1), Embedding(table, 1.0, 1 / 3, 0.5)
    rows = 700

    class Made:
        id = records = unit_column = None
        labels, on_error = table.labels, "refuse"

        def fingerprint(self) -> str:
            return "made"

        def batches(self, size: int) -> Any:
            for start in range(0, rows, size):
                n = min(size, rows - start)
                which = np.arange(n) % len(table.labels)
                yield Records(api.generate([table.labels[i] for i in which], seeds(n, start)), which)

    which = np.arange(300) % len(table.labels)
    vectors = embed(api.generate([table.labels[i] for i in which], seeds(300, 10**6)))
    counted = {}
    for name, kept, search in (("few", embed, sparse_search), ("dense", embed.__call__, cpu_search)):
        private = electorate.open_electorate(Made(), kept, {"kept": name}, "record", tmp_path)  # type: ignore[arg-type]
        counted[name] = unseal(private.tallied(Nearest(vectors, which, 2 if len(columns) > 1 else 1, search=search)))
    assert (counted["few"] == counted["dense"]).all() and counted["few"].sum() >= rows


def test_the_weight_of_a_column_in_the_schema_counts() -> None:
    table = Schema({"columns": {"a": {**COLUMNS["age"], "weight": 3}, "j": {**COLUMNS["job"], "weight": 0}}})
    content, _ = table.read({"a": ["17", "90", "17"], "j": ["cook", "cook", "smith"]})
    vectors = Embedding(table, 1.0, 1.0, 1.0)(Samples(content))
    assert np.linalg.norm(vectors - vectors[0], axis=1).tolist() == [0, 3, 0]


def test_cells_are_the_codes_exactly() -> None:
    rows = API.generate(labels(500), seeds(500))
    found = Codes(PEOPLE)(rows)
    assert found.dtype == np.int32 and found.shape == (500, 7)
    assert (found == codec.encode(PEOPLE, rows.content)).all()


def test_a_pool_of_public_rows_gives_whole_rows_of_the_label_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    lines = [",".join(COLUMNS)]
    for i in range(60):
        pay, born, wed = (
            i % 20 / 2 if i % 5 else "",
            f"199{i % 10}-02-03" if i % 4 else "",
            ["true", "false", ""][i % 3],
        )
        lines.append(f"{17 + i},{pay},{born},{wed},m,{['clerk', 'cook', ''][i % 3]},7,{['no', 'yes'][i % 2]}")
    path.write_text("\n".join(lines))
    data = Tables(str(path), PEOPLE, on_error="skip")
    pool = Pool(data, Embedding(PEOPLE, 1.0, 1 / 3, 0.5), path=str(path), by_label=True, neighbours=5)
    (public,) = data.batches(100)
    known = {repr(item) for item in public.samples.content.tolist()}
    made = pool.generate(labels(40), seeds(40))
    varied = pool.vary(made, labels(40), 5, seeds(40, 1))
    for rows in (made, varied):
        assert rows.content.dtype == PEOPLE.dtype and {repr(item) for item in rows.content.tolist()} <= known
        assert rows.content["rich"].tolist() == ["no", "yes"] * 20
    assert np.isnat(made.content["born"]).any() and np.isnan(made.content["pay"]).any()
    assert MISSING not in made.content["age"].tolist()
