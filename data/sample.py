"""Draws a sample data set in Kaggle's format: cars on a turntable in a studio, and their masks.

A car is a smooth surface over a side profile, divided into quads that are shaded by their normals and painted from
back to front. Its axes are in meters: x forward, y to the left, z up from the floor.
"""
import shutil
from collections import namedtuple
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch.utils.data import DataLoader

from helpers import Progress
from runtime.machine import count_cores

# Lengths are in meters, places along the side from 0 (front) to 1 (rear). size: length, width; edges: heights of the
# lower edges of body and side windows; heights: nose, cowl, roof, deck, tail; places: cowl, front and rear end of the
# roof, deck; panes: front end of the side windows, pillars between them, rear end; wheel: radius
Kind = namedtuple("Kind", "size edges heights places panes wheel")
KINDS = [Kind(*numbers) for numbers in (  # sedan, SUV, hatchback, pickup, sports car, van
    ((4.75, 1.84), (.21, .94), (.72, .98, 1.45, 1.11, 1.06), (.28, .44, .70, .87), (.33, .53, .70, .80), .33),
    ((4.60, 1.87), (.26, 1.06), (.86, 1.13, 1.70, 1.22, 1.17), (.24, .38, .90, .97), (.29, .49, .69, .89), .37),
    ((4.10, 1.76), (.20, .95), (.74, 1.00, 1.50, 1.12, 1.08), (.25, .42, .82, .97), (.31, .56, .75, .86), .32),
    ((5.10, 1.88), (.32, 1.10), (.92, 1.14, 1.74, 1.21, 1.21), (.27, .37, .57, .61), (.31, .45, .575), .38),
    ((4.40, 1.84), (.16, .88), (.62, .88, 1.27, 1.00, 0.98), (.33, .50, .66, .88), (.40, .62, .74), .34),
    ((4.95, 1.95), (.22, 1.08), (.80, 1.10, 1.86, 1.24, 1.19), (.15, .33, .93, .98), (.21, .40, .63, .92), .35))]
PAINTS = {(226, 227, 226): .20, (150, 153, 156): .18, (84, 87, 91): .17, (20, 21, 23): .22,  # RGB: fraction of the cars
          (140, 20, 28): .09, (32, 58, 112): .08, (92, 76, 62): .03, (44, 74, 58): .03}
GLASS, BLACK, SILVER, LAMP, RED = (38, 46, 49), (23, 24, 26), (186, 188, 192), (214, 220, 226), (150, 14, 22)
AXLES, GOLDEN = (.185, .79), .618034  # places of the wheels; multiples of the golden ratio are spread evenly modulo 1
CORNER = .85  # fraction of half the width at which the front and rear faces turn into the sides
EDGE = (1 - (1 - CORNER**6) ** (1 / 6)) / 2  # the place of these corners


class Camera(namedtuple("Camera", "size distance height shift turn")):
    """Looks along y, without tilt (its film is shifted instead), at a car rotated by `turn` radians."""
    def project(self, points):
        """Points (..., 3) -> pixels (..., 2), x and y. Focal length (1.52) and shift are in image widths."""
        x, y, z = np.moveaxis(points, -1, 0)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        film = np.stack([x * cos - y * sin, self.height - z], -1) / (x * sin + y * cos + self.distance)[..., None]
        return np.array(self.size[::-1]) / 2 + self.size[1] * (self.shift + 1.52 * film)


