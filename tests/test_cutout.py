"""Edges without the background's color, the largest object, and color profiles."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin, TiffTags
from scipy import ndimage

from img.cutout import color_profile, cut_out, keep_largest, opacity
from img.transformer import to_pillow
from test_headers import PNG_METADATA, with_chunk

CAR, STUDIO = (200, 30, 40), (60, 220, 70)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
UPRIGHT, ROTATED = 1, 6  # EXIF orientations


def mixed(probs):
    """An image (3, H, W) uint8 that shows the car as far as it is likely, and else the studio."""
    share = np.asarray(probs)[None]
    colors = [np.array(color)[:, None, None] for color in (CAR, STUDIO)]
    return torch.from_numpy((colors[0] * share + colors[1] * (1 - share)).round().astype(np.uint8))


def disk(center, radius=12, size=(60, 80), edge=6):
    """Probabilities (H, W): 1 on a disk, which fade out to 0 over `edge` pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(y - center[0], x - center[1])
    return torch.from_numpy(((radius - distance) / edge + 0.5).clip(0, 1)).float()


@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.95])
def test_a_probability_of_1_is_opaque_and_one_of_0_transparent(threshold):
    car, probs = torch.full((3, 1, 3), 200, dtype=torch.uint8), torch.tensor([[0.0, threshold, 1.0]])
    assert np.asarray(cut_out(car, probs, threshold))[0, :, 3].tolist() == [0, 128, 255]


def test_the_edge_of_a_cut_out_is_soft_and_the_background_fits():
    car, probs = torch.full((3, 1, 5), 200, dtype=torch.uint8), torch.tensor([[0.0, 0.1, 0.35, 0.4, 1.0]])
    alpha = np.asarray(cut_out(car, probs, 0.35))[0, :, 3]
    assert alpha.tolist() == [0, 0, 128, 153, 255]
    behind = cut_out(car, probs, 0.35, Image.new("RGB", (7, 9), (0, 100, 0)))
    assert behind.mode == "RGB" and behind.size == (5, 1)
    assert np.asarray(behind)[0, [0, 4]].tolist() == [[0, 100, 0], [200, 200, 200]]


def test_nothing_of_the_background_is_left_in_a_cut_out():
    probs = disk((25, 30))
    image = mixed(probs)
    before = image.clone()
    cut = np.asarray(cut_out(image, probs, 0.5))
    colors, alpha = cut[..., :3], cut[..., 3]
    edge = (alpha > 0) & (alpha < 255)
    assert edge.sum() > 50 and (alpha == 0).any() and (alpha == 255).any()
    assert not colors[alpha == 0].any()
    opaque = to_pillow(image)
    assert np.array_equal(colors[alpha == 255], np.asarray(opaque)[alpha == 255])
    # Opaque pixels show at most a quarter of the studio
    assert (colors[edge, 1] <= np.array(STUDIO)[1] * 0.25 + np.array(CAR)[1] * 0.75 + 1).all()
    assert (np.asarray(opaque)[edge, 1] > 90).any()  # control: the image's own edge has more of it
    assert torch.equal(image, before)


def test_an_edge_pixel_has_the_color_of_the_nearest_opaque_one():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(1, 256, (3, 9, 12), dtype=np.uint8))
    probs = torch.from_numpy(rng.choice([0.0, 0.4, 0.6, 1.0], (9, 12), p=[0.3, 0.3, 0.3, 0.1])).float()
    cut, pixels = np.asarray(cut_out(image, probs, 0.5)).astype(int), image.permute(1, 2, 0).numpy()
    opaque = np.argwhere(cut[..., 3] == 255)
    for row, column in np.argwhere((cut[..., 3] > 0) & (cut[..., 3] < 255)):
        distances = ((opaque - (row, column)) ** 2).sum(1)
        nearest = pixels[tuple(opaque[distances == distances.min()].T)]
        assert (nearest == cut[row, column, :3]).all(1).any()


@pytest.mark.parametrize("probability", [0.5, 0.0])
def test_without_an_opaque_pixel_the_colors_of_the_edge_stay(probability):
    probs = torch.zeros(5, 6)
    probs[2, 3] = probability
    probs[2, 4] = probability / 1.25  # fainter
    image = torch.arange(90, dtype=torch.uint8).reshape(3, 5, 6)
    cut = np.asarray(cut_out(image, probs, 0.5, crop=True))
    expected = np.zeros((5, 6, 4), np.uint8)
    if probability:
        expected[2, 3] = (15, 45, 75, 128)
        expected[2, 4] = (16, 46, 76, 76)  # 0.4 is 0.3 of the way through the soft range
    assert np.array_equal(cut, expected)


