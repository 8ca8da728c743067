import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFont

from dpsyn.api import draw_text as module
from dpsyn.api.draw_text import DrawText
from dpsyn.compose import config_folder
from dpsyn.errors import UserError
from dpsyn.population import Population, Samples, take
from dpsyn.randomness import uniform
from dpsyn.runs.storage import from_parquet, to_parquet

ARGUMENTS = yaml.safe_load((config_folder() / "api/draw_text.yaml").read_text())
ARGUMENTS.pop("_target_")
EVERYTHING = DrawText(**{**ARGUMENTS, "fonts": "bundled", "pressure": 1.0, "flourish": 0.5})
FRAMED = dataclasses.replace(EVERYTHING, box=20)
PUBLISHED = dataclasses.replace(
    EVERYTHING, texts=list("0123456789"), size=[10, 29], stroke=[0, 2], rotation=[-30, 30], slant=[0, 0],
    stretch=[1, 1], weight=[0, 0], shift=0, warp=0, pressure=0, flourish=0,
)  # fmt: skip
STILL = dataclasses.replace(PUBLISHED, texts=["{digit}"], size=[24, 24], stroke=[0, 0], rotation=[0, 0])
LABELS = [{"digit": str(i % 10)} for i in range(700)]


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


@pytest.fixture(scope="module")
def drawn():
    return EVERYTHING.generate(LABELS, seeds(700))


@pytest.mark.parametrize("rows", [[0], [699, 3, 3, 511, 512], list(range(250, 620))], ids=["one", "mixed", "many"])
@pytest.mark.parametrize("api", [EVERYTHING, FRAMED], ids=["as it comes", "framed"])
def test_neither_batch_nor_order_changes_a_sample(api, rows):
    drawn = api.generate(LABELS, seeds(700))
    alone = api.generate([LABELS[i] for i in rows], seeds(700)[rows])
    assert (alone.content == drawn.content[rows]).all()
    degree = {name: 1.0 for name in module.TRAITS}
    varied = api.vary(drawn, LABELS, degree, seeds(700, 1))
    few = api.vary(take(drawn, np.array(rows)), [LABELS[i] for i in rows], degree, seeds(700, 1)[rows])
    assert (few.content == varied.content[rows]).all()


@pytest.mark.parametrize("digit", ["1", "5", "7"])
def test_a_sample_does_not_depend_on_the_labels_that_were_drawn_before_it(drawn, digit):
    rows = np.array([i for i in range(700) if LABELS[i]["digit"] == digit])
    labels = [LABELS[i] for i in rows]
    first, resumed = dataclasses.replace(EVERYTHING), dataclasses.replace(EVERYTHING)  # neither has met a label
    assert (first.generate(labels, seeds(700)[rows]).content == drawn.content[rows]).all()
    degree = {"font": 1.0, "rotation": 5}
    varied = EVERYTHING.vary(drawn, LABELS, degree, seeds(700, 1))
    assert (resumed.vary(take(drawn, rows), labels, degree, seeds(700, 1)[rows]).content == varied.content[rows]).all()


def test_samples_come_back_from_disk_and_vary_as_before(drawn):
    n = len(drawn)
    population = Population(0, drawn, np.arange(n) % 10, np.full(n, -1), np.zeros(n, bool))
    back = from_parquet(to_parquet(population, LABELS[:10]), "test")
    assert (back.samples.content == drawn.content).all()
    for name, values in drawn.traits.items():
        np.testing.assert_array_equal(back.samples.traits[name], values, name)  # NaN where there is no flourish
    one, two = (EVERYTHING.vary(s, LABELS, 0.2, seeds(n, 2)) for s in (drawn, back.samples))
    assert (one.content == two.content).all()


def test_whole_traits_move_by_at_most_their_degree_and_stay_in_range():
    labels = [{"digit": "0"}] * 5000
    first = PUBLISHED.generate(labels, seeds(5000))
    degree = {"size": 5, "rotation": 9, "stroke": 1, "font": 0.8, "text": 0}
    second = PUBLISHED.vary(first, labels, degree, seeds(5000, 1))
    for name, (low, high) in (("size", (10, 29)), ("rotation", (-30, 30)), ("stroke", (0, 2))):
        for samples in (first, second):
            assert (samples.traits[name].min(), samples.traits[name].max()) == (low, high)
        moved = np.abs(second.traits[name] - first.traits[name])
        assert moved.max() == degree[name]
    assert (second.traits["text"] == first.traits["text"]).all()
    redrawn = (second.traits["font"] != first.traits["font"]).mean()
    fonts = len(np.unique(first.traits["font"]))
    assert redrawn == pytest.approx(0.8 * (1 - 1 / fonts), abs=0.03)
    frozen = PUBLISHED.vary(first, labels, {}, seeds(5000, 2))
    assert (frozen.content == first.content).all()


