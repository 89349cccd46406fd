"""Mapped tensors: the library's own files are read, and what is damaged is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from storyv_lite.errors import BundleError
from storyv_lite.runtime.token_table import open_table
from storyv_lite.tensors import open_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.tensor([1.5, -2.5], dtype=torch.float16),
    "empty": torch.zeros(0, 4),
    "model.embed_tokens.weight": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 4}')
    return tmp_path / "model.safetensors"


def test_what_the_library_wrote_is_mapped_and_outlives_the_open_file(file: Path) -> None:
    with open_tensors(file) as tensors:
        assert tensors.keys() == TENSORS.keys()
        mapped = {name: tensor.map() for name, tensor in tensors.items()}
    for name, wanted in TENSORS.items():
        assert mapped[name].tobytes() == wanted.numpy().tobytes()


def test_a_file_that_is_replaced_while_it_is_read_stays_what_it_was(file: Path, tmp_path: Path) -> None:
    with open_tensors(file) as tensors:
        save_file({name: tensor + 1 for name, tensor in TENSORS.items()}, tmp_path / "new")
        (tmp_path / "new").replace(file)
        assert np.array_equal(tensors["a.weight"].map().view(np.float32), np.arange(12))


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(file: Path) -> None:
    before = file.read_bytes()
    with open_tensors(file) as tensors:
        tensors["a.weight"].map()[:] = 0
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["short", "header", "offsets", "empty"])
def test_a_damaged_file_is_refused(file: Path, damage: str) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    match damage:
        case "short":
            content = content[:-20]
        case "header":
            content = content[:8] + b"x" * length + content[8 + length :]
        case "offsets":
            header["b"]["data_offsets"] = [0, 10**6]
            text = json.dumps(header).encode()
            content = len(text).to_bytes(8, "little") + text + content[8 + length :]
        case "empty":
            content = b""
    file.write_bytes(content)
    with pytest.raises(BundleError, match="is damaged") as caught, open_tensors(file):
        pass
    assert caught.value.hint == f"storyv-lite train -o {file.parent.parent}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_a_token_table_are_those_of_the_weights_in_any_type(file: Path, dtype: torch.dtype) -> None:
    table = TENSORS["model.embed_tokens.weight"].to(dtype)
    save_file({"model.embed_tokens.weight": table}, file)
    rows = open_table(file, 5, 4)[np.array([4, 0, 4])].astype(np.float32)
    assert np.array_equal(rows, table.float().numpy()[[4, 0, 4]])


def test_rows_are_multiplied_where_the_language_model_does_so_before_it_reads_them(file: Path) -> None:
    wanted = 2 * open_table(file, 5, 4)[np.array([4, 0])]
    (file.parent / "config.json").write_text('{"model_type": "gemma", "hidden_size": 4}')
    assert np.array_equal(open_table(file, 5, 4)[np.array([4, 0])], wanted)
