"""Bounds that are wide, numbers that are large, columns in order, categories of many values: what comes out."""

from __future__ import annotations

import csv
import itertools
from typing import Any

import numpy as np
import pytest
from harness import answer

from dpsyn import embedding as embeddings
from dpsyn.api import Unasked
from dpsyn.api.table import Table
from dpsyn.errors import UserError
from dpsyn.population import MISSING, Population, Samples
from dpsyn.privacy.budget import Settings, multiplier
from dpsyn.privacy.query import Answer, CellCounts, Query
from dpsyn.runs.export import as_csv
from dpsyn.runs.storage import from_parquet, to_parquet
from dpsyn.schedule import Facts, PublicSide
from dpsyn.schedule.binning import denoised
from dpsyn.schedule.cells import Cells
from dpsyn.tables import codec
from dpsyn.tables.columns import CLIPPED, FINE, NO_INTEGER
from dpsyn.tables.schema import Schema

LARGEST = 2**63 - 1


def of(columns: dict[str, Any], constraints: tuple[str, ...] = (), labels: tuple[str, ...] = ()) -> Schema:
    return Schema({"columns": columns, "labels": list(labels), "constraints": list(constraints)})


def made(schema: Schema, content: np.ndarray, epsilon: float, seed: int = 0, size: int = 4000) -> np.ndarray:
    """Rows of a whole run by votes in cells, with noise of numpy's."""
    privacy = Settings(epsilon=epsilon, delta=1e-5)
    facts = Facts(np.full(len(schema.labels), 1 / len(schema.labels)), len(content), schema, privacy)
    schedule = Cells(size, True)
    codes, labels, rng = codec.encode(schema, content), schema.labels_of(content), np.random.default_rng(seed)

    def ask(t: int, query: Query) -> Answer:
        assert isinstance(query, CellCounts)
        release = schedule.releases(facts)[t - 1]
        sigma = multiplier(privacy) * np.sqrt(release.moves / release.share)
        exact = answer(query, [(codes, labels)])
        return Answer(exact + np.rint(rng.normal(0, sigma, len(exact))), sigma)

    public = PublicSide(Unasked(), embeddings.Unasked(), schema.labels, facts, seed)
    *_, last = schedule.run(public, ask, None)
    return last.samples.content


# Numbers


@pytest.mark.parametrize("bounds", [[0, 10**6], [-(10**9), 10**9], [0, 1e15], [0, 9.5]])
@pytest.mark.parametrize("resolution", [None, 0.01])
def test_prices_keep_their_cents_whatever_the_bounds(bounds: list[float], resolution: float | None) -> None:
    said = {"kind": "number", "bounds": bounds, **({} if resolution is None else {"resolution": resolution})}
    schema = of({"price": said})
    content = np.zeros(3000, schema.dtype)
    content["price"] = np.exp(np.random.default_rng(0).normal(0, 0.7, 3000)).round(2).clip(0.01, 9)
    ours = made(schema, content, 4.0)["price"]
    quartiles = np.quantile(content["price"], [0.25, 0.5, 0.75])
    assert np.allclose(np.quantile(ours, [0.25, 0.5, 0.75]), quartiles, rtol=0.1)
    assert (ours == 0).mean() < 0.01 and (ours % 1 != 0).mean() > 0.9
    if resolution:
        assert (ours == ours.round(2)).all()


