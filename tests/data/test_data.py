"""What a reader of private data promises: a map of one row, in bounded batches, that tells nobody what is in a row."""

import io
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dpsyn.data import Data, Records
from dpsyn.data.digits import Digits
from dpsyn.data.images import Images, Row
from dpsyn.errors import UserError
from dpsyn.reading.rows import guarded

CANARY = "CANARY-4711"
CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def encoded(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))).save(stream, form, **options)
    return stream.getvalue()


def grey(value: int, height: int = 4, width: int = 4) -> bytes:
    return encoded(np.full((height, width), value % 256, np.uint8))


def parquet(path: Path, images: Sequence[bytes | None], names: list[str] | None = None, **columns: Any) -> str:
    """A file as `datasets` writes it; with `names`, the column `label` is a class label."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if image is None else {"bytes": image, "path": f"{CANARY}.png"} for image in images]
    table = pa.table({"image": pa.array(rows, kind), **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


def folder(root: Path, **files: bytes) -> str:
    return tree(root, {name.replace("__", "/") + ".png": content for name, content in files.items()})


def tree(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def read(data: Data, size: int = 100) -> Records:
    """All batches as one."""
    batches = list(data.batches(size))
    units = [batch.units for batch in batches if batch.units is not None]
    return replace(
        batches[0],
        samples=replace(batches[0].samples, content=np.concatenate([batch.samples.content for batch in batches])),
        labels=np.concatenate([batch.labels for batch in batches]),
        units=np.concatenate(units) if units else None,
        refused=[refusal for batch in batches for refusal in batch.refused],
    )


def values(records: Records) -> list[int]:
    return [int(image[0, 0, 0]) for image in records.samples.content]


# Digits


def test_digits_are_real_uint8_images_with_ten_declared_labels() -> None:
    data: Data = Digits(split="all")
    data.check()
    everything = read(data)
    assert everything.samples.content.shape == (1797, 8, 8, 1)
    assert everything.samples.content.dtype == np.uint8
    assert everything.samples.content.max() == 255
    assert everything.labels.dtype == np.int64
    assert [label["digit"] for label in data.labels] == list("0123456789")
    assert np.bincount(everything.labels).min() > 170
    assert everything.units is None


def test_the_held_out_digits_are_about_a_fifth_and_share_no_image_with_the_rest() -> None:
    train, test = read(Digits(split="train")), read(Digits(split="test"))
    assert len(train.labels) + len(test.labels) == 1797
    assert 0.15 < len(test.labels) / 1797 < 0.25
    assert not {image.tobytes() for image in train.samples.content} & {i.tobytes() for i in test.samples.content}
    assert len({Digits(split=split).fingerprint() for split in ("train", "test", "all")}) == 3


def test_digits_come_in_batches_of_the_size_asked_for() -> None:
    sizes = [len(batch.samples) for batch in Digits(split="all").batches(500)]
    assert sizes == [500, 500, 500, 297]


@pytest.mark.parametrize(
    "wrong", [{"split": "tset"}, {"records": 0}, {"records": True}, {"id": ""}, {"on_error": "go"}]
)
def test_a_wrong_setting_of_the_digits_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^data.{next(iter(wrong))}=[^\n]*: expected [^\n]*$"):
        Digits(**wrong)


# Labels and units


def test_labels_are_all_combinations_of_what_is_declared_in_its_order() -> None:
    data = Images(path="x", labels={"digit": [0, "1"], "ink": ["red", "blue"]})
    assert data.labels == (
        {"digit": "0", "ink": "red"},
        {"digit": "0", "ink": "blue"},
        {"digit": "1", "ink": "red"},
        {"digit": "1", "ink": "blue"},
    )
    assert Images(path="x").labels == ({},)
    assert replace(data, path="y").labels == data.labels


def test_a_row_gets_the_label_of_its_columns_whatever_their_type(tmp_path: Path) -> None:
    inks = pa.array(["blue", "red", "blue"]).dictionary_encode()
    path = parquet(tmp_path / "a.parquet", [grey(i) for i in range(3)], number=[1, 0, 0], ink=inks)
    data = Images(path, labels={"digit": [0, 1], "ink": ["red", "blue"]}, label_columns={"digit": "number"})
    records = read(data)
    assert [data.labels[label] for label in records.labels] == [
        {"digit": "1", "ink": "blue"},
        {"digit": "0", "ink": "red"},
        {"digit": "0", "ink": "blue"},
    ]
    assert records.refused == []


def test_class_labels_are_read_as_their_names_not_their_numbers(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(i) for i in range(3)], names=["cat", "dog"], label=[1, 0, 1])
    records = read(Images(path, labels={"animal": ["dog", "cat"]}, label_columns={"animal": "label"}))
    assert records.labels.tolist() == [0, 1, 0]


def test_an_undeclared_missing_or_impossible_label_is_a_refusal_and_the_other_rows_are_read(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet", [grey(i) for i in range(5)], names=["a", "b", "c"], label=[0, 2, 77, None, 1]
    )
    records = read(Images(path, labels={"letter": ["a", "b", "77"]}, label_columns={"letter": "label"}))
    assert values(records) == [0, 4]
    assert [(refusal.row, refusal.column, refusal.value) for refusal in records.refused] == [
        (1, "label", "c"),
        (2, "label", ""),
        (3, "label", ""),
    ]
    assert {refusal.rule for refusal in records.refused} == {"not among the declared values"}


def test_one_missing_label_does_not_change_how_the_others_are_read(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", [grey(1), grey(2)], label=pa.array([3, 3]))
    holed = parquet(tmp_path / "b.parquet", [grey(1), grey(2), grey(3)], label=pa.array([3, 3, None]))
    results = [read(Images(path, labels={"label": ["3"]})) for path in (whole, holed)]
    assert values(results[0]) == values(results[1]) == [1, 2]


def test_text_that_is_not_utf8_is_one_refused_row(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff" + CANARY.encode(), b"a"]).view(pa.string())
    path = parquet(tmp_path / "a.parquet", [grey(i) for i in range(3)], label=bad)
    records = read(Images(path, labels={"label": ["a"]}))
    assert values(records) == [0, 2]
    assert [refusal.row for refusal in records.refused] == [1]
    json.dumps(records.refused[0].value, ensure_ascii=False).encode("utf-8")


def test_users_are_numbered_as_met_over_all_batches_and_rows_without_one_are_minus_one(tmp_path: Path) -> None:
    users = ["ann", "bob", None, "", "ann", "bob ", "bob"]
    path = parquet(tmp_path / "a.parquet", [grey(i) for i in range(7)], user=users)
    assert read(Images(path, unit_column="user"), 2).units.tolist() == [0, 1, -1, -1, 0, 1, 1]  # type: ignore[union-attr]
    assert read(Images(path)).units is None


def test_a_missing_user_in_a_column_of_floats_is_no_user(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(i) for i in range(4)], user=[7.0, float("nan"), 7.0, float("nan")])
    assert read(Images(path, unit_column="user")).units.tolist() == [0, -1, 0, -1]  # type: ignore[union-attr]


# Images


def corrupt() -> dict[str, bytes | None]:
    noise = encoded(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    bomb = bytearray(grey(0))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    tiff = bytearray(encoded(np.arange(4096).reshape(64, 64).astype(np.uint8), "TIFF", compression="tiff_lzw"))
    tiff[20:400] = b"\xff" * 380
    many = bytearray(encoded(np.zeros((4, 4, 3), np.uint8), "TIFF"))
    many[many.index(b"\x15\x01") + 8] = 94
    return {
        "damaged tiff": bytes(tiff),
        "tiff of 94 samples a pixel": bytes(many),
        "nothing": None,
        "zero bytes": b"",
        "text": CANARY.encode(),
        "truncated png": noise[: len(noise) // 2],
        "truncated jpeg": encoded(np.zeros((32, 32, 3), np.uint8), "JPEG")[:200],
        "only a header": noise[:20],
        "bad checksum": noise[:60] + b"\0" * 20 + noise[80:],
        "bomb": bytes(bomb),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "32 bits": encoded(np.full((4, 4), 1e9, np.float32), "TIFF"),
        "gif without a frame": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    }


@pytest.mark.parametrize("kind", corrupt())
def test_what_is_no_image_is_one_refusal_and_never_a_crash(kind: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(7), corrupt()[kind], grey(9)])
    records = read(Images(path, mode="L"))
    assert values(records) == [7, 9]
    own = {
        "nothing": "no image",
        "zero bytes": "no bytes",
        "postscript": "a format that is not read (PostScript)",
        "32 bits": "32-bit pixels, whose range is unknown",
        "tiff of 94 samples a pixel": "a TIFF whose kind of pixels is not read",
    }
    assert [(refusal.row, refusal.column, refusal.rule) for refusal in records.refused] == [
        (1, "image", own.get(kind, "not a readable image"))
    ]


def test_a_bad_row_warns_logs_and_prints_nothing(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [*corrupt().values(), grey(1)])
    script = f"from dpsyn.data.images import Images; list(Images({path!r}).batches(2))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_images_of_every_lossless_format_are_read_exactly(form: str, tmp_path: Path) -> None:
    pixels = np.repeat(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[:, :, :1] * 5, 3, axis=2)
    path = parquet(tmp_path / "a.parquet", [encoded(pixels, form, **({"lossless": True} if form == "WEBP" else {}))])
    assert np.array_equal(read(Images(path)).samples.content[0], pixels)


def test_grey_colour_palette_transparent_and_16_bit_images_are_converted_to_the_mode(tmp_path: Path) -> None:
    palette = Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).quantize(4)
    clear = np.zeros((4, 4, 4), np.uint8)
    images = {
        "palette": (encoded(palette), (255, 0, 0), 76),
        "transparent black": (encoded(clear), (255, 255, 255), 255),
        "grey": (grey(99), (99, 99, 99), 99),
        "16 bits": (encoded(np.full((4, 4), 0x80FF, np.uint16)), (128, 128, 128), 128),
        "16 bits, brightest": (encoded(np.full((4, 4), 65535, np.uint16)), (255, 255, 255), 255),
        "1 bit": (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255), 255),
    }
    for number, (content, colour, light) in enumerate(images.values()):
        path = parquet(tmp_path / f"{number}.parquet", [content])
        for mode, pixel in (("RGB", colour), ("L", (light,))):
            image = read(Images(path, mode=mode)).samples.content[0]
            assert image.shape == (4, 4, len(pixel)) and image.dtype == np.uint8
            assert tuple(image[0, 0]) == pixel, (number, mode)


def test_images_of_several_sizes_need_a_size_under_either_on_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1), grey(2, 5, 4)])
    for on_error in ("refuse", "skip"):
        with pytest.raises(UserError) as caught:
            read(Images(path, on_error=on_error))
        line = "data.size=null: expected [height, width], since the images are of several sizes."
        assert str(caught.value) == line
    assert read(Images(path, size=[3, 6])).samples.content.shape == (2, 3, 6, 3)


def test_a_center_crop_keeps_the_middle_and_squeezes_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    path = parquet(tmp_path / "a.parquet", [encoded(pixels)])
    whole = read(Images(path, mode="L", size=[10, 10])).samples.content[0]
    middle = read(Images(path, mode="L", size=[10, 10], center_crop=True)).samples.content[0]
    assert whole.min() == 0
    assert (middle == 200).all()


@pytest.mark.parametrize("shape", [(7, 13), (13, 7), (1, 50), (50, 1), (3, 3)])
@pytest.mark.parametrize("size", [(5, 3), (3, 5), (1, 1), (9, 7)])
def test_a_center_crop_works_for_every_shape(shape: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(5, *shape)])
    records = read(Images(path, mode="L", size=list(size), center_crop=True))
    assert records.samples.content.shape == (1, *size, 1)
    assert (records.samples.content == 5).all()


def test_a_row_is_read_alike_alone_among_others_and_in_any_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = [encoded(rng.integers(0, 256, (9, 7 + i, 3), np.uint8)) for i in range(9)]
    together = parquet(tmp_path / "all.parquet", [*images, b"bad"])
    want = read(Images(together, size=[6, 6])).samples.content
    assert np.array_equal(read(Images(together, size=[6, 6]), 2).samples.content, want)
    for row, image in enumerate(images):
        alone = parquet(tmp_path / "one.parquet", [image])
        assert np.array_equal(read(Images(alone, size=[6, 6])).samples.content[0], want[row])


# Batches


def test_batches_are_full_but_for_the_last_however_many_rows_are_refused(tmp_path: Path) -> None:
    rows = [grey(i) if i % 3 else b"bad" for i in range(600)]
    batches = list(Images(parquet(tmp_path / "a.parquet", rows), mode="L").batches(64))
    assert [len(batch.samples) for batch in batches] == [64] * 6 + [16]
    assert [r.row for batch in batches for r in batch.refused] == list(range(0, 600, 3))


def test_rows_refused_after_the_last_good_one_still_arrive(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1), grey(2), b"bad"], user=["a", "b", "c"])
    batches = list(Images(path, unit_column="user").batches(2))
    assert [len(batch.samples) for batch in batches] == [2, 0]
    assert batches[1].samples.content.shape == (0, 4, 4, 3)
    assert batches[1].units is not None and batches[1].units.dtype == np.int64
    assert [refusal.row for refusal in batches[1].refused] == [2]
    only = list(Images(parquet(tmp_path / "b.parquet", [b"bad"]), mode="L").batches(2))
    assert [(len(batch.samples), len(batch.refused)) for batch in only] == [(0, 1)]
    assert list(Images(parquet(tmp_path / "c.parquet", []), mode="L").batches(2)) == []


def test_a_yielded_batch_is_not_changed_by_reading_on(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1), b"bad", grey(2), grey(3)])
    reading = Images(path).batches(2)
    first = next(reading)
    list(reading)
    assert values(first) == [1, 2] and len(first.refused) == 1


def test_only_the_columns_that_are_named_are_read(tmp_path: Path) -> None:
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    path = parquet(tmp_path / "a.parquet", [grey(3)], diary=broken)
    assert values(read(Images(path))) == [3]


def test_memory_is_bounded_by_pages_and_not_by_the_row_group(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    rows = [grey(1) + noise for _ in range(5000)]  # 100 MB in one row group; Arrow's pages are 1024 rows, 20 MB
    table = pa.table({"image": rows})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10_000, compression="none", use_dictionary=False)
    script = f"""
