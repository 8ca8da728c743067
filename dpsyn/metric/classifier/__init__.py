"""Train on synthetic, test on real: a small convolutional network, a residual one, none, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, did_you_mean, invalid
from dpsyn.metric import Metric, check_real, check_settings
from dpsyn.metric.classifier.networks import PUBLISHED, augmented, convolutional, residual
from dpsyn.networks.logistic import logistic
from dpsyn.networks.runtime import device_name, take_free_threads
from dpsyn.networks.tensors import resized, tensor
from dpsyn.population import Modality, Population
from dpsyn.threads import on_free_threads
from dpsyn.validate import choice, flag, number, whole

LIGHT = ("logistic", "nearest")  # of scikit-learn, without torch
CONVOLUTIONAL = ("cnn", "plain")
TAKEN = ("mean", "worst", "metric", "iteration", "final")  # by what is told beside the judges
SHARED = {"data", "device", "public", "models"}  # what is no judge's own
BATCH = 1024  # real images read at once

Guess = Callable[[np.ndarray], np.ndarray]  # uint8 [n, h, w, c] -> labels int64 [n]


@dataclass(frozen=True)
class Classifier(Metric):
    """Accuracy on held-out real images of a network trained on the synthetic ones, or of several, each by itself.

    Real images of another size are resized to that of the synthetic ones.

    data: the real data. epochs, batch_size, learning_rate, seed: of the training. device: 'auto', 'cpu' or 'cuda'.
    public: the real data are public; otherwise the accuracy is private.
    network: 'logistic' (regression on pixels) or 'nearest' (the label of the synthetic image with the nearest pixels),
        in seconds and without torch. 'cnn': two 3x3 convolutions (24, 48), max pooling, 128 hidden units, dropout
        0.25 and 0.5. 'plain': the same with 32 and 64, and dropout 0.3 once. Or one of those that DPImageBench
        (2503.14681) trains, three stages each, as made for CIFAR: 'resnet' (He et al. 2016, section 4.2; its
        ResNet-110 is depth=110), 'wrn' (Zagoruyko and Komodakis 2016: WRN-40-4, dropout 0.3), 'resnext' (Xie et al.
        2017, section 5.3: 8 groups of width channels). Under bfloat16 autocast on a GPU.
    depth: layers, 6n+2, 6n+4 and 9n+2; width: channels of the first stage. None: 20 and 16, 40 and 64, 29 and 64.
    augment: every image anew moved by up to an eighth of its side (4 px of 32), half of them mirrored: for pictures of
        things, not for letters and digits.
    one_cycle: the learning rate rises to `learning_rate` and falls to 0, with AdamW; otherwise it stays, with Adam.
    models: judges, by a name of each the settings above in which it differs; none: these settings are the judge.
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
    one_cycle: bool = True
    models: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        check_settings(self, "classifier", {"epochs": 1, "batch_size": 1, "seed": 0}, self.public)
        number("metric.parts.classifier.learning_rate", self.learning_rate, "a number above 0", above=0)
        device_name("metric.parts.classifier.device", self.device)
        for key in ("augment", "one_cycle"):
            flag(f"metric.parts.classifier.{key}", getattr(self, key))
        small = (*CONVOLUTIONAL, *LIGHT)
        choice("metric.parts.classifier.network", self.network, (*small, *PUBLISHED))
        for key in ("depth", "width"):
            value = getattr(self, key)
            if value is not None and self.network in small:
                raise invalid(f"metric.parts.classifier.{key}", value, f"null with network={self.network}")
            whole(f"metric.parts.classifier.{key}", value, 1, optional=True)
        if self.depth is not None:
            rest, each, *_ = PUBLISHED[self.network]
            if self.depth <= rest or (self.depth - rest) % each:
                expected = f"{each}n+{rest} with network={self.network}, such as {each + rest} or {2 * each + rest}"
                raise invalid("metric.parts.classifier.depth", self.depth, expected)
        self._models()

    def _models(self) -> dict[str, Classifier]:
        """By name; {} where there is none but this one. Raises UserError for settings that are none of a judge."""
        if not isinstance(self.models, Mapping | None):
            raise invalid("metric.parts.classifier.models", self.models, "settings by names of judges, or null")
        found, own = dict[str, Classifier](), [each.name for each in fields(self) if each.name not in SHARED]
        for name, differing in (self.models or {}).items():
            key = f"metric.parts.classifier.models.{name}"
            if name in TAKEN or not isinstance(differing, Mapping):
                raise invalid(key, differing, f"settings of a judge that has another name than {', '.join(TAKEN)}")
            for setting, value in differing.items():
                if setting not in own:
                    raise invalid(f"{key}.{setting}", value, "a setting of a judge", did_you_mean(setting, own))
            try:
                found[name] = replace(self, models=None, **differing)
            except UserError as error:
                raise UserError(str(error).replace("metric.parts.classifier", key, 1)) from None
        return found

    def check(self) -> None:
        """Raises UserError without real data."""
        for judge in self._models().values() or [self]:
            if judge.network not in LIGHT:
                check_packages("metric.parts.classifier.network", judge.network, "torch")
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
        """{'accuracy': share of real images whose label is found}; with `models` that of each by its name, and the mean
        and the worst of those that are networks, or of all where none is. Raises UserError for what are no images."""
        if population.samples.content.ndim != 4:
            raise UserError("metric classifier: expected images. Leave this metric out for this kind of data.")
        judges = self._models()
        learned = {name: _learned(judge, population) for name, judge in (judges or {"accuracy": self}).items()}
        right, total = dict.fromkeys(learned, 0), 0
        channels = population.samples.content.shape[3]
        for records in self.data.batches(BATCH):
            if len(records.samples):
                if records.samples.content.shape[3] != channels:
                    raise UserError(f"held_out: expected images of {channels} channel(s), as the synthetic ones have.")
                total += len(records.samples)
                for name, guess in learned.items():
                    right[name] += int((guess(records.samples.content) == records.labels).sum())
        found = {name: count / max(total, 1) for name, count in right.items()}
        if not judges:
            return found
        networks = [found[name] for name, judge in judges.items() if judge.network not in LIGHT] or list(found.values())
        return {**found, "mean": sum(networks) / len(networks), "worst": min(networks)}


