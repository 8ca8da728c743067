"""The first population, chosen by noisy sums: many labels of few records, where votes are lost in the noise."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from dpsyn.errors import UserError
from dpsyn.population import Samples
from dpsyn.privacy.budget import SUMS_GRID, Settings
from dpsyn.privacy.query import Answer, Block, EmbeddingSums
from dpsyn.schedule import Facts, PublicSide
from dpsyn.schedule.evolution import NoVotes, private_evolution
from dpsyn.schedule.selection import balanced
from dpsyn.schedule.start import chosen_by_sums, nearest_to_label, scores_of, sums_about

LABELS, DIMENSION, RECORDS, SIGMA = 40, 48, 60, 3.7
CENTRES = np.random.default_rng(7).standard_normal((LABELS, DIMENSION))


def around(labels, rng, width=1.5):
    return (CENTRES[labels] + width * rng.standard_normal((len(labels), DIMENSION))).astype(np.float32)


@dataclass(frozen=True)
class Points:
    """Fresh samples are points around some label's centre: of the one they are asked for, or of any."""

    labelled: bool
    row_bytes: int = 1

    def generate(self, labels, seeds):
        rng = np.random.default_rng(seeds)
        mine = np.array([int(label["label"]) for label in labels])
        whose = mine if self.labelled else rng.integers(0, LABELS, len(labels))
        return Samples(around(whose, rng), {"whose": whose})

    def vary(self, samples, labels, degree, seeds):
        return samples

    def check_degree(self, degree):
        pass


def public_side(api, **privacy):
    facts = Facts(np.full(LABELS, 1 / LABELS), None, None, Settings(epsilon=1, delta=1e-5, **privacy))
    named = [{"label": str(i)} for i in range(LABELS)]
    return PublicSide(api, lambda samples: samples.content, named, facts, 1, api.labelled)


def noisy(query, sigma, seed=0):
    rng = np.random.default_rng(seed)
    blocks = [Block(label, around(np.full(RECORDS, label), rng), np.arange(RECORDS)) for label in range(LABELS)]
    return Answer(query.tally(blocks) / SUMS_GRID + sigma * rng.standard_normal(query.size), sigma)


@pytest.mark.parametrize("adjacency", ["add_remove", "replace"])
def test_candidates_of_no_label_get_the_one_they_lie_in(adjacency):
    asked = []

    def ask(t, query):
        asked.append((t, query))
        return noisy(query, SIGMA)

    start = NoVotes(400, 8000)
    (population,) = start.run(public_side(Points(False), adjacency=adjacency), ask, None)
    assert [t for t, _ in asked] == [1] and isinstance(asked[0][1], EmbeddingSums)
    assert asked[0][1].replaceable == (adjacency == "replace")
    assert np.bincount(population.labels).tolist() == [10] * LABELS
    right = (population.samples.traits["whose"] == population.labels).mean()
    assert (
        right > 0.9 if adjacency == "add_remove" else right > 0.75
    )  # chance: 1/40; half the votes' length, more noise


def test_candidates_of_a_label_stay_with_it_and_those_near_its_records_are_taken():
    start = NoVotes(200, 4000)
    (population,) = start.run(public_side(Points(True)), lambda t, query: noisy(query, 0.01), None)
    assert (population.samples.traits["whose"] == population.labels).all()


def test_noise_alone_tells_nothing_and_the_means_are_drawn_to_the_middle():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((2000, DIMENSION)).astype(np.float32)
    query = sums_about(vectors, 5, False)
    silent = Answer(100 * rng.standard_normal(query.size), 100.0)
    loud = replace(silent, deviation=1e-3)
    assert np.abs(scores_of(vectors, query, silent)).max() < 0.05 * np.abs(scores_of(vectors, query, loud)).max()


def test_sizes_are_kept_and_a_label_with_too_few_candidates_goes_through_them_again():
    scores = np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    rows, labels = nearest_to_label(scores, np.array([2, 1]), None)
    assert rows.tolist() == [0, 1, 2] and labels.tolist() == [0, 0, 1]
    rows, labels = nearest_to_label(scores, np.array([1, 3]), np.array([0, 0, 1]))
    assert rows.tolist() == [0, 2, 2, 2] and labels.tolist() == [0, 1, 1, 1]
    rows, _ = nearest_to_label(scores[:, :1], np.array([2]), None)
    assert rows.tolist() == [0, 1]


def test_it_is_a_release_of_its_own_with_its_part_of_the_budget():
    schedule = private_evolution(3, 400, 0, balanced, candidates=4000)
    facts = public_side(Points(False), sums_budget=0.25).facts
    *votes, sums = schedule.releases(facts)
    assert len(votes) == 3 and sums.name == "embedding sums" and (sums.moves, sums.grid) == (1, SUMS_GRID)
    assert sums.share / (sums.share + sum(release.share for release in votes)) == pytest.approx(0.25)
    assert schedule.api_rows(facts)[0] == (4000, 0) and len(schedule.api_rows(facts)) == 4
    assert [release.share for release in NoVotes(10, 20).releases(facts)] == [1.0]
    with pytest.raises(UserError, match=r"schedule.candidates=100: expected at least the rows of the first population"):
        private_evolution(3, 400, 0, balanced, candidates=100).check(facts, Points(False))
    with pytest.raises(UserError, match=r"schedule\.candidates"):
        private_evolution(3, 400, 0, balanced, candidates=-1)


