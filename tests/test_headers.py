"""Files as other programs write them: their metadata must not decide over their pixels."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from conftest import ROOT
from data.reader import get_header
from img.mask import decode_mask
from img.transformer import decode_image, load

rng = np.random.default_rng(0)
NOISE = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)


def encoded(image, format, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def exif(orientation, kind=3, count=1):
    """EXIF data with that orientation, and an exposure whose place is wrong."""
    value = orientation if isinstance(orientation, bytes) else struct.pack("<HH", orientation, 0)
    return (
        b"Exif\0\0II*\0\x08\0\0\0\2\0"
        + struct.pack("<HHI", 274, kind, count)
        + value
        + struct.pack("<HHII", 33434, 5, 1, 2**31)
        + bytes(4)
    )


def refuses(data, match=None):
    """Both decoders refuse the file."""
    for decode in (decode_image, load):
        with pytest.raises((ValueError, OSError, RuntimeError), match=match):
            decode(data)
    return True


# JPEG

JPEG = encoded(NOISE, "JPEG", quality=90)


def insert(segment, marker, data=JPEG):
    """Insert bytes before a marker."""
    at = data.index(marker)
    return data[:at] + segment + data[at:]


def scan_parameters(data, parameters):
    """Overwrite the spectral selection of each scan."""
    data, at = bytearray(data), 0
    while (at := data.find(b"\xff\xda", at)) >= 0:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
        data[at - 3 : at] = parameters
    return bytes(data)


def jfif(version):
    at = JPEG.index(b"JFIF\0") + 5
    return JPEG[:at] + version + JPEG[at + 2 :]


def not_interleaved():
    """A gray JPEG that has two components, each in its scan: as SOF1, with equal tables."""
    gray = encoded(NOISE[..., 0], "JPEG", quality=90)
    scan, sof = gray.index(b"\xff\xda"), gray.index(b"\xff\xc0")
    pixels = gray[scan + 10 : -2]
    frame = gray[sof : sof + 9] + b"\3" + b"".join(bytes((n, 0x11, 0)) for n in (1, 2, 3))
    frame = frame[:2] + (17).to_bytes(2) + frame[4:]
    scans = [b"\xff\xda\0\x08\1" + bytes((n, 0)) + b"\0\x3f\0" + pixels for n in (1, 2, 3)]
    return gray[:sof] + frame + gray[sof + 13 : scan] + b"".join(scans) + b"\xff\xd9"


ICC = b"\xff\xe2" + struct.pack(">H", 2 + 14 + 4) + b"ICC_PROFILE\0\1\5abcd"  # the first of five
ODD_JPEGS = {
    "scan of zeros": scan_parameters(JPEG, b"\0\0\0"),
    "scan of ones": scan_parameters(JPEG, b"\xff\xff\xff"),
    "scan of a progressive file": scan_parameters(JPEG, b"\1\5\x10"),
    "approximation": scan_parameters(JPEG, b"\0\x3f\1"),
    "JFIF 2.0": jfif(b"\2\0"),
    "JFIF 0.0": jfif(b"\0\0"),
    "junk before tables": insert(b"junk", b"\xff\xdb"),
    "junk before the frame": insert(b"\xff\0\0\0", b"\xff\xc0"),
    "junk before the scan": insert(bytes(1000), b"\xff\xda"),
    "fill bytes": insert(b"\xff" * 7, b"\xff\xda"),
    "restart marker": insert(b"\xff\xd0", b"\xff\xda"),
    "data after the end": JPEG + b"more" * 99,
    "picture after the end": JPEG + JPEG,
    "part of a color profile": insert(ICC, b"\xff\xdb"),
    "EXIF data of noise": insert(b"\xff\xe1\0\x18Exif\0\0" + rng.bytes(16), b"\xff\xdb"),
    "all together": scan_parameters(insert(b"junk", b"\xff\xda", insert(ICC, b"\xff\xdb", jfif(b"\7\7"))), b"\1\2\3"),
}


@pytest.mark.parametrize("name", ODD_JPEGS)
def test_a_jpeg_with_an_odd_header_is_read_as_without(name):
    assert torch.equal(decode_image(ODD_JPEGS[name]), decode_image(JPEG))
    assert np.array_equal(load(ODD_JPEGS[name])[0], simplejpeg.decode_jpeg(JPEG))


def test_scan_headers_are_corrected_in_every_scan_but_not_in_progressive_files():
    scans = not_interleaved()
    expected = simplejpeg.decode_jpeg(scans, strict=True)
    assert scans.count(b"\xff\xda") == 3 and np.array_equal(load(scan_parameters(scans, b"\0\0\0"))[0], expected)
    progressive = encoded(NOISE, "JPEG", progressive=True)
    assert np.array_equal(load(progressive)[0], simplejpeg.decode_jpeg(progressive))
    odd = progressive.replace(b"JFIF\0\1", b"JFIF\0\7")
    assert odd != progressive and np.array_equal(load(odd)[0], simplejpeg.decode_jpeg(progressive))
    assert refuses(scan_parameters(progressive, b"\0\x3f\0"))


@pytest.mark.parametrize("odd", ["", "scan of zeros", "junk before the scan", "all together"])
def test_a_jpeg_that_lost_pixels_is_refused(odd):
    data = ODD_JPEGS.get(odd, JPEG)
    start, end = data.index(b"\xff\xda") + 20, data.index(b"\xff\xd9", data.index(b"\xff\xda")) + 2
    middle = (start + end) // 2
    for damage in (bytes(50), b"\xff\xd9", rng.bytes(200), b"\xff\xda" + bytes(20)):
        assert refuses(data[:middle] + damage + data[middle + len(damage) :])
    assert refuses(data[:start] + bytes(end - start - 2) + b"\xff\xd9")
    assert refuses(data[:middle] + data[middle + 30 :])
    assert refuses(data[:middle]) and refuses(data[:middle] + b"\xff\xd9") and refuses(data[:start])


@pytest.mark.parametrize("end", [b"", b"\xff\xd9", bytes(9)])
def test_a_jpeg_that_ends_early_is_refused_wherever_that_is(end):
    data = scan_parameters(encoded(NOISE[:16, :16], "JPEG", subsampling=0), b"\0\0\0")
    decode_image(data)  # control
    for length in range(3, len(data) - 2):
        assert refuses(data[:length] + end)


def test_a_jpeg_of_cmyk_has_the_colors_that_pillow_converts_it_to():
    colors = np.concatenate([NOISE // 32 * 32, np.full((48, 64, 1), 40, np.uint8)], axis=2).repeat(8, 0).repeat(8, 1)
    file = encoded(Image.fromarray(colors, mode="CMYK"), "JPEG", quality=95)
    place = file.index(b"Adobe")
    for data in (file, file[: place + 11] + b"\2" + file[place + 12 :]):  # CMYK, YCCK
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode_image(data).permute(1, 2, 0).numpy() - expected).max() <= 3
        assert load(data)[0].mode == "RGB"
        assert torch.equal(decode_image(scan_parameters(data, b"\0\0\0")), decode_image(data))
    assert load(encoded(NOISE[..., 0], "JPEG"))[0].mode == "L"


# PNG

PNG = encoded(NOISE, "PNG")


def chunk(kind, body, checksum=None):
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(new, data=PNG, before=b"IDAT"):
    at = data.index(before) - 4
    return data[:at] + new + data[at:]


LARGE = zlib.compress(bytes(3_000_000))
PNG_METADATA = {
    "large text": chunk(b"zTXt", b"note\0\0" + LARGE),
    "large international text": chunk(b"iTXt", b"note\0\1\0\0\0" + LARGE),
    "large plain text": chunk(b"tEXt", b"note\0" + b"x" * 70_000_000),
    "text of noise": chunk(b"zTXt", b"note\0\0" + rng.bytes(99)),
    "text of an unknown compression": chunk(b"zTXt", b"note\0\7" + LARGE),
    "large color profile": chunk(b"iCCP", b"name\0\0" + LARGE),
    "color profile of noise": chunk(b"iCCP", rng.bytes(99)),
    "empty color profile": chunk(b"iCCP", b""),
    "EXIF data of noise": chunk(b"eXIf", rng.bytes(99)),
    "empty EXIF data": chunk(b"eXIf", b""),
    "gamma too short": chunk(b"gAMA", b"\0"),
    "resolution too short": chunk(b"pHYs", b"\0"),
    "empty significant bits": chunk(b"sBIT", b""),
    "wrong checksum of a text": chunk(b"tEXt", b"a\0b", checksum=1),
    "wrong checksum of EXIF data": chunk(b"eXIf", exif(6)[6:], checksum=1),
    "unknown": chunk(b"abCd", rng.bytes(99), checksum=1),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", PNG_METADATA)
def test_metadata_of_a_png_is_ignored(name, before, tmp_path):
    data = with_chunk(PNG_METADATA[name], before=before)
    assert np.array_equal(decode_image(data).permute(1, 2, 0), NOISE) and load(data)[1].orientation == 1
    (tmp_path / "a.png").write_bytes(data)
    assert get_header(tmp_path / "a.png") == ((48, 64), 1, 1, False)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_pixels_depend_on_is_damage(kind):
    data = encoded(Image.fromarray(NOISE[..., 0]).quantize(16), "PNG", transparency=3)
    load(data)  # control
    place = data.index(kind) + 4 + int.from_bytes(data[data.index(kind) - 4 : data.index(kind)])
    assert refuses(data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :], match=f"{kind.decode()} .*damaged")


def test_an_incomplete_png_is_refused():
    for length in (len(PNG) - 1, len(PNG) - 4, len(PNG) - 12, len(PNG) - 20, 40, 20, 8):
        assert refuses(PNG[:length], match="damaged")
    idat = PNG.index(b"IDAT") - 4
    assert refuses(PNG[:idat] + PNG[-12:])
    half = PNG[idat + 8 : idat + 4000]
    assert refuses(PNG[:idat] + chunk(b"IDAT", half) + PNG[-12:], match="truncated")


# Orientation

WEBP = encoded(NOISE, "WEBP", lossless=True)


def oriented(data, format):
    """NOISE in that format, with EXIF data."""
    if format == "JPEG":
        return insert(b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data, b"\xff\xdb")
    if format == "WEBP":
        return encoded(NOISE, "WEBP", lossless=True, exif=data)
    return with_chunk(chunk(b"eXIf", data[6:]), before=b"IDAT" if format == "PNG" else b"IEND")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "PNG, after the pixels", "WEBP"])
@pytest.mark.parametrize(
    "data",
    [
        exif(9),
        exif(0),
        exif(6, kind=2),
        exif(6, count=0),
        exif(b"\6\0\0\0", kind=12),
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0" + rng.bytes(40),
        exif(6)[:20],
    ],
)
def test_listing_and_decoding_ignore_an_orientation_that_is_invalid(data, format, tmp_path):
    for each, orientation in ((data, 1), (exif(6), 6)):  # the second is the control
        file = oriented(each, format)
        (tmp_path / "a").write_bytes(file)
        header = get_header(tmp_path / "a")
        assert header == load(file)[1] and header.orientation == orientation
        assert header.size == decode_image(file).shape[1:]
        assert header.size == ((48, 64) if orientation == 1 else (64, 48))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG, after the pixels", "WEBP"])
def test_exif_data_after_the_pixels_rotate_them(format, orientation):
    data = oriented(exif(orientation), format)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data).permute(1, 2, 0), expected.convert("RGB"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9, 0])
@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_is_rotated_once_and_listed_as_it_is_decoded(orientation, compression, tmp_path):
    values = rng.integers(2**16, size=(6, 8)).astype(np.uint16)
    data = deep_tiff(values, compression=compression, _274=(3, [orientation]))
    (tmp_path / "a").write_bytes(data)
    expected = np.rot90(gray_of(values, 16), {3: 2, 6: -1, 8: 1}.get(orientation, 0))
    assert np.array_equal(decode_image(data), np.broadcast_to(expected, (3, *expected.shape)))
    tag = orientation if orientation in range(1, 9) else 1
    assert get_header(tmp_path / "a") == load(data)[1] == (expected.shape, 1, tag, True)


def test_xmp_does_not_rotate():
    """As in browsers."""
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    jpeg = insert(b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp, b"\xff\xdb")
    assert Image.open(io.BytesIO(jpeg)).getexif()[274] == 6  # control
    for data in (jpeg, deep_tiff(GRADIENT, _700=(1, xmp[29:])), deep_tiff(GRADIENT, _700=(4, [1, 2]))):
        assert load(data)[1].orientation == 1 and decode_image(data).shape[1] < decode_image(data).shape[2]


def test_listing_reads_the_headers_only(tmp_path, monkeypatch):
    names = ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tif", "b.tif", "a.jp2", "a.webp"]
    for name in names:
        options = {"compression": "tiff_lzw"} if name == "b.tif" else {}
        Image.fromarray(NOISE).save(tmp_path / name, **options)
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would fail
    assert [get_header(tmp_path / name).size for name in names] == [(48, 64)] * len(names)
    start = PNG.index(b"IDAT") + 4
    (tmp_path / "a.png").write_bytes(PNG[:start] + bytes(len(PNG) - start - 16) + PNG[-16:])
    assert get_header(tmp_path / "a.png").size == (48, 64)  # pixels of zeros, with a wrong checksum


# 16 bits

GRADIENT = np.linspace(0, 2**16 - 1, 8 * 6).astype(np.uint16).reshape(6, 8)
TYPES = {1: "B", 3: "H", 4: "I"}


def tiff(strips, tags, order="<"):
    """A TIFF of one page: {tag: (type, values)}, strips of bytes."""

    def ifd(offsets):
        entries, extra = b"", b""
        all_tags = tags | {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
        for tag, (kind, values) in sorted(all_tags.items()):
            packed = struct.pack(f"{order}{len(values)}{TYPES[kind]}", *values)
            if len(packed) > 4:
                place = 14 + 12 * len(all_tags) + len(extra)
                extra, packed = extra + packed, struct.pack(order + "I", place)
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(all_tags))
        return start + entries + bytes(4) + extra

    lengths = np.cumsum([0, *map(len, strips[:-1])])
    return ifd((len(ifd([0] * len(strips))) + lengths).tolist()) + b"".join(strips)


def deep_tiff(values, order="<", compression=1, **tags):
    """16-bit gray (H, W) or RGB (H, W, 3), compressed by zlib (8) or not (1)."""
    channels = values[..., None].shape[-1] if values.ndim == 2 else values.shape[2]
    data = values.astype(order + "u2").tobytes()
    shape = {256: (3, [values.shape[1]]), 257: (3, [values.shape[0]]), 258: (3, [16] * channels), 277: (3, [channels])}
    rest = {259: (3, [compression]), 262: (3, [1 if channels == 1 else 2]), 278: (3, [values.shape[0]])}
    tags = {int(name[1:]): value for name, value in tags.items()}
    return tiff([zlib.compress(data) if compression == 8 else data], shape | rest | tags, order)


def deep_png(values, interlace=0, **chunks):
    """16-bit gray (H, W), gray with alpha (H, W, 2), RGB or RGBA."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, interlace)
    middle = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + data


