"""Masks whose values mean something else than black and white. Read correctly, or refused: never wrong in silence."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageOps

from data import masks
from data.layout import OwnLayout
from data.masks import Survey, known_reader
from img.mask import MaskValues
from runtime.errors import UserError
from tiny import SMALL

SIZE = 240, 320  # height, width


def shapes(*values, size=SIZE, background=0, dtype=np.uint8):
    """Disks with these values on a background: of several sizes, as objects are."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.full(size, background, dtype)
    for number, value in enumerate(values):
        place = size[0] * (0.35 + 0.3 * (number % 2)), size[1] * (number + 0.6) / (len(values) + 0.2)
        image[np.hypot(rows - place[0], columns - place[1]) < size[1] / (2.6 * len(values) + 1)] = value
    return image


def save(folder, name, pixels, palette=None, **options):
    """Save an array or a Pillow image as the mask of NAME, next to an image of that name."""
    path = folder / name
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, "P" if palette else None)
    if palette:
        image.putpalette(palette)
    for each in ("images", "masks"):
        (folder / each).mkdir(exist_ok=True, parents=True)
    image.save(folder / "masks" / path.name, **options)
    Image.new("RGB", image.size, (60, 90, 60)).save(folder / "images" / f"{path.stem}.jpg")


def survey(folder, *mask_values, check=False, saved=None):
    layout = OwnLayout(folder)
    pairs = {path: layout.masks()[stem] for stem, path in layout.images().items()}
    return Survey(pairs, known_reader(mask_values or None, saved), check=check)


def read(folder, *mask_values):
    """The masks, after a survey that must find no problem."""
    found = survey(folder, *mask_values)
    assert not found.problems, found.problems
    return {mask.name: found.reader.mask(mask)[0].numpy() for _, mask in found.pairs}


def gray(pixels):
    return Image.fromarray(pixels)


def hair(size=512):
    """A matte: an antialiased disk with fine strands."""
    image = Image.new("L", (2 * size, 2 * size))
    draw, chance = ImageDraw.Draw(image), np.random.default_rng(0)
    draw.ellipse((size * 0.6, size * 0.6, size * 1.4, size * 1.4), 255)
    for angle in chance.uniform(0, 2 * np.pi, 300):
        ends = [size * (1 + r * f(angle + t)) for r, t in ((0.38, 0), (0.7, 0.2)) for f in (np.cos, np.sin)]
        draw.line(ends, int(chance.integers(60, 255)), int(chance.integers(1, 4)))
    return image.reduce(2)


