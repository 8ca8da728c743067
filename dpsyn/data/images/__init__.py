"""Images from parquet files, image folders and the Hugging Face hub."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.data import Batches, Records, Refusal
from dpsyn.data.images.files import HEIF, ONLY_A_PATH, pixels_of
from dpsyn.errors import invalid, missing
from dpsyn.marks import PLACE
from dpsyn.population import Label, Modality, Samples
from dpsyn.reading.labels import check_declared, combinations, label_sources, labeller
from dpsyn.reading.rows import Broken, Columns, Span, as_text, excerpt, guarded, parquet_batches, parquet_schema
from dpsyn.reading.sources import Source, class_names, commit, floating, hub_stream, name_below, root
from dpsyn.reading.spelling import LOST_DIGITS, Users, canonical, has_lost_digits, unit_of
from dpsyn.validate import choice, whole

IMAGE = "\0image"  # in a Row, whatever the column is called

Row = Mapping[str, Any]
"""IMAGE holds bytes, a Path, None, or the rule by which there are none; every other column a str or None."""


@dataclass(frozen=True)
class Images:
    """Images uint8 [n, h, w, 1 (mode L) or 3 (RGB)]: a name on the hub, parquet files, or a folder of images.

    path: a name on the hub, or a local file, folder or glob pattern.
    builder: 'parquet', 'imagefolder', or None: by the path. A folder has the columns `image` and `label`, the name of
        the folder an image is in, below `path`; hidden files and files that do not end like an image are passed over,
        links to folders are followed, and each folder is read once.
    subset, split: which part of a data set on the hub. Of local files, a split other than 'train' is what stands in the
        place of 'train' in the name of `path`: train.parquet, test.parquet.
    revision: a commit, tag or branch on the hub; None: the newest at the first use, see `dpsyn.networks.hub.commit_of`.
    image_column: None for the only column of images that there is.
    labels: given as {column: declared values}, held as all their combinations; {} is one label for all rows. Compared
        by `dpsyn.reading.spelling.canonical`.
    label_columns: which source column a label column is read from, where the names differ.
    size: [height, width] px, or None where the images have one size; center_crop: cut to its shape first.
    bits: of the values of greys of more than 8 bits; None: as each file says, see `dpsyn.data.images.files.pixels_of`.
    id, records, on_error, unit_column, max_refused, max_adjusted: as in `dpsyn.data.Data`.
        An empty or missing unit is -1.

    Transparent pixels are white, images are turned upright as their EXIF says, an animation is its first image.
    Refused, each by a rule of its own: over 100 million pixels, 32-bit and signed pixels, whose range is unknown, other
    formats, and a path without bytes: what it points to is in no fingerprint.
    """

    path: str | None = field(metadata=PLACE)
    builder: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    labels: Any = field(default_factory=dict)
    label_columns: Mapping[str, str] = field(default_factory=dict)
    size: Sequence[int] | None = None
    center_crop: bool = False
    mode: str = "RGB"
    bits: int | None = None
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
        _spellings(self.labels)
        if self.size is not None and (
            isinstance(self.size, str | int)
            or len(self.size) != 2
            or any(type(side) is not int or side < 1 for side in self.size)
        ):
            raise invalid("data.size", self.size, "[height, width] in px, or null")
        if self.center_crop and self.size is None:
            raise invalid("data.center_crop", True, "data.size=[height,width] beside it")
        choice("data.mode", self.mode, ("L", "RGB"))
        whole("data.bits", self.bits, 9, optional=True, most=16)
        check_declared(self.id, self.records, self.on_error, self.max_refused, self.max_adjusted)

    @functools.cached_property
    def _source(self) -> Source:
        return Source(
            self.path, self.builder, ("parquet", "imagefolder"), self.subset, self.split, revision=self.revision
        )

    def check(self) -> None:
        """Raises UserError for a missing path, package or column. The hub is not asked before `batches`."""
        first = self._source.check(["PIL"])
        if first is None:
            return
        needs = self._source.kind() == "imagefolder" and self.on_error == "refuse" and find_spec("pillow_heif") is None
        if needs and any(file.suffix.lower() in HEIF for file in self._source.files()):
            do = "Install it: pip install pillow-heif"
            raise missing("data.path", self.path, "the package pillow-heif, as there are HEIC files", do)
        if self._source.kind() == "parquet":
            self._parquet_columns(first)
            if self.unit_column is not None:
                self._source.check_unit(self.unit_column)
        else:
            self._columns(["image", "label"], ["image"])

    @property
    def modality(self) -> Modality:
        return "images"

    @property
    def place(self) -> str | None:
        return self.path

    def digests(self) -> set[str]:
        """A digest of the content of each local file; of a data set on the hub, its fingerprint."""
        return self._source.digests()

    def fingerprint(self) -> str:
        """Of names, sizes and content of local files; of the name and the commit of a data set on the hub."""
        return self._source.fingerprint()

    def parts(self, n: int, least: int = 1) -> Sequence[Batches]:
        shares = self._source.shares(n, least)
        if len(shares) == 1:
            return [self.batches]
        first = next((records for records in self.batches(1) if len(records.labels)), None)
        shape = None if first is None else first.samples.content.shape[1:]
        return [functools.partial(self.batches, spans=spans, at=at, shape=shape) for at, spans in enumerate(shares)]

    def batches(
        self, size: int, spans: Sequence[Span] | None = None, at: int = 0, shape: tuple[int, ...] | None = None
    ) -> Iterator[Records]:
        """Batches of one size; the last may have fewer rows, and none where rows were refused after it.

        size: rows of a batch.
        spans: which runs of which files are read; None: all.
        at: the number of this part, from 0 on.
        shape: of the first image of all parts, which all must have; None: of the first one read here.

        Raises UserError for files that cannot be read, missing columns, and images of several sizes without `size`.
        """
        label_of, users = self._labeller(), Users()
        shape = (*self.size, self._channels) if self.size is not None else shape
        images: list[np.ndarray] = []
        labels: list[int] = []
        units: list[int] = []
        refused: list[Refusal] = []
        remarks: Mapping[str, int] = self._source.passed_over() if at == 0 else {}
        for number, (file, line, row) in enumerate(guarded(self._rows(spans), self.path)):
            label = label_of(row)
            user = row[self.unit_column] if self.unit_column is not None else None
            image = row[IMAGE]
            if isinstance(label, Broken):
                image = label
            elif has_lost_digits(user):
                image = Broken(str(self.unit_column), LOST_DIGITS, excerpt(user))
            elif not isinstance(image, Broken):
                image = pixels_of(image, self.mode, self.size, self.center_crop, self.bits)
            if isinstance(image, str):
                image = Broken(self.image_column or "image", image, "")
            if isinstance(image, Broken) or isinstance(label, Broken):
                refused.append(Refusal(number, image.column, image.rule, image.value, file, line))
                continue
            shape = shape or image.shape
            if image.shape != shape:
                raise invalid("data.size", "null", "[height, width], since the images are of several sizes")
            images.append(image)
            labels.append(label)
            units.append(users.number(unit_of(user)))
            if len(images) == size:
                yield self._records(images, labels, units, refused, remarks, users)
                images, labels, units, refused, remarks = [], [], [], [], {}
        if images or refused or remarks:
            images = images or [np.empty((0, *(shape or (0, 0, self._channels))), np.uint8)]
            yield self._records(images, labels, units, refused, remarks, users)

    def _records(
        self,
        images: list[np.ndarray],
        labels: list[int],
        units: list[int],
        refused: list[Refusal],
        remarks: Mapping[str, int],
        users: Users,
    ) -> Records:
        content = np.stack(images) if labels else images[0]
        numbers = np.array(units, np.int64) if self.unit_column is not None else None
        read = Samples(content), np.array(labels, np.int64), numbers
        return Records(*read, tuple(refused), remarks=remarks, users=users.met())

    def _labeller(self) -> Callable[[Row], int | Broken]:
        sources = label_sources(self.labels, self.label_columns)
        label_of = labeller(self.labels, sources, _spellings(self.labels))

        @functools.lru_cache(4096)  # many rows, but few labels
        def of_cells(*cells: str | None) -> int | Broken:
            named = zip(sources.values(), cells, strict=True)
            return label_of({source: None if cell is None else canonical(cell) for source, cell in named})

        return lambda row: of_cells(*(row[source] for source in sources.values()))

    @property
    def _channels(self) -> int:
        return 1 if self.mode == "L" else 3

    def _columns(self, there: Sequence[str], images: Sequence[str], floating: Sequence[str] = ()) -> list[str]:
        """What is read: the column of images, then the others. Raises UserError for those that are not there; names of
        columns are public."""
        image_column = self.image_column or next(iter(images), None)
        if image_column is None or (self.image_column is None and len(images) > 1):
            raise invalid("data.image_column", "null", f"the name of a column of images ({', '.join(images or there)})")
        sources = label_sources(self.labels, self.label_columns)
        named = {f"data.label_columns.{column}": source for column, source in sources.items()}
        if self.unit_column is not None:
            named["data.unit_column"] = self.unit_column
        columns = Columns(there, images, floating=floating)
        columns.check({"data.image_column": image_column, **named})
        columns.check_unit(self.unit_column)
        if image_column not in images:
            raise invalid("data.image_column", image_column, "a column of images, or of their bytes")
        return [image_column, *dict.fromkeys(named.values())]

    def _rows(self, spans: Sequence[Span] | None) -> Iterator[tuple[str, int, Row]]:
        """Rows, each with its file and its number in there, from 1 on; 0 for a file that is one image."""
        kind = self._source.kind()
        if kind == "hub":
            for number, row in enumerate(self._hub_rows(commit(str(self.path), self.revision)), 1):
                yield "", number, row
            return
        top = root(self._source.place)
        for span in self._source.spans() if spans is None else spans:
            file = span.file
            name = name_below(file, top)
            if kind == "parquet":
                for number, row in enumerate(self._parquet_rows(span), span.start + 1):
                    yield name, number, row
            else:
                yield name, 0, {IMAGE: file, "label": file.parent.name if file.parent != top else None}

    def _parquet_columns(self, file: Path) -> list[str]:
        import pyarrow as pa

        schema = parquet_schema(file, self.path)
        binary = [item.name for item in schema if str(item.type) in ("binary", "large_binary", "binary_view")]
        images = [
            item.name for item in schema if pa.types.is_struct(item.type) and item.type.get_field_index("bytes") >= 0
        ]
        return self._columns(schema.names, images + binary if self.image_column else images or binary)

    def _parquet_rows(self, span: Span) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.compute as pc

        image, *columns = self._parquet_columns(span.file)
        for batch, cells in parquet_batches(span, [image, *columns], 64):
            array = batch.column(image)
            if pa.types.is_struct(array.type):
                paths = array.type.get_field_index("path") >= 0
                named = pc.struct_field(array, "path").to_pylist() if paths else itertools.repeat(None)
                found = pc.struct_field(array, "bytes").to_pylist()
                found = [self._bytes_of(*pair) for pair in zip(found, named, strict=paths)]
            else:
                found = array.to_pylist()
            lists = {IMAGE: found, **{column: cells(batch.column(column), column) for column in columns}}
            for values in zip(*lists.values(), strict=True):
                yield dict(zip(lists, values, strict=True))

    def _hub_rows(self, revision: str | None) -> Iterator[Row]:
        with hub_stream(self._source, "images", revision) as stream:
            import datasets

            features = stream.features or {}
            images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
            image, *columns = self._columns(list(features), images, floating(features))
            names = class_names(features)
            stream = stream.select_columns([image, *columns]).cast_column(image, datasets.Image(decode=False))
            for example in stream:
                row = {column: as_text(example[column], names.get(column)) for column in columns}
                found = example[image] or {"bytes": None, "path": None}
                place = found["path"] or ""
                if found["bytes"] is None and place.split("::")[-1].startswith("hf://"):
                    yield {**row, IMAGE: _fetched(place)}
                else:
                    yield {**row, IMAGE: self._bytes_of(found["bytes"], place)}

    def _bytes_of(self, found: bytes | None, place: str | None) -> bytes | Broken | None:
        """A path without bytes is never followed: what it points to is in no fingerprint."""
        if found is None and place:
            return Broken(self.image_column or "image", ONLY_A_PATH, excerpt(place))
        return found


def _spellings(labels: Sequence[Label]) -> dict[str, dict[str, str]]:
    """Of every label column the declared value for its canonical spelling. Raises UserError where two share one."""
    columns: dict[str, dict[str, str]] = {}
    for label in labels:
        for column, value in label.items():
            if columns.setdefault(column, {}).setdefault(canonical(value), value) != value:
                raise invalid(f"data.labels.{column}", value, "values that are not the same one spelled differently")
    return columns


def _fetched(place: str) -> bytes:
    """The bytes of an image on the hub. A failure here is of the network, not of the row: it raises."""
    import fsspec

    with fsspec.open(place, "rb") as stream:
        content: bytes = stream.read()
    return content
