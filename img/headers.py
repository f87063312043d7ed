"""Open image files without the metadata that could keep their pixels from being decoded."""

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none of which starts another program
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels depend on
JPEG_SCAN = re.compile(rb"(\xff\xda\x00(?:\x08\x01..|\x0a\x02.{4}|\x0c\x03.{6}|\x0e\x04.{8}))...", re.DOTALL)
BITS = {2**bits - 1: bits for bits in range(1, 17)}


class Header(NamedTuple):
    """What a file's header says about its image."""

    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # 1 to 8 as in EXIF data, of the pixels that are decoded; 1 is upright
    deep: bool  # gray or RGB of 16 bits per value
    bits: int | None  # how many of these are used, from PNG's sBIT or TIFF's MaxSampleValue


def read_header(path: Path) -> Header:
    """Read a file's header without its pixels. Raises ValueError or an error of Pillow's."""
    with path.open("rb", buffering=0) as file:
        return open_image(file, pixels=False)[1]


def open_image(file: BinaryIO, pixels: bool = True) -> tuple[Image.Image, Header]:
    """Open an image with Pillow, to be decoded. Raises ValueError or an error of Pillow's.

    pixels: False reads the header only.
    """
    start, exif, bits = file.read(8), b"", None
    if start == PNG_START:
        file, exif, bits = _strip_png(file, pixels)
    elif start.startswith(b"\xff\xd8"):
        file, exif = _strip_jpeg(file, pixels)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is damaged, or its format is none of {', '.join(FORMATS)}") from None
    if image.format == "TIFF":  # which Pillow rotates itself
        largest = image.tag_v2.get(281)  # MaxSampleValue
        bits = BITS.get(largest[0] if isinstance(largest, tuple) else largest)
    orientation = _orientation(exif or image.info.get("exif", b""))
    size = image.size if orientation in SIDEWAYS else image.size[::-1]
    deep = image.mode.startswith("I;16") or bool(re.search("'(RGB|RGBA|RGBX|LA);16", str(image.tile[:1])))
    return image, Header(size, orientation, deep, bits if deep else None)


def _orientation(exif: bytes) -> int:
    """EXIF data -> orientation, 1 if there is no valid one."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _strip_png(file: BinaryIO, pixels: bool) -> tuple[BinaryIO, bytes, int | None]:
    """Return a PNG without metadata, and of these the EXIF data and the bits per value.

    Raises ValueError if a checksum is wrong on which pixels depend.
    """
    kept, exif, bits, kind = [PNG_START], b"", None, b""
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in (*PNG_PIXELS, b"eXIf", b"sBIT") or (kind == b"IDAT" and not pixels):
            file.seek(length + 4, os.SEEK_CUR)
            kept += [head] if kind == b"IDAT" else []
            continue
        body = file.read(length + 4)  # with the checksum
        intact = zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:])
        if kind in PNG_PIXELS:
            if not intact:
                raise ValueError(f"broken PNG file: its {kind.decode()} chunk is damaged")
            kept += head, body
        elif intact and kind == b"eXIf":
            exif = body
        elif intact and length and 1 <= body[0] <= 16:
            bits = body[0]
    if pixels and kind != b"IEND":
        raise ValueError("broken PNG file: it is damaged or incomplete, as it has no IEND chunk")
    return io.BytesIO(b"".join(kept)), exif, bits


def _strip_jpeg(file: BinaryIO, pixels: bool) -> tuple[BinaryIO, bytes]:
    """Return a JPEG without metadata and bytes between its segments, and its EXIF data."""
    file.seek(2)
    kept, exif, marker = [b"\xff\xd8"], b"", 0
    while marker != 0xDA:
        byte = file.read(1)
        while byte and byte != b"\xff":
            byte = file.read(1)
        while byte == b"\xff":
            byte = file.read(1)
        if not byte:
            raise ValueError("it is damaged: its header is incomplete")
        marker = byte[0]
        if marker in (0x00, 0x01, *range(0xD0, 0xD8)):  # without content
            continue
        length = file.read(2)
        body = file.read(int.from_bytes(length) - 2)
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:
            kept += b"\xff", byte, length, body
    if pixels:
        kept.append(file.read())
    return io.BytesIO(b"".join(kept)), exif
