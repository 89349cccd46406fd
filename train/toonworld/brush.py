"""A few strokes on a skia canvas, in words. Knows shapes and colours, not what they mean."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

import skia

Point = tuple[float, float]

INK = "#3b2b3a"
WHITE = "#ffffff"


def _rgba(colour: str, alpha: int) -> int:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return int(skia.Color(red, green, blue, alpha))


@cache
def _fill(colour: str, alpha: int) -> skia.Paint:
    return skia.Paint(AntiAlias=True, Color=_rgba(colour, alpha))


@cache
def _pen(colour: str, width: float) -> skia.Paint:
    return skia.Paint(
        AntiAlias=True,
        Color=_rgba(colour, 255),
        Style=skia.Paint.kStroke_Style,
        StrokeWidth=width,
        StrokeCap=skia.Paint.kRound_Cap,
        StrokeJoin=skia.Paint.kRound_Join,
    )


@cache
def _gradient(top: str, bottom: str, length: float, width: int, height: int) -> skia.Image:
    ends = [skia.Point(0, 0), skia.Point(0, length * height)]
    shader = skia.GradientShader.MakeLinear(ends, [_rgba(top, 255), _rgba(bottom, 255)])
    surface = skia.Surface(width, height)
    surface.getCanvas().drawPaint(skia.Paint(Shader=shader))
    return surface.makeImageSnapshot()


def _path(points: Sequence[Point], closed: bool) -> skia.Path:
    """Quadratic pieces: a start, then pairs of (control, end)."""
    path = skia.Path()
    path.moveTo(*points[0])
    for at in range(1, len(points) - 1, 2):
        path.quadTo(*points[at], *points[at + 1])
    if closed:
        path.close()
    return path


class Brush:
    """Draws on one canvas; coordinates are in the canvas's current frame, y downwards, angles in degrees."""

    def __init__(self, canvas: skia.Canvas) -> None:
        self.canvas = canvas

    def push(self, x: float = 0, y: float = 0, sx: float = 1, sy: float = 1, turn: float = 0) -> None:
        """Enter a frame whose origin is (x, y), turned clockwise, then scaled; `pop` leaves it."""
        self.canvas.save()
        self.canvas.translate(x, y)
        if turn:
            self.canvas.rotate(turn)
        if (sx, sy) != (1, 1):
            self.canvas.scale(sx, sy)

    def pop(self) -> None:
        self.canvas.restore()

    def oval(self, x: float, y: float, rx: float, ry: float, colour: str, alpha: int = 255) -> None:
        self.canvas.drawOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), _fill(colour, alpha))

    def disc(self, x: float, y: float, r: float, colour: str, alpha: int = 255) -> None:
        self.oval(x, y, r, r, colour, alpha)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str, r: float = 0) -> None:
        self.canvas.drawRoundRect(skia.Rect.MakeLTRB(x0, y0, x1, y1), r, r, _fill(colour, 255))

    def wash(self, top: str, bottom: str, length: float) -> None:
        """Fill the whole canvas, whatever the frame, with a gradient; `length` 1 ends at the bottom."""
        size = self.canvas.getBaseLayerSize()
        self.canvas.save()
        self.canvas.resetMatrix()
        # A copy of a finished gradient: to shade it again for each frame takes longer than all the rest.
        self.canvas.drawImage(_gradient(top, bottom, length, size.width(), size.height()), 0, 0)
        self.canvas.restore()

    def polygon(self, points: Iterable[Point], colour: str, soft: float = 0) -> None:
        """A filled polygon; `soft` rounds its corners by that radius (and grows it by as much)."""
        corners = list(points)
        path = skia.Path()
        path.moveTo(*corners[0])
        for corner in corners[1:]:
            path.lineTo(*corner)
        path.close()
        self.canvas.drawPath(path, _fill(colour, 255))
        if soft:
            self.canvas.drawPath(path, _pen(colour, 2 * soft))

    def blob(self, points: Sequence[Point], colour: str) -> None:
        """A closed shape of quadratic curves: a start, then pairs of (control, end)."""
        self.canvas.drawPath(_path(points, True), _fill(colour, 255))

    def curve(self, points: Sequence[Point], colour: str, width: float) -> None:
        """An open line of quadratic curves: a start, then pairs of (control, end)."""
        self.canvas.drawPath(_path(points, False), _pen(colour, width))

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: float) -> None:
        self.canvas.drawLine(x0, y0, x1, y1, _pen(colour, width))

    def wedge(self, x: float, y: float, r: float, start: float, sweep: float, colour: str) -> None:
        """A slice of a disc."""
        self.canvas.drawArc(
            skia.Rect.MakeLTRB(x - r, y - r, x + r, y + r), start, sweep, True, _fill(colour, 255)
        )

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, sweep: float, colour: str, width: float
    ) -> None:
        """An open piece of an oval's rim."""
        self.canvas.drawArc(
            skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), start, sweep, False, _pen(colour, width)
        )


def around(x: float, y: float, r: float, count: int, turn: float = 0) -> list[Point]:
    """`count` points evenly round a circle, the first at `turn` degrees from the right."""
    angles = (math.radians(turn + 360 * k / count) for k in range(count))
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in angles]
