"""The places out of doors and the table of all eight: calm, few large shapes, the ground below y = 200.

A place is drawn on 256 x 256 units; its random numbers move and mirror things but never change what they are.
"""

from collections.abc import Callable
from random import Random

from storyv_lite.train.toonworld.brush import WHITE, Brush
from storyv_lite.train.toonworld.rooms import draw_bedroom, draw_kitchen


def _cloud(brush: Brush, x: float, y: float, s: float) -> None:
    for dx, dy, r in ((-20, 3, 13), (0, -6, 18), (20, 2, 14)):
        brush.disc(x + dx * s, y + dy * s, r * s, WHITE)
    brush.box(x - 33 * s, y + 1, x + 34 * s, y + 16 * s, WHITE, 7 * s)


def _meadow(brush: Brush, rng: Random) -> None:
    brush.wash("#86d0f5", "#dcf3fb", 0.74)
    brush.disc(206 + rng.uniform(-14, 14), 44 + rng.uniform(-6, 10), 23, "#ffdc4f")
    _cloud(brush, 62 + rng.uniform(-20, 24), 46 + rng.uniform(-8, 12), 1 + rng.uniform(-0.1, 0.2))
    brush.oval(60 + rng.uniform(-20, 20), 232, 150, 78 + rng.uniform(-6, 8), "#93d46c")
    brush.oval(222 + rng.uniform(-14, 14), 244, 130, 76 + rng.uniform(-8, 8), "#a9df7c")
    brush.box(0, 198, 256, 256, "#7cc458")
    for k, centre in enumerate((26, 88, 166, 230)):
        x = centre + rng.uniform(-18, 18)
        y = (236, 244, 242, 234)[k] + rng.uniform(-5, 5)
        petal = rng.choice((WHITE, "#ff9fbe", "#fff0a0"))
        for dx, dy in ((-5, 0), (5, 0), (0, -5), (0, 5)):
            brush.disc(x + dx, y + dy, 4.6, petal)
        brush.disc(x, y, 4, "#f7a823")


def _beach(brush: Brush, rng: Random) -> None:
    brush.wash("#5fc3f2", "#d2f0fd", 0.52)
    brush.disc(48 + rng.uniform(-16, 16), 42 + rng.uniform(-6, 8), 24, "#ffe45f")
    _cloud(brush, 170 + rng.uniform(-24, 30), 40 + rng.uniform(-8, 10), 0.95)
    brush.box(0, 124, 256, 200, "#2793d6")
    brush.box(0, 156, 256, 200, "#4db4e8")
    x = 128 + rng.uniform(-70, 50)
    brush.polygon([(x, 84), (x, 122), (x + 26, 122)], WHITE)
    brush.polygon([(x - 5, 94), (x - 5, 122), (x - 22, 122)], "#ffe0d6")
    brush.polygon([(x - 26, 126), (x + 34, 126), (x + 24, 138), (x - 16, 138)], "#e2583f")
    brush.blob(
        [
            (-4, 260),
            (-4, 186),
            (-4, 186),
            (64, 174),
            (128, 186),
            (192, 198),
            (260, 184),
            (260, 260),
            (260, 260),
        ],
        "#f8e0a2",
    )
    x = 232 + rng.uniform(-8, 8)
    top = 92 + rng.uniform(-8, 8)
    brush.curve([(x + 6, 206), (x + 12, 150), (x - 6, top)], "#a9774a", 10)
    for dx, dy, bend in ((-50, 6, -26), (-34, 34, -14), (34, 30, -18), (46, 0, -26), (-14, -34, -18)):
        brush.curve([(x - 6, top), (x - 6 + dx * 0.5, top + bend), (x - 6 + dx, top + dy)], "#3da35a", 10)
    x = rng.uniform(20, 90)
    brush.oval(x, 242, 9, 6, "#f29a8e")


def _forest(brush: Brush, rng: Random) -> None:
    brush.wash("#b9e2bb", "#eaf6d6", 0.78)
    for k in range(4):
        x = 40 + k * 58 + rng.uniform(-12, 12)
        brush.box(x - 6, 80, x + 6, 206, "#a3b98e")
        brush.oval(x, 66 + rng.uniform(-10, 10), 36, 46, "#a4d494")
    for x in (14 + rng.uniform(-8, 8), 242 + rng.uniform(-8, 8)):
        brush.box(x - 13, 60, x + 13, 212, "#7d5538", 4)
        brush.oval(x, 46, 54, 50, "#3d9150")
        brush.oval(x - 22, 66, 29, 25, "#54a95f")
        brush.oval(x + 22, 60, 29, 25, "#4a9e56")
    brush.box(0, 198, 256, 256, "#5c9a4a")
    brush.oval(128, 246, 124, 32, "#74b05c")
    for x in (rng.uniform(16, 56), rng.uniform(198, 240)):
        y = rng.uniform(228, 244)
        brush.box(x - 5, y - 12, x + 5, y + 2, "#fff4e0", 4)
        brush.blob(
            [(x - 15, y - 9), (x - 10, y - 30), (x, y - 28), (x + 10, y - 30), (x + 15, y - 9)], "#e5483c"
        )
        brush.disc(x - 4, y - 17, 3.4, WHITE)


