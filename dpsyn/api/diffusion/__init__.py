"""Pixel-space diffusion and consistency models as an api (PE, arXiv 2305.15560): noise the parent, denoise from there.

Two kinds of networks: a checkpoint of OpenAI's improved-diffusion (`.pt`), sampled exactly as published, and any
UNet2DModel of diffusers with its scheduler. Both have classes of their own, such as ImageNet's, or none: a sample is
made with a random one, whatever its label, and keeps it as the trait `class`. Votes choose.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.api.diffusion import improved as improved_diffusion
from dpsyn.api.diffusion.improved import Process
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, invalid
from dpsyn.marks import PLACE
from dpsyn.networks.hub import check_revision, fetched
from dpsyn.networks.runtime import Runtime, in_batches, placed, running, torch_device
from dpsyn.networks.tensors import generators, images, resized, tensor, with_channels
from dpsyn.networks.weights import check_weights
from dpsyn.population import Label, Samples
from dpsyn.validate import choice, flag, whole

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
WHERE = "a .pt of improved-diffusion or its address, or a folder of diffusers or its name on the hub"
NETWORK, SCHEDULER = ("unet", "config.json"), ("scheduler", "scheduler_config.json")  # in a folder of diffusers
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
        pair = isinstance(self.image_size, Sequence) and len(self.image_size) == 2
        if self.image_size is not None and not (pair and all(_whole(side, 1) for side in self.image_size)):
            raise invalid("api.image_size", self.image_size, "[height, width] px, or null")
        listed = isinstance(self.classes, Sequence) and not isinstance(self.classes, str)
        if self.classes is not None and not (listed and self.classes and all(_whole(k, 0) for k in self.classes)):
            raise invalid("api.classes", self.classes, "a list of class ids of the network, or null for all")
        for key in ("resolution", "heads", "diffusion_steps", "steps"):
            whole(f"api.{key}", getattr(self, key), 1)
        choice("api.noise_schedule", self.noise_schedule, SCHEDULES)
        flag("api.ddim", self.ddim)
        if not isinstance(self.path, str) or not self.path:
            raise invalid("api.path", "null" if self.path is None else self.path, WHERE)
        if self._is_checkpoint:
            self._process(self.respacing, "api.respacing")

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a small picture in colour."""
        config = {} if self._is_checkpoint else _local_config(self.path, NETWORK) or {}
        size = self.image_size or _pair(config.get("sample_size") or self.resolution)
        return int(math.prod(size) * 3 * 0.8) + 160

    def check(self) -> None:
        """Raises UserError where the path is nothing, or what can be seen of the network without its weights does not
        fit."""
        check_packages("api", "diffusion", "torch", "diffusers")
        if self._is_checkpoint:
            check_weights("api.path", self.path, "an improved-diffusion checkpoint")
            if "://" not in self.path:
                config = improved_diffusion.check_file("api.path", self.path, self.heads)
                _check_side(self.resolution, config)
                self._check_classes(config["num_class_embeds"])
        elif Path(self.path).expanduser().is_dir():
            config, scheduler = _configs(self.path, self.path)
            _check_steps("api.steps", self.steps, scheduler)
            self._check_classes(config.get("num_class_embeds"))
        elif not HUB_NAME.fullmatch(self.path):
            raise invalid("api.path", self.path, WHERE)

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        if self._is_checkpoint:
            self._skipped(degree)
        else:
            _, steps = self._strength(degree)
            _check_steps("schedule.degree.steps", steps, _local_config(self.path, SCHEDULER) or {})

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Fresh samples of random classes. Raises UserError for a network that cannot be had or does not fit."""
        traits = self._classes(seeds)
        if self._is_checkpoint:
            process = self._process(self.respacing, "api.respacing")
            make = functools.partial(_respaced, self._loaded, process, len(process.timesteps) - 1, self.ddim)
        else:
            _check_steps("api.steps", self.steps, self._loaded.scheduler.config)
            make = functools.partial(_scheduled, self._loaded, self.steps, 1.0)
        return Samples(self._made(make, None, traits, seeds), traits)

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """The parents noised and denoised, with their classes. Raises UserError for samples without `class`."""
        parents = samples.content
        if parents.ndim != 4 or parents.dtype != np.uint8:
            raise UserError("api diffusion: expected images as parents. Choose an api for this kind of data.")
        traits = self._own(samples.traits)
        if self._is_checkpoint:
            process, skip = self._skipped(degree)
            make = functools.partial(_respaced, self._loaded, process, len(process.timesteps) - 1 - skip, self.ddim)
        else:
            strength, steps = self._strength(degree)
            if not strength:
                return Samples(parents, traits)
            _check_steps("schedule.degree.steps", steps, self._loaded.scheduler.config)
            make = functools.partial(_scheduled, self._loaded, steps, strength)
        return Samples(self._made(make, parents, traits, seeds), traits)

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Samples of another api, each with a random class."""
        return Samples(samples.content, {**samples.traits, **self._classes(seeds)})

    def _made(
        self, make: Callable[..., Any], parents: np.ndarray | None, traits: Mapping[str, np.ndarray], seeds: np.ndarray
    ) -> np.ndarray:
        """uint8 [n, h, w, c]. make: (noise generators, parents or None, classes or None) -> float [n, c, h, w]"""
        import torch

        loaded, device = self._loaded, torch_device(self.runtime)
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
        known = self._loaded.classes
        if known is None:
            return {}
        drawn_from = np.arange(known) if self.classes is None else np.array(self.classes, np.int64)
        places = [np.random.default_rng(int(seed)).integers(len(drawn_from)) for seed in seeds]
        return {"class": drawn_from[np.array(places, np.int64)]}

    def _own(self, traits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = self._loaded.classes
        if known is None:
            return {}
        if "class" not in traits:
            raise UserError("api diffusion: the samples lack the trait class: another api made them.")
        ids = traits["class"]
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < known):
            raise UserError(f"api diffusion: the trait class does not fit the network, which has {known} classes.")
        return {"class": ids.astype(np.int64)}

    def _process(self, respacing: Any, key: str) -> Process:
        if not isinstance(respacing, str | int) or isinstance(respacing, bool):
            raise invalid(key, respacing, "'100', '10,20' or 'ddim10', say")
        return improved_diffusion.respaced(self.noise_schedule, self.diffusion_steps, str(respacing), key)

    def _skipped(self, degree: Degree) -> tuple[Process, int]:
        given = _named(degree, "skip", "respacing")
        process = self._process(given.get("respacing", self.respacing), "schedule.degree.respacing")
        skip, last = given["skip"], len(process.timesteps) - 1
        number = isinstance(skip, int | float) and not isinstance(skip, bool)
        if not number or not 0 <= skip <= last or skip != int(skip):
            do = "It is how many of the respaced steps are skipped."
            raise invalid("schedule.degree", skip, f"a whole number from 0 to {last}", do)
        return process, int(skip)

    def _strength(self, degree: Degree) -> tuple[float, int]:
        given = _named(degree, "strength", "steps")
        strength, steps = given["strength"], given.get("steps", self.steps)
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise invalid("schedule.degree", strength, "a number from 0 to 1", "It is the share of a whole sample.")
        if not _whole(steps, 1):
            raise invalid("schedule.degree.steps", steps, "a whole number, 1 or more")
        return float(strength), steps

    def _check_classes(self, known: int | None) -> None:
        if self.classes is None:
            return
        if known is None:
            raise invalid("api.classes", list(self.classes), "null", "The network has no classes.")
        if max(self.classes) >= known:
            do = f"The network has {known} classes."
            raise invalid("api.classes", list(self.classes), f"ids from 0 to {known - 1}", do)

    @property
    def _is_checkpoint(self) -> bool:
        return "://" in self.path or self.path.endswith((".pt", ".pth"))

    @property
    def _loaded(self) -> _Loaded:
        runtime = dataclasses.replace(self.runtime, devices=None)  # a list is no key
        if self._is_checkpoint:
            loaded = _checkpoint(self.path, self.heads, runtime)
        else:
            loaded = _folder(self.path, self.revision, runtime)
        self._check_classes(loaded.classes)
        if loaded.size is None:
            _check_side(self.resolution, loaded.network.config)
            return loaded._replace(size=_pair(self.resolution))
        return loaded