@pytest.mark.parametrize(
    ("bounds", "near", "spread"),
    [
        ([0, 1], 1e-9, 0.3),
        ([-(10**9), 10**9], -3.7, 0.3),
        ([-1e6, 0], -0.02, 0.3),
        ([0, 1e15], 12.5, 0.3),
        ([1e-3, 1e12], 4e7, 1.5),
    ],
)
def test_a_number_without_a_resolution_is_told_to_a_few_percent_at_any_scale(
    bounds: list[float], near: float, spread: float
) -> None:
    schema = of({"x": {"kind": "number", "bounds": bounds}})
    content = np.zeros(3000, schema.dtype)
    content["x"] = near * np.exp(np.random.default_rng(0).normal(0, spread, 3000))
    ours = made(schema, content, 4.0)["x"]
    at = [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.allclose(np.quantile(ours, at), np.quantile(content["x"], at), rtol=0.15 + spread / 5)
    assert ours.min() >= bounds[0] and ours.max() <= bounds[1]


@pytest.mark.parametrize(("bounds", "values"), [([0, 100], [99.9, 99.99]), ([1000, 10**6], [1003.0, 1009.0])])
def test_what_lies_at_one_end_of_the_bounds_is_told_apart(bounds: list[float], values: list[float]) -> None:
    schema = of({"x": {"kind": "number", "bounds": bounds}})
    content = np.zeros(4000, schema.dtype)
    content["x"] = np.random.default_rng(0).uniform(*values, 4000)
    low, high = np.quantile(made(schema, content, 4.0)["x"], [0.1, 0.9])
    apart = values[1] - values[0]
    assert values[0] - apart / 3 < low < high < values[1] + apart / 3


def test_numbers_of_a_column_are_short_decimals() -> None:
    column = of({"x": {"kind": "number", "bounds": [-(10**6), 10**6]}}).columns["x"]
    given = np.array([0.3, 1.02, 12345.67, -0.1, 1e-9, 0.0, 1e6, np.nan])
    places = column.codes_of(given)
    assert repr(column.values_of(places).tolist()) == repr(given.tolist())
    everywhere = np.unique(np.random.default_rng(0).integers(0, column.size, 5000))
    back = column.values_of(everywhere)
    assert (np.diff(back) > 0).all() and (column.codes_of(back) == everywhere).all()


def test_whole_numbers_of_64_bits_stay_exact_from_the_cell_to_the_file() -> None:
    ids = [LARGEST, LARGEST - 1, 2**53 + 1, 7, 0]
    said = {"kind": "integer", "bounds": [0, LARGEST - 1], "missing": True}
    schema = of({"id": said, "other": {**said, "outside": "refuse"}}, ("id <= other",))
    content, rules = schema.read(
        {"id": [*map(str, ids[:-1]), None], "other": ["9007199254740993.0", "1e3", "1.5", "", "5"]}
    )
    assert rules[:, 0].tolist() == [CLIPPED, FINE, FINE, FINE, FINE] and rules[2, 1] == NO_INTEGER
    assert content["id"].tolist() == [LARGEST - 1, LARGEST - 1, 2**53 + 1, 7, MISSING]
    assert content["other"][:2].tolist() == [2**53 + 1, 1000]
    exact = np.zeros(3, schema.dtype)
    exact["id"], exact["other"] = [2**53, 2**53 + 1, LARGEST - 2], [2**53 + 1, 2**53, LARGEST - 1]
    assert schema.broken(exact).tolist() == [False, True, False]
    mended = schema.repaired(exact, np.arange(3).astype(np.uint64))
    assert not schema.broken(mended).any() and mended[[0, 2]].tolist() == exact[[0, 2]].tolist()
    column = schema.columns["id"]
    assert column.values_of(column.codes_of(content["id"])).tolist() == content["id"].tolist()
    kept = Table(schema, 0.1).vary(Samples(mended), [{}] * 3, 0.0, np.arange(3).astype(np.uint64)).content
    assert kept.tolist() == mended.tolist()
    given = Population(1, Samples(mended), np.zeros(3, int), np.full(3, -1), np.ones(3, bool))
    assert from_parquet(to_parquet(given, [{}]), "here").samples.content.tolist() == mended.tolist()
    ((_, text),) = as_csv(given, [{}])
    assert [row[0] for row in csv.reader(text.decode().splitlines()[1:])] == [str(value) for value in mended["id"]]


def test_whole_numbers_beyond_2_to_the_53_are_coded_and_compared_exactly() -> None:
    said = {"kind": "integer", "bounds": [-(2**61), 2**61], "special": [2**60 + 1]}
    schema = of(
        {"low": said, "high": {**said, "special": []}, "number": {"kind": "number", "bounds": [0, 2**60]}},
        ("low <= high",),
    )
    content = np.zeros(200, schema.dtype)
    content["low"] = 2**60 + 1
    content["high"] = content["low"] + np.arange(200) % 5
    coded = codec.encode(schema, content)
    back = codec.decode(schema, coded, np.zeros(200, int), np.arange(200).astype(np.uint64))
    assert back["low"].tolist() == content["low"].tolist() and back["high"].tolist() == content["high"].tolist()
    mixed = of({"a": said, "b": {"kind": "number", "bounds": [0, 2**61], "resolution": 1}}, ("a <= b",))
    rows = np.zeros(2, mixed.dtype)
    rows["a"], rows["b"] = 2**53 + 1, [2.0**53, 2.0**53 + 2]
    assert mixed.broken(rows).tolist() == [True, False]
    assert not mixed.broken(mixed.repaired(rows, np.arange(2).astype(np.uint64))).any()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"kind": "integer", "bounds": [0, 2**63]}, "bounds=9223372036854775808: expected whole numbers of 64 bits."),
        (
            {"kind": "integer", "bounds": [-(2**62), 2**62 + 5]},
            "bounds=.*: expected bounds that are less than 2.63 apart.",
        ),
        ({"kind": "number", "bounds": [0, 1e30], "resolution": 0.01}, "resolution=0.01: expected a coarser one.*"),
        ({"kind": "number", "bounds": [-1.7e308, 1.7e308]}, "bounds=.*: expected .*"),
    ],
)
def test_bounds_that_numbers_do_not_hold_are_one_line(said: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=rf"^schema\.columns\.x\.{line}$"):
        of({"x": said})


