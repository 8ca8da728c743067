import dataclasses
import importlib.abc
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import yaml
from PIL import Image

from dpsyn import errors
from dpsyn.api import avatar as module
from dpsyn.api.avatar import CHUNK, OFTEN_NONE, Avatar, random_rows
from dpsyn.api.avatar.faces import PARAMETERS, names, pictures, values
from dpsyn.compose import config_folder
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Population, Samples, take
from dpsyn.processes import end_kept, kept
from dpsyn.runs.storage import from_parquet, to_parquet

ARGUMENTS = yaml.safe_load((config_folder() / "api/avatar.yaml").read_text())
ARGUMENTS.pop("_target_")
N = 200
PUBLISHED = Avatar(**ARGUMENTS, runtime=Runtime(workers=0))


def missing():
    for package in ("python_avatars", "cairosvg"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    try:
        import cairosvg  # noqa: F401
    except OSError:
        return "libcairo is not installed"
    return ""


drawing = pytest.mark.skipif(bool(missing()), reason=missing() or "never")


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


def generated(api, n, start=0):
    return api.generate([{}] * n, seeds(n, start))


@pytest.fixture(scope="module")
def faces():
    return generated(PUBLISHED, N)


def drawn_plainly(traits, size, crop):
    """As it is published: python_avatars writes an SVG, cairosvg a PNG of it, which Pillow cuts and resizes."""
    import cairosvg
    import python_avatars as pa

    images = []
    for row in zip(*(traits[name].tolist() for name in PARAMETERS), strict=True):
        members = {}
        for (name, enum), value in zip(PARAMETERS.items(), row, strict=True):
            if enum == "TopType":
                enum = "HatType" if value.startswith("HAT:") else "HairType"
            members[name] = getattr(pa, enum)[value.removeprefix("HAT:")]
        png = cairosvg.svg2png(bytestring=pa.Avatar(**members, shirt_text=None).render())
        image = Image.open(io.BytesIO(png)).convert("RGB")
        image = image.crop(crop) if crop else image
        images.append(np.asarray(image.resize((size[1], size[0]))))
    return np.stack(images)


@drawing
@pytest.mark.parametrize(
    "size, crop", [([32, 32], [40, 40, 224, 224]), ([280, 264], None), ([50, 20], [0, 9, 264, 77])]
)
def test_a_face_is_to_the_byte_what_python_avatars_and_cairosvg_draw(size, crop):
    samples = generated(Avatar(size, crop, Runtime(workers=0)), 20, size[0])
    assert (samples.content == drawn_plainly(samples.traits, size, crop)).all()


def rows(n, **chosen):
    """n rows that differ in nothing but colours, which are all met, and in what is chosen."""
    table = np.arange(n)[:, None] % [len(values(name)) for name in PARAMETERS]
    for k, name in enumerate(PARAMETERS):
        if not name.endswith("_color"):
            table[:, k] = names(name).index(chosen.get(name, "DEFAULT")) if name in chosen else table[0, k]
    return table


@drawing
@pytest.mark.parametrize(
    "chosen",
    [
        {"style": "CIRCLE", "eyebrows": "DEFAULT", "eyes": "DEFAULT", "nose": "DEFAULT", "mouth": "DEFAULT"},
        {"style": "TRANSPARENT", "top": "HAT:HAT", "facial_hair": "BEARD_LIGHT", "accessory": "ROUND"},
        {"style": "CIRCLE", "top": "HAT", "facial_hair": "MOUSTACHE_FANCY", "accessory": "SUNGLASSES_2"},
        {"style": "CIRCLE", "top": "NONE", "facial_hair": "BEARD_LIGHT", "clothing": "NONE"},
        {"style": "CIRCLE", "clothing": "GRAPHIC_SHIRT", "shirt_graphic": "CUSTOM_TEXT"},
        {"style": "CIRCLE", "clothing": "GRAPHIC_SHIRT", "shirt_graphic": "NONE"},
    ],
    ids=["one file name four times", "a hat", "hair called as the hat", "bald", "text", "no graphic"],
)
def test_what_is_kept_of_a_part_serves_every_colour_of_it(chosen):
    samples = PUBLISHED.drawn(rows(14, **chosen))
    assert (samples.content == drawn_plainly(samples.traits, [32, 32], [40, 40, 224, 224])).all()
    assert len(np.unique(samples.content, axis=0)) > 9


@drawing
def test_traits_are_the_16_parameters_by_name_and_come_back_from_disk(faces):
    assert list(faces.traits) == list(PARAMETERS)
    assert len(faces.traits) == 16
    n = len(faces)
    population = Population(0, faces, np.zeros(n, np.int64), np.full(n, -1), np.zeros(n, bool))
    back = from_parquet(to_parquet(population, [{}]), "test").samples
    for name, column in faces.traits.items():
        assert (back.traits[name] == column).all(), name
    one, two = (PUBLISHED.vary(samples, [{}] * n, 0.3, seeds(n, 2)) for samples in (faces, back))
    assert (one.content == two.content).all()


@drawing
def test_values_are_uniform_but_half_of_the_faces_have_no_beard_and_half_no_glasses():
    table = random_rows(seeds(40000), "avatar.fresh")
    for k, name in enumerate(PARAMETERS):
        counts = np.bincount(table[:, k], minlength=len(values(name)))
        if name in ("facial_hair", "accessory"):
            none = names(name).index("NONE")
            assert counts[none] / 40000 == pytest.approx(0.5 + 0.5 / len(counts), abs=0.015)
            counts = np.delete(counts, none)
        expected = counts.sum() / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 2 * len(counts) + 30, name
    codes = table - table.mean(0)
    correlations = np.abs(np.corrcoef(codes.T) - np.eye(16))
    assert correlations.max() < 0.03


@drawing
@pytest.mark.parametrize("degree", [0, 0.06, 0.4, 1])
def test_a_parameter_keeps_its_value_with_probability_one_minus_the_degree(degree, monkeypatch):
    monkeypatch.setattr(module, "pictures", lambda rows, size, crop: np.zeros((len(rows), *size, 3), np.uint8))
    first = generated(PUBLISHED, 20000)
    second = PUBLISHED.vary(first, [{}] * 20000, degree, seeds(20000, 1))
    changed = {name: (second.traits[name] != first.traits[name]).mean() for name in PARAMETERS}
    for name, share in changed.items():
        n = len(values(name))
        same = 1 / n if name not in OFTEN_NONE else (0.5 + 0.5 / n) ** 2 + (n - 1) * (0.5 / n) ** 2
        assert share == pytest.approx(degree * (1 - same), abs=0.015), name
    none = first.traits["accessory"] == "NONE"
    moved = second.traits["accessory"][none] != "NONE"
    assert moved.mean() == pytest.approx(degree * 0.45, abs=0.015)


@drawing
def test_neither_batch_nor_order_nor_label_changes_a_sample(faces):
    some = np.array([N - 1, 3, 3, 64, 150])
    alone = PUBLISHED.generate([{"Male": "True"}] * 5, seeds(N)[some])
    assert (alone.content == faces.content[some]).all()
    varied = PUBLISHED.vary(faces, [{}] * N, 0.5, seeds(N, 1))
    few = PUBLISHED.vary(take(faces, some), [{"Male": "True"}] * 5, 0.5, seeds(N, 1)[some])
    assert (few.content == varied.content[some]).all()
    assert all((few.traits[name] == varied.traits[name][some]).all() for name in PARAMETERS)
    assert (varied.content != faces.content).any((1, 2, 3)).mean() > 0.9


@drawing
def test_no_rows_give_no_rows():
    none = generated(PUBLISHED, 0)
    assert none.content.shape == (0, 32, 32, 3)
    assert PUBLISHED.vary(none, [], 0.5, seeds(0)).content.shape == (0, 32, 32, 3)


@drawing
def test_equal_rows_are_drawn_once(faces, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "pictures", lambda rows, *rest: asked.append(len(rows)) or pictures(rows, *rest))
    again = PUBLISHED.vary(take(faces, np.array([1, 2, 1, 1, 2])), [{}] * 5, 0, seeds(5))
    assert asked == [2]
    assert (again.content == faces.content[[1, 2, 1, 1, 2]]).all()


@pytest.fixture
def pool():
    yield
    end_kept(2)


@drawing
def test_workers_change_no_sample_and_are_kept(faces, pool):
    api = dataclasses.replace(PUBLISHED, runtime=Runtime(workers=2))
    some = take(faces, np.arange(CHUNK + 1))
    assert (api.vary(some, [{}] * len(some), 0, seeds(len(some), 1)).content == some.content).all()
    first = [worker.process.pid for worker in kept(2)]
    many = rows(200)
    assert (api.drawn(many).content == PUBLISHED.drawn(many).content).all()
    assert [worker.process.pid for worker in kept(2)] == first
    assert pickle.loads(pickle.dumps(api)) == api


@drawing
def test_a_worker_that_dies_is_one_line_and_the_next_call_has_new_ones(pool):
    api = dataclasses.replace(PUBLISHED, runtime=Runtime(workers=2))
    kept(2)[1].process.kill()
    with pytest.raises(UserError, match=r"api avatar: a worker ended .*status -9.*runtime\.workers=0") as refused:
        api.drawn(rows(200))
    assert "\n" not in str(refused.value)
    assert (api.drawn(rows(200)).content == PUBLISHED.drawn(rows(200)).content).all()


@drawing
def test_a_process_that_is_a_worker_draws_by_itself(monkeypatch):
    monkeypatch.setattr(module, "is_worker", lambda: True)
    monkeypatch.setattr(module, "kept", lambda workers: pytest.fail("a worker of a worker"))
    assert len(generated(dataclasses.replace(PUBLISHED, runtime=Runtime(workers=2)), 70)) == 70


PROGRAM = """
import os, signal, sys, threading
import numpy as np
from dpsyn.api.avatar.faces import pictures
from dpsyn.processes import kept, shared_out
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background is started deaf to it
each = [(np.zeros((64, 16), np.int64), (32, 32), (0, 0, 264, 280))] * 3
pool = kept(2)
shared_out(pool, pictures, each)
print(*(worker.process.pid for worker in pool), flush=True)
threading.Timer(0.1, os.kill, [os.getpid(), int(sys.argv[1])]).start()
while True:
    shared_out(pool, pictures, each)
"""


@drawing
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_no_worker_outlives_the_process_that_started_it(how, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(PROGRAM)
    ended = subprocess.run([sys.executable, str(script), str(int(how))], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -how
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": [32]}, "api.image_size="),
        ({"image_size": 32}, "api.image_size="),
        ({"image_size": [0, 32]}, "api.image_size="),
        ({"image_size": "32"}, "api.image_size="),
        ({"crop": [0, 0, 300, 10]}, "api.crop="),
        ({"crop": [50, 0, 40, 10]}, "api.crop="),
        ({"crop": [0.5, 0, 40, 10]}, "api.crop="),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(UserError) as refused:
        dataclasses.replace(PUBLISHED, **changes)
    assert str(refused.value).startswith(message)
    assert "expected" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("degree", [-0.1, 1.1, True, "a", float("nan"), {"top": 0.1}])
def test_what_is_no_degree_is_one_line(degree):
    with pytest.raises(UserError, match=r"^schedule\.degree=.*expected") as refused:
        PUBLISHED.check_degree(degree)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("package", ["python_avatars", "cairosvg"])
def test_a_missing_package_is_one_line(package, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == package else "here")
    for ask in (PUBLISHED.check, lambda: generated(PUBLISHED, 1)):
        with pytest.raises(
            UserError, match=rf"^api=avatar: expected the package {package.replace('_', '-')}\. .*dpsyn\[avatar\]"
        ):
            ask()


class NoCairo(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "cairosvg":
            raise OSError("no library called cairo was found\nmany lines follow")


def test_a_missing_libcairo_is_one_line(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: "here")
    monkeypatch.delitem(sys.modules, "cairosvg", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoCairo(), *sys.meta_path])
    with pytest.raises(UserError, match=r"^api=avatar: expected the system's library libcairo.*libcairo2") as refused:
        PUBLISHED.check()
    assert "\n" not in str(refused.value)


def test_nothing_is_imported_until_something_is_drawn():
    program = (
        f"import sys; from dpsyn.api.avatar import Avatar; Avatar(**{ARGUMENTS!r}).row_bytes;"
        "assert not {'python_avatars', 'cairosvg', 'cairocffi', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@drawing
def test_samples_of_another_api_are_refused():
    with pytest.raises(UserError, match=r"^api avatar: the samples lack the traits accessory, .*another api"):
        PUBLISHED.vary(Samples(np.zeros((1, 32, 32, 3), np.uint8)), [{}], 0.1, seeds(1))


@drawing
def test_a_value_that_this_python_avatars_does_not_have_is_named(faces):
    strange = {**take(faces, np.arange(3)).traits, "top": np.array(["BOB", "BEEHIVE", "BUN"])}
    with pytest.raises(UserError, match=r"^api avatar, top=BEEHIVE: expected a value .*version of python_avatars"):
        PUBLISHED.vary(Samples(faces.content[:3], strange), [{}] * 3, 0.1, seeds(3))
