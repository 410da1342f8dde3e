"""What people write by habit of Python, NumPy, Triton or CUDA, and what stands here instead.

Diagnostics look a name up that a kernel cannot use: `T.load`, `x.max()`, `np.exp(x)`, `max(x, 0)`, `"fp16"`.
"""

from __future__ import annotations

import re

from tiledsl.dtypes import SCALARS
from tiledsl.errors import suggest
from tiledsl.frontend.location import source_here

__all__ = ["DTYPES", "INSTEAD", "KEYWORDS", "SAME", "advice", "advice_here", "dtype_advice", "instead"]

# Functions of math, NumPy and torch that have the same name here and take one value.
SAME = frozenset(
    "ceil copysign cos cosh erf exp exp2 expm1 floor fmod isfinite isinf isnan log log10 log1p log2 nearbyint round "
    "rsqrt sigmoid sin sinh sqrt tan tanh trunc".split()
)

_TILE = "a tile is made by T.alloc_fragment(shape, dtype) or T.alloc_shared(shape, dtype)"
_LOOP = "`for i, j in T.Parallel(rows, columns):` and the indices i, j"
_NOTHING = "nothing: there is no such hint, accesses are analysed"
INSTEAD = {
    "absolute": "T.abs(x)",
    "abs": "T.abs(x)",
    "all": "`and` between conditions, T.all_of(tile) of a tile",
    "access_ptr": "T.address_of(A[i])",
    "alloc_buffer": "T.alloc_fragment(shape, dtype) or T.alloc_shared(shape, dtype)",
    "amax": "T.reduce_max(tile, out, dim)",
    "amin": "T.reduce_min(tile, out, dim)",
    "any": "`or` between conditions, T.any_of(tile) of a tile",
    "arange": _LOOP,
    "argmax": "T.reduce_max(tile, out, dim), then look for the index that has it",
    "array": f"a T.Tensor parameter of the kernel; {_TILE}",
    "asarray": "the value itself: A[i] is a scalar of the kernel",
    "astype": "T.copy into a tile of that dtype, or T.cast(x, dtype) of an element",
    "axis": _LOOP,
    "block": "T.Kernel, and loops inside",
    "blockDim": "T.get_thread_extent(0)",
    "blockIdx": "the indices that `with T.Kernel(grid_x, grid_y) as (bx, by):` gives",
    "broadcast_to": f"{_LOOP}, of which an access may use only some",
    "call_intrin": "the function itself: T.exp(x), T.popcount(x)",
    "cdiv": "T.ceildiv(a, b)",
    "clip": "T.clamp(x, low, high)",
    "constexpr": "any Python value: options of the function are known while tracing",
    "copy": "T.copy(src, dst)",
    "cumsum": "T.cumsum(src, dst, dim)",
    "debug_barrier": "T.sync_threads()",
    "device_print": "T.print(x)",
    "divmod": "x // y and x % y",
    "dot": "T.gemm(A, B, C): adds A @ B to C, in place",
    "einsum": "T.gemm(A, B, C): adds A @ B to C, in place",
    "exp_": "T.exp(x)",
    "expand_dims": f"{_LOOP}, of which an access may use only some",
    "fabs": "T.abs(x)",
    "fill": "T.fill(tile, value)",
    "float": "T.float32(x)",
    "float16": "T.cast(x, T.float16)",
    "float32": "T.cast(x, T.float32)",
    "float64": "T.cast(x, T.float64)",
    "full": "T.fill(tile, value)",
    "full_like": "T.fill(tile, value)",
    "gelu": "its formula, element by element, with T.erf or T.tanh",
    "int": "T.int32(x)",
    "int32": "T.cast(x, T.int32)",
    "int64": "T.cast(x, T.int64)",
    "item": "the value itself: A[i] is a scalar of the kernel",
    "linspace": _LOOP,
    "load": "T.copy(A[row, column], tile), or A[i, j] in a loop: reads out of range give 0, without a mask",
    "make_block_ptr": "T.copy(A[row, column], tile)",
    "match_buffer": "a T.Tensor parameter of the kernel",
    "matmul": "T.gemm(A, B, C): adds A @ B to C, in place",
    "max": "T.max(a, b) of two values, T.reduce_max(tile, out, dim) of a tile",
    "max_contiguous": _NOTHING,
    "maximum": "T.max(a, b)",
    "mean": "T.reduce_sum(tile, out, dim), then divide",
    "min": "T.min(a, b) of two values, T.reduce_min(tile, out, dim) of a tile",
    "minimum": "T.min(a, b)",
    "multiple_of": _NOTHING,
    "num_programs": "the extents that T.Kernel is given",
    "numel": "math.prod(tile.shape)",
    "ones": "T.fill(tile, 1)",
    "permute": "T.transpose(src, dst), or indices in another order",
    "pow": "x * x, or T.pow(x, y)",
    "power": "x * x, or T.pow(x, y)",
    "prod": "a T.alloc_var and a loop; there is no product of a tile",
    "program_id": "the indices that `with T.Kernel(grid_x, grid_y) as (bx, by):` gives",
    "range": "T.serial(n), or Python's range(n)",
    "reduce_mean": "T.reduce_sum(tile, out, dim), then divide",
    "relu": "T.max(x, 0)",
    "resize": "T.reshape(tile, shape)",
    "reshape": "T.reshape(tile, shape)",
    "silu": "x * T.sigmoid(x)",
    "size": "math.prod(tile.shape)",
    "softmax": "T.reduce_max, T.exp, T.reduce_sum and a division; tiledsl.kernels has a whole one",
    "sorted": "T.min and T.max of pairs: there is no sort",
    "static_assert": "assert",
    "static_print": "print",
    "static_range": "T.unroll(n), or a Python loop over a list",
    "store": "T.copy(tile, A[row, column]), or A[i, j] = x in a loop: writes out of range are dropped, without a mask",
    "sum": "T.reduce_sum(tile, out, dim) of a tile, a + b of two values",
    "swap_axes": "T.transpose(src, dst), or indices in another order",
    "syncthreads": "T.sync_threads()",
    "T": "T.transpose(src, dst), or indices in another order; T.gemm has transpose_A and transpose_B",
    "thread_id": "T.get_thread_binding()",
    "threadIdx": "T.get_thread_binding(0)",
    "to": "T.copy into a tile of that dtype, or T.cast(x, dtype) of an element",
    "tolist": "T.print(tile)",
    "trans": "T.transpose(src, dst), or indices in another order",
    "transpose": "T.transpose(src, dst), or indices in another order",
    "uint32": "T.cast(x, T.uint32)",
    "view": "T.view(tile, shape, dtype)",
    "where": "T.if_then_else(c, a, b)",
    "zeros": "T.clear(tile)",
    "zeros_like": "T.clear(tile)",
}

