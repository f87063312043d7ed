import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco
from sklearn.metrics import f1_score

from img import rle
from img.transformer import resize, to_mask

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)).map(torch.from_numpy)


@given(masks)
def test_decoding_gives_back_every_mask(mask):
    assert torch.equal(rle.decode(rle.encode(mask), mask.shape), mask)


@given(masks)
def test_runs_are_those_of_pycocotools(mask):
    # COCO counts along the columns: runs of background and of object in turn, beginning with background
    counts = coco_counts(mask.numpy().T)
    ends = np.cumsum(counts)
    runs = [number for start, length in zip(ends[::2], counts[1::2], strict=False) for number in (start + 1, length)]
    assert rle.encode(mask) == " ".join(map(str, runs))


def coco_counts(mask):
    """Uncompressed counts of a mask that pycocotools has encoded and decoded."""
    pixels = coco.decode(coco.encode(np.asfortranarray(mask, dtype=np.uint8))).ravel(order="F")
    counts, last = [0], 0
    for pixel in pixels:
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


def test_masks_upsampled_before_the_threshold_beat_those_upsampled_after_it():
    rows, columns = np.mgrid[:640, :960]
    truth = ((rows - 300) / 200) ** 2 + ((columns - 500) / 330) ** 2 < 1
    small = resize(torch.from_numpy(truth[None].astype(np.uint8) * 255), (97, 97)).float() / 255
    before = rle.decode(rle.encode(to_mask(small, (640, 960), 0.5)[0]), (640, 960))
    after = F.interpolate((small > 0.5)[None].float(), (640, 960))[0, 0] > 0
    good, worse = (f1_score(truth.ravel(), mask.numpy().ravel()) for mask in (before, after))
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
        ([[0, 0, 0], [0, 0, 0]], ""),
        ([[1, 1, 1], [1, 1, 1]], "1 6"),
        ([[1, 0], [0, 0]], "1 1"),
        ([[0, 0], [0, 1]], "4 1"),
        ([[1, 0], [0, 1]], "1 1 4 1"),
        ([[0, 1], [1, 0]], "2 2"),  # a run continues in the next row
    ],
)
def test_masks_that_touch_the_corners(mask, runs):
    assert rle.encode(torch.tensor(mask, dtype=torch.bool)) == runs
