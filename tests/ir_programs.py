"""Random tile-stage functions, valid by construction: moves that leave buffers on all sides, gathers, lazy operators,
loops with exits, atomics. Block-local elements are always addressed in range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.ir import build as B
from tiledsl.ir.printer import to_text

I32, I64 = as_dtype("int32"), as_dtype("int64")
DTYPES = ["float32", "float16", "int32", "int8", "bfloat16"]


def i32(value: int) -> ir.Const:
    return B.const(value, I32)


class _Programs:
    """Draws one function. A, X: inputs; I: indices, good and bad; O, C: outputs; S, F: tiles; n: a scalar."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.symbols = (ir.Var("M", I32), ir.Var("N", draw(st.sampled_from([I32, I64]))))
        m, n = self.symbols
        tile, out = (as_dtype(draw(st.sampled_from(DTYPES))) for _ in range(2))
        src = as_dtype(draw(st.sampled_from(DTYPES)))
        safe = B.const(3, src) if draw(st.booleans()) else None
        self.A = ir.Buffer("A", src, (m, n), "global", safe=safe)
        self.I = ir.Buffer("I", I32, (m,), "global")
        self.O = ir.Buffer("O", out, (m, B.add(n, 1)), "global")
        self.C = ir.Buffer("C", I32, (i32(5),), "global")
        self.n = ir.Var("n", I32)
        self.S = ir.Buffer("S", tile, (i32(4), i32(6)), "shared")
        self.F = ir.Buffer("F", out, (i32(6),), "fragment")
        self.K = ir.Buffer("K", I32, (i32(4),), "shared")
        self.count = 0

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def var(self, stem: str, dtype: Any = I32) -> ir.Var:
        self.count += 1
        return ir.Var(f"{stem}{self.count}", dtype)

    # -- expressions -------------------------------------------------------------------------------------

    def index(self, scope: list[ir.Var], depth: int = 2) -> ir.Expr:
        """An int32 expression, in range of nothing in particular."""
        kind = self.draw(st.integers(0, 8)) if depth else self.draw(st.integers(0, 1))
        if kind == 0 or not scope:
            return i32(self.draw(st.integers(-4, 9)))
        if kind in (1, 2):
            return self.pick(*scope)
        a = self.index(scope, depth - 1)
        if kind == 3:
            return ir.Load(self.I, (a,))
        if kind == 4:
            return ir.Load(self.K, (ir.Binary("floormod", a, i32(4)),))
        if kind == 5:
            return ir.IfThenElse(self.cond(scope, depth - 1), a, self.index(scope, depth - 1))
        b = self.index(scope, depth - 1)
        return ir.Binary(self.pick("add", "add", "sub", "mul", "floordiv", "floormod", "min", "max"), a, b)

    def cond(self, scope: list[ir.Var], depth: int = 1) -> ir.Expr:
        kind = self.draw(st.integers(0, 3)) if depth else 0
        if kind == 3:
            a, b = self.cond(scope, depth - 1), self.cond(scope, depth - 1)
            return ir.Binary(self.pick("and", "or"), a, b)
        if kind == 2:
            return ir.Unary("not", self.cond(scope, depth - 1))
        a, b = self.index(scope, depth), self.pick(self.index(scope, 0), self.symbols[0], self.n)
        return ir.Binary(self.pick("lt", "le", "gt", "ge", "eq", "ne"), a, b)

    def wide(self, e: ir.Expr, dtype: Any) -> ir.Expr:
        return e if e.dtype is dtype else ir.Cast(e, dtype)

    def element(self, b: ir.Buffer, scope: list[ir.Var]) -> ir.Load:
        """A load: of a global buffer anywhere, of a tile in range."""
        indices = [self.index(scope) for _ in b.shape]
        if b.scope != "global":
            indices = [ir.Binary("floormod", i, n) for i, n in zip(indices, b.shape, strict=True)]
        elif self.draw(st.booleans()):
            indices[-1] = ir.Cast(indices[-1], I64)
        return ir.Load(b, tuple(indices))

    def value(self, dtype: Any, scope: list[ir.Var], depth: int = 2) -> ir.Expr:
        kind = self.draw(st.integers(0, 6)) if depth else 0
        if kind == 0:
            return self.wide(B.const(self.draw(st.integers(-5, 5)), self.pick(dtype, I32)), dtype)
        if kind == 1:
            return self.wide(self.index(scope, 1), dtype)
        if kind in (2, 3):
            return self.wide(self.element(self.pick(self.A, self.A, self.S, self.F, self.I), scope), dtype)
        a, b = self.value(dtype, scope, depth - 1), self.value(dtype, scope, depth - 1)
        if kind == 4:
            return self.pick(ir.IfThenElse, ir.Select)(self.cond(scope), a, b)
        return ir.Binary(self.pick("add", "sub", "mul"), a, b)

    # -- statements --------------------------------------------------------------------------------------

    def region(self, b: ir.Buffer, extents: tuple[ir.Expr, ...], scope: list[ir.Var]) -> ir.Region:
        return ir.Region(b, tuple(self.index(scope, 1) for _ in b.shape), extents)

    def copy(self, scope: list[ir.Var]) -> ir.Stmt:
        pairs = [(self.A, self.S), (self.S, self.O), (self.S, self.S), (self.A, self.O), (self.O, self.S)]
        src, dst = self.pick(*pairs)
        domain = tuple(i32(self.draw(st.integers(0, 7))) for _ in range(2))
        axes = self.pick((0, 1), (0, 1), (1, 0), (0, -1), (-1, 1))
        return ir.Copy(self.region(src, domain, scope), self.region(dst, domain, scope), domain, axes, (0, 1))

    def row_copy(self, scope: list[ir.Var]) -> ir.Stmt:
        src, dst = self.region(self.A, (i32(1), i32(6)), scope), self.region(self.F, (i32(6),), scope)
        return ir.Copy(src, dst, dst.extents, (1,), (0,))

    def fill(self, scope: list[ir.Var]) -> ir.Stmt:
        b = self.pick(self.S, self.O, self.F)
        extents = tuple(i32(self.draw(st.integers(0, 6))) for _ in b.shape)
        return ir.Fill(self.region(b, extents, scope), self.value(b.dtype, scope, 1))

    def nest(self, scope: list[ir.Var]) -> ir.Stmt:
        i, j = self.var("i"), self.var("j")
        inner = [*scope, i, j]
        x = self.var("x")
        body: list[ir.Stmt] = [ir.Let(x, self.index(inner))]
        inner.append(x)
        for _ in range(self.draw(st.integers(1, 2))):
            s = self.store(inner)
            body.append(ir.If(self.cond(inner), (s,), (self.store(inner),)) if self.draw(st.booleans()) else s)
        return ir.Parallel((i, j), (self.pick(i32(4), self.symbols[0]), i32(3)), tuple(body))

    def store(self, scope: list[ir.Var]) -> ir.Stmt:
        b = self.pick(self.O, self.O, self.S, self.F)
        return ir.Store(b, self.element(b, scope).indices, self.value(b.dtype, scope))

    def atomic(self, scope: list[ir.Var]) -> tuple[ir.Stmt, ...]:
        result = self.var("old") if self.draw(st.booleans()) else None
        s = ir.Atomic("add", self.C, (self.index(scope),), self.index(scope, 1), result)
        if result is None:
            return (s,)
        return (s, ir.Store(self.O, self.element(self.O, [*scope, result]).indices, self.value(self.O.dtype, [result])))

    def block(self, scope: list[ir.Var], depth: int) -> tuple[ir.Stmt, ...]:
        body: list[ir.Stmt] = []
        for _ in range(self.draw(st.integers(1, 3))):
            kind = self.draw(st.integers(0, 9 if depth else 5))
            if kind <= 1:
                body.append(self.copy(scope))
            elif kind == 2:
                body.append(self.pick(self.fill, self.row_copy)(scope))
            elif kind in (3, 4):
                body.append(self.nest(scope))
            elif kind == 5:
                body += self.atomic(scope)
            elif kind == 6:
                body.append(ir.If(self.cond(scope), self.block(scope, depth - 1), self.block(scope, depth - 1)))
            elif kind == 7:
                body.append(ir.If(self.cond(scope), (ir.Return(),)))
            elif kind == 8:
                v = self.var("k")
                start, stop = i32(self.draw(st.integers(-2, 2))), self.pick(i32(3), self.n, i32(-3))
                leave = ir.If(self.cond([*scope, v]), (self.pick(ir.Break, ir.Continue)(),))
                inner = (leave, *self.block([*scope, v], depth - 1))
                body.append(ir.For(v, start, stop, i32(self.pick(1, 2, -1)), inner, self.pick("serial", "unroll")))
            else:
                x = self.var("y")
                body.append(ir.Let(x, self.index(scope)))
                scope = [*scope, x]
        return tuple(body)

    def function(self) -> ir.Function:
        bx, by, tx = ir.Var("bx", I32), ir.Var("by", I32), ir.Var("tx", I32)
        m, n = self.symbols
        start: tuple[ir.Stmt, ...] = ()
        for b in (self.S, self.F, self.K):
            whole = ir.Region(b, tuple(i32(0) for _ in b.shape), b.shape)
            start += (ir.Alloc(b), ir.Fill(whole, B.const(2, b.dtype)))
        body = self.block([bx, by, self.n], 2)
        grid = (B.cast(B.ceildiv(n, 3), I32), self.pick(i32(2), B.ceildiv(m, 4)))
        kernel = ir.Kernel("main", grid, (i32(32),), (bx, by), (tx,), start + body)
        params = tuple(ir.Param(b.name, b) for b in (self.A, self.I, self.O, self.C))
        return ir.Function("program", (*params, ir.Param("n", None, self.n)), (kernel,), self.symbols)


@dataclass(frozen=True)
class Program:
    """A function that shows itself as text."""

    function: ir.Function

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(to_text(self.function))


@st.composite
def programs(draw: Any) -> Program:
    """One function with parameters A [M, N], I [M], O [M, N + 1], C [5] and n."""
    return Program(_Programs(draw).function())


def arguments(function: ir.Function, seed: int) -> list[Any]:
    """Fresh arguments: sizes, small values, indices of which about half are in range."""
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    shapes = {"A": (m, n), "I": (m,), "O": (m, n + 1), "C": (5,)}
    args: list[Any] = [rng.integers(-6, 12, shapes[b.name]).astype(b.dtype.numpy) for b in function.buffers]
    return [*args, int(rng.integers(-3, 6))]
