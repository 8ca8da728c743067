"""Images as torch tensors, whole batches at once on the device, and noise with one seed a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def tensor(images: np.ndarray, device: str) -> Any:
    """Images as a network takes them: float32 [n, c, h, w] in [-1, 1] on the device.

    images: uint8 [n, h, w, c].
    device: of torch.
    """
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def images(values: Any) -> np.ndarray:
    """float [n, c, h, w] in [-1, 1], clipped there -> uint8 [n, h, w, c], rounded to the nearest."""
    import torch

    scaled = (values.detach().float() + 1) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def resized(values: Any, size: Sequence[int], mode: str = "bicubic") -> Any:
    """Images of another size, float [n, c, *size], antialiased where it shrinks; the same tensor where it has that
    size.

    values: float [n, c, h, w].
    size: [height, width] px.
    mode: of torch's interpolate.
    """
    import torch

    if tuple(values.shape[2:]) == tuple(size):
        return values
    return torch.nn.functional.interpolate(values, tuple(size), mode=mode, antialias=True)


def with_channels(values: Any, channels: int) -> Any:
    """Grey or colour as it is wanted, float [n, channels, h, w]: grey repeated, colour as its luma (ITU-R 601).

    values: float [n, 1 or 3, h, w].
    channels: 1 or 3.
    """
    if values.shape[1] == channels:
        return values
    if values.shape[1] == 1:
        return values.expand(-1, channels, -1, -1)
    weights = values.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]
    return (values * weights).sum(1, keepdim=True)


def generators(seeds: np.ndarray) -> list[Any]:
    """A torch.Generator a row, on the CPU so that they give the same noise on any device; diffusers take such lists."""
    import torch

    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def normal(seeds: np.ndarray, shape: Sequence[int], device: str) -> Any:
    """Standard normal float32 [n, *shape] on the device; each row from its seed alone, the same on any device.

    seeds: uint64 [n].
    shape: of a row.
    device: of torch.
    """
    import torch

    rows = [torch.randn(tuple(shape), generator=generator) for generator in generators(seeds)]
    return (torch.stack(rows) if rows else torch.empty((0, *shape))).to(device)
