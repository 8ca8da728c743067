"""How well texts fit their rows: on texts that tell a column, and on the same ones shuffled."""

import numpy as np
import pytest

from dpsyn.data import Records
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.embedding.texts_of_rows import TextsOfRows
from dpsyn.errors import UserError
from dpsyn.metric.text_links import TextLinks
from dpsyn.population import Population, Samples, of_texts
from dpsyn.tables.schema import Schema

SCHEMA = Schema(
    {
        "columns": {
            "colour": {"kind": "category", "values": ["red", "green", "blue"]},
            "weight": {"kind": "integer", "bounds": [0, 99]},
            "remark": {"kind": "text"},
        }
    }
)
EMBEDDING = TextsOfRows(SCHEMA, Ngrams(64, [1, 1], [4, 4]))


def rows(n, seed, shuffled=False):
    rng = np.random.default_rng(seed)
    content = np.empty(n, SCHEMA.dtype)
    content["colour"] = rng.choice(["red", "green", "blue"], n)
    content["weight"] = rng.integers(0, 100, n)
    content["remark"] = [f"a {colour} thing of {weight // 34} parts" for colour, weight, _ in content.tolist()]
    if shuffled:
        content["remark"] = rng.permutation(content["remark"])
    return content


class Real:
    def check(self):
        pass

    def fingerprint(self):
        return "made up"

    def batches(self, size):
        yield Records(Samples(rows(200, 1)), np.zeros(200, np.int64))


def numbers(content):
    whole = Population(0, Samples(content), *(np.zeros(len(content), kind) for kind in (np.int64, np.int64, bool)))
    return TextLinks(Real(), SCHEMA, EMBEDDING, False)(whole)


def test_columns_are_guessed_from_texts_that_tell_them_and_from_shuffled_ones_by_chance_alone():
    told, apart = numbers(rows(300, 0)), numbers(rows(300, 0, shuffled=True))
    assert told["accuracy_colour"] > 0.98 and told["accuracy_weight"] > 0.9
    assert told["accuracy"] == pytest.approx((told["accuracy_colour"] + told["accuracy_weight"]) / 2)
    for each in (told["shuffled_colour"], told["shuffled_weight"], apart["accuracy_colour"], apart["accuracy_weight"]):
        assert each < 0.6


def test_rows_of_another_schema_are_refused():
    with pytest.raises(UserError, match="metric text_links: expected rows of its schema"):
        numbers(of_texts(["a", "b"]).content)
    with pytest.raises(UserError, match=r"expected rows of data\.schema"):
        EMBEDDING(of_texts(["a", "b"]))
    with pytest.raises(UserError, match="a schema with a column of kind text"):
        TextsOfRows(Schema({"columns": {"a": {"kind": "boolean"}}}), Ngrams(64, [1, 1], None)).check()
