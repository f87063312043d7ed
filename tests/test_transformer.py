import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from img.transformer import decode_image, decode_mask, downsample, reflect_pad, resize


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


TRUTH = np.zeros((20, 30), dtype=bool)
TRUTH[5:15, 4:21] = True


def palette(*colors):
    image = Image.fromarray(TRUTH.astype(np.uint8), mode="P")
    image.putpalette([channel for color in colors for channel in color])
    return image


def painted(mode, black, white):
    image = Image.new(mode, (30, 20), black)
    image.paste(white, (4, 5, 21, 15))
    return image


def see_through(image, value):
    image.info["transparency"] = value
    return image


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (palette((0, 0, 0), (255, 255, 255)), "GIF"),  # Kaggle's
        (palette((0, 0, 0), (1, 1, 1)), "PNG"),
        (palette((0, 0, 0), (128, 0, 0)), "PNG"),  # as PASCAL VOC colors its first class
        (painted("L", 0, 255), "PNG"),
        (painted("L", 0, 1), "PNG"),
        (painted("1", 0, 1), "PNG"),
        (painted("1", 0, 1), "TIFF"),
        (painted("RGB", (0, 0, 0), (255, 255, 255)), "PNG"),
        (painted("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)), "PNG"),
        (painted("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)), "PNG"),  # white on nothing
        (painted("RGBA", (90, 80, 70, 0), (0, 0, 0, 255)), "PNG"),  # a black car cut out
        (see_through(palette((255, 255, 255), (0, 0, 0)), 0), "PNG"),  # and so are these three
        (see_through(palette((255, 255, 255), (0, 0, 0)), 0), "GIF"),
        (see_through(painted("L", 255, 0), 255), "PNG"),
        (see_through(palette((0, 0, 0), (1, 1, 1)), 7), "GIF"),  # of a color that is nowhere
        (painted("RGB", (0, 0, 0), (0, 0, 1)), "PNG"),
        (painted("F", -1.0, 1.0), "TIFF"),
        (painted("LA", (0, 255), (255, 255)), "PNG"),
        (painted("I;16", 0, 65535), "PNG"),
        (painted("I;16", 0, 1), "PNG"),
        (painted("RGB", (0, 0, 0), (255, 255, 255)), "BMP"),
    ],
)
def test_masks_of_every_kind_are_the_same_mask(image, format):
    mask = decode_mask(encoded(image, format))
    assert mask.dtype == torch.uint8 and mask.shape == (1, 20, 30)
    assert (mask[0].numpy() == TRUTH * 255).all()


def test_grey_edges_of_a_mask_are_kept_and_an_empty_mask_is_empty():
    gray = Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8))
    assert decode_mask(encoded(gray, "PNG")).tolist() == [[[0, 51, 255]]]
    assert decode_mask(encoded(Image.new("L", (3, 2)), "PNG")).sum() == 0


