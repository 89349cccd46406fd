"""What a bundle draws, to be looked at: unseen frames, whole unseen stories, captions it was not made for.

Run `python -m storyv_lite.benchmarks.sheets --out FOLDER [--bundle B] [--force]`. Frames and stories are test
seeds in order, so nothing is picked; what is to be thought of them stands in docs/what_it_draws.md, by hand.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.quality import unseen_stories
from storyv_lite.errors import OutputError, StoryVError
from storyv_lite.optional import require
from storyv_lite.runtime.pipeline import Frame, StoryPipeline
from storyv_lite.runtime.storyboard import Panel, sheet
from storyv_lite.story import Caption, Story
from storyv_lite.train.toonworld.corpus import scene_caption, scene_for
from storyv_lite.train.toonworld.splits import story_seed

COMMAND = "python -m storyv_lite.benchmarks.sheets"
SEED = 0
FRAMES, STORIES, STORY_FRAMES = 40, 5, 5
QUALITY = 88  # of the JPEG files
UNKNOWN = (
    "Anna is waving in the meadow.",
    "Milo is standing in the desert.",
    "Luna is dancing on the beach.",
    "Otto is holding a guitar in town.",
    "Zara is wearing a yellow hat in the snow.",
    "Two balloons are flying over the meadow.",
)
UNUSUAL = (
    "Milo, Luna and Otto are jumping in the snow.",
    "Rex, Kiki and Zara are sitting in the bedroom.",
    "The kitchen is empty.",
    "It is a quiet night on the moonlit hill.",
    "Bruno is not sleeping in the bedroom.",
    "Milo the fox is running on the left side of the beach with a ball in his hand, and Luna the bunny is "
    "standing there on the right side and is waving with her hand to him, and the sun is over the sea.",
)


def unseen_captions(count: int, seed: int = SEED) -> list[str]:
    """Captions of single frames of the world, by test seeds in order."""
    return [scene_caption(scene_for(story_seed("test", seed, index))) for index in range(count)]


def one_by_one(pipeline: StoryPipeline, captions: Iterable[str], seed: int = SEED) -> list[Panel]:
    """Each caption drawn as a story of its own."""
    return [panel(frame) for caption in captions for frame in pipeline.draw(Story((Caption(caption),)), seed)]


def panel(frame: Frame) -> Panel:
    file = io.BytesIO()
    Image.fromarray(frame.image).save(file, "PNG")
    return Panel(frame.caption, file.getvalue())


def sheets(
    pipeline: StoryPipeline, frames: int = FRAMES, stories: int = STORIES, length: int = STORY_FRAMES
) -> Iterable[tuple[str, Image.Image]]:
    """Name and picture of every sheet, each drawn when it is asked for."""
    yield "frames", sheet("", one_by_one(pipeline, unseen_captions(frames)))
    for index, told in enumerate(unseen_stories(stories, length, SEED)):
        story = Story(tuple(Caption(frame.reference) for frame in told.frames))
        yield f"story-{index}", sheet("", [panel(frame) for frame in pipeline.draw(story, told.seed)])
    yield "unknown", sheet("", one_by_one(pipeline, UNKNOWN))
    yield "unusual", sheet("", one_by_one(pipeline, UNUSUAL))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw every sheet; a folder in which there are some is refused without `--force`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Draw sheets of pictures to look at.")
    parser.add_argument("--bundle", default="", help="bundle to draw with [the default]")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where sheets are written")
    parser.add_argument("--force", action="store_true", help="replace sheets that are there")
    options = parser.parse_args(arguments)
    try:
        require("skia", "train")
        if not options.force and (there := sorted(options.out.glob("*.jpg"))):
            raise OutputError(f"`{there[0]}` is there already", "name another folder, or give `--force`")
        pipeline = StoryPipeline.from_bundle(options.bundle or None, "cpu")
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            for name, picture in sheets(pipeline):
                picture.save(options.out / f"{name}.jpg", quality=QUALITY)
                print(f"wrote {options.out / name}.jpg", flush=True)
        except OSError as fault:
            raise OutputError(f"`{options.out}` cannot be written: {fault.strerror}") from fault
    except StoryVError as fault:
        return failed(fault)
    return 0


if __name__ == "__main__":
    sys.exit(main())
