"""Precision, recall, density and coverage: against the formulas written out, known cases, samples of a stream."""

import dataclasses
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from fakes import AsItIs, Given, unlabelled

from dpsyn.errors import UserError
from dpsyn.metric import precision_recall as module
from dpsyn.metric import sampled
from dpsyn.metric.frechet import Frechet
from dpsyn.metric.precision_recall import PrecisionRecall, manifolds

NAMES = {"precision", "recall", "density", "coverage"}


def metric(real, **changed):
    settings = {"neighbours": 3, "coverage_neighbours": 5, "rows": 1000, "seed": 0, "batch_size": 64, "public": False}
    data, embedding = real if isinstance(real, Given) else Given(real), changed.pop("embedding", AsItIs())
    return PrecisionRecall(data, embedding, **{**settings, **changed})


def plainly(ours, real, k, coverage_k):
    """The papers' sums, one pair at a time in effect: differences, and no block."""

    def distances(a, b):
        return np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(2))

    def radius(a, k):
        return np.sort(distances(a, a), 1)[:, k]

    between = distances(real, ours)
    inside = between <= radius(real, coverage_k)[:, None]
    return (
        (between <= radius(real, k)[:, None]).any(0).mean(),
        (between <= radius(ours, k)[None, :]).any(1).mean(),
        inside.sum() / (coverage_k * len(ours)),
        inside.any(1).mean(),
    )


@pytest.mark.parametrize("block", [1, 1 << 12, 1 << 27])
@pytest.mark.parametrize("m, n, d", [(150, 150, 5), (90, 160, 12), (160, 90, 2)])
def test_the_numbers_are_those_of_the_formulas_in_blocks_of_any_size(monkeypatch, block, m, n, d):
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    rng = np.random.default_rng(d)
    ours, real = rng.normal(0.3, 0.8, (m, d)), rng.normal(0, 1, (n, d))
    for k, coverage_k in ((3, 5), (5, 3), (1, 1)):
        assert manifolds(ours, real, k, coverage_k) == pytest.approx(plainly(ours, real, k, coverage_k), abs=1e-12)


@pytest.mark.parametrize("far", [0, 1e4])
def test_repeated_rows_lie_on_the_border_of_each_others_balls(far):
    rng = np.random.default_rng(0)
    some = rng.integers(-3, 4, (12, 40)).astype(np.float64) + far  # differences that are exact
    ours, real = some[rng.integers(0, 8, 120)], some[rng.integers(4, 12, 100)]
    assert manifolds(ours, real, 3, 5) == pytest.approx(plainly(ours, real, 3, 5), abs=1e-12)


def test_the_same_rows_twice_are_precise_and_covered():
    rows = np.random.default_rng(0).normal(0, 1, (300, 16))
    numbers = metric(rows)(unlabelled(rows))
    assert set(numbers) == NAMES
    assert all(type(value) is float for value in numbers.values())
    assert (numbers["precision"], numbers["recall"], numbers["coverage"]) == (1, 1, 1)
    assert numbers["density"] >= 1


def test_rows_far_from_all_real_ones_have_nothing_of_it():
    rows = np.random.default_rng(0).normal(0, 1, (200, 16))
    assert metric(rows)(unlabelled(rows + 100)) == dict.fromkeys(NAMES, 0)


def test_two_samples_of_one_distribution_agree_and_one_mode_of_two_has_half_of_the_recall():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0] * 4, [30.0] * 4])

    def draw(n, weights):
        return modes[rng.choice(2, n, p=weights)] + rng.normal(0, 1, (n, 4))

    real = draw(800, [0.5, 0.5])
    alike = metric(real)(unlabelled(draw(800, [0.5, 0.5])))
    assert alike["density"] == pytest.approx(1, abs=0.1)
    assert min(alike["precision"], alike["recall"], alike["coverage"]) > 0.85
    collapsed = metric(real)(unlabelled(draw(800, [1, 0])))
    assert collapsed["precision"] > 0.85
    assert collapsed["recall"] == pytest.approx(0.5, abs=0.08)
    assert collapsed["coverage"] == pytest.approx(0.5, abs=0.08)
    narrow = metric(real)(unlabelled(modes[[0] * 800] + rng.normal(0, 0.01, (800, 4))))
    assert narrow["precision"] > 0.99
    assert narrow["recall"] < 0.01
    assert narrow["coverage"] < 0.1


