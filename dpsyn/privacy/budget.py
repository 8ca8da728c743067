"""What a run may spend, and what it costs: charges, calibration, accounting.

Epsilon is computed by the privacy loss distributions of Google's dp-accounting and compared with an exact convolution
of our own. The closed form of Gaussian composition (Balle and Wang 2018, theorem 8; Dong, Roth and Su 2019, corollary
1) is where the search for the noise begins.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dpsyn.errors import UserError, invalid
from dpsyn.privacy.exact import epsilon as convolved
from dpsyn.privacy.exact import hit_rates
from dpsyn.validate import choice, whole

GRID = 1024  # a user's votes are scaled to an L2 norm of at most one on the integers divided by this
SUMS_GRID = 2**20  # so are sums of vectors: fine beside an entry of a unit vector that a user's rows share
SMALLEST_SIGMA = 0.3  # below it the sampler's and the accountant's numbers stop meaning anything useful
LARGEST_SIGMA = 1e9  # above it noise would leave 64 bits on a user's grid
WIDE = 100.0  # from here on a discrete Gaussian is accounted as the continuous one that it rounds, see `composed_of`
BELOW, ABOVE = 1e-4, 0.05  # how far, relatively, the accountant may be from exact convolution
WEAK = 10.0  # an epsilon above this is stamped WEAK

Unit = Literal["record", "user"]
Adjacency = Literal["add_remove", "replace"]
Bearers = Literal["all", "voters", "held_out"]
EVALUATION = "evaluation"  # what the names of releases that measure the finished data begin with


@dataclass(frozen=True)
class Charge:
    """What one release costs.

    sigma: standard deviation of the noise, in votes.
    grid: votes are counted in whole 1/grid, and noise has standard deviation sigma * grid there. Under the record unit
        it is 1 but for sums of vectors.
    moves: by how many entries, each by one vote, a record that is added or removed changes the release. Under the user
        unit (grid > 1) it is one move: all votes of a user have a joint L2 norm of at most one.
    of: the units that it is asked of: 'all', or those of one side of a hold-out split, 'voters' or 'held_out'.
    """

    name: str
    sigma: float
    grid: int = 1
    moves: int = 1
    of: Bearers = "all"


@dataclass(frozen=True)
class Settings:
    """The group `privacy`. Raises UserError for a statement that could not be true.

    epsilon, delta: the target. There is no default: a run says what it promises.
    noise_multiplier: sigma in votes, instead of epsilon; with budget_split, the least sigma.
    budget_split: how the budget is shared among the releases, one number each; None: equally.
    label_shares_budget: the part of the budget that noisy label shares spend, where they are asked for.
    sums_budget: the part that noisy sums of embeddings spend, where they choose the first population of votes.
    unit: 'record', or 'user': all rows with one value of `data.unit_column`.
    adjacency: neighbouring data sets differ by one unit added or removed ('add_remove') or replaced ('replace').
    votes_per_record: a record votes for this many nearest candidates.
    noise: 'system' (the operating system's generator), 'insecure_seeded' (tests), 'none' (epsilon and delta are moot).
    accept_lost_draws: go on though this many noisy releases were started and lost; each is charged.
    accept_joint_epsilon: the joint epsilon of a sweep that you agree to.
    max_joint_epsilon: a run that would bring all runs on its data over it is refused, and so are later ones that set
        no other; None: what an earlier run on these data set, if any.
    """

    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    budget_split: Sequence[float] | None = None
    label_shares_budget: float = 0.1
    sums_budget: float = 0.5
    unit: Unit = "record"
    adjacency: Adjacency = "add_remove"
    votes_per_record: int = 1
    noise: Literal["system", "insecure_seeded", "none"] = "system"
    accept_lost_draws: int = 0
    accept_joint_epsilon: float | None = None
    max_joint_epsilon: float | None = None

    def __post_init__(self) -> None:
        choice("privacy.unit", self.unit, ("record", "user"))
        choice("privacy.adjacency", self.adjacency, ("add_remove", "replace"))
        choice("privacy.noise", self.noise, ("system", "insecure_seeded", "none"))
        for key, least in (("votes_per_record", 1), ("accept_lost_draws", 0)):
            whole(f"privacy.{key}", getattr(self, key), least)
        for key in ("epsilon", "delta", "noise_multiplier", "accept_joint_epsilon", "max_joint_epsilon"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value != value):
                raise invalid(f"privacy.{key}", value, "a number")
        if self.budget_split is not None and (
            isinstance(self.budget_split, str)
            or not all(isinstance(share, int | float) and 0 < share < math.inf for share in self.budget_split)
            or not self.budget_split
        ):
            raise invalid("privacy.budget_split", self.budget_split, "null, or one number over 0 a release")
        for key in ("label_shares_budget", "sums_budget"):
            if type(getattr(self, key)) is not float or not 0 < getattr(self, key) < 1:
                raise invalid(f"privacy.{key}", getattr(self, key), "a number between 0 and 1")
        if self.noise == "none":
            return  # whatever an experiment promises: nothing is, and all that is written says so
        if self.epsilon is None and self.noise_multiplier is None:
            do = "A run says what it promises, say privacy.epsilon=1."
            raise invalid("privacy.epsilon", "null", "a number over 0 (or privacy.noise_multiplier)", do)
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise invalid(
                "privacy.noise_multiplier", self.noise_multiplier, "null when privacy.epsilon is given", "Give one."
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise invalid("privacy.epsilon", self.epsilon, "a number over 0, or inf with privacy=none")
        if self.noise_multiplier is not None and not SMALLEST_SIGMA <= self.noise_multiplier <= LARGEST_SIGMA:
            expected = f"a number between {SMALLEST_SIGMA} and {LARGEST_SIGMA:g}"
            raise invalid("privacy.noise_multiplier", self.noise_multiplier, expected)
        if self.delta is None or not 1e-12 <= self.delta <= 1e-2:
            value = "null" if self.delta is None else self.delta
            raise invalid(
                "privacy.delta", value, "a number between 1e-12 and 1e-2", "Below 1/(number of records) is usual."
            )

    @property
    def is_private(self) -> bool:
        """False where the results are for tests only and are written to `not_private/`."""
        return self.noise == "system"


@dataclass(frozen=True)
class Budget:
    """Charges fixed before the first release, and the guarantee that they add up to."""

    charges: tuple[Charge, ...]
    epsilon: float
    delta: float
    adjacency: Adjacency

    def __post_init__(self) -> None:
        if self.charges and self.epsilon < math.inf:
            spent = epsilon_of(self.charges, self.delta, self.adjacency)
            if spent > self.epsilon:
                raise UserError(
                    f"privacy: the noise gives epsilon {format_epsilon(spent)}, over the {self.epsilon} that is stated."
                )

    @property
    def sigma(self) -> float:
        """The least of the releases that the data are made of, what was calibrated. 0 without noise, or without one."""
        return min((charge.sigma for charge in self.charges if not is_evaluation(charge)), default=0.0)


def is_evaluation(charge: Charge) -> bool:
    return charge.name.startswith(EVALUATION)


def borne(charges: Sequence[Charge], adjacency: Adjacency) -> list[tuple[Charge, ...]]:
    """The charges that one unit can bear together, for each kind of unit. A unit that is added or removed is either a
    voter or held out: which, a hash of the unit itself says, so no other charge changes with it. A unit that is
    replaced may be a voter before and held out after: it bears all.

    charges: in any order.
    adjacency: how neighbouring data sets differ.
    """
    sides = {charge.of for charge in charges} - {"all"}
    if adjacency == "replace" or len(sides) < 2:
        return [tuple(charges)]
    return [tuple(charge for charge in charges if charge.of in ("all", side)) for side in ("voters", "held_out")]


@dataclass(frozen=True)
class Release:
    """A release before its noise is known.

    moves: entries that a record which is added or removed changes, by at most one each.
    share: of the budget, in proportion to those of the other releases.
    told: what the table of `dpsyn plan` says of it, by column.
    grid: under the record unit, what is released is counted in whole 1/grid; over 1, a record moves one vector of norm
        one at most. Under the user unit it is this grid too, where it is over 1, and else GRID.
    of: as in Charge.
    """

    name: str
    moves: int
    share: float
    told: Mapping[str, str] = field(default_factory=dict)
    grid: int = 1
    of: Bearers = "all"


def calibrated(settings: Settings, releases: Sequence[Release], sigma: float | None = None) -> Budget:
    """The budget of some releases: what one costs, moves / sigma^2, is in proportion to its share.

    settings: privacy settings, with a target epsilon or a noise multiplier.
    releases: in their order.
    sigma: the least, as calibrated when the run began; it is verified, not computed again. None: calibrate.
    """
    if not releases:
        return Budget((), 0.0, settings.delta or 0.0, settings.adjacency)
    by_user = settings.unit == "user"  # all entries of a user are one vector of norm one
    factors = [math.sqrt((1 if by_user else release.moves) / release.share) for release in releases]
    least = min(factors)

    def charges(sigma: float) -> tuple[Charge, ...]:
        return tuple(
            Charge(
                release.name,
                _rounded_up(sigma * (factor / least)),
                release.grid if release.grid > 1 else GRID if by_user else 1,
                1 if by_user else release.moves,
                release.of,
            )
            for release, factor in zip(releases, factors, strict=True)
        )

    if settings.noise == "none":
        return Budget(charges(0.0), math.inf, 0.0, settings.adjacency)
    assert settings.delta is not None
    if sigma is None and settings.noise_multiplier is not None:
        sigma = float(settings.noise_multiplier)
    if sigma is None:
        assert settings.epsilon is not None
        sigma = _calibrate(charges, settings.epsilon, settings.delta, settings.adjacency)
    target = settings.epsilon
    if target is None:
        target = epsilon_of(charges(sigma), settings.delta, settings.adjacency)
    return Budget(charges(sigma), target, settings.delta, settings.adjacency)


def with_evaluation(budget: Budget, settings: Settings, releases: Sequence[Release], epsilon: float) -> Budget:
    """The budget with releases that measure the finished data, which spend this epsilon at the same delta.

    budget: of what the data are made of.
    settings: the group `privacy`.
    releases: of the evaluation.
    epsilon: what they spend.
    """
    own = replace(settings, epsilon=epsilon, noise_multiplier=None, budget_split=None)
    charges = (*budget.charges, *calibrated(own, releases).charges)
    if settings.noise == "none":
        return replace(budget, charges=charges)
    delta = budget.delta or settings.delta or 0.0
    spent = epsilon_of(charges, delta, settings.adjacency)
    return Budget(charges, max(budget.epsilon, spent), delta, settings.adjacency)


def records_in_a_vote(charge: Charge, moves: int) -> float:
    """What one vote of a release stands for. Under the user unit a user with one row is spread over all entries that a
    record moves, by a vote of norm one.

    charge: of the release.
    moves: entries of the answer that a record moves.
    """
    return 1.0 if charge.grid == 1 else math.sqrt(moves)


def multiplier(settings: Settings) -> float:
    """About the noise, in votes, of a single release of one vote that spends the whole budget: by the closed form."""
    if settings.noise == "none" or settings.epsilon is None:
        return SMALLEST_SIGMA
    assert settings.delta is not None
    return _least_sigma(lambda sigma: (Charge("", sigma),), settings.epsilon, settings.delta, settings.adjacency)


def epsilon_of(charges: Sequence[Charge], delta: float, adjacency: Adjacency) -> float:
    """Epsilon of all charges together. Raises UserError where accountant and exact convolution disagree.

    charges: in any order.
    delta: of the statement.
    adjacency: how neighbouring data sets differ.
    """
    return max((_epsilon_of(each, delta, adjacency) for each in borne(charges, adjacency) if each), default=0.0)


def _epsilon_of(charges: Sequence[Charge], delta: float, adjacency: Adjacency) -> float:
    gaussians = tuple(sorted(composed_of(charges, adjacency).items()))
    epsilon = accounted(gaussians, delta)
    exact = _exact(gaussians, delta)
    if not exact * (1 - BELOW) - 1e-9 <= epsilon <= exact * (1 + ABOVE) + 1e-4:
        raise UserError(
            f"privacy: the accountant says epsilon {epsilon:.6g}, exact convolution {exact:.6g}: do not release."
        )
    return epsilon


def exact_epsilon(charges: Sequence[Charge], delta: float, adjacency: Adjacency) -> float:
    """Epsilon of all charges together, by exact convolution alone.

    charges: in any order.
    delta: of the statement.
    adjacency: how neighbouring data sets differ.
    """
    each = [tuple(sorted(composed_of(part, adjacency).items())) for part in borne(charges, adjacency) if part]
    return max((_exact(gaussians, delta) for gaussians in each), default=0.0)


def largest_hit_rates(charges: Sequence[Charge], adjacency: Adjacency, false_alarms: np.ndarray) -> np.ndarray:
    """What share of the units in the data any attacker finds at most, float64 [n], who takes these shares of those that
    are not in them for ones that are.

    charges: in any order.
    adjacency: how neighbouring data sets differ.
    false_alarms: float64 [n], between 0 and 1.
    """
    rates = [hit_rates(composed_of(part, adjacency), false_alarms) for part in borne(charges, adjacency)]
    return np.max(rates, axis=0)


@functools.lru_cache(maxsize=4096)
def _exact(gaussians: tuple[tuple[tuple[float, bool], int], ...], delta: float) -> float:
    return convolved(dict(gaussians), delta)


@functools.lru_cache(maxsize=4096)
def accounted(gaussians: tuple[tuple[tuple[float, bool], int], ...], delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    parts = [
        pld.from_discrete_gaussian_mechanism(deviation, use_connect_dots=True).self_compose(times)
        for (deviation, discrete), times in gaussians
        if discrete
    ]
    # continuous Gaussians compose to one, with no rounding of many small losses (measured: 0.4 % of epsilon for 90,000)
    if scale := math.sqrt(sum(times / deviation**2 for (deviation, discrete), times in gaussians if not discrete)):
        interval = 1e-4 if parts else min(1e-4, scale / 300)  # one for all that is composed
        parts.append(
            pld.from_gaussian_mechanism(1 / scale, value_discretization_interval=interval, use_connect_dots=True)
        )
    composed = functools.reduce(lambda one, other: one.compose(other), parts)
    epsilon = float(composed.get_epsilon_for_delta(delta))
    if not math.isfinite(epsilon):
        raise UserError(f"privacy: no finite epsilon at delta {delta}. Less noise was asked for than can be accounted.")
    return epsilon


def closed_form(charges: Sequence[Charge], delta: float, adjacency: Adjacency) -> float:
    """Epsilon of the continuous Gaussians with the same noise: exact for them, near for the discrete ones.

    charges: in any order.
    delta: of the statement.
    adjacency: how neighbouring data sets differ.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    mu = math.sqrt(sum(times / deviation**2 for (deviation, _), times in composed_of(charges, adjacency).items()))

    def log_delta(epsilon: float) -> float:
        first, second = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
        return float(first + math.log(-math.expm1(second - first))) if second < first else -math.inf

    if mu == 0 or log_delta(1e-12) <= math.log(delta):
        return 0.0
    upper = 1.0
    while log_delta(upper) > math.log(delta):
        upper *= 2
    return float(brentq(lambda e: log_delta(e) - math.log(delta), 1e-12, upper, xtol=1e-12, rtol=1e-12))


def format_epsilon(epsilon: float) -> str:
    """Rounded up to four digits after the point: what is shown is never less than what was spent."""
    if not math.isfinite(epsilon):
        return "inf"
    text = f"{math.ceil(epsilon * 1e4) / 1e4:.4f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def composed_of(charges: Sequence[Charge], adjacency: Adjacency) -> Counter[tuple[float, bool]]:
    """(standard deviation at sensitivity one, is it a discrete Gaussian) -> how often it is composed.

    charges: in any order.
    adjacency: how neighbouring data sets differ.
    """
    count: Counter[tuple[float, bool]] = Counter()
    for charge in charges:
        if charge.grid == 1 and charge.sigma > WIDE:
            count[math.sqrt(charge.sigma**2 - 4), False] += charge.moves * (2 if adjacency == "replace" else 1)
        elif charge.grid == 1:
            # a record moves `moves` entries by one each: as many one-entry mechanisms of sensitivity one
            count[charge.sigma, True] += charge.moves * (2 if adjacency == "replace" else 1)
        else:
            # the discrete Gaussian of standard deviation s is a randomised rounding of the continuous one with
            # sqrt(s^2 - 4); two non-negative vectors of norm one are at most sqrt(2) apart
            deviation = math.sqrt((charge.sigma * charge.grid) ** 2 - 4) / charge.grid
            count[deviation / (math.sqrt(2) if adjacency == "replace" else 1.0), False] += charge.moves
    return count


def _calibrate(
    charges: Callable[[float], tuple[Charge, ...]], epsilon: float, delta: float, adjacency: Adjacency
) -> float:
    """The least sigma, rounded up to four digits after the point, with epsilon(sigma) <= epsilon."""
    high = _rounded_up(_least_sigma(charges, epsilon, delta, adjacency))

    def by_convolution(sigma: float) -> float:
        return exact_epsilon(charges(sigma), delta, adjacency)

    def by_accountant(sigma: float) -> float:
        return epsilon_of(charges(sigma), delta, adjacency)

    # The accountant has the last word. Exact convolution takes a hundredth of its time: where they agree to more digits
    # than sigma has, the accountant would take the same steps.
    sigma = _refined(by_convolution, high, epsilon)
    spent = by_accountant(sigma)
    if spent <= epsilon and math.isclose(spent, by_convolution(sigma), rel_tol=1e-9):
        return sigma
    return _refined(by_accountant, high, epsilon)


def _refined(spent_of: Callable[[float], float], sigma: float, epsilon: float) -> float:
    """The least sigma near this one. Epsilon falls about as 1/sigma, so a few steps come close; at small sigma the
    discrete Gaussian is better than the closed form, and less noise will do."""
    best = math.inf
    for _ in range(8):
        spent = spent_of(sigma)
        best = sigma if spent <= epsilon else best
        sigma = max(_rounded_up(sigma * spent / epsilon + (1e-4 if spent > epsilon else 0)), SMALLEST_SIGMA)
        if sigma >= best:
            return best
    while spent_of(sigma) > epsilon:
        sigma = _rounded_up(sigma * 1.001)
    return min(sigma, best)


def _least_sigma(
    charges: Callable[[float], tuple[Charge, ...]], epsilon: float, delta: float, adjacency: Adjacency
) -> float:
    low, high = SMALLEST_SIGMA, SMALLEST_SIGMA
    while closed_form(charges(high), delta, adjacency) > epsilon:
        low, high = high, high * 2
        if high > LARGEST_SIGMA:
            least = closed_form(charges(LARGEST_SIGMA), delta, adjacency)
            raise invalid("privacy.epsilon", f"{epsilon:g}", f"at least {least:.2g} at this delta")
    while high - low > 1e-5 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if closed_form(charges(middle), delta, adjacency) > epsilon else (low, middle)
    return high


def _rounded_up(sigma: float) -> float:
    return math.ceil(round(sigma * 1e4, 6)) / 1e4