import pyarrow
from dpsyn.data.images import Images
print(sum(len(batch.samples) for batch in Images({str(tmp_path / "a.parquet")!r}).batches(256)))
print(pyarrow.default_memory_pool().max_memory())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    rows_read, most = map(int, done.stdout.split())
    assert rows_read == 5000
    assert most < 70e6


# Folders and places


def test_a_folder_a_class_gives_the_declared_labels_and_refuses_other_folders(tmp_path: Path) -> None:
    path = folder(tmp_path, cat__1=grey(1), dog__2=grey(2), fox__3=grey(3), deep__dog__4=grey(4), top=grey(5))
    data = Images(path, labels={"animal": ["cat", "dog"]}, label_columns={"animal": "label"})
    data.check()
    records = read(data)
    assert dict(zip(values(records), records.labels.tolist(), strict=True)) == {1: 0, 2: 1, 4: 1}
    assert [(refusal.column, refusal.value) for refusal in records.refused] == [("label", "fox"), ("label", "")]


def test_a_folder_without_labels_is_read_nested_and_stray_or_hidden_files_are_left_out(tmp_path: Path) -> None:
    files = {"a.png": grey(1), "b/c/d.PNG": grey(2), "note.txt": b"x", "b/.hidden.png": grey(9), ".git/e.png": grey(9)}
    files |= {"metadata.csv": b"file_name,label\na.png,CANARY\n", "archive.zip": b"PK", "b/bad.png": b"no image"}
    records = read(Images(tree(tmp_path, files)))
    assert sorted(values(records)) == [1, 2]
    assert [(refusal.column, refusal.file) for refusal in records.refused] == [("image", "b/bad.png")]