# Columns in order

DATE = {"kind": "date", "bounds": ["2020-01-01", "2024-12-31"]}
CHAIN: dict[str, Any] = {
    "birth": {"kind": "date", "bounds": ["1920-01-01", "2024-12-31"]},
    "admitted": {**DATE, "missing": True},
    "discharged": {**DATE, "missing": True},
    "billed": {"kind": "datetime", "bounds": ["2020-01-01", "2025-12-31"], "resolution": "hour"},
}
ORDERS = {
    2: ("admitted >= birth",),
    3: ("admitted <= discharged", "birth <= admitted"),
    4: ("discharged < billed", "birth <= admitted", "admitted <= discharged"),
}


def patients(schema: Schema, n: int) -> np.ndarray:
    rng, content = np.random.default_rng(0), np.zeros(n, schema.dtype)
    admitted = np.datetime64("2020-02-01") + rng.integers(0, 1600, n)
    facts = {
        "birth": admitted - (rng.beta(4, 2, n) * 95 * 365).astype(int),
        "admitted": admitted,
        "discharged": admitted + rng.geometric(0.2, n),
    }
    facts["billed"] = (facts["discharged"] + 1 + rng.geometric(0.05, n)).astype("M8[h]") + rng.integers(0, 24, n)
    for name in schema.columns:
        content[name] = facts[name]
    for name, share in (("admitted", 0.1), ("discharged", 0.2)):
        if name in schema.columns:
            content[name][rng.random(n) < share] = "NaT"
    return content


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_chain_of_columns_is_learned_as_what_lies_between_them(length: int) -> None:
    names = list(CHAIN)[:length]
    schema = of({name: CHAIN[name] for name in reversed(names)}, ORDERS[length])
    content = patients(schema, 4000)
    ours = made(schema, content, 100.0)
    assert not schema.broken(ours).any()
    for name in names:
        column = schema.columns[name]
        there, real = (column.numbers(rows[name]) for rows in (ours, content))
        assert ((there == column.low) | (there == column.high)).mean() < 0.005
        assert abs(np.isnan(there).mean() - np.isnan(real).mean()) < 0.02
        at = [0.05, 0.25, 0.5, 0.75, 0.95]
        apart = np.nanquantile(there, at) - np.nanquantile(real, at)
        assert (np.abs(apart) < 0.02 * (column.high - column.low)).all()
    for low, high in itertools.pairwise(names):
        between = [
            (rows[high].astype("M8[D]") - rows[low]).astype(float)[~(np.isnat(rows[low]) | np.isnat(rows[high]))]
            for rows in (ours, content)
        ]
        assert abs((between[0] == 0).mean() - (between[1] == 0).mean()) < 0.01
        at = np.array([0.1, 0.5, 0.9])
        assert np.allclose(np.quantile(between[0], at), np.quantile(between[1], at), rtol=0.05, atol=1)


