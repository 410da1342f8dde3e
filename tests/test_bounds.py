"""Bounds: what is proved is true for every value (by enumeration), and what kernels need is proved."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledsl import ir
from tiledsl.analysis.bounds import SYMBOL_MAX, Facts, kernel_facts, prove
from tiledsl.analysis.evaluate import evaluate
from tiledsl.dtypes import as_dtype
from tiledsl.ir import build as B
from tiledsl.ir.build import TRUE, add, ceildiv, const, eq, floordiv, floormod, ge, le, lt, max_, min_, mul, ne, sub

I32, I64, I8, U8 = (as_dtype(n) for n in ("int32", "int64", "int8", "uint8"))


def v(name: str, dtype: Any = I32) -> ir.Var:
    return ir.Var(name, dtype)


def c(value: int) -> ir.Const:
    return const(value, I32)


# -- soundness: enumeration -------------------------------------------------------------------------------

_OPS = [
    "add",
    "sub",
    "mul",
    "floordiv",
    "floormod",
    "truncdiv",
    "truncmod",
    "min",
    "max",
    "shl",
    "shr",
    "bitand",
    "bitor",
]


@st.composite
def _expr(draw: Any, variables: list[ir.Var], depth: int) -> ir.Expr:
    dtype = variables[0].type
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        if draw(st.booleans()):
            return draw(st.sampled_from(variables))
        low, high = B.int_range(dtype)
        return const(draw(st.sampled_from([0, 1, 2, 3, 7, 8, 16, -1, low, high]) | st.integers(low, high)), dtype)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return ir.Unary(draw(st.sampled_from(["neg", "abs", "bitnot"])), draw(_expr(variables, depth - 1)))
    if kind == 1:
        node = draw(st.sampled_from([ir.IfThenElse, ir.Select]))
        return node(
            draw(_cond(variables, depth - 1)), draw(_expr(variables, depth - 1)), draw(_expr(variables, depth - 1))
        )
    if kind == 2:
        wide = as_dtype(draw(st.sampled_from(["int8", "uint8", "int16"])))
        return ir.Cast(ir.Cast(draw(_expr(variables, depth - 1)), wide), dtype)
    a, b = draw(_expr(variables, depth - 1)), draw(_expr(variables, depth - 1))
    return ir.Binary(draw(st.sampled_from(_OPS)), a, b)


@st.composite
def _cond(draw: Any, variables: list[ir.Var], depth: int) -> ir.Expr:
    kind = draw(st.integers(0, 6)) if depth else 6
    if kind == 0:
        return ir.Unary("not", draw(_cond(variables, depth - 1)))
    if kind in (1, 2):
        a, b = draw(_cond(variables, depth - 1)), draw(_cond(variables, depth - 1))
        return ir.Binary(draw(st.sampled_from(["and", "or"])), a, b)
    op = draw(st.sampled_from(sorted(ir.COMPARISONS)))
    return ir.Binary(op, draw(_expr(variables, depth)), draw(_expr(variables, depth)))


@settings(max_examples=150)
@given(st.data())
def test_what_is_proved_holds_for_every_value(data: Any) -> None:
    dtype = data.draw(st.sampled_from([I8, U8, I32]))
    variables = [v(n, dtype) for n in "abc"]
    low, high = B.int_range(dtype)
    facts, ranges = Facts(), []
    for x in variables:
        first = data.draw(st.integers(max(low, -9), 9) | st.sampled_from([low, high - 4]))
        last = min(high, first + data.draw(st.integers(0, 4)))
        facts.bound(x, first, last)
        ranges.append(range(first, last + 1))
    known = data.draw(st.lists(_cond(variables, 1), max_size=3))
    if data.draw(st.booleans()):
        n = const(data.draw(st.integers(2, 4)), dtype)
        known.append(eq(floormod(data.draw(st.sampled_from(variables)), n), 0))
    let, value = v("let", dtype), data.draw(_expr(variables, 2))
    facts.let(let, value)
    for k in known:
        facts.assume(k)
    goal, e = data.draw(_cond([*variables, let], 2)), data.draw(_expr([*variables, let], 3))
    proved, interval = prove(goal, facts), facts.interval(e)
    fits, step = facts.fits(e), facts.stride(e, variables[0])
    for values in itertools.product(*ranges):
        env = dict(zip(variables, values, strict=True))
        env[let] = evaluate(value, env)
        if not all(evaluate(k, env) for k in known):
            continue
        assert not proved or evaluate(goal, env)
        got = evaluate(e, env)
        assert interval[0] <= got <= interval[1]
        if fits:
            assert _unbounded(e, env) == got
        if step is not None and values[0] + 1 in ranges[0]:
            after = {**env, variables[0]: values[0] + 1}
            after[let] = evaluate(value, after)
            if all(evaluate(k, after) for k in known):
                assert evaluate(e, after) - got == step


def _unbounded(e: ir.Expr, env: dict[ir.Var, int]) -> int:
    """The value in Python's integers."""
    if isinstance(e, ir.Cast):
        return _unbounded(e.x, env)
    if isinstance(e, (ir.IfThenElse, ir.Select)):
        return _unbounded(e.t if evaluate(e.cond, env) else e.f, env)
    if isinstance(e, ir.Unary):
        x = _unbounded(e.x, env)
        return {"neg": -x, "abs": abs(x), "bitnot": ~x}[e.op]
    if isinstance(e, ir.Binary):
        a, b = _unbounded(e.a, env), _unbounded(e.b, env)
        if e.op in ("add", "sub", "mul"):
            return {"add": a + b, "sub": a - b, "mul": a * b}[e.op]
        if e.op == "shl":
            return a << b if 0 <= b < e.dtype.bits else 0
        wide = as_dtype("int64")
        return int(evaluate(ir.Binary(e.op, const(a, wide), const(b, wide)), {})) if e.op != "shr" else evaluate(e, env)
    return int(evaluate(e, env))


