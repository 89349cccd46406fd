"""Optional packages: what is said when one is missing, and what is kept quiet when one is there."""

import logging

import pytest

from storyv_lite.errors import MissingDependency
from storyv_lite.optional import require


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingDependency, match="`no_such_package` is not installed") as caught:
        require("no_such_package", "train")
    assert caught.value.hint == "pip install 'storyv-lite[train]'" and caught.value.exit_code == 3


def test_two_notices_of_bitsandbytes_are_dropped_and_every_other_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    talks = logging.getLogger("bitsandbytes.backends.cpu.ops")
    talks.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
    talks.warning("something is really wrong")
    talks = logging.getLogger("bitsandbytes.autograd._functions")
    talks.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "torch.float32")
    talks.warning("and this too")
    assert [record.getMessage() for record in caplog.records] == ["something is really wrong", "and this too"]