def gray_of(values, bits):
    """In integers: round(value * 255 / largest)."""
    largest = 2**bits - 1
    return np.minimum((values.astype(np.int64) * 510 + largest) // (2 * largest), 255)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "make",
    [
        deep_png,
        deep_tiff,
        lambda values: deep_tiff(values, ">"),
        lambda values: deep_tiff(values, compression=8),
        lambda values: deep_tiff(values, ">", 8),
    ],
)
def test_gray_of_16_bits_is_scaled_by_the_bits_that_are_used(make, bits):
    values = GRADIENT >> (16 - bits)
    for used in (bits, 16):  # the second is the control
        decoded = decode_image(make(values), bits=used)
        assert np.array_equal(decoded, np.broadcast_to(gray_of(values, used), (3, 6, 8)))
    assert decode_image(make(values), bits=bits).max() == 255
    assert np.array_equal(decode_image(make(GRADIENT), bits=bits)[0], gray_of(GRADIENT, bits))  # clipped


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_header_that_says_how_many_bits_are_used_is_metadata(bits):
    values = GRADIENT >> (16 - bits)
    for file in (deep_png(values, sBIT=bytes((bits,))), deep_tiff(values, _281=(3, [2**bits - 1]))):
        for used in (bits, 9):
            assert np.array_equal(decode_image(file, bits=used)[0], gray_of(values, used))


