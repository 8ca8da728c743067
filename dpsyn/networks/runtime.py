"""Where and how networks run: speed, never results beyond floating point."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from dpsyn.errors import UserError, invalid
from dpsyn.marks import PLACE
from dpsyn.threads import free_threads
from dpsyn.validate import choice, flag, name_or_null, whole

T = TypeVar("T")
DTYPES = ("auto", "float32", "bfloat16", "float16")

fitting: dict[str, int] = {}  # rows of a kind of work that fit, once memory ran out


@dataclass(frozen=True)
class Runtime:
    """The group `runtime`. A part that runs a network has an argument `runtime`; it is given, no yaml names it.

    batch_size: rows that the api and the embedding get at once.
    network_batch_size: rows that a network gets at once, halved whenever memory runs out.
    workers: processes of a simulator that is slow on one core, kept while the run lasts; None: one a core; 0: none.
    device: 'auto', 'cpu', 'cuda', 'cuda:1', ...: of the networks, and of the search for the nearest candidates.
    devices: the api and the public side of the embedding work on each of these at once, in a process each; None: on
        `device`, in this one.
    shards: processes that read and embed the private records, and runs of them that threads count; None: a process a
        core, but one where the data are small or a network embeds them, and one run, whose work all cores share.
    dtype: of the api's networks (autocast). 'auto': bfloat16 on a GPU, float32 elsewhere. Embeddings are
        float32.
    channels_last, compile: memory format and `torch.compile` of the api's networks. tf32: allow it there.
    """

    batch_size: int = 2048
    network_batch_size: int = 256
    workers: int | None = None
    device: str = "auto"
    devices: Sequence[str] | None = None
    shards: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        for key in ("batch_size", "network_batch_size"):
            whole(f"runtime.{key}", getattr(self, key), 1)
        whole("runtime.shards", self.shards, 1, optional=True)
        whole("runtime.workers", self.workers, optional=True)
        device_name("runtime.device", self.device)
        if self.devices is not None and (
            isinstance(self.devices, str)
            or not self.devices
            or not all(re.fullmatch(r"cpu|cuda:\d+", str(device)) for device in self.devices)
        ):
            raise invalid("runtime.devices", self.devices, "null, or a list such as [cuda:0,cuda:1]")
        if self.devices is not None and self.device != "auto":
            raise invalid("runtime.device", self.device, "auto beside runtime.devices", "Each process sees its own.")
        choice("runtime.dtype", self.dtype, DTYPES)
        if self.dtype == "float16" and self.device == "cpu":
            raise invalid("runtime.dtype", self.dtype, "float32 or bfloat16 with runtime.device=cpu", "It needs a GPU.")
        for key in ("channels_last", "compile", "tf32"):
            flag(f"runtime.{key}", getattr(self, key))

    @property
    def places(self) -> int:
        """Where the public side works at once."""
        return len(self.devices or [None])


@dataclass(frozen=True)
class OnRay(Runtime):
    """The same on a Ray cluster: makers ask the api and the embedding, shards hold the private records.

    address: 'auto', or host:port; None: a cluster on this machine is started for the run, and ended.
    makers: processes that generate, vary and embed samples; gpus: of each of them.
    shards: in which private records are read and counted, on nodes with the resource `private`; None: one a processor
        of those.
    private_folder: where their vectors lie, on a disk that all these nodes see; None: the private cache of this user.
    """

    address: str | None = None
    makers: int = 2
    gpus: int = 0
    private_folder: str | None = field(default=None, metadata=PLACE)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("runtime.makers", self.makers, 1)
        whole("runtime.gpus", self.gpus)
        if self.devices is not None:
            raise invalid("runtime.devices", self.devices, "null on Ray", "Say runtime.makers and runtime.gpus.")
        for key in ("address", "private_folder"):
            name_or_null(f"runtime.{key}", getattr(self, key))

    @property
    def places(self) -> int:
        return self.makers


def device_name(key: str, value: Any) -> None:
    """Raises UserError for what names no device, here or elsewhere.

    key: the setting, as it is typed.
    value: what it was set to.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        raise invalid(key, value, "auto, cpu, cuda or cuda:1")


