"""Inception: the network of FID and clean-fid's resize. Random weights in the published layout, no download."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dpsyn.embedding.inception import SIDE, Inception, features, names, read_layers, resized
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime, exact
from dpsyn.population import Samples


def convolutions():
    """Name, channels in and out, height and width of every kernel of the published file."""
    yield "Conv2d_1a_3x3", 3, 32, 3, 3
    yield "Conv2d_2a_3x3", 32, 32, 3, 3
    yield "Conv2d_2b_3x3", 32, 64, 3, 3
    yield "Conv2d_3b_1x1", 64, 80, 1, 1
    yield "Conv2d_4a_3x3", 80, 192, 3, 3

    def block(name, **branches):
        return [(f"Mixed_{name}.branch{branch}", *shape) for branch, shape in branches.items()]

    for name, c, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        yield from block(name, **{"1x1": (c, 64, 1, 1), "5x5_1": (c, 48, 1, 1), "5x5_2": (48, 64, 5, 5)})
        yield from block(name, **{"3x3dbl_1": (c, 64, 1, 1), "3x3dbl_2": (64, 96, 3, 3), "3x3dbl_3": (96, 96, 3, 3)})
        yield from block(name, _pool=(c, pool, 1, 1))
    yield from block("6a", **{"3x3": (288, 384, 3, 3), "3x3dbl_1": (288, 64, 1, 1)})
    yield from block("6a", **{"3x3dbl_2": (64, 96, 3, 3), "3x3dbl_3": (96, 96, 3, 3)})
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        yield from block(name, **{"1x1": (768, 192, 1, 1), "7x7_1": (768, c, 1, 1), "7x7_2": (c, c, 1, 7)})
        yield from block(name, **{"7x7_3": (c, 192, 7, 1), "7x7dbl_1": (768, c, 1, 1), "7x7dbl_2": (c, c, 7, 1)})
        yield from block(name, **{"7x7dbl_3": (c, c, 1, 7), "7x7dbl_4": (c, c, 7, 1), "7x7dbl_5": (c, 192, 1, 7)})
        yield from block(name, _pool=(768, 192, 1, 1))
    yield from block("7a", **{"3x3_1": (768, 192, 1, 1), "3x3_2": (192, 320, 3, 3), "7x7x3_1": (768, 192, 1, 1)})
    yield from block("7a", **{"7x7x3_2": (192, 192, 1, 7), "7x7x3_3": (192, 192, 7, 1), "7x7x3_4": (192, 192, 3, 3)})
    for name, c in (("7b", 1280), ("7c", 2048)):
        yield from block(name, **{"1x1": (c, 320, 1, 1), "3x3_1": (c, 384, 1, 1), "3x3_2a": (384, 384, 1, 3)})
        yield from block(name, **{"3x3_2b": (384, 384, 3, 1), "3x3dbl_1": (c, 448, 1, 1), "_pool": (c, 192, 1, 1)})
        yield from block(name, **{"3x3dbl_2": (448, 384, 3, 3), "3x3dbl_3a": (384, 384, 1, 3)})
        yield from block(name, **{"3x3dbl_3b": (384, 384, 3, 1)})


def random_state():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    state = {}
    for name, fan, c, h, w in convolutions():
        state[f"{name}.conv.weight"] = normal(c, fan, h, w) * np.float32(np.sqrt(2 / (fan * h * w)))
        state[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, c).astype(np.float32)
        state[f"{name}.bn.bias"] = normal(c) / 10
        state[f"{name}.bn.running_mean"] = normal(c) / 10
        state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, c).astype(np.float32)
    state |= {"fc.weight": normal(1008, 2048), "fc.bias": normal(1008)}
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    tracked = {f"{name}.bn.num_batches_tracked": torch.tensor(0) for name in names()}
    torch.save({**state, **tracked}, path)
    return path


def noise(n, h, w, c=3):
    return np.random.default_rng(h * 1000 + w).integers(0, 256, (n, h, w, c), np.uint8)


def clean_fid(image):
    """Its resize: every channel on its own, as floats, not rounded. float32 [3, 299, 299] in 0..255"""
    planes = [Image.fromarray(image[..., k].astype(np.float32)) for k in range(3)]
    assert {plane.mode for plane in planes} == {"F"}
    return np.stack([np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for p in planes])


def as_seen(image):
    return torch.from_numpy((clean_fid(image) - 128) / 128)[None]


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (64, 64), (224, 224), (299, 299), (512, 512), (1, 3), (90, 700)])
def test_the_resize_is_that_of_clean_fid(shape):
    images = noise(3, *shape)
    ours = resized(torch.from_numpy(images))
    assert ours.dtype == torch.float32
    for k, image in enumerate(images):
        assert (ours[k] - as_seen(image)[0]).abs().max() < 1e-6  # of a range of 2


@pytest.mark.parametrize("side", [32, 64, 512])
def test_features_after_the_resize_are_those_after_clean_fid(weights, side):
    images = noise(1, side, side)
    ours = Inception(str(weights))(Samples(images))
    with exact():
        theirs = features(as_seen(images[0]), read_layers(weights, "cpu", True)).numpy()
    assert ours.shape == (1, 2048) and ours.dtype == np.float32
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_the_network_is_that_of_torch_fidelity(weights):
    """The numbers are of its FeatureExtractorInceptionV3 (0.4.0) with these weights and this image."""
    ours = Inception(str(weights))(Samples(noise(1, SIDE, SIDE)))[0, ::128]
    theirs = [7.27977, 0.43674, 18.43972, 0.0, 0.0, 22.49634, 0.09724, 6.01644]
    theirs += [21.95425, 27.49307, 3.78885, 19.40392, 3.70581, 30.93127, 14.89221, 0.0]
    assert ours == pytest.approx(theirs, abs=5e-4)


def test_the_layout_is_the_published_one(state):
    assert sorted(name for name, *_ in convolutions()) == sorted(names())
    parameters = sum(value.numel() for key, value in state.items() if "running" not in key)
    assert parameters == 23_850_960  # torchvision's 23,834,568 without the auxiliary classes, and 8 classes more


def test_a_row_does_not_depend_on_its_batch(weights):
    images = noise(3, 32, 32)
    whole = Inception(str(weights))(Samples(images))
    alone = [Inception(str(weights), Runtime(network_batch_size=1))(Samples(images[[k]])) for k in range(3)]
    assert np.abs(whole - np.concatenate(alone)).max() < 1e-5 * np.abs(whole).max()


def test_the_resize_of_a_row_does_not_depend_on_its_batch_at_all():
    images = torch.from_numpy(noise(9, 40, 33))
    whole = resized(images)
    assert all(torch.equal(resized(images[k : k + m]), whole[k : k + m]) for k, m in ((0, 1), (3, 2), (4, 5)))


def test_grey_is_repeated(weights):
    images = torch.from_numpy(noise(2, 28, 28, 1))
    assert torch.equal(resized(images), resized(images.expand(-1, -1, -1, 3)))
    assert Inception(str(weights))(Samples(images[:1].numpy())).shape == (1, 2048)


def test_no_images_give_no_vectors(weights):
    empty = Inception(str(weights))(Samples(noise(0, 32, 32)))
    assert empty.shape == (0, 2048) and empty.dtype == np.float32


def test_weights_come_by_address_too(weights):
    part = Inception(weights.as_uri())
    part.check()
    assert part(Samples(noise(0, 32, 32))).shape == (0, 2048)


def test_it_is_a_plain_value(weights):
    part = Inception(str(weights))
    assert pickle.loads(pickle.dumps(part)) == part == Inception(str(weights))


@pytest.mark.parametrize(
    "content",
    [np.array(["a"], dtype=object), np.zeros(3, [("age", "f8")]), np.zeros((1, 8, 8, 4), np.uint8)],
    ids=["texts", "table", "four channels"],
)
def test_what_are_no_images_is_refused(content):
    with pytest.raises(UserError, match="expected images"):
        Inception("none")(Samples(content))


def refusal(path):
    with pytest.raises(UserError) as refused:
        Inception(str(path))(Samples(noise(1, 8, 8)))
    assert "\n" not in str(refused.value)
    assert re.match(r"embedding\.weights=.*expected", str(refused.value))
    return str(refused.value)


def test_other_weights_are_one_line_that_names_the_keys(state, tmp_path):
    few = {key: value[:0] for key, value in state.items()}
    few.pop("Mixed_6a.branch3x3.conv.weight")
    few["AuxLogits.conv0.conv.weight"] = torch.zeros(1)
    torch.save(few, tmp_path / "other.pth")
    said = refusal(tmp_path / "other.pth")
    assert (
        "It lacks Mixed_6a.branch3x3.conv.weight (1 in all) and has besides AuxLogits.conv0.conv.weight (1 in all)."
        in said
    )


def test_weights_of_torchvision_are_told_by_their_classes(state, tmp_path):
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    assert "1000 classes, not 1008" in refusal(tmp_path / "torchvision.pth")


def test_a_file_that_holds_no_weights_is_one_line(tmp_path):
    (tmp_path / "page.pth").write_bytes(b"<html>")
    assert "holds none" in refusal(tmp_path / "page.pth")
    torch.save([1], tmp_path / "list.pth")
    assert "Conv2d_1a_3x3.conv.weight" in refusal(tmp_path / "list.pth")


@pytest.mark.parametrize("path", [None, "nowhere.pth"])
def test_weights_that_are_not_there_are_one_line_before_anything_loads(path):
    with pytest.raises(UserError, match=r"^embedding\.weights=.*expected an existing file or an address"):
        Inception(path).check()
