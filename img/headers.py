"""Open image files without the metadata that could keep their pixels from being decoded."""

import io
import logging
import os
import re
import struct
import warnings
import zlib
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none of which starts another program
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels depend on
PNG_METADATA = (b"eXIf", b"acTL", b"fcTL")  # orientation, number of frames
JPEG_SEGMENT = re.compile(rb"\xff+([^\0\1\xd0-\xd7\xff])(..)", re.DOTALL)  # marker, length
JPEG_SCAN = re.compile(rb"(\xff\xda\0(?:\x08.{3}|\x0a.{5}|\x0c.{7}|\x0e.{9})).{3}", re.DOTALL)  # 1 to 4 channels

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # they are about metadata
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Header(NamedTuple):
    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # EXIF orientation of the decoded pixels, 1 (upright) to 8
    tag: int  # the file's EXIF orientation; a TIFF's pixels are decoded upright all the same
    is_16_bit: bool  # gray with 16 bits per value


def open_image(file: BinaryIO, pixels: bool = True) -> tuple[Image.Image, Header]:
    """Open an image for its header and, if `pixels`, to decode them later. Raises ValueError or an error of Pillow."""
    file = _strip_png(file, pixels) if file.read(8) == PNG_START else file
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is damaged, or its format is none of {', '.join(FORMATS)}") from None
    if pixels and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # of an MPO, the first is used
        raise ValueError(f"it has {image.n_frames} frames; save the one to use as a file of its own")
    tag = orientation = _orientation(image.info.get("exif", b""))
    if image.format == "TIFF":
        image.info.pop("xmp", None)  # as Pillow rotates a TIFF itself
        tag = image.tag_v2.get(ExifTags.Base.Orientation)
        tag = tag if tag in range(1, 9) else 1
    size = image.size if orientation in SIDEWAYS else image.size[::-1]
    return image, Header(size, orientation, tag, image.mode.startswith("I;16"))


def _orientation(exif: bytes) -> int:
    """EXIF data -> orientation, 1 if none is valid."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags[ExifTags.Base.Orientation]
        return value if value in range(1, 9) else 1
    except Exception:  # Pillow raises many types
        return 1


def _strip_png(file: BinaryIO, pixels: bool) -> BinaryIO:
    """Return a PNG without unused metadata."""
    kept, kind = [PNG_START], b""
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in PNG_PIXELS + PNG_METADATA or (kind == b"IDAT" and not pixels):
            file.seek(length + 4, os.SEEK_CUR)
            kept += [head] * (kind == b"IDAT")
            continue
        body = file.read(length + 4)  # with its checksum
        if zlib.crc32(kind + body[:-4]) != int.from_bytes(body[-4:]):
            if kind in PNG_PIXELS:
                raise ValueError(f"its {kind.decode()} chunk is damaged")
        else:
            kept.insert(2 if kind == b"eXIf" else len(kept), head + body)  # Pillow reads it if it precedes IDAT
    if pixels and kind != b"IEND":
        raise ValueError("it is damaged or incomplete: it has no IEND chunk")
    return io.BytesIO(b"".join(kept))


def repair_jpeg(encoded: bytes) -> bytes:
    """Drop metadata, and correct what a strict decoder refuses in the headers although no pixel depends on it."""
    kept, at = [b"\xff\xd8"], 2
    while (found := JPEG_SEGMENT.search(encoded, at)) and found[1] != b"\xda":  # a scan
        at = found.start(2) + int.from_bytes(found[2])
        if found[1] < b"\xe0" or found[1] == b"\xee":  # Adobe's, which is about colors
            kept.append(b"\xff" + encoded[found.start(1) : at])
    scans = encoded[found.start() :] if found else b""
    if any(segment[1] in b"\xc0\xc1" for segment in kept):  # not progressive: each scan has all coefficients
        scans = JPEG_SCAN.sub(b"\\1\0\x3f\0", scans)
    return b"".join([*kept, scans])
