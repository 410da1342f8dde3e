"""Each rule of the verifier, by a tree that breaks it; author mistakes are TileErrors, the rest InternalErrors."""

from __future__ import annotations

from collections.abc import Callable
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
from tiledsl.errors import (
    InternalError,
    Loc,
    TileError,
    TileIndexError,
    TileNameError,
    TileSyntaxError,
    TileTypeError,
    TileValueError,
)
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import STAGES, verify

F32, I32, I64 = as_dtype("float32"), as_dtype("int32"), as_dtype("int64")
HERE = Loc("kernel.py", 7, 5)
A = buf("A", (8, 8))
V16 = as_dtype("float32x16")


def S(shape: tuple[int, ...] = (8, 8), dtype: str = "float32", scope: str = "shared") -> ir.Buffer:
    return buf("S", shape, dtype, scope)


def body(*statements: ir.Stmt, stage: str = "tile") -> ir.Function:
    return function([A], [s.replace(loc=HERE) for s in statements], stage=stage)


def let(value: ir.Expr, dtype: str | None = None) -> ir.Function:
    return body(ir.Let(ir.Var("x", as_dtype(dtype) if dtype else value.dtype), value))


def loop_let(value: ir.Expr) -> ir.Function:
    return body(ir.Let(ir.Var("x", value.dtype), value), stage="loop")


def local(*make: Callable[[ir.Buffer], ir.Stmt], b: ir.Buffer | None = None) -> ir.Function:
    b = b or S()
    return body(ir.Alloc(b), *(m(b) for m in make))


zero, true = const(0.0, "float32"), const(True, "bool")
outer = var("outer")

m_ = var("m")

AUTHOR: dict[str, tuple[type[TileError], str, Callable[[], ir.Function]]] = {
    "too few indices": (TileIndexError, "2 axes, 1 indices", lambda: body(store(A, (0,), zero))),
    "rank of a region": (TileIndexError, "the region 1", lambda: body(ir.Fill(region(A, (0,), (8,)), zero))),
    "float index": (TileTypeError, "is float32, not an integer", lambda: body(store(A, (zero, 0), zero))),
    "bool index": (TileTypeError, "is bool, not an integer", lambda: let(load(A, true, 0))),
    "float extent": (TileTypeError, "T.Parallel is float32", lambda: body(parallel((var("p"),), (zero,)))),
    "grid from memory": (
        TileTypeError,
        "an extent of the launch needs Load",
        lambda: function([A], [], (ir.Cast(load(A, 0, 0).replace(loc=HERE), I32),)),
    ),
    "extent from a float": (
        TileTypeError,
        r"a dimension of B needs exp2 \(float32\)",
        lambda: function(
            [buf("B", (m_, ir.Cast(ir.Call("exp2", (ir.Cast(m_, F32),), F32, loc=HERE), I32)))], [], symbols=(m_,)
        ),
    ),
    "int condition": (TileTypeError, "an if is int32, not bool", lambda: body(ir.If(i(1), ()))),
    "int wait": (TileTypeError, "a wait is int32", lambda: body(ir.Wait(i(1)))),
    "int while": (TileTypeError, "a while is int32", lambda: body(ir.While(i(1), ()))),
    "int assertion": (TileTypeError, "an assert is int32", lambda: body(ir.Debug("assert", (i(1),)))),
    "step 0": (TileValueError, "step of a loop is 0", lambda: body(loop(var("k"), 3, step=0))),
    "break": (TileSyntaxError, "break outside a loop", lambda: body(ir.Break())),
    "break of a nest": (
        TileSyntaxError,
        "break outside a loop",
        lambda: body(loop(var("k"), 2, parallel((var("p"),), (4,), ir.Break()))),
    ),
    "continue": (TileSyntaxError, "continue outside a loop", lambda: body(ir.If(true, (ir.Continue(),)))),
    "copy in Parallel": (
        TileSyntaxError,
        "T.copy inside T.Parallel",
        lambda: local(lambda b: parallel((var("p"),), (4,), copy(region(A), region(b)))),
    ),
    "nested Parallel": (
        TileSyntaxError,
        "T.Parallel inside T.Parallel",
        lambda: body(parallel((var("p"),), (4,), parallel((var("q"),), (4,)))),
    ),
    "value after its region": (
        TileNameError,
        "outer is used outside the region",
        lambda: body(ir.If(true, (ir.Let(outer, i(1)),)), store(A, (outer, 0), zero)),
    ),
    "loop variable after its loop": (
        TileNameError,
        "outer is used outside",
        lambda: body(loop(outer, 3), store(A, (outer, 0), zero)),
    ),
    "buffer after its region": (
        TileNameError,
        "used outside the region that allocates it",
        lambda: (lambda b: body(ir.If(true, (ir.Alloc(b),)), fill(b, 0.0)))(S()),
    ),
    "inner sizes": (
        TileTypeError,
        r"inner sizes differ: A \(8x8 float32\) has 8, S \(4x8 float32\) has 4",
        lambda: local(lambda b: gemm(A, b, A), b=S((4, 8))),
    ),
    "row sizes": (TileTypeError, "row sizes differ", lambda: local(lambda b: gemm(A, A, b), b=S((4, 8)))),
    "column sizes": (TileTypeError, "column sizes differ", lambda: local(lambda b: gemm(A, A, b), b=S((8, 4)))),
    "transposed": (TileTypeError, "inner", lambda: local(lambda b: gemm(A, b, A, transpose_b=True), b=S((8, 4)))),
    "gemm of a vector": (TileTypeError, "is not a matrix", lambda: local(lambda b: gemm(b, A, A), b=S((8,)))),
    "gemm of a stack": (TileTypeError, "is not a matrix", lambda: local(lambda b: gemm(b, A, A), b=S((2, 8, 8)))),
    "reduced shape": (TileTypeError, "does not hold", lambda: local(lambda b: reduce("sum", A, b, 1), b=S((7,)))),
    "reduced axis": (TileIndexError, "has no axis 2", lambda: local(lambda b: reduce("sum", A, b, 2), b=S((8,)))),
    "scanned shape": (
        TileTypeError,
        "differ in shape",
        lambda: local(lambda b: ir.Scan("sum", region(A), region(b), 0), b=S((8, 7))),
    ),
}


