"""What small patches look like, learned from public images in seconds: features for photographs where no weights are.

Filters are learned by clustering whitened patches (Coates, Ng and Lee 2011; spherical, with a soft threshold, Coates
and Ng 2012), pooled over quarters of the image, standardised and partly whitened. On CIFAR-10 the nearest of 6,000
images has the same class for 51 % so, for 40 % by edges and 33 % by pixels (`embedding=pixels`).
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dpsyn import __version__
from dpsyn.data import Data, said_of
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, invalid, missing
from dpsyn.files import public_cache, write
from dpsyn.networks.runtime import Runtime, exact, torch_device
from dpsyn.networks.tensors import tensor, with_channels
from dpsyn.population import Modality, Samples
from dpsyn.validate import whole

PATCHES = 80_000  # that filters are learned from
IMAGES = 10_000  # read at most: the first ones
ROUNDS = 10  # of clustering: more changed no figure
CONTRAST = 10.0 / 127.5**2  # added to the variance of a patch, as published for pixels of 0 to 255
FLAT = 0.1  # added to the variances that whitening divides by
THRESHOLD = 0.25
ON_CPU, ON_GPU = 2**21, 2**24  # answers at once. On CPUs of more: half of the time went into new pages of memory
MOST = 64  # images at once


@dataclass(frozen=True)
class Patches(Embedding):
    """Images uint8 [n, h, w, 1 or 3] -> float32 [n, dimension] of length 1.

    data: public images, never the private ones: the filters and the whitening are fitted on them, once, and cached.
    size: px a side of a patch. filters: how many are learned. stride: px between patches. dimension: of the vectors,
        at most 4 * filters. seed: of the patches that are looked at and of the first filters.

    Raises UserError for what are no images.
    """

    data: Data
    size: int
    filters: int
    stride: int
    dimension: int
    seed: int
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        for key, least in (("size", 2), ("filters", 1), ("stride", 1), ("dimension", 1), ("seed", 0)):
            value = getattr(self, key)
            whole(f"embedding.{key}", value, least)
        if self.dimension > 4 * self.filters:
            raise invalid("embedding.dimension", self.dimension, f"at most four times embedding.filters={self.filters}")

    def check(self) -> None:
        """Raises UserError where the public images are not there."""
        check_packages("embedding", "patches", "torch")
        if self.data is None:
            raise missing("embedding.data", "null", "public images to learn from")
        with said_of("embedding.data"):
            self.data.check()

    def fingerprint(self) -> str:
        """Of the images that it learned from."""
        return self.data.fingerprint()

    @property
    def fits(self) -> Sequence[Modality]:
        return ("images",)

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, samples: Samples) -> np.ndarray:
        images = samples.content
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError("embedding patches: expected images. Choose an embedding for this kind of data.")
        if min(images.shape[1:3]) < self.size + self.stride:
            raise invalid("embedding.size", self.size, "px a side of a patch, two of which fit into an image")
        learned = self.learned
        pooled = pool_patches(images, learned, self.stride, torch_device(self.runtime))
        vectors = ((pooled - learned["mean"]) / learned["deviation"]) @ learned["basis"]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)

    @functools.cached_property
    def learned(self) -> Mapping[str, np.ndarray]:
        """filters float32 [k, c, size, size], bias [k]; mean, deviation [4 k]; basis [4 k, dimension]."""
        told = ("path", "id", "records", "on_error", "unit_column")  # or of no matter here
        read = [(f.name, getattr(self.data, f.name)) for f in fields(self.data) if f.name not in told]  # type: ignore[arg-type]
        settings = (__version__, self.fingerprint(), self.size, self.filters, self.stride, self.dimension, self.seed)
        path = public_cache() / "patches" / f"{hashlib.sha256(repr((settings, read)).encode()).hexdigest()[:32]}.npz"
        if not path.exists():
            sink = io.BytesIO()
            np.savez(sink, **learn(images_of(self.data), *settings[2:]))  # type: ignore[arg-type]
            path.parent.mkdir(exist_ok=True)
            write(path, sink.getvalue(), shared=True)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def images_of(data: Data) -> np.ndarray:
    parts, count = [], 0
    for records in data.batches(1000):
        parts.append(records.samples.content)
        count += len(parts[-1])
        if count >= IMAGES:
            break
    parts = [part for part in parts if len(part)]
    if count < 2:
        raise invalid("embedding.data", "too few rows", "public images to learn from")
    return np.concatenate(parts)[:IMAGES]


def learn(images: np.ndarray, size: int, filters: int, stride: int, dimension: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, h, w, c = images.shape
    if min(h, w) < size + stride:
        raise invalid(
            "embedding.size", size, f"px a side of a patch, two of which fit into the public images ({h}x{w})"
        )
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    places = rng.integers(n, size=PATCHES), *(rng.integers(side - size + 1, size=PATCHES) for side in (h, w))
    patches = windows[places].reshape(PATCHES, c * size * size).astype(np.float32) / np.float32(127.5) - 1
    patches -= patches.mean(1, keepdims=True)
    patches /= np.sqrt(patches.var(1, keepdims=True) + CONTRAST)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches.T.astype(np.float64)))
    whiten = (vectors / np.sqrt(np.maximum(values, 0) + FLAT) @ vectors.T).astype(np.float32)
    white = (patches - mean) @ whiten
    centres = _unit(rng.standard_normal((filters, white.shape[1]), dtype=np.float32))
    for _ in range(ROUNDS):
        likeness = white @ centres.T
        nearest = likeness.argmax(1)
        weight = likeness[np.arange(PATCHES), nearest]
        order = np.argsort(nearest, kind="stable")
        present, starts = np.unique(nearest[order], return_index=True)
        sums = np.zeros_like(centres)
        sums[present] = np.add.reduceat((weight[:, None] * white)[order], starts)
        centres = _unit(sums + centres)
    kernel = centres @ whiten.T
    learned = {"filters": kernel.reshape(filters, c, size, size), "bias": kernel @ mean}
    pooled = pool_patches(images, learned, stride, "cpu").astype(np.float64)
    average, deviation = pooled.mean(0), pooled.std(0) + 1e-6
    values, vectors = np.linalg.eigh(np.cov(((pooled - average) / deviation).T))
    basis = vectors[:, -dimension:] / np.sqrt(np.sqrt(np.maximum(values[-dimension:], 1e-9)))  # half of a whitening
    return {
        **learned,
        "mean": average.astype(np.float32),
        "deviation": deviation.astype(np.float32),
        "basis": basis.astype(np.float32),
    }


def pool_patches(images: np.ndarray, learned: Mapping[str, Any], stride: int, device: str) -> np.ndarray:
    """float32 [n, 4 k]: how strongly each filter answers, over the quarters of an image.

    images: uint8 [n, h, w, c].
    learned: k filters, and how patches are whitened, as `learn` gives them.
    stride: px between patches.
    device: of torch.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, conv2d

    kernel, bias = (torch.from_numpy(learned[name]).to(device) for name in ("filters", "bias"))
    channels, size = kernel.shape[1], kernel.shape[2]
    box = torch.full((1, channels, size, size), 1 / (channels * size * size), device=device)
    sums = kernel.sum((1, 2, 3))[None, :, None, None]
    answers = len(kernel) * images.shape[1] * images.shape[2]
    at_once = min(MOST, max(1, (ON_CPU if device == "cpu" else ON_GPU) // answers))  # one fixed shape
    parts = []
    with exact():
        for start in range(0, len(images), at_once):
            some = images[start : start + at_once]
            short = at_once - len(some)
            whole = np.concatenate([some, np.repeat(some[:1], short, axis=0)]) if short else some
            pixels = with_channels(tensor(whole, device), channels).contiguous()
            mean = conv2d(pixels, box, stride=stride)
            variance = (conv2d(pixels * pixels, box, stride=stride) - mean * mean).clamp_min(0)
            answer = conv2d(pixels, kernel, stride=stride).sub_(mean * sums).div_(torch.sqrt(variance + CONTRAST))
            strong = answer.sub_(bias[None, :, None, None] + THRESHOLD).relu_()
            parts.append(adaptive_avg_pool2d(strong, 2).flatten(1)[: len(some)].cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, 4 * len(kernel)), np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
