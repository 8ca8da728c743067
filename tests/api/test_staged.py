from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from fakes import Making

from dpsyn.api.staged import Staged
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples, concatenate, take
from dpsyn.workers import asked_in_batches

LABELS = [{"digit": str(i % 10)} for i in range(6)]
SEEDS = np.arange(6, dtype=np.uint64)


@dataclass(frozen=True)
class Grey(Making):
    """Grey images; its trait is their brightness."""

    row_bytes = 10

    def check_degree(self, degree):
        if degree > 1:
            raise UserError("too far")

    def generate(self, labels, seeds):
        bright = (seeds * 17 % 100).astype(np.int64)
        return Samples(np.tile(bright.astype(np.uint8)[:, None, None, None], (1, 4, 4, 1)), {"bright": bright})

    def vary(self, samples, labels, degree, seeds):
        assert samples.traits.keys() == {"bright"}
        bright = samples.traits["bright"] + 1
        return Samples(samples.content + np.uint8(1), {"bright": bright})


@dataclass(frozen=True)
class Inverting(Making):
    """Inverts what it is given; its trait is a class that it gives to strangers by their seed."""

    row_bytes = 20

    def adopt(self, samples, labels, seeds):
        return Samples(samples.content, {"class": (seeds % 3).astype(np.int64)})

    def vary(self, samples, labels, degree, seeds):
        assert samples.traits.keys() == {"class"}
        return Samples(255 - samples.content, dict(samples.traits))


def staged():
    return Staged(Grey(), Inverting())


def test_the_degree_says_who_varies_and_the_traits_of_both_are_carried():
    start = staged().generate(LABELS, SEEDS)
    assert start.traits.keys() == {"first.bright", "second.class"}
    once = staged().vary(start, LABELS, {"first": 0.5}, SEEDS)
    np.testing.assert_array_equal(once.traits["first.bright"], start.traits["first.bright"] + 1)
    twice = staged().vary(once, LABELS, {"second": 3}, SEEDS)
    np.testing.assert_array_equal(twice.content, 255 - once.content)
    np.testing.assert_array_equal(twice.traits["second.class"], SEEDS % 3)


def test_survivors_of_the_first_and_variations_by_the_second_stand_side_by_side():
    start = staged().generate(LABELS, SEEDS)
    both = concatenate([start, staged().vary(start, LABELS, {"second": 3}, SEEDS)])
    again = staged().vary(take(both, np.arange(12)), LABELS * 2, {"second": 1}, np.arange(12, dtype=np.uint64))
    np.testing.assert_array_equal(again.content[6:], start.content)


def test_an_api_that_needs_no_traits_adopts_anything():
    class Plain(Making):
        def vary(self, samples, labels, degree, seeds):
            return Samples(samples.content)

    part = Staged(Grey(), Plain())
    made = part.generate(LABELS, SEEDS)
    assert part.vary(made, LABELS, {"second": 0}, SEEDS).traits.keys() == {"first.bright"}


@pytest.mark.parametrize("degree", [0.5, {"third": 1}, {"first": 1, "second": 1}, {}])
def test_a_degree_that_names_nobody_is_refused(degree):
    with pytest.raises(UserError, match="who varies"):
        staged().check_degree(degree)


def test_each_refuses_its_own_degrees():
    with pytest.raises(UserError, match="too far"):
        staged().check_degree({"first": 2})
    staged().check_degree({"second": 2})


def test_what_is_no_api_and_a_second_that_adopts_nothing_are_refused():
    with pytest.raises(UserError, match=r"^api.second=null: expected an api"):
        Staged(Grey(), None)
    with pytest.raises(UserError, match=r"^api.second=Grey: expected an api that adopts"):
        Staged(Grey(), Grey()).check()


def test_a_ping_is_that_of_both_and_of_what_each_will_be_asked_for():
    heard = []

    class Hosted(Grey):
        def ping(self, what):
            heard.append(what)

    Staged(Hosted(), Hosted()).ping("generate")
    Staged(Grey(), Hosted()).ping("generate")
    staged().ping("generate")
    assert heard == ["generate", "vary", "vary"]


def test_the_stage_that_queues_says_how_far_it_is_and_the_other_is_asked_in_batches():
    sizes = []

    @dataclass(frozen=True)
    class Queueing(Inverting):
        calls: list = field(default_factory=list, compare=False)

        @contextmanager
        def watched(self, advance):
            self.calls.append(advance)
            yield

        def vary(self, samples, labels, degree, seeds):
            sizes.append(len(samples))
            self.calls[-1](len(samples))
            return super().vary(samples, labels, degree, seeds)

    done = []

    @contextmanager
    def progress(text, rows):
        yield lambda more: done.append((text, more))

    api = Staged(Grey(), Queueing())
    with asked_in_batches(api, None, Runtime(batch_size=2), progress) as asked:
        start = asked.generate(LABELS, SEEDS)
        asked.vary(start, LABELS, {"second": 1}, SEEDS)
        asked.vary(start, LABELS, {"first": 1}, SEEDS)
    assert sizes == [6]
    assert done == [("generating", 2)] * 3 + [("varying", 6)] + [("varying", 2)] * 3