@pytest.mark.parametrize(
    "name", ["train_1.png", "test/1.png", "a[1].png", "x*.png", "z::w.png", "s p%20é.png", "deep/er/1.png"]
)
def test_no_name_of_a_file_changes_how_the_others_are_read(name: str, tmp_path: Path) -> None:
    path = tree(tmp_path, {"cat/1.png": grey(1), "dog/2.png": grey(2), "dog/x1.png": grey(3), name: grey(4)})
    assert sorted(values(read(Images(path)))) == [1, 2, 3, 4]


def test_an_image_file_that_links_to_nothing_or_is_a_pipe_stops_nobody(tmp_path: Path) -> None:
    path = tree(tmp_path, {"a.png": grey(1)})
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert values(read(Images(path))) == [1]


def test_files_patterns_and_folders_of_parquet_are_read_whole(tmp_path: Path) -> None:
    parquet(tmp_path / "1.parquet", [grey(1)])
    parquet(tmp_path / "2.parquet", [grey(2)])
    (tmp_path / "README.md").write_text("x")
    for path in (tmp_path, f"{tmp_path}/*.parquet"):
        assert values(read(Images(str(path)))) == [1, 2]
    assert values(read(Images(folder(tmp_path / "odd[1]", a=grey(3))))) == [3]
    assert values(read(Images(f"{tmp_path}/odd?1?/*.png"))) == [3]