BINARY = shapes(255, 255)
LARGE = gray(shapes(255, 255, size=(480, 640)))
CRACKED = BINARY.copy()
CRACKED[60:180, 100] = CRACKED[120, 40:300] = 128
SOFT = {
    "antialiased": LARGE.reduce(2),
    "upsampled": gray(BINARY).resize((700, 500), Image.Resampling.BILINEAR),
    "upsampled a lot": gray(BINARY).reduce(16).resize((512, 384), Image.Resampling.BILINEAR),
    "feathered": gray(BINARY).filter(ImageFilter.GaussianBlur(8)),
    "a small disk": gray(shapes(255, size=(32, 32))).filter(ImageFilter.GaussianBlur(2)),
    "a small cone": gray((255 - 11 * np.hypot(*np.mgrid[-24:24, -24:24])).clip(0, 255).astype(np.uint8)),
    "a slow ramp": gray(np.tile(np.linspace(-300, 300, 2000).clip(0, 255).astype(np.uint8), (100, 1))),
    "hair": hair(),
    "cracks": gray(CRACKED),
    "16 bits": gray(np.asarray(LARGE.reduce(2)).astype(np.uint16) * 257),
    "floats": gray(np.asarray(LARGE.reduce(2)).astype(np.float32) / 255),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_edges_are_soft_labels_without_a_warning(tmp_path, capsys, name):
    save(tmp_path, "a.tiff", SOFT[name])
    expected = np.asarray(SOFT[name]).astype(float)
    expected = np.rint(expected * 255 / {"16 bits": 65535, "floats": 1}.get(name, 255))
    assert (read(tmp_path)["a.tiff"] == expected).all()
    assert "Warning" not in capsys.readouterr().out


INVERTED_PALETTE = [255, 255, 255, 0, 0, 0]
BINARIES = {  # what is saved -> the pixels that are object
    "0 and 255": BINARY,
    "0 and 254": shapes(254, 254),
    "0 and 1": shapes(1, 1),
    "uint16 of 0 and 255": shapes(255, 255, dtype=np.uint16),
    "uint16 of 0 and 65535": shapes(65535, 65535, dtype=np.uint16),
    "int32 of 0 and 1": shapes(1, 1, dtype=np.int32),
    "1 bit": gray(BINARY).convert("1"),
    "gray palette": (BINARY // 255, [0, 0, 0, 255, 255, 255]),
    "gray palette, white first": (1 - BINARY // 255, INVERTED_PALETTE),
    "palette of PASCAL VOC": (BINARY // 255, [0, 0, 0, 128, 0, 0]),
    "gray as RGB": gray(BINARY).convert("RGB"),
    "almost black on black": gray(np.stack([BINARY * 0, BINARY * 0, BINARY // 255], axis=-1)),
    "red on black": Image.merge("RGB", [gray(BINARY), *[Image.new("L", SIZE[::-1])] * 2]),
    "gray and alpha": Image.merge("LA", [gray(BINARY), Image.new("L", SIZE[::-1], 255)]),
}


@pytest.mark.parametrize("name", BINARIES)
def test_binary_masks_of_every_kind_are_the_same_mask(tmp_path, capsys, name):
    """Next to an empty mask, and one that is all object where that can be known."""
    image = BINARIES[name]
    pixels, palette = image if isinstance(image, tuple) else (image, None)
    for file in ("a.tiff", "b.png"):
        if file == "a.tiff" or np.asarray(pixels).dtype != np.int32:
            save(tmp_path, file, pixels, palette)
    empty = np.zeros_like(np.asarray(pixels))
    if palette is not None and palette is not INVERTED_PALETTE:
        save(tmp_path, "empty.png", empty, palette)
    elif isinstance(image, np.ndarray):
        save(tmp_path, "empty.tiff", empty)
        save(tmp_path, "full.tiff", empty + image.max())
    for file, mask in read(tmp_path).items():
        assert (mask == {"empty": 0, "full": 255}.get(file.split(".")[0], BINARY)).all(), file
    assert "Warning" not in capsys.readouterr().out


@pytest.mark.parametrize("quality", [30, 60, 80, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_masks_are_read(tmp_path, capsys, quality, mode):
    """Without a wrong pixel, but for strands of hair that are half transparent."""
    save(tmp_path, "a.jpg", gray(BINARY).convert(mode), quality=quality)
    save(tmp_path, "hair.jpg", hair().convert(mode), quality=quality)
    masks = read(tmp_path)
    assert ((masks["a.jpg"] > 127) == (BINARY > 127)).all() and set(np.unique(masks["a.jpg"][5:-5, :2])) == {0}
    wrong = (masks["hair.jpg"] > 127) != (np.asarray(hair()) > 127)
    assert wrong.mean() < {30: 0.0125, 60: 0.008, 80: 0.005, 95: 0.002}[quality]
    assert "Warning" not in capsys.readouterr().out


def voc(*classes, border=255):
    """Classes with a border, as PASCAL VOC has them."""
    pixels = shapes(*classes)
    edge = np.zeros(SIZE, bool)
    for axis in (0, 1):
        edge |= np.roll(pixels, 2, axis) != np.roll(pixels, -2, axis)
    return np.where(edge, border, pixels).astype(np.uint8)


def voc_colors():
    """PASCAL VOC's palette."""
    numbers = np.arange(256)
    bits = [[(numbers >> (3 * shift + channel) & 1) << (7 - shift) for shift in range(8)] for channel in range(3)]
    return np.array(bits).sum(axis=1).T.astype(np.uint8)


def small_cells(count, side):
    """Square cells with ids from 1."""
    pixels = np.zeros((400, 400), np.uint16)
    for number in range(count):
        row, column = divmod(number, 20)
        pixels[row * 20 + 5 : row * 20 + 5 + side, column * 20 + 5 : column * 20 + 5 + side] = number + 1
    return pixels


def vessels():
    """Lines of three pixels, of two classes, next to a disk."""
    image = gray(shapes(255, 0, 0, 0))
    for number, value in enumerate((85, 170, 85, 170)):
        ImageDraw.Draw(image).line((150, 20 + 50 * number, 310, 30 + 50 * number), value, 3)
    return image


def scan():
    """Tissue, with noise, on black."""
    noise = np.random.default_rng(0).normal(0, 12, SIZE)
    return np.where(BINARY > 0, (120 + noise).clip(1, 255), 0).astype(np.uint8)


def thin_lines(*values):
    """Lines of one pixel."""
    image = gray(shapes())
    for number, value in enumerate(values):
        ImageDraw.Draw(image).line((10, 20 + 90 * number, 310, 60 + 90 * number), value)
    return image


RIGHT = np.arange(SIZE[1]) > 290
REFUSED = {
    "classes": (shapes(1, 2, 3), r"is a class map, has instance ids, or is no mask: its values are 0 \(.* pixels\), "),
    "thin classes of small numbers": (thin_lines(1, 2), "class map"),
    "spread classes": (shapes(85, 170, 255), "class map"),
    "trimap of 1, 2 and 3": (np.where(voc(1, border=3) == 0, 2, voc(1, border=3)), "class map"),
    "ids of 300 cells": (small_cells(300, 10), "class map"),
    "ids of small cells": (small_cells(300, 4), "class map"),
    "16 and 235": (shapes(235, 235, background=16), r"16 \(.* 235 \("),
    "VOC's class 8": (voc(8), r"8 \("),
    "VOC's classes with a palette": ((voc(8, 15), voc_colors().ravel().tolist()), r"#400000 \("),
    "VOC's classes as RGB": (gray(voc_colors()[voc(8, 15)]), "class map.* #000000"),
    "two colors": (gray(voc_colors()[shapes(1, 2)]), "class map"),
    "classes as JPEG": (shapes(85, 170, 255), "class map"),
    "trimap as JPEG, mostly unknown": (shapes(128, 128, 255), "class map"),
    "not a number": (np.where(BINARY > 0, np.float32("nan"), 0), "negative, infinite or not a number"),
    "infinite": (np.where(BINARY > 0, np.float32("inf"), 0), "negative, infinite or not a number"),
    "classes as JPEG of gray": (shapes(60, 120, 180), "class map"),
    "0 and 1, nodata 255": (np.where(RIGHT, 255, shapes(1, 1)).astype(np.uint8), "class map"),
    "land cover, ignored 255": (np.where(RIGHT, 255, shapes(1, 2, 3, 4, 5, 6)).astype(np.uint8), "class map"),
    "ids of 300 cells, nodata": (np.pad(small_cells(300, 10), 4, constant_values=65535), "class map"),
    "trimap with a thin band": (np.where(voc(255, border=128) == 0, 0, voc(255, border=128)), "class map"),
    "thin vessels of two classes": (vessels(), "class map"),
    "a scan on black": (scan(), "is no mask"),
    "a photo": (gray(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)), "is no mask"),
    "negative": (np.where(BINARY > 0, np.float32(1), -1), "negative, infinite or not a number"),
    "no object anywhere": (np.zeros(SIZE, np.uint8), r"No mask has both object and background, only 0 "),
    "all object everywhere": (np.full(SIZE, 255, np.uint8), r"No mask has both object and background, only 255 "),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_values_that_have_another_meaning_are_refused(tmp_path, name, extension):
    image, sentence = REFUSED[name]
    pixels, palette = image if isinstance(image, tuple) else (image, None)
    if extension == "png" and np.asarray(pixels).dtype == np.float32:
        pytest.skip("PNG has no floats")
    save(tmp_path, f"a.{'jpg' if 'JPEG' in name else extension}", pixels, palette)
    ((where, problem),) = survey(tmp_path).problems.items()
    assert re.search(sentence, problem), problem
    assert "No mask" in problem or problem.startswith(str(where))
    assert "--mask-values" in problem or "cannot be read" in problem


def test_a_mask_that_does_not_fit_the_others_is_refused_by_name(tmp_path):
    for number in range(4):
        save(tmp_path, f"good {number}.png", BINARY)
    save(tmp_path, "empty.png", np.zeros(SIZE, np.uint8))
    save(tmp_path, "almost black.png", np.full(SIZE, 1, np.uint8))
    save(tmp_path, "gray.png", np.full(SIZE, 128, np.uint8))
    save(tmp_path, "ones.png", BINARY // 255)
    save(tmp_path, "dim.png", shapes(200, 200))
    save(tmp_path, "red.png", Image.merge("RGB", [gray(BINARY), *[Image.new("L", SIZE[::-1])] * 2]))
    problems = {path.name: problem for path, problem in survey(tmp_path).problems.items()}
    assert problems.keys() == {"almost black.png", "gray.png", "ones.png", "dim.png", "red.png"}
    expected = "almost black.png has 1 as its highest value, unlike 255, the object of this data set. Its values are "
    assert expected in problems["almost black.png"]
    assert "has colors, unlike this data set: gray levels. Its values are #000000 (" in problems["red.png"]


@pytest.mark.parametrize(("values", "objects"), [
    (("1",), [1]), (("1", "3"), [1, 3]), (("nonzero",), [1, 2, 3]), (("2.0",), [2]),
])
def test_mask_values_say_what_the_object_is(tmp_path, values, objects):
    pixels = shapes(1, 2, 3)
    save(tmp_path, "gray.png", pixels)
    save(tmp_path, "palette.png", pixels, voc_colors().ravel().tolist())
    save(tmp_path, "empty.png", np.zeros(SIZE, np.uint8))
    read_masks = read(tmp_path, *values)
    for name in ("gray.png", "palette.png"):
        assert (read_masks[name] == 255 * np.isin(pixels, objects)).all()
    assert not read_masks["empty.png"].any()


def test_colors_say_what_the_object_is(tmp_path):
    pixels = shapes(1, 2, 3)
    save(tmp_path, "a.png", gray(voc_colors()[pixels]))
    assert (read(tmp_path, "#800000", "#808000")["a.png"] == 255 * np.isin(pixels, [1, 3])).all()
    assert (read(tmp_path, "nonzero")["a.png"] == 255 * (pixels > 0)).all()
    assert "has colors, so --mask-values must be a color" in str(survey(tmp_path, "1").problems)


def test_a_color_is_exactly_that_of_most_masks(tmp_path):
    for number, color in enumerate([(200, 0, 0), (200, 0, 0), (200, 0, 1), (0, 0, 200)]):
        save(tmp_path, f"{number}.png", gray(BINARY[..., None] // 255 * np.array(color, np.uint8)))
    save(tmp_path, "soft.png", gray(np.asarray(hair())[..., None] // 5 * np.array((4, 0, 0), np.uint8)))
    problems = {path.name: problem for path, problem in survey(tmp_path).problems.items()}
    assert problems.keys() == {"2.png", "3.png", "soft.png"}
    assert "has #0000c8 as its highest value, unlike #c80000" in problems["3.png"]
    assert "class map" in problems["soft.png"]


def test_mask_values_cannot_be_right_for_masks_of_another_kind(tmp_path, capsys):
    """Or it is printed that they have other values only."""
    save(tmp_path, "ones.png", BINARY // 255)
    save(tmp_path, "white.png", BINARY)
    save(tmp_path, "red.png", Image.merge("RGB", [gray(BINARY), *[Image.new("L", SIZE[::-1])] * 2]))
    save(tmp_path, "ones.jpg", BINARY // 255)
    (tmp_path / "images/ones.jpg").rename(tmp_path / "images/jpeg.jpg")
    (tmp_path / "masks/ones.jpg").rename(tmp_path / "masks/jpeg.jpg")
    save(tmp_path, "ones.png", BINARY // 255)
    problems = {path.name: problem for path, problem in survey(tmp_path, "1").problems.items()}
    assert "has colors, so --mask-values must be a color" in problems["red.png"]
    assert "was compressed as JPEG, which changes values as low as 1" in problems["jpeg.jpg"]
    assert len(problems) == 2
    printed = capsys.readouterr().out
    assert "empty       1 mask with other values only: white.png\n" in printed
    assert [path.name for path in survey(tmp_path, "nonzero").problems] == ["jpeg.jpg"]
    (tmp_path / "masks/jpeg.jpg").unlink()
    (tmp_path / "images/jpeg.jpg").unlink()
    for name, mask in read(tmp_path, "nonzero").items():
        assert (mask == BINARY).all(), name


def test_palettes_in_any_order_are_read_by_color(tmp_path):
    save(tmp_path, "red last.png", BINARY // 255, [0, 0, 0, 255, 0, 0])
    save(tmp_path, "red first.png", 1 - BINARY // 255, [255, 0, 0, 0, 0, 0])
    for values in ((), ("nonzero",), ("#ff0000",)):
        for mask in read(tmp_path, *values).values():
            assert (mask == BINARY).all()


def test_an_index_that_has_another_color_in_each_palette_is_refused(tmp_path):
    """Programs that shrink a PNG drop unused colors, after which two classes may have the same index."""
    for name, color in (("a", (255, 0, 0)), ("b", (0, 255, 0)), ("c", (255, 0, 0))):
        save(tmp_path, f"{name}.png", BINARY // 255, [0, 0, 0, *color])
    ((path, problem),) = survey(tmp_path).problems.items()
    assert path.name == "b.png" and "has #00ff00 as its highest value, unlike #ff0000" in problem
    assert not survey(tmp_path, "1").problems  # if the index is meant


def test_a_palette_without_colors_is_read_by_index(tmp_path):
    for palette in ([0, 0, 0], [0] * 768):
        save(tmp_path, "a.png", BINARY // 255, palette)
        assert (read(tmp_path)["a.png"] == BINARY).all()


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_a_gray_object_in_a_jpeg_is_found_though_its_edge_is_brighter(tmp_path, quality):
    for value in (64, 128, 200):
        save(tmp_path, "a.jpg", shapes(value, value), quality=quality)
        assert np.asarray(Image.open(tmp_path / "masks/a.jpg")).max() > value
        assert ((read(tmp_path)["a.jpg"] > 127) != (BINARY > 0)).mean() < 0.0005


def test_mask_values_that_no_mask_has_are_refused(tmp_path):
    save(tmp_path, "a.png", BINARY)
    (problem,) = survey(tmp_path, "7").problems.values()
    expected = r"No mask has an object \(values: the object is 7\)\. The first one has 0 \(.*, 255 \(.*"
    assert re.fullmatch(expected, problem)


def test_large_values_are_printed_as_they_are_passed(tmp_path):
    save(tmp_path, "a.tiff", shapes(1_234_567, 2_345_678, dtype=np.int32))
    assert "1234567 (" in str(survey(tmp_path).problems)
    assert (read(tmp_path, "1234567")["a.tiff"] == 255 * (shapes(1, 2) == 1)).all()


@pytest.mark.parametrize("values", ["", "red", "#12345", "1 #ff0000", "1 nonzero", "nan"])
def test_invalid_mask_values_are_refused(values):
    with pytest.raises(UserError, match=r"--mask-values .*must be numbers"):
        masks.parse_values(values.split())


def with_alpha(colors, alpha):
    image = colors.convert("RGB")
    image.putalpha(gray(alpha) if isinstance(alpha, np.ndarray) else alpha)
    return image


def corner():
    """Opaque but for a corner."""
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:4, :4] = 0
    return alpha


def palette_with_transparency(first, second, transparent):
    image = gray(BINARY // 255).convert("P")
    image.putpalette([*first, *second])
    image.info["transparency"] = transparent
    return image


def gray_with_transparency(value):
    image = gray(255 - BINARY)
    image.info["transparency"] = value
    return image


ALPHA = {  # what is saved -> whether it can be used
    "a drawing, opaque": (with_alpha(gray(BINARY), 255), True),
    "a drawing, half transparent everywhere": (with_alpha(gray(BINARY), 128), True),
    "palette of a GIF, transparent nowhere": (palette_with_transparency((0, 0, 0), (1, 1, 1), 7), True),
    "a drawing with a transparent corner": (with_alpha(gray(BINARY), corner()), False),
    "a drawing, transparent outside": (with_alpha(gray(BINARY), BINARY), False),
    "one color": (with_alpha(Image.new("RGB", SIZE[::-1], (9, 8, 7)), BINARY), False),
    "white, and transparent elsewhere": (Image.merge("LA", [Image.new("L", SIZE[::-1], 255), gray(BINARY)]), False),
    "palette": (palette_with_transparency((255, 255, 255), (0, 0, 0), 0), False),
    "palette of a GIF": (palette_with_transparency((255, 255, 255), (0, 0, 0), 0), False),
    "a transparent gray level": (gray_with_transparency(255), False),
    "transparent everywhere": (with_alpha(gray(BINARY), 0), False),
}


@pytest.mark.parametrize("name", ALPHA)
@pytest.mark.parametrize("values", [(), ("nonzero",), ("#ffffff", "#010101")])
def test_transparent_masks_are_refused_unless_all_of_it_is_equally_transparent(tmp_path, name, values):
    image, is_used = ALPHA[name]
    file = "a.gif" if "GIF" in name else "a.png"
    save(tmp_path, file, image)
    if is_used:
        assert (read(tmp_path, *values)[file] == BINARY).all()
    else:
        (problem,) = survey(tmp_path, *values).problems.values()
        assert problem.endswith("transparent; save it as white on black, without transparency). Replace it.")


@pytest.mark.parametrize("object_color", [(255, 0, 0), (128, 0, 0), (0, 128, 0)])
def test_masks_in_color_are_refused_as_jpeg(tmp_path, object_color):
    colors = gray(BINARY[..., None] // 255 * np.array(object_color, np.uint8))
    save(tmp_path / "png", "a.png", colors)
    assert (read(tmp_path / "png")["a.png"] == BINARY).all()  # control
    save(tmp_path / "jpeg", "a.jpg", colors, quality=95)
    assert "its colors were changed by lossy compression" in str(survey(tmp_path / "jpeg").problems)


def test_16_bit_colors_are_no_mask(tmp_path):
    save(tmp_path, "a.png", BINARY)
    save_deep(tmp_path / "masks/a.png", 1, channels=3)
    assert "a mask of 16 bits must be gray" in str(survey(tmp_path).problems)


def turned(folder, name, mask, orientation, size=SIZE, exif_of_mask=None, extension="jpg"):
    """A photo of `size` (as stored) with an EXIF orientation, and a mask."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    save(folder, f"{name}.png", mask, **({"exif": exif} if exif_of_mask else {}))
    Image.new("RGB", size[::-1]).save(folder / "images" / f"{name}.{extension}", exif=exif)


@pytest.mark.parametrize("extension", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_stored_pixels_is_rotated_like_its_image(tmp_path, capsys, orientation, extension):
    upright = np.asarray(ImageOps.exif_transpose(with_exif(gray(BINARY), orientation)))
    turned(tmp_path, "stored", BINARY, orientation, extension=extension)
    turned(tmp_path, "upright", upright, orientation, extension=extension)
    turned(tmp_path, "has its own", BINARY, orientation, exif_of_mask=True, extension=extension)
    for name, mask in read(tmp_path).items():
        assert (mask == upright).all(), name
    assert capsys.readouterr().out.count("rotated     1 mask, as the EXIF data of the image say: stored.png") == 1


def with_exif(image, orientation):
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


@pytest.mark.parametrize("extension", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_a_mask_that_fits_both_ways_is_not_rotated_but_warned_of(tmp_path, capsys, orientation, extension):
    size = SIZE if orientation < 5 else (240, 240)
    mask = shapes(255, 255, 255, size=size)
    turned(tmp_path, "a", mask, orientation, size, extension=extension)
    assert (read(tmp_path)["a.png"] == mask).all()
    assert "Warning: 1 mask would fit with and without" in capsys.readouterr().out
    (tmp_path / f"images/a.{extension}").unlink()
    Image.fromarray(mask).save(tmp_path / f"images/a.{extension}")  # the remedy: without EXIF data
    read(tmp_path)
    assert "Warning" not in capsys.readouterr().out


def test_numbered_masks_of_an_image_are_merged(tmp_path, capsys):
    left, right, third = shapes(255, 0, 0), shapes(0, 255, 0), shapes(0, 0, 255)
    save(tmp_path, "a.png", left)
    for number, mask in enumerate((left, right, third)):
        gray(mask).save(tmp_path / f"masks/a_mask{f'_{number}' if number else ''}.png")
    (tmp_path / "masks/a.png").unlink()
    found = survey(tmp_path)
    assert (found.reader.mask(tmp_path / "masks/a_mask.png")[0].numpy() == left | right | third).all()
    assert "merged      the masks of 1 image with more than one: a.jpg" in capsys.readouterr().out
    assert not found.problems and not list(OwnLayout(tmp_path)._pair_problems())[2][0]
    gray(left).save(tmp_path / "masks/a_mask.gif")
    assert list(OwnLayout(tmp_path)._pair_problems())[2][0] == ["a_mask.gif and a_mask.png"]


def test_the_object_on_most_of_the_border_is_a_warning(tmp_path, capsys):
    save(tmp_path, "right.png", BINARY)
    save(tmp_path, "inverted.png", 255 - BINARY)
    assert not survey(tmp_path).problems
    assert "Warning: 1 mask with the object on most of the border: inverted.png." in capsys.readouterr().out


def test_a_damaged_jpeg_mask_is_refused(tmp_path):
    save(tmp_path, "a.jpg", BINARY)
    save(tmp_path, "b.jpg", BINARY)
    path = tmp_path / "masks/a.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    ((where, problem),) = survey(tmp_path).problems.items()
    assert where == path and problem.startswith(f"{path} cannot be read as an image (")


def test_binary_masks_of_nearly_the_same_value_are_of_different_objects(tmp_path):
    for name, value in (("a.png", 255), ("b.png", 255), ("c.png", 245)):
        save(tmp_path, name, shapes(value))
    assert [path.name for path in survey(tmp_path).problems] == ["c.png"]
    soft = gray(shapes(255)).filter(ImageFilter.GaussianBlur(2)).point(lambda value: min(value, 245))
    save(tmp_path, "c.png", soft)  # an object may be so small or blurred that no pixel is all object
    assert not survey(tmp_path).problems


def test_a_resumed_run_reads_masks_as_it_began(tmp_path):
    save(tmp_path, "a.png", shapes(1, 1))
    began = survey(tmp_path).reader.state()
    assert began == {"values": ["gray", (1,), True], "bits": None}
    save(tmp_path, "a.png", BINARY)
    assert "has 255 as its highest value, unlike 1, the object" in str(survey(tmp_path, saved=began).problems)
    assert not survey(tmp_path).problems


def test_drawn_masks_pass(drawn, capsys):
    folder = drawn / "train"
    pairs = {path: [drawn / "train_masks" / f"{path.stem}_mask.gif"] for path in sorted(folder.iterdir())}
    found = Survey(pairs)
    assert not found.problems and found.reader.values == MaskValues()
    assert "Warning" not in capsys.readouterr().out


def save_deep(path, highest, channels=1):
    """Save a 16-bit image with values from 0 to `highest`. Pillow writes gray only, so this writes the PNG itself."""
    values = np.tile(np.linspace(0, highest, SIZE[1]).astype(">u2")[:, None], (SIZE[0], 1, channels))
    header = struct.pack(">IIBBBBB", *SIZE[::-1], 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    chunks = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ))


@pytest.mark.parametrize(("highest", "bits"), [(255, 8), (1023, 10), (4000, 12), (10_000, 14), (65_535, 16)])
def test_the_bits_of_16_bit_images_are_those_of_the_whole_data_set(tmp_path, capsys, highest, bits):
    for name, top in (("dark", 200), ("bright", highest)):
        save(tmp_path, f"{name}.png", BINARY)
        (tmp_path / f"images/{name}.jpg").unlink()
        save_deep(tmp_path / f"images/{name}.png", top)
    found = survey(tmp_path)
    assert found.reader.state()["bits"] == bits
    expected = f"images      2 images of 16 bits, of which {bits} are used: bright.png, dark.png\n"
    assert expected in capsys.readouterr().out
    for name, top in (("dark", 200), ("bright", highest)):
        image = found.reader.image(tmp_path / f"images/{name}.png")
        assert image[0, 0, 0] == 0 and image.max() == round(top * 255 / (2**bits - 1))
    saved = found.reader.state()
    save_deep(tmp_path / "images/dark.png", 65_535)
    assert survey(tmp_path, saved=saved).reader.bits == bits  # of a resumed run
    assert survey(tmp_path, saved={**saved, "bits": None}).reader.bits == 16  # of a model of 8-bit images


@pytest.mark.seconds
def test_classes_are_refused_before_the_first_step_until_an_option_says_what_the_object_is(
    tmp_path, main_here, small_net
):
    for number in range(3):
        save(tmp_path / "own", f"{number}.png", shapes(1, 2, 3))
        image = gray(shapes(250, 60, 60, background=60)).convert("RGB")
        image.save(tmp_path / f"own/images/{number}.jpg")
    own = ["--dataset", "own", "--input-dir", tmp_path / "own", "--workers", "0"]
    sentence = f"{tmp_path}/own/masks/0.png is a class map, has instance ids, or is no mask: its values are 0 ("
    code, _ = main_here(*own, *SMALL)
    assert str(code).startswith(f"main.py: {sentence}") and not list((tmp_path / "output/models").iterdir())
    code, _ = main_here(*own, *SMALL, "--check-data")
    assert str(code).startswith(f"main.py: 3 problems in {tmp_path}/own (3 images, 3 masks read):\n  {sentence}")
    code, printed = main_here(*own, *SMALL, "--check-data", "--mask-values", "1")
    assert code == 0 and "masks       values: the object is 1\n" in printed
    assert (tmp_path / "output/check.png").exists()

    code, printed = main_here(*own, *SMALL, "--epochs", "1", "--mask-values", "1")
    assert code == 0, printed
    (run,) = (tmp_path / "output/models").iterdir()
    saved = torch.load(run / "best.pt", weights_only=True)
    assert saved["reader"] == {"values": ["", (1.0,), False], "bits": None}
    code, _ = main_here("--resume", "last", "--mask-values", "2")
    assert f"--mask-values must stay ('1',) in {run}, not ('2',)" in str(code)
    assert main_here("--resume", "last", "--mask-values", "1")[0] == 0

    for more, value in (([], 1), (["--mask-values", "2"], 2)):  # the first one is the model's
        code, printed = main_here(*own, *SMALL, "--predict-with", run, *more)
        assert code == 0 and f"masks       values: the object is {value}\n" in printed
