"""A vote is a function of one record and the candidates: through the real reader, embedding and search."""

import numpy as np
import pytest
from fakes import Seeing
from harness import digits, parquet, png

from dpsyn.data.images import Images
from dpsyn.data.tables import Tables
from dpsyn.embedding import Sparse
from dpsyn.embedding.pixels import Pixels
from dpsyn.networks.search import cpu_search, torch_search
from dpsyn.population import Samples
from dpsyn.privacy import electorate as electorate_module
from dpsyn.privacy.budget import GRID
from dpsyn.privacy.electorate import open_electorate, survey_of
from dpsyn.privacy.marginals import Marginal
from dpsyn.privacy.nearest import dense_search, sparse_search
from dpsyn.privacy.prefixes import Spelled
from dpsyn.privacy.query import CellScores, LabelCounts, Nearest, PrefixCounts
from dpsyn.privacy.survey import check_survey
from dpsyn.privacy.votes import unseal
from dpsyn.schedule.discover import Characters
from dpsyn.tables.schema import Schema

ROWS = digits(150)
SEARCHES = {
    "numpy": cpu_search,
    "torch": lambda candidates: dense_search(torch_search(candidates, "cpu")),
    "sparse": sparse_search,
}
EMBED = Pixels(size=[8, 8], blur=0.5, directions=0, pool=1)


class Told(Seeing):
    """The same vectors, kept and compared as sparse ones."""

    def __call__(self, samples):
        return EMBED(samples)

    def sparse(self, samples):
        vectors = EMBED(samples)
        return Sparse(np.tile(np.arange(64, dtype=np.int32), (len(vectors), 1)), vectors, 64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(electorate_module, "BLOCK_BYTES", 7 * 64 * 4)
    monkeypatch.setattr(electorate_module, "BATCH", 32)
    monkeypatch.setattr(electorate_module, "SPARSE", 1)  # so that `Told` stays as it is


def candidates():
    """Real digits, each four times, and near copies of them: survivors repeat."""
    images = np.stack([np.asarray(_image(row)) for row in digits(40, seed=5)])
    near = np.clip(images.astype(int) + 1, 0, 255).astype(np.uint8)
    content = np.concatenate([images, images, near, images, near])[..., None]
    labels = np.array([int(row["label"]) for row in digits(40, seed=5)] * 5)
    return EMBED(Samples(content)), labels


def _image(row):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(row["image"]))


def votes(folder, rows, unit="record", k=1, search=cpu_search, vectors=None, labels=None):
    if vectors is None:
        vectors, labels = candidates()
    embed = Told() if search is sparse_search else EMBED
    return unseal(electorate_of(folder, rows, unit, embed).tallied(Nearest(vectors, labels, k, search=search)))


def electorate_of(folder, rows, unit, embed=EMBED):
    folder.mkdir(exist_ok=True)
    return open_electorate(data_of(folder, rows, unit), embed, {}, unit, folder / "cache")


def data_of(folder, rows, unit="record"):
    return Images(
        path=str(parquet(folder / "data.parquet", rows)),
        labels={"digit": [str(i) for i in range(10)]},
        label_columns={"digit": "label"},
        mode="L",
        unit_column="user" if unit == "user" else None,
        on_error="skip",
    )


ODD = {"image": png((np.arange(64).reshape(8, 8) * 3).astype(np.uint8)), "label": "3", "user": "new"}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("at", [0, 70, 150], ids=["front", "middle", "end"])
def test_one_record_more_adds_k_votes_and_moves_no_other(tmp_path, at, k, search):
    without = votes(tmp_path / "a", ROWS, k=k, search=search)
    with_it = votes(tmp_path / "b", [*ROWS[:at], ODD, *ROWS[at:]], k=k, search=search)
    difference = with_it - without
    assert sorted(difference[difference != 0].tolist()) == [1] * k


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("rows_a_block", [33, 400])
def test_candidates_that_differ_by_a_rounding_error_still_get_the_same_votes(
    tmp_path, monkeypatch, rows_a_block, search
):
    """The rounding of a product of matrices depends on where a record stands in it."""
    monkeypatch.setattr(electorate_module, "BLOCK_BYTES", rows_a_block * 64 * 4)
    rows = [{**row, "label": "3"} for row in digits(300, seed=2)]
    base, _ = candidates()
    jitter = np.random.default_rng(0).choice(np.float32([1 - 2**-23, 1, 1 + 2**-23]), (20, 40, 64))
    vectors = np.concatenate(jitter * base[:40]).astype(np.float32)
    given = {"vectors": vectors, "labels": np.full(len(vectors), 3), "search": search}
    without = votes(tmp_path / "a", rows, **given)
    for at in (0, 150, 300):
        difference = votes(tmp_path / f"b{at}", [*rows[:at], ODD, *rows[at:]], **given) - without
        assert sorted(difference[difference != 0].tolist()) == [1]


