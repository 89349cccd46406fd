"""What graphs work in: told from their shapes, close to what is measured, for any size of tiles."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from storyv_lite.benchmarks.big_checkpoint import Size, dimensions, make_checkpoint
from storyv_lite.components import Component, Signature, TensorSpec
from storyv_lite.export.stream import stream_component
from storyv_lite.export.work import working_bytes
from storyv_lite.manifest import Variant
from storyv_lite.memory import give_back_freed_memory, resident_memory, return_freed_memory, take_peak
from storyv_lite.quantization import SCHEMES
from storyv_lite.runtime.backends.base import Tensors
from storyv_lite.runtime.backends.free_size import free_size
from storyv_lite.runtime.backends.ort import session_options
from storyv_lite.runtime.backends.parts import Parts
from storyv_lite.runtime.tiles import Floats, decode_tiles

SIZE = Size(layers=1, narrow=16)
DECODER = Component.VAE_DECODER


def graph(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    def floats(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    made = helper.make_graph(nodes, "main", [*map(floats, inputs)], [*map(floats, outputs)])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])


WANTED = Signature(
    (TensorSpec("x", "float32", ("batch", 1000)),), (TensorSpec("y", "float32", ("batch", 1000)),)
)


def test_a_tensor_counts_from_where_it_is_made_to_where_it_is_read_last() -> None:
    node = helper.make_node
    chain = [
        node("Softmax", ["x"], ["a"]),  # x, a
        node("Sigmoid", ["a"], ["b"]),  # x, a, b: a is read again
        node("Mul", ["a", "b"], ["c"]),  # in the place of a or b
        node("Concat", ["c", "c", "c"], ["d"], axis=0),  # x, c, d of three
        node("ReduceMean", ["d"], ["y"], keepdims=1),
    ]
    assert working_bytes([graph(chain, ["x"], ["y"])], WANTED, 1) == 4 * 1000 * 5
    assert working_bytes([graph(chain, ["x"], ["y"])], WANTED, 3) == 3 * 4 * 1000 * 5


def test_what_a_part_gives_stays_while_the_next_one_works() -> None:
    node = helper.make_node
    first = graph([node("Softmax", ["x"], ["a"])], ["x"], ["a"])
    second = graph([node("Softmax", ["a"], ["b"]), node("Softmax", ["b"], ["y"])], ["a"], ["y"])
    assert working_bytes([first, second], WANTED, 1) == 4 * 1000 * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model of the published shapes."""
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    make_checkpoint(folder, SIZE)
    return folder


def streamed(checkpoint: Path, place: Path, part_bytes: int | None) -> Variant:
    scheme = SCHEMES["int4"][DECODER]
    return stream_component(
        DECODER, checkpoint, dimensions(SIZE), scheme, place, place / "records", part_bytes
    )


def opened(place: Path, files: Sequence[str], whole: bool) -> Parts:
    def load(file: str) -> onnxruntime.InferenceSession:
        options, path = session_options(1), place / file
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        return onnxruntime.InferenceSession(
            free_size(path.read_bytes()), options, providers=["CPUExecutionProvider"]
        )

    return Parts([partial(load, file) for file in files], ["image"], whole)


def decoded(parts: Parts, latents: Floats) -> Floats:
    def use(session: onnxruntime.InferenceSession, given: Tensors) -> Tensors:
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    image: Floats = parts.run({"latents": latents}, use)["image"]
    return image


def test_a_published_decoder_is_tiled_in_one_part_or_several(checkpoint: Path, tmp_path: Path) -> None:
    one, several = (
        streamed(checkpoint, tmp_path / "one", None),
        streamed(checkpoint, tmp_path / "cut", 100_000),
    )
    assert len(one.parts) == 1 < len(several.parts) and one.work and several.work
    assert list(one.work.values()) == sorted(one.work.values())
    assert all(several.work[side] >= one.work[side] for side in one.work), "what crosses from part to part"
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    pictures: list[tuple[Floats, Floats]] = []
    for name, variant, whole in (("one", one, False), ("cut", several, False), ("cut", several, True)):
        parts = opened(tmp_path / name, [part.file for part in variant.parts], whole)
        asked: list[int] = []

        def decode(part: Floats, parts: Parts = parts, asked: list[int] = asked) -> Floats:
            asked.append(part.shape[2])
            return decoded(parts, part)

        pictures.append((decode_tiles(decode, latents, 16), decode_tiles(decode, latents, 12)))
        assert asked == [16, 12, 12, 12, 12]
        parts.close()
    assert all(picture.shape == (1, 3, 128, 128) for picture in pictures[0])
    for pair in pictures[1:]:
        for picture, right in zip(pair, pictures[0], strict=True):
            np.testing.assert_array_equal(picture, right)


def measured(place: Path, file: str, side: int) -> list[int]:
    """Bytes that a session takes in each of its first runs, in a process that does nothing else."""
    return_freed_memory()

    def took(parts: Parts, side: int) -> int:
        give_back_freed_memory()
        take_peak()
        before = resident_memory().now or 0
        decoded(parts, np.zeros((1, 4, side, side), np.float32))
        return (take_peak() or 0) - before

    took(opened(place, [file], False), 4)  # what the library keeps
    parts = opened(place, [file], False)
    return [took(parts, side) for _ in range(3)]  # from the second on all tensors lie in one block


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side", [12, 16])
def test_what_is_told_of_a_decoder_is_what_it_takes(side: int, checkpoint: Path, tmp_path: Path) -> None:
    variant = streamed(checkpoint, tmp_path, None)
    assert variant.work and len(variant.parts) == 1
    told, kept = variant.work[str(side)], 6 * 2**20  # by a session, from its first run on
    command = [sys.executable, __file__, str(tmp_path), variant.parts[0].file, str(side)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    assert 0.8 * told < min(found) and max(found) < 1.25 * told + kept


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
