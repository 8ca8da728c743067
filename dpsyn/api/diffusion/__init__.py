"""Pixel-space diffusion and consistency models as an api (PE, arXiv 2305.15560): noise the parent, denoise from there.

Two kinds of networks: a checkpoint of OpenAI's improved-diffusion (`.pt`), sampled exactly as published, and any
UNet2DModel of diffusers with its scheduler. Both have classes of their own, such as ImageNet's, or none: a sample is
made with a random one, whatever its label, and keeps it as the trait `class`. Votes choose.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.api.diffusion.common import Loaded, Sampler, pair
from dpsyn.api.diffusion.diffusers_model import WHERE, DiffusersModel
from dpsyn.api.diffusion.improved import ImprovedDiffusion
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.marks import PLACE
from dpsyn.networks.hub import check_revision
from dpsyn.networks.runtime import Runtime, in_batches, running, torch_device
from dpsyn.networks.tensors import generators, images, resized, tensor, with_channels
from dpsyn.population import Label, Samples
from dpsyn.validate import choice, flag, side_lengths, whole

SCHEDULES = ("cosine", "linear")


@dataclass(frozen=True)
class Diffusion(Api):
    """Images uint8 [n, h, w, c], and the trait `class` (int64 [n]) where the network has classes.

    path: a `.pt` of improved-diffusion, a file or its address; or a folder of diffusers, or its name on the hub, that
        holds a UNet2DModel (in itself or in `unet/`) and its scheduler (in itself or in `scheduler/`).
    image_size: [h, w] px of the samples; None: the network's. Parents of another size are resized to the network's.
    classes: the ids of the network's classes that fresh samples are drawn from, uniformly; None: all of them.

    For a `.pt` alone. What else it is, is read off the file.
        resolution: px a side that it was trained at. heads: of every attention.
        diffusion_steps, noise_schedule ('cosine' or 'linear'): of its process.
        respacing: the steps that are taken of it: 'N', 'N,M,...' (of equal parts of the process) or 'ddimN'.
        ddim: DDIM with eta 0, as Private Evolution has it; otherwise ancestral steps with the learned variance.
    For diffusers alone.
        revision: a commit, tag or branch on the hub; None: the newest at the first use, see
            `dpsyn.networks.hub.commit_of`.
        steps: of a whole sample; network calls, but for schedulers of second order, which call twice a step.

    Degrees of a `.pt`: a whole number d of T' respaced steps, 0 to T' - 1. The parent is noised to the respaced step
    T' - 1 - d and denoised from there, with its class, in T' - d calls: a larger d stays closer to the parent.
    `{skip: d, respacing: "40"}` is with another respacing than the api's.

    Degrees of diffusers: a strength s from 0 (the parent itself) to 1 (as good as afresh): a larger s goes further.
    `{strength: s, steps: n}` is with another number of steps than the api's. The parent is noised to the level of the
    scheduler at the share s of a whole sample, counted from its end; of its n steps the last s * n are taken (rounded,
    at least one). With a consistency model s names a level between its lowest and its highest noise on the scale of
    its own schedule (Karras et al. 2022, equation 5: sigma^(1/rho) is linear in s), the nearest of its 40, say, and n
    calls are made from there.
    """

    path: str = field(metadata=PLACE)
    image_size: Sequence[int] | None
    classes: Sequence[int] | None
    resolution: int
    heads: int
    diffusion_steps: int
    noise_schedule: str
    respacing: str | int
    ddim: bool
    steps: int
    revision: str | None = None
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        check_revision("api.revision", self.revision)
        side_lengths("api.image_size", self.image_size, optional=True)
        classes = self.classes
        listed = isinstance(classes, Sequence) and not isinstance(classes, str) and len(classes) > 0
        if classes is not None and not (listed and all(type(each) is int and each >= 0 for each in classes)):
            raise invalid("api.classes", classes, "a list of class ids of the network, or null for all")
        for key in ("resolution", "heads", "diffusion_steps", "steps"):
            whole(f"api.{key}", getattr(self, key), 1)
        choice("api.noise_schedule", self.noise_schedule, SCHEDULES)
        flag("api.ddim", self.ddim)
        if not isinstance(self.path, str) or not self.path:
            raise invalid("api.path", "null" if self.path is None else self.path, WHERE)
        if isinstance(self._model, ImprovedDiffusion):
            self._model.process(self.respacing, "api.respacing")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a small picture in colour."""
        size = self.image_size or pair(self._model.side)
        return int(math.prod(size) * 3 * 0.8) + 160

    def check(self) -> None:
        """Raises UserError where the path is nothing, or what can be seen of the network without its weights does not
        fit."""
        check_packages("api", "diffusion", "torch", "diffusers")
        if (config := self._model.check()) is not None:
            self._check_classes(config.get("num_class_embeds"))

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self._model.check_degree(degree)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Fresh samples of random classes. Raises UserError for a network that cannot be had or does not fit."""
        traits = self._classes(seeds)
        make = self._model.sampler(self.loaded, None)
        assert make is not None
        return Samples(self._made(make, None, traits, seeds), traits)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """The parents noised and denoised, with their classes. Raises UserError for samples without `class`."""
        parents = samples.content
        if parents.ndim != 4 or parents.dtype != np.uint8:
            raise UserError("api diffusion: expected images as parents. Choose an api for this kind of data.")
        traits = self._own(samples.traits)
        make = self._model.sampler(self.loaded, degree)
        if make is None:
            return Samples(parents, traits)
        return Samples(self._made(make, parents, traits, seeds), traits)

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Samples of another api, each with a random class."""
        return Samples(samples.content, {**samples.traits, **self._classes(seeds)})

    def _made(
        self, make: Sampler, parents: np.ndarray | None, traits: Mapping[str, np.ndarray], seeds: np.ndarray
    ) -> np.ndarray:
        """uint8 [n, h, w, c]."""
        import torch

        loaded, device = self.loaded, torch_device(self.runtime)
        size = tuple(self.image_size or loaded.size)

        def work(rows: slice) -> np.ndarray:
            started = None
            if parents is not None:
                started = with_channels(resized(tensor(parents[rows], device), loaded.size), loaded.channels)
            classes = torch.from_numpy(traits["class"][rows]).to(device) if traits else None
            with running(self.runtime):
                values = make(generators(seeds[rows]), started, classes).float()
            whole = values.isfinite().flatten(1).all(1)[:, None, None, None]  # float16 may overflow: then the parent
            return images(resized(torch.where(whole, values, 0 if started is None else started), size))

        parts = in_batches(len(seeds), self.runtime, "api diffusion", work)
        return np.concatenate(parts) if parts else np.empty((0, *size, loaded.channels), np.uint8)

    def _classes(self, seeds: np.ndarray) -> dict[str, np.ndarray]:
        known = self.loaded.classes
        if known is None:
            return {}
        drawn_from = np.arange(known) if self.classes is None else np.array(self.classes, np.int64)
        places = [np.random.default_rng(int(seed)).integers(len(drawn_from)) for seed in seeds]
        return {"class": drawn_from[np.array(places, np.int64)]}

    def _own(self, traits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = self.loaded.classes
        if known is None:
            return {}
        if "class" not in traits:
            raise UserError("api diffusion: the samples lack the trait class: another api made them.")
        ids = traits["class"]
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < known):
            raise UserError(f"api diffusion: the trait class does not fit the network, which has {known} classes.")
        return {"class": ids.astype(np.int64)}

    def _check_classes(self, known: int | None) -> None:
        if self.classes is None:
            return
        if known is None:
            raise invalid("api.classes", list(self.classes), "null", "The network has no classes.")
        if max(self.classes) >= known:
            do = f"The network has {known} classes."
            raise invalid("api.classes", list(self.classes), f"ids from 0 to {known - 1}", do)

    @property
    def _model(self) -> ImprovedDiffusion | DiffusersModel:
        if "://" in self.path or self.path.endswith((".pt", ".pth")):
            process = self.diffusion_steps, self.noise_schedule, self.respacing, self.ddim
            return ImprovedDiffusion(self.path, self.resolution, self.heads, *process)
        return DiffusersModel(self.path, self.revision, self.resolution, self.steps)

    @property
    def loaded(self) -> Loaded:
        loaded = self._model.load(dataclasses.replace(self.runtime, devices=None))  # a list is no key
        self._check_classes(loaded.classes)
        return loaded
