"""A check that work could be recorded as a CUDA graph: it reads nothing back, its shapes do not vary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")
FROM_HOST = ("lift_fresh",)  # a tensor made of numbers of Python


class Recordable(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises `AssertionError` at the first operation that a CUDA graph cannot hold."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        assert name not in READS_BACK + FROM_HOST, f"`{name}` cannot be recorded"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            assert all(index.dtype != torch.bool for index in indices), "a mask gives no fixed shape"
        return func(*args, **dict(kwargs or {}))
