"""Expressions and places of the loop stage as LLVM IR; `kernel.py` adds the statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir as ll

from tiledsl import ir
from tiledsl.backends.cpu.emit import arith, convert, values
from tiledsl.backends.cpu.emit.expansion import emit_math
from tiledsl.backends.cpu.emit.halves import prefetch_once
from tiledsl.backends.cpu.nest import affine
from tiledsl.backends.cpu.printing import constant_index, row_major_strides
from tiledsl.dtypes import BOOL, INT64, DType
from tiledsl.errors import InternalError
from tiledsl.ir.arithmetic import BIT_FUNCTIONS
from tiledsl.ir.intrinsics import INTRINSICS, MIXES
from tiledsl.ir.walk import loads_of, walk

__all__ = ["ExpressionEmitter"]


Value = Any  # llvmlite values are untyped for mypy


class ExpressionEmitter:
    """Values, variables and addresses of one kernel.

    b         the builder; the module it writes into says in `register_bytes` how wide the CPU's registers are
    values    what Lets, loops, parameters and symbols are
    slots     where the elements of a variable live: in memory that LLVM turns into registers
    pointers  addresses of buffers that do not move
    innermost the variable of the loop at hand
    quiet     variables that only ever hold maxima and minima, never a signalling NaN
    """

    def __init__(self, kernel: ir.Kernel, b: Any) -> None:
        self.kernel, self.b = kernel, b
        self.values: dict[ir.Var, Value] = {}
        self.slots: dict[tuple[ir.Buffer, int], Value] = {}
        self.pointers: dict[ir.Buffer, Value] = {}
        self.innermost: ir.Var | None = None
        self.quiet = _quiet_variables(kernel.body)

    # -- places ------------------------------------------------------------------------------------------------

    def slot(self, b: ir.Buffer, i: int) -> Value:
        found = self.slots.get((b, i))
        if found is None:
            with self.b.goto_entry_block():
                found = self.b.bitcast(self.b.alloca(values.value_type(b.dtype), name=b.name), values.PTR)
            self.slots[(b, i)] = found
        return found

    def pointer(self, b: ir.Buffer) -> Value:
        """The address of a buffer's first element; of a view its root's, moved by its offset in elements."""
        found = self.pointers.get(b)
        if found is not None:
            return found
        if b.alias_of is not None:
            root = self.pointer(b.alias_of)
            return root if b.offset is None else self.moved(root, b.dtype, self.index(b.offset))
        assert b.base is not None
        return self.b.inttoptr(self.index(b.base), values.PTR)

    def moved(self, pointer: Value, d: DType, index: Value) -> Value:
        """The address `index` elements further."""
        return self.b.gep(pointer, [index], inbounds=True, source_etype=values.memory_type(d.scalar))

    def index(self, e: ir.Expr) -> Value:
        """An integer expression as int64, lane by lane for a vector."""
        return convert.cast(self.b, e.dtype, INT64.with_lanes(e.dtype.lanes), self.value(e))

    def place(self, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> tuple[Value, Value]:
        """The pointer, and the linear index: a scalar, or a vector for gathers and scatters."""
        constant = 0
        scalars: list[Value] = []
        vectors: list[Value] = []
        for e, stride in zip(indices, row_major_strides(b), strict=True):
            if isinstance(e, ir.Const) and isinstance(stride, ir.Const):
                constant += int(e.value) * int(stride.value)
                continue
            if isinstance(e, ir.Const) and e.value == 0:
                continue
            at = self.index(e)
            if not (isinstance(stride, ir.Const) and stride.value == 1):
                by = self.index(stride)
                at = self.b.mul(at, values.splat(self.b, by, e.dtype.lanes) if e.dtype.lanes > 1 else by)
            (scalars if e.dtype.lanes == 1 else vectors).append(at)
        if constant or not scalars:
            scalars.append(values.constant(INT64, constant))
        scalar = self._sum(scalars)
        base = self.pointer(b)
        if not vectors:
            return base, scalar
        return self.moved(base, b.dtype, scalar), self._sum(vectors)

    def _sum(self, terms: list[Value]) -> Value:
        total = terms[0]
        for t in terms[1:]:
            total = self.b.add(total, t)
        return total

    # -- expressions ---------------------------------------------------------------------------------------------

    def value(self, e: ir.Expr) -> Value:
        method: Callable[[Any], Value] | None = getattr(self, f"on_{type(e).__name__}", None)
        if method is None:
            raise InternalError(f"{type(e).__name__} has no place in the loop stage")
        return method(e)

    def on_Const(self, e: ir.Const) -> Value:
        return values.constant(e.type, e.value)

    def on_Var(self, e: ir.Var) -> Value:
        if e not in self.values:
            raise InternalError(f"{e.name} is used in kernel {self.kernel.name} before it is defined")
        return self.values[e]

    def on_Load(self, e: ir.Load) -> Value:
        b = e.buffer
        if b.scope == "var":
            held = self.b.load(self.slot(b, constant_index(e.indices)), typ=values.value_type(b.dtype))
            return arith.known_quiet(held) if b in self.quiet else held
        base, index = self.place(b, e.indices)
        mask = None if e.mask is None else self.value(e.mask)
        if any(i.dtype.lanes > 1 for i in e.indices):
            return values.gather(self.b, b.dtype, base, index, mask)
        if mask is None and self._is_panel(e):
            prefetch_once(self.b, self.moved(base, b.dtype, index))
        return values.load(self.b, b.dtype.with_lanes(e.lanes), base, index, mask)

    def _is_panel(self, e: ir.Load) -> bool:
        """Each round of the innermost loop reads the next vector of an argument: it lies packed for this loop."""
        if e.buffer.root.scope != "global" or e.lanes * e.buffer.dtype.bits < 512:
            return False
        total = 0
        for index, stride in zip(e.indices, row_major_strides(e.buffer), strict=True):
            steps = None if self.innermost is None else affine(index, self.innermost)
            if steps and isinstance(stride, ir.Const):
                total += steps * int(stride.value)
            elif steps != 0:
                return False
        return total == e.lanes

    def on_Unary(self, e: ir.Unary) -> Value:
        return arith.unary(self.b, e.op, e.dtype, self.value(e.x))

    def on_Binary(self, e: ir.Binary) -> Value:
        if e.op in ("and", "or") and e.dtype.lanes == 1 and any(x.buffer.scope != "var" for x in loads_of(e.b)):
            decided = ir.Const(e.op == "or", BOOL)
            sides = (decided, e.b) if e.op == "or" else (e.b, decided)
            return self.chosen(self.value(e.a), *sides)
        return arith.binary(self.b, e.op, e.a.dtype, self.value(e.a), self.value(e.b))

    def on_Fma(self, e: ir.Fma) -> Value:
        return arith.fma(self.b, *(self.value(x) for x in (e.a, e.b, e.c)))

    def on_Select(self, e: ir.Select) -> Value:
        return self.b.select(*(self.value(x) for x in (e.cond, e.t, e.f)))

    def on_IfThenElse(self, e: ir.IfThenElse) -> Value:
        return self.chosen(self.value(e.cond), e.t, e.f)

    def chosen(self, cond: Value, t: ir.Expr, f: ir.Expr) -> Value:
        """One of two values; only that one is computed."""
        with self.b.if_else(cond) as (then, otherwise):
            with then:
                yes, yes_end = self.value(t), self.b.block
            with otherwise:
                no, no_end = self.value(f), self.b.block
        return values.merged(self.b, (yes, yes_end), (no, no_end))

    def on_Cast(self, e: ir.Cast) -> Value:
        return convert.cast(self.b, e.x.dtype, e.type, self.value(e.x))

    def on_Call(self, e: ir.Call) -> Value:
        args = [self.value(a) for a in e.args]
        if e.name == "reinterpret":
            return arith.reinterpret(self.b, e.type, args[0])
        if e.name in ("isnan", "isinf", "isfinite"):
            return arith.classify(self.b, e.name, e.args[0].dtype, args[0])
        if e.name == "any":
            return arith.any_lane(self.b, args[0])
        if e.name in BIT_FUNCTIONS:
            return arith.bit_function(self.b, e.name, args[0])
        if e.name == "permute":
            return arith.permute(self.b, *args)
        if e.name in MIXES:
            return values.shuffle(self.b, args[0], args[1], MIXES[e.name])
        if e.name.startswith("hreduce_"):
            return arith.hreduce(self.b, e.name.removeprefix("hreduce_"), e.args[0].dtype, args[0])
        assert INTRINSICS[e.name].kind == "math"
        return self.b.call(emit_math(self.b.module, e.name, e.type), args)

    def on_Broadcast(self, e: ir.Broadcast) -> Value:
        return values.splat(self.b, self.value(e.x), e.lanes)

    def on_Ramp(self, e: ir.Ramp) -> Value:
        return values.ramp(self.b, self.value(e.base), e.stride, e.lanes)

    def from_word(self, d: DType, word: Value) -> Value:
        """A scalar out of its argument word (zero- or sign-extended bits)."""
        if not d.is_float:
            return convert.cast(self.b, INT64, d, word)
        bits = self.b.trunc(word, ll.IntType(max(8, d.bits))) if d.bits < 64 else word
        return arith.reinterpret(self.b, d, bits)


def _quiet_variables(body: tuple[ir.Stmt, ...]) -> frozenset[ir.Buffer]:
    held: dict[ir.Buffer, bool] = {}
    for s in walk(body):
        if isinstance(s, (ir.Alloc, ir.Store)) and s.buffer.scope == "var" and s.buffer.dtype.is_float:
            value = s.init if isinstance(s, ir.Alloc) else s.value
            held[s.buffer] = held.get(s.buffer, True) and (value is None or _is_quiet(value, s.buffer))
    return frozenset(b for b, quiet in held.items() if quiet)


def _is_quiet(e: ir.Expr, own: ir.Buffer) -> bool:
    """Whether e is a maximum or minimum, a number, or what the variable itself holds."""
    if isinstance(e, ir.Broadcast):
        return _is_quiet(e.x, own)
    if isinstance(e, ir.Select):
        return _is_quiet(e.t, own) and _is_quiet(e.f, own)
    if isinstance(e, ir.Const):
        return bool(e.value == e.value)
    return isinstance(e, ir.Binary) and e.op in ("max", "min") or isinstance(e, ir.Load) and e.buffer is own
