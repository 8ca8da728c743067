"""What tests/test_parts.py leaves open about the metrics: edges, wrong settings, what does not fit."""

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dpsyn.data import Records
from dpsyn.embedding.pixels import Pixels
from dpsyn.errors import UserError
from dpsyn.metric.classifier import Classifier
from dpsyn.metric.classifier.networks import PUBLISHED, augmented, residual
from dpsyn.metric.frechet import Frechet, distance, moments
from dpsyn.population import Population, Samples
from dpsyn.schedule.vital_signs import vital_signs


@dataclass(frozen=True)
class Stripes:
    """Images uint8 [n, h, w, c] that lie (label 0) or stand (label 1): easy to tell apart."""

    n: int
    side: int = 8
    channels: int = 1
    seed: int = 0
    labels: tuple = ({"way": "lying"}, {"way": "standing"})
    read: list = field(default_factory=list, compare=False)

    def rows(self):
        rng = np.random.default_rng(self.seed)
        labels = np.arange(self.n) % 2
        lines = rng.integers(0, 2, (self.n, self.side, 1, 1)) * 200
        images = np.broadcast_to(lines, (self.n, self.side, self.side, 1)).copy()
        images[labels == 1] = images[labels == 1].transpose(0, 2, 1, 3)
        images = images + rng.integers(0, 56, images.shape)
        return np.repeat(images, self.channels, 3).astype(np.uint8), labels

    def check(self):
        pass

    def fingerprint(self):
        return ""

    def batches(self, size):
        self.read.append(size)
        images, labels = self.rows()
        yield Records(Samples(images[:0]), labels[:0])
        for start in range(0, self.n, size):
            yield Records(Samples(images[start : start + size]), labels[start : start + size])


def population(images, labels):
    n = len(labels)
    return Population(1, Samples(images), np.asarray(labels), np.full(n, -1), np.ones(n, bool))


def classifier(data, **changed):
    settings = {"epochs": 8, "batch_size": 32, "learning_rate": 0.003, "seed": 0, "device": "cpu", "public": False}
    return Classifier(data, **{**settings, **changed})


@pytest.mark.parametrize("sigma", [0, 5.0])
@pytest.mark.parametrize("votes", [[], [0] * 10, [-7] * 10, [4] * 10], ids=["none", "zeros", "negative", "flat"])
def test_vital_signs_of_silent_votes_are_finite(votes, sigma):
    n = len(votes)
    signs = vital_signs(np.array(votes, np.int64), sigma, np.zeros(n, np.int64), np.arange(n))
    assert set(signs) == {"effective", "top_tenth", "signal_to_noise", "ancestors", "labels_without_votes"}
    assert all(isinstance(value, float) and np.isfinite(value) for value in signs.values())
    assert signs["signal_to_noise"] == 0
    assert 0 <= signs["effective"] <= n
    assert 0 <= signs["top_tenth"] <= 1


def test_exact_votes_have_the_vital_signs_of_the_formulas():
    votes, labels = np.array([90, 0, 10, 0, 0, 0, 0, 0, 0, 0]), np.zeros(10, np.int64)
    signs = vital_signs(votes, 1e-9, labels, np.array([3, 3, 5]))
    assert signs["effective"] == pytest.approx(100**2 / (90**2 + 10**2))
    assert signs["top_tenth"] == pytest.approx(0.9)
    assert signs["ancestors"] == 2
    assert vital_signs(votes, 10.0, labels, labels)["signal_to_noise"] == pytest.approx(
        np.sqrt(votes.var() - 100) / 10, rel=1e-9
    )


def test_labels_of_unequal_size_are_no_signal():
    votes, labels = np.repeat([10, 1000], 50), np.repeat([0, 1], 50)
    assert vital_signs(votes, 3.0, labels, labels)["signal_to_noise"] == 0


