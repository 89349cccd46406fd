"""Stories killed at random moments and resumed: is every byte that of a story drawn in one go?

Run `python -m storyv_lite.benchmarks.kills [--kills N]`. Every story is drawn by processes of its own, one to
three of them killed with SIGKILL; in turn nothing more is done, its journal is torn, one of its frames is cut
short, or the process that goes on meets a full disk. Then it is resumed. Knows processes and files; what a
resumed story does is the command's business.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.command import check_written, failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import PICNIC
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import find_bundle
from storyv_lite.errors import ConfigError, StoryVError
from storyv_lite.runtime.journal import JOURNAL

COMMAND = "python -m storyv_lite.benchmarks.kills"
MAX_KILLS_OF_ONE = 3
FULL_DISK = "full disk"
DAMAGES = ("torn journal", "truncated frame", *([] if sys.platform == "win32" else [FULL_DISK]))


@dataclass(frozen=True)
class Killed:
    """One story that was killed, and what else was done to it before it was resumed."""

    kills: int  # processes that SIGKILL ended, at least one
    damage: str  # of `DAMAGES`, or "none": what was really done, not what was meant to be
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

    def kill(self, number: int, kills: int, damage: str) -> Killed:
        """Draw story `number`, kill it up to `kills` times, damage it, and go on until it is finished."""
        folder, times = self.place / f"story-{number}", 0
        while times < kills:
            code, said = self._run(self._process(folder), self.chance.uniform(0, self.seconds))
            if code == -signal.SIGKILL:
                times += 1
            elif times:  # done, or failed, before it could be killed once more
                break
            elif code:
                raise StoryVError(f"a story failed before it was killed: {said.strip()[-300:]}")
            else:
                shutil.rmtree(folder)
        frames = len(list(folder.glob("frame-*.png")))
        harm = {"torn journal": self._tear_journal, "truncated frame": self._truncate_frame}
        harm[FULL_DISK] = self._fill_disk
        done = damage if damage in harm and harm[damage](folder) else "none"
        code, said = self._run(self._process(folder), None)
        same = code == 0 and pictures(folder) == self.whole
        return Killed(times, done, frames, same, "" if same else said.strip()[-300:])

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

    def _tear_journal(self, folder: Path) -> bool:
        """Cut into the last lines of the journal, as a loss of power may; its first line was synced."""
        file = folder / JOURNAL
        if not file.is_file():
            return False
        content = file.read_bytes()
        first = content.index(b"\n") + 1
        file.write_bytes(content[: self.chance.randint(first, len(content))] + self.chance.randbytes(8))
        return True

    def _truncate_frame(self, folder: Path) -> bool:
        files = sorted(folder.glob("frame-*.png"))
        if not files:
            return False
        file = self.chance.choice(files)
        file.write_bytes(file.read_bytes()[: self.chance.randrange(1000)])
        return True

    def _fill_disk(self, folder: Path) -> bool:
        """Go on where no file may grow beyond a random limit; whether that stopped it."""
        largest = max(map(len, self.whole.values()))
        return self._run(self._process(folder, self.chance.randrange(largest)), None)[0] != 0


def pictures(folder: Path) -> dict[str, bytes]:
    """Every PNG file of a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.glob("*.png*")}


def _limit(size: int) -> Callable[[], None]:
    """What lets a process write no file larger than `size` bytes: the next best to a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def counts(killed: Sequence[Killed]) -> dict[str, int]:
    """How many stories and SIGKILLs there were, and of each damage how many."""
    found = {"stories": len(killed), "kills": sum(one.kills for one in killed)}
    return {**found, **{damage: sum(one.damage == damage for one in killed) for damage in DAMAGES}}


def table(killed: Sequence[Killed]) -> list[list[str]]:
    """A header, one row per kind of damage, and the sum."""
    rows = [["done besides", "stories", "SIGKILLs", "frames there when killed, mean", "identical"]]
    kinds = [kind for kind in ("none", *DAMAGES) if any(one.damage == kind for one in killed)]
    for kind in (*kinds, "in all"):
        some = [one for one in killed if kind in (one.damage, "in all")]
        mean = sum(one.frames_then for one in some) / len(some)
        kills, same = sum(one.kills for one in some), sum(one.identical for one in some)
        rows.append([kind, str(len(some)), str(kills), f"{mean:.1f}", f"{same} of {len(some)}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the record as JSON; write it where asked. Exit code 1 where a story differs."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Kill stories, resume them, compare bytes.")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="processes to SIGKILL [100]")
    parser.add_argument("--seed", type=int, default=0, help="which moments")
    parser.add_argument("--bundle", default=None, help="folder or name [as `render` chooses]")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--write", type=Path, default=None, metavar="FILE", help="write the record here, too")
    asked = parser.parse_args(arguments)
    if not hasattr(signal, "SIGKILL"):
        return failed(
            ConfigError("this system has no SIGKILL, which stories are killed with", "run it on Linux")
        )
    chance = random.Random(asked.seed)
    killed: list[Killed] = []
    kinds, left = ["none", *DAMAGES], asked.kills
    with tempfile.TemporaryDirectory(prefix="storyv-lite-kills-") as name:
        place = Path(name)
        (place / "story.txt").write_text("\n".join(PICNIC), encoding="utf-8")
        try:
            check_written(asked.write)
            bundle, _ = find_bundle(asked.bundle)
            options = ["--steps", str(asked.steps), "--device", "cpu", "--bundle", str(bundle)]
            stories = Kills(place, options, chance)
            while left:
                kills = min(chance.randint(1, MAX_KILLS_OF_ONE), left)
                one = stories.kill(len(killed), kills, kinds[len(killed) % len(kinds)])
                killed.append(one)
                left -= one.kills
                same = "identical" if one.identical else "DIFFERS"
                tell(f"story {len(killed)}: {one.kills} kills, damage: {one.damage}, {same}; {left} to go")
        except StoryVError as fault:
            return failed(fault)
    print(markdown_table(table(killed)))
    for one in killed:
        if not one.identical:
            print(f"differs ({one.damage}): {one.said or 'bytes'}")
    record: dict[str, Any] = {
        **heading(typed(COMMAND, arguments)),
        "bundle": bundle.name,
        "steps": asked.steps,
        "unbroken_s": round(stories.seconds, 2),
        "counts": counts(killed),
        "identical": all(one.identical for one in killed),
        "stories": [asdict(one) for one in killed],
    }
    if asked.write:
        write_record(asked.write, record)
    print(json.dumps(record))
    return 0 if record["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
