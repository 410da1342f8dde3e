"""Binding symbols from shapes and strides, and evaluating scalar expressions on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from ir_builder import I32, add, buf, const, function, load, mul, op, read_text, var

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.symbols import row_major, solve
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError, TileTypeError, TileValueError
from tiledsl.ir import arithmetic as ops
from tiledsl.ir.expr import Var
from tiledsl.ir.printer import to_text

m, n = var("m"), var("n")


def solved(shapes: list[Any], *buffers: ir.Buffer, symbols: tuple[Var, ...] = (m, n), **kw: Any) -> dict[str, int]:
    strides = kw.pop("strides", [None] * len(shapes))
    found = solve(function(list(buffers), [], symbols=symbols), shapes, strides, **kw)
    return {v.name: value for v, value in found.items()}


def test_shapes_bind_and_check() -> None:
    X, Y = buf("X", (m, n)), buf("Y", (n, m, 3))
    assert solved([(5, 7), (7, 5, 3)], X, Y) == {"m": 5, "n": 7}
    with pytest.raises(TileTypeError, match="argument Y: size of axis 1 is 6, but expected 5") as e:
        solved([(5, 7), (7, 6, 3)], X, Y)
    assert "m = 5" in str(e.value)
    with pytest.raises(TileTypeError, match="argument Y has 2 axes, expected 3"):
        solved([(5, 7), (7, 5)], X, Y)


def test_linear_expressions_are_solved() -> None:
    X, Y = buf("X", (add(mul(m, 2), 1),)), buf("Y", (add(m, n),))
    assert solved([(9,), (10,)], X, Y) == {"m": 4, "n": 6}
    assert solved([(10,), (9,)], Y, X) == {"m": 4, "n": 6}
    with pytest.raises(TileTypeError, match="no integer m gives that size"):
        solved([(8,), (10,)], X, Y)
    with pytest.raises(TileTypeError, match="size of axis 0 is 3, but expected 2"):
        solved([(4,), (3,)], buf("A", (m,)), buf("B", (op("floordiv", m, 2),)), symbols=(m,))


def test_strides_bind_after_shapes() -> None:
    s, t = var("s", "int64"), var("t", "int64")
    X = ir.Buffer("X", as_dtype("float32"), (m, n), "global", (s, const(1, "int64")))
    assert solved([(3, 4)], X, symbols=(m, n, s), strides=[(10, 1)]) == {"m": 3, "n": 4, "s": 10}
    assert solved([(3, 4)], X, symbols=(m, n, s)) == {"m": 3, "n": 4, "s": 4}
    with pytest.raises(TileTypeError, match="stride of axis 1 is 2, but expected 1"):
        solved([(3, 4)], X, symbols=(m, n, s), strides=[(10, 2)])
    assert solved([(3, 1)], X, symbols=(m, n, s), strides=[(10, 77)])["s"] == 10
    tied = ir.Buffer("Z", as_dtype("float32"), (m, n), "global", (n, t))
    assert solved([(3, 4)], tied, symbols=(m, n, t), strides=[(4, 9)])["t"] == 9
    with pytest.raises(TileTypeError, match="stride of axis 0"):
        solved([(3, 4)], tied, symbols=(m, n, t), strides=[(5, 9)])


def test_contiguity_is_checked_where_strides_are_given() -> None:
    X = buf("X", (m, n))
    assert solved([(3, 4)], X, strides=[(4, 1)]) == {"m": 3, "n": 4}
    assert solved([(1, 4)], X, strides=[(99, 1)]) == {"m": 1, "n": 4}
    assert solved([(0, 4)], X, strides=[(9, 9)]) == {"m": 0, "n": 4}
    with pytest.raises(TileTypeError, match="must be contiguous"):
        solved([(3, 4)], X, strides=[(1, 3)])
    with pytest.raises(TileTypeError, match="negative stride"):
        solved([(3, 4)], X, strides=[(-4, 1)])
    assert row_major((2, 3, 4)) == (12, 4, 1)


def test_undetermined_and_too_large() -> None:
    X, Y = buf("X", (m,)), buf("Y", (n,))
    assert solved([(3,), None], X, Y) == {"m": 3, "n": 0}  # nothing depends on n
    used = function([X, Y], [], grid=(n,), symbols=(m, n))
    with pytest.raises(TileValueError, match="the value of n does not follow") as e:
        solve(used, [(3,), None], [None, None])
    assert "None: Y" in str(e.value)
    with pytest.raises(TileValueError, match="does not fit int32") as e:
        solved([(2**31,)], X, symbols=(m,))
    assert 'T.dynamic("m", "int64")' in str(e.value)
    wide = var("w", "int64")
    assert solved([(2**31,)], buf("X", (wide,)), symbols=(wide,)) == {"w": 2**31}
    with pytest.raises(TileValueError, match="cannot be negative"):
        solved([(3,)], buf("X", (add(m, 5),)), symbols=(m,))
    assert solved([(6,)], buf("X", (add(m, n),)), symbols=(m,), known={n: 2}) == {"m": 4}


def test_evaluate_agrees_with_the_interpreter_and_python() -> None:
    for a, b in itertools.product([-7, 0, 3, 2**31 - 1], [-2, 0, 5, 40]):
        for name in ("add", "mul", "floordiv", "floormod", "truncdiv", "shl", "shr", "max", "lt", "bitxor"):
            function2 = ops.binary(name, as_dtype("int32"), False)
            assert function2 is not None
            assert evaluate(op(name, m, n), {m: a, n: b}) == function2(a, b)
    ceildiv = op("floordiv", op("sub", add(m, n), 1), n)
    assert evaluate(ceildiv, {m: 100, n: 32}) == 4
    assert evaluate(ir.Binary("and", op("gt", m, 0), op("gt", op("floordiv", 1, m), 5)), {m: 0}) is False
    assert evaluate(ir.IfThenElse(op("gt", m, 2), m, n), {m: 1, n: 9}) == 9
    assert evaluate(ir.Cast(m, as_dtype("int8")), {m: 300}) == 44
    third = ir.Binary("div", const(1.0, "float32"), const(3.0, "float32"))
    assert evaluate(third, {}) == 0.3333333432674408
    assert evaluate(ir.Unary("neg", m), {m: -(2**31)}) == -(2**31)


S = var("s")
X, Y, FLAT = buf("X", (m, n)), buf("Y", (m, n, 3)), buf("X", (m,))
ROWS = ir.Buffer("X", as_dtype("float32"), (m, n), "global", (S, const(1, "int32")))
HALF = ir.Cast(ir.Call("exp2", (const(0.5, "float32"),), as_dtype("float32")), I32)

# name -> (buffers, symbols, shapes, strides); what the arguments of a call can say that no kernel can take
REFUSED: dict[str, tuple[list[ir.Buffer], tuple[Var, ...], list[Any], list[Any] | None]] = {
    "rank": ([X, Y], (m, n), [(5, 7), (5, 7)], None),
    "size": ([X, Y], (m, n), [(5, 7), (5, 8, 3)], None),
    "no_solution": ([buf("X", (mul(m, 2),))], (m,), [(7,)], None),
    "stride": ([ROWS], (m, n, S), [(3, 4)], [(10, 2)]),
    "negative_stride": ([X], (m, n), [(3, 4)], [(-4, 1)]),
    "not_contiguous": ([X], (m, n), [(3, 4)], [(1, 3)]),
    "undetermined": ([buf("X", (add(m, n),)), buf("Y", (n,))], (m, n), [(3,), None], None),
    "too_large": ([FLAT], (m,), [(2**31,)], None),
    "negative_extent": ([buf("X", (add(m, 5),))], (m,), [(3,)], None),
    "late_function": ([buf("X", (add(m, HALF),))], (m,), [(3,)], None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_show_the_parameter(name: str, golden: Callable[[str, str], None]) -> None:
    buffers, symbols, shapes, strides = REFUSED[name]
    f = read_text(to_text(function(buffers, [], symbols=symbols)))
    with pytest.raises(TileError) as caught:
        solve(f, shapes, strides or [None] * len(shapes))
    golden(f"errors/symbols_{name}", f"{type(caught.value).__name__}: {caught.value}")


def test_what_has_no_value_on_the_host(golden: Callable[[str, str], None]) -> None:
    grid = (ir.Cast(load(FLAT, m), I32), m)
    f = read_text(to_text(function([FLAT], [], grid, symbols=(m,))))
    for name, extent in zip(("load", "name"), f.kernels[0].grid, strict=True):
        with pytest.raises(TileTypeError, match="has no value before the kernel runs") as caught:
            evaluate(extent, {f.symbols[0]: 1} if name == "load" else {})
        golden(f"errors/host_{name}", f"TileTypeError: {caught.value}")
