"""What the two kinds of networks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpsyn.api import Degree
from dpsyn.errors import invalid

Sampler = Callable[[list[Any], Any, Any], Any]
"""(a generator of noise a row; parents float [n, c, h, w] in [-1, 1], or None; classes int64 [n], or None) -> samples,
float [n, c, h, w]"""


class Loaded(NamedTuple):
    """size: [h, w] px; None: not known. scheduler: of diffusers, copied for every batch; None for a `.pt`."""

    network: Any
    channels: int
    classes: int | None
    size: Any
    scheduler: Any


def normal(loaded: Loaded, noise: list[Any]) -> Any:
    """Standard normal float32 [n, c, h, w] on the network's device, each row by its own generator.

    loaded: the network.
    noise: torch generators [n].
    """
    from diffusers.utils.torch_utils import randn_tensor

    shape = (len(noise), loaded.channels, *loaded.size)
    return randn_tensor(shape, generator=noise, device=loaded.network.device)


def pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


def named(degree: Degree, main: str, other: str) -> Mapping[str, Any]:
    """The degree by names: {main: value} or {main: value, other: value}. Raises UserError for other names.

    degree: a number, or several by name.
    main: the name that a number alone stands for.
    other: the name that may be left out.
    """
    given = degree if isinstance(degree, Mapping) else {main: degree}
    if main not in given or given.keys() - {main, other}:
        raise invalid("schedule.degree", dict(given), f"a number, or {{{main}: ..., {other}: ...}}")
    return given


def check_side(side: int, config: Mapping[str, Any]) -> None:
    halved = 2 ** (len(config["block_out_channels"]) - 1)
    if side % halved:
        raise invalid("api.resolution", side, f"a multiple of {halved}, since the network halves it so often")
