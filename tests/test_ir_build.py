"""Folding: exactly the language's operators, on every type; nothing that can fail is dropped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_builder import buf, const, function, i, load, loop, op, parallel, store, var

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.dtypes import as_dtype
from tiledsl.ir import build as B
from tiledsl.passes import Fold
from tiledsl.passes.fold import fold_expr

INTS = [as_dtype(n) for n in "int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()]
FLOATS = [as_dtype(n) for n in "float16 bfloat16 float32 float64".split()]
INT_OPS = sorted(ir.BINARY_OPS - {"and", "or", "div"})
FLOAT_OPS = ["add", "sub", "mul", "div", "min", "max", *sorted(ir.COMPARISONS)]


def ints(dtype: Any) -> Any:
    low, high = B.int_range(dtype)
    edges = [v for v in (0, 1, 2, 7, 31, 32, 64, -1, -2, low, low + 1, high) if low <= v <= high]
    return st.sampled_from(edges) | st.integers(low, high)


@st.composite
def int_exprs(draw: Any, dtype: Any, variables: list[ir.Var], depth: int) -> ir.Expr:
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(variables)) if draw(st.booleans()) else ir.Const(draw(ints(dtype)), dtype)
    kind = draw(st.integers(0, 7))
    sub = int_exprs(dtype, variables, depth - 1)
    if kind == 0:
        return ir.Unary(draw(st.sampled_from(["neg", "abs", "bitnot"])), draw(sub))
    if kind == 1:
        return ir.Cast(ir.Cast(draw(sub), draw(st.sampled_from([*INTS, ir.BOOL]))), dtype)
    if kind == 2:
        node = draw(st.sampled_from([ir.IfThenElse, ir.Select]))
        return node(draw(conds(dtype, variables, depth - 1)), draw(sub), draw(sub))
    return ir.Binary(draw(st.sampled_from([o for o in INT_OPS if o not in ir.COMPARISONS])), draw(sub), draw(sub))


@st.composite
def conds(draw: Any, dtype: Any, variables: list[ir.Var], depth: int) -> ir.Expr:
    kind = draw(st.integers(0, 3)) if depth else 0
    if kind == 1:
        return ir.Unary("not", draw(conds(dtype, variables, depth - 1)))
    if kind == 2:
        a, b = (draw(conds(dtype, variables, depth - 1)) for _ in range(2))
        return ir.Binary(draw(st.sampled_from(["and", "or"])), a, b)
    if draw(st.integers(0, 5)) == 0:
        return ir.Const(draw(st.booleans()), ir.BOOL)
    a, b = (draw(int_exprs(dtype, variables, depth)) for _ in range(2))
    return ir.Binary(draw(st.sampled_from(sorted(ir.COMPARISONS))), a, b)


@settings(max_examples=300)
@given(st.data())
def test_folding_integers_changes_no_value(data: Any) -> None:
    dtype = data.draw(st.sampled_from(INTS))
    variables = [ir.Var(n, dtype) for n in "ab"]
    e = data.draw(int_exprs(dtype, variables, 4) | conds(dtype, variables, 3))
    folded = fold_expr(e)
    assert folded.dtype is e.dtype and fold_expr(folded) == folded
    for _ in range(3):
        env = {v: data.draw(ints(dtype)) for v in variables}
        assert evaluate(folded, env) == evaluate(e, env)


@settings(max_examples=200)
@given(st.data())
def test_folding_floats_is_the_ieee_operation(data: Any) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    edges = [0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 1e-45, 65504.0, 3e38]
    a, b = (B.const(data.draw(st.sampled_from(edges) | st.floats(width=32)), dtype) for _ in range(2))
    for e in (
        *(ir.Binary(o, a, b) for o in FLOAT_OPS),
        *(ir.Unary(o, a) for o in ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint")),
    ):
        folded = fold_expr(e)
        want = evaluate(e, {})
        if isinstance(folded, ir.Const):
            got = folded.value
            assert type(got) is type(want)
            zeros = got == want == 0 and isinstance(e, ir.Binary) and e.op in ("min", "max")  # -0 is below +0
            assert zeros or np.float64(got).tobytes() == np.float64(want).tobytes() or (got != got and want != want)
        else:
            assert isinstance(e, ir.Binary) and e.op in ("min", "max") and (math.isnan(a.value) or math.isnan(b.value))


def test_signed_zeros_of_min_and_max() -> None:
    plus, minus = const(0.0, "float32"), const(-0.0, "float32")
    assert B.max_(plus, minus) == B.max_(minus, plus) == plus
    assert B.min_(plus, minus) == B.min_(minus, plus) == minus


@pytest.mark.parametrize("dtype", [t.name for t in FLOATS])
def test_identities_leave_floats_alone(dtype: str) -> None:
    x = var("x", dtype)
    for name, value in (("add", 0.0), ("sub", 0.0), ("mul", 1.0), ("mul", 0.0), ("div", 1.0)):
        e = op(name, x, const(value, dtype))
        assert fold_expr(e) is e
    assert fold_expr(op("sub", x, x)) == op("sub", x, x)
    negated = ir.Unary("not", op("lt", x, x))
    assert fold_expr(negated) == negated


def test_casts_of_literals_follow_the_table_of_conversions() -> None:
    for value, dtype, want in (
        (1e9, "int8", 127),
        (-1e9, "uint8", 0),
        (math.nan, "int32", 0),
        (2.7, "int32", 2),
        (1e30, "float16", math.inf),
        (500.0, "float8_e4m3fn", 448.0),
        (0.1, "bfloat16", 0.10009765625),
        (0.5, "bool", True),
    ):
        folded = B.cast(const(value, "float32"), as_dtype(dtype))
        assert isinstance(folded, ir.Const) and folded.value == want and folded.dtype is as_dtype(dtype)
    assert B.cast(const(2**53 + 1, "int64"), as_dtype("float32")) == const(float(2**53), "float32")
    assert B.cast(const(300, "int32"), as_dtype("int8")) == const(44, "int8")


def test_integer_identities() -> None:
    x, p = var("x"), var("p", "bool")
    big = 2**31 - 1
    for e, want in (
        (op("add", x, 0), x),
        (op("add", 0, x), x),
        (op("mul", 1, x), x),
        (op("mul", x, 0), i(0)),
        (op("floordiv", x, 1), x),
        (op("floormod", x, 1), i(0)),
        (op("sub", x, x), i(0)),
        (op("add", op("add", x, 3), 4), op("add", x, 7)),
        (op("sub", op("add", x, 3), 4), op("sub", x, 1)),
        (op("mul", op("mul", x, 3), 4), op("mul", x, 12)),
        (op("add", op("add", x, big), 1), op("add", op("add", x, big), 1)),  # the literals' sum wraps
        (op("and", const(True, "bool"), p), p),
        (op("and", p, const(False, "bool")), const(False, "bool")),
        (op("or", p, const(False, "bool")), p),
        (ir.Unary("not", op("lt", x, 3)), op("ge", x, 3)),
        (ir.Cast(ir.Cast(x, as_dtype("int64")), as_dtype("int32")), x),
        (op("floordiv", x, 0), op("floordiv", x, 0)),  # reported in checked mode
        (op("floordiv", i(5), 0), op("floordiv", i(5), 0)),
    ):
        assert fold_expr(e) == want
    narrowed = ir.Cast(ir.Cast(x, as_dtype("int8")), as_dtype("int32"))
    assert fold_expr(narrowed) == narrowed


def test_nothing_that_can_fail_is_dropped() -> None:
    S, p = buf("S", (4,), "int32", "shared"), var("p", "bool")
    read = load(S, 9)
    for e in (
        op("mul", read, 0),
        op("floormod", read, 1),
        op("sub", read, read),
        op("and", op("lt", read, 1), const(False, "bool")),
        ir.Select(const(True, "bool"), i(1), read),
        op("mul", op("floordiv", var("x"), var("y")), 0),
    ):
        assert fold_expr(e) == e
    assert fold_expr(ir.IfThenElse(const(True, "bool"), i(1), read)) == i(1)  # never evaluated
    assert fold_expr(op("and", const(False, "bool"), op("lt", read, 1))) == const(False, "bool")
    kept = ir.If(op("lt", read, 1), ())
    f = function([p], [kept, ir.If(p, ())])
    assert Fold()(f).kernels[0].body == (kept,)


def test_dead_statements() -> None:
    A, n, true = buf("A", (4,)), var("n"), const(True, "bool")
    s, t = (store(A, (k,), const(1.0, "float32")) for k in (0, 1))
    body = [
        ir.If(op("lt", 1, 2), (s,), (t,)),
        ir.If(op("lt", 2, 1), (s,), (t,)),
        loop(var("k"), 0, s),
        loop(var("k"), 3, s, start=5),
        loop(var("k"), 5, s, start=3, step=-1),
        ir.While(const(False, "bool"), (s,)),
        parallel((var("p"),), (0,), s),
        ir.Debug("assert", (true,)),
    ]
    assert Fold()(function([A], body)).kernels[0].body == (s, t)
    live = [loop(var("k"), n, s), loop(var("k"), 5, s, start=3), loop(var("k"), 3, s, start=5, step=-1)]
    f = function([A, n], live)
    assert Fold()(f) is f


def test_operands_take_each_others_type() -> None:
    x, y = var("x", "int64"), var("y")
    assert B.add(x, 1) == op("add", x, const(1, "int64"))
    assert B.lt(y, x) == op("lt", ir.Cast(y, as_dtype("int64")), x)
    assert B.lt(x, i(5)) == op("lt", x, const(5, "int64"))
    assert B.lt(y, const(2**40, "int64")) == op("lt", ir.Cast(y, as_dtype("int64")), const(2**40, "int64"))
    assert B.ceildiv(y, 64) == op("floordiv", op("add", y, 63), 64)
    assert B.all_of([]) == B.TRUE
    with pytest.raises(TypeError):
        B.add(1, 2)
