"""What an image file says of itself is obeyed, and what is not read is told apart."""

import io
import os
import struct
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpsyn.data import Records
from dpsyn.data.images import Images
from dpsyn.data.images import files as image_files
from dpsyn.data.images.files import pixels_of
from dpsyn.errors import UserError

CORNER = np.zeros((6, 8), np.uint8)
CORNER[:3, :2] = 255  # bright at the top left


def saved(image: Any, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, form, **options)
    return sink.getvalue()


def read(content: bytes | Path, mode: str = "L", bits: int | None = None) -> np.ndarray:
    found = pixels_of(content, mode, None, False, bits)
    assert isinstance(found, np.ndarray), found
    return found


def rule(content: bytes | None, bits: int | None = None) -> str:
    found = pixels_of(content, "L", None, False, bits)
    assert isinstance(found, str)
    return found


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """After the head of a PNG, which is 33 bytes."""
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:33] + chunk + png[33:]


def tiff(pixels: bytes, width: int, height: int, order: str = "<", **tags: Any) -> bytes:
    """Little or big endian, one strip, one sample a pixel where `tags` say nothing else."""
    names = {"bits": 258, "photometric": 262, "samples": 277, "largest": 281, "form": 339, "orientation": 274}
    found = {256: [width], 257: [height], 258: [16], 259: [1], 262: [1], 273: [8], 277: [1], 278: [height]}
    found |= {279: [len(pixels)]} | {names[name]: value for name, value in tags.items()}
    body, entries = pixels + b"\0" * (len(pixels) % 2), b""
    for tag, values in sorted(found.items()):
        form, size = ("I", 4) if max(values) > 65535 or tag in (273, 279) else ("H", 2)
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > 4:
            packed, body = struct.pack(order + "I", 8 + len(body)), body + packed
        entries += struct.pack(order + "HHI", tag, 4 if size == 4 else 3, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(found)) + entries + bytes(4)
    return head + struct.pack(order + "I", 8 + len(body)) + body + directory


# Orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    found = read(saved(CORNER, form, exif=exif, **lossless))[:, :, 0]
    turned = {
        1: CORNER,
        2: np.fliplr(CORNER),
        3: np.rot90(CORNER, 2),
        4: np.flipud(CORNER),
        5: CORNER.T,
        6: np.rot90(CORNER, 3),
        7: np.rot90(CORNER, 2).T,
        8: np.rot90(CORNER),
    }[orientation]
    assert found.shape == turned.shape
    assert np.abs(found.astype(int) - turned).mean() < 12  # JPEG's rings


def test_16_bit_palette_and_1_bit_images_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (
        Image.fromarray(CORNER.astype(np.uint16) * 257),
        Image.fromarray(CORNER).convert("1"),
        Image.fromarray(CORNER).convert("P"),
        Image.merge("LA", [Image.fromarray(CORNER), Image.new("L", (8, 6), 255)]),
    ):
        assert np.array_equal(read(saved(image, "PNG", exif=exif))[:, :, 0], np.rot90(CORNER, 3)), image.mode


def test_damaged_exif_turns_nothing_and_the_image_is_read() -> None:
    assert np.array_equal(read(saved(CORNER, "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"))[:, :, 0], CORNER)


# Depth


VALUES = np.array([[0, 1000, 2048, 4095]], np.uint16)
OF_12 = [0, 62, 128, 255]  # 255 / 4095 of them, rounded
OF_16 = [0, 4, 8, 16]


def pgm(values: np.ndarray, largest: int, plain: bool = False) -> bytes:
    head = f"P{2 if plain else 5}\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    return head + (" ".join(map(str, values.ravel())).encode() if plain else values.astype(">u2").tobytes())


def packed_12(values: np.ndarray) -> bytes:
    bits = "".join(f"{value:012b}" for value in values.ravel())
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_greys_of_12_bits_are_scaled_by_what_their_file_says() -> None:
    for content in (
        with_chunk(saved(VALUES, "PNG"), b"sBIT", b"\x0c"),
        with_chunk(saved(VALUES << 4, "PNG"), b"sBIT", b"\x0c"),  # as the format has it
        pgm(VALUES, 4095),
        pgm(VALUES, 4095, plain=True),
        tiff(packed_12(VALUES), 4, 1, bits=[12]),
        tiff(VALUES.tobytes(), 4, 1, largest=[4095]),
        tiff(VALUES.astype(">u2").tobytes(), 4, 1, ">", largest=[4095]),
    ):
        assert np.abs(read(content)[0, :, 0].astype(int) - OF_12).max() <= 1  # one, where 4095 << 4 is not 65535
        assert read(content, "RGB").shape == (1, 4, 3)


