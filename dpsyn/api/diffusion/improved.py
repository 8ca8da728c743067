"""OpenAI's improved-diffusion (Nichol and Dhariwal, arXiv 2102.09672): its checkpoints as networks of diffusers, and
its respaced process. One of them is the ImageNet-64 model of Private Evolution (arXiv 2305.15560, section 5.1).
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpsyn.api import Degree
from dpsyn.api.diffusion.common import Loaded, Sampler, check_side, named, normal, pair
from dpsyn.errors import UserError, invalid
from dpsyn.files import public_cache, room_on_disk, sha256
from dpsyn.networks.runtime import Runtime, placed
from dpsyn.networks.weights import check_weights, local_weights

NAMED = 3  # keys that an error lists

Shapes = Mapping[str, tuple[int, ...]]
Names = dict[str, str]  # of the original -> of UNet2DModel, without .weight and .bias


class Process(NamedTuple):
    """timesteps: what the network is called with, rising. alphas: the product of 1 - beta up to each, float64 [n]."""

    timesteps: tuple[int, ...]
    alphas: np.ndarray


@dataclass(frozen=True)
class ImprovedDiffusion:
    """A checkpoint, sampled as published. Its settings are those of `dpsyn.api.diffusion.Diffusion`."""

    path: str
    resolution: int
    heads: int
    diffusion_steps: int
    noise_schedule: str
    respacing: str | int
    ddim: bool

    @property
    def side(self) -> Any:
        """px of a sample, about, before it is loaded."""
        return self.resolution

    def check(self) -> Mapping[str, Any] | None:
        """The network's config, where it is known without its weights. Raises UserError where the path is nothing, or
        where what is known does not fit."""
        check_weights("api.path", self.path, "an improved-diffusion checkpoint")
        if "://" in self.path:
            return None
        config = check_file("api.path", self.path, self.heads)
        check_side(self.resolution, config)
        return config

    def check_degree(self, degree: Degree) -> None:
        self._skipped(degree)

    def load(self, runtime: Runtime) -> Loaded:
        loaded = checkpoint(self.path, self.heads, runtime)
        check_side(self.resolution, loaded.network.config)
        return loaded._replace(size=pair(self.resolution))

    def sampler(self, loaded: Loaded, degree: Degree | None) -> Sampler | None:
        """What draws samples by the network; None where a degree leaves parents as they are.

        loaded: the network.
        degree: of the variations; None for fresh samples.
        """
        process, skip = (self.process(self.respacing, "api.respacing"), 0) if degree is None else self._skipped(degree)
        return functools.partial(_respaced, loaded, process, len(process.timesteps) - 1 - skip, self.ddim)

    def process(self, respacing: Any, key: str) -> Process:
        if not isinstance(respacing, str | int) or isinstance(respacing, bool):
            raise invalid(key, respacing, "'100', '10,20' or 'ddim10', say")
        return respaced(self.noise_schedule, self.diffusion_steps, str(respacing), key)

    def _skipped(self, degree: Degree) -> tuple[Process, int]:
        given = named(degree, "skip", "respacing")
        process = self.process(given.get("respacing", self.respacing), "schedule.degree.respacing")
        skip, last = given["skip"], len(process.timesteps) - 1
        number = isinstance(skip, int | float) and not isinstance(skip, bool)
        if not number or not 0 <= skip <= last or skip != int(skip):
            do = "It is how many of the respaced steps are skipped."
            raise invalid("schedule.degree", skip, f"a whole number from 0 to {last}", do)
        return process, int(skip)


def respaced(schedule: str, steps: int, respacing: str, key: str) -> Process:
    """The process (Nichol and Dhariwal, section 3.2, equation 17 for 'cosine'; 'linear' as in DDPM), cut down to some
    of its timesteps. With b the products of the whole, the betas of the rest are 1 - b[i] / b[i-1] over the timesteps
    kept (section 4).

    schedule: of the betas, 'cosine' or 'linear'.
    steps: of the whole process.
    respacing: 'N': so many, evenly, the first and the last among them; 'N,M,...': so many of equal parts of the process
        each; 'ddimN': so many with a whole-number stride, from 0.
    key: the setting that says the respacing, for messages.

    Raises UserError where that cannot be.
    """
    kept = _kept(steps, respacing, key)
    if schedule == "linear":
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
    else:
        curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    return Process(kept, np.cumprod(1 - betas)[list(kept)])


def _kept(steps: int, respacing: str, key: str) -> tuple[int, ...]:
    if found := re.fullmatch(r"ddim(\d+)", respacing):
        wanted = int(found[1])
        strides = (stride for stride in range(1, steps) if -(-steps // stride) == wanted)
        if (first := next(strides, None)) is None:
            raise invalid(key, respacing, f"a number that {steps} steps have with a whole-number stride")
        return tuple(range(0, steps, first))
    if not re.fullmatch(r"\d+(,\d+)*", respacing):
        raise invalid(key, respacing, "a number of steps, one a section ('10,20'), or ddimN")
    counts = [int(count) for count in respacing.split(",")]
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))
        if not 1 <= count <= size:
            raise invalid(key, respacing, f"1 to {size} in a section of {size} steps")
        stride, place = (size - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += size
    return tuple(sorted(set(kept)))


def network(key: str, path: str, heads: int) -> Any:
    """A checkpoint as a UNet2DModel, float32, on the CPU.

    Its architecture is read off the checkpoint, but for the heads of its attentions. Converted once a content and
    number of heads; after that it comes from the cache. Raises UserError for a checkpoint of another layout: it says
    which keys.

    key: the setting that names the checkpoint.
    path: a file, or an address.
    heads: of each attention.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = local_weights(key, path, "an improved-diffusion checkpoint")
    place = public_cache() / "networks" / f"{sha256(file)}-{heads}.safetensors"
    if place.exists():
        with safe_open(place, "pt") as cached:
            config = json.loads(cached.metadata()["config"])
        return _built(config, load_file(place), heads)
    state = _loaded(key, file)
    config = architecture(key, path, _shapes(state), heads)
    converted = _converted(state, config, heads)
    _save(place, converted, config)
    return _built(config, converted, heads)