def surface(kind, girth, level):
    """The left half of a body: a superellipse in plan view, a quadratic B-spline with nine knots in cross section.

    girth (n,): place on the side, extended to -1 in the middle of the nose and 2 in the middle of the tail
    level (m,): .5 lower edge, 4 belt line, 5 eaves, 7 middle of the roof
    Returns points (n, m, 3).
    """
    face = np.interp(girth, [-1, EDGE, 1 - EDGE, 2], [0, CORNER, CORNER, 0])[:, None]  # fraction of half the width
    place, girth = np.clip(girth, EDGE, 1 - EDGE)[:, None], girth[:, None]
    side = place == girth
    half = np.where(side, (1 - np.abs(1 - 2 * place) ** 6) ** (1 / 6), face) * kind.size[1] / 2
    place = np.where(side, place, .5 + np.sign(girth - .5) * (1 - face**6) ** (1 / 6) / 2)
    (nose, cowl, roof, deck, tail), (glass, front, rear, end) = kind.heights, kind.places
    outline = ([0, .05, glass, front, (front + rear) / 2, rear, end, 1],
               [nose, nose + .07, cowl, roof - .03, roof, roof - .05, deck, tail])
    top = sum(np.interp(place + step, *outline) for step in (-.012, 0, .012)) / 3  # rounds the outline's corners
    low, belt = kind.edges[0] + 0 * top, np.minimum(kind.edges[1] + .05 * place, top - .05)
    brow, eaves = top - np.minimum(.06, .2 * (top - belt)), half * .93 - .36 * (top - belt)  # cabins taper
    y = half * .91, half * .97, half, half * .99, half * .945, eaves, eaves * .7, 0 * eaves, eaves * -.7
    z = low, low + .1, low + .45 * (belt - low), belt - .1, belt, brow, top - .1 * (top - brow), top, top
    gap = np.abs(level - np.arange(9)[:, None, None])  # (9, 1, m)
    weight = np.where(gap < .5, .75 - gap**2, .5 * np.maximum(0, 1.5 - gap) ** 2)
    y, z = (weight * y).sum(0), (weight * z).sum(0)
    bulge = np.interp(z, [.2, .4, .55, .8, 1.9], [.10, 0, .01, .05, .25])  # bumpers protrude
    return np.stack([(1 - 2 * place) * (kind.size[0] / 2 - bulge), y, z], -1)


def turned(center, radii, depths, start=0., end=2 * np.pi):
    """A surface of revolution around y, or a sector of it: radii, depths (m,) -> points (37, m, 3)."""
    angle = np.linspace(start, end, 37)[:, None]
    return center + np.stack(np.broadcast_arrays(np.cos(angle) * radii, depths, np.sin(angle) * radii), -1)


def details(kind):
    """What is painted on both sides of the body: (girth from, to, level from, to, color, gloss)."""
    (first, *pillars, last), (cowl, front, rear, deck), rough = kind.panes, kind.places, kind.edges[0] > .25
    yield from ((-1, 2, .5, 1.3 if rough else .8, BLACK, .03), (-1, -.28, .9, 1.4, BLACK, .05))  # trim, air inlet
    yield from ((-1, -.36, 2.35, 3.2, BLACK, .05), *((-1, -.38, bar, bar + .1, SILVER, .2) for bar in (2.5, 2.7, 2.9)))
    yield from ((-.31, .09, 2.75, 3.5, BLACK, .1), (-.28, .083, 2.82, 3.42, LAMP, .3), (-1, -.75, 1.6, 2.3, LAMP, 0))
    yield from ((.93, 1.5, 2.5, 3.6, BLACK, .1), (.935, 1.48, 2.57, 3.53, RED, .2), (1.75, 2, 1.6, 2.3, LAMP, 0))
    yield from ((door, door + .003, 1., 4., BLACK, .02) for door in (first - .01, *pillars))
    yield from ((door - .055, door - .015, 3.15, 3.3, SILVER, .1) for door in pillars)  # handles
    yield from ((first, last, 4.1, 4.95, BLACK, .1), (cowl, front, 5.15, 7, BLACK, .1))  # frames, then glass
    yield from ((a + .008, b - .008, 4.16, 4.86, GLASS, .14) for a, b in zip(kind.panes, kind.panes[1:], strict=False))
    yield from ((cowl + .01, front - .01, 5.2, 7, GLASS, .16), (rear + .01, deck - .01, 5.3, 7, GLASS, .16))


