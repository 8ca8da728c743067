import io
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from dpsyn.data import Records
from dpsyn.data.digits import Digits
from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.metric.classifier import Classifier
from dpsyn.metric.frechet import Frechet, distance, moments
from dpsyn.population import Population, Samples, concatenate, take
from dpsyn.runs.picture import sample_grid
from dpsyn.runs.storage import from_parquet, to_parquet
from dpsyn.schedule.vital_signs import vital_signs


@dataclass(frozen=True)
class Given:
    """Images with labels, as held-out data."""

    images: np.ndarray
    targets: np.ndarray
    labels: tuple = tuple({"digit": str(i)} for i in range(10))

    def fingerprint(self):
        return sha256(self.images.tobytes()).hexdigest()

    def check(self):
        pass

    def batches(self, size):
        for start in range(0, len(self.images), size):
            rows = slice(start, start + size)
            yield Records(Samples(self.images[rows]), self.targets[rows])


def real(split):
    records = next(iter(Digits(split=split, id=None, records=None, on_error="refuse").batches(5000)))
    return records.samples.content, records.labels


def population(images, labels, survivors=None, traits=None, iteration=0):
    n = len(labels)
    kept = np.zeros(n, bool) if survivors is None else survivors
    return Population(iteration, Samples(images, traits or {}), np.asarray(labels), np.full(n, -1), kept)


def noise(n, h, w, c, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), np.uint8)


@pytest.mark.parametrize("directions", [0, 8])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 20, 3), (64, 64, 3)])
def test_an_image_is_embedded_the_same_to_the_last_bit_in_any_batch(shape, directions):
    images = noise(130, *shape)
    part = Pixels(size=[14, 10], blur=0.8, directions=directions, pool=4)
    whole = part(Samples(images))
    assert whole.dtype == np.float32
    for batch in (1, 2, 3, 17, 64):
        pieces = [part(Samples(images[k : k + batch])) for k in range(0, 130, batch)]
        assert (np.concatenate(pieces) == whole).all()


def test_pixels_are_areas_and_a_gaussian_with_nothing_beyond_the_border():
    images = noise(3, 28, 28, 1)
    halved = Pixels([14, 14], 0, 0, 1)(Samples(images)).reshape(3, 14, 14)
    blocks = images[..., 0].reshape(3, 14, 2, 14, 2).mean((2, 4)) / 255
    assert halved == pytest.approx(blocks, abs=1e-5)
    blurred = Pixels(None, 1.5, 0, 1)(Samples(images)).reshape(3, 28, 28)
    expected = [
        gaussian_filter(image / 255, 1.5, mode="constant", truncate=6) for image in images[..., 0].astype(float)
    ]
    assert blurred == pytest.approx(np.stack(expected), abs=1e-3)


def test_edges_tell_shapes_and_not_how_much_ink_there_is():
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[:, :, 8:] = 200
    edges = Pixels(None, 0, 4, 16)(Samples(image)).ravel()  # right, down, left, up
    assert edges[0] > 0
    assert edges[0] > 1.9 * edges[1:].max()  # the border of the picture is an edge too


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("size", {"size": [8]}),
        ("size", {"size": [8, 0]}),
        ("size", {"size": [8.5, 8]}),
        ("blur", {"blur": -1}),
        ("blur", {"blur": float("nan")}),
        ("blur", {"blur": "much"}),
        ("directions", {"directions": 1.5}),
        ("pool", {"pool": 0}),
    ],
)
def test_a_wrong_setting_of_the_pixels_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^embedding\.{key}=.*expected") as refused:
        Pixels(**{"size": None, "blur": 1, "directions": 0, "pool": 1, **wrong})
    assert "\n" not in str(refused.value)


def test_texts_are_no_pixels():
    with pytest.raises(UserError, match="expected images"):
        Pixels(None, 1, 0, 1)(Samples(np.array(["a"], dtype=object)))


