"""Images from parquet files, image folders and the Hugging Face hub."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Records, Refusal
from dpsyn.errors import bad
from dpsyn.population import Samples
from dpsyn.rows import (
    Broken,
    Columns,
    as_text,
    check_declared,
    combinations,
    guarded,
    label_sources,
    labeller,
    parquet_batches,
    parquet_schema,
    shown,
)
from dpsyn.sources import Source, class_names, commit, hub_stream, root
from dpsyn.spelling import LOST_DIGITS, coded, has_lost_digits, unit_of

# Formats that Pillow decodes by itself: opening an EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
MAX_PIXELS = 100_000_000

UNREADABLE = "not a readable image"

IMAGE = "\0image"  # in a Row, whatever the column is called

Row = Mapping[str, Any]
"""IMAGE holds bytes, a Path or None; every other column a str or None."""


@dataclass(frozen=True)
class HubImages:
    """Images uint8 [n, h, w, 1 (mode L) or 3 (RGB)]: a name on the hub, parquet files, or a folder of images.

    path: a name on the hub, or a local file, folder or glob pattern.
    builder: 'parquet', 'imagefolder', or None: by the path. A folder has the columns `image` and `label`, the name of
        the folder an image is in, below `path`; hidden files and files that do not end like an image are left out.
    subset, split: which part of a data set on the hub. Of local files, a split other than 'train' is what stands in the
        place of 'train' in the name of `path`: train.parquet, test.parquet.
    image_column: None for the only column of images that there is.
    labels: given as {column: declared values}, held as all their combinations; {} is one label for all rows.
    label_columns: which source column a label column is read from, where the names differ.
    size: [height, width] px, or None where the images have one size; center_crop: cut to its shape first.
    id, records, on_error, unit_column, max_refused, max_adjusted: as in `dpsyn.data.Data`.
        An empty or missing unit is -1.

    Transparent pixels are shown on white, 16-bit greys are scaled to 8 bits, EXIF orientation is ignored, an animation
    is its first image. Images of over 100 million pixels, or of 32-bit pixels (whose range is unknown), are refused.
    """

    path: str | None
    builder: str | None = None
    subset: str | None = None
    split: str = "train"
    image_column: str | None = None
    labels: Any = field(default_factory=dict)
    label_columns: Mapping[str, str] = field(default_factory=dict)
    size: Sequence[int] | None = None
    center_crop: bool = False
    mode: str = "RGB"
    id: str | None = None
    records: int | None = None
    on_error: str = "refuse"
    unit_column: str | None = None
    max_refused: float = 0.01
    max_adjusted: float = 0.05

    def __post_init__(self) -> None:
        self._source.check_settings()
        object.__setattr__(self, "labels", combinations(self.labels))
        label_sources(self.labels, self.label_columns)
        if self.size is not None and (
            isinstance(self.size, str | int)
            or len(self.size) != 2
            or any(type(side) is not int or side < 1 for side in self.size)
        ):
            raise bad("data.size", self.size, "[height, width] in px, or null")
        if self.center_crop and self.size is None:
            raise bad("data.center_crop", True, "data.size=[height,width] beside it")
        if self.mode not in ("L", "RGB"):
            raise bad("data.mode", self.mode, "L (grey) or RGB")
        check_declared(self.id, self.records, self.on_error, self.max_refused, self.max_adjusted)

    @functools.cached_property
    def _source(self) -> Source:
        return Source(self.path, self.builder, ("parquet", "imagefolder"), self.subset, self.split)

    def check(self) -> None:
        """Raises UserError for a missing path, package or column. The hub is not asked before `batches`."""
        first = self._source.check(["PIL"])
        if first is None:
            return
        if self._source.kind() == "parquet":
            self._parquet_columns(first)
        else:
            self._columns(["image", "label"], ["image"])

    def contents(self) -> set[str]:
        """A digest of the content of each local file; of a data set on the hub, its fingerprint."""
        return self._source.contents()

    def fingerprint(self) -> str:
        """Of names, sizes and content of local files; of the name and the commit of a data set on the hub."""
        return self._source.fingerprint()

    def batches(self, size: int) -> Iterator[Records]:
        """Batches of exactly `size` rows but for the last, which may have none where rows were refused after it.

        Raises UserError for files that cannot be read, missing columns, and images of several sizes without `size`.
        """
        label_of, codes = labeller(self.labels, label_sources(self.labels, self.label_columns)), dict[str, int]()
        shape = (*self.size, self._channels) if self.size is not None else None
        images: list[np.ndarray] = []
        labels: list[int] = []
        units: list[int] = []
        refused: list[Refusal] = []
        for number, row in enumerate(guarded(self._rows(), self.path)):
            label = label_of(row)
            if isinstance(label, Broken):
                refused.append(Refusal(number, label.column, label.rule, label.value))
                continue
            user = row[self.unit_column] if self.unit_column is not None else None
            if has_lost_digits(user):
                refused.append(Refusal(number, str(self.unit_column), LOST_DIGITS, shown(user)))
                continue
            source = row[IMAGE]
            image = _decoded(source, self.mode, self.size, self.center_crop)
            if image is None:
                name = shown(source.name) if isinstance(source, Path) else ""
                refused.append(Refusal(number, self.image_column or "image", UNREADABLE, name))
                continue
            shape = shape or image.shape
            if image.shape != shape:
                raise bad("data.size", "null", "[height, width], since the images are of several sizes")
            images.append(image)
            labels.append(label)
            units.append(coded(unit_of(user), codes))
            if len(images) == size:
                yield self._records(images, labels, units, refused)
                images, labels, units, refused = [], [], [], []
        if images or refused:
            images = images or [np.empty((0, *(shape or (0, 0, self._channels))), np.uint8)]
            yield self._records(images, labels, units, refused)

    def _records(
        self, images: list[np.ndarray], labels: list[int], units: list[int], refused: list[Refusal]
    ) -> Records:
        content = np.stack(images) if labels else images[0]
        users = np.array(units, np.int64) if self.unit_column is not None else None
        return Records(Samples(content), np.array(labels, np.int64), users, tuple(refused))

    @property
    def _channels(self) -> int:
        return 1 if self.mode == "L" else 3

    def _columns(self, there: Sequence[str], images: Sequence[str]) -> list[str]:
        """What is read: the column of images, then the others. Raises UserError for those that are not there; names of
        columns are public."""
        image_column = self.image_column or next(iter(images), None)
        if image_column is None or (self.image_column is None and len(images) > 1):
            raise bad("data.image_column", "null", f"the name of a column of images ({', '.join(images or there)})")
        sources = label_sources(self.labels, self.label_columns)
        named = {f"data.label_columns.{column}": source for column, source in sources.items()}
        if self.unit_column is not None:
            named["data.unit_column"] = self.unit_column
        Columns(there, images).check({"data.image_column": image_column, **named})
        if image_column not in images:
            raise bad("data.image_column", image_column, "a column of images, or of their bytes")
        return [image_column, *dict.fromkeys(named.values())]

    def _rows(self) -> Iterator[Row]:
        kind = self._source.kind()
        if kind == "hub":
            yield from self._hub_rows(commit(str(self.path)))
            return
        top = root(self._source.place)
        for file in self._source.files():
            if kind == "parquet":
                yield from self._parquet_rows(file)
            else:
                yield {IMAGE: file, "label": file.parent.name if file.parent != top else None}

    def _parquet_columns(self, file: Path) -> list[str]:
        import pyarrow as pa

        schema = parquet_schema(file, self.path)
        binary = [item.name for item in schema if pa.types.is_binary(item.type) or pa.types.is_large_binary(item.type)]
        images = [
            item.name for item in schema if pa.types.is_struct(item.type) and item.type.get_field_index("bytes") >= 0
        ]
        return self._columns(schema.names, images + binary if self.image_column else images or binary)

    def _parquet_rows(self, file: Path) -> Iterator[Row]:
        """A path beside the bytes is never followed: what it points to is in no fingerprint."""
        import pyarrow as pa
        import pyarrow.compute as pc

        image, *columns = self._parquet_columns(file)
        for batch, cells in parquet_batches(file, [image, *columns], 64):
            array = batch.column(image)
            array = pc.struct_field(array, "bytes") if pa.types.is_struct(array.type) else array
            lists = {IMAGE: array.to_pylist(), **{column: cells(batch.column(column), column) for column in columns}}
            for values in zip(*lists.values(), strict=True):
                yield dict(zip(lists, values, strict=True))

    def _hub_rows(self, revision: str | None) -> Iterator[Row]:
        with hub_stream(self._source, "images", revision) as stream:
            import datasets

            features = stream.features or {}
            images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
            image, *columns = self._columns(list(features), images)
            names = class_names(features)
            stream = stream.select_columns([image, *columns]).cast_column(image, datasets.Image(decode=False))
            for example in stream:
                row = {column: as_text(example[column], names.get(column)) for column in columns}
                yield {**row, IMAGE: _fetched(example[image])}


def _decoded(
    source: bytes | Path | None, mode: str, size: Sequence[int] | None, center_crop: bool
) -> np.ndarray | None:
    """uint8 [h, w, c], or None for anything that is no image, whatever Pillow raises."""
    from PIL import Image

    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, like its log, quote sizes and tags of the image
            with Image.open(source if isinstance(source, Path) else BytesIO(source or b""), formats=FORMATS) as image:
                return _pixels(image, mode, size, center_crop)
    except Exception:
        return None


def _pixels(image: Any, mode: str, size: Sequence[int] | None, center_crop: bool) -> np.ndarray:
    from PIL import Image

    if image.width * image.height > MAX_PIXELS:
        raise ValueError("too many pixels")
    with _stderr_closed() if image.tile and image.tile[0][0] == "libtiff" else contextlib.nullcontext():
        image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("the range of 32-bit pixels is unknown")
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        height, width = size
        box = (0.0, 0.0, float(image.width), float(image.height))
        if center_crop:
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
            box = (max(left, 0.0), max(top, 0.0), min(image.width - left, box[2]), min(image.height - top, box[3]))
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """libtiff writes numbers of a damaged image to the process's standard error, past Python; no other format does."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _fetched(image: Any) -> bytes | None:
    """The bytes of an image on the hub. A failure here is of the network, not of the row: it raises."""
    if image is None or image["bytes"] is not None:
        return None if image is None else image["bytes"]
    place = image["path"] or ""
    if not place.split("::")[-1].startswith("hf://"):
        return None  # a path that a row names on this machine or elsewhere is not followed
    import fsspec

    with fsspec.open(place, "rb") as stream:
        return stream.read()
