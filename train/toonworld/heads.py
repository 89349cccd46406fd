"""The twelve heads, drawn round their centre: about 70 wide and 60 high. Knows kinds and faces."""

from collections.abc import Callable

from storyv_lite.train.toonworld.brush import INK, WHITE, Brush
from storyv_lite.train.toonworld.cast import CastMember
from storyv_lite.train.toonworld.poses import Pose

SIDES = (-1, 1)


def _eyes(
    brush: Brush, face: Pose, gap: float, y: float, size: float = 7, white: str = "", ink: str = INK
) -> None:
    for side in SIDES:
        x = side * gap
        if face.eyes == "closed":
            brush.arc(x, y - 1, size, size * 0.9, 15, 150, ink, 3.6)
            continue
        if white:
            brush.oval(x, y, size * 1.6, size * 1.75, white)
        x += face.look * 0.8
        brush.oval(x, y, size, size * 1.25, ink)
        brush.disc(x - size * 0.25, y - size * 0.45, size * 0.42, WHITE)


def _mouth(brush: Brush, face: Pose, y: float, width: float = 8, x: float = 0) -> None:
    x += face.look
    if face.mouth == "open":
        brush.blob(
            [
                (x - width, y),
                (x, y - 2),
                (x + width, y),
                (x + width, y + width * 1.5),
                (x, y + width * 1.5),
                (x - width, y + width * 1.5),
                (x - width, y),
            ],
            "#9c2438",
        )
        brush.oval(x, y + width * 1.05, width * 0.55, width * 0.38, "#ff8f8f")
    elif face.mouth == "asleep":
        brush.oval(x, y + 2, 3.4, 3, "#9c2438")
    else:
        brush.curve([(x - width, y), (x, y + width), (x + width, y)], INK, 3.4)


def _blush(brush: Brush, gap: float, y: float, colour: str = "#ff9aa8") -> None:
    for side in SIDES:
        brush.oval(side * gap, y, 6.5, 4.5, colour, 190)