def test_a_path_that_a_row_names_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(grey(1))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": None, "path": "https://example.com/x.png"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "a.parquet")
    refused = read(Images(str(tmp_path / "a.parquet"))).refused
    assert {(refusal.column, refusal.rule) for refusal in refused} == {("image", "no bytes, only a path")}
    assert [refusal.value for refusal in refused] == [row["path"] for row in rows]


def test_a_column_of_plain_bytes_is_read_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"scan": [grey(3), b"bad"]}), tmp_path / "a.parquet")
    records = read(Images(str(tmp_path / "a.parquet"), image_column="scan"))
    assert values(records) == [3] and records.refused[0].column == "scan"


# Fingerprints


def test_a_fingerprint_follows_content_and_names_and_not_the_place(tmp_path: Path) -> None:
    def of(root: str, **files: bytes) -> str:
        return Images(folder(tmp_path / root, **files)).fingerprint()

    first = of("one", a=grey(1), b__c=grey(2))
    assert first == of("two", a=grey(1), b__c=grey(2))
    others = [of("three", a=grey(1), b__c=grey(3)), of("four", a=grey(1), c__c=grey(2)), of("five", a=grey(1))]
    assert len({first, *others}) == 4
    (tmp_path / "two" / "note.txt").write_text("not read, not counted")
    assert Images(str(tmp_path / "two")).fingerprint() == first


