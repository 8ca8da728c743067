"""Who is one user: one rule for all readers, so that no spelling gives a person a second vote."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import digits

from dpsyn.data.images import Images
from dpsyn.data.tables import Tables
from dpsyn.data.texts import Texts
from dpsyn.errors import UserError
from dpsyn.privacy.budget import GRID
from dpsyn.privacy.survey import Surveyor, check_survey
from dpsyn.privacy.votes import count_by_user
from dpsyn.reading.spelling import unit_of
from dpsyn.tables.schema import Schema

SPELLINGS = [
    "7",
    "7.0",
    " 7",
    "7 ",
    "7.00",
    "+7",
    "\ufeff7",
    "caf\u00e9",
    "cafe\u0301 ",
    "008",
    "8",
    "",
    "  ",
    None,
    "nan",
]
USERS = 4  # 7, caf\u00e9, 008, 8
NOBODY = 4
SCHEMA = Schema(
    file={"columns": {"x": {"kind": "integer", "bounds": [0, 9]}}, "labels": [], "unit": "who", "extra": "ignore"}
)


def met(data, size=4):
    """What reading met, and the numbers of the users."""
    surveyor, units = Surveyor(len(data.labels)), []
    for records in data.batches(size):
        surveyor.add(records)
        units += records.units.tolist()
    return surveyor.survey, units


def csv(path):
    pd.DataFrame({"text": ["hello"] * len(SPELLINGS), "x": 5, "who": SPELLINGS}).to_csv(path, index=False)
    return str(path)


def jsonl(path):
    lines = [json.dumps({"text": "hello", "x": 5, "who": who}) for who in SPELLINGS]
    path.write_text("\n".join([*lines[:-1], '{"text": "hello", "x": 5}']))
    return str(path)


def parquet(path):
    pq.write_table(pa.table({"text": ["hello"] * len(SPELLINGS), "x": ["5"] * len(SPELLINGS), "who": SPELLINGS}), path)
    return str(path)


@pytest.mark.parametrize("write", [csv, jsonl, parquet])
@pytest.mark.parametrize(
    "data",
    [
        lambda path: Texts(path, text_column="text", unit_column="who"),
        lambda path: Tables(path, SCHEMA),
    ],
)
def test_a_user_is_one_however_the_id_is_written_in_any_format(tmp_path, write, data):
    survey, units = met(data(write(tmp_path / f"a.{write.__name__}")))
    assert survey.users == len(set(units) - {-1}) == USERS
    assert survey.without_user == units.count(-1) == NOBODY
    assert len({units[at] for at in range(7)}) == 1  # all spellings of 7


def test_a_user_of_images_is_one_however_the_id_is_written(tmp_path):
    rows = digits(len(SPELLINGS))
    images = pa.array([{"bytes": row["image"], "path": None} for row in rows])
    pq.write_table(pa.table({"image": images, "who": SPELLINGS}), tmp_path / "a.parquet")
    survey, _ = met(Images(str(tmp_path / "a.parquet"), mode="L", unit_column="who"))
    assert (survey.users, survey.without_user) == (USERS, NOBODY)


def test_an_id_that_lost_digits_is_refused_since_nobody_can_tell_whose_it_is(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,who\nhello,1234567890123456789\nhello,1.2345678901234568e+18\nhello,1234567890123456768.0\n"
    )
    data = Texts(str(tmp_path / "a.csv"), unit_column="who")
    (records,) = list(data.batches(9))
    assert records.units.tolist() == [0]
    assert [(refusal.row, refusal.column) for refusal in records.refused] == [(1, "who"), (2, "who")]
    assert "lost digits" in records.refused[0].rule


def test_hexadecimal_ids_are_no_rounded_numbers():
    assert unit_of("3e10") == "3e10"


def test_a_misspelt_unit_column_is_refused_where_every_line_brings_its_own_keys(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello", "who": "me"}\n' * 5)
    data = Texts(str(tmp_path / "a.jsonl"), unit_column="whom")
    with pytest.raises(
        UserError, match=r"^data\.unit_column=whom: expected the name of a column in which rows name users"
    ):
        check_survey(met(data)[0], data, "user")


@pytest.mark.parametrize("times", [2**21, 2_965_821, 2**22 + 1, 2**30])
def test_a_user_with_millions_of_votes_for_one_candidate_has_one_vote(times):
    def choices():  # as many as `times`, of one user, in two blocks whose rows stand for many
        yield np.zeros(2, np.int64), np.array([[0], [1]])

    real = np.unique

    def many(pairs, axis, return_counts):
        found, counts = real(pairs, axis=axis, return_counts=return_counts)
        return found, np.array([times, 3], np.int64)[: len(counts)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(np, "unique", many)
        votes = count_by_user(choices(), 2)
    assert (votes.astype(object) ** 2).sum() <= GRID**2
    assert votes.tolist() == [isqrt_share(times, 9 + times**2), isqrt_share(3, 9 + times**2)]


def isqrt_share(count, square_norm):
    return math.isqrt(GRID**2 * count**2 // square_norm)


def test_ids_that_are_numbers_of_the_files_own_dialect_are_one_user(tmp_path):
    """pandas writes 7 as 7,0 where one id is missing and decimals follow a comma."""
    (tmp_path / "a.csv").write_text("x;who\n5;7\n5;7,0\n5;1.234\n5;1234\n5;\n")
    data = Tables(str(tmp_path / "a.csv"), SCHEMA, delimiter=";", decimal=",", thousands=".")
    survey, units = met(data)
    assert survey.users == 2 and survey.without_user == 1 and units[0] == units[1] and units[2] == units[3]


def test_one_id_in_several_spellings_is_one_user_in_every_dialect(tmp_path):
    (tmp_path / "a.csv").write_text("x;who\n5;7\n5;7.0\n5;7.000\n5;7,0\n5;7,00\n5; 7 \n")
    survey, units = met(Tables(str(tmp_path / "a.csv"), SCHEMA, delimiter=";", decimal=","))
    assert survey.users == 1 and units == [0] * 6


@pytest.mark.parametrize("rounded", ["1.2346e+18", "1,2346e+18", "12345678901234567.0", "12345678901234567,0"])
def test_ids_that_lost_digits_are_refused_in_every_dialect(tmp_path, rounded):
    (tmp_path / "a.csv").write_text(f"x;who\n5;7\n5;{rounded}\n")
    data = Tables(str(tmp_path / "a.csv"), SCHEMA, delimiter=";", decimal=",", on_error="skip", max_refused=1.0)
    (records,) = list(data.batches(9))
    assert [refusal.row for refusal in records.refused] == [1]