def _snow(brush: Brush, rng: Random) -> None:
    brush.wash("#a9c6e8", "#e6f1fb", 0.70)
    for x, y, colour in ((70.0, 62.0, "#8aa4cb"), (196.0, 86.0, "#9fb6d8")):
        x += rng.uniform(-20, 20)
        y += rng.uniform(-10, 10)
        brush.polygon([(x - 96, 200), (x, y), (x + 96, 200)], colour)
        brush.polygon(
            [(x - 21, y + 30), (x, y), (x + 21, y + 30), (x + 8, y + 24), (x, y + 34), (x - 8, y + 24)], WHITE
        )
    brush.box(0, 192, 256, 256, "#e6effa")
    brush.oval(70 + rng.uniform(-20, 20), 204, 110, 22, "#e6effa")
    brush.oval(200, 254, 130, 26, "#d6e4f5")
    for x in (20 + rng.uniform(-10, 10), 236 + rng.uniform(-10, 10)):
        brush.box(x - 5, 186, x + 5, 208, "#7d5538")
        for q in range(3):
            wide = 32 - q * 6
            y = 194 - q * 28
            brush.polygon([(x - wide, y), (x + wide, y), (x, y - 46)], "#2c7f6d", 2)
        brush.polygon([(x - 10, 108), (x + 10, 108), (x, 90)], WHITE, 2)
    for k in range(9):
        brush.disc(14 + k * 28 + rng.uniform(-12, 12), rng.uniform(8, 168), 3.6, WHITE)


def _town(brush: Brush, rng: Random) -> None:
    brush.wash("#fcc78e", "#ffeccb", 0.70)
    colours = ["#e9785a", "#f5c44f", "#5fa8cf", "#bd8ccc"]
    rng.shuffle(colours)
    x = -14 + rng.uniform(-10, 10)
    for colour in colours:
        top = 74 + rng.uniform(-16, 26)
        brush.box(x, top, x + 71, 210, colour)
        brush.polygon([(x - 5, top), (x + 76, top), (x + 35, top - 32)], "#8c4a48", 1)
        for dx in (11, 42):
            for dy in (16, 56):
                brush.box(x + dx, top + dy, x + dx + 18, top + dy + 24, "#fff5c8", 2)
        brush.box(x + 26, 172, x + 45, 210, "#6e4832", 6)
        x += 71
    brush.box(0, 198, 256, 256, "#ddd5d2")
    brush.box(0, 210, 256, 256, "#a8a4b0")
    shift = rng.uniform(0, 40)
    for k in range(4):
        brush.box(k * 72 - shift, 241, k * 72 - shift + 36, 248, "#f4efe4", 3)


def _hill(brush: Brush, rng: Random) -> None:
    brush.wash("#1c2660", "#5556a4", 0.78)
    x = 196 + rng.uniform(-20, 20)
    y = 50 + rng.uniform(-6, 12)
    brush.disc(x, y, 40, "#3a4288")
    brush.disc(x, y, 28, "#fff3bf")
    brush.disc(x - 9, y + 6, 6, "#f2dc98")
    brush.disc(x + 9, y - 8, 4.6, "#f2dc98")
    for k in range(7):
        star_x = 16 + k * 22 + rng.uniform(-8, 8)
        brush.disc(star_x, rng.uniform(12, 116), rng.choice((3.0, 4.0)), "#fff6cf")
    x = 32 + rng.uniform(-12, 16)
    brush.oval(60 + rng.uniform(-20, 20), 262, 150, 98, "#29507a")
    brush.oval(210 + rng.uniform(-20, 20), 268, 130, 88, "#31608a")
    brush.box(x - 7, 130, x + 7, 206, "#33335c", 3)
    brush.oval(x, 116, 34, 36, "#1f5562")
    brush.oval(x + 8, 104, 20, 18, "#2a6a72")
    brush.oval(128, 274, 200, 80, "#24686e")


_DRAW: dict[str, Callable[[Brush, Random], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "kitchen": draw_kitchen,
    "bedroom": draw_bedroom,
    "town": _town,
    "hill": _hill,
}


def draw_place(brush: Brush, place: str, rng: Random) -> None:
    """Fill 256 x 256 units with a place, mirrored or not."""
    mirrored = rng.random() < 0.5
    if mirrored:
        brush.push(256, 0, -1, 1)
    _DRAW[place](brush, rng)
    if mirrored:
        brush.pop()