def test_noise_does_not_pass_for_many_effective_candidates():
    rng = np.random.default_rng(0)
    votes = np.zeros(4000)
    votes[:40] = 100
    signs = [
        vital_signs(np.rint(votes + rng.normal(0, 10, 4000)).astype(np.int64), 10.0, np.zeros(4000), np.arange(4000))
        for _ in range(30)
    ]
    assert np.median([s["effective"] for s in signs]) == pytest.approx(40, rel=0.2)


def test_the_moments_are_exact_far_from_zero_and_pass_over_empty_batches():
    rows = 1e6 + np.random.default_rng(0).normal(0, 1, (500, 4))
    empty = np.empty((0, 4))
    mean, covariance = moments([empty, rows[:1], empty, rows[1:77], rows[77:], empty])
    assert mean == pytest.approx(rows.mean(0), abs=1e-8)
    assert covariance == pytest.approx(np.cov(rows.T), abs=1e-8)
    for few in ([], [empty], [rows[:1]]):
        with pytest.raises(ValueError, match="two rows"):
            moments(few)


def test_the_frechet_distance_bears_fewer_rows_than_dimensions():
    rng = np.random.default_rng(0)
    one, two = (moments([rng.normal(m, 1, (20, 50))]) for m in (0, 0.5))
    assert distance(one, two) == pytest.approx(distance(two, one), rel=1e-6)
    assert distance(one, one) == pytest.approx(0, abs=1e-4)
    nudge = 1e-7 * np.eye(50)
    root = sqrtm((one[1] + nudge) @ (two[1] + nudge)).real
    expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)
    assert distance(one, two) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_frechet_metric_does_not_depend_on_the_batch(batch_size):
    images, labels = Stripes(400, seed=1).rows()
    made = population(images, labels)
    embed = Pixels(None, 0, 0, 1)
    direct = distance(moments([embed(made.samples)]), moments([embed(Samples(Stripes(410).rows()[0]))]))
    assert Frechet(Stripes(410), embed, batch_size, False)(made)["frechet"] == pytest.approx(direct, rel=1e-9)


def published(one, two):
    """As pytorch-fid and clean-fid have it: the root of a product that is not symmetric, its imaginary part dropped."""
    (mean1, cov1), (mean2, cov2) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in (one, two))
    root = np.asarray(sqrtm(cov1 @ cov2))
    return ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real)


@pytest.mark.parametrize("batch", [1, 64, 1000])
@pytest.mark.parametrize("shift, scale", [(0, 1), (0.3, 1), (0, 2), (5, 0.1)])
def test_the_frechet_distance_is_that_of_the_published_implementations(shift, scale, batch):
    rng = np.random.default_rng(0)
    mix = rng.normal(0, 0.3, (48, 48))
    one = np.maximum(rng.normal(0.2, 1, (400, 48)) @ mix, 0)  # like features of Inception: 0 or more, correlated
    two = scale * np.maximum(rng.normal(0.2, 1, (300, 48)) @ mix, 0) + shift
    streamed = [moments(rows[k : k + batch] for k in range(0, len(rows), batch)) for rows in (one, two)]
    assert distance(*streamed) == pytest.approx(published(one, two), rel=1e-6, abs=1e-7)


def test_the_frechet_distance_of_normal_distributions_is_known():
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.normal(0, 1, (6, 6)))
    one, two = np.array([1, 2, 3, 4, 0, 0.0]), np.array([4, 2, 0, 1, 1, 0.0])  # variances, 0 among them
    gap = rng.normal(0, 1, 6)
    expected = gap @ gap + ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    pair = [(mean, (turned * values) @ turned.T) for mean, values in ((0 * gap, one), (gap, two))]
    assert distance(*pair) == pytest.approx(expected, rel=1e-7)


