"""Image encoders of transformers as embeddings: CLIP and DINOv2."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, first_line, invalid, one_of
from dpsyn.files import sha256
from dpsyn.marks import PLACE
from dpsyn.networks import tensors
from dpsyn.networks.hub import check_revision, fetched, model_folder, quiet_transformers
from dpsyn.networks.runtime import Runtime, exact, few_on_cpu, in_batches, torch_device
from dpsyn.population import Modality, Samples
from dpsyn.validate import flag, whole

# Mean and deviation of the colours that they were trained on, where no preprocessor_config.json tells.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# model_type: the class of transformers, what of its answer is the vector, the colours
KINDS = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds", CLIP),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "image_embeds", CLIP),
    "dinov2": ("Dinov2Model", "pooler_output", IMAGENET),
}
CPU_BATCH = 16
CONFIGS = ("config.json", "preprocessor_config.json")
SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Vision(Embedding):
    """Images uint8 [n, h, w, 1 or 3] -> float32 [n, d]: CLIP's image features, or DINOv2's class token.

    path: a folder that transformers saved, or the name of one on the hub. size: px of the square that the network sees
    (224 is what they are used at; others work, positions are interpolated). normalize: to vectors of length 1.

    The shorter side is resized to `size` (bicubic, antialiased), the middle is cut out, grey is repeated.
    """

    path: str = field(metadata=PLACE)
    size: int
    normalize: bool
    revision: str | None = None
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        check_revision("embedding.revision", self.revision)
        whole("embedding.size", self.size, 1)
        flag("embedding.normalize", self.normalize)

    def check(self) -> None:
        """Raises UserError where `path` is neither the folder of such a network nor a name on the hub."""
        check_packages("embedding", "vision", "torch", "transformers")
        expected = "a folder that is there, or a name such as openai/clip-vit-base-patch32"
        if folder := model_folder("embedding.path", self.path, expected):
            _kind(self.path, folder)

    def fingerprint(self) -> str:
        """Of the files of the network, fetched if need be."""
        folder = _fetched(self.path, self.revision)
        files = (path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".bin"))
        return " ".join(f"{path.name} {sha256(path)}" for path in files)

    @property
    def fits(self) -> Sequence[Modality]:
        return ("images",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no images, and where the network cannot be loaded."""
        import torch

        images = samples.content
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
            raise UserError("embedding vision: expected images. Choose an embedding for this kind of data.")
        device = torch_device(self.runtime)
        network, output, colours, width, patch = load(self.path, self.revision, device)
        if self.size < patch:
            raise invalid("embedding.size", self.size, f"{patch} px or more, the size of one patch of this network")

        def embedded(rows: slice) -> np.ndarray:
            vectors = getattr(network(preprocessed(images[rows], self.size, colours, device)), output)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            return vectors.cpu().numpy()

        with exact():
            parts = in_batches(len(images), few_on_cpu(self.runtime, CPU_BATCH), "embedding vision", embedded)
        return np.concatenate([np.zeros((0, width), np.float32), *parts])


def preprocessed(images: np.ndarray, size: int, colours: Any, device: str) -> Any:
    """Images as the network takes them, float32 [n, 3, size, size] on the device, around zero.

    images: uint8 [n, h, w, c].
    size: px of a side.
    colours: mean and deviation of each.
    device: of torch.
    """
    height, width = images.shape[1:3]
    shorter = min(height, width)
    values = tensors.tensor(images, device)
    values = tensors.resized(values, (height * size // shorter, width * size // shorter)).clamp(-1, 1)
    top, left = (values.shape[2] - size) // 2, (values.shape[3] - size) // 2
    values = tensors.with_channels(values[:, :, top : top + size, left : left + size], 3)
    mean, deviation = (values.new_tensor(three)[None, :, None, None] for three in colours)
    return ((values + 1) / 2 - mean) / deviation


@functools.lru_cache(maxsize=2)
def load(path: str, revision: str | None, device: str) -> tuple[Any, str, Any, int, int]:
    """The network, what of its answer is the vector, mean and deviation of colours, length of a vector, px of a patch.

    path: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    device: of torch.

    Raises UserError where it cannot be fetched or lacks weights.
    """
    folder = _fetched(path, revision)
    kind = _kind(path, folder)
    made, output, colours = KINDS[kind]
    try:
        with quiet_transformers():
            import transformers

            network, info = getattr(transformers, made).from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise invalid(
            "embedding.path", path, "the weights of its config.json", f"transformers says: {reason}"
        ) from None
    if missing := sorted(info["missing_keys"]):
        do = f"It has no {missing[0]} ({len(missing)} in all)."
        raise invalid("embedding.path", path, "the weights of its config.json", do)
    network = network.eval().requires_grad_(False).float().to(device)
    config = network.config
    if kind.startswith("clip"):
        call = functools.partial(network, interpolate_pos_encoding=True)
        return call, output, _colours(folder, colours), config.projection_dim, config.patch_size
    return network, output, _colours(folder, colours), config.hidden_size, config.patch_size


def _kind(path: str, folder: Path) -> str:
    kind = _read(folder / "config.json").get("model_type")
    if kind not in KINDS:
        do = f"Its config.json {'is not there' if kind is None else f'says {kind}'}."
        raise invalid("embedding.path", path, f"a network of the kind {one_of(KINDS)}", do)
    return str(kind)


def _colours(folder: Path, usual: Any) -> Any:
    stated = _read(folder / "preprocessor_config.json")
    three = stated.get("image_mean"), stated.get("image_std")
    return three if all(isinstance(values, list) and len(values) == 3 for values in three) else usual


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fetched(path: str, revision: str | None) -> Path:
    """The folder itself, or the cached copy of what the hub has under that name. Raises UserError."""
    do = "Put config.json and model.safetensors into a folder and name it with embedding.path=."
    with quiet_transformers():
        return fetched("embedding.path", path, revision, [*CONFIGS, *SAFE], ["pytorch_model.bin"], do)
