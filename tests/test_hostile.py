"""What strangers wrote (a release that was downloaded, a folder of configs) is data: none of it runs."""

import shutil
from pathlib import Path

import pytest
import yaml
from harness import TINY

from dpsyn import cli, compose
from dpsyn.build import constructors
from dpsyn.errors import UserError

EVIL = "import pathlib\nclass Part:\n    def __init__(self, **_):\n        pathlib.Path('RAN').touch()\n"
EVIL += "Part.__module__ = 'evil'\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a stranger. Copy it before you change it."""
    home = tmp_path_factory.mktemp("stranger")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patched.chdir(home)
        assert cli.main(["run", *TINY, "expand.rows=null", "run_dir=run"]) == 0
    return home / "run"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, with a package `evil` that can be imported and leaves RAN behind where it is used."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path


ATTACKS = {
    "a package of its own": {"api": {"_target_": "evil.Part"}, "trusted_packages": ["evil"]},
    "a function of the standard library": {"api": {"_target_": "os.mkdir", "path": "RAN"}, "trusted_packages": ["os"]},
    "a module that a module of dpsyn imports": {"api": {"_target_": "dpsyn.files.os.mkdir", "path": "RAN"}},
    "dpsyn's own builder": {
        "api": {"_target_": "dpsyn.compose.build", "plain": {"trusted_packages": ["evil"], "api": "evil.Part"}}
    },
    "dpsyn's own command line": {"api": {"_target_": "dpsyn.cli.main", "arguments": ["budget"]}},
    "a writer of dpsyn": {"api": {"_target_": "dpsyn.files.write", "path": "RAN", "content": ""}},
    "a part inside a part": {"schedule": {"select": {"_target_": "evil.Part", "_partial_": False}}},
    "in the data": {"data": {"_target_": "evil.Part"}},
    "in the embedding": {"embedding": {"_target_": "evil.Part"}},
    "in the privacy settings": {"privacy": {"_target_": "evil.Part"}},
    "in a metric": {"metric": {"parts": {"mine": {"_target_": "evil.Part"}}}},
    "in the runtime": {"runtime": {"_target_": "evil.Part"}},
}


def merged(one, two):
    if not isinstance(one, dict) or not isinstance(two, dict):
        return two
    return {**one, **{key: merged(one.get(key), value) for key, value in two.items()}}