def test_the_frechet_metric_reads_real_data_once_and_stays_a_plain_value():
    images, labels = Stripes(100, seed=1).rows()
    part = Frechet(Stripes(90), Pixels(None, 0, 0, 1), 32, False)
    assert part(population(images, labels)) == part(population(images, labels))
    assert len(part.data.read) == 1
    fresh = Frechet(Stripes(90), Pixels(None, 0, 0, 1), 32, False)
    assert part == fresh
    assert repr(part).replace("[32]", "[]") == repr(fresh)
    assert vars(pickle.loads(pickle.dumps(part))).keys() == vars(fresh).keys()


def test_real_images_of_another_size_are_one_line_for_the_frechet_metric():
    images, labels = Stripes(20).rows()
    with pytest.raises(UserError, match="held_out: the embedding makes vectors of another length"):
        Frechet(Stripes(20, side=9), Pixels(None, 0, 0, 1), 32, False)(population(images, labels))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_classifier_tells_easy_things_apart_and_has_one_answer_a_seed(channels):
    import torch

    images, labels = Stripes(200, channels=channels).rows()
    part = classifier(Stripes(100, channels=channels, seed=1))
    before = torch.random.get_rng_state()
    first = part(population(images, labels))
    assert first == part(population(images, labels))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first["accuracy"] > 0.9
    assert part(population(images, 1 - labels))["accuracy"] < 0.1
    larger = classifier(Stripes(100, side=16, channels=channels, seed=1))
    assert 0 <= larger(population(images, labels))["accuracy"] <= 1


