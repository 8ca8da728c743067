"""EfficientNet-Lite0 (Tan and Le 2019, TensorFlow's Lite variant), trained on ImageNet: small, and a Python package
carries its weights, so that features of photographs need no download.

The package has the state dict alone; the network stands here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.files import sha256
from dpsyn.marks import PLACE
from dpsyn.networks import tensors
from dpsyn.networks.packaged import PACKAGE, state_dict_in_package
from dpsyn.networks.runtime import Runtime, exact, few_on_cpu, in_batches, torch_device
from dpsyn.networks.weights import check_weights, local_weights
from dpsyn.population import Modality, Samples
from dpsyn.validate import flag, whole

WHAT = "the state dict of EfficientNet-Lite0"
WIDTH = 1280
STEM, HEAD = "_conv_stem", "_conv_head"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks
LEAST = 32  # px: the network halves five times
EPSILON = 1e-3  # of its normalisations, as in TensorFlow
CPU_BATCH = 8
COLOURS = 127.0, 128.0  # subtracted from a value of 0 to 255, then divided by


@dataclass(frozen=True)
class EfficientNet(Embedding):
    """Images uint8 [n, h, w, 1 or 3] -> float32 [n, 1280], the mean activations before the classes.

    weights: a file or an address of the network's state dict, or `package:NAME`: what an installed package carries.
    size: px of the square that the network sees (224 is what it was trained at). normalize: to vectors of length 1.

    The shorter side is resized to `size` (bicubic, antialiased), the middle is cut out, grey is repeated.
    """

    weights: str = field(metadata=PLACE)
    size: int
    normalize: bool
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        whole("embedding.size", self.size, LEAST)
        flag("embedding.normalize", self.normalize)

    def check(self) -> None:
        """Raises UserError where the weights are neither a file, nor an address, nor a package that carries them."""
        check_packages("embedding", "efficientnet", "torch")
        if str(self.weights).startswith(PACKAGE):
            state_dict_in_package("embedding.weights", self.weights)
        else:
            check_weights("embedding.weights", self.weights, WHAT)

    def fingerprint(self) -> str:
        """Of the weights, fetched if need be."""
        return sha256(_file(self.weights))

    @property
    def fits(self) -> Sequence[Modality]:
        return ("images",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no images, and for weights of another network."""
        import torch

        images = samples.content
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
            raise UserError("embedding efficientnet: expected images. Choose an embedding for this kind of data.")
        device = torch_device(self.runtime)
        layers = read_layers(_file(self.weights), device)

        def embedded(rows: slice) -> np.ndarray:
            vectors = features(preprocessed(images[rows], self.size, device), layers)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            return np.asarray(vectors.cpu().numpy())

        with exact():
            parts = in_batches(len(images), few_on_cpu(self.runtime, CPU_BATCH), "embedding efficientnet", embedded)
        return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])


def preprocessed(images: np.ndarray, size: int, device: str) -> Any:
    """Images as the network takes them, float32 [n, 3, size, size] on the device, around zero.

    images: uint8 [n, h, w, c].
    size: px of a side.
    device: of torch.
    """
    height, width = images.shape[1:3]
    shorter = min(height, width)
    values = tensors.tensor(images, device)
    values = tensors.resized(values, (height * size // shorter, width * size // shorter)).clamp(-1, 1)
    top, left = (values.shape[2] - size) // 2, (values.shape[3] - size) // 2
    values = tensors.with_channels(values[:, :, top : top + size, left : left + size], 3)
    middle, wide = COLOURS
    return ((values + 1) * 127.5 - middle) / wide


def features(images: Any, layers: Mapping[str, tuple[Any, Any]]) -> Any:
    """The pooled features, float32 [n, 1280].

    images: float32 [n, 3, size, size].
    layers: weight and bias of every convolution, by name.
    """
    from torch.nn.functional import conv2d, pad, relu6

    def convolved(x: Any, name: str, stride: int = 1) -> Any:
        weight, bias = layers[name]
        side = weight.shape[2]
        # TensorFlow's "same": where it is odd, one more row and column on the far side
        high, wide = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:])
        if high % 2 or wide % 2:
            x, padding = pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)), (0, 0)
        else:
            padding = (high // 2, wide // 2)
        groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
        return conv2d(x, weight, bias, stride, padding, groups=groups)

    x = relu6(convolved(images, STEM, 2))
    for block, stride in enumerate(STRIDES):
        before, (expand, depthwise, project) = x, _block(block)
        if expand in layers:
            x = relu6(convolved(x, expand))
        x = convolved(relu6(convolved(x, depthwise, stride)), project)
        if x.shape == before.shape:
            x = x + before
    return relu6(convolved(x, HEAD)).mean((2, 3))


def _block(block: int) -> tuple[str, str, str]:
    """Names of the convolutions of a block."""
    return tuple(f"_blocks.{block}.{name}" for name in ("_expand_conv", "_depthwise_conv", "_project_conv"))  # type: ignore[return-value]


def names() -> dict[str, str]:
    """Of all convolutions, in the order of the network, each with the normalisation after it. Only the first block does
    not expand."""
    found = {STEM: "_bn0"}
    for block in range(len(STRIDES)):
        parts = _block(block)[int(block == 0) :]
        found |= {name: f"_blocks.{block}._bn{i}" for i, name in enumerate(parts, int(block == 0))}
    return found | {HEAD: "_bn1"}


@functools.lru_cache(maxsize=2)
def read_layers(path: Path, device: str) -> dict[str, tuple[Any, Any]]:
    """Every convolution with the normalisation after it multiplied into it.

    path: of the weights.
    device: of torch.

    Raises UserError for weights of another network.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise invalid("embedding.weights", path, f"{WHAT}, as torch.save writes it", "This file holds none.") from None
    parts = ("weight", "bias", "running_mean", "running_var")
    expected = [f"{name}.weight" for name in names()] + [f"{bn}.{part}" for bn in names().values() for part in parts]
    expected += ["_fc.weight", "_fc.bias"]
    found = [key for key in state if not key.endswith(".num_batches_tracked")] if isinstance(state, Mapping) else []
    missing = [key for key in expected if key not in found]
    strange = [key for key in found if key not in expected]
    if missing or strange or state["_conv_head.weight"].shape[0] != WIDTH:
        sides = (("lacks", missing), ("has besides", strange))
        gaps = [f"{what} {keys[0]} ({len(keys)} in all)" for what, keys in sides if keys]
        raise invalid("embedding.weights", path, WHAT, f"It {' and '.join(gaps) or 'is wider or narrower'}.")
    layers = {}
    for name, bn in names().items():
        gain, bias, mean, variance = (state[f"{bn}.{part}"].double() for part in parts)
        factor = gain / (variance + EPSILON).sqrt()
        weight = (state[f"{name}.weight"].double() * factor[:, None, None, None]).float()
        layers[name] = (weight.to(device, memory_format=torch.channels_last), (bias - mean * factor).float().to(device))
    return layers


def _file(weights: str) -> Path:
    if weights.startswith(PACKAGE):
        return state_dict_in_package("embedding.weights", weights)
    return local_weights("embedding.weights", weights, WHAT)
