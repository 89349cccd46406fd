"""A whole frame of the published shapes, narrow: made, exported in parts, planned and drawn as planned."""

import json
from functools import partial
from pathlib import Path

import pytest

from storyv_lite.benchmarks import big_frame, child


@pytest.mark.slow
def test_a_narrow_model_of_the_published_shapes_goes_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"folder": str(tmp_path), "size": {"layers": 2, "narrow": 16}, "part_bytes": 400_000}
    for name, step in big_frame.STEPS.items():  # here, where the libraries are loaded already
        answer = child.costed(partial(step, tmp_path))(request)
        (tmp_path / f"{name}.json").write_text(json.dumps(answer))
    record = tmp_path / "record.json"
    asked = ["--layers", "2", "--narrow", "16", "--ram", "180MB", "--record", str(record)]
    big_frame.main([str(tmp_path), *asked])
    told, found = capsys.readouterr().out, json.loads(record.read_text())
    assert found["export"]["components"]["language_model"]["parts"] > 1
    assert found["export"]["components"]["unet"]["parts"] > 1
    drawn = found["render"]
    planned = drawn["plan"]["ram_bytes"]
    assert planned == pytest.approx(found["plan"]["ram_bytes"], rel=0.02) and planned <= 180e6
    assert [frame["conditioning"] for frame in drawn["frames"]] == ["portraits", "story"]
    assert {"look", "read", "map", "draw", "decode"} <= drawn["frames"][1]["timings_ms"].keys()
    assert all(phase["measured_bytes"] for phase in drawn["plan"]["phases"])
    assert "| decode" in told and "stays loaded" in told
    assert (tmp_path / "story" / "frame-02.png").is_file()
    assert found["plan"]["demand"]["steps"] == drawn["plan"]["demand"]["steps"] == 2
    assert big_frame.main([str(tmp_path), *asked, "--steps", "3"]) == 2
    assert "was asked for otherwise" in capsys.readouterr().err
