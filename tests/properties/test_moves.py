"""Transposes, im2col, persistent loops, workspaces, and asynchronous names, at awkward shapes on every target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from properties import support
from properties.support import Array

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileError
from tiledsl.interp import checked, run

# mypy: disable-error-code="valid-type,misc,no-untyped-def"


@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 17), (33, 16), (16, 48)])
@pytest.mark.parametrize(("dtype", "out"), [("float32", "float32"), ("float16", "float32"), ("int8", "int32")])
def test_transpose(m: int, n: int, dtype: str, out: str) -> None:
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor(({m}, {n}), "{dtype}"), O: T.Tensor(({n + 2}, {m}), "{out}")):
    with T.Kernel(1):
        s = T.alloc_shared(({m}, {n}), "{dtype}")
        t = T.alloc_shared(({n + 2}, {m}), "{out}")
        T.copy(X, s)
        T.fill(t, 5)
        T.transpose(s, t[1:{n + 1}, :])
        T.copy(t, O)
""")
    x = np.random.default_rng(m).integers(-9, 9, (m, n)).astype(dtype)
    got = support.agree(k, x, np.zeros((n + 2, m), out))[1]
    np.testing.assert_array_equal(got, np.pad(x.T, ((1, 1), (0, 0)), constant_values=5).astype(out))


def windows(x: Array, kernel: int, stride: int, dilation: int, pad: int) -> Array:
    """[N * OH * OW, kernel * kernel * C], one slice of the padded image per tap."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    reach = dilation * (kernel - 1)
    steps = [slice(t * dilation, None, stride) for t in range(kernel)]
    size = [(n - reach - 1) // stride + 1 for n in x.shape[1:3]]
    taps = [x[:, a, b][:, : size[0], : size[1]] for a, b in itertools.product(steps, repeat=2)]
    return np.concatenate(taps, axis=-1).reshape(-1, kernel * kernel * x.shape[3])


@pytest.mark.parametrize(
    ("image", "kernel", "stride", "dilation", "pad"),
    [((1, 1, 1, 1), 1, 1, 1, 0), ((2, 7, 5, 3), 3, 1, 1, 1), ((1, 9, 11, 4), 3, 2, 1, 0), ((2, 8, 9, 2), 2, 3, 2, 2)],
)
def test_im2col(image: tuple[int, ...], kernel: int, stride: int, dilation: int, pad: int) -> None:
    """All tiles of the matrix, those over its edges included (they hold 0 there)."""
    x = np.random.default_rng(1).standard_normal(image).astype(np.float32)
    wanted = windows(x, kernel, stride, dilation, pad)
    rows, columns = 16, 12
    tiles = -(-wanted.shape[0] // rows), -(-wanted.shape[1] // columns)
    k = support.kernel_from(f"""
import tiledsl.language as T

N, H, W, C = T.dynamic("N, H, W, C")

@T.prim_func
def main(X: T.Tensor((N, H, W, C), "float32"), O: T.Tensor(({tiles[0] * rows}, {tiles[1] * columns}), "float32")):
    with T.Kernel({tiles[0]}, {tiles[1]}) as (by, bx):
        s = T.alloc_shared(({rows}, {columns}), "float32")
        T.c2d_im2col(X, s, by, bx, {kernel}, {stride}, {dilation}, {pad})
        T.copy(s, O[by * {rows}, bx * {columns}])
""")
    full = np.zeros((tiles[0] * rows, tiles[1] * columns), np.float32)
    got = support.agree(k, x, full.copy())[1]
    full[: wanted.shape[0], : wanted.shape[1]] = wanted
    np.testing.assert_array_equal(got, full)


@pytest.mark.parametrize("blocks", [1, 3, 64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 2), (3, 4, 17)])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_every_tile_is_visited_once(shape: tuple[int, ...], blocks: int, group: int) -> None:
    k = persistent(group)
    args = [np.zeros(shape, np.int32), np.zeros(shape[2], np.int32), blocks]
    count, line = support.agree(k, *args)[:2]
    assert (count == 1).all() and (line == shape[0] * shape[1]).all()
    run(k.function, args, checked())


def persistent(group: int) -> tiledsl.JITKernel:
    a, b, c = T.dynamic("a, b, c")

    @T.prim_func
    def main(C: T.Tensor((a, b, c), "int32"), L: T.Tensor((c,), "int32"), blocks: T.int32):
        with T.Kernel(blocks) as w:
            for i, j, k in T.Persistent([a, b, c], blocks, w, group_size=group):
                for _ in T.Parallel(1):
                    T.atomic_add(C[i, j, k], 1)
                    T.atomic_add(L[k], 1)

    return tiledsl.compile(main)


def test_the_order_of_persistent_tiles() -> None:
    """Groups of `group_size` along the last dimension, then the dimensions before, then within the group."""

    @T.prim_func
    def main(O: T.Tensor((15, 2), "int32")):
        seen = T.alloc_global((1,), "int32")
        with T.Kernel(1, threads=1) as b:
            seen[0] = 0
            for i, j in T.Persistent((3, 5), 1, b, group_size=2):
                O[seen[0], 0] = i
                O[seen[0], 1] = j
                seen[0] += 1

    got = support.agree(tiledsl.compile(main), np.zeros((15, 2), np.int32))[0]
    groups = [(0, 1), (2, 3), (4,)]
    assert got.tolist() == [[i, j] for g in groups for i in range(3) for j in g]


@pytest.mark.parametrize("n", [1, 17, 100])
def test_workspaces_join_kernels(n: int) -> None:
    """Block sums by the first kernel, added by the second in order: no float atomics."""
    k = support.kernel_from("""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "float16"), O: T.Tensor((1,), "float32"), width: T.int32):
    part = T.alloc_global((T.ceildiv(n, 8) + width,), T.float32)
    with T.Kernel(T.ceildiv(n, 8)) as b:
        x = T.alloc_fragment((8,), "float32")
        total = T.alloc_fragment((1,), "float32")
        T.async_copy(X[b * 8], x)
        T.ptx_commit_group()
        T.ptx_wait_group(0)
        T.reduce_sum(x, total)
        T.copy(total, part[b])
        T.pdl_trigger()
    with T.Kernel(1):
        T.pdl_sync()
        total = T.alloc_var("float32", 0)
        for b in T.serial(T.ceildiv(n, 8)):
            total += part[b]
        O[0] = total
""")
    x = np.random.default_rng(n).integers(-8, 8, n).astype(np.float16)
    args = [x, np.zeros(1, np.float32), 3]
    assert support.agree(k, *args)[1][0] == x.astype(np.float32).sum()
    run(k.function, args, checked())


def test_a_workspace_is_undefined_until_written() -> None:
    @T.prim_func
    def main(O: T.Tensor((4,), "float32")):
        w = T.alloc_global((4,), "float32")
        with T.Kernel(1):
            T.copy(w, O)

    with pytest.raises(TileError, match="w.*is read before anything has written it"):
        run(tiledsl.compile(main).function, [np.zeros(4, np.float32)], checked())
