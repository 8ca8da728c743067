"""Images from parquet files, image folders and the Hugging Face hub.

Local files are walked and opened here. `datasets` would open a lock file in its cache and call a server that counts
loads, for local files too; and where one image of a folder is called `train_1.png`, its image folders hold that image
alone (measured, datasets 5.2): reading would not be a map of one row. It reads what is on the hub.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Records, Refusal
from dpsyn.errors import UserError, bad, one_of
from dpsyn.population import Label, Samples

# Formats that Pillow decodes by itself: opening an EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SUFFIXES = {
    "imagefolder": (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".avif"),
    "parquet": (".parquet",),
}
MAX_PIXELS = 100_000_000

UNDECLARED = "not among the declared values"
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
    id, records, on_error, unit_column: as in `dpsyn.data.Data`. An empty or missing unit is -1.

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

    def __post_init__(self) -> None:
        if self.builder not in (None, "parquet", "imagefolder"):
            raise bad("data.builder", self.builder, one_of(["null", "parquet", "imagefolder"]))
        if not re.fullmatch(r"[\w.-]+", str(self.split)):
            do = "Parts by position (train[:10%]) are refused: they would depend on other rows."
            raise bad("data.split", self.split, "the name of a split", do)
        object.__setattr__(self, "labels", _combinations(self.labels))
        for column in self.label_columns:
            if column not in self.labels[0]:
                raise bad("data.label_columns", column, "columns that data.labels declares")
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
        if self.id is not None and (not isinstance(self.id, str) or not self.id):
            raise bad("data.id", self.id, "a name or null")
        if self.records is not None and (type(self.records) is not int or self.records < 1):
            raise bad("data.records", self.records, "a whole number, 1 or more, or null")
        if self.on_error not in ("refuse", "skip"):
            raise bad("data.on_error", self.on_error, one_of(["refuse", "skip"]))

    def check(self) -> None:
        """Raises UserError for a missing path, package or column. The hub is not asked before `batches`."""
        kind = self._kind()
        for package in ["PIL", *{"parquet": ["pyarrow"], "hub": ["datasets", "huggingface_hub"]}.get(kind, [])]:
            if find_spec(package) is None:
                name = {"PIL": "pillow"}.get(package, package)
                raise bad("data.path", self.path, f"the package {name}", f"Install it: pip install {name}")
        if kind == "hub":
            return
        if self.subset is not None:
            raise bad("data.subset", self.subset, "null for local files")
        first = next(_walk(self._place, kind), None)
        if first is None:
            raise bad("data.path", self._place, "parquet files" if kind == "parquet" else "images in it")
        if kind == "parquet":
            self._parquet_columns(Path(first))
        else:
            self._columns(["image", "label"], ["image"])

    def contents(self) -> set[str]:
        """A digest of the content of each local file; of a data set on the hub, its fingerprint."""
        if self._kind() == "hub":
            return {self.fingerprint()}
        return {digest for _, _, digest in self._digests}

    def fingerprint(self) -> str:
        """Of names, sizes and content of local files; of the name and the commit of a data set on the hub."""
        kind = self._kind()
        if kind == "hub":
            name = json.dumps([self.path, self.subset, self.split, _commit(str(self.path))])
            return blake2b(name.encode(), digest_size=32).hexdigest()
        return blake2b(json.dumps(self._digests).encode(), digest_size=32).hexdigest()

    @functools.cached_property
    def _digests(self) -> list[tuple[str, int, str]]:
        """Name below the path, size, and digest of the content of each local file that is read."""
        try:
            root, kind = _root(self._place), self._kind()
            return [_content(Path(name), root) for name in sorted(_walk(self._place, kind))]
        except OSError:  # it names a private file, so ours is raised after it and not from it
            pass
        raise bad("data.path", self.path, "files that can be read")

    def batches(self, size: int) -> Iterator[Records]:
        """Batches of exactly `size` rows but for the last, which may have none where rows were refused after it.

        Raises UserError for files that cannot be read, missing columns, and images of several sizes without `size`.
        """
        indices = {tuple(label.values()): index for index, label in enumerate(self.labels)}
        declared = {column: {label[column] for label in self.labels} for column in self.labels[0]}
        codes: dict[str, int] = {}
        shape = (*self.size, self._channels) if self.size is not None else None
        images: list[np.ndarray] = []
        labels: list[int] = []
        units: list[int] = []
        refused: list[Refusal] = []
        for number, row in enumerate(_guarded(self._rows(), str(self.path))):
            values = {column: row[self._source(column)] for column in declared}
            wrong = next((column for column, value in values.items() if value not in declared[column]), None)
            if wrong is not None:
                refused.append(Refusal(number, self._source(wrong), UNDECLARED, _shown(values[wrong])))
                continue
            source = row[IMAGE]
            image = _decoded(source, self.mode, self.size, self.center_crop)
            if image is None:
                name = _shown(source.name) if isinstance(source, Path) else ""
                refused.append(Refusal(number, self.image_column or "image", UNREADABLE, name))
                continue
            shape = shape or image.shape
            if image.shape != shape:
                raise bad("data.size", "null", "[height, width], since the images are of several sizes")
            images.append(image)
            labels.append(indices[tuple(values.values())])
            if self.unit_column is not None:
                unit = row[self.unit_column]
                units.append(codes.setdefault(unit, len(codes)) if unit else -1)
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
        coded = np.array(units, np.int64) if self.unit_column is not None else None
        return Records(Samples(content), np.array(labels, np.int64), coded, tuple(refused))

    @property
    def _channels(self) -> int:
        return 1 if self.mode == "L" else 3

    def _source(self, column: str) -> str:
        return self.label_columns.get(column, column)

    @property
    def _place(self) -> str:
        """The local path of this split. Raises UserError where the name of `path` does not say where others are."""
        place = Path(str(self.path))
        if self.split == "train":
            return str(place)
        if "train" not in place.name:
            raise bad("data.split", self.split, "train for local files", "Name the test files by data.path.")
        return str(place.with_name(place.name.replace("train", self.split)))

    def _kind(self) -> str:
        """'parquet', 'imagefolder' or 'hub'. Raises UserError for a local path that is not there."""
        if not isinstance(self.path, str) or not self.path:
            what = {"imagefolder": "a folder of images", "parquet": "parquet files"}.get(str(self.builder))
            path = "null" if self.path is None else self.path
            raise bad("data.path", path, what or "a name on the hub, parquet files, or a folder of images")
        place = os.path.expanduser(self.path)
        if os.path.exists(place) or glob.has_magic(place):
            place = os.path.expanduser(self._place)
            if not os.path.exists(place) and not glob.has_magic(place):
                raise bad("data.path", self._place, "an existing file or folder")
            if self.builder is not None:
                return self.builder
            tables = place.endswith(".parquet") or (os.path.isdir(place) and any(Path(place).glob("*.parquet")))
            return "parquet" if tables else "imagefolder"
        is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.path) and not self.path.endswith((".parquet", ".zip"))
        if self.builder is not None or not is_name or Path(self.path).suffix.lower() in SUFFIXES["imagefolder"]:
            name = "" if self.builder else ", or a name on the hub"
            raise bad("data.path", self.path, f"an existing file or folder{name}")
        return "hub"

    def _columns(self, there: Sequence[str], images: Sequence[str]) -> list[str]:
        """What is read: the column of images, then the others. Raises UserError for those that are not there; names of
        columns are public."""
        image_column = self.image_column or next(iter(images), None)
        if image_column is None or (self.image_column is None and len(images) > 1):
            raise bad("data.image_column", "null", f"the name of a column of images ({', '.join(images or there)})")
        named = {f"data.label_columns.{column}": self._source(column) for column in self.labels[0]}
        if self.unit_column is not None:
            named["data.unit_column"] = self.unit_column
        for key, column in {"data.image_column": image_column, **named}.items():
            if column not in there:
                raise bad(key, column, f"one of the columns ({', '.join(there)})")
        if image_column not in images:
            raise bad("data.image_column", image_column, "a column of images, or of their bytes")
        return [image_column, *dict.fromkeys(named.values())]

    def _rows(self) -> Iterator[Row]:
        kind = self._kind()
        if kind == "hub":
            yield from self._hub_rows(_commit(str(self.path)))
            return
        root = _root(self._place)
        for file in map(Path, sorted(_walk(self._place, kind))):
            if kind == "parquet":
                yield from self._parquet_rows(file)
            else:
                yield {IMAGE: file, "label": file.parent.name if file.parent != root else None}

    def _parquet_columns(self, file: Path) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        broken = False
        try:
            schema = pq.read_schema(file)
        except Exception:
            broken = True
        if broken:
            raise bad("data.path", self.path, "parquet files that can be read")
        binary = [item.name for item in schema if pa.types.is_binary(item.type) or pa.types.is_large_binary(item.type)]
        images = [
            item.name for item in schema if pa.types.is_struct(item.type) and item.type.get_field_index("bytes") >= 0
        ]
        return self._columns(schema.names, images + binary if self.image_column else images or binary)

    def _parquet_rows(self, file: Path) -> Iterator[Row]:
        """A path beside the bytes is never followed: what it points to is in no fingerprint."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        columns = self._parquet_columns(file)
        # With either left at its default, Arrow holds a row group: 991 MiB for one of 751, against 433 (its pages).
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as reader:
            names = _class_names(reader.schema_arrow.metadata)
            for batch in reader.iter_batches(batch_size=64, columns=columns):
                lists: dict[str, list[Any]] = {}
                array = batch.column(columns[0])
                array = pc.struct_field(array, "bytes") if pa.types.is_struct(array.type) else array
                lists[IMAGE] = array.to_pylist()
                for column in columns[1:]:
                    array = batch.column(column)
                    if pa.types.is_dictionary(array.type):
                        array = array.dictionary_decode()
                    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
                        array = array.cast(pa.large_binary())  # text that is no UTF-8 is then one bad row, not an error
                    lists[column] = [_text(value, names.get(column)) for value in array.to_pylist()]
                for values in zip(*lists.values(), strict=True):
                    yield dict(zip(lists, values, strict=True))

    def _hub_rows(self, revision: str | None) -> Iterator[Row]:
        import tempfile

        datasets = _quiet_datasets()
        with tempfile.TemporaryDirectory() as cache:  # lock files; streamed rows are never written
            kind = None
            try:
                stream = datasets.load_dataset(
                    self.path, self.subset, split=self.split, revision=revision, streaming=True, cache_dir=cache
                )
            except Exception as error:
                kind = type(error).__name__
            if kind is not None:
                what = f"images on the hub with data.subset={self.subset or 'null'}, data.split={self.split} ({kind})"
                raise bad("data.path", self.path, what)
            features = stream.features or {}
            images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
            image, *columns = self._columns(list(features), images)
            names = {c: feature.names for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
            stream = stream.select_columns([image, *columns]).cast_column(image, datasets.Image(decode=False))
            for example in stream:
                row = {column: _text(example[column], names.get(column)) for column in columns}
                yield {**row, IMAGE: _fetched(example[image])}


def _combinations(labels: Any) -> tuple[Label, ...]:
    """{column: values} -> all combinations, in order; what is already a tuple of labels stays."""
    if isinstance(labels, tuple):
        return labels
    if labels is None:
        return ({},)
    if not isinstance(labels, Mapping):
        raise bad("data.labels", labels, "columns with their values, {digit: ['0', '1']}")
    columns: dict[str, list[str]] = {}
    for column, values in labels.items():
        key = f"data.labels.{column}"
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise bad(key, values, "a list with at least one value")
        for value in values:
            if type(value) not in (str, int):
                raise bad(key, value, "strings", "Put it in quotes.")
        columns[str(column)] = [str(value) for value in values]
        if len(set(columns[str(column)])) < len(values):
            raise bad(key, list(values), "every value once")
    return tuple(dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values()))