KEYWORDS = {"axis": "dim", "stages": "num_stages", "trans_a": "transpose_A", "trans_b": "transpose_B", "acc": "C",
            "num_threads": "threads"}  # fmt: skip

DTYPES = {
    "fp8": "float8_e4m3fn", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "fp4": "float4_e2m1fn", "bf16": "bfloat16",
    "float8": "float8_e4m3fn", "single": "float32", "char": "int8", "byte": "uint8", "bool_": "bool",
    **{f"{short}{bits}": f"float{bits}" for short in ("fp", "f") for bits in (16, 32, 64)},
    **{f"{short}{bits}": f"{short}nt{bits}".replace("unt", "uint") for short in "iu" for bits in (4, 8, 16, 32, 64)},
}  # fmt: skip


def instead(name: str) -> str | None:
    """What stands here for a function, method or operation called `name` elsewhere."""
    return INSTEAD.get(name) or (f"T.{name}(x)" if name in SAME else None)


def dtype_advice(x: object) -> str:
    """What to write where x was given as a dtype."""
    if isinstance(x, (int, tuple, list)):
        return "the shape is one tuple, and the dtype comes after it: ((64, 32), T.float16)"
    near = DTYPES.get(x) if isinstance(x, str) else None
    found = f"did you mean {near}?" if near else suggest(str(x), SCALARS)
    return found or 'write for example T.float16 or "int32"'


def advice_here() -> tuple[str, str] | None:
    """`advice` on the author's running expression."""
    return advice(source_here())


def advice(text: str) -> tuple[str, str] | None:
    """What an expression asks of a kernel value that only Python values can give, and what to write instead: for
    `max(x, 0)`, `math.exp(x)`, `np.where(...)`, `x in y`."""
    called = re.match(r"([A-Za-z_][\w.]*)\(", text)
    if called and not called[1].startswith("T."):
        found = instead(called[1].rpartition(".")[2])
        return (f"{called[1]}() works on Python and NumPy values", f"use {found}") if found else None
    if re.search(r"\s(not\s+)?in\s", text) and not text.startswith("for "):
        return "`in` needs Python values", "compare one by one: `x == 0 or x == 1`, or `low <= x and x < high`"
    return None