def test_a_background_does_not_shine_through_from_the_image():
    probs = disk((25, 30))
    black = np.asarray(cut_out(mixed(probs), probs, 0.5, Image.new("RGB", (1, 1))))
    cut = np.asarray(cut_out(mixed(probs), probs, 0.5)).astype(float)
    assert np.abs(black - cut[..., :3] * cut[..., 3:] / 255).max() <= 1


def test_only_the_largest_object_is_kept_with_its_soft_edge():
    big, small = disk((30, 25), 14, edge=16), disk((30, 68), 7, edge=16)
    probs = torch.maximum(big, small)
    alpha, alone = opacity(probs, 0.5), opacity(big, 0.5)
    assert ndimage.label(alpha > 0)[1] == 2 and ((alone > 0) & (alone < 128)).sum() > 100  # control
    kept = keep_largest(probs, 0.5)
    assert torch.equal(kept > 0.5, big > 0.5) and np.array_equal(opacity(kept, 0.5), alone)
    assert not kept[:, 55:].any() and probs[:, 55:].any()


def test_the_largest_object_has_most_pixels_above_the_threshold():
    probs = torch.zeros(9, 20)
    probs[:, :10] = 0.4  # a large soft edge, around one pixel
    probs[4, 4] = 1
    probs[4, 15:17] = 1
    assert keep_largest(probs, 0.5).nonzero().tolist() == [[4, 15], [4, 16]]


def test_diagonal_pixels_are_connected_and_faint_specks_are_not_kept():
    probs = torch.zeros(8, 8)
    probs[[0, 1, 2], [0, 1, 2]] = 1  # three pixels
    probs[6, 6:] = 1  # two
    probs[5, 0] = 0.4  # in the soft range, but nearest to the three
    kept = keep_largest(probs, 0.5)
    assert kept.nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert not keep_largest(torch.full((4, 4), 0.4), 0.5).any()  # no object


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_a_cut_out_on_a_background_is_rgb(mode):
    background = Image.new(mode, (3, 3), 1)
    made = cut_out(torch.full((3, 6, 8), 200, dtype=torch.uint8), torch.zeros(6, 8), 0.5, background)
    assert made.mode == "RGB" and made.getpixel((0, 0)) == background.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((10, 30), (20, 60), (8, 32, 18, 62)),  # 5% of 40
        ((0, 30), (41, 80), (0, 32, 39, 80)),  # at the edge of the image
        ((59, 60), (0, 1), (59, 60, 0, 1)),
    ],
)
@pytest.mark.parametrize("background", [None, Image.new("RGB", (3, 3), (0, 0, 255))])
def test_a_cut_out_is_cropped_to_the_car_with_a_margin(rows, columns, expected, background):
    probs = torch.zeros(60, 80)
    probs[slice(*rows), slice(*columns)] = 1
    image = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 60, 80), dtype=np.uint8))
    whole, cropped = (np.asarray(cut_out(image, probs, 0.5, background, crop)) for crop in (False, True))
    top, bottom, left, right = expected
    assert whole.shape[:2] == (60, 80) and np.array_equal(cropped, whole[top:bottom, left:right])


def profile(space, kind, tags, pcs=b"XYZ "):
    """The bytes of an ICC profile, version 2.4."""
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3I", start + len(data), 0x02400000, kind, space, pcs, b"acsp", 0xF6D6, 0x10000, 0xD32D
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def cmyk_profile():
    """A printer that prints only black ink K, from 0 to 1: L*a*b* is (100 * (1 - K), 0, 0)."""
    identity = struct.pack(">9I", *np.eye(3, dtype=int).ravel() * 0x10000)
    ramp, inks = bytes(range(256)), bytes([255, 128, 128, 0, 128, 128]) * 8
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + inks + ramp * 3
    return profile(b"CMYK", b"prtr", {b"A2B0": lut}, b"Lab ")