def test_a_record_replaced_moves_at_most_two_votes(tmp_path):
    difference = votes(tmp_path / "a", ROWS) - votes(tmp_path / "b", [*ROWS[:9], ODD, *ROWS[10:]])
    assert np.abs(difference).sum() <= 2


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_all_searches_and_any_order_of_the_records_give_the_same_votes(tmp_path, search):
    assert (votes(tmp_path / "a", ROWS) == votes(tmp_path / "b", ROWS[::-1], search=search)).all()


@pytest.mark.parametrize("k", [1, 4])
def test_one_user_more_in_many_labels_moves_the_votes_by_at_most_one(tmp_path, k):
    records = [{**row, "user": "new"} for row in digits(80, seed=9)]
    assert len({row["label"] for row in records}) == 10
    without = votes(tmp_path / "a", ROWS, "user", k)
    with_them = votes(tmp_path / "b", [*records[:30], *ROWS, *records[30:]], "user", k)
    assert 0.95 * GRID < np.linalg.norm(with_them - without) <= GRID


def test_a_user_replaced_moves_the_votes_by_at_most_the_square_root_of_two(tmp_path):
    changed = [row if row["user"] != "u3" else {**ODD, "user": "u3"} for row in ROWS]
    assert np.linalg.norm(votes(tmp_path / "a", ROWS, "user") - votes(tmp_path / "b", changed, "user")) <= 2**0.5 * GRID


def test_one_record_more_or_one_user_more_moves_the_counts_of_the_labels_by_at_most_one(tmp_path):
    def counted(name, rows, unit):
        return unseal(electorate_of(tmp_path / name, rows, unit).tallied(LabelCounts(10)))

    before = counted("a", ROWS, "record")
    assert before.tolist() == np.bincount([int(row["label"]) for row in ROWS], minlength=10).tolist()
    assert (counted("b", [ODD, *ROWS], "record") - before).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    everywhere = [{**row, "user": "new"} for row in digits(80, seed=9)]
    moved = counted("c", [*everywhere, *ROWS], "user") - counted("d", ROWS, "user")
    assert 0.95 * GRID < np.linalg.norm(moved) <= GRID


def test_never_more_votes_than_there_are_candidates(tmp_path):
    vectors, labels = candidates()
    few = votes(tmp_path, ROWS, k=1000, vectors=vectors[:40], labels=labels[:40])
    sizes = np.bincount(labels[:40], minlength=10)
    members = np.bincount([int(row["label"]) for row in ROWS], minlength=10)
    assert (few == members[labels[:40]]).all()
    assert few.sum() == (sizes * members).sum()


def test_labels_without_records_or_without_candidates_do_no_harm(tmp_path):
    vectors, labels = candidates()
    rows = [row for row in ROWS if row["label"] != "2"]
    keep = labels != 5
    counted = votes(tmp_path, rows, vectors=vectors[keep], labels=labels[keep])
    assert counted[labels[keep] == 2].sum() == 0
    assert counted.sum() == sum(row["label"] != "5" for row in rows)


def test_repeated_candidates_get_their_votes_at_the_lowest_row(tmp_path):
    counted = votes(tmp_path, ROWS)
    assert counted[40:80].sum() == counted[120:].sum() == 0
    assert counted.sum() == len(ROWS)


def test_a_record_is_embedded_the_same_in_any_batch(tmp_path, monkeypatch):
    small = votes(tmp_path / "a", ROWS)
    monkeypatch.setattr(electorate_module, "BATCH", 256)
    assert (votes(tmp_path / "b", ROWS) == small).all()
    one, two = (b"".join(p.read_bytes() for p in sorted((tmp_path / x / "cache").rglob("*.vectors"))) for x in "ab")
    assert one == two