def test_vital_signs_tell_noise_from_votes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 2000)
    silent = vital_signs(np.rint(rng.normal(0, 10, 4000)).astype(int), 10, labels, np.arange(4000))
    assert silent["signal_to_noise"] < 0.3
    votes = np.zeros(4000)
    votes[:40] = 1000
    loud = vital_signs(np.rint(votes + rng.normal(0, 10, 4000)).astype(int), 10, labels, np.zeros(7))
    assert loud["effective"] == pytest.approx(40, rel=0.1)
    assert loud["signal_to_noise"] == pytest.approx(votes[:2000].std() / 10 / 2**0.5, rel=0.1)
    assert loud["ancestors"] == 1
    for votes in (np.zeros(10, int), np.full(10, -5)):
        signs = vital_signs(votes, 0, np.zeros(10), np.arange(10))
        assert np.isfinite([signs["effective"], signs["top_tenth"]]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 60))
def test_streamed_moments_are_those_of_all_rows(seed, batch):
    rows = np.random.default_rng(seed).normal(3, 2, (90, 5)).astype(np.float32)
    mean, covariance = moments(rows[k : k + batch] for k in range(0, 90, batch))
    assert mean == pytest.approx(rows.astype(float).mean(0))
    assert covariance == pytest.approx(np.cov(rows.astype(float).T))


def test_the_frechet_distance_is_the_published_one():
    rng = np.random.default_rng(0)
    one, two = (moments([rng.normal(m, 1, (200, 6)) @ rng.normal(0, 1, (6, 6))]) for m in (0, 0.3))
    root = sqrtm(one[1] @ two[1]).real
    expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)
    assert distance(one, two) == pytest.approx(expected, rel=1e-8)
    assert distance(one, one) == pytest.approx(0, abs=1e-9)
    flat = (one[0], np.zeros((6, 6)))
    assert distance(one, flat) == pytest.approx(np.trace(one[1]))


def test_the_frechet_metric_is_private_unless_its_data_are_public():
    images, labels = real("all")
    embed = Pixels(None, 0, 0, 1)
    part = Frechet(Given(images, labels), embed, 100, False)
    assert part.private
    assert not Frechet(Given(images, labels), embed, 100, True).private
    same = part(population(images, labels))["frechet"]
    assert same == pytest.approx(0, abs=1e-6)
    assert part(population(255 - images, labels))["frechet"] > 1


def test_the_classifier_learns_real_digits_the_same_way_twice():
    import torch

    images, labels = real("train")
    part = Classifier(Given(*real("test")), 8, 64, 0.003, 0, "cpu", False)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = part(population(images, labels))["accuracy"]
    assert (torch.random.get_rng_state() == before).all()
    assert first > 0.9
    assert part(population(images, labels))["accuracy"] == first
    big = np.repeat(np.repeat(images, 2, 1), 2, 2)
    assert part(population(big, labels))["accuracy"] > 0.85  # real ones are resized to the synthetic


def test_metrics_without_real_data_say_so():
    for part in (Classifier(None, 1, 1, 0.1, 0, "cpu", False), Frechet(None, None, 1, False)):
        with pytest.raises(UserError, match="held_out=null"):
            part.check()


def test_the_grid_is_bounded_shows_survivors_first_and_is_the_same_every_time():
    labels = [{"digit": str(i)} for i in range(30)]
    many = [
        population(noise(600, 28, 28, 1, t), np.arange(600) % 30, np.arange(600) >= 300, iteration=t) for t in range(40)
    ]
    grid = sample_grid(many, labels)
    assert max(grid.size) < 2500
    assert grid.tobytes() == sample_grid(many, labels).tobytes()
    one = population(np.stack([np.full((9, 9, 3), v, np.uint8) for v in (10, 200)]), [0, 0], np.array([False, True]))
    picture = np.asarray(sample_grid([one], [{}], columns=1))
    assert (picture == 200).all(2).any()
    assert not (picture == 10).all(2).any()
    with pytest.raises(TypeError):
        sample_grid([population(np.array(["a"], dtype=object), [0])], [{}])


CONTENT = {
    "grey": noise(6, 9, 7, 1),
    "colour": noise(6, 8, 8, 3),
    "texts": np.array(["a", "{b}", "", "é\n", '"', "x" * 1000], dtype=object),
}


