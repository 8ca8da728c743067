"""One door: given the receipts, nothing outside `private/` depends on the private data."""

import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import Seeing
from harness import digits, files, own_data, parquet, png, run, same_noise
from image_server import ImageServer
from PIL import Image

from dpsyn import compose
from dpsyn.api.draw_text import DrawText

CANARY = (np.arange(64, dtype=np.uint8).reshape(8, 8) * 37 + 11).astype(np.uint8)
ROWS = digits(137)
ODD = {"image": png(CANARY), "label": "3", "user": "canary-user"}
USERS = ["privacy.unit=user", "data.unit_column=user"]
NOISY_SHARES = ["label_shares=noisy"]
SUMS = ["schedule.candidates=400"]
SKIP = ["data.on_error=skip", "data.max_refused=0.1"]

NEIGHBOURS = {
    "one record more": ([*ROWS, ODD], []),
    "one record more, first": ([ODD, *ROWS], []),
    "one record less": (ROWS[1:], []),
    "one record replaced": ([*ROWS[:50], ODD, *ROWS[51:]], ["privacy.adjacency=replace"]),
    "a record that is no image": ([*ROWS[:9], {**ROWS[9], "image": b"canary-bytes"}, *ROWS[10:]], SKIP),
    "a record of an undeclared label": ([*ROWS, {**ODD, "label": "canary-label"}], SKIP),
    "a record of nobody": ([*ROWS, {**ODD, "user": None}], USERS),
    "a user with many records less": ([row for row in ROWS if row["user"] != "u3"], USERS),
    "a user with many records more": ([*ROWS, *[{**ODD, "label": str(i % 10)} for i in range(30)]], USERS),
    "one record more, noisy label shares": ([*ROWS, ODD], NOISY_SHARES),
    "a user with many records less, noisy label shares": (
        [row for row in ROWS if row["user"] != "u3"],
        [*USERS, *NOISY_SHARES],
    ),
    "one record more, sums of embeddings": ([*ROWS, ODD], [*SUMS, *NOISY_SHARES]),
    "one record replaced, sums of embeddings": ([*ROWS[:50], ODD, *ROWS[51:]], [*SUMS, "privacy.adjacency=replace"]),
    "a user with many records more, sums of embeddings": (
        [*ROWS, *[{**ODD, "label": str(i % 10)} for i in range(30)]],
        [*USERS, *SUMS],
    ),
    "no record at all of a label": ([row for row in ROWS if row["label"] != "7"], []),
}


def observed(folder, rows, overrides, monkeypatch, capfd, noisy=None):
    """A run on `rows`: (released files with their dates, all that was printed, all requests to the api, its noise)"""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = parquet(folder / "data.parquet", rows)
    requests = []
    with monkeypatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        recorded = same_noise(patched, noisy)
        for name in ("generate", "vary"):
            patched.setattr(DrawText, name, _overheard(getattr(DrawText, name), requests))
        printed = run(folder / "run", *own_data(data, *overrides))
    stdout, stderr = capfd.readouterr()
    released = folder / "run" / "release"
    dates = {str(path.relative_to(released)): path.stat().st_mtime for path in released.rglob("*")}
    return (files(released), dates, printed.replace(str(folder), ""), stdout, stderr, requests), recorded


def _overheard(real, requests):
    def call(self, *arguments):
        for argument in arguments:
            if hasattr(argument, "content"):
                traits = sorted(argument.traits.items())
                requests.append((argument.content.tobytes(), [(k, v.astype(str).tobytes()) for k, v in traits]))
            else:
                requests.append(argument.tobytes() if isinstance(argument, np.ndarray) else repr(argument))
        return real(self, *arguments)

    return call


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_given_the_receipts_neighbouring_data_give_the_same_bytes_everywhere(name, tmp_path, monkeypatch, capfd):
    rows, overrides = NEIGHBOURS[name]
    first, noisy = observed(tmp_path / "run", ROWS, overrides, monkeypatch, capfd)
    second, _ = observed(tmp_path / "run", rows, overrides, monkeypatch, capfd, noisy)
    for one, two in zip(first, second, strict=True):
        assert one == two
    assert "privacy.json" in first[0]
    assert first[5]


PAINTED = ["api=image_endpoint", "api.model=m", "api.api_key_env=null", "api.prompts='a {digit}'", "api.size=16x16"]
PAINTED += ["api.edits=[more,less]", "api.image_size=[8,8]", "data.mode=RGB", "schedule.degree=0.5"]
PAINTED += ["schedule.size=10", "schedule.releases=1", "schedule.lookahead=0", "expand.rows=null"]


