import os
import signal
import time

import numpy as np
import pytest
from harness import files, job, run

from dpsyn.errors import UserError
from dpsyn.population import take
from dpsyn.workers import dispatching

TWO = "runtime.devices=[cpu,cpu]"


def test_two_processes_make_the_same_samples_as_one(tmp_path):
    made = job(tmp_path)
    labels, seeds = [{"digit": str(i % 10)} for i in range(50)], np.arange(50, dtype=np.uint64)
    batches = [lambda at=at: (labels[at], seeds[at]) for at in (slice(0, 30), slice(30, 31), slice(31, 50))]
    alone = made.api.generate(labels, seeds)
    with dispatching(made.api, made.embed, ["cpu", "cpu"]) as spread:
        parts = list(spread("generate", batches))
        assert [len(part) for part in parts] == [30, 1, 19]
        np.testing.assert_array_equal(np.concatenate([part.content for part in parts]), alone.content)
        (vectors,) = spread("embed", [lambda: (take(alone, np.arange(7)),)])
        np.testing.assert_array_equal(vectors, made.embed(take(alone, np.arange(7))))


def test_a_run_on_two_devices_goes_on_and_ends_like_one_on_one(tmp_path):
    run(tmp_path / "run", "privacy.noise=insecure_seeded", TWO)
    first = files(tmp_path / "run" / "not_private")
    run(tmp_path / "other", "privacy.noise=insecure_seeded")
    for name, content in files(tmp_path / "other" / "not_private").items():
        if name.startswith(("iterations", "synthetic", "samples")):
            assert content == first[name], name


def test_an_error_that_a_user_can_fix_comes_back_whole(tmp_path):
    made = job(tmp_path, "api.texts=['{nothing}']")
    with (
        dispatching(made.api, made.embed, ["cpu"]) as spread,
        pytest.raises(UserError, match=r"api.texts=\{nothing\}: expected a template"),
    ):
        list(spread("generate", [lambda: ([{"digit": "1"}], np.zeros(1, np.uint64))]))


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_a_process_that_dies_is_one_clear_line(tmp_path):
    made = job(tmp_path)
    with (
        dispatching(made.api, killed, ["cpu"]) as spread,
        pytest.raises(UserError, match="a process ended"),
    ):
        list(spread("embed", [lambda: (None,)]))
