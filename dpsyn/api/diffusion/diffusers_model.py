"""A UNet2DModel of diffusers with its scheduler, consistency models among them."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpsyn.api import Degree
from dpsyn.api.diffusion.common import Loaded, Sampler, check_side, named, normal, pair
from dpsyn.errors import first_line, invalid
from dpsyn.networks.hub import fetched, model_folder
from dpsyn.networks.runtime import Runtime, placed
from dpsyn.validate import number, whole

WHERE = "a .pt of improved-diffusion or its address, or a folder of diffusers or its name on the hub"
NETWORK, SCHEDULER = ("unet", "config.json"), ("scheduler", "scheduler_config.json")  # in a folder of diffusers


@dataclass(frozen=True)
class DiffusersModel:
    """A network of diffusers. Its settings are those of `dpsyn.api.diffusion.Diffusion`."""

    path: str
    revision: str | None
    resolution: int
    steps: int

    @property
    def side(self) -> Any:
        """px of a sample, about, before it is loaded."""
        return (_local_config(self.path, NETWORK) or {}).get("sample_size") or self.resolution

    def check(self) -> Mapping[str, Any] | None:
        """The network's config, where it is known without its weights. Raises UserError where the path is nothing, or
        where what is known does not fit."""
        if model_folder("api.path", self.path, WHERE) is None:
            return None
        config, scheduler = _configs(self.path, self.path)
        _check_steps("api.steps", self.steps, scheduler)
        return config

    def check_degree(self, degree: Degree) -> None:
        _, steps = self._strength(degree)
        _check_steps("schedule.degree.steps", steps, _local_config(self.path, SCHEDULER) or {})

    def load(self, runtime: Runtime) -> Loaded:
        loaded = _folder(self.path, self.revision, runtime)
        if loaded.size is None:
            check_side(self.resolution, loaded.network.config)
            return loaded._replace(size=pair(self.resolution))
        return loaded

    def sampler(self, loaded: Loaded, degree: Degree | None) -> Sampler | None:
        """What draws samples by the network; None where a degree leaves parents as they are.

        loaded: the network.
        degree: of the variations; None for fresh samples.
        """
        strength, steps = (1.0, self.steps) if degree is None else self._strength(degree)
        if not strength:
            return None
        _check_steps("api.steps" if degree is None else "schedule.degree.steps", steps, loaded.scheduler.config)
        return functools.partial(_scheduled, loaded, steps, strength)

    def _strength(self, degree: Degree) -> tuple[float, int]:
        given = named(degree, "strength", "steps")
        strength, steps = given["strength"], given.get("steps", self.steps)
        do = "It is the share of a whole sample."
        number("schedule.degree", strength, "a number from 0 to 1", least=0, most=1, do=do)
        whole("schedule.degree.steps", steps, 1)
        return float(strength), steps


@functools.lru_cache(maxsize=2)
def _folder(path: str, revision: str | None, runtime: Runtime) -> Loaded:
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
        reason = first_line(error)
        raise invalid("api.path", path, "the weights of its config.json", f"diffusers says: {reason}") from None
    if missing := info["missing_keys"]:
        raise invalid("api.path", path, "the weights of its config.json", f"Missing: {', '.join(sorted(missing)[:3])}.")
    size = pair(config["sample_size"]) if config.get("sample_size") else None
    scheduler = made.from_config(schedule)
    network = placed(network, runtime)
    return Loaded(network, config.get("in_channels", 3), config.get("num_class_embeds"), size, scheduler)


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


def _check_steps(key: str, steps: int, schedule: Mapping[str, Any]) -> None:
    most = schedule.get("num_train_timesteps") or math.inf
    if steps > most:
        raise invalid(key, steps, f"at most {most}, the steps of the network's process")


def _scheduled(loaded: Loaded, steps: int, strength: float, noise: list[Any], parents: Any, classes: Any) -> Any:
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
    x = normal(loaded, noise)
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
