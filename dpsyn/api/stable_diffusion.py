"""Text-to-image models of diffusers (SD 1.x, SDXL, Turbo, SD3, Flux) as an api of PE (arXiv 2305.15560, section 4).

A sample is drawn from a prompt made of its label; a variation is image-to-image with the parent and the same prompt.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.api import Api, Degree
from dpsyn.data import Data
from dpsyn.errors import UserError, check_packages, first_line, invalid
from dpsyn.language.templates import Templates, by_label, drawn
from dpsyn.marks import PLACE
from dpsyn.networks import tensors
from dpsyn.networks.hub import model_folder, pinned
from dpsyn.networks.runtime import Runtime, in_batches, placed, running, torch_device, torch_dtype
from dpsyn.population import Label, Samples
from dpsyn.randomness import retry_seeds
from dpsyn.validate import flag, number, side_lengths, text_or_null, whole

ATTEMPTS = 5  # images a fresh row gets before it stays black
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FOLDER = "a folder that diffusers saved with safetensors"


@dataclass(frozen=True)
class StableDiffusion(Api):
    """Images uint8 [n, h, w, 3].

    path: a folder that diffusers saved, or a name on the hub; safetensors alone are read. revision: of the hub's.
    prompts: a template over the label's columns, a list of them, or a mapping from a label (its values joined by ' | ')
        to either. Every row draws one by its seed and keeps it, filled in, as the trait `prompt`.
    prompt_file: instead of prompts: a text file with a template a line, or a yaml file with such a mapping.
    negative_prompt: None for none. guidance, steps: as the pipelines of diffusers have them; Turbo: 0 and 1 to 4.
    size: [height, width] px that the model draws. image_size: of the samples; None: as drawn.
    safety_checker: the model's own (SD 1.x). A fresh row that it refuses is drawn again with other noise, at most
        ATTEMPTS times, then it is black; a variation that it refuses comes back as its parent. So do rows that are not
        finite (float16 may overflow). How many were refused is said on standard error.

    The weights are loaded in the dtype of the runtime, once for both pipelines.
    """

    path: str | None = field(metadata=PLACE)
    revision: str | None
    prompts: Any
    prompt_file: str | None = field(metadata=PLACE)
    negative_prompt: str | None
    guidance: float
    steps: int
    size: Sequence[int]
    image_size: Sequence[int] | None
    safety_checker: bool
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        for key in ("path", "revision", "prompt_file", "negative_prompt"):
            text_or_null(f"api.{key}", getattr(self, key))
        if self.prompts is not None:
            by_label("api.prompts", self.prompts)
            if self.prompt_file is not None:
                raise invalid(
                    "api.prompt_file", self.prompt_file, "null beside api.prompts", "Or give api.prompts=null."
                )
        _check_steps("api", self.steps, self.guidance)
        for key in ("size", "image_size"):
            if getattr(self, key) is not None or key == "size":
                side_lengths(f"api.{key}", getattr(self, key))
        if any(side % 8 for side in self.size):
            raise invalid("api.size", list(self.size), "multiples of 8 px")
        flag("api.safety_checker", self.safety_checker)

    @property
    def row_bytes(self) -> int:
        """About what a row takes on disk: a photograph as PNG, and its prompt."""
        height, width = self.image_size or self.size
        return 2 * height * width + 100

    def check(self) -> None:
        """Raises UserError for a missing package, folder or prompt file, and for a checker that the model lacks."""
        check_packages("api", "stable_diffusion", "torch", "diffusers", "transformers")
        folder = Path(self._place())
        if folder.is_dir() and self.safety_checker:
            try:
                parts = json.loads((folder / "model_index.json").read_text())
            except ValueError:
                raise invalid("api.path", self.path, "a folder whose model_index.json can be read") from None
            if not any(parts.get("safety_checker") or ()):
                raise invalid("api.safety_checker", "true", "false for a model without one, as this is")
        self._templates()

    def check_degree(self, degree: Degree) -> None:
        """Raises UserError for what is no degree."""
        self._settings(degree)

    def reads(self) -> Sequence[Data]:
        return ()

    def generate(self, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Raises UserError for a template without its column, and for a model that cannot be loaded."""
        prompts = self._prompts(labels, seeds)
        content, refused = self._drawn(prompts, seeds, self.steps, self.guidance, None)
        for attempt in range(1, ATTEMPTS):
            rows = np.flatnonzero(refused)
            if not len(rows):
                break
            again = retry_seeds(seeds[rows], attempt)
            content[rows], refused[rows] = self._drawn(prompts[rows], again, self.steps, self.guidance, None)
        content[refused] = 0
        self._count(refused, f"are black after {ATTEMPTS} attempts")
        return Samples(content, {"prompt": prompts})

    def vary(self, samples: Samples, labels: Sequence[Label], degree: Degree, seeds: np.ndarray) -> Samples:
        """degree: the strength, 0 (the parent itself) to 1 (nothing of it is left), or strength, steps and guidance by
        name, the latter two where they differ from the api's. At least one step must be left: strength * steps >= 1."""
        if "prompt" not in samples.traits:
            raise UserError("api stable_diffusion: the samples lack the trait prompt: another api drew them.")
        strength, steps, guidance = self._settings(degree)
        prompts = np.asarray(samples.traits["prompt"], object)
        if not strength or not len(samples):
            return Samples(self._fitted(samples.content), {"prompt": prompts})
        content, refused = self._drawn(prompts, seeds, steps, guidance, (samples.content, strength))
        content[refused] = self._fitted(samples.content[refused])
        self._count(refused, "come back as their parents")
        return Samples(content, {"prompt": prompts})

    def adopt(self, samples: Samples, labels: Sequence[Label], seeds: np.ndarray) -> Samples:
        """Gives samples of another api a prompt each, as a fresh sample would draw it."""
        return Samples(samples.content, {**samples.traits, "prompt": self._prompts(labels, seeds)})

    def _place(self) -> str:
        """The folder, or the name on the hub."""
        expected = "an existing folder (as diffusers saves pipelines), or a name on the hub"
        folder = model_folder("api.path", self.path, expected)
        if folder is not None and not (folder / "model_index.json").is_file():
            raise invalid("api.path", self.path, "a folder with model_index.json, as diffusers saves pipelines")
        return str(folder or self.path)

    def _templates(self) -> Templates:
        """Label to templates; under None those for any label."""
        if self.prompts is not None:
            return by_label("api.prompts", self.prompts)
        if self.prompt_file is None:
            expected = "a template over the label's columns, a list of them, or either for each label"
            raise invalid("api.prompts", "null", expected, "Or name a file of them with api.prompt_file=.")
        path = Path(self.prompt_file).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise invalid(
                "api.prompt_file", self.prompt_file, "a text file, one template a line, or a yaml file"
            ) from None
        if path.suffix not in (".yaml", ".yml"):
            return by_label("api.prompt_file", [line.strip() for line in text.splitlines() if line.strip()])
        import yaml

        try:
            prompts = yaml.safe_load(text)
        except yaml.YAMLError:
            raise invalid("api.prompt_file", self.prompt_file, "yaml: a list of templates for each label") from None
        return by_label("api.prompt_file", prompts)

    def _prompts(self, labels: Sequence[Label], seeds: np.ndarray) -> np.ndarray:
        return drawn(self._templates(), labels, seeds)

    def _settings(self, degree: Degree) -> tuple[float, int, float]:
        """strength, steps, guidance"""
        named: dict[str, Any] = dict(degree) if isinstance(degree, Mapping) else {"strength": degree}
        if "strength" not in named or named.keys() - {"strength", "steps", "guidance"}:
            raise invalid("schedule.degree", ", ".join(map(str, named)), "strength, and if wanted steps and guidance")
        strength, steps = named["strength"], named.get("steps", self.steps)
        guidance = named.get("guidance", self.guidance)
        expected = "a strength between 0 (the parent) and 1 (nothing of it)"
        number("schedule.degree", strength, expected, least=0, most=1)
        _check_steps("schedule.degree", steps, guidance)
        if strength > 0 and int(steps * strength) < 1:
            do = f"With {steps} steps the least strength is {1 / steps:.3g}; or take more steps."
            raise invalid("schedule.degree", strength, "strength * steps of 1 or more", do)
        return float(strength), steps, float(guidance)

    def _drawn(
        self,
        prompts: np.ndarray,
        seeds: np.ndarray,
        steps: int,
        guidance: float,
        parents: tuple[np.ndarray, float] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, h, w, 3], and whether a row is refused or not finite, bool [n]. parents: images and strength."""
        import torch

        height, width = self.image_size or self.size
        if not len(prompts):
            return np.empty((0, height, width, 3), np.uint8), np.empty(0, bool)
        runtime = Runtime(
            device=torch_device(self.runtime),
            dtype=str(torch_dtype(self.runtime)).removeprefix("torch."),  # type: ignore[arg-type]
            channels_last=self.runtime.channels_last,
            compile=self.runtime.compile,
        )
        from_text, from_image, checker = pipelines(self._place(), self.revision, self.safety_checker, runtime)
        pipeline = from_text if parents is None else from_image
        accepted = inspect.signature(pipeline.__call__).parameters

        def work(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            names = list(prompts[rows])
            request: dict[str, Any] = {
                "prompt": names,
                "negative_prompt": None if self.negative_prompt is None else [self.negative_prompt] * len(names),
                "height": self.size[0],
                "width": self.size[1],
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                "generator": tensors.generators(seeds[rows]),
                "output_type": "pt",
                "return_dict": False,
            }
            if parents is not None:
                values = tensors.with_channels(tensors.tensor(parents[0][rows], runtime.device), 3)
                # the pipelines take a batch with any value below 0 for one in [-1, 1]
                request["image"] = (tensors.resized(values, self.size).clamp(-1, 1) + 1) / 2
                request["strength"] = parents[1]
            with _quiet():
                values = pipeline(**{key: value for key, value in request.items() if key in accepted})[0].float()
                refused = ~values.isfinite().flatten(1).all(1)
                values = torch.nan_to_num(values)
                if checker is not None:
                    refused = refused | unsafe(checker, values)
            values = tensors.resized(values * 2 - 1, (height, width))
            return tensors.images(values), refused.cpu().numpy()

        what = f"stable_diffusion {'generate' if parents is None else 'vary'} {self.path}"
        # the weights have the dtype already: autocast on top would cast layer by layer
        with running(replace(self.runtime, dtype="float32")):
            images, refused = zip(*in_batches(len(prompts), self.runtime, what, work), strict=True)
        return np.concatenate(images), np.concatenate(refused)

    def _fitted(self, parents: np.ndarray) -> np.ndarray:
        """Images of any size, grey or colour, in the shape of this api's."""
        values = tensors.with_channels(tensors.tensor(parents, "cpu"), 3)
        if not len(parents):
            return np.empty((0, *(self.image_size or self.size), 3), np.uint8)
        return tensors.images(tensors.resized(values, self.image_size or self.size))

    def _count(self, refused: np.ndarray, what: str) -> None:
        if refused.any():
            count = f"{refused.sum()} of {len(refused)} rows"
            logging.getLogger(__name__).warning("api stable_diffusion: %s were refused and %s", count, what)