@pytest.mark.parametrize("turned", [1, 5, 6])
@pytest.mark.parametrize(
    ("min_size", "expected"),
    [((50, 75), (50, 75)), ((20, 20), (50, 75)), ((51, 20), (100, 150)), ((20, 76), (100, 150)), (None, (100, 150))],
)
def test_what_is_needed_at_half_the_size_comes_so(min_size, expected, turned):
    """A picture of 100 x 150, upright."""
    size = (150, 100) if turned == 1 else (100, 150)  # as it lies in the file, for Pillow
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    picture = Image.new("L", size, 255)
    arguments = () if min_size is None else (min_size,)
    photo = decode_image(encoded(picture.convert("RGB"), "JPEG", exif=exif), *arguments)
    mask = decode_mask(encoded(picture, "PNG", exif=exif), *arguments)
    assert photo.shape == (3, *expected) and mask.shape == (1, *expected)
    assert photo.min() > 250 and mask.min() == 255


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_at_half_its_size_a_photo_is_the_same_from_any_file(format):
    """And from its pixels, as predict.py has them: each is the mean of four."""
    rows, columns = np.mgrid[:62, :80]
    waves = (127 + 90 * np.sin(rows / 2) * np.cos(columns / 3)).astype(np.uint8)
    file = encoded(Image.fromarray(waves).convert("RGB"), format, quality=99)
    photo, half = decode_image(file), decode_image(file, (30, 40))
    assert photo.shape == (3, 62, 80) and half.shape == (3, 31, 40)
    assert (half.float() - downsample(photo, (30, 40)).float()).abs().mean() < 1
    assert (half.float() - resize(photo, (31, 40)).float()).abs().mean() > 3  # control: the filter of resize
    assert downsample(photo, (30, 41)) is photo
    corner = waves[:2, :2].mean()
    assert abs(half[0, 0, 0] - corner) <= (1 if format == "PNG" else 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("turned", [1, 3])
def test_an_odd_side_is_not_halved(format, turned):
    """Its last pixel, which may come to lie at any side, would count twice, and move what is beside it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    for size in ((101, 80), (80, 101)):
        file = encoded(Image.new("RGB", size), format, exif=exif)
        assert decode_image(file, (30, 30)).shape[1:] == size[::-1] == decode_mask(file, (30, 30)).shape[1:]
    assert downsample(torch.zeros(3, 101, 80, dtype=torch.uint8), (30, 30)).shape == (3, 101, 80)


def test_photos_of_every_kind_are_rgb():
    color = Image.new("RGB", (30, 20), (200, 40, 90))
    for image, format in ((color, "JPEG"), (color, "PNG"), (color.convert("CMYK"), "JPEG")):
        photo = decode_image(encoded(image, format, quality=95))
        assert photo.shape == (3, 20, 30) and photo.dtype == torch.uint8
        assert (photo[:, 10, 10].int() - torch.tensor([200, 40, 90])).abs().max() <= 8, (image.mode, format)
    assert decode_image(encoded(color.convert("L"), "JPEG")).shape == (3, 20, 30)
    deep = decode_image(encoded(Image.new("I;16", (30, 20), 40000), "PNG"))
    assert deep.shape == (3, 20, 30) and deep.dtype == torch.uint8 and (deep == 40000 // 257).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_half_a_file_is_an_error(share, format, decode):
    data = encoded(noise(), format)
    with pytest.raises((RuntimeError, ValueError, OSError, SyntaxError)):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("damage", ["zeros", "noise", "end"])
def test_a_damaged_jpeg_is_an_error(damage):
    """Most decoders paint gray from there on and say nothing."""
    data = bytearray(encoded(noise(), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 400] = {
        "zeros": bytes(400),
        "noise": np.random.default_rng(1).bytes(400),
        "end": b"\xff\xd9" * 200,
    }[damage]
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        decode_image(bytes(data))
    Image.open(io.BytesIO(data)).load()  # control: Pillow


def test_a_photo_of_more_pixels_than_memory_is_an_error():
    """65500 x 65500 pixels in a few bytes: a JPEG's header, and nothing of them."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (65500).to_bytes(2, "big") * 2
    png = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    for decode in (decode_image, decode_mask):
        for bomb in (bytes(data), png):
            with pytest.raises(Image.DecompressionBombError):
                decode(bomb)


@pytest.mark.parametrize("content", [b"", b"no photo", b"\xff\xd8\xff\xe0", b"GIF89a"])
def test_what_is_no_image_is_an_error(content):
    for decode in (decode_image, decode_mask):
        with pytest.raises((ValueError, OSError, SyntaxError)):
            decode(content)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_photos_and_masks_are_turned_upright(orientation, format):
    """As Pillow turns them, which most viewers agree with."""
    image = Image.new("RGB", (32, 24))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # another corner for each orientation
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(image, format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")) > 127
    assert (decode_image(data)[0].numpy() > 127).tolist() == expected.tolist()
    assert (decode_mask(data)[0].numpy() > 127).tolist() == expected.tolist()


def test_a_damaged_png_is_an_error_and_no_end_of_the_process():
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(ValueError, match="it was damaged"):
        decode_image(bytes(data))


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def test_a_small_mask_keeps_the_share_of_car():
    torch.manual_seed(0)
    mask = (torch.rand(1, 96, 144) > 0.5).to(torch.uint8) * 255
    small = resize(mask, (32, 32))
    assert small.float().mean().item() == pytest.approx(mask.float().mean().item(), rel=0.01)
    edge = torch.zeros(1, 4, 40, dtype=torch.uint8)
    edge[..., :18] = 255  # cuts the second of four wide pixels at 80 %
    assert 0.6 < resize(edge, (4, 4))[0, 2, 1].item() / 255 < 0.9


def test_a_small_mask_stands_where_its_photo_stands():
    """A mask goes the way of a photo that shows nothing else, to the last bit."""
    mask = torch.from_numpy(TRUTH * 255).to(torch.uint8)[None]
    assert (resize(mask.expand(3, -1, -1), (7, 11)) == resize(mask, (7, 11))).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_the_mirror_is_numpys(height, width, rows, columns):
    image = torch.arange(height * width).reshape(1, height, width)
    expected = np.pad(image[0].numpy(), ((rows, rows), (columns, columns)), mode="reflect")
    assert (reflect_pad(image, (height + 2 * rows, width + 2 * columns))[0].numpy() == expected).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_photo_whose_white_is_not_known_is_refused(mode):
    """Pillow would take what is above 255 for white."""
    with pytest.raises(ValueError, match="its pixels have 32 bits"):
        decode_image(encoded(Image.new(mode, (8, 8), 1), "TIFF"))


def test_an_orientation_that_is_no_number_turns_nothing(monkeypatch):
    monkeypatch.setattr(Image.Image, "getexif", lambda image: {ExifTags.Base.Orientation: "6"})
    assert decode_image(encoded(Image.new("RGB", (8, 4)), "JPEG")).shape == (3, 4, 8)


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_png_with_a_bit_that_flipped_is_an_error(decode):
    """Pillow alone decodes many of them, to other pixels."""
    rows, columns = np.mgrid[:60, :80]
    file = encoded(Image.fromarray((((rows - 30) ** 2 + (columns - 40) ** 2 < 400) * 255).astype(np.uint8)), "PNG")
    decode(file)  # control
    start = file.index(b"IDAT") + 4
    for place in range(start, len(file) - 16, 7):
        damaged = bytearray(file)
        damaged[place] ^= 4
        with pytest.raises((OSError, ValueError)):
            decode(bytes(damaged))
