"""Stories killed at random moments and resumed: is every byte that of a story drawn in one go?

Run `python -m storyv_lite.benchmarks.kills [--kills N]`. Every story is drawn by a process of its own, killed
with SIGKILL, damaged now and then as a loss of power would, resumed, and at times killed again. Knows
processes and files; what a resumed story does is the command's business.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.measure import PICNIC
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import StoryVError

COMMAND = "python -m storyv_lite.benchmarks.kills"
JOURNAL = "journal.jsonl"
MAX_KILLS_OF_ONE = 3
FULL_DISK = "full disk"


@dataclass(frozen=True)
class Killed:
    """One story that was killed, by what was done to its folder before it was resumed."""

    damage: str  # "none" | "torn journal" | "truncated frame" | "full disk"
    kills: int  # times the process was killed, or refused by a full disk
    frames_then: int  # on the disk when it was killed last
    identical: bool  # to the unbroken story, in every frame and the sheet
    said: str  # what the last process printed when it failed


class Kills:
    """Draws one story over and over in `place`; `options` go to `storyv-lite render`."""

    def __init__(self, place: Path, options: Sequence[str], chance: random.Random) -> None:
        self.place = place
        self.options = list(options)
        self.chance = chance
        start = time.monotonic()
        code, said = self._run(self._process(place / "whole"), None)
        self.seconds = time.monotonic() - start
        self.whole = pictures(place / "whole")
        if code:
            raise StoryVError(f"the unbroken story was not drawn: {said.strip()[-300:]}")

    def kill(self, number: int, damage: str) -> Killed:
        """Draw story `number`, stop it, damage it, and go on until it is finished."""
        folder, times = self.place / f"story-{number}", 0
        for _ in range(self.chance.randint(1, MAX_KILLS_OF_ONE)):
            if damage == FULL_DISK:
                sizes = sorted(map(len, self.whole.values()))
                code, _ = self._run(self._process(folder, self.chance.randrange(sizes[-1])), None)
                times += code != 0
            else:
                code, _ = self._run(self._process(folder), self.chance.uniform(0, self.seconds))
                times += code < 0
        frames = len(list(folder.glob("frame-*.png")))
        {"torn journal": self._tear_journal, "truncated frame": self._truncate_frame}.get(damage, str)(folder)
        code, said = self._run(self._process(folder), None)
        same = code == 0 and pictures(folder) == self.whole
        return Killed(damage, times, frames, same, "" if same else said.strip()[-300:])

    def _process(self, folder: Path, file_limit: int | None = None) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "storyv_lite", "render", str(self.place / "story.txt"), "--resume"]
        return subprocess.Popen(
            [*command, "-o", str(folder), *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=None if file_limit is None else _limit(file_limit),
        )

    def _run(self, process: "subprocess.Popen[str]", seconds: float | None) -> tuple[int, str]:
        """Wait for a process, or kill it after `seconds`; its exit code, and what it said."""
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        return process.returncode, said

    def _tear_journal(self, folder: Path) -> None:
        """Cut into the last lines of the journal, as a loss of power may; its first line was synced."""
        file = folder / JOURNAL
        if file.is_file():
            content = file.read_bytes()
            first = content.index(b"\n") + 1
            file.write_bytes(content[: self.chance.randint(first, len(content))] + self.chance.randbytes(8))

    def _truncate_frame(self, folder: Path) -> None:
        files = sorted(folder.glob("frame-*.png"))
        if files:
            file = self.chance.choice(files)
            file.write_bytes(file.read_bytes()[: self.chance.randrange(1000)])


def pictures(folder: Path) -> dict[str, bytes]:
    """Every PNG file of a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.glob("*.png*")}


def _limit(size: int) -> Callable[[], None]:
    """What lets a process write no file larger than `size` bytes: the next best to a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def table(killed: Sequence[Killed]) -> list[list[str]]:
    """A header and one row per kind of damage."""
    rows = [["damage", "stories", "kills", "frames there when killed, mean", "identical"]]
    for damage in dict.fromkeys(one.damage for one in killed):
        some = [one for one in killed if one.damage == damage]
        mean = sum(one.frames_then for one in some) / len(some)
        kills, same = sum(one.kills for one in some), sum(one.identical for one in some)
        rows.append([damage, str(len(some)), str(kills), f"{mean:.1f}", f"{same} of {len(some)}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Kill stories, resume them, compare bytes.")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="processes to kill at least")
    parser.add_argument("--seed", type=int, default=0, help="which moments")
    parser.add_argument("--bundle", default="", help="as `storyv-lite render` chooses")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    asked = parser.parse_args(arguments)
    chance = random.Random(asked.seed)
    options = ["--steps", str(asked.steps), "--device", "cpu"]
    options += ["--bundle", asked.bundle] if asked.bundle else []
    killed: list[Killed] = []
    kinds = ["none", "torn journal", "truncated frame", *([] if sys.platform == "win32" else [FULL_DISK])]
    with tempfile.TemporaryDirectory(prefix="storyv-lite-kills-") as name:
        place = Path(name)
        (place / "story.txt").write_text("\n".join(PICNIC), encoding="utf-8")
        try:
            stories = Kills(place, options, chance)
        except StoryVError as fault:
            return failed(fault)
        while sum(one.kills for one in killed) < asked.kills:
            one = stories.kill(len(killed), kinds[len(killed) % len(kinds)])
            killed.append(one)
            same = "identical" if one.identical else "DIFFERS"
            print(f"story {len(killed)}: {one.damage}, {one.kills} kills, {same}", file=sys.stderr)
    print(markdown_table(table(killed)))
    for one in killed:
        if not one.identical:
            print(f"differs ({one.damage}): {one.said or 'bytes'}")
    result = {
        "schema": 1,
        "unbroken_s": round(stories.seconds, 2),
        "stories": [asdict(one) for one in killed],
    }
    print(json.dumps({**result, "identical": all(one.identical for one in killed)}))
    return 0 if all(one.identical for one in killed) else 1


if __name__ == "__main__":
    sys.exit(main())
