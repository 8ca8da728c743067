"""Inception v3 as FID uses it: the TensorFlow network of 2015, after clean-fid's resize in batches on the device.

The packages that hold this network (torch-fidelity, pytorch-fid, clean-fid) all need torchvision, which does not fit
every torch. So it stands here, held against torch-fidelity's by a test.
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
from dpsyn.networks.runtime import Runtime, exact, few_on_cpu, in_batches, torch_device
from dpsyn.networks.weights import check_weights, local_weights
from dpsyn.population import Modality, Samples

WHAT = "the state dict of FID's Inception"
SIDE, WIDTH = 299, 2048
CPU_BATCH = 4  # what is resized stays in the cache: 3 to 5 times as fast as 256 at once, the network as fast as ever

# Names of the convolutions as in torchvision's Inception v3; those in one string work side by side.
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
A = (("1x1",), ("5x5_1", "5x5_2"), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"))
B = (("3x3",), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"))
C = (("1x1",), ("7x7_1", "7x7_2", "7x7_3"), ("7x7dbl_1", "7x7dbl_2", "7x7dbl_3", "7x7dbl_4", "7x7dbl_5"))
D = (("3x3_1", "3x3_2"), ("7x7x3_1", "7x7x3_2", "7x7x3_3", "7x7x3_4"))
E = (("1x1",), ("3x3_1", "3x3_2a 3x3_2b"), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3a 3x3dbl_3b"))
BLOCKS = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": E, "7c": E}
HALVING = ("6a", "7a")


@dataclass(frozen=True)
class Inception(Embedding):
    """Images uint8 [n, h, w, 1 or 3] -> float32 [n, 2048], the mean activations before the classes ("pool3").

    weights: a file or an address of the network's state dict, in the layout of torch-fidelity and pytorch-fid.

    Images of any size are resized to 299 x 299 as by clean-fid (Parmar et al. 2022): bicubic, antialiased, not rounded,
    clipped to 0..255. Grey is repeated.
    """

    weights: str = field(metadata=PLACE)
    runtime: Runtime = Runtime()

    def check(self) -> None:
        """Raises UserError where the weights are neither a file nor an address."""
        check_packages("embedding", "inception", "torch")
        check_weights("embedding.weights", self.weights, WHAT)

    def fingerprint(self) -> str:
        """Of the weights, fetched if need be."""
        return sha256(local_weights("embedding.weights", self.weights, WHAT))

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
            raise UserError("embedding inception: expected images. Choose an embedding for this kind of data.")
        device = torch_device(self.runtime)
        path = local_weights("embedding.weights", self.weights, WHAT)
        layers = read_layers(path, device, self.runtime.channels_last)

        def embedded(rows: slice) -> np.ndarray:
            batch = torch.tensor(np.ascontiguousarray(images[rows]), device=device)
            return features(resized(batch), layers).cpu().numpy()

        with exact():
            parts = in_batches(len(images), few_on_cpu(self.runtime, CPU_BATCH), "embedding inception", embedded)
        return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])


def resized(images: Any) -> Any:
    """uint8 [n, h, w, 1 or 3] -> float32 [n, 3, 299, 299], (value - 128) / 128 as the network expects it.

    Equal to Pillow's float resize to 1e-6: the same few weights for each pixel, one axis after the other.
    """
    values = images.permute(0, 3, 2, 1).contiguous().float().sub_(128).div_(128)
    rows_last = _along(values).mT.contiguous()
    return _along(rows_last).clamp_(-1, 127 / 128).expand(-1, 3, -1, -1)


def _along(values: Any) -> Any:
    """float32 [n, c, h, w] -> [n, c, 299, w]; a sum of few rows is what an embedding bag is fast at."""
    import torch

    n, c, h, w = values.shape
    rows, weights = _bags(h, n * c, str(values.device))
    sums = torch.nn.functional.embedding_bag(rows, values.view(n * c * h, w), mode="sum", per_sample_weights=weights)
    return sums.view(n, c, SIDE, w)


@functools.lru_cache(maxsize=8)
def _bags(size: int, planes: int, device: str) -> tuple[Any, Any]:
    """int32 and float32 [planes * 299, taps]: which rows of planes of `size` rows are summed, with which weights."""
    import torch

    first, weights = _taps(size)
    rows = np.arange(planes)[:, None, None] * size + first[:, None] + np.arange(weights.shape[1])
    rows = rows.reshape(-1, weights.shape[1]).astype(np.int32)
    return torch.tensor(rows, device=device), torch.tensor(np.tile(weights, (planes, 1)), device=device)


def _taps(size: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [299], float32 [299, taps]: first row and weights of bicubic interpolation (a = -1/2, Keys 1981).

    Where it shrinks, the kernel is as much wider; beyond the border there is nothing, and the rest sums to 1.
    """
    scale = size / SIDE
    wider = max(scale, 1.0)
    centers = (np.arange(SIDE) + 0.5) * scale
    first = np.maximum((centers - 2 * wider + 0.5).astype(np.int64), 0)
    beyond = np.minimum((centers + 2 * wider + 0.5).astype(np.int64), size)
    taps = int((beyond - first).max())
    start = np.minimum(first, size - taps)
    rows = start[:, None] + np.arange(taps)
    x = np.abs(rows + 0.5 - centers[:, None]) / wider
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights[(rows < first[:, None]) | (rows >= beyond[:, None])] = 0
    return start, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def features(images: Any, layers: Mapping[str, tuple[Any, Any]]) -> Any:
    """The pooled features, float32 [n, 2048], of the network of Szegedy et al. 2015.

    Where TensorFlow's network differs from torchvision's: means leave out the padding, and the last block takes maxima.

    images: float32 [n, 3, 299, 299].
    layers: weight and bias of every convolution, by name.
    """
    import torch
    from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

    def convolved(x: Any, name: str, stride: int = 1, padded: bool = True) -> Any:
        weight, bias = layers[name]
        padding = tuple(side // 2 for side in weight.shape[2:]) if padded else 0
        return conv2d(x, weight, bias, stride, padding).relu_()

    x = convolved(images, STEM[0], stride=2, padded=False)
    x = convolved(x, STEM[1], padded=False)
    x = max_pool2d(convolved(x, STEM[2]), 3, 2)
    x = convolved(x, STEM[3])
    x = max_pool2d(convolved(x, STEM[4], padded=False), 3, 2)
    for block, branches in BLOCKS.items():
        name = f"Mixed_{block}.branch"
        halving = block in HALVING
        ends = []
        for *inner, last in branches:
            y = x
            for one in inner:
                y = convolved(y, name + one)
            ends += [convolved(y, name + one, 2 if halving else 1, not halving) for one in last.split()]
        if halving:
            ends.append(max_pool2d(x, 3, 2))
        else:
            pooled = max_pool2d(x, 3, 1, 1) if block == "7c" else avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            ends.append(convolved(pooled, name + "_pool"))
        x = torch.cat(ends, 1)
    return x.mean((2, 3))


def names() -> list[str]:
    """Of all convolutions, in the order of the network."""
    found = list(STEM)
    for block, branches in BLOCKS.items():
        inside = [one for branch in branches for together in branch for one in together.split()]
        found += [f"Mixed_{block}.branch{one}" for one in (*inside, *(() if block in HALVING else ("_pool",)))]
    return found


@functools.lru_cache(maxsize=2)
def read_layers(path: Path, device: str, channels_last: bool) -> dict[str, tuple[Any, Any]]:
    """Every convolution with the normalisation after it (epsilon 0.001) multiplied into it.

    path: of the weights.
    device: of torch.
    channels_last: memory format of the weights.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise invalid("embedding.weights", path, f"{WHAT}, as torch.save writes it", "This file holds none.") from None
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    expected = [f"{name}.{part}" for name in names() for part in parts] + ["fc.weight", "fc.bias"]
    found = [key for key in state if not key.endswith(".num_batches_tracked")] if isinstance(state, Mapping) else []
    missing = [key for key in expected if key not in found]
    strange = [key for key in found if key not in expected]
    if missing or strange:
        sides = (("lacks", missing), ("has besides", strange))
        gaps = [f"{what} {keys[0]} ({len(keys)} in all)" for what, keys in sides if keys]
        raise invalid("embedding.weights", path, WHAT, f"It {' and '.join(gaps)}.")
    if state["fc.weight"].shape != (1008, WIDTH):
        do = f"These are of another network: {len(state['fc.weight'])} classes, not 1008."
        raise invalid("embedding.weights", path, WHAT, do)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layers = {}
    for name in names():
        weight, gain, bias, mean, variance = (state[f"{name}.{part}"].double() for part in parts)
        factor = gain / (variance + 0.001).sqrt()
        weight = (weight * factor[:, None, None, None]).float().to(device, memory_format=layout)
        layers[name] = (weight, (bias - mean * factor).float().to(device))
    return layers
