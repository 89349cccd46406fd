"""One step of a UNet in 4 bits: in parts, loaded one after another or all there at once."""

from pathlib import Path
from typing import Any

import numpy as np

from storyv_lite.benchmarks.big_unet import TURNS, UNET, WAYS, dimensions, step, table, write_unet
from storyv_lite.export.stream import stream_component
from storyv_lite.quantization import SCHEMES

SMALL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [32, 64],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}


def test_a_step_answers_the_same_with_its_parts_in_turn_and_all_of_them_there(tmp_path: Path) -> None:
    write_unet(tmp_path, SMALL)
    place = tmp_path / "int4"
    scheme = SCHEMES["int4"][UNET]
    variant = stream_component(UNET, tmp_path, dimensions(64), scheme, place, place / "records", 2**17, None)
    request = {"way": "int4", "parts": [part.file for part in variant.parts], "threads": 1, "runs": 1}
    assert len(variant.parts) > 1
    for row, whole in (("int4", False), ("int4-whole", True)):
        assert step(tmp_path, {**request, "row": row, "whole": whole})["seconds"] > 0
    in_turn, at_once = np.load(tmp_path / "int4.npy"), np.load(tmp_path / "int4-whole.npy")
    assert in_turn.shape == (1, 4, 64, 64) and in_turn.std() > 0 and np.array_equal(in_turn, at_once)


def test_the_table_has_a_row_for_every_export_and_every_way_of_a_step() -> None:
    rows = [row for row, _, _ in TURNS]
    found = {
        "threads": 2,
        "make": {"parameters": 1000},
        "calibrate": {"peak_bytes": 10**9},
        "exports": {way: {"bytes": 580, "parts": ["a", "b"], "peak_bytes": 10**9} for way in WAYS},
        "steps": {
            row: [{"seconds": 2.0, "peak_bytes": 10**9}, {"seconds": 1.5, "peak_bytes": 2 * 10**9}]
            for row in rows
        },
        "distances": {row: {"snr_db": 8.4} for row in rows},
    }
    lines = table(found).splitlines()
    assert "| int4 | 0 MB | 29.0 % | 2 | 1.00 GB |" in lines
    assert [line for line in lines if line.startswith("| int4-whole")] == [
        "| int4-whole | 1.50 | 2.00 GB | 8.4 dB |"
    ]
