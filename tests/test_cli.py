"""The command line as a whole: help, the form of errors, exit codes, and the short commands."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storyv_lite import __version__, errors
from storyv_lite.bundle import Bundle
from storyv_lite.cli.drawing import writing
from storyv_lite.cli.export import say_quality

Run = Callable[..., tuple[int, str, str]]
Said = Callable[..., str]

ROOT = Path(__file__).parents[1]
COMMANDS = tuple(
    "render redraw continue plan train export ranges characters inspect eval bench doctor data".split()
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command_and_every_command_explains_itself(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    for command in COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0 and "Usage:" in out


def test_help_takes_less_than_half_a_second_of_processor_time_and_loads_no_framework() -> None:
    code = (
        "import os, sys\n"
        "sys.argv = ['storyv-lite', '--help']\n"
        "from storyv_lite.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = [m for m in ('numpy', 'onnxruntime', 'torch', 'PIL', 'rich') if m in sys.modules]\n"
        "print(sum(os.times()[:2]), heavy, file=sys.stderr)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    spent, heavy = answer.stderr.split(maxsplit=1)
    assert float(spent) < 0.5 and heavy.strip() == "[]"


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version")[1].strip() == f"storyv-lite {__version__}"


def test_python_m_is_the_same_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "storyv_lite", "--version"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert answer.stdout.strip() == f"storyv-lite {__version__}"


def test_every_error_class_has_the_exit_code_that_its_tree_shows() -> None:
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        parts = line.strip("├└─ ").split()
        if parts and parts[0].endswith("Error") or parts[:1] == ["MissingDependency"]:
            assert getattr(errors, parts[0]).exit_code == int(parts[1]), line


def test_an_error_is_one_message_a_blank_line_and_a_hint_on_stderr(run: Run) -> None:
    code, out, err = run("render", "none.txt")
    assert (code, out) == (2, "")
    assert err == (
        'error: there is no file `none.txt`\n\nhint: echo "Milo is waving." | storyv-lite render -\n'
    )


def test_the_example_that_a_hint_names_is_there(tmp_path: Path, run: Run) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "picnic.txt").touch()
    assert run("render", "none.txt")[2].endswith("hint: storyv-lite render examples/picnic.txt\n")
    (tmp_path / "my stories").mkdir()
    (tmp_path / "my stories" / "a.txt").touch()
    assert run("render", "my stories")[2].endswith("hint: storyv-lite render 'my stories/a.txt'\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("continue", "a b"), "storyv-lite render STORY -o 'a b'"),
        (("characters", "--sheet", "a b/cast.png"), "mkdir -p 'a b'"),
    ],
)
def test_a_command_in_a_hint_holds_a_name_with_a_blank_together(
    arguments: tuple[str, ...], hint: str, refused: Said
) -> None:
    assert refused(2, *arguments).endswith(f"hint: {hint}\n")


def test_every_story_a_plan_may_take_is_named_once_in_its_help(run: Run) -> None:
    assert "[[" not in run("plan", "--help")[1]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, refused: Said
) -> None:
    refusal = refused(2, "bench", "--record", tmp_path, "--force")
    assert "is a folder, and a file is needed" in refusal and "--force" not in refusal
    if sys.platform == "linux":  # there nobody can write into /proc
        assert "`/proc/record.json` cannot be written" in refused(2, "bench", "--record", "/proc/record.json")


def test_what_keeps_a_folder_from_being_written_decides_what_helps(tmp_path: Path) -> None:
    for number, helps in ((errno.EACCES, "make it writable"), (errno.ENOSPC, "make room")):
        with pytest.raises(errors.OutputError) as caught, writing(tmp_path, "again"):
            raise OSError(number, os.strerror(number))
        assert caught.value.hint.startswith(helps)


def test_a_checkpoint_that_is_not_there_is_named_by_every_command(refused: Said) -> None:
    commands = (("export", "none"), ("ranges", "none"), ("eval", "--checkpoint", "none"))
    for command in commands:
        assert "`none` is no checkpoint" in refused(4, *command)


@pytest.mark.parametrize("scheme", ["unet", "unet=int3", "sofa=int4", "token_embedding=int4"])
def test_a_misspelt_scheme_comes_with_one_that_is_right(scheme: str, refused: Said) -> None:
    assert "hint: write it like `--scheme unet=int4,llm=int8`" in refused(2, "export", "--scheme", scheme)


@pytest.mark.parametrize(
    "arguments", [("paint",), ("render",), ("render", "a.txt", "--colour"), ("data", "sell")]
)
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...], run: Run) -> None:
    assert run(*arguments)[0] == 2


def test_characters_lists_the_cast_and_draws_its_sheet(tiny_bundle: Path, run: Run) -> None:
    code, out, err = run("characters", "--bundle", tiny_bundle, "--sheet", "cast.png", "--json")
    assert code == 0 and "Milo the fox (he)" in out and "places: " in out and "asked for" in err
    answer = json.loads(out.splitlines()[-1])
    assert {one["name"] for one in answer["characters"]} == {"milo", "luna", "bruno"}
    assert Path("cast.png").read_bytes().startswith(b"\x89PNG")
    assert run("characters", "--bundle", tiny_bundle, "--sheet", "cast.png")[0] == 2
    assert run("characters", "--bundle", tiny_bundle, "--sheet", "cast.png", "--force")[0] == 0
    assert run("characters", "--bundle", tiny_bundle, "--sheet", "none/cast.png")[0] == 2


def test_inspect_shows_every_component_with_its_scheme(tiny_bundle: Path, run: Run) -> None:
    code, out, _ = run("inspect", tiny_bundle, "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0 and "unet" in out and answer["components"]["unet"] == ["fp32"]
    assert answer["bytes"] == sum(file.stat().st_size for file in tiny_bundle.rglob("*") if file.is_file())


def test_inspect_refuses_a_bundle_that_lacks_a_component(
    tiny_bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    file = tmp_path / "bundle" / "manifest.json"
    whole = json.loads(file.read_text())
    lacking: tuple[dict[str, object], ...] = ({"unet": {"variants": []}}, {})
    for unet in lacking:
        components = {name: entry for name, entry in whole["components"].items() if name != "unet"}
        file.write_text(json.dumps({**whole, "components": {**components, **unet}}))
        assert "nothing for `unet`" in refused(4, "inspect", tmp_path / "bundle")


def test_doctor_says_what_this_machine_can_run(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0 and "onnxruntime" in out and "CPU" in answer["providers"]
    assert f"draws on {answer['device']} ({answer['reason']})" in out


def test_data_make_writes_a_set_that_can_be_read_and_overwrites_nothing(run: Run) -> None:
    from storyv_lite.train.toonworld.dataset_files import read_dataset

    make = ("data", "make", "-o", "set", "--stories", "1", "--frames", "2")
    code, out, _ = run(*make, "--json")
    assert code == 0 and out.startswith("wrote set: 2 pictures with masks, 1 stories")
    assert json.loads(out.splitlines()[-1]) == {"folder": "set", "stories": 1, "frames": 2}
    (story,) = read_dataset(Path("set"))
    assert len(story.frames) == 2 and story.frames[0].characters[0].mask
    assert run(*make)[0] == 2 and run(*make, "--force")[0] == 0


def test_schemes_exclude_each_other(run: Run) -> None:
    code, _, err = run("export", "--int8", "--int4")
    assert code == 2 and "exclude each other" in err


def test_an_unknown_part_of_a_scheme_is_refused_with_the_known_ones(run: Run) -> None:
    code, _, err = run("export", "--int4", "--scheme", "lmm=int8")
    assert code == 2 and "`lmm` is no component" in err and "llm, vae, text_encoder" in err


def test_export_without_a_checkpoint_says_how_to_get_one_or_takes_the_repository_s(run: Run) -> None:
    if (ROOT / "checkpoints" / "toon" / "checkpoint.json").exists():
        pytest.skip("the repository's own checkpoint would be exported")
    code, _, err = run("export")
    assert code == 4 and "storyv-lite train" in err


def test_export_tells_which_stages_are_not_finished(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    record = json.loads((tiny_checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    record["stages"] = {
        "char_ldm": {"steps": 9, "max_train_steps": 9, "done": True},
        "align": {"steps": 2, "max_train_steps": 9, "done": False},
    }
    (tmp_path / "checkpoint.json").write_text(json.dumps(record), encoding="utf-8")
    _, _, err = run("export", tmp_path, "-o", tmp_path / "bundle", "--fp32")
    assert "as it is, align not finished; to go on: storyv-lite train" in err and "--stage align" in err


def test_an_unknown_stage_or_device_of_train_is_refused(run: Run) -> None:
    assert run("train", "--stage", "paint")[0] == 2
    assert run("train", "--preset", "none")[0] == 2


@pytest.mark.parametrize(("reached", "said"), [(28.5, True), (30.0, False)])
def test_an_export_that_misses_its_decibels_says_so(
    tiny_bundle: Path, reached: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    say_quality(replace(bundle, mixture={"target_psnr_db": 30.0}, parity={"psnr_db": reached}))
    assert ("30 dB were asked for, these stories reach 28.5" in capsys.readouterr().err) == said
