import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from data.dataset import preprocess
from img.mask import decode_mask
from img.transformer import decode_image, draft_scale, halve, reflect_pad, resize, to_mask
from img.tta import tta_view


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


TRUTH = np.zeros((20, 30), dtype=bool)
TRUTH[5:15, 4:21] = True


def test_gray_edges_of_a_mask_are_kept_and_an_empty_mask_is_empty():
    gray = Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8))
    assert decode_mask(encoded(gray, "PNG")).tolist() == [[[0, 51, 255]]]
    assert decode_mask(encoded(Image.new("L", (3, 2)), "PNG")).sum() == 0


@pytest.mark.parametrize("turned", [1, 5, 6])
@pytest.mark.parametrize(
    ("min_size", "expected"),
    [((50, 75), (50, 75)), ((20, 20), (50, 75)), ((51, 20), (100, 150)), ((20, 76), (100, 150)), (None, (100, 150))],
)
def test_an_image_is_halved_if_that_covers_the_size_needed(min_size, expected, turned):
    """An image of 100x150, when it is upright."""
    size = (150, 100) if turned == 1 else (100, 150)  # (width, height) in the file
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    image = Image.new("L", size, 255)
    arguments = () if min_size is None else (min_size,)
    decoded = decode_image(encoded(image.convert("RGB"), "JPEG", exif=exif), *arguments)
    mask = decode_mask(encoded(image, "PNG", exif=exif), *arguments)
    assert decoded.shape == (3, *expected) and mask.shape == (1, *expected)
    assert decoded.min() > 250 and mask.min() == 255


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_decoder_halves_an_image_as_preprocess_does(format):
    """Each pixel is the mean of four."""
    rows, columns = np.mgrid[:62, :80]
    waves = (127 + 90 * np.sin(rows / 2) * np.cos(columns / 3)).astype(np.uint8)
    file = encoded(Image.fromarray(waves).convert("RGB"), format, quality=99)
    full, half = decode_image(file), decode_image(file, (30, 40))
    assert full.shape == (3, 62, 80) and half.shape == (3, 31, 40)
    assert (half.float() - halve(full, (31, 40)).float()).abs().mean() < 1
    assert (half.float() - resize(full, (31, 40)).float()).abs().mean() > 3  # control: the filter of resize
    assert torch.equal(preprocess(half, (31, 40), (31, 40), "reflect"), half)
    assert draft_scale((62, 80), (30, 41)) == draft_scale((62, 80), None) == 1
    corner = waves[:2, :2].mean()
    assert abs(half[0, 0, 0] - corner) <= (1 if format == "PNG" else 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("turned", [1, 3])
def test_an_odd_side_is_not_halved(format, turned):
    """Half of it would end in a pixel that is the mean of fewer pixels, and the rest would shift."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    for size in ((101, 80), (80, 101)):
        file = encoded(Image.new("RGB", size), format, exif=exif)
        assert decode_image(file, (30, 30)).shape[1:] == size[::-1] == decode_mask(file, (30, 30)).shape[1:]
    assert draft_scale((101, 80), (30, 30)) == draft_scale((80, 101), (30, 30)) == 1


def test_images_of_every_kind_are_rgb():
    color = Image.new("RGB", (30, 20), (200, 40, 90))
    for image, format in ((color, "JPEG"), (color, "PNG"), (color.convert("CMYK"), "JPEG")):
        decoded = decode_image(encoded(image, format, quality=95))
        assert decoded.shape == (3, 20, 30) and decoded.dtype == torch.uint8
        assert (decoded[:, 10, 10].int() - torch.tensor([200, 40, 90])).abs().max() <= 8, (image.mode, format)
    assert decode_image(encoded(color.convert("L"), "JPEG")).shape == (3, 20, 30)
    deep = decode_image(encoded(Image.new("I;16", (30, 20), 40000), "PNG"))
    assert deep.shape == (3, 20, 30) and deep.dtype == torch.uint8 and (deep == 156).all()  # 155.6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_half_a_file_is_an_error(share, format, decode):
    data = encoded(noise(), format)
    with pytest.raises((RuntimeError, ValueError, OSError, SyntaxError)):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("damage", ["zeros", "noise", "end"])
def test_a_damaged_jpeg_is_an_error(damage):
    """Most decoders silently return gray pixels from there on."""
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


def test_a_decompression_bomb_is_an_error():
    """The header of a JPEG of 65500x65500 pixels without any of them, and a PNG of one color."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (65500).to_bytes(2, "big") * 2
    png = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    for decode in (decode_image, decode_mask):
        for bomb in (bytes(data), png):
            with pytest.raises(Image.DecompressionBombError):
                decode(bomb)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0", b"GIF89a"])
def test_a_file_that_is_not_an_image_is_an_error(content):
    for decode in (decode_image, decode_mask):
        with pytest.raises((ValueError, OSError, SyntaxError)):
            decode(content)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_images_and_masks_are_rotated_as_their_exif_data_say(orientation, format):
    """As Pillow rotates them, and most viewers."""
    image = Image.new("RGB", (32, 24))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # another corner for each orientation
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(image, format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")) > 127
    assert (decode_image(data)[0].numpy() > 127).tolist() == expected.tolist()
    assert (decode_mask(data)[0].numpy() > 127).tolist() == expected.tolist()


def test_a_damaged_png_is_an_error_and_does_not_end_the_process():
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(ValueError, match="its IDAT chunk is damaged"):
        decode_image(bytes(data))


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def test_a_small_mask_keeps_the_fraction_of_car():
    torch.manual_seed(0)
    mask = (torch.rand(1, 96, 144) > 0.5).to(torch.uint8) * 255
    small = resize(mask, (32, 32))
    assert small.float().mean().item() == pytest.approx(mask.float().mean().item(), rel=0.01)
    edge = torch.zeros(1, 4, 40, dtype=torch.uint8)
    edge[..., :18] = 255  # the edge is in the second of four wide pixels, at 80%
    assert 0.6 < resize(edge, (4, 4))[0, 2, 1].item() / 255 < 0.9


def test_a_resized_mask_stays_aligned_with_its_image():
    """A mask is resized like an image that shows nothing else, to the last bit."""
    mask = torch.from_numpy(TRUTH * 255).to(torch.uint8)[None]
    assert (resize(mask.expand(3, -1, -1), (7, 11)) == resize(mask, (7, 11))).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 80), st.integers(0, 80), st.integers(0, 3))