def test_one_number_is_a_share_of_every_range_and_leaves_the_text():
    labels = [{"digit": "0"}] * 5000
    first = PUBLISHED.generate(labels, seeds(5000))
    second = PUBLISHED.vary(first, labels, 0.25, seeds(5000, 1))
    for name, most in (("size", 5), ("rotation", 15), ("stroke", 0)):
        assert np.abs(second.traits[name] - first.traits[name]).max() == most
    assert (second.traits["text"] == first.traits["text"]).all()
    fonts = len(np.unique(first.traits["font"]))
    redrawn = (second.traits["font"] != first.traits["font"]).mean()
    assert redrawn == pytest.approx(0.25 * (1 - 1 / fonts), abs=0.03)


@pytest.mark.parametrize("degree", [{"colour": 1}, {"size": -1}, {"size": "a"}, -0.1, True, float("nan")])
def test_what_is_no_degree_is_one_line(degree):
    with pytest.raises(UserError, match=r"^schedule\.degree=.*expected") as refused:
        STILL.check_degree(degree)
    assert "\n" not in str(refused.value)


def test_of_several_texts_every_label_draws_all_and_the_degree_changes_them():
    labels = [{"digit": "0"}] * 3000
    first = PUBLISHED.generate(labels, seeds(3000))
    assert np.bincount(first.traits["text"], minlength=10).min() > 200
    changed = PUBLISHED.vary(first, labels, {"text": 0.5}, seeds(3000, 1))
    assert (changed.traits["text"] != first.traits["text"]).mean() == pytest.approx(0.45, abs=0.04)


def test_texts_that_look_alike_stand_for_a_label_in_fonts_that_have_them():
    api = dataclasses.replace(STILL, alike={"1": ["I", "\u0427"], "2": ["\u4e00"]})
    labels = [{"digit": str(i % 3)} for i in range(3000)]
    first = api.generate(labels, seeds(3000))
    other = api.vary(first, labels, {"text": 0.5}, seeds(3000, 1))
    kind = np.arange(3000) % 3
    cyrillic = {api.masters.fonts[i] for i in api.masters.having({"\u0427"})}
    assert len(cyrillic) < len(api.masters.having({"1"}))
    for drawn in (first, other):
        texts, fonts = drawn.traits["text"], drawn.traits["font"]
        assert not texts[kind != 1].any()  # no font has the one for 2
        assert np.bincount(texts[kind == 1]).min() > 250
        assert set(fonts[texts == 2].tolist()) <= cyrillic
    stays = other.traits["text"] == first.traits["text"]
    assert (other.traits["font"] == first.traits["font"])[stays].all()
    some = np.arange(1, 3000, 7)
    again = api.generate([labels[i] for i in some], seeds(3000)[some])
    assert np.array_equal(again.content, first.content[some])


@pytest.mark.parametrize("alike", [["l"], {"1": "l"}, {"1": [1]}, {1: ["l"]}, []])
def test_what_is_no_list_of_look_alikes_is_one_line(alike):
    with pytest.raises(UserError, match=r"^api\.alike=.*expected lists of texts"):
        dataclasses.replace(STILL, alike=alike)


def test_real_traits_move_within_their_range(drawn):
    degree = {"slant": 0.1, "stretch": 0.1, "weight": 0.2, "shift": 0.5, "warp": 0.5, "pressure": 0.2}
    second = EVERYTHING.vary(drawn, LABELS, degree, seeds(700, 3))
    for name, most in degree.items():
        moved = np.abs(second.traits[name] - drawn.traits[name])
        assert 0.9 * most < moved.max() <= most + 1e-6
    assert np.abs(second.traits["warp"]).max() <= EVERYTHING.warp
    assert np.abs(second.traits["shift"]).max() <= EVERYTHING.shift


