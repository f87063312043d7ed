"""Open image files without the metadata that could keep their pixels from being decoded."""

import io
import os
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none of which starts another program
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION = ExifTags.Base.Orientation
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels depend on
SCAN_HEADER = re.compile(rb"(\xff\xda\0(?:\x08\x01..|\x0a\x02.{4}|\x0c\x03.{6}|\x0e\x04.{8}))...", re.DOTALL)
BITS = {2**bits - 1: bits for bits in range(1, 16)}  # largest value -> bits
JPEG_SEGMENT = re.compile(rb"\xff+([^\0\1\xd0-\xd7\xff])(..)", re.DOTALL)  # marker, length
LIBTIFF_LOCK = threading.Lock()

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # they are about metadata
if hasattr(os, "register_at_fork"):  # a child starts with its own stderr, and with the lock released
    os.register_at_fork(before=LIBTIFF_LOCK.acquire, after_in_parent=LIBTIFF_LOCK.release,
                        after_in_child=LIBTIFF_LOCK.release)


class Header(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # EXIF orientation of the pixels as they are decoded, 1 (upright) to 8
    deep: bool  # whether it is gray or RGB of 16 bits per value
    bits: int | None  # how many of the 16 are used, if PNG's sBIT or TIFF's MaxSampleValue says so


def read_header(path: Path) -> Header:
    """Read a file's header, but not its pixels. Raises ValueError or an error of Pillow."""
    with path.open("rb", buffering=0) as file:
        return open_image(file, pixels=False)[1]


def open_image(file: BinaryIO, pixels: bool = True) -> tuple[Image.Image, Header]:
    """Open an image for `load_pixels`, or for its header only. Raises ValueError or an error of Pillow."""
    start, exif, bits, frames = file.read(8), b"", None, 1
    if start == PNG_START:
        file, exif, bits, frames = _strip_png(file, pixels)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is damaged, or its format is none of {', '.join(FORMATS)}") from None
    if image.format == "TIFF":
        bits = _tiff_bits(image)
        upright = image.getexif()
        upright.load(b"")  # the other tags may be damaged
        upright[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)  # Pillow rotates a TIFF itself
    if pixels and (frames := max(frames, _count_frames(image))) > 1:
        raise ValueError(f"it has {frames} frames; save the one to use as a file of its own")
    orientation = _orientation(exif or image.info.get("exif", b""))
    size = image.size if orientation in SIDEWAYS else image.size[::-1]
    deep = image.mode.startswith("I;16") or bool(re.search("'(RGB|RGBA|RGBX|LA);16", str(image.tile[:1])))
    return image, Header(size, orientation, deep, bits if deep else None)


def load_pixels(image: Image.Image) -> Image.Image:
    """Decode an opened image. Raises ValueError or an error of Pillow if it is damaged."""
    if image.format == "TIFF":
        with _libtiff_errors():
            image.load()
    image.load()
    return image


@contextmanager
def _libtiff_errors() -> Iterator[None]:
    """Raise what libtiff prints to stderr as a ValueError: some pixels are wrong, even if Pillow accepts them."""
    with LIBTIFF_LOCK, tempfile.TemporaryFile() as file:
        stderr, failure = os.dup(2), None
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        text = file.read().decode(errors="replace")
    printed = re.findall(r"^[\w.]+: .+\.$", text, re.MULTILINE)
    if failure or printed:
        raise ValueError(" ".join(["it is damaged:", *printed, *([str(failure)] if failure else [])]))


def _count_frames(image: Image.Image) -> int:
    if image.format != "TIFF":  # the first picture of an MPO is the one to use
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    pages, frames = Image.open(image.fp, formats=["TIFF"]), 1
    try:
        for page in count(1):
            pages.seek(page)
            frames += not pages.tag_v2.get(254, 0) & 5  # a thumbnail or a mask of transparency
    except (EOFError, TypeError):  # the last page, or the place of the next one is wrong
        return frames


def swap_bytes(tile: NamedTuple) -> NamedTuple:
    """Return a tile of a Pillow image that decodes to the other byte of its 16-bit values."""
    mode, *rest = [tile.args] if isinstance(tile.args, str) else tile.args
    return tile._replace(args=(mode[:-1] + ("L" if mode.endswith("B") else "B"), *rest))


def _tiff_bits(image: Image.Image) -> int | None:
    largest = image.tag_v2.get(281)  # MaxSampleValue
    return 12 if "I;12" in str(image.tile) else BITS.get(largest[0] if isinstance(largest, tuple) else largest)


def _orientation(exif: bytes) -> int:
    """EXIF data -> orientation, which is 1 if they don't say a valid one."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ORIENTATION)
    except Exception:  # Pillow raises many types
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _strip_png(file: BinaryIO, pixels: bool) -> tuple[BinaryIO, bytes, int | None, int]:
    """Return a PNG without metadata, its EXIF data, its used bits, and its number of frames.

    Raises ValueError if one of the chunks that pixels depend on is damaged.
    """
    kept, exif, bits, frames, kind = [PNG_START], b"", None, 1, b""
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in (*PNG_PIXELS, b"eXIf", b"sBIT") or (kind == b"IDAT" and not pixels):
            file.seek(length + 4, os.SEEK_CUR)
            kept += [head] * (kind == b"IDAT")
            frames += kind == b"fcTL" and kept[-1] is not kept[1]
            continue
        body = file.read(length + 4)  # with its checksum
        intact = zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:])
        if kind in PNG_PIXELS:
            if not intact:
                raise ValueError(f"its {kind.decode()} chunk is damaged")
            kept += head, body
        elif intact and kind == b"eXIf":
            exif = body
        elif intact and 1 <= body[0] <= 16:
            bits = body[0]
    if pixels and kind != b"IEND":
        raise ValueError("it is damaged or incomplete: it has no IEND chunk")
    return io.BytesIO(b"".join(kept)), exif, bits, frames


def repair_jpeg(encoded: bytes) -> bytes:
    """Correct what a strict decoder refuses in the header of a JPEG, although no pixel depends on it."""
    kept, at, components = [b"\xff\xd8"], 2, None
    while (found := JPEG_SEGMENT.search(encoded, at)) and found[1] != b"\xda":  # start of scan
        at = found.start(2) + int.from_bytes(found[2])
        segment = found[1] + encoded[found.start(2) : at]
        if found[1] in (b"\xc0", b"\xc1"):  # baseline or extended sequential
            components = segment[8:9]
        if segment.startswith(b"\xe0") and segment[3:8] == b"JFIF\0":
            segment = segment[:8] + b"\1\1" + segment[10:]  # the version
        if found[1] != b"\xe2":  # color profile
            kept += b"\xff", segment
    scans = encoded[found.start() :] if found else b""
    if components:
        only_scan = encoded[found.end() : found.end() + 1] == components if found else False
        scans = SCAN_HEADER.sub(b"\\1\0?\0", scans, count=int(only_scan)) + b"\xff\xd9" * only_scan
    return b"".join([*kept, scans])
