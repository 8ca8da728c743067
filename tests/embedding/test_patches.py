from dataclasses import dataclass

import numpy as np
import pytest

from dpsyn.data import Records
from dpsyn.data.digits import Digits
from dpsyn.embedding import patches as module
from dpsyn.embedding.patches import Patches
from dpsyn.errors import UserError
from dpsyn.files import public_cache
from dpsyn.population import Samples

DIGITS = Digits(split="all", id=None, records=None)


@dataclass(frozen=True)
class Images:
    content: np.ndarray

    def check(self):
        pass

    def fingerprint(self):
        return str(self.content.sum())

    def batches(self, size):
        for start in range(0, len(self.content), size):
            rows = self.content[start : start + size]
            yield Records(Samples(rows), np.zeros(len(rows), np.int64))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(module, "PATCHES", 4000)
    monkeypatch.setattr(module, "ROUNDS", 3)


def part(data=DIGITS, **changes):
    return Patches(**{"data": data, "size": 3, "filters": 32, "stride": 1, "dimension": 40, "seed": 0, **changes})


def digits():
    records = next(DIGITS.batches(2000))
    return records.samples.content, records.labels


def noise(n, h, w, c):
    return np.random.default_rng(0).integers(0, 256, (n, h, w, c), np.uint8)


def test_vectors_have_the_stated_shape_and_length_one_and_are_the_same_in_any_batch():
    images, _ = digits()
    vectors = part()(Samples(images[:150]))
    assert vectors.shape == (150, 40) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(1).permutation(150)
    np.testing.assert_allclose(part()(Samples(images[:150][order])), vectors[order], atol=1e-6)
    np.testing.assert_allclose(part()(Samples(images[7:8])), vectors[7:8], atol=1e-6)
    assert part()(Samples(images[:0])).shape == (0, 40)


def test_the_answers_of_the_filters_are_those_of_whitened_patches_one_by_one():
    images, learned = noise(2, 9, 9, 3), part(Images(noise(40, 9, 9, 3))).learned
    pooled = module.pool_patches(images, learned, 1, "cpu").reshape(2, 32, 2, 2)
    pixels = images.astype(np.float64) / 127.5 - 1
    for image in range(2):
        answers = np.zeros((32, 7, 7))
        for y in range(7):
            for x in range(7):
                patch = pixels[image, y : y + 3, x : x + 3].transpose(2, 0, 1)
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + module.CONTRAST)
                answer = (learned["filters"] * patch).sum((1, 2, 3)) - learned["bias"]
                answers[:, y, x] = np.maximum(answer - module.THRESHOLD, 0)
        quarters = [answers[:, i, j].mean((1, 2)) for i in (slice(4), slice(3, 7)) for j in (slice(4), slice(3, 7))]
        np.testing.assert_allclose(pooled[image].reshape(32, 4).T, quarters, rtol=1e-3, atol=1e-5)


def test_nearest_digits_are_the_same_digit_more_often_than_by_pixels():
    images, labels = digits()
    found = {}
    for name, vectors in (("patches", part()(Samples(images))), ("pixels", images.reshape(len(images), -1) / 255.0)):
        squares = (vectors**2).sum(1)
        distances = squares[:300, None] + squares[None, 300:] - 2 * vectors[:300] @ vectors[300:].T
        found[name] = (labels[300:][distances.argmin(1)] == labels[:300]).mean()
    assert found["patches"] > 0.93
    assert found["patches"] > found["pixels"] - 0.02


def test_it_learns_once_and_again_when_the_images_change(monkeypatch):
    calls = []
    learn = module.learn
    monkeypatch.setattr(module, "learn", lambda *arguments: calls.append(1) or learn(*arguments))
    first = part()(Samples(digits()[0][:5]))
    np.testing.assert_array_equal(part()(Samples(digits()[0][:5])), first)
    assert len(calls) == 1
    assert len(list((public_cache() / "patches").iterdir())) == 1
    part(Images(noise(50, 8, 8, 1)))(Samples(digits()[0][:5]))
    assert len(calls) == 2
    assert part().fingerprint() != part(Images(noise(50, 8, 8, 1))).fingerprint()


def test_grey_and_coloured_images_are_seen_alike():
    grey = digits()[0][:20]
    np.testing.assert_allclose(part()(Samples(np.repeat(grey, 3, axis=3))), part()(Samples(grey)), atol=1e-4)


def test_a_flat_image_has_a_finite_vector():
    flat = np.zeros((3, 8, 8, 1), np.uint8)
    assert np.isfinite(part()(Samples(flat))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": 0}, "embedding.filters=0"),
        ({"size": 1}, "embedding.size=1"),
        ({"dimension": 200}, "embedding.dimension=200: expected at most four times"),
        ({"stride": 1.5}, "embedding.stride=1.5"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        part(**changes)


def test_images_that_are_missing_too_few_or_too_small_are_one_line():
    with pytest.raises(UserError, match=r"^embedding.data=null: expected public images"):
        part(None).check()
    with pytest.raises(UserError, match="too few rows"):
        part(Images(noise(1, 8, 8, 1)))(Samples(noise(2, 8, 8, 1)))
    with pytest.raises(UserError, match=r"^embedding.size=3"):
        part()(Samples(noise(2, 3, 3, 1)))
    with pytest.raises(UserError, match="expected images"):
        part()(Samples(np.array(["a"], object)))


def test_images_read_in_another_way_are_learned_from_anew():
    @dataclass(frozen=True)
    class Read(Images):
        side: int = 8

        def fingerprint(self):
            return "the same files"

    small, large = Read(noise(60, 8, 8, 1)), Read(noise(60, 16, 16, 1), 16)
    some = Samples(noise(5, 16, 16, 1))
    part(small)(some)
    alone = module.learn(module.images_of(large), 3, 32, 1, 40, 0)
    np.testing.assert_array_equal(part(large).learned["filters"], alone["filters"])
