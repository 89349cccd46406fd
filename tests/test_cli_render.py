"""`storyv-lite render`: what it writes, what it refuses, and what stays when it is stopped."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from storyv_lite.cli import app

ROOT = Path(__file__).parents[1]
STORY = "title: A day\nMilo is waving.\nHe is standing.\n"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """An empty folder with a story and, in `bundles`, the tiny bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles").mkdir()
    shutil.copytree(tiny_bundle, "bundles/tiny")
    Path("day.txt").write_text(STORY)
    return tmp_path


def render(*arguments: str | Path, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["render", *(str(argument) for argument in arguments)], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(code: int, *arguments: str | Path) -> str:
    found, out, err = render(*arguments)
    assert found == code, err
    assert out == "" and "error: " in err and "\n\nhint: " in err
    assert err[err.index("error: ") :].startswith("error: ")
    return err


def test_a_story_becomes_frames_a_sheet_a_page_and_a_receipt() -> None:
    code, out, err = render("day.txt", "--json")
    assert code == 0, err
    folder = Path("day-storyboard")
    assert {file.name for file in folder.iterdir()} == {
        "frame-01.png", "frame-02.png", "storyboard.png", "index.html", "story.json"
    }  # fmt: skip
    receipt = json.loads((folder / "story.json").read_text())
    assert receipt["story"] == {"title": "A day", "captions": ["Milo is waving.", "He is standing."]}
    assert receipt["settings"]["seed"] == 0 and receipt["seconds"] > 0
    assert {"storyv-lite", "python", "onnxruntime", "numpy", "tokenizers", "pillow"} == set(
        receipt["versions"]
    )
    assert receipt["threads"] > 0 and receipt["device"]["provider"].endswith("ExecutionProvider")
    assert (
        receipt["bundle"]["sha256"]
        == hashlib.sha256(Path("bundles/tiny/manifest.json").read_bytes()).hexdigest()
    )
    assert [frame["context_frames"] for frame in receipt["frames"]] == [[], [1]]
    assert not any(frame["reduced_context"] for frame in receipt["frames"])
    for frame in receipt["frames"]:
        content = (folder / frame["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == frame["sha256"]
        assert frame["timings_ms"]["draw"] > 0
    if sys.platform == "linux":
        assert receipt["memory_bytes"]["peak"] > 10**7
    assert json.loads(out.splitlines()[-1]) == {"folder": "day-storyboard", **receipt}
    assert "<title>A day</title>" in (folder / "index.html").read_text()


def test_the_bundle_the_device_and_the_reasons_are_said_and_the_last_lines_say_what_comes_next() -> None:
    _, out, err = render("day.txt")
    assert "bundles/tiny (the newest in ./bundles)" in err and "device: " in err
    assert out.splitlines()[0].startswith("wrote day-storyboard: 2 frames")
    assert out.splitlines()[-1].startswith("next: open day-storyboard/index.html")


def test_frames_carry_seed_caption_and_bundle() -> None:
    render("day.txt", "--seed", "7")
    with Image.open("day-storyboard/frame-02.png") as picture:
        text = dict(picture.info)
    manifest = hashlib.sha256(Path("bundles/tiny/manifest.json").read_bytes()).hexdigest()
    assert text == {"caption": "He is standing.", "seed": "7", "bundle": manifest}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    for folder, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert render("day.txt", "-o", folder, "--seed", seed)[0] == 0
    for name in ("frame-01.png", "frame-02.png", "storyboard.png"):
        first, again, other = (Path(folder, name).read_bytes() for folder in "abc")
        assert first == again and first != other


@pytest.mark.parametrize("bundle", ["tiny", "elsewhere/renamed"])
def test_the_command_in_the_receipt_draws_the_same_again_in_the_folder_of_the_story(
    bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bundle != "tiny":
        shutil.copytree("bundles/tiny", bundle)
    Path("untitled.txt").write_text("Milo is waving.\nHe is standing.\n")
    written = ("--seed", "3", "--steps", "2", "--guidance", "2.5", "--bundle", bundle)
    assert render("untitled.txt", "-o", "first", *written)[0] == 0
    command = shlex.split(json.loads(Path("first/story.json").read_text())["command"])
    assert command[:2] == ["storyv-lite", "render"]
    monkeypatch.chdir("first")
    assert render(*command[2:])[0] == 0
    for name in ("frame-01.png", "frame-02.png", "storyboard.png"):
        assert Path(name).read_bytes() == Path("story-storyboard", name).read_bytes()


def test_nothing_is_overwritten_and_a_second_run_writes_a_second_folder() -> None:
    assert [render("day.txt")[0] for _ in range(3)] == [0, 0, 0]
    assert {folder.name for folder in Path().glob("day-*")} == {
        "day-storyboard", "day-storyboard-2", "day-storyboard-3"
    }  # fmt: skip


def test_force_replaces_an_earlier_story_and_leaves_other_files() -> None:
    Path("out").mkdir()
    for name in ("frame-99.png", "keep.txt"):
        Path("out", name).write_text("old")
    assert "is not empty" in refused(2, "day.txt", "-o", "out")
    assert render("day.txt", "-o", "out", "--force")[0] == 0
    assert Path("out/keep.txt").read_text() == "old" and not Path("out/frame-99.png").exists()


def test_standard_input_is_drawn() -> None:
    code, out, _ = render("-", stdin="Luna is sitting.\n")
    assert code == 0 and "wrote story-storyboard: 1 frame," in out


def test_unknown_words_are_warned_of_with_what_is_known_instead() -> None:
    Path("robot.txt").write_text("A robot is welding.\n")
    code, _, err = render("robot.txt")
    assert code == 0 and "robot, welding" in err
    assert "Milo" in err and "storyv-lite characters" in err
    assert "robot" in Path("robot-storyboard/index.html").read_text()


def test_markup_in_a_caption_is_drawn_and_inert() -> None:
    Path("evil.txt").write_text("""<script>alert("1")</script> 'Milo' & "Luna" wave.\n""")
    assert render("evil.txt")[0] == 0
    page = Path("evil-storyboard/index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.slow
def test_two_hundred_sentences_are_drawn_and_the_receipt_says_what_each_was_drawn_after() -> None:
    Path("long.txt").write_text("Milo is waving in the meadow with a red balloon.\n" * 200)
    code, _, err = render("long.txt", "--steps", "1", "--guidance", "1")
    assert code == 0 and "introduce a character" in err
    frames = json.loads(Path("long-storyboard/story.json").read_text())["frames"]
    assert len(frames) == 200 and frames[-1]["file"] == "frame-200.png"
    read = frames[-1]["context_frames"]
    assert read[0] == 1 and read[1:] == list(range(read[1], 200)) and 190 < read[1] < 199


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "holds no sentence"),
        ("line.txt", b"a" * 10_000, "line 1"),
        ("latin.txt", "Milo w\u00e4scht.".encode("latin-1"), "not UTF-8"),
        ("broken.json", b'{"captions": [}', "line 1"),
        ("long.txt", b"Milo waves." + b" Milo and Luna are waving" * 30, "frame 2 needs"),
    ],
)
def test_a_story_that_cannot_be_drawn_whole_is_refused_before_anything_is_written(
    name: str, content: bytes, says: str
) -> None:
    Path(name).write_bytes(content)
    assert says in refused(2, name)
    assert not list(Path().glob("*-storyboard"))


def test_a_folder_and_a_missing_file_are_refused() -> None:
    assert "is a folder" in refused(2, ".")
    assert "there is no file" in refused(2, "none.txt")


def test_a_place_that_cannot_be_written_is_refused() -> None:
    assert "is a file" in refused(2, "day.txt", "-o", "day.txt")
    assert "is a file" in refused(2, "day.txt", "-o", "day.txt/deeper")
    if sys.platform == "linux":  # where nobody may write, not even root
        assert "cannot be written" in refused(2, "day.txt", "-o", "/proc/storyboard")
    if os.name == "posix" and os.getuid() != 0:
        Path("locked").mkdir(mode=0o500)
        assert "cannot be written" in refused(2, "day.txt", "-o", "locked")


@pytest.mark.parametrize(
    "option", [("--steps", "0"), ("--steps", "2000"), ("--seed", "-1"), ("--guidance", "-3")]
)
def test_settings_outside_their_range_are_refused(option: tuple[str, str]) -> None:
    refused(2, "day.txt", *option)
    assert not list(Path().glob("*-storyboard"))


def test_an_unknown_bundle_and_an_unknown_device_are_refused() -> None:
    refused(4, "day.txt", "--bundle", "none")
    refused(5, "day.txt", "--device", "abacus")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a CUDA device")
def test_cuda_without_a_device_is_refused_and_never_drawn_on_the_processor() -> None:
    assert "cpu" in refused(5, "day.txt", "--device", "cuda")
    assert not list(Path().glob("*-storyboard"))


def edit_manifest(change: Callable[[dict[str, object]], None]) -> None:
    file = Path("bundles/tiny/manifest.json")
    manifest = json.loads(file.read_text())
    change(manifest)
    file.unlink()  # a hard link to the shared one
    file.write_text(json.dumps(manifest))


def first_part(manifest: dict[str, object]) -> dict[str, object]:
    components = manifest["components"]
    assert isinstance(components, dict)
    part = components["unet"]["variants"][0]["parts"][0]
    assert isinstance(part, dict)
    return part


def test_a_missing_file_of_the_bundle_is_refused() -> None:
    next(Path("bundles/tiny/unet").rglob("*.onnx")).unlink()
    assert "missing" in refused(4, "day.txt")


def test_one_flipped_byte_is_refused() -> None:
    file = max(Path("bundles/tiny").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    assert "SHA-256 differs" in refused(4, "day.txt")


@pytest.mark.parametrize("path", ["../../day.txt", "/etc/hostname", "unet/../../../day.txt"])
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    edit_manifest(lambda manifest: first_part(manifest).update(file=path))
    assert "leaves the bundle" in refused(4, "day.txt")


def test_a_link_in_a_bundle_is_refused() -> None:
    file = next(Path("bundles/tiny/unet").rglob("*.onnx"))
    shutil.move(file, "elsewhere.onnx")
    file.symlink_to(Path("elsewhere.onnx").absolute())
    assert "is a link" in refused(4, "day.txt")


def test_a_newer_schema_is_refused() -> None:
    edit_manifest(lambda manifest: manifest.update(schema=99))
    assert "schema 99" in refused(4, "day.txt")


def test_ctrl_c_exits_with_130_and_leaves_the_finished_frames() -> None:
    Path("many.txt").write_text("Milo is waving.\n" * 120)
    process = subprocess.Popen(
        [sys.executable, "-m", "storyv_lite", "render", "many.txt", "--steps", "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A script in the background hands on an interrupt that is ignored; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not Path("many-storyboard/frame-002.png").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "frames are in many-storyboard" in err and "Traceback" not in err
    assert err.splitlines()[-1].endswith("go on with: storyv-lite continue many-storyboard")
    frames = sorted(Path("many-storyboard").glob("frame-*.png"))
    assert 2 <= len(frames) < 120
    for frame in frames:
        with Image.open(frame) as picture:
            picture.load()
