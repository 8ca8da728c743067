"""Sentence encoders (sentence-transformers) as embeddings: texts are near where they mean the same."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, first_line, invalid
from dpsyn.files import sha256
from dpsyn.marks import PLACE
from dpsyn.networks.hub import check_revision, fetched, model_folder, quiet_transformers
from dpsyn.networks.runtime import Runtime, exact, in_batches, torch_device
from dpsyn.population import Modality, Samples
from dpsyn.validate import choice, flag, text_or_null, whole

EXPECTED = "a folder that is there, or a name such as sentence-transformers/all-MiniLM-L6-v2"
SAFE = ["*.json", "*.txt", "*.model", "*.safetensors", "[0-9]_*/*.bin"]
IGNORED = ["onnx/*", "openvino/*"]
SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin")

STEP = 16  # texts are padded to a multiple of this many tokens
TOKENS = {"cpu": 256, "cuda": 4096}  # about, in a batch: on a core, more are no faster


@dataclass(frozen=True)
class Sentence(Embedding):
    """Texts -> float32 [n, d]: what the model's own pooling makes of their tokens, the mean where it has none.

    model: a folder that sentence-transformers or transformers saved, or the name of one on the hub. revision: a commit,
    tag or branch there; None: the newest. prompt: put before every text, as it is. max_length: tokens that are read,
    the rest of a text is not seen; None: as many as the model has it. normalize: to vectors of length 1.
    dtype: 'float32', or 'bfloat16' for the products inside the network: faster on a GPU, but rounding is then 65,000
    times as coarse, so that another device or version moves more of the votes that were nearly ties.

    A row has the same vector alone and in any batch: a text is padded to its own length rounded up, and all batches of
    that length have one fixed number of rows, the last one filled up. (Padding to the longest text of a batch moves
    vectors of a MiniLM by 1e-7; this, on a CPU, moves no bit, and costs no time: scripts/bench_sentence.py.)
    """

    model: str = field(metadata=PLACE)
    revision: str | None
    prompt: str | None
    max_length: int | None
    normalize: bool
    dtype: Literal["float32", "bfloat16"]
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        check_revision("embedding.revision", self.revision)
        text_or_null("embedding.prompt", self.prompt)
        whole("embedding.max_length", self.max_length, 1, optional=True)
        flag("embedding.normalize", self.normalize)
        choice("embedding.dtype", self.dtype, ("float32", "bfloat16"))

    def check(self) -> None:
        """Raises UserError where `model` is neither the folder of a network nor a name on the hub."""
        check_packages("embedding", "sentence", "torch", "sentence_transformers")
        folder = model_folder("embedding.model", self.model, EXPECTED)
        if folder and not any((folder / name).is_file() for name in ("config.json", "modules.json")):
            raise invalid("embedding.model", self.model, "the folder of a network", "It has no config.json.")

    def fingerprint(self) -> str:
        """Of the files of the network, fetched if need be."""
        folder = _fetched(self.model, self.revision)
        files = (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file())
        return " ".join(f"{path.relative_to(folder)} {sha256(path)}" for path in files)

    @property
    def fits(self) -> Sequence[Modality]:
        return ("texts",)

    def reads(self) -> Sequence[Data]:
        return ()

    def __call__(self, samples: Samples) -> np.ndarray:
        """Raises UserError for what are no texts, and where the network cannot be loaded."""
        import torch

        if samples.content.dtype != object:
            raise UserError("embedding sentence: expected texts. Choose an embedding for this kind of data.")
        device = torch_device(self.runtime)
        kind = device.partition(":")[0]
        network, dimension = load(self.model, self.revision, device)
        limit = self._limit(network.max_seq_length)
        half = torch.autocast(kind, torch.bfloat16, enabled=self.dtype == "bfloat16")
        vectors = np.zeros((len(samples), dimension), np.float32)
        with exact(), half, _quiet():
            tokens = self._tokens(network, samples.content, limit)
            # without any padding in a batch, a GPU would be given another kernel: one row more always has some
            more = int(kind != "cpu")
            for rows, length, size in batches([len(row) for row in tokens], limit, TOKENS.get(kind, 4096)):
                some = [tokens[row] for row in rows]
                some += [some[0][:1]] * (size + more - len(rows))
                vectors[rows] = self._encoded(network, some, length, device)[: len(rows)]
        return vectors

    def truncated(self, samples: Samples) -> np.ndarray:
        """bool [n]: texts that have as many tokens as are read, or more."""
        network, _ = load(self.model, self.revision, torch_device(self.runtime))
        limit = self._limit(network.max_seq_length)
        return np.array([len(tokens) >= limit for tokens in self._tokens(network, samples.content, limit)], bool)

    def _limit(self, most: int | None) -> int:
        """Tokens that are read of a text. most: that the network can read."""
        if self.max_length is None and most is None:
            raise invalid("embedding.max_length", "null", "a number of tokens, as this model has no limit")
        if self.max_length is not None and most is not None and self.max_length > most:
            raise invalid("embedding.max_length", self.max_length, f"null, or {most} at most, which this model reads")
        return int(self.max_length or most or 0)

    def _tokens(self, network: Any, content: np.ndarray, limit: int) -> list[list[int]]:
        # half of a surrogate pair is no UTF-8, and a tokenizer's error would quote the text
        texts = [((self.prompt or "") + text.strip()).encode("utf-8", "replace").decode() for text in content]
        if getattr(network[0], "do_lower_case", False):
            texts = [text.lower() for text in texts]
        if not texts:
            return []
        return list(network.tokenizer(texts, truncation=True, max_length=limit)["input_ids"])

    def _encoded(self, network: Any, tokens: list[list[int]], length: int, device: str) -> np.ndarray:
        """float32 [n, d] of n texts, padded to `length` tokens."""
        import torch

        inputs = network.tokenizer.pad(
            {"input_ids": tokens}, padding="max_length", max_length=length, return_tensors="pt"
        )

        def encoded(rows: slice) -> Any:
            vectors = network({name: values[rows].to(device) for name, values in inputs.items()})
            vectors = vectors["sentence_embedding"].float()
            return torch.nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

        return torch.cat(in_batches(len(tokens), self.runtime, "embedding sentence", encoded)).cpu().numpy()


def batches(lengths: Sequence[int], limit: int, tokens: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Rows int64 [`size` or fewer], the length that they are padded to, and `size`: a function of that length.

    lengths: in tokens, of every row.
    limit: the longest that the network takes, in tokens.
    tokens: of a batch, about.
    """
    padded = np.minimum(np.maximum(-(-np.asarray(lengths, np.int64) // STEP), 1) * STEP, limit)
    for length in np.unique(padded).tolist():
        rows, size = np.flatnonzero(padded == length), max(1, tokens // length)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], length, size


@functools.lru_cache(maxsize=2)
def load(model: str, revision: str | None, device: str) -> tuple[Any, int]:
    """The network (SentenceTransformer, float32) and the length of a vector. Raises UserError.

    model: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    device: of torch.
    """
    folder = _fetched(model, revision)
    try:
        with _quiet():
            from sentence_transformers import SentenceTransformer

            network = SentenceTransformer(str(folder), device=device)
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        do = f"sentence-transformers says: {reason}"
        raise invalid("embedding.model", model, "a network that it can load", do) from None
    if not hasattr(network.tokenizer, "pad"):
        raise invalid("embedding.model", model, "a network over tokens", "This one has no tokenizer of transformers.")
    # the second is its name in version 5 and before
    dimension: Any = getattr(network, "get_embedding_dimension", None) or network.get_sentence_embedding_dimension
    return network.eval().requires_grad_(False).float(), dimension()


def _fetched(model: str, revision: str | None) -> Path:
    """The folder itself, or the cached copy of what the hub has under that name. Raises UserError."""
    with _quiet():
        return fetched(
            "embedding.model", model, revision, SAFE, ["*.bin"], "Name a folder with embedding.model=.", IGNORED
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings that would break into the panel."""
    sentences = logging.getLogger("sentence_transformers")
    before = sentences.level
    sentences.setLevel(logging.ERROR)
    try:
        with quiet_transformers():
            yield
    finally:
        sentences.setLevel(before)