@pytest.mark.parametrize("name", AUTHOR)
def test_what_an_author_can_do_wrong(name: str, golden: Callable[[str, str], None]) -> None:
    error, message, make = AUTHOR[name]
    with pytest.raises(error, match=message) as caught:
        verify(make())
    assert not isinstance(caught.value, InternalError)
    assert caught.value.loc == HERE
    with pytest.raises(error, match=message) as caught:
        verify(read_text(to_text(make())))  # what was read from text has places with source
    golden(f"errors/verifier_{name.replace(' ', '_')}", f"{error.__name__}: {caught.value}")


x16 = ir.Broadcast(zero, 16)
m = ir.Cast(zero, as_dtype("float16"))
INTERNAL: dict[str, tuple[str, Callable[[], ir.Function]]] = {
    "stage": ("unknown stage", lambda: body(stage="gas")),
    "tile statement in the loop stage": ("Parallel is no statement", lambda: body(parallel((), ()), stage="loop")),
    "expression of another stage": ("Broadcast is no expression", lambda: let(x16)),
    "undefined": ("outer is not defined", lambda: let(op("add", var("outer"), 1))),
    "bound twice": ("bound twice", lambda: body(ir.Let(outer, i(1)), ir.Let(outer, i(2)))),
    "allocated twice": ("allocated twice", lambda: local(ir.Alloc)),
    "symbol": ("symbol s is float32", lambda: function([], [], symbols=(var("s", "float32"),))),
    "parameter names": ("have one name", lambda: function([var("p"), var("p")], [])),
    "parameter": ("not one of tensor and scalar", lambda: function([], []).replace(params=(ir.Param("p"),))),
    "argument scope": ("its scope is global", lambda: function([S()], [])),
    "outputs": ("outputs", lambda: function([A], [], outputs=(1,))),
    "block variables": ("1 block variables", lambda: function([], [], (1, 2), (var("b"),))),
    "thread variables": ("0 thread variables", lambda: function([], [], thread_vars=())),
    "scope of an allocation": ("the tile stage allocates", lambda: body(ir.Alloc(S(scope="scratch")))),
    "global allocation": ("the tile stage allocates", lambda: body(ir.Alloc(S(scope="global")))),
    "loop-stage allocation": ("the loop stage allocates", lambda: body(ir.Alloc(S()), stage="loop")),
    "scratch of unknown size": (
        "needs a constant shape",
        lambda: function([outer], [ir.Alloc(buf("t", (outer,), scope="scratch"))], stage="loop"),
    ),
    "var of two axes": ("a var has one axis", lambda: body(ir.Alloc(S(scope="var")))),
    "initial value": ("only vars have one", lambda: body(ir.Alloc(S(), zero))),
    "type of an initial value": ("initial value of S", lambda: body(ir.Alloc(S((1,), scope="var"), i(1)))),
    "strides": ("has 1 strides", lambda: body(ir.Alloc(buf("S", (2, 2), scope="shared", strides=(i(1),))))),
    "safe value": ("safe value", lambda: body(ir.Alloc(buf("S", (2,), scope="shared", safe=zero)))),
    "let": ("value of x is float32, not int32", lambda: let(zero, "int32")),
    "store": ("not float32", lambda: body(store(A, (0, 0), i(0)))),
    "fill": ("not float32", lambda: body(ir.Fill(region(A), i(0)))),
    "loop variable": ("its start int32", lambda: body(ir.For(var("k", "int64"), i(0), i(1), i(1), ()))),
    "parallel variables": ("2 variables, 1 extents", lambda: body(ir.Parallel((var("p"), var("q")), (i(1),), ()))),
    "parallel variable": ("loop variable p is float32", lambda: body(parallel((var("p", "float32"),), (1,)))),
    "debug": ("unknown debug", lambda: body(ir.Debug("shout"))),
    "assumption": ("takes a condition", lambda: body(ir.Debug("assume"))),
    "atomic": ("unknown atomic", lambda: body(ir.Atomic("mix", A, (i(0), i(0)), zero))),
    "atomic without value": ("without a value", lambda: body(ir.Atomic("add", A, (i(0), i(0)), None))),
    "atomic load with value": ("with a value", lambda: body(ir.Atomic("load", A, (i(0), i(0)), zero))),
    "type of an atomic": ("not float32", lambda: body(ir.Atomic("add", A, (i(0), i(0)), i(0)))),
    "result of an atomic": ("result outer", lambda: body(ir.Atomic("add", A, (i(0), i(0)), zero, outer))),
    "count of a warp": ("a count of threads", lambda: body(ir.Sync("warp", count=3))),
    "collective": ("unknown collective", lambda: body(ir.Collective("gossip", (), outer))),
    "scope of a collective": ("ballot over a block", lambda: body(ir.Collective("ballot", (true,), outer, "block"))),
    "arguments of a collective": ("shfl of 1 arguments", lambda: body(ir.Collective("shfl", (zero,), outer))),
    "type of a collective": ("ballot of int32", lambda: body(ir.Collective("ballot", (i(1),), outer))),
    "collective of bools": ("sum of bool", lambda: body(ir.Collective("sum", (true,), outer))),
    "bits of a float": ("bitor of float32", lambda: body(ir.Collective("bitor", (zero,), outer))),
    "result of a collective": ("result outer", lambda: body(ir.Collective("sum", (zero,), outer))),
    "segment": ("segments of 5", lambda: body(ir.Collective("shfl", (i(1), i(1)), outer, width=5))),
    "axes twice": ("over the axes", lambda: body(ir.Collective("sum", (i(1),), outer, "block", axes=(0, 0)))),
    "mask of a collective": ("mask of", lambda: body(ir.Collective("sum", (i(1),), outer, mask=i(1)))),
    "barrier": ("unknown scope", lambda: body(ir.Sync("galaxy"))),
    "copy axes": ("1 axes of the source", lambda: body(ir.Copy(region(A), region(A), A.shape, (0,), (0, 1)))),
    "copy axis": ("of the destination", lambda: body(ir.Copy(region(A), region(A), A.shape, (0, 1), (0, 2)))),
    "copy axis twice": ("of the destination", lambda: body(ir.Copy(region(A), region(A), A.shape, (0, 1), (1, 1)))),
    "reduction": ("unknown reduction", lambda: local(lambda b: reduce("mean", A, b, 1), b=S((8,)))),
    "scan": ("unknown scan", lambda: body(ir.Scan("mul", region(A), region(A), 0))),
    "reducer": ("unknown reducer", lambda: body(ir.ReducerOp("stir", "sum", A))),
    "reducer op": ("unknown reduction", lambda: body(ir.ReducerOp("init", "mean", A))),
    "type of a reducer": ("not float32", lambda: body(ir.ReducerOp("init", "sum", A, value=i(0)))),
    "micro-kernel": ("unknown micro-kernel", lambda: body(ir.MicroCall("magic", ()), stage="loop")),
    "literal type": ("literal 1 of float32", lambda: let(ir.Const(1, F32))),
    "literal value": ("int8 has no value 300", lambda: let(ir.Const(300, as_dtype("int8")))),
    "literal precision": ("float16 has no value", lambda: let(ir.Const(0.1, as_dtype("float16")))),
    "unary": ("unknown operator", lambda: let(ir.Unary("flip", zero))),
    "not of int": ("not of int32", lambda: let(ir.Unary("not", i(1)))),
    "bitnot of float": ("bitnot of float32", lambda: let(ir.Unary("bitnot", zero))),
    "neg of bool": ("neg of bool", lambda: let(ir.Unary("neg", true))),
    "sqrt of int": ("sqrt of int32", lambda: let(ir.Unary("sqrt", i(1)))),
    "binary": ("unknown operator", lambda: let(op("plus", 1, 1))),
    "mixed operands": ("add of float32 and int32", lambda: let(op("add", zero, 1))),
    "and of ints": ("and of int32", lambda: let(op("and", 1, 1))),
    "bitand of floats": ("bitand of float32", lambda: let(op("bitand", zero, zero))),
    "floordiv of floats": ("floordiv of float32", lambda: let(op("floordiv", zero, zero))),
    "sum of bools": ("add of bool", lambda: let(op("add", true, true))),
    "fma": ("fma of int32", lambda: let(ir.Fma(i(1), i(1), i(1)))),
    "select": ("choice between", lambda: let(ir.Select(true, i(1), zero))),
    "select condition": ("choice of int32 by int32", lambda: let(ir.Select(i(1), i(1), i(1)))),
    "if_then_else": ("choice between", lambda: let(ir.IfThenElse(true, i(1), zero))),
    "if_then_else condition": ("choice by int32", lambda: let(ir.IfThenElse(i(1), i(1), i(1)))),
    "cast of lanes": ("cast of float32", lambda: let(ir.Cast(zero, V16))),
    "function": ("unknown function", lambda: let(ir.Call("frobnicate", (zero,), F32))),
    "arity": ("exp2 of 2 arguments", lambda: let(ir.Call("exp2", (zero, zero), F32))),
    "argument of a function": ("exp2 of int32", lambda: let(ir.Call("exp2", (i(1),), F32))),
    "vector function of a scalar": ("hreduce_add of float32", lambda: loop_let(ir.Call("hreduce_add", (zero,), F32))),
    "lanes at the tile stage": ("vector access", lambda: let(load(A, 0, 0, lanes=16))),
    "mask at the tile stage": ("vector access", lambda: let(load(A, 0, 0, mask=true))),
    "not proved": ("is not proved", lambda: loop_let(load(A, 0, 0))),
    "eight lanes": ("access of 8 elements", lambda: loop_let(load(A, 0, 0, lanes=8, proved=True))),
    "mask of one lane": ("mask of an access", lambda: loop_let(load(A, 0, 0, lanes=16, mask=true, proved=True))),
    "width": ("a vector of 8 lanes", lambda: loop_let(ir.Broadcast(zero, 8))),
    "broadcast": ("broadcast of float32x16", lambda: loop_let(ir.Broadcast(x16, 16))),
    "ramp": ("ramp from float32", lambda: loop_let(ir.Ramp(zero, 1, 16))),
    "ramp width": ("a vector of 4 lanes", lambda: loop_let(ir.Ramp(i(0), 1, 4))),
    "lazy choice": ("a lazy choice", lambda: loop_let(ir.IfThenElse(ir.Broadcast(true, 16), x16, x16))),
    "half arithmetic": ("arithmetic in float16", lambda: loop_let(op("add", m, m))),
    "var by a variable": (
        "is no constant",
        lambda: (lambda b: body(ir.Alloc(b), loop(outer, 2, store(b, (outer,), zero, proved=True)), stage="loop"))(
            S((2,), scope="var")
        ),
    ),
}


