"""Sixteen scenes of the toy world: a few flat areas with jitter, painted on a `Brush`."""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from datasets.toy.draw import BIG, SCALE


class Brush:
    """Paints in final-pixel coordinates on an enlarged image; colours and places vary a little by `rng`."""

    def __init__(self, rng: Generator):
        self.rng = rng
        self.image = Image.new("RGB", (BIG, BIG))
        self.pen = ImageDraw.Draw(self.image)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def tone(self, rgb, spread=14):
        return tuple(int(v) for v in np.clip(np.array(rgb) + self.rng.uniform(-spread, spread, 3), 0, 255))

    def area(self, points, rgb, spread=14):
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=self.tone(rgb, spread))

    def box(self, x0, y0, x1, y1, rgb, spread=14):
        self.area([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], rgb, spread)

    def disc(self, x, y, rx, ry, rgb, spread=14):
        self.pen.ellipse([(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE],
                         fill=self.tone(rgb, spread))  # fmt: skip

    def line(self, points, rgb, width=1.0):
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], fill=self.tone(rgb), width=round(width * SCALE))

    def sky(self, horizon=33, rgb=(150, 205, 250)):
        self.box(0, 0, 33, horizon, rgb)


def beach(b: Brush) -> None:
    h = b.u(10, 13)
    b.sky()
    b.disc(b.u(5, 27), b.u(4, 6), 3, 3, (255, 225, 80))
    b.box(0, h, 33, 33, (40, 130, 210))
    b.area([(0, h + b.u(6, 9)), (33, h + b.u(4, 9)), (33, 33), (0, 33)], (238, 214, 150))
    x = b.u(6, 26)
    b.line([(x, 20), (x, 28)], (120, 80, 40))
    b.area([(x - 5, 21), (x, 16), (x + 5, 21)], (225, 50, 60))


def bridge(b: Brush) -> None:
    y = b.u(16, 19)
    b.sky()
    b.box(0, y + 6, 33, 33, (50, 120, 200))
    for x in (b.u(7, 9), b.u(23, 25)):
        b.box(x - 1.2, y - 10, x + 1.2, y + 10, (150, 50, 40))
        b.line([(x - 9, y), (x, y - 10), (x + 8, y)], (150, 50, 40), 0.8)
    b.box(0, y, 33, y + 2.5, (150, 50, 40))


def city(b: Brush) -> None:
    b.sky(33, (175, 200, 225))
    x = -b.u(0, 3)
    while x < 32:
        w, top = b.u(5, 8), b.u(4, 17)
        grey = b.u(70, 120)
        b.box(x, top, x + w - 0.7, 33, (grey, grey, grey + 12))
        for row in np.arange(top + 2, 30, 4):
            for column in np.arange(x + 1, x + w - 2, 2.6):
                b.box(column, row, column + 1.3, row + 1.8, (250, 235, 140))
        x += w
    b.box(0, 30, 33, 33, (60, 60, 65))


def desert(b: Brush) -> None:
    h = b.u(13, 17)
    b.sky(33, (245, 215, 165))
    b.disc(b.u(5, 27), b.u(4, 7), 3.5, 3.5, (255, 250, 210))
    b.area([(0, h), (10, h - 3), (22, h + 2), (33, h - 2), (33, 33), (0, 33)], (228, 175, 95))
    x, y = b.u(8, 24), b.u(24, 28)
    for dx, top, bottom in ((0, -13, 0), (-3.5, -9, -5), (3.5, -11, -6)):
        b.box(x + dx - 1, y + top, x + dx + 1, y + bottom, (45, 125, 60))
    b.box(x - 4, y - 6, x + 4, y - 4.5, (45, 125, 60))


def forest(b: Brush) -> None:
    b.sky(33, (185, 220, 235))
    b.box(0, 24, 33, 33, (60, 110, 45))
    for x in np.sort(b.rng.permutation(np.arange(2, 34, 5.5))):
        x, y = x + b.u(-1, 1), b.u(23, 29)
        b.box(x - 0.8, y, x + 0.8, y + 3, (100, 65, 35))
        b.area([(x - 4, y), (x, y - b.u(15, 20)), (x + 4, y)], (20, 95, 45), 22)


def garden(b: Brush) -> None:
    b.box(0, 0, 33, 33, (95, 175, 75))
    kinds = [(235, 50, 60), (250, 215, 50), (240, 120, 190), (250, 250, 250), (150, 70, 200)]
    for x in (4, 12, 20, 28):
        for y in (4, 12, 20, 28):
            u, v, tone = x + b.u(-1.5, 1.5), y + b.u(-1.5, 1.5), kinds[b.rng.integers(5)]
            for dx, dy in ((-1.4, 0), (1.4, 0), (0, -1.4), (0, 1.4)):
                b.disc(u + dx, v + dy, 1.3, 1.3, tone)
            b.disc(u, v, 1, 1, (250, 190, 40))


def island(b: Brush) -> None:
    h = b.u(9, 12)
    b.sky(h)
    b.box(0, h, 33, 33, (35, 125, 205))
    x, y = b.u(12, 20), b.u(22, 25)
    b.disc(x, y, b.u(9, 11), 3.6, (238, 214, 150))
    b.line([(x, y - 1), (x + 1.5, y - 12)], (120, 80, 40), 1.6)
    for dx, dy in ((-6, 2), (-4, -3), (5, -3), (7, 2)):
        b.line([(x + 1.5, y - 12), (x + 1.5 + dx, y - 12 + dy)], (30, 140, 60), 1.8)


