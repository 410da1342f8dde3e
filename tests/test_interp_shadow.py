"""The float64 shadow: its values are the float64 computation, and no output is farther from them than its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ir_builder import buf, const, copy, function, load, loop, matmul, op, parallel, reduce, region, store, var

import tiledsl.language as T
from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.interp import Options, ShadowReport, run
from tiledsl.ir.math import EXPANSIONS

RNG = np.random.default_rng(5)
F32, F16, F64 = as_dtype("float32"), as_dtype("float16"), as_dtype("float64")
i, j, k = var("i"), var("j"), var("k")
SHADOW = Options(shadow=True)


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def f32(v: float) -> ir.Const:
    return const(v, "float32")


def holds(report: ShadowReport, out: np.ndarray[Any, Any]) -> None:
    """The output lies within its bound, and the bound is not a formality."""
    error = np.abs(out.astype(np.float64) - report.value)
    assert (error <= report.bound).all()
    assert report.max_error == error.max() and report.max_bound == report.bound.max()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("dtype", "out"), [("float32", "float32"), ("float16", "bfloat16"), ("bfloat16", "float16")])
def test_matmul(dtype: str, out: str, exact: bool) -> None:
    a, b = floats(70, 95, dtype=as_dtype(dtype).numpy), floats(95, 45, dtype=as_dtype(dtype).numpy)
    c = np.zeros((70, 45), as_dtype(out).numpy)
    plain = c.copy()
    report = run(matmul(70, 45, 95, 32, 16, 24, dtype, out), [a, b, c], Options(shadow=True, exact=exact)).shadow["C"]
    run(matmul(70, 45, 95, 32, 16, 24, dtype, out), [a, b, plain], Options(exact=exact))
    np.testing.assert_array_equal(c, plain)
    wide = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(report.value, wide, atol=1e-12)
    holds(report, c)
    unit = 2.0**-24 if out == "float32" else {"float16": 2.0**-11, "bfloat16": 2.0**-8}[out]
    scale = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    assert (report.bound <= 1.01 * unit * np.abs(wide) + 400 * 2.0**-24 * scale).all()


@T.prim_func
def softmax(X: T.Tensor((37, 50), T.float32), Y: T.Tensor((37, 50), T.bfloat16)):  # type: ignore[no-untyped-def, valid-type]
    with T.Kernel(T.ceildiv(37, 16)) as b:
        x = T.alloc_fragment((16, 50), T.float32)
        top = T.alloc_fragment((16,), T.float32)
        total = T.alloc_fragment((16,), T.float32)
        T.copy(X[b * 16, 0], x)
        T.reduce_max(x, top, dim=1)
        for r, c in T.Parallel(16, 50):
            x[r, c] = T.exp(x[r, c] - top[r])
        T.reduce_sum(x, total, dim=1)
        for r, c in T.Parallel(16, 50):
            x[r, c] = x[r, c] / total[r]
        T.copy(x, Y[b * 16, 0])


def test_softmax_through_the_frontend() -> None:
    x, y = 5 * floats(37, 50), np.zeros((37, 50), as_dtype("bfloat16").numpy)
    result = run(softmax.function, [x, y], SHADOW)
    report = result.shadow["Y"]
    assert set(result.shadow) == {"Y"} and result.doubtful == 0
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(report.value, e / e.sum(1, keepdims=True), rtol=1e-12)
    holds(report, y)
    assert report.max_bound < 2 * 2.0**-8


def elementwise(
    value: Any, *columns: np.ndarray[Any, Any], out: str = "float32"
) -> tuple[ShadowReport, np.ndarray[Any, Any]]:
    n = len(columns[0])
    params = [buf(f"X{c}", (n,), as_dtype(x.dtype).name) for c, x in enumerate(columns)]
    Y = buf("Y", (n,), out)
    y = np.zeros(n, as_dtype(out).numpy)
    body = parallel((i,), (n,), store(Y, (i,), value(*(load(p, i) for p in params))))
    report = run(function([*params, Y], [body]), [*columns, y], SHADOW).shadow["Y"]
    holds(report, y)
    return report, y


def test_operators_and_functions() -> None:
    x, y = floats(500), floats(500)
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    b = lambda name: lambda p, q: ir.Binary(name, p, q)
    cases: list[tuple[Any, Any]] = [
        (b("add"), wide_x + wide_y), (b("sub"), wide_x - wide_y), (b("mul"), wide_x * wide_y),
        (b("div"), wide_x / wide_y), (b("max"), np.maximum(wide_x, wide_y)), (b("min"), np.minimum(wide_x, wide_y)),
        (lambda p, q: ir.Fma(p, q, p), wide_x * wide_y + wide_x), (lambda p, q: ir.Unary("neg", p), -wide_x),
        (lambda p, q: ir.Unary("sqrt", ir.Unary("abs", p)), np.sqrt(np.abs(wide_x))),
        (lambda p, q: ir.Call("exp2", (ir.Binary("mul", p, q),), F32), np.exp2(wide_x * wide_y)),
        (lambda p, q: ir.Call("exp", (ir.Binary("mul", p, q),), F32), np.exp(wide_x * wide_y)),
        (lambda p, q: ir.Call("log", (ir.Binary("mul", p, p),), F32), np.log(wide_x**2)),
        (lambda p, q: ir.Call("rsqrt", (ir.Binary("mul", p, p),), F32), 1 / np.abs(wide_x)),
        (lambda p, q: ir.Cast(ir.Cast(ir.Binary("add", p, q), F16), F32), wide_x + wide_y),
        (lambda p, q: ir.Binary("sub", ir.Binary("add", p, f32(1e6)), f32(1e6)), wide_x),
    ]  # fmt: skip
    for value, want in cases:
        report, _ = elementwise(value, x, y)
        np.testing.assert_allclose(report.value, want, rtol=1e-9, atol=1e-9)
    # the last case cancels: the bound knows that half of 1e6's last place is gone
    assert 0.03 < report.max_bound < 0.1 and report.max_error > 0.02


def test_every_function_has_a_shadow() -> None:
    rng = np.random.default_rng(6)
    positive = ("log", "log2", "log10", "log1p", "rsqrt", "pow", "acosh")
    for name, expansion in EXPANSIONS.items():
        x, y = (rng.uniform(-0.9, 0.9, 50).astype(np.float32) for _ in range(2))
        x = np.abs(x) + np.float32(1.0) if name in positive else x
        y = np.full_like(y, 3.0) if name in ("ldexp", "scalb") else y
        two = len(expansion.params) == 2
        once = lambda *given: ir.Call(name, given, F32)  # noqa: B023
        exact, out = elementwise(once, *((x, y) if two else (x,)))
        assert exact.max_error < 1e-6 * max(1.0, float(np.abs(out).max())), name
        elementwise(lambda p, *q: once(ir.Binary("mul", p, f32(0.99999)), *q), *((x, y) if two else (x,)))  # noqa: B023


def test_doubtful_choices_cover_either_side() -> None:
    x = np.array([1.0, 0.3, 2.0], np.float32)
    third = lambda p: ir.Binary("mul", ir.Binary("div", p, f32(3.0)), f32(3.0))
    choose = lambda p: ir.Select(ir.Binary("lt", third(p), p), f32(10.0), f32(-5.0))
    report, _ = elementwise(choose, x)
    assert (report.bound >= 15).all()
    sure, _ = elementwise(lambda p: ir.Select(ir.Binary("lt", third(p), f32(0.5)), third(p), f32(-5.0)), x)
    assert sure.max_bound < 1e-6
    both = lambda p: ir.Select(
        ir.Binary("lt", third(p), p), ir.Binary("mul", p, f32(1.5)), ir.Binary("mul", p, f32(-5.0))
    )
    report, _ = elementwise(both, x)
    assert (report.bound >= 6.5 * x * 0.999).all()


def test_doubtful_masks_of_stores() -> None:
    n = 6
    X, Y = buf("X", (n,)), buf("Y", (n,))
    third = ir.Binary("mul", ir.Binary("div", load(X, i), f32(3.0)), f32(3.0))
    body = parallel((i,), (n,), ir.If(ir.Binary("lt", third, load(X, i)), (store(Y, (i,), f32(8.0)),)))
    x, y = floats(n), np.zeros(n, np.float32)
    report = run(function([X, Y], [body]), [x, y], SHADOW).shadow["Y"]
    assert (report.bound == 8).all()
    near = ir.Binary("lt", ir.Binary("mul", ir.Binary("div", load(X, 0), f32(3.0)), f32(3.0)), load(X, 0))
    uniform = [ir.If(near, (store(Y, (0,), f32(1.0)),))]
    assert run(function([X, Y], uniform), [x, y], SHADOW).doubtful == 1
    clear = [ir.If(ir.Binary("lt", load(X, 0), f32(100.0)), (store(Y, (0,), f32(1.0)),))]
    assert run(function([X, Y], clear), [x, y], SHADOW).doubtful == 0


def test_storage_of_all_kinds_carries_the_shadow() -> None:
    X, Y, Z = buf("X", (8, 12)), buf("Y", (8, 12)), buf("Z", (8,))
    S, D = buf("S", (8, 12), "float16", "shared"), buf("D", (8,), scope="fragment")
    flat = buf("flat", (96,), "float16", "shared", alias_of=S)
    a, v = buf("a", (3,), scope="local"), buf("v", (1,), scope="var")
    third, row_major = ir.Binary("div", load(X, i, j), f32(3.0)), op("add", op("mul", i, 12), j)
    body = [
        ir.Alloc(S), ir.Alloc(D), ir.Alloc(v, f32(0.0)),
        parallel((i, j), (8, 12), store(S, (i, j), ir.Cast(third, F16))),
        parallel(
            (i, j), (8, 12), ir.Alloc(a), loop(k, 3, store(a, (k,), ir.Cast(load(flat, row_major), F32))),
            store(Y, (i, op("sub", 11, j)), load(a, op("floormod", j, 3))),
        ),
        reduce("sum", Y, D, 1),
        ir.Scan("sum", region(D), region(D), 0),
        reduce("absmax", Y, Z, 1), reduce("max", Y, Z, 1, clear=False),
        store(v, (0,), ir.Binary("add", load(v, 0), load(D, 7))),
        parallel((i,), (8,), store(Z, (i,), ir.Binary("add", load(Z, i), load(v, 0)))),
        parallel((i,), (8,), ir.Atomic("add", Z, (const(0, "int32"),), load(D, i))),
    ]  # fmt: skip
    x, y, z = floats(8, 12), np.zeros((8, 12), np.float32), np.zeros(8, np.float32)
    result = run(function([X, Y, Z], body), [x, y, z], SHADOW)
    holds(result.shadow["Y"], y)
    holds(result.shadow["Z"], z)
    third_x = x.astype(np.float64)[:, ::-1] / 3
    np.testing.assert_allclose(result.shadow["Y"].value, third_x)
    sums = np.cumsum(third_x.sum(1))
    want = np.abs(third_x).max(1) + sums[-1]
    want[0] += sums.sum()
    np.testing.assert_allclose(result.shadow["Z"].value, want)
    assert result.shadow["Y"].max_bound > 2.0**-13  # float16 was on the way


def test_loop_stage_micro_kernels_and_vectors() -> None:
    A, B, C = buf("A", (5, 7)), buf("B", (1, 7, 16)), buf("C", (5, 16))
    sizes = tuple(const(n, "int64") for n in (5, 16, 7))
    call = ir.MicroCall("gemm", (region(C),), (region(A), region(B)), sizes, (("NR", 16),))
    zero = const(0, "int32")
    total = ir.Call("hreduce_add", (ir.Binary("mul", load(C, 0, zero, lanes=16), load(C, 1, zero, lanes=16)),), F32)
    for exact in (False, True):
        a, b, c = floats(5, 7), floats(1, 7, 16), np.zeros((5, 16), np.float32)
        plain = c.copy()
        f = function([A, B, C], [call, store(C, (2, 0), total)], stage="loop")
        report = run(f, [a, b, c], Options(shadow=True, exact=exact)).shadow["C"]
        run(f, [a, b, plain], Options(exact=exact))
        np.testing.assert_array_equal(c, plain)
        want = a.astype(np.float64) @ b[0]
        want[2, 0] = (want[0] * want[1]).sum()
        np.testing.assert_allclose(report.value, want)
        holds(report, c)


def test_inputs_are_not_reported_and_infinities_are_exact() -> None:
    X, Y = buf("X", (4,)), buf("Y", (4,))
    x, y = np.array([1, np.inf, -np.inf, np.nan], np.float32), np.zeros(4, np.float32)
    result = run(function([X, Y], [copy(region(X), region(Y))]), [x, y], SHADOW)
    assert list(result.shadow) == ["Y"] and result.shadow["Y"].max_error == 0 and result.shadow["Y"].max_bound == 0
    assert not run(function([X, Y], [copy(region(X), region(Y))]), [x, y]).shadow
