"""Which values hold when a part is chosen beside an experiment, on the command line or in a sweep."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import png
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.build import build, constructors
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts
from dpsyn.publish import NOT_PUBLISHED, marks_of, published
from dpsyn.show import Screen

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar(path, n=30):
    pictures = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), np.uint8)
    rows = pa.array([{"bytes": png(picture), "path": None} for picture in pictures])
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CIFAR10}}
    table = pa.table({"img": rows, "label": [i % 10 for i in range(n)]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


def alone(*overrides):
    """What a part has without any experiment."""
    return compose.settings(["data=digits", *overrides])


def test_a_part_that_is_chosen_keeps_no_value_that_an_experiment_meant_for_its_own():
    made = compose.settings(["+experiment=digits", "api=pool", "api.path=photos"])
    assert made["api"] == alone("api=pool", "api.path=photos", "embedding.size=[8,8]", "embedding.blur=0.5")["api"]
    assert not {"fonts", "size", "slant", "warp"} & made["api"].keys()
    kept = compose.settings(["+experiment=digits"])
    assert {name: made[name] for name in ("data", "schedule", "privacy", "expand", "metric")} == {
        name: kept[name] for name in ("data", "schedule", "privacy", "expand", "metric")
    }


def test_the_embedding_that_a_pool_or_a_metric_refers_to_is_the_one_that_was_chosen():
    made = compose.settings(["+experiment=cifar10_pool", "api.path=photos", "embedding=clip"])
    clip = alone("embedding=clip")["embedding"]
    assert made["embedding"] == made["api"]["embedding"] == clip
    assert made["metric"]["parts"]["frechet"]["embedding"] == clip


def test_clip_has_its_own_size_beside_an_experiment_that_set_that_of_the_pixels():
    for experiment in ("mnist", "digits"):
        made = compose.settings([f"+experiment={experiment}", "embedding=clip"])
        assert made["embedding"] == alone("embedding=clip")["embedding"]
        assert made["embedding"]["size"] == 224


def test_the_same_part_chosen_again_by_name_is_that_part_as_its_yaml_has_it():
    assert compose.settings(["+experiment=digits", "embedding=pixels"])["embedding"] == alone()["embedding"]


def test_values_of_the_chosen_part_on_the_command_line_still_count():
    made = compose.settings(
        ["+experiment=mnist", "api.neighbours=7", "embedding.blur=2", "api=pool", "api.path=p", "embedding=pixels"]
    )
    assert (made["api"]["path"], made["api"]["neighbours"]) == ("p", 7)
    assert made["api"]["data"]["path"] == "p"
    assert (made["embedding"]["blur"], made["embedding"]["directions"]) == (2, 0)
    chosen = compose.settings(
        ["+experiment=digits", "data=mnist", "data.path=mine.parquet", "+data.labels.kind=[a,b]", "~data.labels.digit"]
    )
    assert chosen["data"]["path"] == "mine.parquet"
    assert chosen["data"]["labels"] == {"kind": ["a", "b"]}


def test_values_beside_an_experiment_change_only_what_they_name():
    plain = compose.settings(["+experiment=mnist"])
    changed = compose.settings(["+experiment=mnist", "embedding.blur=3"])
    assert changed["embedding"] == {**plain["embedding"], "blur": 3}


def test_a_chosen_part_may_refer_to_the_rest_of_the_run():
    made = compose.settings(
        ["+experiment=cifar10", "data.path=mine/train.parquet", "api=pool", "api.path=photos", "embedding=patches",
         "embedding.data=${api.data}"]
    )  # fmt: skip
    assert made["embedding"]["data"]["path"] == "photos"
    assert made["held_out"]["path"] == "mine/train.parquet"
    assert made["held_out"]["labels"] == made["data"]["labels"]
    other = compose.settings(["+experiment=cifar10", "data=fashion_mnist", "data.path=mine/train.parquet"])
    assert other["held_out"]["labels"] == other["data"]["labels"]
    assert other["data"]["mode"] == "L"


def test_no_metric_over_an_experiment_measures_nothing_and_does_not_fail(tmp_path):
    given = [
        "+experiment=cifar10_pool", f"data.path={cifar(tmp_path / 'train.parquet')}", "metric=none",
        f"api.path={cifar(tmp_path / 'pool.parquet', 40)}", "api.neighbours=3", "embedding=pixels",
        "embedding.size=[4,4]", "schedule.releases=1", "schedule.size=10", "schedule.degree=3", "schedule.variations=1",
        "expand.rows=null", "expand.degree=null", "privacy.budget_split=null", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    plain = compose.settings(given)
    assert plain["metric"] == {"every_n_releases": 0, "parts": {}}
    job = build(plain)
    assert job.metrics == {}
    carry_out(job, Screen(Console(file=io.StringIO()), facts(job), 1))
    assert (tmp_path / "run/release/synthetic.parquet").exists()
    assert not (tmp_path / "run/private/metrics.jsonl").exists()


def test_another_metric_over_an_experiment_has_nothing_of_its_own_metrics():
    made = compose.settings(["+experiment=cifar10_pool", "api.path=p", "metric=frechet"])
    assert made["metric"]["parts"].keys() == {"frechet"}
    assert made["metric"]["parts"]["frechet"]["data"]["split"] == "test"


@pytest.mark.parametrize("option", ["top", "none", "proportional"])
def test_another_schedule_keeps_the_sizes_of_the_experiment(option):
    was = compose.settings(["+experiment=cifar10_pool", "api.path=p"])["schedule"]
    now = compose.settings(["+experiment=cifar10_pool", "api.path=p", f"schedule={option}"])["schedule"]
    for key in ("releases", "size", "degree", "variations"):
        assert now[key] == was[key]
    assert now["select"]["_target_"] != was["select"]["_target_"] or option == "none"


def test_no_schedule_is_as_many_rows_as_the_schedule_would_have_ended_with():
    for experiment in ("cifar10_pool", "mnist"):
        with_votes = build(compose.settings([f"+experiment={experiment}"]))
        without = build(compose.settings([f"+experiment={experiment}", "schedule=none"]))
        assert not without.releases
        assert without.schedule.final_size(without.facts) == with_votes.schedule.final_size(with_votes.facts)
    with pytest.raises(UserError, match="is 3"):
        build(compose.settings(["+experiment=cifar10_pool", "schedule=none", "schedule.releases=3"]))


def test_a_sweep_over_parts_gives_each_its_own_values():
    given = ["+experiment=mnist", "embedding=pixels,clip", "seed=1,2"]
    runs = [compose.settings(texts) for texts, _ in compose.members(given)]
    assert len(runs) == 4
    for made in runs:
        name = {"dpsyn.embedding.pixels.Pixels": "pixels", "dpsyn.embedding.vision.Vision": "clip"}
        assert made["embedding"] == alone(f"embedding={name[made['embedding']['_target_']]}")["embedding"]
    experiments = [
        compose.settings(texts) for texts, _ in compose.members(["+experiment=digits,mnist", "api=pool", "api.path=p"])
    ]
    assert [made["name"] for made in experiments] == ["digits", "mnist"]
    for made in experiments:
        assert made["api"]["_target_"] == "dpsyn.api.pool.Pool"
        assert "slant" not in made["api"]


def test_a_sweep_over_parts_is_carried_out_with_the_values_of_each(tmp_path):
    given = ["+experiment=smoke", "schedule=balanced,none", "embedding=pixels", "embedding.size=[8,8]"]
    given += ["schedule.size=20", "expand.rows=null"]
    command = [sys.executable, "-m", "dpsyn", "run", "-m", *given, "privacy.accept_joint_epsilon=5"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    for option in ("balanced", "none"):
        said = (tmp_path / f"runs/smoke-schedule-{option}/release/config.yaml").read_text()
        assert "blur: 1.0" in said  # of the part, where the experiment has 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["+experiment=mnist", "embedding=clip", "embedding.blur=1"], "embedding.blur=1: unknown key."),
        (["+experiment=digits", "api=pool", "api.path=p", "api.neighbors=3"], "api.neighbors=3: unknown key."),
        (["+experiment=digits", "api=pool", "api.path=p", "api.slant=[0,1]"], "api.slant=[0,1]: unknown key."),
        (["+experiment=digits", "api=pol"], "api=pol: expected one of"),
        (["+experiment=cifar10_pool", "metric=non"], "metric=non: expected one of"),
        (["+experiment=digits", "embedding=patches", "embedding.fliters=3"], "embedding.fliters=3: unknown key."),
    ],
)
def test_a_typo_in_a_key_of_the_chosen_part_is_one_clear_line(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (["+experiment=digits", "api=pool", "api.neighbors=3"], "api.neighbours"),
        (["+experiment=cifar10_pool", "embedding.fliters=3"], "embedding.filters"),
        (["data=images", "data.image_colum=x"], "data.image_column"),
    ],
)
def test_the_key_that_is_suggested_is_one_of_the_chosen_part(given, near):
    with pytest.raises(UserError, match=f"Did you mean {near}[?]"):
        compose.settings(given)


def test_the_release_names_a_network_from_the_internet_by_its_file_and_no_place():
    plain = compose.settings(
        ["+experiment=cifar10", "data.path=mine/train.parquet", "embedding.weights=/home/me/net.pth"]
    )
    said = build(plain).public
    assert said["api"]["path"] == "imagenet64_cond_270M_250K.pt"
    assert said["embedding"]["weights"] == said["data"]["path"] == "(not published)"


def test_no_key_and_no_place_leaves_with_the_settings_but_declared_labels_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients/acme/encoder").mkdir(parents=True)
    own = constructors()
    chat = {
        "_target_": "dpsyn.api.chat.Chat",
        "model": "accounts/somebody/models/chat",
        "base_url": ["http://10.0.0.1/v1", "http://10.0.0.2/v1"],
        "api_key_env": None,
        "extra": {"reasoning_effort": "low", "data_sources": [{"authentication": {"key": "k", "apiKey": "k"}}]},
        "prices": {"chat": [1, 2]},
        "prompts": {"_target_": "dpsyn.language.prompts.Prompts", "file": "/home/me/acme.yaml"},
    }
    hidden = NOT_PUBLISHED
    said = published(chat, own)
    assert said == {
        **chat,
        "base_url": [hidden, hidden],
        "extra": hidden,
        "prompts": {**chat["prompts"], "file": hidden},
    }
    assert published({**chat, "model": "/models/ours"}, own)["model"] == hidden
    encoder = {"_target_": "dpsyn.embedding.sentence.Sentence", "model": "clients/acme/encoder"}
    assert published(encoder, own)["model"] == hidden  # it is there
    texts = {"_target_": "dpsyn.data.texts.Texts", "path": "owner/mails", "labels": {"path": ["/r/one", "~two"]}}
    assert published(texts, own, is_data=True) == {**texts, "path": hidden}
    assert published(texts, own) == texts  # a pool


def test_of_a_part_from_outside_nothing_is_published_that_is_not_marked(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text("""
from dataclasses import dataclass, field
from dpsyn.marks import PLACE, PUBLIC