def test_without_noise_a_label_without_records_is_chosen_for_all_the_same(recwarn):
    vectors = np.random.default_rng(4).standard_normal((500, DIMENSION)).astype(np.float32)
    query = sums_about(vectors, 3, False)
    blocks = [Block(label, vectors[:50], np.arange(50)) for label in (0, 2)]
    scores = scores_of(vectors, query, Answer(query.tally(blocks) / SUMS_GRID, 0.0))
    assert np.isfinite(scores).all() and not recwarn.list
    assert np.bincount(nearest_to_label(scores, np.array([5, 5, 5]), None)[1]).tolist() == [5, 5, 5]


@pytest.mark.parametrize("vector", [np.nan, 1.0])
@pytest.mark.parametrize("labelled", [True, False])
def test_candidates_that_cannot_be_told_apart_are_one_line_before_anything_is_asked(vector, labelled):
    public = public_side(Points(labelled))
    public = replace(public, embed=lambda samples: np.full((len(samples), 4), vector, np.float32))

    def ask(t, query):
        raise AssertionError("the private records were asked")

    with pytest.raises(UserError, match=r"^embedding: expected candidates of every label whose vectors are finite"):
        next(NoVotes(80, 800).run(public, ask, None))


def test_a_candidate_stands_once_in_the_label_that_it_fits_most_as_long_as_there_are_enough():
    scores = np.array([[5.0, 4.0, 0.0], [4.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.1, 3.0]])
    rows, labels = nearest_to_label(scores, np.array([2, 1, 1]), None)
    assert sorted(zip(labels.tolist(), rows.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2), (2, 3)]
    rng = np.random.default_rng(5)
    rows, labels = nearest_to_label(rng.standard_normal((300, 7)), np.array([100, 0, 80, 60, 30, 20, 10]), None)
    assert len(set(rows.tolist())) == 300 and np.bincount(labels).tolist() == [100, 0, 80, 60, 30, 20, 10]
    rows, _ = nearest_to_label(rng.standard_normal((300, 2)), np.array([500, 200]), None)
    assert set(np.bincount(rows).tolist()) == {2, 3}


def test_between_two_labels_a_candidate_is_of_the_one_with_more_rows():
    """Two labels 0.7 deviations apart, nine records in ten of the first: so are the candidates near the middle."""
    rng = np.random.default_rng(6)
    whose = (rng.random(4000) < 0.1).astype(int)
    content = rng.standard_normal((4000, 6)).astype(np.float32)
    content[:, 0] += 0.7 * whose

    @dataclass(frozen=True)
    class Mixed(Points):
        def generate(self, labels, seeds):
            return Samples(content[: len(labels)], {"whose": whose[: len(labels)]})

    public = public_side(Mixed(False))
    public = replace(public, labels=public.labels[:2], facts=replace(public.facts, shares=np.array([0.9, 0.1])))

    def ask(t, query):
        blocks = [Block(label, content[whose == label], np.arange((whose == label).sum())) for label in range(2)]
        return Answer(query.tally(blocks) / SUMS_GRID, 0.01)

    population = chosen_by_sums(public, ask, 1, 4000, 3600)
    assert np.bincount(population.labels).tolist() == [3240, 360]
    first, second = ((population.samples.content[population.labels == label, 0]).mean() for label in (0, 1))
    assert second - first > 0.7
    assert (population.samples.traits["whose"] == population.labels).mean() > 0.85


def test_labels_that_lie_apart_in_few_directions_are_told_by_these():
    """Of 60 directions labels differ in the 10 of most variance: there the means are kept, elsewhere they are noise."""
    rng = np.random.default_rng(8)
    width = np.r_[np.full(10, 3.0), np.full(50, 1.0)]
    vectors = (rng.standard_normal((3000, 60)) * width).astype(np.float32)
    query = sums_about(vectors, 20, False)
    centres = np.zeros((20, 60), np.float32)
    centres[:, :10] = 3 * rng.standard_normal((20, 10))
    records = [centres[i] + (rng.standard_normal((40, 60)) * width * 0.7).astype(np.float32) for i in range(20)]
    exact = query.tally([Block(i, records[i], np.arange(40)) for i in range(20)]) / SUMS_GRID
    scores = scores_of(vectors, query, Answer(exact + 2 * rng.standard_normal(query.size), 2.0))
    wanted = scores_of(vectors, query, Answer(exact, 1e-6))
    apart = scores - scores.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True)
    assert np.corrcoef(*(part.ravel() for part in apart))[0, 1] > 0.8