def test_of_color_of_16_bits_the_upper_8_are_read():
    values = rng.integers(2**16, size=(6, 8, 3)).astype(np.uint16)
    alpha = np.concatenate([values, values[..., :1]], axis=2)
    for file in (deep_png(values), deep_png(alpha)):
        assert np.array_equal(decode_image(file, bits=12).permute(1, 2, 0), values >> 8)


# Frames


def frames(format, **options):
    first, second = Image.fromarray(NOISE[:16]), Image.fromarray(NOISE[16:32])
    return encoded(first, format, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_a_file_of_several_frames_is_refused(format):
    assert refuses(frames(format), match="it has 2 frames; save the one to use as a file of its own")
    load(encoded(NOISE, format, save_all=True))  # control


def test_an_animation_besides_a_picture_is_refused():
    assert refuses(frames("PNG", default_image=True), match="it has 2 frames")


def test_the_first_picture_of_an_mpo_is_the_image():
    data = frames("MPO")
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode_image(data).permute(1, 2, 0), simplejpeg.decode_jpeg(data))


# What libraries print


@pytest.fixture(scope="module")
def lzw():
    """A TIFF whose tags come before its strips, so that half of it can be opened."""
    file = io.BytesIO(encoded(NOISE, "TIFF", compression="tiff_adobe_deflate"))
    image = Image.open(file)
    (place,), (length,) = image.tag_v2[273], image.tag_v2[279]
    tags = {256: [64], 257: [48], 258: [8, 8, 8], 259: [8], 262: [2], 277: [3], 278: [48]}
    return tiff([file.getvalue()[place : place + length]], {tag: (3, values) for tag, values in tags.items()})


