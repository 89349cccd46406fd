"""Published weights and tokenizers, by hub id or folder. Knows what to say when they cannot be had."""

from typing import Any

from storyv_lite.errors import BundleError


def from_pretrained(kind: Any, name: str, setting: str, **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)` for the `setting` that names it. Raises `BundleError`."""
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise BundleError(
            f"`{name}` cannot be had: {reason}",
            hint=f"give a folder that holds it, --set {setting}=FOLDER, or try again with a network",
        ) from fault
