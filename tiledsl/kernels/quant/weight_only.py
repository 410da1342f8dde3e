"""Grouped product with MXFP4 weights packed ahead: what decoding a mixture of experts reads.

The format is public. Panel p of a group holds the columns n = 64 p ... 64 p + 63 of weights [n, k]: data
[groups, panels, k / 32, 16, 16] int32, bits 16 h + 4 c ... of word [b, r, j] holding the code of column 64 p + 16 c + j
at k = 32 b + 2 r + h, so that a vector of words is eight vectors of neighbours; scales [groups, panels, k / 32, 64]
float8_e8m0fnu. Columns beyond n are code 0 with scale code 0.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.backend import resolve
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.gemm import OUTPUTS, ROWS, check_groups, find_rows, row_block, tile_count
from tiledsl.kernels.quant.scales import E4M3, E8M0, INPUTS, SCALES, blocks, fp4_matrix
from tiledsl.kernels.tiles import PANEL, fit_rows, tiles_for
from tiledsl.runtime import allocate

__all__ = ["PackedMXFP4", "fp4_grouped_gemm", "fp4_grouped_gemm_kernel", "fp4_prepack", "fp4_prepack_kernel"]

STRIP = PANEL // 4
STRIPS = (0, 1, 2, 3)
FEW = 3  # rows of a group that are multiplied one by one: unpacking costs less than passing through a tile
DOUBLES = 0xC8643210  # twice the sizes of the eight codes: 0, 1, 2, 3, 4, 6, 8, 12


@dataclass(frozen=True)
class PackedMXFP4:
    """What fp4_prepack returns: `data` and `scale` in the packed format, `shape` (groups, n, k) of the weights."""

    data: Any
    scale: Any
    shape: tuple[int, int, int]

    def __repr__(self) -> str:
        return f"PackedMXFP4({self.shape}, data {tuple(self.data.shape)})"


@tiledsl.jit
def fp4_prepack_kernel(threads: int = 128) -> Any:
    """32 rows of a panel per block."""
    G, N, B, panels = T.dynamic("G"), T.dynamic("N"), T.dynamic("B"), T.dynamic("panels")

    @T.prim_func
    def fp4_prepack(
        Q: T.Tensor((G, N, B * 16), T.uint8),
        S: T.Tensor((G, N, B), E8M0),
        Data: T.Tensor((G, panels, B, 16, STRIP), T.int32),
        Scale: T.Tensor((G, panels, B, PANEL), E8M0),
    ):
        with T.Kernel(panels, B, G, threads=threads) as (p, k, g):
            raw = T.alloc_shared((PANEL, 16), T.uint8)
            T.copy(Q[g, p * PANEL, k * 16], raw)
            for i, j in T.Parallel(16, STRIP):
                word = T.uint32(0)
                for strip in STRIPS:
                    pair = T.cast(raw[j + strip * STRIP, i], T.uint32)
                    word = word | ((pair & 15) << (4 * strip)) | ((pair >> 4) << (16 + 4 * strip))
                Data[g, p, k, i, j] = T.reinterpret(word, T.int32)
            for j in T.Parallel(PANEL):
                Scale[g, p, k, j] = S[g, p * PANEL + j, k]

    return fp4_prepack


_fp4_prepack_kernel = cache(fp4_prepack_kernel)  # the same values, the same kernel


def fp4_prepack(q: Any, scale: Any, *, target: Any = None) -> PackedMXFP4:
    """MXFP4 weights in the order in which fp4_grouped_gemm reads them (the module's docstring has the format).

    q       uint8 [groups, n, k / 2], pairs of e2m1; NumPy or torch
    scale   float8_e8m0fnu [groups, n, k / 32]; k a multiple of 32
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns a PackedMXFP4 with data of the kind of q. Raises TileTypeError for wrong dtypes or shapes.
    """
    groups, n, k = fp4_matrix("fp4_prepack", "q", q, scale, "groups, n, k / 2")
    arrays.dtype_of("fp4_prepack", "q", q, ("uint8",))
    panels = blocks(n, PANEL)
    data = allocate((groups, panels, k // 32, 16, STRIP), as_dtype("int32"), q)
    scales = allocate((groups, panels, k // 32, PANEL), as_dtype(E8M0), q)
    if groups and n and k:
        kernel = _fp4_prepack_kernel(tiles_for(target).threads)
        kernel(arrays.dense(q), arrays.dense(scale), data, scales, target=target)
    return PackedMXFP4(data, scales, (groups, n, k))


@tiledsl.jit
def fp4_grouped_gemm_kernel(
    block_M: int, dtype: DType, out_dtype: DType, wide: DType, a_scale_dtype: DType, a_block: int, threads: int = 128
) -> Any:
    """C[rows of g] = sum over blocks of 32 of K of (A W[g]^T of the block) * S[g], or * (SA * S[g]) where a_block
    columns of A share a scale (a_block 0: none); tiles are held as `wide`, which holds every operand exactly."""
    M, N, K, G = T.dynamic("M"), T.dynamic("N"), T.dynamic("K"), T.dynamic("G")
    panels = T.dynamic("panels")
    lda, ldc = T.dynamic("lda", "int64"), T.dynamic("ldc", "int64")
    a_blocks = T.ceildiv(K, a_block) if a_block else 1

    def value(code: Any) -> Any:
        """The e2m1 of the low four bits, as float32: a table of nibbles in a word, and the sign's bit."""
        size = T.cast((T.uint32(DOUBLES) >> ((code & 7) * 4)) & 15, T.float32) * 0.5
        return T.reinterpret(T.reinterpret(size, T.uint32) | ((code & 8) << 28), T.float32)

    @T.prim_func
    def fp4_grouped_gemm(
        A: T.StridedTensor((M, K), (lda, 1), dtype),
        SA: T.Tensor((M, a_blocks), a_scale_dtype),
        W: T.Tensor((G, panels, K // 32, 16, STRIP), T.int32),
        S: T.Tensor((G, panels, K // 32, PANEL), E8M0),
        sizes: T.Tensor((G,), T.int32),
        tiles: T.int32,
        C: T.StridedTensor((M, N), (ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, PANEL), tiles, threads=threads) as (bx, by):
            A_s = T.alloc_shared((block_M, 32), wide)
            W_s = T.alloc_shared((32, PANEL), wide)
            part = T.alloc_fragment((block_M, PANEL), T.float32)
            total = T.alloc_fragment((block_M, PANEL), T.float32)
            scale = T.alloc_fragment((PANEL,), T.float32)
            sa = T.alloc_fragment((block_M,), T.float32)

            def by_column(row: Any, group: Any, p: Any, k: Any, j: Any) -> Any:
                scale = T.cast(S[group, p, k, j], T.float32)
                return T.cast(SA[row, k * 32 // a_block], T.float32) * scale if a_block else scale

            group, row, rows = find_rows(sizes, G, 0, by, block_M=block_M)
            if rows > 0 and block_M == 1:  # the product's chain written out: codes never leave registers
                T.clear(total)
                for k in T.serial(K // 32):
                    T.copy(A[row, k * 32], A_s)
                    for j in T.Parallel(STRIP):  # four chains side by side: one or two would wait for themselves
                        s0 = T.alloc_var(T.float32, 0.0)
                        s1 = T.alloc_var(T.float32, 0.0)
                        s2 = T.alloc_var(T.float32, 0.0)
                        s3 = T.alloc_var(T.float32, 0.0)
                        for i in T.unroll(16):
                            word = T.reinterpret(W[group, bx, k, i, j], T.uint32)
                            for h in (0, 16):
                                x = T.cast(A_s[0, 2 * i + h // 16], T.float32)
                                s0 = T.fma(x, value(word >> h), s0)
                                s1 = T.fma(x, value(word >> (h + 4)), s1)
                                s2 = T.fma(x, value(word >> (h + 8)), s2)
                                s3 = T.fma(x, value(word >> (h + 12)), s3)
                        for at, sum_of in enumerate((s0, s1, s2, s3)):
                            c = j + at * STRIP
                            total[0, c] = total[0, c] + sum_of * by_column(row, group, bx, k, c)
                for j in T.Parallel(PANEL):
                    C[row, bx * PANEL + j] = total[0, j]
            elif rows > 0:
                T.clear(total)
                for k in T.Pipelined(K // 32, num_stages=2):
                    T.copy(A[row, k * 32], A_s)
                    for i, j in T.Parallel(16, STRIP):
                        word = T.reinterpret(W[group, bx, k, i, j], T.uint32)
                        for h in (0, 1):
                            for strip in STRIPS:
                                W_s[2 * i + h, j + strip * STRIP] = value(word >> (16 * h + 4 * strip))
                    T.gemm(A_s, W_s, part, clear_accum=True)
                    for j in T.Parallel(PANEL):
                        scale[j] = T.cast(S[group, bx, k, j], T.float32)
                    if a_block:
                        for i in T.Parallel(block_M):
                            sa[i] = T.cast(SA[row + i, k * 32 // a_block], T.float32)
                        for i, j in T.Parallel(block_M, PANEL):
                            total[i, j] = total[i, j] + part[i, j] * (sa[i] * scale[j])
                    else:
                        for i, j in T.Parallel(block_M, PANEL):
                            total[i, j] = total[i, j] + part[i, j] * scale[j]
                for i, j in T.Parallel(block_M, PANEL):
                    if i < rows:
                        C[row + i, bx * PANEL + j] = total[i, j]

    return fp4_grouped_gemm


_fp4_grouped_gemm_kernel = cache(fp4_grouped_gemm_kernel)


def fp4_grouped_gemm(
    a: Any,
    b: PackedMXFP4,
    group_sizes: Any,
    *,
    a_scale: Any = None,
    out_dtype: Any = None,
    out: Any = None,
    target: Any = None,
) -> Any:
    """c[i, :] = a[i, :] @ (values of b[g(i)])^T, group g owning group_sizes[g] consecutive rows: weights are
    unpacked while they are multiplied; activations are not quantised, or FP8 with scales.

    a            [rows, k] bfloat16, float16 or float32; NumPy (ml_dtypes) or torch; with a_scale float8_e4m3fn
    a_scale      [rows, ceil(k / 128)] or [rows, k / 32] float32 or float8_e8m0fnu: then the bits are those of
                 scaled_grouped_gemm with the weights as they were before packing
    b            a PackedMXFP4 (fp4_prepack) of weights [groups, n, k]
    group_sizes  [groups] int32 or int64, zeros allowed; NumPy, or of the kind of a
    out_dtype    "bfloat16", "float32" or "float16"; default: the dtype of a, bfloat16 for FP8
    out          array [rows, n] that receives the result
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [rows, n]. The exact products of 32 elements that share a scale are summed in ascending order of k in
    float32, the sum is multiplied by the scale, and the products are added in ascending order; one rounding at the
    end. The same bits for any rows, sizes, number of threads and CPU target. Rows beyond the sum of group_sizes are
    left untouched.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for negative group sizes, for sizes whose sum
    exceeds the rows (both checked where they lie on the host), and when out shares memory with an input.
    """
    name = "fp4_grouped_gemm"
    if not isinstance(b, PackedMXFP4):
        raise TileTypeError(f"{name}: b is {type(b).__name__}, expected what fp4_prepack returns")
    dtype = arrays.dtype_of(name, "a", a, INPUTS if a_scale is None else (E4M3,))
    (m, k), (groups, n, k_b) = arrays.rank(name, "a", a, "rows, k"), b.shape
    if k != k_b:
        raise TileTypeError(f"{name}: inner sizes differ: {arrays.describe(a=a)}, b is {b!r}")
    check_groups(name, group_sizes, a, b.data)
    a_scales, a_block = as_dtype("float32"), 0
    if a_scale is not None:
        a_scales, a_block = arrays.dtype_of(name, "a_scale", a_scale, SCALES), row_block(name, a, a_scale, (32, 128))
    asked = out.dtype if out is not None else out_dtype or (dtype if a_scale is None else "bfloat16")
    result = arrays.choice(name, "out_dtype", asked, OUTPUTS)
    out = arrays.output(name, out, a, (m, n), result, a=a, data=b.data, scale=b.scale)
    if m and n and groups:
        tiles = tiles_for(target)
        known = arrays.on_host(group_sizes)
        active = groups if known is None else max(int((known > 0).sum()), 1)
        block_m = 1 if m <= FEW * active else fit_rows((4, *ROWS[1:]), -(-m // active))
        # What CPUs hold as float32 anyway needs no rounding on its way; matrix units want the narrow type.
        wide = as_dtype("float32") if resolve(target).name in ("llvm", "numba", "numpy") else dtype
        kernel = _fp4_grouped_gemm_kernel(block_m, dtype, result, wide, a_scales, a_block, tiles.threads)
        rows = None if a_scale is None else arrays.dense(a_scale)
        sizes = arrays.dense(arrays.as_int32(group_sizes))
        count = tile_count(sizes, block_m, 0, m)
        kernel(arrays.unit_last(a), rows, b.data, b.scale, sizes, count, out, target=target)
    return out