def test_moving_a_byte_between_two_files_changes_the_fingerprint(tmp_path: Path) -> None:
    one = tree(tmp_path / "1", {"a.png": b"ab", "b.png": b"c"})
    two = tree(tmp_path / "2", {"a.png": b"a", "b.png": b"bc"})
    assert Images(one).fingerprint() != Images(two).fingerprint()


def test_a_file_that_cannot_be_opened_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    data = Images(tree(tmp_path, {f"{CANARY}.png": grey(1)}))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="expected files that can be read") as caught:
        data.fingerprint()
    assert caught.value.__context__ is None and CANARY not in str(caught.value)


# Messages


def everything_said(error: BaseException) -> str:
    return (
        "".join(traceback.format_exception(error)) + repr(error.__cause__) + repr(error.__context__) + str(error.args)
    )


def test_a_damaged_file_is_one_line_that_quotes_nothing(tmp_path: Path) -> None:
    labels = [CANARY + str(i) for i in range(300)]
    path = Path(parquet(tmp_path / "a.parquet", [grey(i) for i in range(300)], label=labels))
    content = bytearray(path.read_bytes())
    content[40:3000] = (CANARY.encode() * 300)[:2960]
    path.write_bytes(content)
    data = Images(str(path), labels={"label": ["a"]})
    data.check()
    with pytest.raises(UserError, match=r"^data\.path=[^\n]*: expected [^\n]*$") as caught:
        list(data.batches(10))
    assert CANARY not in everything_said(caught.value)


