"""T.copy, T.fill and T.clear: boxes that hang over every edge, both directions, dtypes, ranks, broadcasts, strides."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from properties import support
from properties.support import DTYPES, Array

import tiledsl
from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype

TILE = (7, 33)
STARTS = [(0, 0), (-3, 5), (4, -20), (2, 13), (-9, -40), (100, 3), (-6, 30)]  # some boxes lie outside altogether
SHAPES = [(1, 1), (7, 33), (5, 31), (13, 48), (31, 127), (229, 2)]


@functools.cache
def move_kernel(src: str, dst: str, scope: str) -> tiledsl.JITKernel:
    """X -> a tile of dtype dst at (r, c) -> Y at (r2, c2); the tile is pre-filled, X has a safe value."""
    return support.kernel_from(f"""
import tiledsl.language as T

m, n, p, q = T.dynamic("m, n, p, q")

@T.prim_func
def main(X: T.Tensor((m, n), "{src}"), Y: T.Tensor((p, q), "{src}"), Z: T.Tensor({TILE}, "{dst}"),
         r: T.int32, c: T.int32, r2: T.int32, c2: T.int32):
    with T.Kernel(1) as b:
        T.annotate_safe_value({{X: 1}})
        tile = T.alloc_{scope}({TILE}, "{dst}")
        T.fill(tile, 1)
        T.copy(X[r, c], tile)
        T.copy(tile, Z)
        T.copy(tile, Y[r2 : r2 + {TILE[0]}, c2 : c2 + {TILE[1]}])
""")


def window(x: Array, start: Sequence[int], fill: object) -> Array:
    """The box of a tile's shape at start; what lies outside x is `fill`."""
    out = np.full(TILE, fill, x.dtype)
    for i, j in np.ndindex(*TILE):
        at = (start[0] + i, start[1] + j)
        if all(0 <= a < n for a, n in zip(at, x.shape, strict=True)):
            out[i, j] = x[at]
    return out


def put(y: Array, start: Sequence[int], tile: Array) -> Array:
    out = y.copy()
    for i, j in np.ndindex(*TILE):
        at = (start[0] + i, start[1] + j)
        if all(0 <= a < n for a, n in zip(at, y.shape, strict=True)):
            out[at] = tile[i, j]
    return out


PAIRS = [(d, "float32") for d in DTYPES] + [("float32", d) for d in DTYPES if d != "float32"]


@pytest.mark.parametrize(("src", "dst"), PAIRS, ids=lambda d: d)
def test_copy_clips_converts_and_keeps_the_rest(src: str, dst: str) -> None:
    """Reads outside give the safe value, stores outside are skipped; starts are negative or too large at run time."""
    s, d = as_dtype(src), as_dtype(dst)
    rng = np.random.default_rng(1)
    kernel = move_kernel(src, dst, "shared" if dst < src else "fragment")
    for k, (shape, start) in enumerate(zip(SHAPES, STARTS, strict=False)):
        x = support.random_values(s, int(np.prod(shape)), rng).reshape(shape)
        y = support.random_values(s, 19 * 40, rng).reshape(19, 40)
        to = STARTS[(k + 3) % len(STARTS)]
        args = [x, y, np.zeros(TILE, d.numpy), *start, *to]
        got = support.agree(kernel, *args, what=f"{shape} from {start} to {to}")
        with np.errstate(all="ignore"):
            tile = convert(window(x, start, 1), s, d)
            back = put(y, to, convert(tile, d, s))
        support.assert_same(got[2], tile, f"tile of {shape} at {start}")
        support.assert_same(got[1], back, f"store at {to}")


