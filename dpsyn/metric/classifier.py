"""Train on synthetic, test on real: a small convolutional network, plain on purpose, a residual one, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.metric import Metric, check_real, check_settings
from dpsyn.networks.runtime import device_name, take_free_threads
from dpsyn.networks.tensors import resized, tensor
from dpsyn.population import Modality, Population
from dpsyn.threads import on_free_threads
from dpsyn.validate import choice, flag, number, whole

LIGHT = ("logistic", "nearest")  # of scikit-learn, without torch
PUBLISHED = {  # network: (layers beside the blocks, layers of a block and stage, depth, width)
    "resnet": (2, 6, 20, 16),
    "wrn": (4, 6, 40, 64),
    "resnext": (2, 9, 29, 64),
}


@dataclass(frozen=True)
class Classifier(Metric):
    """Accuracy on held-out real images of a network trained on the synthetic ones.

    Real images of another size are resized to that of the synthetic ones.

    data: the real data. epochs, batch_size, learning_rate (the peak of one cycle of AdamW), seed: of the training.
    device: 'auto', 'cpu' or 'cuda'. public: the real data are public; otherwise the accuracy is private.
    network: 'logistic' (regression on pixels) or 'nearest' (the label of the synthetic image with the nearest pixels),
        in seconds and without torch. 'cnn': two 3x3 convolutions (24, 48), max pooling, 128 hidden units. Or one of
        those that DPImageBench (2503.14681) trains, three stages each, as made for CIFAR: 'resnet' (He et al. 2016,
        section 4.2; its ResNet-110 is depth=110), 'wrn' (Zagoruyko and Komodakis 2016: WRN-40-4, dropout 0.3),
        'resnext' (Xie et al. 2017, section 5.3: 8 groups of width channels). Under bfloat16 autocast on a GPU.
    depth: layers, 6n+2, 6n+4 and 9n+2; width: channels of the first stage. None: 20 and 16, 40 and 64, 29 and 64.
    augment: every image anew moved by up to an eighth of its side (4 px of 32), half of them mirrored: for pictures of
        things, not for letters and digits.
    """

    data: Data
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    public: bool
    network: str = "cnn"
    depth: int | None = None
    width: int | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        check_settings(self, "classifier", {"epochs": 1, "batch_size": 1, "seed": 0}, self.public)
        number("metric.parts.classifier.learning_rate", self.learning_rate, "a number above 0", above=0)
        device_name("metric.parts.classifier.device", self.device)
        flag("metric.parts.classifier.augment", self.augment)
        plain = ("cnn", *LIGHT)
        choice("metric.parts.classifier.network", self.network, (*plain, *PUBLISHED))
        for key in ("depth", "width"):
            value = getattr(self, key)
            if value is not None and self.network in plain:
                raise invalid(f"metric.parts.classifier.{key}", value, f"null with network={self.network}")
            whole(f"metric.parts.classifier.{key}", value, 1, optional=True)
        if self.depth is not None:
            rest, each, *_ = PUBLISHED[self.network]
            if self.depth <= rest or (self.depth - rest) % each:
                expected = f"{each}n+{rest} with network={self.network}, such as {each + rest} or {2 * each + rest}"
                raise invalid("metric.parts.classifier.depth", self.depth, expected)

    def check(self) -> None:
        """Raises UserError without real data."""
        if self.network not in LIGHT:
            check_packages("metric.parts.classifier.network", self.network, "torch")
        check_real(self.data)

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("images",)

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'accuracy': share of real images whose label is found}. Raises UserError for what are no images."""
        if population.samples.content.ndim != 4:
            raise UserError("metric classifier: expected images. Leave this metric out for this kind of data.")
        if self.network in LIGHT:
            return {"accuracy": _accuracy_without_torch(self, population)}
        import torch

        take_free_threads()
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        _, *shape, channels = population.samples.content.shape
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.startswith("cuda") else []):
            torch.manual_seed(self.seed)
            network = _trained(self, population, device)
        network.eval()
        right = total = 0
        with torch.no_grad():
            # what fits in training fits here
            for records in self.data.batches(1024 if self.network == "cnn" else self.batch_size):
                if len(records.samples):
                    real = tensor(records.samples.content, device)
                    if real.shape[1] != channels:
                        raise UserError(
                            f"held_out: expected images of {channels} channel(s), as the synthetic ones have."
                        )
                    with _precision(self, device):
                        guess = network(resized(real, shape, "bilinear")).argmax(1).cpu().numpy()
                    right, total = right + int((guess == records.labels).sum()), total + len(guess)
        return {"accuracy": right / max(total, 1)}


def _accuracy_without_torch(part: Classifier, population: Population) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    made = population.samples.content
    is_logistic = part.network == "logistic"
    model = LogisticRegression(max_iter=100 * part.epochs) if is_logistic else KNeighborsClassifier(1)
    right = total = 0
    with on_free_threads():
        model.fit(made.reshape(len(made), -1) / np.float32(255), population.labels)
        for records in part.data.batches(1024):
            if len(records.samples):
                pixels = [_resized(image, made.shape[1:]) for image in records.samples.content]
                guess = model.predict(np.stack(pixels) / np.float32(255))
                right, total = right + int((guess == records.labels).sum()), total + len(guess)
    return right / max(total, 1)