def test_an_exception_of_a_library_is_neither_quoted_nor_chained() -> None:
    def rows() -> Iterator[Row]:
        yield {"image": grey(1)}
        raise ValueError(f"could not convert string {CANARY} to int")

    reading = guarded(rows(), "x")
    next(reading)
    with pytest.raises(UserError) as caught:
        next(reading)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert CANARY not in str(caught.value) + repr(caught.value.args)


def test_values_of_refused_rows_are_in_their_refusal_alone_and_are_cut(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1)], label=[CANARY + "x" * 10_000])
    (refusal,) = read(Images(path, labels={"label": ["a"]})).refused
    assert refusal.value.startswith(CANARY) and len(refusal.value) == 200
    assert CANARY not in refusal.rule + refusal.column


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("builder", {"builder": "csv"}),
        ("split", {"split": "train[:10%]"}),
        ("labels.digit", {"labels": {"digit": []}}),
        ("labels.digit", {"labels": {"digit": "0123"}}),
        ("labels.digit", {"labels": {"digit": ["0", 0]}}),
        ("labels.smile", {"labels": {"smile": [True, False]}}),
        ("labels.digit", {"labels": {"digit": [None]}}),
        ("labels", {"labels": ["0", "1"]}),
        ("label_columns", {"label_columns": {"digit": "label"}}),
        ("size", {"size": [28]}),
        ("size", {"size": 28}),
        ("size", {"size": [0, 28]}),
        ("center_crop", {"center_crop": True}),
        ("mode", {"mode": "CMYK"}),
        ("records", {"records": "many"}),
        ("id", {"id": 7}),
        ("on_error", {"on_error": "ignore"}),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_read(key: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^data\.{key}=[^\n]*: expected [^\n]*$"):
        Images("x", **wrong)


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("path", {"path": None}),
        ("path", {"path": ""}),
        ("path", {"path": "./nowhere"}),
        ("path", {"path": "/nowhere/at/all"}),
        ("path", {"path": "nowhere.parquet"}),
        ("path", {"path": "a/b/c"}),
        ("path", {"path": "photos/mine", "builder": "imagefolder"}),
        ("path", {"path": "nowhere/*.parquet"}),
        ("split", {"split": "test"}),
        ("subset", {"subset": "plain"}),
        ("image_column", {"image_column": "img"}),
        ("image_column", {"image_column": "label"}),
        ("label_columns.digit", {"labels": {"digit": ["0"]}}),
        ("unit_column", {"unit_column": "user"}),
    ],
)
def test_check_finds_missing_files_and_columns_without_reading_a_row(
    key: str, wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1)], label=["0"])
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    Images(path).check()
    with pytest.raises(UserError, match=rf"^data\.{key}=[^\n]*: expected [^\n]*$"):
        Images(**{"path": path, **wrong}).check()


def test_a_missing_column_is_answered_with_the_columns_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1)], label=["0"])
    with pytest.raises(UserError, match=r"^data\.image_column=img: expected one of the columns \(image, label\)\.$"):
        Images(path, image_column="img").check()


def test_files_that_are_not_what_they_are_called_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text(CANARY)
    with pytest.raises(UserError, match="expected parquet files that can be read") as caught:
        Images(str(tmp_path / "a.parquet")).check()
    assert CANARY not in everything_said(caught.value)
    with pytest.raises(UserError, match="expected images in it"):
        Images(tree(tmp_path / "empty", {"note.txt": b"x"})).check()


# No trace elsewhere


def test_reading_local_files_calls_nobody_and_leaves_no_file_behind(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [grey(1), b"bad"], label=["0", "0"])
    root = folder(tmp_path / "images", a=grey(1))
    script = f"""
import socket, sys
def refuse(*args, **kwargs): print("CALLED", args); raise OSError
socket.socket.connect = socket.getaddrinfo = refuse
from dpsyn.data.images import Images
for data in (Images({path!r}, labels={{"label": ["0"]}}), Images({root!r})):
    data.check(); data.fingerprint(); list(data.batches(10))
"""
    home = tmp_path / "home"
    names = ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR")
    places = {name: str(home / name) for name in names}
    (home / "TMPDIR").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **places})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [str(file) for file in home.rglob("*") if file.is_file()] == []