def check_file(key: str, path: str, heads: int) -> dict[str, Any]:
    """What UNet2DModel is to be, from the names and shapes in a local checkpoint: no weight is read. Raises UserError
    for another layout.

    key: the setting that names the checkpoint.
    path: a file.
    heads: of each attention.
    """
    return architecture(key, path, _shapes(_loaded(key, Path(path).expanduser())), heads)


def architecture(key: str, path: str, shapes: Shapes, heads: int) -> dict[str, Any]:
    """The arguments of UNet2DModel. Raises UserError where names or shapes are not those of the layout.

    key: the setting that names the checkpoint, for messages.
    path: what it is set to, for messages.
    shapes: of the weights, by name.
    heads: of each attention.
    """
    first = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight", "out.2.weight")
    if missing := [name for name in first if name not in shapes]:
        heads_of_names = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
        raise _wrong(key, path, missing, [name for name in shapes if not name.startswith(heads_of_names)])
    channels = shapes["time_embed.0.weight"][1]
    levels: list[list[tuple[int, bool]]] = [[]]  # of each block: its channels, and whether it has an attention
    for n in range(1, len(shapes)):
        if f"input_blocks.{n}.0.op.weight" in shapes:
            levels.append([])
        elif width := shapes.get(f"input_blocks.{n}.0.in_layers.2.weight"):
            levels[-1].append((width[0], f"input_blocks.{n}.1.qkv.weight" in shapes))
        else:
            break
    widths = [next((width for width, _ in level), channels) for level in levels]
    attention = [any(has for _, has in level) for level in levels]
    norm = shapes.get("input_blocks.1.0.emb_layers.1.weight", (0,))[0]
    classes = shapes.get("label_emb.weight")
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        "resnet_time_scale_shift": "scale_shift" if norm == 2 * widths[0] else "default",
        "attn_norm_num_groups": 32,  # without it the middle attention of a scale_shift network has no norm
        "attention_head_dim": math.gcd(*widths),  # any: _built sets the heads
        "num_class_embeds": classes[0] if classes else None,
    }
    if widths[0] != channels or any(width % 32 for width in widths):
        do = f"Those of {path} are {widths} after {channels}."
        raise invalid(key, path, "channels in multiples of 32, those of the first level as at the input", do)
    if wrong := next((width for width in widths if width % heads), None):
        raise invalid(
            key.replace("path", "heads"), heads, f"a number that divides the {wrong} channels of the checkpoint"
        )
    expected = {f"{name}.{part}" for name in _names(config) for part in ("weight", "bias") if (name, part) != NO_BIAS}
    if expected != shapes.keys():
        raise _wrong(key, path, sorted(expected - shapes.keys()), sorted(shapes.keys() - expected))
    ours = {name: tuple(weight.shape) for name, weight in _empty(config).state_dict().items()}
    theirs = _shapes_after(shapes, config)
    if wrong_shapes := [name for name, after in theirs.items() if ours.get(after[0]) != after[1]]:
        raise invalid(key, path, "an improved-diffusion checkpoint", f"Shapes do not fit: {_some(wrong_shapes)}.")
    return config