def _resized(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [pixels]. Raises UserError for another number of channels."""
    from PIL import Image

    if image.shape[2] != shape[2]:
        raise UserError(f"held_out: expected images of {shape[2]} channel(s), as the synthetic ones have.")
    picture = Image.fromarray(image[..., 0] if shape[2] == 1 else image)
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)).reshape(-1)


def _precision(part: Classifier, device: str) -> Any:
    import torch

    lower = part.network != "cnn" and device != "cpu"
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=lower)


def _trained(part: Classifier, population: Population, device: str) -> Any:
    import torch

    images, labels = population.samples.content, torch.from_numpy(population.labels.astype(np.int64))
    _, h, w, channels = images.shape
    if part.network == "cnn":
        network = _plain(h, w, channels, len(part.data.labels))
    else:
        network = residual(part.network, part.depth, part.width, channels, len(part.data.labels))
    network.to(device=torch.device(device), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=part.learning_rate, weight_decay=1e-4)
    steps = part.epochs * -(-len(images) // part.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, part.learning_rate, total_steps=steps)
    for _ in range(part.epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), part.batch_size):
            rows = order[start : start + part.batch_size]
            batch = tensor(images[rows.numpy()], device)
            with _precision(part, device):
                guess = network(augmented(batch) if part.augment else batch)
                loss = torch.nn.functional.cross_entropy(guess, labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def augmented(images: Any) -> Any:
    """float [n, c, h, w] -> the same shape: each moved by up to an eighth of its side, its border reflected, and
    mirrored or not. Drawn from torch's generator on the CPU, so that any device sees the same images."""
    import torch

    n, _, h, w = images.shape
    by = torch.randint(0, 2 * (h // 8) + 1, (n, 1)), torch.randint(0, 2 * (w // 8) + 1, (n, 1))
    down, right = by[0] + torch.arange(h), by[1] + torch.arange(w)
    mirrored = torch.rand(n, 1) < 0.5
    right = torch.where(mirrored, right.flip(1), right).to(images.device)
    wide = torch.nn.functional.pad(images, (w // 8, w // 8, h // 8, h // 8), "reflect").permute(0, 2, 3, 1)
    rows = torch.arange(n, device=images.device)
    moved = wide[rows[:, None, None], down.to(images.device)[:, :, None], right[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _plain(h: int, w: int, channels: int, labels: int) -> Any:
    import torch

    return torch.nn.Sequential(
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
        torch.nn.Linear(128, labels),
    )


def residual(kind: str, depth: int | None, width: int | None, channels: int, labels: int) -> Any:
    """The torch.nn.Module of `Classifier.network`, from images float [n, channels, h, w] to scores [n, labels].

    Three stages, each half as high and wide as the one before and with twice the channels; where these change, the
    shortcut is a 1x1 convolution.

    kind: a key of PUBLISHED.
    depth: layers; None: the published ones.
    width: channels of the first stage; None: the published ones.
    channels: of an image.
    labels: how many scores.
    """
    from torch import Tensor, nn

    rest, each, usual_depth, usual_width = PUBLISHED[kind]
    blocks, width = ((depth or usual_depth) - rest) // each, width or usual_width

    def convolution(inner: int, outer: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
        return nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)

    def active(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]

    class Block(nn.Module):
        """last(branch(y) + shortcut(y)), y = first(x); without a shortcut x itself is added"""

        def __init__(self, first: list[Any], branch: list[Any], shortcut: list[Any] | None, last: list[Any]) -> None:
            super().__init__()
            self.first, self.branch, self.last = (nn.Sequential(*layers) for layers in (first, branch, last))
            self.shortcut = None if shortcut is None else nn.Sequential(*shortcut)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(self.branch(y) + (x if self.shortcut is None else self.shortcut(y)))

    def block(inner: int, outer: int, stride: int) -> nn.Module:
        changes = inner != outer or stride != 1
        if kind == "wrn":
            branch = [convolution(inner, outer, 3, stride), *active(outer), nn.Dropout(0.3), convolution(outer, outer)]
            return Block(active(inner), branch, [convolution(inner, outer, 1, stride)] if changes else None, [])
        if kind == "resnet":
            branch = [convolution(inner, outer, 3, stride), *active(outer), convolution(outer, outer)]
        else:
            middle = 2 * outer  # 8 groups of `width` channels where the block ends in 4 * width
            branch = [convolution(inner, middle, 1), *active(middle)]
            branch += [convolution(middle, middle, 3, stride, 8), *active(middle), convolution(middle, outer, 1)]
        shortcut = [convolution(inner, outer, 1, stride), nn.BatchNorm2d(outer)] if changes else None
        return Block([], [*branch, nn.BatchNorm2d(outer)], shortcut, [nn.ReLU()])

    inner = {"resnet": width, "wrn": 16, "resnext": 64}[kind]
    layers = [convolution(channels, inner), *(active(inner) if kind != "wrn" else [])]
    for stage in range(3):
        outer = width * 2**stage * (4 if kind == "resnext" else 1)
        for each in range(blocks):
            layers.append(block(inner, outer, 2 if stage and not each else 1))
            inner = outer
    layers += active(inner) if kind == "wrn" else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, labels))
