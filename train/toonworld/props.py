"""The things a character can hold. Each is drawn round the hand that holds it, at the origin, y downwards."""

from collections.abc import Callable

from storyv_lite.train.toonworld.brush import INK, WHITE, Brush, around

# Above the hand: the top of the holder's head, where an umbrella has to be.
Draw = Callable[[Brush, float], None]


def _balloon(brush: Brush, head_top: float) -> None:
    brush.curve([(0, 0), (2, -22), (15, -38)], INK, 3)
    brush.polygon([(15, -46), (9, -36), (21, -36)], "#e0284a", 1)
    brush.oval(15, -66, 20, 24, "#ff4766")
    brush.oval(8, -74, 5, 8, "#ffc2cc")


def _ball(brush: Brush, head_top: float) -> None:
    brush.disc(14, 0, 19, WHITE)
    for start, colour in ((-35, "#2e7fe0"), (85, "#ff9f1c"), (205, "#2e7fe0")):
        brush.wedge(14, 0, 19, start, 62, colour)
    brush.disc(14, 0, 5, WHITE)


def _book(brush: Brush, head_top: float) -> None:
    brush.push(11, -11, turn=8)
    brush.box(-25, -19, 25, 19, "#1f4fa0", 4)
    brush.box(-21, -16, -1.5, 14, "#fff8e2", 2)
    brush.box(1.5, -16, 21, 14, "#fff8e2", 2)
    for y in (-8, 2):
        brush.line(-16, y, -7, y, "#b9c3d6", 3)
        brush.line(7, y, 16, y, "#b9c3d6", 3)
    brush.pop()


def _flower(brush: Brush, head_top: float) -> None:
    brush.line(0, 16, 4, -26, "#3d9440", 5)
    brush.oval(11, -4, 9, 5, "#58b558")
    for x, y in around(4, -34, 11.5, 6, 30):
        brush.disc(x, y, 8, "#ffd52e")
    brush.disc(4, -34, 8.5, "#8a4a26")


def _umbrella(brush: Brush, head_top: float) -> None:
    top = min(head_top, -40)
    x = -24
    brush.line(0, 12, x, top - 8, "#7a4a2c", 5)
    brush.push(x, top, turn=-8)
    brush.blob([(-58, 8), (-54, -38), (0, -40), (54, -38), (58, 8)], "#c03cb4")
    brush.blob([(-22, 8), (-24, -34), (0, -40), (24, -34), (22, 8)], "#ffd9f4")
    for left in (-58, -22, 22):
        right = left + (44 if left == -22 else 36)
        brush.blob([(left, 9), ((left + right) / 2, -8), (right, 9)], "#8e2488")
    brush.line(0, -40, 0, -47, "#7a4a2c", 5)
    brush.pop()


def _cake(brush: Brush, head_top: float) -> None:
    brush.push(8, -9)
    brush.oval(6, 8, 28, 6, "#d5e2f0")
    brush.box(-15, -18, 27, 7, "#9a5a34", 4)
    brush.box(-15, -6, 27, -1, "#fff0d8")
    brush.box(-17, -24, 29, -13, "#ff9cc4", 6)
    for x in (-9, 6, 21):
        brush.oval(x, -12, 5, 6, "#ff9cc4")
    brush.line(6, -26, 6, -36, "#5ec8e8", 5)
    brush.oval(6, -43, 5, 7, "#ffb52e")
    brush.pop()


_DRAW: dict[str, Draw] = {
    "balloon": _balloon,
    "ball": _ball,
    "book": _book,
    "flower": _flower,
    "umbrella": _umbrella,
    "cake": _cake,
}
BEHIND = frozenset({"umbrella"})  # drawn before its holder, so that it never hides a face


def draw_prop(brush: Brush, prop: str, head_top: float) -> None:
    """Draw a prop in the hand at the origin; `head_top` (negative) is how high above it the head ends."""
    _DRAW[prop](brush, head_top)
