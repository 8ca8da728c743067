"""What asking took is counted for every api that takes something, wherever it stands, and over all starts of a run."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Making

from dpsyn.api import Metered, Usage, metered, together
from dpsyn.api.staged import Staged
from dpsyn.runs.cost import Spending
from dpsyn.runs.directory import RunDirectory


@dataclass(frozen=True)
class Paid(Making):
    """Takes `price` a row."""

    price: float
    state: Any = field(default_factory=lambda: SimpleNamespace(calls=0))

    row_bytes = 1

    @property
    def usage(self) -> Usage:
        return Usage(calls=self.state.calls, money=self.price * self.state.calls)

    def resume(self, before: Usage, run: str | None) -> None:
        self.state.calls += before.calls

    def estimate(self, labels: Any, generated: int, varied: int) -> Usage:
        return Usage(calls=generated + varied, money=self.price * (generated + varied), seconds=1.0)

    def vary(self, samples: Any, labels: Any, degree: Any, seeds: Any) -> Any: ...


@dataclass(frozen=True)
class Free(Making):
    row_bytes = 1

    def vary(self, samples: Any, labels: Any, degree: Any, seeds: Any) -> Any: ...


@dataclass(frozen=True)
class Wrapped(Making):
    inner: Any

    def vary(self, samples: Any, labels: Any, degree: Any, seeds: Any) -> Any: ...


@pytest.fixture
def place(tmp_path: Any) -> RunDirectory:
    return RunDirectory(tmp_path / "run", True)


def test_both_apis_of_a_relay_are_counted_and_both_go_on_with_their_own_money(place: RunDirectory) -> None:
    place.root.mkdir()
    for start in (1, 2, 3):
        first, second = Paid(1.0), Paid(10.0)
        spending = Spending(Staged(first, second), [{}], place, 5, 5)  # type: ignore[arg-type]
        first.state.calls += 2
        second.state.calls += 3
        spending.save()
        kept = json.loads((place.root / "cost.json").read_text())
        assert (kept["first"]["calls"], kept["second"]["calls"]) == (2 * start, 3 * start)
        assert (first.usage.money, second.usage.money) == (2.0 * start, 30.0 * start)
        assert str(spending).startswith(
            f"{5 * start} calls, 0 + 0 tokens, ${32 * start:.2f}; to come, at most: 20 calls"
        )


@pytest.mark.parametrize(
    "wrap", [lambda api: api, Wrapped, lambda api: Wrapped(Wrapped(api)), lambda api: Staged(Free(), api)]
)
def test_one_api_is_counted_wherever_it_stands_and_its_cost_json_is_flat(place: RunDirectory, wrap: Any) -> None:
    place.root.mkdir()
    for start in (1, 2):
        api = Paid(1.0)
        spending = Spending(wrap(api), [{}], place, 0, 0)
        api.state.calls += 4
        spending.save()
        assert json.loads((place.root / "cost.json").read_text())["calls"] == 4 * start


def test_what_takes_nothing_leaves_no_file(place: RunDirectory) -> None:
    spending = Spending(Free(), [{}], place, 3, 3)  # type: ignore[arg-type]
    spending.save()
    assert str(spending) == "" and not place.root.exists() and metered(Free()) == {}
    assert isinstance(Paid(1.0), Metered)


def test_a_sum_with_what_is_not_known_is_not_known() -> None:
    assert together([Usage(calls=2, money=1.0, seconds=3.0), Usage(calls=1, money=2.0, seconds=4.0)]) == Usage(
        calls=3, money=3.0, seconds=7.0
    )
    assert together([Usage(money=1.0), Usage(money=None)]).money is None