# -- completeness: what kernels need ---------------------------------------------------------------------------

M, N, K = v("M"), v("N"), v("K")
bx, by, i, j, k = (v(n) for n in ("bx", "by", "i", "j", "k"))
row, col = add(mul(bx, 64), i), add(mul(k, 32), j)


@pytest.fixture
def facts() -> Facts:
    kernel = ir.Kernel("main", (ceildiv(M, 64), ceildiv(N, 32)), (c(128),), (bx, by), (v("tx"),), ())
    found = kernel_facts(ir.Function("f", (), (kernel,), (M, N, K)), kernel)
    found.bind(i, c(0), c(64))
    found.bind(k, c(0), ceildiv(K, 32))
    found.bind(j, c(0), c(32))
    return found


PROVED = {
    "rounded up": lt(row, mul(ceildiv(M, 64), 64)),
    "not negative": ge(row, 0),
    "a tile starts inside": lt(mul(bx, 64), M),
    "a K tile starts inside": lt(mul(k, 32), K),
    "blocks mean rows": ge(M, 1),
    "clamped": lt(min_(row, sub(M, 1)), M),
    "clamped below": ge(min_(row, sub(M, 1)), 0),
    "max with 0": ge(max_(sub(row, 5), 0), 0),
    "chosen": lt(ir.IfThenElse(lt(row, M), row, c(0)), M),
    "chosen, negative otherwise": lt(ir.IfThenElse(lt(row, M), row, c(-1)), M),
    "chosen eagerly": lt(ir.Select(lt(row, M), row, c(0)), M),
    "modulus": lt(floormod(row, 48), 48),
    "modulus below": ge(floormod(row, 48), 0),
    "quotient and remainder": eq(add(mul(floordiv(row, 48), 48), floormod(row, 48)), row),
    "flattened and taken apart": eq(floordiv(add(mul(i, 32), j), 32), i),
    "flattened remainder": eq(floormod(add(mul(i, 32), j), 32), j),
    "masked": lt(ir.Binary("bitand", row, c(31)), 32),
    "shifted": eq(ir.Binary("shr", row, c(6)), bx),
    "truncated like floored": eq(ir.Binary("truncdiv", row, c(64)), bx),
    "wider": lt(ir.Cast(row, I64), const(2**31, I64)),
    "case by case": B.or_(lt(i, 32), ge(i, 32)),
    "and then": B.and_(lt(i, 64), lt(mul(i, 2), 127)),
    "unlike": ne(add(i, 1), 0),
    "not": B.unary("not", ir.Binary("and", lt(i, 0), lt(row, M))),
}
UNKNOWN = {
    "tail row": lt(row, M),
    "tail column": lt(col, K),
    "wrong tile": lt(mul(add(bx, 1), 64), M),
    "last row": lt(add(row, 1), mul(ceildiv(M, 64), 64)),
    "product of symbols": ge(mul(M, N), 0),
    "chosen wrongly": ge(ir.IfThenElse(lt(row, M), row, c(-1)), 0),
    "float": ir.Binary("lt", ir.Cast(i, as_dtype("float32")), const(64.0, as_dtype("float32"))),
}