def _check_steps(key: str, steps: Any, guidance: Any) -> None:
    whole(f"{key}.steps", steps, 1)
    number(f"{key}.guidance", guidance, "a number, 0 or more", least=0)


@functools.lru_cache(maxsize=1)
def pipelines(place: str, revision: str | None, safety_checker: bool, runtime: Runtime) -> tuple[Any, Any, Any]:
    """Text-to-image, image-to-image on the same components, and the safety checker or None.

    The checker stands apart from the pipelines, which would turn every image into one of Pillow's for it. Raises
    UserError where the model cannot be loaded or cannot do both.

    place: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    safety_checker: whether it is wanted.
    runtime: names device and type of numbers.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    revision = pinned("api.path", place, revision, f"Give api.path= {FOLDER}.")
    try:
        with _quiet():
            from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DiffusionPipeline

            parts = DiffusionPipeline.load_config(place, revision=revision)
            # parts that the folder was saved without, such as SD3's T5, have to be named
            without: dict[str, Any] = {
                name: None for name, kind in parts.items() if isinstance(kind, list | tuple) and not any(kind)
            }
            if "safety_checker" in parts:
                without |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            from_text = AutoPipelineForText2Image.from_pretrained(
                place, revision=revision, torch_dtype=torch_dtype(runtime), use_safetensors=True, **without
            )
            for name, part in from_text.components.items():
                if callable(getattr(part, "requires_grad_", None)):
                    if not getattr(part, "_keep_in_fp32_modules", None):
                        part.to(torch_dtype(runtime))  # diffusers 0.42 without accelerate leaves SD3 in float32
                    own = runtime if name in ("unet", "transformer") else replace(runtime, compile=False)
                    setattr(from_text, name, placed(part, own))
            from_image = AutoPipelineForImage2Image.from_pipe(from_text)
            checker = _checker(place, revision, runtime) if safety_checker else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        said = first_line(error)
        do = f"Give api.path= {FOLDER} ({type(error).__name__}: {said})"
        raise invalid("api.path", place, "a text-to-image model of diffusers that can be loaded here", do) from None
    missing = {"strength", "image"} - inspect.signature(from_image.__call__).parameters.keys()
    if missing:
        raise invalid("api.path", place, "a model that diffusers can vary images with by strength")
    for pipeline in (from_text, from_image):
        pipeline.set_progress_bar_config(disable=True)
    return from_text, from_image, checker


def _checker(place: str, revision: str | None, runtime: Runtime) -> Any:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    where: dict[str, Any] = {"subfolder": "safety_checker", "revision": revision}
    checker = StableDiffusionSafetyChecker.from_pretrained(place, use_safetensors=True, **where)
    return placed(checker.float(), replace(runtime, compile=False))


def unsafe(checker: Any, values: Any) -> Any:
    """Which images it refuses, bool [n] on the same device: CLIP's own preparation, whole batches at once.

    checker: of the model.
    values: float [n, 3, h, w] in [0, 1].
    """
    import torch

    side = checker.config.vision_config.image_size
    height, width = values.shape[2:]
    scale = side / min(height, width)
    values = tensors.resized(values, (round(height * scale), round(width * scale))).clamp(0, 1)
    top, left = (values.shape[2] - side) // 2, (values.shape[3] - side) // 2
    values = values[:, :, top : top + side, left : left + side]
    mean, std = (values.new_tensor(numbers)[None, :, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
    _, flags = checker(clip_input=(values - mean) / std, images=[np.zeros(1)] * len(values))
    return torch.tensor(flags, device=values.device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The remarks and progress bars of the libraries would break into the panel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import huggingface_hub
        import transformers

        libraries: tuple[Any, Any] = (diffusers.utils.logging, transformers.utils.logging)
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
        yield
