"""Packed types (language.md 0.18): two elements per byte, low half first, in arguments, tiles, views and products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from properties import support
from properties.support import DTYPES, Array

import tiledsl
import tiledsl.language as T
from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.interp import checked

PACKED = ("float4_e2m1fn", "int4", "uint4")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # by code


def meant(codes: Array, dtype: str) -> Array:
    """What the codes 0 to 15 mean, in float32: by a table, or by two's complement."""
    if dtype == "float4_e2m1fn":
        return E2M1[codes]
    return np.where((codes > 7) & (dtype == "int4"), codes.astype(np.int64) - 16, codes).astype(np.float32)


def held(codes: Array, dtype: str) -> Array:
    """The codes as an ml_dtypes array, one element per byte."""
    return meant(codes, dtype).astype(getattr(ml_dtypes, dtype))


def bytes_of(codes: Array, last: int = 0) -> Array:
    """Element by element: 2k in the low half of byte k; `last` fills the half that an odd row leaves."""
    out = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // 2)), np.uint8)
    if codes.shape[-1] % 2:
        out[..., -1] = last << 4
    for at in np.ndindex(codes.shape):
        out[(*at[:-1], at[-1] // 2)] |= int(codes[at]) << (4 * (at[-1] % 2))
    return out


def draw(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 16, shape).astype(np.uint8)


# -- tiledsl.pack and tiledsl.unpack --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", [(1,), (7,), (16,), (3, 5), (2, 3, 8)])
def test_pack_and_unpack(dtype: str, shape: tuple[int, ...]) -> None:
    codes = draw(shape)
    made = tiledsl.pack(held(codes, dtype))
    np.testing.assert_array_equal(made, bytes_of(codes))
    np.testing.assert_array_equal(tiledsl.pack(meant(codes, dtype), dtype), made)
    back = tiledsl.unpack(made.view(np.int8), dtype, shape[-1])
    assert back.dtype == getattr(ml_dtypes, dtype)
    np.testing.assert_array_equal(back.astype(np.float32), meant(codes, dtype))
    assert tiledsl.unpack(made, dtype).shape[-1] == 2 * made.shape[-1]


def test_pack_converts_as_kernels_do() -> None:
    assert tiledsl.pack(np.array([100.0, -100.0, np.nan, 0.26], np.float32), "float4_e2m1fn").tolist() == [0xF7, 0x17]
    assert tiledsl.pack(np.array([100.0, -100.0]), "int4").tolist() == [0x87]
    assert tiledsl.pack(np.array([17, -1]), "uint4").tolist() == [0xF1]


def test_tensors_are_packed_too() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([[0.5, -6.0, 3.0, 1.0]], dtype=torch.bfloat16)
    made = tiledsl.pack(x, "float4_e2m1fn")
    assert made.dtype == torch.uint8 and made.tolist() == [[0xF1, 0x25]]
    assert torch.equal(tiledsl.unpack(made, "float4_e2m1fn"), x.float())
    if hasattr(torch, "float4_e2m1fn_x2"):
        assert torch.equal(tiledsl.unpack(made.view(torch.float4_e2m1fn_x2), "float4_e2m1fn"), x.float())
    assert tiledsl.unpack(made, "int4").dtype == torch.int8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: tiledsl.pack(np.zeros(4, np.int8)),
        lambda: tiledsl.pack(np.zeros(4), "int8"),
        lambda: tiledsl.pack(np.float32(1), "int4"),
        lambda: tiledsl.unpack(np.zeros(4, np.uint8), "float32"),
        lambda: tiledsl.unpack(np.zeros(4, np.int32), "int4"),
        lambda: tiledsl.unpack(np.zeros(4, np.uint8), "int4", 6),
    ],
    ids=["no-type", "wide-type", "scalar", "float-type", "no-bytes", "columns"],
)
def test_what_cannot_be_packed_is_refused(
    wrong: Callable[[], Any], golden: Any, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(TileError) as caught:
        wrong()
    golden(f"errors/packing-{request.node.callspec.id}", f"{type(caught.value).__name__}: {caught.value}")


# -- elements ---------------------------------------------------------------------------------------------------------


@functools.cache
def cast_kernel(packed: str, loop: str) -> tiledsl.JITKernel:
    """P -> every dtype (O), the sum with itself and a maximum in its own type, and every dtype -> packed."""
    types = [d for d in DTYPES if d != "bool"]
    params = "".join(f', X{k}: T.Tensor((n,), "{d}"), O{k}: T.Tensor((n,), "{d}")' for k, d in enumerate(types))
    params += "".join(f', Q{k}: T.Tensor((n,), "{packed}")' for k, _ in enumerate(types))
    lines = [f'O{k}[p] = T.cast(P[p], "{d}")' for k, d in enumerate(types)]
    lines += [f"Q{k}[p] = X{k}[p]" for k, _ in enumerate(types)]
    body = "\n            ".join(lines)
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(P: T.Tensor((n,), "{packed}"), S: T.Tensor((n,), "{packed}"), M: T.Tensor((n,), "{packed}"){params}):
    with T.Kernel(T.ceildiv(n, 33)) as b:
        for i in T.{loop}(33):
            p = b * 33 + i
            S[p] = P[p] + P[p]
            M[p] = T.max(P[p], -P[n - 1 - p])
            {body}
""")


@pytest.mark.parametrize("loop", ["Parallel", "serial"])
@pytest.mark.parametrize("packed", PACKED)
def test_elements_convert_and_compute(packed: str, loop: str) -> None:
    """Loads, stores, conversions from and to every type; odd lengths; blocks that begin in the middle of a byte."""
    types = [d for d in DTYPES if d != "bool"]
    target = as_dtype(packed)
    for n in (1, 2, 17, 99):
        codes = draw((n,), n)
        rng = np.random.default_rng(n)
        xs = [support.random_values(as_dtype(d), n, rng) for d in types]
        p = bytes_of(codes, 5)
        filled = [np.full_like(p, 0xA0) for _ in range(2 + len(types))]
        outs = [np.zeros(n, as_dtype(d).numpy) for d in types]
        args = [p, *filled[:2], *(a for pair in zip(xs, outs, strict=True) for a in pair), *filled[2:]]
        got = support.agree(cast_kernel(packed, loop), *args, what=f"{loop} {n}")
        x = held(codes, packed)
        values = meant(codes, packed)
        with np.errstate(all="ignore"):
            for k, d in enumerate(types):
                support.assert_same(got[4 + 2 * k], convert(x, target, as_dtype(d)), f"{packed} -> {d}")
                narrowed = convert(xs[k], as_dtype(d), target)
                wanted = bytes_of(codes_of(narrowed), 0xA)
                np.testing.assert_array_equal(got[3 + 2 * len(types) + k], wanted, f"{d} -> {packed}", strict=True)
        for out, wide in ((got[1], values + values), (got[2], np.maximum(values, -values[::-1] + 0.0))):
            if not target.is_float:
                narrowed = wide.astype(np.int64)
                wanted = bytes_of((narrowed & 15).astype(np.uint8), 0xA)
            else:
                zero = wide == 0  # a maximum of zeros: signs are tested elsewhere
                got_values = tiledsl.unpack(out, packed, n).astype(np.float32)
                np.testing.assert_array_equal(got_values, np.where(zero, 0, np.clip(wide, -6, 6).astype(np.float32)))
                continue
            np.testing.assert_array_equal(out, wanted)


def codes_of(x: Array) -> Array:
    if x.dtype == ml_dtypes.float4_e2m1fn:
        return x.view(np.uint8) & 15
    return (x.astype(np.int8).view(np.uint8)) & 15


# -- tiles ------------------------------------------------------------------------------------------------------------

STARTS = [(0, 0), (-3, 5), (4, -7), (1, 3), (-9, -40), (2, 31)]
SHAPES = [(1, 1), (7, 11), (5, 31), (13, 48), (9, 7), (33, 64)]


@functools.cache
def move_kernel(packed: str, other: str, scope: str) -> tiledsl.JITKernel:
    """X, packed, at (r, c) -> a tile of another type -> Z; and through a packed tile to Y, packed, at (r2, c2)."""
    return support.kernel_from(f"""
import tiledsl.language as T

m, n, p, q = T.dynamic("m, n, p, q")

@T.prim_func
def main(X: T.Tensor((m, n), "{packed}"), Y: T.Tensor((p, q), "{packed}"), Z: T.Tensor((7, 11), "{other}"),
         W: T.Tensor((p, q), "{packed}"), N: T.Tensor((m, n), "int8"), O: T.Tensor((p, q), "int8"),
         r: T.int32, c: T.int32, r2: T.int32,
         c2: T.int32):
    with T.Kernel(1) as b:
        T.annotate_safe_value({{X: 1}})
        tile = T.alloc_{scope}((7, 11), "{other}")
        kept = T.alloc_{scope}((7, 11), "{packed}")
        T.fill(tile, 2)
        T.fill(kept, 3)
        T.copy(X[r, c], tile)
        T.copy(X[r, c], kept)
        T.copy(tile, Z)
        T.copy(kept, Y[r2 : r2 + 7, c2 : c2 + 11])
        T.fill(kept[1:6, 2:9], 1)
        T.copy(tile[2:7, 1:4], kept[0:5, 3:6])
        T.copy(kept, W[r2, c2])
""")


@pytest.mark.parametrize("scope", ["shared", "fragment"])
@pytest.mark.parametrize(("packed", "other"), [("float4_e2m1fn", "float16"), ("int4", "int8"), ("uint4", "float32")])
def test_copies_with_odd_boundaries(packed: str, other: str, scope: str) -> None:
    """Neighbours in the same byte stay; the half byte that no element owns stays; clipping as for other types."""
    kernel = move_kernel(packed, other, scope)
    for k, (shape, start) in enumerate(zip(SHAPES, STARTS, strict=True)):
        to = STARTS[(k + 2) % len(STARTS)]
        x, y, w = draw(shape, 1), draw((19, 23), 2), draw((19, 23), 3)
        args = [bytes_of(x, 9), bytes_of(y, 6), np.zeros((7, 11), as_dtype(other).numpy), bytes_of(w, 4)]
        args += [np.zeros(shape, np.int8), np.zeros((19, 23), np.int8), *start, *to]
        got = support.agree(kernel, *args, what=f"{shape} from {start} to {to}")
        one = 2 if packed == "float4_e2m1fn" else 1  # the code of 1
        tile = np.array([[x[at] if inside(at, shape) else one for at in row(start, i)] for i in range(7)], np.uint8)
        np.testing.assert_array_equal(got[2].astype(np.float32), meant(tile, packed))
        np.testing.assert_array_equal(got[1], bytes_of(put(y, to, tile), 6))
        kept = tile.copy()
        kept[1:6, 2:9] = one
        kept[0:5, 3:6] = tile[2:7, 1:4]
        np.testing.assert_array_equal(got[3], bytes_of(put(w, to, kept), 4))


def row(start: tuple[int, int], i: int) -> list[tuple[int, int]]:
    return [(start[0] + i, start[1] + j) for j in range(11)]


def inside(at: tuple[int, int], shape: tuple[int, ...]) -> bool:
    return all(0 <= i < n for i, n in zip(at, shape, strict=True))


def put(y: Array, start: tuple[int, int], tile: Array) -> Array:
    out = y.copy()
    for i in range(7):
        for j, at in enumerate(row(start, i)):
            if inside(at, y.shape):
                out[at] = tile[i, j]
    return out


VIEWS = """
import tiledsl.language as T

m = T.dynamic("m")

@T.prim_func
def main(X: T.Tensor((m, 12), "uint8"), P: T.Tensor((m, 24), "float4_e2m1fn"), Y: T.Tensor((m, 24), "float32"),
         S: T.Tensor((m, 2, 12), "int4"), B: T.Tensor((m, 12), "uint8"), R: T.Tensor((m,), "float32")):
    with T.Kernel(m) as b:
        raw = T.alloc_shared((12,), "uint8")
        T.copy(X[b, :], raw)
        as_floats = T.view(raw, (1, 24), "float4_e2m1fn")
        for j in T.Parallel(24):
            Y[b, j] = as_floats[0, j]
        T.copy(as_floats, P[b : b + 1, :])
        largest = T.alloc_fragment((1,), "float32")
        T.reduce_absmax(as_floats, largest, dim=1)
        R[b] = largest[0]
        as_ints = T.reshape(T.view(as_floats, (24,), "int4"), (2, 12))
        T.copy(as_ints, S[b, :, :])
        made = T.alloc_shared((24,), "float4_e2m1fn")
        for j in T.serial(24):
            made[j] = Y[b, 23 - j]
        back = T.view(made, (12,), "uint8")
        T.copy(back, B[b, :])
"""


def test_views_between_bytes_and_packed_types() -> None:
    """T.view and T.reshape look at the same bits; reductions read views."""
    kernel = support.kernel_from(VIEWS)
    for m in (1, 5):
        codes = draw((m, 24), m)
        raw = bytes_of(codes)
        args = [raw, np.zeros((m, 12), np.uint8), np.zeros((m, 24), np.float32), np.zeros((m, 2, 6), np.uint8)]
        got = support.agree(kernel, *args, np.zeros((m, 12), np.uint8), np.zeros(m, np.float32))
        values = meant(codes, "float4_e2m1fn")
        np.testing.assert_array_equal(got[2], values)
        np.testing.assert_array_equal(got[1], raw)
        np.testing.assert_array_equal(got[3].reshape(m, 12), raw)
        np.testing.assert_array_equal(got[4], bytes_of(codes[:, ::-1]))
        np.testing.assert_array_equal(got[5], np.abs(values).max(axis=1))


LOCALS = """
import tiledsl.language as T

n, stride = T.dynamic("n, stride")

@T.prim_func
def main(X: T.Tensor((n,), "int8"), Y: T.Tensor((n,), "int32"), Z: T.StridedTensor((n, 3), (stride, 1), "uint4")):
    with T.Kernel(1) as b:
        for i in T.Parallel(n):
            own = T.alloc_local((3,), "int4")
            v = T.alloc_var("uint4", 3)
            for k in T.serial(3):
                own[k] = X[i] + k
            v += X[i]
            Y[i] = own[0] * 100 + own[1] * 10 + own[2] + 1000 * v
            w = T.cast(X[i], "int4") + 1
            Z[i, 1] = w
"""


def test_locals_variables_and_strided_arguments() -> None:
    """Storage of one iteration; wrapping at every store; rows with a run-time stride."""
    kernel = support.kernel_from(LOCALS)
    for n in (4, 34):
        x = np.random.default_rng(n).integers(-128, 128, n).astype(np.int8)
        runs = [lambda *a: support.run_reference(kernel, *a)]
        runs += [functools.partial(kernel, target=t) for t in support.TARGETS]
        for run in runs:
            y, z = np.zeros(n, np.int32), np.full((n, 9), 0x55, np.uint8)
            run(x, y, z[:, 3:5])
            wide = x.astype(np.int64)
            wrapped = [((wide + k + 8) % 16) - 8 for k in range(3)]
            wanted = wrapped[0] * 100 + wrapped[1] * 10 + wrapped[2] + 1000 * ((wide + 3) % 16)
            np.testing.assert_array_equal(y, wanted)
            rest = np.full((n, 9), 0x55, np.uint8)
            rest[:, 3] = 0x05 | ((((wide + 8) % 16) - 8 + 1) % 16) << 4
            np.testing.assert_array_equal(z, rest)


# -- gemm -------------------------------------------------------------------------------------------------------------


@functools.cache
def gemm_kernel(left: str, right: str, result: str, transpose: bool) -> tiledsl.JITKernel:
    shape, tile, at = ("N, K", "19, 13", "j * 19, k * 13") if transpose else ("K, N", "13, 19", "k * 13, j * 19")
    return support.kernel_from(f"""
import tiledsl.language as T

M, N, K = T.dynamic("M, N, K")

@T.prim_func
def main(A: T.Tensor((M, K), "{left}"), B: T.Tensor(({shape}), "{right}"), C: T.Tensor((M, N), "{result}")):
    with T.Kernel(T.ceildiv(N, 19), T.ceildiv(M, 7)) as (j, i):
        a = T.alloc_shared((7, 13), "{left}")
        b = T.alloc_shared(({tile}), "{right}")
        c = T.alloc_fragment((7, 19), "{result}")
        T.clear(c)
        for k in T.Pipelined(T.ceildiv(K, 13), num_stages=2):
            T.copy(A[i * 7, k * 13], a)
            T.copy(B[{at}], b)
            T.gemm(a, b, c, transpose_B={transpose})
        T.copy(c, C[i * 7, j * 19])
""")


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("left", "right", "result"),
    [("float4_e2m1fn", "float4_e2m1fn", "float32"), ("float8_e4m3fn", "float4_e2m1fn", "float16"),
     ("int8", "int4", "int32"), ("uint4", "int4", "int32"), ("float8_e5m2", "float8_e4m3fn", "float32")],
)  # fmt: skip
def test_gemm_of_packed_and_mixed_operands(left: str, right: str, result: str, transpose: bool) -> None:
    """Sums of these products are exact, so the product in float64 is the answer."""
    kernel = gemm_kernel(left, right, result, transpose)
    rng = np.random.default_rng(7)

    def operand(dtype: str, shape: tuple[int, int]) -> tuple[Array, Array]:
        if dtype in PACKED:
            codes = rng.integers(0, 16, shape).astype(np.uint8)
            return bytes_of(codes), meant(codes, dtype).astype(np.float64)
        x = rng.integers(-8, 9, shape).astype(as_dtype(dtype).numpy)
        return x, x.astype(np.float64)

    for m, n, k in ((1, 1, 1), (7, 19, 13), (9, 33, 31)):
        a, x = operand(left, (m, k))
        b, y = operand(right, (n, k) if transpose else (k, n))
        got = support.agree(kernel, a, b, np.zeros((m, n), as_dtype(result).numpy), what=f"{m}x{n}x{k}")[2]
        np.testing.assert_array_equal(got.astype(np.float64), x @ (y.T if transpose else y))


# -- arguments --------------------------------------------------------------------------------------------------------

COPY = """
import tiledsl
import tiledsl.language as T
import tiledsl.language as T

m, n = T.dynamic("m, n")

@T.prim_func
def main(X: T.Tensor((m, n), "float4_e2m1fn"), Y: T.Tensor((m, n), "float4_e2m1fn")):
    with T.Kernel(m) as b:
        row = T.alloc_fragment((64,), "float4_e2m1fn")
        T.copy(X[b, 0:64], row)
        T.copy(row, Y[b, 0:64])
"""


def test_accepted_arrays() -> None:
    """uint8, int8, torch's pairs; outputs are allocated in the kind of the input."""
    torch = pytest.importorskip("torch")
    kernel = support.kernel_from(COPY)
    raw = bytes_of(draw((3, 32)))
    for target in support.TARGETS:
        for x in (raw, raw.view(np.int8)):
            y = np.zeros_like(x)
            kernel(x, y, target=target)
            np.testing.assert_array_equal(x, y)
        for t in (torch.from_numpy(raw), torch.from_numpy(raw).view(torch.float4_e2m1fn_x2)):
            made = torch.zeros(3, 16, dtype=torch.uint8)
            kernel(t, made, target=target)
            np.testing.assert_array_equal(made.numpy(), raw)


def test_unpacked_arrays_are_refused_with_the_helper() -> None:
    kernel = support.kernel_from(COPY)
    x = held(draw((3, 32)), "float4_e2m1fn")
    with pytest.raises(TileError, match=r"tiledsl\.pack\(x\)"):
        kernel(x, np.zeros((3, 16), np.uint8))
    packed = tiledsl.pack(x)
    y = np.zeros((3, 16), np.uint8)
    kernel(packed, y)
    np.testing.assert_array_equal(packed, y)


# -- checked mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "reported"), [("shared", True), ("fragment", False)])
def test_a_byte_is_one_unit_of_conflict(scope: str, reported: bool) -> None:
    """Two lanes that store the halves of one byte race in memory; registers share no bytes. Rows begin at bytes."""
    source = f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((3, 5), "int8"), Y: T.Tensor((3, 5), "uint4")):
    with T.Kernel(1) as b:
        s = T.alloc_{scope}((3, 5), "uint4")
        for i in T.Parallel(3):
            for j in T.serial(5):
                s[i, j] = X[i, j]
        T.copy(s, Y)
        for i, j in T.Parallel(3, 5):
            s[i, j] = X[i, j]
        T.copy(s, Y)