def test_a_run_asks_the_same_whatever_a_run_without_protection_has_asked_before(tmp_path, monkeypatch):
    def asked(name, rows_before=None, noisy=None):
        folder = tmp_path / name
        folder.mkdir()
        with ImageServer() as server, monkeypatch.context() as patched:
            patched.setenv("XDG_STATE_HOME", str(folder / "state"))
            patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            painted = [*PAINTED, f"api.base_url={server.url}"]
            if rows_before is not None:
                run(
                    folder / "bare",
                    *own_data(parquet(folder / "before.parquet", rows_before), *painted, "privacy=none"),
                )
                assert len(server.log) > 10
                server.log.clear()
            recorded = same_noise(patched, noisy)
            run(folder / "run", *own_data(parquet(folder / "data.parquet", ROWS), *painted))
        requests = [(repr(one.fields), None if one.parent is None else one.parent.tobytes()) for one in server.log]
        return sorted(requests, key=repr), recorded

    alone, noisy = asked("alone")
    assert len(alone) > 10
    assert alone == asked("after", [*ROWS, ODD], noisy)[0]
    for folder in (tmp_path / "after/cache/dpsyn").iterdir():
        assert folder.stat().st_mode & 0o777 == 0o700


def test_canaries_are_found_nowhere_outside_private(tmp_path, monkeypatch, capfd):
    odd = [{**ODD, "image": b"canary-bytes"}, {**ODD, "label": "canary-label"}, *[ODD] * 1234, *ROWS]  # 1,373 rows
    (released, _, *printed, _), _ = observed(tmp_path, odd, SKIP, monkeypatch, capfd)
    visible = b"\0".join(released.values()) + repr(printed).encode()
    for canary in (b"canary", CANARY.tobytes(), ODD["image"]):
        assert canary not in visible
    for number in (b"1373", b"1371", b"1,373", b"1,371", b"1234"):  # as numbers: a digest may have any digits
        assert not re.search(rb"(?<![\w.,])" + number + rb"(?![\w,])", visible)
    for name, content in files(tmp_path).items():
        if not name.startswith(("run/private/", "cache/dpsyn/private/", "data.parquet")):
            assert b"canary" not in content, name
    for name in released:  # and inside what is compressed
        if name.endswith(".parquet") and "votes" not in name:
            for image in pq.read_table(tmp_path / "run/release" / name)["image"].to_pylist():
                assert not np.array_equal(np.asarray(Image.open(io.BytesIO(image["bytes"]))), CANARY)
    private = b"".join(files(tmp_path / "run" / "private").values())
    assert b"canary-label" in private
    assert not re.search(rb"(?<![\w.,])1371(?![\w,])", private)  # not even there: nothing counts them


def test_what_is_released_names_no_place_and_bears_one_date(tmp_path, monkeypatch, capfd):
    (released, dates, *_), _ = observed(tmp_path, ROWS, [], monkeypatch, capfd)
    assert set(dates.values()) == {315532800.0}
    everything = b"\0".join(released.values())
    for place in (str(tmp_path), "data.parquet", str(Path.home())):
        assert place.encode() not in everything


def test_real_noise_differs_between_two_runs_of_one_seed(tmp_path, monkeypatch, capfd):
    _, one = observed(tmp_path / "a", ROWS, [], monkeypatch, capfd)
    _, two = observed(tmp_path / "b", ROWS, [], monkeypatch, capfd)
    assert (one[0] != two[0]).any()


@dataclasses.dataclass(frozen=True)
class WithoutPixels(Seeing):
    """An embedding that gives NaN for the canary, as a broken network may."""

    inner: object

    def __call__(self, samples):
        vectors = self.inner(samples).copy()
        vectors[[np.array_equal(image[..., 0], CANARY) for image in samples.content]] = np.nan
        return vectors


def test_a_record_whose_vector_is_nan_changes_nothing_that_is_released(tmp_path, monkeypatch, capfd):
    build = compose.build

    def with_nan(*arguments):
        made = build(*arguments)
        return dataclasses.replace(made, embed=WithoutPixels(made.embed))

    monkeypatch.setattr(compose, "build", with_nan)
    first, noisy = observed(tmp_path / "run", ROWS, [], monkeypatch, capfd)
    second, _ = observed(tmp_path / "run", [*ROWS[:40], ODD, *ROWS[40:]], [], monkeypatch, capfd, noisy)
    assert first == second


def test_metrics_on_the_private_data_are_seen_nowhere_but_in_private(tmp_path, monkeypatch, capfd):
    judged = ["metric=frechet", "metric.every_n_releases=1", "held_out=${data}"]
    first, noisy = observed(tmp_path / "run", ROWS, judged, monkeypatch, capfd)
    numbers = (tmp_path / "run/run/private/metrics.jsonl").read_bytes()
    second, _ = observed(tmp_path / "run", [*ROWS, *[ODD] * 9], judged, monkeypatch, capfd, noisy)
    assert first == second
    assert numbers.count(b"frechet") >= 2
    assert (tmp_path / "run/run/private/metrics.jsonl").read_bytes() != numbers