@functools.cache
def shapes_kernel() -> tiledsl.JITKernel:
    """Boxes of equal size but other ranks, broadcasts along an axis, parts of tiles, tiles clipped at run time."""
    return support.kernel_from("""
import tiledsl.language as T

m, n = T.dynamic("m, n")

@T.prim_func
def main(X: T.Tensor((2, m, 3, n), "float32"), V: T.Tensor((n,), "float32"), Y: T.Tensor((m, 20), "float32"),
         Z: T.Tensor((6, 20), "float32"), W: T.Tensor((2, m, 3, n), "float32"), k: T.int32):
    with T.Kernel(T.ceildiv(m, 6), 3) as (b, h):
        tile = T.alloc_shared((6, 20), "float32")
        row = T.alloc_fragment((20,), "float32")
        wide = T.alloc_fragment((6, 1, 20), "float32")
        part = T.alloc_shared((4, 8), "float32")
        T.copy(X[1, b * 6 : b * 6 + 6, h, 0:20], tile)
        T.copy(tile, wide)
        T.copy(V[0:20], row)
        T.fill(part, -1.0)
        T.copy(tile[1:5, 4:12], part)
        T.clear(part[0:2, 1])
        T.copy(part, tile[2, 10])
        if h == 1:
            T.copy(tile, Y[b * 6, 0])
        if b == 0 and h == 2:
            T.copy(tile[0, k], Z[0, k])
            T.copy(row, Z[5, 0])
        T.copy(wide, W[0, b * 6, h, 0])
""")


@pytest.mark.parametrize(("m", "n"), [(1, 1), (6, 20), (7, 13), (31, 33)])
def test_copies_between_ranks_and_parts(m: int, n: int) -> None:
    rng = np.random.default_rng(m)
    x, w = (rng.standard_normal((2, m, 3, n)).astype(np.float32) for _ in range(2))
    v = rng.standard_normal(n).astype(np.float32)
    y, z = np.zeros((m, 20), np.float32), np.zeros((6, 20), np.float32)
    got = support.agree(shapes_kernel(), x, v, y, z, w, 3)
    wanted_y, wanted_z, wanted_w = y.copy(), z.copy(), w.copy()
    for b in range(-(-m // 6)):
        for h in range(3):
            tile = np.zeros((6, 20), np.float32)
            box = x[1, b * 6 : b * 6 + 6, h, :20]
            tile[: box.shape[0], : box.shape[1]] = box
            rows, columns = wanted_w[0, b * 6 : b * 6 + 6, h, :20].shape
            wanted_w[0, b * 6 : b * 6 + 6, h, :20] = tile[:rows, :columns]
            part = tile[1:5, 4:12].copy()
            part[0:2, 1] = 0
            tile[2:6, 10:18] = part
            if h == 1:
                wanted_y[b * 6 : b * 6 + 6] = tile[: len(wanted_y[b * 6 : b * 6 + 6])]
            if b == 0 and h == 2:
                wanted_z[0, 3] = tile[0, 3]
                wanted_z[5] = 0
                wanted_z[5, : min(n, 20)] = v[:20]
    for g, wanted, name in zip((got[2], got[3], got[4]), (wanted_y, wanted_z, wanted_w), "YZW", strict=True):
        support.assert_same(g, wanted, name)


def test_strides_and_shared_elements() -> None:
    """Rows apart, columns apart, transposed memory, and a stride of zero on a read-only argument."""
    kernel = support.kernel_from("""
import tiledsl.language as T

m, n, s0, s1 = T.dynamic("m, n, s0, s1")

@T.prim_func
def main(X: T.StridedTensor((m, n), (s0, s1), "float32"), Y: T.Tensor((m, n), "float32")):
    with T.Kernel(T.ceildiv(m, 5), T.ceildiv(n, 19)) as (b, c):
        tile = T.alloc_shared((5, 19), "float32")
        T.copy(X[b * 5, c * 19], tile)
        for i, j in T.Parallel(5, 19):
            tile[i, j] += X[b * 5 + i, c * 19 + j]
        T.copy(tile, Y[b * 5, c * 19])
""")
    base = np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32)
    for x in (
        base[:31, :33],
        base[::2, :33],
        base[:13, ::3],
        base.T[:48, :7],
        np.broadcast_to(base[0, :33], (9, 33)),
        np.broadcast_to(base[:7, :1], (7, 33)),
        base[3:4, :1],
    ):
        got = support.agree(kernel, x, np.zeros(x.shape, np.float32))
        support.assert_same(got[1], x + x, f"{x.shape} {x.strides}")
