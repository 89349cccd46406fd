"""How much of a story the language model may hold at once: a size as a user writes it, in tokens.

Knows units, and what a token takes in each width of keys and values; not which frames are kept.
"""

from storyv_lite.components import Dimensions
from storyv_lite.errors import ConfigError
from storyv_lite.memory import parse_bytes

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
WIDTHS = ("fp32", "fp16", "int8")  # that may be asked for
SCALE_BYTES = 4  # of an 8-bit head of one token


def computed_width(precision: str, device: str) -> str:
    """The width in which a backend of this precision computes keys and values (base.Backend)."""
    if precision in ("fp32", "bf16", "fp16"):
        return precision
    # graphs take and give fp32 (components.signature); beside quantized weights a GPU computes in fp16
    return "fp16" if precision in ("int8", "nf4") and device == "cuda" else "fp32"


def stored_width(asked: str | None, precision: str, device: str) -> str:
    """The width in which keys and values are stored; None asks for the one they are computed in.

    Raises `ConfigError` for an unknown word, and for one that would only take more room.
    """
    computed = computed_width(precision, device)
    if asked is None:
        return computed
    if asked not in WIDTHS:
        raise ConfigError(
            f"`{asked}` is no width of keys and values; one of {', '.join(WIDTHS)} is needed",
            hint="draw with `--kv-cache fp16`",
        )
    if BITS[asked] > BITS[computed]:
        raise ConfigError(
            f"keys and values are computed in {computed}; stored in {asked} they would be no more exact",
            hint="draw without `--kv-cache`, or with `--kv-cache int8`",
        )
    return asked


def bytes_per_token(dims: Dimensions, width: str) -> int:
    """Bytes of the keys and values of one token; `width` is a word of `BITS`."""
    head = dims.head_dim * BITS[width] // 8 + (SCALE_BYTES if width == "int8" else 0)
    return 2 * dims.num_hidden_layers * dims.num_key_value_heads * head


def parse_tokens(size: str, token_bytes: int) -> int:
    """Tokens of a size such as `2000` (tokens) or `512MiB` (bytes, of `token_bytes` per token).

    Raises `ConfigError`.
    """
    text = size.strip()
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return parse_bytes(text) // token_bytes
    except ConfigError as fault:
        raise ConfigError(
            f"`{size}` is no context size; tokens or a number of bytes with its unit are needed",
            hint="write it like `--context-size 2000` or `--context-size 512MiB`",
        ) from fault


def refuse_small(tokens: int, needed: int, frame: int, token_bytes: int, spell_out: bool) -> None:
    """Raise `ConfigError` when `tokens` hold less than the `needed` ones of `frame` (from 1).

    With `spell_out` they count what may be written, and the message says so.
    """
    if tokens < needed:
        kibibytes = -(-needed * token_bytes // 1024)
        raise ConfigError(
            f"a context of {tokens} tokens is too small: frame {frame} needs {needed}, for its caption and "
            f"the frame before it{', both spelled out' if spell_out else ''}",
            hint=f"give at least `--context-size {needed}` or `--context-size {kibibytes}KiB`"
            f"{', or draw without `--spell-out`' if spell_out else ''}",
        )
