"""Whole runs of the image experiments, with small random networks and small data made on the spot."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import files, forked, png, same_noise, warm
from PIL import Image
from rich.console import Console

from dpsyn import cli, compose
from dpsyn.api.pool.stock import opened
from dpsyn.build import build
from dpsyn.data.images import Images
from dpsyn.errors import UserError
from dpsyn.execution import carry_out
from dpsyn.planning import facts
from dpsyn.population import Samples
from dpsyn.privacy import account, ledger
from dpsyn.runs import directory as run_module
from dpsyn.runs.directory import open_run
from dpsyn.runs.verification import verified
from dpsyn.show import Screen

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_tiny_models.py"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COARSE = ["embedding=pixels", "embedding.size=[8,8]"]


def images(n, seed):
    """uint8 [n, 32, 32, 3]: eight by eight squares of random colours"""
    squares = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return squares.repeat(4, axis=1).repeat(4, axis=2)


def cifar(path, pictures, column="img"):
    """A file of the hub's layout; row i is of class i modulo 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.array([{"bytes": png(picture), "path": None} for picture in pictures])
    features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CIFAR10}}
    table = pa.table({column: rows, "label": [i % 10 for i in range(len(pictures))]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of tiny networks, private data and a pool."""
    folder = tmp_path_factory.mktemp("made")
    loader = importlib.machinery.SourceFileLoader("make_tiny_models", str(SCRIPT))
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_tiny_models", loader))
    loader.exec_module(script)
    torch.save(script.improved_diffusion(multipliers=(1, 2), attention=(1,), classes=10), folder / "tiny.pt")
    script.consistency(folder / "consistency")
    script.stable_diffusion(folder / "stable_diffusion")
    for name, n in (("train", 60), ("test", 30)):
        cifar(folder / "cifar" / f"{name}.parquet", images(n, len(name)))
    cifar(folder / "pool" / "pool.parquet", images(90, 9), "image")
    for i, picture in enumerate(images(8, 7)):
        path = folder / "cats" / ("cookie", "doudou")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture))
    return folder


def published(made, *overrides):
    """The published experiment on CIFAR-10, small: three iterations of ten candidates, each seen as the mean of 8."""
    return [
        "+experiment=cifar10",
        f"data.path={made}/cifar/train.parquet",
        f"api.path=file://{made}/tiny.pt",
        "api.resolution=16",
        "api.image_size=[32,32]",
        'api.respacing="4"',
        *COARSE,
        "schedule.releases=3",
        "schedule.size=10",
        "schedule.degree=[1,2,3]",
        "schedule.select.threshold=0",
        "runtime.batch_size=32",
        *overrides,
    ]


def from_pool(made, *overrides):
    return [
        "+experiment=cifar10_pool",
        f"data.path={made}/cifar/train.parquet",
        f"api.path={made}/pool/pool.parquet",
        "api.neighbours=5",
        "embedding.filters=8",
        "embedding.dimension=16",
        "schedule.releases=2",
        "schedule.size=20",
        "schedule.degree=[5,1]",
        "schedule.variations=[1,0]",
        "privacy.budget_split=null",
        "expand.rows=40",
        "expand.degree=3",
        "metric=none",
        *overrides,
    ]


def two_cats(made, *overrides):
    return [
        "+experiment=cat",
        f"data.path={made}/cats",
        "data.size=[32,32]",
        f"api.path={made}/stable_diffusion",
        "api.size=[32,32]",
        "api.steps=4",
        *COARSE,
        "schedule.size=4",
        "schedule.lookahead=1",
        *overrides,
    ]


def run(root, given):
    """Carries out what was asked for on the command line; what it printed."""
    job, out = build(compose.settings([*given, f"run_dir={root}"])), io.StringIO()
    carry_out(job, Screen(Console(file=out, width=120), facts(job), len(job.releases)))
    return out.getvalue()


def pictures(path):
    """uint8 [n, h, w, 3]"""
    rows = pq.read_table(path)["image"].to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows])


def losing(monkeypatch, name, call):
    """The n-th call of `name` is cut off by an error that is none of the user's."""
    module, _, attribute = name.rpartition(".")
    holder = getattr(import_module(module.rpartition(".")[0]), module.rpartition(".")[2])
    real, count = getattr(holder, attribute), 0

    def counted(*arguments):
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(holder, attribute, counted)


# The experiment as published, killed


@pytest.fixture(scope="module", autouse=True)
def server():
    warm("test_image_runs", "diffusers.models.unets.unet_2d", "sklearn.metrics", "dpsyn.metric.classifier", "warmed")


def forked_run(home, root, given, noisy, call, said):
    """A run that is killed before it asks the api for variations the n-th time."""
    from dpsyn.api.diffusion import Diffusion

    os.environ.update(XDG_STATE_HOME=str(home / "state"), XDG_CACHE_HOME=str(home / "cache"))
    ledger.discrete_gaussian = lambda exact, scale: noisy[len(os.listdir(root / "release/votes"))]
    run_module.secrets.token_hex = lambda n: "0" * 2 * n
    real, count = Diffusion.vary, 0

    def deadly(*arguments):
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    Diffusion.vary = deadly
    try:
        run(root, given)
        text = ""
    except UserError as error:
        text = str(error)
    said.send(text)


def attempt(home, root, given, noisy, call=0):
    """'' for a run that finished, None for one that was killed."""
    return forked(forked_run, home, root, given, noisy, call)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The published experiment, uninterrupted: its root, its noisy votes, what it printed."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        noisy = same_noise(patched)
        printed = run(home / "run", published(made))
    return home / "run", noisy, printed


def test_the_published_experiment_runs_from_a_fetched_checkpoint_to_its_metrics(whole):
    root, noisy, printed = whole
    assert "iteration 3 of 3" in printed
    assert [len(votes) for votes in noisy] == [10, 10, 10]
    assert pictures(root / "release/synthetic.parquet").shape == (10, 32, 32, 3)
    said = json.loads((root / "release/privacy.json").read_text())
    assert said["status"] == "DP"
    assert said["epsilon"] <= 2.594
    assert len(said["charges"]) == 3
    assert [path.name for path in (root.parent / "cache").rglob("*.pt")] == ["tiny.pt"]  # fetched once
    measured = [json.loads(line)["metric"] for line in (root / "private/metrics.jsonl").read_text().splitlines()]
    assert {"frechet", "kid", "precision_recall", "classifier"} <= set(measured)
    released = b"".join(files(root / "release").values())
    assert str(root.parent).encode() not in released
    assert b"tiny.pt" not in released
    assert verified(open_run(root)).agrees


def test_a_killed_run_of_the_published_experiment_goes_on_to_the_same_data(made, whole, tmp_path):
    """Killed in the means of 80 variations (three calls of vary, in batches of 32), and again after the next votes."""
    uninterrupted, noisy, _ = whole
    given = published(made)
    for call, receipts in ((6, ["001.parquet"]), (4, ["001.parquet", "002.parquet"])):
        assert attempt(tmp_path, tmp_path / "run", given, noisy, call) is None
        assert sorted(os.listdir(tmp_path / "run/release/votes")) == receipts
    assert attempt(tmp_path, tmp_path / "run", given, noisy) == ""
    assert files(tmp_path / "run/release") == files(uninterrupted / "release")
    assert verified(open_run(tmp_path / "run")).agrees


def test_two_processes_make_the_samples_that_one_makes(made, whole, tmp_path, monkeypatch):
    uninterrupted, noisy, _ = whole
    same_noise(monkeypatch, noisy)
    run(tmp_path / "run", published(made, "metric=none", "runtime.devices=[cpu,cpu]"))
    for t in range(4):
        name = f"release/iterations/{t:03d}/samples.parquet"
        one, two = pictures(uninterrupted / name).astype(int), pictures(tmp_path / "run" / name).astype(int)
        assert np.abs(one - two).max() <= 1
        classes = [pq.read_table(root / name)["trait.class"].to_pylist() for root in (uninterrupted, tmp_path / "run")]
        assert classes[0] == classes[1]


# The other networks


def test_a_consistency_model_takes_the_place_of_the_checkpoint(made, tmp_path, monkeypatch):
    given = [
        "+experiment=cifar10_consistency", f"data.path={made}/cifar/train.parquet", f"api.path={made}/consistency",
        "api.image_size=[32,32]", *COARSE, "schedule.releases=2", "schedule.size=10", "schedule.degree=[0.8,0.5]",
        "metric=none",
    ]  # fmt: skip
    noisy = same_noise(monkeypatch)
    run(tmp_path / "whole", given)
    same_noise(monkeypatch, noisy)
    with monkeypatch.context() as patched:
        losing(patched, "dpsyn.api.diffusion.Diffusion.vary", 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", given)
    assert os.listdir(tmp_path / "run/release/votes") == ["001.parquet"]
    run(tmp_path / "run", given)
    assert files(tmp_path / "run/release") == files(tmp_path / "whole/release")
    assert len(pictures(tmp_path / "run/release/synthetic.parquet")) == 10


def test_two_cats_are_drawn_by_stable_diffusion(made, tmp_path, monkeypatch):
    noisy = same_noise(monkeypatch)
    given = two_cats(made, "schedule.releases=2", "schedule.degree=[0.9,0.5]")
    run(tmp_path / "run", given)
    assert [len(votes) for votes in noisy] == [4, 4]
    last = pq.read_table(tmp_path / "run/release/iterations/002/samples.parquet")
    assert last["trait.prompt"].to_pylist() == ["a photo of a ragdoll cat"] * 4
    assert last["label"].to_pylist() == [0, 0, 1, 1]
    assert pictures(tmp_path / "run/release/synthetic.parquet").shape == (4, 32, 32, 3)
    before = files(tmp_path / "run/release")
    run(tmp_path / "run", given)
    assert files(tmp_path / "run/release") == before


# Photographs in the place of a model


@pytest.fixture(scope="module")
def pooled(made, tmp_path_factory):
    """A finished run from a pool. Copy it before you change it."""
    home = tmp_path_factory.mktemp("pooled")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(home / "state"))
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        run(home / "run", from_pool(made))
    return home / "run"


def test_a_run_from_a_pool_releases_photographs_of_the_pool_and_none_that_are_private(made, pooled):
    public = {picture.tobytes() for picture in pictures(made / "pool/pool.parquet")}
    synthetic = pictures(pooled / "release/synthetic.parquet")
    assert len(synthetic) == 40
    assert {picture.tobytes() for picture in synthetic} <= public
    assert (pooled / "release/samples.png").exists()
    report = verified(open_run(pooled))
    assert report.agrees


def test_a_run_from_a_pool_that_is_cut_off_goes_on_to_the_same_data(made, tmp_path, monkeypatch):
    noisy = same_noise(monkeypatch)
    run(tmp_path / "whole", from_pool(made))
    for name, call in (("dpsyn.embedding.patches.Patches.__call__", 1), ("dpsyn.api.pool.Pool.vary", 1)):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/cache"))
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home/state"))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        same_noise(monkeypatch, noisy)
        with monkeypatch.context() as patched:
            losing(patched, name, call)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "run", from_pool(made))
        run(tmp_path / "run", from_pool(made))
        assert files(tmp_path / "run/release") == files(tmp_path / "whole/release")


def test_without_votes_no_private_row_is_read_and_nothing_is_spent(made, tmp_path, monkeypatch, capsys):
    private, real = str(made / "cifar/train.parquet"), Images.batches

    def guarded(self, size):
        assert self.path != private
        return real(self, size)

    monkeypatch.setattr(Images, "batches", guarded)
    given = from_pool(made, "schedule=none", "expand.rows=null")
    with monkeypatch.context() as patched:
        losing(patched, "dpsyn.api.pool.Pool.generate", 1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", given)
    run(tmp_path / "run", given)
    said = json.loads((tmp_path / "run/release/privacy.json").read_text())
    assert said["epsilon"] == 0
    assert said["charges"] == []
    assert list((tmp_path / "run/release/votes").iterdir()) == []
    assert len(pictures(tmp_path / "run/release/synthetic.parquet")) == 20  # of (20 survivors) * (0 folds + 1)
    assert cli.main(["verify", str(tmp_path / "run")]) == 0
    assert account.everything() == []
    before = files(tmp_path / "run/release")
    run(tmp_path / "run", given)
    assert files(tmp_path / "run/release") == before
    assert cli.main(["expand", str(tmp_path / "run"), "expand.degree=4", "--rows", "30"]) == 0
    assert len(pictures(tmp_path / "run/release/synthetic.parquet")) == 30


def test_more_rows_come_from_the_pool_without_the_private_data(made, pooled, tmp_path, monkeypatch, capsys):
    shutil.copytree(pooled, tmp_path / "run")
    monkeypatch.setenv("XDG_STATE_HOME", str(pooled.parent / "state"))
    shutil.move(made / "cifar", tmp_path / "gone")
    try:
        assert cli.main(["expand", str(tmp_path / "run"), "--rows", "55"]) == 0
    finally:
        shutil.move(tmp_path / "gone", made / "cifar")
    assert len(pictures(tmp_path / "run/release/synthetic.parquet")) == 55
    said, same = (json.loads((run / "release/privacy.json").read_text()) for run in (tmp_path / "run", pooled))
    for statement in (said, same):
        del statement["files"], statement["sha256"]  # the checksums of the data
    assert said == same
    assert cli.main(["verify", str(tmp_path / "run")]) == 0


# One api after another


RELAY = """
# @package _global_
defaults:
  - /api@api.first: {first}
  - /api@api.second: diffusion
  - {experiment}
  - override /api: staged
"""


@pytest.mark.parametrize("first", ["avatar", "pool"])
def test_a_relay_keeps_survivors_across_the_handover_and_resumes(made, tmp_path, monkeypatch, first):
    second = [f"api.second.path={made}/tiny.pt", "api.second.resolution=16", 'api.second.respacing="3"']
    given = [*COARSE, "metric=none", "schedule.size=10", "schedule.keep_survivors=true", "schedule.lookahead=0"]
    given += ["schedule.releases=2", "expand.rows=null"]
    if first == "avatar":
        pytest.importorskip("python_avatars")
        pytest.importorskip("cairosvg")
        experiment = ["+experiment=celeba_staged", "data=cifar10", "runtime.workers=0"]
        degrees = "schedule.degree=[{first:0.4},{second:1}]"
    else:
        folder = tmp_path / "mine" / "experiment"
        folder.mkdir(parents=True)
        (folder / "own.yaml").write_text(RELAY.format(first="pool", experiment="cifar10"))
        experiment = ["+experiment=own", f"api.first.path={made}/pool/pool.parquet", "api.first.neighbours=5"]
        degrees = "schedule.degree=[{first:5},{second:1}]"
        second.append("api.second.image_size=[32,32]")
    given = [*experiment, f"data.path={made}/cifar/train.parquet", *second, *given, degrees]

    def carried(root):
        plain = compose.settings([*given, f"run_dir={root}"], str(tmp_path / "mine") if first == "pool" else None)
        job = build(plain)
        carry_out(job, Screen(Console(file=io.StringIO()), facts(job), len(job.releases)))

    noisy = same_noise(monkeypatch)
    carried(tmp_path / "whole")
    last = pq.read_table(tmp_path / "whole/release/iterations/002/samples.parquet")
    before = pictures(tmp_path / "whole/release/iterations/001/samples.parquet")
    after = pictures(tmp_path / "whole/release/iterations/002/samples.parquet")
    survivor, parent = (np.array(last[name].to_pylist()) for name in ("survivor", "parent"))
    assert 0 < survivor.sum() < len(survivor)
    assert (after[survivor] == before[parent[survivor]]).all()
    assert (after[~survivor] != before[parent[~survivor]]).any((1, 2, 3)).all()
    traits = {name for name in last.column_names if "." in name}
    assert "trait.second.class" in traits
    assert any(name.startswith("trait.first.") for name in traits)
    same_noise(monkeypatch, noisy)
    with monkeypatch.context() as patched:
        losing(patched, "dpsyn.api.diffusion.Diffusion.vary", 1)
        with pytest.raises(KeyboardInterrupt):
            carried(tmp_path / "run")
    carried(tmp_path / "run")
    assert files(tmp_path / "run/release") == files(tmp_path / "whole/release")


# What is refused


def refused(root, given, capsys):
    """The one line, of a run that spent nothing and released no row."""
    with pytest.raises(UserError) as caught:
        run(root, given)
    text = str(caught.value)
    assert "\n" not in text
    assert cli.main(["budget"]) == 0
    assert "No run on any data set is known" in capsys.readouterr().out
    released = {name for name in files(root) if not name.startswith("private/")}
    assert released <= {"release/privacy.json", "release/config.yaml"}
    return text


def test_a_pool_that_is_the_private_data_is_refused(made, tmp_path, capsys):
    private = made / "cifar/train.parquet"
    copy = tmp_path / "elsewhere" / "train.parquet"
    copy.parent.mkdir()
    shutil.copy(private, copy)
    (tmp_path / "link").symlink_to(private)
    for place in (private, tmp_path / "link", private.parent / ".." / "cifar" / "train.parquet"):
        text = refused(tmp_path / "run", from_pool(made, f"api.path={place}"), capsys)
        assert text.startswith("api.path=")
        assert "not those of data.path" in text
        assert not (tmp_path / "run").exists()
    text = refused(tmp_path / "run", from_pool(made, f"api.path={copy}"), capsys)
    assert text == "api.path: files of the private data (data.path) are among these, which must be public."
    assert not (tmp_path / "run").exists()


def test_features_are_not_learned_from_the_private_data(made, tmp_path, capsys):
    text = refused(tmp_path / "run", from_pool(made, "embedding.data=${data}"), capsys)
    assert "not those of data.path" in text
    assert not (tmp_path / "run").exists()


def broken(made, tmp_path, change):
    state = torch.load(made / "tiny.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "broken.pt")
    return tmp_path / "broken.pt"


def test_a_checkpoint_of_another_layout_is_refused_with_its_keys(made, tmp_path, capsys):
    path = broken(made, tmp_path, lambda state: state.update(surprise=state.pop("time_embed.0.weight")))
    text = refused(tmp_path / "run", [*published(made), f"api.path={path}"], capsys)
    assert "time_embed.0.weight" in text
    assert not (tmp_path / "run").exists()
    text = refused(tmp_path / "fetched", [*published(made), f"api.path=file://{path}"], capsys)
    assert "time_embed.0.weight" in text


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["a file", "an address"])
def test_classes_that_the_network_lacks_are_refused(made, tmp_path, capsys, scheme):
    given = [*published(made), f"api.path={scheme}{made}/tiny.pt", "api.classes=[3,10]"]
    text = refused(tmp_path / "run", given, capsys)
    assert text == "api.classes=[3, 10]: expected ids from 0 to 9. The network has 10 classes."


def test_without_the_internet_one_line_says_which_file_to_put_where(made, tmp_path, capsys, monkeypatch):
    text = refused(tmp_path / "a", [*published(made), "api.path=http://127.0.0.1:9/imagenet64.pt"], capsys)
    assert "imagenet64.pt, or name a local one with api.path=" in text
    assert "Put the file at" in text
    given = ["+experiment=cifar10_consistency", f"data.path={made}/cifar/train.parquet", "metric=none", *COARSE]
    given += ["schedule.releases=1", "schedule.size=10", "schedule.degree=0.5"]
    text = refused(tmp_path / "b", given, capsys)
    assert "unet/config.json" in text
    assert "name it with api.path=" in text


def test_half_precision_needs_a_gpu(made, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    text = refused(tmp_path / "run", published(made, "runtime.dtype=float16"), capsys)
    assert text.startswith("runtime.dtype=float16: expected float32 or bfloat16")


def test_a_prompt_needs_the_column_that_it_names(made, tmp_path, capsys):
    given = two_cats(made, "schedule.releases=1", "schedule.degree=0.9", "api.prompts='a photo of a {dog}'")
    text = refused(tmp_path / "run", given, capsys)
    assert text == "api.prompts=a photo of a {dog}: expected a template over the label's columns (cat)."


def test_a_pool_with_fewer_items_than_neighbours_is_refused(made, tmp_path, capsys):
    given = from_pool(made, "api.neighbours=91")
    text = refused(tmp_path / "run", given, capsys)
    assert text.startswith("api.neighbours=91: expected at most 90")


def test_what_is_refused_before_the_first_sample_is_there_writes_nothing_outside_private(made, tmp_path, capsys):
    refused(tmp_path / "run", from_pool(made, "api.neighbours=91"), capsys)
    assert {name.split("/")[0] for name in files(tmp_path / "run")} == {"private"}


def test_when_what_was_refused_is_mended_the_same_run_dir_serves(made, tmp_path, capsys):
    assert "Lower it" in refused(tmp_path / "run", from_pool(made, "api.neighbours=91"), capsys)
    run(tmp_path / "run", from_pool(made, "api.neighbours=5"))


def test_overrides_of_an_expansion_may_stand_after_its_rows(pooled, tmp_path, monkeypatch):
    shutil.copytree(pooled, tmp_path / "run")
    monkeypatch.setenv("XDG_STATE_HOME", str(pooled.parent / "state"))
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "55", "expand.degree=4"]) == 0


def test_that_features_are_learned_from_the_private_data_is_said_of_the_embedding(made, tmp_path):
    with pytest.raises(UserError, match=r"^embedding\.data"):
        run(tmp_path / "run", from_pool(made, "embedding.data=${data}"))


def test_a_run_without_votes_that_has_its_private_folder_is_not_told_that_it_is_gone(made, tmp_path):
    run(tmp_path / "run", from_pool(made, "schedule=none", "expand.rows=null"))
    assert not any("is not here" in line for line in verified(open_run(tmp_path / "run")).lines)


@pytest.mark.parametrize("place", ["cifar", "cifar/*.parquet"])
def test_a_pool_among_whose_files_are_the_private_ones_is_refused(made, tmp_path, place):
    with pytest.raises(UserError, match="must be public"):
        run(tmp_path / "run", from_pool(made, f"api.path={made}/{place}"))


ORPHAN = """
import os, signal, types
from dpsyn.workers import dispatching
api = types.SimpleNamespace(generate=os.getpid, vary=os.getpid)
with dispatching(api, os.getpid, ["cpu"]) as spread:
    print(*spread("embed", [tuple]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_their_parent_is_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
    place = Path(f"/proc/{worker}/stat")
    try:
        end = time.monotonic() + 5
        while time.monotonic() < end and place.exists() and place.read_text().split()[2] != "Z":
            time.sleep(0.1)
        assert time.monotonic() < end
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


# One door, with what is learned and looked up


def test_given_the_receipts_neighbouring_data_give_the_same_bytes_from_a_pool(made, tmp_path, monkeypatch):
    def observed(rows, noisy=None):
        shutil.rmtree(tmp_path / "at", ignore_errors=True)
        data = cifar(tmp_path / "at/train.parquet", rows)
        with monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(tmp_path / "at/state"))
            patched.setenv("XDG_CACHE_HOME", str(tmp_path / "at/cache"))
            recorded = same_noise(patched, noisy)
            printed = run(tmp_path / "at/run", from_pool(made, f"data.path={data}"))
        public = files(tmp_path / "at/cache/dpsyn/public")
        return (files(tmp_path / "at/run/release"), printed, public), recorded

    rows = images(60, 5)
    first, noisy = observed(rows)
    assert first[2]
    changed = rows.copy()
    changed[17] = images(1, 99)[0]
    for other in (rows[1:], np.concatenate([rows, images(1, 99)]), changed):
        second, _ = observed(other, noisy)
        assert second == first


def test_private_vectors_are_made_again_when_the_public_images_behind_them_change(made, tmp_path):
    public = cifar(tmp_path / "public.parquet", images(90, 9), "image")
    given = from_pool(made, f"api.path={public}", "data.id=null")
    run(tmp_path / "a", given)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "dpsyn/private"
    (first,) = [path for path in cache.iterdir() if (path / "complete.json").exists()]
    cifar(public, images(90, 10), "image")
    opened.cache_clear()
    run(tmp_path / "b", given)
    entries = [path for path in cache.iterdir() if (path / "complete.json").exists()]
    (second,) = [path for path in entries if path != first]
    assert (first / "000/0.vectors").read_bytes() != (second / "000/0.vectors").read_bytes()
    from dpsyn.embedding.patches import Patches

    made_now = build(compose.settings([*given, f"run_dir={tmp_path}/c"])).embed
    assert isinstance(made_now, Patches)
    (records,) = Images(str(made / "cifar/train.parquet")).batches(100)
    expected = made_now(Samples(records.samples.content))[::10]
    kept = np.frombuffer((second / "000/0.vectors").read_bytes(), np.float32).reshape(6, -1)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_a_metric_that_reads_the_private_files_is_not_public(made, tmp_path, capsys):
    given = from_pool(made, "metric=frechet", "metric.parts.frechet.public=true", "held_out.split=train")
    assert refused(tmp_path / "run", given, capsys).startswith("metric.parts.frechet.public: files of the private data")


def test_a_pool_that_dpsyn_released_is_refused(made, pooled, tmp_path, capsys):
    for place in ("release/synthetic.parquet", "release/iterations/001/samples.parquet"):
        text = refused(tmp_path / "run", from_pool(made, f"api.path={pooled / place}"), capsys)
        assert "not what dpsyn released" in text


def test_without_private_and_with_the_pool_moved_one_path_is_enough_to_expand(made, pooled, tmp_path):
    shutil.copytree(pooled, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/private")
    shutil.copytree(made / "pool", tmp_path / "moved")
    moved = f"api.path={tmp_path}/moved/pool.parquet"
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "50", "expand.degree=3", moved]) == 0
    assert len(pictures(tmp_path / "run/release/synthetic.parquet")) == 50


def test_a_run_without_votes_needs_a_degree_to_be_expanded(made, tmp_path, capsys):
    run(tmp_path / "run", from_pool(made, "schedule=none", "expand.rows=null", "expand.degree=null"))
    capsys.readouterr()
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "50"]) == 2
    assert capsys.readouterr().err.startswith("dpsyn: expand.degree=null: expected how far")
    assert cli.main(["expand", str(tmp_path / "run"), "--rows", "50", "expand.degree=2"]) == 0


def test_a_run_without_votes_names_the_other_runs_on_the_data(made, tmp_path):
    run(tmp_path / "one", from_pool(made, "expand.rows=null"))
    run(tmp_path / "two", from_pool(made, "expand.rows=null", "schedule=none"))
    said = json.loads((tmp_path / "two/release/privacy.json").read_text())
    assert said["epsilon"] == 0 and said["joint"]["runs"] == 2 and said["joint"]["epsilon"] > 0.9
    assert "known here: 2 runs with this one" in said["statement"]
