"""Draw a sample data set in Kaggle's format: cars in a studio, from 16 angles, and their masks.

In meters: a car's x is forward, the studio's y away from the camera, z up.
"""
import shutil
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import DataLoader

from helpers import Progress
from runtime.machine import count_cores

# Sedan, SUV, van: middle, half length, half width, height
ROOFS = np.array([(-.4, .8, .68, 1.35), (-.6, 1.3, .7, 1.6), (-.5, 1.5, .72, 1.8)])
BLACK, GLASS, SILVER = (23, 24, 26), (38, 46, 49), (188, 191, 195)
PAINTS = (84, 87, 91), (226, 227, 226), SILVER, BLACK, (140, 20, 28)
CAMERA = 0, -10.3, 2.15
ANGLE = np.radians(np.arange(0, 361, 9))
CIRCLE = np.stack([np.cos(ANGLE), np.sin(ANGLE), np.ones(41)], -1)
BOX = np.clip(1.25 * CIRCLE, -1, 1)  # with round corners


def shell(*rings):
    """Return faces (n, 4, 3) between rings (middle, half length, half width, height)."""
    p = np.array([BOX * ring[1:] + (ring[0], 0, 0) for ring in rings])
    return np.stack([p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]], 2).reshape(-1, 4, 3)


def make_car(roof, paint):
    """Yield faces (n, 3) and their colors, in painting order."""
    for face in shell((0, 2.3, .88, .2), (0, 2.4, .92, .65), (0, 2.2, .86, .95), (0, 0, 0, .96)):
        yield face, paint
    for x, side, (radius, color) in product((-1.4, 1.4), (-1, 1), ((.33, BLACK), (.2, SILVER))):
        yield CIRCLE[::-side, [0, 2, 1]] * (radius, .92 * side, radius) + (x, 0, .33), color
    for i, face in enumerate(shell((-.3, 1.7, .84, .95), roof, roof * (1, 0, 0, 1.04))):
        yield face, GLASS if i < 40 and i not in (4, 9, 15, 24, 30, 35) else paint  # pillars


def project(points, size):
    """Return pixels [x, y, x, y, ...] of points (n, 3)."""
    x, y, z = (points - CAMERA).T
    return (size[1] * np.stack([.5 + 1.52 * x / y, .15 - 1.52 * z / y], -1)).ravel().tolist()


def draw_image(job):
    """Write image and mask of a car from one of 16 angles."""
    folder, seed, car, angle, size = job
    rng = np.random.default_rng([car, seed])
    name = f"{rng.bytes(6).hex()}_{angle + 1:02d}"
    angle = np.radians(rng.normal(-90, 2) - 22.5 * angle)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = rng.uniform(.95, 1.05) * np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)])
    image, mask = Image.new("L", size[::-1], 240), Image.new("P", size[::-1])
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, .3 * size[1], *size[::-1]), 182)  # floor
    draw.polygon(project(BOX * (2.4, .9, 0) @ turn, size), 20)  # shadow
    image = image.filter(ImageFilter.GaussianBlur(size[1] / 70)).convert("RGB")
    draw, draw_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for face, color in make_car(ROOFS[car % 3] * rng.uniform(.95, 1.05, 4), PAINTS[car % 5]):
        face = face @ turn
        a, b, c = face[:: len(face) // 3][:3]
        normal = np.cross(b - a, c - a)
        if normal @ (CAMERA - a) > 0:
            light = .85 + .3 * normal[2] / np.linalg.norm(normal)
            draw.polygon(pixels := project(face, size), tuple(int(light * x) for x in color))
            draw_mask.polygon(pixels, 1)
    image.save(f"{folder}/{name}.jpg", quality=90)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(f"{folder}_masks/{name}_mask.gif")


def draw_sample(folder: str | Path, cars: int = 12, test_cars: int = 2, size: tuple[int, int] = (1280, 1918),
                seed: int = 0, processes: int | None = None) -> None:
    """Draw cars into train/, train_masks/, test/ and test_masks/ in `folder`, in Kaggle's format.

    size: (height, width). The last `test_cars` are for testing. An image depends only on (seed, car, angle, size).
    An existing folder is left as it is. A new one appears when complete.
    """
    folder, processes = Path(folder), processes or min(count_cores(), 32)
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("train", "train_masks", "test", "test_masks"):
        (part / name).mkdir(parents=True)
    jobs = [(part / ("train" if i < cars - test_cars else "test"), seed, i, k, size) for i, k in np.ndindex(cars, 16)]
    loader = DataLoader(jobs, batch_size=None, collate_fn=draw_image, num_workers=processes if processes > 1 else 0)
    list(Progress(loader, "drawing cars", unit="image", leave=True))
    part.replace(folder)
