"""Dates, datetimes and times of day: how cells are read, what is released, and how it is written."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import Seeing

from dpsyn.api.table import Table
from dpsyn.embedding.table import Table as Vectors
from dpsyn.errors import UserError
from dpsyn.metric.marginals import distances, measured
from dpsyn.population import Population, Samples, take
from dpsyn.reading.rows import Span, parquet_batches
from dpsyn.runs.export import as_csv, as_jsonl
from dpsyn.runs.storage import from_parquet, to_parquet
from dpsyn.tables import codec, times
from dpsyn.tables.columns import CLIPPED, CUT, FINE, NO_DATE, NO_DATETIME, NO_TIME, NO_ZONE
from dpsyn.tables.schema import Schema, told

MONTHS = ["2024-01-01 00:00:00", "2024-02-29 23:59:59"]
SHOP: dict[str, Any] = {
    "day": {"kind": "date", "bounds": ["01.01.2024", "31.12.2024"], "format": "dotted", "missing": True},
    "made": {"kind": "datetime", "bounds": MONTHS, "timezone": "Europe/Berlin", "missing": True},
    "sent": {"kind": "datetime", "bounds": MONTHS, "resolution": "minute"},
    "paid": {"kind": "datetime", "bounds": MONTHS, "timezone": "+05:30", "resolution": "hour"},
    "at": {"kind": "time", "bounds": ["00:00", "23:59"], "resolution": "minute", "missing": True},
}


def of(columns: dict[str, Any], constraints: tuple[str, ...] = ()) -> Schema:
    return Schema({"columns": columns, "labels": [], "constraints": list(constraints)})


def read(cells: list[str | None], **said: Any) -> tuple[list[Any], list[int]]:
    values, rules = of({"x": said}).columns["x"].read(cells)
    return values.tolist(), rules.tolist()


def people(schema: Schema, n: int) -> np.ndarray:
    seeds = np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64)
    return Table(schema, 0.1).generate([{}] * n, seeds).content


def test_a_date_is_read_as_it_is_unambiguous_and_as_its_format_says_where_it_is_not() -> None:
    the_day = datetime.date(2024, 1, 31)
    dates = {"kind": "date", "bounds": ["2024-01-01", "2024-12-31"]}
    plain = ["2024-01-31", "20240131", "2024/01/31", "31.01.2024", "2024-01-31 00:00:00", "2024-01-31T00:00:00Z"]
    assert read([*plain], **dates) == ([the_day] * 6, [FINE] * 6)
    assert read(["31/01/2024", "2024-13-31", "20240132", "2024-01-31x", "2024-01/31"], **dates)[1] == [NO_DATE] * 5
    assert read(["31/01/2024"], **dates, format="day/month/year") == ([the_day], [FINE])
    assert read(["01/31/2024", "2024-01-31"], **dates, format="%m/%d/%Y") == ([the_day] * 2, [FINE] * 2)


def test_a_time_of_day_in_a_column_of_dates_is_counted_as_cut() -> None:
    table = of({"x": {"kind": "date", "bounds": ["2024-01-01", "2024-12-31"]}})
    days, rules = table.columns["x"].read(["2024-01-31 10:30:00", "2024-01-31", "2025-01-31 10:30"])
    assert rules.tolist() == [CUT, FINE, CLIPPED]
    assert days.tolist() == [datetime.date(2024, 1, 31)] * 2 + [datetime.date(2024, 12, 31)]
    assert told(table.columns["x"], CUT).rpartition(": ")[0] == "x"  # as the survey reads it


def test_a_datetime_is_read_on_the_clock_of_its_timezone_and_refused_where_none_says_which() -> None:
    moments = {"kind": "datetime", "bounds": MONTHS}
    noon = datetime.datetime(2024, 1, 31, 12, 0, 5)
    plain = ["2024-01-31 12:00:05", "2024-01-31T12:00:05.999999999", "20240131T120005", "31.01.2024 12:00:05"]
    assert read([*plain], **moments) == ([noon] * 4, [FINE] * 4)
    assert read(["2024-01-31T11:00:05Z"], **moments)[1] == [NO_ZONE]
    zoned = ["2024-01-31T11:00:05Z", "2024-01-31 12:00:05", "2024-01-31 16:30:05+05:30"]
    assert read([*zoned], **moments, timezone="Europe/Berlin")[0] == [noon] * 3
    assert read(["2024-01-31 12:59:59"], **moments, resolution="hour")[0] == [noon.replace(second=0)]
    assert read(["31 Jan 2024 12.00.05"], **moments, format="%d %b %Y %H.%M.%S")[0] == [noon]
    assert read(["noon", "2024-01-31 25:00", "12:00"], **moments)[1] == [NO_DATETIME] * 3


def test_a_time_of_day_is_read_to_its_resolution() -> None:
    clock = {"kind": "time", "bounds": ["00:00", "23:59"]}
    assert read(["9:05", "09:05:00", "23:59:30"], **clock)[0] == [
        datetime.timedelta(seconds=seconds) for seconds in (32700, 32700, 86370)
    ]
    assert read(["9:05:59"], **clock, resolution="minute")[0] == [datetime.timedelta(seconds=32700)]
    assert read(["24:00", "0905", "noon", "09:05+01:00"], **clock)[1] == [NO_TIME, NO_TIME, NO_TIME, NO_ZONE]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquets_own_times_are_read_as_what_they_are(unit: str, tmp_path: Any) -> None:
    moments = pa.array(np.array(["2024-01-31T11:00:05.123456789", "NaT"], f"M8[{unit}]"))
    columns = {
        "plain": moments,
        "zoned": moments.cast(pa.timestamp(unit, "America/New_York")),
        "day": pa.array([datetime.date(2024, 1, 31), None], pa.date32()),
        "at": pa.array([39605 * 10**9 + 1, None], pa.time64("ns")),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"kind": "datetime", "bounds": MONTHS},
        "zoned": {"kind": "datetime", "bounds": MONTHS, "timezone": "Europe/Berlin"},
        "day": {"kind": "date", "bounds": ["01.01.2024", "31.12.2024"], "format": "dotted"},
        "at": {"kind": "time", "bounds": ["00:00", "23:59"]},
    }
    table = of({name: {**said, "missing": True} for name, said in kinds.items()})
    ((batch, cells),) = parquet_batches(Span(tmp_path / "t.parquet"), list(columns), 9)
    content, rules = table.read({name: cells(batch.column(name), name) for name in columns})
    assert (rules == FINE).all()
    assert content["plain"][0] == np.datetime64("2024-01-31T11:00:05") == content["zoned"][0] - np.timedelta64(1, "h")
    assert content["day"][0] == np.datetime64("2024-01-31") and content["at"][0] == np.timedelta64(39605, "s")
    assert all(np.isnat(content[name][1]) for name in columns)


def test_what_is_released_is_read_back_by_us_by_pandas_and_by_datasets(tmp_path: Any) -> None:
    import pandas

    table, n = of(SHOP), 50
    content = people(table, n)
    given = Population(1, Samples(content, forms=table.forms), np.zeros(n, int), np.full(n, -1), np.ones(n, bool))
    for lineage in (True, False):
        again = from_parquet(to_parquet(given, [{}], lineage), "here").samples
        assert repr(again.content.tolist()) == repr(content.tolist()) and again.forms == table.forms
    file = tmp_path / "synthetic.parquet"
    file.write_bytes(to_parquet(given, [{}], lineage=False))
    frame = pandas.read_parquet(file)
    assert [str(frame[name].dtype) for name in ("made", "sent", "paid")] == [
        "datetime64[ms, Europe/Berlin]",
        "datetime64[ms]",
        "datetime64[ms, UTC+05:30]",
    ]
    assert frame.made.dt.tz_localize(None).equals(pandas.Series(content["made"].astype("M8[ms]")))
    assert frame["at"].dropna().map(lambda value: value.hour * 60 + value.minute).tolist() == [
        value.seconds // 60 for value in content["at"].tolist() if value is not None
    ]
    features = json.loads(pq.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert [features[name]["dtype"] for name in SHOP] == [
        "date32",
        "timestamp[ms, tz=Europe/Berlin]",
        "timestamp[ms]",
        "timestamp[ms, tz=+05:30]",
        "time32[ms]",
    ]


def test_csv_and_jsonl_write_times_as_the_schema_declares_them() -> None:
    table = of({**SHOP, "made": {**SHOP["made"], "format": "%d.%m.%y %H:%M"}})
    content = np.zeros(2, table.dtype)
    content["day"] = ["2024-01-31", "NaT"]
    for name in ("made", "sent", "paid"):
        content[name] = "2024-01-31T12:00:00"
    content["at"] = np.array([32700, 0], "m8[s]")
    given = Population(1, Samples(content, forms=table.forms), np.zeros(2, int), np.full(2, -1), np.ones(2, bool))
    ((_, text),) = as_csv(given, [{}])
    assert text.decode().splitlines() == [
        "day,made,sent,paid,at",
        "31.01.2024,31.01.24 12:00,2024-01-31 12:00:00,2024-01-31 12:00:00+05:30,09:05:00",
        ",31.01.24 12:00,2024-01-31 12:00:00,2024-01-31 12:00:00+05:30,00:00:00",
    ]
    ((_, text),) = as_jsonl(given, [{}])
    assert json.loads(text.decode().splitlines()[0])["day"] == "31.01.2024"


def test_an_hour_that_a_clock_leaves_out_is_never_made_and_one_that_comes_twice_comes_back() -> None:
    spring = {"kind": "datetime", "bounds": ["2024-03-31 00:00", "2024-03-31 05:00"], "timezone": "Europe/Berlin"}
    column = of({"x": {**spring, "resolution": "minute"}}).columns["x"]
    values = column.values_of(np.arange(column.size))
    hours = (values - np.datetime64("2024-03-31T00:00:00")).astype(int) // 3600
    assert sorted(set(hours.tolist())) == [0, 1, 3, 4, 5]
    twice = np.array(["2024-10-27T02:30:00", "NaT"], "M8[s]")
    assert repr(times.from_utc(times.to_utc(twice, "Europe/Berlin"), "Europe/Berlin")) == repr(twice)


def test_dates_and_datetimes_are_in_order_by_their_days_and_repaired_so() -> None:
    columns = {"due": {"kind": "date", "bounds": ["2024-01-01", "2024-02-29"]}, "sent": SHOP["sent"]}
    both = {**columns, "made": {**SHOP["sent"], "resolution": "hour"}}
    table = of(both, ("sent <= due", "made < sent"))
    content = people(table, 2000)
    assert not table.broken(content).any()
    assert (content["sent"].astype("M8[D]") <= content["due"]).all() and (content["made"] < content["sent"]).all()
    content["sent"][:2] = ["2024-02-20T23:59:00", "2024-02-21T00:00:00"]
    content["due"][:2], content["made"][:2] = np.datetime64("2024-02-20"), np.datetime64("2024-01-01")
    assert table.broken(content[:2]).tolist() == [False, True]
    coded = codec.encode(table, content[2:])
    seeds = np.arange(1998).astype(np.uint64)
    back = codec.decode(table, coded, np.zeros(1998, int), seeds)
    assert not table.broken(back).any()


def test_every_part_for_tables_knows_the_new_kinds() -> None:
    table = of(SHOP)
    content = people(table, 300)
    assert not (content["made"] == np.datetime64("NaT")).all() and np.isnat(content["at"]).any()
    moved = Table(table, 0.1).vary(Samples(content), [{}] * 300, 0.0, np.arange(300).astype(np.uint64)).content
    assert repr(moved.tolist()) == repr(content.tolist())
    assert Vectors(table, 1.0, 1.0, 1.0)(Samples(content)).shape == (300, 8)
    values = measured(content, table, 16)[1]
    assert distances(table, values, values)["wasserstein"] == 0
    coded = codec.encode(table, content)
    back = codec.decode(table, coded, np.zeros(300, int), np.arange(300).astype(np.uint64))
    assert (codec.encode(table, back) == coded).all()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"kind": "datetime", "bounds": ["now", "2024-01-01"]}, "bounds=now: expected times, '2020-01-31 18:30:00'."),
        (
            {"kind": "datetime", "bounds": MONTHS, "timezone": "Mars/Olympus"},
            "timezone=Mars/Olympus: expected null, .*",
        ),
        (
            {"kind": "datetime", "bounds": MONTHS, "resolution": 60},
            "resolution=60: expected second, minute, hour or day.",
        ),
        ({"kind": "datetime", "bounds": MONTHS, "format": "%d.%m"}, "format=%d.%m: expected one of strptime's .*"),
        ({"kind": "time", "bounds": [0, 1439]}, "bounds=0: expected times, '18:30'. Put them in quotes."),
        (
            {"kind": "time", "bounds": ["0:00", "9:00"], "resolution": "day"},
            "resolution=day: expected second, minute or hour.",
        ),
        (
            {"kind": "date", "bounds": ["2024-01-01", "2024-02-01"], "format": "dots"},
            "format=dots: expected one of iso.*",
        ),
        ({"kind": "date", "bounds": ["2024-01-01", "2024-02-01"], "timezone": "UTC"}, "timezone=UTC: expected kind.*"),
    ],
)
def test_a_mistake_in_a_column_of_times_is_one_line(said: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=rf"^schema\.columns\.x\.{line}$"):
        of({"x": said})


def test_times_of_a_public_pool_are_released_as_its_schema_declares_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpsyn.api.pool import Pool
    from dpsyn.data import Records

    table = of({**SHOP, "name": {"kind": "category", "values": ["a", "b"]}})
    content = people(table, 20)

    @dataclass(frozen=True)
    class Public:
        labels: Any = ({},)

        def fingerprint(self) -> str:
            return "public"

        def batches(self, size: int) -> Any:
            yield Records(Samples(content, forms=table.forms), np.zeros(20, np.int64))

    @dataclass(frozen=True)
    class Alike(Seeing):
        def __call__(self, samples: Samples) -> np.ndarray:
            return np.zeros((len(samples), 2), np.float32)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pool: Any = Pool(Public(), Alike(), "public", False, None)  # type: ignore[arg-type]
    drawn = pool.generate([{}] * 200, np.arange(200, dtype=np.uint64))
    _, first = np.unique(drawn.traits["item"], return_index=True)
    found = take(drawn, first)
    assert (
        repr(found.content.tolist()) == repr(content[np.unique(drawn.traits["item"])].tolist())
        and found.forms == table.forms
    )


def test_the_plan_says_where_times_and_rare_values_are_lost() -> None:
    from dpsyn.privacy.budget import Settings
    from dpsyn.schedule import Facts
    from dpsyn.schedule.cells import Cells

    columns = {
        "made": SHOP["made"],
        "day": SHOP["day"],
        "code": {"kind": "category", "values": [f"v{place}" for place in range(800)]},
        "big": {"kind": "number", "bounds": [0, 1e15], "resolution": 0.01},
    }
    privacy = Settings(epsilon=1, delta=1e-5)
    facts = Facts(np.ones(1), 1000, of(columns), privacy)
    found = [line.partition(":")[0] for line in Cells(None, True).warnings(facts, [20.0])]
    assert found == ["column 'made'", "column 'code'", "column 'big'"]
    near = {"made": {"kind": "datetime", "bounds": ["2024-01-01", "2024-01-05"]}, "code": columns["day"]}
    facts = Facts(np.ones(1), 1000, of(near), privacy)
    assert list(Cells(None, True).warnings(facts, [20.0])) == []
