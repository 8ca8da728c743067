"""Train on synthetic, test on real: a small convolutional network, plain on purpose."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError, bad
from dpsyn.population import Population


@dataclass(frozen=True)
class Classifier:
    """Accuracy on held-out real images of a network trained on the synthetic ones.

    Two 3x3 convolutions (24, 48), max pooling, 128 hidden units; no augmentation. Real images of another size are
    resized to that of the synthetic ones.

    data: the real data. epochs, batch_size, learning_rate (the peak of one cycle of AdamW), seed: of the training.
    device: 'auto', 'cpu' or 'cuda'. public: the real data are public; otherwise the accuracy is private.
    """

    data: Data
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    public: bool

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            if type(value := getattr(self, key)) is not int or value < 1:
                raise bad(f"metric.parts.classifier.{key}", value, "a whole number, 1 or more")
        rate = self.learning_rate
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise bad("metric.parts.classifier.learning_rate", rate, "a number above 0")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise bad("metric.parts.classifier.seed", self.seed, "a whole number, 0 or more")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise bad("metric.parts.classifier.device", self.device, "auto, cpu, cuda or cuda:1")
        if type(self.public) is not bool:  # a word such as "no" would count as true, and publish a private number
            raise bad("metric.parts.classifier.public", self.public, "true or false")

    def check(self) -> None:
        """Raises UserError without real data."""
        if self.data is None:
            raise UserError("held_out=null: this metric needs real data. Declare a part of the group data as held_out.")
        self.data.check()

    @property
    def private(self) -> bool:
        return not self.public

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'accuracy': share of real images whose label is found}. Raises UserError for what are no images."""
        if population.samples.content.ndim != 4:
            raise UserError("metric classifier: expected images. Leave this metric out for this kind of data.")
        import torch

        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.startswith("cuda") else []):
            torch.manual_seed(self.seed)
            network = _trained(self, population, device)
        network.eval()
        right = total = 0
        with torch.no_grad():
            for records in self.data.batches(1024):
                if len(records.samples):
                    real = _tensor(records.samples.content, device)
                    shape, channels = population.samples.content.shape[1:3], population.samples.content.shape[3]
                    if real.shape[1] != channels:
                        raise UserError(
                            f"held_out: expected images of {channels} channel(s), as the synthetic ones have."
                        )
                    if real.shape[2:] != shape:
                        real = torch.nn.functional.interpolate(real, shape, mode="bilinear", antialias=True)
                    guess = network(real).argmax(1).cpu().numpy()
                    right, total = right + int((guess == records.labels).sum()), total + len(guess)
        return {"accuracy": right / max(total, 1)}


def _trained(part: Classifier, population: Population, device: str) -> Any:
    import torch

    images, labels = population.samples.content, torch.from_numpy(population.labels.astype(np.int64))
    _, h, w, channels = images.shape
    network = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 24, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2, ceil_mode=True),
        torch.nn.Conv2d(24, 48, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2, ceil_mode=True),
        torch.nn.Dropout(0.25),
        torch.nn.Flatten(),
        torch.nn.Linear(48 * -(-h // 4) * -(-w // 4), 128),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(128, len(part.data.labels)),
    )
    network.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=part.learning_rate, weight_decay=1e-4)
    steps = part.epochs * -(-len(images) // part.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, part.learning_rate, total_steps=steps)
    for _ in range(part.epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), part.batch_size):
            rows = order[start : start + part.batch_size]
            loss = torch.nn.functional.cross_entropy(
                network(_tensor(images[rows.numpy()], device)), labels[rows].to(device)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def _tensor(images: np.ndarray, device: str) -> Any:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w] around zero"""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
