"""Line charts as SVG text: panels under one another over a common axis. Knows numbers and ink."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 860, 150, 70, 20, 34, 62  # pixels; HEIGHT is that of one panel
INKS = ("#1f5fa8", "#c2410c", "#3d7a37", "#777777")


@dataclass(frozen=True)
class Line:
    """Values at 1, 2, 3, ...; `level` draws one value as a dashed line across."""

    name: str
    values: Sequence[float] = ()
    level: float | None = None


@dataclass(frozen=True)
class Panel:
    """Lines over one scale, which begins at 0 and ends at a round number above the highest."""

    title: str
    lines: Sequence[Line]


def svg(panels: Sequence[Panel], axis: str) -> str:
    """The panels as one SVG file; `axis` names what is counted below."""
    count = max(len(line.values) for panel in panels for line in panel.lines)
    height = TOP + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for place, panel in enumerate(panels):
        parts += _panel(panel, TOP + place * (HEIGHT + GAP), count)
    return "\n".join([*parts, _text(WIDTH // 2, height - 14, axis, "middle"), "</svg>\n"])


def _panel(panel: Panel, y: float, count: int) -> list[str]:
    every = [v for line in panel.lines for v in (*line.values, *([] if line.level is None else [line.level]))]
    top = _round_above(max(every))

    def at(value: float) -> float:
        return y + HEIGHT * (1 - value / top)

    def across(index: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(count - 1, 1)

    parts = [_text(LEFT, y - 10, panel.title, "start", "bold")]
    for part in (0.0, 0.5, 1.0):
        tick = at(top * part)
        parts.append(f'<path d="M{LEFT} {tick:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, tick + 4, f"{top * part:.4g}", "end"))
    for index in range(0, count + 1, max(1, count // 10)):
        parts.append(_text(across(max(index, 1) - 1), y + HEIGHT + 16, str(max(index, 1)), "middle"))
    right = WIDTH - RIGHT
    for line, ink in reversed(list(zip(panel.lines, INKS, strict=False))):
        parts.append(_text(right, y - 10, line.name, "end", ink=ink))
        right -= 8 * len(line.name)
        if line.level is not None:
            path, dash = f"M{LEFT} {at(line.level):.1f}H{WIDTH - RIGHT}", ' stroke-dasharray="6 4"'
        else:
            path = "M" + "L".join(f"{across(i):.1f} {at(v):.1f}" for i, v in enumerate(line.values))
            dash = ""
        parts.append(f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="1.5"{dash}/>')
    return parts


def _round_above(value: float) -> float:
    """The next number with one digit or a half of one."""
    unit = 10 ** floor(log10(value)) if value > 0 else 1.0
    return float(next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= value))


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal", ink: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{ink}">'
        f"{escape(text)}</text>"
    )
