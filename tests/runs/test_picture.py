"""What tests/test_parts.py leaves open about the picture: bounds for any image, what is shown, captions."""

import numpy as np
import pytest

from dpsyn.population import Population, Samples
from dpsyn.runs.picture import sample_grid, sample_texts


def population(images, labels, survivors=None, iteration=0):
    n = len(labels)
    kept = np.zeros(n, bool) if survivors is None else np.asarray(survivors)
    return Population(iteration, Samples(images), np.asarray(labels), np.full(n, -1), kept)


def noise(side, channels, n, labels, iteration=0):
    images = np.random.default_rng(iteration).integers(0, 256, (n, side, side, channels), np.uint8)
    return population(images, np.arange(n) % labels, iteration=iteration)


def named(n):
    return [{"digit": str(i)} for i in range(n)]


@pytest.mark.parametrize("side, channels", [(4, 1), (8, 1), (28, 1), (64, 3), (512, 3)])
@pytest.mark.parametrize("iterations, labels", [(1, 2), (8, 12)])
def test_the_picture_is_bounded_for_images_of_any_size(side, channels, iterations, labels):
    few = [noise(side, channels, labels * 2, labels, t) for t in range(iterations)]
    width, height = sample_grid(few, named(labels)).size
    assert width < 2200
    assert height < 2000


def test_digits_are_scaled_up_pixel_by_pixel():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, 5, 6] = (9, 77, 200)  # captions are grey
    grid = np.asarray(sample_grid([population(image, [0])], named(1)))
    assert (grid == (9, 77, 200)).all(2).sum() == 9  # three times as wide and high


def test_the_first_and_the_last_iteration_are_always_shown():
    values = (np.arange(40) * 6 + 5).astype(np.uint8)
    run = [population(np.full((5, 28, 28, 1), v, np.uint8), [0] * 5, iteration=t) for t, v in enumerate(values)]
    grid = np.asarray(sample_grid(run, named(1)))
    inside = np.unique(grid[30:45, 60:].reshape(-1, 3).max(1))
    shown = [v for v in values if v in inside]
    assert {values[0], values[-1]} <= set(shown)
    assert len(shown) == 8


def test_every_row_shows_its_own_label_and_colours_are_kept():
    images = np.zeros((4, 28, 28, 3), np.uint8)
    images[:2, ..., 0] = 255
    images[2:, ..., 2] = 255
    grid = np.asarray(sample_grid([population(images, [0, 0, 1, 1])], named(2)))
    red, blue = ((grid == colour).all(2) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red.any() and blue.any()
    assert np.flatnonzero(red.any(1)).max() < np.flatnonzero(blue.any(1)).min()


def test_captions_of_narrow_blocks_keep_apart():
    run = [population(np.zeros((2, 8, 8, 1), np.uint8), [0, 0], iteration=t) for t in range(5)]
    grid = np.asarray(sample_grid(run, named(1), columns=1))
    head = (grid[:26] < 128).all(2).any(0)
    pictures = (grid[30] == 0).all(1)
    starts = np.flatnonzero(np.diff(pictures.astype(int)) == 1) + 1
    assert len(starts) == 5
    assert not any(head[start - 9 : start - 1].any() for start in starts[1:])


def test_a_label_or_a_population_without_rows_leaves_its_place_empty():
    grid = sample_grid([noise(8, 1, 2, 2), population(np.zeros((0, 8, 8, 1), np.uint8), [], iteration=1)], named(5))
    assert grid.size[0] > 100


@pytest.mark.parametrize("content", [np.array(["a"], dtype=object), np.zeros(1, [("age", "f8")])])
def test_what_are_no_images_is_a_type_error(content):
    with pytest.raises(TypeError):
        sample_grid([population(content, [0])], named(1))


def test_texts_are_shown_by_label_before_and_after():
    texts = {0: ["one", "two " * 300, "three"], 2: ["uno", "dos", "tres"], 4: ["vier", "fünf", "sechs"]}
    populations = [population(np.array(rows, object), [0, 0, 1], iteration=t) for t, rows in texts.items()]
    page = sample_texts(populations, [{"stars": "1"}, {"stars": "5"}])
    assert page.index("== 1") < page.index(" * one") < page.index("iteration 4") < page.index(" * fünf")
    assert page.index(" * fünf") < page.index("== 5") < page.index(" * three") < page.index(" * sechs")
    assert max(map(len, page.splitlines())) <= 116
    assert len(page) < 1200
