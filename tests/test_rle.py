import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from sklearn.metrics import f1_score

from img import rle
from img.transformer import resize

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(masks)
def test_decoding_gives_back_every_mask(mask):
    assert (rle.decode(rle.encode(mask), mask.shape) == mask).all()


@given(masks)
def test_runs_are_those_of_pycocotools(mask):
    # COCO counts along the columns: runs of background and of object in turn, beginning with background
    counts = coco_counts(mask.T)
    ends = np.cumsum(counts)
    runs = [number for start, length in zip(ends[::2], counts[1::2], strict=False) for number in (start + 1, length)]
    assert rle.encode(mask) == " ".join(map(str, runs))


def coco_counts(mask):
    """Uncompressed counts by way of pycocotools' own codec, decoded pixel by pixel."""
    pixels = coco.decode(coco.encode(np.asfortranarray(mask, dtype=np.uint8))).ravel(order="F")
    counts, last = [0], 0
    for pixel in pixels:
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


sides = st.integers(1, 9)


small_probs = arrays(np.float32, st.tuples(sides, sides), elements=st.floats(0, 1, width=16))


@given(small_probs, sides, sides, st.floats(0, 0.99))
def test_runs_of_an_enlarged_prediction_are_those_of_its_pixels(probs, height, width, threshold):
    """Of one made smaller too; but for pixels that are at the threshold to a rounding error."""
    pixels = F.interpolate(torch.from_numpy(probs)[None, None], (height, width), mode="bilinear")[0, 0].numpy()
    runs = rle.encode_probs(probs, (height, width), threshold)
    mask = rle.decode(runs, (height, width))
    assert runs == rle.encode(mask)  # none of no length, none that should be one
    other = mask != (pixels > threshold)
    assert (np.abs(pixels[other] - threshold) < 1e-5).all()


def test_probabilities_enlarged_then_cut_beat_a_mask_cut_then_enlarged():
    rows, columns = np.mgrid[:640, :960]
    truth = ((rows - 300) / 200) ** 2 + ((columns - 500) / 330) ** 2 < 1
    small = resize(torch.from_numpy(truth[None].astype(np.uint8) * 255), (97, 97))[0].numpy() / np.float32(255)
    enlarged_then_cut = rle.decode(rle.encode_probs(small, (640, 960), 0.5), (640, 960))
    cut_then_enlarged = F.interpolate(torch.from_numpy(small > 0.5)[None, None].float(), (640, 960))[0, 0].numpy()
    good, worse = (f1_score(truth.ravel(), mask.ravel() > 0) for mask in (enlarged_then_cut, cut_then_enlarged))
    assert good > 0.999 and 1 - good < (1 - worse) / 3


def test_kaggles_own_first_runs():
    # the first three runs of train_masks.csv, along rows of 1918
    runs = "879386 40 881253 141 883140 205"
    mask = rle.decode(runs, (1280, 1918))
    assert mask[458, 879386 - 458 * 1918 - 1] and mask.sum() == 40 + 141 + 205
    assert rle.encode(mask) == runs


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        (np.zeros((2, 3)), ""),
        (np.ones((2, 3)), "1 6"),
        (np.array([[1, 0], [0, 0]]), "1 1"),
        (np.array([[0, 0], [0, 1]]), "4 1"),
        (np.array([[1, 0], [0, 1]]), "1 1 4 1"),
        (np.array([[0, 1], [1, 0]]), "2 2"),  # a run goes on into the next row
    ],
)
def test_masks_that_touch_the_corners(mask, runs):
    assert rle.encode(mask) == runs


TOO_LONG = [f"2 {2**63 - 1}", "1 " + "9" * 30]


@pytest.mark.parametrize("runs", ["1", "0 1", "1 0", "6 2", "1 2 2 1", "1 2 3 1", "4 1 1 1", "x 1", *TOO_LONG])
def test_runs_of_no_mask_are_refused(runs):
    with pytest.raises(ValueError):
        rle.decode(runs, (2, 3))


def test_a_text_that_is_no_runs_is_refused():
    """All that decode refuses; an independent reading of what is legal stands in decode's own tests."""
    for runs in ("1", "1 2x", "x", "1  2", " 1 2", "1 2 ", "1 2 3", "0 1", "5 0", "5 -1", "1 2.5", "16 2", "\u0661 2",
                 "2 1 1 1", "1 2 2 2", "1 2 3 1", "9" * 30 + " 1", "1 " + "9" * 30):  # fmt: skip
        with pytest.raises(ValueError):
            rle.parse(runs, (4, 4))
    for runs in ("", "1 16", "16 1", "1 2 4 1"):  # control
        starts, ends = rle.parse(runs, (4, 4))
        assert (ends - starts).sum() == rle.decode(runs, (4, 4)).sum()