@pytest.mark.parametrize(
    "network, depth, width, parameters",
    [
        ("resnet", None, None, 0.27e6),  # He et al. 2016, table 6
        ("resnet", 110, None, 1.7e6),
        ("wrn", None, None, 8.9e6),  # Zagoruyko and Komodakis 2016, table 4
        ("wrn", 16, 128, 11.0e6),
        ("resnext", None, None, 34.4e6),  # Xie et al. 2017, table 7
    ],
)
def test_the_networks_are_as_large_as_published(network, depth, width, parameters):
    import torch

    with torch.device("meta"):
        made = residual(network, depth, width, 3, 10)
        assert made(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(weights.numel() for weights in made.parameters()) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("network", PUBLISHED)
def test_a_residual_network_tells_easy_things_apart_and_has_one_answer_a_seed(network):
    images, labels = Stripes(120, channels=3).rows()
    depth = {"resnet": 8, "wrn": 10, "resnext": 11}[network]
    part = classifier(Stripes(60, channels=3, seed=1), network=network, depth=depth, width=8, epochs=6)
    first = part(population(images, labels))
    assert first == part(population(images, labels))
    assert first["accuracy"] > 0.9
    assert (
        0
        <= classifier(Stripes(40, side=13, channels=3), network=network, depth=depth, width=8, epochs=1)(
            population(images[:33], labels[:33])  # 33 rows in batches of 32: the last has one
        )["accuracy"]
        <= 1
    )


def test_augmented_images_are_moved_and_mirrored_anew_by_the_seed_alone():
    import torch

    images = torch.arange(16 * 16.0).reshape(1, 1, 16, 16).expand(400, 3, 16, 16)
    torch.manual_seed(0)
    first = augmented(images)
    torch.manual_seed(0)
    assert torch.equal(first, augmented(images))
    assert not torch.equal(first, augmented(images))
    assert first.shape == images.shape
    right = first[:, 0, 8, 9] - first[:, 0, 8, 8]
    assert set(right.tolist()) == {-1, 1}  # mirrored or not
    assert 140 < (right < 0).sum() < 260
    middle = first[:, 0, 8, 8]
    assert set((middle // 16).int().tolist()) == {6, 7, 8, 9, 10}  # 2 px of 16 up or down
    assert len(middle.unique()) == 5 * 6  # and left or right, about a middle that is 7 when mirrored
    assert torch.equal(first[:, 0], first[:, 2])
    tiny = torch.rand(5, 1, 7, 7)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(augmented(tiny), tiny, strict=True))


def test_augmented_training_differs_and_has_one_answer_a_seed():
    images, labels = Stripes(120).rows()
    part = classifier(Stripes(60, seed=1), augment=True, epochs=12)
    first = part(population(images, labels))
    assert first == part(population(images, labels))
    assert first["accuracy"] > 0.8


def test_several_judges_are_told_one_by_one_with_the_mean_and_the_worst_of_the_networks():
    images, labels = Stripes(120).rows()
    settings = {
        "plain": {"network": "plain", "one_cycle": False, "learning_rate": 0.001, "seed": 3},
        "own": {},
        "nearest": {"network": "nearest"},
    }
    real = Stripes(60, seed=1)
    found = classifier(real, models=settings)(population(images, labels))
    assert len(real.read) == 1
    for name, differing in settings.items():
        assert found[name] == classifier(real, **differing)(population(images, labels))["accuracy"]
    assert found["mean"] == pytest.approx((found["plain"] + found["own"]) / 2)
    assert found["worst"] == min(found["plain"], found["own"])
    assert set(found) == {*settings, "mean", "worst"}
    light = {"a": {"network": "nearest"}, "b": {"network": "logistic"}}
    found = classifier(real, models=light)(population(images, labels))
    assert found["worst"] == min(found["a"], found["b"])


@pytest.mark.parametrize(
    "models, said",
    [
        ([], r"models=\[\]: expected settings by names"),
        ({"mean": {}}, "models.mean="),
        ({"metric": {}}, "models.metric="),
        ({"a": 3}, "models.a=3: expected settings of a judge"),
        ({"a": {"public": True}}, "models.a.public=True: expected a setting of a judge"),
        ({"a": {"epoch": 3}}, "models.a.epoch=3: .* epochs"),
        ({"a": {"epochs": 0}}, "models.a.epochs=0: expected"),
    ],
)
def test_a_judge_that_is_none_is_one_line(models, said):
    with pytest.raises(UserError, match=rf"^metric\.parts\.classifier\.{said}"):
        classifier(None, models=models)


def test_the_classifier_says_what_does_not_fit():
    images, labels = Stripes(20).rows()
    with pytest.raises(UserError, match="held_out: expected images of 1 channel"):
        classifier(Stripes(20, channels=3), epochs=1)(population(images, labels))
    with pytest.raises(UserError, match="expected images"):
        classifier(Stripes(20))(population(np.array(["a", "b"], dtype=object), [0, 1]))


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("batch_size", True),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("seed", -1),
        ("device", "gpu"),
        ("device", None),
        ("network", "vgg"),
        ("network", None),
        ("depth", 20),
        ("width", 16),
        ("augment", "no"),
        ("one_cycle", 1),
    ],
)
def test_a_wrong_setting_of_the_classifier_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^metric\.parts\.classifier\.{key}=.*expected"):
        classifier(None, **{key: wrong})


@pytest.mark.parametrize(
    "network, key, wrong",
    [
        ("resnet", "depth", 18),
        ("resnet", "depth", 2),
        ("wrn", "depth", 38),
        ("resnext", "depth", 21),
        ("wrn", "depth", True),
        ("wrn", "width", 0),
        ("wrn", "width", 1.5),
    ],
)
def test_a_depth_that_no_network_has_is_one_line(network, key, wrong):
    with pytest.raises(UserError, match=rf"^metric\.parts\.classifier\.{key}=.*expected"):
        classifier(None, network=network, **{key: wrong})


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0])
def test_a_wrong_batch_size_of_the_frechet_metric_is_one_line(batch_size):
    with pytest.raises(UserError, match=r"^metric\.parts\.frechet\.batch_size=.*expected"):
        Frechet(None, None, batch_size, False)


@pytest.mark.parametrize("public", ["no", "false", None, 0, 1])
def test_only_true_itself_makes_a_metric_public(public):
    for make in (lambda: classifier(None, public=public), lambda: Frechet(None, None, 1, public)):
        with pytest.raises(UserError, match=r"\.public=.*expected true or false"):
            make()
    assert classifier(None).private
    assert not classifier(None, public=True).private