"""
    kernel = support.kernel_from(source)
    args = [np.arange(15, dtype=np.int8).reshape(3, 5), np.zeros((3, 3), np.uint8)]
    if reported:
        with pytest.raises(TileError, match="written by two iterations") as caught:
            support.run_reference(kernel, *args, options=checked())
        assert caught.value.loc is not None and caught.value.loc.line == 13
    else:
        support.run_reference(kernel, *args, options=checked())
    got = support.agree(kernel, *args)
    np.testing.assert_array_equal(got[1], bytes_of(args[0].view(np.uint8), 0))


@functools.cache
def tile_kernel(packed: str, wide: str) -> tiledsl.JITKernel:
    """Transposed (P), running sums and maxima (S, M), reductions over both axes (R, C), through a workspace."""
    return support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((7, 12), "{packed}"), P: T.Tensor((12, 7), "{packed}"), S: T.Tensor((7, 12), "{wide}"),
         M: T.Tensor((7, 12), "{packed}"), R: T.Tensor((7,), "{packed}"), C: T.Tensor((12,), "{wide}")):
    with T.Kernel(1) as b:
        between = T.alloc_global((7, 12), "{packed}")
        x = T.alloc_shared((7, 12), "{packed}")
        turned = T.alloc_shared((12, 7), "{packed}")
        running = T.alloc_fragment((7, 12), "{wide}")
        most = T.alloc_shared((7, 12), "{packed}")
        rows = T.alloc_fragment((7,), "{packed}")
        columns = T.alloc_fragment((12,), "{wide}")
        T.copy(X, between)
        T.copy(between, x)
        T.transpose(x, turned)
        T.copy(turned, P)
        T.cumsum(x, running, dim=1)
        T.copy(running, S)
        T.cummax(x, most, dim=0)
        T.copy(most, M)
        T.reduce_sum(x, rows, dim=1)
        T.copy(rows, R)
        T.reduce_max(x, columns, dim=0)
        T.copy(columns, C)
""")