def _learned(judge: Classifier, population: Population) -> Guess:
    """What it takes real images for, once it has seen the synthetic ones."""
    if judge.network in LIGHT:
        return _learned_without_torch(judge, population)
    import torch

    take_free_threads()
    device = judge.device if judge.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    shape = population.samples.content.shape[1:3]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.startswith("cuda") else []):
        torch.manual_seed(judge.seed)
        network = _trained(judge, population, device)
    network.eval()
    size = BATCH if judge.network in CONVOLUTIONAL else judge.batch_size  # what fits in training fits here

    def guess(images: np.ndarray) -> np.ndarray:
        found = []
        with torch.no_grad(), _precision(judge, device):
            for start in range(0, len(images), size):
                real = resized(tensor(images[start : start + size], device), shape, "bilinear")
                found.append(network(real).argmax(1).cpu().numpy())
        return np.concatenate(found)

    return guess


def _learned_without_torch(judge: Classifier, population: Population) -> Guess:
    from sklearn.neighbors import KNeighborsClassifier

    made = population.samples.content
    given = made.reshape(len(made), -1) / np.float32(255)
    if judge.network == "logistic":
        model = logistic(given, population.labels, 100 * judge.epochs)
    else:
        model = KNeighborsClassifier(1).fit(given, population.labels)

    def guess(images: np.ndarray) -> np.ndarray:
        pixels = np.stack([_resized(image, made.shape[1:3]) for image in images])
        with on_free_threads():
            return np.asarray(model.predict(pixels / np.float32(255)))

    return guess


def _resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [pixels]"""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(-1)


def _precision(judge: Classifier, device: str) -> Any:
    import torch

    lower = judge.network not in CONVOLUTIONAL and device != "cpu"
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=lower)


def _trained(judge: Classifier, population: Population, device: str) -> Any:
    import torch

    images, labels = population.samples.content, torch.from_numpy(population.labels.astype(np.int64))
    _, h, w, channels = images.shape
    if judge.network in CONVOLUTIONAL:
        network = convolutional(judge.network, h, w, channels, len(judge.data.labels))
    else:
        network = residual(judge.network, judge.depth, judge.width, channels, len(judge.data.labels))
    network.to(device=torch.device(device), memory_format=torch.channels_last)
    rate, steps = judge.learning_rate, judge.epochs * -(-len(images) // judge.batch_size)
    decay = 1e-4 if judge.one_cycle else 0.0  # AdamW without decay is Adam
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps) if judge.one_cycle else None
    for _ in range(judge.epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), judge.batch_size):
            rows = order[start : start + judge.batch_size]
            batch = tensor(images[rows.numpy()], device)
            with _precision(judge, device):
                guess = network(augmented(batch) if judge.augment else batch)
                loss = torch.nn.functional.cross_entropy(guess, labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return network