def parts(kind, paint, spokes, eye):
    """The surfaces of a car in painting order: (points (n, m, 3), RGB, gloss). eye: the camera's position."""
    (length, width), belt, r, tilt = kind.size, kind.edges[1], kind.wheel, np.linspace(np.pi / 2, -np.pi / 2, 9)
    wheels = [(np.array([length * (.5 - place), y * (width / 2 - .14), r]), y) for place in AXLES for y in (-1, 1)]
    yield from ((turned(at, (0, r, r, 0), (.11, .11, -.11, -.11)), BLACK, 0) for at, _ in wheels)
    mirrors = [np.array([length * (.47 - kind.panes[0]), y * (width / 2 + .02), belt + .07]) for y in (-1, 1)]
    balls = [(at[:2] @ eye[:2] > 0, turned(at, .085 * np.cos(tilt), .13 * np.sin(tilt)), paint, .07) for at in mirrors]
    yield from (ball for near, *ball in balls if not near)  # hidden by the cabin
    girth, level = np.interp(np.arange(81), [0, 8, 72, 80], [-1, EDGE, 1 - EDGE, 2]), np.linspace(.5, 7, 30)
    bed = (girth > kind.places[3] + .03) & (girth < .96) & (kind.places[3] < .7)  # of a pickup
    sheets = [(girth, level, np.where((bed[:, None] & (level > 5.4))[:-1, :-1, None], BLACK, paint), .07)]
    sheets += [(np.linspace(a, b, 25), np.linspace(c, d, 4), [[rgb]], coat) for a, b, c, d, rgb, coat in details(kind)]
    for girth, level, colors, gloss in sheets:
        for side in (-1, 1):  # reversed, a sheet faces the other way
            yield (surface(kind, girth, level) * (1, side, 1))[::side], np.array(colors)[::side], gloss
    sectors = [(0, 1.14, BLACK, -.2, np.pi + .2), (.7, 1, BLACK), (.63, .7, SILVER), (0, .63, (46, 47, 49))]
    sectors += [(0, .66, SILVER, angle - .14, angle + .14) for angle in np.arange(spokes) * 2 * np.pi / spokes]
    yield from ((turned((at[0], at[1] + side * .11, at[2]), (inner * r, outer * r)[::side], 0, *angles), color, 0)
                for at, side in wheels for inner, outer, color, *angles in sectors)
    yield from (ball for near, *ball in balls if near)


def draw_car(kind, paint, spokes, camera, light):
    """The car on a transparent image (RGBA): the quads that face the camera, lit from above, reflecting the studio."""
    draw = ImageDraw.Draw(image := Image.new("RGBA", camera.size[::-1]))
    eye = np.array([-np.sin(camera.turn), -np.cos(camera.turn), 0]) * camera.distance + (0, 0, camera.height)
    for p, colors, gloss in parts(kind, paint, spokes, eye):
        quads = np.stack([p[:-1, :-1], p[1:, :-1], p[1:, 1:], p[:-1, 1:]], 2)  # (n - 1, m - 1, 4, 3)
        normal = np.cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1])
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
        sight = eye - quads.mean(2)
        depth = np.linalg.norm(sight, axis=-1, keepdims=True)
        facing = (normal * sight / depth).sum(-1, keepdims=True)
        up = (2 * facing * normal - sight / depth)[..., 2:]  # direction of the reflected ray: -1 floor, 0 wall, 1 lamps
        studio = 255 * np.interp(up, [-.5, -.12, -.02, .04, .3, .5, .8, 1], [.45, .6, .5, .9, .95, .7, .75, 1])
        shine = gloss + (1 - gloss) * .45 * (1 - facing.clip(0, 1)) ** 4  # Schlick's approximation of Fresnel
        lit = colors * (.7 + .34 * normal[..., 2:] + .1 * normal @ light[:, None])
        rgb = (lit * (1 - shine) + shine * studio).clip(0, 255).astype(int).reshape(-1, 3)
        seen = np.flatnonzero(facing > 0)
        pixels, rgb, depth = camera.project(quads).reshape(-1, 8)[seen], rgb[seen], depth.ravel()[seen]
        for i in np.argsort(-depth):
            draw.polygon(pixels[i].tolist(), tuple(rgb[i].tolist()))
    return image