@pytest.mark.parametrize(("packed", "wide"), [("int4", "int32"), ("uint4", "int16"), ("float4_e2m1fn", "float32")])
def test_tile_operations(packed: str, wide: str) -> None:
    codes = draw((7, 12), 9)
    codes[codes == 8] = 0 if packed == "float4_e2m1fn" else 8  # -0: the sign of zeros is tested elsewhere
    x = meant(codes, packed)
    outs = [np.zeros((12, 4), np.uint8), np.zeros((7, 12), as_dtype(wide).numpy), np.zeros((7, 6), np.uint8)]
    outs += [np.zeros(4, np.uint8), np.zeros(12, as_dtype(wide).numpy)]
    _, p, s, m, r, c = support.agree(tile_kernel(packed, wide), bytes_of(codes), *outs)
    np.testing.assert_array_equal(p, bytes_of(np.ascontiguousarray(codes.T)))
    np.testing.assert_array_equal(s.astype(np.float32), np.cumsum(x, axis=1))
    np.testing.assert_array_equal(meant(codes_in(m, 12), packed), np.maximum.accumulate(x, axis=0))
    np.testing.assert_array_equal(c.astype(np.float32), x.max(axis=0))
    total = x.sum(axis=1)
    narrow = total.astype(np.int64) & 15 if packed != "float4_e2m1fn" else None
    if narrow is not None:
        np.testing.assert_array_equal(codes_in(r, 7), narrow)
    else:
        np.testing.assert_array_equal(
            meant(codes_in(r, 7), packed), total.astype(ml_dtypes.float4_e2m1fn).astype(float)
        )