def test_a_picture_has_the_same_bytes_every_time():
    def png():
        sink = io.BytesIO()
        sample_grid([population(noise(40, 8, 8, 3), np.arange(40) % 4)], [{"d": str(i)} for i in range(4)]).save(
            sink, "PNG"
        )
        return sink.getvalue()

    assert png() == png()


@pytest.mark.parametrize("kind", CONTENT)
def test_a_checkpoint_comes_back_as_it_was(kind):
    rng = np.random.default_rng(0)
    traits = {
        "class": rng.integers(0, 1000, 6),
        "warp": rng.normal(size=(6, 2, 3, 3)).astype(np.float32),
        "font": np.array(["A.ttf", "B.ttf"] * 3),
        "words": np.array(["one", "two", "", "four", "five", "six"], dtype=object),
        "flag": np.array([True, False] * 3),
        "small": rng.integers(0, 256, (6, 3), np.uint8),
        "exact": rng.normal(size=(6, 2, 2)),
        "seed": rng.integers(0, 2**64, 6, np.uint64),
    }
    before = population(CONTENT[kind], [0, 1, 0, 1, 0, 1], np.array([True, False] * 3), traits, iteration=3)
    labels = [{"a": "x", "b": "1"}, {"a": "y", "b": "2"}]
    after = from_parquet(to_parquet(before, labels), "here")
    assert after.iteration == 3
    for name in ("labels", "parents", "survivors"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert (after.samples.content == before.samples.content).all()
    for name, values in traits.items():
        assert after.samples.traits[name].dtype == values.dtype
        assert (after.samples.traits[name] == values).all()
    few = from_parquet(to_parquet(before, labels), "here", per_label=2)
    assert np.bincount(few.labels).tolist() == [2, 2]
    assert few.survivors[few.labels == 0].all()


def test_others_read_what_is_written(tmp_path):
    import datasets
    import pandas

    path = tmp_path / "synthetic.parquet"
    path.write_bytes(
        to_parquet(population(CONTENT["grey"], [0, 1, 0, 1, 0, 1]), [{"d": "no"}, {"d": "yes"}], lineage=False)
    )
    read = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == ["no", "yes"]
    assert read[1]["label"] == 1
    assert isinstance(read[2]["image"], Image.Image)
    assert (np.asarray(read[2]["image"]) == CONTENT["grey"][2, ..., 0]).all()
    streamed = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    assert (np.asarray(next(iter(streamed))["image"]) == CONTENT["grey"][0, ..., 0]).all()
    assert list(pandas.read_parquet(path).columns) == ["image", "label"]


def test_a_file_that_is_no_checkpoint_is_named():
    for content in (b"", b"PAR1"):
        with pytest.raises(UserError, match="over there: not a checkpoint"):
            from_parquet(content, "over there")


def test_rows_stay_aligned():
    samples = Samples(CONTENT["grey"], {"t": np.arange(6)})
    both = concatenate([take(samples, np.array([5, 0])), samples])
    assert both.traits["t"].tolist() == [5, 0, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="traits differ"):
        concatenate([samples, Samples(CONTENT["grey"])])
    with pytest.raises(ValueError, match="t has 5 rows"):
        Samples(CONTENT["grey"], {"t": np.arange(5)})


def test_images_of_many_bytes_stand_in_several_groups_and_come_back(monkeypatch):
    images = noise(50, 8, 8, 3)
    before = population(images, np.arange(50) % 10, survivors=np.arange(50) < 20, traits={"n": np.arange(50)})
    whole = to_parquet(before, [{"digit": str(i)} for i in range(10)])
    monkeypatch.setattr("dpsyn.runs.storage.GROUP_BYTES", 7 * images[:1].nbytes)
    content = to_parquet(before, [{"digit": str(i)} for i in range(10)])
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 8
    assert pq.ParquetFile(io.BytesIO(whole)).num_row_groups == 1
    after = from_parquet(content, "here")
    np.testing.assert_array_equal(after.samples.content, images)
    np.testing.assert_array_equal(after.samples.traits["n"], np.arange(50))
    few = from_parquet(content, "here", per_label=2)
    assert len(few) == 20
    np.testing.assert_array_equal(few.samples.content, images[few.samples.traits["n"]])
