"""Image files as arrays. Reading is a map of the one file, and what is not read is told apart by a rule of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Formats that Pillow decodes by itself: opening an EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
MAX_PIXELS = 100_000_000
FULL = 2**16 - 1
DIM = 2**14  # what cameras of 14 bits and fewer stay below

UNREADABLE = "not a readable image"
NO_IMAGE = "no image"
NO_BYTES = "no bytes"
ONLY_A_PATH = "no bytes, only a path"
NO_FILE = "a file that cannot be opened"
TOO_LARGE = "more than 100 million pixels"
WIDE = "32-bit pixels, whose range is unknown"
SIGNED = "signed pixels, whose range is unknown"
TOO_BRIGHT = "16-bit pixels above the range that data.bits or the file states"
TOO_DIM = "16-bit pixels of 14 bits or fewer, whose range data.bits must state"
DIM_COLOURS = "16-bit colours of 14 bits or fewer, which are read with data.bits=16 alone, as they are"
UNKNOWN_COLOURS = "colours that cannot be converted (LAB)"
UNKNOWN_TIFF = "a TIFF whose kind of pixels is not read"
DEEP_JPEG = "a JPEG of more than 8 bits"
NO_HEIF = "HEIC, which needs the package pillow-heif (pip install 'dpsyn[heic]')"
NO_AVIF = "AVIF, which this version of Pillow does not read"

HEIF = (".heic", ".heif", ".hif")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OTHER_FORMATS = {  # by their first bytes
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"SIMPLE  =": "FITS",
    b"\0\0\1\0": "icon",
    b"\x93NUMPY": "NumPy",
    b"DDS ": "DDS",
    b"qoif": "QOI",
}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
# tags of a TIFF
BITS, PHOTOMETRIC, LARGEST, SAMPLE_FORMAT = 258, 262, 281, 339
ORIENTATION = 274  # of EXIF
LOG, SILENT = logging.getLogger("PIL"), logging.CRITICAL + 1


class _Refused(Exception):
    """Its text is the rule."""


def pixels_of(
    source: bytes | Path | None, mode: str, size: Sequence[int] | None, center_crop: bool, bits: int | None
) -> np.ndarray | str:
    """uint8 [h, w, 1 (mode L) or 3 (RGB)], upright, or the rule by which it is not read, whatever Pillow raises.

    source: bytes of a file, a file, or None for no image.
    mode: 'L' for grey, 'RGB' for colour.
    size: [height, width] px to resize to.
    center_crop: whether the middle square is taken before it is resized.
    bits: of the values of greys of more than 8 bits, whatever their file says; None: as it says, and where it says 16,
        the width of its container, but nothing is as bright as 14 bits: no one can tell a night from a camera of 12
        bits, so that one is not read.
    """
    if source is None or source == b"":
        return NO_IMAGE if source is None else NO_BYTES
    if LOG.level != SILENT:  # setting it empties the caches of all loggers
        LOG.setLevel(SILENT)
    try:
        stream: BinaryIO = source.open("rb") if isinstance(source, Path) else BytesIO(source)
    except OSError:
        return NO_FILE
    from PIL import Image, UnidentifiedImageError

    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, like its log, quote sizes and tags of the image
        try:
            head = _head(stream)
            with Image.open(stream, formats=_formats(head)) as image:
                return _fitted(_pixels(image, stream, mode, bits), size, center_crop)
        except _Refused as error:
            return str(error)
        except Image.DecompressionBombError:
            return TOO_LARGE
        except UnidentifiedImageError:
            with contextlib.suppress(Exception):
                return _unidentified(head, stream)
            return UNREADABLE
        except Exception:
            return UNREADABLE


def is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and b"avif" not in head[8:40]


def _head(stream: BinaryIO) -> bytes:
    head = stream.read(256)
    stream.seek(0)
    if not head:
        raise _Refused(NO_BYTES)
    return head


def _formats(head: bytes) -> tuple[str, ...]:
    if not is_heif(head):
        return FORMATS
    try:
        import pillow_heif
    except ImportError:
        raise _Refused(NO_HEIF) from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _unidentified(head: bytes, stream: BinaryIO) -> str:
    """Why Pillow opens it not, as far as its first bytes tell. Names of formats, no number that the file holds."""
    if head[4:8] == b"ftyp" and b"avif" in head[8:40]:
        return NO_AVIF
    if head[128:132] == b"DICM":
        return "a format that is not read (DICOM)"
    if head.startswith(TIFF):
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        stream.seek(0)
        tags = ImageFileDirectory_v2(stream.read(16 if head[2] == 43 or head[3] == 43 else 8))
        stream.seek(tags.next)
        tags.load(stream)
        return UNKNOWN_TIFF if {256, 257, PHOTOMETRIC} <= set(tags) else UNREADABLE
    if head.startswith(b"\xff\xd8\xff"):
        return DEEP_JPEG if _jpeg_bits(stream) > 8 else UNREADABLE
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    for first, name in OTHER_FORMATS.items():
        if head.startswith(first) or (first[:1] == b"<" and text.startswith(first)):
            return f"a format that is not read ({name})"
    return UNREADABLE


def _jpeg_bits(stream: BinaryIO) -> int:
    stream.seek(2)
    while len(marker := stream.read(4)) == 4 and marker[0] == 0xFF:
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            return stream.read(1)[0]
        stream.seek(int.from_bytes(marker[2:], "big") - 2, os.SEEK_CUR)
    return 8


def _pixels(image: Any, stream: BinaryIO, mode: str, bits: int | None) -> Any:
    """An image of Pillow's in `mode`, transparent pixels on white."""
    from PIL import Image

    if image.width * image.height > MAX_PIXELS:
        raise _Refused(TOO_LARGE)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    deep, stated = _depth(image, tags, stream)
    if image.mode == "F" or (image.mode == "I" and not deep):
        raise _Refused(WIDE)
    if 2 in _several(tags.get(SAMPLE_FORMAT, 1)):
        raise _Refused(SIGNED)
    if image.tile and image.tile[0][0] == "libtiff":
        with _stderr_closed():
            image.load()
    else:
        image.load()
    _turn_upright(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey(image, stated, bits, tags.get(PHOTOMETRIC) == 0)
    elif deep:
        _check_colours(image, stated, bits)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError:
        raise _Refused(UNKNOWN_COLOURS) from None


def _depth(image: Any, tags: Any, stream: BinaryIO) -> tuple[bool, int | None]:
    """Whether samples have more than 8 bits, and the largest value that they can have if the file says it. That of a
    PGM is 16 bits wide once Pillow has read it, and so is one that says only how wide its container is."""
    if image.format == "PNG":
        place = stream.tell()
        try:
            stream.seek(24)  # in the first chunk, IHDR
            return _png_depth(stream) if stream.read(1) == b"\x10" else (False, None)
        finally:
            stream.seek(place)
    if image.format == "TIFF":
        widths = [bits for bits in _several(tags.get(BITS, 1)) if isinstance(bits, int)]
        largest = max((n for n in _several(tags.get(LARGEST, 0)) if isinstance(n, int)), default=0)
        if max(widths, default=1) in range(9, 16):
            return True, 2 ** max(widths) - 1
        whole = largest > 255 and largest & (largest + 1) == 0  # 4095, say; another is the brightest of this image
        return max(widths, default=1) == 16, largest if whole else None
    if image.format == "PPM" and image.tile:
        decoder, _, _, arguments = image.tile[0]
        largest = arguments[1] if decoder.startswith("ppm") else 0
        return image.mode == "I" or largest > 255, largest if 255 < largest < FULL else None
    return False, None


def _png_depth(stream: BinaryIO) -> tuple[bool, int | None]:
    """Of its head, and of the chunk sBIT, which tells how many of the bits are significant."""
    stream.seek(8)
    deep = False
    while len(start := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        if name == b"IHDR":
            deep = stream.read(length)[8] == 16
        elif name == b"sBIT" and deep:
            return True, 2 ** min(max(stream.read(length)[:3]), 16) - 1
        elif name == b"IDAT" or not deep:
            break
        else:
            stream.seek(length, os.SEEK_CUR)
        stream.seek(4, os.SEEK_CUR)
    return deep, None


def _grey(image: Any, stated: int | None, bits: int | None, white_is_zero: bool) -> Any:
    """16-bit values, scaled to 8 bits."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    brightest = int(values.max())
    if image.format == "PPM" and stated is not None:
        values = (values * 2 * stated + FULL) // (2 * FULL)  # as they stand in the file, for `bits`
        brightest = int(values.max())
    elif image.format == "PNG" and stated is not None and brightest > stated:
        stated = FULL  # as the format has it: the significant bits are the upper ones
    if bits is None and stated is None and 0 < brightest < DIM:
        raise _Refused(TOO_DIM)
    largest = 2**bits - 1 if bits is not None else stated or FULL
    if brightest > largest:
        raise _Refused(TOO_BRIGHT)
    grey = (510 * values + largest) // (2 * largest)
    if white_is_zero:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _check_colours(image: Any, stated: int | None, bits: int | None) -> None:
    """Pillow keeps the upper bytes of 16-bit colours alone (of a PPM, the upper 8 bits of what the file states)."""
    if image.format == "PPM" and stated is not None and bits in (None, stated.bit_length()):
        return
    bands = image.getbands()
    brightest = max(image.getchannel(band).getextrema()[1] for band in bands if band not in ("A", "a"))
    if bits == 16 or (bits is None and stated == FULL):
        return
    if bits is not None or 0 < brightest < DIM >> 8:
        raise _Refused(DIM_COLOURS)


def _turn_upright(image: Any) -> None:
    """As its EXIF says; damaged EXIF says nothing. (Pillow turns a TIFF itself.)"""
    try:
        if image.getexif().get(ORIENTATION, 1) != 1:
            from PIL import ImageOps

            ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        return


def _fitted(image: Any, size: Sequence[int] | None, center_crop: bool) -> np.ndarray:
    """uint8 [h, w, c]"""
    from PIL import Image

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


def _several(value: Any) -> Sequence[Any]:
    """A tag of a TIFF is one value or a tuple."""
    return value if isinstance(value, tuple) else (value,)


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