def codes_in(raw: Array, columns: int) -> Array:
    return np.stack([raw & 15, raw >> 4], -1).reshape(*raw.shape[:-1], -1)[..., :columns]


def test_operands_that_are_looked_at_as_bytes() -> None:
    """A reduction, a scan and a product of tiles whose bytes somebody changes."""

    @T.prim_func
    def kernel(
        A: T.Tensor((6, 20), "int4"),
        B: T.Tensor((20, 8), "int4"),
        R: T.Tensor((6,), "int32"),
        S: T.Tensor((6, 20), "int32"),
        C: T.Tensor((6, 8), "int32"),
    ):
        with T.Kernel(1):
            a, b = T.alloc_shared((6, 20), "int4"), T.alloc_shared((20, 8), "int4")
            r, c = T.alloc_fragment((6,), "int32"), T.alloc_fragment((6, 8), "int32")
            sums = T.alloc_fragment((6, 20), "int32")
            T.copy(A, a)
            T.copy(B, b)
            bytes_of_a, bytes_of_b = T.view(a, (6, 10), "uint8"), T.view(b, (20, 4), "uint8")
            for i, j in T.Parallel(6, 10):
                bytes_of_a[i, j] = bytes_of_a[i, j] ^ 0x21
            for i, j in T.Parallel(20, 4):
                bytes_of_b[i, j] = bytes_of_b[i, j] ^ 0x12
            T.reduce_sum(a, r, dim=1)
            T.cumsum(a, sums, dim=1)
            T.clear(c)
            T.gemm(a, b, c)
            T.copy(r, R)
            T.copy(sums, S)
            T.copy(c, C)

    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 8, (6, 20)), rng.integers(-8, 8, (20, 8))
    args = [tiledsl.pack(a, "int4"), tiledsl.pack(b, "int4"), *(np.zeros(n, np.int32) for n in (6, (6, 20), (6, 8)))]
    got = support.agree(tiledsl.compile(kernel), *args)
    a, b = ((x ^ np.resize(flip, x.shape) ^ 8) % 16 - 8 for x, flip in ((a % 16, [1, 2]), (b % 16, [2, 1])))
    assert (got[2] == a.sum(1)).all() and (got[3] == a.cumsum(1)).all() and (got[4] == a @ b).all()
