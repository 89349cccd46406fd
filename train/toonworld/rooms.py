"""The two places indoors, drawn on 256 x 256 units."""

from random import Random

from storyv_lite.train.toonworld.brush import WHITE, Brush


def draw_kitchen(brush: Brush, rng: Random) -> None:
    """Cream tiles, a window with curtains, a fridge, green cupboards, a checked floor."""
    brush.wash("#ffe9b8", "#ffe9b8", 1.00)
    for at in range(0, 256, 36):
        brush.line(at, 0, at, 200, "#fff5d8", 5)
    for y in range(14, 200, 36):
        brush.line(0, y, 256, y, "#fff5d8", 5)
    x = 70 + rng.uniform(-12, 14)
    brush.box(x - 38, 26, x + 38, 100, WHITE, 5)
    brush.box(x - 31, 33, x + 31, 93, "#97d8f4", 2)
    brush.box(x - 3, 33, x + 3, 93, WHITE)
    for side in (-1, 1):
        brush.polygon([(x + side * 42, 24), (x + side * 6, 24), (x + side * 38, 74)], "#f2705c", 3)
    brush.box(176, 40, 262, 212, "#cfe6ee", 8)
    brush.box(176, 104, 262, 109, "#92b8c6")
    brush.box(186, 70, 193, 96, "#7c9fb0", 3)
    brush.box(186, 118, 193, 150, "#7c9fb0", 3)
    brush.box(-4, 146, 168, 212, "#7fb069", 2)
    brush.box(-6, 136, 172, 149, "#fffaf0", 3)
    for left in (12, 66, 120):
        brush.box(left - 4, 158, left + 38, 204, "#98c383", 4)
    x = 136 + rng.uniform(-14, 8)
    brush.box(x - 17, 110, x + 17, 137, "#d8503e", 6)
    brush.box(x - 20, 105, x + 20, 113, "#b53c2e", 4)
    brush.box(0, 206, 256, 256, "#dc9c6c")
    shift = rng.choice((0, 32))
    for k in range(-1, 5):
        brush.box(k * 64 + shift, 206, k * 64 + shift + 32, 231, "#efbe90")
        brush.box(k * 64 + 32 - shift, 231, k * 64 + 64 - shift, 256, "#efbe90")


def draw_bedroom(brush: Brush, rng: Random) -> None:
    """Lilac stripes, a round window, a blue bed, a lamp, a pink rug."""
    brush.wash("#cdc0f0", "#cdc0f0", 1.00)
    for k in range(6):
        brush.box(k * 48 - 6, 0, k * 48 + 18, 200, "#dad0f6")
    x = 172 + rng.uniform(-14, 14)
    y = 62 + rng.uniform(-6, 8)
    brush.disc(x, y, 39, WHITE)
    brush.disc(x, y, 32, "#9fdcf8")
    brush.box(x - 3, y - 32, x + 3, y + 32, WHITE)
    brush.box(x - 32, y - 3, x + 32, y + 3, WHITE)
    brush.box(0, 196, 256, 256, "#cb9166")
    brush.oval(132 + rng.uniform(-10, 10), 234, 104, 19, "#f5a4b8")
    brush.oval(132, 234, 80, 12, "#fbc6d2")
    brush.box(-12, 106, 14, 214, "#a96a42", 6)
    brush.box(0, 158, 112, 206, "#f6f2fc", 8)
    brush.box(36, 152, 116, 208, "#4a8ddb", 10)
    brush.box(10, 140, 54, 166, WHITE, 10)
    for x in (60, 84, 106):
        brush.disc(x, 178, 5, "#ffe26b")
    brush.box(222, 150, 262, 206, "#a96a42", 4)
    brush.box(236, 118, 243, 150, "#7d5538")
    brush.polygon([(222, 122), (257, 122), (250, 92), (229, 92)], "#ffd668", 3)