def test_one_outlier_among_the_real_rows_makes_anything_precise_but_not_dense():
    rng = np.random.default_rng(0)  # the case for which density was made (Naeem et al. 2020)
    real = np.concatenate([rng.normal(0, 1, (300, 8)), np.full((1, 8), 40.0)])
    numbers = metric(real)(unlabelled(rng.uniform(10, 30, (300, 8))))
    assert numbers["precision"] > 0.9
    assert numbers["density"] < 0.3
    assert numbers["coverage"] < 0.01


def test_a_sample_depends_on_the_seed_and_is_of_all_rows():
    rows = np.arange(900.0, dtype=np.float32)[:, None]
    drawn = sampled(rows, 50, 3)
    assert np.array_equal(drawn, sampled(rows, 60, 3)[:50])
    assert len(np.unique(drawn)) == 50
    assert not np.array_equal(drawn, sampled(rows, 50, 4))
    assert np.array_equal(np.sort(sampled(rows, 900, 3), 0), rows)


def test_a_sample_is_uniform_and_so_is_its_head():
    rows, counts = np.arange(60)[:, None], np.zeros((2, 60))
    for seed in range(2000):
        drawn = sampled(rows, 20, seed).ravel()
        counts[0][drawn] += 1
        counts[1][drawn[:5]] += 1
    for row, share in zip(counts, (20 / 60, 5 / 60), strict=True):
        assert np.abs(row - 2000 * share).max() < 5 * np.sqrt(2000 * share * (1 - share))


def test_metrics_that_ask_for_the_same_vectors_embed_them_once_and_the_next_process_finds_them(own_state):
    """The real side in the private cache, for its owner alone; the synthetic side while it is the last one."""
    rng, asked = np.random.default_rng(0), []

    class Counting(AsItIs):
        def __call__(self, samples):
            asked.append(len(samples))
            return super().__call__(samples)

    @dataclass(frozen=True)
    class Named(Counting):
        scale: float = 1.0

    data, made = Given(rng.normal(0, 1, (300, 4))), unlabelled(rng.normal(0, 1, (100, 4)))
    first = [part(made) for part in (Frechet(data, Named(), 64, False), metric(data, embedding=Named()))]
    assert sum(asked) == 400
    again = dataclasses.replace(data)  # as another process has it
    assert [part(made) for part in (Frechet(again, Named(), 64, False), metric(again, embedding=Named()))] == first
    assert sum(asked) == 400
    (kept,) = (own_state / "cache/dpsyn/private").glob("real-*")
    assert kept.stat().st_mode & 0o777 == 0o600
    Frechet(data, Named(2.0), 64, False)(made)
    Frechet(Given(data.rows + 1), Named(), 64, False)(made)
    assert sum(asked) == 400 + 400 + 400


def test_as_many_rows_of_each_side_count_so_that_swapped_sides_swap_precision_and_recall():
    rng = np.random.default_rng(0)
    many, few = rng.normal(0, 1, (900, 3)), rng.normal(0, 1.5, (400, 3))
    there, back = metric(many)(unlabelled(few)), metric(few)(unlabelled(many))
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    assert there["precision"] < there["recall"] - 0.05


def test_real_rows_are_read_once_and_do_not_travel_with_the_part():
    rows = np.random.default_rng(0).normal(0, 1, (50, 4))
    part = metric(rows)
    assert part(unlabelled(rows)) == part(unlabelled(rows))
    assert part.data.read == 1
    assert vars(pickle.loads(pickle.dumps(part))).keys() == vars(metric(rows)).keys()


def test_what_cannot_be_compared_is_one_line_without_a_count_of_real_rows():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="vectors of another length") as caught:
        metric(rng.normal(0, 1, (37, 4)))(unlabelled(rng.normal(0, 1, (20, 5))))
    assert "37" not in str(caught.value)
    for real, ours in ((37, 5), (4, 37), (0, 37), (37, 0)):
        with pytest.raises(UserError, match="expected more than 5 synthetic and as many real rows") as caught:
            metric(rng.normal(0, 1, (real, 4)))(unlabelled(rng.normal(0, 1, (ours, 4))))
        assert "37" not in str(caught.value)
    with pytest.raises(UserError, match="held_out=null"):
        PrecisionRecall(None, None, 3, 5, 100, 0, 1, False).check()


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("neighbours", 0),
        ("neighbours", True),
        ("coverage_neighbours", 2.5),
        ("rows", 0),
        ("rows", 5),
        ("seed", -1),
        ("batch_size", 0),
        ("public", "no"),
    ],
)
def test_a_wrong_setting_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^metric\.parts\.precision_recall\.{key}=.*expected"):
        metric(None, **{key: wrong})
