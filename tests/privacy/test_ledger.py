import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import forked, vote_budget, warm

from dpsyn import files
from dpsyn.errors import OutOfSpace, UserError
from dpsyn.privacy import ledger as ledger_module
from dpsyn.privacy.budget import Settings
from dpsyn.privacy.ledger import Ledger, read_receipt
from dpsyn.privacy.votes import Votes

SETTINGS = {"epsilon": 1.0, "delta": 1e-5}
EXACT = np.array([41_000, 0, 7, 90_000])


def make(root: Path, releases=3, run="run", **settings):
    settings = Settings(**{**SETTINGS, **settings})
    votes = root / "release" / "votes"
    votes.mkdir(parents=True, exist_ok=True)
    files.private_folder(root / "private")
    return Ledger(root / "private", votes, run, settings, vote_budget(settings, releases))


@dataclass(frozen=True)
class Asked:
    """A query by its name; the private records here answer any with the same counts."""

    about: str
    moves: int = 1
    additive: bool = True
    signed: bool = False


@dataclass(frozen=True)
class Records:
    moves: int = 1
    grid: int = 1

    def tallied(self, query):
        return Votes(EXACT.copy(), self.moves, self.grid)


class Forbidden:
    def tallied(self, query):
        raise AssertionError("the private data was asked again")


vote, forbidden = Records(), Forbidden()


def test_a_release_is_noisy_written_down_and_never_drawn_again(tmp_path):
    ledger = make(tmp_path)
    first = ledger.release(1, Asked("p0"), vote)
    assert (first.votes != EXACT).any()
    assert np.abs(first.votes - EXACT).max() < 12 * ledger.budget.sigma
    again = ledger.release(1, Asked("p0"), forbidden)
    assert (again.votes == first.votes).all()
    assert (make(tmp_path).release(1, Asked("p0"), forbidden).votes == first.votes).all()
    assert ledger.recover() == ()


@pytest.mark.parametrize("more", [Records(moves=2), Records(grid=1024), Records(5, 1024)])
def test_a_query_that_moves_more_than_it_is_charged_for_is_refused_and_nothing_is_written(tmp_path, more):
    ledger = make(tmp_path)
    with pytest.raises(RuntimeError, match="moves more than it is charged for; nothing was released"):
        ledger.release(1, Asked("p0"), more)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    by_user = make(tmp_path / "user", unit="user")
    with pytest.raises(RuntimeError, match="moves more"):
        by_user.release(1, Asked("p0"), vote)
    by_user.release(1, Asked("p0"), Records(1, 1024))


def test_a_query_that_may_move_too_much_reads_nothing(tmp_path):
    """More entries than are charged for; or an entry by more than one, under the user unit and replace-one."""
    with pytest.raises(RuntimeError, match="more than it is charged for; nothing was read"):
        make(tmp_path).release(1, Asked("p0", moves=2), forbidden)
    for other in ({"unit": "user"}, {"adjacency": "replace"}):
        with pytest.raises(RuntimeError, match="more than it is charged for; nothing was read"):
            make(tmp_path / str(other), **other).release(1, Asked("p0", additive=False), forbidden)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_over_budget_is_refused_before_voting(tmp_path):
    with pytest.raises(UserError, match="release 4 was not declared"):
        make(tmp_path).release(4, Asked("p3"), forbidden)
    assert not list((tmp_path / "private").rglob("0*"))


def test_another_sigma_than_calibrated_is_refused(tmp_path):
    make(tmp_path).release(1, Asked("p0"), vote)
    with pytest.raises(UserError, match="calibrated"):
        make(tmp_path, epsilon=2.0).recover()


def test_a_receipt_of_another_run_or_population_is_refused(tmp_path):
    make(tmp_path).release(1, Asked("p0"), vote)
    with pytest.raises(UserError, match="another run"):
        make(tmp_path, run="other").recover()
    with pytest.raises(UserError, match="another population"):
        make(tmp_path).release(1, Asked("p1"), forbidden)


def test_a_deleted_receipt_is_a_lost_draw_not_a_fresh_start(tmp_path):
    ledger = make(tmp_path)
    ledger.release(1, Asked("p0"), vote)
    (tmp_path / "release/votes/001.parquet").unlink()
    with pytest.raises(UserError, match=r"epsilon becomes 1\.1\d* instead of 1\.0.*privacy\.accept_lost_draws=1"):
        ledger.recover()
    lost = make(tmp_path, accept_lost_draws=1).recover()
    assert len(lost) == 1
    assert lost[0].sigma == ledger.budget.sigma


def test_a_deleted_intent_is_refused(tmp_path):
    ledger = make(tmp_path)
    ledger.release(1, Asked("p0"), vote)
    (tmp_path / "private/intents/001-1").unlink()
    with pytest.raises(UserError, match="no intent"):
        ledger.recover()