def test_reflection_padding_is_numpys(height, width, rows, columns, images):
    """Of one image and of a batch, of any type; what is left of an odd number of rows is added at the end."""
    batch = torch.arange(images * 2 * height * width).reshape(images, 2, height, width)
    margins = [(0, 0), (0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)]
    expected = np.pad(batch.numpy(), margins, mode="reflect")
    for dtype in (torch.int64, torch.float32, torch.bfloat16, torch.uint8):
        padded = reflect_pad(batch.to(dtype), (height + rows, width + columns))
        assert padded.dtype == dtype and torch.equal(padded, torch.from_numpy(expected).to(dtype))
        if images:
            assert torch.equal(reflect_pad(batch[0].to(dtype), (height + rows, width + columns)), padded[0])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_of_32_bits_is_refused(mode):
    """Pillow would clip it to 255."""
    with pytest.raises(ValueError, match="its pixels have 32 bits"):
        decode_image(encoded(Image.new(mode, (8, 8), 1), "TIFF"))


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_png_with_a_flipped_bit_is_an_error(decode):
    """Pillow alone decodes many of them to other pixels."""
    rows, columns = np.mgrid[:60, :80]
    file = encoded(Image.fromarray((((rows - 30) ** 2 + (columns - 40) ** 2 < 400) * 255).astype(np.uint8)), "PNG")
    decode(file)  # control
    start = file.index(b"IDAT") + 4
    for place in range(start, len(file) - 16, 7):
        damaged = bytearray(file)
        damaged[place] ^= 4
        with pytest.raises((OSError, ValueError, SyntaxError)):
            decode(bytes(damaged))


@pytest.mark.parametrize(("padding", "window"), [("reflect", (40, 60)), ("stretch", (60, 80))])
def test_preprocess_resizes_and_pads_each_view(padding, window):
    image = torch.randint(256, (3, 70, 110), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sizes = (60, 80), (40, 60)
    expected = [reflect_pad(view, (60, 80)) for view in (resize(image, window), tta_view(image, (40, 60), window))]
    assert torch.equal(preprocess(image, *sizes, padding), expected[0])
    assert torch.equal(preprocess(image, *sizes, padding, tta=True), torch.stack(expected))


def test_probabilities_are_upsampled_before_they_are_thresholded():
    probs = torch.tensor([[[0.9, 0.0]], [[0.0, 0.9]]])
    # Between the centers of both pixels, at 50 and 150, 0.9 falls to 0; it crosses 0.5 at 50 + 100 * 4 / 9
    mask = to_mask(probs, (3, 200), 0.5)
    assert mask.dtype == torch.bool and mask.shape == (2, 3, 200) and mask.sum((1, 2)).tolist() == [3 * 94, 3 * 94]
    assert mask[0, 0].tolist() == [True] * 94 + [False] * 106 and torch.equal(mask[1], mask[0].flip(1))
    assert F.interpolate(probs[:, None].gt(0.5).float(), (3, 200))[0, 0, 0].sum() == 100  # control


def test_a_pixel_is_car_above_the_threshold_and_not_at_it():
    probs = torch.full((1, 2, 2), 0.25)
    assert [bool(to_mask(probs, (4, 4), threshold).any()) for threshold in (0.2, 0.25, 0.5)] == [True, False, False]
