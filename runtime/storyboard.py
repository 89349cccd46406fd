"""The finished story as one picture (`storyboard.png`) and as one page (`index.html`).

Knows captions and PNG files, not how they were drawn. The page needs nothing beside itself: pictures are
inside (but for a branch), every text is escaped, and its own policy forbids scripts and requests. Captions on
the sheet are set in the font that Pillow carries, Aileron Regular (CC0 1.0).
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, CARD = "#fbf4e6", "#3d2f28", "#a08c7d", "#fffdf8"
MARGIN, GAP, PADDING, RADIUS = 40, 24, 14, 14  # pixels
CAPTION_SIZE, TITLE_SIZE, LINE_HEIGHT = 17, 34, 23
MAX_COLUMNS = 6
MIN_PICTURE = 192  # pixels
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()


@dataclass(frozen=True)
class Panel:
    """One finished frame: what it was to show, and its PNG file as it lies on the disk."""

    caption: str
    png: bytes
    taken_for: str = ""  # the caption as the model spelled it out, for the page


def columns(count: int) -> int:
    """How many pictures stand side by side on the sheet: rows stay full where they can."""
    if count <= 3:
        return max(count, 1)
    return 2 if count == 4 else min(max(3, math.ceil(math.sqrt(count))), MAX_COLUMNS)


def sheet(title: str, panels: Sequence[Panel]) -> Image.Image:
    """Every frame with its caption on one RGB picture, reading order, a short last row centred."""
    caption_font, title_font = ImageFont.load_default(CAPTION_SIZE), ImageFont.load_default(TITLE_SIZE)
    pictures = [_picture(panel) for panel in panels]
    picture_width = max(picture.width for picture in pictures)
    picture_height = max(picture.height for picture in pictures)
    across = columns(len(panels))
    card_width = picture_width + 2 * PADDING
    width = 2 * MARGIN + across * card_width + (across - 1) * GAP
    title_lines = wrap(title, title_font, width - 2 * MARGIN)
    texts = [wrap(panel.caption, caption_font, picture_width) for panel in panels]
    rows = [range(start, min(start + across, len(panels))) for start in range(0, len(panels), across)]
    heights = [
        picture_height + 3 * PADDING + LINE_HEIGHT * max(len(texts[index]) for index in row) for row in rows
    ]
    top = MARGIN + len(title_lines) * (TITLE_SIZE + 8) + (GAP if title_lines else 0)
    board = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(board)
    for line, text in enumerate(title_lines):
        draw.text((width / 2, MARGIN + line * (TITLE_SIZE + 8)), text, INK, title_font, anchor="ma")
    for row, height in zip(rows, heights, strict=True):
        left = (width - len(row) * card_width - (len(row) - 1) * GAP) // 2
        for index in row:
            draw.rounded_rectangle((left, top, left + card_width, top + height), RADIUS, CARD, "#ecdfca")
            picture = pictures[index]
            board.paste(picture, (left + PADDING, top + PADDING), _rounded(picture.size))
            for line, text in enumerate(texts[index]):
                place = (left + PADDING, top + picture_height + 2 * PADDING + line * LINE_HEIGHT)
                draw.text(place, text, INK, caption_font)
            left += card_width + GAP
        top += height + GAP
    return board


def _picture(panel: Panel) -> Image.Image:
    """The frame as RGB; a small one is enlarged by a whole number, so that its caption has room."""
    with Image.open(io.BytesIO(panel.png)) as file:
        picture = file.convert("RGB")
    factor = math.ceil(MIN_PICTURE / picture.width)
    return picture.resize((picture.width * factor, picture.height * factor)) if factor > 1 else picture


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Break `text` into lines of at most `width` pixels; a word that is wider alone is broken inside."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        while font.getlength(word) > width and len(word) > 1:
            cut = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        if word:
            lines.append(word)
    return lines


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners, drawn four times as large so that its edge is smooth."""
    mask = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *mask.size), (RADIUS - 4) * 4, 255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def blank(size: int) -> bytes:
    """The PNG file that stands for a picture that is not there."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), PAPER).save(file, "PNG")
    return file.getvalue()


def page(
    title: str,
    panels: Sequence[Panel],
    details: Sequence[tuple[str, str]],
    files: Sequence[str] | None = None,
) -> str:
    """The story as an HTML page; `details` (name, value) are folded away at its foot.

    Pictures are inside; or, where `files` names them, beside it: such a page is small, and not to be sent.
    """
    data = "data:image/png;base64,"
    sources = files or [data + base64.b64encode(panel.png).decode("ascii") for panel in panels]
    figures = "\n".join(
        FIGURE.substitute(
            number=number,
            alt=escape(f"Picture {number}: {panel.caption}"),
            source=escape(source),
            caption=escape(panel.caption),
            taken=TAKEN.substitute(text=escape(panel.taken_for)) if panel.taken_for else "",
            loading="eager" if number <= 6 else "lazy",
        )
        for number, (panel, source) in enumerate(zip(panels, sources, strict=True), start=1)
    )
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in details)
    number = NUMBERS[len(panels)] if len(panels) < len(NUMBERS) else str(len(panels))
    count = f"{number} picture" + ("s" if len(panels) != 1 else "")
    images = "'self' file:" if files else "data:"
    return PAGE.substitute(title=escape(title), count=count, figures=figures, rows=rows, images=images)


FIGURE = Template("""<li><figure>
<img src="$source" alt="$alt" width="256" height="256" loading="$loading">
<figcaption><span aria-hidden="true">$number</span><div>$caption$taken</div></figcaption>
</figure></li>""")

TAKEN = Template("<small>taken for: $text</small>")

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src $images; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root {
  --paper: #fbf4e6; --glow: #fff9ee; --card: #fffdf8; --ink: #3d2f28; --soft: #8a7465; --line: #ecdfca;
  --accent: #c2562f; --shadow: 0 1px 2px rgb(90 60 30 / .08), 0 10px 30px -12px rgb(90 60 30 / .28);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #211b18; --glow: #2b2420; --card: #2f2723; --ink: #f5e9d8; --soft: #bda994; --line: #433831;
    --accent: #f0a274; --shadow: 0 12px 32px -14px rgb(0 0 0 / .7);
  }
  img { filter: brightness(.94); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 3rem); min-height: 100vh;
  background: radial-gradient(70rem 40rem at 50% -8rem, var(--glow), transparent) var(--paper);
  color: var(--ink);
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, "Gelasio", serif;
  line-height: 1.45;
}
header, footer { max-width: 68rem; margin: 0 auto; text-align: center; }
h1 {
  margin: 0; font-size: clamp(2rem, 1.3rem + 3.2vw, 3.5rem); line-height: 1.12; font-weight: 600;
  letter-spacing: -.015em; text-wrap: balance; overflow-wrap: anywhere;
}
header p { margin: .6rem 0 0; color: var(--soft); font-style: italic; font-size: 1.1rem; }
header p::before, header p::after {
  content: "\\2726"; color: var(--accent); font-style: normal; font-size: .7em; margin: 0 .8em;
  vertical-align: .15em;
}
ol {
  list-style: none; margin: clamp(1.5rem, 4vw, 3rem) auto; padding: 0; max-width: 68rem;
  display: flex; flex-wrap: wrap; justify-content: center; gap: clamp(1.1rem, 2.4vw, 1.9rem);
}
li { width: min(100%, 21rem); display: flex; }
figure {
  margin: 0; width: 100%; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 1.25rem; box-shadow: var(--shadow);
}
img {
  display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: .75rem;
  background: var(--line);
}
figcaption {
  display: flex; gap: .7rem; align-items: baseline; padding: .85rem .4rem .35rem; font-size: 1.16rem;
  overflow-wrap: anywhere; text-wrap: pretty;
}
figcaption span {
  flex: none; min-width: 1.7em; padding: .1em .3em; border-radius: 1em; text-align: center; font-size: .78em;
  line-height: 1.45; color: var(--accent); border: 1.5px solid currentColor;
  font-variant-numeric: lining-nums;
}
figcaption small { display: block; color: var(--soft); font-style: italic; font-size: .78em; }
footer { color: var(--soft); font-size: .95rem; }
details { max-width: 42rem; margin: 0 auto; text-align: left; }
summary { cursor: pointer; width: max-content; margin: 0 auto; padding: .5rem .9rem; border-radius: 2em; }
summary:hover { color: var(--accent); }
summary:focus-visible { outline: 2px solid var(--accent); }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.2rem; margin: .75rem 0 0;
  padding: 1.1rem 1.3rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 1rem; font-size: .92rem;
}
dt { font-style: italic; }
dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; font-variant-numeric: lining-nums; }
@media print {
  body { background: none; padding: 0; }
  li { width: 46%; break-inside: avoid; }
  figure { box-shadow: none; }
  footer { display: none; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>a story in $count</p>
</header>
<main>
<ol>
$figures
</ol>
</main>
<footer>
<details>
<summary>How this was drawn</summary>
<dl>
$rows
</dl>
</details>
</footer>
</body>
</html>
""")