def test_a_damaged_receipt_is_named_in_one_line(tmp_path):
    ledger = make(tmp_path)
    ledger.release(1, Asked("p0"), vote)
    path = tmp_path / "release/votes/001.parquet"
    content = bytearray(path.read_bytes())
    position = content.find(np.int64(read_receipt(path).votes[0]).tobytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="wrong checksum"):
        ledger.recover()
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(UserError, match="wrong checksum"):
        read_receipt(path)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_full_disk_loses_nothing_and_what_was_drawn_is_charged(tmp_path, monkeypatch, number):
    """The number-th write, fsync or rename of a release fails; then there is room again."""
    ledger = make(tmp_path)
    calls, drawn = 0, 0

    def failing(real):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **keywords)

        return call

    def counted(*arguments):
        nonlocal drawn
        drawn += 1
        return real_noise(*arguments)

    real_noise = ledger_module.discrete_gaussian
    monkeypatch.setattr(ledger_module, "discrete_gaussian", counted)
    with monkeypatch.context() as broken:
        for name in ("fsync", "open", "replace"):
            broken.setattr(os, name, failing(getattr(os, name)))
        try:
            ledger.release(1, Asked("p0"), vote)
            finished = True
        except (OutOfSpace, OSError) as error:
            assert isinstance(error, OutOfSpace) or error.errno == errno.ENOSPC
            finished = False
    accepting = make(tmp_path, accept_lost_draws=1)
    lost = accepting.recover()
    receipts = len(list((tmp_path / "release/votes").glob("*.parquet")))
    assert len(lost) + receipts >= drawn, "a draw was not charged"
    assert receipts <= 1
    assert not finished or receipts == 1
    accepting.release(1, Asked("p0"), vote)
    assert len(list((tmp_path / "release/votes").glob("*.parquet"))) == 1
    assert not list((tmp_path / "private/pending").glob("*"))


@pytest.fixture(scope="module", autouse=True)
def server():
    warm("warmed", "test_ledger")


def killed(root, at, after, said):
    """Draws a release, until it is killed before or after its at-th call of the system."""
    ledger, real_noise, count = make(root), ledger_module.discrete_gaussian, 0

    def step(real):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **keywords)
            if count == at and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    def noise(*arguments):
        result = real_noise(*arguments)
        (root / "drawn").write_bytes(result.tobytes())
        return result

    ledger_module.discrete_gaussian = noise
    real_noise(np.zeros(2, np.int64), 1.0)  # everything is imported by now
    for name in ("fsync", "open", "replace"):
        setattr(os, name, step(getattr(os, name)))
    ledger.release(1, Asked("p0"), vote)
    said.send("not killed")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 10))
def test_killed_at_any_step_there_are_never_two_receipts_or_an_uncharged_draw(tmp_path, at, after):
    assert forked(killed, tmp_path, at, after) is None
    drawn = tmp_path / "drawn"
    waiting = make(tmp_path)
    try:
        lost = waiting.recover()
    except UserError as error:
        assert "privacy.accept_lost_draws=1" in str(error)
        lost = make(tmp_path, accept_lost_draws=1).recover()
    receipts = list((tmp_path / "release/votes").glob("*.parquet"))
    assert len(receipts) + len(lost) <= 1
    assert len(receipts) + len(lost) == 1 or not drawn.exists(), "a draw was not charged"
    if receipts:
        kept = waiting.release(1, Asked("p0"), forbidden)
        assert (kept.votes == np.frombuffer(drawn.read_bytes(), np.int64)).all()
    else:
        make(tmp_path, accept_lost_draws=1).release(1, Asked("p0"), vote)
    assert len(list((tmp_path / "release/votes").glob("*.parquet"))) == 1


def test_the_noise_does_not_come_from_the_seed(tmp_path):
    first = make(tmp_path / "a").release(1, Asked("p0"), vote).votes
    assert (make(tmp_path / "b").release(1, Asked("p0"), vote).votes != first).any()


def test_insecure_noise_is_the_same_for_one_seed(tmp_path):
    one = make(tmp_path / "a", noise="insecure_seeded").release(1, Asked("p0"), vote).votes
    two = make(tmp_path / "b", noise="insecure_seeded").release(1, Asked("p0"), vote).votes
    assert (one == two).all()
    assert (one != EXACT).any()


def test_private_files_are_for_their_owner_alone(tmp_path):
    make(tmp_path).release(1, Asked("p0"), vote)
    for path in (tmp_path / "private").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_exact_counts_are_found_in_no_file(tmp_path):
    released = make(tmp_path, epsilon=0.05).release(1, Asked("p0"), vote).votes
    exact = [value for value in (41_000, 90_000) if value not in released]  # the noise may be 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for value in exact:
                assert str(value).encode() not in content and np.int64(value).tobytes() not in content, path