def test_refused_rows_are_named_by_column_and_rule_only(tmp_path):
    from dpsyn.errors import UserError

    data = Images(
        path=str(parquet(tmp_path / "d.parquet", [*ROWS, {**ODD, "label": "secret"}])),
        labels={"digit": [str(i) for i in range(10)]},
        label_columns={"digit": "label"},
        mode="L",
    )
    with pytest.raises(UserError, match="column 'label': not among the declared values") as caught:
        check_survey(survey_of(open_electorate(data, EMBED, {}, "record", tmp_path / "cache")), data, "record")
    assert "secret" not in str(caught.value)
    assert "150" not in str(caught.value)


@pytest.mark.parametrize("at", [0, 30, 60], ids=["front", "middle", "end"])
def test_one_row_more_moves_one_prefix_or_value_of_each_open_column_by_one(tmp_path, at):
    rng = np.random.default_rng(0)
    rows = [
        (rng.choice(["bath", "bat", "york", "oslo", "", "far too long"]), rng.choice(["007", "1"])) for _ in "x" * 60
    ]
    towns = {"kind": "category", "values": "open", "longest": 6, "characters": "lower", "missing": True}
    codes = {"kind": "category", "values": "open", "longest": 3, "characters": "digits"}
    schema = Schema({"columns": {"town": towns, "code": codes, "age": {"kind": "boolean"}}})
    asked = []
    for first, (name, begins, whole) in zip(
        (0, 6), (("town", ["ba", "yo"], ["bat"]), ("code", ["0"], [])), strict=True
    ):
        column = schema.open[name]
        prefixes = column.codes(np.array(begins, object))[:, : len(begins[0])]
        asked.append(Spelled(first, column.letters, prefixes, 1, column.codes(np.array(whole, object))))

    def counts(name, given):
        path = tmp_path / f"{name}.csv"
        path.write_text("town,code,age\n" + "".join(f"{town},{code},true\n" for town, code in given))
        tables = Tables(path=str(path), schema=schema)
        electorate = open_electorate(tables, Characters(schema), {}, "record", tmp_path / "cache", shards=3)
        return unseal(electorate.tallied(PrefixCounts(tuple(asked))))

    without = counts("without", rows)
    for odd in (("bath", "042"), ("bat", "7"), ("new", "00"), ("", "042"), ("much too long", "1")):
        difference = counts("-".join(odd), [*rows[:at], odd, *rows[at:]]) - without
        assert difference.sum() == 2 and sorted(difference[difference != 0].tolist()) == [1, 1]


def test_scores_that_are_fewer_than_the_marginals_they_are_charged_for_cannot_be_made():
    """One entry that 30 marginals move would move by 30, where sqrt(30) is charged."""
    marginal = Marginal((0,), (np.arange(4),))
    for expected in ((np.zeros(1, np.int64),), (np.zeros(4, np.int64),), (np.zeros(1, np.int64),) * 30):
        with pytest.raises(ValueError, match="each marginal's shape"):
            CellScores("scores", (marginal,) * 30, expected)


def test_scores_of_tables_are_never_asked_of_users(tmp_path):
    scores = CellScores("scores", (Marginal((0,), (np.arange(4),)),), (np.zeros(4, np.int64),))
    with pytest.raises(RuntimeError, match="asked of records alone; nothing was read"):
        electorate_of(tmp_path, ROWS, "user").tallied(scores)


def test_codes_beyond_what_a_float_tells_apart_are_kept_exactly(tmp_path):
    class Wide:
        def fingerprint(self):
            return "wide"

        def __call__(self, samples):
            return samples.content[:, 0, :2, 0].astype(np.int32) + 2**24

    seen = []

    class Watched(LabelCounts):
        def choices(self, blocks):
            for block in blocks:
                seen.append(np.array(block.vectors))
                yield block.units, np.zeros((len(block.units), 1), np.int64)

    electorate_of(tmp_path, ROWS, "record", Wide()).tallied(Watched(10))
    assert all(block.dtype == np.int32 for block in seen)
    read = next(iter(data_of(tmp_path, ROWS).batches(1000))).samples.content[:, 0, :2, 0].astype(np.int64) + 2**24
    assert sorted(map(tuple, np.concatenate(seen).tolist())) == sorted(map(tuple, read.tolist()))