def test_greys_of_16_bits_are_scaled_by_16_bits_in_every_format() -> None:
    values = np.array([[0, 257, 0x80FF, 65535]], np.uint16)
    for content in (
        saved(values, "PNG"),
        saved(values, "TIFF"),
        saved(values, "TIFF", compression="tiff_lzw"),
        tiff(values.astype(">u2").tobytes(), 4, 1, ">"),
        pgm(values, 65535),
        pgm(values, 65535, plain=True),
    ):
        assert read(content)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_camera_of_fewer_bits_in_a_file_of_16_is_not_read_dark_in_silence(bits: int) -> None:
    values = np.array([[0, 2**bits // 2, 2**bits - 1]], np.uint16)
    for content in (saved(values, "PNG"), saved(values, "TIFF"), pgm(values, 65535)):
        assert rule(content) == "16-bit pixels of 14 bits or fewer, whose range data.bits must state"
        assert read(content, bits=bits)[0, :, 0].tolist() == [0, 128, 255]
        assert read(content, bits=16)[0, :, 0].tolist() == [round(int(value) / 257) for value in values[0]]
        assert rule(content, bits=9) == "16-bit pixels above the range that data.bits or the file states"


def test_a_black_image_of_16_bits_is_black_whatever_its_range() -> None:
    assert not read(saved(np.zeros((2, 2), np.uint16), "PNG")).any()


def test_a_range_that_the_file_states_is_its_range_however_dark_it_is() -> None:
    for content in (
        with_chunk(saved(VALUES, "PNG"), b"sBIT", b"\x10"),
        tiff(VALUES.tobytes(), 4, 1, largest=[65535]),
    ):
        assert read(content)[0, :, 0].tolist() == OF_16


def test_the_brightest_value_of_one_tiff_is_not_taken_for_its_range() -> None:
    assert rule(tiff(VALUES.tobytes(), 4, 1, largest=[4000])).startswith("16-bit pixels of 14 bits or fewer")


def test_bits_are_of_deep_greys_alone() -> None:
    assert np.array_equal(read(saved(CORNER, "PNG"), bits=12)[:, :, 0], CORNER)


def test_colours_of_16_bits_are_read_where_they_fill_them_and_refused_where_their_range_is_unknown() -> None:
    full = np.array([[[65535, 32768, 0], [0, 0, 257]]], np.uint16)
    for content in (
        tiff(full.tobytes(), 2, 1, bits=[16] * 3, samples=[3], photometric=[2]),
        b"P6\n2 1\n65535\n" + full.astype(">u2").tobytes(),
        png_16(full),
    ):
        assert np.abs(read(content, "RGB")[0].astype(int) - [[255, 128, 0], [0, 0, 1]]).max() <= 1
    dark = full >> 4
    for content in (tiff(dark.tobytes(), 2, 1, bits=[16] * 3, samples=[3], photometric=[2]), png_16(dark)):
        assert "16-bit colours" in rule(content) and "16-bit colours" in rule(content, bits=12)
        assert read(content, "RGB", bits=16).max() == 15
    stated = b"P6\n2 1\n4095\n" + dark.astype(">u2").tobytes()
    assert read(stated, "RGB").max() == read(stated, "RGB", bits=12).max() == 255


def png_16(pixels: np.ndarray) -> bytes:
    """RGB; Pillow writes none."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    height, width = pixels.shape[:2]
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))
    whole = b"\x89PNG\r\n\x1a\n"
    for name, content in (*chunks, (b"IEND", b"")):
        whole += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return whole


# Kinds of pixels


def test_white_is_zero_is_obeyed_at_every_depth() -> None:
    eight = bytes([0, 128, 255])
    assert read(tiff(eight, 3, 1, bits=[8], photometric=[0]))[0, :, 0].tolist() == [255, 127, 0]
    assert read(tiff(eight, 3, 1, bits=[8], photometric=[1]))[0, :, 0].tolist() == [0, 128, 255]
    deep = np.array([0, 32768, 65535], np.uint16)
    assert read(tiff(deep.tobytes(), 3, 1, photometric=[0]))[0, :, 0].tolist() == [255, 127, 0]
    assert read(tiff(b"\xa0", 3, 1, bits=[1], photometric=[0]))[0, :, 0].tolist() == [0, 255, 0]
    assert read(tiff(b"\xa0", 3, 1, bits=[1], photometric=[1]))[0, :, 0].tolist() == [255, 0, 255]


def test_inks_palettes_transparency_and_animations_are_read_as_they_look() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    clear = Image.new("P", (4, 4), 0)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    blue = Image.new("RGB", (4, 4), (0, 0, 255))
    half = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)])
    for content, want in {
        saved(red.convert("CMYK"), "JPEG", quality=100): (255, 0, 0),
        saved(red.convert("CMYK"), "TIFF"): (255, 0, 0),
        saved(red.convert("YCbCr"), "TIFF"): (255, 0, 0),
        saved(red, "TIFF", compression="jpeg", quality=100): (255, 0, 0),
        saved(clear, "PNG", transparency=0): (255, 255, 255),
        saved(clear, "GIF", transparency=0): (255, 255, 255),
        saved(half, "PNG"): (255, 255, 255),
        saved(red, "GIF", save_all=True, append_images=[blue]): (255, 0, 0),
        saved(red, "WEBP", save_all=True, append_images=[blue], lossless=True): (255, 0, 0),
        saved(red, "PNG", save_all=True, append_images=[blue]): (255, 0, 0),
        saved(Image.new("1", (4, 4), 1), "TIFF", compression="group4"): (255, 255, 255),
    }.items():
        assert np.abs(read(content, "RGB")[1, 1].astype(int) - want).max() <= 3, (content[:20], want)


def test_what_is_sound_but_not_read_has_a_rule_of_its_own() -> None:
    floats, ints = np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)
    assert rule(saved(floats, "TIFF")) == rule(saved(ints, "TIFF")) == "32-bit pixels, whose range is unknown"
    assert rule(b"Pf\n2 2\n-1.0\n" + floats.tobytes()) == "32-bit pixels, whose range is unknown"
    signed = tiff(np.array([-5, 5], np.int16).tobytes(), 2, 1, form=[2])
    assert rule(signed) == "signed pixels, whose range is unknown"
    assert rule(saved(Image.new("1", (11000, 10000)), "PNG")) == "more than 100 million pixels"
    assert rule(saved(Image.new("1", (16000, 16000)), "PNG")) == "more than 100 million pixels"  # Pillow's own limit
    assert (
        rule(tiff(bytes(16), 2, 1, bits=[32] * 2, samples=[2], form=[3])) == "a TIFF whose kind of pixels is not read"
    )
    assert rule(saved(Image.new("LAB", (2, 2)), "TIFF")) == "colours that cannot be converted (LAB)"
    assert rule(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "a format that is not read (PostScript)"
    assert rule(b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "a format that is not read (SVG)"
    assert rule(bytes(128) + b"DICM" + bytes(90)) == "a format that is not read (DICOM)"
    assert rule(saved(CORNER, "JPEG2000")) == "a format that is not read (JPEG 2000)"
    deep = bytearray(saved(CORNER, "JPEG"))
    deep[deep.index(b"\xff\xc0") + 4] = 12
    assert rule(bytes(deep)) == "a JPEG of more than 8 bits"
    assert (rule(None), rule(b"")) == ("no image", "no bytes")
    assert rule(b"no image at all") == "not a readable image"


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(60)


def test_heic_without_its_package_is_one_line_before_anything_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("dpsyn.data.images.find_spec", lambda name: None if name == "pillow_heif" else find_spec(name))
    assert rule(HEIC) == "HEIC, which needs the package pillow-heif (pip install 'dpsyn[heic]')"
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"^data.path=[^\n]*: expected the package pillow-heif[^\n]*pip install"):
        Images(str(tmp_path)).check()
    Images(str(tmp_path), on_error="skip").check()


@pytest.mark.parametrize(("turned", "corner"), [(1, (5, 5)), (6, (5, -5)), (3, (-5, -5))])
def test_heic_is_read_upright_with_its_package(turned: int, corner: tuple[int, int]) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 0, 0), (0, 0, 32, 16))
    marks = Image.Exif()
    marks[0x0112] = turned
    found = read(saved(picture, "HEIF", quality=95, exif=marks.tobytes()), "RGB")
    assert found.shape == ((64, 32, 3) if turned == 6 else (32, 64, 3))
    assert np.abs(found[corner] - (255, 0, 0)).max() < 6 and found.mean() < 80


def test_reading_any_of_them_starts_no_process_and_says_nothing(tmp_path: Path) -> None:
    names = {"eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "heic": HEIC, "tif": b"II*\0\xff\xff\xff\xff"}
    for name, content in names.items():
        (tmp_path / f"a.{name}").write_bytes(content)
    script = f"""
import sys
def told(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"): print(event)
sys.addaudithook(told)
from pathlib import Path
from dpsyn.data.images.files import pixels_of
for file in Path({str(tmp_path)!r}).iterdir():
    assert isinstance(pixels_of(file, "L", None, False, None), str)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Folders


def picture(value: int) -> bytes:
    return saved(np.full((4, 4), value, np.uint8), "PNG")


def all_of(data: Images) -> tuple[list[int], list[Records]]:
    found = list(data.batches(2))
    return sorted(int(image[0, 0, 0]) for batch in found for image in batch.samples.content), found


def test_what_is_passed_over_in_a_folder_is_counted_once_and_kept_private(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "b.png", "cat/c.JFIF", "d.apng"):
        (tmp_path / name).write_bytes(picture(7))
    for name in ("a.txt", "cat/b.TXT", "raw.cr2", "LICENSE", ".hidden.png", ".git/x.png"):
        (tmp_path / name).write_bytes(b"")
    values, found = all_of(Images(str(tmp_path)))
    assert values == [7] * 4
    assert [dict(batch.remarks) for batch in found] == [
        {
            "files passed over (.txt)": 2,
            "files passed over (.cr2)": 1,
            "files passed over (no suffix)": 1,
            "files passed over (hidden)": 1,
            "folders passed over (hidden)": 1,
        },
        {},
    ]


def test_linked_folders_are_read_once_without_loops_and_under_their_own_name_first(tmp_path: Path) -> None:
    data, aside = tmp_path / "data", tmp_path / "aside"
    for folder in (data / "cat", aside / "dog", aside / "more"):
        folder.mkdir(parents=True)
    (data / "cat" / "1.png").write_bytes(picture(1))
    (aside / "dog" / "2.png").write_bytes(picture(2))
    (aside / "more" / "3.png").write_bytes(picture(3))
    (data / "a").symlink_to(data / "cat")  # another name for it
    (data / "dog").symlink_to(aside / "dog")
    (data / "z").symlink_to(aside / "dog")
    (data / "dog" / "more").symlink_to(aside / "more")
    (data / "dog" / "back").symlink_to(data)
    (data / "up").symlink_to(tmp_path)
    labels = {"animal": ["cat", "dog", "more"]}
    for path in (data, f"{data}/**/*.png"):
        values, found = all_of(Images(str(path), labels=labels, label_columns={"animal": "label"}))
        assert values == [1, 2, 3]
        assert sorted(batch.labels.tolist() for batch in found) == [[0, 1], [2]]
        assert not any(batch.refused for batch in found)


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def shut(place: Any = ".") -> Any:
        if str(place).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", shut)
    values, found = all_of(Images(str(tmp_path)))
    assert values == [1] and dict(found[0].remarks) == {"folders passed over (they cannot be opened)": 1}


def test_a_folder_is_its_declared_label_however_its_name_is_encoded(tmp_path: Path) -> None:
    names = {"cafe\u0301": 1, "na\u00efve": 2, "7": 3}
    for name, value in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture(value))
    labels = {"word": ["caf\u00e9", "nai\u0308ve", "7.0"]}
    data = Images(str(tmp_path), labels=labels, label_columns={"word": "label"})
    found = next(data.batches(5))
    assert sorted(zip(found.samples.content[:, 0, 0, 0].tolist(), found.labels.tolist(), strict=True)) == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert data.labels[1] == {"word": "nai\u0308ve"}
    with pytest.raises(UserError, match=r"^data.labels.word=[^\n]*: expected every value once"):
        Images(str(tmp_path), labels={"word": ["7", "7.0"]})


@pytest.mark.parametrize("wrong", [0, 8, 17, 12.0, True, "12"])
def test_bits_are_a_whole_number_from_9_to_16(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^data.bits=[^\n]*: expected [^\n]*$"):
        Images("x", bits=wrong)


def test_every_rule_is_short_and_names_no_number_of_a_file() -> None:
    rules = [value for name, value in vars(image_files).items() if name.isupper() and isinstance(value, str)]
    assert len(rules) == len(set(rules)) and all(len(text) < 90 and ": " not in text for text in rules)