def test_the_hubs_reader_is_quiet_counts_nobody_and_caches_nothing(tmp_path: Path) -> None:
    """The network is not here: a local data set goes through the same calls of `datasets`."""
    pytest.importorskip("datasets")
    images = [grey(1), b"bad", grey(3), None]
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", images, names=["a", "b"], label=[1, 0, 77, 1])
    script = f"""
import socket
def refuse(*args, **kwargs): print("CALLED", args); raise OSError
socket.socket.connect = socket.getaddrinfo = refuse
from dpsyn.data.images import Images
from dpsyn.data.images.files import pixels_of
data = Images({str(tmp_path / "set")!r}, labels={{"x": ["b"]}}, label_columns={{"x": "label"}})
from dpsyn.data.images import IMAGE
rows = list(data._hub_rows(None))
assert [row["label"] for row in rows] == ["b", "a", None, "b"], rows
read = [pixels_of(row[IMAGE], "L", None, False, None) for row in rows]
assert [isinstance(found, str) for found in read] == [False, True, False, True]
import huggingface_hub
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
"""
    home = tmp_path / "home"
    names = ("HOME", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "TMPDIR")
    places = {name: str(home / name) for name in names}
    (home / "TMPDIR").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **places})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [str(file) for file in home.rglob("*") if file.is_file()] == []


def test_a_hub_that_cannot_be_reached_is_one_line_and_check_does_not_ask_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(CANARY)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = Images("nobody-at-all/nothing")
    data.check()
    for ask in (data.fingerprint, lambda: next(data.batches(1))):
        with pytest.raises(UserError, match=r"^data\.path=nobody-at-all/nothing: expected [^\n]*$") as caught:
            ask()
        assert CANARY not in everything_said(caught.value)


def test_the_only_column_of_images_is_found_and_two_are_asked_about(tmp_path: Path) -> None:
    pictures = pa.array([{"bytes": grey(1), "path": None}])
    pq.write_table(pa.table({"img": pictures, "id": pa.array([b"x"])}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"front": pictures, "back": pictures}), tmp_path / "two.parquet")
    assert read(Images(str(tmp_path / "one.parquet"))).samples.content.shape == (1, 4, 4, 3)
    with pytest.raises(UserError, match=r"^data.image_column=null: .*\(front, back\)"):
        Images(str(tmp_path / "two.parquet")).check()


def test_another_split_of_local_files_stands_beside_train(tmp_path: Path) -> None:
    train = parquet(tmp_path / "train-0.parquet", [grey(1), grey(2)])
    parquet(tmp_path / "test-0.parquet", [grey(3)])
    held_out = Images(train, split="test", mode="L")
    held_out.check()
    assert len(read(held_out).samples) == 1
    assert held_out.fingerprint() != Images(train).fingerprint()
    with pytest.raises(UserError, match=r"^data.path=.*valid-0.parquet: expected an existing file"):
        Images(train, split="valid").check()


# Configs


@pytest.mark.parametrize("name", ["digits", "images", "mnist", "image_folder"])
def test_a_config_lists_every_argument_and_builds(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    part: Any = {"Digits": Digits, "Images": Images}[config.pop("_target_").rsplit(".", 1)[1]]
    assert list(config) == [item.name for item in fields(part)]
    data: Data = part(**config)
    assert data.labels


def test_the_mnist_config_reads_a_local_file_in_its_place(tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / "mnist.yaml").read_text())
    config.pop("_target_")
    names = [str(digit) for digit in range(10)]
    path = parquet(tmp_path / "a.parquet", [grey(1), grey(2)], names=names, label=[7, 0])
    data = Images(**{**config, "path": path})
    data.check()
    records = read(data)
    assert records.labels.tolist() == [7, 0] and records.samples.content.shape == (2, 4, 4, 1)


def test_the_image_folder_config_asks_for_a_folder() -> None:
    config = yaml.safe_load((CONFIGS / "image_folder.yaml").read_text())
    config.pop("_target_")
    with pytest.raises(UserError, match=r"^data\.path=null: expected a folder of images\.$"):
        Images(**config).check()