@pytest.mark.parametrize("name", PROVED)
def test_proved(name: str, facts: Facts) -> None:
    assert prove(PROVED[name], facts)


@pytest.mark.parametrize("name", UNKNOWN)
def test_not_proved(name: str, facts: Facts) -> None:
    assert not prove(UNKNOWN[name], facts)


def test_conditions_lets_and_scopes(facts: Facts) -> None:
    inner = facts.child()
    inner.assume(lt(row, M))
    assert inner.prove(lt(row, M)) and inner.prove(lt(floordiv(row, 2), M)) and inner.prove(le(add(row, 1), M))
    assert not inner.prove(lt(add(row, 1), M))
    assert not facts.prove(lt(row, M))
    x, ok = v("x"), v("ok", ir.BOOL)
    inner.let(x, add(row, 3))
    assert inner.prove(lt(x, add(M, 3))) and inner.stride(x, i) == 1 and inner.stride(x, bx) == 64
    assert inner.stride(mul(x, 4), bx) is None  # four times the rows may wrap
    facts.let(ok, B.and_(lt(row, M), ge(col, 5)))
    facts.assume(ok)
    assert facts.prove(lt(row, M)) and facts.prove(ge(add(mul(k, 32), j), 5)) and facts.prove(ok)


def test_a_negated_disjunction_is_two_facts() -> None:
    f = Facts()
    f.assume(B.or_(lt(i, 0), ge(i, M)), holds=False)
    assert f.prove(B.and_(ge(i, 0), lt(i, M)))


def test_memory_is_not_remembered() -> None:
    A = ir.Buffer("A", I32, (c(4),), "shared")
    read = ir.Load(A, (c(0),))
    f = Facts()
    f.assume(lt(read, 4))
    assert not f.prove(lt(read, 4)) and not f.prove(eq(read, read))
    x = v("x")
    f.let(x, min_(read, 3))
    f.assume(ge(x, 0))
    assert f.prove(le(x, 3)) and f.prove(ge(x, 0)) and not f.prove(lt(read, 4))


def test_strides_see_through_lets_and_loop_starts() -> None:
    f = Facts()
    x, y, n = v("x", as_dtype("float32")), v("y"), v("n")
    f.let(x, ir.Cast(i, x.type))
    f.let(y, ir.Cast(x, I32))
    assert f.stride(y, i) is None and f.stride(y, j) == 0
    f.bind(n, i, c(9))
    assert f.stride(n, i) is None and f.stride(n, n) == 1 and f.stride(n, j) == 0


def test_loops_with_steps() -> None:
    f = Facts()
    f.bind(k, c(0), c(500), c(32))
    assert f.prove(lt(add(k, 11), 500)) and not f.prove(lt(add(k, 31), 500)) and f.multiple(k, 32)
    assert f.interval(k) == (0, 480)
    down = v("down")
    f.bound(M, 0, SYMBOL_MAX[32])
    f.bind(down, sub(M, 1), c(-1), c(-1))
    assert f.prove(ge(down, 0)) and f.prove(lt(down, M))
    f.bind(x := v("x"), c(0), c(10), v("step"))
    assert not f.prove(ge(x, 0))


def test_wrapping_is_seen(facts: Facts) -> None:
    assert facts.fits(row) and facts.fits(mul(ceildiv(M, 64), 64))
    n = v("n")
    assert not facts.fits(add(n, 1)) and facts.interval(add(n, 1)) == B.int_range(I32)
    assert not facts.prove(lt(n, add(n, 1)))
    assert not facts.fits(mul(M, N))
    facts.assume(lt(n, 1000))
    assert facts.prove(lt(n, add(n, 1)))
    assert facts.interval(M)[1] == SYMBOL_MAX[32]


def test_unsigned_differences_may_wrap() -> None:
    a, b = v("a", U8), v("b", U8)
    f = Facts()
    assert not f.prove(le(sub(a, b), a))
    f.assume(le(b, a))
    assert f.prove(le(sub(a, b), a)) and f.fits(sub(a, b))


def test_divisibility_assumed() -> None:
    kernel = ir.Kernel("main", (), (), (), (), ())
    f = kernel_facts(ir.Function("f", (), (kernel,), (K,)), kernel)
    f.bind(k, c(0), ceildiv(K, 32))
    f.assume(eq(floormod(K, 32), 0))
    f.bind(j, c(0), c(32))
    assert f.prove(lt(col, K)) and f.multiple(K, 16) and f.prove(ge(K, 32)) and f.prove(TRUE)