def check_device(device: str) -> None:
    """Raises UserError for one that this machine does not have. A run for another machine can be planned here."""
    if device.startswith("cuda"):
        import torch

        if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise invalid("runtime.device", device, "a device of this machine", "auto takes what there is.")


def has_gpu() -> bool:
    """Known without torch, whose import takes seconds, where no driver is there."""
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")) or not find_spec("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def torch_device(runtime: Runtime) -> str:
    """'cpu', 'cuda' or 'cuda:1': the device that `auto` stands for on this machine."""
    if runtime.device == "auto":
        return "cuda" if has_gpu() else "cpu"
    return runtime.device


def torch_dtype(runtime: Runtime) -> Any:
    """The torch.dtype of the api's networks. Raises UserError for float16 without a GPU."""
    import torch

    on_gpu = torch_device(runtime) != "cpu"
    if runtime.dtype == "float16" and not on_gpu:
        raise invalid("runtime.dtype", runtime.dtype, "float32 or bfloat16 on a machine without a GPU")
    name = runtime.dtype if runtime.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    return getattr(torch, name)


def placed(network: Any, runtime: Runtime) -> Any:
    """The network on the device, for inference alone.

    network: a torch.nn.Module.
    runtime: names the device.
    """
    import torch

    network = network.eval().requires_grad_(False).to(torch_device(runtime))
    if runtime.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return torch.compile(network) if runtime.compile else network


def take_free_threads() -> None:
    """torch works on the free processors of the CPU from now on, and on no more than it began with."""
    import torch

    torch.set_num_threads(min(_threads_at_first(), free_threads()))


@functools.cache
def _threads_at_first() -> int:
    import torch

    return int(torch.get_num_threads())


@contextlib.contextmanager
def running(runtime: Runtime) -> Iterator[None]:
    """For the api's networks: no gradients, autocast to the dtype, TF32 only where asked."""
    import torch

    device, dtype = torch_device(runtime), torch_dtype(runtime)
    take_free_threads()
    autocast = torch.autocast(device.partition(":")[0], dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), _tf32(runtime.tf32), autocast:
        yield


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """For embeddings: no gradients, float32, no TF32, whatever else is asked of the runtime."""
    import torch

    take_free_threads()
    with torch.no_grad(), _tf32(False):
        yield


def few_on_cpu(runtime: Runtime, rows: int) -> Runtime:
    """The same, with at most so many rows at once where the network is on a CPU.

    What a layer computes for few rows stays in the cache; for many it is memory that the system hands out and clears
    anew, layer by layer: half of the CPU time of EfficientNet on 256 images.

    runtime: as set.
    rows: at once on a CPU.
    """
    if torch_device(runtime) != "cpu":
        return runtime
    return replace(runtime, network_batch_size=min(runtime.network_batch_size, rows))


def in_batches(n: int, runtime: Runtime, what: str, work: Callable[[slice], T]) -> list[T]:
    """What is called on rows 0..n in turn, network_batch_size at once; on out-of-memory the same rows again, half as
    many.

    n: rows.
    runtime: network_batch_size, rows at once.
    what: names the work, so that the next call starts with what fitted.
    work: called with a slice of the rows.

    Raises UserError where not one row fits.
    """
    parts: list[T] = []
    start, size = 0, min(runtime.network_batch_size, fitting.get(what, runtime.network_batch_size))
    while start < n:
        rows = slice(start, min(start + size, n))
        part = None
        try:
            part = work(rows)
        except RuntimeError as error:  # torch has several kinds
            if "OutOfMemory" not in type(error).__name__ and not re.search(
                "out of memory|allocate memory|ALLOC_FAILED", str(error)
            ):
                raise
        if part is not None:
            parts.append(part)
            start = rows.stop
            continue
        if rows.stop - rows.start == 1:
            raise UserError(f"{what}: one row does not fit into the memory of {torch_device(runtime)}.")
        size = fitting[what] = (rows.stop - rows.start) // 2
        if has_gpu():
            import torch

            torch.cuda.empty_cache()
    return parts


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    import torch

    places: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