def _fox(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.polygon([(side * 31, -8), (side * 29, -47), (side * 6, -24)], who.skin, 4)
        brush.polygon([(side * 25, -22), (side * 25.5, -38), (side * 15, -27)], INK, 2)
        brush.polygon([(side * 26, -4), (side * 43, 12), (side * 18, 25)], who.pale, 2)
    brush.oval(0, 0, 36, 30, who.skin)
    for side in SIDES:
        brush.blob(
            [
                (-side, 31),
                (side * 28, 30),
                (side * 37, 6),
                (side * 18, -2),
                (-side, 12),
                (-side, 20),
                (-side, 31),
            ],
            who.pale,
        )
    _eyes(brush, face, 16, -3)
    brush.oval(face.look, 11, 6, 4.6, INK)
    _mouth(brush, face, 17, 6.5)


def _bunny(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.push(side * 12, -24, turn=side * 9)
        brush.oval(0, -19, 11, 31, who.skin)
        brush.oval(0, -17, 5.5, 22, who.pale)
        brush.pop()
    brush.oval(0, 0, 36, 31, who.skin)
    _blush(brush, 24, 11, "#ff9ebb")
    _eyes(brush, face, 15, -2)
    brush.oval(face.look, 8, 4.5, 3.4, who.cloth)
    _mouth(brush, face, 13, 6.5)
    for side in SIDES:  # a bow
        brush.polygon([(20, -25), (20 + side * 14, -34), (20 + side * 14, -16)], who.cloth, 3)
    brush.disc(20, -25, 5, "#c93a78")


def _bear(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.disc(side * 27, -23, 13.5, who.skin)
        brush.disc(side * 27, -23, 7, who.pale)
    brush.oval(0, 0, 37, 32, who.skin)
    brush.oval(face.look * 0.7, 13, 19, 15, who.pale)
    _eyes(brush, face, 16, -5, 6.4)
    brush.oval(face.look, 6, 7, 5, INK)
    _mouth(brush, face, 14, 7)


def _frog(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.disc(side * 20, -23, 15, who.skin)
    brush.oval(0, 2, 41, 27, who.skin)
    brush.oval(0, 13, 28, 13, who.pale)
    _blush(brush, 31, 8, "#ff9f7a")
    _eyes(brush, face, 20, -24, 6.4, "" if face.eyes == "closed" else WHITE)
    _mouth(brush, face, 8, 13 if face.mouth == "smile" else 11)


def _dinosaur(brush: Brush, who: CastMember, face: Pose) -> None:
    for x, y, turn in ((-30, -14, -55), (-17, -29, -25), (2, -33, 5)):
        brush.push(x, y, turn=turn)
        brush.polygon([(-9, 6), (0, -13), (9, 6)], who.cloth, 2)
        brush.pop()
    brush.oval(-2, -3, 33, 30, who.skin)
    brush.oval(14, 12, 30, 18, who.skin)
    brush.oval(18, 19, 23, 10, who.pale)
    _eyes(brush, face, 13, -11, 6.4, "" if face.eyes == "closed" else WHITE)
    for x in (27, 36):
        brush.oval(x, 5, 2.4, 3, INK)
    _mouth(brush, face, 14, 10 if face.mouth == "smile" else 8.5, 17)


def _girl(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.disc(side * 26, -28, 15, who.pale)
        brush.disc(side * 21, -19, 6, who.cloth)
    brush.oval(0, -3, 37, 33, who.pale)
    for side in SIDES:
        brush.disc(side * 31, 6, 6.5, who.skin)
    brush.oval(0, 5, 31, 26, who.skin)
    brush.blob(
        [(-33, 6), (-32, -26), (0, -28), (32, -26), (33, 6), (24, -14), (4, -15), (-14, -12), (-33, 6)],
        who.pale,
    )
    _blush(brush, 20, 14, "#e8685c")
    _eyes(brush, face, 13, 4, 6.4)
    _mouth(brush, face, 16, 7.5)


def _penguin(brush: Brush, who: CastMember, face: Pose) -> None:
    brush.oval(0, 3, 34, 31, who.skin)
    for side in SIDES:
        brush.oval(side * 12.5, 8, 16, 19, who.pale)
    brush.oval(0, 17, 18, 12, who.pale)
    _blush(brush, 22, 15, "#ffb0a8")
    _eyes(brush, face, 12.5, 3, 6.2)
    x = face.look
    if face.mouth == "open":
        brush.polygon([(x - 9, 14), (x + 9, 14), (x, 28)], "#9c2438", 2)
        brush.polygon([(x - 10, 12), (x + 10, 12), (x, 18)], who.accent, 2)
    else:
        brush.polygon([(x - 10, 12), (x + 10, 12), (x, 22)], who.accent, 2)
    brush.blob([(-33, -9), (-34, -48), (0, -48), (34, -48), (33, -9)], who.cloth)
    brush.box(-36, -18, 36, -6, "#237f40", 6)
    brush.disc(0, -44, 10, "#ffe27a")


def _cat(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.polygon([(side * 31, -6), (side * 31, -41), (side * 7, -25)], who.pale, 4)
        brush.polygon([(side * 25.5, -21), (side * 26.5, -33), (side * 17, -25)], "#f2a0b2", 2)
    brush.oval(0, 0, 37, 30, who.skin)
    brush.oval(face.look * 0.6, 11, 17, 15, who.pale)
    _eyes(brush, face, 18, -5, 5.8, "" if face.eyes == "closed" else "#6fd0f0")
    brush.oval(face.look, 6, 4.5, 3.2, "#ffb0c0")
    x = face.look
    if face.mouth == "smile":
        brush.curve([(x - 9, 12), (x - 5, 18), (x, 12), (x + 5, 18), (x + 9, 12)], "#ffe9d0", 3)
    else:
        _mouth(brush, face, 12, 6)
    for side in SIDES:
        for y in (8, 16):
            brush.line(side * 27, y, side * 43, y + (y - 13), "#8a6a58", 3)


def _hedgehog(brush: Brush, who: CastMember, face: Pose) -> None:
    spikes = [
        (-42, 8),
        (-50, -6),
        (-38, -10),
        (-42, -26),
        (-28, -25),
        (-26, -41),
        (-13, -33),
        (-4, -48),
        (6, -34),
        (20, -44),
        (23, -29),
        (38, -33),
        (36, -15),
        (48, -12),
        (40, 8),
    ]
    brush.polygon(spikes, who.pale, 3)
    brush.oval(0, 2, 40, 30, who.pale)
    for side in SIDES:
        brush.disc(side * 26, -12, 9, who.skin)
    brush.blob(
        [
            (-31, 10),
            (-32, -16),
            (-12, -16),
            (0, -24),
            (12, -16),
            (32, -16),
            (31, 10),
            (28, 34),
            (0, 33),
            (-28, 34),
            (-31, 10),
        ],
        who.skin,
    )
    _blush(brush, 22, 14)
    _eyes(brush, face, 13, 2)
    brush.oval(face.look, 11, 6.5, 5.2, INK)
    _mouth(brush, face, 19, 6.5)


def _owl(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.polygon([(side * 33, -6), (side * 36, -38), (side * 10, -24)], who.skin, 4)
    brush.oval(0, 0, 37, 31, who.skin)
    for side in SIDES:
        brush.disc(side * 15, -1, 17.5, who.pale)
    _eyes(brush, face, 15, -1, 7.5, "" if face.eyes == "closed" else "#ffd86a")
    brush.polygon([(-6, 10), (6, 10), (0, 22)], who.accent, 3)
    if face.mouth == "open":
        brush.polygon([(-4, 21), (4, 21), (0, 26)], "#9c2438", 2)


def _turtle(brush: Brush, who: CastMember, face: Pose) -> None:
    brush.oval(0, 2, 35, 30, who.skin)
    _blush(brush, 24, 14)
    _eyes(brush, face, 14, 2)
    _mouth(brush, face, 14, 9)
    brush.blob([(-34, -8), (-32, -40), (0, -40), (32, -40), (34, -8), (0, -14), (-34, -8)], who.accent)
    brush.blob(
        [(-4, -12), (20, -22), (50, -8), (52, -2), (46, -1), (20, -6), (-4, -9), (-6, -10), (-4, -12)],
        "#c94a18",
    )
    brush.disc(0, -35, 5, "#ffd9b8")


def _koala(brush: Brush, who: CastMember, face: Pose) -> None:
    for side in SIDES:
        brush.disc(side * 36, -16, 19, who.skin)
        brush.disc(side * 36, -15, 11, "#e9d3e0")
    brush.oval(0, 0, 35, 31, who.skin)
    _blush(brush, 22, 14)
    _eyes(brush, face, 17, -3, 6.4)
    brush.oval(face.look, 5, 8.5, 12, "#45415a")
    _mouth(brush, face, 20, 6)


_DRAW: dict[str, Callable[[Brush, CastMember, Pose], None]] = {
    "fox": _fox, "bunny": _bunny, "bear": _bear, "frog": _frog, "dinosaur": _dinosaur, "girl": _girl,
    "penguin": _penguin, "cat": _cat, "hedgehog": _hedgehog, "owl": _owl, "turtle": _turtle, "koala": _koala,
}  # fmt: skip


def draw_head(brush: Brush, who: CastMember, face: Pose) -> None:
    """Draw a head round the origin, with the eyes and mouth of the pose."""
    _DRAW[who.kind](brush, who, face)
