"""Folders that hold private data are their owner's alone, and what is written survives a power cut."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import run

from dpsyn import compose
from dpsyn.build import build, constructors
from dpsyn.errors import UserError
from dpsyn.files import folder, private_folder, write
from dpsyn.publish import NOT_PUBLISHED, published


def test_a_private_folder_is_for_its_owner_alone_and_is_tightened_where_others_could_look_in(tmp_path):
    assert private_folder(tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_a_link_in_the_place_of_a_private_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "private").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="expected a folder and no link"):
        private_folder(tmp_path / "private")


def test_a_private_folder_that_others_can_write_in_is_refused(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private").chmod(0o777)
    with pytest.raises(UserError, match="no other user can write in"):
        private_folder(tmp_path / "private")


def test_a_private_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    private_folder(tmp_path / "private")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(tmp_path / "private")


@pytest.mark.parametrize("place", ["private", "cache", "state"])
def test_a_run_follows_no_link_to_where_its_private_files_would_be(tmp_path, own_state, place):
    (tmp_path / "elsewhere").mkdir()
    where = {
        "private": tmp_path / "run/private",
        "cache": own_state / "cache/dpsyn",
        "state": own_state / "state/dpsyn",
    }
    where[place].parent.mkdir(parents=True)
    where[place].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no link"):
        run(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not list((tmp_path / "run").rglob("votes/*"))


def test_every_new_folder_is_synced_into_the_one_above_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("dpsyn.files.sync_folder", lambda path: synced.append(Path(path)))
    folder(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


def test_what_is_not_private_is_for_its_owner_alone_too(tmp_path):
    run(tmp_path / "run", "privacy.noise=insecure_seeded")
    for path in [tmp_path / "run/not_private", *(tmp_path / "run/not_private").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_released_keeps_the_users_own_umask(tmp_path):
    before = os.umask(0o027)
    try:
        run(tmp_path / "run")
    finally:
        assert os.umask(before) == 0o027
    assert (tmp_path / "run/release/synthetic.parquet").stat().st_mode & 0o777 == 0o640


def test_a_local_path_of_one_slash_does_not_pass_for_a_name_on_the_hub(in_tmp):
    Path("clients/acme").mkdir(parents=True)
    Path("weights").mkdir()
    own = constructors()
    for target, key in (("dpsyn.api.local_llm.LocalLLM", "path"), ("dpsyn.embedding.sentence.Sentence", "model")):
        for value in ("clients/acme", "weights", "weights/"):
            assert published({"_target_": target, key: value}, own)[key] == NOT_PUBLISHED
        assert published({"_target_": target, key: "owner/name"}, own)[key] == "owner/name"


def test_public_metrics_and_the_expansion_are_listed_as_assumed_public(in_tmp):
    given = ["+experiment=smoke", "expand.rows=700", "metric=frechet", "metric.parts.frechet.public=true"]
    given += ["held_out={_target_: dpsyn.data.digits.Digits, split: test, id: null, records: null, on_error: refuse}"]
    public = build(compose.settings([*given[:2], *given[2:4], "+" + given[4]])).public
    assert public["expand"]["rows"] == 700
    assert public["metric"]["parts"]["frechet"]["data"]["split"] == "test"
    private = build(compose.settings([*given[:3], "+" + given[4]])).public
    assert private["metric"]["parts"] == {}


def test_a_file_of_a_cache_that_many_write_at_once_is_whole_and_fails_none(tmp_path):
    contents = [bytes([at]) * 100_000 for at in range(8)]
    for round in range(10):
        path = tmp_path / f"{round}.npz"
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda content, path=path: write(path, content, shared=True), contents))
        assert path.read_bytes() in contents
    assert not list(tmp_path.glob(".*"))