@pytest.mark.parametrize("place", ["release", "private"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_release_runs_nothing_under_any_verb(finished, here, capsys, name, place):
    shutil.copytree(finished, "run")
    path = Path("run") / place / "config.yaml"
    said = yaml.safe_load(path.read_text())
    attacked = merged(said["settings"] if place == "private" else said, ATTACKS[name])
    path.write_text(yaml.safe_dump({**said, "settings": attacked} if place == "private" else attacked))
    for verb in (
        ["expand", "run", "--rows", "60", "expand.degree.size=1"],
        ["export", "run", "--to", "out", "--format", "parquet"],
        ["verify", "run"],
        ["budget"],
        ["run", *TINY, "expand.rows=null", "run_dir=run"],
    ):
        assert cli.main(verb) in (0, 1, 2)
        assert not Path("RAN").exists(), verb
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ATTACKS)
def test_a_folder_of_configs_runs_nothing_under_any_verb(here, capsys, name):
    folder = here / "theirs/experiment"
    folder.mkdir(parents=True)
    (folder / "gift.yaml").write_text(
        "# @package _global_\ndefaults: [smoke]\n" + yaml.safe_dump({"trusted_packages": ["evil"]} | ATTACKS[name])
    )
    given = ["--config-dir", "theirs", "+experiment=gift"]
    sweeps = [["run", "-m"], ["plan", "-m"]] if name in ("a package of its own", "in the runtime") else []
    for verb in (["run"], ["check"], *sweeps, ["run", "--cfg", "job"]):
        assert cli.main([*verb, *given]) in (0, 2)
        assert not Path("RAN").exists(), verb
        assert "Traceback" not in capsys.readouterr().err
    assert cli.main(["plan", *given]) == 2


HYDRA = {
    "a callback": {"callbacks": {"mine": {"_target_": "evil.Part"}}},
    "a launcher": {"launcher": {"_target_": "evil.Part"}},
    "a sweeper": {"sweeper": {"_target_": "evil.Part"}},
    "a log handler": {"job_logging": {"handlers": {"mine": {"()": "evil.Part"}}}},
    "a log formatter": {"hydra_logging": {"formatters": {"mine": {"()": "evil.Part"}}}},
    "the environment": {"job": {"env_set": {"LD_PRELOAD": "theirs.so"}}},
    "a folder elsewhere": {"sweep": {"dir": "RAN"}},
}


@pytest.mark.parametrize("name", HYDRA)
def test_a_folder_of_configs_leaves_the_settings_of_hydra_alone(here, capsys, name):
    folder = here / "theirs/experiment"
    folder.mkdir(parents=True)
    (folder / "gift.yaml").write_text(
        "# @package _global_\ndefaults: [smoke]\n" + yaml.safe_dump({"hydra": HYDRA[name]})
    )
    given = ["--config-dir", "theirs", "+experiment=gift"]
    sweep = ["-m", "seed=1,2", "privacy.accept_joint_epsilon=9"]
    for verb in (
        ["plan"],
        ["run"],
        ["run", *sweep],
        ["run", "--cfg", "job"],
        ["run", "--info", "all"],
        ["run", "--help"],
    ):
        assert cli.main([*verb, *given]) == 2, verb
        assert "hydra" in capsys.readouterr().err
        assert not Path("RAN").exists(), verb


@pytest.mark.parametrize("part", ["api", "embedding"])
def test_code_that_comes_with_a_model_is_allowed_on_the_command_line_alone(here, capsys, part):
    folder = here / "theirs/experiment"
    folder.mkdir(parents=True)
    (folder / "gift.yaml").write_text(f"# @package _global_\ndefaults: [smoke]\n{part}: {{trust_remote_code: true}}\n")
    assert cli.main(["plan", "--config-dir", "theirs", "+experiment=gift"]) == 2
    assert f"{part}.trust_remote_code=True: expected a setting of the command line" in capsys.readouterr().err


def test_a_release_does_not_say_whom_to_ask_nor_with_which_key(finished, here, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    shutil.copytree(finished, "run")
    path = Path("run/release/config.yaml")
    said = yaml.safe_load(path.read_text())
    chat = compose.settings(["data=digits", "api=chat", "privacy.epsilon=1", "privacy.delta=1e-5"])["api"]
    stolen = {"base_url": "http://theirs.example/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY", "model": "m"}
    path.write_text(yaml.safe_dump({**said, "api": {**chat, **stolen}}))
    assert cli.main(["expand", "run", "--rows", "60"]) == 2
    assert "A release does not say whom to ask" in capsys.readouterr().err


def test_an_image_of_a_release_is_a_png_or_it_is_not_opened(finished, here, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(finished, "run")
    path = Path("run/release/synthetic.parquet")
    table = pq.read_table(path)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(RAN) (w) file closefile\nshowpage\n"
    images = pa.array([{"bytes": eps, "path": None}] * len(table), table["image"].type)
    pq.write_table(table.set_column(0, "image", images).replace_schema_metadata(table.schema.metadata), path)
    assert cli.main(["export", "run", "--to", "out", "--format", "npz"]) == 2
    assert "synthetic.parquet" in capsys.readouterr().err
    assert not Path("RAN").exists() and not Path("out").exists()


def test_what_is_published_depends_on_no_environment_variable(here, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "sk-123")
    for given in (
        ["api.texts=['${oc.env:MY_SECRET}']"],
        ["+mine=${oc.env:MY_SECRET}", "name=${mine}"],
        ["seed='${oc.decode:${oc.env:SEED,5}}'"],
    ):
        with pytest.raises(UserError, match="published"):
            compose.settings(["+experiment=smoke", *given])
    allowed = compose.settings(
        ["data=images", "data.path=${oc.env:HOME}/scans", "privacy.epsilon=1", "privacy.delta=1e-5"]
    )
    assert allowed["data"]["path"].endswith("/scans")


def test_every_constructor_that_a_config_may_name_is_a_part(here):
    assert "dpsyn.api.draw_text.DrawText" in constructors()
    assert not {name for name in constructors() if not name.startswith("dpsyn.")}
    groups = {name.split(".")[1] for name in constructors()}
    assert groups == {"api", "data", "embedding", "language", "metric", "networks", "privacy", "schedule", "tables"}
