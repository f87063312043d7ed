"""Open image files without the metadata that could keep their pixels from being decoded."""

import io
import logging
import os
import re
import struct
import tempfile
import threading
import warnings
import zlib
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none of which starts another program
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels depend on
JPEG_SEGMENT = re.compile(rb"\xff+([^\0\1\xd0-\xd7\xff])(..)", re.DOTALL)  # marker, length
BITS = {2**bits - 1: bits for bits in range(1, 16)}  # by the largest value
TIFF_LOCK = threading.Lock()

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # they are about metadata
logging.getLogger("PIL").addHandler(logging.NullHandler())  # prints nothing besides raising an error
if hasattr(os, "register_at_fork"):  # no process starts with the lock held or with the other stderr of load_pixels
    release = TIFF_LOCK.release
    os.register_at_fork(before=TIFF_LOCK.acquire, after_in_parent=release, after_in_child=release)


class Header(NamedTuple):
    size: tuple[int, int]  # (height, width) of the upright image
    orientation: int  # EXIF orientation of the decoded pixels, 1 (upright) to 8
    deep: bool  # gray or RGB of 16 bits per value
    bits: int | None  # how many of the 16 are used, if PNG's sBIT or TIFF's MaxSampleValue says so


def read_header(path: Path) -> Header:
    """Read a file's header, but not its pixels. Raises ValueError or an error of Pillow."""
    with path.open("rb", buffering=0) as file:
        return open_image(file, pixels=False)[1]


def open_image(file: BinaryIO, pixels: bool = True) -> tuple[Image.Image, Header]:
    """Open an image for `load_pixels` or, without `pixels`, to read its header. Raises as `read_header`."""
    exif, bits, frames = b"", None, 1
    if file.read(8) == PNG_START:
        file, exif, bits, frames = _strip_png(file, pixels)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is damaged, or its format is none of {', '.join(FORMATS)}") from None
    if image.format == "TIFF":
        bits = _prepare_tiff(image)
    if pixels and (frames := max(frames, _count_frames(image))) > 1:
        raise ValueError(f"it has {frames} frames; save the one to use as a file of its own")
    orientation = _orientation(exif or image.info.get("exif", b""))
    size = image.size if orientation in SIDEWAYS else image.size[::-1]
    deep = image.mode.startswith("I;16") or bool(re.search("'(RGB|RGBA|RGBX|LA);16", str(image.tile[:1])))
    return image, Header(size, orientation, deep, bits if deep else None)


def load_pixels(image: Image.Image) -> Image.Image:
    """Decode an opened image, and return it. Raises an error if it is damaged, with what libtiff prints to stderr."""
    if image.format != "TIFF":
        image.load()
        return image
    failure = None
    with TIFF_LOCK, tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            image.load()
        except Exception as error:
            failure = error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        printed = " ".join(file.read().decode(errors="replace").split())
    if "Decode" in printed or (failure and printed):  # or else it is about tags
        raise ValueError(f"it is damaged: {printed}")
    if failure:
        raise failure
    return image


def _count_frames(image: Image.Image) -> int:
    if image.format != "TIFF":  # an MPO has other pictures than the one to use
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    pages, frames = Image.open(image.fp, formats=["TIFF"]), 1
    try:
        for page in count(1):
            pages.seek(page)
            frames += not pages.tag_v2.get(254, 0) & 5  # a thumbnail or a mask
    except (EOFError, TypeError):  # at the last page, or no page is where the next one should be
        return frames


def _prepare_tiff(image: Image.Image) -> int | None:
    """Hide XMP data from Pillow, which rotates a TIFF itself -> how many bits are used, if a tag says so."""
    tags = image.tag_v2
    if tags.get(284) == 2 and 16 in tags.get(258, ()) and not image.mode.startswith("I;16"):
        raise ValueError("Pillow cannot decode separate planes of 16 bits; save it with interleaved colors")
    image.info.pop("xmp", None)
    largest = tags.get(281)  # MaxSampleValue
    return 12 if "I;12" in str(image.tile) else BITS.get(largest[0] if isinstance(largest, tuple) else largest)


def _orientation(exif: bytes) -> int:
    """EXIF data -> orientation; 1 if there is none that is valid."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _strip_png(file: BinaryIO, pixels: bool) -> tuple[BinaryIO, bytes, int | None, int]:
    """Return a PNG without metadata, its EXIF data, how many bits are used, and the number of frames."""
    kept, exif, bits, kinds = [PNG_START], b"", None, b""
    while not kinds.endswith(b"IEND") and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        kinds += kind
        if kind not in (*PNG_PIXELS, b"eXIf", b"sBIT") or (kind == b"IDAT" and not pixels):
            file.seek(length + 4, os.SEEK_CUR)
            kept += [head] * (kind == b"IDAT")
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
    if pixels and not kinds.endswith(b"IEND"):
        raise ValueError("it is damaged or incomplete: it has no IEND chunk")
    return io.BytesIO(b"".join(kept)), exif, bits, 1 + kinds.partition(b"IDAT")[2].count(b"fcTL")


def repair_jpeg(encoded: bytes) -> bytes:
    """Correct what a strict decoder refuses in the header of a JPEG, although no pixel depends on it."""
    kept, at, sequential = [b"\xff\xd8"], 2, False
    while (found := JPEG_SEGMENT.search(encoded, at)) and found[1] != b"\xda":  # a scan
        at = found.start(2) + int.from_bytes(found[2])
        segment = bytearray(b"\xff" + encoded[found.start(1) : at])
        sequential |= found[1] in b"\xc0\xc1"
        if segment[4:9] == b"JFIF\0":
            segment[9:11] = b"\1\1"  # the version
        kept += [segment] * (found[1] != b"\xe2")  # a color profile
    scans = encoded[found.start() :] if found else b""
    corrected = bytearray(scans)
    for scan in re.finditer(rb"\xff\xda(..)", scans, re.DOTALL) if sequential else ():
        end = scan.start(1) + int.from_bytes(scan[1])
        corrected[end - 3 : end] = b"\0\x3f\0"  # as progressive files only have another
    return b"".join([*kept, corrected])
