"""Judged stories, kept one by one: what was stopped goes on at the story where it was.

Knows files and in which order stories are judged; how a story is judged is `quality`'s business. What a
folder's stories were drawn with is for its owner to know.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storyv_lite.benchmarks.quality import Evaluation, Likeness, evaluate, rows_as_json
from storyv_lite.benchmarks.scores import Row
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.train.toonworld.stories import ToonStory

if TYPE_CHECKING:
    from storyv_lite.modeling.judge import Judge

ARRAYS = {"same": np.float64, "different": np.float64, "features": np.float32, "real_features": np.float32}


def judge_missing(
    folder: Path,
    stories: Sequence[ToonStory],
    opened: Callable[[], StoryPipeline],
    judge: "Judge",
    likeness: Likeness | None,
    captions: str = "references",
    context: str = "interleaved",
    told: Callable[[str], None] = lambda text: None,
    is_over: Callable[[], bool] = lambda: False,
) -> bool:
    """Draw and judge every story that `folder` does not hold yet; false when the time is over first.

    The pipeline is opened when there is something to draw. Raises what `quality.evaluate` raises.
    """
    missing = [index for index in range(len(stories)) if not _file(folder, index).is_file()]
    if not missing or is_over():
        return not missing
    pipeline = opened()
    for index in missing:
        if is_over():
            break
        told(f"story {index + 1} of {len(stories)}")
        found = evaluate(pipeline, judge, likeness, [stories[index]], captions, context)
        _save(_file(folder, index), found)
    pipeline.close()
    return all(_file(folder, index).is_file() for index in missing)


def read_judged(folder: Path, stories: Sequence[ToonStory]) -> Evaluation | None:
    """Everything judged of `stories`; None while one is missing."""
    files = [_file(folder, index) for index in range(len(stories))]
    if not all(file.is_file() for file in files):
        return None
    pieces = [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def rows(name: str) -> tuple[Row, ...]:
        found = [(index, row) for index, piece in enumerate(pieces) for row in piece[name]]
        return tuple(Row.from_dict({**row, "story": index}) for index, row in found)

    arrays: dict[str, Any] = {
        name: np.concatenate([np.asarray(piece[name], kind) for piece in pieces])
        for name, kind in ARRAYS.items()
    }
    return Evaluation(tuple(stories), rows("rows"), rows("real"), **arrays)


def _file(folder: Path, story: int) -> Path:
    return folder / f"{story:04d}.json"


def _save(file: Path, found: Evaluation) -> None:
    """Write one judged story as plain JSON."""
    from storyv_lite.modeling.checkpoints import write_atomically

    arrays = {name: getattr(found, name).tolist() for name in ARRAYS}
    piece = {"rows": rows_as_json(found.rows), "real": rows_as_json(found.real), **arrays}
    text = json.dumps(piece, ensure_ascii=False) + "\n"
    write_atomically(file, lambda new: _write(new, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
