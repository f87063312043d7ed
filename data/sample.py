"""Draw a sample data set in Kaggle's format: cars on a turntable in a studio, and their masks.

Lengths are in meters, z is up. A car's x is forward, the studio's y away from the camera.
"""
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch.utils.data import DataLoader

from helpers import Progress
from runtime.machine import count_cores

# Length, width, wheel radius, belt line, roof, middle and half length of the cabin at both
KINDS = (
    (4.75, 1.84, .33, .98, 1.46, -.32, 1.48, -.32, .68),  # sedan
    (4.60, 1.87, .37, 1.12, 1.72, -.42, 1.68, -.65, 1.25),  # SUV
    (4.10, 1.76, .32, 1.00, 1.52, -.38, 1.48, -.55, .90),  # hatchback
    (4.95, 1.95, .35, 1.10, 1.90, -.24, 2.04, -.60, 1.60),  # van
)
WHITE, SILVER, BLACK, RED, GLASS = (226, 227, 226), (188, 191, 195), (23, 24, 26), (140, 20, 28), (38, 46, 49)
PAINTS = (84, 87, 91), WHITE, SILVER, BLACK, (92, 76, 62), RED, (32, 58, 112)
# Color; degrees around, from the front (0) to the rear (180); degrees up, to the middle of the top (90)
BODY = ((BLACK, 0, 180, 0, 7), (BLACK, 0, 24, 26, 34), (WHITE, 27, 48, 30, 37), (RED, 132, 152, 30, 38))
CABIN = ((GLASS, 0, 39, 7, 41), (GLASS, 49, 91, 7, 37), (GLASS, 94, 129, 7, 37), (GLASS, 142, 180, 11, 37))
EYE = np.array((0, -10.3, 2.15))  # camera


def superellipse(degrees, power):
    """Return x and y, (2, ...), where |x|^power + |y|^power = 1 in these directions."""
    point = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    return point / (abs(point) ** power).sum(0) ** (1 / power)


def shell(low, high, bottom, top, paint, spots):
    """Return points (25, 181, 3) of a rounded box and colors (24, 180, 3) between them.

    low, high: (middle, half length, half width) at bottom and top. top: x and z of its profile
    """
    around, up = np.arange(-180, 181, 2), np.linspace(0, 90, 25)[:, None]
    (along, across), (shrink, rise) = superellipse(around, 5), superellipse(up, 7)
    middle, length, width = (a + (b - a) * rise for a, b in zip(low, high, strict=True))
    x = middle + length * shrink * along
    points = np.stack([x, width * shrink * across, bottom + rise * (np.interp(x, *top) - bottom)], -1)
    colors = np.full((24, 180, 3), paint)
    around, up = abs(around[1:] - 1), up[1:] - 2
    for color, first, last, lower, upper in spots:
        colors[(lower < up) & (up < upper) & (first < around) & (around < last)] = color
    return points, colors


def circle(center, radius):
    """Return a circle around the y axis, (61, 3)."""
    x, z = radius * superellipse(np.arange(0, 361, 6), 2)
    return center + np.stack([x, 0 * x, z], -1)


def surfaces(kind, paint):
    """Yield points (n, m, 3) and colors (n - 1, m - 1, 3) of convex surfaces, in painting order."""
    length, width, radius, belt, roof, *cabin = kind
    axles = [(np.array((x * length, side * width / 2, radius)), side) for x in (.315, -.29) for side in (-1, 1)]
    for center, side in axles:
        inner = center - (0, .22 * side, 0)
        tire = np.array([circle(center, radius), circle(inner, radius), circle(inner, 0)])
        yield tire[::side], np.full((2, 60, 3), BLACK)
    plan = 0, length / 2, width / 2
    hood = (-length / 2, sum(cabin[:2]), length / 2), (1.05 * belt, belt, .77 * belt)
    yield shell(plan, plan, .68 * radius, hood, paint, BODY)
    colors = np.full((4, 60, 3), SILVER)
    colors[1, np.arange(60) % 6 < 3] = colors[3] = BLACK  # between spokes; tire
    for center, side in axles:
        wheel = np.array([circle(center, part * radius) for part in (0, .18, .62, .7, 1)])
        yield wheel[::side], colors[::side]
    yield shell((*cabin[:2], .46 * width), (*cabin[2:], .35 * width), belt - .06, ((0,), (roof,)), paint, CABIN)


