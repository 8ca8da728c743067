"""What tests/test_parts.py leaves open about the pixels: every size and layout, empty batches, wrong settings."""

import numpy as np
import pytest

from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.population import Samples

BATCHES = (1, 2, 3, 5, 7, 16, 31, 64, 100)


def noise(n, side, channels):
    return np.random.default_rng(side).integers(0, 256, (n, side, side, channels), np.uint8)


@pytest.mark.parametrize("directions", [0, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("size", [None, [8, 8], [28, 28], [1, 7]])
def test_a_row_does_not_depend_on_the_batch_the_other_rows_or_the_layout(size, side, channels, directions):
    images = noise(100, side, channels)
    part = Pixels(size, 1.0, directions, 4)
    whole = part(Samples(images))
    assert whole.dtype == np.float32
    for batch in BATCHES:
        start = (17 * batch) % (100 - batch + 1)
        assert np.array_equal(part(Samples(images[start : start + batch])), whole[start : start + batch])
    order = np.random.default_rng(1).permutation(100)
    assert np.array_equal(part(Samples(images[order])), whole[order])
    assert np.array_equal(part(Samples(images[::3])), whole[::3])
    assert np.array_equal(part(Samples(np.asfortranarray(images))), whole)


def test_values_stay_between_0_and_1_and_colours_stay_apart():
    assert Pixels([5, 9], 2.0, 0, 1)(Samples(np.full((1, 28, 28, 1), 255, np.uint8))).max() <= 1 + 1e-6
    inner = Pixels(None, 0.5, 0, 1)(Samples(np.full((1, 28, 28, 1), 255, np.uint8))).reshape(28, 28)[8:20, 8:20]
    assert inner == pytest.approx(1, abs=1e-4)
    images = noise(4, 28, 3)
    part = Pixels([14, 14], 1.0, 0, 1)
    alone = [part(Samples(images[..., [c]])) for c in range(3)]
    assert np.array_equal(part(Samples(images)), np.concatenate(alone, axis=1))


@pytest.mark.parametrize("directions", [0, 8])
def test_no_images_give_no_vectors_of_the_same_length(directions):
    part = Pixels([14, 10], 1.0, directions, 4)
    one = part(Samples(noise(1, 28, 3)))
    assert part(Samples(noise(0, 28, 3))).shape == (0, one.shape[1])


@pytest.mark.parametrize(
    "content",
    [
        np.array(["a"], dtype=object),
        np.zeros(3, [("age", "f8")]),
        np.zeros((3, 28, 28), np.uint8),
        np.zeros((3, 28, 28, 1), np.float32),
    ],
    ids=["texts", "table", "no channels", "floats"],
)
def test_what_are_no_uint8_images_is_refused(content):
    with pytest.raises(UserError, match="expected images"):
        Pixels(None, 1.0, 0, 1)(Samples(content))


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("size", 8),
        ("size", True),
        ("size", "88"),
        ("size", [True, 2]),
        ("blur", True),
        ("blur", None),
        ("blur", float("inf")),
        ("directions", True),
        ("pool", True),
    ],
)
def test_a_setting_of_the_wrong_kind_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^embedding\.{key}=.*expected"):
        Pixels(**{"size": None, "blur": 1.0, "directions": 0, "pool": 1, key: wrong})
