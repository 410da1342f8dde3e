"""Products with an operand that is half zeros: `T.gemm_sp`, and how `tilelang.utils.sparse` packs it on the host.

Of every four neighbours along K at most two are not zero (of 32-bit values, of every two at most one). Packed, a matrix
has the values that are kept and, in bits of E, where they stood: four bits for each group, two for each place, the
first group lowest. This order is ours; a GPU's own is made and read by the same two functions there.
"""

from __future__ import annotations

from typing import Any

import tiledsl.language as T
from tiledsl.errors import TileTypeError

__all__ = ["arange_semi_sparse", "compress", "gemm_sp", "randint_semi_sparse", "randn_semi_sparse"]


@T.macro
def _spread(A: Any, E: Any, dense: Any, rows: int, kept: int, per_word: int, wide: bool, transposed: bool):  # type: ignore[no-untyped-def]
    """dense = the matrix that A and E stand for."""
    T.clear(dense)
    for i, j in T.Parallel(rows, kept):
        group = j if wide else j // 2
        slot = 0 if wide else j % 2
        word = T.cast(E[i, group // per_word], "uint32")
        code = (word >> T.cast((group % per_word) * 4 + slot * 2, "uint32")) & 3
        if wide:
            place = group * 2 + T.cast(code >> 1, "int32")
        else:
            place = group * 4 + T.cast(code, "int32")
        dense[i, place] = A[j, i] if transposed else A[i, j]


def gemm_sp(
    A_sparse: Any, E: Any, B: Any, C: Any, transpose_A: bool = False, transpose_B: bool = False,
    transpose_E: bool = False, policy: Any = None, clear_accum: Any = False, k_pack: int = 1, wg_wait: int = 0,
) -> None:  # fmt: skip
    """C += op(A) @ op(B), A packed by `compress`: [M, K / 2] and E [M, words] ([K / 2, M] if transpose_A)."""
    if transpose_E:
        raise TileTypeError("T.gemm_sp: E has one row for each row of the product")
    a, e = tuple(A_sparse.shape), tuple(E.shape)
    kept, rows = (a[0], a[1]) if transpose_A else (a[1], a[0])
    wide = A_sparse.dtype.bits == 32
    groups = kept if wide else kept // 2
    if e[0] != rows or groups % e[1]:
        raise TileTypeError(f"T.gemm_sp: E of {e[0]}x{e[1]} does not belong to {rows} rows of {kept} values")
    dense = T.alloc_shared((rows, kept * 2), A_sparse.dtype)
    _spread(A_sparse, E, dense, rows, kept, groups // e[1], wide, transpose_A)
    T.gemm(dense, B, C, transpose_B=transpose_B, clear_accum=clear_accum)


def compress(A: Any, transposed: bool = False, arch: Any = None, **hints: Any) -> tuple[Any, Any]:
    """(kept values [M, K / 2], E) of a torch matrix [M, K] ([K, M] and [K / 2, M] if transposed). E is uint8 for
    arch "9.0", else int16 (int32 for 8-bit values)."""
    import torch

    x = A.T.contiguous() if transposed else A.contiguous()
    rows, columns = x.shape
    size = x.element_size()
    of, keep = (2, 1) if size == 4 else (4, 2)
    groups = x.view(rows, columns // of, of)
    full = (groups != 0).to(torch.int8)
    if int(full.sum(-1).max()) > keep:
        raise ValueError(f"compress: more than {keep} of {of} neighbours are not zero")
    order = torch.argsort(full, dim=-1, descending=True, stable=True)[..., :keep].sort(-1).values
    values = groups.gather(-1, order).reshape(rows, columns // of * keep)
    codes = order[..., 0] * 2 | (order[..., 0] * 2 + 1) << 2 if size == 4 else order[..., 0] | order[..., 1] << 2
    newer = arch is None or str(arch).startswith(("9", "sm_9"))
    word = torch.uint8 if newer else torch.int32 if size == 1 else torch.int16
    each = torch.empty(0, dtype=word).element_size() * 2
    if codes.shape[1] % each:
        raise ValueError(f"compress: K must be a multiple of {each * of}")
    shifts = torch.arange(each, device=codes.device) * 4
    packed = (codes.view(rows, -1, each).to(torch.int64) << shifts).sum(-1)
    top = 1 << (4 * each)
    signed = packed if newer else torch.where(packed >= top // 2, packed - top, packed)
    return (values.T.contiguous() if transposed else values), signed.to(word)


def _thinned(x: Any, transposed: bool) -> Any:
    """x without some of its values, so that it can be packed."""
    import torch

    of, keep = (2, 1) if x.element_size() == 4 else (4, 2)
    order = torch.argsort(torch.rand(x.shape[0], x.shape[1] // of, of, device=x.device), dim=-1)
    kept = (order < keep).reshape(x.shape)
    x = torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x.T.contiguous() if transposed else x


def randn_semi_sparse(M: int, K: int, dtype: Any = None, device: Any = "cuda", transposed: bool = False) -> Any:
    """A random matrix [M, K] ([K, M]) that `compress` takes."""
    import torch

    return _thinned(torch.randn((M, K), device=device).to(dtype or torch.float16), transposed)


def randint_semi_sparse(
    M: int, K: int, low: int, high: int, dtype: Any = None, device: Any = "cuda", transposed: bool = False
) -> Any:
    """The same of integers."""
    import torch

    return _thinned(torch.randint(low, high, (M, K), device=device).to(dtype or torch.int8), transposed)


def arange_semi_sparse(M: int, K: int, dtype: Any = None, device: Any = "cuda", transposed: bool = False) -> Any:
    """The same of ascending numbers."""
    import torch

    numbers = torch.arange(M * K, device=device).view(M, K)
    return _thinned(numbers.to(dtype or torch.float16), transposed)
