"""What compiled code asks of memory ahead of time, and past which cache."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from __future__ import annotations

import pytest
from properties import support

import tiledsl
from tiledsl.backends.cpu.native import assembly, host_cpu
from tiledsl.backends.llvm_cpu.kernel import emit_function
from tiledsl.runtime.program import lower


def compiled(width: int, dtype: str) -> str:
    """The assembly of y = x W for a W of `width` columns, of which 16 are read."""
    kernel: tiledsl.JITKernel = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((512,), "float32"), W: T.Tensor((512, {width}), "{dtype}"), Y: T.Tensor((16,), "float32")):
    with T.Kernel(1) as bx:
        y = T.alloc_fragment((16,), "float32")
        T.clear(y)
        for j in T.Parallel(16):
            for k in T.serial(512):
                y[j] = y[j] + X[k] * T.cast(W[k, j], "float32")
        T.copy(y, Y)
""")
    module, _, _ = emit_function(lower(kernel.function, tiledsl.backend.resolve("llvm")), host_cpu())
    return assembly([module], host_cpu())


@pytest.mark.skipif(not host_cpu().triple.startswith("x86_64"), reason="looks for instructions of x86")
@pytest.mark.parametrize("width, dtype, packed", [(16, "float32", True), (48, "float32", False), (16, "int8", False)])
def test_what_is_read_once_goes_past_the_second_level_cache(width: int, dtype: str, packed: bool) -> None:
    """One vector of 64 bytes after the other; not where rows lie apart, or a line holds several."""
    assert ("prefetchnta" in compiled(width, dtype)) == packed