def test_half_a_tiff_is_refused(lzw):
    assert np.array_equal(decode_image(lzw).permute(1, 2, 0), NOISE)  # control
    assert refuses(lzw[: len(lzw) // 2], match="decoder error")


def test_damaged_tags_of_a_tiff_print_nothing(tmp_path):
    data = deep_tiff(GRADIENT, _305=(3, list(range(9))), _34665=(4, [2**31]), _274=(3, [3]))
    place = data.index(struct.pack("<HHI", 305, 3, 9)) + 8
    (tmp_path / "a.tif").write_bytes(data[:place] + struct.pack("<I", 2**30) + data[place + 4 :])
    (tmp_path / "b.tif").write_bytes(deep_tiff(GRADIENT, _277=(3, [999])))
    program = """if True:
        from img.headers import open_image
        _, header = open_image(open("a.tif", "rb"), pixels=False)
        print(header.size, open_image(open("a.tif", "rb"))[0].getpixel((0, 0)))
        try:
            open_image(open("b.tif", "rb"), pixels=False)
        except ValueError as error:
            print(error)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    result = subprocess.run([sys.executable, "-c", program], **arguments)
    assert result.stdout.startswith(f"(6, 8) {GRADIENT[-1, -1]}\nit is damaged, or") and result.stderr == ""


def test_a_damaged_jpeg_mask_is_refused_as_an_image_is():
    file = encoded(NOISE[..., 0], "JPEG")
    middle = len(file) // 2
    for decode in (decode_image, decode_mask):
        decode(file)  # control
        with pytest.raises(ValueError, match="Corrupt JPEG data"):
            decode(file[:middle] + bytes(50) + file[middle + 50 :])