def drawn_by_pillow(path, text, size, stroke, rotation):
    """float64 [28, 28]: drawn 16 times as large, centred by its ink, turned, averaged: no hinting, no snapping."""
    font = ImageFont.truetype(str(path), size * 16, layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(text, mode="L", stroke_width=stroke * 16)
    ink = Image.fromarray(np.asarray(mask, np.uint8).reshape(mask.size[::-1]))
    ink = ink.crop(ink.getbbox())
    large = Image.new("L", (640, 640))
    large.paste(ink, ((640 - ink.width) // 2, (640 - ink.height) // 2))
    turned = np.asarray(large.rotate(rotation, Image.Resampling.BICUBIC), float)
    return turned.reshape(40, 16, 40, 16).mean((1, 3))[6:34, 6:34]


@pytest.mark.parametrize("text", ["3", "8"])
@pytest.mark.parametrize("size, stroke, rotation", [(14, 0, 0), (20, 0, 0), (28, 0, 0), (24, 0, -30), (18, 2, 20)])
def test_an_image_looks_like_the_same_text_drawn_by_pillow(text, size, stroke, rotation):
    api = dataclasses.replace(STILL, size=[size] * 2, stroke=[stroke] * 2, rotation=[rotation] * 2)
    samples = api.generate([{"digit": text}] * 60, seeds(60))
    images = dict(zip(samples.traits["font"].tolist(), samples.content[..., 0].astype(float), strict=True))
    assert len(images) > 10
    for name, image in images.items():
        expected = drawn_by_pillow(api.masters.paths[name], text, size, stroke, rotation)
        assert np.abs(image - expected).mean() < 0.3 * expected.mean(), name  # measured: 0.11, at most 0.23


def test_texts_are_centred_by_their_ink():
    images = STILL.generate(LABELS[:200], seeds(200)).content[..., 0] > 100
    for image in images:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs((rows[0] + rows[-1]) / 2 - 13.5) <= 1
        assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 1


def ink(**changes):
    api = dataclasses.replace(STILL, **changes)
    return api.generate([{"digit": "1"}] * 40, seeds(40)).content[..., 0].astype(float)


def test_strokes_thicken_slants_lean_right_and_rotations_turn_counter_clockwise():
    plain, thick = ink(), ink(stroke=[1, 1])
    assert (thick.sum((1, 2)) > 1.3 * plain.sum((1, 2))).all()
    places = np.arange(28) - 13.5
    for changed, direction in (({"slant": [0.4, 0.4]}, 1), ({"rotation": [20, 20]}, -1)):
        image = ink(**changed)
        upper, lower = image[:, :12], image[:, 16:]
        centre = [(half * places).sum((1, 2)) / half.sum((1, 2)) for half in (upper, lower)]
        assert np.median((centre[0] - centre[1]) * direction) > 1


def test_a_shift_moves_and_a_warp_bends_and_without_them_nothing_does():
    labels = [{"digit": "0"}] * 200
    places = np.arange(28) - 13.5

    def centres(**changes):
        images = dataclasses.replace(STILL, **changes).generate(labels, seeds(200)).content[..., 0].astype(float)
        mass = images.sum((1, 2))
        columns = (images * places).sum((1, 2)) / mass
        return images, np.stack([(images * places[:, None]).sum((1, 2)) / mass, columns], 1)

    plain, still = centres()
    assert np.abs(still).max() < 0.6
    samples = dataclasses.replace(STILL, shift=2).generate(labels, seeds(200))
    _, moved = centres(shift=2)
    assert moved - still == pytest.approx(samples.traits["shift"], abs=0.15)
    assert np.abs(samples.traits["shift"]).max() > 1.8
    assert "warp" not in STILL.generate(labels[:1], seeds(1)).traits
    bent, _ = centres(warp=3)
    assert np.abs(bent - plain).mean() > 5
    assert bent.sum() == pytest.approx(plain.sum(), rel=0.1)


def framed(images):
    """Longer side of the ink, and its centre of mass, of images uint8 [n, h, w, 1]."""
    ink = images[..., 0].astype(float) / 255
    mass = ink.sum((1, 2))[:, None]
    centres = [(ink.sum(3 - axis) * (np.arange(ink.shape[axis]) - (ink.shape[axis] - 1) / 2)) for axis in (1, 2)]
    longer = np.maximum((ink > 0.1).any(2).sum(1), (ink > 0.1).any(1).sum(1))
    return longer, np.stack([part.sum(1) for part in centres], 1) / mass


def test_in_a_frame_the_longer_side_and_the_centre_of_mass_are_as_in_mnist():
    longer, centres = framed(FRAMED.generate(LABELS, seeds(700)).content)
    # MNIST's own: 20.0 and 1.0, 0.29
    assert longer.mean() == pytest.approx(20.2, abs=0.4) and longer.std() < 1.0
    assert np.abs(centres.mean(0)).max() < 0.1 and centres.std(0).max() < 0.3
    loose, _ = framed(dataclasses.replace(FRAMED, box=0).generate(LABELS, seeds(700)).content)
    assert loose.std() > 2


@pytest.mark.parametrize(
    "changes",
    [{}, {"texts": ["{digit}" * 4]}, {"box": 8}, {"image_size": [64, 40], "box": 36}],
    ids=["a digit", "four", "small", "large"],
)
def test_a_frame_holds_any_text_with_lines_of_any_width(changes):
    api = dataclasses.replace(STILL, **{"box": 20, "stroke": [2, 2], "size": [40, 40], **changes})
    longer, centres = framed(api.generate(LABELS[:100], seeds(100)).content)
    assert np.abs(longer - api.box).max() <= 2
    assert np.abs(centres).max() < 0.6


def test_in_a_frame_size_and_shift_mean_nothing():
    one, other = (
        dataclasses.replace(FRAMED, size=[size] * 2, shift=shift).generate(LABELS[:200], seeds(200))
        for size, shift in ((12, 0), (30, 3))
    )
    # the fields that texts are drawn from are not equally fine
    assert np.abs(one.content.astype(float) - other.content).mean() < 0.02 * one.content.mean()
    assert "shift" not in other.traits


def test_samples_that_lack_a_trait_are_one_line():
    plain = STILL.generate(LABELS[:3], seeds(3))
    for changes in ({"flourish": 0.5}, {"warp": 2}, {"shift": 1}):
        with pytest.raises(UserError, match=f"lack the traits {next(iter(changes))}: another api drew them"):
            dataclasses.replace(STILL, **changes).vary(plain, LABELS[:3], {}, seeds(3))


@pytest.mark.parametrize("text", [1, -1])
def test_samples_of_texts_that_are_not_drawn_here_are_one_line(text):
    drawn = STILL.generate(LABELS[:3], seeds(3))
    other = dataclasses.replace(drawn, traits={**drawn.traits, "text": np.full(3, text)})
    with pytest.raises(UserError, match="name texts that cannot be drawn here"):
        STILL.vary(other, LABELS[:3], {}, seeds(3))


def test_nothing_to_draw_is_an_empty_image_in_a_frame_too():
    api = dataclasses.replace(STILL, texts=[" "], box=20)
    assert not api.generate(LABELS[:3], seeds(3)).content.any()


def test_a_flourish_is_a_stroke_beside_the_text_whose_points_move_by_at_most_the_degree():
    api = dataclasses.replace(STILL, flourish=0.4)
    labels = [{"digit": "1"}] * 2000
    plain, first = STILL.generate(labels, seeds(2000)), api.generate(labels, seeds(2000))
    having = ~np.isnan(first.traits["flourish"]).any(1)
    assert having.mean() == pytest.approx(0.4, abs=0.04)
    assert (first.content[~having] == plain.content[~having]).all()
    assert (first.content[having] >= plain.content[having]).all()
    assert (first.content[having] > plain.content[having]).any((1, 2, 3)).mean() > 0.95
    second = api.vary(first, labels, {"flourish": 1.5}, seeds(2000, 1))
    moved = np.abs(second.traits["flourish"] - first.traits["flourish"])
    assert (np.isnan(moved).any(1) == ~having).all()
    assert 1.4 < np.nanmax(moved[:, :6]) <= 1.5 + 1e-5 and np.nanmax(moved[:, 6]) <= 0.3 + 1e-5
    still = api.vary(first, labels, {}, seeds(2000, 2))
    np.testing.assert_array_equal(still.traits["flourish"], first.traits["flourish"])
    assert (still.content == first.content).all()


def test_a_flourish_runs_where_its_points_say():
    api = dataclasses.replace(STILL, texts=[" "], flourish=1)
    drawn = api.generate(LABELS[:2], seeds(2))
    bar, bow = [0, -8, 0, 0, 0, 8, 1], [4, -8, -8, 0, 4, 8, 1]  # y and x of start, bend and end; half the width
    traits = {**drawn.traits, "flourish": np.array([bar, bow], np.float32)}
    image, bent = api.vary(Samples(drawn.content, traits), LABELS[:2], {}, seeds(2)).content[..., 0]
    assert np.flatnonzero(image.any(1)).tolist() == [13, 14] and (image[13:15, 6:22] == 255).all()
    assert np.flatnonzero(image.any(0)).tolist() == list(range(5, 23))  # its ends are round
    assert bent[11:13, 13:15].min() > 200 and not bent[18:, 12:16].any()  # halfway to the bend


def test_colours_are_three_channels():
    api = dataclasses.replace(STILL, background=[0, 0, 50], foreground=[255, 0, 0], image_size=[20, 30])
    images = api.generate(LABELS[:5], seeds(5)).content
    assert images.shape == (5, 20, 30, 3)
    assert images[0, 0, 0].tolist() == [0, 0, 50]
    assert images[..., 0].max() == 255
    assert images[..., 1].max() == 0


def test_the_generator_is_uniform_and_its_streams_do_not_know_each_other():
    numbers = np.stack([uniform(seeds(20000), "draw_text.trait", at) for at in (0, 1, 2, 300)])
    for row in numbers:
        counts = np.bincount((row * 20).astype(int), minlength=20)
        assert ((counts - 1000) ** 2 / 1000).sum() < 50
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(numbers[0, 1:], numbers[0, :-1])[0, 1]) < 0.03
    near = uniform(np.arange(20000, dtype=np.uint64), "draw_text.trait")
    assert ((np.bincount((near * 20).astype(int), minlength=20) - 1000) ** 2 / 1000).sum() < 50


def test_nothing_is_read_until_something_is_drawn():
    program = (
        "import sys; from dpsyn.api.draw_text import DrawText;"
        f"DrawText(**{ ({**ARGUMENTS, 'fonts': 'nowhere'})!r});"
        "assert not {'PIL', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def broken_font(folder):
    (folder / "broken.ttf").write_bytes(b"no font")


@pytest.mark.parametrize("fill", [lambda folder: None, broken_font], ids=["empty", "broken"])
def test_no_usable_font_is_one_line(tmp_path, fill):
    fill(tmp_path)
    with pytest.raises(UserError, match=r"api\.fonts=.*expected"):
        api = dataclasses.replace(STILL, fonts=str(tmp_path))
        api.check()
        api.generate(LABELS[:1], seeds(1))


def bundled(name):
    return STILL.masters.paths[name].read_bytes()


def test_a_broken_font_and_one_of_symbols_are_passed_over(tmp_path):
    broken_font(tmp_path)
    (tmp_path / "cut.ttf").write_bytes(bundled("DejaVuSans.ttf")[:20000])
    (tmp_path / "cmex10.ttf").write_bytes(bundled("cmex10.ttf"))
    (tmp_path / "good.ttf").write_bytes(bundled("DejaVuSerif.ttf"))
    samples = dataclasses.replace(STILL, fonts=str(tmp_path)).generate(LABELS[:20], seeds(20))
    assert set(samples.traits["font"].tolist()) == {"good.ttf"}
    (tmp_path / "good.ttf").unlink()
    with pytest.raises(UserError, match=r"api\.fonts=.*expected a font that has the characters") as refused:
        dataclasses.replace(STILL, fonts=str(tmp_path)).generate(LABELS[:20], seeds(20))
    assert "\n" not in str(refused.value)


def test_a_font_without_the_characters_is_not_used():
    with pytest.raises(UserError, match="a font that has the characters"):
        dataclasses.replace(STILL, texts=["\u4e00"]).generate(LABELS[:1], seeds(1))


def test_a_font_that_is_gone_is_named():
    samples = STILL.generate(LABELS[:3], seeds(3))
    gone = Samples(samples.content, {**samples.traits, "font": np.array(["Gone.ttf"] * 3)})
    with pytest.raises(UserError, match=r"api\.fonts=Gone\.ttf: expected the font that was used"):
        STILL.vary(gone, LABELS[:3], {}, seeds(3))


def test_a_template_over_a_column_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"api\.texts=\{word\}: expected a template over the label's columns \(digit\)"):
        dataclasses.replace(STILL, texts=["{word}"]).generate(LABELS[:1], seeds(1))


def test_samples_of_another_api_are_refused():
    with pytest.raises(UserError, match="lack the traits"):
        STILL.vary(Samples(np.zeros((1, 28, 28, 1), np.uint8)), LABELS[:1], 0.1, seeds(1))
