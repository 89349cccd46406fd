"""Graphs that say one height and width, opened for any: the two axes get names instead of numbers.

Knows the few fields of an ONNX file that hold a shape, as bytes; not what the graph computes. A graph whose
inside is bound to the size after all fails when it runs.
"""

from collections.abc import Callable, Iterator

_GRAPH, _INPUT, _OUTPUT = 7, 11, 12  # fields of ModelProto and GraphProto
_SHAPE = (2, 1, 2)  # of a value: type, tensor_type, shape
_DIM = 1  # of a shape, once per axis
_DIM_PARAM = b"\x12"  # the tag of an axis' name
_FREE = {2: b"height", 3: b"width"}
_DELIMITED = 2  # the wire type of strings and messages
_FIXED_BYTES = {1: 8, 5: 4}


def free_size(model: bytes) -> bytes:
    """The model with the axes 2 and 3 of every input and output of four axes free.

    Raises `ValueError` for bytes that are no model.
    """
    return _within(model, (_GRAPH,), lambda graph: _within(graph, (_INPUT,), _free, (_OUTPUT,)))


def _free(value: bytes) -> bytes:
    return _within(value, _SHAPE, _name_axes)


def _name_axes(shape: bytes) -> bytes:
    dims = list(_fields(shape))
    if len(dims) != 4:
        return shape
    named = [
        _field(_DIM, _DIM_PARAM + _varint(len(_FREE[axis])) + _FREE[axis]) if axis in _FREE else whole
        for axis, (_, whole, _) in enumerate(dims)
    ]
    return b"".join(named)


def _within(
    message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes], *others: tuple[int, ...]
) -> bytes:
    """The message with every message at `path` (or at one of the `others`) changed."""
    wanted = {way[0]: way[1:] for way in (path, *others)}
    parts = []
    for number, whole, content in _fields(message):
        if number in wanted and content is not None:
            below = wanted[number]
            whole = _field(number, _within(content, below, change) if below else change(content))
        parts.append(whole)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Number, bytes with tag, and content (None where it is a number) of each field."""
    place = 0
    while place < len(message):
        begin = place
        tag, place = _read_varint(message, place)
        kind, content = tag & 7, None
        if kind == _DELIMITED:
            length, place = _read_varint(message, place)
            content = message[place : place + length]
            place += length
        elif kind == 0:
            _, place = _read_varint(message, place)
        elif kind in _FIXED_BYTES:
            place += _FIXED_BYTES[kind]
        else:
            raise ValueError(f"a field of kind {kind}")
        if place > len(message):
            raise ValueError("a field goes on behind the end")
        yield tag >> 3, message[begin:place], content


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a number goes on behind the end")
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