class _Loaded(NamedTuple):
    """size: [h, w] px; None: not known. scheduler: of diffusers, copied for every batch; None for a `.pt`."""

    network: Any
    channels: int
    classes: int | None
    size: Any
    scheduler: Any


@functools.lru_cache(maxsize=2)
def _checkpoint(path: str, heads: int, runtime: Runtime) -> _Loaded:
    network = improved_diffusion.network("api.path", path, heads)
    return _Loaded(placed(network, runtime), network.config.in_channels, network.config.num_class_embeds, None, None)


@functools.lru_cache(maxsize=2)
def _folder(path: str, revision: str | None, runtime: Runtime) -> _Loaded:
    import diffusers

    folder = _fetched(path, revision)
    config, schedule = _configs(path, str(folder))
    made: Any = getattr(diffusers, str(schedule.get("_class_name")), None)
    if not all(hasattr(made, name) for name in ("from_config", "set_timesteps", "add_noise", "step")):
        do = f"It has {schedule.get('_class_name')}."
        raise invalid("api.path", path, "a scheduler of diffusers that adds noise and takes steps", do)
    inner = folder / NETWORK[0]
    try:
        network, info = diffusers.UNet2DModel.from_pretrained(
            str(inner if (inner / NETWORK[1]).is_file() else folder), low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise invalid("api.path", path, "the weights of its config.json", f"diffusers says: {reason}") from None
    if missing := info["missing_keys"]:
        raise invalid("api.path", path, "the weights of its config.json", f"Missing: {', '.join(sorted(missing)[:3])}.")
    size = _pair(config["sample_size"]) if config.get("sample_size") else None
    scheduler = made.from_config(schedule)
    network = placed(network, runtime)
    return _Loaded(network, config.get("in_channels", 3), config.get("num_class_embeds"), size, scheduler)


def _fetched(path: str, revision: str | None) -> Path:
    """The folder itself, or the cached copy of what the hub has under that name. Raises UserError."""
    weights = "diffusion_pytorch_model"
    names = [*(f"{weights}{end}" for end in (".safetensors", "-*.safetensors", ".safetensors.index.json"))]
    wanted = ["/".join(NETWORK), "/".join(SCHEDULER), NETWORK[1], SCHEDULER[1]]
    wanted += [f"{folder}{name}" for folder in (f"{NETWORK[0]}/", "") for name in names]
    files = f"unet/config.json, unet/{weights}.safetensors and scheduler/scheduler_config.json"
    do = f"Put {files} into a folder and name it with api.path=."
    return fetched("api.path", path, revision, wanted, [f"{weights}.bin", f"{NETWORK[0]}/{weights}.bin"], do)


def _configs(path: str, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a folder says of its network and its scheduler. Raises UserError where they are none that serve."""
    config, schedule = _local_config(folder, NETWORK), _local_config(folder, SCHEDULER)
    for found, (inner, name) in ((config, NETWORK), (schedule, SCHEDULER)):
        if found is None:
            raise invalid("api.path", path, f"a folder of diffusers that holds {inner}/{name} or {name}")
    assert config is not None and schedule is not None
    if (kind := config.get("_class_name")) != "UNet2DModel":
        raise invalid("api.path", path, "a UNet2DModel", f"It holds {kind}.")
    if config.get("class_embed_type") is not None:
        raise invalid(
            "api.path", path, "classes as an embedding", f"It has class_embed_type {config['class_embed_type']}."
        )
    _check_channels(path, config)
    return config, schedule


def _local_config(folder: str, place: tuple[str, str]) -> dict[str, Any] | None:
    inner, name = place
    for file in (Path(folder).expanduser() / inner / name, Path(folder).expanduser() / name):
        if file.is_file():
            try:
                found = json.loads(file.read_text())
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise invalid("api.path", folder, f"a {name} in json")
            return found
    return None


def _check_channels(path: str, config: Mapping[str, Any]) -> None:
    channels = config.get("in_channels", 3)
    if channels not in (1, 3) or config.get("out_channels", 3) not in (channels, 2 * channels):
        do = f"It takes {channels} and gives {config.get('out_channels', 3)}."
        raise invalid("api.path", path, "a network of grey or colour images: 1 or 3 channels", do)


def _check_side(side: int, config: Mapping[str, Any]) -> None:
    halved = 2 ** (len(config["block_out_channels"]) - 1)
    if side % halved:
        raise invalid("api.resolution", side, f"a multiple of {halved}, since the network halves it so often")


def _check_steps(key: str, steps: int, schedule: Mapping[str, Any]) -> None:
    most = schedule.get("num_train_timesteps") or math.inf
    if steps > most:
        raise invalid(key, steps, f"at most {most}, the steps of the network's process")


def _respaced(
    loaded: _Loaded, process: Process, first: int, ddim: bool, noise: list[Any], parents: Any, classes: Any
) -> Any:
    """float32 [n, c, h, w]: from respaced step `first`, pure noise or the parents noised to it, down to 0.

    DDIM with eta 0 (Song et al. 2020, equation 12), or steps of the posterior with the learned variance between its
    bounds (Nichol and Dhariwal, equation 15); x0 is clipped to [-1, 1] and the noise derived from it again.
    """
    import torch

    x = _normal(loaded, noise)
    alphas, timesteps = process.alphas, torch.tensor(process.timesteps, device=x.device)
    if parents is not None:
        x = math.sqrt(alphas[first]) * parents + math.sqrt(1 - alphas[first]) * x
    for i in range(first, -1, -1):
        alpha, before = float(alphas[i]), float(alphas[i - 1]) if i else 1.0
        said = loaded.network(x, timesteps[i], classes).sample.float()
        eps, variance = said[:, : loaded.channels], said[:, loaded.channels :]
        start = (x / math.sqrt(alpha) - math.sqrt(1 / alpha - 1) * eps).clamp(-1, 1)
        if ddim:
            eps = (x / math.sqrt(alpha) - start) / math.sqrt(1 / alpha - 1)
            x = math.sqrt(before) * start + math.sqrt(1 - before) * eps
            continue
        beta = 1 - alpha / before
        x = (math.sqrt(before) * beta * start + math.sqrt(1 - beta) * (1 - before) * x) / (1 - alpha)
        if i:
            most, least = math.log(beta), math.log(beta * (1 - before) / (1 - alpha))
            share = (variance + 1) / 2 if variance.shape[1] else torch.ones_like(x)  # not learned: the larger bound
            x = x + (0.5 * (share * most + (1 - share) * least)).exp() * _normal(loaded, noise)
    return x


def _scheduled(loaded: _Loaded, steps: int, strength: float, noise: list[Any], parents: Any, classes: Any) -> Any:
    """float [n, c, h, w]: the last share `strength` of a whole sample, with a scheduler of diffusers."""
    import diffusers

    schedule = loaded.scheduler.config
    scheduler: Any = loaded.scheduler.from_config(schedule)  # it keeps a state
    begin = 0
    if isinstance(loaded.scheduler, diffusers.CMStochasticIterativeScheduler):
        levels = schedule.num_train_timesteps
        level = round((1 - strength) * (levels - 1))
        places = {level + i * (levels - level) // steps for i in range(steps)}
        scheduler.set_timesteps(timesteps=sorted(places, reverse=True))
    else:
        scheduler.set_timesteps(steps)
        begin = (steps - max(1, round(steps * strength))) * scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x = _normal(loaded, noise)
    if parents is None:
        x = x * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(parents, x, timesteps[:1].repeat(len(x)))
    drawn = {"generator": noise} if "generator" in inspect.signature(scheduler.step).parameters else {}
    splits = str(schedule.get("variance_type")).startswith("learned")
    for t in timesteps:
        said = loaded.network(scheduler.scale_model_input(x, t), t.to(x.device), classes).sample.float()
        x = scheduler.step(said if splits else said[:, : loaded.channels], t, x, **drawn).prev_sample
    return x


def _normal(loaded: _Loaded, noise: list[Any]) -> Any:
    """float32 [n, c, h, w] on the network's device; row i drawn by noise[i]."""
    from diffusers.utils.torch_utils import randn_tensor

    shape = (len(noise), loaded.channels, *loaded.size)
    return randn_tensor(shape, generator=noise, device=loaded.network.device)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def _whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


def _named(degree: Degree, main: str, other: str) -> Mapping[str, Any]:
    """{main: value} or {main: value, other: value}"""
    given = degree if isinstance(degree, Mapping) else {main: degree}
    if main not in given or given.keys() - {main, other}:
        raise invalid("schedule.degree", dict(given), f"a number, or {{{main}: ..., {other}: ...}}")
    return given