@lru_cache(maxsize=1)
def draw_studio(seed, car, size):
    """What all images of a car share: the empty studio (RGB), the camera, and sensor noise around 128 (RGB)."""
    rng, (height, width) = np.random.default_rng([seed, car, 1]), size
    camera = Camera(size, *rng.uniform((9.8, 2), (10.8, 2.3)), rng.uniform((-.025, -.2), (.025, -.16)), 0)
    foot, font = camera.project(np.array([0, 12, .3]))[1], ImageFont.load_default(.13 * width)
    draw = ImageDraw.Draw(studio := Image.new("RGB", (width, height), (248, 248, 246)))
    draw.text((.45 * width, foot), "UNET", (104, 104, 108), font, "rs")
    draw.text((.48 * width, foot), "STUDIO", (104, 104, 108), font, "ls", stroke_width=.003 * width)
    wall = camera.project(np.array([(x, 12 - .03 * x**2, 0) for x in np.linspace(-9, 9, 49)]))  # lower edge
    draw.polygon([*wall.ravel().tolist(), width, height, 0, height], (192, 195, 199))
    rim = camera.project(turned((0, 0, 0), 3.6, 0)[:, 0, [0, 2, 1]])
    draw.line(rim.ravel().tolist(), (150, 152, 154), max(1, width // 400))  # edge of the turntable
    noise = Image.fromarray((128.5 + 2.5 * rng.standard_normal(size, np.float32)).astype(np.uint8))
    return studio, camera, noise.convert("RGB")


def draw_image(job):
    """Draw a car from one of 16 angles (0: the nose; 22.5 degrees between them), and write the image and its mask."""
    folder, split, seed, car, angle, size = job
    rng, (studio, camera, noise) = np.random.default_rng([seed, car]), draw_studio(seed, car, size)
    kind, spokes, name = KINDS[(car + seed) % len(KINDS)], rng.integers(5, 11), f"{rng.bytes(6).hex()}_{angle + 1:02d}"
    paint = list(PAINTS)[np.searchsorted(np.cumsum(list(PAINTS.values()))[:-1], (car + seed) * GOLDEN % 1)]
    rng, camera = np.random.default_rng([seed, car, 2, angle]), camera._replace(turn=-np.pi / 2 - angle * np.pi / 8)
    # 1. The shadow, blurred at a small size because it has no detail
    plan = surface(kind, np.linspace(-1, 2, 60), np.array([2.]))[:, 0] * (1, 1, 0)
    film, image = camera._replace(size=(160, round(160 * size[1] / size[0]))), studio.copy()
    plan, shadow = film.project(np.concatenate([plan, plan[::-1] * (1, -1, 1)])), Image.new("L", film.size[::-1])
    ImageDraw.Draw(shadow).polygon(plan.ravel().tolist(), 215)
    image.paste((28, 29, 31), mask=shadow.filter(ImageFilter.GaussianBlur(3.5)).resize(image.size))
    # 2. The car and its mask
    layer = draw_car(kind, paint, spokes, camera, rng.normal(0, .5, 3))
    image.paste(layer, mask=layer)
    mask = layer.getchannel("A").point(lambda alpha: alpha // 255)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.save(folder / f"{split}_masks" / f"{name}_mask.gif")
    # 3. Uneven light, exposure, color cast, vignetting, a slight blur, and noise
    light = rng.normal(260, 2, (12, 18)) - 16 * np.hypot(*np.mgrid[-1:1:12j, -1:1:18j])
    light = Image.fromarray((light[..., None] * rng.uniform(.95, .98, 3)).clip(0, 255).astype(np.uint8))
    image = ImageChops.multiply(image.filter(ImageFilter.SMOOTH), light.resize(image.size))
    image = ImageChops.add(image, ImageChops.offset(noise, *rng.integers(0, min(size), 2).tolist()), 1, -128)
    image.save(folder / split / f"{name}.jpg", quality=90)


def draw_sample(folder: str | Path, cars: int = 12, test_cars: int = 2, size: tuple[int, int] = (1280, 1918),
                seed: int = 0, processes: int | None = None) -> None:
    """Draw cars into train/, train_masks/, test/ and test_masks/ in `folder`, with names and formats as Kaggle's.

    The last `test_cars` of the `cars` are for testing. An image is a function of (seed, car, angle) and of its `size`
    (height, width). A folder that exists is left as it is. A new one appears when it is complete.
    """
    folder, processes = Path(folder), processes or min(count_cores(), 32)
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("train", "train_masks", "test", "test_masks"):
        (part / name).mkdir(parents=True)
    jobs = [(part, "train" if i < cars - test_cars else "test", seed, i, k, size) for i, k in np.ndindex(cars, 16)]
    loader = DataLoader(jobs, batch_size=None, collate_fn=draw_image, num_workers=processes if processes > 1 else 0)
    list(Progress(loader, "drawing cars", unit="image", leave=True))
    part.replace(folder)