NO_BIAS = ("label_emb", "bias")


def _names(config: Mapping[str, Any]) -> Names:
    """Every module that has weights, in the order of the original (its unet.py, UNetModel)."""
    blocks, levels = config["layers_per_block"], len(config["block_out_channels"])
    widths = config["block_out_channels"]
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    if config["num_class_embeds"]:
        names["label_emb"] = "class_embedding"
    names["input_blocks.0.0"] = "conv_in"
    n = 1
    for level, kind in enumerate(config["down_block_types"]):
        before = widths[max(level - 1, 0)]
        for block in range(blocks):
            ours = f"down_blocks.{level}"
            names |= _residual(f"input_blocks.{n}.0", f"{ours}.resnets.{block}", before != widths[level])
            if kind.startswith("Attn"):
                names |= _attention(f"input_blocks.{n}.1", f"{ours}.attentions.{block}")
            before = widths[level]
            n += 1
        if level < levels - 1:
            names[f"input_blocks.{n}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            n += 1
    names |= _residual("middle_block.0", "mid_block.resnets.0", False)
    names |= _attention("middle_block.1", "mid_block.attentions.0")
    names |= _residual("middle_block.2", "mid_block.resnets.1", False)
    n = 0
    for level, kind in enumerate(config["up_block_types"]):
        for block in range(blocks + 1):
            ours = f"up_blocks.{level}"
            names |= _residual(f"output_blocks.{n}.0", f"{ours}.resnets.{block}", True)  # wider: it takes a skip in
            if kind.startswith("Attn"):
                names |= _attention(f"output_blocks.{n}.1", f"{ours}.attentions.{block}")
            if block == blocks and level < levels - 1:
                place = 2 if kind.startswith("Attn") else 1
                names[f"output_blocks.{n}.{place}.conv"] = f"{ours}.upsamplers.0.conv"
            n += 1
    return names | {"out.0": "conv_norm_out", "out.2": "conv_out"}


def _residual(theirs: str, ours: str, skip: bool) -> Names:
    parts = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
    parts |= {"out_layers.0": "norm2", "out_layers.3": "conv2"}
    parts |= {"skip_connection": "conv_shortcut"} if skip else {}
    return {f"{theirs}.{one}": f"{ours}.{other}" for one, other in parts.items()}


def _attention(theirs: str, ours: str) -> Names:
    parts = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
    return {f"{theirs}.{one}": f"{ours}.{other}" for one, other in parts.items()}


def _shapes_after(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of the original -> name and shape after the conversion; of q, k and v the first."""
    after = {}
    for theirs, ours in _names(config).items():
        for part in ("weight", "bias"):
            if (theirs, part) == NO_BIAS:
                continue
            name, shape = f"{theirs}.{part}", shapes[f"{theirs}.{part}"]
            if ours.endswith(".to_qkv"):
                after[name] = (f"{ours.removesuffix('to_qkv')}to_q.{part}", (shape[0] // 3, *shape[1:2]))
            else:
                after[name] = (f"{ours}.{part}", shape[:2] if ours.endswith(".to_out.0") else shape)
    return after


def _converted(state: Mapping[str, Any], config: Mapping[str, Any], heads: int) -> dict[str, Any]:
    converted = {}
    for theirs, ours in _names(config).items():
        for part in ("weight", "bias"):
            if (theirs, part) == NO_BIAS:
                continue
            weight = state[f"{theirs}.{part}"].float()
            if ours.endswith(".to_out.0") or ours.endswith(".to_qkv"):
                weight = weight.flatten(1) if part == "weight" else weight  # a convolution of one point
            if ours.endswith(".to_qkv"):  # head by head: its queries, its keys, its values
                three = weight.unflatten(0, (heads, 3, -1)).unbind(1)
                for name, one in zip("qkv", three, strict=True):
                    converted[f"{ours.removesuffix('qkv')}{name}.{part}"] = one.flatten(0, 1).contiguous()
            else:
                converted[f"{ours}.{part}"] = weight.contiguous()
    return converted


def _empty(config: Mapping[str, Any]) -> Any:
    """A UNet2DModel that takes no memory."""
    import torch
    from diffusers import UNet2DModel

    with torch.device("meta"):
        return UNet2DModel(**config)


def _built(config: Mapping[str, Any], state: Mapping[str, Any], heads: int) -> Any:
    """UNet2DModel knows one width of a head, the original one number of heads: it is set here, every time."""
    from diffusers.models.attention_processor import Attention

    made = _empty(config)
    made.load_state_dict(state, assign=True)
    for module in made.modules():
        if isinstance(module, Attention):
            module.heads = heads
    return made.eval()


def _loaded(key: str, file: Path) -> dict[str, Any]:
    """The tensors, mapped into memory where the file allows it. Raises UserError for what is no file of weights."""
    import torch

    kind = None
    for mapped in (True, False):  # files of before torch 1.6 cannot be mapped
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:
            raise
        except Exception as error:
            kind = type(error).__name__
        else:
            if isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values()):
                return dict(state)
            kind = "no tensors by name"
            break
    raise invalid(key, file, f"a state dict that torch.load reads with weights_only ({kind})")


def _shapes(state: Mapping[str, Any]) -> Shapes:
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _save(place: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    with room_on_disk(place):
        place.parent.mkdir(exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
        os.close(descriptor)
        try:
            save_file(dict(state), temporary, {"config": json.dumps(config)})
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, place)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _wrong(key: str, path: str, missing: list[str], unexpected: list[str]) -> UserError:
    found = " and ".join(_differences(missing, unexpected))
    return invalid(key, path, "an improved-diffusion checkpoint", f"Its keys differ: {found}.")


def _differences(missing: list[str], unexpected: list[str]) -> Iterator[str]:
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            yield f"{what} {_some(names)}"


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


@functools.lru_cache(maxsize=2)
def checkpoint(path: str, heads: int, runtime: Runtime) -> Loaded:
    made = network("api.path", path, heads)
    return Loaded(placed(made, runtime), made.config.in_channels, made.config.num_class_embeds, None, None)


def _respaced(
    loaded: Loaded, process: Process, first: int, ddim: bool, noise: list[Any], parents: Any, classes: Any
) -> Any:
    """float32 [n, c, h, w]: from respaced step `first`, pure noise or the parents noised to it, down to 0.

    DDIM with eta 0 (Song et al. 2020, equation 12), or steps of the posterior with the learned variance between its
    bounds (Nichol and Dhariwal, equation 15); x0 is clipped to [-1, 1] and the noise derived from it again.
    """
    import torch

    x = normal(loaded, noise)
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
            x = x + (0.5 * (share * most + (1 - share) * least)).exp() * normal(loaded, noise)
    return x
