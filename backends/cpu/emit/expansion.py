"""Math functions (`ir.math`) as LLVM functions: the one expansion, over scalars or over all lanes of a vector."""

from __future__ import annotations

from typing import Any

from llvmlite import ir as ll

from tiledsl import ir
from tiledsl.backends.cpu.emit import arith, convert
from tiledsl.backends.cpu.emit.values import constant, intrinsic, register_bytes, value_type
from tiledsl.dtypes import DType
from tiledsl.ir.math import expansion

__all__ = ["emit_math"]

Value = Any
_INLINED = 60  # steps: a longer function costs more time to compile in several places than a call costs


def emit_math(module: Any, name: str, d: DType) -> Any:
    """The function `d f(d ...)` that means the Call `name`; d: float32 or float64, scalar or vector."""
    symbol = f"math_{name}_{d.name}"
    if symbol in module.globals:
        return module.globals[symbol]
    meaning = expansion(name, d.scalar)
    t = value_type(d)
    f = ll.Function(module, ll.FunctionType(t, [t] * len(meaning.params)), symbol)
    f.linkage = "internal"
    if len(meaning.lets) <= _INLINED:
        f.attributes.add("alwaysinline")
    b = ll.IRBuilder(f.append_basic_block())
    if name == "scalb" and register_bytes(b) == 64 and d.scalar.name == "float32" and d.lanes == 16:
        b.ret(_scaled(b, *f.args))
        return f
    known: dict[ir.Var, Value] = dict(zip(meaning.params, f.args, strict=True))
    for var, value in meaning.lets:
        known[var] = _emit(b, value, known, d.lanes)
    b.ret(_emit(b, meaning.result, known, d.lanes))
    return f


def _scaled(b: Any, x: Value, n: Value) -> Value:
    """vscalefps: x * 2**n rounded once, subnormal results included, NaN as in a product."""
    every, current = ll.Constant(ll.IntType(16), -1), ll.Constant(ll.IntType(32), 4)
    return intrinsic(b, "llvm.x86.avx512.mask.scalef.ps.512", x.type, [x, n, x, every, current])


def _emit(b: Any, e: ir.Expr, known: dict[ir.Var, Value], lanes: int) -> Value:
    def value(x: ir.Expr) -> Value:
        return _emit(b, x, known, lanes)

    if isinstance(e, ir.Var):
        return known[e]
    if isinstance(e, ir.Const):
        return constant(e.type.with_lanes(lanes), e.value)
    if isinstance(e, ir.Unary):
        return arith.unary(b, e.op, e.x.dtype.with_lanes(lanes), value(e.x))
    if isinstance(e, ir.Binary):
        return arith.binary(b, e.op, e.a.dtype.with_lanes(lanes), value(e.a), value(e.b))
    if isinstance(e, ir.Fma):
        return arith.fma(b, value(e.a), value(e.b), value(e.c))
    if isinstance(e, ir.Select):
        return b.select(value(e.cond), value(e.t), value(e.f))
    if isinstance(e, ir.Cast):
        return convert.cast(b, e.x.dtype.with_lanes(lanes), e.type.with_lanes(lanes), value(e.x))
    assert isinstance(e, ir.Call)
    if e.name == "reinterpret":
        return arith.reinterpret(b, e.type.with_lanes(lanes), value(e.args[0]))
    if e.name in ("isnan", "isinf", "isfinite"):
        return arith.classify(b, e.name, e.args[0].dtype.with_lanes(lanes), value(e.args[0]))
    return b.call(emit_math(b.module, e.name, e.type.with_lanes(lanes)), [value(x) for x in e.args])
