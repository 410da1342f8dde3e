"""NumPy meanings of the loop stage's micro-kernels (`MicroCall`); their emitters live with the CPU backend.

A meaning gets the regions as NumPy views that start at the region's origin, and may write only into `writes`.
Callers run under `np.errstate(all="ignore")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tiledsl.ir.exact import gemm_chain
from tiledsl.ir.micro_warp import WARP_MICRO

__all__ = ["MICRO", "Meaning"]

Array = np.ndarray[Any, Any]
# (writes, reads, scalars, attrs, exact): exact=False may use BLAS, within the bound of a float32 gemm
Meaning = Callable[[Sequence[Array], Sequence[Array], Sequence[Any], Mapping[str, Any], bool], None]


def _gemm(
    writes: Sequence[Array], reads: Sequence[Array], scalars: Sequence[int], attrs: Mapping[str, Any], exact: bool
) -> None:
    """c[:m, :n] += a[:m, :k] @ b, with b packed in column panels, or as it lies, in rows; attrs: clear starts from 0.

    c [M, N], a [M, K] ([K, M] with a_trans), panels [ceil(N / NR), K, NR]; float32, float64 or int32 (wrapping).
    With a of 8 bits (and c int32) the panels are [ceil(N / NR), ceil(K / 4), NR] words of four bytes along k, lowest
    first; flip: b has a's signedness, and the bytes' top bits are flipped; else b has the other signedness.
    in_place ("together", "apart": how far rows are): b is [K, N], of c's type or of a half one; "turned": [N, K].
    Leading dimensions of extent 1 are dropped. Floats: each element is one k-ascending fma chain from c.
    """
    m, n, k = scalars
    c, a = (x.reshape(x.shape[-2:]) if x.ndim > 2 else x for x in (writes[0], reads[0]))
    if m <= 0 or n <= 0:
        return
    if attrs.get("a_trans"):
        a = a.T
    if attrs.get("in_place"):
        b = reads[1].reshape(reads[1].shape[-2:])
        b = (b.T if attrs["in_place"] == "turned" else b)[:k, :n].astype(c.dtype)
    else:
        panels = reads[1].reshape(reads[1].shape[-3:]) if reads[1].ndim > 3 else reads[1]
        width = int(attrs["NR"])
        count = -(-n // width)
        if a.dtype.itemsize == 1:
            panels = _bytes_of_words(panels) ^ np.uint8(0x80 * bool(attrs["flip"]))
            panels = panels.view(np.int8 if (a.dtype.kind == "i") == bool(attrs["flip"]) else np.uint8)
        b = panels[:count, :k].transpose(1, 0, 2).reshape(k, count * width)[:, :n]
    out, a = c[:m, :n], a[:m, :k]
    if attrs.get("clear"):
        out[...] = 0
    if out.dtype.kind in "iu":
        out += (a.astype(np.int64) @ b.astype(np.int64)).astype(out.dtype)
    elif exact:
        out[...] = gemm_chain(a, b, out)
    else:
        out += a @ b


def _bytes_of_words(panels: Array) -> Array:
    """[P, words, NR] words of 32 bits as [P, K, NR] bytes."""
    p, words, width = panels.shape
    parts = np.ascontiguousarray(panels).view("u1").reshape(p, words, width, 4).swapaxes(2, 3)
    return np.ascontiguousarray(parts).reshape(p, words * 4, width)


def _transpose(
    writes: Sequence[Array], reads: Sequence[Array], scalars: Sequence[int], attrs: Mapping[str, Any], exact: bool
) -> None:
    """dst[j, i] = src[i, j] for i < rows, j < cols."""
    rows, cols = scalars
    dst, src = (x.reshape(x.shape[-2:]) if x.ndim > 2 else x for x in (writes[0], reads[0]))
    dst[:cols, :rows] = src[:rows, :cols].T


MICRO: dict[str, Meaning] = {"gemm": _gemm, "transpose": _transpose, **WARP_MICRO}
