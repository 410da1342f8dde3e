"""Printed IR: every node, dtype and odd name survives printing and reading; the text is data, never executed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ir_builder import (
    buf,
    const,
    copy,
    fill,
    function,
    gemm,
    i,
    load,
    loop,
    matmul,
    op,
    parallel,
    read_text,
    reduce,
    region,
    store,
    var,
)

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError, TileNameError, TileSyntaxError, TileTypeError
from tiledsl.frontend.reader import from_text
from tiledsl.ir.equal import equal
from tiledsl.ir.fingerprint import fingerprint
from tiledsl.ir.printer import to_text

Golden = Callable[[str, str], None]
F32, F16, BOOL = as_dtype("float32"), as_dtype("float16"), ir.BOOL


def survives(f: ir.Function) -> str:
    text = to_text(f)
    again = from_text(text)
    assert equal(f, again, hints=True), text
    assert to_text(again) == text
    assert fingerprint(again) == fingerprint(f)
    return text


def with_body(*body: ir.Stmt, params: list[Any] | None = None, **kw: Any) -> ir.Function:
    return function(params or [], list(body), **kw)


SCALARS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 int4 uint4 float64 float32 float16 bfloat16".split()
NARROW = "float8_e4m3fn float8_e5m2 float8_e8m0fnu float4_e2m1fn float32x4 int8x16 bfloat16x2".split()


@pytest.mark.parametrize("dtype", [*SCALARS, *NARROW])
def test_dtypes_of_buffers_and_literals(dtype: str) -> None:
    A = buf("A", (4,), dtype)
    values: list[Any] = (
        [True] if dtype == "bool" else [1, 0] if "int" in dtype else [1.0, 0.5, math.inf, math.nan, -0.0]
    )
    survives(with_body(*[store(A, (0,), ir.Const(v, as_dtype(dtype))) for v in values], params=[A]))


def test_literals_of_a_strange_python_type_survive() -> None:
    x = var("x", "float32")
    for value in (0, True, 3, -3, 1e30, 1e-45, -1.5, -0.0):
        survives(with_body(ir.Let(x, ir.Const(value, F32))))
    for value in (0.0, True, -5, 2**31 - 1, -(2**31)):
        survives(with_body(ir.Let(var("n"), ir.Const(value, as_dtype("int32")))))


def test_operators_nest_in_every_way() -> None:
    a, b, p, q = var("a"), var("b"), var("p", "bool"), var("q", "bool")
    binary = sorted(ir.BINARY_OPS - {"and", "or"})
    for outer in binary:
        for inner in ("add", "mul", "lt", "shl", "bitor", "bitand", "min", "floordiv", "truncmod"):
            left = ir.Binary(outer, ir.Binary(inner, a, b), b)
            right = ir.Binary(outer, a, ir.Binary(inner, a, b))
            for e in (
                left,
                right,
                ir.Unary("neg", left),
                ir.Unary("bitnot", right),
                ir.Unary("abs", ir.Unary("neg", e_ := left)),
            ):
                survives(with_body(ir.Let(var("x", e.dtype.name), e), params=[a, b]))
            assert e_ is left
    for e in (
        ir.Binary("and", p, ir.Binary("and", q, p)),
        ir.Binary("and", ir.Binary("and", p, q), p),
        ir.Binary("or", ir.Binary("and", p, q), ir.Unary("not", ir.Binary("or", p, q))),
        ir.Unary("not", ir.Unary("not", p)),
        ir.Binary("eq", ir.Unary("not", p), ir.Binary("lt", a, b)),
        ir.Binary("lt", ir.Binary("lt", a, b), p),
    ):
        survives(with_body(ir.Let(var("x", "bool"), e), params=[a, b, p, q]))
    choice = ir.IfThenElse(p, a, b)
    for e in (
        ir.IfThenElse(ir.IfThenElse(p, q, p), choice, choice),
        op("add", choice, choice),
        ir.Unary("neg", i(5)),
        ir.Unary("neg", ir.Unary("neg", a)),
        op("mul", -5, op("sub", a, -5)),
        ir.Unary("bitnot", i(-1)),
        ir.Select(p, a, b),
    ):
        survives(with_body(ir.Let(var("x"), e), params=[a, b, p, q]))


def test_every_statement_of_the_tile_stage() -> None:
    n, M = var("n", "int64"), var("M")
    A, B = buf("A", (M, 8), "float16", strides=(i(100), i(1)), safe=const(2.0, "float16")), buf("B", (M,), "float32")
    W = buf("W", (ir.Cast(M, as_dtype("int64")), 4), "int32")
    S, R = buf("S", (4, 8), "float16", "shared"), buf("R", (4,), "float32", "fragment")
    v = buf("v", (1,), "int32", "var")
    view = ir.Buffer("S_view", as_dtype("int8"), (i(64),), "shared", alias_of=S, offset=op("mul", M, 2))
    pointer = ir.Buffer("P", F32, (i(4),), "global", base=ir.Cast(n, as_dtype("uint64")))
    k, x, old, a, b = var("k"), var("x", "float32"), var("old"), var("a"), var("b")
    tx = var("tx")
    body = [
        ir.Alloc(S),
        ir.Alloc(R),
        ir.Alloc(v, i(3)),
        fill(R, 0.0),
        ir.Fill(region(S, (1, 2), (2, 2)), const(1.0, "float16")),
        copy(region(A, (op("mul", k_ := i(2), 2), 0), (4, 8)), region(S)),
        ir.Copy(region(S, (0, 0), (4, 1)), region(R), (i(4),), (0,), (0,), (("coalesced_width", 4),)),
        reduce("max", S, R, 1, nan_propagate=True),
        ir.Scan("sum", region(S), region(S), 0, True),
        gemm(S, S, S, transpose_b=True, annotations=(("policy", "square"), ("k_pack", (1, None, 2.5, F16)))),
        ir.ReducerOp("update", "sum", R, (i(0),), const(1.0, "float32")),
        ir.ReducerOp("update", "sum", R, (i(0),), const(1.0, "float32"), lane=i(3)),
        ir.ReducerOp("finalize", "sum", R),
        ir.Atomic("add", W, (i(0), i(1)), i(4), old, "acq_rel"),
        ir.Atomic("load", W, (i(0), i(1)), None),
        store(W, (old, 0), old),
        ir.Sync("block"),
        ir.Sync("warp"),
        ir.Sync("block", count=64, barrier=2),
        ir.Collective("shfl_down", (tx, i(4)), var("other"), width=16, mask=const(15, "uint32")),
        ir.Collective("sum", (const(1.0, "float32"),), ir.Var("total", F32), "block", axes=(1, 0)),
        ir.Collective("activemask", (), var("who", "uint32")),
        ir.Wait(op("eq", load(v, 0), 1)),
        ir.Debug("print", (x_ := load(B, 0), S), 'it\'s "here"\n\\ {x}'),
        ir.Debug("assert", (op("lt", M, 7),), "too big"),
        ir.Debug("assume", (op("gt", M, 0),)),
        ir.Debug("breakpoint"),
        store(view, (0,), const(1, "int8")),
        store(pointer, (0,), x_),
        ir.For(k, i(0), M, i(1), (ir.Continue(),), "pipelined", (("num_stages", 2), ("order", (1, 0)))),
        ir.For(var("k"), i(7), i(-1), i(-2), (ir.Break(),), "unroll"),
        ir.For(var("k"), i(0), i(4), i(1), (), "thread"),
        ir.For(var("k"), i(0), i(4), i(1), (), "vectorized"),
        ir.While(op("lt", load(v, 0), 5), (ir.If(op("eq", load(v, 0), 4), (ir.Return(),)),)),
        ir.If(op("lt", M, 3), (ir.Let(x, x_),), (ir.If(op("lt", M, 4), (), (store(v, (0,), i(1)),)),)),
        parallel((a, b), (4, M), store(B, (a,), ir.Call("exp2", (load(B, b),), F32))),
        ir.Parallel((), (), ()),
        ir.Parallel((var("z"),), (i(3),), (), (("loop_layout", {"a": [1, 2]}),)),
    ]
    assert k_ is not None
    text = survives(
        function(
            [A, B, n],
            body,
            (op("floordiv", M, 4), 2),
            thread_vars=(tx,),
            attrs=(("swizzle", 3),),
            symbols=(M,),
            workspaces=(W,),
            outputs=(1,),
        )
    )
    assert 'S_view = T.buffer((64,), "int8", alias_of=S, offset=M * 2, scope="shared")' in text
    assert 'T.Pipelined(M, annotations={"num_stages": 2, "order": (1, 0)})' in text


def test_loop_stage() -> None:
    v16, b16, i16 = (as_dtype(f"{n}x16") for n in ("float32", "bool", "int32"))
    A = buf("A", (64,), "float16")
    scratch = buf("tile", (4, 16), "float32", "scratch", base=const(1024, "int64"))
    acc = ir.Buffer("acc", v16, (i(2),), "var")
    x, idx, mask = ir.Var("x", v16), ir.Var("idx", i16), ir.Var("m", b16)
    body = [
        ir.Alloc(scratch),
        ir.Alloc(acc, ir.Broadcast(const(0.0, "float32"), 16)),
        ir.Let(idx, ir.Ramp(i(3), 2, 16)),
        ir.Let(mask, ir.Binary("lt", idx, ir.Broadcast(i(9), 16))),
        ir.Let(x, ir.Cast(load(A, 0, lanes=16, proved=True), v16)),
        ir.Let(ir.Var("y", v16), ir.Cast(load(A, idx, mask=mask, proved=True), v16)),
        store(scratch, (0, 0), ir.Fma(x, x, x), mask=mask, proved=True),
        store(scratch, (0, 0), ir.Select(mask, x, x), proved=True),
        store(acc, (1,), x, proved=True),
        ir.Let(var("s", "float32"), ir.Call("hreduce_add", (x,), F32)),
        ir.MicroCall("gemm", (region(scratch),), (region(A),), (const(4, "int64"),), (("a_trans", True), ("NR", 16))),
    ]
    survives(function([A], body, stage="loop", attrs=(("scratch_bytes", 4096),)))


def test_names_are_only_names() -> None:
    evil = "x\n    import os; os.system('echo') #"
    A, n = buf("class", (3,)), var("lambda")
    names = [var(s) for s in (evil, "T", "float", "1st", "a b", "a_b", "", "ä", "None", "x" * 200)]
    body = [*[ir.Let(v, i(k)) for k, v in enumerate(names)], *[store(A, (v,), const(0.0, "float32")) for v in names]]
    f = function([A, n], body).replace(name="weird name'\"")
    k = f.kernels[0].replace(name="k\"'\\", body=(*body, ir.Debug("print", (), evil)))
    g = from_text(survives(f.replace(kernels=(k,))))
    assert g.name == "weird name'\"" and [p.name for p in g.params] == ["class", "lambda"]
    assert g.kernels[0].name == "k\"'\\" and g.kernels[0].body[-1].message == evil  # type: ignore[attr-defined]


def test_broken_trees_print_too() -> None:
    """They are reported as text: unbound variables, buffers that nobody allocates, ill-typed operators."""
    lost, S = var("lost", "int64"), buf("S", (4,), "float32", "shared")
    body = [
        store(S, (lost,), const(0.0, "float16")),
        ir.Alloc(S),
        ir.Let(var("x"), ir.Binary("add", lost, const(1.0, "float32"))),
        ir.Let(var("y", "float16"), ir.Unary("sideways", lost)),
        ir.For(var("k", "int8"), i(0), i(3), i(1), (), "spiral"),
        ir.If(op("eq", i(1), i(1)), (), (ir.If(load(buf("late", (1,), "bool", "shared"), 0), (ir.Break(),)),)),
    ]
    survives(function([], body))


def test_data_without_notation_is_named_when_read(golden: Golden) -> None:
    f = with_body(ir.Parallel((var("z"),), (i(3),), (), (("loop_layout", slice(3)),)))
    with pytest.raises(TileSyntaxError, match="no notation") as caught:
        read_text(to_text(f))
    golden("errors/text_opaque", f"TileSyntaxError: {caught.value}")


def test_the_text_is_a_module(tmp_path: Path) -> None:
    f = matmul(100, 70, 50, 32, 32, 16)
    path = tmp_path / "printed.py"
    path.write_text(to_text(f))
    spec = importlib.util.spec_from_file_location("printed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert equal(module.test, f, hints=True)
    assert module.test.kernels[0].loc.file == str(path)


GOOD = to_text(with_body(ir.Let(var("x"), i(1))))
BAD: dict[str, tuple[str, type[TileError], str]] = {
    "undefined name": ("x = 1 + lost", TileNameError, "lost is not defined"),
    "near miss": ("x = 1\n        y = xx", TileNameError, "did you mean x"),
    "code": ("x = __import__('os')", TileSyntaxError, "unknown function"),
    "attribute": ("x = T.min.__class__", TileSyntaxError, "unexpected Attribute"),
    "lambda": ("x = (lambda: 1)()", TileSyntaxError, "wrong number of arguments"),
    "comprehension": ("x = [i for i in 1]", TileSyntaxError, "unexpected ListComp"),
    "chain": ("x = 1 < 2 < 3", TileSyntaxError, "unexpected Compare"),
    "operation": ("T.gem(1)", TileSyntaxError, "did you mean gemm"),
    "dtype": ('x = T.cast(1, "float31")', TileTypeError, "unknown dtype 'float31'"),
    "option": ("T.sync('block', scop=1)", TileSyntaxError, "did you mean scope"),
    "arity": ("x = T.min(1)", TileSyntaxError, "takes 2 arguments"),
    "loop": ("for q in range(3): pass", TileSyntaxError, "a loop of the language"),
    "buffer as value": ('b = T.alloc_var((1,), "int32")\n        y = b', TileSyntaxError, "b is a buffer"),
    "string": ("x = 'one'", TileSyntaxError, "a number was expected"),
    "too deep": ("x = " + " + ".join(["1"] * 1500), TileSyntaxError, "nested too deeply"),
    "syntax": ("x = = 1", TileSyntaxError, "not printed IR"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_point_into_the_text(name: str, golden: Golden) -> None:
    line, error, message = BAD[name]
    assert "x = 1\n" in GOOD
    with pytest.raises(error, match=message) as caught:
        read_text(GOOD.replace("x = 1", line))
    assert caught.value.loc is not None and caught.value.loc.line > 9
    golden(f"errors/text_{name.replace(' ', '_')}", f"{error.__name__}: {caught.value}")


def test_a_text_holds_one_function(golden: Golden) -> None:
    assert GOOD.count("@ir_function") == 1
    with pytest.raises(TileSyntaxError, match="this text 2") as caught:
        read_text(GOOD + GOOD)
    golden("errors/text_two_functions", f"TileSyntaxError: {caught.value}")


# -- equality and fingerprints ---------------------------------------------------------------------------------


def test_equality_ignores_names_and_locations_only() -> None:
    f, g = matmul(100, 70, 50, 32, 32, 16), matmul(100, 70, 50, 32, 32, 16)
    assert f is not g and equal(f, g) and fingerprint(f) == fingerprint(g)
    for other in (
        matmul(100, 70, 50, 32, 32, 8),
        matmul(100, 70, 50, 32, 32, 16, "float16"),
        f.replace(name="other"),
        f.replace(outputs=(2,)),
        f.replace(params=f.params[::-1]),
        f.replace(stage="loop"),
    ):
        assert not equal(f, other) and fingerprint(f) != fingerprint(other)


def test_order_of_symbols_and_identity_of_variables_count() -> None:
    a, b = var("a"), var("b")
    f = with_body(ir.Let(var("x"), op("sub", a, b)), symbols=(a, b))
    assert not equal(f, with_body(ir.Let(var("x"), op("sub", a, b)), symbols=(b, a)))
    assert equal(f, with_body(ir.Let(var("z"), op("sub", b, a)), symbols=(b, a)))
    assert not equal(f, with_body(ir.Let(var("x"), op("sub", a, a)), symbols=(a, b)))


def test_one_variable_bound_twice_equals_two_variables() -> None:
    k, k1, k2 = var("k"), var("k"), var("k")
    A = buf("A", (9,), "int32")
    once = with_body(loop(k, 3, store(A, (k,), k)), loop(k, 4, store(A, (k,), k)), params=[A])
    twice = with_body(loop(k1, 3, store(A, (k1,), k1)), loop(k2, 4, store(A, (k2,), k2)), params=[A])
    assert equal(once, twice)
    again = with_body(loop(k, 3), loop(k, 4, loop(k1, 2, store(A, (k1,), k))), params=[A])
    other = with_body(loop(k, 3), loop(k, 4, loop(k1, 2, store(A, (k1,), k1))), params=[A])
    assert not equal(again, other)  # a variable bound again and the next one are two
    mixed = with_body(loop(k1, 3, store(A, (k1,), k1)), loop(k2, 4, store(A, (k1,), k2)), params=[A])
    assert not equal(once, mixed)


def test_hints_select_code_but_not_meaning() -> None:
    f, g = (with_body(ir.For(var("k"), i(0), i(3), i(1), (), kind)) for kind in ("serial", "unroll"))
    assert equal(f, g) and not equal(f, g, hints=True)
    assert fingerprint(f) != fingerprint(g) and fingerprint(f, hints=False) == fingerprint(g, hints=False)


def test_literals_compare_by_bits_and_type() -> None:
    def same(a: ir.Const, b: ir.Const) -> bool:
        return equal(with_body(ir.Debug("print", (a,))), with_body(ir.Debug("print", (b,))))

    assert same(const(math.nan, "float32"), const(math.nan, "float32"))
    assert not same(const(0.0, "float32"), const(-0.0, "float32"))
    assert not same(const(1, "int32"), const(1, "int64")) and not same(i(1), ir.Const(True, BOOL))
