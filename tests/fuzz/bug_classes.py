"""The classes of bugs that users and fuzzers found in kernel compilers, each as a predicate over a drawn program.

A predicate says that the program contains what such a bug needs to show; it does not run anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tiledsl import ir
from tiledsl.ir.walk import loads_of, walk, writes
from tiledsl.testing.strategies import Program

Predicate = Callable[[Program, ir.Function], bool]
BUG_CLASSES: dict[str, Predicate] = {}


def bug_class(name: str) -> Callable[[Predicate], Predicate]:
    def add(p: Predicate) -> Predicate:
        BUG_CLASSES[name] = p
        return p

    return add


# -- looking at trees ----------------------------------------------------------------------------------------------


def nodes(f: ir.Function) -> Iterator[Any]:
    for k in f.kernels:
        yield from walk(k.body)


def of(f: ir.Function, *kinds: type) -> Iterator[Any]:
    return (n for n in nodes(f) if isinstance(n, kinds))


def blocks(f: ir.Function) -> Iterator[tuple[ir.Stmt, ...]]:
    for k in f.kernels:
        yield k.body
        for n in walk(k.body):
            for field in ir.fields_of(type(n)):
                if field.role == "block":
                    yield getattr(n, field.name)


def number(e: Any) -> int | None:
    return e.value if isinstance(e, ir.Const) else None


def is_const(e: Any, value: Any) -> bool:
    return isinstance(e, ir.Const) and e.value == value


def written_in(body: tuple[ir.Stmt, ...]) -> set[ir.Buffer]:
    return {b.root for s in walk(body) if isinstance(s, ir.Stmt) for b in writes(s)}


def read_in(n: Any) -> set[ir.Buffer]:
    found = {x.buffer.root for x in walk(n) if isinstance(x, ir.Load)}
    for x in walk(n):
        if isinstance(x, (ir.Copy, ir.Reduce)):
            found.add(x.src.buffer.root)
        elif isinstance(x, ir.Gemm):
            found |= {x.a.buffer.root, x.b.buffer.root}
    return found


def lane_sizes(f: ir.Function) -> Iterator[int]:
    """The last extents of nests and copies."""
    for s in of(f, ir.Parallel, ir.Copy):
        sizes = [number(e) for e in (s.extents if isinstance(s, ir.Parallel) else s.domain)]
        if sizes and sizes[-1] is not None:
            yield sizes[-1]


def binaries(f: ir.Function, *ops: str) -> Iterator[Any]:
    return (e for e in of(f, ir.Binary) if e.op in ops)


# -- shapes and bounds ---------------------------------------------------------------------------------------------


@bug_class("a tail of width 1 modulo the vector")
def _(p: Program, f: ir.Function) -> bool:
    return any(n % 16 == 1 and n > 16 for n in lane_sizes(f))


@bug_class("a narrow store in a tail")
def _(p: Program, f: ir.Function) -> bool:
    tails = [s for s in of(f, ir.Parallel) if (number(s.extents[-1]) or 16) % 16]
    return any(x.buffer.dtype.bits < 32 for s in tails for x in walk(s.body) if isinstance(x, ir.Store))


@bug_class("tiles that do not divide the tensor")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.op == "floordiv" for k in f.kernels for g in k.grid for e in walk(g) if isinstance(e, ir.Binary))


@bug_class("an extent of 1 in a nest")
def _(p: Program, f: ir.Function) -> bool:
    return any(is_const(e, 1) for s in of(f, ir.Parallel) for e in s.extents)


@bug_class("a product with an odd or single row, column or K")
def _(p: Program, f: ir.Function) -> bool:
    return any((number(e) or 0) % 8 for s in of(f, ir.Gemm) for r in (s.a, s.b) for e in r.extents[-2:])


@bug_class("a gather through data that may be negative or too large")
def _(p: Program, f: ir.Function) -> bool:
    def wild(i: ir.Expr) -> bool:
        clamped = isinstance(i, ir.Binary) and i.op in ("min", "floormod")
        return not clamped and bool(loads_of(i))

    return any(x.buffer.scope == "global" and any(wild(i) for i in x.indices) for x in of(f, ir.Load))


@bug_class("a copy from a start known only at run time")
def _(p: Program, f: ir.Function) -> bool:
    return any(any(loads_of(i) or isinstance(i, ir.Var) for i in s.src.starts) for s in of(f, ir.Copy))


@bug_class("a box of a tile whose start plus extent passes its end")
def _(p: Program, f: ir.Function) -> bool:
    regions = [r for s in of(f, ir.Copy, ir.Fill) for r in ((s.src, s.dst) if isinstance(s, ir.Copy) else (s.dst,))]
    return any(r.buffer.scope != "global" and any(number(i) is None for i in r.starts) for r in regions)


@bug_class("a copy between regions of different rank or with exchanged axes")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.src_axes != s.dst_axes or s.src.buffer.rank != s.dst.buffer.rank for s in of(f, ir.Copy))


@bug_class("a row taken for a column: (1, n) beside (n,)")
def _(p: Program, f: ir.Function) -> bool:
    shapes = [b.const_shape for s in of(f, ir.Load, ir.Store) if (b := s.buffer).alias_of is not None]
    return any(s is not None and len(s) == 2 and 1 in s for s in shapes) or any(
        is_const(e, 1) for s in of(f, ir.Copy) for e in s.domain
    )


@bug_class("reads outside with a safe value that is not 0")
def _(p: Program, f: ir.Function) -> bool:
    return any(x.buffer.safe is not None for x in of(f, ir.Load)) or any(
        s.src.buffer.safe is not None for s in of(f, ir.Copy)
    )


@bug_class("sizes that only the launch knows")
def _(p: Program, f: ir.Function) -> bool:
    return bool(f.symbols)


@bug_class("64-bit sizes")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.type.name == "int64" for s in f.symbols)


@bug_class("arguments that are not contiguous")
def _(p: Program, f: ir.Function) -> bool:
    return any(a.strides is not None for a in p.arguments)


@bug_class("an argument that repeats one row (stride 0)")
def _(p: Program, f: ir.Function) -> bool:
    return any(a.strides is not None and 0 in a.strides for a in p.arguments)


@bug_class("one array passed twice")
def _(p: Program, f: ir.Function) -> bool:
    return any(a.same_as for a in p.arguments)


@bug_class("an argument that is written between the rows of one that is read")
def _(p: Program, f: ir.Function) -> bool:
    return any(a.beside for a in p.arguments)


@bug_class("tickets: an atomic whose old value is used")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.result is not None and s.op != "load" for s in of(f, ir.Atomic))


@bug_class("many blocks that add to one element")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.buffer.scope == "global" and s.result is None for s in of(f, ir.Atomic))


@bug_class("a histogram in shared memory")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.buffer.scope == "shared" and s.result is None for s in of(f, ir.Atomic))


@bug_class("8-bit floats")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.type.name.startswith("float8") for e in of(f, ir.Cast))


@bug_class("a scan from the end")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.reverse for s in of(f, ir.Scan))


@bug_class("an empty grid or an empty loop")
def _(p: Program, f: ir.Function) -> bool:
    empty = any(0 in (a.shape or (1,)) for a in p.arguments)
    loops = [(number(s.start), number(s.stop), number(s.step)) for s in of(f, ir.For)]
    return empty or any(None not in b and len(range(*b)) == 0 for b in loops)  # type: ignore[arg-type]


@bug_class("a tile larger than a cache block of the product")
def _(p: Program, f: ir.Function) -> bool:
    return any((number(e) or 0) > 64 for s in of(f, ir.Gemm) for e in s.b.extents)


# -- order and storage ---------------------------------------------------------------------------------------------


@bug_class("a reduction into what is there (clear=False)")
def _(p: Program, f: ir.Function) -> bool:
    return any(is_const(s.clear, False) for s in of(f, ir.Reduce))


@bug_class("a reduction or product cleared by a condition known at run time")
def _(p: Program, f: ir.Function) -> bool:
    return any(not isinstance(s.clear, ir.Const) for s in of(f, ir.Reduce, ir.Gemm))


@bug_class("a reduction along an axis that is not the last")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.axis < len(s.src.extents) - 1 for s in of(f, ir.Reduce))


@bug_class("a maximum that has to ignore, or to keep, NaN")
def _(p: Program, f: ir.Function) -> bool:
    special = any(a.values == "special" for a in p.arguments)
    return special and any(s.op in ("max", "min", "absmax") and s.src.buffer.dtype.is_float for s in of(f, ir.Reduce))


@bug_class("two rounding stores to one half-precision element in a loop")
def _(p: Program, f: ir.Function) -> bool:
    for loop in of(f, ir.For, ir.While):
        stores = [s for s in walk(loop.body) if isinstance(s, ir.Store) and s.buffer.dtype.is_half]
        if any(s.buffer.root in read_in(s.value) for s in stores):
            return True
    return False


@bug_class("a product rounded to a narrow accumulator")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.c.buffer.dtype.is_half for s in of(f, ir.Gemm))


@bug_class("a product of a product")
def _(p: Program, f: ir.Function) -> bool:
    results = {s.c.buffer.root for s in of(f, ir.Gemm)}
    return any({s.a.buffer.root, s.b.buffer.root} & results for s in of(f, ir.Gemm))


@bug_class("a transposed operand of a product")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.transpose_a or s.transpose_b for s in of(f, ir.Gemm))


def _stages(p: Program) -> list[str]:
    return re.findall(r"num_stages=(\w+)", p.source)


@bug_class("num_stages=None")
def _(p: Program, f: ir.Function) -> bool:
    return "None" in _stages(p)


@bug_class("num_stages=0")
def _(p: Program, f: ir.Function) -> bool:
    return "0" in _stages(p)


@bug_class("num_stages of 2 and more")
def _(p: Program, f: ir.Function) -> bool:
    return bool({"2", "3"} & set(_stages(p)))


@bug_class("shared memory read after the pipelined loop that filled it")
def _(p: Program, f: ir.Function) -> bool:
    for body in blocks(f):
        for k, s in enumerate(body):
            if isinstance(s, ir.For) and s.kind == "pipelined":
                filled = {b for b in written_in(s.body) if b.scope == "shared"}
                if any(filled & read_in(after) for after in body[k + 1 :]):
                    return True
    return False


@bug_class("a value read before the buffer changes and used after it")
def _(p: Program, f: ir.Function) -> bool:
    for body in blocks(f):
        for k, s in enumerate(body):
            if not isinstance(s, ir.Let) or not loads_of(s.value):
                continue
            sources, changed = {x.buffer.root for x in loads_of(s.value)}, False
            for after in body[k + 1 :]:
                if changed and any(n is s.var for n in walk(after)):
                    return True
                changed |= bool(written_in((after,)) & sources)
    return False


@bug_class("one fragment with two different indices in one nest")
def _(p: Program, f: ir.Function) -> bool:
    for nest in of(f, ir.Parallel):
        seen: dict[ir.Buffer, set[Any]] = {}
        for n in walk(nest.body):
            if isinstance(n, (ir.Load, ir.Store)) and n.buffer.scope == "fragment":
                seen.setdefault(n.buffer, set()).add(n.indices)
        if any(len(indices) > 1 for indices in seen.values()):
            return True
    return False


@bug_class("a fragment read by element in a serial loop")
def _(p: Program, f: ir.Function) -> bool:
    return any(x.buffer.scope == "fragment" for s in of(f, ir.For) for x in loads_of(s.body))


@bug_class("a constant element of a fragment")
def _(p: Program, f: ir.Function) -> bool:
    return any(x.buffer.scope == "fragment" and any(map(number, x.indices)) for x in of(f, ir.Load))


@bug_class("two elements exchanged")
def _(p: Program, f: ir.Function) -> bool:
    return "swap" in p.features


@bug_class("one storage under two dtypes")
def _(p: Program, f: ir.Function) -> bool:
    return any(x.buffer.alias_of is not None and x.buffer.dtype is not x.buffer.root.dtype for x in of(f, ir.Load))


@bug_class("two launches in one function")
def _(p: Program, f: ir.Function) -> bool:
    return len(f.kernels) > 1


@bug_class("bools in memory")
def _(p: Program, f: ir.Function) -> bool:
    return any(x.buffer.dtype.is_bool for x in of(f, ir.Load)) and any(s.buffer.dtype.is_bool for s in of(f, ir.Store))


# -- control -------------------------------------------------------------------------------------------------------


@bug_class("a store under a condition on data, in a nest")
def _(p: Program, f: ir.Function) -> bool:
    return any(isinstance(n, ir.If) and loads_of(n.cond) for s in of(f, ir.Parallel) for n in walk(s.body))


@bug_class("lanes that leave a loop at different times")
def _(p: Program, f: ir.Function) -> bool:
    return any(isinstance(n, (ir.Break, ir.Continue)) for s in of(f, ir.Parallel) for n in walk(s.body))


@bug_class("a loop whose bound is data")
def _(p: Program, f: ir.Function) -> bool:
    return any(loads_of(s.stop) for s in of(f, ir.For))


@bug_class("a loop that counts down")
def _(p: Program, f: ir.Function) -> bool:
    return any((number(s.step) or 0) < 0 for s in of(f, ir.For))


@bug_class("a loop variable that is not int32")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.var.type.name != "int32" for s in of(f, ir.For))


@bug_class("while")
def _(p: Program, f: ir.Function) -> bool:
    return any(True for _ in of(f, ir.While))


@bug_class("a choice that guards a load")
def _(p: Program, f: ir.Function) -> bool:
    return any(loads_of(e.t) for e in of(f, ir.IfThenElse))


@bug_class("and, or: the right side only where the left does not decide")
def _(p: Program, f: ir.Function) -> bool:
    return any(loads_of(e.b) for e in binaries(f, "and", "or"))


@bug_class("rows of a softmax that are masked altogether")
def _(p: Program, f: ir.Function) -> bool:
    return "softmax" in p.features and any(abs(n.value) == float("inf") for n in of(f, ir.Const))


@bug_class("a variable that each iteration has for itself")
def _(p: Program, f: ir.Function) -> bool:
    return any(
        isinstance(n, ir.Alloc) and n.buffer.scope in ("var", "local") for s in of(f, ir.Parallel) for n in walk(s.body)
    )


@bug_class("prints")
def _(p: Program, f: ir.Function) -> bool:
    return any(s.kind == "print" for s in of(f, ir.Debug))


# -- numbers -------------------------------------------------------------------------------------------------------


@bug_class("signed beside unsigned in one operation")
def _(p: Program, f: ir.Function) -> bool:
    return any(
        isinstance(x, ir.Cast) and x.type.kind == "uint" and x.x.dtype.kind == "int"
        for e in of(f, ir.Binary)
        for x in (e.a, e.b)
    )


@bug_class("quotients and remainders of negative integers")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.a.dtype.kind == "int" for e in binaries(f, "floordiv", "floormod", "truncdiv", "truncmod"))


@bug_class("shifts by the width and more")
def _(p: Program, f: ir.Function) -> bool:
    return any((number(e.b) or 0) >= e.a.dtype.bits or not isinstance(e.b, ir.Const) for e in binaries(f, "shl", "shr"))


@bug_class("narrow integers that wrap")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.type.is_int and e.x.dtype.is_int and e.type.bits < e.x.dtype.bits for e in of(f, ir.Cast))


@bug_class("floats too large for the integer they become")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.type.is_int and e.x.dtype.is_float for e in of(f, ir.Cast))


@bug_class("half precision rounded after every operation")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.dtype.is_half and isinstance(e.a, ir.Binary) for e in binaries(f, "add", "sub", "mul"))


@bug_class("a float literal beside a half")
def _(p: Program, f: ir.Function) -> bool:
    wide = [e for e in binaries(f, "add", "sub", "mul", "max", "min") if e.dtype.name == "float32"]
    return any(
        isinstance(x, ir.Cast) and x.x.dtype.is_half and isinstance(y, ir.Const)
        for e in wide
        for x, y in ((e.a, e.b), (e.b, e.a))
    )


@bug_class("float16 beside bfloat16")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.type.name == "float16" and e.x.dtype.name == "bfloat16" for e in of(f, ir.Cast))


@bug_class("max and min of NaN and of zeros of both signs")
def _(p: Program, f: ir.Function) -> bool:
    special = any(a.values == "special" for a in p.arguments)
    return special and any(e.dtype.is_float for e in binaries(f, "max", "min"))


@bug_class("infinity minus infinity, NaN in comparisons")
def _(p: Program, f: ir.Function) -> bool:
    special = any(a.values == "special" for a in p.arguments)
    return special and any(e.a.dtype.is_float for e in binaries(f, "lt", "le", "gt", "ge", "eq", "ne"))


@bug_class("bits of one type taken as another's")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.name == "reinterpret" for e in of(f, ir.Call))


@bug_class("one rounding or two: fma beside a product and a sum")
def _(p: Program, f: ir.Function) -> bool:
    sums = [x for e in binaries(f, "add", "sub") for x in (e.a, e.b) if e.dtype.is_float]
    return any(isinstance(x, ir.Binary) and x.op == "mul" for x in sums)


@bug_class("a quotient that a reciprocal would get wrong")
def _(p: Program, f: ir.Function) -> bool:
    return any(e.dtype.is_float for e in binaries(f, "div"))
