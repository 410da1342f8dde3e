"""Builds small functions of the IR by hand, for tests of the rooms below the frontend."""

from __future__ import annotations

import linecache
from typing import Any

from tiledsl import ir
from tiledsl.dtypes import as_dtype
from tiledsl.frontend.reader import from_text

I32 = as_dtype("int32")


def i(value: Any) -> Any:
    """Python ints as int32 literals; expressions stay."""
    return ir.Const(value, I32) if isinstance(value, int) and not isinstance(value, bool) else value


def const(value: Any, dtype: str) -> ir.Const:
    return ir.Const(value, as_dtype(dtype))


def var(name: str, dtype: str = "int32") -> ir.Var:
    return ir.Var(name, as_dtype(dtype))


def buf(name: str, shape: tuple[Any, ...], dtype: str = "float32", scope: str = "global", **kw: Any) -> ir.Buffer:
    return ir.Buffer(name, as_dtype(dtype), tuple(i(n) for n in shape), scope, **kw)


def region(b: ir.Buffer, starts: tuple[Any, ...] | None = None, extents: tuple[Any, ...] | None = None) -> ir.Region:
    starts = (0,) * b.rank if starts is None else starts
    return ir.Region(b, tuple(map(i, starts)), b.shape if extents is None else tuple(map(i, extents)))


def op(name: str, a: Any, b: Any) -> ir.Binary:
    return ir.Binary(name, i(a), i(b))


def add(a: Any, b: Any) -> ir.Binary:
    return op("add", a, b)


def mul(a: Any, b: Any) -> ir.Binary:
    return op("mul", a, b)


def load(b: ir.Buffer, *indices: Any, **kw: Any) -> ir.Load:
    return ir.Load(b, tuple(map(i, indices)), **kw)


def store(b: ir.Buffer, indices: tuple[Any, ...], value: Any, **kw: Any) -> ir.Store:
    return ir.Store(b, tuple(map(i, indices)), value, **kw)


def loop(v: ir.Var, n: Any, *body: ir.Stmt, start: Any = 0, step: Any = 1) -> ir.For:
    return ir.For(v, i(start), i(n), i(step), body)


def parallel(vs: tuple[ir.Var, ...], extents: tuple[Any, ...], *body: ir.Stmt) -> ir.Parallel:
    return ir.Parallel(vs, tuple(map(i, extents)), body)


def copy(src: ir.Region, dst: ir.Region) -> ir.Copy:
    """Axis by axis, over the destination's extents; leading axes of the longer side do not move."""
    rank = min(src.buffer.rank, dst.buffer.rank)
    shorter = dst if dst.buffer.rank == rank else src
    axes = tuple(range(rank))
    shift = lambda r: tuple(a + r.buffer.rank - rank for a in axes)
    return ir.Copy(src, dst, shorter.extents, shift(src), shift(dst))


def fill(b: ir.Buffer, value: Any) -> ir.Fill:
    return ir.Fill(region(b), const(value, b.dtype.name))


def gemm(a: ir.Buffer, b: ir.Buffer, c: ir.Buffer, clear: bool = False, **kw: Any) -> ir.Gemm:
    return ir.Gemm(region(a), region(b), region(c), const(clear, "bool"), **kw)


def reduce(op: str, src: ir.Buffer, dst: ir.Buffer, axis: int, clear: bool = True, **kw: Any) -> ir.Reduce:
    return ir.Reduce(op, region(src), region(dst), axis, const(clear, "bool"), **kw)


def function(
    params: list[Any],
    body: list[ir.Stmt],
    grid: tuple[Any, ...] = (1,),
    blocks: tuple[ir.Var, ...] | None = None,
    threads: int = 128,
    thread_vars: tuple[ir.Var, ...] | None = None,
    attrs: tuple[tuple[str, Any], ...] = (),
    **kw: Any,
) -> ir.Function:
    """One kernel; params are Buffers or Vars."""
    blocks = tuple(var(f"b{k}") for k in range(len(grid))) if blocks is None else blocks
    thread_vars = (var("tx"),) if thread_vars is None else thread_vars
    kernel = ir.Kernel("main", tuple(map(i, grid)), (i(threads),), blocks, thread_vars, tuple(body), attrs)
    made = tuple(ir.Param(p.name, buffer=p) if isinstance(p, ir.Buffer) else ir.Param(p.name, var=p) for p in params)
    return ir.Function("test", made, (kernel,), **kw)


def read_text(text: str, file: str = "printed.py") -> ir.Function:
    """Printed IR read back; its errors show the lines of the text as those of a file."""
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    return from_text(text, file)


def matmul(
    m: int, n: int, k: int, bm: int, bn: int, bk: int, dtype: str = "float32", out: str = "float32"
) -> ir.Function:
    """The canonical tiled matrix product (K loop over tiles, accumulator in a fragment)."""
    A, B, C = buf("A", (m, k), dtype), buf("B", (k, n), dtype), buf("C", (m, n), out)
    A_s, B_s = buf("A_s", (bm, bk), dtype, "shared"), buf("B_s", (bk, bn), dtype, "shared")
    acc = buf("acc", (bm, bn), "float32", "fragment")
    bx, by, ko = var("bx"), var("by"), var("ko")
    body = [
        ir.Alloc(A_s), ir.Alloc(B_s), ir.Alloc(acc), fill(acc, 0.0),
        loop(
            ko, -(-k // bk),
            copy(region(A, (mul(by, bm), mul(ko, bk)), (bm, bk)), region(A_s)),
            copy(region(B, (mul(ko, bk), mul(bx, bn)), (bk, bn)), region(B_s)),
            gemm(A_s, B_s, acc),
        ),
        copy(region(acc), region(C, (mul(by, bm), mul(bx, bn)), (bm, bn))),
    ]  # fmt: skip
    return function([A, B, C], body, (-(-n // bn), -(-m // bm)), (bx, by))