def _root(path: str) -> Path:
    """What names below `path` are relative to: the folder, the folder of the file, or the fixed head of a pattern."""
    place = Path(os.path.expanduser(path))
    if place.exists():
        return place if place.is_dir() else place.parent
    while glob.has_magic(str(place)):
        place = place.parent
    return place


def _walk(path: str, kind: str) -> Iterator[str]:
    """The files of one kind under a file, folder or pattern, unsorted. Whether one is read depends on it alone."""
    place = os.path.expanduser(path)
    if os.path.isfile(place):
        yield place
        return
    for name in _below(place) if os.path.isdir(place) else glob.iglob(place, recursive=True):
        if name.lower().endswith(SUFFIXES[kind]) and os.path.isfile(name):
            yield name


def _below(top: str) -> Iterator[str]:
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _content(file: Path, root: Path) -> tuple[str, int, str]:
    content, size = blake2b(digest_size=32), 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            content.update(block)
            size += len(block)
    name = os.fsencode(file.relative_to(root)).decode("utf-8", "backslashreplace")
    return name, size, content.hexdigest()


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of class labels, from what `datasets` writes into the schema of a parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {c: list(f["names"]) for c, f in features.items() if isinstance(f, dict) and "names" in f}
    except (KeyError, TypeError, ValueError):
        return {}


