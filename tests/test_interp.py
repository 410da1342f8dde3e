"""The interpreter's tile operations, control flow and scalars, on trees built by hand, against float64 NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ir_builder import (
    add,
    buf,
    const,
    copy,
    fill,
    function,
    gemm,
    load,
    loop,
    matmul,
    mul,
    op,
    parallel,
    reduce,
    region,
    store,
    var,
)
from kernels_support import product_bound, worst

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import InternalError, TileIndexError, TileTypeError, TileValueError
from tiledsl.interp import Options, run
from tiledsl.ir.exact import fma32, fma64, gemm_chain

RNG = np.random.default_rng(7)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


# -- gemm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [(1, 1, 1), (33, 47, 29), (64, 64, 64), (130, 31, 127)])
def test_tiled_matmul(size: tuple[int, int, int], dtype: str, exact: bool) -> None:
    m, n, k = size
    storage = as_dtype(dtype).numpy
    a, b, c = normal(m, k, dtype=storage), normal(k, n, dtype=storage), np.full((m, n), 9, np.float32)
    result = run(matmul(m, n, k, 32, 48, 16, dtype), [a, b, c], Options(exact=exact))
    assert result.blocks == -(-m // 32) * -(-n // 48)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    bound = k * 2.0**-24 * (np.abs(wide_a) @ np.abs(wide_b)) * 1.1 + 1e-30
    assert (np.abs(c - wide_a @ wide_b) <= bound).all()


@pytest.mark.parametrize(("ta", "tb"), list(itertools.product([False, True], repeat=2)))
def test_gemm_transposes_accumulates_and_clears(ta: bool, tb: bool) -> None:
    a, b, c0 = normal(5, 7), normal(7, 3), normal(5, 3)
    for clear in (False, True):
        A, B, C = buf("A", (7, 5) if ta else (5, 7)), buf("B", (3, 7) if tb else (7, 3)), buf("C", (5, 3))
        c = c0.copy()
        f = function([A, B, C], [gemm(A, B, C, clear, transpose_a=ta, transpose_b=tb)])
        run(f, [a.T.copy() if ta else a, b.T.copy() if tb else b, c])
        left, right = (a, b) if clear else (np.hstack([a, np.eye(5)]), np.vstack([b, c0]))
        assert worst(c, *product_bound(left, right, "float32")) <= 1


def test_gemm_into_half_rounds_once() -> None:
    a, b, c0 = normal(9, 65, dtype=np.float16), normal(65, 4, dtype=np.float16), normal(9, 4, dtype=np.float16)
    A, B, C = buf("A", (9, 65), "float16"), buf("B", (65, 4), "float16"), buf("C", (9, 4), "float16")
    c = c0.copy()
    run(function([A, B, C], [gemm(A, B, C)]), [a, b, c], Options(exact=True))
    chain = gemm_chain(a.astype(np.float32), b.astype(np.float32), c0.astype(np.float32))
    np.testing.assert_array_equal(c, chain.astype(np.float16))


def test_gemm_of_integers_wraps_at_int32() -> None:
    for dtype, low, high in (("int8", -128, 128), ("uint8", 0, 256), ("int32", -(2**31), 2**31)):
        a = RNG.integers(low, high, (6, 70)).astype(dtype)
        b = RNG.integers(low, high, (70, 5)).astype(dtype)
        c = np.full((6, 5), 2**31 - 3, np.int32)
        A, B, C = buf("A", (6, 70), dtype), buf("B", (70, 5), dtype), buf("C", (6, 5), "int32")
        run(function([A, B, C], [gemm(A, B, C)]), [a, b, c])
        exact = a.astype(object) @ b.astype(object) + (2**31 - 3)
        np.testing.assert_array_equal(c, [[(int(v) + 2**31) % 2**32 - 2**31 for v in row] for row in exact])


def test_exact_gemm_is_the_ascending_fma_chain() -> None:
    a, b, c = normal(3, 40), normal(40, 2), normal(3, 2)
    want = c.copy()
    for i, j, k in itertools.product(range(3), range(2), range(40)):
        want[i, j] = fma32(a[i, k], b[k, j], want[i, j]) if k else fma32(a[i, 0], b[0, j], c[i, j])
    A, B, C = buf("A", (3, 40)), buf("B", (40, 2)), buf("C", (3, 2))
    run(function([A, B, C], [gemm(A, B, C)]), [a, b, c], Options(exact=True))
    np.testing.assert_array_equal(c, want)


def test_gemm_shapes_that_do_not_fit() -> None:
    A, B, C = buf("A", (5, 7)), buf("B", (6, 3)), buf("C", (5, 3))
    with pytest.raises(TileTypeError, match="shapes do not fit"):
        run(function([A, B, C], [gemm(A, B, C)]), [normal(5, 7), normal(6, 3), normal(5, 3)])


# -- fma ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype: Any) -> None:
    from fractions import Fraction

    n = 1500
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    any_ = lambda: RNG.integers(0, 2 ** (8 * bits.itemsize) - 1, n, dtype=np.uint64).astype(bits).view(dtype)
    near = lambda: (RNG.integers(1, 2**12, n) * 2.0 ** RNG.integers(-30, 30, n)).astype(dtype)
    tiny = lambda: (RNG.standard_normal(n) * float(np.finfo(dtype).tiny) ** 0.5).astype(dtype)
    small = lambda: (RNG.standard_normal(n) * float(np.finfo(dtype).tiny)).astype(dtype)
    cases = [(any_(), any_(), any_()), (near(), near(), -near()), (tiny(), tiny(), small())]
    x, y = normal(n, dtype=dtype), normal(n, dtype=dtype)
    cases.append((x, y, -(x * y)))
    fma = fma32 if dtype is np.float32 else fma64
    for a, b, c in cases:
        with np.errstate(all="ignore"):
            got = fma(a, b, c)
            simple = a.astype(np.float64) * b + c
        for ai, bi, ci, ri, si in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), simple.tolist(), strict=True):
            if not np.isfinite([ai, bi, ci]).all():
                assert ri == si or ri != ri
                continue
            exact = Fraction(ai) * Fraction(bi) + Fraction(ci)
            assert ri == _nearest(exact, dtype), (ai, bi, ci)


def _nearest(x: Any, dtype: Any) -> float:
    """A fraction rounded to nearest even by integer arithmetic."""
    from fractions import Fraction

    info = np.finfo(dtype)
    if x == 0:
        return 0.0
    sign, m = (1, x) if x > 0 else (-1, -x)
    exponent = m.numerator.bit_length() - m.denominator.bit_length()
    exponent -= m < Fraction(2) ** exponent
    quantum = Fraction(2) ** (max(exponent, int(info.minexp)) - info.nmant)
    q, rest = divmod(m, quantum)
    q += rest * 2 > quantum or (rest * 2 == quantum and q % 2)
    value = q * quantum
    return float("inf") * sign if value > Fraction(float(info.max)) else float(value) * sign


# -- copy and fill ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0, 0), (3, 5), (-2, 4), (8, 9), (20, 20), (-50, 0)])
def test_copy_from_global_pads_and_to_global_clips(start: tuple[int, int]) -> None:
    x = normal(10, 12)
    X, Y, S = buf("X", (10, 12)), buf("Y", (10, 12)), buf("S", (6, 8), "float32", "shared")
    body = [
        ir.Alloc(S), fill(S, 7.0), copy(region(X, start, (6, 8)), region(S)), copy(region(S), region(Y, start, (6, 8))),
    ]  # fmt: skip
    T = buf("T", (6, 8))
    y, t = np.full((10, 12), 9, np.float32), np.zeros((6, 8), np.float32)
    run(function([X, Y, T], [*body, copy(region(S), region(T))]), [x, y, t])
    want_t, want_y = np.zeros((6, 8), np.float32), np.full((10, 12), 9, np.float32)
    for r, c in itertools.product(range(6), range(8)):
        i, j = start[0] + r, start[1] + c
        if 0 <= i < 10 and 0 <= j < 12:
            want_t[r, c] = want_y[i, j] = x[i, j]
    np.testing.assert_array_equal(t, want_t)
    np.testing.assert_array_equal(y, want_y)


def test_copy_clips_shared_sources_and_reads_safe_values() -> None:
    X = buf("X", (5,), safe=const(3.5, "float32"))
    S, D, Y = buf("S", (8,), scope="shared"), buf("D", (8,), scope="shared"), buf("Y", (8,))
    y = np.zeros(8, np.float32)
    body = [
        ir.Alloc(S), ir.Alloc(D), fill(D, -1.0), copy(region(X, (0,), (8,)), region(S)),
        copy(region(S, (6,), (8,)), region(D)), copy(region(D), region(Y)),
    ]  # fmt: skip
    run(function([X, Y], body), [np.arange(5, dtype=np.float32), y])
    np.testing.assert_array_equal(y, [3.5, 3.5, -1, -1, -1, -1, -1, -1])


def test_copy_transposes_broadcasts_and_casts() -> None:
    X, Y, Z = buf("X", (3, 4)), buf("Y", (4, 3), "float16"), buf("Z", (2, 3, 4))
    x, y, z = normal(3, 4), np.zeros((4, 3), np.float16), np.zeros((2, 3, 4), np.float32)
    three, four, two = (const(n, "int32") for n in (3, 4, 2))
    turn = ir.Copy(region(X), region(Y), (three, four), (0, 1), (1, 0))
    spread = ir.Copy(region(X), region(Z), (two, three, four), (-1, 0, 1), (0, 1, 2))
    run(function([X, Y, Z], [turn, spread]), [x, y, z])
    np.testing.assert_array_equal(y, x.T.astype(np.float16))
    np.testing.assert_array_equal(z, np.broadcast_to(x, (2, 3, 4)))


def test_overlapping_copy_within_one_buffer() -> None:
    X = buf("X", (10,))
    x = np.arange(10, dtype=np.float32)
    run(function([X], [copy(region(X, (0,), (8,)), region(X, (2,), (8,)))]), [x])
    np.testing.assert_array_equal(x, [0, 1, 0, 1, 2, 3, 4, 5, 6, 7])


# -- reductions and scans --------------------------------------------------------------------------------------


def ordered_sum(x: np.ndarray[Any, Any]) -> Any:
    """16 interleaved partials, each ascending, combined 8-4-2-1, one element at a time."""
    partials: list[Any] = [None] * 16
    for i, v in enumerate(x):
        partials[i % 16] = v if partials[i % 16] is None else partials[i % 16] + v
    for half in (8, 4, 2, 1):
        for i in range(half):
            if partials[i + half] is not None:
                partials[i] = partials[i] + partials[i + half]
    return partials[0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 127, 229, 1000])
@pytest.mark.parametrize("axis", [0, 1])
def test_sum_has_one_order(n: int, axis: int) -> None:
    for other in (1, 3, 20):
        x = (normal(n, other) * np.exp(normal(n, other) * 3)).astype(np.float32)
        src = x if axis == 0 else np.ascontiguousarray(x.T)
        X, Y = buf("X", src.shape), buf("Y", (other,))
        y = np.zeros(other, np.float32)
        run(function([X, Y], [reduce("sum", X, Y, axis)]), [src, y])
        np.testing.assert_array_equal(y, [ordered_sum(x[:, j]) for j in range(other)])


def test_sum_keeps_negative_zero_and_rounds_once() -> None:
    X, Y = buf("X", (3, 2)), buf("Y", (3,))
    y = np.ones(3, np.float32)
    run(function([X, Y], [reduce("sum", X, Y, 1)]), [np.full((3, 2), -0.0, np.float32), y])
    assert np.signbit(y).all()
    x = normal(4, 333, dtype=np.float16)
    X, Y = buf("X", (4, 333), "float16"), buf("Y", (4,), "float16")
    y0 = normal(4, dtype=np.float16)
    for clear in (True, False):
        got = y0.copy()
        run(function([X, Y], [reduce("sum", X, Y, 1, clear)]), [x, got])
        total = np.array([ordered_sum(r.astype(np.float32)) for r in x])
        want = total if clear else y0.astype(np.float32) + total
        np.testing.assert_array_equal(got, want.astype(np.float16))


@pytest.mark.parametrize("kind", ["max", "min", "absmax", "abssum"])
def test_float_extremes(kind: str) -> None:
    nan, inf = np.nan, np.inf
    x = np.array([[nan, 1, -3], [nan, nan, nan], [-0.0, -0.0, -0.0], [0.0, -0.0, 0.0], [-inf, 2, inf]], np.float32)
    X, Y = buf("X", (5, 3)), buf("Y", (5, 1))
    y = np.zeros((5, 1), np.float32)
    run(function([X, Y], [reduce(kind, X, Y, 1)]), [x, y])
    want = {
        "max": [1, -inf, -0.0, 0.0, inf], "min": [-3, inf, -0.0, -0.0, -inf], "absmax": [3, 0, 0, 0, inf],
        "abssum": [nan, nan, 0, 0, inf],
    }[kind]  # fmt: skip
    np.testing.assert_array_equal(y[:, 0], np.array(want, np.float32))
    np.testing.assert_array_equal(np.signbit(y[:4, 0]), np.signbit(np.array(want[:4])) & (y[:4, 0] == y[:4, 0]))
    if kind in ("max", "min", "absmax"):
        run(function([X, Y], [reduce(kind, X, Y, 1, nan_propagate=True)]), [x, y])
        assert np.isnan(y[:2]).all() and not np.isnan(y[2:]).any()


def test_reduce_combines_with_the_old_value() -> None:
    x = normal(6, 40)
    for kind, f in (("max", np.maximum), ("min", np.minimum)):
        X, Y = buf("X", (6, 40)), buf("Y", (6,))
        y = np.linspace(-3, 3, 6).astype(np.float32)
        want = f(y, getattr(x, kind)(1))
        run(function([X, Y], [reduce(kind, X, Y, 1, clear=False)]), [x, y])
        np.testing.assert_array_equal(y, want)


def test_integer_reductions() -> None:
    x = RNG.integers(-(2**31), 2**31, (4, 37)).astype(np.int32)
    want = {
        "sum": x.sum(1, dtype=np.int32), "max": x.max(1), "min": x.min(1), "bitand": np.bitwise_and.reduce(x, 1),
        "bitor": np.bitwise_or.reduce(x, 1), "bitxor": np.bitwise_xor.reduce(x, 1),
    }  # fmt: skip
    for kind, w in want.items():
        X, Y = buf("X", (4, 37), "int32"), buf("Y", (4,), "int32")
        y = np.zeros(4, np.int32)
        run(function([X, Y], [reduce(kind, X, Y, 1)]), [x, y])
        np.testing.assert_array_equal(y, w)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_are_sequential(reverse: bool) -> None:
    x = normal(5, 90)
    x[2, 3] = np.nan
    X, Y = buf("X", (5, 90)), buf("Y", (5, 90))
    for kind in ("sum", "max"):
        y = np.zeros_like(x)
        run(function([X, Y], [ir.Scan(kind, region(X), region(Y), 1, reverse)]), [x, y])
        steps = range(89, -1, -1) if reverse else range(90)
        for r in range(5):
            total: Any = None
            for j in steps:
                v = x[r, j]
                total = v if total is None else np.float32(total + v) if kind == "sum" else np.fmax(total, v)
                np.testing.assert_array_equal(y[r, j], total)


# -- scalars and control flow ----------------------------------------------------------------------------------


def scalar_result(value: ir.Expr, *before: ir.Stmt, inputs: list[Any] | None = None, params: Any = ()) -> Any:
    """The value of an expression in uniform code."""
    Y = buf("Y", (1,), value.dtype.name)
    y = np.zeros(1, value.dtype.numpy)
    run(function([*params, Y], [*before, store(Y, (0,), value)]), [*(inputs or []), y])
    return y[0]


def lanes_result(make: Any, *columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """make(operands) for whole columns inside T.Parallel."""
    n = len(columns[0])
    params = [buf(f"X{k}", (n,), as_dtype(c.dtype).name) for k, c in enumerate(columns)]
    i = var("i")
    value = make(*(load(p, i) for p in params))
    Y = buf("Y", (n,), value.dtype.name)
    y = np.zeros(n, value.dtype.numpy)
    run(function([*params, Y], [parallel((i,), (n,), store(Y, (i,), value))]), [*columns, y])
    return y


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_integer_operators_wrap(dtype: str) -> None:
    t = as_dtype(dtype)
    info = np.iinfo(t.numpy)
    edge = [info.min, info.max, 0, 1, 2, 3, 7, info.max - 1, info.max // 2] + (
        [-1, -2, -7, info.min + 1] if info.min else []
    )
    pairs = np.array(list(itertools.product(edge, repeat=2)), dtype=t.numpy)
    a, b = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    wrap = lambda v: (v - int(info.min)) % 2**t.bits + int(info.min)
    trunc = lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
    rules = {
        "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y,
        "floordiv": lambda x, y: x // y if y else 0, "floormod": lambda x, y: x % y if y else 0,
        "truncdiv": lambda x, y: trunc(x, y) if y else 0, "truncmod": lambda x, y: x - y * trunc(x, y) if y else 0,
        "min": min, "max": max, "bitand": lambda x, y: x & y, "bitor": lambda x, y: x | y, "bitxor": lambda x, y: x ^ y,
        "shl": lambda x, y: x << y if 0 <= y < t.bits else 0,
        "shr": lambda x, y: x >> y if 0 <= y < t.bits else (-1 if x < 0 else 0),
    }  # fmt: skip
    for name, rule in rules.items():
        want = [wrap(rule(int(x), int(y))) for x, y in zip(a, b, strict=True)]
        got = lanes_result(lambda p, q, name=name: op(name, p, q), a, b)
        assert got.tolist() == want, name
        for k in range(0, len(a), 7):
            x, y = const(int(a[k]), dtype), const(int(b[k]), dtype)
            assert int(scalar_result(ir.Binary(name, x, y))) == want[k], name


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_float_operators_round_to_their_type(dtype: str) -> None:
    t = as_dtype(dtype)
    with np.errstate(all="ignore"):
        special = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 3e-8, 6e4, 2.0**-10], np.float32)
        values = np.concatenate([special, normal(30) * 3]).astype(np.float64)
        if t.bits == 8:
            values = np.clip(values, -448, 448)
        values = values.astype(t.numpy)
        a, b = (np.ascontiguousarray(v) for v in np.array(list(itertools.product(values, repeat=2)), t.numpy).T)
        wide = np.float64 if t.bits == 64 else np.float32
        x, y = a.astype(wide), b.astype(wide)
        want = {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y}
        for name, w in want.items():
            got = lanes_result(lambda p, q, name=name: op(name, p, q), a, b)
            if t.bits == 8:
                w = np.clip(w, -448, 448)
            np.testing.assert_array_equal(got.astype(wide), w.astype(t.numpy).astype(wide))
        root = lanes_result(lambda p, q: ir.Unary("sqrt", p), a, b)
        np.testing.assert_array_equal(root.astype(wide), np.sqrt(x).astype(t.numpy).astype(wide))
        larger = lanes_result(lambda p, q: op("max", p, q), a, b).astype(wide)
        np.testing.assert_array_equal(larger, np.fmax(x, y))
        zeros = (x == 0) & (y == 0)
        np.testing.assert_array_equal(np.signbit(larger[zeros]), np.signbit(x[zeros]) & np.signbit(y[zeros]))
        smaller = lanes_result(lambda p, q: op("min", p, q), a, b).astype(wide)
        np.testing.assert_array_equal(smaller, np.fmin(x, y))
        np.testing.assert_array_equal(np.signbit(smaller[zeros]), np.signbit(x[zeros]) | np.signbit(y[zeros]))


def test_loops_break_continue_and_return() -> None:
    Y = buf("Y", (20,), "int32")
    k, n = var("k"), var("n")
    v = buf("v", (1,), "int32", "var")
    body = [
        ir.Alloc(v, const(0, "int32")),
        loop(
            k, 20,
            ir.If(op("eq", op("floormod", k, 2), 1), (ir.Continue(),)),
            ir.If(op("ge", k, 12), (ir.Break(),)),
            store(Y, (k,), k), store(v, (0,), add(load(v, 0), 1)),
        ),
        ir.While(op("lt", load(v, 0), 100), (
            store(v, (0,), mul(load(v, 0), 2)),
            loop(n, 5, ir.If(op("eq", n, 3), (ir.Break(),)), store(Y, (add(n, 13),), n)),
        )),
        store(Y, (19,), load(v, 0)),
        ir.If(op("gt", load(v, 0), 50), (ir.Return(),)),
        store(Y, (0,), const(-1, "int32")),
    ]  # fmt: skip
    y = np.zeros(20, np.int32)
    run(function([Y], body), [y])
    np.testing.assert_array_equal(y, [0, 0, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0, 0, 0, 1, 2, 0, 0, 0, 192])


def test_negative_step_and_grid_order() -> None:
    Y = buf("Y", (3, 4), "int32")
    bx, by, k = var("bx"), var("by"), var("k")
    count = buf("count", (1,), "int32")
    body = [
        loop(k, -1, store(Y, (by, bx), add(mul(by, 100), add(mul(bx, 10), load(count, 0)))), start=1, step=-1),
        store(count, (0,), add(load(count, 0), 1)),
    ]  # fmt: skip
    y, c = np.zeros((3, 4), np.int32), np.zeros(1, np.int32)
    run(function([Y, count], body, (4, 3), (bx, by)), [y, c])
    np.testing.assert_array_equal(y, [[100 * r + 10 * q + 4 * r + q for q in range(4)] for r in range(3)])
    run(function([Y, count], body, (4, 3), (bx, by)), [y, c], Options(block_order=3))
    assert c[0] == 24 and len(set((y % 10).ravel().tolist())) > 1


def test_scalar_parameters_symbols_and_casts() -> None:
    n, scale, m = var("n"), var("scale", "float32"), var("m")
    X, Y = buf("X", (m,)), buf("Y", (m,), "float64")
    i = var("i")
    value = ir.Cast(mul_f(load(X, i), scale), as_dtype("float64"))
    f = function([X, n, scale, Y], [parallel((i,), (n,), store(Y, (i,), value))], symbols=(m,))
    for size in (1, 9):
        x, y = normal(size), np.zeros(size)
        run(f, [x, size, 1.5, y])
        np.testing.assert_array_equal(y, (x * np.float32(1.5)).astype(np.float64))


def mul_f(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    return ir.Binary("mul", a, b)


# -- storage -------------------------------------------------------------------------------------------------------


def test_strided_and_transposed_arguments() -> None:
    s0, s1 = var("s0", "int64"), var("s1", "int64")
    X = ir.Buffer("X", as_dtype("float32"), (const(5, "int32"), const(6, "int32")), "global", (s0, s1))
    Y = buf("Y", (5, 6))
    f = function([X, Y], [copy(region(X), region(Y))], symbols=(s0, s1))
    for x in (normal(6, 5).T, normal(10, 18)[::2, ::3], normal(5, 6)):
        y = np.zeros((5, 6), np.float32)
        run(f, [x, y])
        np.testing.assert_array_equal(y, x)


def test_views_with_another_dtype_and_offset() -> None:
    S = buf("S", (4, 8), "float32", "shared")
    bits = buf("bits", (32,), "int32", "shared", alias_of=S)
    tail = buf("tail", (2, 2), "float32", "shared", alias_of=S, offset=const(28, "int32"))
    Y, Z = buf("Y", (32,), "int32"), buf("Z", (2, 2))
    X = buf("X", (4, 8))
    x, y, z = normal(4, 8), np.zeros(32, np.int32), np.zeros((2, 2), np.float32)
    body = [ir.Alloc(S), copy(region(X), region(S)), copy(region(bits), region(Y)), copy(region(tail), region(Z))]
    run(function([X, Y, Z], body), [x, y, z])
    np.testing.assert_array_equal(y, x.view(np.int32).ravel())
    np.testing.assert_array_equal(z, x.ravel()[28:].reshape(2, 2))
    halves = buf("halves", (4, 16), "bfloat16", "shared", alias_of=S)
    H = buf("H", (4, 16), "bfloat16")
    h = np.zeros((4, 16), ml_dtypes.bfloat16)
    run(function([X, H], [ir.Alloc(S), ir.Alloc(halves), *body[1:2], copy(region(halves), region(H))]), [x, h])
    np.testing.assert_array_equal(h.view(np.uint16), x.view(np.uint16))


def test_workspaces_and_several_kernels() -> None:
    X, Y, W = buf("X", (8,)), buf("Y", (8,)), buf("W", (8,))
    i = var("i")
    double = parallel((i,), (8,), store(W, (i,), ir.Binary("add", load(X, i), load(X, i))))
    f = function([X, Y], [double])
    g = function([X, Y], [copy(region(W), region(Y))])
    both = ir.Function("both", f.params, (f.kernels[0], g.kernels[0]), workspaces=(W,))
    x, y = normal(8), np.zeros(8, np.float32)
    assert run(both, [x, y]).blocks == 2
    np.testing.assert_array_equal(y, 2 * x)


# -- arguments ----------------------------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    m = var("m")
    X, Y, k = buf("X", (m, 4)), buf("Y", (m,)), var("k")
    f = function([X, Y, k], [store(Y, (0,), load(X, 0, 0))], symbols=(m,))
    x, y = normal(3, 4), normal(3)
    for args, kind, words in (
        ([x, y], TileTypeError, "takes 3 arguments"),
        ([x, y.astype(np.float64), 1], TileTypeError, "dtype float64"),
        ([x, normal(4), 1], TileTypeError, "size of axis 0 is 4, but expected 3"),
        ([normal(3, 5), y, 1], TileTypeError, "size of axis 1 is 5"),
        ([normal(3, 4, 1), y, 1], TileTypeError, "3 axes, expected 2"),
        ([None, y, 1], TileTypeError, "is None"),
        ([x, y, 1.5], TileTypeError, "expected an integer"),
        ([x, y, 2**40], TileValueError, "does not fit"),
    ):
        with pytest.raises(kind, match=words):
            run(f, args)
    y.flags.writeable = False
    with pytest.raises(TileValueError, match="read-only"):
        run(f, [x, y, 1])


def test_empty_grids_and_extents() -> None:
    m = var("m")
    X, Y = buf("X", (m,)), buf("Y", (m,))
    i = var("i")
    f = function([X, Y], [parallel((i,), (m,), store(Y, (i,), load(X, i)))], (m,), symbols=(m,))
    assert run(f, [normal(0), normal(0)]).blocks == 0


def test_unknown_names_are_internal_errors() -> None:
    Y, ghost = buf("Y", (1,), "int32"), var("ghost")
    with pytest.raises(InternalError, match="ghost is used where nothing defines it"):
        run(function([Y], [store(Y, (0,), ghost)]), [np.zeros(1, np.int32)])


def test_uniform_access_out_of_range() -> None:
    S, Y = buf("S", (4,), "int32", "shared"), buf("Y", (4,), "int32")
    k = var("k")
    y = np.zeros(4, np.int32)
    with pytest.raises(TileIndexError, match=r"S\[4\] is out of range"):
        run(function([Y], [ir.Alloc(S), loop(k, 5, store(S, (k,), k))]), [y])
    run(function([Y], [ir.Alloc(S), loop(k, 5, store(S, (k,), k))]), [y], Options(bounds=False))
    run(function([Y], [loop(k, 9, store(Y, (add(k, -3),), load(Y, add(k, 90))))]), [y])


@pytest.mark.slow
def test_matmul_is_within_ten_times_numpy() -> None:
    """1024^3 float32 in 64x64x32 tiles against np.matmul on one thread, by CPU time of this thread."""
    import time

    from tiledsl.interp.blas import one_thread

    a, b, c = normal(1024, 1024), normal(1024, 1024), np.zeros((1024, 1024), np.float32)
    f = matmul(1024, 1024, 1024, 64, 64, 32)

    def seconds(call: Any) -> float:
        start = time.thread_time()
        call()
        return time.thread_time() - start

    run(f, [a, b, c])
    ratios = []
    for _ in range(5):
        ours = seconds(lambda: run(f, [a, b, c]))
        with one_thread():
            ratios.append(ours / seconds(lambda: a @ b))
    assert sorted(ratios)[2] < 10