def lake(b: Brush) -> None:
    h = b.u(8, 11)
    b.sky(h)
    b.box(0, h, 33, 33, (105, 165, 75))
    b.disc(6, h, 9, 4, (80, 140, 70))
    b.disc(25, h, 10, 5, (80, 140, 70))
    b.disc(b.u(14, 18), b.u(20, 23), b.u(11, 13), b.u(5, 6.5), (55, 120, 205))
    for x in (b.u(2, 5), b.u(27, 30)):
        b.area([(x - 2, 17), (x, 9), (x + 2, 17)], (30, 95, 45))


def mountain(b: Brush) -> None:
    b.sky()
    b.box(0, 27, 33, 33, (95, 145, 75))
    for x, top in ((b.u(4, 10), b.u(8, 12)), (b.u(22, 28), b.u(8, 12)), (b.u(14, 18), b.u(3, 6))):
        b.area([(x - 12, 28), (x, top), (x + 12, 28)], (115, 110, 115))
        b.area([(x - 3.4, top + 6.5), (x, top), (x + 3.4, top + 6.5), (x, top + 5)], (250, 250, 250), 5)


def night(b: Brush) -> None:
    b.sky(33, (15, 20, 60))
    for _ in range(14):
        b.disc(b.u(1, 31), b.u(1, 24), 0.6, 0.6, (255, 250, 210))
    x, y = b.u(7, 25), b.u(6, 10)
    b.disc(x, y, 4, 4, (250, 245, 200))
    b.disc(x + 2, y - 1, 3.3, 3.3, (15, 20, 60), 2)
    b.area([(0, 28), (10, 25), (22, 28), (33, 25), (33, 33), (0, 33)], (8, 15, 25), 6)


def ocean(b: Brush) -> None:
    h = b.u(8, 11)
    b.sky(h)
    b.box(0, h, 33, 33, (25, 95, 185))
    for y in np.arange(h + 4, 33, 4.5):
        x = b.u(-4, 0)
        b.line([(x + k * 2.5, y + (k % 2) * 1.3) for k in range(16)], (120, 180, 230), 0.7)
    x = b.u(8, 24)
    b.area([(x - 6, h + 3), (x + 6, h + 3), (x + 4, h + 7), (x - 4, h + 7)], (140, 70, 40))
    b.area([(x, h - 8), (x + 6, h + 2), (x, h + 2)], (250, 250, 250), 5)


def rainbow(b: Brush) -> None:
    b.sky(33, (165, 205, 240))
    x, y = b.u(13, 19), b.u(25, 28)
    bands = [(225, 45, 45), (245, 145, 35), (250, 225, 60), (60, 170, 70), (50, 90, 210), (130, 60, 180)]
    for k, tone in enumerate(bands):
        b.disc(x, y, 18 - 1.9 * k, 19 - 1.9 * k, tone)
    b.disc(x, y, 6.8, 7.8, (165, 205, 240), 4)
    b.box(0, y, 33, 33, (95, 165, 75))


def road(b: Brush) -> None:
    h, x = b.u(9, 12), b.u(13, 19)
    b.sky(h)
    b.box(0, h, 33, 33, (110, 165, 80))
    b.area([(x - 1.5, h), (x + 1.5, h), (x + 13, 33), (x - 13, 33)], (85, 85, 90))
    for k, y in enumerate((h + 2, h + 7, h + 13, h + 19)):
        w = 0.4 + 0.35 * k
        b.area([(x - w, y), (x + w, y), (x + w * 1.2, y + 2 + k), (x - w * 1.2, y + 2 + k)], (250, 240, 180), 5)


def sunset(b: Brush) -> None:
    h, x = b.u(19, 22), b.u(10, 22)
    for k, tone in enumerate([(120, 50, 110), (190, 70, 95), (235, 110, 70), (250, 160, 65)]):
        b.box(0, k * h / 4, 33, h, tone)
    b.disc(x, h, 6, 6, (255, 225, 90))
    b.box(0, h, 33, 33, (70, 35, 75))
    for y in np.arange(h + 2, 32, 3):
        b.line([(x - 4, y), (x + 4, y)], (250, 170, 80), 0.8)


def village(b: Brush) -> None:
    b.sky()
    b.box(0, 17, 33, 33, (115, 170, 85))
    for x, y in ((b.u(4, 8), b.u(16, 19)), (b.u(24, 28), b.u(16, 19)), (b.u(14, 18), b.u(25, 28))):
        b.box(x - 4, y - 4, x + 4, y + 3, (235, 225, 200))
        b.area([(x - 5.2, y - 4), (x, y - 9.5), (x + 5.2, y - 4)], (185, 55, 45))
        b.box(x - 1, y - 1, x + 1, y + 3, (105, 65, 40))


def volcano(b: Brush) -> None:
    x, top = b.u(13, 19), b.u(10, 13)
    b.sky(33, (185, 185, 200))
    for k in range(4):
        b.disc(x + b.u(-2, 2) + k, top - 2 - 2.5 * k, 2.5 + k * 0.7, 2.2 + k * 0.4, (115, 110, 110))
    b.area([(x - 15, 29), (x - 3, top), (x + 3, top), (x + 15, 29)], (85, 60, 55))
    b.area([(x - 3, top), (x + 3, top), (x + 4.5, 20), (x + 1, 17), (x - 2, 24), (x - 3.5, 17)], (250, 90, 25))
    b.box(0, 28, 33, 33, (75, 95, 55))


_ALL = (beach, bridge, city, desert, forest, garden, island, lake,
        mountain, night, ocean, rainbow, road, sunset, village, volcano)  # fmt: skip
SCENES = {function.__name__: function for function in _ALL}


def scene(rng: Generator, name: str) -> np.ndarray:
    """The enlarged image (BIG, BIG, 3) float32 of a scene, mirrored half of the time."""
    brush = Brush(rng)
    SCENES[name](brush)
    pixels = np.asarray(brush.image, np.float32)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
