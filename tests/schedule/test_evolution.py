import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsyn.errors import UserError
from dpsyn.population import Samples
from dpsyn.privacy.budget import Settings
from dpsyn.privacy.query import Answer
from dpsyn.randomness import row_seeds
from dpsyn.schedule import Facts, PublicSide
from dpsyn.schedule.evolution import Evolution, split
from dpsyn.schedule.expansion import expand
from dpsyn.schedule.selection import balanced, project_on_simplex, proportional, smoothed, top
from dpsyn.schedule.steps import Step, steps, tab_pe_steps


class Line:
    """Samples are points: a content of one pixel each, moved by the degree."""

    row_bytes = 1

    def generate(self, labels, seeds):
        return Samples(self._drawn(seeds).reshape(-1, 1, 1, 1), {"born": seeds})

    def vary(self, samples, labels, degree, seeds):
        assert len(labels) == len(samples) == len(seeds)
        moved = samples.content.astype(int) + ((self._drawn(seeds).astype(int) % 5) - 2).reshape(-1, 1, 1, 1) * degree
        return Samples(np.clip(moved, 0, 255).astype(np.uint8), dict(samples.traits))

    def _drawn(self, seeds):
        return (seeds >> np.uint64(20)).astype(np.uint8)


def makers(labels=2, seed=0):
    def embed(samples):
        return samples.content.reshape(len(samples), -1).astype(np.float32)

    facts = Facts(np.full(labels, 1 / labels), None, None, Settings(epsilon=1, delta=1e-5))
    return PublicSide(Line(), embed, [{"label": str(i)} for i in range(labels)], facts, seed)


def pull(target):
    """Votes that rise towards `target`, without noise."""

    def ask(t, query):
        return Answer(np.rint(np.maximum(100 - np.abs(query.vectors[:, 0] - target), 0)), 0.0)

    return ask


@pytest.mark.parametrize("select", [proportional, top, balanced])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_the_population_moves_to_where_the_votes_are(select, lookahead):
    schedule = steps(6, 20, 1, select, variations=1, keep_survivors=True, lookahead=lookahead)
    first, *_, last = Evolution(schedule).run(makers(), pull(200.0), None)
    away = [np.abs(population.samples.content.astype(float) - 200).mean() for population in (first, last)]
    assert away[1] < away[0] / 2


def test_the_state_after_an_iteration_is_all_that_is_needed_to_go_on():
    schedule = steps(5, 12, 2, balanced)
    whole = list(Evolution(schedule).run(makers(), pull(90.0), None))
    rest = list(Evolution(schedule).run(makers(), pull(90.0), whole[1]))
    for one, two in zip(whole[2:], rest, strict=True):
        assert (one.samples.content == two.samples.content).all()
        assert (one.parents == two.parents).all()


def test_survivors_are_the_rows_that_were_voted_for_and_parents_lead_back_to_them():
    schedule = steps(3, 10, 2, balanced, variations=2)
    before, *others = Evolution(schedule).run(makers(), pull(50.0), None)
    for after in others:
        kept = after.survivors
        assert (after.samples.content[kept] == before.samples.content[after.parents[kept]]).all()
        assert (after.labels == before.labels[after.parents]).all()
        assert (after.samples.traits["born"] == before.samples.traits["born"][after.parents]).all()
        assert (~kept).sum() == 20
        before = after


def test_vectors_of_kept_rows_are_not_computed_again():
    asked = []
    made = makers()

    def embed(samples):
        asked.append(len(samples))
        return made.embed(samples)

    schedule = steps(3, 10, 1, top)
    counted = PublicSide(made.api, embed, made.labels, made.facts, 0)
    list(Evolution(schedule).run(counted, pull(50.0), None))
    assert asked == [20, 10, 10]


def test_a_last_step_without_variations_ends_on_survivors_as_often_as_they_were_chosen():
    schedule = (*steps(1, 10, 1, balanced), Step(10, 1, balanced, variations=0))
    *_, last = Evolution(schedule).run(makers(), pull(50.0), None)
    assert last.survivors.all()
    assert len(last) == 10


def test_every_ranked_release_of_tab_pe_chooses_among_survivors_and_three_variations_of_each():
    schedule = tab_pe_steps(6, 20, [4, 1], power=0.2, sampled_releases=3, variations=3)
    assert [step.select for step in schedule] == [proportional] * 3 + [top] * 3
    populations = list(Evolution(schedule).run(makers(), pull(50.0), None))
    asked = [len(population) for population in populations[:-1]]
    assert asked[:3] == [20, 20, 20]
    assert 60 < asked[3] <= 80  # what was drawn twice stands there once
    assert asked[4:] == [80, 80]
    assert len(populations[-1]) == 20
    assert populations[-1].survivors.all()


def test_expansion_keeps_every_survivor_once_and_its_share_of_variations():
    made = makers()
    schedule = (*steps(2, 20, 1, balanced), Step(20, 1, balanced, variations=0))
    *_, final = Evolution(schedule).run(made, pull(50.0), None)
    more = expand(made, final, 100, 1, lambda name, make: make())
    assert len(more) == 100
    assert np.bincount(more.parents, minlength=20).tolist() == [5] * 20
    assert np.bincount(more.labels).tolist() == [50, 50]
    assert more.survivors.sum() == len(np.unique(final.parents))
    itself = more.survivors
    assert (more.samples.content[itself] == final.samples.content[more.parents[itself]]).all()
    longer = expand(made, final, 130, 1, lambda name, make: make())
    assert (longer.samples.content[:100] == more.samples.content).all()


