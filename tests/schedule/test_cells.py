"""Votes in subspaces: what a record can change, what the noisy answers alone decide, and that the population fits."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from harness import answer

from dpsyn.privacy import marginals
from dpsyn.privacy.marginals import LABEL, Marginal, cell_of, counts_of
from dpsyn.privacy.query import Answer, CellCounts, CellScores
from dpsyn.schedule import binning, potentials, within
from dpsyn.schedule.cells import Cells
from dpsyn.schedule.gibbs import next_query, sample, start, update
from dpsyn.schedule.subspaces import plan
from dpsyn.schedule.thinning import thinned
from dpsyn.tables.codec import CodedColumn

RNG = np.random.default_rng


def people(n, seed=0):
    """A number with a missing code, its noisy copy, two categories, and a label that is the XOR of them."""
    rng = RNG(seed)
    age = rng.binomial(39, 0.3, n)
    copy = np.clip(age + rng.integers(-2, 3, n), 0, 39)
    left, right = rng.integers(0, 2, n), rng.integers(0, 2, n)
    codes = np.stack([np.where(rng.random(n) < 0.2, 40, age), copy, left, right], 1).astype(np.int32)
    columns = (CodedColumn(41, True, 40), CodedColumn(40, True), CodedColumn(2, False), CodedColumn(2, False))
    return columns, codes, (left ^ right).astype(np.int64)


def released(columns, codes, labels, count, multiplier, rng, noise=1.0, records=None, **settings):
    """A whole run, with its questions and noisy answers."""
    records = records or max(len(codes), 1)
    state, seen = start(columns, count, records), []
    for release in plan(columns, count, records, multiplier, **settings):
        query = next_query(state, release)
        assert len(query.marginals) == release.moves
        sigma = multiplier * (release.moves / release.share) ** 0.5 * noise
        exact = answer(query, [(codes, labels)])
        noisy = exact + np.round(RNG(len(seen)).normal(0, sigma, len(exact)))
        state = update(state, release, query, Answer(noisy, sigma), rng)
        seen.append((query, noisy))
    return state, seen


def every_query():
    columns, codes, labels = people(3000)
    tables = [(columns[:2] * 4, np.tile(codes[:, :2], 4), labels, 2), (columns, codes, labels, 2)]
    tables.append((columns, codes, np.zeros_like(labels), 1))
    for columns, codes, labels, count in tables:
        for query, _ in released(columns, codes, labels, count, 0.5, RNG(0))[1]:
            yield query, codes, labels


@pytest.mark.parametrize(
    ("size", "records", "rows"),
    [(None, 300, 20_000), (None, 32_561, 32_561), (None, 3_200_000, 500_000), (7, 300, 7), (10**7, 300, 10**7)],
)
def test_the_table_has_as_many_rows_as_records_are_declared_within_bounds_unless_it_is_said(size, records, rows):
    assert Cells(size, True).final_size(SimpleNamespace(records=records)) == rows


def test_counts_are_those_of_a_naive_count_whatever_the_blocks():
    kinds = set()
    for query, codes, labels in every_query():
        kinds.add(query.kind)
        got = answer(query, [(codes[:7], labels[:7]), (codes[:0], labels[:0]), (codes[7:], labels[7:])])
        naive = []
        for at, marginal in enumerate(query.marginals):
            table = np.zeros(marginal.shape, int)
            for row, label in zip(codes.tolist(), labels.tolist(), strict=True):
                where = [label if j == LABEL else row[j] for j in marginal.columns]
                table[tuple(cell[code] for cell, code in zip(marginal.cells, where, strict=True))] += 1
            if isinstance(query, CellScores):
                table = np.array([np.abs(table - query.expected[at]).sum()])
            naive.append(table.ravel())
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, np.concatenate(naive))
    assert kinds == {"marginals", "by_label", "scores", "tables"}


@pytest.mark.parametrize("threads", ["1", "3"])
def test_marginals_of_the_same_columns_that_are_counted_together_are_counted_right(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(marginals, "KEPT", 1)  # blocks of 4096 rows
    sizes, rng = (40, 300, 5, 2, 3), RNG(0)
    codes = np.stack([rng.integers(0, size, 9000) for size in sizes[:4]], 1).astype(np.int32)
    labels = rng.integers(0, 3, 9000)

    def cut(j, cells):
        return rng.permutation(np.arange(sizes[j]) % cells)

    def marginal(*pairs):
        return Marginal(tuple(j for j, _ in pairs), tuple(cut(j, cells) for j, cells in pairs))

    asked = [
        marginal((0, 6), (1, 5)),
        marginal((0, 4), (1, 7), (LABEL, 3)),
        marginal((0, 40), (1, 300), (LABEL, 3)),  # more cells than 16 bits number
        marginal((LABEL, 2)),
        marginal((2, 5)),
        marginal((2, 4), (LABEL, 3)),
        marginal((3, 2), (0, 3), (2, 2)),
        marginal((0, 3), (3, 2)),
    ]
    rows = np.concatenate([codes, labels[:, None]], 1)
    naive = [np.bincount(cell_of(m, rows), minlength=m.size) for m in asked]
    by_label = [(codes[labels == label], labels[labels == label]) for label in range(3)]
    for blocks in ([(codes, labels)], by_label):
        np.testing.assert_array_equal(counts_of(asked, blocks), np.concatenate(naive))


def test_a_cell_that_no_code_is_in_changes_no_count():
    asked = [Marginal((0,), (np.array(cells),)) for cells in ([0, 2, 2], [0, 0, 1])]
    rows = np.array([[0], [1], [1], [2]], np.int32)
    assert counts_of(asked, [(rows, np.zeros(4, np.int64))]).tolist() == [1, 0, 3, 3, 1]
    assert counts_of(asked[::-1], [(rows, np.zeros(4, np.int64))]).tolist() == [3, 1, 1, 0, 3]


def test_one_record_moves_as_many_entries_as_the_release_says_by_one_each():
    for query, codes, labels in every_query():
        before = answer(query, [(codes, labels)])
        for gone in (0, 17):
            kept = np.arange(len(codes)) != gone
            change = np.abs(before - answer(query, [(codes[kept], labels[kept])]))
            assert change.max() == 1
            assert change.sum() == query.moves  # so the L2 norm is the root of it


def test_what_is_asked_depends_on_the_noisy_answers_only():
    columns, codes, labels = people(2000)
    others = people(2000, seed=9)[1]
    state, seen = released(columns, codes, labels, 2, 0.5, RNG(3))
    again, rng = start(columns, 2, 2000), RNG(3)
    releases = plan(columns, 2, 2000, 0.5)
    for release, (query, noisy) in zip(releases, seen, strict=True):  # another private table, the same noisy answers
        same = next_query(again, release)
        answer(same, [(others, labels)])
        for one, two in zip(query.marginals, same.marginals, strict=True):
            assert one.columns == two.columns
            assert all(np.array_equal(a, b) for a, b in zip(one.cells, two.cells, strict=True))
        sigma = 0.5 * (release.moves / release.share) ** 0.5
        again = update(again, release, same, Answer(noisy, sigma), rng)
    np.testing.assert_array_equal(again.rows, state.rows)


def test_without_noise_the_population_has_the_pairs_of_the_private_rows_and_the_xor_with_the_label():
    columns, codes, labels = people(6000)
    state, _ = released(columns, codes, labels, 2, 0.2, RNG(0), noise=1e-6)
    synthetic, of = sample(state, 6000, RNG(1))
    assert (synthetic[:, 2] ^ synthetic[:, 3] == of).mean() > 0.98
    for i, j in itertools.combinations(range(4), 2):
        sizes = (columns[i].codes, columns[j].codes)
        real, made = (
            np.bincount(np.ravel_multi_index((rows[:, i], rows[:, j]), sizes), minlength=sizes[0] * sizes[1])
            for rows in (codes, synthetic)
        )
        alone = np.outer(np.bincount(codes[:, i], minlength=sizes[0]), np.bincount(codes[:, j], minlength=sizes[1]))
        distance = np.abs(real - made).sum() / 2 / 6000
        assert distance < 0.12, (i, j)  # two samples of this size are up to 0.08 apart
        if (i, j) == (0, 1):
            assert distance < np.abs(real - alone.ravel() / 6000).sum() / 2 / 6000 / 4


def test_three_columns_are_asked_where_no_label_is_and_the_xor_among_them_is_found():
    left, right = RNG(0).integers(0, 2, (2, 5000))
    codes = np.stack([left, right, left ^ right], 1).astype(np.int32)
    state, _ = released((CodedColumn(2, False),) * 3, codes, np.zeros(5000, np.int64), 1, 4.0, RNG(0))
    synthetic, _ = sample(state, 5000, RNG(1))
    assert (synthetic[:, 0] ^ synthetic[:, 1] == synthetic[:, 2]).mean() > 0.95


def test_the_same_generator_draws_the_same_rows_and_any_number_of_them():
    columns, codes, labels = people(1000)
    one, two = (released(columns, codes, labels, 2, 1.0, RNG(5))[0] for _ in range(2))
    for rows in (0, 1, 777, 40000):
        a, b = sample(one, rows, RNG(7)), sample(two, rows, RNG(7))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        assert a[0].shape == (rows, 4) and a[0].dtype == np.uint8 and a[1].shape == (rows,) and a[1].dtype == np.int64
    assert not np.array_equal(sample(one, 777, RNG(8))[0], sample(one, 777, RNG(7))[0])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [0.3, 30.0])
def test_constant_missing_and_single_code_columns_and_an_empty_label_are_no_trouble(count, multiplier):
    rng = RNG(0)
    columns = (
        CodedColumn(1, False),
        CodedColumn(1, True, 0),
        CodedColumn(9, True, 8),
        CodedColumn(9, True, 8),
        CodedColumn(300, False),
    )
    rare = np.minimum(rng.geometric(0.05, 400) - 1, 299)
    codes = np.stack([np.zeros(400), np.zeros(400), np.full(400, 8), np.full(400, 3), rare], 1).astype(np.int32)
    labels = np.minimum(rng.integers(0, 2, 400), count - 1).astype(np.int64)  # of three labels one is empty
    state, _ = released(columns, codes, labels, count, multiplier, rng)
    synthetic, of = sample(state, 500, rng)
    assert (synthetic >= 0).all() and (synthetic < [column.codes for column in columns]).all()
    assert (of >= 0).all() and (of < count).all()
    if multiplier < 1:
        assert (synthetic[:, 2] == 8).mean() > 0.9 and (synthetic[:, 3] == 3).mean() > 0.9
        assert (of == 2).mean() < 0.05


@pytest.mark.parametrize("fill", [0, -1000, 10**6])
def test_noisy_answers_that_say_nothing_or_nonsense_still_give_rows(fill):
    columns = people(1)[0]
    state, rng = start(columns, 2, 500), RNG(0)
    for release in plan(columns, 2, 500, 0.5):
        query = next_query(state, release)
        entries = len(answer(query, []))
        state = update(state, release, query, Answer(np.full(entries, fill), 2.0), rng)
    codes, labels = sample(state, 300, rng)
    assert codes.shape == (300, 4) and (codes >= 0).all() and (codes < [41, 40, 2, 2]).all()
    assert set(labels) <= {0, 1}


def test_shares_add_up_and_few_records_are_asked_less():
    columns = tuple(CodedColumn(64, True) for _ in range(30))
    kinds = {}
    for records, multiplier in ((100, 3.0), (455, 3.0), (30_000, 4.0), (10**6, 4.3)):
        for labels in (1, 2, 500):
            releases = plan(columns, labels, records, multiplier)
            assert sum(release.share for release in releases) == pytest.approx(1)
            kinds[records, labels] = [release.kind for release in releases]
    assert kinds[455, 2] == ["marginals", "by_label"] and kinds[100, 1] == ["marginals"]
    assert kinds[30_000, 2] == ["marginals", "by_label", "scores", "tables", "scores", "tables"]
    assert not any(release.labelled for release in plan(columns, 500, 30_000, 4.0) if release.kind == "tables")
    unscored = plan(columns[:6], 2, 30_000, 4.0, scores=False)
    assert [(release.kind, release.moves) for release in unscored] == [
        ("marginals", 13),  # columns, the label, and runs of six columns of an order
        ("by_label", 6),
        ("tables", 15),
    ]


def test_noise_on_an_order_is_smoothed_wherever_its_steps_are():
    sigma, lost = 20.0, []
    for begin in (32, 37, 44, 51, 64):  # at the edge of a block of 2^k codes, and not
        true = np.zeros(300)
        true[begin : begin + 60], true[begin + 60 : begin + 90], true[7], missing = 100, 40, 2000, 500
        noisy = np.append(true, missing) + sigma * RNG(begin).standard_normal(301)
        smooth = binning.denoised(noisy, CodedColumn(301, True, 300), sigma, true.sum() + missing)
        assert smooth.min() >= 0 and smooth.sum() == pytest.approx(true.sum() + missing)
        assert abs(smooth[7] - 2000) < 100 and abs(smooth[300] - missing) < 100
        raw = binning.denoised(noisy, CodedColumn(301, False, 300), sigma, true.sum() + missing)
        lost.append(np.abs(smooth[:300] - true).sum() / np.abs(raw[:300] - true).sum())
    assert max(lost) < 0.42 and max(lost) < 1.7 * min(lost)
    exact = np.append(true, missing)
    assert binning.denoised(exact, CodedColumn(301, True, 300), 0.0, exact.sum()) == pytest.approx(exact)


def test_cells_hold_near_equal_mass_are_runs_of_an_order_and_nest():
    mass = RNG(0).gamma(0.5, 100, 200)
    for ordered in (True, False):
        ladder = binning.nested_bins(mass, CodedColumn(200, ordered, 199), 32)
        assert [len(np.unique(step)) for step in ladder] == list(range(1, 33))
        sums = np.bincount(ladder[7], mass)
        assert sums.max() < 3 * sums.min()
        for coarse, fine in itertools.pairwise(ladder):
            assert all(len(set(coarse[fine == cell])) == 1 for cell in range(fine.max() + 1))
        if ordered:
            assert (np.diff(ladder[-1][:199]) >= 0).all() and (ladder[-1] == ladder[-1][199]).sum() == 1


def test_of_many_categories_the_two_lightest_become_one_until_there_are_few():
    mass = np.random.default_rng(0).integers(0, 9, 300).astype(float)
    groups, weights = [{code} for code in range(300)], mass.tolist()
    while len(groups) > 32:
        first, second = sorted(np.argsort(weights, kind="stable")[:2].tolist())
        groups[first] |= groups.pop(second)
        weights[first] += weights.pop(second)
    atoms = binning.nested_bins(mass, CodedColumn(300, False), 32)[-1]
    assert [set(np.flatnonzero(atoms == at).tolist()) for at in range(32)] == groups


def test_a_score_is_what_the_counts_differ_from_the_expected_ones():
    marginals = (Marginal((0, LABEL), (np.array([0, 0, 1]), np.arange(2))),)
    scores = CellScores("scores", marginals, (np.array([[2, 0], [0, 5]]),))
    rows = np.array([[0], [1], [2], [2]], np.int32), np.array([0, 1, 1, 0])
    assert answer(scores, [rows]).tolist() == [1 + 1 + 1 + 4]
    assert answer(CellCounts("tables", marginals), [rows]).tolist() == [1, 1, 1, 1]


def test_whatever_the_table_no_score_is_asked_without_leave_and_no_question_has_more_subspaces_than_are_charged():
    rng = RNG(0)
    for _ in range(400):
        d, labels = int(rng.integers(1, 20)), int(rng.choice([1, 2, 5, 30]))
        records, multiplier, scores = (
            int(10 ** rng.uniform(1, 7)),
            float(10 ** rng.uniform(-0.5, 2)),
            rng.random() < 0.5,
        )
        columns, halves = (CodedColumn(2, False),) * d, (np.zeros(2, int), np.arange(2))
        state = dataclasses.replace(
            start(columns, labels, records),
            total=1.0,
            bins=(halves,) * d,
            one_way=(*(np.ones(2),) * d, np.ones(labels)),
            rows=np.zeros((1, d + 1), np.int32),
        )
        for release in plan(columns, labels, records, multiplier, scores):
            query = next_query(state, release)
            asked = [marginal.columns for marginal in query.marginals]
            assert len(set(asked)) == len(asked) == release.moves
            if release.kind == "scores":
                assert scores
                state = update(state, release, query, Answer(rng.normal(0, 1e3, len(asked)), 1.0), rng)
            elif release.kind == "tables":
                state = dataclasses.replace(state, asked=state.asked | set(asked), chosen=())


def test_the_xor_of_three_columns_is_found_where_it_is_the_label():
    codes = RNG(0).integers(0, 2, (12_000, 6)).astype(np.int32)
    labels = (codes[:, 0] ^ codes[:, 1] ^ codes[:, 2]).astype(np.int64)
    state, _ = released((CodedColumn(2, False),) * 6, codes, labels, 2, 3.7, RNG(0))
    synthetic, of = sample(state, 6000, RNG(1))
    assert (synthetic[:, 0] ^ synthetic[:, 1] ^ synthetic[:, 2] == of).mean() > 0.9


def test_columns_that_are_missing_together_stay_so_in_the_right_share_of_rows():
    rng, gone = RNG(0), RNG(1).random(20_000) < 0.157
    columns = tuple(CodedColumn(9, True, 8) for _ in range(5))
    codes = np.stack([np.where(gone, 8, rng.integers(0, 8, 20_000)) for _ in columns], 1).astype(np.int32)
    state, _ = released(columns, codes, np.zeros(20_000, np.int64), 1, 3.7, RNG(0))
    synthetic, _ = sample(state, 20_000, RNG(1))
    missing = synthetic == 8
    assert np.abs(missing.mean(0) - gone.mean()).max() < 0.02
    assert (missing.all(1) | ~missing.any(1)).mean() > 0.95


def test_counts_of_runs_tell_what_a_tail_holds_with_less_noise():
    column, sigma, apart = CodedColumn(641, True, 640), 40.0, {"codes": [], "runs": []}
    true = np.append(np.round(4000 * np.exp(-np.arange(640) / 40) / 40), 100.0)
    runs, run = binning.runs_of(column), binning.run_length(column)
    assert runs is not None and np.bincount(runs).tolist() == [40] * 16 + [1] and run == 40
    assert binning.runs_of(CodedColumn(641, False)) is binning.runs_of(CodedColumn(40, True)) is None
    for seed in range(8):
        rng = RNG(seed)
        noisy = true + sigma * np.sqrt(2) * rng.standard_normal(641)
        of_runs = np.bincount(runs, true) + sigma * np.sqrt(2) * rng.standard_normal(17)
        agreed = binning.with_runs(noisy, of_runs, runs)
        # least squares: the counts of a run's codes and its own are averaged by the inverse of their variances
        np.testing.assert_allclose(
            np.bincount(runs, agreed),
            (np.bincount(runs, noisy) / np.bincount(runs) + of_runs) / (1 / np.bincount(runs) + 1),
        )
        both = binning.denoised(agreed, column, sigma * np.sqrt(2), true.sum(), run)
        alone = binning.denoised(true + sigma * rng.standard_normal(641), column, sigma, true.sum())
        for name, found in (("codes", alone), ("runs", both)):
            assert found.min() >= 0 and found.sum() == pytest.approx(true.sum())
            apart[name].append(np.abs(np.cumsum(found - true)[:640]).mean())
    assert np.mean(apart["runs"]) < 0.7 * np.mean(apart["codes"])


@pytest.mark.parametrize("run", [np.inf, 40.0])
def test_the_variance_of_neighbouring_codes_is_that_of_their_sum(run):
    column, sigma = CodedColumn(640, True), 3.0
    runs, draws = binning.runs_of(column), []
    for seed in range(600):
        noise = sigma * RNG(seed).standard_normal(640 + 16)
        draws.append(binning.with_runs(noise[:640], noise[640:], runs) if run < np.inf else noise[:640])
    for codes in (1, 10, 40, 160, 640):
        told = float(binning.variance_of(codes, run))
        assert np.var([draw[:codes].sum() for draw in draws]) == pytest.approx(sigma**2 * told, rel=0.2)


def test_ranks_within_a_cell_go_together_as_the_cells_do_and_codes_keep_their_shares():
    rng = RNG(0)
    normal = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 40_000)
    ranks = np.argsort(np.argsort(normal, 0), 0)
    atoms = (ranks * 8 // 40_000).astype(np.int32)
    each = within.scores(np.full(8, 1 / 8), None)
    fitted = within.copula(atoms, [each, each, None])
    rows = np.column_stack([atoms, rng.integers(0, 3, 40_000)])
    found = list(within.places(fitted, rows, rng))
    top = (atoms == 7).all(1)
    assert np.corrcoef(found[0][top], found[1][top])[0, 1] == pytest.approx(np.corrcoef(*ranks[top].T)[0, 1], abs=0.12)
    assert abs(np.corrcoef(found[0][top], found[2][top])[0, 1]) < 0.05
    for place, of in zip(found, rows.T, strict=True):  # evenly spaced in every cell
        for atom in np.unique(of):
            mine = np.sort(place[of == atom])
            assert np.abs(mine - np.arange(len(mine)) / len(mine)).max() <= 1 / len(mine) + 1e-9


def test_blocks_are_halves_and_quarters_of_a_grid_and_every_label_is_by_itself():
    bins = [binning.nested_bins(RNG(j).gamma(1, 10, 64), CodedColumn(64, True), 32) for j in range(2)]
    asked = Marginal((0, 1, LABEL), (bins[0][15], bins[1][3], np.arange(3)))
    by_atom = Marginal((0, 1, LABEL), (np.arange(16), np.arange(4), np.arange(3)))
    noisy, sigma = RNG(5).random((16, 4, 3)), np.full((16, 4, 3), 2.0)
    blocks = potentials.blocks_of(asked, by_atom, bins, noisy, sigma)
    shapes = [(2, 2, 3), (4, 2, 3), (8, 2, 3)]
    assert [each.potential.size for each in blocks] == [12, 24, 48]
    sums, of_cell = noisy.ravel(), np.arange(16 * 4 * 3)
    for each, (first, second, _) in zip(reversed(blocks), reversed(shapes), strict=True):
        halves = [np.zeros(size, np.int64) for size in (16, 4)]
        for half, cells, step in zip(halves, asked.cells, (bins[0][first - 1], bins[1][second - 1]), strict=False):
            half[cells] = step
        naive = np.zeros((first, second, 3))
        for a, b, label in np.ndindex(noisy.shape):
            naive[halves[0][a], halves[1][b], label] += noisy[a, b, label]
        sums, of_cell = each.sums(sums), each.of_finer[of_cell]
        for found in (sums, each.noisy, np.bincount(of_cell, noisy.ravel())):
            np.testing.assert_allclose(found, naive.ravel())
        np.testing.assert_allclose(each.variance, np.bincount(of_cell) * 4.0)
    assert (
        potentials.blocks_of(Marginal((0,), (bins[0][7],)), Marginal((0,), (np.arange(8),)), bins, *[noisy] * 2) == ()
    )


def test_what_blocks_add_is_that_of_each_cell_s_block_and_fine_ones_see_what_coarse_ones_moved():
    bins = [binning.nested_bins(np.ones(8), CodedColumn(8, True), 8) for _ in range(2)]
    asked = Marginal((0, 1), (bins[0][7], bins[1][7]))
    noisy, sigma = RNG(3).random((8, 8)) * 100, np.full((8, 8), 1e-3)
    m = potentials.Measurement(asked, noisy, sigma, blocks=potentials.blocks_of(asked, asked, bins, noisy, sigma))
    held = np.rint(RNG(4).random((8, 8)) * 100)
    followed = potentials.pulled(m, held, 1.0, 1.0)
    rows, force = held, np.zeros((8, 8))
    for width in (4, 2):  # of the cells of a block, along each column
        sums = rows.reshape(8 // width, width, 8 // width, width).sum((1, 3))
        wanted = noisy.reshape(8 // width, width, 8 // width, width).sum((1, 3))
        step = np.clip((wanted - sums) / (sums + 1), -2, 2).repeat(width, 0).repeat(width, 1)
        rows, force = rows * np.exp(step), force + step
    force += np.clip((noisy - rows) / (rows + 1), -2, 2)
    np.testing.assert_allclose(followed.force, force, atol=1e-4)


def test_columns_have_more_atoms_where_noise_is_low():
    assert [binning.atoms_for(records, 10.0) for records in (100, 16_000, 24_000, 10**7)] == [32, 32, 48, 64]


def test_more_tables_are_asked_where_noise_is_low():
    columns = (CodedColumn(64, True),) * 10
    asked = [
        sum(release.moves for release in plan(columns, 1, records, 4.0) if release.kind == "tables")
        for records in (2_000, 8_000, 16_500, 43_000)
    ]
    assert asked[0] == asked[1] < asked[2] < asked[3] == 55


def test_each_row_takes_one_of_its_states_and_counts_come_near_what_all_states_have_on_average():
    rng, cells = RNG(0), [8, 8, 8, 2]
    base, labels = rng.integers(0, 8, (20_000, 3)), rng.integers(0, 2, 20_000)
    states = [
        np.column_stack([np.where(rng.random(base.shape) < 0.5, rng.integers(0, 8, base.shape), base), labels])
        for _ in range(4)
    ]

    (rows,) = thinned([states], cells, RNG(1))
    assert np.any([(rows == state).all(1) for state in states], 0).all()
    np.testing.assert_array_equal(rows[:, 3], labels)
    np.testing.assert_array_equal(rows, next(thinned([states], cells, RNG(1))))

    def pairs(of):
        return np.concatenate([np.bincount(of[:, a] * 8 + of[:, b], minlength=64) for a, b in ((0, 1), (0, 2), (1, 2))])

    mean = np.mean([pairs(state) for state in states], 0)
    off = [np.abs(pairs(state) - mean).sum() for state in states]
    assert np.abs(pairs(rows) - mean).sum() < 0.2 * min(off)
    assert [block.shape for block in thinned([[state[:0] for state in states]], cells, RNG(1))] == [(0, 4)]