def project(points, size):
    """Project points of the studio (..., 3) to pixels (..., 2)."""
    x, y, z = np.moveaxis(points - EYE, -1, 0)
    return np.array(size[::-1]) / 2 + size[1] * (1.52 * np.stack([x, -z], -1) / y[..., None] - (0, .18))


def draw_car(parts, turn, size):
    """Return a car, rotated by the matrix `turn`, on a transparent image (RGBA)."""
    draw = ImageDraw.Draw(image := Image.new("RGBA", size[::-1]))
    for points, colors in parts:
        p = points @ turn
        quads = np.stack([p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]], 2).reshape(-1, 4, 3)
        normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        seen = (normal * (EYE - quads[:, 0])).sum(1) > 0
        x, _, z = normal[seen].T / np.linalg.norm(normal[seen], axis=1)
        gloss = np.interp(z, (0, .1, .3, .5, 1), (6, 18, 40, 14, 36))
        rgb = colors.reshape(-1, 3)[seen] * (.76 + .3 * z + .08 * x)[:, None] + gloss[:, None]
        pixels = project(quads[seen], size).reshape(-1, 8)
        for corners, color in zip(pixels.tolist(), rgb.clip(0, 255).astype(int).tolist(), strict=True):
            draw.polygon(corners, tuple(color))
    return image


def draw_studio(outline, size):
    """Return a wall, a floor with a turntable, and a soft shadow (RGB)."""
    draw = ImageDraw.Draw(image := Image.new("RGB", size[::-1], (250, 250, 248)))
    draw.rectangle((0, project((0, 12, 0), size)[1], *image.size), (194, 197, 201))
    table = circle(0, 3.6)[:, [0, 2, 1]]
    draw.line(project(table, size).ravel().tolist(), (150, 152, 154), size[1] // 400)
    small = round(160 * size[0] / size[1]), 160
    shadow = Image.new("L", small[::-1])
    ImageDraw.Draw(shadow).polygon(project(outline, small).ravel().tolist(), 225)
    image.paste(0, mask=shadow.filter(ImageFilter.GaussianBlur(3.5)).resize(image.size))
    return image


def draw_image(job):
    """Write image and mask of a car from one of 16 angles; 0 is the front."""
    folder, seed, car, angle, size = job
    rng = np.random.default_rng([car, seed])  # per car
    name = f"{rng.bytes(6).hex()}_{angle + 1:02d}"
    kind = KINDS[(car + seed) % len(KINDS)] * rng.uniform(.96, 1.04, 9)
    cos, sin = superellipse(rng.normal(-90, 2) - 22.5 * angle, 2)
    turn = np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)])
    outline = superellipse(np.arange(0, 360, 6), 5).T * kind[:2] / 2 @ turn[:2]
    image = draw_studio(outline, size)
    layer = draw_car(surfaces(kind, PAINTS[(car + seed) % len(PAINTS)]), turn, size)
    image.paste(layer, mask=layer)
    rng = np.random.default_rng([seed, car, angle])
    light = Image.fromarray(rng.integers(195, 236, (3, 4), np.uint8)).resize(image.size)
    light = Image.fromarray((light + rng.integers(-4, 5, size, np.int8)).astype(np.uint8)).convert("RGB")
    ImageChops.multiply(image.filter(ImageFilter.SMOOTH), light).save(f"{folder}/{name}.jpg", quality=90)
    mask = layer.getchannel("A").point([0] * 255 + [1])
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(f"{folder}_masks/{name}_mask.gif")


def draw_sample(folder: str | Path, cars: int = 12, test_cars: int = 2, size: tuple[int, int] = (1280, 1918),
                seed: int = 0, processes: int | None = None) -> None:
    """Draw cars into train/, train_masks/, test/ and test_masks/ in `folder`, named and formatted as Kaggle's.

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