def test_all_weights_zero_falls_back_to_uniform():
    rng = np.random.default_rng(0)
    nothing = np.full(50, -3)
    for select in (proportional, balanced):
        chosen = select(nothing, 1000, rng)
        assert len(np.unique(chosen)) == 50
    assert (proportional(np.full(50, 5), 1000, rng, threshold=10) >= 0).all()


def test_negative_counts_are_never_drawn_in_proportion():
    chosen = proportional(np.array([-5, 10, -1, 5]), 500, np.random.default_rng(0))
    assert set(chosen) == {1, 3}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 200))
def test_the_projection_is_non_negative_keeps_the_mass_and_is_nearest(seed, n):
    rng = np.random.default_rng(seed)
    values = rng.normal(2, 10, n)
    mass = float(values.sum())
    projected = project_on_simplex(values, mass)
    assert (projected >= 0).all()
    if mass <= 0:
        assert not projected.any()
        return
    assert projected.sum() == pytest.approx(mass)
    other = rng.dirichlet(np.ones(n)) * mass
    assert ((projected - values) ** 2).sum() <= ((other - values) ** 2).sum() + 1e-9


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 500))
def test_balanced_gives_every_candidate_its_share_up_or_down_to_a_whole_number(seed, size):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-20, 60, 40)
    chosen = np.bincount(balanced(votes, size, rng), minlength=40)
    weights = project_on_simplex(votes.astype(float), float(votes.sum()))
    exact = size * (weights / weights.sum() if weights.any() else np.full(40, 1 / 40))
    assert chosen.sum() == size
    assert (np.abs(chosen - exact) < 1 + 1e-6).all()


@given(size=st.integers(1, 10_000), parts=st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_a_size_is_split_by_shares_without_rest(size, parts):
    if not sum(parts):
        return
    shares = np.array(parts) / sum(parts)
    counts = split(size, shares)
    assert counts.sum() == size
    assert (np.abs(counts - size * shares) < 1).all()


def test_one_seed_a_row_whatever_the_number_of_rows():
    assert (row_seeds(3, 1, "vary", 5) == row_seeds(3, 1, "vary", 500)[:5]).all()
    assert (
        len(np.unique(np.concatenate([row_seeds(3, t, use, 100) for t in range(3) for use in ("vary", "expand")])))
        == 600
    )


def test_lists_in_a_schedule_have_one_entry_a_release():
    made = steps(2, [10, 5], {"font": [0.8, 0.4], "size": 3}, top, variations=[1, 0])
    assert [step.size for step in made] == [10, 5]
    assert made[1].degree == {"font": 0.4, "size": 3}
    with pytest.raises(UserError, match=r"schedule\.degree\.font=\[0\.8\]: expected one value, or one a release"):
        steps(2, 10, {"font": [0.8]}, top)
    with pytest.raises(UserError, match=r"schedule\.releases=0"):
        steps(0, 10, 1, top)
    with pytest.raises(UserError, match="Nothing would be left"):
        Step(10, 1, top, variations=0, keep_survivors=False)


def test_smoothed_votes_keep_their_sum_and_are_those_of_the_neighbourhood():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 3)).astype(np.float32)
    votes = rng.integers(-5, 50, 50)
    nearest = np.argsort(((vectors[:, None] - vectors) ** 2).sum(2), axis=1, kind="stable")[:, :6]
    ties = np.zeros((50, 50))
    ties[np.arange(50)[:, None], nearest] = 1
    ties += ties.T
    found = smoothed(votes, vectors, 6)
    assert found == pytest.approx((ties / ties.sum(0)) @ votes)
    assert found.sum() == pytest.approx(votes.sum())
    assert (smoothed(votes, vectors, 1) == votes).all()
    assert smoothed(votes, vectors, 1000) == pytest.approx(np.full(50, votes.mean()))
    assert smoothed(votes[:1], vectors[:1], 5).tolist() == [votes[0]]


def test_candidates_without_a_vector_share_their_noise_with_nobody():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 3)).astype(np.float32)
    vectors[[2, 5, 7]] = np.array([1e30, np.nan, np.inf])[:, None]
    known = np.isin(np.arange(12), [2, 5, 7], invert=True)
    votes = rng.integers(-5, 100, 12)
    with np.errstate(all="raise"):
        found = smoothed(votes, vectors, 4)
    assert (found[~known] == votes[~known]).all()
    assert (found[known] == smoothed(votes[known], vectors[known], 4)).all()
    assert (smoothed(votes, np.full_like(vectors, np.nan), 4) == votes).all()


def test_smoothing_finds_the_side_that_was_voted_for_better_in_noise_that_hides_every_candidate():
    def gain(seed):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(1000, 4)).astype(np.float32)
        side = vectors[:, 0] > 0
        noisy = side * 1 + np.round(rng.normal(0, 5, 1000))
        plain, shared = (side[balanced(votes, 1000, rng)].mean() for votes in (noisy, smoothed(noisy, vectors, 30)))
        return shared - plain

    assert np.mean([gain(seed) for seed in range(10)]) > 0.03
