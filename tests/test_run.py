import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import TINY, at_moment, digits, files, forked, job, own_data, parquet, run, same_noise, warm

from dpsyn import cli
from dpsyn.errors import UserError
from dpsyn.privacy import ledger
from dpsyn.runs import directory as run_module
from dpsyn.runs.directory import RunDirectory, open_run
from dpsyn.runs.verification import verified


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done. Copy it before you change it."""
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        run(home / "run")
    return home / "run"


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of it, under the run_dir it was made with as far as its settings go."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(finished.parent / "cache"))
    return tmp_path / "run"


def refusal(root, *overrides):
    with pytest.raises(UserError) as caught:
        run(root, *overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_run_leaves_what_the_design_names(finished):
    names = set(files(finished))
    for name in (
        "release/privacy.json", "release/config.yaml", "release/votes/001.parquet", "release/votes/002.parquet",
        "release/iterations/000/samples.parquet", "release/iterations/002/samples.parquet", "release/synthetic.parquet",
        "release/metrics.jsonl", "release/samples.png", "release/report.html", "release/README.md",
        "private/config.yaml", "private/log", "private/refused.jsonl",
        "private/intents/001-1",
    ):  # fmt: skip
        assert name in names
    said = json.loads((finished / "release/privacy.json").read_text())
    assert said["status"] == "DP"
    assert said["epsilon"] <= 4
    assert [charge["receipt_sha256"] is not None for charge in said["charges"]] == [True, True]
    assert not [name for name in names if name.endswith(".part")]
    for path in [finished / "private", *(finished / "private").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0


def test_a_finished_run_started_again_asks_nothing_and_changes_nothing(copied, monkeypatch):
    before = files(copied / "release")
    monkeypatch.setattr("dpsyn.voters.open_electorate", None)
    run(copied)
    assert files(copied / "release") == before


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("privacy.epsilon=3", "privacy.epsilon was 4, now 3"),
        ("privacy.delta=1e-5", "privacy.delta was 0.0001, now 1e-05"),
        ("privacy.adjacency=replace", "privacy.adjacency was add_remove, now replace"),
        ("schedule.size=30", "schedule.size was 20, now 30"),
        ("data.split=all", "data.split was train, now all"),
        ("api.warp=1", "api.warp was"),
        ("embedding.blur=2", "embedding.blur was 0.5, now 2"),
        ("seed=1", "seed was 0, now 1"),
    ],
)
def test_other_science_settings_refuse_with_the_keys_that_differ(copied, override, key):
    before = files(copied)
    text = refusal(copied, override)
    assert key in text
    assert text.count(" was ") == 1
    assert {k: v for k, v in files(copied).items() if k != "private/log"} == {
        k: v for k, v in before.items() if k != "private/log"
    }


@pytest.mark.parametrize("override", ["runtime.batch_size=3", "runtime.device=cpu", "privacy.accept_lost_draws=2"])
def test_other_runtime_settings_resume(copied, override):
    run(copied, override)


def test_a_second_process_is_refused(copied):
    with RunDirectory(copied).locked():
        assert "another process is working there" in refusal(copied)


def test_changed_data_are_refused_and_nothing_is_said_of_them(tmp_path):
    data = parquet(tmp_path / "d.parquet", digits(90))
    run(tmp_path / "run", *own_data(data))
    parquet(data, digits(91))
    text = refusal(tmp_path / "run", *own_data(data))
    assert text == f"run_dir={tmp_path / 'run'}: data: the files changed since this run began. Name another run_dir."


def test_damage_is_named_in_one_line(copied):
    checkpoint = copied / "release/iterations/001/samples.parquet"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-9] + b"x" + content[-8:])
    assert "this checkpoint is damaged (wrong checksum)" in refusal(copied)
    checkpoint.write_bytes(content)
    receipt = copied / "release/votes/002.parquet"
    receipt.write_bytes(receipt.read_bytes()[:-1])
    assert "this receipt is damaged (wrong checksum)" in refusal(copied)


DEEP = b"{" * 9999


@pytest.mark.parametrize(
    ("name", "content", "given"),
    [
        *[("private/config.yaml", content, ["run"]) for content in (b"", b"a: [1", b"[1]", b"\xff", DEEP)],
        *[("private/evaluation.json", content, ["run"]) for content in (b"{}", DEEP)],
        *[("cost.json", content, ["report", "--private"]) for content in (b"", b"[1]")],
        ("private/adjusted.json", b"[1]", ["report", "--private"]),
        *[("private/metrics.jsonl", content, ["report", "--private"]) for content in (b"{", b"\xff")],
        *[("release/config.yaml", content, ["evaluate", "metric=light_classifier"]) for content in (b"", b"a: [1")],
        *[("release/privacy.json", content, ["verify"]) for content in (b"", b"[1]", DEEP)],
    ],
)
def test_a_damaged_file_of_a_run_is_named_in_one_line(name, content, given, copied, capsys, monkeypatch):
    monkeypatch.setattr("dpsyn.privacy.account.wrote", lambda _: True)  # its settings are those of the run it copies
    path = copied / name
    path.write_bytes(content)
    if given == ["run"]:
        line = refusal(copied)
    else:
        verb, *rest = given
        assert cli.main([verb, str(copied), *rest]) == 2
        *stages, line = capsys.readouterr().err.splitlines()
        assert all(stage.endswith(" ...") for stage in stages)
    assert f"{path}: this " in line and "\n" not in line
    assert path.read_bytes() == content


def test_names_that_no_run_gives_are_passed_over_or_named(copied, capsys):
    shutil.copytree(copied / "release/iterations/001", copied / "release/iterations/001 (copy)")
    shutil.copy(copied / "release/votes/001.parquet", copied / "release/votes/001 (1).parquet")
    assert cli.main(["expand", str(copied), "--rows", "70"]) == 0, capsys.readouterr().err
    (copied / "release/votes/001 (1).parquet").unlink()
    (copied / "private/intents/001 copy-1").write_text("")
    assert "001 copy-1: this is no intent that a run wrote" in refusal(copied)


def test_a_checkpoint_between_two_others_that_is_gone_is_named(copied):
    shutil.rmtree(copied / "release/iterations/001")
    assert "iterations/001/samples.parquet: this checkpoint is missing" in refusal(copied)


def test_numbers_are_added_to_lines_that_are_damaged(copied):
    path = copied / "release/metrics.jsonl"
    path.write_bytes(b"\xff{\n")
    run(copied)
    assert b"effective" in path.read_bytes()


def test_a_deleted_receipt_or_intent_is_never_a_fresh_start(copied):
    kept = (copied / "release/votes/002.parquet").read_bytes()
    (copied / "release/votes/002.parquet").unlink()
    assert "privacy.accept_lost_draws=1" in refusal(copied)
    assert "name another run_dir" in refusal(copied, "privacy.accept_lost_draws=1")
    (copied / "release/votes/002.parquet").write_bytes(kept)
    (copied / "private/intents/002-1").unlink()
    assert "no intent" in refusal(copied)


def test_a_smaller_sigma_written_into_the_config_is_refused(copied):
    path = copied / "private/config.yaml"
    known = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**known, "sigma": known["sigma"] / 2}))
    assert "over the 4 that is stated" in refusal(copied)


def test_a_run_whose_private_part_is_gone_does_not_go_on_but_expands(copied, capsys, monkeypatch):
    before = json.loads((copied / "release/privacy.json").read_text())
    same = pq_images(copied)
    shutil.rmtree(copied / "private")
    assert "private/config.yaml is gone" in refusal(copied)
    assert not (copied / "private").exists()

    def gone(*_):
        raise AssertionError("the data are gone too")

    monkeypatch.setattr("dpsyn.data.digits.Digits.batches", gone)
    assert cli.main(["expand", str(copied), "--rows", "90"]) == 0
    after = json.loads((copied / "release/privacy.json").read_text())
    of_files = ("files", "sha256")  # checksums: the rows are others
    assert {key: after[key] for key in after if key not in of_files} == {
        key: before[key] for key in before if key not in of_files
    }
    assert after["files"]["votes/001.parquet"] == before["files"]["votes/001.parquet"]
    more = pq_images(copied)
    assert len(more) == 90
    assert more[: len(same)] == same


def pq_images(root):
    import pyarrow.parquet as pq

    return [row["bytes"] for row in pq.read_table(root / "release/synthetic.parquet")["image"].to_pylist()]


def test_the_batch_size_changes_no_byte(tmp_path, monkeypatch):
    noisy = same_noise(monkeypatch)
    run(tmp_path / "a", "data.id=null")
    same_noise(monkeypatch, noisy)
    run(tmp_path / "b", "data.id=null", "runtime.batch_size=7")
    one, two = files(tmp_path / "a/release"), files(tmp_path / "b/release")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name] and name != "privacy.json"] == []


def test_without_fit_noise_nothing_is_written_to_release(tmp_path):
    for name, overrides in (("none", ["privacy=none"]), ("seeded", ["privacy.noise=insecure_seeded"])):
        run(tmp_path / name, *overrides)
        assert not (tmp_path / name / "release").exists()
        said = json.loads((tmp_path / name / "not_private/privacy.json").read_text())
        assert said["status"] in ("NOT PRIVATE", "INSECURE NOISE")
        assert said["epsilon"] is None
    once = files(tmp_path / "seeded/not_private")["synthetic.parquet"]
    run(tmp_path / "again", "privacy.noise=insecure_seeded")
    assert files(tmp_path / "again/not_private")["synthetic.parquet"] == once


def test_runs_on_one_data_set_add_up(tmp_path, capsys):
    for name in "ab":
        run(tmp_path / name)
    said = json.loads((tmp_path / "b/release/privacy.json").read_text())
    assert said["joint"]["runs"] == 2
    assert said["joint"]["epsilon"] > said["epsilon"]
    assert cli.main(["budget"]) == 0
    assert "all 2 together" in capsys.readouterr().out


def test_verify_agrees_with_an_honest_run_and_finds_what_was_altered(copied):
    assert verified(open_run(copied)).agrees
    path = copied / "release/privacy.json"
    honest = path.read_text()
    path.write_text(json.dumps({**json.loads(honest), "epsilon": 1.0}))
    assert "below 3.9998, that of the charges" in "".join(verified(open_run(copied)).lines)
    path.write_text(honest)
    receipt = copied / "release/votes/001.parquet"
    kept = receipt.read_bytes()
    receipt.unlink()
    assert "is gone" in "".join(verified(open_run(copied)).lines)
    receipt.write_bytes(kept[:-1] + b"?")
    assert "damaged" in "".join(verified(open_run(copied)).lines)
    receipt.write_bytes(kept)
    shutil.copy(copied / "release/iterations/002/samples.parquet", copied / "release/iterations/001/samples.parquet")
    assert "not the population that was voted on" in "".join(verified(open_run(copied)).lines)


@pytest.fixture(scope="module", autouse=True)
def server():
    warm("warmed")


MOMENTS = {  # the call before which a run is killed, by its name and the path that it is for
    "settings": ("replace", "private/config.yaml"),
    "embedded records": ("replace", "complete.json"),
    "first population": ("replace", "iterations/000"),
    "first population, its folder": ("fsync", "release/iterations"),
    "account": ("fsync", "account.jsonl"),
    "promise": ("replace", "release/privacy.json"),
    "first release, room for it": ("fsync", "pending/001.parquet"),
    "first release, intent": ("fsync", "intents/001-1"),
    "first release, intent's folder": ("fsync", "private/intents"),
    "first release, noise drawn": ("fsync", "pending/001.parquet", 2),
    "first release, published": ("replace", "votes/001.parquet"),
    "first release, its folder": ("fsync", "release/votes"),
    "second population": ("replace", "iterations/001"),
    "metrics": ("replace", "release/metrics.jsonl"),
    "second release, intent": ("fsync", "intents/002-1"),
    "second release, published": ("replace", "votes/002.parquet"),
    "last population": ("replace", "iterations/002"),
    "synthetic data": ("replace", "synthetic.parquet"),
    "pictures": ("replace", "samples.png"),
    "card": ("replace", "README.md"),
    "page": ("replace", "report.html"),
    "end": ("replace", "release/privacy.json", 2),
}
FULL = MOMENTS | {
    "the directory itself": ("mkdir", "/run"),
    "folder of the votes": ("mkdir", "release/votes"),
}


@pytest.mark.parametrize("moment", FULL.values(), ids=FULL)
def test_a_full_disk_stops_in_one_line_and_the_same_command_finishes(tmp_path, monkeypatch, moment):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        for name in ("fsync", "replace", "mkdir"):
            broken.setattr(os, name, getattr(os, name))  # as they are, to be put back
        reached = at_moment(moment, full)
        with pytest.raises(UserError, match="disk is full"):
            run(tmp_path / "run")
    assert reached == [moment]
    assert not list(tmp_path.rglob("*.part"))
    try:
        run(tmp_path / "run")
    except UserError as error:
        assert "privacy.accept_lost_draws=1" in str(error)
        run(tmp_path / "run", "privacy.accept_lost_draws=1")
    assert len(list((tmp_path / "run/release/votes").iterdir())) == 2
    assert verified(open_run(tmp_path / "run")).agrees


def forked_run(root, noisy, overrides, at, limit, said):
    """A run that is killed at a moment, or that has no room for files over `limit` bytes."""
    os.environ.update(XDG_STATE_HOME=str(root.parent / "state"), XDG_CACHE_HOME=str(root.parent / "cache"))
    ledger.discrete_gaussian = lambda exact, scale: noisy[len(os.listdir(root / "release/votes"))]
    run_module.secrets.token_hex = lambda n: "0" * 2 * n
    if at:
        at_moment(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run(root, "data.id=null", *overrides)
        text = ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said.send(text)


def attempt(root, noisy, *overrides, at=None, limit=0):
    """What the run was refused with, '' when it finished, None when it was killed."""
    return forked(forked_run, root, noisy, overrides, at, limit)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The noisy votes and the released files of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(root.parent / "state"))
        patched.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
        noisy = same_noise(patched)
        run(root, "data.id=null")
    return noisy, files(root / "release")


@pytest.mark.parametrize("at", MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_goes_on_to_the_same_data(tmp_path, whole, at):
    noisy, uninterrupted = whole
    root = tmp_path / "run"
    assert attempt(root, noisy, at=at) is None
    kept = files(root / "release/votes") if (root / "release/votes").exists() else {}
    again = attempt(root, noisy)
    lost = "privacy.accept_lost_draws=1" in again
    if lost:
        again = attempt(root, noisy, "privacy.accept_lost_draws=1")
    assert again == ""
    released = files(root / "release")
    assert {name: released[f"votes/{name}"] for name in kept} == kept
    different = {
        name for name in released.keys() | uninterrupted.keys() if released.get(name) != uninterrupted.get(name)
    }
    told = {"privacy.json", "README.md", "report.html", "croissant.json", "deployment.yaml"}
    assert different == (told if lost else set())
    said = json.loads(released["privacy.json"])
    assert said["lost_draws"] == lost
    assert (said["epsilon"] > 4) == lost
    assert verified(open_run(root)).agrees
    assert {path.stat().st_mtime for path in (root / "release").rglob("*")} == {315532800.0}


@pytest.mark.parametrize("limit", [40, 1000, 2000, 6000])
def test_writes_that_find_no_room_leave_nothing_half_written_and_the_same_command_finishes(tmp_path, whole, limit):
    noisy, uninterrupted = whole
    root = tmp_path / "run"
    refused = attempt(root, noisy, limit=limit)
    assert refused.startswith("OutOfSpace: ")
    assert "the disk is full" in refused
    assert "\n" not in refused
    assert not list(tmp_path.rglob("*.part"))
    again = attempt(root, noisy)
    if lost := "privacy.accept_lost_draws=1" in again:
        again = attempt(root, noisy, "privacy.accept_lost_draws=1")
    assert again == ""
    released = files(root / "release")
    different = {
        name for name in released.keys() | uninterrupted.keys() if released.get(name) != uninterrupted.get(name)
    }
    told = {"privacy.json", "README.md", "report.html", "croissant.json", "deployment.yaml"}
    assert different == (told if lost else set())


def test_a_line_that_a_crash_cut_off_takes_no_other_run_off_the_account(tmp_path):
    run(tmp_path / "a")
    (path,) = (Path(os.environ["XDG_STATE_HOME"]) / "dpsyn").glob("*.jsonl")
    path.write_text(path.read_text() + path.read_text()[:99])
    run(tmp_path / "b")
    assert json.loads((tmp_path / "b/release/privacy.json").read_text())["joint"]["runs"] == 2


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dpsyn.schedule.evolution.begin", interrupted)
        assert cli.main(["run", *TINY]) == 130
    assert "goes on" in capsys.readouterr().err
    assert cli.main(["run", *TINY]) == 0


def test_noisy_label_shares_follow_the_data_and_are_drawn_once(tmp_path):
    rows = [row for row in digits(1700) if row["label"] in "12"] + digits(20)  # 340 of two labels, 16 of the others
    wanted = [*own_data(parquet(tmp_path / "d.parquet", rows)), "label_shares=noisy", "privacy.epsilon=9"]
    run(tmp_path / "run", *wanted, "expand.rows=null")
    here = open_run(tmp_path / "run")
    labels = np.bincount(here.load(2).labels, minlength=10)
    assert labels[1] > 3 and labels[2] > 3 and labels[[0, *range(3, 10)]].max() <= 3
    assert [charge["name"] for charge in json.loads((here.release / "privacy.json").read_text())["charges"]] == [
        "votes 1",
        "votes 2",
        "label shares",
    ]
    assert verified(here).agrees
    shutil.rmtree(here.release / "iterations/002")
    kept = files(here.votes)
    run(tmp_path / "run", *wanted, "expand.rows=null")
    assert files(here.votes) == kept
    assert verified(here).agrees


def test_rows_that_cannot_vote_stop_the_run_before_anything_is_released(tmp_path):
    rows = [*digits(60), {"image": b"no image", "label": "1", "user": "x"}]
    data = parquet(tmp_path / "d.parquet", rows)
    text = refusal(tmp_path / "run", *own_data(data))
    assert "column 'image': not a readable image" in text
    assert "60" not in text.replace(str(tmp_path), "")
    assert not list((tmp_path / "run").rglob("votes/*"))
    run(tmp_path / "run2", *own_data(data, "data.on_error=skip", "data.max_refused=0.1"))
    assert json.loads((tmp_path / "run2/private/refused.jsonl").read_text())["row"] == 60


def test_a_job_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    for overrides, message in (
        (["schedule.size=9"], "schedule.size=9: expected enough for every one of the 10 labels"),
        (["privacy.unit=user"], "privacy.unit=user: expected a column of user ids"),
        (["data=mnist", f"data.path={tmp_path}/none.parquet"], "data.path="),
    ):
        assert refusal(tmp_path / "run", *overrides).startswith(message)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"schedule\.releases=0"):
        job(tmp_path / "run", "schedule.releases=0")


def test_what_a_library_says_of_a_private_row_stays_private(tmp_path, monkeypatch):
    def failing(self, samples):
        raise ValueError("cannot embed the secret row")

    monkeypatch.setattr("dpsyn.embedding.pixels.Pixels.__call__", failing)
    text = refusal(tmp_path / "run", "data.id=null", "embedding.blur=0.123")
    assert "secret" not in text
    assert "(ValueError)" in text
    assert "cannot embed the secret row" in (tmp_path / "run/private/log").read_text()


def test_what_a_library_says_of_a_private_row_stays_private_on_the_private_page_too(copied, monkeypatch, capsys):
    def failing(*_):
        raise ValueError("cannot compare the secret row")

    monkeypatch.setattr("dpsyn.privacy.account.wrote", lambda _: True)  # its settings are those of the run it copies
    monkeypatch.setattr("dpsyn.evaluating.against", failing)
    assert cli.main(["report", str(copied), "--private"]) == 2
    assert "secret" not in (said := "".join(capsys.readouterr())) and "(ValueError)" in said
    assert "cannot compare the secret row" in (copied / "private/log").read_text()


def test_images_of_different_channels_are_one_clear_line_and_spend_nothing(tmp_path):
    data = parquet(tmp_path / "d.parquet", digits(60))
    text = refusal(tmp_path / "run", *own_data(data, "data.mode=RGB"))
    assert "set embedding.size, or data.size, data.mode, api.image_size alike" in text
    assert not list((tmp_path / "run/private").glob("intents/*"))