@pytest.mark.parametrize("name", INTERNAL)
def test_what_only_the_compiler_can_do_wrong(name: str) -> None:
    message, make = INTERNAL[name]
    with pytest.raises(InternalError, match=message):
        verify(make())


def test_good_trees_pass() -> None:
    verify(matmul(100, 70, 50, 32, 32, 16, "float16"))
    s = S()
    view = ir.Buffer("V", F32, (i(64),), "shared", alias_of=s, offset=i(0))
    pointer = ir.Buffer("P", F32, (i(4),), "global", base=const(0, "uint64"))
    two = (store(view, (0,), zero), store(pointer, (3,), zero))
    verify(body(ir.Alloc(s), *two, parallel((var("p"),), (4,), ir.If(true, (ir.Continue(),)))))
    k = var("k")
    verify(body(loop(k, 3, ir.Let(outer, k)), loop(k, 4, ir.Let(outer, k))))  # one name in two scopes
    x: Any = ir.Let(ir.Var("x", V16), ir.Cast(load(buf("H", (16,), "float16"), 0, lanes=16, proved=True), V16))
    verify(function([x.value.x.buffer], [x], stage="loop"))


def test_stages_hold_known_classes() -> None:
    for allowed in STAGES.values():
        assert all(issubclass(c, (ir.Stmt, ir.Expr)) for c in allowed)
    everything = {c for c in vars(ir).values() if isinstance(c, type) and issubclass(c, (ir.Stmt, ir.Expr))}
    assert everything - {ir.Stmt, ir.Expr} == set().union(*STAGES.values())