@dataclass
class Part:
    note: str
    inner: object
    scale: float = field(default=1.0, metadata=PUBLIC)
    model: str = field(default="", metadata=PLACE)
""")
    monkeypatch.syspath_prepend(tmp_path)
    inner = {"_target_": "dpsyn.embedding.pixels.Pixels", "size": [8, 8]}
    part = {"_target_": "outside.Part", "note": "of Jane", "inner": inner, "scale": 2.0, "model": "owner/name"}
    own = constructors()
    assert published(part, own, ["outside"]) == {**part, "note": NOT_PUBLISHED}
    untrusted = {**part, "note": NOT_PUBLISHED, "scale": NOT_PUBLISHED, "model": NOT_PUBLISHED}
    monkeypatch.setattr("dpsyn.publish.importlib.import_module", None)  # it is not even imported
    assert published({**part, "inner": 3}, own) == {**untrusted, "inner": NOT_PUBLISHED}


def test_every_setting_of_a_file_an_address_or_a_key_is_marked():
    for target in constructors():
        for name, mark in marks_of(target).items():
            last = name.rpartition("_")[2]
            if last in (
                "path",
                "file",
                "fonts",
                "weights",
                "url",
                "key",
                "token",
                "folder",
                "env",
                "extra",
                "tokenizer",
            ):
                assert "publish" in mark or name == "answers_folder", f"{target}.{name}"


def test_a_prompt_file_is_taken_word_by_word_and_identifies_the_run(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("generate: {user: 'Write of ${price} and /etc, {description}'}\nvary: {user: 'As {sample}'}\n")
    chat = ["data=mails", "api=chat", "api.model=m", "privacy.epsilon=1", "privacy.delta=1e-5", "api.api_key_env=null"]
    chat += [f"api.prompts.file={mine}", "api.prompts.description=https://shop.example mails", "schedule.degree=0.5"]
    job = build(compose.settings(chat))
    assert job.api.prompts.file["generate"]["user"] == "Write of ${price} and /etc, {description}"
    assert job.public["api"]["prompts"]["file"] == job.identity["api"]["prompts"]["file"]
    assert "api.base_url" in job.free
    assert "api.model" not in job.free


@pytest.mark.parametrize(
    ("noise", "folder"),
    [("system", "answers"), ("insecure_seeded", "answers_not_private"), ("none", "answers_not_private")],
)
def test_runs_whose_noise_protects_nobody_get_a_folder_of_their_own_for_answers(noise, folder):
    chosen = (
        ["privacy=none"] if noise == "none" else ["privacy.epsilon=1", "privacy.delta=1e-5", f"privacy.noise={noise}"]
    )
    asks = ["data=mails", "api=chat", "api.model=m", "embedding=ngrams", *chosen]
    plain = compose.settings(asks)
    plain["api"]["answers_folder"] = "elsewhere"  # nobody may say otherwise
    assert build(plain).api.answers_folder == folder
    legs = {name: plain["api"] for name in ("first", "second")}
    relay = build({**plain, "api": {"_target_": "dpsyn.api.staged.Staged", **legs}}).api
    assert relay.first.answers_folder == relay.second.answers_folder == folder


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("embedding=[]", "embedding=[]: expected the name of an option"),
        ("embedding={a:1}", "embedding={a:1}: expected the name of an option"),
        ("metric=null", "metric=null: expected the name of an option"),
        ("~seed", "seed=(deleted): expected a value"), ("~expand.rows", "expand.rows=(deleted): expected a value"),
        ("~metric.every_n_releases", "metric.every_n_releases=(deleted)"),
        ("~run_dir", "run_dir=(deleted)"), ("~api", "api="),
        ("~label_shares", "label_shares=(deleted)"), ("run_dir=null", "run_dir=None: expected a directory"),
        ("name=[a]", "name=['a']: expected a text"), ("name=null", "name=None: expected a text"),
    ],
)  # fmt: skip
def test_what_hydra_reads_and_a_run_cannot_use_is_one_line(override, said, in_tmp, own_state, capsys):
    assert cli.main(["plan", "experiment=smoke", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dpsyn: {said}") and error.count("\n") == 1


@pytest.mark.parametrize("old", compose.RENAMED)
def test_an_old_name_of_a_setting_gets_one_line_that_names_the_new_one(old):
    given = [old] if "=" in old else [f"{old}=1", *(["schedule=tab_pe"] if "drawn" in old else [])]
    given += ["api=table"] if "missing" in old else ["api=chat"] if old.startswith("api.") else []
    with pytest.raises(UserError) as refused:
        compose.settings([*given, *([] if old.startswith("data=") else ["+experiment=digits"])])
    assert str(refused.value).endswith(f"It is {compose.RENAMED[old]} now.")
    new = compose.RENAMED[old].split()[0]
    compose.settings([new if "=" in new else f"{new}=1", *given[1:], "+experiment=digits"])