def gray_profile():
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, 0x0200)  # gamma 2
    white = b"XYZ " + bytes(4) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return profile(b"GRAY", b"mntr", {b"wtpt": white, b"kTRC": curve})


def test_the_gray_profile_is_valid():
    """A control: the test below drops it because it is not for RGB."""
    ImageCms.buildTransform(io.BytesIO(gray_profile()), ImageCms.createProfile("sRGB"), "L", "RGB")
    with pytest.raises(ImageCms.PyCMSError):
        ImageCms.buildTransform(io.BytesIO(gray_profile()), ImageCms.createProfile("sRGB"), "RGB", "RGB")


def saved(path, color, mode, icc=None):
    """Save an image of one color -> what color_profile returns."""
    Image.new(mode, (60, 40), color).save(path, icc_profile=icc)
    return color_profile(path)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_an_rgb_image_keeps_its_profile(tmp_path, extension):
    long = struct.pack(">I", len(SRGB) + 200_000) + SRGB[4:] + np.random.default_rng(0).bytes(200_000)
    for icc in (SRGB, long):  # a JPEG file has the long one in several segments
        assert saved(tmp_path / f"a.{extension}", CAR, "RGB", icc) == icc
    assert saved(tmp_path / f"b.{extension}", CAR, "RGB") is None  # control


@pytest.mark.parametrize(
    ("mode", "icc"),
    [
        ("RGB", b"no profile"),
        ("RGB", SRGB[:200]),  # truncated
        ("RGB", SRGB[:128] + b"\xff" * (len(SRGB) - 128)),
        ("RGB", cmyk_profile()),
        ("L", gray_profile()),
        ("CMYK", cmyk_profile()),
        ("CMYK", b"no profile"),
        ("CMYK", None),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_a_broken_or_unfit_profile_is_dropped(tmp_path, mode, icc, extension):
    color = {"RGB": CAR, "L": 90, "CMYK": (200, 30, 10, 20)}[mode]
    assert saved(tmp_path / f"a.{extension}", color, mode, icc) is None


def test_a_profile_of_another_type_in_a_tiff_is_dropped(tmp_path):
    path = tmp_path / "a.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675], tags.tagtype[34675] = 7, TiffTags.SHORT
    Image.new("RGB", (6, 4), CAR).save(path, tiffinfo=tags)
    assert not isinstance(Image.open(path).info["icc_profile"], bytes)  # control
    assert color_profile(path) is None


def test_a_profile_that_no_png_of_pillow_can_have_is_dropped(tmp_path):
    huge = struct.pack(">I", len(SRGB) + 2**20) + SRGB[4:] + bytes(2**20)
    assert saved(tmp_path / "a.jpg", CAR, "RGB", huge) is None
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG", icc_profile=huge)
    with pytest.raises(ValueError, match="too large"):  # control
        Image.open(file)


@pytest.mark.parametrize("name", ["large text", "text of an unknown compression", "large color profile"])
def test_a_png_that_only_pillow_refuses_has_no_profile(tmp_path, name):
    path = tmp_path / "a.png"
    path.write_bytes(with_chunk(PNG_METADATA[name]))
    assert color_profile(path) is None
    with pytest.raises((ValueError, OSError, SyntaxError)):  # control
        Image.open(path).load()


def test_pixels_inside_the_car_keep_their_colors_though_they_are_half_transparent():
    image, probs = torch.full((3, 40, 60), 90, dtype=torch.uint8), torch.zeros(40, 60)
    image[0, 10:30, 10:30], image[2, 10:30, 30:50] = 255, 255  # magenta-like and blue-like halves of one car
    probs[10:30, 10:30], probs[10:30, 30:50] = 1, 0.7
    cut = np.asarray(cut_out(image, probs, 0.5))
    assert (cut[20, 40, :3] == image[:, 20, 40].numpy()).all() and 127 < cut[20, 40, 3] < 255
    assert (cut[12:28, 32:48, 2] == 255).all()
    probs[10:30, 10:30] = 0.7  # no pixel is opaque
    inside = np.s_[12:28, 12:48, :3]
    assert (np.asarray(cut_out(image, probs, 0.5))[inside] == image.permute(1, 2, 0).numpy()[inside]).all()


def test_a_single_pixel_is_the_largest_object():
    assert keep_largest(torch.ones(1, 1), 0.5) == 1 and keep_largest(torch.zeros(1, 1), 0.5) == 0