def test_a_column_above_two_others_and_one_whose_neighbour_is_missing_are_counted_from_what_is_there() -> None:
    number = {"kind": "number", "bounds": [0, 1000], "missing": True}
    schema = of({"c": number, "a": number, "b": number, "d": number}, ("a <= c", "c > b", "d >= c"))
    rng, content = (
        np.random.default_rng(0),
        np.zeros(3000, of({"c": number, "a": number, "b": number, "d": number}).dtype),
    )
    content["a"], content["b"] = rng.uniform(0, 900, (2, 3000))
    content["c"] = np.fmax(content["a"], content["b"]) + 0.5
    content["d"] = content["c"] + 0.25
    for name in "abc":
        content[name][rng.random(3000) < 0.3] = np.nan
    coded = codec.encode(schema, content)
    back = codec.decode(schema, coded, np.zeros(3000, int), np.arange(3000).astype(np.uint64))
    assert not schema.broken(back).any() and (codec.encode(schema, back) == coded).mean() > 0.99
    for high, lows in (("c", "ab"), ("d", "cab")):
        top = [np.fmax.reduce([rows[low] for low in lows]) for rows in (back, content)]
        told = ~np.isnan(top[0]) & ~np.isnan(content[high]) & ~np.isnan(back[high])
        apart = [(rows[high] - base)[told] for rows, base in ((back, top[0]), (content, top[1]))]
        close = apart[1] < 90
        assert close.sum() > 1000 and (np.abs(apart[0] - apart[1])[close] <= 0.03 * apart[1][close]).all()


def test_rows_of_the_table_api_in_a_chain_gather_neither_on_a_bound_nor_on_each_other() -> None:
    schema = of(CHAIN, ORDERS[4])
    rows = Table(schema, 0.1).generate([{}] * 4000, np.random.default_rng(0).integers(0, 2**63, 4000).astype(np.uint64))
    assert not schema.broken(rows.content).any()
    for name, column in schema.columns.items():
        numbers = column.numbers(rows.content[name])
        assert ((numbers == column.low) | (numbers == column.high)).mean() < 0.01, name
    for low, high in itertools.pairwise(CHAIN):  # half of them, when what gives way goes just far enough
        assert (rows.content[low].astype("M8[s]") == rows.content[high].astype("M8[s]")).mean() < 0.02


# Categories of many values


@pytest.mark.parametrize("sigma", [5.0, 40.0])
def test_values_that_noise_explains_share_alike_and_none_of_them_stands_out(sigma: float) -> None:
    rng, counts = np.random.default_rng(0), np.zeros(3000)
    counts[:600] = rng.multinomial(5000, 1 / np.arange(1, 601) / (1 / np.arange(1, 601)).sum())
    noisy = counts + rng.normal(0, sigma, 3000).round()
    found = denoised(noisy, codec.CodedColumn(3000, ordered=False), sigma, 5000.0)
    assert found.sum() == pytest.approx(5000) and (found >= 0).all()
    assert found[600:].max() < 5000 * 0.005
    assert found[0] == pytest.approx(counts[0], abs=2.5 * sigma)


def test_of_three_thousand_values_at_epsilon_one_no_phantom_has_a_hundredth_of_the_rows() -> None:
    said = {"kind": "category", "values": [f"v{place:04d}" for place in range(3000)]}
    schema = of({"code": said, "age": {"kind": "integer", "bounds": [0, 99]}})
    rng, content = np.random.default_rng(0), np.zeros(5000, schema.dtype)
    shares = 1 / np.arange(1, 601) ** 1.1
    chosen = rng.permutation(3000)[:600][rng.choice(600, 5000, p=shares / shares.sum())]
    content["code"], content["age"] = np.array(said["values"], object)[chosen], rng.integers(0, 100, 5000)
    ours = np.bincount(schema.columns["code"].codes_of(made(schema, content, 1.0)["code"]), minlength=3000) / 4000
    real = np.bincount(chosen, minlength=3000) / 5000
    assert ours[real == 0].max() < 0.01 and ours[np.argmax(real)] == pytest.approx(real.max(), abs=0.05)


@pytest.mark.parametrize("sigma", [4.0, 20.0])
def test_what_clear_counts_hold_does_not_go_to_values_that_do_not_occur(sigma: float) -> None:
    rng, counts = np.random.default_rng(0), np.zeros(3000)
    counts[rng.choice(3000, 20, replace=False)] = 400
    found = denoised(counts + rng.normal(0, sigma, 3000).round(), codec.CodedColumn(3000, ordered=False), sigma, 8000.0)
    assert found.sum() == pytest.approx(8000) and found[counts == 0].sum() < 0.02 * 8000
    assert np.abs(found - counts)[counts > 0].max() < 4 * sigma
