"""What hangs below the heads: tails, capes, shells and clothes, upright, feet at (0, 0). Knows no pose."""

from collections.abc import Callable

from storyv_lite.train.toonworld.brush import Brush, around
from storyv_lite.train.toonworld.cast import CastMember

SIDES = (-1, 1)
Draw = Callable[[Brush, CastMember], None]


def _fox_tail(brush: Brush, who: CastMember) -> None:
    tail = [
        (-4, -10),
        (-54, 0),
        (-62, -38),
        (-66, -62),
        (-50, -84),
        (-36, -64),
        (-36, -48),
        (-30, -34),
        (-4, -32),
    ]
    brush.blob(tail, who.skin)
    brush.blob(
        [
            (-63.5, -46),
            (-66, -66),
            (-50, -84),
            (-36, -66),
            (-36, -48),
            (-43, -60),
            (-49, -48),
            (-55, -60),
            (-63.5, -46),
        ],
        who.pale,
    )


def _dinosaur_tail(brush: Brush, who: CastMember) -> None:
    for x, y in ((-32, -30), (-47, -18)):
        brush.polygon([(x - 8, y + 6), (x - 6, y - 10), (x + 8, y + 2)], who.cloth, 2)
    brush.blob([(0, -46), (-30, -34), (-66, -14), (-40, 6), (-4, -6)], who.skin)


def _cat_cape(brush: Brush, who: CastMember) -> None:
    brush.curve([(-10, -18), (-46, -8), (-48, -36), (-50, -54), (-40, -62)], who.pale, 11)
    brush.polygon([(-18, -66), (18, -66), (42, -14), (-42, -14)], who.cloth, 6)


def _turtle_shell(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -40, 38, 34, who.cloth)
    brush.oval(0, -40, 31, 27, "#b07c50")


def _hedgehog_spikes(brush: Brush, who: CastMember) -> None:
    tips, hollows = around(0, -42, 37, 9), around(0, -42, 28, 9, 20)
    brush.polygon([point for pair in zip(tips, hollows, strict=True) for point in pair], who.pale, 3)


def _bunny_tail(brush: Brush, who: CastMember) -> None:
    brush.disc(-26, -22, 11, who.skin)


def _jumper(brush: Brush, who: CastMember) -> None:
    brush.box(-23, -70, 23, -17, who.cloth, 17)
    brush.box(-23.5, -43, 23.5, -33, who.accent)


def _dress(brush: Brush, who: CastMember) -> None:
    brush.polygon([(-11, -68), (11, -68), (29, -20), (-29, -20)], who.cloth, 5)


def _bunny_dress(brush: Brush, who: CastMember) -> None:
    _dress(brush, who)
    brush.line(-29, -19, 29, -19, who.accent, 7)
    for side in SIDES:
        brush.disc(side * 7, -62, 6, who.accent)


def _dotted_dress(brush: Brush, who: CastMember) -> None:
    _dress(brush, who)
    for x, y in ((-20, -24), (0, -28), (20, -24), (-10, -45), (3, -47)):
        brush.disc(x, y, 4.2, who.accent)


def _koala_dress(brush: Brush, who: CastMember) -> None:
    _dress(brush, who)
    for side in SIDES:
        brush.disc(side * 5, -42, 6.5, who.accent)
    brush.polygon([(-10, -39), (10, -39), (0, -28)], who.accent, 1)


def _vest(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -42, 33, 31, who.skin)
    brush.oval(0, -36, 15, 22, who.pale)
    for side in SIDES:
        brush.blob([(side * 4, -72), (side * 30, -66), (side * 34, -42), (side * 30, -14), (side * 7, -12),
                    (side * 16, -38), (side * 4, -72)], who.cloth)  # fmt: skip


def _raincoat(brush: Brush, who: CastMember) -> None:
    brush.blob([(-15, -70), (-36, -44), (-31, -17), (0, -9), (31, -17), (36, -44), (15, -70)], who.cloth)
    brush.line(0, -60, 0, -16, who.accent, 3)
    for y in (-48, -32):
        brush.disc(8, y, 4, who.accent)


def _shorts(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -42, 28, 31, who.skin)
    brush.oval(2, -46, 18, 22, who.pale)
    brush.box(-26, -33, 26, -14, who.cloth, 9)


def _tuxedo(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -40, 31, 36, who.skin)
    brush.oval(0, -37, 22, 29, who.pale)


def _cat_body(brush: Brush, who: CastMember) -> None:
    brush.box(-18, -70, 18, -16, who.skin, 16)
    brush.polygon([(-17, -68), (17, -68), (22, -50), (0, -43), (-22, -50)], who.cloth, 5)
    brush.disc(0, -52, 7.5, who.accent)


def _dungarees(brush: Brush, who: CastMember) -> None:
    brush.box(-24, -70, 24, -16, who.skin, 20)
    brush.box(-25, -42, 25, -14, who.cloth, 10)
    brush.box(-15, -56, 15, -30, who.cloth, 4)
    for side in SIDES:
        brush.line(side * 12, -56, side * 16, -68, who.cloth, 6)
        brush.disc(side * 10, -50, 4, who.accent)


def _owl_body(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -40, 32, 35, who.skin)
    brush.oval(0, -34, 21, 26, who.pale)
    for x, y in ((-8, -38), (8, -38), (0, -26)):
        brush.arc(x, y, 6, 6, 20, 140, "#d49a86", 3.5)
    brush.box(-24, -72, 24, -58, who.cloth, 7)
    brush.box(-22, -66, -8, -34, who.cloth, 5)


def _turtle_body(brush: Brush, who: CastMember) -> None:
    brush.oval(0, -40, 25, 30, who.skin)
    brush.oval(0, -38, 19, 25, who.pale)
    for y in (-46, -32):
        brush.line(-14, y, 14, y, "#d9bf6a", 3.5)


def _nothing(brush: Brush, who: CastMember) -> None:
    pass


_DRAW: dict[str, tuple[Draw, Draw]] = {
    "fox": (_fox_tail, _jumper),
    "bunny": (_bunny_tail, _bunny_dress),
    "bear": (_nothing, _vest),
    "frog": (_nothing, _raincoat),
    "dinosaur": (_dinosaur_tail, _shorts),
    "girl": (_nothing, _dotted_dress),
    "penguin": (_nothing, _tuxedo),
    "cat": (_cat_cape, _cat_body),
    "hedgehog": (_hedgehog_spikes, _dungarees),
    "owl": (_nothing, _owl_body),
    "turtle": (_turtle_shell, _turtle_body),
    "koala": (_nothing, _koala_dress),
}


def draw_back(brush: Brush, who: CastMember) -> None:
    """Draw what is behind a body: a tail, a cape, a shell."""
    _DRAW[who.kind][0](brush, who)


def draw_body(brush: Brush, who: CastMember) -> None:
    """Draw a body and what it wears, from the shoulders to the hips."""
    _DRAW[who.kind][1](brush, who)