def _text(value: Any, names: Sequence[str] | None = None) -> str | None:
    """One cell as a string; None for a missing one. A class is its name, and one without a name is None."""
    if names is not None:
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _shown(value: str | None) -> str:
    """A value for private/refused.jsonl: bounded, and writable as UTF-8."""
    return (value or "")[:200].encode("utf-8", "backslashreplace").decode("utf-8")


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


def _guarded(rows: Iterator[Row], path: str) -> Iterator[Row]:
    """The same rows. An exception of a library may quote a private row, so none goes on, nor is chained to ours."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:
            kind = type(error).__name__
        else:
            yield row
            continue
        raise bad("data.path", path, f"data that can be read to its end ({kind})")


def _quiet_datasets() -> Any:
    """`datasets` without telemetry, without progress bars (they show the number of files) and without its log, which
    quotes values. The variables work where it is not imported yet, the attributes where it is."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


@functools.cache
def _commit(name: str) -> str:
    """The commit of a data set on the hub, asked once a process, so that what is read is what was fingerprinted.

    Raises UserError where the hub cannot be reached or does not tell it: a name alone is no digest of content.
    """
    _quiet_datasets()
    from huggingface_hub import HfApi

    kind = "no commit"
    try:
        commit = HfApi().dataset_info(name).sha
    except Exception as error:
        commit, kind = None, type(error).__name__
    if commit is None:
        raise bad("data.path", name, f"an existing file or folder, or a name on the hub that can be reached ({kind})")
    return commit


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
